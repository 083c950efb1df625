//! An engine: one driver, its Submitter and, where there is one, its Poller.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Release},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use ferrio_driver::{
    Driver, DriverInfo, FaultPlan, FaultStatus, Outline, ReapHalf, Shape, SubmitHalf, Target,
    aio::Aio,
    fault::Fault,
    null::Null,
    select::{self, Backend},
    uring::Uring,
};

use ferrio_shm::mapping::Region;

pub use crate::threaded::Threaded;
use crate::{
    clock::{self, MICROSECOND, Nanos},
    completion::Reaper,
    config::{EngineConfig, EngineError},
    dormant::{DormantSession, Resumed},
    idle::{Idle, Step},
    inject::{self, Command, Injector, IoThread},
    merge::MergeLimits,
    poller::Poller,
    pulse::{Life, Pulse},
    scheduler::{Budgets, ScheduleSnapshot, Scope, Setting, latency::LatencyGoal, limits::Limit},
    session::{SessionSpec, VolumeId},
    stats::{self, EngineSnapshot, QueueShared, Shared},
    submitter::Submitter,
};

/// What an engine is, decided at its start.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// Name.
    pub name: String,
    /// `io_uring`, `aio` or `null`.
    pub backend: &'static str,
    /// Why this backend.
    pub backend_reason: String,
    /// I/O threads, 1 or 2.
    pub threads: u32,
    /// Most requests in the kernel at once.
    pub depth: u32,
    /// Most requests accepted at once.
    pub requests_max: u32,
    /// Modes in effect, and those that were wanted and are not, when it started.
    pub driver: DriverInfo,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests that were not answered in time.
    pub late: u64,
    /// Requests that are left to the next daemon: they wait for the lock of a volume, or for such a request, and their sessions
    /// can be resumed. Nothing of them has an effect, the journal has them. 0 if others were late.
    pub kept: u64,
}

