//! compare-and-write: it is atomic against everything that writes, and holds up nothing else.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use common::{BLOCK, Client, Rig, VOLUME_BYTES, done, request};
use ferrio_driver::{
    Driver, FaultEffect, FaultOps, FaultPlan, FaultRule, OpenOptions, Target,
    aio::Aio,
    fault::{ALWAYS_PPM, Fault},
    null::Null,
    uring::Uring,
};
use ferrio_engine::{VolumeId, inject::Command, session::FEATURES};
use ferrio_shm::{
    abi::{Opcode, errno, limits, sqe_flags},
    entry::{Cqe, IovEntry, Sqe},
};

fn rig<D: Driver>(depth: u32, requests_max: u32) -> Rig<D> {
    let mut rig = Rig::new(depth, requests_max);
    rig.features = FEATURES;
    rig.sleeps = true;
    rig
}

/// Compares with the arena at `memory` and writes what lies behind that.
fn compare_and_write(user_data: u64, offset: u64, length: u64, memory: u64) -> Sqe {
    Sqe { length, region_offset: memory, ..request(Opcode::CompareAndWrite, user_data, offset) }
}

fn fill(client: &Client, offset: u64, length: u64, value: u64) {
    client.arena(offset, length).iter().for_each(|word| word.store(value, Relaxed));
}

/// Fills what is compared and what is written.
fn expect(client: &Client, memory: u64, length: u64, old: u64, new: u64) {
    fill(client, memory, length, old);
    fill(client, memory + length, length, new);
}

/// What the volume holds: the first word, if all are the same.
fn held<D: Driver>(rig: &mut Rig<D>, client: &mut Client, offset: u64, length: u64) -> Option<u64> {
    const AT: u64 = 512 << 10;
    let sqe = Sqe { length, region_offset: AT, ..request(Opcode::Read, 1, offset) };
    assert_eq!(rig.result(client, sqe), i32::try_from(length).unwrap());
    let words = client.arena(AT, length);
    let first = words[0].load(Relaxed);
    words.iter().all(|word| word.load(Relaxed) == first).then_some(first)
}

const FILL: u64 = 0xa5a5_a5a5_a5a5_a5a5;

