//! What the next daemon must know of a session to go on with it, and the directory where it stands.
//!
//! One file per session, beside the journals and like them gone with a reboot. A file is written whole under another name and
//! renamed: whenever the daemon is killed, there is the old one or the new one.

mod format;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferrio_api::v1;
use ferrio_shm::layout::{QueueLayout, SessionLayout};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::process::Birth;
use crate::access::Access;

pub use format::FormatError;

/// Longest file. Bytes: the largest session has 64 queues and volumes and 255 regions.
const BYTES_MAX: u64 = 1 << 20;
/// What is not believed any more is kept under this name, for people.
const DAMAGED: &str = "damaged";
/// What is being written.
const UNFINISHED: &str = "tmp";

/// Proof of a client that it is the one who opened the session. Not in logs.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret(#[serde(with = "format::hex")] [u8; 32]);

/// A session, as it is saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSession {
    /// Session id, never 0.
    pub session_id: u64,
    /// What the client proves itself with.
    pub secret: Secret,
    /// Its attach token: who still shows that has never got the session memory.
    pub token: Secret,
    /// Process that opened it.
    pub pid: u32,
    /// Which of those that had this pid.
    pub birth: Birth,
    /// User of that process.
    pub uid: u32,
    /// Name the client gave.
    pub client_name: String,
    /// When it was opened. Milliseconds since 1970.
    pub opened_ms: u64,
    /// Feature bits granted.
    pub features: u64,
    /// Huge pages, if they were asked for.
    pub hugepages: Option<SavedHugePages>,
    /// It asked that its requests be joined with nothing. Left out where it did not, as in the files of older daemons, which
    /// do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_merge: bool,
    /// Session memory.
    pub memory: MemoryFile,
    /// Start of the arena. Bytes.
    pub arena_offset: u64,
    /// Length of the arena. Bytes.
    pub arena_bytes: u64,
    /// Names of the engines that serve it, by doorbell.
    pub engines: Vec<String>,
    /// Its queues.
    pub queues: Vec<SavedQueue>,
    /// By SQE volume index.
    pub volumes: Vec<SavedVolume>,
    /// What the client has added, by ascending index.
    pub regions: Vec<SavedRegion>,
}

/// A memory file, known again by its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFile {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// What is used of it. Bytes.
    pub bytes: u64,
}

/// What became of huge pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedHugePages {
    /// Part of the arena that is in huge pages. Bytes.
    pub bytes: u64,
    /// Why not all of it.
    pub reason: String,
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedQueue {
    /// Index of its engine in [`SavedSession::engines`].
    pub engine: usize,
    /// SQ ring entries.
    pub sq_entries: u32,
    /// CQ ring entries.
    pub cq_entries: u32,
    /// Its control block. Bytes from the start of the session memory, as the two below.
    pub control_offset: u64,
    /// Its SQEs.
    pub sqes_offset: u64,
    /// Its CQEs.
    pub cqes_offset: u64,
}

/// A volume, with what the client was told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVolume {
    /// Name.
    pub name: String,
    /// Engine that serves it.
    pub engine: String,
    /// Access granted.
    pub access: Access,
    /// Size told last. Bytes.
    pub size_bytes: u64,
    /// Logical block. Bytes.
    pub block_bytes: u32,
    /// Alignment of buffers. Bytes.
    pub memory_align_bytes: u32,
    /// Longest data request. Bytes.
    pub request_bytes_max: u32,
    /// What discard does there: level of the API, and how.
    pub discard: (i32, String),
    /// What write-zeroes does there.
    pub write_zeroes: (i32, String),
}

/// Memory that the client brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRegion {
    /// Index that requests name it by.
    pub index: u16,
    /// The memory.
    pub file: MemoryFile,
}

impl Secret {
    /// As the client was told it.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Whether a client knows it. Takes the same time whatever it says.
    pub fn is(&self, said: &[u8; 32]) -> bool {
        let differences =
            self.0.iter().zip(said).fold(0, |differences, (own, said)| differences | (own ^ said));
        std::hint::black_box(differences) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl MemoryFile {
    /// What the first `bytes` of a memory file are known by.
    pub fn of(fd: impl AsFd, bytes: u64) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino, bytes })
    }
}

impl SavedSession {
    /// Where things lie in its memory.
    pub fn layout(&self) -> SessionLayout {
        let queues = self.queues.iter().map(|queue| QueueLayout {
            sq_entries: queue.sq_entries,
            cq_entries: queue.cq_entries,
            control_offset: queue.control_offset,
            sqes_offset: queue.sqes_offset,
            cqes_offset: queue.cqes_offset,
        });
        SessionLayout {
            memory_bytes: self.memory.bytes,
            arena_offset: self.arena_offset,
            arena_bytes: self.arena_bytes,
            queues: queues.collect(),
        }
    }

