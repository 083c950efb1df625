//! The configuration file: sections, keys, defaults.
//!
//! [`read`] turns text into a [`Config`] and a list of [`Problems`], all of them in one go; [`check`] then looks at the
//! machine: paths, users, groups. `ferriod check` runs both, and so does every start.

pub mod check;
mod fault;
mod group;
pub mod keys;
mod limit;
mod patience;
pub mod problem;
mod read;
pub mod reader;
pub mod size;
pub mod users;

use std::path::{Path, PathBuf};

use ferrio_driver::{BackendChoice, FaultPlan};
use ferrio_engine::{Budgets, LatencyGoal, Limit, MergeLimits, Threads};

pub use problem::{Problem, Problems, Severity};
pub use read::{NAME_LIMIT, is_name, read};
pub use reader::At;

use crate::acl::AllowList;

/// Name of the engine that exists when none is configured.
pub const DEFAULT_ENGINE: &str = "main";

/// Directory of the saved sessions, in that of the journals.
pub const SESSIONS_DIR: &str = "sessions";

/// A configuration whose every value is within its limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// File it was read from; `None`: the development default.
    pub file: Option<PathBuf>,
    /// `[daemon]`.
    pub daemon: DaemonSection,
    /// `[limits]`.
    pub limits: Limits,
    /// `[session]`.
    pub session: SessionSection,
    /// `[[group]]`.
    pub groups: Vec<GroupSection>,
    /// `[[engine]]`, at least one.
    pub engines: Vec<EngineSection>,
    /// `[[volume]]`.
    pub volumes: Vec<VolumeSection>,
}

/// `[daemon]`: the process.
#[derive(Debug, Clone)]
pub struct DaemonSection {
    /// Directory of the sockets, the lock and the journal.
    pub runtime_dir: At<PathBuf>,
    /// Mode of both sockets.
    pub socket_mode: u32,
    /// Group of both sockets; `None`: the daemon's own.
    pub group: Option<u32>,
    /// Least severe level that is logged.
    pub log_level: tracing::Level,
    /// Longest wait for requests in flight at shutdown. Seconds.
    pub drain_timeout_s: u64,
    /// How long sessions of the daemon before wait for their clients. Seconds.
    pub resume_timeout_s: u64,
}

/// `[limits]`: what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sessions open at once.
    pub sessions_max: u32,
    /// Sessions open at once for one user.
    pub sessions_per_uid_max: u32,
    /// Queues of all sessions together.
    pub queues_max: u32,
    /// Queues of all sessions of one user.
    pub queues_per_uid_max: u32,
    /// Queues of one session.
    pub queues_per_session_max: u32,
    /// SQ entries of one queue.
    pub queue_entries_max: u32,
    /// Arena of one session. Bytes.
    pub arena_bytes_max: u64,
    /// Regions that one session may add.
    pub regions_per_session_max: u32,
    /// All regions of one session together. Bytes.
    pub region_bytes_max: u64,
    /// Memory of all sessions together. Bytes.
    pub memory_bytes_max: u64,
    /// Memory of all sessions of one user. Bytes.
    pub memory_bytes_per_uid_max: u64,
    /// How long an attach token is valid. Seconds.
    pub attach_timeout_s: u32,
    /// Connections to each socket at once, leases not counted.
    pub connections_max: u32,
    /// The same, of one user.
    pub connections_per_uid_max: u32,
}

/// `[session]`: what a session has that no group says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSection {
    /// Its share of each class beside others.
    pub weight: u32,
    /// What it may do per second.
    pub limit: Limit,
}

/// `[[group]]`: sessions of some users.
#[derive(Debug, Clone)]
pub struct GroupSection {
    /// Name.
    pub name: At<String>,
    /// Users whose sessions are in it.
    pub uids: Vec<u32>,
    /// Groups of the system whose members' sessions are in it.
    pub gids: Vec<u32>,
    /// What each session has.
    pub session: SessionSection,
    /// What all of them together may do per second.
    pub limit: Limit,
}

/// `[[engine]]`: a Submitter, a Poller and a kernel ring.
#[derive(Debug, Clone)]
pub struct EngineSection {
    /// Name.
    pub name: At<String>,
    /// Backend asked for.
    pub backend: BackendChoice,
    /// Requests in the kernel at once.
    pub queue_depth: u32,
    /// Requests accepted at once.
    pub requests_max: u32,
    /// I/O threads.
    pub threads: Threads,
    /// Longest spin before sleeping. Microseconds.
    pub spin_us: u32,
    /// Cost per class and round: prio, read, write.
    pub budgets: Budgets,
    /// How far adjacent requests are joined into one operation.
    pub merge: MergeLimits,
    /// How fast the device is to answer prio.
    pub latency_goal: LatencyGoal,
    /// Threads for what the backend cannot do without blocking.
    pub helpers: u32,
    /// Its volumes can be given faults.
    pub faults: bool,
}

