//! What a session that was granted cancel or order has more: requests that wait for others, until a time, or until they are
//! taken back. Requests of other sessions are not *tracked* and never come here.
//!
//! A tracked request that is not issued is in one place: held back or let go in [`crate::order`], or behind a fence
//! ([`crate::fences`]) or a lock ([`crate::locks`]), or in its class queue. So whoever takes it out of there answers it, and nobody else does.

use std::time::Duration;

use ferrio_driver::SubmitHalf;
use ferrio_shm::{
    abi::{Opcode, errno, features, sqe_flags},
    entry::Sqe,
};

use super::{
    SLEEP_MAX, Submitter,
    take::{Effect, arrival},
};
use crate::{
    cancel::Found,
    clock::Nanos,
    kill_point,
    order::Standing,
    request::Stage,
    session::has_volume,
    stats::{Counter, WaitCounters},
};

/// The features that make a session's requests tracked.
pub(super) const TRACKED: u64 = features::CANCEL | features::ORDER;

impl<S: SubmitHalf> Submitter<S> {
    /// A request of such a session was accepted; `after` is its predecessor in its chain.
    pub(super) fn track(&mut self, record: u32, sqe: &Sqe, after: Option<u32>, now: Nanos) {
        let request = &self.shared.requests[record as usize];
        let queue = request.queue();
        let rights = self.sessions.rights(queue);
        let (order, cancel) = (rights.has(features::ORDER), rights.has(features::CANCEL));
        let op = Opcode::try_from(sqe.op).unwrap_or(Opcode::Nop);
        self.scheduler.arrive(record, &arrival(queue, request.class(), sqe));
        request.track(op == Opcode::Cancel);
        let free = !order || {
            let volume = has_volume(op).then_some(sqe.volume);
            let barrier = sqe.flags & sqe_flags::BARRIER != 0;
            self.order.admit(record, &Standing { queue, volume, barrier, after })
        };
        if free && op == Opcode::Cancel {
            return self.effects.push(Effect::Cancel(record));
        }
        if cancel {
            self.index.insert(record, queue, sqe.user_data);
            if let Some(deadline) = request.deadline() {
                self.timers.insert(record, deadline, now);
            }
        }
        if free {
            self.scheduler.push_back(record);
        } else {
            self.count_held(queue);
        }
    }

    /// A tracked request is over: others may have waited for it.
    #[inline(never)] // out of the way of requests that are not tracked
    pub(super) fn untrack(&mut self, record: u32) {
        self.index.remove(record);
        self.timers.remove(record);
        self.order.finish(record, self.shared.requests[record as usize].succeeded());
        while let Some(record) = self.order.pop_broken() {
            self.count(record, |counters| &counters.broken);
            self.count_held(self.shared.requests[record as usize].queue());
            self.answer(record, -errno::ECANCELED);
        }
        if self.shared.requests[record as usize].breaks_chain() {
            // Those behind it are decided: see `journal`.
            kill_point!("before-free");
            self.journal.free(record);
            kill_point!("after-free");
        }
    }

    /// Starts what nothing holds back any more.
    pub(super) fn start_ready(&mut self) {
        while let Some(record) = self.order.pop_ready() {
            let request = &self.shared.requests[record as usize];
            let queue = request.queue();
            self.count_held(queue);
            if self.sessions.is_closing(queue) {
                self.answer(record, -errno::ECANCELED);
            } else if request.is_cancel() {
                self.cancel(record);
            } else {
                self.scheduler.push_back(record);
            }
        }
    }

    /// Carries a cancel out.
    pub(super) fn cancel(&mut self, record: u32) {
        if self.shared.requests[record as usize].is_owner_dead() {
            return self.answer(record, -errno::EOWNERDEAD);
        }
        // Not to be found by itself.
        self.index.remove(record);
        let queue = self.shared.requests[record as usize].queue();
        let result = match self.index.find(queue, self.journal.sqe(record).arg) {
            Found::Waiting(target) => {
                self.count(target, |counters| &counters.cancelled);
                self.take_back(target, errno::ECANCELED);
                0
            }
            Found::Issued => -errno::EALREADY,
            Found::Nothing => -errno::ENOENT,
        };
        self.answer(record, result);
    }

    /// Answers a request that was not issued.
    fn take_back(&mut self, record: u32, errno: i32) {
        let request = &self.shared.requests[record as usize];
        debug_assert_eq!((request.stage(), request.was_issued()), (Stage::Queued, false));
        self.pull_out(record);
        self.answer(record, -errno);
    }

    /// Takes a request out of where it waits.
    pub(super) fn pull_out(&mut self, record: u32) {
        let request = &self.shared.requests[record as usize];
        if self.locks.holds(record) {
            self.unlock(record);
        } else if self.order.withdraw(record) {
            self.count_held(request.queue());
        } else if !self.fences.withdraw(record) {
            self.scheduler.remove(record);
        }
    }

    /// Answers those whose time is over.
    pub(super) fn expire(&mut self, now: Nanos) -> u32 {
        let mut expired = 0;
        while let Some(record) = self.timers.pop_expired(now) {
            expired += 1;
            self.count(record, |counters| &counters.timed_out);
            self.take_back(record, errno::ETIMEDOUT);
        }
        if expired > 0 {
            self.start_ready();
        }
        expired
    }

    /// A tracked request is next, and comes too late: it is to be answered ETIMEDOUT. The timers are late by up to a tick; this
    /// is the last look.
    #[inline(never)] // out of the way of requests that are not tracked
    pub(super) fn is_late(&self, record: u32, now: Nanos) -> bool {
        let request = &self.shared.requests[record as usize];
        let late = !request.was_issued() && request.overdue(now);
        if late {
            self.count(record, |counters| &counters.timed_out);
        }
        late
    }

    /// A tracked request was issued: it can neither be taken back nor be late any more.
    #[inline(never)] // as above
    pub(super) fn issue_tracked(&mut self, record: u32) {
        self.index.issue(record);
        self.timers.remove(record);
    }

    /// Takes out any request of a queue that was not issued, or whose rest was not.
    pub(super) fn pop_waiting(&mut self, queue: u32) -> Option<u32> {
        let Some(record) = self.order.pop_held(queue) else {
            return self.scheduler.pop_of_queue(queue);
        };
        self.count_held(queue);
        Some(record)
    }

    /// How long the Submitter may sleep: no longer than to the next deadline, or to when a limit lets something go.
    pub(super) fn sleep_limit(&self, now: Nanos) -> Duration {
        let next = self.timers.next().min(self.scheduler.wakes_at(now));
        Duration::from_nanos(next.saturating_sub(now)).min(SLEEP_MAX)
    }

    pub(super) fn count(&self, record: u32, counter: impl Fn(&WaitCounters) -> &Counter) {
        let queue = self.shared.requests[record as usize].queue();
        counter(&self.shared.waits).add(1);
        counter(&self.sessions.queue(queue).shared.waits).add(1);
    }

    fn count_held(&self, queue: u32) {
        self.shared.waits.held.set(self.order.held().into());
        self.sessions.queue(queue).shared.waits.held.set(self.order.held_of(queue).into());
    }
}
