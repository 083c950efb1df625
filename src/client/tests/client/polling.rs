//! Submit, commit, poll: full, wrap-around, any order, and completions that must not be believed.

use std::collections::HashMap;

use ferrio_client::{Error, ProtocolError, Request, RequestError, SubmitError, WaitPolicy};

use crate::peer::{Daemon, Opened};

#[test]
fn nothing_is_seen_before_the_commit() {
    let daemon = Daemon::start();
    let Opened { mut queue, mut served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    let ticket = queue.submit(Request::nop().tag(9)).unwrap();
    assert_eq!(served.answer_all(), 0);
    assert_eq!(queue.commit().unwrap(), 1);
    assert!(queue.poll().unwrap().is_none());
    assert_eq!(served.answer_all(), 1);
    let completion = queue.poll().unwrap().unwrap();
    assert_eq!((completion.ticket, completion.tag, completion.result), (ticket, 9, Ok(0)));
    assert!(completion.buffer.is_none());
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn full_gives_the_request_back() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(4, 8, WaitPolicy::Sleep);
    for _ in 0..4 {
        queue.submit(Request::nop()).unwrap();
    }
    let mut buffer = session.alloc(512).unwrap();
    buffer.fill(5);
    let error = queue.submit(Request::write(&volume, 512, buffer).fua(true)).unwrap_err();
    assert!(error.is_full(), "the SQ ring is full");
    let request = error.into_request();
    queue.commit().unwrap();
    assert_eq!(served.take().len(), 4);
    queue.submit(request).unwrap();
    for _ in 0..3 {
        queue.submit(Request::nop()).unwrap();
    }
    queue.commit().unwrap();
    let rest = served.take();
    assert_eq!((rest[0].offset, rest[0].length, rest[0].flags), (512, 512, 1), "it went back as it was");
    let error = queue.submit(Request::nop()).unwrap_err();
    assert!(matches!(error, SubmitError::Full(_)), "8 in flight are all that 8 CQ entries can answer");
    served.answer(&rest[0]);
    let completion = queue.poll().unwrap().unwrap();
    assert_eq!(completion.buffer.unwrap()[..], [5; 512]);
    queue.submit(Request::nop()).unwrap();
}

/// More rounds than entries, answers in another order than the requests, each with its own buffer and data.
#[test]
fn wraps_around_in_any_order() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(8, 16, WaitPolicy::Sleep);
    let mut expected = HashMap::new();
    let (mut sent, mut unanswered, mut completed) = (0u64, Vec::new(), 0);
    while completed < 1000 {
        while sent < 1000 {
            let mut buffer = session.alloc(512).unwrap();
            buffer.fill(sent as u8);
            let request =
                Request::write(&volume, sent % 2048 * 512, buffer).tag(sent).prio(sent.is_multiple_of(3));
            match queue.submit(request) {
                Ok(ticket) => {
                    assert!(expected.insert(ticket, sent).is_none(), "tickets in flight are distinct")
                }
                Err(error) => {
                    assert!(error.is_full());
                    break;
                }
            }
            sent += 1;
        }
        queue.commit().unwrap();
        unanswered.extend(served.take());
        // Some of them, the last first.
        for _ in 0..unanswered.len().min(5) {
            let sqe = unanswered.pop().unwrap();
            served.answer(&sqe);
        }
        while let Some(completion) = queue.poll().unwrap() {
            assert_eq!(expected.remove(&completion.ticket), Some(completion.tag));
            assert_eq!(completion.result, Ok(512));
            assert_eq!(completion.buffer.unwrap()[..], [completion.tag as u8; 512]);
            completed += 1;
        }
    }
    assert!(expected.is_empty());
    let stats = queue.stats();
    assert_eq!((stats.submitted, stats.completed, stats.errors), (1000, 1000, 0));
    assert_eq!((stats.unknown, stats.doubled), (0, 0));
}

#[test]
fn doubled_and_unknown_completions_are_not_believed() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(4, 4, WaitPolicy::Sleep);
    queue.submit(Request::read(&volume, 0, session.alloc(512).unwrap())).unwrap();
    queue.commit().unwrap();
    let first = served.take()[0];
    served.post(first.user_data, 512);
    assert_eq!(queue.poll().unwrap().unwrap().result, Ok(512));
    served.post(first.user_data, 512);
    let error = queue.poll().unwrap_err();
    assert!(matches!(error, Error::Protocol(ProtocolError::Doubled { queue: 0, .. })), "{error}");

    queue.submit(Request::read(&volume, 0, session.alloc(512).unwrap())).unwrap();
    queue.commit().unwrap();
    let second = served.take()[0];
    assert_eq!(first.user_data as u32, second.user_data as u32, "the slot is the same");
    served.post(first.user_data, 512);
    served.post(0xdead_beef, 512);
    served.post(second.user_data, 512);
    assert!(matches!(queue.poll(), Err(Error::Protocol(ProtocolError::Doubled { .. }))));
    assert!(matches!(
        queue.poll(),
        Err(Error::Protocol(ProtocolError::Unknown { user_data: 0xdead_beef, .. }))
    ));
    assert!(queue.poll().unwrap().unwrap().buffer.is_some(), "the real answer still counts");
    let stats = queue.stats();
    assert_eq!((stats.submitted, stats.completed, stats.unknown, stats.doubled), (2, 2, 1, 2));
}

#[test]
fn results_that_are_not_success() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, mut served } = daemon.queue(4, 4, WaitPolicy::Sleep);
    for (result, expected) in [
        (-libc::EIO, RequestError::Errno(ferrio_client::Errno::EIO)),
        (i32::MIN, RequestError::Errno(ferrio_client::Errno(i32::MAX))),
        (511, RequestError::WrongLength { expected: 512, found: 511 }),
    ] {
        queue.submit(Request::read(&volume, 0, session.alloc(512).unwrap())).unwrap();
        queue.commit().unwrap();
        let sqe = served.take()[0];
        served.post(sqe.user_data, result);
        let completion = queue.poll().unwrap().unwrap();
        assert_eq!(completion.result, Err(expected));
        assert!(completion.buffer.is_some(), "an answered request hands its buffer back");
    }
    assert_eq!(queue.stats().errors, 3);
}

#[test]
fn broken_cq_tail_ends_the_session() {
    let daemon = Daemon::start();
    let Opened { mut queue, served, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    queue.submit(Request::nop()).unwrap();
    queue.commit().unwrap();
    let rings = &served.queues[0].rings;
    ferrio_shm::ring::QueueMemory::cq_tail(rings).store(1000, std::sync::atomic::Ordering::Release);
    let completion = queue.poll().unwrap().unwrap();
    assert!(matches!(completion.result, Err(RequestError::Unanswered(_))));
    let error = queue.poll().unwrap_err();
    assert!(
        matches!(&error, Error::Faulted(reason) if reason.as_str().contains("cq_tail is 1000")),
        "{error}"
    );
}
