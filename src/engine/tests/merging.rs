//! Adjacent requests in one operation: over each backend, with faults, and where nothing may be joined.

mod common;

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};

use common::{
    BLOCK, Client, Rig, VOLUME_BYTES, done,
    puppet::{self, Puppet, Refuses},
    request,
};
use ferrio_driver::{
    Driver, FaultEffect, FaultOps, FaultPlan, FaultRule, Target, aio::Aio, fault::Fault, null::Null,
    random::SplitMix64, uring::Uring,
};
use ferrio_engine::{MergeLimits, Threads, VolumeId, inject::Command};
use ferrio_shm::{
    abi::{Class, Opcode, cqe_flags, errno, features, sqe_flags},
    entry::{Cqe, Sqe},
};

const DONE: i32 = BLOCK as i32;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK;

fn read(block: u64) -> Sqe {
    request(Opcode::Read, block, block * BLOCK)
}

fn write(block: u64) -> Sqe {
    request(Opcode::Write, block, block * BLOCK)
}

/// Its data lies at this block of the arena.
fn at(sqe: Sqe, arena_block: u64) -> Sqe {
    Sqe { region_offset: arena_block * BLOCK, ..sqe }
}

fn fill(client: &Client, arena_block: u64, value: u64) {
    client.arena(arena_block * BLOCK, BLOCK).iter().for_each(|word| word.store(value, Relaxed));
}

fn holds(client: &Client, arena_block: u64, value: u64) -> bool {
    client.arena(arena_block * BLOCK, BLOCK).iter().all(|word| word.load(Relaxed) == value)
}

/// A volume whose blocks hold their numbers.
fn numbered<D: Driver>(rig: &mut Rig<D>) -> VolumeId {
    let target = rig.file_target("volume");
    let words = (0..BLOCKS).flat_map(|block| std::iter::repeat_n(block, BLOCK as usize / 8));
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    std::fs::write(rig.file("volume"), bytes).unwrap();
    rig.add_volume(target)
}

/// The number that a block of the volume holds, if it is one.
fn on_disk<D: Driver>(rig: &Rig<D>, block: u64) -> Option<u64> {
    let mut bytes = [0; BLOCK as usize];
    std::fs::File::open(rig.file("volume")).unwrap().read_exact_at(&mut bytes, block * BLOCK).unwrap();
    let (words, _) = bytes.as_chunks();
    let first = u64::from_le_bytes(words[0]);
    words.iter().all(|word| u64::from_le_bytes(*word) == first).then_some(first)
}

/// Exactly `count` answers, by user_data.
fn answers<D: Driver>(rig: &mut Rig<D>, client: &mut Client, count: usize) -> BTreeMap<u64, Cqe> {
    let mut cqes = Vec::new();
    rig.turn_until("answers", |_| {
        client.reap(&mut cqes);
        cqes.len() >= count
    });
    (0..4).for_each(|_| {
        rig.turn();
    });
    client.reap(&mut cqes);
    let answers: BTreeMap<u64, Cqe> = cqes.iter().map(|cqe| (cqe.user_data, *cqe)).collect();
    assert_eq!((cqes.len(), answers.len()), (count, count), "each request has one answer: {cqes:?}");
    answers
}

/// Operations saved so far.
fn merged<D: Driver>(rig: &Rig<D>) -> u64 {
    let snapshot = rig.snapshot();
    let merged = snapshot.classes.iter().map(|class| class.counters.merged).sum();
    let by_queue: u64 = snapshot.queues.iter().map(|queue| queue.total.merged).sum();
    assert_eq!(merged, by_queue);
    merged
}

/// Operations saved by what the client submits at once, all of which succeeds.
fn merged_of<D: Driver>(rig: &mut Rig<D>, client: &mut Client, sqes: &[Sqe]) -> u64 {
    let before = merged(rig);
    client.submit(sqes);
    let answers = answers(rig, client, sqes.len());
    assert!(answers.values().all(|cqe| cqe.result >= 0), "{answers:?}");
    merged(rig) - before
}

