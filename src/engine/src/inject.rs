//! Commands and closures from other threads, taken by the Submitter between batches.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
    mpsc,
};

use ferrio_driver::{DriverInfo, FaultPlan, FaultStatus, Outline, Target};
use ferrio_shm::mapping::Region;

use crate::{
    bell::Bell,
    config::EngineError,
    dormant::Resumed,
    merge::MergeLimits,
    scheduler::{ScheduleSnapshot, Setting},
    session::{SessionSpec, VolumeId},
    stats::QueueShared,
};

/// Called on the Submitter thread with the outcome of a command. Must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, EngineError>) + Send>;

/// Called on an I/O thread when something has ended. Must not block.
pub type Done = Box<dyn FnOnce() + Send>;

/// Called on the Submitter thread, between two batches. Must not block: every request waits meanwhile.
pub type Closure = Box<dyn FnOnce(&mut dyn IoThread) + Send>;

/// The Submitter as a closure finds it: no request is taken, issued or answered by this thread while it runs, so what it reads
/// belongs together.
pub trait IoThread {
    /// What the driver is now.
    fn driver_info(&self) -> DriverInfo;

    /// Requests that the driver has: with the kernel or a helper, or answered by them and not released.
    fn in_flight(&self) -> u32;

    /// As [`Engine::requests_of`](crate::Engine::requests_of).
    ///
    /// # Errors
    /// No such volume.
    fn requests_of(&self, volume: VolumeId) -> Result<u32, EngineError>;

    /// As [`Engine::set_faults`](crate::Engine::set_faults).
    ///
    /// # Errors
    /// As there.
    fn set_faults(&mut self, volume: VolumeId, plan: FaultPlan) -> Result<(), EngineError>;

    /// As [`Engine::faults`](crate::Engine::faults).
    ///
    /// # Errors
    /// No such volume.
    fn faults(&self, volume: VolumeId) -> Result<Option<FaultStatus>, EngineError>;

    /// Changes how requests are scheduled, from now on.
    ///
    /// # Errors
    /// No such session or volume, or a value is out of its range.
    fn set_schedule(&mut self, setting: Setting) -> Result<(), EngineError>;

    /// Changes how far adjacent requests are joined, from now on.
    ///
    /// # Errors
    /// A limit is out of its range.
    fn set_merge(&mut self, limits: MergeLimits) -> Result<(), EngineError>;

    /// As [`Engine::schedule`](crate::Engine::schedule).
    fn schedule(&self) -> ScheduleSnapshot;
}

/// What the Submitter can be told.
pub enum Command {
    /// Register a volume.
    AddVolume {
        /// What it is made of.
        target: Arc<Target>,
        /// Gets its id.
        reply: Reply<VolumeId>,
    },
    /// Take requests for a volume that is not ours yet: see [`crate::Engine::add_volume_fenced`].
    AddFencedVolume {
        /// What is known of it.
        outline: Outline,
        /// Gets its id.
        reply: Reply<VolumeId>,
    },
    /// Issue the requests of such a volume from now on: see [`crate::Engine::unfence_volume`].
    UnfenceVolume {
        /// Which.
        volume: VolumeId,
        /// What it is made of.
        target: Arc<Target>,
        /// Its faults, which hold from the first request on; none without rules.
        faults: FaultPlan,
        /// Gets the outcome.
        reply: Reply<()>,
    },
    /// Forget a volume: see [`crate::Engine::remove_volume`].
    RemoveVolume {
        /// Which.
        volume: VolumeId,
        /// Called once the driver has let go of it.
        done: Done,
    },
    /// Change where a volume ends: see [`crate::Engine::resize_volume`].
    ResizeVolume {
        /// Which.
        volume: VolumeId,
        /// Its new size, bytes.
        size_bytes: u64,
        /// Called once nothing is in flight beyond it.
        done: Done,
    },
    /// Set the faults of a volume.
    SetFaults {
        /// Which.
        volume: VolumeId,
        /// What they are from now on; none without rules.
        plan: FaultPlan,
        /// Gets the outcome.
        reply: Reply<()>,
    },
    /// Say what the faults of a volume are.
    GetFaults {
        /// Which.
        volume: VolumeId,
        /// Gets them.
        reply: Reply<Option<FaultStatus>>,
    },
    /// Let requests of a session name more memory.
    AddRegion {
        /// Session id.
        session_id: u64,
        /// Its name in SQEs.
        index: u16,
        /// The memory.
        region: Region,
        /// Gets the outcome.
        reply: Reply<()>,
    },
    /// Take memory away from a session.
    RemoveRegion {
        /// Session id.
        session_id: u64,
        /// Its name in SQEs.
        index: u16,
        /// Gets the outcome.
        reply: Reply<()>,
    },
    /// Take requests from a session.
    OpenSession {
        /// The session.
        spec: Box<SessionSpec>,
        /// Counters, one per queue of the spec, in its order.
        shared: Vec<Arc<QueueShared>>,
        /// Called once it is served.
        reply: Reply<()>,
    },
    /// Go on with a session of the daemon before.
    ResumeSession {
        /// The session.
        spec: Box<SessionSpec>,
        /// Counters, one per queue of the spec, in its order.
        shared: Vec<Arc<QueueShared>>,
        /// Called once it is served.
        reply: Reply<Resumed>,
    },
    /// Drop a session of the daemon before.
    ForgetSession {
        /// The session.
        session_id: u64,
        /// Gets how many requests it was owed.
        reply: Reply<u64>,
    },
    /// Take no more requests from a session.
    CloseSession {
        /// The session.
        session_id: u64,
        /// Called once nothing of it is in flight.
        done: Done,
    },
    /// Take no more requests from anyone.
    Drain {
        /// Called once nothing is in flight: all is answered, or left to the next daemon behind fences.
        done: Done,
    },
    /// Run this.
    Run(Closure),
    /// End the thread.
    Stop,
}

/// The commanding end.
pub struct Injector {
    commands: mpsc::Sender<Command>,
    waits: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

/// The Submitter's end.
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
    waits: Arc<AtomicBool>,
    /// Commands are being taken.
    open: bool,
}

/// Both ends; `bell` is the Submitter's.
pub fn injector(bell: Arc<Bell>) -> (Injector, Inbox) {
    let (sender, receiver) = mpsc::channel();
    let waits = Arc::new(AtomicBool::new(false));
    let inbox = Inbox { commands: receiver, waits: Arc::clone(&waits), open: false };
    (Injector { commands: sender, waits, bell }, inbox)
}

impl Injector {
    /// Hands over a command; gives it back when the Submitter has ended.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.send(command).map_err(|refused| refused.0)?;
        self.waits.store(true, Release); // pairs with the swap in Inbox::take()
        self.bell.ring(true);
        Ok(())
    }
}

impl Inbox {
    /// The next command.
    pub fn take(&mut self) -> Option<Command> {
        if !self.open {
            if !self.waits.load(Acquire) {
                return None;
            }
            self.waits.swap(false, Acquire); // pairs with the store in Injector::send()
            self.open = true;
        }
        let command = self.commands.try_recv().ok();
        self.open = command.is_some();
        command
    }

    /// Nothing waits. Costs one load.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.open && !self.waits.load(Acquire)
    }
}
