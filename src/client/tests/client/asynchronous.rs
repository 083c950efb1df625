//! The async queue: concurrency, backpressure, dropped futures, and ends of session and runtime.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ferrio_client::{
    AsyncQueue, Cancelled, Errno, Error, QueueOptions, Request, RequestError, Session, Volume, WaitPolicy,
};
use tokio::runtime::Runtime;

use crate::peer::{Daemon, Served, eventually};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(daemon: &Daemon, wait: WaitPolicy) -> (Session, AsyncQueue, Volume, Served) {
    let options = QueueOptions { entries: 4, wait, ..QueueOptions::default() };
    let session = daemon.builder().queue(options).open_async().await.unwrap();
    let served = daemon.served().await;
    let queue = session.take_queue(0).unwrap().into_async().unwrap();
    let volume = session.volume("data").unwrap();
    (session, queue, volume, served)
}

/// 32 tasks over 4 entries, each with a region of its own.
async fn many_tasks(wait: WaitPolicy) {
    let daemon = Daemon::start();
    let (session, queue, volume, served) = open(&daemon, wait).await;
    let server = thread::spawn(move || served.run());
    let session = Arc::new(session);
    let tasks: Vec<_> = (0..32u64)
        .map(|task| {
            let (session, queue, volume) = (Arc::clone(&session), queue.clone(), volume.clone());
            tokio::spawn(async move {
                let mut buffer = session.alloc(4096).unwrap();
                for turn in 0..100 {
                    let value = (task * 31 + turn) as u8;
                    buffer.fill(value);
                    buffer = queue.write(&volume, task * 4096, buffer).await.unwrap();
                    buffer.fill(!value);
                    buffer = queue.read(&volume, task * 4096, buffer).await.unwrap();
                    assert_eq!(buffer[..], [value; 4096]);
                }
                queue.flush(&volume).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    queue.nop().await.unwrap();
    let stats = queue.stats();
    assert_eq!((stats.submitted, stats.completed, stats.errors), (6433, 6433, 0));
    drop((queue, session));
    tokio::task::block_in_place(|| server.join().unwrap());
}

#[test]
fn many_tasks_asleep() {
    runtime().block_on(many_tasks(WaitPolicy::Sleep));
}

#[test]
fn many_tasks_adaptive() {
    runtime().block_on(many_tasks(WaitPolicy::default()));
}

#[test]
fn tag_comes_back_and_requests_wait_for_their_turn() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (_session, queue, _, mut served) = open(&daemon, WaitPolicy::Sleep).await;
        let queue = Arc::new(queue);
        let tasks: Vec<_> = (0..10u64)
            .map(|tag| {
                let queue = Arc::clone(&queue);
                tokio::spawn(
                    async move { queue.execute(Request::nop().tag(100 + tag)).await.unwrap().tag - tag },
                )
            })
            .collect();
        let mut taken = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), async {
            while taken.len() < 4 {
                taken.extend(served.take());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(served.take().is_empty(), "4 entries, 4 in flight");
        taken.iter().for_each(|sqe| served.answer(sqe));
        let server = thread::spawn(move || served.run());
        for task in tasks {
            assert_eq!(task.await.unwrap(), 100);
        }
        drop((queue, _session));
        tokio::task::block_in_place(|| server.join().unwrap());
    });
}

#[test]
fn dropped_future_keeps_its_buffer_until_the_answer() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (session, queue, volume, mut served) = open(&daemon, WaitPolicy::Sleep).await;
        let buffer = session.alloc(4 << 20).unwrap();
        let read = tokio::time::timeout(Duration::from_millis(30), queue.read(&volume, 0, buffer)).await;
        assert!(read.is_err(), "nobody answers");
        assert!(session.alloc(4096).is_err(), "the daemon may still write to it");
        let sqe = served.take()[0];
        served.post(sqe.user_data, 4 << 20);
        tokio::task::block_in_place(|| eventually(|| session.alloc(4096).is_ok()));
        // The place in the queue is free again, too.
        let server = thread::spawn(move || served.run());
        for _ in 0..8 {
            queue.nop().await.unwrap();
        }
        drop((queue, session));
        tokio::task::block_in_place(|| server.join().unwrap());
    });
}

#[test]
fn last_owner_leaves_with_a_request_in_flight() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (session, queue, volume, mut served) = open(&daemon, WaitPolicy::Sleep).await;
        let buffer = session.alloc(4 << 20).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(30), queue.read(&volume, 0, buffer)).await;
        drop(queue);
        let sqe = served.take()[0];
        served.post(sqe.user_data, 4 << 20);
        tokio::task::block_in_place(|| eventually(|| session.alloc(4096).is_ok()));
    });
}

