//! Signs of life of the I/O threads, for a watchdog.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// How far an I/O thread is. It turns as long as it has something to do, and once a second when it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Its name.
    pub thread: String,
    /// Its thread id; 0: it has not begun.
    pub tid: u32,
    /// Turns of its loop.
    pub turns: u64,
}

/// An I/O thread, as its engine knows it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) thread: String,
    tid: Arc<AtomicU32>,
}

impl Life {
    pub(crate) fn new(thread: String) -> Self {
        Self { thread, tid: Arc::default() }
    }

    /// The calling thread is this one.
    pub(crate) fn begin(&self) {
        self.tid.store(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(), Relaxed);
    }

    pub(crate) fn pulse(&self, turns: u64) -> Pulse {
        Pulse { thread: self.thread.clone(), tid: self.tid.load(Relaxed), turns }
    }
}
