//! Sleeping ends when it should, and no completion is slept over.

use std::time::{Duration, Instant};

use ferrio_driver::{Shape, SubmitHalf};

use crate::rig::{PATIENCE, Rig, Subject, nop};

pub fn doorbell_wakes<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let begun = Instant::now();
    let bell = rig.doorbells.bell();
    let ringer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("eventfd");
    });
    while !rig.doorbells.silence() {
        assert!(begun.elapsed() < PATIENCE, "the doorbell was not heard");
        rig.submit.sleep(rig.doorbells.as_fd(), None).expect("sleep");
    }
    ringer.join().expect("no panic");

    // Rung before the sleep, and left ringing: each sleep ends at once.
    rig.doorbells.ring();
    for _ in 0..3 {
        rig.submit.sleep(rig.doorbells.as_fd(), None).expect("sleep");
        // In Shape::One the poll of the doorbells is answered through the queue, and then armed again.
        assert_eq!(rig.run_one(&nop()), 0);
    }
    assert!(rig.doorbells.silence());
    rig.finish();
}

pub fn timeout_wakes<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let long = Duration::from_millis(20);
    for _ in 0..3 {
        let begun = Instant::now();
        while begun.elapsed() < long {
            let left = long.saturating_sub(begun.elapsed());
            rig.submit.sleep(rig.doorbells.as_fd(), Some(left)).expect("sleep");
        }
        assert!(begun.elapsed() < PATIENCE);
    }
    rig.submit.sleep(rig.doorbells.as_fd(), Some(Duration::ZERO)).expect("a look");
    rig.finish();
}

/// Without timeouts: a lost wake-up hangs here.
pub fn completions_wake<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    for n in 0..300 {
        let op = rig.read(0, n * 4096, 4096);
        match shape {
            Shape::One => {
                rig.stage(1, &op);
                rig.submit.sleep(rig.doorbells.as_fd(), None).expect("sleep commits");
                assert_eq!(rig.submit.staged(), 0);
                let completion = rig.wait(1)[0];
                assert_eq!(completion.result, 4096);
                rig.submit.release(completion.tag);
            }
            Shape::Two => assert_eq!(rig.run_one(&op), 4096),
        }
    }
    rig.finish();
}

/// Nor does a batch that leaves no room for anything else keep the sleeper from its completions.
pub fn full_batch_sleeps_and_wakes<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 1024);
    let op = rig.read(0, 0, 4096);
    for user in 0..1024 {
        rig.stage(user, &op);
    }
    assert_eq!(rig.submit.staged(), 1024);
    let timeout = if shape == Shape::One { None } else { Some(Duration::ZERO) };
    rig.submit.sleep(rig.doorbells.as_fd(), timeout).expect("sleep commits");
    rig.commit();
    for completion in rig.wait(1024) {
        assert_eq!(completion.result, 4096);
        rig.submit.release(completion.tag);
    }
    rig.finish();
}

pub fn doorbells_and_completions_mix<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let bell = rig.doorbells.bell();
    let ringer = std::thread::spawn(move || {
        for _ in 0..200 {
            rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("eventfd");
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    let ops: Vec<_> = (0..8).map(|n| rig.read(n * 4096, n * 4096, 4096)).collect();
    while !ringer.is_finished() {
        assert_eq!(rig.run(&ops), [4096; 8]);
        rig.doorbells.silence();
    }
    ringer.join().expect("no panic");
    rig.finish();
}

/// Completions that never saw the kernel wake just as well; 2000 chances for a lost wake-up.
pub fn injected_completions_are_never_slept_over<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    for n in 0..2000_u32 {
        rig.stage(n, &nop());
        if shape == Shape::One {
            rig.submit.sleep(rig.doorbells.as_fd(), None).expect("sleep");
        }
        rig.commit();
        let completion = rig.wait(1)[0];
        assert_eq!((completion.user, completion.result), (n, 0));
        rig.submit.release(completion.tag);
        if n % 64 == 0 {
            // Let the reaping thread fall asleep now and then.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    rig.finish();
}
