//! Anything that may be asked of a Scheduler, against what must hold whatever it chooses.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::queue::cost_of;

const RECORDS: u32 = 64;
/// Session of each queue; the last two queues come and go with theirs.
const SESSION_OF: [u64; 5] = [1, 1, 2, 3, 4];
/// Cost of the largest request.
const LARGEST: u32 = 64;
/// Share of what it was given by which a session may be off besides: weights are rounded to parts of 2^20.
const ROUNDING: f64 = 0.001;

#[derive(Clone, Debug)]
enum Fate {
    Issue,
    /// The driver is full.
    PutBack,
    /// So many that it was said to have, too.
    TakeBack(usize),
    PassOver,
    Hold,
    /// Answered without the driver.
    Answer,
}

#[derive(Clone, Debug)]
enum Step {
    /// The second: not to wait yet.
    Push(Arrival, bool),
    PushBack(usize),
    Remove(usize),
    Pass(Vec<Fate>),
    /// The second: it goes on.
    Complete(usize, bool),
    Unhold(usize),
    Wait(Nanos),
    Weight(u64, u32),
    Group(u64, bool),
    Limit(usize, Limit),
    Budgets(Budgets),
    /// Ends the session of the last queue but so many, or opens it again.
    Toggle(usize),
}

fn arrivals() -> impl Strategy<Value = Arrival> {
    let bytes =
        prop_oneof![1 => Just(0u32), 6 => Just(4096), 2 => Just(16384), 2 => Just(65536), 1 => Just(1 << 20)];
    let volume = prop_oneof![1 => Just(None), 8 => (0..2u16).prop_map(Some)];
    (0..5u32, volume, 0..3usize, any::<bool>(), bytes, prop::bool::weighted(0.9)).prop_map(
        |(queue, volume, class, writes, bytes, limited)| {
            let class = Class::ALL[class];
            let writes = if class == Class::Prio { writes } else { class == Class::Write };
            Arrival { queue, volume, class, writes, bytes, limited }
        },
    )
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        20 => Just(Fate::Issue),
        1 => Just(Fate::PutBack),
        1 => (1..4usize).prop_map(Fate::TakeBack),
        2 => Just(Fate::PassOver),
        1 => Just(Fate::Hold),
        1 => Just(Fate::Answer),
    ]
}

fn limits() -> impl Strategy<Value = Limit> {
    let rate = |least: u64| {
        let burst = prop::option::of(1..least * 1000);
        let rate = (least..least * 1000, burst).prop_map(|(per_second, burst)| Rate { per_second, burst });
        prop::option::weighted(0.3, rate)
    };
    let split = |least| {
        (rate(least), rate(least), rate(least)).prop_map(|(read, write, total)| Split { read, write, total })
    };
    (split(50), split(1 << 20)).prop_map(|(iops, bytes)| Limit { iops, bytes })
}

fn steps(limited: bool) -> impl Strategy<Value = Vec<Step>> {
    let setting = if limited {
        (0..7usize, limits()).prop_map(|(scope, limit)| Step::Limit(scope, limit)).boxed()
    } else {
        Just(Step::Wait(1)).boxed()
    };
    let step = prop_oneof![
        30 => (arrivals(), prop::bool::weighted(0.1)).prop_map(|(arrival, later)| Step::Push(arrival, later)),
        3 => any::<usize>().prop_map(Step::PushBack),
        2 => any::<usize>().prop_map(Step::Remove),
        10 => prop::collection::vec(fates(), 1..6).prop_map(Step::Pass),
        12 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(place, again)| Step::Complete(place, again)),
        2 => any::<usize>().prop_map(Step::Unhold),
        3 => (1..20 * MILLISECOND).prop_map(Step::Wait),
        1 => (1..5u64, 1..1000u32).prop_map(|(session, weight)| Step::Weight(session, weight)),
        1 => (1..5u64, any::<bool>()).prop_map(|(session, in_group)| Step::Group(session, in_group)),
        3 => setting,
        1 => prop::array::uniform3(1..40u32).prop_map(Step::Budgets),
        1 => (0..2usize).prop_map(Step::Toggle),
    ];
    prop::collection::vec(step, 1..400)
}

fn scope(index: usize) -> Scope {
    match index {
        0 | 1 => Scope::Volume(VolumeId(index as u32)),
        2 => Scope::Group("group".into()),
        _ => Scope::Session(index as u64 - 2),
    }
}

