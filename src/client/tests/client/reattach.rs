//! The daemon ends, and the next one goes on with the session: blocking, polling and async callers notice a pause.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ferrio_client::{Error, Event, Queue, QueueOptions, Request, RequestError, SessionEnd, WaitPolicy};
use ferrio_shm::abi::cqe_flags;
use ferrio_shm::doorbell::Drained;
use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::lease::LeaseEvent;

use crate::peer::resume::{Answer, Preparation, Remains};
use crate::peer::{Daemon, Opened, Served, eventually, readable};

const PATIENCE: Duration = Duration::from_secs(30);

fn options(wait: WaitPolicy) -> QueueOptions {
    QueueOptions { entries: 4, cq_entries: 8, wait, ..QueueOptions::default() }
}

fn open(daemon: &Daemon, wait: WaitPolicy) -> Opened {
    let opened = daemon.open_queue(daemon.builder().patience(PATIENCE).queue(options(wait)));
    assert!(opened.session.survives_restarts());
    opened
}

/// A daemon that serves the session once it was told no a few times.
fn next(daemon: &Daemon, remains: Remains) -> Served {
    let asked = daemon.resumes.asked();
    eventually(|| daemon.resumes.asked() > asked + 2);
    daemon.resumes.serve(remains);
    daemon.next_served()
}

/// Submits and commits one nop with this tag.
fn nop(queue: &mut Queue, tag: u64) {
    queue.submit(Request::nop().tag(tag)).unwrap();
    queue.commit().unwrap();
}

#[test]
fn a_blocking_caller_asleep_notices_a_pause() {
    for wait in [WaitPolicy::Sleep, WaitPolicy::Poll, WaitPolicy::default()] {
        let daemon = Daemon::start();
        let Opened { session, mut queue, volume, mut served } = open(&daemon, wait);
        let mut buffer = session.alloc(4096).unwrap();
        buffer.fill(7);
        let caller = thread::spawn(move || {
            let buffer = queue.write(&volume, 0, buffer).unwrap();
            let buffer = queue.read(&volume, 0, buffer).unwrap();
            (buffer[..] == [7; 4096], queue)
        });
        let mut taken = Vec::new();
        eventually(|| {
            taken.extend(served.take());
            !taken.is_empty()
        });
        let mut served = next(&daemon, served.die());
        served.answer(&taken[0]);
        let server = thread::spawn(move || served.run());
        let (same, queue) = caller.join().unwrap();
        assert!(same);
        assert_eq!(session.next_event().unwrap(), Some(Event::Reattaching));
        let Some(Event::Reattached { epoch: 78, gap }) = session.next_event().unwrap() else { panic!() };
        assert!(gap > Duration::ZERO && gap < PATIENCE, "{gap:?}");
        drop((session, queue));
        server.join().unwrap();
    }
}

#[test]
fn polling_goes_on_and_the_ring_is_filled_during_the_pause() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, mut served, .. } = open(&daemon, WaitPolicy::Poll);
    nop(&mut queue, 1);
    nop(&mut queue, 2);
    let taken = served.take();
    let remains = served.die();
    eventually(|| daemon.resumes.asked() > 0);
    // The ring has four places, and takes requests as before.
    for tag in 3..7 {
        nop(&mut queue, tag);
    }
    assert!(queue.submit(Request::nop()).unwrap_err().is_full());
    assert!(queue.poll().unwrap().is_none());
    assert!(queue.wait(Some(Duration::from_millis(20))).unwrap().is_none());
    let mut served = next(&daemon, remains);
    assert_eq!(served.take().len(), 4, "what was not taken by the old daemon");
    let replayed = Cqe { user_data: taken[1].user_data, result: 0, flags: cqe_flags::REPLAYED };
    served.post_to(0, replayed);
    let completion = queue.wait(None).unwrap().unwrap();
    assert_eq!((completion.tag, completion.result, completion.flags), (2, Ok(0), cqe_flags::REPLAYED));
    served.post(taken[0].user_data, -libc::EOWNERDEAD);
    let completion = queue.wait(None).unwrap().unwrap();
    assert_eq!((completion.tag, completion.result.unwrap_err().errno().0), (1, libc::EOWNERDEAD));
    assert_eq!((queue.in_flight(), queue.stats().unanswered), (4, 0));
    drop((served, session));
}