/// Handle of an engine. Clones command the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    info: EngineInfo,
    shared: Arc<Shared>,
    injector: Injector,
    /// Open queues, for snapshots. The I/O threads never take this lock.
    queues: Mutex<Vec<Arc<QueueShared>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    submitter: Life,
    poller: Option<Life>,
    poller_stop: Arc<AtomicBool>,
    /// Not resumed and not forgotten.
    dormant: Mutex<Vec<DormantSession>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.inner.info).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the driver, takes the journal over, or creates it, and starts the threads.
    ///
    /// # Errors
    /// The backend is not available, the journal or a thread cannot be made, the journal is of a newer ferriod, or says that more
    /// is owed than the limits hold.
    pub fn start(config: &EngineConfig) -> Result<Self, EngineError> {
        let driver = |source| EngineError::Driver { engine: config.name.clone(), source };
        let (backend, reason) = select::choose(config.backend).map_err(driver)?;
        // The one place that asks which backend: everything below is compiled for one of them.
        match (backend, config.faults) {
            (Backend::IoUring, false) => Self::launch::<Uring>(config, reason),
            (Backend::Aio, false) => Self::launch::<Aio>(config, reason),
            (Backend::Null, false) => Self::launch::<Null>(config, reason),
            (Backend::IoUring, true) => Self::launch::<Fault<Uring>>(config, reason),
            (Backend::Aio, true) => Self::launch::<Fault<Aio>>(config, reason),
            (Backend::Null, true) => Self::launch::<Fault<Null>>(config, reason),
        }
    }

    fn launch<D: Driver>(config: &EngineConfig, backend_reason: String) -> Result<Self, EngineError> {
        let parts = Threaded::<D>::new(config)?;
        let info = EngineInfo {
            name: config.name.clone(),
            backend: D::NAME,
            backend_reason,
            threads: if parts.shape == Shape::One { 1 } else { 2 },
            depth: config.depth,
            requests_max: config.requests_max,
            driver: parts.submitter.driver_info(),
        };
        let spin_limit = Nanos::from(config.spin_us) * MICROSECOND;
        let inner = Inner {
            info,
            shared: parts.shared,
            injector: parts.injector,
            queues: Mutex::default(),
            threads: Mutex::default(),
            submitter: Life::new(format!("sub-{}", config.name)),
            poller: parts.poller.as_ref().map(|_| Life::new(format!("poll-{}", config.name))),
            poller_stop: Arc::default(),
            dormant: Mutex::new(parts.dormant),
        };
        let life = inner.submitter.clone();
        let stop = Arc::clone(&inner.poller_stop);
        let threads = match parts.poller {
            None => {
                let reaper = parts.reaper;
                vec![spawn(config, life, move || run_alone(parts.submitter, reaper, spin_limit))?]
            }
            Some(bell) => {
                let poller = Poller::new(parts.reaper, Arc::clone(&bell), Arc::clone(&inner.shared));
                let poller_stop = Arc::clone(&stop);
                let poller_life = inner.poller.clone().unwrap_or_else(|| life.clone());
                vec![
                    spawn(config, poller_life, move || poller.run(spin_limit, &poller_stop))?,
                    spawn(config, life, move || {
                        let outcome = run_beside(parts.submitter, spin_limit);
                        stop.store(true, Release);
                        bell.ring(true);
                        outcome
                    })?,
                ]
            }
        };
        *inner.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What it is.
    pub fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    /// What the driver is now: sessions may come to degrade it, for instance by more memory than may be pinned. As it was
    /// at the start, should the Submitter not answer within `limit`.
    pub fn driver_info(&self, limit: Duration) -> DriverInfo {
        let now = self.inject(|thread| thread.driver_info());
        let now = now.ok().and_then(|answer| answer.recv_timeout(limit).ok());
        now.unwrap_or_else(|| self.info().driver.clone())
    }

    /// Runs a closure on the Submitter thread, between two batches, and waits for what it returns. All that it reads is of one
    /// moment, and all that it changes holds before the next request is taken. Closures and commands of one thread are run
    /// in their order. It must neither block, since every request waits meanwhile, nor panic, which ends the thread; called
    /// on an I/O thread of this engine, this would wait for itself.
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let config = ferrio_engine::EngineConfig {
    /// #     name: "main".into(), backend: ferrio_driver::select::BackendChoice::Null, depth: 8, requests_max: 8,
    /// #     queues_max: 1, sessions_max: 1, regions_per_session: 1, faults: false,
    /// #     threads: ferrio_engine::Threads::Auto, spin_us: 0, budgets: [1, 1, 1], helpers: 1,
    /// #     merge: ferrio_engine::MergeLimits::default(),
    /// #     journal: directory.path().join("journal"), epoch: 1,
    /// # };
    /// # let engine = ferrio_engine::Engine::start(&config)?;
    /// let (driver, in_flight) = engine.run(|thread| (thread.driver_info(), thread.in_flight()))?;
    /// # assert_eq!((driver.backend, in_flight), ("null", 0));
    /// # engine.stop();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The engine has stopped; the closure is dropped.
    pub fn run<T: Send + 'static>(
        &self,
        closure: impl FnOnce(&mut dyn IoThread) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        self.inject(closure)?.recv().map_err(|_| self.stopped())
    }

    /// Registers a volume; it stays until [`Self::remove_volume`], or until the engine ends.
    ///
    /// # Errors
    /// Too many volumes, or the engine has stopped.
    pub fn add_volume(&self, target: Arc<Target>) -> Result<VolumeId, EngineError> {
        self.ask(|reply| Command::AddVolume { target, reply })
    }

    /// Registers a volume whose lock is still held by writes of a dead daemon. Requests for it, new and replayed ones, are
    /// checked against what is known of it, accepted, and wait until [`Self::unfence_volume`]; meanwhile they can be cancelled
    /// and time out. What it can do besides reading and writing is taken to be everything until then.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn add_volume_fenced(&self, outline: Outline) -> Result<VolumeId, EngineError> {
        self.ask(|reply| Command::AddFencedVolume { outline, reply })
    }

    /// The lock of a fenced volume was taken: its requests go on, those that waited before those that come, and with these
    /// faults (none without rules). The sessions that have the volume see the size that `target` has.
    ///
    /// # Errors
    /// The volume was removed meanwhile, there are too many volumes, the faults cannot be had, or the engine has stopped. But
    /// for a removed one the volume stays fenced.
    pub fn unfence_volume(
        &self,
        volume: VolumeId,
        target: Arc<Target>,
        faults: FaultPlan,
    ) -> Result<(), EngineError> {
        self.ask(|reply| Command::UnfenceVolume { volume, target, faults, reply })
    }

    /// Takes no more requests for a volume: new ones, and those that were not issued, are answered `-ENODEV`. Calls `done`
    /// (on an I/O thread; it must not block) once the issued ones have their answers and the driver has let go of the
    /// target; the id may then come back from [`Self::add_volume`]. At once for a volume that is not known. Dropped
    /// uncalled if the engine stops first.
    pub fn remove_volume(&self, volume: VolumeId, done: inject::Done) {
        if let Err(Command::RemoveVolume { done, .. }) =
            self.inner.injector.send(Command::RemoveVolume { volume, done })
        {
            done();
        }
    }

    /// Changes where a volume ends, for all sessions and from now on: what reaches beyond it and was not issued is answered
    /// `-ERANGE`. `size_bytes` is a multiple of the block. Calls `done` (on an I/O thread; it must not block) once nothing
    /// that was issued before is in flight beyond the new end: a target that shrinks is cut then, one that grows is extended
    /// before this is called. Dropped uncalled if the engine stops first.
    pub fn resize_volume(&self, volume: VolumeId, size_bytes: u64, done: inject::Done) {
        if let Err(Command::ResizeVolume { done, .. }) =
            self.inner.injector.send(Command::ResizeVolume { volume, size_bytes, done })
        {
            done();
        }
    }

    /// Sets the faults of a volume in place of those it had; a plan without rules clears them.
    ///
    /// # Errors
    /// No such volume, the engine was not started with [`EngineConfig::faults`], the plan has a value that is out of range, or
    /// the engine has stopped.
    pub fn set_faults(&self, volume: VolumeId, plan: FaultPlan) -> Result<(), EngineError> {
        self.ask(|reply| Command::SetFaults { volume, plan, reply })
    }

    /// The faults of a volume and how often they came into play; `None` if it has none.
    ///
    /// # Errors
    /// No such volume, or the engine has stopped.
    pub fn faults(&self, volume: VolumeId) -> Result<Option<FaultStatus>, EngineError> {
        self.ask(|reply| Command::GetFaults { volume, reply })
    }

    /// Requests of a volume that were accepted and are not answered. Looks at every record.
    ///
    /// # Errors
    /// No such volume, or the engine has stopped.
    pub fn requests_of(&self, volume: VolumeId) -> Result<u32, EngineError> {
        self.run(move |thread| thread.requests_of(volume))?
    }

    /// Lets requests of a session name `region` by `index`, 1 to 255.
    ///
    /// # Errors
    /// No such session, the index is in use or out of range, the driver has no place, or the engine has stopped:
    /// [`EngineError::errno`] is what the client is told.
    pub fn add_region(&self, session_id: u64, index: u16, region: Region) -> Result<(), EngineError> {
        self.ask(|reply| Command::AddRegion { session_id, index, region, reply })
    }

    /// Takes a region away from a session. Requests that name it and were not issued are answered `-ENXIO`.
    ///
    /// # Errors
    /// No such session or region, requests on it are in flight, or the engine has stopped.
    pub fn remove_region(&self, session_id: u64, index: u16) -> Result<(), EngineError> {
        self.ask(|reply| Command::RemoveRegion { session_id, index, reply })
    }

    /// Changes the share that a session has of each class beside others, 1 to 1000.
    ///
    /// # Errors
    /// No such session, the weight is out of range, or the engine has stopped.
    pub fn set_weight(&self, session_id: u64, weight: u32) -> Result<(), EngineError> {
        self.set(Setting::Weight { session_id, weight })
    }

    /// Puts a session into a group, whose limit holds for it from now on, or into none.
    ///
    /// # Errors
    /// No such session, or the engine has stopped.
    pub fn set_group(&self, session_id: u64, group: Option<String>) -> Result<(), EngineError> {
        self.set(Setting::Group { session_id, group })
    }

    /// Sets, changes or, by [`Limit::default`], takes away the limit of a volume, a session or a group. A limit of a group
    /// may come before its first session and stays after its last; the others end with what they limit. It holds for what
    /// is not issued yet.
    ///
    /// # Errors
    /// No such volume or session, a rate is out of range, or the engine has stopped. A fenced volume may have a limit.
    pub fn set_limit(&self, scope: Scope, limit: Limit) -> Result<(), EngineError> {
        self.set(Setting::Limit { scope, limit })
    }

    /// Says how fast the device is to answer prio, at the cost of what else it does. Off at the start.
    ///
    /// # Errors
    /// The goal is out of range, or the engine has stopped.
    pub fn set_latency_goal(&self, goal: LatencyGoal) -> Result<(), EngineError> {
        self.set(Setting::Latency(goal))
    }

    /// Changes what each class may take of a round of the scheduler: cost by class index, 1 to 4096 each, where a request
    /// costs 1 for each 16 KiB begun.
    ///
    /// # Errors
    /// A budget is out of range, or the engine has stopped.
    pub fn set_budgets(&self, budgets: Budgets) -> Result<(), EngineError> {
        self.set(Setting::Budgets(budgets))
    }

    /// How requests are scheduled now: all of one moment.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn schedule(&self) -> Result<ScheduleSnapshot, EngineError> {
        self.run(|thread| thread.schedule())
    }

    /// Changes how far adjacent requests are joined into one operation, for what is not issued yet;
    /// [`MergeLimits::OFF`] joins nothing.
    ///
    /// # Errors
    /// A limit is out of its range, or the engine has stopped.
    pub fn set_merge(&self, limits: MergeLimits) -> Result<(), EngineError> {
        self.run(move |thread| thread.set_merge(limits))?
    }

    fn set(&self, setting: Setting) -> Result<(), EngineError> {
        self.run(move |thread| thread.set_schedule(setting))?
    }

    /// Takes requests from a session from now on.
    ///
    /// # Errors
    /// A limit is reached, the spec does not fit its memory, or the engine has stopped.
    pub fn open_session(&self, spec: SessionSpec) -> Result<(), EngineError> {
        let shared = counters_of(&spec);
        let seen = shared.clone();
        self.ask(|reply| Command::OpenSession { spec: Box::new(spec), shared, reply })?;
        self.queues().extend(seen);
        Ok(())
    }

    /// Sessions that the journal named when the engine started and that were neither resumed nor forgotten since, in order of
    /// their ids. They count in the limits of the engine.
    pub fn dormant(&self) -> Vec<DormantSession> {
        self.dormant_list().clone()
    }

    /// Goes on with a dormant session where its journal ends: answers that its client may not have are given once more in the
    /// same place, what was decided is answered so, the rest is carried out if that can be done twice and answered EOWNERDEAD if
    /// not. Then requests are taken from its rings. `spec` is as for [`Self::open_session`], with the regions that its client had
    /// brought; volumes and regions that are not there any more get the usual errno.
    ///
    /// # Errors
    /// The session is not dormant or not fit, the spec does not fit its memory or has other queues than the journal, or the
    /// engine has stopped. The session stays dormant then.
    pub fn resume_session(&self, spec: SessionSpec) -> Result<Resumed, EngineError> {
        let session_id = spec.session_id;
        let shared = counters_of(&spec);
        let seen = shared.clone();
        let resumed = self.ask(|reply| Command::ResumeSession { spec: Box::new(spec), shared, reply })?;
        self.queues().extend(seen);
        self.dormant_list().retain(|dormant| dormant.session_id != session_id);
        Ok(resumed)
    }

    /// Drops a dormant session: nobody comes for what it is owed. Returns how many requests that were, 0 for a session that is
    /// not dormant.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn forget_session(&self, session_id: u64) -> Result<u64, EngineError> {
        let dropped = self.ask(|reply| Command::ForgetSession { session_id, reply })?;
        self.dormant_list().retain(|dormant| dormant.session_id != session_id);
        Ok(dropped)
    }

    /// Counters of the queues of an open session, in the order of its spec.
    pub(crate) fn counters_of_session(&self, session_id: u64) -> Vec<Arc<QueueShared>> {
        self.queues().iter().filter(|queue| queue.session_id == session_id).cloned().collect()
    }

    /// Takes no more requests from a session, drops those that are not issued, and calls `done` (on an I/O thread; it must
    /// not block) once the kernel has answered the others and the session's memory is released.
    pub fn close_session(&self, session_id: u64, done: inject::Done) {
        if let Err(Command::CloseSession { done, .. }) =
            self.inner.injector.send(Command::CloseSession { session_id, done })
        {
            done();
        }
        self.queues().retain(|queue| queue.session_id != session_id);
    }

    /// Looks at queues and counters; any thread, without disturbing the I/O threads.
    pub fn snapshot(&self) -> EngineSnapshot {
        let queues = self.queues().clone();
        stats::snapshot(&self.inner.shared, &queues, clock::now())
    }

    /// How far its I/O threads are; any thread, without disturbing them. Always the same threads, in the same order.
    pub fn pulses(&self) -> Vec<Pulse> {
        let Inner { shared, submitter, poller, .. } = &*self.inner;
        let poller = poller.as_ref().map(|poller| poller.pulse(shared.poller_turns.get()));
        std::iter::once(submitter.pulse(shared.submitter_turns.get())).chain(poller).collect()
    }

    /// Takes no more requests, holds none back for limits any more, and waits up to `limit` for the accepted ones to be answered, or to be of those that are left to
    /// the next daemon, which stay behind their fences from then on.
    pub fn drain(&self, limit: Duration) -> DrainReport {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move || {
            let _ = sender.send(());
        });
        if self.inner.injector.send(Command::Drain { done }).is_err() {
            return DrainReport::default();
        }
        match receiver.recv_timeout(limit) {
            Ok(()) => DrainReport { late: 0, kept: self.pending() },
            Err(_) => DrainReport { late: self.pending(), kept: 0 },
        }
    }

    /// Ends the threads. What is in flight is left to the driver, which waits for the kernel before it frees anything.
    ///
    /// The journal stays, and with it the sessions that were not closed, for the next engine of this name: it finds them dormant,
    /// those that were never resumed here as well, with every request that was accepted and not answered. SQEs that were not
    /// taken stay in the rings. Who wants a session to end with the engine closes it first.
    pub fn stop(&self) {
        let _ = self.inner.injector.send(Command::Stop);
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic in an I/O thread was reported by the panic hook.
            let _ = thread.join();
        }
    }

    fn pending(&self) -> u64 {
        self.snapshot().classes.iter().map(|class| class.counters.queued + class.counters.in_flight).sum()
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<QueueShared>>> {
        self.inner.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dormant_list(&self) -> MutexGuard<'_, Vec<DormantSession>> {
        self.inner.dormant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(inject::Reply<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |outcome| {
            let _ = sender.send(outcome);
        });
        self.inner.injector.send(command(reply)).map_err(|_| self.stopped())?;
        receiver.recv().map_err(|_| self.stopped())?
    }

    /// Hands a closure over; gives what its result comes through.
    fn inject<T: Send + 'static>(
        &self,
        closure: impl FnOnce(&mut dyn IoThread) -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>, EngineError> {
        let (sender, receiver) = mpsc::channel();
        let closure = Command::Run(Box::new(move |thread| {
            let _ = sender.send(closure(thread));
        }));
        self.inner.injector.send(closure).map_err(|_| self.stopped())?;
        Ok(receiver)
    }

    fn stopped(&self) -> EngineError {
        EngineError::Stopped(self.inner.info.name.clone())
    }
}

