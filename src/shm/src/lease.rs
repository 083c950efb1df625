//! Messages of the attach socket: bytes only, no I/O.
//!
//! A message is one packet: a header of 16 bytes, little-endian `{magic u32, version u16, kind u16, payload length
//! u32, 0 u32}`, and the payload. Texts are UTF-8 to the end of the payload.

mod codec;

use std::fmt;

/// Longest message. Bytes.
pub const LEASE_MESSAGE_MAX: usize = 1024;
/// First four bytes of every message: `ferL`.
pub const LEASE_MAGIC: u32 = u32::from_le_bytes(*b"ferL");
/// Version of the lease protocol, part of ABI version 1.
pub const LEASE_VERSION: u16 = 1;
/// Length of the header. Bytes.
pub const LEASE_HEADER_BYTES: usize = 16;

/// A message. Descriptors travel beside it (SCM_RIGHTS): with [`LeaseMessage::Attached`] the memfd, the doorbells
/// to ring and the CQ doorbells to poll, with [`LeaseMessage::RegionAdd`] one memfd.
#[derive(Clone, PartialEq, Eq)]
pub enum LeaseMessage {
    /// Client: shows the one-time token.
    Attach {
        /// From `Sessions.Open`.
        token: [u8; 32],
    },
    /// Daemon: the session is attached.
    Attached {
        /// Session id.
        session_id: u64,
        /// The daemon's epoch.
        epoch: u64,
        /// Length of the memfd. Bytes.
        memory_bytes: u64,
        /// Doorbells towards the daemon.
        doorbells: u32,
        /// Queues, each with one doorbell towards the client.
        queues: u32,
    },
    /// Daemon: attach or resume is refused; it closes the connection.
    Refused {
        /// Positive errno.
        errno: i32,
        /// Why, for people.
        reason: String,
    },
    /// Daemon: something happened.
    Event(LeaseEvent),
    /// Client: ends the session.
    Close,
    /// Client: brings its own memory.
    RegionAdd {
        /// Index chosen by the client, not 0.
        index: u16,
        /// Length of the region. Bytes.
        bytes: u64,
    },
    /// Client: takes its memory back.
    RegionRemove {
        /// Index of the region.
        index: u16,
    },
    /// Daemon: answer to RegionAdd or RegionRemove.
    RegionReply {
        /// Index of the region.
        index: u16,
        /// 0, or a positive errno.
        errno: i32,
    },
    /// Client: goes on with a session after a restart of the daemon.
    Resume {
        /// Session id.
        session_id: u64,
        /// From `Sessions.Open`.
        secret: [u8; 32],
    },
}

/// Something the daemon tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The client broke the protocol; nothing is taken from it any more.
    Fault {
        /// What it did.
        reason: String,
    },
    /// A volume has another size.
    Resize {
        /// Index of the volume in the session.
        volume: u16,
        /// New size. Bytes.
        size_bytes: u64,
    },
    /// An operator ends the session.
    Evict {
        /// Why.
        reason: String,
    },
    /// The daemon stops and takes no more SQEs.
    Drain {
        /// Time after which requests are left unanswered. Milliseconds.
        deadline_ms: u32,
    },
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Shorter than a header, or than its length says.
    #[error("lease message of {bytes} bytes where {expected} were expected")]
    Length {
        /// Bytes there.
        bytes: usize,
        /// Bytes that the header, or the kind, asks for.
        expected: usize,
    },
    /// Not a lease message.
    #[error("lease message begins with {found:#010x} instead of {LEASE_MAGIC:#010x}")]
    Magic {
        /// Value found.
        found: u32,
    },
    /// Another version.
    #[error("lease message has version {found}, known is {LEASE_VERSION}")]
    Version {
        /// Value found.
        found: u16,
    },
    /// A kind that this version does not define.
    #[error("lease message has kind {found}, which is not defined")]
    Kind {
        /// Value found.
        found: u16,
    },
    /// Bytes that must be zero are not.
    #[error("lease message of kind {kind} has non-zero reserved bytes")]
    Reserved {
        /// Kind of the message.
        kind: u16,
    },
    /// A text is not UTF-8.
    #[error("text of a lease message of kind {kind} is not UTF-8")]
    Text {
        /// Kind of the message.
        kind: u16,
    },
}

/// Tokens and secrets stay out of logs.
impl fmt::Debug for LeaseMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeaseMessage::Attach { .. } => f.debug_struct("Attach").finish_non_exhaustive(),
            LeaseMessage::Attached { session_id, epoch, memory_bytes, doorbells, queues } => f
                .debug_struct("Attached")
                .field("session_id", session_id)
                .field("epoch", epoch)
                .field("memory_bytes", memory_bytes)
                .field("doorbells", doorbells)
                .field("queues", queues)
                .finish(),
            LeaseMessage::Refused { errno, reason } => {
                f.debug_struct("Refused").field("errno", errno).field("reason", reason).finish()
            }
            LeaseMessage::Event(event) => f.debug_tuple("Event").field(event).finish(),
            LeaseMessage::Close => f.write_str("Close"),
            LeaseMessage::RegionAdd { index, bytes } => {
                f.debug_struct("RegionAdd").field("index", index).field("bytes", bytes).finish()
            }
            LeaseMessage::RegionRemove { index } => {
                f.debug_struct("RegionRemove").field("index", index).finish()
            }
            LeaseMessage::RegionReply { index, errno } => {
                f.debug_struct("RegionReply").field("index", index).field("errno", errno).finish()
            }
            LeaseMessage::Resume { session_id, .. } => {
                f.debug_struct("Resume").field("session_id", session_id).finish_non_exhaustive()
            }
        }
    }
}