/// What the next daemon posts before Attached is found without a ring.
#[test]
fn answers_posted_again_before_attached_are_found() {
    let daemon = Daemon::start();
    let Opened { mut queue, mut served, session, .. } = open(&daemon, WaitPolicy::Sleep);
    nop(&mut queue, 1);
    let taken = served.take();
    let sleeper = thread::spawn(move || (queue.wait(None).unwrap().unwrap().tag, queue));
    thread::sleep(Duration::from_millis(20));
    let post: Preparation = Box::new(move |served| {
        served.queues[0].cq.push(&Cqe { user_data: taken[0].user_data, result: 0, flags: 0 });
        served.queues[0].cq.publish().unwrap();
    });
    daemon.resumes.then(Answer::Serve(served.die(), post));
    let _served = daemon.next_served();
    assert_eq!(sleeper.join().unwrap().0, 1);
    drop(session);
}

/// The next daemon goes to sleep before the client has its doorbell: the SQE published meanwhile rings the old one.
#[test]
fn a_ring_between_the_daemons_is_made_up_for() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, served, .. } = open(&daemon, WaitPolicy::Poll);
    let (asleep, sleeps) = channel();
    let (submitted, submits) = channel::<()>();
    let sleep: Preparation = Box::new(move |served| {
        assert!(served.queues[0].sq.prepare_sleep().unwrap());
        asleep.send(()).unwrap();
        submits.recv().unwrap();
    });
    daemon.resumes.then(Answer::Serve(served.die(), sleep));
    sleeps.recv().unwrap();
    let rings = queue.stats().doorbells;
    nop(&mut queue, 1);
    assert_eq!(queue.stats().doorbells, rings + 1, "it has to ring, and rings in vain");
    submitted.send(()).unwrap();
    let mut served = daemon.next_served();
    eventually(|| served.doorbell.drain().unwrap() == Drained::Rang);
    assert_eq!(served.answer_all(), 1);
    assert_eq!(queue.wait(None).unwrap().unwrap().tag, 1);
    // From now on the queue rings the new one.
    assert!(served.queues[0].sq.prepare_sleep().unwrap());
    nop(&mut queue, 2);
    assert_eq!(readable([served.doorbell.as_fd()]), [true]);
    drop((served, session));
}

/// Takes what is in the rings of all queues.
fn take_all(served: &mut Served, asked: &mut [Vec<Sqe>]) {
    for (index, asked) in asked.iter_mut().enumerate() {
        asked.extend(served.take_from(index));
    }
}

#[test]
fn every_queue_takes_its_new_doorbell() {
    let daemon = Daemon::start();
    let queue = options(WaitPolicy::Sleep);
    let builder = daemon.builder().patience(PATIENCE);
    let (session, mut served) = daemon.open(builder.queue(queue.clone()).queue(queue.clone()).queue(queue));
    let sleepers: Vec<_> = (0..2)
        .map(|index| {
            let mut queue = session.take_queue(index).unwrap();
            thread::spawn(move || {
                queue.nop().unwrap();
                queue.nop().unwrap();
            })
        })
        .collect();
    let mut asked = [const { Vec::new() }; 3];
    eventually(|| {
        take_all(&mut served, &mut asked);
        asked[..2].iter().all(|asked| !asked.is_empty())
    });
    let mut served = next(&daemon, served.die());
    // One that nobody had taken when the daemon ended is as good as the others.
    let mut late = session.take_queue(2).unwrap();
    nop(&mut late, 9);
    eventually(|| {
        take_all(&mut served, &mut asked);
        for (index, asked) in asked.iter_mut().enumerate() {
            for sqe in asked.drain(..) {
                served.post_to(index, Cqe { user_data: sqe.user_data, result: 0, flags: 0 });
            }
        }
        sleepers.iter().all(thread::JoinHandle::is_finished)
    });
    assert_eq!(late.wait(None).unwrap().unwrap().tag, 9);
    sleepers.into_iter().for_each(|sleeper| sleeper.join().unwrap());
    drop(served);
}

/// Reads and writes go on over many daemons, each of which ends wherever it is.
#[test]
fn many_daemons() {
    for wait in [WaitPolicy::Sleep, WaitPolicy::default()] {
        let daemon = Daemon::start();
        let Opened { session, mut queue, volume, served } = open(&daemon, wait);
        let done = Arc::new(AtomicBool::new(false));
        let caller = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let (mut buffer, mut turns) = (session.alloc(512).unwrap(), 0u64);
                while !done.load(Ordering::Acquire) {
                    buffer.fill(turns as u8);
                    buffer = queue.write(&volume, turns % 64 * 512, buffer).unwrap();
                    buffer.fill(!turns as u8);
                    buffer = queue.read(&volume, turns % 64 * 512, buffer).unwrap();
                    assert_eq!(buffer[..], [turns as u8; 512]);
                    turns += 1;
                }
                let stats = queue.stats();
                assert_eq!((stats.unknown, stats.doubled, stats.completed), (0, 0, turns * 2));
                (session, queue)
            }
        });
        let mut served = served;
        for _ in 0..50 {
            let killed = Arc::new(AtomicBool::new(false));
            let serving = thread::spawn({
                let killed = Arc::clone(&killed);
                move || served.run_until(&killed)
            });
            thread::sleep(Duration::from_millis(3));
            killed.store(true, Ordering::Release);
            daemon.resumes.serve(serving.join().unwrap());
            served = daemon.next_served();
        }
        let server = thread::spawn(move || served.run());
        done.store(true, Ordering::Release);
        drop(caller.join().unwrap());
        server.join().unwrap();
    }
}

