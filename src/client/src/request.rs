//! What is asked of a volume: an SQE and the memory that it needs.

use std::ops::Range;
use std::time::Duration;

use ferrio_shm::abi::{Class, Opcode, sqe_flags};
use ferrio_shm::entry::{IovEntry, Sqe};

use crate::completion::Ticket;
use crate::memory::{Held, Memory};
use crate::session::Inner;
use crate::{Buffer, Error, Features, IoVec, Volume};

const IOV_ENTRY_BYTES: usize = size_of::<IovEntry>();

/// A request that was not submitted yet. It owns its memory until the completion hands it back.
#[must_use = "a request does nothing until it is submitted"]
#[derive(Debug)]
pub struct Request {
    /// `user_data` carries the tag until the queue replaces it.
    pub(crate) sqe: Sqe,
    /// 0: names no volume, any session will do.
    session_id: u64,
    raw: bool,
    pub(crate) held: Held,
}

/// What a successful completion has to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Bytes(u32),
    Anything,
}

impl Request {
    /// Reads from byte `offset` of the volume into the whole buffer or span.
    pub fn read(volume: &Volume, offset: u64, memory: impl Into<Memory>) -> Self {
        Request::transfer(Opcode::Read, volume, offset, memory.into())
    }

    /// Writes the whole buffer or span to byte `offset` of the volume.
    pub fn write(volume: &Volume, offset: u64, memory: impl Into<Memory>) -> Self {
        Request::transfer(Opcode::Write, volume, offset, memory.into())
    }

    /// Reads from byte `offset` of the volume into the memory of the list, entry after entry.
    pub fn readv(volume: &Volume, offset: u64, list: IoVec) -> Self {
        Request::vectored(Opcode::Readv, volume, offset, list)
    }

    /// Writes the memory of the list, entry after entry, to byte `offset` of the volume.
    pub fn writev(volume: &Volume, offset: u64, list: IoVec) -> Self {
        Request::vectored(Opcode::Writev, volume, offset, list)
    }

    /// Makes every write that was completed before this is submitted survive a power loss.
    pub fn flush(volume: &Volume) -> Self {
        Request::plain(Opcode::Flush, volume)
    }

    /// Gives `length` bytes from byte `offset` back to the device; what they hold afterwards is undefined. Up to the whole
    /// volume.
    pub fn discard(volume: &Volume, offset: u64, length: u64) -> Self {
        Request::plain(Opcode::Discard, volume).stretch(offset, length)
    }

    /// Makes `length` bytes from byte `offset` read as zeros. Up to the whole volume.
    pub fn write_zeroes(volume: &Volume, offset: u64, length: u64) -> Self {
        Request::plain(Opcode::WriteZeroes, volume).stretch(offset, length)
    }

    /// Compares the volume, from byte `offset`, with the first half of the buffer, and replaces what it compared by the
    /// second half if both are equal, as one step. Otherwise nothing is written, and the result is
    /// [`Errno::EILSEQ`](crate::Errno::EILSEQ).
    pub fn compare_and_write(volume: &Volume, offset: u64, memory: impl Into<Memory>) -> Self {
        let whole = Request::transfer(Opcode::CompareAndWrite, volume, offset, memory.into());
        let half = whole.sqe.length / 2;
        whole.stretch(offset, half)
    }

    /// Takes a request back that was submitted to the same queue and not issued yet. Success: it answers
    /// [`Errno::ECANCELED`](crate::Errno::ECANCELED). [`Errno::ENOENT`](crate::Errno::ENOENT): it was answered before.
    /// [`Errno::EALREADY`](crate::Errno::EALREADY): it was issued, and nothing changes.
    pub fn cancel(ticket: Ticket) -> Self {
        let sqe = Sqe { op: Opcode::Cancel as u8, arg: ticket.user_data(), ..Sqe::default() };
        Request { sqe, session_id: 0, raw: false, held: Held::Nothing }
    }

