//! What an `IoContext` costs beside a ring session: 4 KiB reads at depths 1 and 32, in turns, on one engine each.
//!
//! ```console
//! $ cargo bench -p ferrio-engine --bench context            # null and memory volumes
//! $ cargo bench -p ferrio-engine --bench context -- FILE    # and this file, past the page cache
//! ```
//!
//! The ring session is a client that polls its rings and does nothing else. Ratios are medians over pairs of runs.

use std::{
    env,
    hint::spin_loop,
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use ferrio_driver::{OpenOptions, Target, select::BackendChoice};
use ferrio_engine::{
    DEFAULT_WEIGHT, Engine, EngineConfig, Grant, MergeLimits, QueueAttach, SessionSpec, Threads, VolumeId,
    context::{
        Channel, IoBuffer, IoCallback, IoCompletion, IoContext, IoContextBuilder, IoEvent, IoVolume,
        IoWorkers,
    },
    scheduler::DEFAULT_BUDGETS,
};
use ferrio_shm::{
    abi::Opcode,
    doorbell::{DoorbellTx, doorbell_to_client, doorbell_to_daemon},
    entry::Sqe,
    layout::{QueueSpec, SessionLayout},
    mapping::{MappedQueue, Mapping, SessionHeader, create_memfd},
    ring::{CqConsumer, SqProducer},
};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const DEPTHS: [u32; 2] = [1, 32];
/// Length of a run.
const RUN: Duration = Duration::from_millis(300);
const PAIRS: usize = 9;

struct Bed {
    engine: Engine,
    volume: VolumeId,
    blocks: u64,
    _journal: TempDir,
}

impl Bed {
    fn new(backend: BackendChoice, target: Target) -> Self {
        let journal = tempfile::tempdir_in("/dev/shm").expect("a directory for the journal");
        let config = EngineConfig {
            name: "bench".into(),
            backend,
            depth: 128,
            requests_max: 1024,
            queues_max: 16,
            sessions_max: 4,
            regions_per_session: 0,
            faults: false,
            threads: Threads::Auto,
            spin_us: 50,
            budgets: DEFAULT_BUDGETS,
            merge: MergeLimits::default(),
            helpers: 2,
            journal: journal.path().join("journal"),
            epoch: 1,
        };
        let engine = Engine::start(&config).expect("an engine");
        let blocks = target.size_bytes() / BLOCK as u64;
        let volume = engine.add_volume(Arc::new(target)).expect("a volume");
        Self { engine, volume, blocks, _journal: journal }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// Scattered, the same for all.
fn offset(n: u64, blocks: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks * BLOCK as u64
}

// ---- the ring session

struct Ring {
    sq: SqProducer<MappedQueue>,
    cq: CqConsumer<MappedQueue>,
    doorbell: DoorbellTx,
    blocks: u64,
    depth: u32,
}

impl Ring {
    fn open(bed: &Bed, depth: u32) -> Self {
        let arena = u64::from(depth) * BLOCK as u64;
        let layout =
            SessionLayout::new(&[QueueSpec { sq_entries: depth, cq_entries: depth }], arena).expect("fits");
        let memfd = create_memfd("session", layout.memory_bytes).expect("a memfd");
        let map = || Arc::new(Mapping::new(memfd.as_fd(), layout.memory_bytes as usize).expect("mapped"));
        let (memory, client) = (map(), map());
        SessionHeader::new(Arc::clone(&memory)).expect("a header").init(1, 1, &layout);
        let (to_engine, doorbell) = doorbell_to_daemon().expect("an eventfd");
        let (cq_doorbell, _) = doorbell_to_client().expect("sockets");
        let queue = MappedQueue::new(client, &layout.queues[0]).expect("fits");
        let spec = SessionSpec {
            session_id: 1,
            memory,
            layout,
            queues: vec![QueueAttach { index: 0, cq_doorbell }],
            doorbell,
            regions: Vec::new(),
            grants: vec![Some(Grant { volume: bed.volume, writable: false })],
            features: 0,
            weight: DEFAULT_WEIGHT,
            group: None,
            merge: true,
            on_fault: Box::new(|reason| panic!("{reason}")),
        };
        bed.engine.open_session(spec).expect("a session");
        Self {
            sq: SqProducer::new(queue.clone()),
            cq: CqConsumer::new(queue),
            doorbell: to_engine,
            blocks: bed.blocks,
            depth,
        }
    }

    /// Reads per second.
    fn run(&mut self) -> f64 {
        let (start, mut n, mut answered) = (Instant::now(), 0, 0);
        while start.elapsed() < RUN || answered < n {
            while start.elapsed() < RUN && self.sq.has_room() {
                let slot = n % u64::from(self.depth);
                let offset = offset(n, self.blocks);
                let region_offset = slot * BLOCK as u64;
                let op = Opcode::Read as u8;
                self.sq
                    .push(&Sqe { op, offset, length: BLOCK as u64, region_offset, ..Sqe::default() })
                    .expect("room");
                n += 1;
            }
            if self.sq.publish() {
                self.doorbell.ring().expect("rung");
            }
            while let Some(cqe) = self.cq.pop().expect("a good ring") {
                assert_eq!(usize::try_from(cqe.result), Ok(BLOCK));
                answered += 1;
            }
            self.cq.release();
            spin_loop();
        }
        answered as f64 / start.elapsed().as_secs_f64()
    }
}

// ---- the context

struct Load {
    context: IoContext<Again>,
    volume: IoVolume,
    blocks: u64,
    next: AtomicU64,
    running: AtomicBool,
}

/// Goes on with the next read.
struct Again(Arc<Load>);

impl IoCallback for Again {
    fn call(self, completion: IoCompletion) {
        let buffer = completion.into_buffer().expect("read").expect("with its buffer");
        if self.0.running.load(Relaxed) {
            submit(self.0, buffer);
        }
    }
}

fn submit(load: Arc<Load>, buffer: IoBuffer) {
    let n = load.next.fetch_add(1, Relaxed);
    let event = IoEvent::read(load.volume, offset(n, load.blocks), buffer);
    let context = Arc::clone(&load);
    // At the end of a run it is shutting down.
    let _ = context.context.submit(event.callback(Again(load)), Channel::Read);
}

fn context<C: IoCallback>(bed: &Bed, workers: usize, depth: u32) -> (IoContext<C>, IoVolume) {
    let mut builder = IoContextBuilder::new().on(&bed.engine).depth(depth);
    let volume = builder.known_volume(bed.volume, false);
    let workers = IoWorkers::new(workers).expect("threads");
    (builder.start(&workers).expect("a context"), volume)
}

/// Reads per second by callbacks.
fn callbacks(bed: &Bed, workers: usize, depth: u32) -> f64 {
    let (context, volume) = context(bed, workers, depth);
    let (next, running) = (AtomicU64::new(0), AtomicBool::new(true));
    let load = Arc::new(Load { context, volume, blocks: bed.blocks, next, running });
    let start = Instant::now();
    for _ in 0..depth {
        submit(Arc::clone(&load), load.context.buffer(BLOCK).expect("memory"));
    }
    thread::sleep(RUN);
    load.running.store(false, Relaxed);
    let report = load.context.shutdown(Duration::from_secs(10));
    report.answered as f64 / start.elapsed().as_secs_f64()
}

/// Reads per second from `threads` threads that submit without waiting, and what a submission took, nanoseconds.
fn submitters(bed: &Bed, threads: u32) -> (f64, f64) {
    let (context, volume) = context::<()>(bed, 0, 32);
    let start = Instant::now();
    let each = || {
        let (mut taken, mut spent, mut n) = (0_u64, Duration::ZERO, 0);
        while start.elapsed() < RUN {
            let Ok(buffer) = context.buffer(BLOCK) else { continue };
            n += 1;
            let event = IoEvent::read(volume, offset(n, bed.blocks), buffer);
            let before = Instant::now();
            let submitted = context.submit(event, Channel::Read);
            if submitted.is_ok() {
                spent += before.elapsed();
                taken += 1;
            } else {
                thread::yield_now();
            }
        }
        spent.as_nanos() as f64 / taken.max(1) as f64
    };
    let spent: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(each)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let report = context.shutdown(Duration::from_secs(10));
    let mean = spent.iter().sum::<f64>() / spent.len() as f64;
    (report.answered as f64 / start.elapsed().as_secs_f64(), mean)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(name: &str, bed: &Bed) {
    for (depth, workers) in DEPTHS.into_iter().flat_map(|depth| [0, 1, 2].map(|workers| (depth, workers))) {
        let (mut rings, mut contexts, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let of_ring = Ring::open(bed, depth).run();
            bed.engine.close_session(1, Box::new(|| ()));
            let of_context = callbacks(bed, workers, depth);
            rings.push(of_ring);
            contexts.push(of_context);
            ratios.push(of_context / of_ring);
        }
        println!(
            "{name}, depth {depth}: ring {:.0}/s, context with {workers} callback workers {:.0}/s, ratio {:.2}",
            median(rings),
            median(contexts),
            median(ratios)
        );
    }
}

fn main() {
    // cargo bench passes --bench, and cargo test runs this without.
    if !env::args().any(|word| word == "--bench") {
        return;
    }
    let null = Bed::new(BackendChoice::Null, Target::null(1 << 30, 512));
    compare("null", &null);
    for threads in [1, 2, 4] {
        let (per_second, nanos) = submitters(&null, threads);
        println!("null: {threads} submitting threads: {per_second:.0}/s, {nanos:.0} ns a submission");
    }
    let memory = Bed::new(BackendChoice::Auto, Target::memory(64 << 20).expect("memory"));
    compare("memory", &memory);
    for path in env::args().skip(1).filter(|word| !word.starts_with('-')) {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let target = Target::open(Path::new(&path), &options).unwrap_or_else(|error| panic!("{error}"));
        compare(&path, &Bed::new(BackendChoice::Auto, target));
    }
}
