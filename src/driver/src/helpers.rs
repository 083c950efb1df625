//! The helper pool: a few threads for what a backend cannot do without blocking.
//!
//! ```text
//!   submit half --commit--> dispatch --> threads: Payload::perform --> results --> reap half
//!   AIO's reap half: EAGAIN --^                                     \-- bell
//! ```
//!
//! All targets share [`DriverConfig::helpers`] threads, which one that does not answer may keep all. So a target that keeps
//! none has one beyond these: a thread that leaves none idle when it takes a request starts another first, off the I/O
//! threads. There are never more than `helpers` and one per target; once started, they stay.
//!
//! A slot has one job at most, and both queues have room for one entry of every slot, so neither is ever full and nobody
//! waits to send. A request is with the pool from `hand_over` to `finish` of its slot: the ledger keeps pinned
//! what its payload names, as it does for the kernel.

mod dispatch;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::dispatch::Dispatch;
use crate::bell::Bell;
use crate::driver::DriverConfig;
use crate::payload::Payload;
use crate::slot_table::SlotTable;
use crate::tag::Tag;

/// What came of a request.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    tag: Tag,
    result: i32,
}

/// What the ends of the pool and its threads share.
#[derive(Debug)]
struct Pool {
    /// Jobs sent and not yet taken back as results.
    owed: AtomicU32,
    /// Results that wait.
    ready: AtomicU32,
    bell: Arc<Bell>,
    wake: Wake,
    results: SyncSender<Outcome>,
    /// Held for a few steps at a time, never while a request is carried out.
    state: Mutex<State>,
    /// Idle threads wait for a request they may take.
    work: Condvar,
}

#[derive(Debug)]
struct State {
    dispatch: Dispatch,
    /// Threads.
    running: u32,
    /// The last [`Sender`] is gone.
    closed: bool,
    /// A thread could not be had, which was said.
    short: bool,
}

/// Whom the bell of the pool wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A thread that announces its sleep.
    Announced,
    /// A thread that looks at the descriptor alone.
    Always,
}

/// Sends jobs; either half may have one. With the last one, and all jobs, the threads end.
#[derive(Clone, Debug)]
pub(crate) struct Sender(Arc<Open>);

/// Closes the pool when it is dropped.
#[derive(Debug)]
struct Open(Arc<Pool>);

/// The end of the submit half.
#[derive(Debug)]
pub(crate) struct Helpers {
    sender: Sender,
    /// What the next commit sends.
    staged: Vec<(Tag, Payload)>,
    /// Threads that all targets share.
    shared: u32,
}

/// The end of the reap half.
#[derive(Debug)]
pub(crate) struct Results {
    results: Receiver<Outcome>,
    pool: Arc<Pool>,
}

/// Both ends. No thread runs until [`Helpers::start`].
pub(crate) fn pool(config: &DriverConfig, bell: Arc<Bell>, wake: Wake) -> (Helpers, Results) {
    let shared = config.helpers.max(1);
    let dispatch = Dispatch::new(config.depth, config.files_max, shared);
    let (sender, results) = mpsc::sync_channel(config.depth as usize);
    let pool = Arc::new(Pool {
        owed: AtomicU32::new(0),
        ready: AtomicU32::new(0),
        bell,
        wake,
        results: sender,
        state: Mutex::new(State { dispatch, running: 0, closed: false, short: false }),
        work: Condvar::new(),
    });
    let sender = Sender(Arc::new(Open(Arc::clone(&pool))));
    let staged = Vec::with_capacity(config.depth as usize);
    (Helpers { sender, staged, shared }, Results { results, pool })
}

impl Helpers {
    /// Starts the threads, if they do not run.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        let pool = self.sender.pool();
        while self.running() < self.shared {
            pool.state().running += 1;
            let Err(error) = pool.start_thread() else { continue };
            // Fewer do as well, and start others when they are busy.
            return if self.running() > 0 { Ok(()) } else { Err(error) };
        }
        Ok(())
    }

    /// Stages a request that is armed and handed over.
    pub(crate) fn stage(&mut self, tag: Tag, payload: Payload) {
        self.staged.push((tag, payload));
    }

    /// Requests that the next commit sends.
    pub(crate) fn staged(&self) -> u32 {
        self.staged.len() as u32
    }

    /// Sends what is staged, and says how much that was.
    pub(crate) fn commit(&mut self) -> u32 {
        let staged = self.staged();
        if staged > 0 {
            self.sender.pool().send(staged, self.staged.drain(..));
        }
        staged
    }

    /// Requests that are with the pool, or wait to be reaped from it.
    pub(crate) fn owed(&self) -> u32 {
        self.sender.pool().owed.load(Ordering::Relaxed)
    }

    /// Results wait to be reaped.
    pub(crate) fn has_ready(&self) -> bool {
        self.sender.pool().has_ready()
    }

    /// What rings when results are ready.
    pub(crate) fn bell(&self) -> &Bell {
        &self.sender.pool().bell
    }

    /// Threads that run.
    pub(crate) fn running(&self) -> u32 {
        self.sender.pool().state().running
    }

    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }
}

