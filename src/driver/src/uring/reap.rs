//! The reap half.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::EnterFlags;

use super::ring::Shared;
use super::submit::{DOORBELLS, HELPERS};
use crate::arrivals::Arrivals;
use crate::bell::Bell;
use crate::driver::{Completion, ReapHalf};
use crate::tag::Tag;

/// Reap half of [`Uring`](super::Uring).
#[derive(Debug)]
pub struct UringReap {
    shared: Arc<Shared>,
    arrivals: Arrivals,
    /// `Shape::Two`.
    bell: Option<Arc<Bell>>,
    /// The same in `Shape::Two`.
    helpers_bell: Arc<Bell>,
    reaped: u64,
}

impl UringReap {
    pub(super) fn new(
        shared: Arc<Shared>,
        arrivals: Arrivals,
        bell: Option<Arc<Bell>>,
        helpers_bell: Arc<Bell>,
    ) -> UringReap {
        let reap = UringReap { shared, arrivals, bell, helpers_bell, reaped: 0 };
        reap.set_eventfd(false);
        reap
    }

    /// With COOP_TASKRUN the kernel finishes requests only when this task enters it, and says when it should.
    fn run_task_work(&self) {
        // SAFETY: only flags are read. The queue's tail, which this copies without looking at it, belongs to the
        // submit half, which in `Shape::One` is with this thread; `forget` keeps it from being written back.
        let queue = unsafe { self.shared.ring.submission_shared() };
        let wanted = queue.taskrun() || queue.cq_overflow();
        std::mem::forget(queue);
        if wanted {
            // SAFETY: nothing is submitted, waited for or passed. An error leaves the flag set: next time.
            let _ = unsafe {
                self.shared.ring.submitter().enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None)
            };
        }
    }

    /// The kernel rings the bell only while somebody sleeps.
    fn set_eventfd(&self, on: bool) {
        if self.bell.is_some() {
            // SAFETY: the completion queue is touched by this half alone, through `&mut self` or at its making.
            let queue = unsafe { self.shared.ring.completion_shared() };
            if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
        }
    }
}

impl ReapHalf for UringReap {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        self.arrivals.take_own(out);
        if self.bell.is_none() {
            self.run_task_work();
        }
        // SAFETY: the completion queue is touched by this half alone, through `&mut self`.
        let mut queue = unsafe { self.shared.ring.completion_shared() };
        while out.len() < out.capacity() {
            let Some(answer) = queue.next() else { break };
            let tag = Tag::from_user_data(answer.user_data());
            if tag == DOORBELLS {
                self.shared.doorbells_armed.store(false, Ordering::Relaxed);
            } else if tag == HELPERS {
                // What rang is counted as ready: it is found without the bell.
                self.helpers_bell.drain();
                self.shared.helpers_armed.store(false, Ordering::Relaxed);
            } else if self.arrivals.arrive(tag, answer.result(), out) {
                self.reaped += 1;
            }
        }
        out.len() - before
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        let Some(bell) = &self.bell else { return false };
        self.set_eventfd(true);
        bell.announce();
        // SAFETY: the completion queue is touched by this half alone, through `&mut self`.
        let empty = !self.arrivals.has_own() && unsafe { self.shared.ring.completion_shared() }.is_empty();
        if !empty {
            bell.withdraw();
            self.set_eventfd(false);
        }
        empty
    }

    fn woke(&mut self) {
        self.set_eventfd(false);
        if let Some(bell) = &self.bell {
            bell.withdraw();
            bell.drain();
        }
    }

    fn stale(&self) -> u64 {
        self.arrivals.stale()
    }
}

impl Drop for UringReap {
    fn drop(&mut self) {
        let results = self.arrivals.take_results();
        self.shared.leave(|legacy| {
            legacy.results = results;
            legacy.reaped = self.reaped;
        });
    }
}