#[test]
fn async_callers_notice_a_pause() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for wait in [WaitPolicy::Sleep, WaitPolicy::default()] {
        runtime.block_on(async {
            let daemon = Daemon::start();
            let builder = daemon.builder().patience(PATIENCE).queue(options(wait));
            let session = builder.open_async().await.unwrap();
            let mut served = daemon.served().await;
            let queue = session.take_queue(0).unwrap().into_async().unwrap();
            let volume = session.volume("data").unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..8u64)
                .map(|task| {
                    let (queue, volume, done) = (queue.clone(), volume.clone(), Arc::clone(&done));
                    let mut buffer = session.alloc(4096).unwrap();
                    tokio::spawn(async move {
                        let mut turn = task;
                        while !done.load(Ordering::Acquire) {
                            buffer.fill(turn as u8);
                            buffer = queue.write(&volume, task * 4096, buffer).await.unwrap();
                            buffer.fill(!turn as u8);
                            buffer = queue.read(&volume, task * 4096, buffer).await.unwrap();
                            assert_eq!(buffer[..], [turn as u8; 4096]);
                            turn += 1;
                        }
                    })
                })
                .collect();
            for _ in 0..20 {
                let killed = Arc::new(AtomicBool::new(false));
                let serving = thread::spawn({
                    let killed = Arc::clone(&killed);
                    move || served.run_until(&killed)
                });
                tokio::time::sleep(Duration::from_millis(5)).await;
                killed.store(true, Ordering::Release);
                let remains = tokio::task::block_in_place(|| serving.join().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
                daemon.resumes.serve(remains);
                served = daemon.served().await;
            }
            let server = thread::spawn(move || served.run());
            done.store(true, Ordering::Release);
            for task in tasks {
                task.await.unwrap();
            }
            let stats = queue.stats();
            assert_eq!((stats.unknown, stats.doubled, stats.errors), (0, 0, 0));
            drop((queue, session));
            tokio::task::block_in_place(|| server.join().unwrap());
        });
    }
}

/// One request in flight when the session ends: unanswered, with these words.
fn expect_end(queue: &mut Queue, words: &[&str]) {
    let completion = queue.wait(Some(Duration::from_secs(20))).unwrap().unwrap();
    let Err(RequestError::Unanswered(SessionEnd::Disconnected(reason))) = completion.result else {
        panic!("{:?}", completion.result)
    };
    assert!(completion.buffer.is_none());
    for word in words {
        assert!(reason.as_str().contains(word), "{word:?} is missing in: {reason}");
    }
    assert!(matches!(queue.poll(), Err(Error::Disconnected(_))));
}

fn in_flight(daemon: &Daemon, patience: Duration) -> Opened {
    let mut opened = daemon.open_queue(daemon.builder().patience(patience).queue(options(WaitPolicy::Sleep)));
    let buffer = opened.session.alloc(4096).unwrap();
    opened.queue.submit(Request::read(&opened.volume, 0, buffer)).unwrap();
    opened.queue.commit().unwrap();
    opened
}

#[test]
fn a_daemon_that_says_no_for_good_ends_the_session() {
    for (errno, name) in [(libc::ESTALE, "ESTALE"), (libc::EACCES, "EACCES"), (libc::EINVAL, "EINVAL")] {
        let daemon = Daemon::start();
        let Opened { session, mut queue, served, .. } = in_flight(&daemon, PATIENCE);
        for answer in [Answer::Refuse(libc::ESHUTDOWN), Answer::Close, Answer::Refuse(errno)] {
            daemon.resumes.then(answer);
        }
        drop(served.die());
        expect_end(&mut queue, &["the test says no", name]);
        assert_eq!(daemon.resumes.asked(), 3, "nothing is asked after the no");
        assert!(matches!(session.next_event(), Ok(Some(Event::Reattaching)) | Err(_)));
    }
}

#[test]
fn a_daemon_of_another_make_ends_the_session() {
    let daemon = Daemon::start();
    let Opened { mut queue, served, session: _session, .. } = in_flight(&daemon, PATIENCE);
    daemon.resumes.then(Answer::ServeFalsely(served.die()));
    expect_end(&mut queue, &["do not fit together", "epoch 0, it answers with 78"]);
}

