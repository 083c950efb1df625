//! Stages 2 to 6: the Submitter.

use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

use ferrio_driver::{DriverInfo, Reserved, Segment, SubmitHalf, Tag};
use ferrio_shm::{abi::limits, entry::Sqe};

mod chains;
mod commands;
mod drain;
mod merging;
mod resume;
mod schedule;
mod steps;
mod take;
mod volumes;
mod waiting;

use self::{
    chains::Saving,
    take::{Effect, TAKE_BATCH},
};
use crate::{
    bell::{Bell, WaitsFor},
    cancel::Index,
    clock::{self, MICROSECOND, Nanos},
    completion::{Post, Return, SubmitterLink},
    dormant::Dormant,
    fences::Fences,
    inject::Inbox,
    journal::Journal,
    locks::Locks,
    merge::{MergeLimits, plug::Plug},
    order::Order,
    request::Stage,
    scheduler::{Budgets, Scheduler},
    shares::Shares,
    stats::{Counter, Shared, SubmitterCounters},
    table::{Ended, Sessions},
    timeout::Timers,
    volumes::Volumes,
};

/// How often a busy Submitter looks for sessions that were asleep.
const DOORBELL_INTERVAL: Nanos = 25 * MICROSECOND;
/// How long a queue is polled in vain before it has to ring again.
const QUEUE_IDLE: Nanos = 100 * MICROSECOND;
/// Longest sleep: bounds what a lost wake-up could cost, and costs an idle daemon one wake-up in this time.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The Submitter thread's state.
pub struct Submitter<S> {
    driver: S,
    shared: Arc<Shared>,
    journal: Journal,
    link: SubmitterLink,
    bell: Arc<Bell>,
    /// The Poller's, where there is one.
    poller: Option<Arc<Bell>>,
    inbox: Inbox,
    sessions: Sessions,
    volumes: Volumes,
    fences: Fences,
    locks: Locks,
    shares: Shares,
    /// Of the vectored request that is being submitted.
    segments: Vec<Segment>,
    scheduler: Scheduler,
    /// Empty between passes.
    plug: Plug<Reserved>,
    /// Of this turn.
    now: Nanos,
    /// Free records.
    free: Vec<u32>,
    /// Requests accepted so far: the order of acceptance.
    sequence: u64,
    /// Where in the list of polled queues the next turn starts.
    first: usize,
    doorbells_seen: Nanos,
    /// What drain waits for, once it was asked for.
    drained: Option<Box<dyn FnOnce() + Send>>,
    draining: bool,
    stopped: bool,
    /// Answers were posted in this turn.
    posted: bool,
    order: Order,
    timers: Timers,
    index: Index,
    /// The chain that is being taken.
    chain: Vec<Sqe>,
    /// A queue whose chain waits for records, which the others leave to it.
    saving: Option<Saving>,
    /// What follows from the acceptance of the SQEs that are being taken.
    effects: Vec<Effect>,
    /// Sessions of the daemon before.
    dormant: Dormant,
}

/// What a Submitter is put together from.
pub struct Parts<S> {
    pub(crate) name: String,
    pub(crate) driver: S,
    pub(crate) shared: Arc<Shared>,
    pub(crate) journal: Journal,
    pub(crate) link: SubmitterLink,
    pub(crate) bell: Arc<Bell>,
    pub(crate) poller: Option<Arc<Bell>>,
    pub(crate) inbox: Inbox,
    pub(crate) budgets: Budgets,
    pub(crate) merge: MergeLimits,
    pub(crate) depth: u32,
    pub(crate) sessions_max: u32,
    pub(crate) dormant: Dormant,
    pub(crate) sequence: u64,
}

impl<S: SubmitHalf> Submitter<S> {
    /// # Errors
    /// No epoll, or no random numbers.
    pub fn new(parts: Parts<S>) -> io::Result<Self> {
        let requests_max = u32::try_from(parts.shared.requests.len()).unwrap_or(u32::MAX);
        let (dormant, queues_max) = (parts.dormant, parts.journal.cells());
        Ok(Self {
            sessions: Sessions::new(parts.name, &parts.bell, parts.sessions_max, queues_max, &dormant)?,
            volumes: Volumes::new(requests_max),
            fences: Fences::new(requests_max),
            locks: Locks::new(requests_max),
            shares: Shares::new(parts.depth, requests_max),
            segments: Vec::with_capacity(limits::IOV_MAX as usize),
            driver: parts.driver,
            shared: parts.shared,
            journal: parts.journal,
            link: parts.link,
            bell: parts.bell,
            poller: parts.poller,
            inbox: parts.inbox,
            scheduler: Scheduler::new(requests_max, parts.depth, parts.budgets),
            plug: Plug::new(parts.merge),
            now: 0,
            free: (dormant.records()..requests_max).rev().collect(),
            sequence: parts.sequence,
            first: 0,
            doorbells_seen: 0,
            drained: None,
            draining: false,
            stopped: false,
            posted: false,
            order: Order::new(requests_max),
            timers: Timers::new(requests_max),
            index: Index::new(requests_max, [seed()?, seed()?]),
            chain: Vec::with_capacity(limits::CHAIN_MAX as usize),
            saving: None,
            effects: Vec::with_capacity(TAKE_BATCH.max(limits::CHAIN_MAX) as usize),
            dormant,
        })
    }