/// What the model knows of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Free,
    Arrived,
    Waits,
    Held,
    Issued,
}

/// What has passed a limit since it was set: when, whether it writes, bytes.
struct Passed {
    limit: Limit,
    log: Vec<(Nanos, bool, u64)>,
}

impl Passed {
    /// No more than the capacity, the rate and one request, over any time that ends now.
    fn check(&mut self, now: Nanos, writes: bool, bytes: u64) {
        for (index, rate) in self.limit.rates().into_iter().enumerate() {
            let Some(rate) = rate else { continue };
            let takes = |entry: &(Nanos, bool, u64)| match (index % 3, entry.1) {
                (0, true) | (1, false) => 0.0,
                _ if index < 3 => 1.0,
                _ => entry.2 as f64,
            };
            if takes(&(now, writes, bytes)) == 0.0 {
                continue;
            }
            let per_second = rate.per_second as f64;
            let burst = rate.burst.map_or(per_second / 100.0, |burst| burst as f64);
            // Who is woken late may have what came in meanwhile.
            let capacity = burst.max(per_second / 250.0).max(1.0) + per_second / 250.0;
            let mut sum = 0.0;
            for entry in self.log.iter().rev() {
                sum += takes(entry);
                let bound = capacity + per_second * (now - entry.0) as f64 / 1e9;
                assert!(sum <= bound + 1.0, "{sum} in {} ns, {bound} at most: {rate:?}", now - entry.0);
            }
        }
        self.log.push((now, writes, bytes));
    }
}

struct Model {
    scheduler: Scheduler,
    now: Nanos,
    budgets: Budgets,
    places: [Place; RECORDS as usize],
    arrivals: [Arrival; RECORDS as usize],
    paid: [bool; RECORDS as usize],
    /// By queue, volume and stream.
    flows: BTreeMap<(u32, Option<u16>, Class, bool), VecDeque<u32>>,
    passed_over: Vec<u32>,
    open: [bool; 5],
    in_group: [bool; 5],
    limits: BTreeMap<usize, Passed>,
    /// Of each class, what each session was given beyond each other since both have something that may go, by weight.
    ahead: [[[f64; 5]; 5]; 3],
    given: [[f64; 5]; 3],
    weights: [u32; 5],
    /// Cost that others were given since a class that waits was served, and what its last operation cost.
    beyond: [u32; 3],
    last: [u32; 3],
}

impl Model {
    fn new(budgets: Budgets, weights: [u32; 5]) -> Self {
        let mut model = Self {
            scheduler: Scheduler::new(RECORDS, RECORDS, budgets),
            now: 1,
            budgets,
            places: [Place::Free; RECORDS as usize],
            arrivals: [READ; RECORDS as usize],
            paid: [true; RECORDS as usize],
            flows: BTreeMap::new(),
            passed_over: Vec::new(),
            open: [false; 5],
            in_group: [false; 5],
            limits: BTreeMap::new(),
            ahead: [[[0.0; 5]; 5]; 3],
            given: [[0.0; 5]; 3],
            weights,
            beyond: [0; 3],
            last: [1; 3],
        };
        (1..5).for_each(|session| model.open(session));
        model
    }

    fn session(&self, record: u32) -> usize {
        SESSION_OF[self.arrivals[record as usize].queue as usize] as usize
    }

    fn flow(&mut self, record: u32) -> &mut VecDeque<u32> {
        let Arrival { queue, volume, class, writes, .. } = self.arrivals[record as usize];
        self.flows.entry((queue, volume, class, writes)).or_default()
    }

    fn all(&self, place: Place) -> Vec<u32> {
        (0..RECORDS).filter(|record| self.places[*record as usize] == place).collect()
    }

