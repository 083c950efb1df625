//! An engine driven by its turns, and a client made of the bare ring ends: no threads, no daemon.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use ferrio_driver::{Driver, OpenOptions, Target, select::BackendChoice};
use ferrio_engine::{
    EngineConfig, EngineError, Grant, MergeLimits, QueueAttach, Resumed, SessionSpec, Threads, VolumeId,
    clock::{self, Nanos},
    engine::Threaded,
    inject::{Command, Reply},
    scheduler::DEFAULT_WEIGHT,
    stats::{self, EngineSnapshot, QueueShared},
};
use ferrio_shm::{
    abi::Opcode,
    doorbell::{DoorbellRx, DoorbellTx, doorbell_to_client, doorbell_to_daemon},
    entry::{Cqe, Sqe},
    layout::{QueueSpec, SessionLayout},
    mapping::{MappedQueue, Mapping, Region, SessionHeader, create_memfd},
    ring::{CqConsumer, SqProducer},
};

use tempfile::TempDir;

pub mod puppet;

pub const BLOCK: u64 = 4096;
pub const VOLUME_BYTES: u64 = 1 << 20;
pub const ARENA_BYTES: u64 = 1 << 20;

/// A request for one block; its data lies in the arena where the volume has it.
pub fn request(op: Opcode, user_data: u64, offset: u64) -> Sqe {
    Sqe { op: op as u8, user_data, offset, length: BLOCK, region_offset: offset, ..Sqe::default() }
}

/// A callback, and what it sends when it is called.
pub fn done() -> (Box<dyn FnOnce() + Send>, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move || sender.send(()).unwrap()), receiver)
}

/// A region of `bytes`, as the daemon and as the client have it.
pub fn region(bytes: u64) -> (Region, Arc<Mapping>) {
    let memfd = create_memfd("region", bytes).unwrap();
    let map = || Arc::new(Mapping::new(memfd.as_fd(), usize::try_from(bytes).unwrap()).unwrap());
    (Region::new(map(), 0, bytes).unwrap(), map())
}

/// Engine under test.
pub struct Rig<D: Driver> {
    pub parts: Threaded<D>,
    /// Of its volumes, and of its journal.
    dir: [Arc<TempDir>; 2],
    pub queues: Vec<Arc<QueueShared>>,
    /// What a turn is told about the time.
    pub clock: fn() -> Nanos,
    /// Features of the sessions that are opened.
    pub features: u64,
    /// Sleeps when there is nothing to do, as the thread would.
    pub sleeps: bool,
    /// Requests of the sessions that are opened may be joined.
    pub merge: bool,
    next_session: u64,
    config: EngineConfig,
}

/// What an engine leaves to the next one.
#[derive(Clone)]
pub struct Seed {
    dir: [Arc<TempDir>; 2],
    clock: fn() -> Nanos,
    features: u64,
    sleeps: bool,
    merge: bool,
    next_session: u64,
    pub config: EngineConfig,
}

/// Client side of one queue of one session.
pub struct Client {
    pub id: u64,
    pub memfd: OwnedFd,
    pub memory: Arc<Mapping>,
    pub layout: SessionLayout,
    pub sq: SqProducer<MappedQueue>,
    pub cq: CqConsumer<MappedQueue>,
    pub to_daemon: Option<DoorbellTx>,
    pub from_daemon: DoorbellRx,
    pub fault: Arc<Mutex<Option<String>>>,
}

impl<D: Driver> Rig<D> {
    pub fn new(depth: u32, requests_max: u32) -> Self {
        Self::with_threads(depth, requests_max, Threads::One)
    }

    /// With two threads, the caller turns both halves all the same.
    pub fn with_threads(depth: u32, requests_max: u32, threads: Threads) -> Self {
        // A directory of a disk file system, so that O_DIRECT and short files behave as in life. Examples are not given one.
        let parent = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = Arc::new(tempfile::tempdir_in(parent).unwrap());
        // On tmpfs, as in life: a disk file system syncs what is renamed over something.
        let journal = Arc::new(tempfile::tempdir_in("/dev/shm").unwrap());
        let config = EngineConfig {
            name: "test".into(),
            backend: BackendChoice::Auto,
            depth,
            requests_max,
            queues_max: 16,
            sessions_max: 8,
            regions_per_session: 4,
            faults: false,
            threads,
            spin_us: 0,
            budgets: [4, 2, 2],
            merge: MergeLimits::default(),
            helpers: 2,
            journal: journal.path().join("journal"),
            epoch: 1,
        };
        let dir = [dir, journal];
        // A puppet shows requests one by one.
        let merge = D::NAME != puppet::Puppet::NAME;
        let seed =
            Seed { dir, clock: clock::now, features: 0, sleeps: false, merge, next_session: 1, config };
        Self::again(seed).unwrap()
    }

