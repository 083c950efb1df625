//! Chains, barriers, timeouts and cancels, case by case: the corners of ABI.md, section 10, and what a hostile client does
//! with them. `order_model.rs` goes through what these do together.

mod common;

use std::sync::{
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc,
};

use common::{BLOCK, Client, Rig, puppet, puppet::Puppet};
use ferrio_driver::{Target, null::Null};
use ferrio_engine::{
    FEATURES, Threads, VolumeId,
    clock::{self, Nanos},
    inject::Command,
};
use ferrio_shm::{
    abi::{Class, Opcode, cqe_flags, errno, sqe_flags},
    entry::{Cqe, Sqe},
};

const LINK: u16 = sqe_flags::LINK;
const BARRIER: u16 = sqe_flags::BARRIER;
const DONE: i32 = BLOCK as i32;
const MILLISECOND: Nanos = 1_000_000;

/// Request `id` of a test; the driver knows it by its offset.
fn write(id: u64) -> Sqe {
    Sqe { op: Opcode::Write as u8, user_data: id, offset: id * BLOCK, length: BLOCK, ..Sqe::default() }
}

fn flagged(id: u64, flags: u16) -> Sqe {
    Sqe { flags, ..write(id) }
}

fn nop(id: u64) -> Sqe {
    Sqe { op: Opcode::Nop as u8, user_data: id, ..Sqe::default() }
}

fn cancel(id: u64, target: u64) -> Sqe {
    Sqe { op: Opcode::Cancel as u8, user_data: id, arg: target, ..Sqe::default() }
}

/// An engine over the driver that answers as told, one client with two volumes, and made-up time.
struct World {
    rig: Rig<Puppet>,
    client: Client,
    volumes: [VolumeId; 2],
    now: Nanos,
}

impl World {
    fn new(depth: u32, records: u32, entries: u32) -> Self {
        let mut rig = Rig::<Puppet>::with_threads(depth, records, Threads::Two);
        rig.features = FEATURES;
        let volumes = [0, 1].map(|_| rig.add_volume(Target::null(1 << 40, 512).into()));
        let client = rig.open_on(&volumes, entries).unwrap();
        Self { rig, client, volumes, now: clock::now() }
    }

    /// A second client.
    fn open_another(&mut self, entries: u32) -> Client {
        let client = self.rig.open_on(&self.volumes, entries).unwrap();
        // The rig has turned at the real time.
        self.now = self.now.max(clock::now());
        client
    }

    /// Turns until nothing moves; time stands still but for what wakes queues.
    fn settle(&mut self) -> Vec<Cqe> {
        let mut cqes = Vec::new();
        loop {
            self.now += 30_000;
            let work = self.rig.parts.submitter.turn(self.now) + self.rig.parts.reaper.turn(self.now);
            self.client.reap(&mut cqes);
            if work == 0 {
                return cqes;
            }
        }
    }

    /// Submits, and says who was answered with what, in order.
    fn submit(&mut self, sqes: &[Sqe]) -> Vec<(u64, i32)> {
        self.client.submit(sqes);
        answers(&self.settle())
    }

    /// The driver answers the oldest of its requests.
    fn answer(&mut self, errno: Option<i32>) -> Vec<(u64, i32)> {
        puppet::answer(0, errno);
        answers(&self.settle())
    }

    /// Ids of the requests that the driver has.
    fn issued(&self) -> Vec<u64> {
        puppet::in_flight().iter().map(|offset| offset / BLOCK).collect()
    }

    /// Answers whatever comes; everything is over then.
    fn finish(mut self) -> Vec<(u64, i32)> {
        let records = self.rig.parts.shared.requests.len() as u32;
        let mut all = answers(&self.settle());
        while !puppet::in_flight().is_empty() {
            all.extend(self.answer(None));
        }
        assert_eq!(self.rig.parts.submitter.free_records(), records, "a record is lost");
        assert_eq!(self.rig.snapshot().waits.held, 0);
        all
    }
}

fn answers(cqes: &[Cqe]) -> Vec<(u64, i32)> {
    cqes.iter().map(|cqe| (cqe.user_data, cqe.result)).collect()
}