    fn any(&self, place: Place, n: usize) -> Option<u32> {
        let all = self.all(place);
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    /// Limits that a request has to pass yet.
    fn limits_of(&self, record: u32) -> impl Iterator<Item = usize> {
        let arrival = &self.arrivals[record as usize];
        let session = self.session(record);
        let scopes =
            [arrival.volume.map(usize::from), self.in_group[session].then_some(2), Some(session + 2)];
        let unpaid = arrival.limited && !self.paid[record as usize];
        scopes.into_iter().flatten().filter(move |scope| unpaid && self.limits.contains_key(scope))
    }

    /// Nothing holds back the first of this flow.
    fn may_go(&self, flow: &VecDeque<u32>) -> bool {
        let Some(first) = flow.front() else { return false };
        !self.passed_over.contains(first) && self.limits_of(*first).next().is_none()
    }

    /// Who has something that may go, by class and session.
    fn backlog(&self) -> [[bool; 5]; 3] {
        let mut backlog = [[false; 5]; 3];
        for ((queue, _, class, _), flow) in &self.flows {
            backlog[class.index()][SESSION_OF[*queue as usize] as usize] |= self.may_go(flow);
        }
        backlog
    }

    /// Those that have nothing that may go begin anew.
    fn forget_idle(&mut self) {
        for (class, backlog) in self.backlog().iter().enumerate() {
            let ahead = &mut self.ahead[class];
            for session in (0..5).filter(|session| !backlog[*session]) {
                ahead[session] = [0.0; 5];
                ahead.iter_mut().for_each(|ahead| ahead[session] = 0.0);
            }
            if *backlog == [false; 5] {
                self.beyond[class] = 0;
            }
        }
    }

    /// A request was served.
    fn charge(&mut self, pick: Pick) {
        let (session, class, cost) = (self.session(pick.record), pick.class.index(), pick.cost);
        let backlog = self.backlog();
        let gain = f64::from(cost) / f64::from(self.weights[session]);
        self.given[class][session] += gain;
        for other in (0..5).filter(|other| backlog[class][*other] && *other != session) {
            self.ahead[class][session][other] += gain;
            self.ahead[class][other][session] -= gain;
            let of = |session: usize| f64::from(RUN_MAX + LARGEST) / f64::from(self.weights[session]);
            let bound = of(session) + of(other) + ROUNDING * self.given[class][session];
            let ahead = self.ahead[class][session][other];
            assert!(ahead <= bound, "session {session} is {ahead} ahead of {other}, {bound} at most");
        }
        self.beyond[class] = 0;
        // Who was alone paid nothing, and owes what it owed.
        if cost > 0 {
            self.last[class] = cost;
        }
        for other in (0..3).filter(|other| *other != class && backlog[*other] != [false; 5]) {
            self.beyond[other] += cost;
            let sum = self.budgets.iter().sum::<u32>() - self.budgets[other];
            let rounds = self.last[other].div_ceil(self.budgets[other]) + 1;
            let bound = rounds * sum + 2 * LARGEST;
            assert!(self.beyond[other] <= bound, "class {other} was passed over by {}", self.beyond[other]);
        }
    }

    // ---- steps

    fn open(&mut self, session: u64) {
        let queues: Vec<u32> = (0..5).filter(|queue| SESSION_OF[*queue as usize] == session).collect();
        let volumes = [Some(VolumeId(0)), Some(VolumeId(1))];
        let index = session as usize;
        let group = self.in_group[index].then_some("group");
        self.scheduler.open_session(session, self.weights[index], group, &queues, &volumes);
        self.open[index] = true;
    }

    fn toggle(&mut self, session: u64) {
        let index = session as usize;
        if !self.open[index] {
            return self.open(session);
        }
        let busy = |record: &u32| {
            let out = [Place::Held, Place::Issued, Place::Arrived];
            self.session(*record) == index && out.contains(&self.places[*record as usize])
        };
        if (0..RECORDS).any(|record| busy(&record)) {
            return;
        }
        for queue in (0..5).filter(|queue| SESSION_OF[*queue as usize] == session) {
            while let Some(record) = self.scheduler.pop_of_queue(queue) {
                assert_eq!((self.places[record as usize], self.session(record)), (Place::Waits, index));
                self.flow(record).retain(|other| *other != record);
                self.places[record as usize] = Place::Free;
            }
            self.scheduler.close_queue(queue);
        }
        assert!(
            (0..RECORDS).all(|record| {
                self.places[record as usize] == Place::Free || self.session(record) != index
            })
        );
        self.open[index] = false;
        self.limits.remove(&(index + 2));
    }

    fn free(&mut self, record: u32) {
        self.places[record as usize] = Place::Free;
    }

    fn wait_in_turn(&mut self, record: u32) {
        self.places[record as usize] = Place::Waits;
        self.flow(record).push_back(record);
    }

    fn go_on(&mut self, record: u32) {
        self.scheduler.push_front(record);
        self.places[record as usize] = Place::Waits;
        self.flow(record).push_front(record);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push(arrival, later) => {
                let Some(record) = self.any(Place::Free, 0) else { return };
                if !self.open[SESSION_OF[arrival.queue as usize] as usize] {
                    return;
                }
                self.arrivals[record as usize] = *arrival;
                self.paid[record as usize] = false;
                if *later {
                    self.scheduler.arrive(record, arrival);
                    self.places[record as usize] = Place::Arrived;
                } else {
                    self.scheduler.push_new(record, arrival);
                    self.wait_in_turn(record);
                }
            }
            Step::PushBack(n) => {
                let Some(record) = self.any(Place::Arrived, *n) else { return };
                self.scheduler.push_back(record);
                self.wait_in_turn(record);
            }
            Step::Remove(n) => {
                let Some(record) = self.any(Place::Waits, *n) else { return };
                self.scheduler.remove(record);
                self.flow(record).retain(|other| *other != record);
                self.free(record);
            }
            Step::Pass(fates) => self.pass(fates),
            Step::Complete(n, again) => {
                let Some(record) = self.any(Place::Issued, *n) else { return };
                self.scheduler.completed(record, self.now);
                if *again { self.go_on(record) } else { self.free(record) }
            }
            Step::Unhold(n) => {
                let Some(record) = self.any(Place::Held, *n) else { return };
                self.go_on(record);
            }
            Step::Wait(time) => self.now += time,
            Step::Weight(session, weight) => {
                let index = *session as usize;
                assert_eq!(self.scheduler.set_weight(*session, *weight), self.open[index]);
                if self.open[index] {
                    self.weights[index] = *weight;
                    self.ahead = [[[0.0; 5]; 5]; 3];
                }
            }
            Step::Group(session, in_group) => {
                let index = *session as usize;
                let group = in_group.then_some("group");
                assert_eq!(self.scheduler.set_group(*session, group), self.open[index]);
                if self.open[index] {
                    self.in_group[index] = *in_group;
                }
            }
            Step::Limit(index, limit) => {
                let there = *index < 3 || self.open[*index - 2];
                assert_eq!(self.scheduler.set_limit(scope(*index), limit, self.now), there);
                if limit.is_unlimited() {
                    self.limits.remove(index);
                } else if there {
                    self.limits.insert(*index, Passed { limit: *limit, log: Vec::new() });
                }
            }
            Step::Budgets(budgets) => {
                self.scheduler.set_budgets(*budgets);
                (self.budgets, self.beyond) = (*budgets, [0; 3]);
            }
            Step::Toggle(back) => self.toggle(4 - *back as u64),
        }
        self.forget_idle();
        for class in Class::ALL {
            let waits = self.flows.iter().filter(|((_, _, of, _), _)| *of == class);
            let waits: usize = waits.map(|(_, flow)| flow.len()).sum();
            assert_eq!(self.scheduler.len(class), waits as u32, "requests waiting in {class:?}");
        }
        assert_eq!(self.scheduler.is_empty(), self.all(Place::Waits).is_empty());
    }