fn set_merge<D: Driver>(rig: &mut Rig<D>, limits: MergeLimits) {
    let (sender, receiver) = mpsc::channel();
    rig.send(Command::Run(Box::new(move |thread| sender.send(thread.set_merge(limits)).unwrap())));
    receiver.try_recv().unwrap().unwrap();
}

fn set_faults<D: Driver>(rig: &mut Rig<D>, volume: VolumeId, seed: u64, rules: Vec<FaultRule>) {
    let plan = FaultPlan { seed, rules };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
}

/// In memory that is in a row, that is not, and that is in part.
fn each_part_moves_its_own_bytes<D: Driver>(threads: Threads) {
    let mut rig = Rig::<D>::with_threads(64, 128, threads);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let places: [fn(u64) -> u64; 3] = [|n| 100 + n, |n| 131 - n, |n| 100 + (n ^ 1)];
    for (round, place) in (1..).zip(places) {
        (0..32).for_each(|n| fill(&client, place(n), round * 1000 + n));
        let writes: Vec<Sqe> = (0..32).map(|n| at(write(n), place(n))).collect();
        let before = merged(&rig);
        client.submit(&writes);
        let answers = answers(&mut rig, &mut client, 32);
        let expected = |n| Cqe { user_data: n, result: DONE, flags: cqe_flags::MERGED };
        assert!(answers.values().copied().eq((0..32).map(expected)), "{answers:?}");
        assert_eq!(merged(&rig) - before, 31, "one operation for 32");
        assert!((0..32).all(|n| on_disk(&rig, n) == Some(round * 1000 + n)));

        (0..32).for_each(|n| fill(&client, place(n), 0));
        let reads: Vec<Sqe> = (0..40).map(|n| at(read(n), place(n % 32) + 60 * (n / 32))).collect();
        assert_eq!(merged_of(&mut rig, &mut client, &reads), 38, "32 and 8: the limit is 32");
        for n in 0..40 {
            let value = if n < 32 { round * 1000 + n } else { n };
            assert!(holds(&client, place(n % 32) + 60 * (n / 32), value), "block {n}");
        }
    }
    let snapshot = rig.snapshot();
    let total = snapshot.queues[0].total;
    assert_eq!((total.queued, total.in_flight, total.completed, total.errors), (0, 0, 3 * 72, 0));
    assert_eq!(total.bytes, 3 * 72 * BLOCK);
    assert_eq!(rig.parts.submitter.free_records(), 128);
    assert_eq!(rig.parts.submitter.in_flight(), 0, "every slot came back");
}

#[test]
fn each_part_moves_its_own_bytes_over_io_uring() {
    each_part_moves_its_own_bytes::<Uring>(Threads::One);
    each_part_moves_its_own_bytes::<Uring>(Threads::Two);
}

#[test]
fn each_part_moves_its_own_bytes_over_aio() {
    each_part_moves_its_own_bytes::<Aio>(Threads::One);
    each_part_moves_its_own_bytes::<Aio>(Threads::Two);
}

#[test]
fn each_part_moves_its_own_bytes_through_a_driver_of_faults() {
    each_part_moves_its_own_bytes::<Fault<Uring>>(Threads::One);
}

#[test]
fn a_null_volume_answers_each_part() {
    let mut rig = Rig::<Null>::new(8, 128);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 64);
    let in_a_row: Vec<Sqe> = (0..32).map(read).collect();
    assert_eq!(merged_of(&mut rig, &mut client, &in_a_row), 31);
    let apart: Vec<Sqe> = (0..32).map(|n| at(write(n), 100 - n)).collect();
    assert_eq!(merged_of(&mut rig, &mut client, &apart), 31);
}

