//! Volumes and regions that change while requests are on their way.

mod common;

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
};

use common::{BLOCK, Rig, VOLUME_BYTES, done, region, request};
use ferrio_driver::{Driver, Target, aio::Aio, null::Null, uring::Uring};
use ferrio_engine::{EngineError, VolumeId, inject::Command};
use ferrio_shm::{
    abi::{Opcode, errno},
    entry::Sqe,
    mapping::{Mapping, Region, create_memfd},
};

fn read(user_data: u64, offset: u64) -> Sqe {
    request(Opcode::Read, user_data, offset)
}

fn write(user_data: u64, offset: u64) -> Sqe {
    request(Opcode::Write, user_data, offset)
}

fn remove<D: Driver>(rig: &mut Rig<D>, volume: VolumeId) -> mpsc::Receiver<()> {
    let (done, receiver) = done();
    rig.send(Command::RemoveVolume { volume, done });
    receiver
}

fn resize<D: Driver>(rig: &mut Rig<D>, volume: VolumeId, size_bytes: u64) -> mpsc::Receiver<()> {
    let (done, receiver) = done();
    rig.send(Command::ResizeVolume { volume, size_bytes, done });
    receiver
}

fn a_volume_goes_with_requests_in_flight<D: Driver>() {
    let mut rig = Rig::<D>::new(4, 128);
    rig.merge = false;
    let target = rig.file_target("volume");
    let open = Arc::downgrade(&target);
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 32);
    client.submit(&(0..32).map(|n| write(n, n * BLOCK)).collect::<Vec<_>>());
    rig.take(32);
    let removed = remove(&mut rig, volume);
    assert!(removed.try_recv().is_err() && open.strong_count() > 0, "requests are in flight");
    let results = rig.results(&mut client, 32);
    let written = results.values().filter(|result| **result == 4096).count();
    assert_eq!(written, 4, "what the kernel had was done: {results:?}");
    assert_eq!(results.values().filter(|result| **result == -errno::ENODEV).count(), 28, "{results:?}");
    removed.try_recv().expect("the removal is done");
    assert_eq!(open.strong_count(), 0, "the target is closed");
    client.submit(&[read(1, 0), Sqe { op: Opcode::Flush as u8, user_data: 2, ..Sqe::default() }]);
    let late = rig.results(&mut client, 2);
    assert!(late.values().all(|result| *result == -errno::ENODEV), "{late:?}");
    remove(&mut rig, volume).try_recv().expect("there is no such volume: done at once");
}

#[test]
fn a_volume_goes_with_requests_in_flight_over_io_uring() {
    a_volume_goes_with_requests_in_flight::<Uring>();
}

#[test]
fn a_volume_goes_with_requests_in_flight_over_aio() {
    a_volume_goes_with_requests_in_flight::<Aio>();
}

#[test]
fn the_next_volume_of_an_id_is_not_that_of_old_sessions() {
    let mut rig = Rig::<Null>::new(4, 32);
    let first = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut old = rig.open(first, 8);
    let other = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut beside = rig.open(other, 8);
    remove(&mut rig, first).try_recv().expect("nothing is in flight");
    let second = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    assert_eq!(first, second, "ids are used again");
    let mut new = rig.open(second, 8);
    for (client, result) in [(&mut old, -errno::ENODEV), (&mut beside, 4096), (&mut new, 4096)] {
        client.submit(&[read(1, 0)]);
        assert_eq!(rig.results(client, 1)[&1], result);
    }
}

#[test]
fn a_removed_volume_is_granted_to_nobody() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 8);
    client.submit(&[read(1, 0)]);
    rig.take(1);
    let removed = remove(&mut rig, volume);
    let again = remove(&mut rig, volume);
    let refused = rig.try_open(volume, 8).err().expect("it is being removed");
    assert!(matches!(refused, EngineError::Spec { .. }), "{refused}");
    rig.results(&mut client, 1);
    removed.try_recv().expect("done");
    again.try_recv().expect("done for both who asked");
}

fn a_volume_shrinks_with_requests_beyond_its_end<D: Driver>() {
    let mut rig = Rig::<D>::new(4, 128);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 32);
    // In flight: two beyond the new end, two before it.
    let half = VOLUME_BYTES / 2;
    let sqes = (0..16).map(|n| write(n, if n % 2 == 0 { n * BLOCK } else { half + n * BLOCK }));
    client.submit(&sqes.collect::<Vec<_>>());
    rig.take(16);
    let shrunk = resize(&mut rig, volume, half);
    assert!(shrunk.try_recv().is_err(), "two are in flight beyond the end");
    let results = rig.results(&mut client, 16);
    for (n, result) in &results {
        let whole = n % 2 == 0 || *n < 4;
        assert_eq!(*result, if whole { 4096 } else { -errno::ERANGE }, "request {n}");
    }
    shrunk.try_recv().expect("nothing is in flight");
    client.submit(&[read(1, half), read(2, half - BLOCK), read(3, half - BLOCK / 2)]);
    let late = rig.results(&mut client, 3);
    assert_eq!(late, BTreeMap::from([(1, -errno::ERANGE), (2, 4096), (3, -errno::ERANGE)]));
    resize(&mut rig, volume, VOLUME_BYTES).try_recv().expect("growing waits for nothing");
    client.submit(&[read(1, half)]);
    assert_eq!(rig.results(&mut client, 1)[&1], 4096);
}

#[test]
fn a_volume_shrinks_over_io_uring() {
    a_volume_shrinks_with_requests_beyond_its_end::<Uring>();
}