    /// The engine was told to end.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Requests in the driver.
    pub fn in_flight(&self) -> u32 {
        self.driver.in_flight()
    }

    /// Records that no request has.
    pub fn free_records(&self) -> u32 {
        self.free.len() as u32
    }

    /// What the driver is.
    pub fn driver_info(&self) -> DriverInfo {
        self.driver.info()
    }

    /// One pass over stages 2 to 6. Returns how much was done; 0 means nothing was there.
    pub fn turn(&mut self, now: Nanos) -> u32 {
        self.shared.submitter_turns.add(1);
        self.now = now;
        let mut work = if self.inbox.is_empty() { 0 } else { self.take_commands() };
        work += self.take_returns();
        if now.saturating_sub(self.doorbells_seen) >= DOORBELL_INTERVAL {
            self.doorbells_seen = now;
            work += self.sessions.collect_doorbells(&self.bell, now);
            self.sessions.retire_idle(now.saturating_sub(QUEUE_IDLE));
            // Here too: during a drain nothing is taken, but rings can break.
            self.fault_marked();
        }
        work += u32::from(self.driver.continue_pinning());
        if now >= self.timers.next() {
            work += self.expire(now);
        }
        work += self.take_submissions(now);
        work += self.schedule(now);
        if std::mem::take(&mut self.posted)
            && let Some(poller) = &self.poller
        {
            poller.ring(false);
        }
        work
    }

    /// Answers a request that the driver does not have, and that waits nowhere.
    fn answer(&mut self, record: u32, result: i32) {
        // Before anything follows from it: a daemon after this one gives the same answer.
        self.journal.decide(record, result);
        let request = &self.shared.requests[record as usize];
        if !request.was_issued() {
            request.clear_deadline();
        }
        self.count_issue(record);
        self.index.remove(record);
        if self.link.posts.push(Post { record, result }).is_err() {
            unreachable!("the post ring has room for every record");
        }
        self.posted = true;
    }

    /// A request goes to the driver, or has its answer without it: it cannot be taken back any more. It counts as issued once.
    fn count_issue(&mut self, record: u32) {
        if self.shared.requests[record as usize].issue() {
            self.count_first_issue(record);
        }
    }

    fn count_first_issue(&mut self, record: u32) {
        self.count_by_class(record, |counters| &counters.issued);
        if self.shared.requests[record as usize].is_tracked() {
            self.issue_tracked(record);
        }
    }

    /// One more request of the class and queue of this one.
    fn count_by_class(&self, record: u32, counter: impl Fn(&SubmitterCounters) -> &Counter) {
        let request = &self.shared.requests[record as usize];
        let queue = &self.sessions.queue(request.queue()).shared;
        self.shared.count(queue, request.class(), 1, counter);
    }

    // ---- what comes back

    fn take_returns(&mut self) -> u32 {
        let mut taken = 0;
        // Those of a queue, one after the other, whose session does not know yet.
        let (mut queue, mut records) = (0, 0);
        while let Ok(message) = self.link.returns.pop() {
            taken += 1;
            match message {
                Return::Finished { record, tag } => {
                    match tag {
                        Some(tag) => self.release(record, tag),
                        // Another one of its operation has the slot.
                        None if self.shared.requests[record as usize].is_joined() => {
                            self.scheduler.completed(record, self.now);
                        }
                        None => {}
                    }
                    let of = self.free_record(record);
                    if of != queue && records > 0 {
                        self.settled(queue, std::mem::take(&mut records));
                    }
                    (queue, records) = (of, records + 1);
                }
                Return::Again { record, tag } => {
                    match tag {
                        Some(tag) => self.release(record, tag),
                        None => self.scheduler.completed(record, self.now),
                    }
                    self.issue_again(record);
                }
                Return::Step { record, tag, result } => self.finish_step(record, tag, result),
                Return::Faulted { queue, fault } => {
                    self.sessions.mark_fault(queue, fault);
                    self.fault_marked();
                }
            }
        }
        if records > 0 {
            self.settled(queue, records);
        }
        if self.order.has_ready() {
            self.start_ready();
        }
        taken
    }

    /// The driver is done with a request, or with a step of it.
    #[inline]
    fn release(&mut self, record: u32, tag: Tag) {
        self.driver.release(tag);
        self.shares.give_back(record);
        self.scheduler.completed(record, self.now);
    }