/// The sums, not one part, are what the limits are held against.
#[test]
fn limits_are_hit_exactly() {
    let mut rig = Rig::<Uring>::new(64, 128);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let sixteen: Vec<Sqe> = (0..16).map(read).collect();
    let eight = 8 * BLOCK as u32;
    for (bytes_max, segments_max, operations) in
        [(1 << 20, 8, 2), (1 << 20, 7, 3), (eight, 256, 2), (eight - 1, 256, 3), (BLOCK as u32, 256, 16)]
    {
        set_merge(&mut rig, MergeLimits { bytes_max, segments_max });
        let merged = merged_of(&mut rig, &mut client, &sixteen);
        assert_eq!(merged, 16 - operations, "{bytes_max} bytes, {segments_max} requests");
    }
    set_merge(&mut rig, MergeLimits::OFF);
    assert_eq!(merged_of(&mut rig, &mut client, &sixteen), 0);
    let refused = MergeLimits { segments_max: 257, ..MergeLimits::default() }.check().unwrap_err();
    assert!(refused.to_string().contains("257 is not within 1 and 256"), "{refused}");
}

#[test]
fn what_differs_is_not_joined() {
    let mut rig = Rig::<Uring>::new(64, 128);
    let volume = numbered(&mut rig);
    let other = rig.file_target("other");
    let other = rig.add_volume(other);
    let mut client = rig.open_on(&[volume, other], 64).unwrap();
    let first = write(0);
    let next = write(1);
    for (what, second) in [
        ("another volume", Sqe { volume: 1, ..next }),
        ("another class", Sqe { class: Class::Prio as u8, ..next }),
        ("FUA beside none", Sqe { flags: sqe_flags::FUA, ..next }),
        ("another direction", read(1)),
        ("a gap", write(2)),
        ("a flush", Sqe { op: Opcode::Flush as u8, user_data: 1, ..Sqe::default() }),
        ("write-zeroes", Sqe { op: Opcode::WriteZeroes as u8, region_offset: 0, ..next }),
    ] {
        let features = if what == "write-zeroes" { features::DISCARD } else { 0 };
        rig.features = features;
        let mut client = rig.open_on(&[volume, other], 64).unwrap();
        assert_eq!(merged_of(&mut rig, &mut client, &[first, second]), 0, "{what}");
        rig.send(Command::CloseSession { session_id: client.id, done: Box::new(|| ()) });
        rig.turn_until("the session", |rig| rig.turn() == 0);
    }
    assert_eq!(merged_of(&mut rig, &mut client, &[first, next]), 1);
    let fua = |sqe| Sqe { flags: sqe_flags::FUA, ..sqe };
    assert_eq!(merged_of(&mut rig, &mut client, &[fua(first), fua(next)]), 1, "FUA with FUA");
    rig.merge = false;
    let mut apart = rig.open(volume, 64);
    assert_eq!(merged_of(&mut rig, &mut apart, &[first, next]), 0, "a session that does not want it");
}

/// What a barrier or a link holds apart is not in the class queues together.
#[test]
fn order_is_kept() {
    let mut rig = Rig::<Uring>::new(64, 128);
    rig.features = features::ORDER;
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let barrier = |block| Sqe { flags: sqe_flags::BARRIER, ..write(block) };
    let around = [write(0), write(1), barrier(2), write(3), write(4), write(5)];
    client.submit(&around);
    let mut cqes = Vec::new();
    rig.turn_until("answers", |_| {
        client.reap(&mut cqes);
        cqes.len() == around.len()
    });
    let order: Vec<u64> = cqes.iter().map(|cqe| cqe.user_data).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5], "before, the barrier, after");
    let flags: Vec<u32> = cqes.iter().map(|cqe| cqe.flags & cqe_flags::MERGED).collect();
    assert_eq!(flags, [2, 2, 0, 2, 2, 2], "nothing is joined across it");
    assert_eq!(merged(&rig), 3);
    let linked = |block| Sqe { flags: sqe_flags::LINK, ..write(block) };
    assert_eq!(merged_of(&mut rig, &mut client, &[linked(0), linked(1), write(2)]), 0, "a chain");
    assert_eq!(merged_of(&mut rig, &mut client, &[write(0), write(1)]), 1);
}

