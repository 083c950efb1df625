//! Memory of the client's own beside the arena: questions and answers over the lease, buffers, spans.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use ferrio_client::{Errno, Error, RegionError, Request, Session, SubmitError, WaitPolicy};
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::mapping::create_memfd;
use ferrio_shm::peer::{recv_message, send_message};

use crate::peer::resume::{Answer, file};
use crate::peer::{Daemon, Opened, Served, readable};

/// Answers questions about regions with these errnos, then hands the daemon's side back. What was asked comes out.
fn answering(
    mut served: Served,
    errnos: Vec<i32>,
) -> (thread::JoinHandle<Served>, Receiver<(LeaseMessage, Vec<OwnedFd>)>) {
    let (asked, seen) = channel();
    let answer = thread::spawn(move || {
        for errno in errnos {
            readable([served.lease.as_fd()]);
            let (mut bytes, mut fds) = ([0; LEASE_MESSAGE_MAX], Vec::new());
            let length = recv_message(&served.lease, &mut bytes, &mut fds, 4).unwrap();
            let message = LeaseMessage::decode(&bytes[..length]).unwrap();
            let index = match message {
                LeaseMessage::RegionAdd { index, .. } | LeaseMessage::RegionRemove { index } => index,
                ref other => panic!("asked {other:?}"),
            };
            asked.send((message, fds)).unwrap();
            let reply = LeaseMessage::RegionReply { index, errno };
            send_message(&served.lease, &reply.encode(), &[]).unwrap();
        }
        served.take();
        served
    });
    (answer, seen)
}

#[test]
fn a_region_of_the_librarys_hands_out_buffers() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let (answer, seen) = answering(served, vec![0, 0, 0]);
    let region = session.create_region(10_000).unwrap();
    let (message, fds) = seen.recv().unwrap();
    assert_eq!(message, LeaseMessage::RegionAdd { index: 1, bytes: 12288 });
    assert_eq!(fds.len(), 1);
    assert_eq!((region.index(), region.bytes()), (1, 12288));
    let mut buffer = region.alloc(8192).unwrap();
    buffer.fill(9);
    assert!(matches!(region.alloc(8192), Err(Error::Alloc(_))));
    assert!(matches!(region.span(0..4096), Err(Error::NoSpan { index: 1, .. })));
    // Another one gets the next index, and an index that is free again is used again.
    let second = session.create_region(4096).unwrap();
    assert_eq!(second.index(), 2);
    session.remove_region(second).unwrap();
    let mut served = answer.join().unwrap();
    let failure = session.remove_region(region).unwrap_err();
    assert!(matches!(failure.error, Error::RegionInUse { index: 1 }), "{}", failure.error);
    let region = failure.region;
    queue.submit(Request::write(&volume, 0, buffer).range(4096..8192)).unwrap();
    queue.commit().unwrap();
    let sqe = served.take()[0];
    assert_eq!((sqe.region, sqe.region_offset, sqe.length), (1, 4096, 4096));
    assert!(session.remove_region(region).is_err_and(|failure| failure.error.errno().is_none()));
    served.post(sqe.user_data, 4096);
    let buffer = queue.poll().unwrap().unwrap().buffer.unwrap();
    assert_eq!(buffer[4096..], [9; 4096]);
    // A raw request must hand over what it names, there as in the arena.
    let raw = ferrio_client::Sqe { op: 1, region: 1, length: 512, ..Default::default() };
    let Err(SubmitError::Refused(refused)) = queue.submit(Request::raw(raw)) else { panic!("taken") };
    assert!(matches!(refused.error, Error::NotOwned { .. }), "{}", refused.error);
    queue.submit(Request::raw(raw).with_buffer(buffer)).unwrap();
}

