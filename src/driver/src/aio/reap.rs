//! The reap half.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use libaio_sys::Reaper;

use super::setup::Shared;
use crate::arrivals::Arrivals;
use crate::bell::Bell;
use crate::driver::{Completion, ReapHalf, Shape};
use crate::tag::Tag;

/// Reap half of [`Aio`](super::Aio).
#[derive(Debug)]
pub struct AioReap {
    shared: Arc<Shared>,
    /// Taken only by `drop`.
    reaper: Option<Reaper>,
    arrivals: Arrivals,
    bell: Arc<Bell>,
    shape: Shape,
    reaped: u64,
}

impl AioReap {
    pub(super) fn new(
        shared: Arc<Shared>,
        reaper: Reaper,
        arrivals: Arrivals,
        bell: Arc<Bell>,
        shape: Shape,
    ) -> AioReap {
        AioReap { shared, reaper: Some(reaper), arrivals, bell, shape, reaped: 0 }
    }
}

impl ReapHalf for AioReap {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        self.arrivals.take_injected(out);
        let room = out.capacity() - out.len();
        if let Some(reaper) = &mut self.reaper {
            reaper.reap(room, |event| {
                // A transfer has LENGTH_MAX bytes at most, so a larger number is none of its answers.
                let result = i32::try_from(event.res).unwrap_or(-libc::EIO);
                let believed = self.arrivals.arrive(Tag::from_user_data(event.data), result, out);
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
        let empty = !self.arrivals.has_injected() && self.reaper.as_ref().is_some_and(Reaper::is_empty);
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
        let reaper = self.reaper.take();
        self.shared.leave(|legacy| {
            legacy.reaper = reaper;
            legacy.reaped = self.reaped;
        });
    }
}
