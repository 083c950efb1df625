//! What cannot be had from outside: a target that does not answer, a small seam, a made-up completion.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ferrio_shm::mapping::{Mapping, Region, create_memfd};
use rustix::fs::FallocateFlags;

use super::*;
use crate::driver::{Completion, Op, OpKind, Pin, ReapHalf, Segment, Shape, SubmitHalf};
use crate::target::Target;

const NAME: &str = "ferrio-uring-test";

fn config(drain_limit: Duration) -> DriverConfig {
    DriverConfig { depth: 4, shape: Shape::One, drain_limit, ..DriverConfig::default() }
}

fn region(name: &str, bytes: u64) -> (File, Region) {
    let fd: OwnedFd = create_memfd(name, bytes).expect("memfd");
    let mapping = Mapping::new(fd.as_fd(), bytes as usize).expect("mapping");
    (File::from(fd), Region::new(mapping.into(), 0, bytes).expect("region"))
}

/// A driver that reads from an empty pipe: in flight until somebody writes.
fn reading_a_pipe(name: &str, drain_limit: Duration) -> (UringSubmit, UringReap, File, File) {
    let (read_end, write_end) = rustix::pipe::pipe().expect("pipe");
    let (mut submit, reap) = Uring::open(&config(drain_limit)).expect("driver");
    let file = submit.register_file(Target::of_pipe(read_end.into()).into()).expect("file");
    let (memory, region) = region(name, 4096);
    let region = submit.register_region(region, Pin::Yes).expect("region");
    let slot = submit.reserve().expect("a slot");
    let op = Op { kind: OpKind::Read, file, region, region_offset: 0, length: 4, offset: 0, fua: false };
    submit.submit(slot, 1, &op).expect("room");
    assert_eq!(submit.commit().expect("commit"), 1);
    (submit, reap, memory, write_end.into())
}

fn is_mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").expect("maps").contains(name)
}

#[test]
fn drop_waits_for_a_slow_answer_and_then_frees() {
    let name = "ferrio-uring-slow";
    let (submit, reap, memory, mut write_end) = reading_a_pipe(name, Duration::from_secs(20));
    let delay = Duration::from_millis(100);
    let begun = Instant::now();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(delay);
        write_end.write_all(b"late").expect("pipe");
    });
    drop(reap);
    assert!(begun.elapsed() < delay, "the first half to go does not wait");
    drop(submit);
    assert!(begun.elapsed() >= delay, "the last one does");
    writer.join().expect("no panic");
    let mut landed = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut landed, 0).expect("memfd");
    assert_eq!(&landed, b"late");
    assert!(!is_mapped(name), "and the memory is let go");
}

#[test]
fn drop_leaks_what_is_not_answered() {
    let name = "ferrio-uring-stuck";
    let limit = Duration::from_millis(50);
    let (submit, reap, memory, mut write_end) = reading_a_pipe(name, limit);
    let begun = Instant::now();
    drop((submit, reap));
    assert!(begun.elapsed() >= limit);
    assert!(is_mapped(name), "the kernel may still write there");
    write_end.write_all(b"late").expect("the read end was leaked too");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut landed = [0; 4];
    while &landed != b"late" && Instant::now() < deadline {
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut landed, 0).expect("memfd");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(&landed, b"late", "as it does here, into memory that is still ours");
}

#[test]
fn transfers_around_a_seam_are_right_registered_or_not() {
    let (mut submit, mut reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    submit.set_slot_shift(13);
    let file: File = tempfile::tempfile().expect("tempfile");
    let data: Vec<u8> = (0..20480_u32).map(|n| (n / 7) as u8).collect();
    (&file).write_all(&data).expect("write");
    let file = submit.register_file(Target::of_pipe(file).into()).expect("file");
    let (memory, region) = region(NAME, 20480);
    let region = submit.register_region(region, Pin::Yes).expect("region");
    let degraded = submit.info().degraded.join("\n");
    let pinned = !degraded.contains("RLIMIT_MEMLOCK");
    if !pinned {
        eprintln!("SKIPPED: only the unregistered half: {degraded}");
    }
    let modes = submit.info().modes.join("\n");
    assert_eq!(modes.contains("1 of 1 regions, 3 of"), pinned, "{modes}\n{degraded}");
    // Within each slot, across each seam, and over all three.
    for (offset, length) in [(0, 8192), (8192, 8192), (16384, 4096), (8000, 400), (16383, 2), (0, 20480)] {
        let op = Op { kind: OpKind::Read, file, region, region_offset: offset, length, offset, fua: false };
        let slot = submit.reserve().expect("a slot");
        submit.submit(slot, 0, &op).expect("room");
        submit.commit().expect("commit");
        let completion = wait(&mut reap);
        assert_eq!(completion.result, length.cast_signed(), "at {offset}");
        submit.release(completion.tag);
    }
    let mut landed = vec![0; 20480];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut landed, 0).expect("memfd");
    assert!(landed == data);
    submit.unregister_region(region).expect("idle");
    assert!(submit.info().modes.join("\n").contains("0 of 0 regions, 0 of"));
}

