//! Scheduling as clients see it, through rings and drivers. What is counted is requests, not time: where a rule speaks of
//! time, it is made up, or what the machine lost of it is counted too.

mod common;

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
};

use common::{
    BLOCK, Client, Rig, VOLUME_BYTES,
    puppet::{self, Puppet},
};
use ferrio_driver::{Driver, Target, aio::Aio, null::Null, uring::Uring};
use ferrio_engine::{
    EngineError, FEATURES, Limit, Rate, Scope, Split, VolumeId,
    clock::{self, Nanos},
    inject::Command,
    scheduler::{RUN_MAX, Setting},
};
use ferrio_shm::{
    abi::{Class, Opcode, cqe_flags, errno},
    entry::{Cqe, Sqe},
};

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1000 * MILLISECOND;
const ENTRIES: u32 = 64;
/// Of the rig: prio, read, write.
const BUDGETS: [u64; 3] = [4, 2, 2];

thread_local! {
    static NOW: Cell<Nanos> = const { Cell::new(0) };
}

/// Made-up time, of this test.
fn made_up() -> Nanos {
    NOW.get()
}

fn pass_time(time: Nanos) {
    NOW.set(NOW.get() + time);
}

fn set<D: Driver>(rig: &mut Rig<D>, setting: Setting) -> Result<(), EngineError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    rig.command(Command::Run(Box::new(move |thread| sender.send(thread.set_schedule(setting)).unwrap())));
    receiver.try_recv().unwrap()
}

fn limit<D: Driver>(rig: &mut Rig<D>, scope: Scope, limit: Limit) {
    set(rig, Setting::Limit { scope, limit }).unwrap();
}

fn iops(per_second: u64) -> Limit {
    Limit { iops: Split { total: Some(Rate::new(per_second)), ..Split::default() }, ..Limit::default() }
}

fn bytes(rate: Rate) -> Limit {
    Limit { bytes: Split { total: Some(rate), ..Split::default() }, ..Limit::default() }
}

/// A client that has as many requests outstanding as its rings hold, one answer for each.
struct Greedy {
    client: Client,
    /// What it does, but for `user_data` and its place.
    sqe: Sqe,
    next: u64,
    outstanding: VecDeque<u64>,
    answered: u64,
}

impl Greedy {
    fn new<D: Driver>(rig: &mut Rig<D>, volumes: &[VolumeId], sqe: Sqe) -> Self {
        let client = rig.open_on(volumes, ENTRIES).unwrap();
        Self { client, sqe, next: 0, outstanding: VecDeque::new(), answered: 0 }
    }

    /// Returns what was answered.
    fn go_on(&mut self) -> u64 {
        let mut cqes: Vec<Cqe> = Vec::new();
        self.client.reap(&mut cqes);
        for cqe in &cqes {
            assert_eq!(cqe.result, self.sqe.length as i32, "{cqe:?}");
            let place = self.outstanding.iter().position(|id| *id == cqe.user_data);
            self.outstanding.remove(place.unwrap_or_else(|| panic!("{cqe:?} answers nothing")));
        }
        self.answered += cqes.len() as u64;
        while self.outstanding.len() < ENTRIES as usize {
            // Far apart: nothing is joined.
            let offset = self.next * 7 % (VOLUME_BYTES / self.sqe.length) * self.sqe.length;
            let sqe = Sqe { user_data: self.next, offset, region_offset: offset, ..self.sqe };
            self.client.sq.push(&sqe).expect("room for what is not outstanding");
            self.outstanding.push_back(self.next);
            self.next += 1;
        }
        self.client.publish();
        cqes.len() as u64
    }
}

fn read() -> Sqe {
    Sqe { op: Opcode::Read as u8, length: BLOCK, ..Sqe::default() }
}

fn write() -> Sqe {
    Sqe { op: Opcode::Write as u8, ..read() }
}

fn prio() -> Sqe {
    Sqe { class: Class::Prio as u8, ..read() }
}

