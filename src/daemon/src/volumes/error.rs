//! Why a volume cannot be made, changed or removed. Each text says what was asked, what the limit is, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use ferrio_driver::{FaultError, TargetError};
use ferrio_engine::EngineError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A field of the request has a value it may not have.
    #[error("{field} = {value}: {what}; {fix}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it, or the limit.
        what: String,
        /// What to do.
        fix: String,
    },
    /// Unknown engine.
    #[error("no engine is called {name:?}; engines of this daemon: {known}")]
    NoEngine {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// Unknown volume.
    #[error("no volume is called {name:?}; volumes of this daemon: {known}")]
    NoVolume {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// It cannot be used, or changed, now.
    #[error("volume {name:?} is {stage}; try again later, `ferrioctl volume list` shows how far it is")]
    NotServing {
        /// Its name.
        name: String,
        /// What becomes of it.
        stage: String,
    },
    /// Its lock is not ours yet.
    #[error(
        "volume {name:?} is fenced: its lock is held by {by}; it is served once the lock is free, try again then"
    )]
    Fencing {
        /// Its name.
        name: String,
        /// Who has the lock.
        by: String,
    },
    /// The name is in use.
    #[error("a volume called {name:?} is {stage}; choose another name, or remove that one first")]
    NameTaken {
        /// The name.
        name: String,
        /// How far the other is.
        stage: String,
    },
    /// The file is in use.
    #[error("{} is volume {by:?} already; a file is opened once: use that volume, or remove it first", path.display())]
    PathTaken {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        by: String,
    },
    /// So many paths do not answer.
    #[error("{0} volumes are being opened, as many as may be at once; wait until their paths answer")]
    TooManyOpening(usize),
    /// The path cannot be opened, or not resized.
    #[error("volume {name:?} cannot be {what}: {}", crate::chain(source))]
    Target {
        /// Its name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: TargetError,
    },
    /// An engine does not take it.
    #[error("volume {name:?}: {}", crate::chain(source))]
    Engine {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: EngineError,
    },
    /// Fault rules that do not do.
    #[error("volume {name:?}: {source}")]
    Faults {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: FaultError,
    },
    /// It cannot be changed at all.
    #[error("volume {0:?} is read-only; remove it and create it again without read_only to change its size")]
    ReadOnly(String),
    /// Something below it does not answer.
    #[error("volume {name:?}: {what} did not end within {} s; {then}", limit.as_secs())]
    Slow {
        /// Its name.
        name: String,
        /// What takes so long.
        what: String,
        /// How long it was waited for.
        limit: Duration,
        /// What becomes of it.
        then: &'static str,
    },
    /// Nobody does what was asked for.
    #[error("volume {name:?}: {what}")]
    System {
        /// Its name.
        name: String,
        /// What went wrong.
        what: String,
    },
}