    // ---- a pass

    fn pass(&mut self, fates: &[Fate]) {
        self.scheduler.begin_pass(self.now);
        let mut issued = Vec::new();
        for fate in fates {
            if let Fate::TakeBack(count) = fate {
                self.take_back(&mut issued, *count);
                break;
            }
            let Some(pick) = self.scheduler.next(self.now) else {
                for (key, flow) in &self.flows {
                    assert!(!self.may_go(flow), "{key:?} may go, and nothing goes: {flow:?}");
                }
                break;
            };
            self.picked(pick);
            match fate {
                Fate::Issue => {
                    self.scheduler.issued(pick, self.now);
                    self.charge(pick);
                    self.places[pick.record as usize] = Place::Issued;
                    issued.push(pick);
                }
                Fate::Answer => {
                    self.charge(pick);
                    self.free(pick.record);
                }
                Fate::Hold => {
                    self.scheduler.held(pick);
                    self.places[pick.record as usize] = Place::Held;
                }
                Fate::PassOver => {
                    self.scheduler.pass_over(pick);
                    self.undo(pick);
                    self.passed_over.push(pick.record);
                }
                Fate::PutBack | Fate::TakeBack(_) => {
                    self.scheduler.put_back(pick);
                    self.undo(pick);
                    break;
                }
            }
            self.forget_idle();
        }
        self.scheduler.end_pass(self.now);
        self.passed_over.clear();
    }

