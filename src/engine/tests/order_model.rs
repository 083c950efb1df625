//! Chains, barriers, timeouts and cancels against the rules of ABI.md, section 10, read as plainly as possible.
//!
//! A test driver answers in any order and with any result; time is made up. After each turn every request that was issued
//! and every answer is held against the rules by looking at all requests before it. When nothing moves any more, whatever
//! is not issued must have a reason.

mod common;

use std::collections::BTreeMap;

use common::{BLOCK, Client, Rig, puppet, puppet::Puppet};
use ferrio_driver::Target;
use ferrio_engine::{
    FEATURES, Threads,
    clock::{self, Nanos},
};
use ferrio_shm::{
    abi::{Opcode, cqe_flags, errno, sqe_flags},
    entry::{Cqe, Sqe},
};
use proptest::prelude::*;

/// A tick of the engine's timers: with all times whole ticks, nothing expires later than it should.
const TICK: Nanos = 1 << 20;
const RECORDS: u32 = 256;
const ENTRIES: u32 = 64;

#[derive(Clone, Debug)]
struct Member {
    /// A cancel of the request this many before it, or a write.
    cancels: Option<u64>,
    volume: u16,
    barrier: bool,
    timeout_us: u32,
}

#[derive(Clone, Debug)]
enum Step {
    /// Chains of one or more members, published together on a queue.
    Submit(usize, Vec<Vec<Member>>),
    /// Answers one of the requests in flight.
    Answer(usize, bool),
    Turn,
    Pass(u64),
}

fn members() -> impl Strategy<Value = Member> {
    let cancels = prop_oneof![4 => Just(None), 1 => (0..12u64).prop_map(Some)];
    let timeout = prop_oneof![3 => Just(0), 1 => 500..20_000u32];
    (cancels, 0..2u16, prop::bool::weighted(0.2), timeout)
        .prop_map(|(cancels, volume, barrier, timeout_us)| Member { cancels, volume, barrier, timeout_us })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![3 => 1..2usize, 2 => 2..6usize];
    let chain = length.prop_flat_map(|length| prop::collection::vec(members(), length));
    let step = prop_oneof![
        4 => (0..2usize, prop::collection::vec(chain, 1..5)).prop_map(|(queue, chains)| Step::Submit(queue, chains)),
        6 => (any::<usize>(), prop::bool::weighted(0.85)).prop_map(|(place, well)| Step::Answer(place, well)),
        6 => Just(Step::Turn),
        1 => (1..20u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..80)
}

/// What the model knows of a request.
#[derive(Clone, Debug)]
struct Known {
    queue: usize,
    /// None: a cancel.
    volume: Option<u16>,
    barrier: bool,
    /// The id of its predecessor in its chain.
    after: Option<u64>,
    cancels: Option<u64>,
    timeout_us: u32,
    accepted: Option<Nanos>,
    issued: bool,
    /// What the driver was told to answer.
    told: Option<i32>,
    answer: Option<i32>,
}

impl Known {
    fn deadline(&self) -> Option<Nanos> {
        let accepted = self.accepted?;
        (self.timeout_us > 0).then(|| accepted + Nanos::from(self.timeout_us) * 1000)
    }

    fn late(&self, now: Nanos) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }
}

struct World {
    rig: Rig<Puppet>,
    clients: Vec<Client>,
    depth: usize,
    now: Nanos,
    /// By id: their order of submission.
    requests: BTreeMap<u64, Known>,
    /// Ids by queue, in order.
    submitted: Vec<Vec<u64>>,
}

impl World {
    fn new(depth: u32, threads: Threads) -> Self {
        let mut rig = Rig::<Puppet>::with_threads(depth, RECORDS, threads);
        rig.features = FEATURES;
        let volumes = [0, 1].map(|_| rig.add_volume(Target::null(1 << 40, 512).into()));
        let clients = [0, 1].map(|_| rig.open_on(&volumes, ENTRIES).unwrap()).into();
        // From here on time is made up.
        let now = (clock::now() / TICK + 1) * TICK;
        Self {
            rig,
            clients,
            depth: depth as usize,
            now,
            requests: BTreeMap::new(),
            submitted: vec![vec![]; 2],
        }
    }

