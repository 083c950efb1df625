//! The client library over restarts of a real daemon: callers of each kind notice a pause and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferrio_client::{
    Access, Error, Event, Queue, QueueOptions, Region, Request, RequestError, Session, Volume, WaitPolicy,
};
use ferrio_tests::process::wait_until;
use ferrio_tests::{Daemon, DaemonBuilder};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Blocks of each caller.
const SHARE: u64 = 16;

/// What a block holds after its `round`th write.
fn word(caller: u64, round: u64, block: u64) -> u64 {
    (caller << 56 | round << 16 | block).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(memory: &mut [u8], word: u64) {
    memory.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word.to_le_bytes()));
}

fn check(memory: &[u8], word: u64, what: &str) {
    assert!(memory.chunks_exact(8).all(|bytes| bytes == word.to_le_bytes()), "{what}");
}

/// Rounds that each caller has finished, and whether to go on.
#[derive(Default)]
struct Progress {
    over: AtomicBool,
    rounds: [AtomicU64; 3],
}

impl Progress {
    fn goes_on(&self, caller: usize) -> bool {
        self.rounds[caller].fetch_add(1, Ordering::Relaxed);
        !self.over.load(Ordering::Relaxed)
    }

    /// Waits until every caller has done some more.
    fn wait(&self) {
        let rounds = || self.rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed));
        let before = rounds();
        wait_until("every caller to go on", || {
            rounds().iter().zip(before).all(|(now, before)| *now > before + 1)
        });
    }
}

fn blocking(session: &Session, mut queue: Queue, volume: &Volume, region: &Region, progress: &Progress) {
    let mut buffer = region.alloc(BLOCK as usize).unwrap();
    assert!(session.survives_restarts());
    for round in 0.. {
        for block in 0..SHARE {
            fill(&mut buffer, word(0, round, block));
            buffer = queue.write(volume, block * BLOCK, buffer).unwrap();
        }
        queue.flush(volume).unwrap();
        for block in 0..SHARE {
            buffer = queue.read(volume, block * BLOCK, buffer).unwrap();
            check(&buffer, word(0, round, block), "what was written and answered is there");
        }
        if !progress.goes_on(0) {
            assert_eq!((queue.stats().errors, queue.stats().doubled, queue.stats().unknown), (0, 0, 0));
            return;
        }
    }
}

fn polling(session: &Session, mut queue: Queue, volume: &Volume, progress: &Progress) {
    let mut spare: Vec<_> = (0..SHARE).map(|_| session.alloc(BLOCK as usize).unwrap()).collect();
    for round in 0.. {
        for write in [true, false] {
            let mut flying = 0;
            for block in 0..SHARE {
                let mut buffer = spare.pop().unwrap();
                let at = (SHARE + block) * BLOCK;
                let request = if write {
                    fill(&mut buffer, word(1, round, block));
                    Request::write(volume, at, buffer)
                } else {
                    Request::read(volume, at, buffer)
                };
                queue.submit(request.tag(block)).unwrap();
                flying += 1;
            }
            queue.commit().unwrap();
            while flying > 0 {
                let Some(completion) = queue.poll().unwrap() else {
                    thread::yield_now();
                    continue;
                };
                assert_eq!(completion.result, Ok(BLOCK as u32));
                let buffer = completion.buffer.unwrap();
                check(&buffer, word(1, round, completion.tag), "the block of this request");
                spare.push(buffer);
                flying -= 1;
            }
        }
        if !progress.goes_on(1) {
            assert_eq!((queue.stats().errors, queue.stats().doubled, queue.stats().unknown), (0, 0, 0));
            return;
        }
    }
}

