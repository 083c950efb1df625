//! Two clients of a running engine, each a thread that sleeps when it has nothing to do, and what they see.

use std::{
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
    time::Duration,
};

use ferrio_engine::{
    DEFAULT_WEIGHT, Engine, Grant, QueueAttach, SessionSpec, VolumeId,
    clock::{self, Nanos},
};
use ferrio_shm::{
    abi::{Class, Opcode},
    doorbell::{DoorbellRx, DoorbellTx, doorbell_to_client, doorbell_to_daemon},
    entry::Sqe,
    layout::{QueueSpec, SessionLayout},
    mapping::{MappedQueue, Mapping, SessionHeader, create_memfd},
    ring::{CqConsumer, SqProducer},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most that a client has in flight.
pub const DEPTH_MAX: u32 = 128;
/// Largest request.
pub const BYTES_MAX: u64 = 64 << 10;
/// Time over which answers are counted together.
pub const BIN: Nanos = 10_000_000;
/// Bins: more than an hour.
const BINS: usize = 1 << 19;

/// What a client does, in a closed loop at random places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub op: Opcode,
    pub bytes: u64,
    pub depth: u32,
}

impl Load {
    const fn pack(self) -> u64 {
        (self.op as u64) << 56 | self.bytes << 16 | self.depth as u64
    }
}

/// What one thread tells the other.
struct Shared {
    /// A packed [`Load`]; 0: nothing.
    load: AtomicU64,
    /// Requests in flight.
    outstanding: AtomicU32,
    /// Answers by the time of their bin.
    bins: Box<[AtomicU32]>,
    began: Nanos,
    /// Of prio: time from submission to answer.
    latencies: Mutex<Vec<Nanos>>,
}

/// A client with one queue, and its thread.
pub struct Client {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<()>,
}

impl Client {
    /// Opens a session; `prio` marks its requests, and times them.
    pub fn open(engine: &Engine, id: u64, volume: VolumeId, volume_bytes: u64, prio: bool) -> Self {
        let shared = Arc::new(Shared {
            load: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
            bins: (0..BINS).map(|_| AtomicU32::new(0)).collect(),
            began: clock::now(),
            latencies: Mutex::default(),
        });
        let mut ends = Ends::open(engine, id, volume);
        let seen = Arc::clone(&shared);
        let body = move || ends.run(&seen, volume_bytes, prio);
        let thread = thread::Builder::new().name(format!("client-{id}")).spawn(body).unwrap();
        Self { shared, thread }
    }

    pub fn set(&self, load: Option<Load>) {
        self.shared.load.store(load.map_or(0, Load::pack), Release);
        self.thread.thread().unpark();
    }

    /// Waits until nothing is in flight.
    pub fn settle(&self) {
        while self.shared.outstanding.load(Acquire) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Answers a second in whole bins of this time.
    pub fn rate(&self, from: Nanos, until: Nanos) -> f64 {
        let bin = |at: Nanos| usize::try_from(at.saturating_sub(self.shared.began).div_ceil(BIN)).unwrap();
        let bins = &self.shared.bins[bin(from)..bin(until)];
        let answers: u64 = bins.iter().map(|bin| u64::from(bin.load(Relaxed))).sum();
        answers as f64 * 1e9 / (bins.len() as u64 * BIN).max(1) as f64
    }

    /// What was seen since the last call, in ascending order.
    pub fn take_latencies(&self) -> Vec<Nanos> {
        let mut latencies = std::mem::take(&mut *self.shared.latencies.lock().unwrap());
        latencies.sort_unstable();
        latencies
    }
}

/// The client's ends of its rings.
struct Ends {
    sq: SqProducer<MappedQueue>,
    cq: CqConsumer<MappedQueue>,
    to_daemon: DoorbellTx,
    from_daemon: DoorbellRx,
}

impl Ends {
    fn open(engine: &Engine, id: u64, volume: VolumeId) -> Self {
        let queue = QueueSpec { sq_entries: DEPTH_MAX, cq_entries: DEPTH_MAX };
        let layout = SessionLayout::new(&[queue], u64::from(DEPTH_MAX) * BYTES_MAX).unwrap();
        let memfd = create_memfd("latency-target", layout.memory_bytes).unwrap();
        let bytes = usize::try_from(layout.memory_bytes).unwrap();
        let map = || Arc::new(Mapping::new(memfd.as_fd(), bytes).unwrap());
        let (daemon, client) = (map(), map());
        SessionHeader::new(Arc::clone(&daemon)).unwrap().init(id, 1, &layout);
        let (to_daemon, doorbell) = doorbell_to_daemon().unwrap();
        let (cq_doorbell, from_daemon) = doorbell_to_client().unwrap();
        let queue = MappedQueue::new(client, &layout.queues[0]).unwrap();
        let spec = SessionSpec {
            session_id: id,
            memory: daemon,
            layout,
            queues: vec![QueueAttach { index: 0, cq_doorbell }],
            doorbell,
            regions: Vec::new(),
            grants: vec![Some(Grant { volume, writable: true })],
            features: 0,
            weight: DEFAULT_WEIGHT,
            group: None,
            merge: false,
            on_fault: Box::new(|reason| panic!("session faulted: {reason}")),
        };
        engine.open_session(spec).unwrap();
        Self { sq: SqProducer::new(queue.clone()), cq: CqConsumer::new(queue), to_daemon, from_daemon }
    }

    fn run(&mut self, shared: &Shared, volume_bytes: u64, prio: bool) {
        let mut rng = fastrand::Rng::with_seed(u64::from(prio));
        let mut free: Vec<u64> = (0..u64::from(DEPTH_MAX)).collect();
        let mut issued = [0; DEPTH_MAX as usize];
        let class = if prio { Class::Prio } else { Class::Default } as u8;
        loop {
            let packed = shared.load.load(Acquire);
            let (op, bytes) = ((packed >> 56) as u8, packed >> 16 & 0xff_ffff);
            let depth = (packed & 0xffff) as usize;
            let now = clock::now();
            while DEPTH_MAX as usize - free.len() < depth
                && let Some(slot) = free.pop()
            {
                let offset = rng.u64(..volume_bytes / bytes) * bytes;
                let (user_data, region_offset) = (slot, slot * BYTES_MAX);
                issued[slot as usize] = now;
                let sqe =
                    Sqe { op, class, user_data, offset, length: bytes, region_offset, ..Sqe::default() };
                self.sq.push(&sqe).expect("room for the depth");
            }
            if self.sq.publish() {
                self.to_daemon.ring().unwrap();
            }
            let outstanding = DEPTH_MAX - free.len() as u32;
            shared.outstanding.store(outstanding, Release);
            if outstanding == 0 {
                thread::park();
                continue;
            }
            self.wait();
            let now = clock::now();
            let mut answers = 0;
            while let Some(cqe) = self.cq.pop().unwrap() {
                assert!(cqe.result > 0, "{cqe:?}");
                free.push(cqe.user_data);
                answers += 1;
                if prio {
                    shared.latencies.lock().unwrap().push(now - issued[cqe.user_data as usize]);
                }
            }
            self.cq.release();
            let bin = (now - shared.began) / BIN;
            shared.bins[usize::try_from(bin).unwrap()].fetch_add(answers, Relaxed);
        }
    }

    fn wait(&mut self) {
        while self.cq.prepare_sleep() {
            let mut fds = [PollFd::new(&self.from_daemon, PollFlags::IN)];
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "no answer for ten seconds");
            self.from_daemon.drain().unwrap();
        }
    }
}
