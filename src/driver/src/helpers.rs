//! The helper pool: a few threads for what a backend cannot do without blocking.
//!
//! ```text
//!   submit half --commit--> jobs --> threads: Payload::perform --> results --> reap half
//!   AIO's reap half: EAGAIN --^                                 \-- bell
//! ```
//!
//! Both queues have room for one entry of every slot, and a slot has one job at most, so neither is ever full and nobody
//! waits to send. A request is with the pool from `hand_over` to `finish` of its slot: the ledger keeps pinned
//! what its payload names, as it does for the kernel.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::bell::Bell;
use crate::driver::DriverConfig;
use crate::payload::Payload;
use crate::slot_table::SlotTable;
use crate::tag::Tag;

/// A request for the pool.
#[derive(Debug)]
struct Job {
    tag: Tag,
    payload: Payload,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    tag: Tag,
    result: i32,
}

/// What the ends of the pool share.
#[derive(Debug)]
struct Shared {
    /// Jobs sent and not yet taken back as results.
    owed: AtomicU32,
    /// Results that wait.
    ready: AtomicU32,
    bell: Arc<Bell>,
    wake: Wake,
}

/// Whom the bell of the pool wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A thread that announces its sleep.
    Announced,
    /// A thread that looks at the descriptor alone.
    Always,
}

/// Sends jobs; either half may have one.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

/// The end of the submit half.
#[derive(Debug)]
pub(crate) struct Helpers {
    sender: Sender,
    /// What the next commit sends.
    staged: Vec<(Tag, Payload)>,
    threads: Threads,
}

/// The end of the reap half.
#[derive(Debug)]
pub(crate) struct Results {
    results: Receiver<Outcome>,
    shared: Arc<Shared>,
}

/// The threads, started on demand. They end when the last [`Sender`] is dropped and all jobs are done.
#[derive(Debug)]
struct Threads {
    jobs: Arc<Mutex<Receiver<Job>>>,
    results: SyncSender<Outcome>,
    shared: Arc<Shared>,
    wanted: u32,
    running: u32,
}

/// Both ends. No thread runs until [`Helpers::start`].
pub(crate) fn pool(config: &DriverConfig, bell: Arc<Bell>, wake: Wake) -> (Helpers, Results) {
    let (jobs, job_receiver) = mpsc::sync_channel(config.depth as usize);
    let (result_sender, results) = mpsc::sync_channel(config.depth as usize);
    let shared = Arc::new(Shared { owed: AtomicU32::new(0), ready: AtomicU32::new(0), bell, wake });
    let threads = Threads {
        jobs: Arc::new(Mutex::new(job_receiver)),
        results: result_sender,
        shared: Arc::clone(&shared),
        wanted: config.helpers.max(1),
        running: 0,
    };
    let sender = Sender { jobs, shared: Arc::clone(&shared) };
    let staged = Vec::with_capacity(config.depth as usize);
    (Helpers { sender, staged, threads }, Results { results, shared })
}

impl Helpers {
    /// Starts the threads, if they do not run.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.threads.start()
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
        if staged == 0 {
            return 0;
        }
        for (tag, payload) in self.staged.drain(..) {
            self.sender.send(tag, payload);
        }
        staged
    }

    /// Requests that are with the pool, or wait to be reaped from it.
    pub(crate) fn owed(&self) -> u32 {
        self.sender.shared.owed.load(Ordering::Relaxed)
    }

    /// Results wait to be reaped.
    pub(crate) fn has_ready(&self) -> bool {
        self.sender.shared.has_ready()
    }

    /// What rings when results are ready.
    pub(crate) fn bell(&self) -> &Bell {
        &self.sender.shared.bell
    }

    /// Threads that run.
    pub(crate) fn running(&self) -> u32 {
        self.threads.running
    }

    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }
}

impl Sender {
    /// Has a request carried out that is armed and handed over.
    pub(crate) fn send(&self, tag: Tag, payload: Payload) {
        self.shared.owed.fetch_add(1, Ordering::Relaxed);
        let sent = self.jobs.try_send(Job { tag, payload });
        debug_assert!(sent.is_ok(), "more jobs than slots, or no threads");
    }
}

impl Threads {
    fn start(&mut self) -> io::Result<()> {
        while self.running < self.wanted {
            let (jobs, results, shared) =
                (Arc::clone(&self.jobs), self.results.clone(), Arc::clone(&self.shared));
            let thread = std::thread::Builder::new().name(format!("helper-{}", self.running));
            match thread.spawn(move || help(&jobs, &results, &shared)) {
                Ok(_) => self.running += 1,
                // Fewer do as well.
                Err(error) if self.running > 0 => {
                    tracing::warn!(%error, running = self.running, wanted = self.wanted, "fewer helper threads than wanted");
                    self.wanted = self.running;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The loop of a helper thread.
fn help(jobs: &Mutex<Receiver<Job>>, results: &SyncSender<Outcome>, shared: &Shared) {
    loop {
        // Whoever holds the lock waits for the next job, the others for the lock.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { tag, payload }) = job else { return };
        // SAFETY: the request is armed, and was handed over to this thread: the ledger keeps its memory mapped and its
        // file open until the reap half has taken the result that is sent below.
        let result = unsafe { payload.perform() };
        // The reaping end may be gone with the driver.
        if results.send(Outcome { tag, result }).is_ok() {
            // SYNC: helped (pairs with has_ready): whoever sees the count finds the result.
            shared.ready.fetch_add(1, Ordering::Release);
            match shared.wake {
                Wake::Announced => shared.bell.ring(),
                Wake::Always => shared.bell.ring_always(),
            }
        }
    }
}

impl Shared {
    fn has_ready(&self) -> bool {
        // SYNC: helped (pairs with help).
        self.ready.load(Ordering::Acquire) != 0
    }
}

impl Results {
    /// Results wait to be taken.
    pub(crate) fn has_ready(&self) -> bool {
        self.shared.has_ready()
    }

    /// The next result that waits: the tag as [`Tag::helped`] has it.
    pub(crate) fn take(&mut self) -> Option<(Tag, i32)> {
        let Outcome { tag, result } = self.results.try_recv().ok()?;
        self.shared.ready.fetch_sub(1, Ordering::Relaxed);
        self.shared.owed.fetch_sub(1, Ordering::Relaxed);
        Some((tag.helped(), result))
    }

    /// At the end: waits until `deadline` for the pool to be done with everything, and says what it still owes then.
    pub(crate) fn drain(&mut self, table: &SlotTable, deadline: Instant) -> u32 {
        while self.shared.owed.load(Ordering::Relaxed) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Outcome { tag, .. }) = self.results.recv_timeout(left) else { break };
            table.finish(tag.helped());
            self.shared.owed.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.owed.load(Ordering::Relaxed)
    }
}