    fn issue_again(&mut self, record: u32) {
        if self.sessions.is_closing(self.shared.requests[record as usize].queue()) {
            self.abandon(record);
            return self.settle(record);
        }
        self.shared.resubmitted.add(1);
        self.requeue(record);
    }

    /// Nobody waits for the answer any more: the session has ended.
    fn abandon(&self, record: u32) {
        let request = &self.shared.requests[record as usize];
        let issued = request.was_issued();
        self.count_by_class(record, |counters| if issued { &counters.dropped } else { &counters.abandoned });
        self.journal.free(record);
        request.set_stage(Stage::Free);
    }

    /// A request is over.
    fn settle(&mut self, record: u32) {
        let queue = self.free_record(record);
        self.settled(queue, 1);
    }

    /// The record of a request that is over is free; [`Self::settled`] tells its session. Returns its queue.
    #[inline(always)] // on the way of every request
    fn free_record(&mut self, record: u32) -> u32 {
        let request = &self.shared.requests[record as usize];
        let queue = request.queue();
        if request.is_tracked() {
            self.untrack(record);
        }
        self.unlock(record);
        self.free.push(record);
        if self.volumes.waits_for_requests() {
            self.volumes.settle(&mut self.driver, record);
        }
        queue
    }

    /// Records of a queue are free.
    fn settled(&mut self, queue: u32, records: u32) {
        if let Some(ended) = self.sessions.settle(queue, records) {
            self.end(ended);
        }
        self.report_drained();
    }

    // ---- sessions

    /// Reports the rings that were found broken.
    #[inline]
    fn fault_marked(&mut self) {
        if self.sessions.has_marked() {
            self.report_marked();
        }
    }

    #[cold]
    fn report_marked(&mut self) {
        while let Some(fault) = self.sessions.fault_next() {
            self.shared.sessions_faulted.add(1);
            (fault.on_fault)(fault.text);
        }
    }

    fn close_session(&mut self, session_id: u64, done: Box<dyn FnOnce() + Send>) {
        let Some(slots) = self.sessions.begin_close(session_id, done) else { return };
        // Nobody comes back for what it is owed.
        slots.iter().for_each(|slot| self.journal.close_cell(*slot));
        // Should nothing be waiting or in flight, no settle() will end the session.
        if let Some(ended) = self.sessions.ended_by_id(session_id) {
            return self.end(ended);
        }
        // Those behind fences and locks first: what they let go on joins the class queues.
        for record in self.held_requests_of(&slots) {
            if !self.fences.withdraw(record) && !self.locks.holds(record) {
                continue; // one before it let it go on
            }
            self.abandon(record);
            self.settle(record);
            self.start_ready();
            if !self.sessions.is_open(session_id) {
                return;
            }
        }
        for slot in slots {
            while let Some(record) = self.pop_waiting(slot) {
                self.abandon(record);
                self.settle(record);
                self.start_ready();
                if !self.sessions.is_open(session_id) {
                    return;
                }
            }
        }
    }

    /// Nothing of the session is in flight: take it apart.
    fn end(&mut self, ended: Ended) {
        for slot in &ended.slots {
            self.order.remove_queue(*slot);
            self.scheduler.close_queue(*slot);
        }
        self.sessions.dismantle(&mut self.driver, ended, &self.link);
        if let Some(poller) = &self.poller {
            poller.ring(true);
        }
    }

    // ---- sleep

    /// Sleeps until there is something to do. Call when [`Self::turn`] (and the reaper, where the Submitter reaps) found
    /// nothing. `reaper_has_work` is asked after the announcement.
    ///
    /// # Errors
    /// The driver can not wait: a broken ring or descriptor.
    pub fn sleep(&mut self, reaper_has_work: impl FnOnce() -> bool) -> io::Result<()> {
        if !self.draining && !self.sessions.all_asleep() {
            self.sessions.resume(clock::now());
            self.fault_marked();
            return Ok(());
        }
        let idle = self.scheduler.is_empty()
            && !self.sessions.waits_for_returns()
            && !self.volumes.waits_for_requests()
            && self.order.held() == 0
            && !self.locks.any_held()
            && !self.draining;
        self.bell.announce(if idle { WaitsFor::Urgent } else { WaitsFor::Anything });
        if !self.inbox.is_empty() || !self.link.returns.is_empty() || reaper_has_work() {
            self.bell.retract();
            self.sessions.resume(clock::now());
            return Ok(());
        }
        self.shared.submitter_sleeps.add(1);
        let limit = self.sleep_limit(clock::now());
        let outcome = self.driver.sleep(self.sessions.epoll().as_fd(), Some(limit));
        self.bell.retract();
        let now = clock::now();
        self.doorbells_seen = now;
        self.sessions.resume(now);
        self.sessions.collect_doorbells(&self.bell, now);
        outcome
    }
}

fn seed() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}
