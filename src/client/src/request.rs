//! What is asked of a volume: an SQE and the buffer that it needs.

use std::ops::Range;

use ferrio_shm::abi::{Class, Opcode, sqe_flags};
use ferrio_shm::entry::{IovEntry, Sqe};

use crate::{Buffer, Error, Volume};

/// Region of the session's own arena.
const ARENA: u16 = 0;
const IOV_ENTRY_BYTES: usize = size_of::<IovEntry>();

/// A request that was not submitted yet. It owns its buffer until the completion hands it back.
#[must_use = "a request does nothing until it is submitted"]
#[derive(Debug)]
pub struct Request {
    /// `user_data` carries the tag until the queue replaces it.
    sqe: Sqe,
    /// 0: names no volume, any session will do.
    session_id: u64,
    raw: bool,
    pub(crate) buffer: Option<Buffer>,
}

/// What a successful completion has to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Bytes(u32),
    Anything,
}

impl Request {
    /// Reads from byte `offset` of the volume into the whole buffer.
    pub fn read(volume: &Volume, offset: u64, buffer: Buffer) -> Self {
        Request::transfer(Opcode::Read, volume, offset, buffer)
    }

    /// Writes the whole buffer to byte `offset` of the volume.
    pub fn write(volume: &Volume, offset: u64, buffer: Buffer) -> Self {
        Request::transfer(Opcode::Write, volume, offset, buffer)
    }

    /// Makes every write that was completed before this is submitted survive a power loss.
    pub fn flush(volume: &Volume) -> Self {
        let sqe = Sqe { op: Opcode::Flush as u8, volume: volume.index(), ..Sqe::default() };
        Request { sqe, session_id: volume.session_id(), raw: false, buffer: None }
    }

    /// Goes to the daemon and back.
    pub fn nop() -> Self {
        let sqe = Sqe { op: Opcode::Nop as u8, ..Sqe::default() };
        Request { sqe, session_id: 0, raw: false, buffer: None }
    }

    /// An SQE as it stands, for tests and tools that speak the ABI. The daemon validates it; its `user_data` is taken
    /// as the [`tag`](Self::tag). Arena memory that it names must lie inside the buffer given by
    /// [`with_buffer`](Self::with_buffer), because the daemon may write there.
    pub fn raw(sqe: Sqe) -> Self {
        Request { sqe, session_id: 0, raw: true, buffer: None }
    }

    /// The buffer that a [`raw`](Self::raw) request names by region and offset.
    pub fn with_buffer(mut self, buffer: Buffer) -> Self {
        self.buffer = Some(buffer);
        self
    }

    /// Uses only these bytes of the buffer. A range outside of it is refused when the request is submitted.
    pub fn range(mut self, range: Range<usize>) -> Self {
        let base = self.buffer.as_ref().map_or(0, Buffer::offset);
        self.sqe.region_offset = base.saturating_add(range.start as u64);
        self.sqe.length = range.end.saturating_sub(range.start) as u64;
        self
    }

    /// A write is on stable storage before it is completed.
    pub fn fua(self, fua: bool) -> Self {
        self.flag(sqe_flags::FUA, fua)
    }

    /// Goes through the priority class queue instead of the one of its direction.
    pub fn prio(mut self, prio: bool) -> Self {
        self.sqe.class = if prio { Class::Prio } else { Class::Default } as u8;
        self
    }

    /// A number of the caller's that comes back with the completion.
    pub fn tag(mut self, tag: u64) -> Self {
        self.sqe.user_data = tag;
        self
    }

    /// Gives the buffer back, for a request that is not to be submitted after all.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        self.buffer
    }

    fn transfer(op: Opcode, volume: &Volume, offset: u64, buffer: Buffer) -> Self {
        let sqe = Sqe {
            op: op as u8,
            volume: volume.index(),
            region: buffer.region(),
            offset,
            length: buffer.len() as u64,
            region_offset: buffer.offset(),
            ..Sqe::default()
        };
        Request { sqe, session_id: volume.session_id(), raw: false, buffer: Some(buffer) }
    }

    fn flag(mut self, flag: u16, on: bool) -> Self {
        if on {
            self.sqe.flags |= flag;
        } else {
            self.sqe.flags &= !flag;
        }
        self
    }

    pub(crate) fn sqe(&self) -> &Sqe {
        &self.sqe
    }

    pub(crate) fn expected(&self) -> Expected {
        match Opcode::try_from(self.sqe.op) {
            _ if self.raw => Expected::Anything,
            Ok(Opcode::Read | Opcode::Write) => {
                u32::try_from(self.sqe.length).map_or(Expected::Anything, Expected::Bytes)
            }
            Ok(Opcode::Nop | Opcode::Flush) => Expected::Bytes(0),
            _ => Expected::Anything,
        }
    }

    /// What the daemon cannot know: that volume and memory are the caller's to use in this session.
    pub(crate) fn check(&self, session_id: u64, arena_bytes: u64) -> Result<(), Error> {
        if self.session_id != 0 && self.session_id != session_id {
            return Err(Error::Foreign { what: "volume" });
        }
        match Opcode::try_from(self.sqe.op) {
            Ok(Opcode::Readv | Opcode::Writev) => self.check_iov(arena_bytes),
            _ => self.check_range(self.sqe.region, self.sqe.region_offset, self.sqe.length, arena_bytes),
        }
    }

    fn check_iov(&self, arena_bytes: u64) -> Result<(), Error> {
        let table_bytes = u64::from(self.sqe.iov_count) * IOV_ENTRY_BYTES as u64;
        self.check_range(self.sqe.region, self.sqe.region_offset, table_bytes, arena_bytes)?;
        let Some(buffer) = &self.buffer else { return Ok(()) };
        let start = self.sqe.region_offset.saturating_sub(buffer.offset()) as usize;
        let table = buffer.get(start..start.saturating_add(table_bytes as usize)).unwrap_or_default();
        table.chunks_exact(IOV_ENTRY_BYTES).try_for_each(|bytes| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
            let entry = IovEntry::from_words([word(0), word(8)]);
            self.check_range(entry.region, entry.offset, u64::from(entry.length), arena_bytes)
        })
    }

    /// A range that reaches past the arena is let through: the daemon answers it with an errno and touches nothing.
    fn check_range(&self, region: u16, start: u64, length: u64, arena_bytes: u64) -> Result<(), Error> {
        let end = start.saturating_add(length);
        if region != ARENA || length == 0 || end > arena_bytes {
            return Ok(());
        }
        let owned = self
            .buffer
            .as_ref()
            .is_some_and(|buffer| start >= buffer.offset() && end <= buffer.offset() + buffer.len() as u64);
        if owned { Ok(()) } else { Err(Error::NotOwned { start, end }) }
    }
}
