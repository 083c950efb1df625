//! The thread that picks the answers of a context up, and hands them on.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Acquire},
    },
};

use ferrio_shm::{doorbell::DoorbellRx, entry::Cqe, mapping::MappedQueue, ring::CqConsumer};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    Shared,
    answer::IoCallback,
    event::Channel,
    lane::Settled,
    workers::{IoWorkers, Job},
};
use crate::{
    clock::{self, Nanos},
    idle::{Idle, Step},
};

/// Answers of one channel before the next has its turn.
const BATCH: usize = 64;

/// See the module.
pub(super) struct Reaper<C: IoCallback> {
    shared: Arc<Shared<C>>,
    workers: IoWorkers<C>,
    ends: [End; 3],
    doorbell: DoorbellRx,
    cqes: Vec<Cqe>,
    jobs: Vec<Job<C>>,
}

struct End {
    cq: CqConsumer<MappedQueue>,
    /// It was told that this ring is of no use any more.
    broken: bool,
}

impl<C: IoCallback> Reaper<C> {
    /// `queues` are those of the channels, in their order; all of them ring this doorbell.
    pub fn new(
        shared: Arc<Shared<C>>,
        workers: IoWorkers<C>,
        queues: [MappedQueue; 3],
        doorbell: DoorbellRx,
    ) -> Self {
        let ends = queues.map(|queue| End { cq: CqConsumer::new(queue), broken: false });
        let (cqes, jobs) = (Vec::with_capacity(BATCH), Vec::with_capacity(Channel::ALL.len() * BATCH));
        Self { shared, workers, ends, doorbell, cqes, jobs }
    }

    /// Until `stop`, and then once more: what was posted before is handed on.
    pub fn run(mut self, spin_limit: Nanos, stop: &AtomicBool) -> io::Result<()> {
        let mut idle = Idle::new(spin_limit, clock::now());
        while !stop.load(Acquire) {
            let work = self.turn();
            match idle.step(clock::now(), work > 0, !self.shared.is_over()) {
                Step::Work => {}
                Step::Spin => std::hint::spin_loop(),
                Step::Sleep => self.sleep()?,
            }
        }
        while self.turn() > 0 {}
        Ok(())
    }

    fn turn(&mut self) -> usize {
        let Self { shared, workers, ends, cqes, jobs, .. } = self;
        let mut taken = 0;
        for (channel, end) in Channel::ALL.into_iter().zip(ends) {
            end.take(cqes, shared.name(), channel);
            taken += cqes.len();
            for cqe in cqes.drain(..) {
                match shared.lane(channel).settle(&cqe) {
                    Settled::Call(place, callback, completion) => {
                        let shared = Arc::clone(shared);
                        jobs.push(Job { shared, channel, place, callback, completion });
                    }
                    Settled::Told => shared.told(channel),
                    // It was given up meanwhile.
                    Settled::Stray if shared.is_closing() => {}
                    Settled::Stray => {
                        tracing::error!(
                            context = shared.name(),
                            "channel {channel} was sent an answer to nothing ({:#x}); it is ignored: a bug in ferrio",
                            cqe.user_data
                        );
                    }
                }
            }
        }
        workers.call(jobs);
        taken
    }

    fn sleep(&mut self) -> io::Result<()> {
        // All of them, whatever the first says: a ring counts for one call only.
        let asleep = self.ends.iter_mut().map(|end| end.broken || end.cq.prepare_sleep());
        if asleep.fold(true, |all, one| all & one) {
            let fds = &mut [PollFd::from_borrowed_fd(self.doorbell.as_fd(), PollFlags::IN)];
            match poll(fds, None) {
                Ok(_) => self.doorbell.drain().map(|_| ())?,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl End {
    /// Takes a batch out. Its places in the ring are free before anyone learns of it: who is told may submit at once.
    fn take(&mut self, cqes: &mut Vec<Cqe>, context: &str, channel: Channel) {
        while !self.broken && cqes.len() < BATCH {
            match self.cq.pop() {
                Ok(Some(cqe)) => cqes.push(cqe),
                Ok(None) => break,
                Err(fault) => {
                    self.broken = true;
                    tracing::error!(
                        context,
                        "the ring of channel {channel} is broken: {fault}; something in this process has written to its \
                         memory. What is in flight there is answered when the context is shut down"
                    );
                }
            }
        }
        self.cq.release();
    }
}
