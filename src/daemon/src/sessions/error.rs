//! Why a session is refused. Each text says what was asked, what the limit is, and what to do.

use std::io;
use std::time::Duration;

use ferrio_engine::EngineError;
use ferrio_shm::abi::ABI_VERSION;
use ferrio_shm::layout::LayoutError;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::pacing::PER_SECOND_MIN;
use crate::access::Access;
use crate::volumes::Holder;
use crate::volumes::error::VolumeError;

/// Why `Sessions.Open` is refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No common ABI version.
    #[error(
        "no common ABI version: the client speaks {min} to {max}, this daemon {ABI_VERSION}; use a client library of \
         the daemon's release"
    )]
    Abi {
        /// Oldest of the client.
        min: u32,
        /// Newest of the client.
        max: u32,
    },
    /// The name does not do.
    #[error(
        "client_name {0:?}: it must have 1 to 64 bytes of letters, digits, ASCII punctuation and spaces; choose \
         another name"
    )]
    ClientName(String),
    /// A number of things is out of range.
    #[error("{what}: {value} asked for, {min} to {max} allowed ({key}); ask for fewer, or raise the limit")]
    Count {
        /// What they are.
        what: &'static str,
        /// How many.
        value: u64,
        /// Smallest number.
        min: u64,
        /// Largest number.
        max: u64,
        /// Where the limit comes from.
        key: &'static str,
    },
    /// Ring geometry or arena that has no layout.
    #[error("{0}")]
    Layout(#[from] LayoutError),
    /// A volume without an access.
    #[error("volume {0:?}: no access is named; say ro, rw or rw-shared")]
    NoAccess(String),
    /// A volume that is not there, or not in service.
    #[error("{0}")]
    Volume(#[from] VolumeError),
    /// Unknown engine.
    #[error("no engine is called {name:?}; engines of this daemon: {known}")]
    NoEngine {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// The allow list.
    #[error(
        "uid {uid} (groups {groups}) may not use volume {volume:?}; add it to allow_users or allow_groups of that \
         [[volume]] and restart ferriod"
    )]
    NotAllowed {
        /// Volume.
        volume: String,
        /// User.
        uid: u32,
        /// Its groups.
        groups: String,
    },
    /// A read-only volume asked for writing.
    #[error("volume {0:?} is read-only; ask for access ro, or remove read_only from that [[volume]]")]
    ReadOnly(String),
    /// Somebody else has it.
    #[error(
        "volume {volume:?} cannot be had {access}: session {session} of client {client:?} (pid {pid}, uid {uid}) holds \
         it {held}; end that session, or use ro beside it, or rw-shared in both",
        session = by.session_id, client = by.client_name, pid = by.pid, uid = by.uid, held = by.access
    )]
    Busy {
        /// Volume.
        volume: String,
        /// Access asked for.
        access: Access,
        /// Who has it.
        by: Holder,
    },
    /// A limit over several sessions.
    #[error(
        "{what}: {used} in use, {asked} more asked for, limit {limit} ({key}); close sessions, or raise the limit"
    )]
    Limit {
        /// What there is no more of.
        what: &'static str,
        /// In use.
        used: u64,
        /// Asked for.
        asked: u64,
        /// Limit.
        limit: u64,
        /// Config key.
        key: &'static str,
    },
    /// Its user opens sessions faster than it may.
    #[error(
        "uid {uid} opens more than {per_second} sessions per second, as many as a user may \
         (half of limits.sessions_per_uid_max, at least {PER_SECOND_MIN}): its turn did not come within {waited:?}; keep sessions instead of \
         opening new ones, or raise the limit"
    )]
    TooFast {
        /// The user.
        uid: u32,
        /// How many it may open.
        per_second: u32,
        /// How long the call waited.
        waited: Duration,
    },
    /// The daemon is stopping.
    #[error("ferriod is stopping and opens no sessions; try again when it is back")]
    Draining,
    /// The kernel refused.
    #[error("cannot {what}: {source}{hint}", hint = fd_hint(source))]
    System {
        /// What was tried.
        what: &'static str,
        /// Errno.
        source: io::Error,
    },
}

