//! The numbers of the ABI. `ABI.md` is normative; the golden tests compare the two.

/// First eight bytes of the session memory: `ferrioSH`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ferrioSH");

/// The one ABI version there is.
pub const ABI_VERSION: u32 = 1;

/// Length of one SQE. Bytes.
pub const SQE_BYTES: u32 = 64;
/// Length of one CQE. Bytes.
pub const CQE_BYTES: u32 = 16;
/// Length of one iov entry. Bytes.
pub const IOV_ENTRY_BYTES: u32 = 16;

/// Limits that no configuration can raise.
pub mod limits {
    /// Entries of an SQ ring.
    pub const SQ_ENTRIES_MAX: u32 = 32768;
    /// Entries of a CQ ring.
    pub const CQ_ENTRIES_MAX: u32 = 65536;
    /// Entries of a request's iovec.
    pub const IOV_MAX: u32 = 256;
    /// SQEs of a linked chain.
    pub const CHAIN_MAX: u32 = 32;
    /// Data that one request moves. Bytes.
    pub const DATA_BYTES_MAX: u64 = 1 << 30;
    /// What one compare-and-write compares, and writes. Bytes.
    pub const CAW_BYTES_MAX: u64 = 128 << 10;
    /// Queues of a session.
    pub const QUEUES_MAX: u32 = 64;
    /// Doorbells of a session towards the daemon.
    pub const DOORBELLS_MAX: u32 = 64;
    /// Regions of a session, the arena included; an index is below it.
    pub const REGIONS_MAX: u32 = 256;
    /// Part of a region that one fixed buffer of the kernel covers. Bytes.
    pub const REGION_FIXED_MAX: u64 = 1 << 30;
}

/// What an SQE asks for (its `op` field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Nothing; answers 0.
    Nop = 0,
    /// Volume to one stretch of memory.
    Read = 1,
    /// One stretch of memory to the volume.
    Write = 2,
    /// Volume to the memory an iovec names.
    Readv = 3,
    /// The memory an iovec names to the volume.
    Writev = 4,
    /// Makes completed writes durable.
    Flush = 5,
    /// Gives a range back to the device; its content is undefined afterwards.
    Discard = 6,
    /// Fills a range with zeros.
    WriteZeroes = 7,
    /// Compares a range with memory and, if equal, writes it.
    CompareAndWrite = 8,
    /// Takes back a request that was not issued yet.
    Cancel = 9,
}

impl TryFrom<u8> for Opcode {
    type Error = UnknownOpcode;

    fn try_from(op: u8) -> Result<Opcode, UnknownOpcode> {
        Ok(match op {
            0 => Opcode::Nop,
            1 => Opcode::Read,
            2 => Opcode::Write,
            3 => Opcode::Readv,
            4 => Opcode::Writev,
            5 => Opcode::Flush,
            6 => Opcode::Discard,
            7 => Opcode::WriteZeroes,
            8 => Opcode::CompareAndWrite,
            9 => Opcode::Cancel,
            _ => return Err(UnknownOpcode(op)),
        })
    }
}

/// An `op` value that no ABI version defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("opcode {0} is not defined; known are 0 (nop) to 9 (cancel)")]
pub struct UnknownOpcode(pub u8);

/// Which of the daemon's queues an SQE goes to (its `class` field).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// By direction: the read queue or the write queue.
    Default = 0,
    /// The priority queue.
    Prio = 1,
}

impl TryFrom<u8> for Class {
    type Error = UnknownClass;

    fn try_from(class: u8) -> Result<Class, UnknownClass> {
        match class {
            0 => Ok(Class::Default),
            1 => Ok(Class::Prio),
            _ => Err(UnknownClass(class)),
        }
    }
}

/// A `class` value that no ABI version defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("class {0} is not defined; known are 0 (default) and 1 (prio)")]
pub struct UnknownClass(pub u8);

/// Bits of an SQE's `flags`.
pub mod sqe_flags {
    /// The write is durable when it completes.
    pub const FUA: u16 = 1 << 0;
    /// The next SQE starts only after this one succeeded.
    pub const LINK: u16 = 1 << 1;
    /// Orders this SQE against all others of its volume in its queue.
    pub const BARRIER: u16 = 1 << 2;
    /// All bits that are defined.
    pub const ALL: u16 = FUA | LINK | BARRIER;
}