fn compares_and_writes<D: Driver>() {
    let mut rig = rig::<D>(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    expect(&client, 0, BLOCK, FILL, 7);
    assert_eq!(rig.result(&mut client, compare_and_write(1, BLOCK, BLOCK, 0)), 4096);
    assert_eq!(held(&mut rig, &mut client, BLOCK, BLOCK), Some(7));
    assert_eq!(rig.result(&mut client, compare_and_write(1, BLOCK, BLOCK, 0)), -errno::EILSEQ, "it holds 7");
    assert_eq!(held(&mut rig, &mut client, BLOCK, BLOCK), Some(7), "nothing was written");
    assert_eq!(held(&mut rig, &mut client, 0, BLOCK), Some(FILL));
    assert_eq!(held(&mut rig, &mut client, 2 * BLOCK, BLOCK), Some(FILL));
    // One byte decides, wherever it is.
    for word in [0, 255, 511] {
        expect(&client, 0, BLOCK, 7, 8);
        client.arena(0, BLOCK)[word].store(7 ^ 1 << 63, Relaxed);
        assert_eq!(rig.result(&mut client, compare_and_write(1, BLOCK, BLOCK, 0)), -errno::EILSEQ);
    }
    let longest = limits::CAW_BYTES_MAX;
    expect(&client, 0, longest, FILL, 9);
    let fua = |sqe: Sqe| Sqe { flags: sqe_flags::FUA, ..sqe };
    let sqe = fua(compare_and_write(1, 256 << 10, longest, 0));
    assert_eq!(rig.result(&mut client, sqe), i32::try_from(longest).unwrap());
    assert_eq!(held(&mut rig, &mut client, 256 << 10, longest), Some(9));
}

#[test]
fn compares_and_writes_over_io_uring() {
    compares_and_writes::<Uring>();
}

#[test]
fn compares_and_writes_over_aio() {
    compares_and_writes::<Aio>();
}

#[test]
fn bad_ones_get_the_errno_of_the_abi() {
    let mut rig = rig::<Uring>(8, 64);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut client = rig.open(volume, 16);
    let longest = limits::CAW_BYTES_MAX;
    let memory = client.layout.arena_bytes;
    for (what, sqe, result) in [
        ("too long", compare_and_write(1, 0, longest + 512, 0), -errno::EMSGSIZE),
        ("empty", compare_and_write(1, 0, 0, 0), -errno::EINVAL),
        ("second half beyond the region", compare_and_write(1, 0, 512, memory - 512), -errno::EFAULT),
        ("region", Sqe { region: 1, ..compare_and_write(1, 0, 512, 0) }, -errno::ENXIO),
        ("iov_count", Sqe { iov_count: 1, ..compare_and_write(1, 0, 512, 0) }, -errno::EINVAL),
        ("beyond the end", compare_and_write(1, VOLUME_BYTES, 512, 0), -errno::ERANGE),
        ("zeros with zeros", compare_and_write(1, 0, 512, memory - 1024), 512),
        ("at an odd address", compare_and_write(1, 0, 512, 4097), 512),
    ] {
        assert_eq!(rig.result(&mut client, sqe), result, "{what}");
    }
    let null = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(null, 16);
    let result = rig.result(&mut client, compare_and_write(1, 0, 512, 0));
    assert_eq!(result, -errno::EOPNOTSUPP, "a null volume holds nothing");
    let path = rig.file("volume");
    std::fs::write(&path, vec![0; 8192]).unwrap();
    let read_only = Target::open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    let volume = rig.add_volume(read_only.into());
    let mut client = rig.open(volume, 16);
    assert_eq!(rig.result(&mut client, compare_and_write(1, 0, 512, 0)), -errno::EROFS);
}

/// A client that goes round: reads a counter, and adds one to it by compare-and-write until that succeeds.
struct Adder {
    client: Client,
    memory: u64,
    left: u32,
    lost: u32,
}

const COUNTER: u64 = 16 * BLOCK;

impl Adder {
    fn read(&mut self) {
        self.client.submit(&[Sqe { region_offset: self.memory, ..request(Opcode::Read, 1, COUNTER) }]);
    }

    fn answered(&mut self, cqe: &Cqe) {
        match (cqe.user_data, cqe.result) {
            (1, 4096) => {
                let now = self.client.arena(self.memory, BLOCK)[0].load(Relaxed);
                fill(&self.client, self.memory + BLOCK, BLOCK, now + 1);
                self.client.submit(&[compare_and_write(2, COUNTER, BLOCK, self.memory)]);
            }
            (2, 4096) => {
                self.left -= 1;
                if self.left > 0 {
                    self.read();
                }
            }
            (2, lost) if lost == -errno::EILSEQ => {
                self.lost += 1;
                self.read();
            }
            _ => panic!("{cqe:?}"),
        }
    }
}

fn a_counter_counts_exactly<D: Driver>(reorder: impl FnOnce(&mut Rig<D>, VolumeId)) {
    const CLIENTS: u64 = 4;
    const EACH: u32 = 60;
    let mut rig = rig::<D>(16, 256);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut first = rig.open(volume, 16);
    let zeroes =
        Sqe { op: Opcode::Write as u8, length: BLOCK, ..compare_and_write(1, COUNTER, BLOCK, 100 * BLOCK) };
    assert_eq!(rig.result(&mut first, zeroes), 4096);
    reorder(&mut rig, volume);
    let mut adders: Vec<Adder> = (0..CLIENTS)
        .map(|n| Adder { client: rig.open(volume, 16), memory: 2 * n * BLOCK, left: EACH, lost: 0 })
        .collect();
    adders.iter_mut().for_each(Adder::read);
    // Others write beside the counter meanwhile.
    let beside = |n| Sqe { user_data: n, ..request(Opcode::Write, 0, COUNTER + (1 + n) * BLOCK) };
    let mut cqes = Vec::new();
    rig.turn_until("everybody", |_| {
        for adder in &mut adders {
            cqes.clear();
            adder.client.reap(&mut cqes);
            cqes.iter().for_each(|cqe| adder.answered(cqe));
        }
        cqes.clear();
        first.reap(&mut cqes);
        if first.sq.room() == 16 {
            first.submit(&(0..8).map(beside).collect::<Vec<_>>());
        }
        adders.iter().all(|adder| adder.left == 0)
    });
    rig.turn_until("the last writes", |rig| rig.pending() == 0);
    cqes.clear();
    first.reap(&mut cqes);
    assert_eq!(held(&mut rig, &mut adders[0].client, COUNTER, 512), Some(CLIENTS * u64::from(EACH)));
    assert!(adders.iter().map(|adder| adder.lost).sum::<u32>() > 0, "nobody was in anybody's way");
}

#[test]
fn a_counter_counts_exactly_over_io_uring() {
    a_counter_counts_exactly::<Uring>(|_, _| ());
}

#[test]
fn a_counter_counts_exactly_over_aio() {
    a_counter_counts_exactly::<Aio>(|_, _| ());
}

#[test]
fn a_counter_counts_exactly_while_requests_are_reordered_and_short() {
    a_counter_counts_exactly::<Fault<Uring>>(|rig, volume| {
        let rule = |probability_ppm, effect| FaultRule {
            ops: FaultOps::READ | FaultOps::WRITE,
            range: 0..u64::MAX,
            probability_ppm,
            after: 0,
            count: None,
            effect,
        };
        let rules =
            vec![rule(300_000, FaultEffect::Reorder { window: 3 }), rule(ALWAYS_PPM, FaultEffect::Short)];
        rig.ask(|reply| Command::SetFaults { volume, plan: FaultPlan { seed: 3, rules }, reply }).unwrap();
    });
}

/// Two blocks that always hold the same: compare-and-writes over both, and writes over both, one at a time. A mixture of
/// two of them would show.
#[test]
fn overlapping_writes_wait() {
    let mut rig = rig::<Fault<Uring>>(16, 256);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut writer = rig.open(volume, 16);
    let mut others: Vec<Client> = (0..3).map(|_| rig.open(volume, 16)).collect();
    // Between the halves of a transfer others have their turn, and a read may pass a write that was issued before.
    let rule = |probability_ppm, effect| FaultRule {
        ops: FaultOps::READ | FaultOps::WRITE,
        range: 0..u64::MAX,
        probability_ppm,
        after: 0,
        count: None,
        effect,
    };
    let rules = [rule(300_000, FaultEffect::Reorder { window: 2 }), rule(700_000, FaultEffect::Short)];
    let both = 2 * BLOCK;
    let write = |n: u64| match n % 3 {
        0 => Sqe { op: Opcode::WriteZeroes as u8, region_offset: 0, ..compare_and_write(1, 0, both, 0) },
        _ => Sqe { op: Opcode::Write as u8, ..compare_and_write(1, 0, both, 0) },
    };
    let (mut equal, mut different, mut current) = (0, 0, 0);
    for round in 1..200 {
        let plan = FaultPlan { seed: round, rules: rules.to_vec() };
        rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
        fill(&writer, 0, both, round);
        let sqes: Vec<Sqe> = others
            .iter()
            .enumerate()
            .map(|(n, client)| {
                let value = if round % 3 == 0 { 0 } else { round };
                // What the write of this round makes of it, what it was before, what it never was.
                let old = [value, current, u64::MAX][n];
                expect(client, 0, both, old, 1000 * (n as u64 + 1) + round);
                compare_and_write(n as u64, 0, both, 0)
            })
            .collect();
        // In every order; each is taken before the next comes.
        for turn in 0..4 {
            match (turn + round) % 4 {
                3 => writer.submit(&[write(round)]),
                n => others[n as usize].submit(&sqes[n as usize..][..1]),
            }
            rig.take(turn + 1);
        }
        let results: BTreeMap<usize, i32> = others
            .iter_mut()
            .enumerate()
            .map(|(n, client)| (n, rig.results(client, 1)[&(n as u64)]))
            .collect();
        assert!(rig.results(&mut writer, 1)[&1] >= 0);
        equal += results.values().filter(|result| **result == 8192).count();
        different += results.values().filter(|result| **result == -errno::EILSEQ).count();
        rig.ask(|reply| Command::SetFaults { volume, plan: FaultPlan::default(), reply }).unwrap();
        let now = held(&mut rig, &mut writer, 0, both);
        assert!(now.is_some(), "a mixture of two writes in round {round}: {results:?}");
        current = now.unwrap_or_default();
    }
    assert!(equal > 20 && different > 20, "{equal} were equal, {different} were not");
}

/// The device takes its time over a write: who compares after it was issued sees it whole.
#[test]
fn writes_issued_before_are_waited_for() {
    let mut rig = rig::<Fault<Uring>>(8, 64);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut client = rig.open(volume, 16);
    let long = Duration::from_millis(20);
    let rule = FaultRule {
        ops: FaultOps::WRITE,
        range: 0..u64::MAX,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: Some(1),
        effect: FaultEffect::Delay { min: long, max: long },
    };
    let plan = FaultPlan { seed: 2, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
    fill(&client, 8 * BLOCK, BLOCK, 5);
    expect(&client, 0, BLOCK, 0, 6);
    expect(&client, 2 * BLOCK, BLOCK, 5, 7);
    client.submit(&[
        request(Opcode::Write, 1, 8 * BLOCK),
        compare_and_write(2, 8 * BLOCK, BLOCK, 0),
        compare_and_write(3, 8 * BLOCK, BLOCK, 2 * BLOCK),
    ]);
    let results = rig.results(&mut client, 3);
    assert_eq!(results, BTreeMap::from([(1, 4096), (2, -errno::EILSEQ), (3, 4096)]));
    assert_eq!(held(&mut rig, &mut client, 8 * BLOCK, BLOCK), Some(7));
}

/// What is written is the second half, block by block, however often it falls short.
#[test]
fn short_transfers_go_on_in_both_halves() {
    let mut rig = rig::<Fault<Uring>>(8, 64);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut client = rig.open(volume, 16);
    let rule = FaultRule {
        ops: FaultOps::READ | FaultOps::WRITE,
        range: 0..u64::MAX,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: None,
        effect: FaultEffect::Short,
    };
    let plan = FaultPlan { seed: 2, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
    let length = 16 * BLOCK;
    let number = |from: u64, client: &Client, at: u64| {
        client.arena(at, length).iter().zip(from..).for_each(|(word, n)| word.store(n, Relaxed));
    };
    fill(&client, 0, length, 0);
    number(1, &client, length);
    let sqe = compare_and_write(1, 0, length, 0);
    assert_eq!(rig.result(&mut client, sqe), 16 * 4096, "zeros at first");
    number(1, &client, 0);
    number(100_000, &client, length);
    client.arena(0, length)[15 * 512 + 100].fetch_add(1, Relaxed);
    assert_eq!(rig.result(&mut client, sqe), -errno::EILSEQ, "a word of the last block");
    number(1, &client, 0);
    assert_eq!(rig.result(&mut client, sqe), 16 * 4096);
    let back = Sqe { length, region_offset: 0, ..request(Opcode::Read, 1, 0) };
    assert_eq!(rig.result(&mut client, back), 16 * 4096);
    let wrong = client.arena(0, length).iter().zip(100_000..).position(|(word, n)| word.load(Relaxed) != n);
    assert_eq!(wrong, None);
}

/// Many at once, all over each other: more than there are places, from several sessions, beside writes to the same range.
fn a_crowd_gets_through<D: Driver>(target: fn(&Rig<D>) -> Arc<Target>) {
    let mut rig = rig::<D>(8, 512);
    let target = target(&rig);
    let volume = rig.add_volume(target);
    let mut clients: Vec<Client> = (0..4).map(|_| rig.open(volume, 64)).collect();
    for round in 0..5 {
        for (n, client) in clients.iter_mut().enumerate() {
            let sqes: Vec<Sqe> = (0..64)
                .map(|i| match (i + n as u64) % 4 {
                    0 => request(Opcode::Write, i, i % 8 * BLOCK),
                    1 => request(Opcode::Read, i, i % 8 * BLOCK),
                    _ => compare_and_write(i, (i + round) % 8 * BLOCK, (1 + i % 3) * BLOCK, 0),
                })
                .collect();
            client.submit(&sqes);
        }
        for client in &mut clients {
            let results = rig.results(client, 64);
            assert!(results.values().all(|result| *result > 0 || *result == -errno::EILSEQ), "{results:?}");
        }
    }
}

#[test]
fn a_crowd_gets_through_over_io_uring() {
    a_crowd_gets_through::<Uring>(|rig| rig.file_target("volume"));
}

#[test]
fn a_crowd_gets_through_over_aio() {
    a_crowd_gets_through::<Aio>(|rig| rig.file_target("volume"));
}

#[test]
fn a_crowd_gets_through_in_memory() {
    a_crowd_gets_through::<Uring>(|_| Arc::new(Target::memory(VOLUME_BYTES).unwrap()));
}

/// A device that answers no read: everything that waits for it can be told otherwise.
fn stuck() -> (Rig<Fault<Uring>>, VolumeId) {
    let mut rig = rig::<Fault<Uring>>(32, 256);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let rule = FaultRule {
        ops: FaultOps::READ,
        range: 0..u64::MAX,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: None,
        effect: FaultEffect::Stuck,
    };
    let plan = FaultPlan { seed: 1, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
    (rig, volume)
}

fn unstick(rig: &mut Rig<Fault<Uring>>, volume: VolumeId) {
    rig.ask(|reply| Command::SetFaults { volume, plan: FaultPlan::default(), reply }).unwrap();
}

#[test]
fn a_stuck_device_hangs_nobody_else() {
    let (mut rig, volume) = stuck();
    let mut client = rig.open(volume, 64);
    let beside = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut other = rig.open(beside, 16);
    // As many as there are places, one that waits for a place, a write that waits for them.
    let mut sqes: Vec<Sqe> = (0..17).map(|n| compare_and_write(n, n * BLOCK, BLOCK, 0)).collect();
    sqes.push(Sqe { user_data: 100, ..request(Opcode::Write, 0, 0) });
    client.submit(&sqes);
    rig.take(18);
    assert_eq!(rig.result(&mut other, compare_and_write(1, 0, 512, 0)), 512, "another volume goes on");
    let apart = Sqe { user_data: 101, ..request(Opcode::Write, 0, 64 * BLOCK) };
    assert_eq!(rig.result(&mut client, apart), 4096, "so do writes to other places");
    unstick(&mut rig, volume);
    assert!(rig.results(&mut client, 18).values().all(|result| *result == 4096));
}

#[test]
fn a_removed_volume_answers_those_that_wait() {
    let (mut rig, volume) = stuck();
    let mut client = rig.open(volume, 64);
    let mut sqes: Vec<Sqe> = (0..20).map(|n| compare_and_write(n, n * BLOCK, BLOCK, 0)).collect();
    sqes.push(Sqe { user_data: 100, ..request(Opcode::Write, 0, 0) });
    client.submit(&sqes);
    rig.take(21);
    let (done, removed) = done();
    rig.send(Command::RemoveVolume { volume, done });
    let waiting = rig.results(&mut client, 5);
    assert!(waiting.values().all(|result| *result == -errno::ENODEV), "{waiting:?}");
    assert!(removed.try_recv().is_err(), "16 reads are in flight");
    // The faults of a volume that goes cannot be changed: the stuck reads are answered when the driver drains.
    let next = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    assert_ne!(next, volume, "the id is not free");
}

#[test]
fn a_session_that_ends_lets_go_of_its_locks() {
    let (mut rig, volume) = stuck();
    let mut leaving = rig.open(volume, 64);
    let mut staying = rig.open(volume, 64);
    let first = Sqe { user_data: 50, ..request(Opcode::Read, 0, 0) };
    leaving.submit(&[first]);
    // These wait for a place, or parked: none is issued.
    leaving.submit(&(0..20).map(|n| compare_and_write(n, 0, BLOCK, 0)).collect::<Vec<_>>());
    leaving
        .submit(&(20..30).map(|n| Sqe { user_data: n, ..request(Opcode::Write, 0, 0) }).collect::<Vec<_>>());
    rig.take(31);
    staying.submit(&[request(Opcode::Write, 1, 0)]);
    rig.take(32);
    let (done, closed) = done();
    rig.send(Command::CloseSession { session_id: leaving.id, done });
    assert!(closed.try_recv().is_err(), "two reads are stuck");
    assert_eq!(rig.pending(), 3, "those that were not issued are dropped");
    unstick(&mut rig, volume);
    assert_eq!(rig.results(&mut staying, 1)[&1], 4096, "the write that was parked goes on");
    rig.turn_until("the session to end", |_| closed.try_recv().is_ok());
    assert_eq!(rig.result(&mut staying, compare_and_write(1, 8 * BLOCK, 512, 0)), 512, "all locks are free");
}

/// Requests that a lock keeps back can be taken back, and run out of time, like all that were not issued.
#[test]
fn what_waits_for_a_lock_can_be_cancelled_and_times_out() {
    let (mut rig, volume) = stuck();
    let mut client = rig.open(volume, 64);
    let cancel = |user_data, arg| Sqe { op: Opcode::Cancel as u8, user_data, arg, ..Sqe::default() };
    let caw = |user_data| compare_and_write(user_data, 0, BLOCK, 0);
    let write = |user_data| Sqe { user_data, ..request(Opcode::Write, 0, 0) };
    // The first one has the lock, and its read is stuck; one waits for its place, one is parked.
    client.submit(&[caw(1), caw(2), write(3)]);
    rig.take(3);
    client.submit(&[cancel(10, 1), cancel(12, 2), cancel(13, 3), cancel(14, 3)]);
    let results = rig.results(&mut client, 6);
    let expected = [
        (2, -errno::ECANCELED),
        (3, -errno::ECANCELED),
        (10, -errno::EALREADY),
        (12, 0),
        (13, 0),
        (14, -errno::ENOENT),
    ];
    assert_eq!(results, BTreeMap::from(expected));
    let soon = |sqe: Sqe| Sqe { timeout_us: 2000, ..sqe };
    client.submit(&[soon(caw(4)), soon(write(5)), write(6)]);
    let late = rig.results(&mut client, 2);
    assert_eq!(late, BTreeMap::from([(4, -errno::ETIMEDOUT), (5, -errno::ETIMEDOUT)]));
    // One whose drain is under way lets go of its place.
    client.submit(&[Sqe { offset: 8 * BLOCK, ..write(7) }, Sqe { offset: 9 * BLOCK, ..soon(caw(8)) }]);
    unstick(&mut rig, volume);
    let rest = rig.results(&mut client, 4);
    assert!([1, 6, 7].iter().all(|n| rest[n] == 4096), "{rest:?}");
    assert!([4096, -errno::ETIMEDOUT].contains(&rest[&8]), "{rest:?}");
    assert_eq!(rig.result(&mut client, caw(9)), 4096, "all locks are free");
}

/// A chain goes on after a compare-and-write that found what it expected, and breaks at one that did not.
#[test]
fn a_mismatch_breaks_the_chain() {
    let mut rig = rig::<Uring>(8, 64);
    let volume = rig.add_volume(Target::memory(VOLUME_BYTES).unwrap().into());
    let mut client = rig.open(volume, 16);
    expect(&client, 0, BLOCK, 0, 7);
    let linked = |sqe: Sqe| Sqe { flags: sqe_flags::LINK, ..sqe };
    let write = |user_data| Sqe { user_data, ..request(Opcode::Write, 0, 8 * BLOCK) };
    for (round, outcome) in [(0, 4096), (1, -errno::EILSEQ)] {
        let zeroes = Sqe {
            op: Opcode::WriteZeroes as u8,
            user_data: 3,
            length: BLOCK,
            offset: 32 * BLOCK,
            ..Sqe::default()
        };
        client.submit(&[linked(compare_and_write(1, 0, BLOCK, 0)), linked(write(2)), zeroes]);
        let results = rig.results(&mut client, 3);
        let after = if round == 0 { [4096, 0] } else { [-errno::ECANCELED; 2] };
        assert_eq!(results, BTreeMap::from([(1, outcome), (2, after[0]), (3, after[1])]));
    }
}

/// A drain lets requests of many steps come to their end, also those behind locks.
#[test]
fn a_drain_waits_for_all_steps() {
    let mut rig = rig::<Uring>(2, 128);
    let volume = rig.add_volume(Target::memory(1 << 30).unwrap().into());
    let mut client = rig.open(volume, 64);
    let zeroes = |n| Sqe {
        op: Opcode::WriteZeroes as u8,
        flags: sqe_flags::FUA,
        user_data: n,
        length: 1 << 30,
        ..Sqe::default()
    };
    client.submit(&(0..4).map(zeroes).collect::<Vec<_>>());
    client.submit(&(4..24).map(|n| compare_and_write(n, 0, BLOCK, 0)).collect::<Vec<_>>());
    rig.take(24);
    let (done, drained) = done();
    rig.send(Command::Drain { done });
    assert!(drained.try_recv().is_err());
    let results = rig.results(&mut client, 24);
    assert!((0..4).all(|n| results[&n] == 0) && (4..24).all(|n| results[&n] == 4096), "{results:?}");
    drained.try_recv().expect("all have their answers");
}

/// Memory cannot be taken away while the device may use it; what was not issued does without.
#[test]
fn regions_go_between_steps_but_not_during_one() {
    let (mut rig, volume) = stuck();
    let mut client = rig.open(volume, 16);
    let (daemons, _own) = common::region(4 * BLOCK);
    let session_id = client.id;
    rig.ask(|reply| Command::AddRegion { session_id, index: 1, region: daemons.clone(), reply }).unwrap();
    let iovec = IovEntry { region: 1, zero: 0, length: 4096, offset: 0 };
    let entries = [iovec, IovEntry { offset: 2 * BLOCK, ..iovec }];
    for (words, entry) in client.arena(0, 32).chunks(2).zip(entries) {
        words.iter().zip(entry.to_words()).for_each(|(word, value)| word.store(value, Relaxed));
    }
    let readv = Sqe { iov_count: 2, length: 2 * BLOCK, region_offset: 0, ..request(Opcode::Readv, 1, 0) };
    client.submit(&[readv, Sqe { region: 1, ..compare_and_write(2, 64 * BLOCK, BLOCK, 0) }]);
    rig.take(2);
    let busy = rig.ask(|reply| Command::RemoveRegion { session_id, index: 1, reply }).unwrap_err();
    assert_eq!(busy.errno(), errno::EBUSY, "a piece of the readv lies there: {busy}");
    unstick(&mut rig, volume);
    let results = rig.results(&mut client, 2);
    assert_eq!(results, BTreeMap::from([(1, 8192), (2, 4096)]));
    rig.ask(|reply| Command::RemoveRegion { session_id, index: 1, reply }).unwrap();
    // A compare-and-write whose region goes between its steps answers ENXIO, and nothing was written.
    let rule = FaultRule {
        ops: FaultOps::READ,
        range: 0..u64::MAX,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: None,
        effect: FaultEffect::Stuck,
    };
    rig.ask(|reply| Command::AddRegion { session_id, index: 1, region: daemons, reply }).unwrap();
    let plan = FaultPlan { seed: 1, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
    client.submit(&[Sqe { region: 1, ..compare_and_write(3, 64 * BLOCK, BLOCK, 0) }]);
    rig.take(1);
    rig.ask(|reply| Command::RemoveRegion { session_id, index: 1, reply }).unwrap();
    unstick(&mut rig, volume);
    assert_eq!(rig.results(&mut client, 1)[&3], -errno::ENXIO);
}

/// The client changes what is to be compared, and what is to be written, all the time: it gets what it made, and nobody
/// else anything of it.
#[test]
fn memory_that_changes_meanwhile_harms_its_client_alone() {
    let mut rig = rig::<Uring>(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let memory = Arc::clone(&client.memory);
    let arena = usize::try_from(client.layout.arena_offset).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let words = memory.u64s(arena, 1024).unwrap();
        let mut value = 0_u64;
        while !stopped.load(Relaxed) {
            value = value.wrapping_add(1);
            words
                .iter()
                .for_each(|word| word.store(if value.is_multiple_of(2) { FILL } else { value }, Relaxed));
        }
    });
    for _ in 0..300 {
        let result = rig.result(&mut client, compare_and_write(1, 8 * BLOCK, BLOCK, 0));
        assert!(result == 4096 || result == -errno::EILSEQ, "{result}");
    }
    stop.store(true, Relaxed);
    thread.join().unwrap();
    assert_eq!(held(&mut rig, &mut client, 7 * BLOCK, BLOCK), Some(FILL));
    assert_eq!(held(&mut rig, &mut client, 9 * BLOCK, BLOCK), Some(FILL));
}

#[test]
fn null_engines_have_no_scratch_memory() {
    // A volume that cannot compare costs no region: as many as there are files fit.
    let mut rig = rig::<Null>(8, 64);
    for _ in 0..1024 {
        rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    }
}