    /// What the next engine starts from.
    pub fn seed(&self) -> Seed {
        let Self { clock, features, sleeps, merge, next_session, .. } = *self;
        let (dir, config) = (self.dir.clone(), self.config.clone());
        Seed { dir, clock, features, sleeps, merge, next_session, config }
    }

    /// Takes the journal of another engine over.
    pub fn again(seed: Seed) -> Result<Self, EngineError> {
        let Seed { dir, clock, features, sleeps, merge, next_session, config } = seed;
        let parts = Threaded::<D>::new(&config)?;
        Ok(Self { parts, dir, queues: Vec::new(), clock, features, sleeps, merge, next_session, config })
    }

    /// The engine ends where it stands, and another one, of another configuration perhaps, takes its journal over.
    pub fn restart(self, change: impl FnOnce(&mut EngineConfig)) -> Result<Self, EngineError> {
        let mut seed = self.seed();
        drop(self);
        change(&mut seed.config);
        Self::again(seed)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir[0].path().join(name)
    }

    pub fn file_target(&self, name: &str) -> Arc<Target> {
        let path = self.file(name);
        std::fs::write(&path, vec![0xa5; usize::try_from(VOLUME_BYTES).unwrap()]).unwrap();
        Arc::new(Target::open(&path, &OpenOptions::default()).unwrap())
    }

    pub fn add_volume(&mut self, target: Arc<Target>) -> VolumeId {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.command(Command::AddVolume { target, reply });
        receiver.try_recv().unwrap().unwrap()
    }

    pub fn open(&mut self, volume: VolumeId, entries: u32) -> Client {
        self.try_open(volume, entries).unwrap()
    }

    pub fn try_open(&mut self, volume: VolumeId, entries: u32) -> Result<Client, EngineError> {
        self.open_on(&[volume], entries)
    }

    /// Opens a session that may use these volumes, by their place.
    pub fn open_on(&mut self, volumes: &[VolumeId], entries: u32) -> Result<Client, EngineError> {
        let layout =
            SessionLayout::new(&[QueueSpec { sq_entries: entries, cq_entries: entries }], ARENA_BYTES)
                .unwrap();
        let memfd = create_memfd("test", layout.memory_bytes).unwrap();
        let bytes = usize::try_from(layout.memory_bytes).unwrap();
        let daemon = Arc::new(Mapping::new(memfd.as_fd(), bytes).unwrap());
        let memory = Arc::new(Mapping::new(memfd.as_fd(), bytes).unwrap());
        let id = self.next_session;
        SessionHeader::new(Arc::clone(&daemon)).unwrap().init(id, 1, &layout);
        let fault = Arc::new(Mutex::new(None));
        let (spec, to_daemon, from_daemon) = self.spec(id, daemon, &layout, volumes, &fault);
        let shared = vec![self.counters(&spec)];
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
        self.command(Command::OpenSession { spec: Box::new(spec), shared, reply });
        receiver.try_recv().unwrap()?;
        self.next_session += 1;
        let queue = MappedQueue::new(Arc::clone(&memory), &layout.queues[0]).unwrap();
        Ok(Client {
            id,
            memfd,
            sq: SqProducer::new(queue.clone()),
            cq: CqConsumer::new(queue),
            memory,
            layout,
            to_daemon: Some(to_daemon),
            from_daemon,
            fault,
        })
    }

    /// The session of a client whose engine has ended goes on.
    pub fn resume(&mut self, client: &mut Client, volumes: &[VolumeId]) -> Result<Resumed, EngineError> {
        let daemon = Arc::new(Mapping::new(client.memfd.as_fd(), client.memory.len()).unwrap());
        let (spec, to_daemon, from_daemon) =
            self.spec(client.id, daemon, &client.layout, volumes, &client.fault);
        let shared = vec![self.counters(&spec)];
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
        assert!(
            self.parts.injector.send(Command::ResumeSession { spec: Box::new(spec), shared, reply }).is_ok()
        );
        self.parts.submitter.turn((self.clock)());
        let resumed = receiver.try_recv().unwrap()?;
        (client.to_daemon, client.from_daemon) = (Some(to_daemon), from_daemon);
        Ok(resumed)
    }

