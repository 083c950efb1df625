//! The proactor over every driver: each verb, other threads, answers that nobody waits for, and its end.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::injector::Refused;
use ferrio_driver::null::Null;
use ferrio_driver::proactor::{Cancel, Lost, OpId, Outcome, Proactor, ProactorConfig, RemoteCompleter};
use ferrio_driver::uring::Uring;
use ferrio_driver::{
    Driver, DriverConfig, FaultEffect, FaultOps, FaultPlan, FaultRule, FileIndex, Op, OpKind, OpenOptions,
    Pin, RegionIndex, SubmitHalf, Target,
};
use ferrio_shm::mapping::{Mapping, Region, create_memfd};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const BYTES: u64 = 1 << 20;

/// A proactor with a file of zeroes and memory.
struct Rig<D: Driver, R: Send + 'static> {
    proactor: Proactor<D, R>,
    file: FileIndex,
    region: RegionIndex,
    _directory: TempDir,
}

impl<D: Driver, R: Send + 'static> Rig<D, R> {
    fn new(depth: u32) -> Rig<D, R> {
        let driver = DriverConfig { depth, drain_limit: PATIENCE, ..DriverConfig::default() };
        Rig::with(&ProactorConfig { driver, ops_max: 2 * depth, closures_max: 64 })
    }

    fn with(config: &ProactorConfig) -> Rig<D, R> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
        let target = if D::NAME == Null::NAME {
            Target::null(BYTES, 512)
        } else {
            let options = OpenOptions { create_bytes: Some(BYTES), ..OpenOptions::default() };
            Target::open(&directory.path().join("volume"), &options).expect("target")
        };
        let mut proactor = Proactor::<D, R>::open(config).expect("driver");
        let file = proactor.register_files(&[Arc::new(target)]).expect("file")[0];
        let memory = create_memfd("ferrio-proactor", BYTES).expect("memfd");
        let mapping = Arc::new(Mapping::new(memory.as_fd(), BYTES as usize).expect("mapping"));
        let region = Region::new(mapping, 0, BYTES).expect("region");
        let region = proactor.register_regions(&[region], Pin::Yes).expect("region")[0];
        Rig { proactor, file, region, _directory: directory }
    }

    fn read(&self, place: u64) -> Op {
        let offset = place * 4096 % BYTES;
        let (file, region) = (self.file, self.region);
        Op { kind: OpKind::Read, file, region, region_offset: offset, length: 4096, offset, fua: false }
    }

    fn submit(&mut self, op: &Op, resources: R) -> OpId {
        let reserved = self.proactor.reserve().expect("a place");
        self.proactor.submit(reserved, op, resources).expect("room")
    }

    fn turn(&mut self) {
        self.proactor.wait(Some(Duration::from_millis(100))).expect("wait");
        self.proactor.process_completions();
    }

    fn until(&mut self, mut done: impl FnMut(&mut Rig<D, R>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "it never came");
            self.turn();
        }
    }

    fn answer(&mut self, op: OpId) -> Outcome<R> {
        let mut answer = None;
        self.until(|rig| {
            let polled = rig.proactor.poll_op(op, &mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(outcome) = polled {
                answer = Some(outcome.expect("nobody else takes it"));
            }
            answer.is_some()
        });
        answer.expect("just set")
    }
}

/// Holds every request to the file until [`let_go`].
fn stick<D: Driver, R: Send + 'static>(rig: &mut Rig<Fault<D>, R>) {
    let rules = vec![FaultRule::new(FaultOps::ALL, FaultEffect::Stuck)];
    let file = rig.file;
    rig.proactor.driver().set_faults(file, FaultPlan { seed: 0, rules }).expect("a good plan");
}

fn let_go<D: Driver, R: Send + 'static>(rig: &mut Rig<Fault<D>, R>) {
    let file = rig.file;
    rig.proactor.driver().set_faults(file, FaultPlan::default()).expect("a good plan");
}