/// Seen by punching a hole into a region: its registered pages are then not those that its file has.
#[test]
fn vectored_requests_go_through_registered_buffers() {
    let (mut submit, mut reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    submit.set_slot_shift(13);
    let file: File = tempfile::tempfile().expect("tempfile");
    (&file).write_all(&[7; 8192]).expect("write");
    let file = submit.register_file(Target::of_pipe(file).into()).expect("file");
    let (memory, region) = region(NAME, 16384);
    let region = submit.register_region(region, Pin::Yes).expect("region");
    let info = submit.info();
    let modes = info.modes.join("\n");
    if !(modes.contains("READV_FIXED") && modes.contains("1 of 1 regions, 2 of")) {
        return eprintln!("SKIPPED: {}", info.degraded.join("\n"));
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut reads_into_the_file = |submit: &mut UringSubmit, pieces: &[(u64, u32)]| {
        rustix::fs::fallocate(&memory, hole, 0, 16384).expect("a hole");
        let segments: Vec<_> =
            pieces.iter().map(|&(offset, length)| Segment { region, offset, length }).collect();
        let op =
            Op { kind: OpKind::Read, file, region, region_offset: 0, length: 8192, offset: 0, fua: false };
        let slot = submit.reserve().expect("a slot");
        submit.submit_vectored(slot, 0, &op, &segments).expect("room");
        submit.commit().expect("commit");
        let completion = wait(&mut reap);
        submit.release(completion.tag);
        assert_eq!(completion.result, 8192, "{pieces:?}");
        let mut landed = vec![0; 16384];
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut landed, 0).expect("memfd");
        landed.iter().filter(|&&byte| byte == 7).count() == 8192
    };
    assert!(!reads_into_the_file(&mut submit, &[(4096, 4096), (0, 4096)]), "within a slot: registered");
    assert!(!reads_into_the_file(&mut submit, &[(8192, 100), (8292, 8092)]), "within the other one too");
    assert!(reads_into_the_file(&mut submit, &[(0, 4096), (8192, 4096)]), "not in two slots");
    assert!(reads_into_the_file(&mut submit, &[(4096, 8192)]), "not across the seam");
    assert!(reads_into_the_file(&mut submit, &[(0, 4096), (0, 0), (4096, 4096)]), "not with an empty piece");
    submit.set_vectored_fixed(false);
    assert!(reads_into_the_file(&mut submit, &[(4096, 4096), (0, 4096)]), "not on an older kernel");
}

/// What helpers do ends a sleep inside the ring, and they do nothing before the commit.
#[test]
fn helpers_wake_the_sleeper_in_the_ring() {
    let (mut submit, mut reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    submit.set_fallocate(false);
    let target = Target::memory(1 << 20).expect("memory");
    let file = submit.register_file(target.into()).expect("file");
    assert!(submit.info().modes.join("\n").contains("4 helper threads"));
    let doorbells = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
    let op = Op {
        kind: OpKind::WriteZeroes,
        file,
        region: crate::RegionIndex(0),
        region_offset: 0,
        length: 4096,
        offset: 0,
        fua: false,
    };
    let mut out = Vec::with_capacity(4);
    for round in 0..2000_u32 {
        let wanted = 1 + round % 4;
        for user in 0..wanted {
            let slot = submit.reserve().expect("a slot");
            // A flush of the ring beside them now and then, so that both kinds of answers end the sleep.
            let kind = if round % 7 == 0 && user > 0 { OpKind::Flush } else { OpKind::WriteZeroes };
            submit.submit(slot, user, &Op { kind, ..op }).expect("room");
        }
        assert_eq!(submit.staged(), wanted);
        let mut left = wanted;
        while left > 0 {
            submit.sleep(doorbells.as_fd(), None).expect("sleep");
            reap.reap(&mut out);
            left -= out.len() as u32;
            for completion in out.drain(..) {
                assert_eq!(completion.result, 0);
                submit.release(completion.tag);
            }
        }
    }
    assert_eq!((submit.in_flight(), submit.staged(), reap.stale()), (0, 0, 0));
}

/// A large region is pinned in steps and works meanwhile; its pages and its mapping go in steps too.
#[test]
fn large_regions_come_and_go_in_steps() {
    const BYTES: u64 = 256 << 20;
    const SLOTS: usize = 16;
    let name = "ferrio-uring-large";
    let (mut submit, mut reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    let file: File = tempfile::tempfile().expect("tempfile");
    (&file).write_all(&[7; 8192]).expect("write");
    let file = submit.register_file(Target::of_pipe(file).into()).expect("file");
    let (memory, region) = region(name, BYTES);
    let region = submit.register_region(region, Pin::Yes).expect("region");
    assert!(submit.info().modes.join("\n").contains("region 0 is being pinned: 0 of 16 slots"));
    let mut read_at = |submit: &mut UringSubmit, offset: u64| {
        let op = Op {
            kind: OpKind::Read,
            file,
            region,
            region_offset: offset,
            length: 8192,
            offset: 0,
            fua: false,
        };
        let slot = submit.reserve().expect("a slot");
        submit.submit(slot, 0, &op).expect("room");
        submit.commit().expect("commit");
        let completion = wait(&mut reap);
        submit.release(completion.tag);
        completion.result
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = 0;
    loop {
        assert_eq!(read_at(&mut submit, seen as u64 * 4096), 8192, "whether it is pinned or not");
        submit.continue_pinning();
        let info = submit.info();
        if let Some(reason) = info.degraded.iter().find(|text| text.contains("region 0")) {
            return eprintln!("SKIPPED: {reason}");
        }
        let pinned = submit.fixed_of(region).expect("registered").pinned();
        assert!(pinned == seen || pinned == seen + 1, "one slot per step: {pinned} after {seen}");
        seen = pinned;
        if seen == SLOTS as u32 {
            break;
        }
        assert!(Instant::now() < deadline, "{seen} slots were pinned");
    }
    for offset in [0, BYTES / 2 - 4096, BYTES - 8192] {
        assert_eq!(read_at(&mut submit, offset), 8192);
    }
    submit.unregister_region(region).expect("idle");
    while submit.continue_pinning() {}
    while is_mapped(name) {
        assert!(Instant::now() < deadline, "the memory was not let go");
        std::thread::yield_now();
    }
    assert!(submit.pinning_is_idle());
    drop(memory);
}

/// One that leaves before it is pinned takes nothing with it.
#[test]
fn a_region_may_leave_while_it_is_being_pinned() {
    let (mut submit, _reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    for round in 0..5 {
        let name = format!("ferrio-uring-leaving-{round}");
        let (_memory, first) = region(&name, 64 << 20);
        let first = submit.register_region(first, Pin::Yes).expect("region");
        for _ in 0..round {
            submit.continue_pinning();
        }
        submit.unregister_region(first).expect("idle");
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_mapped(&name) {
            assert!(Instant::now() < deadline, "the memory was not let go");
            submit.continue_pinning();
        }
    }
    let modes = submit.info().modes.join("\n");
    assert!(modes.contains("0 of 0 regions, 0 of"), "{modes}");
    let (_memory, again) = region("ferrio-uring-again", 64 << 20);
    let again = submit.register_region(again, Pin::Yes).expect("region");
    assert_eq!(submit.fixed_of(again).expect("registered").first(), 0, "the slots are free again");
}

#[test]
fn a_completion_nobody_waits_for_is_counted() {
    let (mut submit, mut reap) = Uring::open(&config(Duration::from_secs(10))).expect("driver");
    submit.inject_stray(0x0000_0001_0000_0003);
    submit.inject_stray(u64::MAX - 0xff);
    let mut out = Vec::with_capacity(4);
    let deadline = Instant::now() + Duration::from_secs(20);
    while reap.stale() < 2 && Instant::now() < deadline {
        reap.reap(&mut out);
    }
    assert_eq!((reap.stale(), out.len()), (2, 0));
}

fn wait(reap: &mut UringReap) -> Completion {
    let mut out = Vec::with_capacity(1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while out.is_empty() {
        assert!(Instant::now() < deadline, "no completion");
        reap.reap(&mut out);
    }
    out[0]
}
