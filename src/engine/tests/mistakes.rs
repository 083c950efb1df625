//! Known mistakes of others (DESIGN.md, section on the driver) that the engine could make: each over io_uring and AIO with
//! faults. Those of the driver are in its conformance suite.

mod common;

use std::{os::unix::fs::FileExt, sync::atomic::Ordering::Relaxed};

use common::{BLOCK, Client, Rig, VOLUME_BYTES, request};
use ferrio_driver::{
    Driver, FaultEffect, FaultOps, FaultPlan, FaultRule, aio::Aio, fault::Fault, uring::Uring,
};
use ferrio_engine::{VolumeId, inject::Command};
use ferrio_shm::{
    abi::{Opcode, errno},
    entry::Sqe,
};

const LENGTH: u64 = 16 * BLOCK;

fn set_faults<D: Driver>(rig: &mut Rig<D>, volume: VolumeId, seed: u64, rules: Vec<FaultRule>) {
    let plan = FaultPlan { seed, rules };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
}

fn open<D: Driver>() -> (Rig<Fault<D>>, VolumeId, Client) {
    let mut rig = Rig::<Fault<D>>::new(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let client = rig.open(volume, 32);
    (rig, volume, client)
}

fn long(op: Opcode, offset: u64) -> Sqe {
    Sqe { length: LENGTH, ..request(op, 1, offset) }
}

fn flush(user_data: u64) -> Sqe {
    Sqe { op: Opcode::Flush as u8, user_data, ..Sqe::default() }
}

fn fill(client: &Client, offset: u64, bytes: u64, value: u64) {
    client.arena(offset, bytes).iter().for_each(|word| word.store(value, Relaxed));
}

/// The rest of a short I/O is asked for with the length that is left: with a longer one, a write reaches the blocks behind
/// its range and a read the memory behind its buffer.
fn the_rest_of_short_io_ends_where_the_request_does<D: Driver>() {
    let (mut rig, volume, mut client) = open::<D>();
    let path = rig.file("volume");
    let before = 0xa5_u8;
    for seed in 0..10 {
        let every = FaultRule::new(FaultOps::READ | FaultOps::WRITE, FaultEffect::Short);
        set_faults(&mut rig, volume, seed, vec![every]);
        let offset = 4 * BLOCK + seed * BLOCK;
        fill(&client, 0, VOLUME_BYTES, 7);
        fill(&client, offset, LENGTH, seed + 100);
        assert_eq!(
            rig.result(&mut client, long(Opcode::Write, offset)),
            16 * 4096,
            "the client sees all of it"
        );
        let disk = std::fs::read(&path).unwrap();
        let (from, to) = (offset as usize, (offset + LENGTH) as usize);
        assert!(disk[from..to].chunks(8).all(|word| word == (seed + 100).to_le_bytes()));
        assert!(disk[..from].iter().chain(&disk[to..]).all(|byte| *byte == before), "outside of the range");

        fill(&client, 0, VOLUME_BYTES, 8);
        assert_eq!(rig.result(&mut client, long(Opcode::Read, offset)), 16 * 4096);
        let words = client.arena(0, VOLUME_BYTES);
        for (at, word) in (0..).step_by(8).zip(words) {
            let inside = (offset..offset + LENGTH).contains(&at);
            assert_eq!(word.load(Relaxed), if inside { seed + 100 } else { 8 }, "at {at}");
        }
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&vec![before; LENGTH as usize], offset).unwrap();
    }
    assert!(rig.snapshot().counters.resubmitted > 20, "nothing was short");
}

