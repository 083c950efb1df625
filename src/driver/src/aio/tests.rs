//! What cannot be had from outside: an answer that never comes, a made-up completion.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ferrio_shm::mapping::{Mapping, Region, create_memfd};

use super::*;
use crate::driver::{Op, OpKind, Pin, ReapHalf, Shape, SubmitHalf};
use crate::target::Target;

fn config(drain_limit: Duration) -> DriverConfig {
    DriverConfig { depth: 4, shape: Shape::One, drain_limit, ..DriverConfig::default() }
}

/// A region and a file, registered, and a read of one into the other.
fn a_read(submit: &mut AioSubmit, name: &str) -> Op {
    let fd = create_memfd(name, 4096).expect("memfd");
    let mapping = Mapping::new(fd.as_fd(), 4096).expect("mapping");
    let region = Region::new(mapping.into(), 0, 4096).expect("region");
    let region = submit.register_region(region, Pin::Yes).expect("region");
    let file = tempfile::tempfile().expect("tempfile");
    file.set_len(4096).expect("size");
    let file = submit.register_file(Target::of_pipe(file).into()).expect("file");
    Op { kind: OpKind::Read, file, region, region_offset: 0, length: 4096, offset: 0, fua: false }
}

fn is_mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").expect("maps").contains(name)
}

#[test]
fn drop_leaks_what_is_not_answered() {
    let name = "ferrio-aio-stuck";
    let limit = Duration::from_millis(50);
    let (mut submit, reap) = Aio::open(&config(limit)).expect("driver");
    let op = a_read(&mut submit, name);
    let slot = submit.reserve().expect("a slot");
    submit.submit(slot, 1, &op).expect("room");
    // As if the kernel had taken it: AIO has no request that stays in flight at our will.
    submit.pretend_to_commit();
    let begun = Instant::now();
    drop((submit, reap));
    assert!(begun.elapsed() >= limit);
    assert!(is_mapped(name), "the kernel may still write there");
}

#[test]
fn drop_frees_what_is_answered() {
    let name = "ferrio-aio-answered";
    let (mut submit, reap) = Aio::open(&config(Duration::from_secs(20))).expect("driver");
    let op = a_read(&mut submit, name);
    let slot = submit.reserve().expect("a slot");
    submit.submit(slot, 1, &op).expect("room");
    assert_eq!(submit.commit().expect("commit"), 1);
    drop((submit, reap));
    assert!(!is_mapped(name));
}

#[test]
fn a_completion_nobody_waits_for_is_counted() {
    let (mut submit, mut reap) = Aio::open(&config(Duration::from_secs(20))).expect("driver");
    let op = a_read(&mut submit, "ferrio-aio-twice");
    let slot = submit.reserve().expect("a slot");
    submit.submit(slot, 1, &op).expect("room");
    submit.stage_again();
    assert_eq!(submit.commit().expect("commit"), 2, "the kernel takes the same iocb twice");
    let mut out = Vec::with_capacity(4);
    let deadline = Instant::now() + Duration::from_secs(20);
    while reap.stale() < 1 && Instant::now() < deadline {
        reap.reap(&mut out);
    }
    assert_eq!((reap.stale(), out.len()), (1, 1), "one is believed");
    // The drop below waits for one answer more than was believed otherwise.
    submit.forget_one();
}