/// An engine of four slots, and what is done on it: all of it waits in the engine's queues all the time.
fn rig<D: Driver>(target: impl FnOnce(&mut Rig<D>) -> std::sync::Arc<Target>) -> (Rig<D>, VolumeId) {
    let mut rig = Rig::<D>::new(4, 1024);
    rig.merge = false;
    let target = target(&mut rig);
    let volume = rig.add_volume(target);
    (rig, volume)
}

fn file<D: Driver>(rig: &mut Rig<D>) -> std::sync::Arc<Target> {
    rig.file_target("volume")
}

fn null<D: Driver>(_: &mut Rig<D>) -> std::sync::Arc<Target> {
    Target::null(VOLUME_BYTES, 512).into()
}

// ---- classes

/// Beside a session that wants nothing but prio, and all of it, readers and writers have what their budgets say, and wait for
/// no more of the others than the bound of `ferrio_engine::scheduler::rounds`.
fn nobody_starves<D: Driver>(target: fn(&mut Rig<D>) -> std::sync::Arc<Target>) {
    let (mut rig, volume) = rig::<D>(target);
    let mut clients = [prio(), read(), write()].map(|sqe| Greedy::new(&mut rig, &[volume], sqe));
    // Of requests that cost 1, and those that are in the driver.
    let bound = |class: usize| 2 * (BUDGETS.iter().sum::<u64>() - BUDGETS[class]) + 4;
    let (mut others, mut begun) = ([0u64; 3], false);
    let mut counted = [0u64; 3];
    while counted.iter().sum::<u64>() < 4000 {
        rig.turn();
        let answered = clients.each_mut().map(Greedy::go_on);
        if !begun {
            // All three have something waiting from the second turn on.
            begun = rig.pending() > 100;
            continue;
        }
        for class in 0..3 {
            counted[class] += answered[class];
            others[class] += answered.iter().sum::<u64>() - answered[class];
            if answered[class] > 0 {
                others[class] = 0;
            }
            assert!(others[class] <= bound(class), "class {class} waits for {others:?}: {counted:?}");
        }
    }
    let sum: u64 = counted.iter().sum();
    for class in 0..3 {
        let due = sum * BUDGETS[class] / BUDGETS.iter().sum::<u64>();
        assert!(counted[class].abs_diff(due) <= 20, "class {class} has {counted:?}, {due} are due");
    }
}

#[test]
fn nobody_starves_over_io_uring() {
    nobody_starves::<Uring>(file);
}

#[test]
fn nobody_starves_over_aio() {
    nobody_starves::<Aio>(file);
}

#[test]
fn nobody_starves_over_null() {
    nobody_starves::<Null>(null);
}

// ---- weights

/// Two greedy sessions with weights 1 and 3, and with 3 and 1 after a change while they run.
fn weights_hold<D: Driver>(target: fn(&mut Rig<D>) -> std::sync::Arc<Target>) {
    let (mut rig, volume) = rig::<D>(target);
    let mut clients = [read(), read()].map(|sqe| Greedy::new(&mut rig, &[volume], sqe));
    let ids = clients.each_ref().map(|client| client.client.id);
    for weights in [[1, 3], [300, 100]] {
        for (session_id, weight) in ids.into_iter().zip(weights) {
            set(&mut rig, Setting::Weight { session_id, weight }).unwrap();
        }
        let mut counted = [0u64; 2];
        while counted.iter().sum::<u64>() < 3000 {
            rig.turn();
            let answered = clients.each_mut().map(Greedy::go_on);
            (0..2).for_each(|client| counted[client] += answered[client]);
        }
        let sum = counted.iter().sum::<u64>();
        for client in 0..2 {
            let due = sum * u64::from(weights[client]) / u64::from(weights[0] + weights[1]);
            let off = counted[client].abs_diff(due);
            assert!(off <= due / 10, "{weights:?} share {counted:?}");
            assert!(off <= due / 50 + 2 * u64::from(RUN_MAX + 4), "{weights:?} share {counted:?}");
        }
    }
    for (what, setting) in [
        ("no session", Setting::Weight { session_id: 99, weight: 1 }),
        ("out of range", Setting::Weight { session_id: ids[0], weight: 0 }),
    ] {
        assert!(set(&mut rig, setting).is_err(), "{what}");
    }
}

