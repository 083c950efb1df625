//! No thread that calls a half sleeps in a system call on the disk: the disk stands still, and they come back.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use ferrio_driver::{DriverConfig, Op, OpKind, OpenOptions, Segment, Shape, SubmitHalf, Target};

use crate::fuse::Fuse;
use crate::loop_device::Loop;
use crate::rig::{PATIENCE, Rig, Subject, directory, flush, nop, read};

const BYTES: u64 = 32 << 20;

fn mount() -> Option<Fuse> {
    Fuse::mount(BYTES).inspect_err(|reason| eprintln!("SKIPPED: no slow disk: {reason}")).ok()
}

/// Runs `submit` on a thread of its own with the gate closed, opens the gate once it has come back, and then runs `finish`
/// there: what io_uring has in flight is tied to the thread that submitted it.
fn with_closed_gate<T>(
    fuse: Fuse,
    submit: impl FnOnce() -> T + Send + 'static,
    finish: impl FnOnce(T) + Send + 'static,
) {
    fuse.close_gate();
    let (sender, back) = mpsc::channel();
    let (opened, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let state = submit();
        // A watcher that has given up does not listen.
        let _ = sender.send(());
        if wait.recv().is_ok() {
            finish(state);
        }
    });
    let came_back = back.recv_timeout(PATIENCE).is_ok() && fuse.wait_held(1);
    fuse.open_gate();
    if came_back {
        opened.send(()).expect("it waits");
    }
    drop(opened);
    thread.join().expect("no panic");
    assert!(came_back, "the thread slept until the disk answered, or never asked it");
}

/// All that a rig can ask of a file, and of others beside it.
fn everything<D: Subject>(mut rig: Rig<D>) -> (Rig<D>, Vec<i32>) {
    let other = rig.submit.register_file(Target::memory(1 << 20).expect("memory").into()).expect("file");
    let beside = read(other, rig.region, 0, 0, 4096);
    let (region, at) = (rig.region, |n: u64| n << 20);
    let range = |kind, n| Op { kind, ..rig.read(0, at(n), 65536) };
    let ops = [
        rig.read(0, at(1), 4096),
        rig.write(65536, at(2), 4096),
        Op { fua: true, ..rig.write(65536, at(3), 4096) },
        flush(rig.file),
        range(OpKind::Discard, 4),
        range(OpKind::WriteZeroes, 5),
    ];
    for (user, op) in (0..).zip(&ops) {
        rig.stage(user, op);
    }
    let segments = [0, 8192].map(|offset| Segment { region, offset, length: 4096 });
    let (readv, writev) = (rig.read(0, at(6), 8192), rig.write(0, at(7), 8192));
    rig.stage_vectored(6, &readv, &segments);
    rig.stage_vectored(7, &writev, &segments);
    rig.stage(100, &nop());
    rig.stage(101, &beside);
    rig.commit();
    // These two are not kept waiting.
    let mut users: Vec<_> = rig.wait(2).iter().map(|completion| completion.user).collect();
    users.sort_unstable();
    assert_eq!(users, [100, 101]);
    rig.submit.sleep(rig.doorbells.as_fd(), Some(Duration::from_millis(1))).expect("sleep");
    (rig, vec![4096, 4096, 4096, 0, 0, 0, 8192, 8192])
}

fn file_does_not_keep_the_thread<D: Subject>(shape: Shape, page_cache: bool) {
    let Some(fuse) = mount() else { return };
    let options = OpenOptions { page_cache, ..OpenOptions::default() };
    let target = Arc::new(Target::open(&fuse.path(), &options).expect("target"));
    assert_eq!(target.direct(), !page_cache);
    let config = DriverConfig { depth: 16, shape, ..DriverConfig::default() };
    let rig = Rig::<D>::on(&config, directory(), target, 1 << 20);
    let finish = |(mut rig, wanted): (Rig<D>, Vec<i32>)| {
        let mut results = vec![i32::MIN; wanted.len()];
        for completion in rig.wait(wanted.len()) {
            results[completion.user as usize] = completion.result;
            rig.submit.release(completion.tag);
        }
        assert_eq!(results, wanted);
        // Those beside it were reaped and not released.
        assert_eq!(rig.submit.in_flight(), 2);
    };
    with_closed_gate(fuse, move || everything(rig), finish);
}

pub fn direct_file_does_not_keep_the_thread<D: Subject>(shape: Shape) {
    file_does_not_keep_the_thread::<D>(shape, false);
}

pub fn cached_file_does_not_keep_the_thread<D: Subject>(shape: Shape) {
    file_does_not_keep_the_thread::<D>(shape, true);
}