    fn spec(
        &self,
        session_id: u64,
        memory: Arc<Mapping>,
        layout: &SessionLayout,
        volumes: &[VolumeId],
        fault: &Arc<Mutex<Option<String>>>,
    ) -> (SessionSpec, DoorbellTx, DoorbellRx) {
        let (to_daemon, doorbell) = doorbell_to_daemon().unwrap();
        let (cq_doorbell, from_daemon) = doorbell_to_client().unwrap();
        let seen = Arc::clone(fault);
        let spec = SessionSpec {
            session_id,
            memory,
            layout: layout.clone(),
            queues: vec![QueueAttach { index: 0, cq_doorbell }],
            doorbell,
            regions: Vec::new(),
            grants: volumes.iter().map(|volume| Some(Grant { volume: *volume, writable: true })).collect(),
            features: self.features,
            weight: DEFAULT_WEIGHT,
            group: None,
            merge: self.merge,
            on_fault: Box::new(move |reason| *seen.lock().unwrap() = Some(reason)),
        };
        (spec, to_daemon, from_daemon)
    }

    fn counters(&mut self, spec: &SessionSpec) -> Arc<QueueShared> {
        let layout = &spec.layout.queues[0];
        let shared = Arc::new(QueueShared::new(spec.session_id, 0, layout.sq_entries, layout.cq_entries));
        self.queues.push(Arc::clone(&shared));
        shared
    }

    pub fn command(&mut self, command: Command) {
        assert!(self.parts.injector.send(command).is_ok());
        self.turn();
    }

    /// One turn of the Submitter and of the reaper.
    pub fn turn(&mut self) -> u32 {
        let now = (self.clock)();
        self.parts.submitter.turn(now) + self.parts.reaper.turn(now)
    }

    /// Turns until `done`, at most ten seconds.
    pub fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            assert!(Instant::now() < limit, "waited ten seconds for {what}: {:?}", self.snapshot());
            if self.turn() == 0 && self.sleeps {
                let Threaded { submitter, reaper, .. } = &mut self.parts;
                submitter.sleep(|| reaper.has_posts()).unwrap();
            }
        }
    }

    /// Hands over a command without reaping.
    pub fn send(&mut self, command: Command) {
        assert!(self.parts.injector.send(command).is_ok());
        self.parts.submitter.turn(clock::now());
    }

    /// Requests accepted and not answered.
    pub fn pending(&self) -> u64 {
        let classes = self.snapshot().classes;
        classes.iter().map(|class| class.counters.queued + class.counters.in_flight).sum()
    }

    /// Turns the Submitter alone until `requests` are accepted and not answered.
    pub fn take(&mut self, requests: u64) {
        while self.pending() < requests {
            self.parts.submitter.turn(clock::now());
        }
    }

    /// Results by user_data, of exactly `count` answers.
    pub fn results(&mut self, client: &mut Client, count: usize) -> BTreeMap<u64, i32> {
        let mut cqes = Vec::new();
        self.turn_until("answers", |_| {
            client.reap(&mut cqes);
            cqes.len() >= count
        });
        (0..10).for_each(|_| {
            self.turn();
        });
        client.reap(&mut cqes);
        let results: BTreeMap<u64, i32> = cqes.iter().map(|cqe| (cqe.user_data, cqe.result)).collect();
        assert_eq!((cqes.len(), results.len()), (count, count), "each request has one answer: {cqes:?}");
        results
    }

    /// The one answer to one request.
    pub fn result(&mut self, client: &mut Client, sqe: Sqe) -> i32 {
        client.submit(&[sqe]);
        self.results(client, 1)[&sqe.user_data]
    }

    /// Asks for something and waits for its outcome, without reaping.
    pub fn ask<T: Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (sender, receiver) = mpsc::channel();
        self.send(command(Box::new(move |outcome| sender.send(outcome).unwrap())));
        receiver.try_recv().unwrap()
    }

    pub fn snapshot(&self) -> EngineSnapshot {
        stats::snapshot(&self.parts.shared, &self.queues, clock::now())
    }
}

impl Client {
    pub fn submit(&mut self, sqes: &[Sqe]) {
        for sqe in sqes {
            self.sq.push(sqe).expect("room in the SQ");
        }
        self.publish();
    }

    pub fn publish(&mut self) {
        if self.sq.publish()
            && let Some(doorbell) = &self.to_daemon
        {
            doorbell.ring().unwrap();
        }
    }

    pub fn reap(&mut self, into: &mut Vec<Cqe>) {
        while let Some(cqe) = self.cq.pop().unwrap() {
            into.push(cqe);
        }
        self.cq.release();
    }

    /// Words of the arena.
    pub fn arena(&self, offset: u64, bytes: u64) -> &[std::sync::atomic::AtomicU64] {
        let start = usize::try_from(self.layout.arena_offset + offset).unwrap();
        self.memory.u64s(start, usize::try_from(bytes / 8).unwrap()).unwrap()
    }
}
