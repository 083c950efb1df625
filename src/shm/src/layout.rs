//! Where header, queues and arena lie in the session memory.
//!
//! ```text
//! 0            header page
//! control_0    queue 0: four index lines of 128 bytes, then SQEs, then CQEs; page aligned
//! control_1    queue 1 ...
//! arena        region 0: the data buffers; page aligned, last
//! memory_bytes
//! ```
//!
//! The daemon makes a layout, the client receives one and checks it before it maps anything by it.

use crate::abi::{CQE_BYTES, SQE_BYTES, limits};

/// Queues, arena and memory begin at multiples of it. Bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Length of the header. Bytes.
pub const HEADER_BYTES: u64 = PAGE_BYTES;
/// Length of one index line: two cache lines, because processors prefetch in pairs. Bytes.
pub const LINE_BYTES: u64 = 128;
/// Length of a queue's four index lines. Bytes.
pub const CONTROL_BYTES: u64 = 4 * LINE_BYTES;

/// Bytes from the start of a queue's control block.
pub mod control {
    /// Written by the client's submitting end.
    pub const SQ_TAIL: usize = 0;
    /// Written by the client's reaping end.
    pub const CQ_HEAD: usize = 128;
    /// Written by the client's reaping end.
    pub const CLIENT_SLEEP: usize = 132;
    /// Written by the daemon's taking end.
    pub const SQ_HEAD: usize = 256;
    /// Written by the daemon's taking end.
    pub const DAEMON_SLEEP: usize = 260;
    /// Written by the daemon's posting end.
    pub const CQ_TAIL: usize = 384;
}

const _: () = {
    use control::{CLIENT_SLEEP, CQ_HEAD, CQ_TAIL, DAEMON_SLEEP, SQ_HEAD, SQ_TAIL};
    const LINE: usize = LINE_BYTES as usize;
    assert!(SQ_TAIL / LINE == 0 && CQ_HEAD / LINE == 1 && SQ_HEAD / LINE == 2 && CQ_TAIL / LINE == 3);
    assert!(CLIENT_SLEEP == CQ_HEAD + 4 && DAEMON_SLEEP == SQ_HEAD + 4);
    assert!(CQ_TAIL + 4 <= CONTROL_BYTES as usize);
};

/// Bytes from the start of the session memory.
pub mod header {
    /// u64, [`crate::abi::MAGIC`].
    pub const MAGIC: usize = 0;
    /// u32, the ABI version granted.
    pub const ABI: usize = 8;
    /// u32, [`crate::abi::SessionState`].
    pub const STATE: usize = 12;
    /// u64.
    pub const SESSION_ID: usize = 16;
    /// u64, grows with every start of the daemon.
    pub const EPOCH: usize = 24;
    /// u32.
    pub const QUEUE_COUNT: usize = 32;
    /// u64.
    pub const ARENA_OFFSET: usize = 40;
    /// u64.
    pub const ARENA_BYTES: usize = 48;
}

/// Entries asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// SQ ring entries, a power of two.
    pub sq_entries: u32,
    /// CQ ring entries, a power of two and not below `sq_entries`.
    pub cq_entries: u32,
}

/// Where one queue lies. Offsets are bytes from the start of the session memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// SQ ring entries.
    pub sq_entries: u32,
    /// CQ ring entries.
    pub cq_entries: u32,
    /// The four index lines.
    pub control_offset: u64,
    /// The SQE array.
    pub sqes_offset: u64,
    /// The CQE array.
    pub cqes_offset: u64,
}

/// Where everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLayout {
    /// Length of the session memory. Bytes.
    pub memory_bytes: u64,
    /// Start of the arena. Bytes.
    pub arena_offset: u64,
    /// Length of the arena. Bytes.
    pub arena_bytes: u64,
    /// The queues, by index.
    pub queues: Vec<QueueLayout>,
}

/// Why a layout cannot be made or is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// None, or too many.
    #[error("{count} queues; a session has 1 to {max}", max = limits::QUEUES_MAX)]
    QueueCount {
        /// Queues given.
        count: usize,
    },
    /// Entries out of range.
    #[error("queue {queue}: {name} is {value}; it must be a power of two from {min} to {max}")]
    Entries {
        /// Index of the queue.
        queue: usize,
        /// `sq_entries` or `cq_entries`.
        name: &'static str,
        /// Value given.
        value: u32,
        /// Least value.
        min: u32,
        /// Greatest value.
        max: u32,
    },
    /// Not a multiple.
    #[error("{what} is {value}; it must be a multiple of {align}")]
    Misaligned {
        /// Which number.
        what: String,
        /// Its value.
        value: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A part does not lie within the memory.
    #[error("{what} covers bytes {start} to {end}; the session memory has {memory_bytes}")]
    OutOfBounds {
        /// Which part.
        what: String,
        /// Its first byte.
        start: u64,
        /// Its end; saturated if it does not fit 64 bits.
        end: u64,
        /// Length of the memory.
        memory_bytes: u64,
    },
    /// Two parts share bytes.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// The part that begins first.
        first: String,
        /// The part that begins before the other ends.
        second: String,
    },
    /// More than the address space holds.
    #[error(
        "the session needs more memory than a process can map; ask for a smaller arena than {arena_bytes}"
    )]
    TooLarge {
        /// Arena asked for.
        arena_bytes: u64,
    },
}