    /// Goes to the daemon and back.
    pub fn nop() -> Self {
        let sqe = Sqe { op: Opcode::Nop as u8, ..Sqe::default() };
        Request { sqe, session_id: 0, raw: false, held: Held::Nothing }
    }

    /// An SQE as it stands, for tests and tools that speak the ABI. The daemon validates it; its `user_data` is taken
    /// as the [`tag`](Self::tag). Memory of the session that it names must lie inside what is given by
    /// [`with_buffer`](Self::with_buffer), because the daemon may write there.
    pub fn raw(sqe: Sqe) -> Self {
        Request { sqe, session_id: 0, raw: true, held: Held::Nothing }
    }

    /// The memory that a [`raw`](Self::raw) request names by region and offset.
    pub fn with_buffer(mut self, memory: impl Into<Memory>) -> Self {
        self.held = Held::One(memory.into());
        self
    }

    /// Uses only these bytes of the buffer or span; of a compare-and-write, its two halves. A range outside of it is
    /// refused when the request is submitted.
    pub fn range(mut self, range: Range<usize>) -> Self {
        let base = if let Held::One(memory) = &self.held { memory.range().start } else { 0 };
        self.sqe.region_offset = base.saturating_add(range.start as u64);
        let length = range.end.saturating_sub(range.start) as u64;
        let halves = self.sqe.op == Opcode::CompareAndWrite as u8;
        self.sqe.length = if halves { length / 2 } else { length };
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

    /// Starts after all requests to its volume that were submitted to its queue before it, and before all that are
    /// submitted after it.
    pub fn barrier(self, barrier: bool) -> Self {
        self.flag(sqe_flags::BARRIER, barrier)
    }

    /// Answers [`Errno::ETIMEDOUT`](crate::Errno::ETIMEDOUT), and does nothing, if it was not given to the device by then.
    /// After that its real result is reported, late: [`Completion::overdue`](crate::Completion::overdue). 1 us to 71 min:
    /// shorter and longer times count as these.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.sqe.timeout_us = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX).max(1);
        self
    }

    /// A number of the caller's that comes back with the completion.
    #[inline]
    pub fn tag(mut self, tag: u64) -> Self {
        self.sqe.user_data = tag;
        self
    }

