//! The factory: an engine, or a share in one, and a session in it that never leaves the process.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use ferrio_driver::{Target, select::BackendChoice};
use ferrio_shm::{
    abi::features,
    arena::{AllocError, Arena},
    doorbell::{DoorbellRx, DoorbellTx, doorbell_to_daemon},
    fork::ForkGuard,
    layout::{LayoutError, PAGE_BYTES, QueueSpec, SessionLayout},
    mapping::{MappedQueue, Mapping, Region, SessionHeader, create_memfd},
};

use super::{
    IoContext, Shared,
    answer::IoCallback,
    close::{ReaperThread, Running, Volumes},
    event::{Channel, IoVolume},
    lane::Lane,
    reaper::Reaper,
    workers::IoWorkers,
};
use crate::{
    clock::{MICROSECOND, Nanos},
    config::{EngineConfig, EngineError, Threads},
    engine::Engine,
    merge::MergeLimits,
    scheduler::{DEFAULT_BUDGETS, DEFAULT_WEIGHT},
    session::{Grant, QueueAttach, SessionSpec, VolumeId},
    stats::QueueShared,
};

/// Greatest depth: what a driver takes.
const DEPTH_MAX: u32 = 4096;
/// Volumes that have an index.
const VOLUMES_MAX: usize = 1 << 16;
/// Contexts on an engine that a context has made.
const CONTEXTS_MAX: u32 = 64;
/// Fewest records that an engine may have.
const RECORDS_MIN: u32 = 64;
/// Session ids from here on are those of contexts; a daemon counts its sessions from 1.
const FIRST_ID: u64 = 1 << 63;