/// Whichever way sessions take turns, one by one or several at once, some of their requests meet.
fn sessions_share_an_operation<D: Driver>() {
    let mut rig = Rig::<D>::new(64, 128);
    let volume = numbered(&mut rig);
    let mut clients = [rig.open(volume, 64), rig.open(volume, 64)];
    let mut shared = 0;
    for round in 0..8 {
        let value = 1000 * (round + 1);
        for (n, client) in (0..).zip(&mut clients) {
            // Every other block, or one half.
            let mine = |block: &u64| n == (round + if round < 4 { block % 2 } else { block / 8 }) % 2;
            let blocks: Vec<u64> = (0..16).filter(mine).collect();
            blocks.iter().for_each(|block| fill(client, *block, value + block));
            client.submit(&blocks.into_iter().map(write).collect::<Vec<_>>());
        }
        let before = merged(&rig);
        for client in &mut clients {
            let answers = answers(&mut rig, client, 8);
            assert!(answers.values().all(|cqe| cqe.result == DONE), "{answers:?}");
        }
        let alone = if round < 4 { 0 } else { 14 };
        shared += u64::from(merged(&rig) - before > alone);
        assert!((0..16).all(|block| on_disk(&rig, block) == Some(value + block)));
    }
    assert!(shared > 0, "no operation was that of both");
}

#[test]
fn sessions_share_an_operation_over_io_uring() {
    sessions_share_an_operation::<Uring>();
}

#[test]
fn sessions_share_an_operation_over_aio() {
    sessions_share_an_operation::<Aio>();
}

/// The device fails at one block: the request for it has the error, and the others their bytes.
fn an_error_is_that_of_one_part<D: Driver>() {
    let mut rig = Rig::<Fault<D>>::new(64, 128);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let bad = FaultRule {
        range: 13 * BLOCK..14 * BLOCK,
        ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, FaultEffect::Error { errno: errno::EIO })
    };
    set_faults(&mut rig, volume, 1, vec![bad]);
    for (round, op) in [(1, Opcode::Write), (2, Opcode::Read)] {
        (0..32).for_each(|n| fill(&client, n, 1000 * round + n));
        client.submit(&(0..32).map(|n| request(op, n, n * BLOCK)).collect::<Vec<_>>());
        let answers = answers(&mut rig, &mut client, 32);
        for (n, cqe) in &answers {
            let result = if *n == 13 { -errno::EIO } else { DONE };
            assert_eq!((cqe.result, cqe.flags), (result, 0), "{n}: it went by itself in the end");
        }
        let counters = rig.snapshot().counters;
        assert_eq!((merged(&rig), counters.resubmitted), (31 * round, 32 * round), "each again, and once");
    }
    for n in (0..32).filter(|n| *n != 13) {
        assert_eq!(on_disk(&rig, n), Some(1000 + n));
        assert!(holds(&client, n, 1000 + n), "block {n} was read");
    }
    assert_eq!(on_disk(&rig, 13), Some(13), "what failed was not written");
    assert_eq!(rig.parts.submitter.in_flight(), 0);
    assert_eq!(rig.parts.submitter.free_records(), 128);
}

#[test]
fn an_error_is_that_of_one_part_over_io_uring() {
    an_error_is_that_of_one_part::<Uring>();
}

#[test]
fn an_error_is_that_of_one_part_over_aio() {
    an_error_is_that_of_one_part::<Aio>();
}