/// A negative result is the answer, also when bytes were moved before it.
fn errors_behind_short_io_are_answers<D: Driver>() {
    let (mut rig, volume, mut client) = open::<D>();
    for op in [Opcode::Read, Opcode::Write] {
        let first = FaultRule {
            count: Some(1),
            ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, FaultEffect::Short)
        };
        let then = FaultRule::new(FaultOps::ALL, FaultEffect::Error { errno: errno::ENOSPC });
        set_faults(&mut rig, volume, 3, vec![first, then]);
        assert_eq!(rig.result(&mut client, long(op, 0)), -errno::ENOSPC, "{op:?}");
        let status = rig.ask(|reply| Command::GetFaults { volume, reply }).unwrap().expect("faults are set");
        assert!(status.counters.iter().all(|counters| counters.applied == 1), "{status:?}");
    }
    assert_eq!(rig.result(&mut client, flush(1)), -errno::ENOSPC);
    let errors: u64 = rig.snapshot().classes.iter().map(|class| class.counters.errors).sum();
    assert_eq!(errors, 3);
}

/// Every request of a bad disk is answered once, whatever happens to it on the way.
fn a_bad_disk_answers_everything<D: Driver>() {
    let (mut rig, volume, mut client) = open::<D>();
    let some = |effect| FaultRule {
        probability_ppm: 200_000,
        ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, effect)
    };
    let millisecond = std::time::Duration::from_millis(1);
    let rules = vec![
        some(FaultEffect::Error { errno: errno::EIO }),
        some(FaultEffect::Short),
        FaultRule { ops: FaultOps::WRITE, ..some(FaultEffect::TornWrite) },
        some(FaultEffect::Delay { min: millisecond / 10, max: millisecond }),
        some(FaultEffect::Reorder { window: 4 }),
        FaultRule {
            ops: FaultOps::FLUSH,
            ..FaultRule::new(FaultOps::FLUSH, FaultEffect::Error { errno: errno::EIO })
        },
    ];
    rig.sleeps = true;
    for seed in 0..20 {
        set_faults(&mut rig, volume, seed, rules.clone());
        let data = |op, n| Sqe { length: 4 * BLOCK, ..request(op, n, n * 4 * BLOCK) };
        let sqes: Vec<Sqe> = (0..32)
            .map(|n| match n % 3 {
                0 => data(Opcode::Read, n),
                1 => data(Opcode::Write, n),
                _ => flush(n),
            })
            .collect();
        client.submit(&sqes);
        let results = rig.results(&mut client, 32);
        let whole = |result: &i32| [0, 4 * 4096, -errno::EIO].contains(result);
        assert!(results.values().all(whole), "{results:?}");
    }
    assert_eq!(rig.pending(), 0);
}

macro_rules! over {
    ($($test:ident),*) => {
        mod io_uring { $(#[test] fn $test() { super::$test::<super::Uring>(); })* }
        mod aio { $(#[test] fn $test() { super::$test::<super::Aio>(); })* }
    };
}

over!(
    the_rest_of_short_io_ends_where_the_request_does,
    errors_behind_short_io_are_answers,
    a_bad_disk_answers_everything
);

/// A device that stands still keeps the slots of its requests and nothing else.
#[test]
fn a_stuck_volume_costs_others_its_slots_alone() {
    let (mut rig, stuck, mut waiting) = open::<Uring>();
    let target = rig.file_target("other");
    let other = rig.add_volume(target);
    let mut running = rig.open(other, 32);
    set_faults(&mut rig, stuck, 0, vec![FaultRule::new(FaultOps::ALL, FaultEffect::Stuck)]);
    // More than there are slots: three quarters of them hang, the others are left.
    waiting.submit(&(0..32).map(|n| request(Opcode::Read, n, 0)).collect::<Vec<_>>());
    rig.take(32);
    for _ in 0..10 {
        running.submit(&(0..32).map(|n| request(Opcode::Read, n, 0)).collect::<Vec<_>>());
        assert!(rig.results(&mut running, 32).values().all(|result| *result == 4096));
    }
    set_faults(&mut rig, stuck, 0, Vec::new());
    assert!(rig.results(&mut waiting, 32).values().all(|result| *result == 4096));
}