/// More requests than the device's queue has room for: the kernel would wait for room.
pub fn full_device_does_not_keep_the_thread<D: Subject>(shape: Shape) {
    const REQUESTS: u32 = 300;
    let Some(fuse) = mount() else { return };
    let device = match Loop::attach(&fuse.path(), 512) {
        Ok(device) => device,
        Err(reason) => return eprintln!("SKIPPED: no loop device over FUSE: {reason}"),
    };
    let target = Arc::new(Target::open(&device.0, &OpenOptions::default()).expect("target"));
    let config = DriverConfig { depth: 512, shape, ..DriverConfig::default() };
    let mut rig = Rig::<D>::on(&config, directory(), target, 2 << 20);
    let submit = move || {
        for user in 0..REQUESTS {
            // Apart from each other, so that the device does not make one of two.
            let op = rig.read(u64::from(user) * 4096, u64::from(user) * 65536, 4096);
            rig.stage(user, &op);
        }
        rig.commit();
        rig.submit.sleep(rig.doorbells.as_fd(), Some(Duration::from_millis(1))).expect("sleep");
        rig
    };
    let finish = |mut rig: Rig<D>| {
        for completion in rig.wait(REQUESTS as usize) {
            assert_eq!(completion.result, 4096);
            rig.submit.release(completion.tag);
        }
        rig.finish();
        drop(device);
    };
    with_closed_gate(fuse, submit, finish);
}

/// When the halves go and a helper or the kernel does not come back, what they may still write to is not let go.
pub fn drop_leaks_what_the_disk_keeps<D: Subject>(shape: Shape) {
    let Some(fuse) = mount() else { return };
    let target = Arc::new(Target::open(&fuse.path(), &OpenOptions::default()).expect("target"));
    let drain_limit = Duration::from_millis(50);
    let config = DriverConfig { depth: 16, shape, drain_limit, ..DriverConfig::default() };
    let rig = Rig::<D>::on(&config, directory(), Arc::clone(&target), 1 << 20);
    let mapping = Arc::clone(&rig.memory.mapping);
    let submit = |mut rig: Rig<D>| {
        for user in 0..8 {
            let op = rig.read(u64::from(user) * 4096, u64::from(user) * 65536, 4096);
            rig.stage(user, &op);
        }
        rig.commit();
        let Rig { submit, reaper, .. } = rig;
        drop(submit);
        drop(reaper);
    };
    let check = move |()| {
        assert!(Arc::strong_count(&mapping) > 1, "the memory is still theirs");
        assert!(Arc::strong_count(&target) > 1, "and so is the file");
    };
    with_closed_gate(fuse, move || submit(rig), check);
}

/// A device that does not answer keeps as many helpers as there are for all: discards of others are done all the same.
pub fn stuck_device_leaves_helpers_to_others<D: Subject>(shape: Shape) {
    const STUCK: u32 = 8;
    const OTHERS: u32 = 3;
    let Some(fuse) = mount() else { return };
    let attached = Loop::attach(&fuse.path(), 512).and_then(|stuck| {
        let directory = directory();
        let others = (0..OTHERS).map(|n| {
            let backing = directory.path().join(format!("disk-{n}"));
            std::fs::write(&backing, vec![0; 1 << 20]).expect("backing file");
            Loop::attach(&backing, 512)
        });
        Ok((stuck, others.collect::<Result<Vec<_>, _>>()?, directory))
    });
    let (stuck, others, directory) = match attached {
        Ok(devices) => devices,
        Err(reason) => return eprintln!("SKIPPED: no loop devices: {reason}"),
    };
    let open = |device: &Loop| Arc::new(Target::open(&device.0, &OpenOptions::default()).expect("target"));
    let target = open(&stuck);
    assert!(target.capabilities().discard.is_supported(), "{:?}", target.capabilities());
    let config = DriverConfig { depth: 32, shape, ..DriverConfig::default() };
    assert!(STUCK > config.helpers);
    let mut rig = Rig::<D>::on(&config, directory, target, 1 << 20);
    let files: Vec<_> =
        others.iter().map(|device| rig.submit.register_file(open(device)).expect("file")).collect();
    let submit = move || {
        for user in 0..STUCK {
            let op = Op { kind: OpKind::Discard, ..rig.read(0, u64::from(user) << 20, 65536) };
            rig.stage(user, &op);
        }
        rig.commit();
        // Twice, so that they do not live on threads that were started for the stuck ones.
        for round in 0..2_u64 {
            for (user, &file) in (STUCK..).zip(&files) {
                rig.stage(user, &Op { kind: OpKind::Discard, file, ..rig.read(0, round << 16, 65536) });
            }
            rig.commit();
            for completion in rig.wait(files.len()) {
                assert!(completion.user >= STUCK, "{completion:?} though the gate is closed");
                assert_eq!(completion.result, 0);
                rig.submit.release(completion.tag);
            }
        }
        rig
    };
    let finish = |mut rig: Rig<D>| {
        for completion in rig.wait(STUCK as usize) {
            assert_eq!(completion.result, 0);
            rig.submit.release(completion.tag);
        }
        rig.finish();
        drop((stuck, others));
    };
    with_closed_gate(fuse, submit, finish);
}