/// A short transfer says nothing about any one part.
fn a_short_transfer_is_done_again<D: Driver>() {
    let mut rig = Rig::<Fault<D>>::new(64, 128);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    for count in [Some(1), None] {
        for seed in 0..5 {
            let short =
                FaultRule { count, ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, FaultEffect::Short) };
            set_faults(&mut rig, volume, seed, vec![short]);
            (0..16).for_each(|n| fill(&client, 40 - n, 100 * (seed + 1) + n));
            client.submit(&(0..16).map(|n| at(write(n), 40 - n)).collect::<Vec<_>>());
            let written = answers(&mut rig, &mut client, 16);
            assert!(written.values().all(|cqe| cqe.result == DONE), "{written:?}");
            assert!((0..16).all(|n| on_disk(&rig, n) == Some(100 * (seed + 1) + n)));
            (0..16).for_each(|n| fill(&client, n, 0));
            client.submit(&(0..16).map(read).collect::<Vec<_>>());
            let read = answers(&mut rig, &mut client, 16);
            assert!(read.values().all(|cqe| cqe.result == DONE), "{read:?}");
            assert!((0..16).all(|n| holds(&client, n, 100 * (seed + 1) + n)));
        }
    }
    assert!(rig.snapshot().counters.resubmitted >= 2 * 5 * 16, "nothing was short");
}

#[test]
fn a_short_transfer_is_done_again_over_io_uring() {
    a_short_transfer_is_done_again::<Uring>();
}

#[test]
fn a_short_transfer_is_done_again_over_aio() {
    a_short_transfer_is_done_again::<Aio>();
}

/// The file is shorter than the volume: what lies in it is read, the rest are errors.
#[test]
fn the_end_of_the_file_is_that_of_its_parts() {
    let mut rig = Rig::<Uring>::new(64, 128);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let file = std::fs::OpenOptions::new().write(true).open(rig.file("volume")).unwrap();
    file.set_len(5 * BLOCK).unwrap();
    client.submit(&(0..8).map(read).collect::<Vec<_>>());
    let results: Vec<i32> = answers(&mut rig, &mut client, 8).values().map(|cqe| cqe.result).collect();
    assert_eq!(results, [[DONE; 5].as_slice(), &[-errno::EIO; 3]].concat());
    assert!((0..5).all(|n| holds(&client, n, n)));
}

/// A session ends while its request is in an operation with those of another one. `effect`: what the device does with it.
fn a_session_ends_within_an_operation<D: Driver>(fails: bool) {
    let mut rig = Rig::<Fault<D>>::new(64, 128);
    rig.sleeps = true;
    let volume = numbered(&mut rig);
    for first_ends in [true, false] {
        let mut clients = [rig.open(volume, 64), rig.open(volume, 64)];
        let (min, max) = (Duration::from_millis(60), Duration::from_millis(60));
        let mut rules = vec![FaultRule {
            count: Some(1),
            ..FaultRule::new(FaultOps::ALL, FaultEffect::Delay { min, max })
        }];
        if fails {
            rules = vec![FaultRule {
                range: 0..4 * BLOCK,
                count: Some(1),
                ..FaultRule::new(FaultOps::WRITE, FaultEffect::Short)
            }];
        }
        set_faults(&mut rig, volume, 1, rules);
        for (n, client) in (0..).zip(&mut clients) {
            (0..4).for_each(|block| fill(client, block, 77));
            client.submit(&(4 * n..4 * n + 4).map(|block| at(write(block), block % 4)).collect::<Vec<_>>());
        }
        rig.take(8);
        let (gone, left) = if first_ends { (0, 1) } else { (1, 0) };
        let (ended, receiver) = done();
        rig.send(Command::CloseSession { session_id: clients[gone].id, done: ended });
        assert!(receiver.try_recv().is_err(), "its memory is still written to");
        let answers = answers(&mut rig, &mut clients[left], 4);
        assert!(answers.values().all(|cqe| cqe.result == DONE), "{answers:?}");
        rig.turn_until("the end of the session", |_| receiver.try_recv().is_ok());
        let [first, second] = clients;
        drop(if first_ends { first } else { second });
        assert_eq!(rig.parts.submitter.free_records(), 128);
        assert_eq!(rig.parts.submitter.in_flight(), 0);
        let id = if first_ends { 2 } else { 3 };
        rig.send(Command::CloseSession { session_id: id, done: Box::new(|| ()) });
        rig.turn_until("the other one", |rig| rig.turn() == 0);
    }
    assert!(merged(&rig) >= 6);
}

