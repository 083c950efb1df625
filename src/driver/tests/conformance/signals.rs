//! EINTR everywhere: a signal every few microseconds while requests run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrio_driver::Shape;

use crate::rig::{Rig, Subject};

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Catches SIGUSR1 without SA_RESTART, so that system calls return EINTR.
fn catch() {
    // SAFETY: the action is fully initialised; its handler only touches an atomic, which is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(libc::c_int) as libc::sighandler_t;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
}

pub fn nothing_is_lost_in_a_signal_storm<D: Subject>(shape: Shape) {
    catch();
    let before = CAUGHT.load(Ordering::Relaxed);
    // SAFETY: names the calling thread, which joins the sender below before it ends.
    let victim = unsafe { libc::pthread_self() };
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let storm = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            // SAFETY: the thread lives: it joins this one before it ends.
            unsafe { libc::pthread_kill(victim, libc::SIGUSR1) };
            std::thread::sleep(Duration::from_micros(20));
        }
    });
    let mut rig = Rig::<D>::new(shape, 32);
    let ops: Vec<_> = (0..32).map(|n| rig.read(n * 4096, n * 8192, 4096)).collect();
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_millis(300) || rounds < 20 {
        assert_eq!(rig.run(&ops), [4096; 32]);
        rounds += 1;
    }
    rig.finish();
    over.store(true, Ordering::Relaxed);
    storm.join().expect("no panic");
    assert!(CAUGHT.load(Ordering::Relaxed) > before, "the storm did not blow");
}
