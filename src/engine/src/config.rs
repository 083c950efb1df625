//! What an engine is made with, and why it could not be made.

use std::{io, ops::RangeInclusive, path::PathBuf};

use ferrio_driver::{DriverError, FaultError, select::BackendChoice};

use ferrio_shm::abi::{errno, limits};

use crate::{merge::MergeLimits, scheduler::Budgets};

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
    /// Most requests accepted at once, `depth` to 1048576; each takes 128 bytes of journal. At least 64, so that half of them,
    /// what one session may have, hold the longest chain.
    pub requests_max: u32,
    /// Most queues open at once, 1 to 65536.
    pub queues_max: u32,
    /// Most sessions open at once, 1 to 16384.
    pub sessions_max: u32,
    /// Regions that each session may bring besides its arena, 0 to 255.
    pub regions_per_session: u32,
    /// Volumes can be given faults: requests pass through a driver that looks for them.
    pub faults: bool,
    /// Threads.
    pub threads: Threads,
    /// Longest time a thread spins for work before it sleeps, microseconds; 0 never spins.
    pub spin_us: u32,
    /// Cost per scheduling round: prio, read, write. A request costs 1 for each 16 KiB begun.
    pub budgets: Budgets,
    /// How far adjacent requests are joined into one operation.
    pub merge: MergeLimits,
    /// Threads that the volumes share for what the backend cannot do without blocking, 1 to 64; a volume that has none of
    /// them when all are busy gets one of its own.
    pub helpers: u32,
    /// Journal file, on tmpfs. What another engine has left there is gone on from: see [`crate::Engine::dormant`].
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
    /// The journal is of a newer ferriod.
    #[error(
        "engine {engine}: its journal {path} has version {version}, and this ferriod knows version {known}: start the newer \
         ferriod that wrote it, which goes on with the sessions that it names; or remove the file, and their requests in flight \
         are not answered"
    )]
    JournalVersion {
        /// Engine.
        engine: String,
        /// Journal file.
        path: PathBuf,
        /// Its version.
        version: u64,
        /// That of this ferriod.
        known: u64,
    },
    /// More is owed than the limits hold.
    #[error(
        "engine {engine}: its journal {path} holds {needed} {what} that are waited for, and {key} is {limit}; raise it to {needed} \
         at least until their clients have come back"
    )]
    JournalHolds {
        /// Engine.
        engine: String,
        /// Journal file.
        path: PathBuf,
        /// What there are too many of.
        what: &'static str,
        /// How many.
        needed: u64,
        /// Limit.
        limit: u32,
        /// Config key.
        key: &'static str,
    },
    /// A session that the journal does not name, or that was resumed or forgotten.
    #[error("engine {engine} does not know session {session}: it has ended; open a new one")]
    NotDormant {
        /// Engine.
        engine: String,
        /// Session id.
        session: u64,
    },
    /// A session that cannot be resumed.
    #[error("engine {engine} cannot go on with session {session}: {why}; open a new one")]
    Unfit {
        /// Engine.
        engine: String,
        /// Session id.
        session: u64,
        /// Why.
        why: String,
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
    /// No such volume, or it is being removed.
    #[error("engine {engine} has no volume {volume}")]
    NoVolume {
        /// Engine.
        engine: String,
        /// Its id.
        volume: u32,
    },
    /// Faults that cannot be had.
    #[error("engine {engine}: {source}")]
    Faults {
        /// Engine.
        engine: String,
        /// Cause.
        source: FaultError,
    },
    /// No such session, or it is closing.
    #[error("session {session} is not open; open one first")]
    NoSession {
        /// Session id.
        session: u64,
    },
    /// A setting of the scheduler or of merging that is out of its range.
    #[error("{what} {value} is not within {least} and {greatest}; choose one that is")]
    Setting {
        /// What was to be set.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// Least that there is.
        least: u64,
        /// Greatest that there is.
        greatest: u64,
    },
    /// A region index that no region may have.
    #[error(
        "session {session}: region index {index} is not within 1 and {}; choose one that is",
        limits::REGIONS_MAX - 1
    )]
    RegionIndex {
        /// Session id.
        session: u64,
        /// What was asked for.
        index: u16,
    },
    /// A region index that has a region.
    #[error("session {session}: region {index} is in use; choose another index, or remove that region first")]
    RegionInUse {
        /// Session id.
        session: u64,
        /// What was asked for.
        index: u16,
    },
    /// A region index that has none.
    #[error("session {session} has no region {index} that could be removed")]
    NoRegion {
        /// Session id.
        session: u64,
        /// What was asked for.
        index: u16,
    },
    /// A region that the device may still use.
    #[error("session {session}: region {index} has {in_flight} requests in flight; wait for their answers")]
    RegionBusy {
        /// Session id.
        session: u64,
        /// What was asked for.
        index: u16,
        /// Requests that the driver has.
        in_flight: u32,
    },
    /// The engine has stopped.
    #[error("engine {0} has stopped")]
    Stopped(String),
}

impl EngineError {
    /// `Ok` if a setting is in its range.
    pub(crate) fn check_setting(
        what: &'static str,
        value: u64,
        range: RangeInclusive<u64>,
    ) -> Result<(), Self> {
        match range.contains(&value) {
            true => Ok(()),
            false => Err(Self::Setting { what, value, least: *range.start(), greatest: *range.end() }),
        }
    }

    /// What a client is told on its lease (positive).
    pub fn errno(&self) -> i32 {
        match self {
            Self::RegionInUse { .. } | Self::RegionBusy { .. } => errno::EBUSY,
            Self::NoRegion { .. } => errno::ENXIO,
            Self::RegionIndex { .. } | Self::Spec { .. } | Self::Setting { .. } => errno::EINVAL,
            Self::NoSession { .. } => errno::ESRCH,
            Self::NoVolume { .. } => errno::ENODEV,
            Self::Faults { .. } => errno::EOPNOTSUPP,
            Self::Driver { .. } | Self::Limit { .. } => errno::ENOBUFS,
            Self::Stopped(_) => errno::ESHUTDOWN,
            Self::NotDormant { .. } | Self::Unfit { .. } => errno::ESTALE,
            Self::Journal { .. }
            | Self::JournalVersion { .. }
            | Self::JournalHolds { .. }
            | Self::System { .. } => errno::ENOMEM,
        }
    }
}