#[test]
fn a_session_ends_within_an_operation_over_io_uring() {
    a_session_ends_within_an_operation::<Uring>(false);
    a_session_ends_within_an_operation::<Uring>(true);
}

#[test]
fn a_session_ends_within_an_operation_over_aio() {
    a_session_ends_within_an_operation::<Aio>(false);
    a_session_ends_within_an_operation::<Aio>(true);
}

/// What is in an operation was issued: it cannot be taken back, not even while it is done again.
#[test]
fn a_part_cannot_be_cancelled() {
    let mut rig = Rig::<Fault<Uring>>::new(64, 128);
    rig.features = features::CANCEL;
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let stuck = FaultRule { range: BLOCK..2 * BLOCK, ..FaultRule::new(FaultOps::ALL, FaultEffect::Stuck) };
    set_faults(&mut rig, volume, 1, vec![stuck]);
    client.submit(&(0..3).map(read).collect::<Vec<_>>());
    rig.take(3);
    let cancel = Sqe { op: Opcode::Cancel as u8, user_data: 99, arg: 2, ..Sqe::default() };
    assert_eq!(rig.result(&mut client, cancel), -errno::EALREADY);
    set_faults(&mut rig, volume, 1, vec![]);
    assert!(answers(&mut rig, &mut client, 3).values().all(|cqe| cqe.result == DONE));
    assert_eq!(merged(&rig), 2);
}

#[test]
fn a_volume_goes_with_operations_in_flight() {
    let mut rig = Rig::<Fault<Uring>>::new(64, 128);
    rig.sleeps = true;
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 64);
    let (min, max) = (Duration::from_millis(50), Duration::from_millis(50));
    for effect in [FaultEffect::Delay { min, max }, FaultEffect::Error { errno: errno::EIO }] {
        let fails = matches!(effect, FaultEffect::Error { .. });
        let rule = FaultRule { count: Some(1), ..FaultRule::new(FaultOps::ALL, effect) };
        if fails {
            std::fs::remove_file(rig.file("volume")).unwrap();
            let volume = numbered(&mut rig);
            client = rig.open(volume, 64);
            set_faults(&mut rig, volume, 1, vec![rule]);
        } else {
            set_faults(&mut rig, volume, 1, vec![rule]);
        }
        let volume = VolumeId(0);
        client.submit(&(0..8).map(read).collect::<Vec<_>>());
        rig.take(8);
        let (removed, receiver) = done();
        rig.send(Command::RemoveVolume { volume, done: removed });
        let answers = answers(&mut rig, &mut client, 8);
        let expected = if fails { -errno::ENODEV } else { DONE };
        assert!(answers.values().all(|cqe| cqe.result == expected), "{answers:?}");
        receiver.try_recv().expect("the removal is done");
    }
}

