//! Nothing is allocated per request.

use std::time::Duration;

use allocation_counter::measure;
use ferrio_client::{Memory, Request, WaitPolicy};

use crate::peer::{Daemon, Opened};

/// Submit, commit, full, poll and an answer from the daemon's ends, which do not allocate either.
#[test]
fn none_in_steady_state() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 16, WaitPolicy::Sleep);
    let mut spare = Vec::with_capacity(16);
    spare.extend((0..8).map(|_| session.alloc(4096).unwrap()));
    let mut turn = |count: u64| {
        for turn in 0..count {
            while let Some(buffer) = spare.pop() {
                queue.submit(Request::read(&volume, turn % 256 * 4096, buffer).tag(turn)).unwrap();
            }
            assert!(queue.submit(Request::nop()).is_err_and(|error| error.is_full()));
            queue.commit().unwrap();
            served.answer_each();
            while let Some(completion) = queue.wait(None).unwrap() {
                spare.push(completion.buffer.unwrap());
            }
        }
    };
    turn(10);
    let allocations = measure(|| turn(10_000)).count_total;
    assert_eq!(allocations, 0, "allocations in 80,000 requests");
    let allocations = measure(|| drop(std::hint::black_box(Box::new(1)))).count_total;
    assert_eq!(allocations, 1, "the counter counts");
}

/// A list that is cleared and used again is as cheap as a buffer.
#[test]
fn none_for_a_list_that_is_used_again() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 16, WaitPolicy::Sleep);
    let mut list = Some(session.iovec().unwrap());
    let mut spare: Vec<Memory> = (0..3).map(|_| session.alloc(4096).unwrap().into()).collect();
    let mut turn = |count: u64| {
        for _ in 0..count {
            let mut filled = list.take().unwrap();
            spare.drain(..).for_each(|memory| filled.push(memory));
            filled.again(1, 512..1024);
            queue.submit(Request::readv(&volume, 0, filled).timeout(Duration::from_secs(1))).unwrap();
            queue.commit().unwrap();
            served.answer_each();
            let mut back = queue.wait(None).unwrap().unwrap().iovec.unwrap();
            spare.extend(back.clear());
            list = Some(back);
        }
    };
    turn(10);
    let allocations = measure(|| turn(10_000)).count_total;
    assert_eq!(allocations, 0, "allocations in 10,000 lists");
}