fn asynchronous(session: &Session, queue: Queue, volume: &Volume, progress: &Arc<Progress>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let queue = queue.into_async().unwrap();
        let tasks: Vec<_> = (0..SHARE)
            .map(|block| {
                let (queue, volume, progress) = (queue.clone(), volume.clone(), Arc::clone(progress));
                let mut buffer = session.alloc(BLOCK as usize).unwrap();
                tokio::spawn(async move {
                    for round in 0.. {
                        let at = (2 * SHARE + block) * BLOCK;
                        fill(&mut buffer, word(2, round, block));
                        buffer = queue.write(&volume, at, buffer).await.unwrap();
                        buffer = queue.read(&volume, at, buffer).await.unwrap();
                        check(&buffer, word(2, round, block), "the block of this task");
                        if !progress.goes_on(2) {
                            return;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let stats = queue.stats();
        assert_eq!((stats.errors, stats.doubled, stats.unknown), (0, 0, 0));
        queue.close().await;
    });
}

fn restarts(backend: &str) {
    let builder = DaemonBuilder::new().engine("main", backend, "").file("data", 4 * MIB);
    let daemon = &mut builder.start();
    let queue = |wait| QueueOptions { entries: SHARE as u32, wait, ..QueueOptions::default() };
    let builder = daemon.session("data", Access::ReadWrite).queue(queue(WaitPolicy::Sleep));
    let builder = builder.queue(queue(WaitPolicy::Poll)).queue(queue(WaitPolicy::default()));
    let session = builder.open().unwrap();
    let volume = session.volume("data").unwrap();
    let region = session.create_region(MIB).unwrap();
    let progress = Arc::new(Progress::default());
    let take = |index| session.take_queue(index).unwrap();
    thread::scope(|scope| {
        let (first, second, third) = (take(0), take(1), take(2));
        scope.spawn(|| blocking(&session, first, &volume, &region, &progress));
        scope.spawn(|| polling(&session, second, &volume, &progress));
        scope.spawn(|| asynchronous(&session, third, &volume, &progress));
        for signal in [Signal::KILL, Signal::TERM, Signal::KILL, Signal::KILL, Signal::TERM, Signal::KILL] {
            progress.wait();
            daemon.end(signal);
            thread::sleep(Duration::from_millis(20));
            daemon.restart();
        }
        progress.wait();
        progress.over.store(true, Ordering::Relaxed);
    });
    let mut epochs = Vec::new();
    while let Some(event) = session.next_event().unwrap() {
        if let Event::Reattached { epoch, gap } = event {
            println!("{backend}: epoch {epoch} after {gap:?}");
            epochs.push(epoch);
        }
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 6, "one epoch for each restart: {epochs:?}");
}

#[test]
fn callers_of_each_kind_go_on_over_io_uring() {
    restarts("io_uring");
}

#[test]
fn callers_of_each_kind_go_on_over_aio() {
    restarts("aio");
}

/// Regions are added and removed while daemons come and go; what was added is there.
#[test]
fn regions_are_added_and_removed_over_restarts() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    let session = daemon.session("data", Access::ReadWrite).open().unwrap();
    let volume = session.volume("data").unwrap();
    let mut queue = session.take_queue(0).unwrap();
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (session, volume, over, turns) = (&session, &volume, &over, &turns);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let region = session.create_region(16 * BLOCK).unwrap();
                let buffer = region.alloc(BLOCK as usize).unwrap();
                drop(queue.read(volume, 0, buffer).unwrap());
                session.remove_region(region).unwrap();
                turns.fetch_add(1, Ordering::Relaxed);
            }
        });
        for restart in 0..8 {
            let before = turns.load(Ordering::Relaxed);
            wait_until("regions to come and go", || turns.load(Ordering::Relaxed) > before);
            thread::sleep(Duration::from_millis(restart));
            daemon.end(Signal::KILL);
            daemon.restart();
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// A daemon that was stopped for good: what is in the ring is answered from here, with words, when the patience is over.
#[test]
fn stop_ends_sessions_after_their_patience() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    let patience = Duration::from_millis(500);
    let session = daemon.session("data", Access::ReadWrite).patience(patience).open().unwrap();
    let mut queue = session.take_queue(0).unwrap();
    queue.nop().unwrap();
    daemon.end(Signal::TERM).expect(0);
    let start = Instant::now();
    queue.submit(Request::nop()).unwrap();
    let completion = queue.wait(None).unwrap().unwrap();
    let Err(RequestError::Unanswered(end)) = completion.result else { panic!("{:?}", completion.result) };
    for words in ["within 500ms", "attach.sock", "patience"] {
        assert!(end.to_string().contains(words), "{words:?} is missing in: {end}");
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(matches!(queue.nop(), Err(Error::Disconnected(_))));
}

#[test]
fn opening_waits_for_a_daemon_that_restarts() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    for signal in [Signal::KILL, Signal::TERM] {
        daemon.end(signal);
        let builder = daemon.session("data", Access::ReadOnly);
        let opening = thread::spawn(move || builder.open().map(|session| session.id()));
        thread::sleep(Duration::from_millis(50));
        daemon.restart();
        assert!(opening.join().unwrap().unwrap() > 0);
    }
}

/// A client that was dropped during the pause does not come back, and its process is there: the daemon waits for it as long as
/// it was told, and then lets the volume go.
#[test]
fn a_client_that_does_not_come_back_is_let_go() {
    let mut daemon = DaemonBuilder::new().config("resume_timeout_s = 1").file("data", MIB).start();
    let session = daemon.session("data", Access::ReadWrite).open().unwrap();
    daemon.end(Signal::KILL);
    drop(session);
    daemon.restart();
    let open = |daemon: &Daemon| daemon.session("data", Access::ReadWrite).open().map(drop);
    let busy = open(&daemon).unwrap_err();
    assert!(busy.to_string().contains("data"), "{busy}");
    wait_until("the volume to be free", || open(&daemon).is_ok());
}
