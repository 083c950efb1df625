//! Class queues and scheduler: what a request pays for its place, alone and beside many flows.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrio_engine::{
    queue::{Class, ClassQueues},
    scheduler::{DEFAULT_BUDGETS, Scheduler},
};

/// Requests waiting in all.
const BATCH: u32 = 256;

/// `BATCH` requests of all classes, spread over the flows, in and out again.
fn pass(queues: &mut ClassQueues, scheduler: &mut Scheduler, flows: u32) {
    for record in 0..BATCH {
        let class = Class::ALL[record as usize % 3];
        queues.push_back(class, record % flows, record);
    }
    while let Some(class) = scheduler.next(queues.backlog()) {
        queues.pop(class).expect("the backlog said so");
    }
}

fn push_schedule_pop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queues/push_schedule_pop");
    group.throughput(Throughput::Elements(BATCH.into()));
    for flows in [1, 64, BATCH] {
        group.bench_with_input(BenchmarkId::from_parameter(flows), &flows, |bencher, flows| {
            let mut queues = ClassQueues::new(BATCH, 16);
            (0..*flows).for_each(|queue| queues.add_queue(queue));
            let mut scheduler = Scheduler::new(DEFAULT_BUDGETS);
            bencher.iter(|| pass(&mut queues, &mut scheduler, *flows));
            assert!(queues.is_empty());
        });
    }
    group.finish();
}

/// One session that ends among many: its flow is taken out from between the others.
fn end_of_a_session(criterion: &mut Criterion) {
    let mut queues = ClassQueues::new(BATCH, 16);
    (0..BATCH).for_each(|queue| queues.add_queue(queue));
    (0..BATCH - 1).for_each(|queue| queues.push_back(Class::Read, queue, queue));
    criterion.bench_function("queues/end_of_a_session", |bencher| {
        bencher.iter(|| {
            queues.push_back(Class::Read, BATCH - 1, BATCH - 1);
            queues.pop_of_queue(BATCH - 1)
        });
    });
}

criterion_group!(benches, push_schedule_pop, end_of_a_session);
criterion_main!(benches);