/// `[[volume]]`: a file, a block device, memory, or nothing.
#[derive(Debug, Clone)]
pub struct VolumeSection {
    /// Name.
    pub name: At<String>,
    /// What it is made of.
    pub source: VolumeSource,
    /// Engine that serves it.
    pub engine: At<String>,
    /// No session may write to it.
    pub read_only: bool,
    /// Who may use it.
    pub allow: AllowList,
    /// What all its sessions together may do per second.
    pub limit: Limit,
    /// Faults made on purpose.
    pub faults: FaultPlan,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A regular file.
    File {
        /// Path.
        path: At<PathBuf>,
        /// Size to create it with when it does not exist. Bytes.
        create_bytes: Option<At<u64>>,
    },
    /// A block device.
    Block {
        /// Path.
        path: At<PathBuf>,
    },
    /// Whatever the path names when the daemon starts.
    Path {
        /// Path.
        path: At<PathBuf>,
        /// Size to create a regular file with when nothing is there. Bytes.
        create_bytes: Option<At<u64>>,
    },
    /// Answers at once and keeps nothing.
    Null {
        /// Size. Bytes.
        bytes: u64,
        /// Logical block. Bytes.
        block_bytes: u32,
    },
    /// Memory of the daemon.
    Memory {
        /// Size. Bytes.
        bytes: u64,
    },
}

impl VolumeSource {
    /// Path, if it has one.
    pub fn path(&self) -> Option<&At<PathBuf>> {
        match self {
            Self::File { path, .. } | Self::Block { path } | Self::Path { path, .. } => Some(path),
            Self::Null { .. } | Self::Memory { .. } => None,
        }
    }

    /// Size to create the file with.
    pub fn create_bytes(&self) -> Option<At<u64>> {
        match self {
            Self::File { create_bytes, .. } | Self::Path { create_bytes, .. } => *create_bytes,
            Self::Block { .. } | Self::Null { .. } | Self::Memory { .. } => None,
        }
    }
}

impl Config {
    /// Reads and checks a file. The problems may be warnings only.
    pub fn load(path: &Path) -> (Option<Self>, Problems) {
        let file = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let fix = "give the path of a readable file after --config".to_owned();
                let what = format!("cannot be read: {error}");
                let limit = String::new();
                let (key, value) = (String::new(), String::new());
                let severity = Severity::Error;
                return (
                    None,
                    Problems(vec![Problem { severity, file, line: 0, key, value, what, limit, fix }]),
                );
            }
        };
        let (mut config, mut problems) = read::read_what_can_be(&file, &text);
        config.file = Some(path.to_owned());
        problems.0.extend(check::check_volumes(&config));
        if !problems.has_errors() {
            problems.0.extend(check::check_limits(&config));
        }
        problems.0.sort_by_key(|problem| problem.line);
        let usable = !problems.has_errors();
        (usable.then_some(config), problems)
    }

    /// What runs without a configuration: one file volume in `dir`, open to whoever may open the socket.
    pub fn development(dir: &Path) -> Self {
        let (mut config, problems) = read::read_what_can_be("development default", "");
        debug_assert!(!problems.has_errors(), "{problems}");
        config.daemon.runtime_dir = At::default_value(dir.to_owned());
        config.volumes.push(VolumeSection {
            name: At::default_value("dev".to_owned()),
            source: VolumeSource::File {
                path: At::default_value(dir.join("dev.img")),
                create_bytes: Some(At::default_value(64 << 20)),
            },
            engine: At::default_value(DEFAULT_ENGINE.to_owned()),
            read_only: false,
            allow: AllowList { any: true, ..AllowList::default() },
            limit: Limit::default(),
            faults: FaultPlan::default(),
        });
        config
    }

    /// A problem met after the file was read, such as a path that cannot be opened.
    pub fn problem(&self, line: u32, key: &str, value: &str, what: &str, fix: &str) -> Problem {
        Problem {
            severity: Severity::Error,
            file: self
                .file
                .as_ref()
                .map_or("development default".to_owned(), |file| file.display().to_string()),
            line,
            key: key.to_owned(),
            value: value.to_owned(),
            what: what.to_owned(),
            limit: String::new(),
            fix: fix.to_owned(),
        }
    }

    /// Control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.daemon.runtime_dir.value.join("control.sock")
    }

    /// Attach socket.
    pub fn attach_socket(&self) -> PathBuf {
        self.daemon.runtime_dir.value.join("attach.sock")
    }

    /// Directory of the journal.
    pub fn journal_dir(&self) -> PathBuf {
        self.daemon.runtime_dir.value.join("journal")
    }

    /// Directory of the saved sessions.
    pub fn sessions_dir(&self) -> PathBuf {
        self.journal_dir().join(SESSIONS_DIR)
    }
}

#[cfg(test)]
mod tests;