/// The driver takes nothing: all waits where it was, and goes when there is room.
#[test]
fn what_the_driver_does_not_take_waits() {
    let mut rig = Rig::<Puppet>::new(64, 128);
    rig.merge = true;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut client = rig.open(volume, 64);
    let apart = |n: u64| at(read(n), 200 - n);
    let sqes: Vec<Sqe> = [0, 1, 2, 20, 21, 40, 60, 3, 80, 22].into_iter().map(apart).collect();
    puppet::refuse(Refuses::All);
    client.submit(&sqes);
    rig.turn_until("the requests", |rig| rig.snapshot().classes[1].counters.queued == 10);
    (0..5).for_each(|_| {
        rig.turn();
    });
    let class = rig.snapshot().classes[1].counters;
    assert_eq!((class.queued, class.in_flight, class.merged), (10, 0, 0));
    assert_eq!(rig.parts.submitter.in_flight(), 0, "no slot is lost");
    puppet::refuse(Refuses::Nothing);
    rig.turn();
    assert_eq!(rig.snapshot().classes[1].counters.in_flight, 10);
    let submitted = puppet::take_submitted();
    assert!(submitted.len() < 10 && submitted.contains(&0), "{submitted:?}");
    rig.turn();
    (0..submitted.len()).for_each(|_| puppet::answer(0, None));
    assert!(answers(&mut rig, &mut client, 10).values().all(|cqe| cqe.result == DONE));
    assert_eq!(rig.parts.submitter.free_records(), 128);
}

/// A driver that is full but for one slot takes a whole stream in it.
#[test]
fn a_stream_takes_one_slot() {
    let mut rig = Rig::<Puppet>::new(2, 128);
    rig.merge = true;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut client = rig.open(volume, 64);
    let lone = [read(200)];
    let streams = [0..16, 40..56].into_iter().flatten().map(read);
    client.submit(&lone.into_iter().chain(streams).collect::<Vec<_>>());
    rig.turn_until("two operations", |_| puppet::in_flight().len() == 2);
    let blocks = |bytes: Vec<u64>| bytes.into_iter().map(|byte| byte / BLOCK).collect::<Vec<_>>();
    assert_eq!(blocks(puppet::take_submitted()), [200, 0]);
    puppet::answer(0, None);
    rig.turn_until("the other stream", |_| puppet::in_flight().len() == 2);
    assert_eq!((blocks(puppet::take_submitted()), blocks(puppet::in_flight())), (vec![40], vec![0, 40]));
    (0..2).for_each(|_| puppet::answer(0, None));
    assert!(answers(&mut rig, &mut client, 33).values().all(|cqe| cqe.result == DONE));
    assert_eq!(merged(&rig), 30);
}

/// As many vectored operations as the driver can have: requests go one by one, so that nobody is held up.
#[test]
fn without_room_for_vectored_operations_requests_go_singly() {
    let mut rig = Rig::<Puppet>::new(64, 128);
    rig.merge = true;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut client = rig.open(volume, 64);
    puppet::refuse(Refuses::Vectored);
    client.submit(&(0..6).map(|n| at(read(n), 50 - n)).collect::<Vec<_>>());
    rig.turn_until("six operations", |_| puppet::in_flight().len() == 6);
    (0..6).for_each(|_| puppet::answer(0, None));
    let answers = answers(&mut rig, &mut client, 6);
    assert!(answers.values().all(|cqe| (cqe.result, cqe.flags) == (DONE, 0)), "{answers:?}");
    assert_eq!(merged(&rig), 0);
    assert_eq!(rig.parts.submitter.free_records(), 128);
}

fn steady_state_allocates_nothing<D: Driver>() {
    let mut rig = Rig::<D>::new(16, 64);
    let volume = numbered(&mut rig);
    let mut client = rig.open(volume, 32);
    let batch: Vec<Sqe> = (0..32).map(|n| at(if n < 16 { write(n) } else { read(n) }, 60 - n)).collect();
    let mut cqes = Vec::with_capacity(64);
    let round = |rig: &mut Rig<D>, client: &mut Client, cqes: &mut Vec<Cqe>| {
        client.submit(&batch);
        cqes.clear();
        while cqes.len() < 32 {
            rig.turn();
            client.reap(cqes);
        }
    };
    (0..4).for_each(|_| round(&mut rig, &mut client, &mut cqes));
    let before = merged(&rig);
    let allocations = allocation_counter::measure(|| {
        (0..100).for_each(|_| round(&mut rig, &mut client, &mut cqes));
    });
    assert_eq!(allocations.count_total, 0, "allocations in 3200 requests: {allocations:?}");
    assert_eq!(merged(&rig) - before, 3000);
}