/// Bits of a CQE's `flags`.
pub mod cqe_flags {
    /// The request was issued again by a restarted daemon.
    pub const REPLAYED: u32 = 1 << 0;
    /// The request went to the device as part of a larger one.
    pub const MERGED: u32 = 1 << 1;
    /// The request's timeout passed after it had been issued; the result is the real one.
    pub const OVERDUE: u32 = 1 << 2;
}

/// Bits of the features asked for and granted when a session is opened; a daemon grants what it serves.
pub mod features {
    /// readv and writev.
    pub const VECTORED: u64 = 1 << 0;
    /// discard and write-zeroes.
    pub const DISCARD: u64 = 1 << 1;
    /// compare-and-write.
    pub const COMPARE_AND_WRITE: u64 = 1 << 2;
    /// cancel and `timeout_us`.
    pub const CANCEL: u64 = 1 << 3;
    /// The link and barrier flags.
    pub const ORDER: u64 = 1 << 4;
    /// Regions brought by the client.
    pub const CLIENT_REGIONS: u64 = 1 << 5;
    /// Re-attach after a restart of the daemon.
    pub const RESUME: u64 = 1 << 6;
}

/// State of the session, in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SessionState {
    /// SQEs are taken.
    Active = 1,
    /// No SQE is taken any more; those taken are answered.
    Draining = 2,
    /// The client broke the protocol: no SQE is taken any more.
    Faulted = 3,
    /// Nothing happens any more.
    Closed = 4,
}

impl TryFrom<u32> for SessionState {
    type Error = UnknownState;

    fn try_from(state: u32) -> Result<SessionState, UnknownState> {
        match state {
            1 => Ok(SessionState::Active),
            2 => Ok(SessionState::Draining),
            3 => Ok(SessionState::Faulted),
            4 => Ok(SessionState::Closed),
            _ => Err(UnknownState(state)),
        }
    }
}

/// A session state that no ABI version defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session state {0} is not defined; known are 1 (active) to 4 (closed)")]
pub struct UnknownState(pub u32);

/// Error numbers of Linux that the ABI uses, positive. A CQE's result carries them negated.
///
/// They are part of the ABI: a client on another C library reads the same numbers.
pub mod errno {
    /// Cancel: no such request. Attach: no such token, or one that was used or expired.
    pub const ENOENT: i32 = 2;
    /// Attach: the process cannot be watched.
    pub const ESRCH: i32 = 3;
    /// The device failed.
    pub const EIO: i32 = 5;
    /// Region index not known.
    pub const ENXIO: i32 = 6;
    /// Volume index not granted.
    pub const EBADF: i32 = 9;
    /// The kernel has no memory for the request.
    pub const ENOMEM: i32 = 12;
    /// Attach: the token belongs to another process or user.
    pub const EACCES: i32 = 13;
    /// Memory out of the region's bounds or misaligned.
    pub const EFAULT: i32 = 14;
    /// RegionAdd: index in use. RegionRemove: I/O in flight.
    pub const EBUSY: i32 = 16;
    /// The volume belongs to another engine than the queue.
    pub const EXDEV: i32 = 18;
    /// The device is gone.
    pub const ENODEV: i32 = 19;
    /// Misaligned offset or length, zero length, unknown opcode, class or flag, or a field that must be zero.
    pub const EINVAL: i32 = 22;
    /// The volume's file system is full.
    pub const ENOSPC: i32 = 28;
    /// The volume was granted read-only.
    pub const EROFS: i32 = 30;
    /// Range beyond the end of the volume.
    pub const ERANGE: i32 = 34;
    /// A lease message that breaks the protocol.
    pub const EPROTO: i32 = 71;
    /// Compare-and-write: the content differs.
    pub const EILSEQ: i32 = 84;
    /// Length beyond the limit.
    pub const EMSGSIZE: i32 = 90;
    /// Defined by the ABI but not served here.
    pub const EOPNOTSUPP: i32 = 95;
    /// Attach: an engine has no place for the session.
    pub const ENOBUFS: i32 = 105;
    /// The daemon is stopping.
    pub const ESHUTDOWN: i32 = 108;
    /// The timeout passed before the request was issued. Attach: no message came.
    pub const ETIMEDOUT: i32 = 110;
    /// Cancel: the request was issued already.
    pub const EALREADY: i32 = 114;
    /// Resume: the session is not known to this daemon.
    pub const ESTALE: i32 = 116;
    /// Cancelled, or a request before it in its chain failed.
    pub const ECANCELED: i32 = 125;
    /// The daemon died while the request ran: whether it took effect is not known.
    pub const EOWNERDEAD: i32 = 130;
}
