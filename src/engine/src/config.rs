//! What an engine is made with, and why it could not be made.

use std::{io, path::PathBuf};

use ferrio_driver::{DriverError, select::BackendChoice};

use crate::scheduler::Budgets;

/// I/O threads of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// What suits the backend: two under AIO, whose completions any thread may reap; one under io_uring, which finishes a
    /// request in the thread that submitted it, so that a second one only adds a wake-up.
    #[default]
    Auto,
    /// The Submitter reaps too.
    One,
    /// Submitter and Poller.
    Two,
}

/// Configuration of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name in lists, logs and thread names.
    pub name: String,
    /// Backend.
    pub backend: BackendChoice,
    /// Most requests in the kernel at once, 1 to 4096.
    pub depth: u32,
    /// Most requests accepted at once, `depth` to 1048576; each takes 128 bytes of journal.
    pub requests_max: u32,
    /// Most queues open at once, 1 to 65536.
    pub queues_max: u32,
    /// Most sessions open at once, 1 to 16384.
    pub sessions_max: u32,
    /// Threads.
    pub threads: Threads,
    /// Longest time a thread spins for work before it sleeps, microseconds; 0 never spins.
    pub spin_us: u32,
    /// Requests per scheduling round: prio, read, write.
    pub budgets: Budgets,
    /// Journal file, on tmpfs. Created anew.
    pub journal: PathBuf,
    /// Random number of this start of the daemon.
    pub epoch: u64,
}

/// Why the engine refused.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend could not be opened.
    #[error("engine {engine}: {source}")]
    Driver {
        /// Engine.
        engine: String,
        /// Cause.
        source: DriverError,
    },
    /// The journal could not be made.
    #[error(
        "engine {engine}: cannot create its journal {path} ({bytes} bytes): {source}; the directory must be writable and its tmpfs have room, or lower requests_max or queues_max"
    )]
    Journal {
        /// Engine.
        engine: String,
        /// Journal file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// Cause.
        source: io::Error,
    },
    /// A thread, an eventfd or an epoll could not be made.
    #[error("engine {engine}: {what}: {source}")]
    System {
        /// Engine.
        engine: String,
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A limit of the engine.
    #[error("engine {engine}: {what} limit of {limit} reached; raise {key}")]
    Limit {
        /// Engine.
        engine: String,
        /// What there are too many of.
        what: &'static str,
        /// Limit.
        limit: u32,
        /// Config key.
        key: &'static str,
    },
    /// A session spec that does not fit its memory.
    #[error("session {session}: {what}")]
    Spec {
        /// Session id.
        session: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The engine has stopped.
    #[error("engine {0} has stopped")]
    Stopped(String),
}