#[test]
fn steady_state_allocates_nothing_over_io_uring() {
    steady_state_allocates_nothing::<Uring>();
}

#[test]
fn steady_state_allocates_nothing_over_aio() {
    steady_state_allocates_nothing::<Aio>();
}

/// Runs of requests of two sessions, in any memory, with faults of all kinds: each is answered once, what was read is what was
/// there, and what was written stands where it belongs.
fn sequential_runs_with_faults<D: Driver>(seed: u64) {
    let mut rig = Rig::<Fault<D>>::new(32, 128);
    rig.sleeps = true;
    let volume = numbered(&mut rig);
    let mut random = SplitMix64::new(seed);
    let mut below = |bound: u64| random.next_u64() % bound;
    let some = |effect, probability_ppm| FaultRule {
        probability_ppm,
        ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, effect)
    };
    let rules = vec![
        some(FaultEffect::Error { errno: errno::EIO }, 20_000),
        some(FaultEffect::Short, 100_000),
        some(FaultEffect::Reorder { window: 4 }, 50_000),
    ];
    set_faults(&mut rig, volume, seed, rules);
    let mut clients = [rig.open(volume, 64), rig.open(volume, 64)];
    // What is known.
    let mut disk: Vec<Option<u64>> = (0..BLOCKS).map(Some).collect();
    let (mut value, mut failed) = (1 << 32, 0);
    for _ in 0..40 {
        set_merge(
            &mut rig,
            MergeLimits { bytes_max: 1 << (13 + below(8)), segments_max: 1 + below(33) as u32 },
        );
        let writes = below(2) == 0;
        // Halves of the volume, so that no two write to one block at a time.
        let mut asked: [BTreeMap<u64, (u64, u64)>; 2] = Default::default();
        for (half, client) in (0..).zip(&mut clients) {
            let mut sqes = Vec::new();
            let mut place = below(20);
            let mut block = half * (BLOCKS / 2);
            while sqes.len() < 40 && block < (half + 1) * (BLOCKS / 2) {
                value += 1;
                fill(client, place, value);
                let sqe = if writes { write(block) } else { read(block) };
                sqes.push(at(sqe, place));
                asked[half as usize].insert(block, (place, value));
                block += 1 + below(8) / 7 * below(20);
                place += 1 + below(4) / 3;
            }
            client.submit(&sqes);
        }
        for (client, asked) in clients.iter_mut().zip(asked) {
            for (block, cqe) in answers(&mut rig, client, asked.len()) {
                let (place, value) = asked[&block];
                let known = &mut disk[block as usize];
                match (cqe.result, *known) {
                    (DONE, _) if writes => *known = Some(value),
                    (DONE, Some(value)) => assert!(holds(client, place, value), "block {block}"),
                    (DONE, None) => {}
                    (result, _) => {
                        assert_eq!(result, -errno::EIO);
                        failed += 1;
                        if writes {
                            *known = None;
                        }
                    }
                }
            }
        }
        for (block, known) in (0..).zip(&disk).filter(|(_, known)| known.is_some()) {
            assert_eq!(on_disk(&rig, block), *known, "block {block}");
        }
    }
    assert!(failed > 0 && merged(&rig) > 200, "{failed} failed, {} merged", merged(&rig));
    assert_eq!(rig.parts.submitter.free_records(), 128);
    assert_eq!(rig.parts.submitter.in_flight(), 0);
}

#[test]
fn sequential_runs_with_faults_over_io_uring() {
    (1..4).for_each(sequential_runs_with_faults::<Uring>);
}

#[test]
fn sequential_runs_with_faults_over_aio() {
    (1..4).for_each(sequential_runs_with_faults::<Aio>);
}
