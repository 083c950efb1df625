//! Waiting: real pipes, a daemon's side that sleeps in poll(2) too, and time-outs.

use std::thread;
use std::time::{Duration, Instant};

use ferrio_client::{Error, Request, WaitPolicy};
use ferrio_shm::doorbell::Drained;

use crate::peer::{Daemon, Opened};

fn round_trips(wait: WaitPolicy, count: usize) {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(4, 4, wait);
    let server = thread::spawn(move || served.run());
    for turn in 0..count {
        let at = (turn % 2048) as u64 * 512;
        let mut buffer = session.alloc(512).unwrap();
        buffer.fill(turn as u8);
        let mut buffer = queue.write(&volume, at, buffer).unwrap();
        buffer.fill(0);
        let buffer = queue.read(&volume, at, buffer).unwrap();
        assert_eq!(buffer[..], [turn as u8; 512]);
    }
    queue.flush(&volume).unwrap();
    queue.nop().unwrap();
    assert_eq!(queue.stats().completed, 2 * count as u64 + 2);
    drop((queue, session));
    server.join().unwrap();
}

#[test]
fn asleep() {
    round_trips(WaitPolicy::Sleep, 3000);
}

#[test]
fn adaptive() {
    round_trips(WaitPolicy::Adaptive { spin_us: 20 }, 3000);
}

#[test]
fn spinning() {
    round_trips(WaitPolicy::Poll, 100);
}

/// Many in flight, both sides asleep whenever they can: a wake-up that is lost hangs the test.
#[test]
fn deep_queue() {
    let daemon = Daemon::start();
    let Opened { mut queue, served, session, .. } = daemon.queue(16, 32, WaitPolicy::Sleep);
    let server = thread::spawn(move || served.run());
    let (mut sent, mut done) = (0, 0);
    while done < 50_000 {
        while sent < 50_000 && queue.submit(Request::nop()).is_ok() {
            sent += 1;
        }
        done += usize::from(queue.wait(None).unwrap().is_some());
    }
    assert_eq!((queue.in_flight(), sent), (0, 50_000));
    drop((queue, session));
    server.join().unwrap();
}

#[test]
fn one_doorbell_per_sleep_of_the_daemon() {
    let daemon = Daemon::start();
    let Opened { mut queue, mut served, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    assert!(served.queues[0].sq.prepare_sleep().unwrap());
    for _ in 0..3 {
        queue.submit(Request::nop()).unwrap();
        queue.commit().unwrap();
    }
    assert_eq!(queue.stats().doorbells, 1);
    assert_eq!(served.doorbell.drain().unwrap(), Drained::Rang);
    assert_eq!(served.answer_all(), 3);
    queue.submit(Request::nop()).unwrap();
    queue.commit().unwrap();
    assert_eq!(queue.stats().doorbells, 1, "an awake daemon is not rung");
}

#[test]
fn time_out_and_nothing_to_wait_for() {
    let daemon = Daemon::start();
    for wait in [WaitPolicy::Sleep, WaitPolicy::Adaptive { spin_us: 50 }, WaitPolicy::Poll] {
        let Opened { mut queue, mut served, .. } = daemon.queue(4, 4, wait);
        assert!(queue.wait(None).unwrap().is_none(), "nothing is in flight");
        queue.submit(Request::nop()).unwrap();
        let start = Instant::now();
        assert!(queue.wait(Some(Duration::from_millis(20))).unwrap().is_none());
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(served.answer_all(), 1, "wait commits");
        assert!(queue.wait(Some(Duration::ZERO)).unwrap().is_some());
    }
}

#[test]
fn blocking_calls_keep_what_others_wait_for() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    let server = thread::spawn(move || served.run());
    queue.submit(Request::nop().tag(1)).unwrap();
    queue.submit(Request::nop().tag(2)).unwrap();
    queue.nop().unwrap();
    assert_eq!(queue.in_flight(), 2);
    queue.submit(Request::nop().tag(3)).unwrap();
    queue.submit(Request::nop().tag(4)).unwrap();
    let error = queue.nop().unwrap_err();
    assert!(matches!(error, Error::Unpolled { queue: 0, entries: 4 }), "{error}");
    let tags: Vec<_> = (0..4).map(|_| queue.wait(None).unwrap().unwrap().tag).collect();
    assert_eq!(tags, [1, 2, 3, 4]);
    queue.nop().unwrap();
    drop((queue, session));
    server.join().unwrap();
}
