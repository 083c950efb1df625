//! Stage 4: which request is next. Pure: no I/O, no threads, `now` is an argument, nothing is allocated in steady state.
//!
//! | question | answered by | in terms of |
//! |---|---|---|
//! | which class | [`rounds`]: prio first, within budgets | cost |
//! | which session of the class | [`fair`]: the one furthest behind for its weight | cost / weight |
//! | which of its requests | [`crate::queue`]: its flows in turn, each in the order it came | requests |
//! | may it go now | [`limits`]: volume, session and group, over [`bucket`]s | requests and bytes per second |
//! | may bulk go beside prio | [`latency`]: a cap on bulk in flight | what the device takes |
//!
//! Cost is 1 for each 16 KiB begun ([`crate::queue::cost_of`]). A turn is at most [`RUN_MAX`] of it. What a request must wait for is never waited for by others
//! than those behind it in its flow, and waiting changes nobody's turn: who waits is not charged.
//!
//! A pass is [`Scheduler::begin_pass`], then [`Scheduler::next`] with [`Scheduler::issued`] or one of the ways back
//! ([`Scheduler::put_back`], [`Scheduler::pass_over`]) for each request, then [`Scheduler::end_pass`].

pub mod bucket;
pub mod fair;
pub mod latency;
pub mod limits;
pub mod rounds;
mod snapshot;

use std::collections::HashMap;

use self::{
    bucket::RATE_MAX,
    latency::{LatencyGoal, LatencyTarget},
    limits::{Limit, LimitKey, Limits},
    rounds::{Rounds, Starvation},
};
pub use self::{
    fair::{DEFAULT_WEIGHT, WEIGHT_MAX},
    rounds::{Budgets, DEFAULT_BUDGETS},
    snapshot::{ClassSchedule, LatencySchedule, LimitSchedule, ScheduleSnapshot, SessionSchedule},
};
use crate::{
    clock::Nanos,
    config::EngineError,
    queue::{Arrival, Class, ClassQueues, Pick},
    session::VolumeId,
    timeout::{self, Timers},
};

/// Longest time between two looks at a limit, nanoseconds: what the timers hold.
const THROTTLE_MAX: Nanos = 3_600_000_000_000;

/// Cost that a session may take in one turn; the last request of a turn may cost more. Shares hold to within a turn each.
pub const RUN_MAX: u32 = 8;

/// Greatest latency that prio can be promised: a minute.
const LATENCY_MAX: Nanos = 60_000_000_000;

/// What a limit is set on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All requests for a volume.
    Volume(VolumeId),
    /// All requests of a session, by its id.
    Session(u64),
    /// All requests of the sessions in a group, by its name.
    Group(String),
}

/// What is set while requests run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// See [`Scheduler::set_weight`].
    Weight {
        /// Session id.
        session_id: u64,
        /// 1 ..= [`fair::WEIGHT_MAX`].
        weight: u32,
    },
    /// See [`Scheduler::set_group`].
    Group {
        /// Session id.
        session_id: u64,
        /// Name of the group.
        group: Option<String>,
    },
    /// See [`Scheduler::set_limit`].
    Limit {
        /// On what.
        scope: Scope,
        /// How much.
        limit: Limit,
    },
    /// See [`Scheduler::set_latency_goal`].
    Latency(LatencyGoal),
    /// See [`Scheduler::set_budgets`].
    Budgets(Budgets),
}

impl Setting {
    /// # Errors
    /// A value is out of its range.
    pub fn check(&self) -> Result<(), EngineError> {
        let check = EngineError::check_setting;
        match self {
            Self::Weight { weight, .. } => check("weight", (*weight).into(), 1..=fair::WEIGHT_MAX.into()),
            Self::Limit { limit, .. } => limit.rates().into_iter().flatten().try_for_each(|rate| {
                check("rate", rate.per_second, 1..=RATE_MAX)?;
                check("burst", rate.burst.unwrap_or(1), 1..=RATE_MAX)
            }),
            Self::Latency(LatencyGoal::Within(limit)) => {
                check("latency in nanoseconds", *limit, 1..=LATENCY_MAX)
            }
            Self::Latency(LatencyGoal::Relative(percent)) => {
                check("latency in per cent", (*percent).into(), 100..=10_000)
            }
            Self::Budgets(budgets) => budgets
                .iter()
                .try_for_each(|budget| check("budget", (*budget).into(), 1..=rounds::BUDGET_MAX.into())),
            Self::Group { .. } | Self::Latency(LatencyGoal::Off) => Ok(()),
        }
    }
}

/// A session, as it is known by its id.
struct Member {
    key: u32,
    group: Option<String>,
}