#[test]
fn patience_ends_with_words() {
    let daemon = Daemon::start();
    let patience = Duration::from_millis(200);
    let Opened { mut queue, served, session: _session, .. } = in_flight(&daemon, patience);
    let start = Instant::now();
    drop(served.die());
    expect_end(&mut queue, &["within 200ms", "attach.sock", "the test says no", "patience", "start it"]);
    assert!(start.elapsed() >= patience);

    // The same without a socket.
    let Opened { mut queue, served, session: _session, .. } = in_flight(&daemon, patience);
    std::fs::remove_file(daemon.path().join("attach.sock")).unwrap();
    drop(served.die());
    expect_end(&mut queue, &["within 200ms", "cannot connect", "No such file"]);
}

/// Told to stop, the daemon says so first; that is no reason not to wait for the next one.
#[test]
fn a_daemon_that_drains_comes_back() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, mut served, .. } = in_flight(&daemon, PATIENCE);
    let taken = served.take();
    served.header.set_state(ferrio_shm::abi::SessionState::Draining);
    served.say(LeaseEvent::Drain { deadline_ms: 1500 });
    served.answer(&taken[0]);
    assert!(queue.wait(None).unwrap().unwrap().result.is_ok());
    nop(&mut queue, 5);
    let mut served = next(&daemon, served.die());
    assert_eq!(served.answer_all(), 1);
    assert_eq!(queue.wait(None).unwrap().unwrap().tag, 5);
    let events: Vec<_> = std::iter::from_fn(|| session.next_event().unwrap()).collect();
    let draining = Event::Draining { within: Duration::from_millis(1500) };
    assert_eq!(events[..2], [draining, Event::Reattaching]);
    drop((served, session));
}

#[test]
fn an_end_that_the_daemon_wants_is_no_pause() {
    for event in [LeaseEvent::Evict { reason: "test".into() }, LeaseEvent::Fault { reason: "test".into() }] {
        let daemon = Daemon::start();
        let Opened { mut queue, served, session: _session, .. } = in_flight(&daemon, PATIENCE);
        served.say(event);
        drop(served.die());
        let completion = queue.wait(None).unwrap().unwrap();
        let error = completion.result.unwrap_err().to_string();
        assert!(error.contains("evicted: test") || error.contains("serves it no more: test"), "{error}");
        assert_eq!(daemon.resumes.asked(), 0);
    }
}

/// Asked for or not, a session that was not granted it ends with its daemon.
#[test]
fn without_the_feature_nothing_changes() {
    let daemon = Daemon::start();
    for builder in [daemon.builder(), daemon.builder().patience(PATIENCE).name("plain")] {
        let Opened { session, mut queue, served, .. } =
            daemon.open_queue(builder.queue(options(WaitPolicy::Sleep)));
        assert!(!session.survives_restarts());
        nop(&mut queue, 1);
        drop(served.die());
        expect_end(&mut queue, &["open it again"]);
        assert_eq!(daemon.resumes.asked(), 0);
    }
}

#[test]
fn a_session_that_is_dropped_does_not_wait_for_a_daemon() {
    let daemon = Daemon::start();
    let Opened { session, queue, served, .. } = in_flight(&daemon, PATIENCE);
    drop(served.die());
    eventually(|| daemon.resumes.asked() > 3);
    let start = Instant::now();
    drop((session, queue));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let asked = daemon.resumes.asked();
    thread::sleep(Duration::from_millis(120));
    assert_eq!(daemon.resumes.asked(), asked, "nobody asks any more");
}

#[test]
fn an_idle_session_comes_back_by_itself() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, served, .. } = open(&daemon, WaitPolicy::Sleep);
    let mut served = next(&daemon, served.die());
    nop(&mut queue, 1);
    eventually(|| served.answer_all() == 1);
    assert_eq!(queue.wait(None).unwrap().unwrap().tag, 1);
    drop((served, session));
}

/// The socket of a daemon that starts is not there yet, and then is one that refuses.
#[test]
fn sockets_that_come_and_go() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, served, .. } = open(&daemon, WaitPolicy::Sleep);
    let (socket, hidden) = (daemon.path().join("attach.sock"), daemon.path().join("hidden.sock"));
    std::fs::rename(&socket, &hidden).unwrap();
    let remains = served.die();
    thread::sleep(Duration::from_millis(30));
    drop(ferrio_shm::peer::listen(&socket, 0o600).unwrap());
    thread::sleep(Duration::from_millis(30));
    assert_eq!(daemon.resumes.asked(), 0);
    std::fs::rename(&hidden, &socket).unwrap();
    let mut served = next(&daemon, remains);
    nop(&mut queue, 1);
    eventually(|| served.answer_all() == 1);
    assert_eq!(queue.wait(None).unwrap().unwrap().tag, 1);
    drop((served, session));
}