/// Counters of the queues of a session, in the order of its spec.
fn counters_of(spec: &SessionSpec) -> Vec<Arc<QueueShared>> {
    let counters = spec.queues.iter().map(|attach| {
        let layout = spec.layout.queues.get(attach.index as usize);
        let (sq, cq) = layout.map_or((0, 0), |layout| (layout.sq_entries, layout.cq_entries));
        Arc::new(QueueShared::new(spec.session_id, attach.index, sq, cq))
    });
    counters.collect()
}

/// Loop of a Submitter that reaps.
fn run_alone<S: SubmitHalf, R: ReapHalf>(
    mut submitter: Submitter<S>,
    mut reaper: Reaper<R>,
    spin_limit: Nanos,
) -> io::Result<()> {
    let mut idle = Idle::new(spin_limit, clock::now());
    while !submitter.stopped() {
        let now = clock::now();
        let work = submitter.turn(now) + reaper.turn(now);
        match idle.step(now, work > 0, submitter.in_flight() > 0) {
            Step::Work => {}
            Step::Spin => std::hint::spin_loop(),
            Step::Sleep => submitter.sleep(|| reaper.has_posts())?,
        }
    }
    Ok(())
}

/// Loop of a Submitter beside a Poller. It waits for clients alone.
fn run_beside<S: SubmitHalf>(mut submitter: Submitter<S>, spin_limit: Nanos) -> io::Result<()> {
    let mut idle = Idle::new(spin_limit, clock::now());
    while !submitter.stopped() {
        let now = clock::now();
        match idle.step(now, submitter.turn(now) > 0, false) {
            Step::Work => {}
            Step::Spin => std::hint::spin_loop(),
            Step::Sleep => submitter.sleep(|| false)?,
        }
    }
    Ok(())
}

fn spawn(
    config: &EngineConfig,
    life: Life,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    let name = life.thread.clone();
    let engine = config.name.clone();
    let thread = name.clone();
    let body = move || {
        life.begin();
        if let Err(error) = run() {
            // Without this thread no request is answered: end, so that a supervisor starts the daemon again.
            tracing::error!(engine, thread, %error, "I/O thread cannot wait for the kernel; the daemon ends");
            std::process::abort();
        }
    };
    std::thread::Builder::new().name(name).spawn(body).map_err(|source| EngineError::System {
        engine: config.name.clone(),
        what: "starting an I/O thread",
        source,
    })
}