    fn submit(&mut self, queue: usize, chains: &[Vec<Member>]) {
        for chain in chains {
            if (self.clients[queue].sq.room() as usize) < chain.len() {
                break;
            }
            let mut after = None;
            for (place, member) in chain.iter().enumerate() {
                let id = self.requests.len() as u64 + 1;
                let link = if place + 1 < chain.len() { sqe_flags::LINK } else { 0 };
                let barrier = if member.barrier { sqe_flags::BARRIER } else { 0 };
                let common = Sqe {
                    user_data: id,
                    flags: link | barrier,
                    timeout_us: member.timeout_us,
                    ..Sqe::default()
                };
                let sqe = match member.cancels {
                    Some(back) => Sqe { op: Opcode::Cancel as u8, arg: id.saturating_sub(back), ..common },
                    None => Sqe {
                        op: Opcode::Write as u8,
                        volume: member.volume,
                        offset: id * BLOCK,
                        length: BLOCK,
                        ..common
                    },
                };
                self.clients[queue].sq.push(&sqe).unwrap();
                let known = Known {
                    queue,
                    volume: member.cancels.is_none().then_some(member.volume),
                    barrier: member.barrier,
                    after,
                    cancels: member.cancels.map(|_| sqe.arg),
                    timeout_us: member.timeout_us,
                    accepted: None,
                    issued: false,
                    told: None,
                    answer: None,
                };
                self.requests.insert(id, known);
                self.submitted[queue].push(id);
                after = Some(id);
            }
        }
        self.clients[queue].publish();
    }

    fn tell(&mut self, place: usize, well: bool) {
        let in_flight = puppet::in_flight();
        if in_flight.is_empty() {
            return;
        }
        let place = place % in_flight.len();
        let request = self.requests.get_mut(&(in_flight[place] / BLOCK)).expect("a request of the test");
        assert_eq!(request.told, None);
        request.told = Some(if well { BLOCK as i32 } else { -errno::EIO });
        puppet::answer(place, (!well).then_some(errno::EIO));
    }

    /// A turn of both halves, held against the rules. Returns how much was done.
    fn turn(&mut self) -> u32 {
        self.now += TICK;
        let before = self.requests.clone();
        let mut work = self.rig.parts.submitter.turn(self.now);
        self.note_accepted();
        let issued: Vec<u64> = puppet::take_submitted().into_iter().map(|offset| offset / BLOCK).collect();
        work += self.rig.parts.reaper.turn(self.now);
        for queue in 0..self.clients.len() {
            let mut cqes = Vec::new();
            self.clients[queue].reap(&mut cqes);
            self.check_answers(&before, &issued, &cqes);
        }
        for id in issued {
            self.check_issue(&before, id);
        }
        for (id, request) in &self.requests {
            let waits = request.accepted.is_some() && !request.issued && request.answer.is_none();
            assert!(!(waits && request.late(self.now)), "{id} waits beyond its timeout: {request:?}");
        }
        work
    }

    /// The SQEs before sq_head were taken.
    fn note_accepted(&mut self) {
        for (client, ids) in self.clients.iter().zip(&self.submitted) {
            let head = usize::try_from(client.layout.queues[0].control_offset).unwrap() + 256;
            let taken = client.memory.u32(head).unwrap().load(std::sync::atomic::Ordering::Acquire);
            for id in &ids[..taken as usize] {
                self.requests.get_mut(id).unwrap().accepted.get_or_insert(self.now);
            }
        }
    }

    fn check_issue(&mut self, before: &BTreeMap<u64, Known>, id: u64) {
        let request = self.requests[&id].clone();
        let told = || format!("{id} was issued: {request:?}");
        assert!(request.accepted.is_some() && request.volume.is_some(), "{}", told());
        assert!(!before[&id].issued && before[&id].answer.is_none(), "{}", told());
        assert!(!request.late(self.now), "{}", told());
        if let Some(after) = request.after {
            assert!(before[&after].answer.is_some_and(|answer| answer >= 0), "{} before {after}", told());
        }
        for (other, earlier) in before.range(..id) {
            let same_lane = (earlier.queue, earlier.volume) == (request.queue, request.volume);
            if same_lane && (request.barrier || earlier.barrier) {
                let now = &self.requests[other];
                let over = earlier.answer.is_some() || (now.answer.is_some() && !now.issued);
                assert!(over, "{} across {other}: {now:?}", told());
            }
        }
    }

    /// Answers of one queue, in their order.
    fn check_answers(&mut self, before: &BTreeMap<u64, Known>, issued: &[u64], cqes: &[Cqe]) {
        for id in issued {
            self.requests.get_mut(id).unwrap().issued = true;
        }
        for (place, cqe) in cqes.iter().enumerate() {
            let id = cqe.user_data;
            let request = self.requests[&id].clone();
            let told = || format!("{cqe:?} for {request:?} at {}", self.now);
            assert!(request.accepted.is_some() && request.answer.is_none(), "{}", told());
            let overdue = if request.issued && request.late(self.now) { cqe_flags::OVERDUE } else { 0 };
            assert_eq!(cqe.flags, overdue, "{}", told());
            let next = cqes.get(place + 1).map(|cqe| (self.requests[&cqe.user_data].cancels, cqe.result));
            if request.issued {
                assert_eq!(request.told, Some(cqe.result), "{}", told());
            } else if next == Some((Some(id), 0)) && cqe.result == -errno::ECANCELED {
                // Taken back: the cancel is looked at next.
            } else if cqe.result == -errno::ECANCELED {
                assert!(request.after.is_some_and(|after| self.failed(after)), "{}", told());
            } else if cqe.result == -errno::ETIMEDOUT {
                assert!(request.late(self.now), "{}", told());
            } else {
                let target = request.cancels.unwrap_or_else(|| panic!("{}", told()));
                let previous = place.checked_sub(1).map(|place| (cqes[place].user_data, cqes[place].result));
                self.check_cancel(before, id, target, cqe.result, previous);
            }
            self.requests.get_mut(&id).unwrap().answer = Some(cqe.result);
        }
    }

