//! A client that wants as much as it can get: a thread that keeps its queue full and counts what it is given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ferrio_client::{Access, QueueOptions, Request, Session, WaitPolicy};

use crate::{Daemon, process::PATIENCE};

/// What a greedy client asks for, again and again.
#[derive(Clone, Copy, Debug)]
pub struct Appetite {
    /// Requests in flight: as many wait at the daemon all the time.
    pub depth: u32,
    /// Of each request.
    pub bytes: u64,
    /// Every other one is a write.
    pub writes: bool,
    /// They are of the prio class.
    pub prio: bool,
}

impl Default for Appetite {
    fn default() -> Self {
        Self { depth: 64, bytes: 4096, writes: false, prio: false }
    }
}

/// See the module. It ends when it is dropped.
pub struct Greedy {
    /// Its session.
    pub session_id: u64,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    completed: AtomicU64,
    stop: AtomicBool,
}

impl Greedy {
    /// On the first MiB of a volume, which others may use too.
    ///
    /// # Panics
    /// No session.
    #[track_caller]
    pub fn start(daemon: &Daemon, name: &str, volume: &str, appetite: Appetite) -> Self {
        let options =
            QueueOptions { entries: appetite.depth, wait: WaitPolicy::Sleep, ..QueueOptions::default() };
        let builder = daemon.session(volume, Access::ReadWriteShared).name(name);
        let arena = u64::from(appetite.depth) * appetite.bytes;
        let session = builder.arena_bytes(arena + (1 << 20)).queue(options).open().expect("a session");
        let (session_id, counts) = (session.id(), Arc::new(Counts::default()));
        let (volume, counted) = (volume.to_owned(), Arc::clone(&counts));
        let thread = thread::spawn(move || eat(&session, &volume, appetite, &counted));
        Self { session_id, counts, thread: Some(thread) }
    }

    /// Requests answered so far.
    pub fn completed(&self) -> u64 {
        self.counts.completed.load(Relaxed)
    }

    /// Waits until so many more are answered.
    ///
    /// # Panics
    /// They are not.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let (before, limit) = (self.completed(), Instant::now() + PATIENCE);
        while self.completed() < before + more {
            assert!(Instant::now() < limit, "{} of {more} in {PATIENCE:?}", self.completed() - before);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        self.counts.stop.store(true, Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.expect("it runs").expect("every answer is a good one");
        }
    }
}

fn eat(session: &Session, volume: &str, appetite: Appetite, counts: &Counts) {
    let Appetite { depth, bytes, writes, prio } = appetite;
    let volume = session.volume(volume).expect("it is there");
    let mut queue = session.take_queue(0).expect("it is free");
    let alloc = |_| session.alloc(bytes as usize).expect("the arena holds it");
    let mut free: Vec<_> = (0..depth).map(alloc).collect();
    let mut tag = 0;
    // The daemon may be stopped, or the session evicted, by a test that ends.
    while !counts.stop.load(Relaxed) {
        while let Some(buffer) = free.pop() {
            let offset = (tag * bytes) % (1 << 20);
            let make = if writes && tag % 2 == 1 { Request::write } else { Request::read };
            queue.submit(make(&volume, offset, buffer).prio(prio).tag(tag)).expect("there is room");
            tag += 1;
        }
        queue.commit().expect("the daemon is there");
        let Some(completion) = queue.wait(Some(Duration::from_millis(100))).expect("it is there") else {
            continue;
        };
        assert_eq!(u64::from(completion.result.expect("no error")), bytes);
        free.extend(completion.buffer);
        counts.completed.fetch_add(1, Relaxed);
    }
}