    /// The newest that were issued in this pass. Bounds are looked at anew from here on.
    fn take_back(&mut self, issued: &mut Vec<Pick>, count: usize) {
        for pick in issued.drain(issued.len().saturating_sub(count)..).rev() {
            self.scheduler.taken_back(pick);
            self.undo(pick);
        }
        (self.ahead, self.beyond) = ([[[0.0; 5]; 5]; 3], [0; 3]);
    }

    /// It is the first of its flow, and its limits let it go.
    fn picked(&mut self, pick: Pick) {
        let record = pick.record;
        let arrival = self.arrivals[record as usize];
        assert_eq!(self.places[record as usize], Place::Waits, "{record} comes out once");
        let alone = pick.cost == 0 && self.all(Place::Waits).len() == 1;
        assert!(alone || pick.cost == cost_of(arrival.bytes), "{pick:?} of {arrival:?}");
        assert_eq!(pick.class, arrival.class);
        assert!(!self.passed_over.contains(&record), "it was passed over in this pass");
        assert_eq!(self.flow(record).pop_front(), Some(record), "the first of its flow");
        for scope in self.limits_of(record).collect::<Vec<_>>() {
            let passed = self.limits.get_mut(&scope).expect("a limit that is set");
            passed.check(self.now, arrival.writes, arrival.bytes.into());
        }
        // Who has gone before there was any limit is asked if it goes again.
        self.paid[record as usize] |= !self.limits.is_empty();
    }

    fn undo(&mut self, pick: Pick) {
        self.places[pick.record as usize] = Place::Waits;
        self.flow(pick.record).push_front(pick.record);
    }

    // ---- the end

    /// Longest that limits hold up what waits: each is busy for what passes it and for the debt of one request before.
    fn time_to_drain(&self) -> Nanos {
        let bytes: u64 = self.arrivals.iter().map(|arrival| u64::from(arrival.bytes)).sum();
        let mut seconds = 0.0;
        for passed in self.limits.values() {
            for (index, rate) in passed.limit.rates().into_iter().enumerate() {
                let Some(rate) = rate else { continue };
                let work = if index < 3 { u64::from(RECORDS) + 2 } else { bytes + (1 << 20) + 1 };
                seconds += work as f64 / rate.per_second as f64;
            }
        }
        (seconds * 1e9) as Nanos + u64::from(RECORDS) * 3 * MILLISECOND
    }

    /// Nothing comes any more: everything goes, as soon as limits let it.
    fn drain(&mut self) {
        (0..RECORDS).for_each(|_| {
            [Step::Complete(0, false), Step::Unhold(0), Step::PushBack(0)]
                .iter()
                .for_each(|step| self.step(step));
        });
        let end = self.now + self.time_to_drain();
        loop {
            self.step(&Step::Pass(vec![Fate::Issue; RECORDS as usize]));
            while self.any(Place::Issued, 0).is_some() {
                self.step(&Step::Complete(0, false));
            }
            if self.scheduler.is_empty() {
                break;
            }
            self.now = self.scheduler.wakes_at(self.now).max(self.now + 1);
            assert!(self.now <= end, "held up for longer than limits say: {:?}", self.all(Place::Waits));
        }
        assert_eq!(self.places, [Place::Free; RECORDS as usize]);
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.wakes_at(self.now), Nanos::MAX);
    }
}

fn run(budgets: Budgets, weights: [u32; 5], steps: &[Step]) {
    let mut model = Model::new(budgets, weights);
    steps.iter().for_each(|step| model.step(step));
    model.drain();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 2,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_is_asked_without_limits(
        budgets in prop::array::uniform3(1..40u32),
        weights in prop::array::uniform5(1..1000u32),
        steps in steps(false),
    ) {
        run(budgets, weights, &steps);
    }

    #[test]
    fn whatever_is_asked_with_limits(
        budgets in prop::array::uniform3(1..40u32),
        weights in prop::array::uniform5(1..1000u32),
        steps in steps(true),
    ) {
        run(budgets, weights, &steps);
    }
}