/// The requests of one engine from acceptance to issue. Owned by its Submitter.
pub struct Scheduler {
    queues: ClassQueues,
    rounds: Rounds,
    starvation: Starvation,
    limits: Limits,
    /// Flows that limits hold back, by their first record.
    throttled: Timers,
    target: LatencyTarget,
    /// When prio was issued, by record.
    issued_at: Box<[Nanos]>,
    /// First records of flows that wait for a slot of their volume.
    passed_over: Vec<u32>,
    /// Of this pass.
    bulk_room: u32,
    served: [bool; 3],
    throttles: u64,
    // ---- what the control plane says
    members: HashMap<u64, Member>,
    /// By key.
    sessions: Vec<u64>,
    volumes: Vec<Option<LimitKey>>,
    named: HashMap<Scope, LimitKey>,
}

impl Scheduler {
    /// For records `0..requests_max` and a driver of `depth` slots.
    pub fn new(requests_max: u32, depth: u32, budgets: Budgets) -> Self {
        Self {
            queues: ClassQueues::new(requests_max),
            rounds: Rounds::new(budgets),
            starvation: Starvation::default(),
            limits: Limits::default(),
            throttled: Timers::new(requests_max),
            target: LatencyTarget::new(depth),
            issued_at: vec![0; requests_max as usize].into(),
            passed_over: Vec::with_capacity(requests_max as usize),
            bulk_room: u32::MAX,
            served: [false; 3],
            throttles: 0,
            members: HashMap::new(),
            sessions: Vec::new(),
            volumes: Vec::new(),
            named: HashMap::new(),
        }
    }

    // ---- sessions and what is set for them

    /// A session came, with the queues that it has in this engine. `volumes` are the engine's ids of what its requests name.
    pub fn open_session(
        &mut self,
        session_id: u64,
        weight: u32,
        group: Option<&str>,
        queues: &[u32],
        volumes: &[Option<VolumeId>],
    ) {
        if queues.is_empty() {
            return;
        }
        let key = self.queues.add_session(weight);
        queues.iter().for_each(|queue| self.queues.add_queue(*queue, key, volumes));
        if self.sessions.len() <= key as usize {
            self.sessions.resize(key as usize + 1, 0);
        }
        self.sessions[key as usize] = session_id;
        self.members.insert(session_id, Member { key, group: group.map(str::to_owned) });
        self.apply_limits(session_id);
    }

    /// A queue went, with nothing waiting or in flight; with its last queue the session goes, and its limit.
    pub fn close_queue(&mut self, queue: u32) {
        let Some(key) = self.queues.remove_queue(queue) else { return };
        let session_id = self.sessions[key as usize];
        self.members.remove(&session_id);
        if let Some(limit) = self.named.remove(&Scope::Session(session_id)) {
            self.limits.set(Some(limit), &Limit::default(), 0);
        }
    }

    /// Changes the weight of a session. False: there is no such session.
    pub fn set_weight(&mut self, session_id: u64, weight: u32) -> bool {
        let Some(member) = self.members.get(&session_id) else { return false };
        self.queues.set_weight(member.key, weight);
        true
    }

    /// Puts a session into a group, which need not have a limit yet, or into none. False: there is no such session.
    pub fn set_group(&mut self, session_id: u64, group: Option<&str>) -> bool {
        let Some(member) = self.members.get_mut(&session_id) else { return false };
        member.group = group.map(str::to_owned);
        self.apply_limits(session_id);
        self.unthrottle_all();
        true
    }

    /// Sets, changes or takes away a limit; see [`Limits::set`]. A group's limit stays when its sessions go. False: there
    /// is no such session.
    pub fn set_limit(&mut self, scope: Scope, limit: &Limit, now: Nanos) -> bool {
        if let Scope::Session(session_id) = &scope
            && !self.members.contains_key(session_id)
        {
            return false;
        }
        let key = self.limits.set(self.named.get(&scope).copied(), limit, now);
        match key {
            Some(key) => self.named.insert(scope.clone(), key),
            None => self.named.remove(&scope),
        };
        match scope {
            Scope::Volume(volume) => {
                let index = volume.0 as usize;
                if self.volumes.len() <= index {
                    self.volumes.resize(index + 1, None);
                }
                self.volumes[index] = key;
            }
            Scope::Session(session_id) => self.apply_limits(session_id),
            Scope::Group(name) => self.apply_group(&name),
        }
        self.unthrottle_all();
        true
    }

