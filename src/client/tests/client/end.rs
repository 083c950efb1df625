//! How a session ends, and what becomes of its requests and buffers.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use ferrio_client::{
    AllocError, Error, Event, Queue, QueueOptions, Request, RequestError, SessionEnd, SubmitError, WaitPolicy,
};
use ferrio_shm::abi::SessionState;
use ferrio_shm::lease::{LeaseEvent, LeaseMessage};

use crate::peer::{Daemon, Opened, readable};

/// Fills the queue with reads of the whole arena and returns after the daemon took them.
fn three_in_flight(opened: &mut Opened) {
    for tag in 0..3 {
        let buffer = opened.session.alloc(1 << 20).unwrap();
        opened.queue.submit(Request::read(&opened.volume, 0, buffer).tag(tag)).unwrap();
    }
    opened.queue.commit().unwrap();
}

/// Every request is completed once, then comes the reason, for ever.
fn expect_unanswered(queue: &mut Queue, mut tags: Vec<u64>, end: impl Fn(&SessionEnd) -> bool) {
    while !tags.is_empty() {
        let completion = queue.wait(None).unwrap().unwrap();
        let RequestError::Unanswered(reason) = completion.result.unwrap_err() else { panic!("answered") };
        assert!(end(&reason), "{reason}");
        assert!(completion.buffer.is_none(), "the kernel may still write to it");
        tags.retain(|&tag| tag != completion.tag);
    }
    for _ in 0..2 {
        assert!(matches!(queue.poll(), Err(Error::Disconnected(_) | Error::Faulted(_))));
        assert!(matches!(queue.wait(None), Err(Error::Disconnected(_) | Error::Faulted(_))));
    }
    assert_eq!(queue.in_flight(), 0);
    let refused = queue.submit(Request::nop()).unwrap_err();
    assert!(matches!(refused, SubmitError::Refused(_)), "{refused}");
}

#[test]
fn daemon_dies_while_the_client_sleeps() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    three_in_flight(&mut opened);
    let Opened { session, mut queue, served, .. } = opened;
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(served);
    });
    expect_unanswered(&mut queue, vec![0, 1, 2], |end| matches!(end, SessionEnd::Disconnected(_)));
    assert_eq!(queue.stats().unanswered, 3);
    killer.join().unwrap();
    // 1 of 4 MiB is left: what the kernel may write to is not handed out again.
    let _rest = session.alloc(1 << 20).unwrap();
    assert!(matches!(session.alloc(4096), Err(Error::Alloc(AllocError::Full { free: 0, .. }))));
    assert!(matches!(session.next_event(), Err(Error::Disconnected(_))));
}

#[test]
fn daemon_dies_while_the_client_polls() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Poll);
    three_in_flight(&mut opened);
    drop(opened.served);
    expect_unanswered(&mut opened.queue, vec![0, 1, 2], |end| matches!(end, SessionEnd::Disconnected(_)));
}

#[test]
fn answers_posted_before_the_end_count() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    three_in_flight(&mut opened);
    let second = opened.served.take()[1];
    opened.served.answer(&second);
    drop(opened.served);
    let completion = opened.queue.wait(None).unwrap().unwrap();
    assert_eq!((completion.tag, completion.result), (1, Ok(1 << 20)));
    expect_unanswered(&mut opened.queue, vec![0, 2], |_| true);
}

#[test]
fn fault_comes_with_its_reason() {
    for wait in [WaitPolicy::Sleep, WaitPolicy::Poll] {
        let daemon = Daemon::start();
        let mut opened = daemon.queue(4, 4, wait);
        three_in_flight(&mut opened);
        opened.served.header.set_state(SessionState::Faulted);
        opened.served.say(LeaseEvent::Fault { reason: "sq_tail is 99".into() });
        let faulted = |end: &SessionEnd| matches!(end, SessionEnd::Faulted(reason) if reason.as_str().contains("sq_tail is 99"));
        expect_unanswered(&mut opened.queue, vec![0, 1, 2], faulted);
    }
}