#[test]
fn weights_hold_over_io_uring() {
    weights_hold::<Uring>(file);
}

#[test]
fn weights_hold_over_aio() {
    weights_hold::<Aio>(file);
}

#[test]
fn weights_hold_over_null() {
    weights_hold::<Null>(null);
}

// ---- limits

/// What is limited, and how.
struct Limited {
    greedy: Greedy,
    rate: Rate,
    /// What a request takes.
    takes: u64,
}

/// A volume, a session and a group of two, each limited, and beside them a session that is not.
fn limited<D: Driver>(
    rig: &mut Rig<D>,
    mut target: impl FnMut(&mut Rig<D>, usize) -> std::sync::Arc<Target>,
) -> (Vec<Vec<Limited>>, Greedy) {
    let volumes: Vec<VolumeId> = (0..2)
        .map(|n| {
            let target = target(rig, n);
            rig.add_volume(target)
        })
        .collect();
    let (first, free) = (&volumes[..1], &volumes[1..]);
    let mut open =
        |volumes, sqe: Sqe, rate, takes| Limited { greedy: Greedy::new(rig, volumes, sqe), rate, takes };
    let by_volume = open(first, read(), Rate::new(700), 1);
    let large = Rate { per_second: 4 << 20, burst: Some(4096) };
    let by_session = open(free, Sqe { length: 128 << 10, ..write() }, large, 128 << 10);
    let in_group = [(); 2].map(|()| open(free, read(), Rate { per_second: 300, burst: Some(1) }, 1));
    let unlimited = Greedy::new(rig, free, read());
    limit(rig, Scope::Volume(volumes[0]), iops(700));
    limit(rig, Scope::Session(by_session.greedy.client.id), bytes(large));
    for member in &in_group {
        let session_id = member.greedy.client.id;
        set(rig, Setting::Group { session_id, group: Some("group".into()) }).unwrap();
    }
    let group =
        Limit { iops: Split { total: Some(in_group[0].rate), ..Split::default() }, ..Limit::default() };
    limit(rig, Scope::Group("group".into()), group);
    (vec![vec![by_volume], vec![by_session], in_group.into()], unlimited)
}

impl Limited {
    /// Most that may pass in `time`.
    fn most(&self, time: Nanos) -> u64 {
        let at_once = self.rate.burst.unwrap_or(0).max(self.rate.per_second / 100).max(1);
        at_once + self.rate.per_second * time / SECOND + self.takes
    }
}

fn go_on(limited: &mut [Vec<Limited>]) {
    for client in limited.iter_mut().flatten() {
        client.greedy.go_on();
    }
}

fn passed(clients: &[Limited]) -> u64 {
    clients.iter().map(|client| client.greedy.answered * client.takes).sum()
}

/// Two seconds of made-up time: what passes is off by less than a twentieth and a request.
#[test]
fn limits_hold_within_a_twentieth() {
    NOW.set(SECOND);
    let mut rig = Rig::<Null>::new(64, 1024);
    (rig.clock, rig.merge) = (made_up, false);
    let (mut limited, mut unlimited) = limited(&mut rig, |rig, _| null(rig));
    let settle = |rig: &mut Rig<Null>, limited: &mut Vec<Vec<Limited>>, unlimited: &mut Greedy| {
        for _ in 0..3 {
            rig.turn();
            go_on(limited);
        }
        unlimited.go_on();
    };
    (0..100).for_each(|_| {
        settle(&mut rig, &mut limited, &mut unlimited);
        pass_time(MILLISECOND);
    });
    let before: Vec<u64> = limited.iter().map(|clients| passed(clients)).collect();
    let free = unlimited.answered;
    (0..2000).for_each(|_| {
        settle(&mut rig, &mut limited, &mut unlimited);
        pass_time(MILLISECOND);
    });
    for (clients, before) in limited.iter().zip(before) {
        let Limited { rate, takes, .. } = clients[0];
        let (passed, due) = (passed(clients) - before, 2 * rate.per_second);
        assert!(passed.abs_diff(due) <= due / 20 + takes, "{rate:?}: {passed} of {due}");
    }
    assert!(unlimited.answered - free >= 2000, "who is not limited has {}", unlimited.answered - free);
}