impl Sender {
    /// Has a request carried out that is armed and handed over.
    pub(crate) fn send(&self, tag: Tag, payload: Payload) {
        self.pool().send(1, [(tag, payload)]);
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.0.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.work.notify_all();
    }
}

impl State {
    fn idle(&self) -> u32 {
        self.running - self.dispatch.busy()
    }

    /// An idle thread could take a request.
    fn may_wake(&self) -> bool {
        self.idle() > 0 && self.dispatch.has_next()
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ready(&self) -> bool {
        // SYNC: helped (pairs with answer).
        self.ready.load(Ordering::Acquire) != 0
    }

    /// Wakes one thread at most: that one wakes the next.
    fn send(&self, count: u32, jobs: impl IntoIterator<Item = (Tag, Payload)>) {
        self.owed.fetch_add(count, Ordering::Relaxed);
        let mut state = self.state();
        jobs.into_iter().for_each(|(tag, payload)| state.dispatch.push(tag, payload));
        let wake = state.may_wake();
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// The next request for a thread, whose busy state it changes.
    fn take(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Option<(Tag, Payload)> {
        let job = state.dispatch.next()?;
        let (wake, spare) = (state.may_wake(), state.idle() == 0);
        state.running += u32::from(spare);
        drop(state);
        if wake {
            self.work.notify_one();
        }
        if spare {
            // The last one is away now, maybe for long. If this fails, whoever takes the next request tries again.
            let _ = self.start_thread();
        }
        Some(job)
    }

    /// Waits for a request. `None`: the pool is closed, and this thread counts no more.
    fn wait(self: &Arc<Self>) -> Option<(Tag, Payload)> {
        let mut state = self.state();
        while !state.dispatch.has_next() {
            if state.closed {
                state.running -= 1;
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.take(state)
    }

    /// A thread is done with a request of `fd`; gives it the next one, if there is one.
    fn done(self: &Arc<Self>, fd: RawFd) -> Option<(Tag, Payload)> {
        let mut state = self.state();
        state.dispatch.done(fd);
        self.take(state)
    }

    /// Starts a thread that counts already.
    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        let started = std::thread::Builder::new().name("helper".to_owned()).spawn(move || pool.help());
        let mut state = self.state();
        match started {
            Ok(_) => state.short = false,
            Err(error) => {
                state.running -= 1;
                let running = state.running;
                if !std::mem::replace(&mut state.short, true) {
                    tracing::warn!(
                        %error, running,
                        "no further helper thread: requests that block wait for each other; raise TasksMax= or the limit on threads"
                    );
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The loop of a helper thread.
    fn help(self: Arc<Self>) {
        let mut next = None;
        while let Some((tag, payload)) = next.or_else(|| self.wait()) {
            // SAFETY: the request is armed, and was handed over to this thread: the ledger keeps its memory mapped and
            // its file open until the reap half has taken the result that is sent below.
            let result = unsafe { payload.perform() };
            // Before the answer, after which the descriptor may be closed and its number given to another file.
            next = self.done(payload.fd());
            self.answer(Outcome { tag, result });
        }
    }

    fn answer(&self, outcome: Outcome) {
        // The reaping end may be gone with the driver.
        if self.results.send(outcome).is_ok() {
            // SYNC: helped (pairs with has_ready): whoever sees the count finds the result.
            self.ready.fetch_add(1, Ordering::Release);
            match self.wake {
                Wake::Announced => self.bell.ring(),
                Wake::Always => self.bell.ring_always(),
            }
        }
    }
}

impl Results {
    /// Results wait to be taken.
    pub(crate) fn has_ready(&self) -> bool {
        self.pool.has_ready()
    }

    /// The next result that waits: the tag as [`Tag::helped`] has it.
    pub(crate) fn take(&mut self) -> Option<(Tag, i32)> {
        let Outcome { tag, result } = self.results.try_recv().ok()?;
        self.pool.ready.fetch_sub(1, Ordering::Relaxed);
        self.pool.owed.fetch_sub(1, Ordering::Relaxed);
        Some((tag.helped(), result))
    }

    /// At the end: waits until `deadline` for the pool to be done with everything, and says what it still owes then.
    pub(crate) fn drain(&mut self, table: &SlotTable, deadline: Instant) -> u32 {
        while self.pool.owed.load(Ordering::Relaxed) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Outcome { tag, .. }) = self.results.recv_timeout(left) else { break };
            table.finish(tag.helped());
            self.pool.owed.fetch_sub(1, Ordering::Relaxed);
        }
        self.pool.owed.load(Ordering::Relaxed)
    }
}