// ---- chains

#[test]
fn a_chain_goes_step_by_step() {
    let mut world = World::new(8, 64, 32);
    assert_eq!(world.submit(&[flagged(1, LINK), flagged(2, LINK), write(3), write(4)]), []);
    assert_eq!(world.issued(), [1, 4], "who is not in the chain passes it");
    assert_eq!(world.rig.snapshot().queues[0].waits.held, 2);
    assert_eq!(world.answer(None), [(1, DONE)]);
    assert_eq!(world.issued(), [4, 2]);
    assert_eq!(world.finish(), [(4, DONE), (2, DONE), (3, DONE)]);
}

#[test]
fn a_chain_breaks_where_it_fails() {
    let mut world = World::new(8, 64, 32);
    world.submit(&[flagged(1, LINK), flagged(2, LINK), flagged(3, LINK), write(4)]);
    world.answer(None);
    let broken = [(2, -errno::EIO), (3, -errno::ECANCELED), (4, -errno::ECANCELED)];
    assert_eq!(world.answer(Some(errno::EIO)), broken);
    assert_eq!(world.rig.snapshot().waits.broken, 2);
    assert_eq!(world.finish(), []);
}

#[test]
fn a_bad_member_breaks_its_chain_at_once_and_those_before_it_go_on() {
    let mut world = World::new(8, 64, 32);
    let bad = Sqe { volume: 9, ..flagged(3, LINK) };
    let chain = [flagged(1, LINK), flagged(2, LINK), bad, flagged(4, LINK), Sqe { op: 99, ..write(5) }];
    let refused = [(3, -errno::EBADF), (4, -errno::ECANCELED), (5, -errno::ECANCELED)];
    assert_eq!(world.submit(&chain), refused);
    assert_eq!(world.finish(), [(1, DONE), (2, DONE)]);
}

#[test]
fn a_chain_may_have_32_members_and_no_more() {
    let mut world = World::new(8, 256, 128);
    let chain = |first: u64, length: u64| -> Vec<Sqe> {
        (0..length).map(|n| flagged(first + n, if n + 1 < length { LINK } else { 0 })).collect()
    };
    assert_eq!(world.submit(&chain(1, 32)), []);
    assert_eq!(world.issued(), [1]);
    let refused = world.submit(&[chain(101, 33), vec![write(200)]].concat());
    let expected: Vec<(u64, i32)> = (101..134).map(|id| (id, -errno::EINVAL)).collect();
    assert_eq!(refused, expected, "all of it, and nothing else");
    assert_eq!(world.issued(), [1, 200]);
    let refused = world.submit(&chain(301, 80));
    assert_eq!(refused.len(), 80);
    assert!(refused.iter().all(|(_, result)| *result == -errno::EINVAL), "{refused:?}");
    assert_eq!(world.finish().len(), 33);
}

#[test]
fn a_chain_that_is_published_in_parts_is_refused_to_its_end() {
    let mut world = World::new(8, 64, 32);
    let einval = |ids: &[u64]| -> Vec<(u64, i32)> { ids.iter().map(|id| (*id, -errno::EINVAL)).collect() };
    assert_eq!(world.submit(&[flagged(1, LINK), flagged(2, LINK)]), einval(&[1, 2]));
    assert_eq!(world.submit(&[flagged(3, LINK | BARRIER)]), einval(&[3]));
    assert_eq!(world.submit(&[write(4), write(5)]), einval(&[4]), "the end of the chain, however late");
    assert_eq!(world.submit(&[flagged(6, LINK), write(7)]), [], "the next chain is a new one");
    assert_eq!(world.issued(), [5, 6]);
    assert_eq!(world.finish().len(), 3);
}

#[test]
fn a_ring_that_is_smaller_than_the_chain_refuses_it() {
    let mut world = World::new(8, 64, 4);
    let refused = world.submit(&[1, 2, 3, 4].map(|id| flagged(id, LINK)));
    assert_eq!(refused, [1, 2, 3, 4].map(|id| (id, -errno::EINVAL)));
    assert_eq!(world.submit(&[write(5)]), [(5, -errno::EINVAL)]);
    assert_eq!(world.submit(&[write(6)]), []);
    world.finish();
}