#[test]
fn memory_that_the_caller_brought_is_named_by_spans() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let memfd = create_memfd("pool", 65536).unwrap();
    let (answer, _seen) = answering(served, vec![0, libc::EBUSY, 0]);
    let region = session.add_region(memfd.as_fd(), 65536).unwrap();
    assert!(matches!(region.alloc(512), Err(Error::NoBuffers { index: 1 })));
    assert!(region.span(65536..65537).is_err() && region.span(5..65536).is_ok());
    let span = region.span(8192..12288).unwrap();
    queue.submit(Request::read(&volume, 0, span.clone())).unwrap();
    let failure = session.remove_region(region).unwrap_err();
    assert!(matches!(failure.error, Error::RegionInUse { index: 1 }), "a span is out: {}", failure.error);
    drop((span, queue));
    let failure = session.remove_region(failure.region).unwrap_err();
    assert_eq!(failure.error.errno(), Some(Errno::EBUSY), "the daemon's own word");
    assert!(failure.to_string().contains("does not remove region 1: EBUSY"), "{failure}");
    session.remove_region(failure.region).unwrap();
    drop(answer.join().unwrap());
}

#[test]
fn memory_that_cannot_be_a_region() {
    let daemon = Daemon::start();
    let Opened { session, served, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    let short = create_memfd("short", 4096).unwrap();
    let error = session.add_region(short.as_fd(), 8192).unwrap_err();
    assert!(matches!(error, Error::Unfit { why: RegionError::TooShort { .. } }), "{error}");
    assert!(matches!(session.create_region(0), Err(Error::Alloc(_))));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(session.add_region(file.as_fd(), 0), Err(Error::Unfit { .. })));
    let (answer, _seen) = answering(served, vec![libc::EDQUOT]);
    let error = session.add_region(short.as_fd(), 4096).unwrap_err();
    assert_eq!(error.errno(), Some(Errno(libc::EDQUOT)));
    let other = daemon.queue(8, 8, WaitPolicy::Sleep);
    let (elsewhere, _seen) = answering(other.served, vec![0]);
    let foreign = other.session.create_region(4096).unwrap();
    let failure = session.remove_region(foreign).unwrap_err();
    assert!(matches!(failure.error, Error::Foreign { what: "region" }), "{}", failure.error);
    drop((answer.join().unwrap(), elsewhere.join().unwrap()));
}

#[test]
fn a_daemon_that_does_not_answer() {
    let daemon = Daemon::start();
    // Opening has the same limit, on a machine that may be busy.
    let builder = daemon.builder().timeout(Duration::from_millis(500));
    let (session, served) = daemon.open(builder);
    let error = session.create_region(4096).unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    // The late answer is not taken for that of the next question.
    let (answer, _seen) = answering(served, vec![libc::EBUSY, 0]);
    assert_eq!(session.create_region(4096).unwrap().index(), 2, "the daemon may have added the first");
    let served = answer.join().unwrap();
    drop(served);
    assert!(matches!(session.create_region(4096), Err(Error::Disconnected(_))));
}

/// A queue that sleeps reads the same socket: the answer reaches the asker all the same.
#[test]
fn an_answer_that_another_thread_reads() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, mut served, .. } = daemon.queue(8, 8, WaitPolicy::Sleep);
    queue.submit(Request::nop()).unwrap();
    queue.commit().unwrap();
    let nop = served.take()[0];
    let sleeper = thread::spawn(move || queue.wait(None).unwrap().unwrap().result);
    let (answer, _seen) = answering(served, vec![0; 200]);
    let ask = |session: &Session| {
        for _ in 0..100 {
            let region = session.create_region(4096).unwrap();
            session.remove_region(region).unwrap();
        }
    };
    ask(&session);
    let mut served = answer.join().unwrap();
    served.post(nop.user_data, 0);
    assert_eq!(sleeper.join().unwrap(), Ok(0));
}

/// Reads the next question and ends without an answer.
fn ends_with_a_question(served: Served) -> (crate::peer::resume::Remains, LeaseMessage) {
    readable([served.lease.as_fd()]);
    let (mut bytes, mut fds) = ([0; LEASE_MESSAGE_MAX], Vec::new());
    let length = recv_message(&served.lease, &mut bytes, &mut fds, 4).unwrap();
    (served.die(), LeaseMessage::decode(&bytes[..length]).unwrap())
}