#[test]
fn a_volume_shrinks_over_aio() {
    a_volume_shrinks_with_requests_beyond_its_end::<Aio>();
}

#[test]
fn shrinks_that_meet_wait_for_each_other() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 8);
    client.submit(&[read(1, VOLUME_BYTES - BLOCK)]);
    rig.take(1);
    let first = resize(&mut rig, volume, VOLUME_BYTES / 2);
    resize(&mut rig, volume, VOLUME_BYTES).try_recv().expect("growing waits for nothing");
    client.submit(&[read(2, VOLUME_BYTES - BLOCK)]);
    rig.take(2);
    let second = resize(&mut rig, volume, VOLUME_BYTES - BLOCK);
    assert!(first.try_recv().is_err() && second.try_recv().is_err());
    let removed = remove(&mut rig, volume);
    rig.results(&mut client, 2);
    first.try_recv().expect("done");
    second.try_recv().expect("done");
    removed.try_recv().expect("done");
}

fn add_region<D: Driver>(
    rig: &mut Rig<D>,
    session_id: u64,
    index: u16,
    region: Region,
) -> Result<(), EngineError> {
    rig.ask(|reply| Command::AddRegion { session_id, index, region, reply })
}

fn remove_region<D: Driver>(rig: &mut Rig<D>, session_id: u64, index: u16) -> Result<(), EngineError> {
    rig.ask(|reply| Command::RemoveRegion { session_id, index, reply })
}

fn a_client_brings_memory<D: Driver>() {
    let mut rig = Rig::<D>::new(2, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let (daemons, own) = region(4 * BLOCK);
    own.u64s(0, 512).unwrap().iter().for_each(|word| word.store(7, Relaxed));
    let in_region = |sqe: Sqe, offset| Sqe { region: 9, region_offset: offset, ..sqe };
    client.submit(&[in_region(write(1, 0), 0)]);
    assert_eq!(rig.results(&mut client, 1)[&1], -errno::ENXIO, "not there yet");
    add_region(&mut rig, client.id, 9, daemons.clone()).unwrap();
    client.submit(&[in_region(write(1, 0), 0), in_region(write(2, 0), 4 * BLOCK)]);
    assert_eq!(rig.results(&mut client, 2), BTreeMap::from([(1, 4096), (2, -errno::EFAULT)]));
    // Two in flight, the others not issued.
    client.submit(&(0..8).map(|n| in_region(read(n, 0), BLOCK)).collect::<Vec<_>>());
    rig.take(8);
    let busy = remove_region(&mut rig, client.id, 9).unwrap_err();
    assert!(matches!(busy, EngineError::RegionBusy { in_flight: 2, .. }), "{busy}");
    assert_eq!(busy.errno(), errno::EBUSY);
    assert!(rig.results(&mut client, 8).values().all(|result| *result == 4096));
    assert!(own.u64s(4096, 512).unwrap().iter().all(|word| word.load(Relaxed) == 7));
    remove_region(&mut rig, client.id, 9).unwrap();
    client.submit(&[in_region(read(1, 0), 0)]);
    assert_eq!(rig.results(&mut client, 1)[&1], -errno::ENXIO, "not there any more");
    assert_eq!(remove_region(&mut rig, client.id, 9).unwrap_err().errno(), errno::ENXIO);
}

#[test]
fn a_client_brings_memory_over_io_uring() {
    a_client_brings_memory::<Uring>();
}

#[test]
fn a_client_brings_memory_over_aio() {
    a_client_brings_memory::<Aio>();
}

#[test]
fn region_indices_are_checked() {
    let mut rig = Rig::<Null>::new(2, 64);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let client = rig.open(volume, 8);
    let (daemons, _) = region(BLOCK);
    let mut add = |session, index| add_region(&mut rig, session, index, daemons.clone());
    assert_eq!(add(client.id, 0).unwrap_err().errno(), errno::EINVAL, "the arena");
    assert_eq!(add(client.id, 256).unwrap_err().errno(), errno::EINVAL);
    assert_eq!(add(client.id + 1, 1).unwrap_err().errno(), errno::ESRCH, "no such session");
    add(client.id, 255).unwrap();
    assert_eq!(add(client.id, 255).unwrap_err().errno(), errno::EBUSY);
    assert_eq!(remove_region(&mut rig, client.id, 0).unwrap_err().errno(), errno::ENXIO, "the arena stays");
}

#[test]
fn regions_go_with_their_session() {
    let mut rig = Rig::<Uring>::new(2, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let memfd = create_memfd("region", 4 * BLOCK).unwrap();
    let mapping = Arc::new(Mapping::new(memfd.as_fd(), 4 * BLOCK as usize).unwrap());
    let mapped = Arc::downgrade(&mapping);
    add_region(&mut rig, client.id, 1, Region::new(mapping, 0, 4 * BLOCK).unwrap()).unwrap();
    client.submit(&(0..8).map(|n| Sqe { region: 1, region_offset: 0, ..read(n, 0) }).collect::<Vec<_>>());
    rig.take(8);
    let (done, closed) = done();
    rig.send(Command::CloseSession { session_id: client.id, done });
    assert_eq!(add_region(&mut rig, client.id, 2, region(BLOCK).0).unwrap_err().errno(), errno::ESRCH);
    rig.turn_until("the session to end", |_| closed.try_recv().is_ok());
    assert_eq!(mapped.strong_count(), 0, "its memory is unmapped");
}
