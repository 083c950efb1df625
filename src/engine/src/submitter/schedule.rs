//! Stages 4 to 6: which request is next, and into the driver with it.

use ferrio_driver::{Op, Reserved, SubmitHalf};
use ferrio_shm::abi::errno;

use super::{Submitter, steps::Step};
use crate::{
    clock::Nanos,
    config::EngineError,
    kill_point,
    queue::{Class, Pick},
    scheduler::{Scope, Setting},
};

/// Requests of one queue and class, one after the other, that were issued and are not counted yet.
struct Issued {
    queue: u32,
    class: Class,
    requests: u64,
}

impl<S: SubmitHalf> Submitter<S> {
    pub(super) fn schedule(&mut self, now: Nanos) -> u32 {
        if self.scheduler.is_idle() {
            return 0;
        }
        self.scheduler.begin_pass(now);
        let submitted = self.submit_next(now);
        if self.driver.staged() > 0 {
            kill_point!("before-submit");
            self.commit();
            kill_point!("after-submit");
        }
        self.scheduler.end_pass(now);
        submitted
    }

    fn submit_next(&mut self, now: Nanos) -> u32 {
        let (mut submitted, mut op) = (0, Op::NOP);
        let mut issued = Issued { queue: 0, class: Class::Prio, requests: 0 };
        let mut unused: Option<Reserved> = None;
        while !self.scheduler.is_empty() {
            let slot = unused.take().or_else(|| self.driver.reserve());
            // Without one a request can still join an operation that has one.
            if slot.is_none() && !self.plug.expects_more() {
                break;
            }
            let Some(pick) = self.scheduler.next(now) else {
                unused = slot;
                break;
            };
            let last = self.scheduler.is_empty();
            let record = pick.record;
            let request = &self.shared.requests[record as usize];
            let queue = request.queue();
            let late = request.is_tracked() && self.is_late(record, now);
            let step = if late { Err(errno::ETIMEDOUT) } else { self.next_step(queue, record, &mut op) };
            let step = match step {
                Ok(Step::Held) => {
                    unused = slot;
                    self.scheduler.held(pick);
                    continue;
                }
                Ok(step) => step,
                Err(errno) => {
                    unused = slot;
                    self.answer(record, -errno);
                    continue;
                }
            };
            // What comes alone has nobody to join, and nobody to wait for.
            let joins = step == Step::Transfer && !(last && self.plug.is_empty());
            if joins && !self.plug.is_empty() && self.join_open(&op, pick) {
                unused = slot;
                self.scheduler.issued(pick, now);
                submitted += 1;
                continue;
            }
            let Some(slot) = slot else {
                self.scheduler.put_back(pick);
                break;
            };
            if self.shares.is_used_up(&op, self.driver.in_flight()) {
                unused = Some(slot);
                self.scheduler.pass_over(pick);
                continue;
            }
            self.shares.take(record, &op);
            if joins && self.plug.watches(op.offset, op.end()) {
                if let Err(slot) = self.submit_of_a_stream(slot, pick, &op, &mut submitted) {
                    self.was_refused(slot, pick);
                    break;
                }
            } else {
                match self.submit(slot, record, step, &op) {
                    Ok(true) => self.count_first(pick, queue, &mut issued),
                    Ok(false) => {}
                    Err(slot) => {
                        self.was_refused(slot, pick);
                        break;
                    }
                }
            }
            self.scheduler.issued(pick, now);
            submitted += 1;
        }
        if let Some(slot) = unused {
            self.driver.cancel_reserved(slot);
        }
        while !self.plug.is_empty() && self.unplug(&mut submitted) {}
        self.count_run(&mut issued);
        submitted
    }

    /// As [`Self::count_first_issue`], counted together with those before it.
    #[inline]
    fn count_first(&mut self, pick: Pick, queue: u32, issued: &mut Issued) {
        if self.shared.requests[pick.record as usize].is_tracked() {
            self.issue_tracked(pick.record);
        }
        if (issued.queue, issued.class) != (queue, pick.class) {
            self.count_run(issued);
            (issued.queue, issued.class) = (queue, pick.class);
        }
        issued.requests += 1;
    }

    fn count_run(&self, issued: &mut Issued) {
        if issued.requests > 0 {
            let queue = &self.sessions.queue(issued.queue).shared;
            let requests = std::mem::take(&mut issued.requests);
            self.shared.count(queue, issued.class, requests, |counters| &counters.issued);
        }
    }

    /// The driver has no room for a request, whose slot this is.
    #[cold]
    fn was_refused(&mut self, slot: Reserved, pick: Pick) {
        self.driver.cancel_reserved(slot);
        self.shares.give_back(pick.record);
        self.scheduler.put_back(pick);
    }

    /// Changes how requests are scheduled, from now on.
    pub(super) fn set_schedule(&mut self, setting: Setting) -> Result<(), EngineError> {
        setting.check()?;
        let (done, session_id) = match setting {
            Setting::Weight { session_id, weight } => {
                (self.scheduler.set_weight(session_id, weight), session_id)
            }
            Setting::Group { session_id, group } => {
                (self.scheduler.set_group(session_id, group.as_deref()), session_id)
            }
            Setting::Limit { scope, limit } => {
                if let Scope::Volume(volume) = scope {
                    // Not for one that is being removed: its id may come to be another's.
                    self.volumes.grant(volume).ok_or_else(|| EngineError::NoVolume {
                        engine: self.sessions.name().to_owned(),
                        volume: volume.0,
                    })?;
                }
                let session_id = if let Scope::Session(session_id) = scope { session_id } else { 0 };
                (self.scheduler.set_limit(scope, &limit, self.now), session_id)
            }
            Setting::Latency(goal) => {
                self.scheduler.set_latency_goal(goal);
                (true, 0)
            }
            Setting::Budgets(budgets) => {
                self.scheduler.set_budgets(budgets);
                (true, 0)
            }
        };
        if done { Ok(()) } else { Err(EngineError::NoSession { session: session_id }) }
    }

    pub(super) fn commit(&mut self) {
        self.shared.batches.add(1);
        if let Err(error) = self.driver.commit() {
            // The batch stays staged and is committed again in the next turn.
            tracing::error!(%error, staged = self.driver.staged(), "the kernel did not take a batch; it is tried again");
        }
    }
}