    fn failed(&self, id: u64) -> bool {
        self.requests[&id].answer.is_some_and(|answer| answer < 0)
    }

    /// What cancel `id` said of `target`; `previous` is the answer before its own.
    fn check_cancel(
        &self,
        before: &BTreeMap<u64, Known>,
        id: u64,
        target: u64,
        result: i32,
        previous: Option<(u64, i32)>,
    ) {
        let known = self.requests.get(&target).filter(|known| known.queue == self.requests[&id].queue);
        let told = || format!("cancel {id} of {target} said {result}: {known:?}");
        let was_issued = known.is_some() && before[&target].issued;
        let was_open = known.is_some() && before[&target].answer.is_none();
        match -result {
            0 => {
                assert_eq!(previous, Some((target, -errno::ECANCELED)), "{}", told());
                assert!(!was_issued, "{}", told());
            }
            errno::EALREADY => assert!(was_issued && was_open, "{}", told()),
            errno::ENOENT => {
                // There was none: not accepted before, answered, or the cancel itself.
                let there = known.is_some_and(|known| known.answer.is_none() && known.accepted.is_some());
                assert!(!there || target >= id, "{}", told());
                assert!(!(was_issued && was_open), "{}", told());
            }
            _ => panic!("{}", told()),
        }
    }

    /// Turns until nothing moves: what waits then has a reason.
    fn settle(&mut self) {
        while self.turn() > 0 {}
        let free = self.depth - puppet::in_flight().len();
        let used_up = |volume| {
            let mut held = self.requests.values().filter(|request| request.volume == Some(volume));
            held.by_ref().filter(|request| request.issued && request.answer.is_none()).count() >= 3 * free
        };
        // No slot is free, or a volume has its share of them and holds up who is behind.
        if free == 0 || used_up(0) || used_up(1) {
            return;
        }
        for (id, request) in &self.requests {
            if request.accepted.is_none() || request.issued || request.answer.is_some() {
                continue;
            }
            let chain = request.after.is_some_and(|after| self.requests[&after].answer.is_none());
            let lane = self.requests.range(..id).any(|(_, earlier)| {
                (earlier.queue, earlier.volume) == (request.queue, request.volume)
                    && (request.barrier || earlier.barrier)
                    && earlier.answer.is_none()
            });
            assert!(chain || lane, "{id} waits for nothing: {request:?}");
        }
    }

    fn run(mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Submit(queue, chains) => self.submit(*queue, chains),
                Step::Answer(place, well) => self.tell(*place, *well),
                Step::Turn => {
                    self.turn();
                }
                Step::Pass(ticks) => {
                    self.settle();
                    self.now += ticks * TICK;
                }
            }
        }
        while self.requests.values().any(|request| request.answer.is_none()) {
            let (open, flying) = (self.open(), puppet::in_flight().len());
            (0..flying).for_each(|_| self.tell(0, true));
            self.settle();
            assert!(
                self.open() < open || !puppet::in_flight().is_empty(),
                "nothing moves: {:?}",
                self.requests
            );
        }
        self.settle();
        assert_eq!(self.rig.parts.submitter.free_records(), RECORDS);
        let snapshot = self.rig.snapshot();
        let total = self.requests.len() as u64;
        let completed: u64 = snapshot.classes.iter().map(|class| class.counters.completed).sum();
        assert_eq!((completed, snapshot.waits.held), (total, 0));
        for class in snapshot.classes {
            assert_eq!((class.counters.queued, class.counters.in_flight), (0, 0));
        }
    }

    fn open(&self) -> usize {
        self.requests.values().filter(|request| request.answer.is_none()).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_timeouts_and_cancels_keep_the_rules(
        steps in steps(),
        depth in prop_oneof![Just(2u32), Just(16), Just(256)],
        two in any::<bool>(),
    ) {
        World::new(depth, if two { Threads::Two } else { Threads::One }).run(&steps);
    }
}