/// Why an attach is refused: an errno for the program, a text for people.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No such token, or no longer.
    #[error(
        "the attach token is wrong, used or expired (limits.attach_timeout_s = {timeout_s}); open a new session"
    )]
    Token {
        /// How long tokens live.
        timeout_s: u32,
    },
    /// The token belongs to somebody else.
    #[error(
        "the attach token was given to pid {opener_pid} of uid {opener_uid}, not to pid {pid} of uid {uid}; attach from \
         the process that opened the session"
    )]
    Stranger {
        /// Process that opened the session.
        opener_pid: u32,
        /// Its user.
        opener_uid: u32,
        /// Process that attaches.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// An engine does not take it.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The session could not be saved.
    #[error(
        "cannot save the session for a restart of ferriod: {0}; is the tmpfs of daemon.runtime_dir full?"
    )]
    Save(io::Error),
    /// A volume of the session is not there any more.
    #[error("volume {0:?} was removed after the session was opened; open a new session")]
    VolumeGone(String),
    /// The daemon is stopping.
    #[error("ferriod is stopping and attaches no sessions; try again when it is back")]
    Draining,
}

impl AttachError {
    /// Errno of the refusal.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Token { .. } => Errno::NOENT,
            Self::Stranger { .. } => Errno::ACCESS,
            Self::Engine(_) | Self::Save(_) => Errno::NOBUFS,
            Self::VolumeGone(_) => Errno::NODEV,
            Self::Draining => Errno::SHUTDOWN,
        }
    }
}

/// Why a resume is refused: an errno for the program, a text for people.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// No session waits under this id.
    #[error("session {session_id} is not there to go on with{}; open a new session", why_text(why.as_deref()))]
    Unknown {
        /// Session.
        session_id: u64,
        /// Why it is gone, if it was there when the daemon started.
        why: Option<String>,
    },
    /// Not the one that opened it.
    #[error("that is not the resume secret of session {session_id}; it waits on for who has it")]
    Secret {
        /// Session.
        session_id: u64,
    },
    /// The secret came from somebody else.
    #[error(
        "the session belongs to pid {opener_pid} of uid {opener_uid}, not to pid {pid} of uid {uid}, or that pid is another \
         process now; resume from the process that opened it"
    )]
    Stranger {
        /// Process that opened the session.
        opener_pid: u32,
        /// Its user.
        opener_uid: u32,
        /// Process that resumes.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// The allow list of a volume has changed.
    #[error(
        "uid {uid} may not use volume {volume:?} any more; add it to allow_users or allow_groups of that [[volume]]"
    )]
    NotAllowed {
        /// Volume.
        volume: String,
        /// User.
        uid: u32,
    },
    /// No descriptor.
    #[error(
        "Resume came without descriptors; send the session memory with it, then the regions by ascending index"
    )]
    NoMemory,
    /// Not the memory of the session.
    #[error("the first descriptor is not the session memory: {what}")]
    Memory {
        /// What is wrong.
        what: String,
    },
    /// Not a region of the session.
    #[error("descriptor {position} is not a region of the session: {what}")]
    Region {
        /// Its place among the descriptors; the session memory has 0.
        position: usize,
        /// What is wrong.
        what: String,
    },
    /// A volume that has no place in its engine yet.
    #[error("volume {volume:?} is {stage}; try again")]
    NotYet {
        /// Volume.
        volume: String,
        /// How far it is.
        stage: String,
    },
    /// An engine does not take it.
    #[error("{0}")]
    Engine(EngineError),
    /// No descriptors, or no memory.
    #[error("{0}; try again")]
    NoRoom(String),
    /// The daemon is stopping.
    #[error("ferriod is stopping and resumes no sessions; try again when it is back")]
    Draining,
}

impl ResumeError {
    /// Errno of the refusal.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unknown { .. } => Errno::STALE,
            Self::Secret { .. } | Self::Stranger { .. } | Self::NotAllowed { .. } => Errno::ACCESS,
            Self::NoMemory | Self::Memory { .. } | Self::Region { .. } => Errno::INVAL,
            Self::Engine(error) => Errno::from_raw_os_error(error.errno()),
            Self::NoRoom(_) => Errno::NOMEM,
            Self::NotYet { .. } | Self::Draining => Errno::SHUTDOWN,
        }
    }
}

fn why_text(why: Option<&str>) -> String {
    why.map_or_else(|| " (it has ended)".to_owned(), |why| format!(": {why}"))
}

fn fd_hint(source: &io::Error) -> String {
    match Errno::from_io_error(source) {
        Some(Errno::MFILE | Errno::NFILE) => {
            let limit = getrlimit(Resource::Nofile).current.map_or("unlimited".to_owned(), |n| n.to_string());
            format!(
                "; ferriod may have {limit} (RLIMIT_NOFILE): raise LimitNOFILE of ferriod.service, or lower \
                 limits.sessions_max"
            )
        }
        Some(Errno::NOMEM) => "; free memory, or lower limits.memory_bytes_max".to_owned(),
        _ => String::new(),
    }
}