#[test]
fn a_chain_is_taken_whole_when_there_are_records_for_it() {
    let mut world = World::new(128, 64, 128);
    // 48 of 64: as much as it may have for now.
    world.submit(&(1..=64).map(write).collect::<Vec<_>>());
    let before = world.issued().len();
    assert_eq!(before, 32, "half of all records");
    let chain: Vec<Sqe> = (101..=132).map(|id| flagged(id, if id < 132 { LINK } else { 0 })).collect();
    assert_eq!(world.submit(&chain), []);
    let mut answered = Vec::new();
    while !world.issued().contains(&101) {
        let taken: Vec<u64> = world.rig.snapshot().queues.iter().map(|q| q.total.queued).collect();
        assert_eq!(taken, [0], "no part of the chain was taken before");
        answered.extend(world.answer(None));
    }
    assert_eq!(world.rig.snapshot().queues[0].waits.held, 31);
    answered.extend(world.finish());
    assert_eq!(answered.len(), 96);
    assert!(answered.iter().all(|(_, result)| *result == DONE));
}

/// One client keeps the engine full; the other's chain needs half of the records. Without being saved for, it would never
/// have them.
#[test]
fn a_chain_is_not_starved_by_another_session() {
    let mut world = World::new(128, 64, 128);
    let mut greedy = world.open_another(128);
    let mut next = 1000;
    let mut cqes = Vec::new();
    let mut feed = |world: &mut World, cqes: &mut Vec<Cqe>| {
        greedy.reap(cqes);
        while greedy.sq.push(&write(next)).is_ok() {
            next += 1;
        }
        greedy.publish();
        world.settle()
    };
    feed(&mut world, &mut cqes);
    world.client.submit(&(1..=32).map(|id| flagged(id, if id < 32 { LINK } else { 0 })).collect::<Vec<_>>());
    let mut rounds = 0;
    while !world.issued().contains(&1) {
        puppet::answer(0, None);
        feed(&mut world, &mut cqes);
        assert!(!world.issued().is_empty(), "who held none may go on with one");
        rounds += 1;
        assert!(rounds < 200, "the chain is starved: {:?}", world.rig.snapshot());
    }
    let greedy_before = cqes.len();
    let mut answered = Vec::new();
    while answered.len() < 32 {
        puppet::answer(0, None);
        answered.extend(feed(&mut world, &mut cqes));
    }
    assert!(cqes.len() > greedy_before, "the other goes on beside the chain");
}

// ---- barriers

#[test]
fn a_barrier_stands_between_before_and_after_on_its_volume() {
    let mut world = World::new(8, 64, 32);
    let other = Sqe { volume: 1, ..write(5) };
    world.submit(&[write(1), write(2), flagged(3, BARRIER), write(4), other]);
    // Volumes take turns, of two requests here.
    assert_eq!(world.issued(), [1, 2, 5], "another volume is not ordered");
    world.answer(None);
    assert_eq!(world.issued(), [2, 5]);
    world.answer(None);
    assert_eq!(world.issued(), [5, 3]);
    puppet::answer(1, None);
    world.settle();
    assert_eq!(world.issued(), [5, 4]);
    world.finish();
}

#[test]
fn a_barrier_holds_prio_too() {
    let mut world = World::new(8, 64, 32);
    let prio = Sqe { class: Class::Prio as u8, ..write(3) };
    world.submit(&[write(1), flagged(2, BARRIER), prio]);
    assert_eq!(world.issued(), [1]);
    assert_eq!(world.finish(), [(1, DONE), (2, DONE), (3, DONE)]);
}

#[test]
fn a_barrier_waits_for_chain_members_that_have_not_started() {
    let mut world = World::new(8, 64, 32);
    world.submit(&[flagged(1, LINK), write(2), flagged(3, BARRIER)]);
    assert_eq!(world.answer(None), [(1, DONE)]);
    assert_eq!(world.issued(), [2], "the barrier does not slip in between");
    assert_eq!(world.finish(), [(2, DONE), (3, DONE)]);
}