/// A daemon that stops carries nothing out any more. That is no answer: the next one gives it.
#[test]
fn a_question_to_a_daemon_that_stops_is_for_the_next_one() {
    let daemon = Daemon::start();
    let Opened { session, served, queue: _queue, .. } =
        daemon.open_queue(daemon.builder().patience(Duration::from_secs(30)));
    thread::scope(|scope| {
        let asker = scope.spawn(|| session.create_region(8192));
        let (answer, _seen) = answering(served, vec![libc::ESHUTDOWN]);
        // Both once it has ended: who comes before is told to come again, and shows everything again.
        let remains = answer.join().unwrap().die();
        daemon.resumes.then(Answer::Refuse(libc::EINVAL));
        daemon.resumes.serve(remains);
        let served = daemon.next_served();
        assert!(served.shown.is_empty(), "the first daemon has not added it");
        let (answer, seen) = answering(served, vec![0]);
        assert_eq!(seen.recv().unwrap().0, LeaseMessage::RegionAdd { index: 1, bytes: 8192 });
        drop(asker.join().unwrap().unwrap());
        drop(answer.join().unwrap());
    });
}

/// A daemon ends with a question that it may have carried out, or not. The next one is shown what it knows, and asked again.
#[test]
fn a_question_is_repeated_to_the_next_daemon() {
    let daemon = Daemon::start();
    let Opened { session, served, queue: _queue, .. } =
        daemon.open_queue(daemon.builder().patience(Duration::from_secs(30)));
    let (answer, seen) = answering(served, vec![0]);
    let first = session.create_region(4096).unwrap();
    let known = file(&seen.recv().unwrap().1[0]);
    let served = answer.join().unwrap();
    thread::scope(|scope| {
        // Added, and not told: the next daemon goes on with both, and finds the index in use.
        let asker = scope.spawn(|| session.create_region(8192).unwrap());
        let (remains, question) = ends_with_a_question(served);
        assert_eq!(question, LeaseMessage::RegionAdd { index: 2, bytes: 8192 });
        daemon.resumes.serve(remains);
        let served = daemon.next_served();
        assert_eq!(served.shown.len(), 2);
        assert_eq!(file(&served.shown[0]), known, "by ascending index");
        let (answer, seen) = answering(served, vec![libc::EBUSY]);
        let second = asker.join().unwrap();
        assert_eq!(seen.recv().unwrap().0, LeaseMessage::RegionAdd { index: 2, bytes: 8192 });
        assert_eq!(second.alloc(8192).unwrap().region(), 2);

        // Not added: the next daemon knows two, and takes three for a mistake.
        let asker = scope.spawn(|| session.create_region(4096).unwrap());
        let (remains, _) = ends_with_a_question(answer.join().unwrap());
        daemon.resumes.then(Answer::Refuse(libc::EINVAL));
        daemon.resumes.serve(remains);
        let served = daemon.next_served();
        assert_eq!(served.shown.len(), 2);
        let (answer, _seen) = answering(served, vec![0]);
        let third = asker.join().unwrap();
        assert_eq!(third.index(), 3);

        // Removed, and not told.
        let asker = scope.spawn(|| session.remove_region(first).unwrap());
        let (remains, question) = ends_with_a_question(answer.join().unwrap());
        assert_eq!(question, LeaseMessage::RegionRemove { index: 1 });
        daemon.resumes.then(Answer::Refuse(libc::EINVAL));
        daemon.resumes.serve(remains);
        let served = daemon.next_served();
        assert!(served.shown.len() == 2 && served.shown.iter().all(|memory| file(memory) != known));
        let (answer, _seen) = answering(served, vec![libc::ENXIO]);
        asker.join().unwrap();
        let served = answer.join().unwrap();

        // A plain no stays one, and what was asked is shown no more.
        let (answer, _seen) = answering(served, vec![libc::EBUSY]);
        assert_eq!(session.create_region(4096).unwrap_err().errno(), Some(Errno::EBUSY));
        daemon.resumes.serve(answer.join().unwrap().die());
        assert_eq!(daemon.next_served().shown.len(), 2);
        drop((second, third));
    });
}
