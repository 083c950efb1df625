//! The scheduler: what a request pays for its place, alone and beside many flows.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrio_engine::{
    DEFAULT_WEIGHT, VolumeId,
    queue::{Arrival, Class},
    scheduler::{DEFAULT_BUDGETS, Scheduler},
};

/// Requests waiting in all.
const BATCH: u32 = 256;

fn push(scheduler: &mut Scheduler, record: u32, queue: u32, class: Class) {
    let writes = class == Class::Write;
    scheduler
        .push_new(record, &Arrival { queue, volume: Some(0), class, writes, bytes: 4096, limited: true });
}

/// Each queue is a session of its own.
fn with_sessions(count: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(BATCH, BATCH, DEFAULT_BUDGETS);
    for queue in 0..count {
        scheduler.open_session(queue.into(), DEFAULT_WEIGHT, None, &[queue], &[Some(VolumeId(0))]);
    }
    scheduler
}

/// `BATCH` requests of all classes, spread over the flows, in and out again.
fn pass(scheduler: &mut Scheduler, flows: u32) {
    for record in 0..BATCH {
        push(scheduler, record, record % flows, Class::ALL[record as usize % 3]);
    }
    scheduler.begin_pass(0);
    while let Some(pick) = scheduler.next(0) {
        scheduler.issued(pick, 0);
    }
    scheduler.end_pass(0);
    (0..BATCH).for_each(|record| scheduler.completed(record, 0));
}

fn push_schedule_pop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queues/push_schedule_pop");
    group.throughput(Throughput::Elements(BATCH.into()));
    for flows in [1, 64, BATCH] {
        group.bench_with_input(BenchmarkId::from_parameter(flows), &flows, |bencher, flows| {
            let mut scheduler = with_sessions(*flows);
            bencher.iter(|| pass(&mut scheduler, *flows));
            assert!(scheduler.is_empty());
        });
    }
    group.finish();
}

/// One session that ends among many: its flow is taken out from between the others.
fn end_of_a_session(criterion: &mut Criterion) {
    let mut scheduler = with_sessions(BATCH);
    (0..BATCH - 1).for_each(|queue| push(&mut scheduler, queue, queue, Class::Read));
    criterion.bench_function("queues/end_of_a_session", |bencher| {
        bencher.iter(|| {
            push(&mut scheduler, BATCH - 1, BATCH - 1, Class::Read);
            scheduler.pop_of_queue(BATCH - 1)
        });
    });
}

criterion_group!(benches, push_schedule_pop, end_of_a_session);
criterion_main!(benches);