#[test]
fn a_barrier_in_a_chain_waits_for_both() {
    let mut world = World::new(8, 64, 32);
    let other = Sqe { volume: 1, ..flagged(2, LINK) };
    world.submit(&[write(1), other, flagged(3, BARRIER), write(4)]);
    assert_eq!(world.issued(), [1, 2]);
    puppet::answer(1, None);
    world.settle();
    assert_eq!(world.issued(), [1], "its chain lets it go, its volume does not");
    world.answer(None);
    assert_eq!(world.issued(), [3]);
    assert_eq!(world.finish(), [(3, DONE), (4, DONE)]);
}

#[test]
fn a_failed_barrier_does_not_stop_its_volume() {
    let mut world = World::new(8, 64, 32);
    world.submit(&[flagged(1, BARRIER), write(2)]);
    assert_eq!(world.answer(Some(errno::EIO)), [(1, -errno::EIO)]);
    assert_eq!(world.finish(), [(2, DONE)]);
}

#[test]
fn a_refused_barrier_orders_nothing() {
    let mut world = World::new(8, 64, 32);
    let bad = Sqe { length: 1, ..flagged(2, BARRIER) };
    assert_eq!(world.submit(&[write(1), bad, write(3)]), [(2, -errno::EINVAL)]);
    assert_eq!(world.issued(), [1, 3]);
    world.finish();
}

#[test]
fn nops_and_cancels_are_ordered_among_themselves() {
    let mut world = World::new(8, 64, 32);
    let barrier = Sqe { flags: BARRIER, ..nop(2) };
    world.submit(&[write(1), nop(5), barrier, cancel(3, 1), write(4)]);
    assert_eq!(world.issued(), [0, 1, 4], "a nop has no volume: it orders none");
    assert_eq!(world.answer(None), [(5, 0)]);
    puppet::answer(2, None);
    assert_eq!(
        answers(&world.settle()),
        [(2, 0), (3, -errno::EALREADY)],
        "the cancel came after the barrier"
    );
    world.finish();
}

#[test]
fn a_flush_with_barrier_comes_after_what_it_makes_durable() {
    let mut world = World::new(8, 64, 32);
    let flush = Sqe { op: Opcode::Flush as u8, user_data: 9, flags: BARRIER, ..Sqe::default() };
    world.submit(&[write(1), flush]);
    assert_eq!(world.issued(), [1]);
    assert_eq!(world.finish(), [(1, DONE), (9, 0)]);
}

// ---- timeouts

#[test]
fn a_timeout_is_answered_though_the_device_is_stuck() {
    let mut world = World::new(1, 64, 32);
    let timed = Sqe { timeout_us: 5000, ..write(2) };
    world.submit(&[write(1), timed, write(3)]);
    assert_eq!(world.issued(), [1]);
    world.now += 4 * MILLISECOND;
    assert_eq!(answers(&world.settle()), []);
    world.now += 4 * MILLISECOND;
    assert_eq!(answers(&world.settle()), [(2, -errno::ETIMEDOUT)]);
    assert_eq!(world.rig.snapshot().waits.timed_out, 1);
    assert_eq!(world.finish(), [(1, DONE), (3, DONE)], "and it never reaches the device");
}

/// The timers have ticks of a millisecond; the deadline is exact all the same.
#[test]
fn nothing_is_issued_after_its_timeout() {
    let mut world = World::new(1, 64, 32);
    world.submit(&[write(1)]);
    // Whole ticks of the timers, and a deadline just behind one: they will be late.
    let tick = 1 << 20;
    world.now = (world.now / tick + 1) * tick;
    world.client.submit(&[Sqe { timeout_us: 100, ..write(2) }]);
    world.rig.parts.submitter.turn(world.now + 50_000);
    puppet::answer(0, None);
    world.rig.parts.reaper.turn(world.now + 60_000);
    world.rig.parts.submitter.turn(world.now + 150_000);
    world.rig.parts.reaper.turn(world.now + 150_000);
    let mut cqes = Vec::new();
    world.client.reap(&mut cqes);
    assert_eq!(answers(&cqes), [(1, DONE), (2, -errno::ETIMEDOUT)]);
    assert_eq!(world.rig.snapshot().queues[0].waits.timed_out, 1);
    assert_eq!(world.finish(), []);
}

