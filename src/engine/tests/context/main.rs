//! [`IoContext`]: the engine in a process, over real threads.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use ferrio_driver::{
    FaultEffect, FaultOps, FaultPlan, FaultRule, Target,
    select::{self, BackendChoice},
};
use ferrio_engine::{
    Engine, EngineConfig, MergeLimits, Threads, VolumeId,
    context::{IoCallback, IoCompletion, IoContext, IoContextBuilder, IoVolume, IoWorkers},
};
use tempfile::TempDir;

mod backpressure;
mod callbacks;
mod end;
mod futures;
mod programs;
mod shared;

type Callback = Box<dyn FnOnce(IoCompletion) + Send>;

const BLOCK: usize = 4096;
const VOLUME_BYTES: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(10);

/// An engine that a test has for itself, or shares out; it makes faults.
struct TestEngine {
    engine: Engine,
    _journal: TempDir,
}

impl TestEngine {
    fn new(backend: BackendChoice) -> Self {
        let journal = tempfile::tempdir_in("/dev/shm").unwrap();
        let config = EngineConfig {
            name: "test".into(),
            backend,
            depth: 64,
            requests_max: 1024,
            queues_max: 64,
            sessions_max: 16,
            regions_per_session: 0,
            faults: true,
            threads: Threads::Auto,
            spin_us: 0,
            budgets: [4, 2, 2],
            merge: MergeLimits::default(),
            helpers: 2,
            journal: journal.path().join("journal"),
            epoch: 1,
        };
        Self { engine: Engine::start(&config).unwrap(), _journal: journal }
    }

    fn volume(&self) -> VolumeId {
        self.engine.add_volume(Arc::new(Target::memory(VOLUME_BYTES).unwrap())).unwrap()
    }

    fn faults(&self, volume: VolumeId, ops: FaultOps, effect: FaultEffect) {
        let plan = FaultPlan { seed: 1, rules: vec![FaultRule::new(ops, effect)] };
        self.engine.set_faults(volume, plan).unwrap();
    }

    fn context<C: IoCallback>(
        &self,
        volume: VolumeId,
        depth: u32,
        workers: &IoWorkers<C>,
    ) -> (IoContext<C>, IoVolume) {
        let mut builder = IoContextBuilder::new().on(&self.engine).depth(depth);
        let volume = builder.known_volume(volume, true);
        (builder.start(workers).unwrap(), volume)
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// A context on an engine of its own, over memory.
fn context<C: IoCallback>(depth: u32, workers: &IoWorkers<C>) -> (IoContext<C>, IoVolume) {
    let mut builder = IoContextBuilder::new().depth(depth);
    let volume = builder.volume(Arc::new(Target::memory(VOLUME_BYTES).unwrap()));
    (builder.start(workers).unwrap(), volume)
}

fn workers<C: IoCallback>(threads: usize) -> IoWorkers<C> {
    IoWorkers::new(threads).unwrap()
}

/// Wakes a thread, and counts how often.
struct Unpark(thread::Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, SeqCst);
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current(), AtomicUsize::new(0))));
    let mut future = pin!(future);
    let until = Instant::now() + LIMIT;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(until.saturating_duration_since(Instant::now()));
        assert!(Instant::now() < until, "waited ten seconds for a future");
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < until, "waited ten seconds for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends completions, which may still be on their way when the test ends.
fn sending(sender: &mpsc::Sender<IoCompletion>) -> Callback {
    let sender = sender.clone();
    Box::new(move |completion| {
        let _ = sender.send(completion);
    })
}

/// Polls once, with a waker that counts.
fn poll_once<F: Future + Unpin>(future: &mut F) -> (Poll<F::Output>, Arc<Unpark>) {
    let unpark = Arc::new(Unpark(thread::current(), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&unpark));
    (Pin::new(future).poll(&mut Context::from_waker(&waker)), unpark)
}

/// A backend of this machine.
fn backends() -> Vec<BackendChoice> {
    let probe = select::probe();
    let found = [(BackendChoice::IoUring, probe.io_uring), (BackendChoice::Aio, probe.aio)];
    let works = |(backend, found): (BackendChoice, Result<(), String>)| match found {
        Ok(()) => Some(backend),
        Err(reason) => {
            eprintln!("SKIPPED: {backend}: {reason}");
            assert!(std::env::var_os("CI").is_none(), "not to be skipped in CI: {backend}: {reason}");
            None
        }
    };
    found.into_iter().filter_map(works).collect()
}
