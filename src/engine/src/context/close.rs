//! The end of a context: nothing more is taken, everything is answered, nothing is left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Release},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ferrio_driver::Target;
use ferrio_shm::doorbell::DoorbellTx;

use super::{
    Shared,
    answer::IoCallback,
    builder::Home,
    event::Channel,
    lane::Settled,
    workers::{IoWorkers, Job, is_calling},
};
use crate::{config::EngineError, engine::Engine, session::VolumeId};

/// Limit of a context that is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(15);
/// What the kernel has is waited for at least so long, however short the limit.
const KERNEL_LIMIT_MIN: Duration = Duration::from_millis(100);

/// How a context ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Events that were answered since the start.
    pub answered: u64,
    /// Events whose answer did not come in time. They were told [`Cause::Unanswered`](super::Cause::Unanswered): those that
    /// were not issued never will be, what the kernel has may still take effect.
    pub unanswered: u64,
    /// The kernel may still use buffers of events that were not answered: their memory is kept until the process ends.
    pub leaked: bool,
    /// Callbacks have not returned in time. They are not interrupted, and those behind them are still called.
    pub calling: bool,
}

/// All that runs for a context.
pub(super) struct Running<C: IoCallback> {
    pub shared: Arc<Shared<C>>,
    pub reaper: ReaperThread,
    pub workers: IoWorkers<C>,
    pub volumes: Volumes,
    /// Last: the engine ends after everything that it has for the context.
    pub home: Home,
}

/// The thread that picks answers up.
pub(super) struct ReaperThread {
    pub thread: JoinHandle<()>,
    pub stop: Arc<AtomicBool>,
    pub wake: DoorbellTx,
}

impl<C: IoCallback> Running<C> {
    /// Dropped without a shutdown.
    pub fn end(self) {
        if self.shared.is_child() {
            // Neither the threads nor the memory are those of this process.
            std::mem::forget(self);
        } else if is_calling() {
            // A callback must not wait for callbacks: another thread does.
            let name = "ferrio-close".to_owned();
            let close = move || {
                self.close(DROP_LIMIT);
            };
            if let Err(error) = thread::Builder::new().name(name).spawn(close) {
                tracing::error!(%error, "a context is not shut down: no thread can be started");
            }
        } else {
            self.close(DROP_LIMIT);
        }
    }

    pub fn close(self, limit: Duration) -> ShutdownReport {
        let Self { shared, reaper, workers, volumes, home } = self;
        // A time that does not fit is longer than anyone waits.
        let until = |limit| Instant::now().checked_add(limit);
        shared.close();
        shared.wait_until_over(until(limit));
        let unused = close_session(home.engine(), shared.id(), limit.max(KERNEL_LIMIT_MIN));
        reaper.end(&shared, until(KERNEL_LIMIT_MIN));
        let unanswered = give_up(&shared, unused);
        // What was answered meanwhile may still be called.
        shared.wait_until_over(until(KERNEL_LIMIT_MIN));
        drop(workers);
        let report = ShutdownReport {
            answered: shared.answered(),
            unanswered,
            leaked: unanswered > 0 && !unused,
            calling: !shared.is_over(),
        };
        if report.leaked {
            tracing::error!(
                context = shared.name(),
                unanswered,
                "the kernel has not answered: the memory of these events is kept until the process ends; the device may have died"
            );
        }
        drop((volumes, home));
        report
    }
}

impl ReaperThread {
    fn end<C>(self, shared: &Shared<C>, until: Option<Instant>) {
        self.stop.store(true, Release);
        // The one error is that of a closed end, and the thread has it.
        let _ = self.wake.ring();
        // A callback may keep it: then it ends by itself.
        while !self.thread.is_finished() && until.is_none_or(|until| Instant::now() < until) {
            if shared.is_over() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let own = self.thread.thread().id() == thread::current().id();
        if !own && (self.thread.is_finished() || shared.is_over()) {
            // A panic was reported by the panic hook.
            let _ = self.thread.join();
        }
    }
}

/// Ends the session. True: the kernel uses nothing of it any more.
fn close_session(engine: &Engine, session_id: u64, limit: Duration) -> bool {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move || {
        let _ = sender.send(());
    });
    engine.close_session(session_id, done);
    // An engine that has stopped calls at once, and does not know.
    receiver.recv_timeout(limit).is_ok() && engine.run(|_| ()).is_ok()
}

/// Answers what nobody else will.
fn give_up<C: IoCallback>(shared: &Arc<Shared<C>>, unused: bool) -> u64 {
    let mut count = 0;
    for channel in Channel::ALL {
        let lane = shared.lane(channel);
        for place in 0..lane.depth() {
            match lane.give_up(place, unused) {
                Settled::Call(place, callback, completion) => {
                    Job { shared: Arc::clone(shared), channel, place, callback, completion }.run();
                }
                Settled::Told => shared.told(channel),
                Settled::Stray => continue,
            }
            count += 1;
        }
    }
    count
}

/// Volumes that came with a context, and go with it.
#[derive(Debug)]
pub(super) struct Volumes {
    engine: Engine,
    volumes: Vec<VolumeId>,
}

impl Volumes {
    pub fn new(engine: &Engine) -> Self {
        Self { engine: engine.clone(), volumes: Vec::new() }
    }

    pub fn add(&mut self, target: &Arc<Target>) -> Result<VolumeId, EngineError> {
        let volume = self.engine.add_volume(Arc::clone(target))?;
        self.volumes.push(volume);
        Ok(volume)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for volume in self.volumes.drain(..) {
            self.engine.remove_volume(volume, Box::new(|| ()));
        }
    }
}
