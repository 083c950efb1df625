//! What a request costs the client on one core: staged, shown, taken and answered by the daemon's ring ends in the same
//! thread, and picked up.

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/client/peer/mod.rs"]
mod peer;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrio_client::{Buffer, Features, QueueOptions, Request, WaitPolicy};
use peer::Daemon;

const DEPTH: u64 = 32;

fn round_trip(c: &mut Criterion) {
    let daemon = Daemon::start();
    let options = QueueOptions { entries: 32, wait: WaitPolicy::Poll, ..QueueOptions::default() };
    let (session, mut served) = daemon.open(daemon.builder().queue(options).features(Features::NONE));
    let (mut queue, volume) = (session.take_queue(0).unwrap(), session.volume("data").unwrap());
    let mut buffers: Vec<Option<Buffer>> = (0..DEPTH).map(|_| session.alloc(4096).ok()).collect();
    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(DEPTH));
    group.bench_function("32 reads", |b| {
        b.iter(|| {
            for (tag, buffer) in (0..).zip(&mut buffers) {
                let request = Request::read(&volume, tag * 4096, buffer.take().unwrap()).tag(tag);
                queue.submit(request).unwrap();
            }
            queue.commit().unwrap();
            let daemon = &mut served.queues[0];
            while daemon.sq.available().unwrap() > 0 {
                let Some(sqe) = daemon.sq.take() else { break };
                daemon.credit.reserve().unwrap();
                daemon.cq.push(&ferrio_shm::entry::Cqe {
                    user_data: sqe.user_data,
                    result: sqe.length as i32,
                    flags: 0,
                });
            }
            daemon.sq.publish();
            daemon.cq.publish().unwrap();
            while let Some(completion) = queue.poll().unwrap() {
                assert!(completion.result.is_ok());
                buffers[completion.tag as usize] = completion.buffer;
                if completion.tag == DEPTH - 1 {
                    break;
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