#[test]
fn an_issued_request_is_overdue_and_keeps_its_result() {
    let mut world = World::new(8, 64, 32);
    let timed = |id| Sqe { timeout_us: 1000, ..write(id) };
    world.submit(&[timed(1), timed(2), timed(3), write(4)]);
    puppet::answer(0, None);
    assert_eq!(world.settle(), [Cqe { user_data: 1, result: DONE, flags: 0 }]);
    world.now += 2 * MILLISECOND;
    assert_eq!(world.settle(), []);
    (0..3).for_each(|n| puppet::answer(0, (n == 1).then_some(errno::EIO)));
    let flags = cqe_flags::OVERDUE;
    let late = [
        Cqe { user_data: 2, result: DONE, flags },
        Cqe { user_data: 3, result: -errno::EIO, flags },
        Cqe { user_data: 4, result: DONE, flags: 0 },
    ];
    assert_eq!(world.settle(), late);
    assert_eq!(world.rig.snapshot().waits.overdue, 2);
}

#[test]
fn a_timeout_in_a_chain_breaks_what_comes_after() {
    let mut world = World::new(8, 64, 32);
    let timed = Sqe { timeout_us: 1000, ..flagged(2, LINK) };
    world.submit(&[flagged(1, LINK), timed, write(3)]);
    world.now += 3 * MILLISECOND;
    assert_eq!(answers(&world.settle()), [(2, -errno::ETIMEDOUT), (3, -errno::ECANCELED)]);
    assert_eq!(world.finish(), [(1, DONE)]);
}

#[test]
fn a_barrier_that_timed_out_holds_nobody() {
    let mut world = World::new(8, 64, 32);
    let barrier = Sqe { timeout_us: 1000, ..flagged(2, BARRIER) };
    world.submit(&[write(1), barrier, write(3)]);
    assert_eq!(world.issued(), [1]);
    world.now += 3 * MILLISECOND;
    assert_eq!(answers(&world.settle()), [(2, -errno::ETIMEDOUT)]);
    assert_eq!(world.issued(), [1, 3]);
    world.finish();
}

// ---- cancel

#[test]
fn a_cancel_means_the_oldest_that_was_not_issued() {
    let mut world = World::new(1, 64, 32);
    let same = |offset: u64| Sqe { user_data: 7, ..write(offset) };
    assert_eq!(world.submit(&[same(1), same(2), same(3)]), []);
    assert_eq!(world.issued(), [1]);
    assert_eq!(world.submit(&[cancel(10, 7)]), [(7, -errno::ECANCELED), (10, 0)]);
    world.answer(None);
    assert_eq!(world.issued(), [3], "the second one was meant");
    assert_eq!(world.submit(&[cancel(11, 7)]), [(11, -errno::EALREADY)]);
    assert_eq!(world.submit(&[cancel(12, 8)]), [(12, -errno::ENOENT)]);
    world.answer(None);
    assert_eq!(world.submit(&[cancel(13, 7)]), [(13, -errno::ENOENT)], "answered is gone");
    assert_eq!(world.rig.snapshot().waits.cancelled, 1);
    world.finish();
}

#[test]
fn a_cancel_reaches_its_own_queue_only() {
    let mut world = World::new(1, 64, 32);
    world.submit(&[write(1), write(2)]);
    let mut other = world.open_another(32);
    other.submit(&[cancel(3, 2)]);
    world.settle();
    let mut cqes = Vec::new();
    other.reap(&mut cqes);
    assert_eq!(answers(&cqes), [(3, -errno::ENOENT)]);
    assert_eq!(world.finish(), [(1, DONE), (2, DONE)]);
}

#[test]
fn a_cancelled_member_breaks_what_comes_after_it() {
    let mut world = World::new(8, 64, 32);
    world.submit(&[flagged(1, LINK), flagged(2, LINK), flagged(3, LINK), write(4)]);
    let answered = world.submit(&[cancel(9, 3)]);
    assert_eq!(answered, [(3, -errno::ECANCELED), (9, 0), (4, -errno::ECANCELED)]);
    assert_eq!(world.finish(), [(1, DONE), (2, DONE)], "those before it go on");
}