    /// Whether the session uses a volume of this name.
    pub fn uses(&self, volume: &str) -> bool {
        self.volumes.iter().any(|saved| saved.name == volume)
    }
}

impl SavedVolume {
    /// From what a client was told.
    pub fn of(grant: &v1::VolumeGrant, access: Access) -> Self {
        let support = |support: &Option<v1::Support>| {
            support.as_ref().map_or((0, String::new()), |support| (support.level, support.how.clone()))
        };
        Self {
            name: grant.name.clone(),
            engine: grant.engine.clone(),
            access,
            size_bytes: grant.size_bytes,
            block_bytes: grant.block_bytes,
            memory_align_bytes: grant.memory_align_bytes,
            request_bytes_max: grant.request_bytes_max,
            discard: support(&grant.discard),
            write_zeroes: support(&grant.write_zeroes),
        }
    }

    /// What the client was told.
    pub fn grant(&self) -> v1::VolumeGrant {
        let support = |(level, how): &(i32, String)| Some(v1::Support { level: *level, how: how.clone() });
        v1::VolumeGrant {
            name: self.name.clone(),
            access: self.access.to_wire(),
            size_bytes: self.size_bytes,
            block_bytes: self.block_bytes,
            memory_align_bytes: self.memory_align_bytes,
            request_bytes_max: self.request_bytes_max,
            engine: self.engine.clone(),
            discard: support(&self.discard),
            write_zeroes: support(&self.write_zeroes),
        }
    }
}

/// The directory of the saved sessions. One daemon has it: it lies behind the lock of the runtime directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What a daemon finds of the one before.
#[derive(Debug, Default)]
pub struct Found {
    /// Sessions, in the order of their ids.
    pub sessions: Vec<SavedSession>,
    /// Files that cannot be believed, by the session that they are named after, and why.
    pub damaged: Vec<(u64, String)>,
    /// Highest session id of any file.
    pub last_id: u64,
}

impl Store {
    /// The directory is made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(dir: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir: dir.to_owned() }),
        }
    }

    /// The file of a session.
    pub fn path(&self, session_id: u64) -> PathBuf {
        self.dir.join(session_id.to_string())
    }

    /// Saves a session in place of what was saved of it.
    ///
    /// # Errors
    /// The file system is full, or the directory is not writable any more. What was saved before is there still.
    pub fn save(&self, session: &SavedSession) -> io::Result<()> {
        let path = self.path(session.session_id);
        let unfinished = path.with_extension(UNFINISHED);
        let written =
            write_new(&unfinished, &format::encode(session)).and_then(|()| fs::rename(&unfinished, &path));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    /// Nobody is to go on with a session.
    pub fn remove(&self, session_id: u64) {
        match fs::remove_file(self.path(session_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = self.path(session_id);
                tracing::error!(
                    "session {session_id} is over, but {} stays: {error}; remove it",
                    path.display()
                );
            }
            _ => {}
        }
    }

    /// Reads what is there. What cannot be believed is set aside under another name.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (id, extension) = name.split_once('.').unwrap_or((name, ""));
            let Ok(id) = id.parse::<u64>() else {
                tracing::warn!("{} is no session of ferriod; it is left alone", path.display());
                continue;
            };
            found.last_id = found.last_id.max(id);
            match extension {
                "" => match read(&path, id) {
                    Ok(session) => found.sessions.push(session),
                    Err(error) => {
                        self.set_aside(id);
                        found.damaged.push((id, error.to_string()));
                    }
                },
                UNFINISHED => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        found.sessions.sort_by_key(|session| session.session_id);
        found.damaged.sort();
        Ok(found)
    }

    fn set_aside(&self, session_id: u64) {
        let path = self.path(session_id);
        let aside = path.with_extension(DAMAGED);
        if let Err(error) = fs::rename(&path, &aside) {
            tracing::error!("cannot rename {} to {}: {error}", path.display(), aside.display());
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not synced: it is to outlive this process, not the kernel.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

fn read(path: &Path, session_id: u64) -> Result<SavedSession, FormatError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FormatError::NotAFile);
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let session = format::decode(&bytes)?;
    if session.session_id != session_id {
        return Err(FormatError::Name { found: session.session_id });
    }
    Ok(session)
}

#[cfg(test)]
pub mod tests;