/// Why there is no context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Too deep, or not at all.
    #[error("a context of depth {depth} cannot be had: choose one from 1 to {DEPTH_MAX}")]
    Depth {
        /// What was asked for.
        depth: u32,
    },
    /// More volumes than an event can name.
    #[error(
        "{count} volumes are more than the {VOLUMES_MAX} that a context can have: make another context on its engine"
    )]
    Volumes {
        /// How many were given.
        count: usize,
    },
    /// The arena does not fit an address space.
    #[error("arena: {0}")]
    Layout(#[from] LayoutError),
    /// The engine cannot be started, or has no room for the context.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The arena cannot be had.
    #[error("arena: {0}")]
    Arena(#[from] AllocError),
    /// The system has no more of something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// Makes an [`IoContext`].
#[derive(Debug)]
pub struct IoContextBuilder {
    id: u64,
    name: String,
    depth: u32,
    backend: BackendChoice,
    spin_us: u32,
    arena_bytes: u64,
    cancellable: bool,
    weight: u32,
    group: Option<String>,
    home: Option<Home>,
    volumes: Vec<Source>,
}

#[derive(Debug)]
enum Source {
    /// Comes and goes with the context.
    Own(Arc<Target>),
    /// Of the engine.
    Known { volume: VolumeId, writable: bool },
}

/// The engine of a context.
#[derive(Clone, Debug)]
pub(super) enum Home {
    /// Somebody else's.
    Given(Engine),
    /// Of the contexts that share it.
    Own(Arc<OwnEngine>),
}

/// Stopped with the last context.
#[derive(Debug)]
pub(super) struct OwnEngine(Engine);

impl Home {
    pub fn engine(&self) -> &Engine {
        match self {
            Self::Given(engine) => engine,
            Self::Own(own) => &own.0,
        }
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the two sides of the session have.
struct Session {
    spec: SessionSpec,
    queues: [MappedQueue; 3],
    arena: Region,
    doorbell: DoorbellTx,
    answers: DoorbellRx,
    wake: DoorbellTx,
}

impl Default for IoContextBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl IoContextBuilder {
    /// A context of depth 128 with an arena of 16 MiB, on an engine of its own with the backend that works here.
    pub fn new() -> Self {
        // Of no use to anyone who guesses it; it only must not be taken. Without random numbers, that is for the engine to say.
        let random = getrandom::u64().unwrap_or(0);
        Self {
            id: FIRST_ID | random,
            name: "context".into(),
            depth: 128,
            backend: BackendChoice::Auto,
            spin_us: 50,
            arena_bytes: 16 << 20,
            cancellable: false,
            weight: DEFAULT_WEIGHT,
            group: None,
            home: None,
            volumes: Vec::new(),
        }
    }

    /// Name in logs and, cut off by the kernel after 15 bytes, in those of its threads.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        // The name of a thread must have none of these.
        self.name = name.into().replace('\0', "");
        self
    }

    /// Events that each channel takes before it gives them back, 1 to 4096; and most that an engine of its own has in the
    /// kernel at once.
    #[must_use]
    pub fn depth(mut self, depth: u32) -> Self {
        self.depth = depth;
        self
    }

    /// Backend of an engine of its own. [`IoContext::engine`] says which one `Auto` has chosen, and why.
    #[must_use]
    pub fn backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Longest time that the threads of the context, and of an engine of its own, look for work before they sleep, in
    /// microseconds; 0: they sleep at once. They find out by themselves when looking does not pay.
    #[must_use]
    pub fn spin_us(mut self, spin_us: u32) -> Self {
        self.spin_us = spin_us;
        self
    }

    /// Memory for buffers, in bytes; rounded up to 4096. It comes into being as it is used.
    #[must_use]
    pub fn arena_bytes(mut self, bytes: u64) -> Self {
        self.arena_bytes = bytes;
        self
    }

    /// Events may have a [`timeout`](super::IoEvent::timeout) and may be [cancelled](super::IoEvent::cancel). Not by default:
    /// the engine then keeps an account of each.
    #[must_use]
    pub fn cancellable(mut self, cancellable: bool) -> Self {
        self.cancellable = cancellable;
        self
    }

    /// Share of the context beside other contexts and sessions of its engine, 1 to 1000: see [`Engine::set_weight`].
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Group of the context, whose limits hold for it: see [`Engine::set_group`].
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Uses this engine, whoever else uses it: queues, scheduler, limits, driver and threads are then shared with the ring
    /// sessions and contexts that it has. The engine must not be stopped before the context is shut down.
    #[must_use]
    pub fn on(mut self, engine: &Engine) -> Self {
        self.home = Some(Home::Given(engine.clone()));
        self
    }

    /// Uses the engine of another context. An engine that a context has made is stopped with the last of its contexts.
    #[must_use]
    pub fn beside<C: IoCallback>(mut self, context: &IoContext<C>) -> Self {
        self.home = Some(context.home());
        self
    }

    /// Lets events name a file or block device. It is the context's until that is shut down.
    pub fn volume(&mut self, target: Arc<Target>) -> IoVolume {
        self.add(Source::Own(target))
    }

    /// Lets events name a volume of the engine that the context is [`on`](Self::on).
    pub fn known_volume(&mut self, volume: VolumeId, writable: bool) -> IoVolume {
        self.add(Source::Known { volume, writable })
    }

    fn add(&mut self, source: Source) -> IoVolume {
        self.volumes.push(source);
        // Too many are refused by start().
        let index = u16::try_from(self.volumes.len() - 1).unwrap_or(u16::MAX);
        IoVolume { context: self.id, index }
    }

    /// Makes the context; its callbacks run on these workers.
    ///
    /// # Errors
    /// A value is out of its range; the backend is not available; the engine has no room, or no such volume; or the system has
    /// no more memory, descriptors or threads.
    pub fn start<C: IoCallback>(self, workers: &IoWorkers<C>) -> Result<IoContext<C>, ContextError> {
        if !(1..=DEPTH_MAX).contains(&self.depth) {
            return Err(ContextError::Depth { depth: self.depth });
        }
        if self.volumes.len() > VOLUMES_MAX {
            return Err(ContextError::Volumes { count: self.volumes.len() });
        }
        let home = match &self.home {
            Some(home) => home.clone(),
            None => Home::Own(Arc::new(OwnEngine(self.start_engine()?))),
        };
        let guard = ForkGuard::new().map_err(system("mapping a page"))?;
        let (volumes, grants) = self.add_volumes(&home)?;
        let Session { spec, queues, arena, doorbell, answers, wake } = self.session(&guard, grants)?;
        let engine = home.engine();
        engine.open_session(spec)?;
        let open = Open { engine, id: self.id };
        let counters = engine.counters_of_session(self.id);
        let arena = Arena::new(0, arena, guard.clone())?;
        let lanes = self.lanes(&queues, &counters)?;
        let shared = Arc::new(Shared::new(self.id, self.name.clone(), lanes, arena, guard, doorbell));
        let reaper = Reaper::new(Arc::clone(&shared), workers.clone(), queues, answers);
        let reaper = self.spawn(reaper, wake)?;
        open.keep();
        let workers = workers.clone();
        Ok(IoContext::new(Arc::clone(&shared), Running { shared, home, volumes, reaper, workers }))
    }

    fn start_engine(&self) -> Result<Engine, ContextError> {
        // The engine answers out of a journal. Nobody comes back for that of a process that has ended: the file has no name any
        // more once the engine has it mapped.
        let shared_memory = std::path::Path::new("/dev/shm");
        let prefix = format!("ferrio-context-{}-", std::process::id());
        let mut directory = tempfile::Builder::new();
        directory.prefix(&prefix);
        let directory = directory.tempdir_in(shared_memory).or_else(|_| directory.tempdir());
        let directory =
            directory.map_err(system("making a directory for the journal in /dev/shm or TMPDIR"))?;
        // A session has at most half of the records, and each channel its depth.
        let requests_max = (2 * Channel::ALL.len() as u32 * self.depth).max(RECORDS_MIN);
        let config = EngineConfig {
            name: self.name.clone(),
            backend: self.backend,
            depth: self.depth,
            requests_max,
            queues_max: CONTEXTS_MAX * Channel::ALL.len() as u32,
            sessions_max: CONTEXTS_MAX,
            regions_per_session: 0,
            faults: false,
            threads: Threads::Auto,
            spin_us: self.spin_us,
            budgets: DEFAULT_BUDGETS,
            merge: MergeLimits::default(),
            helpers: 4,
            journal: directory.path().join("journal"),
            epoch: 1,
        };
        Ok(Engine::start(&config)?)
    }

    fn add_volumes(&self, home: &Home) -> Result<(Volumes, Vec<Option<Grant>>), ContextError> {
        let mut added = Volumes::new(home.engine());
        let mut grants = Vec::with_capacity(self.volumes.len());
        for source in &self.volumes {
            let (volume, writable) = match source {
                Source::Own(target) => (added.add(target)?, !target.read_only()),
                Source::Known { volume, writable } => (*volume, *writable),
            };
            grants.push(Some(Grant { volume, writable }));
        }
        Ok((added, grants))
    }

    fn session(&self, guard: &ForkGuard, grants: Vec<Option<Grant>>) -> Result<Session, ContextError> {
        // Twice the places: the answer to an event that the engine refuses may be here, and its place filled again, before the
        // engine has given the SQEs back that it took with it, at most `depth` of them.
        let entries = 2 * self.depth.next_power_of_two();
        let rings = Channel::ALL.map(|_| QueueSpec { sq_entries: entries, cq_entries: entries });
        let arena_bytes = self.arena_bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(!(PAGE_BYTES - 1));
        let layout = SessionLayout::new(&rings, arena_bytes)?;
        let bytes = usize::try_from(layout.memory_bytes).unwrap_or(usize::MAX);
        let memfd = create_memfd("ferrio-context", layout.memory_bytes)
            .map_err(system("making memory for rings and arena"))?;
        // Two mappings, as two processes have: what is a plain buffer in the one is never looked at through the other by us.
        let mapped = system("mapping rings and arena");
        let engine_side = Arc::new(Mapping::new(memfd.as_fd(), bytes).map_err(&mapped)?);
        let caller_side = Arc::new(Mapping::new_client(memfd.as_fd(), bytes, guard).map_err(&mapped)?);
        if let Some(header) = SessionHeader::new(Arc::clone(&engine_side)) {
            header.init(self.id, 1, &layout);
        }
        let fits = "the layout was made for this mapping";
        let arena = Region::new(Arc::clone(&caller_side), layout.arena_offset, arena_bytes).expect(fits);
        let queue = |channel: Channel| {
            let layout = &layout.queues[channel.index()];
            MappedQueue::new(Arc::clone(&caller_side), layout).expect(fits)
        };
        let queues = Channel::ALL.map(queue);
        let (doorbell, heard) = doorbell_to_daemon().map_err(system("making an eventfd"))?;
        // Both sides are one process, so that an eventfd serves in this direction too, and one for all channels.
        let (ring, answers) = doorbell_to_daemon().map_err(system("making an eventfd"))?;
        let (wake, attached) = attach(ring).map_err(system("duplicating an eventfd"))?;
        let name = self.name.clone();
        let spec = SessionSpec {
            session_id: self.id,
            memory: engine_side,
            layout,
            queues: attached,
            doorbell: heard,
            regions: Vec::new(),
            grants,
            features: self.features(),
            weight: self.weight,
            group: self.group.clone(),
            merge: true,
            on_fault: Box::new(move |reason| {
                tracing::error!(
                    context = name,
                    "the engine takes no more events: {reason}; something in this process has written to its memory"
                );
            }),
        };
        Ok(Session { spec, queues, arena, doorbell, answers, wake })
    }

    fn features(&self) -> u64 {
        let always = features::VECTORED | features::DISCARD | features::COMPARE_AND_WRITE;
        if self.cancellable { always | features::CANCEL } else { always }
    }

    fn lanes<C>(
        &self,
        queues: &[MappedQueue; 3],
        counters: &[Arc<QueueShared>],
    ) -> Result<[Lane<C>; 3], ContextError> {
        let [prio, read, write] = counters else {
            return Err(EngineError::NoSession { session: self.id }.into());
        };
        let lane = |channel: Channel, counters: &Arc<QueueShared>| {
            Lane::new(channel, self.depth, queues[channel.index()].clone(), Arc::clone(counters))
        };
        Ok([lane(Channel::Prio, prio), lane(Channel::Read, read), lane(Channel::Write, write)])
    }

    fn spawn<C: IoCallback>(
        &self,
        reaper: Reaper<C>,
        wake: DoorbellTx,
    ) -> Result<ReaperThread, ContextError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let spin_limit = Nanos::from(self.spin_us) * MICROSECOND;
        let context = self.name.clone();
        let body = move || {
            if let Err(error) = reaper.run(spin_limit, &stopped) {
                tracing::error!(
                    context,
                    "answers are not picked up any more: {error}; what is in flight is answered when the context is shut down"
                );
            }
        };
        let thread = thread::Builder::new().name(format!("reap-{}", self.name));
        let thread = thread.spawn(body).map_err(system("starting a thread"))?;
        Ok(ReaperThread { thread, stop, wake })
    }
}

/// A session that is closed again if the context does not come about.
struct Open<'a> {
    engine: &'a Engine,
    id: u64,
}

impl Open<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.engine.close_session(self.id, Box::new(|| ()));
    }
}

/// One ringing end for each channel, and one for us.
fn attach(ring: DoorbellTx) -> io::Result<(DoorbellTx, Vec<QueueAttach>)> {
    let ring = OwnedFd::from(ring);
    let attach = |channel: Channel| {
        let cq_doorbell = DoorbellTx::from_fd(ring.try_clone()?);
        Ok(QueueAttach { index: channel as u32, cq_doorbell })
    };
    let attached = Channel::ALL.into_iter().map(attach).collect::<io::Result<_>>()?;
    Ok((DoorbellTx::from_fd(ring), attached))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> ContextError {
    move |source| ContextError::System { what, source }
}