    /// Gives the buffer back, for a request that is not to be submitted after all.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        self.held.into_parts().0
    }

    /// Gives the list back, for a request that is not to be submitted after all.
    #[must_use]
    pub fn into_iovec(self) -> Option<IoVec> {
        self.held.into_parts().1
    }

    #[inline]
    fn plain(op: Opcode, volume: &Volume) -> Self {
        let sqe = Sqe { op: op as u8, volume: volume.index(), ..Sqe::default() };
        let session_id = volume.session_id();
        Request { sqe, session_id, raw: false, held: Held::Nothing }
    }

    #[inline]
    fn transfer(op: Opcode, volume: &Volume, offset: u64, memory: Memory) -> Self {
        let (region, range) = (memory.region(), memory.range());
        let mut request = Request::plain(op, volume).stretch(offset, range.end - range.start);
        (request.sqe.region, request.sqe.region_offset) = (region, range.start);
        request.held = Held::One(memory);
        request
    }

    fn vectored(op: Opcode, volume: &Volume, offset: u64, list: IoVec) -> Self {
        let mut request = Request::plain(op, volume).stretch(offset, list.bytes());
        (request.sqe.region, request.sqe.region_offset) = list.table();
        // A list that is longer than that is refused.
        request.sqe.iov_count = u32::try_from(list.len()).unwrap_or(u32::MAX);
        request.held = Held::Many(list);
        request
    }

    #[inline]
    fn stretch(mut self, offset: u64, length: u64) -> Self {
        (self.sqe.offset, self.sqe.length) = (offset, length);
        self
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
        if self.raw {
            return Expected::Anything;
        }
        match Opcode::try_from(self.sqe.op) {
            Ok(Opcode::Read | Opcode::Write | Opcode::Readv | Opcode::Writev | Opcode::CompareAndWrite) => {
                u32::try_from(self.sqe.length).map_or(Expected::Anything, Expected::Bytes)
            }
            Ok(_) => Expected::Bytes(0),
            Err(_) => Expected::Anything,
        }
    }

    /// What the session must have been granted; a raw request is for the daemon to refuse.
    fn needs(&self) -> Features {
        let Sqe { op, flags, timeout_us, .. } = self.sqe;
        let op = match Opcode::try_from(op) {
            _ if self.raw => return Features::NONE,
            Ok(Opcode::Readv | Opcode::Writev) => Features::VECTORED,
            Ok(Opcode::Discard | Opcode::WriteZeroes) => Features::DISCARD,
            Ok(Opcode::CompareAndWrite) => Features::COMPARE_AND_WRITE,
            Ok(Opcode::Cancel) => Features::CANCEL,
            Ok(Opcode::Nop | Opcode::Read | Opcode::Write | Opcode::Flush) | Err(_) => Features::NONE,
        };
        let order = if flags & sqe_flags::BARRIER == 0 { Features::NONE } else { Features::ORDER };
        let timeout = if timeout_us == 0 { Features::NONE } else { Features::CANCEL };
        op | order | timeout
    }

    /// Links the next SQE of a chain to this one.
    pub(crate) fn link(&mut self, link: bool) {
        if link {
            self.sqe.flags |= sqe_flags::LINK;
        } else {
            self.sqe.flags &= !sqe_flags::LINK;
        }
    }

    /// What the daemon cannot know: that volume and memory are the caller's to use in this session.
    pub(crate) fn check(&self, session: &Inner, queue: u32) -> Result<(), Error> {
        if self.session_id != 0 && self.session_id != session.session_id {
            return Err(Error::Foreign { what: "volume" });
        }
        session.check_features(self.needs())?;
        self.held.check(session.fork_guard())?;
        let Sqe { region, region_offset, length, .. } = self.sqe;
        match Opcode::try_from(self.sqe.op) {
            Ok(Opcode::Read | Opcode::Write) | Err(_) => {
                self.check_range(region, region_offset, length, session)
            }
            Ok(Opcode::CompareAndWrite) => {
                self.check_range(region, region_offset, length.saturating_mul(2), session)
            }
            // A list names its own pieces only.
            Ok(Opcode::Readv | Opcode::Writev) if self.raw => self.check_iov(session),
            Ok(Opcode::Cancel) if !self.raw && Ticket(self.sqe.arg).queue() != queue => {
                Err(Error::Foreign { what: "ticket" })
            }
            Ok(_) => Ok(()),
        }
    }

    fn check_iov(&self, session: &Inner) -> Result<(), Error> {
        let table_bytes = u64::from(self.sqe.iov_count) * IOV_ENTRY_BYTES as u64;
        self.check_range(self.sqe.region, self.sqe.region_offset, table_bytes, session)?;
        let Held::One(Memory::Buffer(buffer)) = &self.held else { return Ok(()) };
        let start = self.sqe.region_offset.saturating_sub(buffer.offset()) as usize;
        let table = buffer.get(start..start.saturating_add(table_bytes as usize)).unwrap_or_default();
        table.chunks_exact(IOV_ENTRY_BYTES).try_for_each(|bytes| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
            let entry = IovEntry::from_words([word(0), word(8)]);
            self.check_range(entry.region, entry.offset, u64::from(entry.length), session)
        })
    }

    /// A range that reaches past its region is let through: the daemon answers it with an errno and touches nothing.
    fn check_range(&self, region: u16, start: u64, length: u64, session: &Inner) -> Result<(), Error> {
        let end = start.saturating_add(length);
        if let Held::One(memory) = &self.held {
            let own = memory.range();
            if region == memory.region() && start >= own.start && end <= own.end {
                return Ok(());
            }
        }
        if length == 0 || !session.reaches(region, end) {
            return Ok(());
        }
        Err(Error::NotOwned { start, end })
    }
}