#[test]
fn close_waits_for_what_is_in_flight() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (session, queue, volume, mut served) = open(&daemon, WaitPolicy::Sleep).await;
        let buffer = session.alloc(4 << 20).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(30), queue.read(&volume, 0, buffer)).await;
        queue.clone().close().await;
        let closing = tokio::spawn(queue.close());
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!closing.is_finished(), "the read is in flight");
        let sqe = served.take()[0];
        served.post(sqe.user_data, 4 << 20);
        closing.await.unwrap();
        assert!(session.alloc(4 << 20).is_ok());
    });
}

#[test]
fn daemon_dies() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (session, queue, volume, served) = open(&daemon, WaitPolicy::Sleep).await;
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let (queue, volume, buffer) = (queue.clone(), volume.clone(), session.alloc(512).unwrap());
                tokio::spawn(async move { queue.read(&volume, 0, buffer).await.unwrap_err() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(served);
        let (mut unanswered, mut disconnected) = (0, 0);
        for task in tasks {
            let failure = task.await.unwrap();
            match failure.error {
                Error::Request(RequestError::Unanswered(_)) => {
                    unanswered += usize::from(failure.buffer.is_none())
                }
                Error::Disconnected(_) => disconnected += usize::from(failure.buffer.is_some()),
                error => panic!("{error}"),
            }
        }
        assert_eq!((unanswered, disconnected), (4, 2), "4 were in flight, 2 waited for their turn");
        assert!(matches!(queue.nop().await, Err(Error::Disconnected(_))));
    });
}

#[test]
fn chains_and_cancels() {
    runtime().block_on(async {
        let daemon = Daemon::start();
        let (session, queue, volume, mut served) = open(&daemon, WaitPolicy::Sleep).await;
        let buffer = session.alloc(4096).unwrap();
        let pending = queue.submit(Request::read(&volume, 0, buffer).tag(7)).await.unwrap();
        let target = served.take()[0];
        assert_eq!(pending.ticket().user_data(), target.user_data);
        let server = thread::spawn(move || {
            let cancel = loop {
                if let Some(sqe) = served.take().pop() {
                    break sqe;
                }
                thread::yield_now();
            };
            assert_eq!(cancel.arg, target.user_data);
            served.post(target.user_data, -libc::ECANCELED);
            served.post(cancel.user_data, 0);
            served.run();
        });
        assert_eq!(queue.cancel(pending.ticket()).await.unwrap(), Cancelled::Yes);
        let failure = pending.await.unwrap_err();
        assert_eq!(failure.error.errno(), Some(Errno::ECANCELED));
        let mut buffer = failure.buffer.unwrap();
        buffer.fill(3);
        let read = Request::read(&volume, 8192, session.alloc(4096).unwrap()).tag(12);
        let chain = vec![Request::write(&volume, 8192, buffer).tag(11), read];
        let outcomes = queue.execute_chain(chain).await.unwrap();
        let completions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap()).collect();
        assert_eq!(completions.iter().map(|completion| completion.tag).collect::<Vec<_>>(), [11, 12]);
        assert!(completions[1].buffer.as_ref().unwrap().iter().all(|byte| *byte == 3));
        let long = queue.execute_chain((0..5).map(|_| Request::nop()).collect()).await.unwrap_err();
        assert!(matches!(long.error, Error::ChainLength { requests: 5, max: 4 }), "{}", long.error);
        assert_eq!(long.requests.len(), 5);
        // Every place was given back.
        for _ in 0..20 {
            queue.nop().await.unwrap();
        }
        drop((queue, session, completions));
        tokio::task::block_in_place(|| server.join().unwrap());
    });
}

#[test]
fn runtime_ends_before_the_queue() {
    let daemon = Daemon::start();
    let first = runtime();
    let (_session, queue, _, _served) = first.block_on(async {
        tokio::spawn(async move { open(&daemon, WaitPolicy::Sleep).await }).await.unwrap()
    });
    first.shutdown_timeout(Duration::from_secs(5));
    let error = runtime().block_on(queue.nop()).unwrap_err();
    assert!(matches!(error, Error::NoRuntime), "{error}");
}

#[test]
fn outside_of_a_runtime_or_in_flight() {
    let daemon = Daemon::start();
    let opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    drop(opened.served);
    assert!(matches!(opened.queue.into_async(), Err(Error::NoRuntime)));
    let mut opened = daemon.queue(4, 4, WaitPolicy::Sleep);
    opened.queue.submit(Request::nop()).unwrap();
    drop(opened.served);
    let error = runtime().block_on(async { opened.queue.into_async().unwrap_err() });
    assert!(matches!(error, Error::InFlight { in_flight: 1, .. }), "{error}");
}