/// One thread reads the message, all must hear it.
#[test]
fn fault_wakes_every_queue() {
    let daemon = Daemon::start();
    for _ in 0..50 {
        let queue = QueueOptions { entries: 4, wait: WaitPolicy::Sleep, ..QueueOptions::default() };
        let (session, served) =
            daemon.open(daemon.builder().queue(queue.clone()).queue(queue.clone()).queue(queue));
        let sleepers: Vec<_> = (0..3)
            .map(|index| {
                let mut queue = session.take_queue(index).unwrap();
                thread::spawn(move || queue.nop().unwrap_err())
            })
            .collect();
        served.say(LeaseEvent::Fault { reason: "test".into() });
        for sleeper in sleepers {
            let error = sleeper.join().unwrap();
            assert!(error.to_string().contains("serves it no more: test"), "{error}");
        }
    }
}

#[test]
fn late_answers_of_an_ended_session_are_not_looked_at() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    three_in_flight(&mut opened);
    let taken = opened.served.take();
    opened.served.say(LeaseEvent::Fault { reason: "test".into() });
    assert!(opened.queue.wait(None).unwrap().unwrap().buffer.is_none());
    taken.iter().for_each(|sqe| opened.served.answer(sqe));
    expect_unanswered(&mut opened.queue, vec![1, 2], |_| true);
    assert_eq!((opened.queue.stats().doubled, opened.queue.stats().completed), (0, 3));
}

#[test]
fn events() {
    let daemon = Daemon::start();
    let Opened { session, volume, served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    assert_eq!(session.next_event().unwrap(), None);
    served.say(LeaseEvent::Resize { volume: 0, size_bytes: 8192 });
    served.say(LeaseEvent::Drain { deadline_ms: 1500 });
    assert_eq!(session.next_event().unwrap(), Some(Event::Resized { volume: 0, size_bytes: 8192 }));
    assert_eq!(volume.size_bytes(), 8192);
    assert_eq!(session.next_event().unwrap(), Some(Event::Draining { within: Duration::from_millis(1500) }));
    served.say(LeaseEvent::Evict { reason: "maintenance".into() });
    assert_eq!(session.next_event().unwrap(), None);
    drop(served);
    let error = session.next_event().unwrap_err();
    assert_eq!(error.to_string(), "the session was evicted: maintenance");
}

#[test]
fn last_owner_says_close_and_waits_until_the_daemon_lets_go() {
    let daemon = Daemon::start();
    let Opened { session, queue, served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    drop(session);
    let mut bytes = [0; 1024];
    let mut said = || ferrio_shm::peer::recv_message(&served.lease, &mut bytes, &mut Vec::new(), 0);
    assert_eq!(said().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the queue is still there");
    let start = Instant::now();
    let letting_go = thread::spawn(move || {
        let mut bytes = [0; 1024];
        readable([served.lease.as_fd()]);
        let length = ferrio_shm::peer::recv_message(&served.lease, &mut bytes, &mut Vec::new(), 0).unwrap();
        assert_eq!(LeaseMessage::decode(&bytes[..length]), Ok(LeaseMessage::Close));
        thread::sleep(Duration::from_millis(50));
        // What else the daemon says does not count as letting go.
        served.say(LeaseEvent::Drain { deadline_ms: 1 });
        thread::sleep(Duration::from_millis(50));
    });
    drop(queue);
    let waited = start.elapsed();
    letting_go.join().unwrap();
    assert!(waited >= Duration::from_millis(100), "{waited:?}");
}

#[test]
fn close_does_not_wait_for_ever() {
    let daemon = Daemon::start();
    let Opened { session, queue, served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    let start = Instant::now();
    drop((session, queue));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    drop(served);
}

#[test]
fn dropped_queue_keeps_its_buffers_from_others() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    three_in_flight(&mut opened);
    drop(opened.queue);
    let _rest = opened.session.alloc(1 << 20).unwrap();
    assert!(opened.session.alloc(4096).is_err());
    drop(opened.served);
}

/// The doorbell breaks before the lease does: what the daemon said meanwhile is the reason all the same.
#[test]
fn an_eviction_is_told_although_the_doorbell_goes_first() {
    let daemon = Daemon::start();
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    three_in_flight(&mut opened);
    let Opened { mut queue, mut served, .. } = opened;
    served.say(LeaseEvent::Evict { reason: "maintenance".into() });
    served.queues.clear();
    expect_unanswered(
        &mut queue,
        vec![0, 1, 2],
        |end| matches!(end, SessionEnd::Disconnected(reason) if reason.as_str().contains("maintenance")),
    );
    drop(served);
}