/// One part of the memory, while overlaps are looked for.
struct Part {
    what: String,
    start: u64,
    bytes: u64,
    align: u64,
}

impl SessionLayout {
    /// Lays out the queues in the order given, then the arena.
    pub fn new(queues: &[QueueSpec], arena_bytes: u64) -> Result<SessionLayout, LayoutError> {
        check_count(queues.len())?;
        check_multiple("arena_bytes", arena_bytes, PAGE_BYTES)?;
        let mut end = HEADER_BYTES;
        let mut layouts = Vec::with_capacity(queues.len());
        for (queue, &QueueSpec { sq_entries, cq_entries }) in queues.iter().enumerate() {
            check_entries(queue, sq_entries, cq_entries)?;
            let control_offset = end;
            let sqes_offset = control_offset + CONTROL_BYTES;
            let cqes_offset = sqes_offset + sqes_bytes(sq_entries);
            end = (cqes_offset + cqes_bytes(cq_entries)).next_multiple_of(PAGE_BYTES);
            layouts.push(QueueLayout { sq_entries, cq_entries, control_offset, sqes_offset, cqes_offset });
        }
        let memory_bytes = end
            .checked_add(arena_bytes)
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(LayoutError::TooLarge { arena_bytes })?;
        Ok(SessionLayout { memory_bytes, arena_offset: end, arena_bytes, queues: layouts })
    }

    /// Whether every part is aligned and lies within the memory without touching another.
    pub fn check(&self) -> Result<(), LayoutError> {
        check_count(self.queues.len())?;
        check_multiple("memory_bytes", self.memory_bytes, PAGE_BYTES)?;
        if isize::try_from(self.memory_bytes).is_err() {
            return Err(LayoutError::TooLarge { arena_bytes: self.arena_bytes });
        }
        check_multiple("arena_bytes", self.arena_bytes, PAGE_BYTES)?;
        for (index, queue) in self.queues.iter().enumerate() {
            check_entries(index, queue.sq_entries, queue.cq_entries)?;
        }
        let mut parts = self.parts();
        for part in &parts {
            check_multiple(&part.what, part.start, part.align)?;
            let end = part.start.saturating_add(part.bytes);
            if end > self.memory_bytes {
                return Err(LayoutError::OutOfBounds {
                    what: part.what.clone(),
                    start: part.start,
                    end,
                    memory_bytes: self.memory_bytes,
                });
            }
        }
        parts.sort_by_key(|part| part.start);
        for pair in parts.windows(2) {
            if pair[0].start + pair[0].bytes > pair[1].start {
                let (first, second) = (pair[0].what.clone(), pair[1].what.clone());
                return Err(LayoutError::Overlap { first, second });
            }
        }
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        let part = |what: String, start, bytes, align| Part { what, start, bytes, align };
        let mut parts = vec![part("header".into(), 0, HEADER_BYTES, PAGE_BYTES)];
        if self.arena_bytes > 0 {
            parts.push(part("arena_offset".into(), self.arena_offset, self.arena_bytes, PAGE_BYTES));
        }
        for (index, queue) in self.queues.iter().enumerate() {
            let name = |field: &str| format!("queue {index}: {field}");
            let (sqes, cqes) = (sqes_bytes(queue.sq_entries), cqes_bytes(queue.cq_entries));
            parts.push(part(name("control_offset"), queue.control_offset, CONTROL_BYTES, PAGE_BYTES));
            parts.push(part(name("sqes_offset"), queue.sqes_offset, sqes, u64::from(SQE_BYTES)));
            parts.push(part(name("cqes_offset"), queue.cqes_offset, cqes, u64::from(CQE_BYTES)));
        }
        parts
    }
}

fn sqes_bytes(entries: u32) -> u64 {
    u64::from(entries) * u64::from(SQE_BYTES)
}

fn cqes_bytes(entries: u32) -> u64 {
    u64::from(entries) * u64::from(CQE_BYTES)
}

fn check_count(count: usize) -> Result<(), LayoutError> {
    if count == 0 || count > limits::QUEUES_MAX as usize {
        return Err(LayoutError::QueueCount { count });
    }
    Ok(())
}

fn check_entries(queue: usize, sq_entries: u32, cq_entries: u32) -> Result<(), LayoutError> {
    let check = |name, value: u32, min, max| {
        if value.is_power_of_two() && value >= min && value <= max {
            return Ok(());
        }
        Err(LayoutError::Entries { queue, name, value, min, max })
    };
    check("sq_entries", sq_entries, 1, limits::SQ_ENTRIES_MAX)?;
    check("cq_entries", cq_entries, sq_entries, limits::CQ_ENTRIES_MAX)
}

fn check_multiple(what: &str, value: u64, align: u64) -> Result<(), LayoutError> {
    if value.is_multiple_of(align) {
        return Ok(());
    }
    Err(LayoutError::Misaligned { what: what.to_owned(), value, align })
}