/// Two seconds of life: never more than the limit says, and not less than that but for what the machine lost of the time.
fn limits_hold_in_life<D: Driver>() {
    let mut rig = Rig::<D>::new(64, 1024);
    rig.merge = false;
    let (mut limited, mut unlimited) = limited(&mut rig, |rig, n| rig.file_target(&format!("volume-{n}")));
    let begin = clock::now();
    let (mut now, mut answered_at, mut lost) = (begin, begin, 0);
    while now < begin + 2 * SECOND {
        let work = rig.turn();
        go_on(&mut limited);
        let answered = unlimited.go_on();
        if work == 0 {
            std::thread::yield_now();
        }
        now = clock::now();
        // Nobody looked, or the disk stood still for those who may do what they like.
        if answered > 0 {
            let then = std::mem::replace(&mut answered_at, now);
            lost += (now - then).saturating_sub(2 * MILLISECOND);
        }
    }
    lost += now - answered_at;
    rig.turn();
    go_on(&mut limited);
    let time = clock::now() - begin;
    for clients in &limited {
        let (passed, most) = (passed(clients), clients[0].most(time));
        assert!(passed <= most, "{:?} in {time} ns: {passed} of {most}", clients[0].rate);
        let due = clients[0].rate.per_second * (2 * SECOND).saturating_sub(lost) / SECOND;
        let least = (due - due / 20).saturating_sub(2 * clients[0].takes);
        assert!(passed >= least, "{:?}: {passed} of {due}, {lost} ns were lost", clients[0].rate);
    }
    assert!(unlimited.answered > 0);
}

#[test]
fn limits_hold_in_life_over_io_uring() {
    limits_hold_in_life::<Uring>();
}

#[test]
fn limits_hold_in_life_over_aio() {
    limits_hold_in_life::<Aio>();
}

/// A client on made-up time, with two volumes.
struct Slow {
    rig: Rig<Null>,
    volumes: [VolumeId; 2],
    client: Client,
    results: BTreeMap<u64, (i32, u32)>,
}

impl Slow {
    fn new() -> Self {
        NOW.set(SECOND);
        let mut rig = Rig::<Null>::new(16, 256);
        (rig.clock, rig.features) = (made_up, FEATURES);
        let volumes = [0; 2].map(|_| rig.add_volume(Target::null(VOLUME_BYTES, 512).into()));
        let client = rig.open_on(&volumes, ENTRIES).unwrap();
        Self { rig, volumes, client, results: BTreeMap::new() }
    }

    fn submit(&mut self, ids: std::ops::Range<u64>, sqe: Sqe) {
        let sqe = |id| Sqe { user_data: id, offset: id * 2 * BLOCK % VOLUME_BYTES, ..sqe };
        self.client.submit(&ids.map(sqe).collect::<Vec<_>>());
    }

    /// What is answered with little time.
    fn settle(&mut self) -> Vec<u64> {
        let mut cqes = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            idle = if self.rig.turn() == 0 { idle + 1 } else { 0 };
            // Doorbells are looked at now and then.
            pass_time(30_000);
            self.client.reap(&mut cqes);
        }
        for cqe in &cqes {
            let answer = (cqe.result, cqe.flags);
            assert_eq!(
                self.results.insert(cqe.user_data, answer),
                None,
                "{} is answered once",
                cqe.user_data
            );
        }
        cqes.iter().map(|cqe| cqe.user_data).collect()
    }
}

