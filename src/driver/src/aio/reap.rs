//! The reap half.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use libaio_sys::Reaper;

use super::setup::Shared;
use crate::arrivals::Arrivals;
use crate::bell::Bell;
use crate::driver::{Completion, ReapHalf, Shape};
use crate::helpers::Sender;
use crate::tag::Tag;

/// Reap half of [`Aio`](super::Aio).
#[derive(Debug)]
pub struct AioReap {
    shared: Arc<Shared>,
    /// Taken only by `drop`.
    reaper: Option<Reaper>,
    arrivals: Arrivals,
    bell: Arc<Bell>,
    helpers: Sender,
    shape: Shape,
    reaped: u64,
}

impl AioReap {
    pub(super) fn new(
        shared: Arc<Shared>,
        reaper: Reaper,
        arrivals: Arrivals,
        bell: Arc<Bell>,
        helpers: Sender,
        shape: Shape,
    ) -> AioReap {
        AioReap { shared, reaper: Some(reaper), arrivals, bell, helpers, shape, reaped: 0 }
    }
}

/// The kernel would have to wait for this one: a helper does. `false`: the request is not in the kernel.
#[cold]
fn hand_over(shared: &Shared, helpers: &Sender, arrivals: &mut Arrivals, tag: Tag) -> bool {
    if !arrivals.hand_over(tag) {
        return false;
    }
    // SAFETY: this is the reap half, and the request was with the kernel until now: its payload was put before.
    if let Some(payload) = unsafe { shared.parked.get(tag) } {
        helpers.send(tag, payload);
    }
    true
}

impl ReapHalf for AioReap {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        self.arrivals.take_own(out);
        let room = out.capacity() - out.len();
        if let Some(reaper) = &mut self.reaper {
            reaper.reap(room, |event| {
                let tag = Tag::from_user_data(event.data);
                // A transfer has LENGTH_MAX bytes at most, so a larger number is none of its answers.
                let result = i32::try_from(event.res).unwrap_or(-libc::EIO);
                let believed = match result == -libc::EAGAIN {
                    true => hand_over(&self.shared, &self.helpers, &mut self.arrivals, tag),
                    false => self.arrivals.arrive(tag, result, out),
                };
                self.reaped += u64::from(believed);
            });
        }
        out.len() - before
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.shape == Shape::Two).then(|| self.bell.as_fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        if self.shape == Shape::One {
            return false;
        }
        self.bell.announce();
        let empty = !self.arrivals.has_own() && self.reaper.as_ref().is_some_and(Reaper::is_empty);
        if !empty {
            self.bell.withdraw();
        }
        empty
    }

    fn woke(&mut self) {
        self.bell.withdraw();
        self.bell.drain();
    }

    fn stale(&self) -> u64 {
        self.arrivals.stale()
    }
}

impl Drop for AioReap {
    fn drop(&mut self) {
        let (reaper, results) = (self.reaper.take(), self.arrivals.take_results());
        self.shared.leave(|legacy| {
            legacy.reaper = reaper;
            legacy.results = results;
            legacy.reaped = self.reaped;
        });
    }
}