#[test]
fn cancels_can_wait_and_be_cancelled() {
    let mut world = World::new(8, 64, 32);
    // The chain's cancel is carried out after its first member; until then it can be taken back.
    let chained = Sqe { flags: LINK, ..cancel(2, 5) };
    world.submit(&[flagged(1, LINK), chained, write(3), flagged(4, BARRIER), write(5)]);
    assert_eq!(world.issued(), [1]);
    let answered = world.submit(&[cancel(9, 2)]);
    assert_eq!(answered, [(2, -errno::ECANCELED), (9, 0), (3, -errno::ECANCELED)]);
    assert_eq!(world.finish(), [(1, DONE), (4, DONE), (5, DONE)], "the cancelled cancel did nothing");
}

#[test]
fn a_cancel_that_waited_means_what_waits_then() {
    let mut world = World::new(8, 64, 32);
    let chained = Sqe { flags: LINK, ..cancel(2, 5) };
    world.submit(&[flagged(1, LINK), chained, write(3), flagged(4, BARRIER), write(5)]);
    let answered = world.answer(None);
    assert_eq!(answered, [(1, DONE), (5, -errno::ECANCELED), (2, 0)]);
    assert_eq!(world.finish(), [(3, DONE), (4, DONE)]);
}

#[test]
fn a_failed_cancel_breaks_its_chain() {
    let mut world = World::new(8, 64, 32);
    let first = Sqe { flags: LINK, ..cancel(1, 77) };
    let itself = Sqe { flags: LINK, ..cancel(3, 3) };
    let answered = world.submit(&[first, write(2), itself, write(4)]);
    let expected = [(1, -errno::ENOENT), (3, -errno::ENOENT), (2, -errno::ECANCELED), (4, -errno::ECANCELED)];
    assert_eq!(answered, expected);
    world.finish();
}

/// All requests of a queue wait under the same user_data, then comes a cancel for each. A search through those that wait
/// would take 130 million steps for each of the queues.
#[test]
fn a_flood_of_cancels_for_equal_keys() {
    const MANY: u64 = 16_384;
    let mut rig = Rig::<Puppet>::with_threads(1, 1 << 17, Threads::One);
    rig.features = FEATURES;
    let volume = rig.add_volume(Target::null(1 << 40, 512).into());
    let mut clients = [0, 1].map(|_| rig.open(volume, 2 * MANY as u32));
    let mut now = clock::now();
    let mut turn = |rig: &mut Rig<Puppet>| {
        now += 30_000;
        rig.parts.submitter.turn(now) + rig.parts.reaper.turn(now)
    };
    for client in &mut clients {
        client.submit(&(0..MANY).map(|n| Sqe { user_data: 7, ..write(n) }).collect::<Vec<_>>());
        while turn(&mut rig) > 0 {}
        client.submit(&(0..MANY).map(|n| cancel(100 + n, 7)).collect::<Vec<_>>());
        while turn(&mut rig) > 0 {}
        let mut cqes = Vec::new();
        client.reap(&mut cqes);
        let cancelled =
            cqes.iter().filter(|cqe| **cqe == Cqe { user_data: 7, result: -errno::ECANCELED, flags: 0 });
        let told = cqes.iter().filter(|cqe| cqe.user_data >= 100 && cqe.result == 0).count();
        assert_eq!(cancelled.count(), told);
        assert!(told as u64 >= MANY - 1, "all but the one that the driver has: {told}");
    }
}

// ---- ends