    /// Takes all limits away.
    pub fn lift_limits(&mut self, now: Nanos) {
        let scopes: Vec<Scope> = self.named.keys().cloned().collect();
        scopes.into_iter().for_each(|scope| {
            self.set_limit(scope, &Limit::default(), now);
        });
    }

    /// Says how fast prio is to be.
    pub fn set_latency_goal(&mut self, goal: LatencyGoal) {
        self.target.set_goal(goal);
    }

    /// Changes what each class may take of a round.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        self.rounds.set_budgets(budgets);
    }

    fn apply_group(&mut self, name: &str) {
        let of_group = |member: &Member| member.group.as_deref() == Some(name);
        let sessions: Vec<u64> =
            self.members.iter().filter(|(_, member)| of_group(member)).map(|(id, _)| *id).collect();
        sessions.into_iter().for_each(|session_id| self.apply_limits(session_id));
    }

    fn apply_limits(&mut self, session_id: u64) {
        let Some(member) = self.members.get(&session_id) else { return };
        let own = self.named.get(&Scope::Session(session_id)).copied();
        let group =
            member.group.as_ref().and_then(|name| self.named.get(&Scope::Group(name.clone())).copied());
        self.queues.set_limits(member.key, own, group);
    }

    // ---- what waits

    /// A request was accepted that nothing holds back but its turn.
    #[inline]
    pub fn push_new(&mut self, record: u32, arrival: &Arrival) {
        self.queues.push_new(record, arrival);
    }

    /// A request was accepted; it waits from [`Self::push_back`] on.
    pub fn arrive(&mut self, record: u32, arrival: &Arrival) {
        self.queues.arrive(record, arrival);
    }

    /// Nothing holds a request back any more but its turn.
    pub fn push_back(&mut self, record: u32) {
        self.end_run();
        self.queues.push_back(record);
    }

    /// A request goes on: it is the next of its flow.
    pub fn push_front(&mut self, record: u32) {
        self.end_run();
        self.forget_throttle(record);
        self.queues.push_front(record);
    }

    /// Takes out a request that waits.
    pub fn remove(&mut self, record: u32) {
        self.end_run();
        self.forget_throttle(record);
        self.queues.remove(record);
    }

    /// Takes any request of a queue that waits: for a session that ends.
    pub fn pop_of_queue(&mut self, queue: u32) -> Option<u32> {
        let record = self.queues.first_of_queue(queue)?;
        self.remove(record);
        Some(record)
    }

    /// Nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Requests waiting in a class.
    pub fn len(&self, class: Class) -> u32 {
        self.queues.len(class)
    }

    /// A pass has nothing to look at.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.starvation.is_over()
    }

    /// When a pass may find more than one now, though nothing comes and nothing is answered.
    pub fn wakes_at(&self, now: Nanos) -> Nanos {
        let bulk_waits = self.queues.backlog()[Class::Prio.index() + 1..] != [false; 2];
        let uncapped = if bulk_waits { self.target.changes_at(now) } else { Nanos::MAX };
        self.throttled.next().min(uncapped)
    }

    // ---- a pass

    /// What has waited for long enough may go.
    #[inline]
    pub fn begin_pass(&mut self, now: Nanos) {
        self.served = [false; 3];
        if now >= self.throttled.next() {
            self.unthrottle(now);
        }
        self.bulk_room = self.target.cap(now).saturating_sub(self.target.bulk());
    }

    /// Classes that have requests which may go in this pass, unless a limit that was not asked holds them, by class index.
    #[inline]
    pub fn backlog(&self) -> [bool; 3] {
        let backlog = self.queues.backlog();
        if self.bulk_room == 0 { [backlog[Class::Prio.index()], false, false] } else { backlog }
    }

    /// The next request, charged to its class and session and let through by its limits.
    #[inline]
    pub fn next(&mut self, now: Nanos) -> Option<Pick> {
        if self.limits.is_empty()
            && self.bulk_room > 0
            && let Some(pick) = self.queues.pop_alone()
        {
            return Some(pick);
        }
        loop {
            match self.queues.pop() {
                None => self.begin_run()?,
                Some(pick) if self.limits.is_empty() || self.pay(pick, now) => return Some(pick),
                Some(_) => {}
            }
        }
    }

    /// It is somebody else's turn.
    #[inline(never)]
    fn begin_run(&mut self) -> Option<()> {
        self.end_run();
        self.queues.join_others();
        let bulk = self.bulk_room > 0;
        let held = || Class::ALL.map(|class| (bulk || class == Class::Prio) && self.queues.len(class) > 0);
        let class = self.rounds.next(self.backlog(), held)?;
        // So that no run outlasts the round of its class, or has more in it than bulk may have in the device.
        let room = if class == Class::Prio { RUN_MAX } else { self.bulk_room.min(RUN_MAX) };
        self.queues.begin_run(class, self.rounds.left(class).clamp(1, room));
        Some(())
    }

    #[inline]
    fn end_run(&mut self) {
        if self.queues.has_run() {
            self.charge_run();
        }
    }

    #[inline(never)] // once for many requests, if not for one that is alone
    fn charge_run(&mut self) {
        if let Some((class, cost)) = self.queues.end_run() {
            self.rounds.charge(class, cost);
        }
    }

    /// The request that comes after this one, which was next, in its flow.
    #[inline]
    pub fn next_of_flow(&self, record: u32) -> Option<u32> {
        self.queues.next_of_flow(record)
    }

    /// The driver has no room: the request is where it was. The newest first, if there are more.
    pub fn put_back(&mut self, pick: Pick) {
        self.refund(pick);
        self.forget_throttle(pick.record);
        self.queues.put_back(pick.record);
    }

    /// Its volume has its share of the slots: its flow waits until the next pass.
    pub fn pass_over(&mut self, pick: Pick) {
        self.shut(pick);
        self.passed_over.push(pick.record);
    }

    /// Something else than its turn holds it back now, and [`Self::push_front`] brings it back.
    pub fn held(&mut self, pick: Pick) {
        self.refund(pick);
    }

    fn refund(&mut self, pick: Pick) {
        if self.queues.refund(pick) {
            self.rounds.refund(pick.class, pick.cost);
        }
    }

    fn shut(&mut self, pick: Pick) {
        self.refund(pick);
        self.end_run();
        self.queues.shut(pick.record);
    }

    /// The driver has a request, or a step of it.
    #[inline]
    pub fn issued(&mut self, pick: Pick, now: Nanos) {
        self.served[pick.class.index()] = true;
        if pick.class == Class::Prio {
            self.issued_at[pick.record as usize] = now;
        } else {
            self.bulk_room = self.bulk_room.saturating_sub(1);
        }
        self.target.on_issue(pick.class, now);
    }

    /// As [`Self::put_back`], of a request that the driver was said to have.
    pub fn taken_back(&mut self, pick: Pick) {
        self.target.taken_back(pick.class);
        self.put_back(pick);
    }

    /// The driver is done with it.
    #[inline]
    pub fn completed(&mut self, record: u32, now: Nanos) {
        let class = self.queues.class(record);
        let since = if class == Class::Prio { self.issued_at[record as usize] } else { now };
        self.target.on_complete(class, now.saturating_sub(since), now);
    }

    /// What was passed over may go in the next pass, and who waits still is counted.
    #[inline]
    pub fn end_pass(&mut self, now: Nanos) {
        self.end_run();
        self.queues.join_others();
        while let Some(record) = self.passed_over.pop() {
            self.queues.reopen(record);
        }
        self.starvation.note(self.queues.backlog(), self.served, now);
    }

    /// Time that each class had requests waiting while others were served instead, by class index.
    pub fn starved(&self) -> [Nanos; 3] {
        self.starvation.total()
    }

    /// How often a limit held a flow back.
    pub fn throttles(&self) -> u64 {
        self.throttles
    }

    /// The latency target.
    pub fn latency(&self) -> &LatencyTarget {
        &self.target
    }

    // ---- limits

    /// True if limits let the request go. Else its flow waits until they may.
    #[inline(never)]
    fn pay(&mut self, pick: Pick, now: Nanos) -> bool {
        let record = pick.record;
        let Some(payer) = self.queues.payer(record) else { return true };
        let volume = self.volumes.get(payer.volume as usize).copied().flatten();
        match self.limits.pass([volume, payer.session, payer.group], payer.cost, now, timeout::fires_at) {
            Ok(()) => {
                self.queues.paid(record);
                true
            }
            Err(again) => {
                self.throttles += 1;
                self.shut(pick);
                self.throttled.insert(record, again.min(now + THROTTLE_MAX), now);
                false
            }
        }
    }

    #[inline(never)]
    fn unthrottle(&mut self, now: Nanos) {
        while let Some(record) = self.throttled.pop_expired(now) {
            self.queues.reopen(record);
        }
    }

    /// What limits are has changed: everybody asks again.
    fn unthrottle_all(&mut self) {
        while let Some(record) = self.throttled.pop_any() {
            self.queues.reopen(record);
        }
    }

    /// The flow of this record is about to have another first one.
    fn forget_throttle(&mut self, record: u32) {
        if let Some(head) = self.queues.shut_head(record) {
            self.throttled.remove(head);
        }
    }
}

#[cfg(test)]
mod tests;
