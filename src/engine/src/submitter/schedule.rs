//! Stages 4 to 6: which request is next, and into the driver with it.

use ferrio_driver::{Op, SubmitHalf};

use super::{Submitter, steps::Step};
use crate::{clock::Nanos, kill_point};

impl<S: SubmitHalf> Submitter<S> {
    pub(super) fn schedule(&mut self, now: Nanos) -> u32 {
        let mut submitted = 0;
        let mut passed_over = [0; 3];
        let mut op = Op::NOP;
        while let Some(slot) = if self.classes.is_empty() { None } else { self.driver.reserve() } {
            let Some(class) = self.scheduler.next(self.backlog(&passed_over)) else {
                self.driver.cancel_reserved(slot);
                break;
            };
            let Some((queue, record)) = self.classes.pop(class) else {
                unreachable!("the backlog said {class:?}")
            };
            let step = match self.in_time(record, now).and_then(|()| self.next_step(queue, record, &mut op)) {
                Ok(Step::Held) => {
                    self.driver.cancel_reserved(slot);
                    continue;
                }
                Ok(step) => step,
                Err(errno) => {
                    self.driver.cancel_reserved(slot);
                    self.answer(record, -errno);
                    continue;
                }
            };
            if self.shares.is_used_up(&op, self.driver.in_flight()) {
                self.driver.cancel_reserved(slot);
                self.classes.pass_over(class, queue, record);
                passed_over[class.index()] += 1;
                continue;
            }
            self.shares.take(record, &op);
            if let Err(slot) = self.submit(slot, record, step, &op) {
                self.driver.cancel_reserved(slot);
                self.shares.give_back(record);
                self.classes.push_front(class, queue, record);
                break;
            }
            passed_over[class.index()] = 0;
            self.count_issue(record);
            submitted += 1;
        }
        if self.driver.staged() > 0 {
            kill_point!("before-submit");
            self.commit();
            kill_point!("after-submit");
        }
        submitted
    }

    /// Classes to serve: a class is left for the next turn once each of its flows may have been passed over.
    #[inline]
    fn backlog(&self, passed_over: &[usize; 3]) -> [bool; 3] {
        let mut backlog = self.classes.backlog();
        if *passed_over != [0; 3] {
            let flows = self.sessions.queues();
            backlog.iter_mut().zip(passed_over).for_each(|(waits, passed)| *waits &= *passed < flows);
        }
        backlog
    }

    pub(super) fn commit(&mut self) {
        self.shared.batches.add(1);
        if let Err(error) = self.driver.commit() {
            // The batch stays staged and is committed again in the next turn.
            tracing::error!(%error, staged = self.driver.staged(), "the kernel did not take a batch; it is tried again");
        }
    }
}