#[test]
fn a_session_ends_with_requests_held() {
    for answered_before in 0..6 {
        let mut world = World::new(8, 64, 32);
        let timed = Sqe { timeout_us: 1_000_000, ..flagged(5, BARRIER) };
        let chained = Sqe { flags: LINK, ..cancel(7, 1) };
        let sqes = [
            flagged(1, LINK),
            flagged(2, LINK),
            write(3),
            flagged(4, BARRIER),
            timed,
            flagged(6, LINK),
            chained,
            write(8),
            write(9),
        ];
        world.submit(&sqes);
        for _ in 0..answered_before.min(puppet::in_flight().len()) {
            world.answer(None);
        }
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move || sender.send(()).unwrap());
        assert!(world.rig.parts.injector.send(Command::CloseSession { session_id: 1, done }).is_ok());
        world.settle();
        while !puppet::in_flight().is_empty() {
            assert!(receiver.try_recv().is_err(), "the driver still has some");
            world.answer(None);
        }
        receiver.try_recv().expect("the session is over");
        world.now += 2_000 * MILLISECOND;
        assert_eq!(world.settle(), [], "its timeouts went with it");
        world.finish();
    }
}

#[test]
fn a_drain_answers_what_is_held() {
    let mut world = World::new(8, 64, 32);
    world.submit(&[flagged(1, LINK), write(2), flagged(3, BARRIER), write(4)]);
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move || sender.send(()).unwrap());
    assert!(world.rig.parts.injector.send(Command::Drain { done }).is_ok());
    let mut answered = answers(&world.settle());
    while !puppet::in_flight().is_empty() {
        assert!(receiver.try_recv().is_err());
        answered.extend(world.answer(None));
    }
    assert_eq!(answered, [1, 2, 3, 4].map(|id| (id, DONE)));
    receiver.try_recv().expect("the drain is over");
}

#[test]
fn a_session_without_the_features_is_told() {
    let mut rig = Rig::<Null>::new(8, 64);
    let volume = rig.add_volume(Target::null(1 << 30, 512).into());
    let mut client = rig.open(volume, 32);
    let timed = Sqe { timeout_us: 1, ..write(3) };
    client.submit(&[flagged(1, LINK), flagged(2, BARRIER), timed, cancel(4, 1), write(5)]);
    let mut cqes = Vec::new();
    rig.turn_until("five answers", |_| {
        client.reap(&mut cqes);
        cqes.len() == 5
    });
    cqes.sort_unstable_by_key(|cqe| cqe.user_data);
    let results: Vec<i32> = cqes.iter().map(|cqe| cqe.result).collect();
    assert_eq!(
        results,
        [-95, -95, -95, -95, DONE],
        "the end of what would be a chain is a request of its own"
    );
}

// ---- costs

/// Chains, barriers, timeouts that pass, cancels that find and do not find.
#[test]
fn steady_state_allocates_nothing() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.store(clock::now(), Relaxed);
    let mut rig = Rig::<Null>::with_threads(4, 128, Threads::One);
    rig.features = FEATURES;
    let volume = rig.add_volume(Target::null(1 << 30, 512).into());
    let mut client = rig.open(volume, 64);
    let batch: Vec<Sqe> = (0..48)
        .map(|n| match n % 8 {
            0 => flagged(n, LINK),
            1 => flagged(n, BARRIER),
            2 => Sqe { timeout_us: 1, ..write(n) },
            3 => Sqe { timeout_us: 50_000, ..write(n) },
            4 => cancel(n, n - 1),
            5 => cancel(n, 999),
            6 => Sqe { flags: LINK, ..cancel(n, 999) },
            _ => write(n),
        })
        .collect();
    let mut cqes = Vec::with_capacity(64);
    let mut round = |rig: &mut Rig<Null>, client: &mut Client| {
        cqes.clear();
        client.submit(&batch);
        while cqes.len() < batch.len() {
            let now = NOW.fetch_add(100_000, Relaxed);
            rig.parts.submitter.turn(now);
            rig.parts.reaper.turn(now);
            client.reap(&mut cqes);
        }
    };
    (0..4).for_each(|_| round(&mut rig, &mut client));
    let allocations = allocation_counter::measure(|| (0..200).for_each(|_| round(&mut rig, &mut client)));
    assert_eq!(allocations.count_total, 0, "allocations in 9600 requests: {allocations:?}");
    let waits = rig.snapshot().waits;
    assert!(waits.timed_out > 0 && waits.cancelled > 0 && waits.broken > 0, "all of it happened: {waits:?}");
}