macro_rules! over {
    ($($driver:ident: $type:ty => [$($test:ident),* $(,)?]),* $(,)?) => {
        $(mod $driver {
            use super::*;
            $(#[test] fn $test() { super::$test::<$type>(); })*
        })*
    };
}

over!(
    io_uring: Uring => [wakers, callbacks, remote_completers, remote_futures, closures, a_full_proactor, dropped_answers,
                        timers, cancels, the_end, all_or_none],
    aio: Aio => [wakers, callbacks, remote_completers, remote_futures, closures, a_full_proactor, dropped_answers,
                 timers, cancels, the_end, all_or_none],
    null: Null => [wakers, callbacks, remote_completers, remote_futures, closures, a_full_proactor, dropped_answers,
                   timers, cancels, the_end, all_or_none],
    fault: Fault<Uring> => [wakers, callbacks, remote_completers, remote_futures, closures, timers, all_or_none],
);

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn wakers<D: Driver>() {
    let mut rig = Rig::<D, u64>::new(8);
    for round in 0..20 {
        let wakes: [Arc<Wakes>; 8] = std::array::from_fn(|_| Arc::default());
        let ops: Vec<OpId> = (0..8)
            .map(|n| {
                let op = rig.read(round * 8 + n);
                rig.submit(&op, n)
            })
            .collect();
        for (op, wakes) in ops.iter().zip(&wakes) {
            let waker = Waker::from(Arc::clone(wakes));
            assert!(rig.proactor.poll_op(*op, &mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(rig.proactor.in_flight(), 8);
        rig.until(|rig| rig.proactor.in_flight() == 0);
        for (n, (op, wakes)) in (0..).zip(ops.into_iter().zip(&wakes)) {
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
            assert_eq!(rig.answer(op), Outcome { result: 4096, resources: n });
            let again = rig.proactor.poll_op(op, &mut Context::from_waker(Waker::noop()));
            assert_eq!(again, Poll::Ready(None), "taken");
        }
    }
}

/// Each answer leads to the next request.
fn callbacks<D: Driver>() {
    fn next<D: Driver>(proactor: &mut Proactor<D, u64>, op: Op, left: u64, done: Sender<i32>) {
        let reserved = proactor.reserve().expect("a place");
        let op_id = proactor.submit(reserved, &op, left).expect("room");
        proactor.attach_callback(
            op_id,
            Box::new(move |proactor, Outcome { result, resources }| {
                assert_eq!(resources, left);
                done.send(result).expect("the test listens");
                if left > 1 {
                    next(proactor, Op { offset: op.offset + 4096, ..op }, left - 1, done);
                }
            }),
        );
    }
    let mut rig = Rig::<D, u64>::new(2);
    let (done, results) = mpsc::channel();
    let op = rig.read(0);
    next(&mut rig.proactor, op, 100, done);
    let mut all: Vec<i32> = Vec::new();
    rig.until(|_| {
        all.extend(results.try_iter());
        all.len() == 100
    });
    assert_eq!(all, [4096; 100]);
    assert_eq!(rig.proactor.in_flight(), 0);
}

struct ToChannel(Mutex<Sender<(OpId, Outcome<u64>)>>);

impl RemoteCompleter<u64> for ToChannel {
    fn complete(&self, op: OpId, outcome: Outcome<u64>) {
        self.0.lock().expect("no panic").send((op, outcome)).expect("the thread listens");
    }
}

/// As the seed has it: another thread injects a closure, which submits and attaches a completer that sends the answer back.
fn remote_completers<D: Driver>() {
    let mut rig = Rig::<D, u64>::new(8);
    let op = rig.read(1);
    let threads: Vec<_> = (0..4)
        .map(|thread: u64| {
            let injector = rig.proactor.injector();
            thread::spawn(move || {
                let (sender, answers) = mpsc::channel();
                // One completer for all operations of the thread.
                let completer = Arc::new(ToChannel(Mutex::new(sender)));
                for n in 0..50 {
                    let completer = Arc::clone(&completer);
                    let closure = Box::new(move |proactor: &mut Proactor<D, u64>| {
                        let reserved = proactor.reserve().expect("4 threads, 8 places");
                        let op = proactor.submit(reserved, &op, thread * 1000 + n).expect("room");
                        proactor.attach_remote_completer(op, completer);
                    });
                    injector.inject(closure).expect("room");
                    let (_, outcome) = answers.recv_timeout(PATIENCE).expect("an answer");
                    assert_eq!(outcome, Outcome { result: 4096, resources: thread * 1000 + n });
                }
            })
        })
        .collect();
    rig.until(|_| threads.iter().all(thread::JoinHandle::is_finished));
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < deadline, "the future was not woken");
        thread::park_timeout(PATIENCE);
    }
}

fn remote_futures<D: Driver>() {
    let mut rig = Rig::<D, Vec<u8>>::new(2);
    let op = rig.read(0);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let injector = rig.proactor.injector();
            thread::spawn(move || {
                let mut whole = 0;
                while whole < 50 {
                    // Four threads share two places: -EAGAIN gives the buffer back as any answer does.
                    let buffer = vec![7; 16];
                    let outcome =
                        block_on(injector.run(op, buffer).expect("room")).expect("the proactor lives");
                    assert_eq!(outcome.resources, [7; 16]);
                    assert!([4096, -libc::EAGAIN].contains(&outcome.result), "{}", outcome.result);
                    whole += u32::from(outcome.result == 4096);
                }
            })
        })
        .collect();
    rig.until(|_| threads.iter().all(thread::JoinHandle::is_finished));
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

fn closures<D: Driver>() {
    let mut rig = Rig::<D, u64>::new(4);
    let injector = rig.proactor.injector();
    let owner = thread::current().id();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let push = |n: u32| {
        let ran = Arc::clone(&ran);
        Box::new(move |_: &mut Proactor<D, u64>| {
            assert_eq!(thread::current().id(), owner);
            ran.lock().expect("no panic").push(n);
        })
    };
    for n in 0..64 {
        injector.inject(push(n)).expect("room for 64");
    }
    assert!(matches!(injector.inject(push(64)), Err(Refused::Full(_))));
    assert_eq!(ran.lock().expect("no panic").len(), 0, "not on the thread that injects");
    rig.proactor.wait(None).expect("does not sleep: closures wait");
    assert_eq!(rig.proactor.process_completions(), 64);
    assert_eq!(*ran.lock().expect("no panic"), (0..64).collect::<Vec<_>>(), "in order");

    // A closure ends a sleep without a timeout, every time.
    let stop = Arc::new(AtomicBool::new(false));
    let other = thread::spawn({
        let (injector, stop) = (injector.clone(), Arc::clone(&stop));
        move || {
            for n in 0..500 {
                let (done, ran) = mpsc::channel();
                let last = (n == 499).then(|| Arc::clone(&stop));
                let closure = Box::new(move |_: &mut Proactor<D, u64>| {
                    last.inspect(|stop| stop.store(true, Ordering::Relaxed));
                    done.send(()).expect("the thread listens");
                });
                injector.inject(closure).expect("room");
                ran.recv_timeout(PATIENCE).expect("run");
            }
        }
    });
    while !stop.load(Ordering::Relaxed) {
        rig.proactor.wait(None).expect("wait");
        rig.proactor.process_completions();
    }
    other.join().expect("no panic");
    // And then it sleeps again.
    let (begun, nap) = (Instant::now(), Duration::from_millis(20));
    for _ in 0..10 {
        rig.proactor.wait(Some(nap)).expect("wait");
        rig.proactor.process_completions();
    }
    assert!(begun.elapsed() >= nap, "it never sleeps: the doorbell was not silenced");
    drop(rig);
    assert!(matches!(injector.inject(Box::new(|_| {})), Err(Refused::Gone(_))));
    assert_eq!(injector.run(NOP, 17).map(drop), Err(17), "and the resources come back");
}

const NOP: Op = Op::NOP;

fn a_full_proactor<D: Driver>() {
    let mut rig = Rig::<Fault<D>, Arc<()>>::new(4);
    stick(&mut rig);
    let buffer = Arc::new(());
    let op = rig.read(0);
    let reserved = rig.proactor.reserve().expect("a place");
    rig.proactor.cancel_reserved(reserved);
    let ops: Vec<OpId> = (0..4).map(|_| rig.submit(&op, Arc::clone(&buffer))).collect();
    assert!(rig.proactor.reserve().is_none(), "the driver is full");
    assert!(rig.proactor.submit_background(&op, Arc::clone(&buffer)).is_err());
    let at = Instant::now() + PATIENCE;
    let timers: Vec<OpId> = (0..4)
        .map(|_| rig.proactor.submit_timer(at, Arc::clone(&buffer)).expect("8 operations in all"))
        .collect();
    assert!(rig.proactor.submit_timer(at, Arc::clone(&buffer)).is_err(), "the registry is full");
    assert_eq!(Arc::strong_count(&buffer), 1 + 8);
    let_go(&mut rig);
    rig.until(|rig| rig.proactor.in_flight() == 0);
    assert!(rig.proactor.reserve().is_none(), "answers that nobody took are still there");
    for op in ops {
        assert_eq!(rig.answer(op).result, 4096);
    }
    let reserved = rig.proactor.reserve().expect("a place again");
    rig.proactor.cancel_reserved(reserved);
    drop(timers);
}

/// A buffer that is under way is owned until the answer, whether somebody waits or not.
fn dropped_answers<D: Driver>() {
    let mut rig = Rig::<Fault<D>, Arc<()>>::new(8);
    stick(&mut rig);
    let buffer = Arc::new(());
    let owned = || Arc::strong_count(&buffer) - 1;
    let op = rig.read(0);
    // A future of another thread that is dropped before it was submitted, and one afterwards.
    let injector = rig.proactor.injector();
    drop(injector.run(op, Arc::clone(&buffer)));
    let mut late = injector.run(op, Arc::clone(&buffer)).expect("room");
    rig.turn();
    assert!(pin!(&mut late).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(late);
    // One that was polled here, and left.
    let left = rig.submit(&op, Arc::clone(&buffer));
    assert!(rig.proactor.poll_op(left, &mut Context::from_waker(Waker::noop())).is_pending());
    rig.proactor.detach(left);
    // One that nobody ever waited for.
    rig.proactor.submit_background(&op, Arc::clone(&buffer)).expect("room");
    for _ in 0..5 {
        rig.proactor.wait(Some(Duration::from_millis(1))).expect("wait");
        rig.proactor.process_completions();
        assert_eq!((rig.proactor.in_flight(), owned()), (4, 4), "the kernel may still write");
    }
    let_go(&mut rig);
    rig.until(|rig| rig.proactor.in_flight() == 0);
    assert_eq!(owned(), 0);
}

fn timers<D: Driver>() {
    let mut rig = Rig::<D, u32>::new(2);
    let begun = Instant::now();
    let fired = Arc::new(Mutex::new(Vec::new()));
    for ms in [30, 10, 20] {
        let at = begun + Duration::from_millis(ms);
        let op = rig.proactor.submit_timer(at, ms as u32).expect("room");
        let fired = Arc::clone(&fired);
        rig.proactor.attach_callback(
            op,
            Box::new(move |_, outcome| {
                assert!(outcome.result == 0 && Instant::now() >= at);
                fired.lock().expect("no panic").push(outcome.resources);
            }),
        );
    }
    // Nothing but the timers ends these sleeps.
    while fired.lock().expect("no panic").len() < 3 {
        rig.proactor.wait(None).expect("wait");
        rig.proactor.process_completions();
    }
    assert_eq!(*fired.lock().expect("no panic"), [10, 20, 30]);
    assert_eq!(rig.proactor.in_flight(), 0, "timers are not in the driver");
}

fn cancels<D: Driver>() {
    let mut rig = Rig::<Fault<D>, u32>::new(4);
    stick(&mut rig);
    let timer = rig.proactor.submit_timer(Instant::now() + PATIENCE, 1).expect("room");
    let read = rig.read(0);
    let op = rig.submit(&read, 2);
    rig.turn();
    assert_eq!(rig.proactor.cancel(op), Cancel::TooLate);
    assert_eq!(rig.proactor.in_flight(), 1, "changes nothing");
    assert_eq!(rig.proactor.cancel(timer), Cancel::Cancelled);
    assert_eq!(rig.proactor.cancel(timer), Cancel::TooLate, "its answer is there");
    assert_eq!(rig.answer(timer), Outcome { result: -libc::ECANCELED, resources: 1 });
    assert_eq!(rig.proactor.cancel(timer), Cancel::Unknown);
    let_go(&mut rig);
    assert_eq!(rig.answer(op), Outcome { result: 4096, resources: 2 }, "the real result");
    assert_eq!(rig.proactor.cancel(op), Cancel::Unknown);
    // Cancelled and set again for ever: neither room nor memory runs out.
    for _ in 0..1000 {
        let timer = rig.proactor.submit_timer(Instant::now() + PATIENCE, 3).expect("room");
        rig.proactor.detach(timer);
        assert_eq!(rig.proactor.cancel(timer), Cancel::Cancelled);
    }
}

/// What the kernel has is waited for, and everybody who waits hears of it.
fn the_end<D: Driver>() {
    let mut rig = Rig::<Fault<D>, Arc<()>>::new(8);
    stick(&mut rig);
    let buffer = Arc::new(());
    let op = rig.read(0);
    let injector = rig.proactor.injector();
    let stuck = injector.run(op, Arc::clone(&buffer)).expect("room");
    rig.turn();
    // Submitted, and never committed but by the drop.
    let staged = injector.run(op, Arc::clone(&buffer)).expect("room");
    rig.proactor.process_completions();
    rig.proactor.submit_background(&op, Arc::clone(&buffer)).expect("room");
    let called = rig.submit(&op, Arc::clone(&buffer));
    rig.proactor.attach_callback(called, Box::new(|_, _| panic!("there is nothing left to call it with")));
    rig.proactor.submit_timer(Instant::now() + PATIENCE, Arc::clone(&buffer)).expect("room");
    // Injected, and never run.
    let waiting = injector.run(op, Arc::clone(&buffer)).expect("room");
    assert_eq!(Arc::strong_count(&buffer), 1 + 6);
    let begun = Instant::now();
    drop(rig);
    assert!(begun.elapsed() < PATIENCE, "it waited for something that never comes");
    for answered in [stuck, staged] {
        assert_eq!(block_on(answered).expect("an answer").result, 4096);
    }
    assert_eq!(block_on(waiting), Err(Lost));
    assert_eq!(Arc::strong_count(&buffer), 1, "nothing is kept");
}

fn all_or_none<D: Driver>() {
    let driver = DriverConfig { depth: 2, files_max: 3, regions_max: 3, ..DriverConfig::default() };
    let mut rig = Rig::<D, ()>::with(&ProactorConfig { driver, ops_max: 2, closures_max: 1 });
    let null = Arc::new(Target::null(4096, 512));
    let targets = [(); 3].map(|()| Arc::clone(&null));
    assert!(rig.proactor.register_files(&targets).is_err(), "two are left");
    assert_eq!(Arc::strong_count(&null), 1 + 3, "none was kept");
    let files = rig.proactor.register_files(&targets[..2]).expect("two");
    let memory = create_memfd("ferrio-proactor", 4096).expect("memfd");
    let mapping = Arc::new(Mapping::new(memory.as_fd(), 4096).expect("mapping"));
    let regions = [(); 3].map(|()| Region::new(Arc::clone(&mapping), 0, 4096).expect("region"));
    assert!(rig.proactor.register_regions(&regions, Pin::Yes).is_err(), "two are left");
    let indices = rig.proactor.register_regions(&regions[..2], Pin::No).expect("two");
    for file in files {
        rig.proactor.unregister_file(file).expect("idle");
    }
    for index in indices {
        rig.proactor.unregister_region(index).expect("idle");
    }
    assert_eq!(rig.proactor.info().backend, D::NAME);
}
