//! What a session asks for.

use std::path::PathBuf;
use std::time::Duration;

use ferrio_api::v1;
use ferrio_shm::abi::{ABI_VERSION, features};

use crate::{Access, Features, WaitPolicy};

/// One queue: an SQ ring, a CQ ring, one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// SQ ring entries. A power of two, 1 to 32768, within the daemon's limit.
    pub entries: u32,
    /// CQ ring entries, which bound the requests in flight. A power of two, `entries` to 65536; 0: twice `entries`.
    pub cq_entries: u32,
    /// Engine that serves the queue; empty: the home engine of the session's first volume.
    pub engine: String,
    /// How to wait for completions.
    pub wait: WaitPolicy,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { entries: 64, cq_entries: 0, engine: String::new(), wait: WaitPolicy::default() }
    }
}

/// Describes a session before it is opened; see [`Session::builder`](crate::Session::builder).
#[derive(Clone, Debug)]
#[must_use = "call open() or open_async()"]
pub struct SessionBuilder {
    pub(crate) control_socket: PathBuf,
    pub(crate) attach_socket: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) volumes: Vec<(String, Access)>,
    pub(crate) queues: Vec<QueueOptions>,
    /// How many, and of which kind, at each engine, where `queues` is empty.
    pub(crate) per_engine: (u32, QueueOptions),
    pub(crate) arena_bytes: u64,
    pub(crate) features: Features,
    pub(crate) hugepages: bool,
    pub(crate) merge: bool,
    pub(crate) timeout: Duration,
    pub(crate) patience: Duration,
}

impl SessionBuilder {
    pub(crate) fn new(control_socket: PathBuf) -> Self {
        SessionBuilder {
            control_socket,
            attach_socket: None,
            name: None,
            volumes: Vec::new(),
            queues: Vec::new(),
            per_engine: (1, QueueOptions::default()),
            arena_bytes: 4 << 20,
            features: Features::ALL,
            hugepages: false,
            merge: true,
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(30),
        }
    }

    /// Name shown in the daemon's lists and logs; 1 to 64 bytes of printable text. Default: the process's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a volume, by the name in the daemon's configuration. At least one is needed.
    pub fn volume(mut self, name: impl Into<String>, access: Access) -> Self {
        self.volumes.push((name.into(), access));
        self
    }

    /// Adds a queue. Without any, the session has one with the default options for each engine that serves one of its
    /// volumes, in the order of the volumes.
    pub fn queue(mut self, options: QueueOptions) -> Self {
        self.queues.push(options);
        self
    }

    /// Without queues of the builder's own: `count` of this kind at each engine that serves one of the volumes, first those
    /// of the first volume's engine. The engine that the options name does not matter.
    pub fn queues_per_engine(mut self, count: u32, options: QueueOptions) -> Self {
        self.per_engine = (count, options);
        self
    }

    /// Memory for data buffers. Bytes, rounded up to a multiple of 4096. Default: 4 MiB.
    pub fn arena_bytes(mut self, bytes: u64) -> Self {
        self.arena_bytes = bytes.checked_next_multiple_of(4096).unwrap_or(bytes);
        self
    }

    /// Asks for an arena in huge pages (2 MiB), where the kernel has them; [`Session::hugepages`](crate::Session::hugepages)
    /// says what came of it.
    pub fn hugepages(mut self, hugepages: bool) -> Self {
        self.hugepages = hugepages;
        self
    }

    /// Whether the daemon may put requests that lie next to each other into one operation of the device, with those of other
    /// sessions too, as far as it is configured to. Each has its own answer all the same. Default: it may.
    pub fn merge(mut self, merge: bool) -> Self {
        self.merge = merge;
        self
    }

    /// What the session asks for beyond plain reads and writes; [`Session::features`](crate::Session::features) says what
    /// it got. Default: all that this library knows. [`Features::CANCEL`] and [`Features::ORDER`] cost the daemon a little
    /// with every request of the session: one that only reads and writes is served faster without them.
    pub fn features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }

    /// Longest wait for each answer of the daemon while the session is opened or regions are added. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the session waits for a daemon that is restarted, upgraded or was killed. Requests in flight stay in flight
    /// meanwhile and are answered by the next daemon, each once; callers, blocking, polling or async, notice a pause. Opening
    /// the session waits as long for a daemon that is stopping or refuses the connection, and for one second where there is
    /// no socket and no daemon ever was. Default: 30 s, which is also how long a daemon by default waits for its sessions to come back.
    ///
    /// It takes a thread, asleep, as long as the session is open. 0: none, and the session ends with its daemon.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Where the attach socket is, if not where the daemon says. Not needed in a container that sees both sockets in one
    /// directory: when the daemon's path does not exist, the control socket's directory is tried.
    pub fn attach_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.attach_socket = Some(path.into());
        self
    }

    pub(crate) fn wants_resume(&self) -> bool {
        !self.patience.is_zero()
    }

    pub(crate) fn request(&self) -> v1::OpenSessionRequest {
        let queue = |queue: &QueueOptions| v1::QueueRequest {
            sq_entries: queue.entries,
            cq_entries: queue.cq_entries,
            engine: queue.engine.clone(),
        };
        let volume = |(name, access): &(String, Access)| v1::VolumeRequest {
            name: name.clone(),
            access: v1::Access::from(*access).into(),
        };
        v1::OpenSessionRequest {
            client_name: self.name.clone().unwrap_or_else(process_name),
            queues: self.queues.iter().map(queue).collect(),
            arena_bytes: self.arena_bytes,
            volumes: self.volumes.iter().map(volume).collect(),
            abi_min: ABI_VERSION,
            abi_max: ABI_VERSION,
            features: self.features.bits() | if self.wants_resume() { features::RESUME } else { 0 },
            hugepages: self.hugepages,
            no_merge: !self.merge,
        }
    }
}

fn process_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let printable: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if printable.is_empty() { format!("pid {}", std::process::id()) } else { printable }
}
