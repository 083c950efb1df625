//! What the ring ends cost on one core: no other thread, so that no cache line travels.
#![cfg(not(loom))]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrio_shm::{
    entry::{Cqe, Sqe},
    ring::{CqConsumer, CqCredit, CqProducer, HeapQueue, SqConsumer, SqProducer},
};

const ENTRIES: u32 = 256;

struct Ends {
    submit: SqProducer<HeapQueue>,
    take: SqConsumer<HeapQueue>,
    credit: CqCredit<HeapQueue>,
    post: CqProducer<HeapQueue>,
    reap: CqConsumer<HeapQueue>,
}

impl Ends {
    fn new() -> Ends {
        let queue = HeapQueue::new(ENTRIES, ENTRIES);
        let post = CqProducer::new(queue.clone());
        Ends {
            submit: SqProducer::new(queue.clone()),
            take: SqConsumer::new(queue.clone()),
            credit: CqCredit::new(queue.clone(), &post),
            post,
            reap: CqConsumer::new(queue),
        }
    }

    /// A batch through both rings, published once at each end.
    fn round_trip(&mut self, batch: u32) {
        for user_data in 0..batch.into() {
            let sqe = Sqe { op: 1, user_data, length: 4096, ..Sqe::default() };
            self.submit.push(&sqe).expect("the ring is empty");
        }
        assert!(!self.submit.publish(), "the daemon's end is awake");
        for _ in 0..self.take.available().expect("a good tail") {
            self.credit.reserve().expect("an entry is free");
            let sqe = black_box(self.take.take()).expect("available");
            self.post.push(&Cqe { user_data: sqe.user_data, result: 4096, flags: 0 });
        }
        self.take.publish();
        assert!(!self.post.publish().expect("a good head"), "the client's end is awake");
        for _ in 0..batch {
            black_box(self.reap.pop().expect("a good tail")).expect("answered");
        }
        self.reap.release();
    }
}

fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/round_trip");
    for batch in [1, 32, ENTRIES] {
        group.throughput(Throughput::Elements(batch.into()));
        group.bench_with_input(BenchmarkId::from_parameter(batch), &batch, |bencher, batch| {
            let mut ends = Ends::new();
            bencher.iter(|| ends.round_trip(*batch));
        });
    }
    group.finish();
}

/// What a poll in vain costs, and falling asleep with its fence.
fn idle(criterion: &mut Criterion) {
    let mut ends = Ends::new();
    criterion.bench_function("ring/available_in_vain", |bencher| bencher.iter(|| ends.take.available()));
    criterion.bench_function("ring/sleep_and_wake", |bencher| {
        bencher.iter(|| {
            assert_eq!(ends.take.prepare_sleep(), Ok(true));
            ends.take.wake();
        });
    });
}

criterion_group!(benches, round_trip, idle);
criterion_main!(benches);
