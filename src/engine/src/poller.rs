//! The Poller: reaps where the Submitter does not ([`ferrio_driver::Shape::Two`]).

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Acquire},
    },
};

use ferrio_driver::ReapHalf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    bell::{Bell, WaitsFor},
    clock::{self, Nanos},
    completion::Reaper,
    idle::{Idle, Step},
    stats::Shared,
};

/// Longest sleep: bounds what a lost wake-up could cost, and costs an idle daemon one wake-up in this time.
const SLEEP_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The Poller thread's state.
pub struct Poller<R> {
    reaper: Reaper<R>,
    bell: Arc<Bell>,
    shared: Arc<Shared>,
}

impl<R: ReapHalf> Poller<R> {
    /// `bell` is the Poller's own.
    pub fn new(reaper: Reaper<R>, bell: Arc<Bell>, shared: Arc<Shared>) -> Self {
        Self { reaper, bell, shared }
    }

    /// One batch. Returns how much was done.
    pub fn turn(&mut self, now: Nanos) -> u32 {
        self.shared.poller_turns.add(1);
        self.reaper.turn(now)
    }

    /// Turns until `stop`.
    pub fn run(mut self, spin_limit: Nanos, stop: &AtomicBool) -> io::Result<()> {
        let mut idle = Idle::new(spin_limit, clock::now());
        while !stop.load(Acquire) {
            let now = clock::now();
            let work = self.turn(now);
            match idle.step(now, work > 0, self.shared.in_flight() > 0) {
                Step::Work => {}
                Step::Spin => std::hint::spin_loop(),
                Step::Sleep => self.sleep()?,
            }
        }
        Ok(())
    }

    fn sleep(&mut self) -> io::Result<()> {
        self.bell.announce(WaitsFor::Anything);
        if self.reaper.has_posts() || !self.reaper.driver().prepare_sleep() {
            self.reaper.driver().woke();
            self.bell.retract();
            return Ok(());
        }
        let outcome = {
            let completions = self.reaper.driver().completion_fd();
            let bell = PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN);
            match completions {
                Some(fd) => poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN), bell], Some(&SLEEP_MAX)),
                None => poll(&mut [bell], Some(&SLEEP_MAX)),
            }
        };
        self.reaper.driver().woke();
        self.bell.retract();
        match outcome {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                self.bell.drain();
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}