#[test]
fn a_limited_volume_holds_up_no_other_of_the_same_queue() {
    let mut slow = Slow::new();
    let volume = slow.volumes[0];
    limit(&mut slow.rig, Scope::Volume(volume), iops(1));
    slow.submit(0..24, read());
    slow.submit(24..48, Sqe { volume: 1, ..read() });
    slow.submit(48..52, Sqe { op: Opcode::Nop as u8, length: 0, ..read() });
    let mut answered = slow.settle();
    answered.sort_unstable();
    assert_eq!(answered, [vec![0], Vec::from_iter(24..52)].concat());
    for id in 1..4 {
        pass_time(SECOND + 2 * MILLISECOND);
        assert_eq!(slow.settle(), [id]);
    }
}

#[test]
fn a_change_holds_for_what_waits() {
    let mut slow = Slow::new();
    let session_id = slow.client.id;
    limit(&mut slow.rig, Scope::Session(session_id), iops(1));
    slow.submit(0..20, read());
    assert_eq!(slow.settle(), [0]);
    limit(&mut slow.rig, Scope::Session(session_id), iops(1000));
    pass_time(20 * MILLISECOND);
    let some = slow.settle().len();
    assert!((1..=15).contains(&some), "{some}: the burst of 10 ms, and 4 ms for who is woken late");
    limit(&mut slow.rig, Scope::Session(session_id), Limit::default());
    assert_eq!(slow.settle().len(), 19 - some, "nothing limits them any more");
    // A group has its limit before its session comes.
    limit(&mut slow.rig, Scope::Group("slow".into()), iops(1));
    slow.submit(20..22, read());
    assert_eq!(slow.settle(), [20, 21]);
    set(&mut slow.rig, Setting::Group { session_id, group: Some("slow".into()) }).unwrap();
    slow.submit(22..25, read());
    assert_eq!(slow.settle(), [22]);
    set(&mut slow.rig, Setting::Group { session_id, group: None }).unwrap();
    assert_eq!(slow.settle(), [23, 24]);
}

#[test]
fn what_a_limit_holds_back_times_out_and_what_was_issued_does_not() {
    let mut slow = Slow::new();
    let session_id = slow.client.id;
    limit(&mut slow.rig, Scope::Session(session_id), iops(10));
    slow.submit(0..5, Sqe { timeout_us: 250_000, ..read() });
    slow.submit(5..8, read());
    for _ in 0..1000 {
        pass_time(MILLISECOND);
        slow.settle();
    }
    let results: Vec<i32> = slow.results.values().map(|(result, _)| *result).collect();
    let (read, late) = (BLOCK as i32, -errno::ETIMEDOUT);
    assert_eq!(
        results,
        [read, read, read, late, late, read, read, read],
        "none pays for those that never went"
    );
    assert!(slow.results.values().all(|(_, flags)| *flags == 0), "{:?}", slow.results);
}

/// Once it is issued the real result is reported, however late.
#[test]
fn what_was_issued_in_time_is_answered_late() {
    let mut rig = Rig::<Puppet>::new(16, 256);
    NOW.set(SECOND);
    (rig.clock, rig.features) = (made_up, FEATURES);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open_on(&[volume], ENTRIES).unwrap();
    limit(&mut rig, Scope::Session(client.id), iops(1));
    let sqe = |id: u64| Sqe { user_data: id, offset: id * 2 * BLOCK, timeout_us: 100_000, ..read() };
    client.submit(&[sqe(0), sqe(1)]);
    let mut cqes = Vec::new();
    for _ in 0..3000 {
        rig.turn();
        pass_time(MILLISECOND);
        client.reap(&mut cqes);
    }
    assert_eq!(puppet::take_submitted(), [0], "the other waited for its limit");
    assert_eq!(
        cqes.drain(..).map(|cqe| (cqe.user_data, cqe.result)).collect::<Vec<_>>(),
        [(1, -errno::ETIMEDOUT)]
    );
    puppet::answer(0, None);
    (0..3).for_each(|_| {
        rig.turn();
    });
    client.reap(&mut cqes);
    assert_eq!(cqes, [Cqe { user_data: 0, result: BLOCK as i32, flags: cqe_flags::OVERDUE }]);
}
