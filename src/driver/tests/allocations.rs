//! Nothing on the path of a request allocates once the driver is open.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use allocation_counter::measure;
use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::null::Null;
use ferrio_driver::proactor::{Cancel, OpId, Outcome, Proactor, ProactorConfig, RemoteCompleter};
use ferrio_driver::uring::Uring;
use ferrio_driver::{
    Driver, DriverConfig, Op, OpKind, OpenOptions, Pin, ReapHalf, RegionIndex, Segment, Shape, SubmitHalf,
    Target,
};
use ferrio_shm::mapping::{Mapping, Region, create_memfd};
use rustix::event::{EventfdFlags, eventfd};

const DEPTH: u32 = 32;

/// All kinds of requests, and bad ones, committed, slept for and released.
fn requests_allocate_nothing<D: Driver>(page_cache: bool) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let options = OpenOptions { create_bytes: Some(1 << 20), page_cache, ..OpenOptions::default() };
    let target = Target::open(&directory.path().join("volume"), &options).expect("target");
    let (mut submit, mut reap) =
        D::open(&DriverConfig { depth: DEPTH, shape: Shape::One, ..DriverConfig::default() })
            .expect("driver");
    let files = [
        submit.register_file(Arc::new(target)).expect("file"),
        submit.register_file(Arc::new(Target::null(1 << 20, 512))).expect("file"),
    ];
    let memory = create_memfd("ferrio-allocations", 1 << 20).expect("memfd");
    let mapping = Arc::new(Mapping::new(memory.as_fd(), 1 << 20).expect("mapping"));
    let region = Region::new(mapping, 0, 1 << 20).expect("region");
    let region = submit.register_region(region, Pin::Yes).expect("region");
    let doorbells = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");

    let mut out = Vec::with_capacity(DEPTH as usize);
    let kinds = [OpKind::Read, OpKind::Write, OpKind::Read, OpKind::Flush, OpKind::Read, OpKind::Nop];
    let mut round = || {
        for n in 0..DEPTH {
            let op = Op {
                kind: kinds[n as usize % kinds.len()],
                file: files[usize::from(n % 8 == 0)],
                region: if n == 7 { RegionIndex(u32::MAX) } else { region },
                region_offset: u64::from(n) * 4096,
                length: 4096,
                offset: u64::from(n) * 4096,
                fua: n % 3 == 0,
            };
            let slot = submit.reserve().expect("a slot");
            let half = Segment { region, offset: op.region_offset, length: 2048 };
            let submitted = match n {
                10 | 14 => submit.submit_vectored(slot, n, &op, &[half, half]),
                11 => submit.submit(slot, n, &Op { kind: OpKind::Discard, ..op }),
                13 => submit.submit(slot, n, &Op { kind: OpKind::WriteZeroes, ..op }),
                _ => submit.submit(slot, n, &op),
            };
            submitted.expect("room");
        }
        let mut left = DEPTH;
        while left > 0 {
            submit.sleep(doorbells.as_fd(), Some(Duration::from_secs(1))).expect("sleep");
            reap.reap(&mut out);
            left -= out.len() as u32;
            out.drain(..).for_each(|completion| submit.release(completion.tag));
        }
    };
    round();
    let allocations = measure(|| (0..50).for_each(|_| round())).count_total;
    assert_eq!(allocations, 0, "{} allocates per request", D::NAME);
}

#[test]
fn io_uring_allocates_nothing() {
    requests_allocate_nothing::<Uring>(false);
}

#[test]
fn aio_allocates_nothing() {
    requests_allocate_nothing::<Aio>(false);
}

#[test]
fn aio_allocates_nothing_for_helpers() {
    requests_allocate_nothing::<Aio>(true);
}

#[test]
fn null_allocates_nothing() {
    requests_allocate_nothing::<Null>(false);
}

#[test]
fn fault_allocates_nothing_of_its_own() {
    requests_allocate_nothing::<Fault<Uring>>(false);
}

/// With wakers, a remote completer, in the background, and timers.
fn operations_allocate_nothing<D: Driver>() {
    struct Count(AtomicU32);

    impl RemoteCompleter<u32> for Count {
        fn complete(&self, _: OpId, outcome: Outcome<u32>) {
            assert_eq!(outcome.result, 0);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let mut proactor = Proactor::<D, u32>::open(&ProactorConfig::default()).expect("driver");
    let file = proactor.register_files(&[Arc::new(Target::null(1 << 20, 512))]).expect("file")[0];
    let region = RegionIndex(0);
    let flush = Op { kind: OpKind::Flush, file, region, region_offset: 0, length: 0, offset: 0, fua: false };
    let count = Arc::new(Count(AtomicU32::new(0)));
    let mut cx = Context::from_waker(Waker::noop());
    let mut round = || {
        let submit = |proactor: &mut Proactor<D, u32>| {
            let reserved = proactor.reserve().expect("a place");
            proactor.submit(reserved, &flush, 7).expect("room")
        };
        let polled = submit(&mut proactor);
        let remote = submit(&mut proactor);
        proactor.attach_remote_completer(remote, Arc::clone(&count) as Arc<_>);
        proactor.submit_background(&flush, 8).expect("room");
        let timer = proactor.submit_timer(Instant::now() + Duration::from_secs(60), 9).expect("room");
        proactor.detach(timer);
        assert_eq!(proactor.cancel(timer), Cancel::Cancelled);
        assert!(proactor.poll_op(polled, &mut cx).is_pending());
        while proactor.in_flight() > 0 {
            proactor.wait(Some(Duration::from_secs(1))).expect("wait");
            proactor.process_completions();
        }
        let Poll::Ready(Some(outcome)) = proactor.poll_op(polled, &mut cx) else { panic!("an answer") };
        assert_eq!(outcome, Outcome { result: 0, resources: 7 });
    };
    round();
    let allocations = measure(|| (0..1000).for_each(|_| round())).count_total;
    assert_eq!(allocations, 0, "the proactor over {} allocates", D::NAME);
    assert_eq!(count.0.load(Ordering::Relaxed), 1001);
}

#[test]
fn the_proactor_allocates_nothing() {
    operations_allocate_nothing::<Uring>();
    operations_allocate_nothing::<Aio>();
    operations_allocate_nothing::<Null>();
}

#[test]
fn the_counter_counts() {
    let allocations = measure(|| drop(std::hint::black_box(Box::new(1)))).count_total;
    assert_eq!(allocations, 1);
}
