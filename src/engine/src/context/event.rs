//! What is asked for: operation, memory, callback.

use std::{fmt, time::Duration};

use ferrio_shm::{
    abi::{self, Opcode, sqe_flags},
    arena::AllocError,
    entry::{IovEntry, Sqe},
    fork::ForkGuard,
};

/// Memory of a context for the data of its events: aligned for every device, reached by the kernel without a copy. It is
/// used like a slice while the caller has it; an event that has it gives it back with its completion.
pub use ferrio_shm::arena::Buffer as IoBuffer;

/// Which queue an event goes to. Each has places of its own, so that none can be filled by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Any operation, before the others as far as the budgets of the engine go.
    Prio,
    /// Reads.
    Read,
    /// Everything else: what changes a volume, and flush.
    Write,
}

impl Channel {
    /// In the order of their indices.
    pub const ALL: [Self; 3] = [Self::Prio, Self::Read, Self::Write];

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prio => "prio",
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// A volume of a context: see [`IoContextBuilder::volume`](super::IoContextBuilder::volume).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoVolume {
    pub(super) context: u64,
    pub(super) index: u16,
}

/// An event on its way, as [`IoEvent::cancel`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) context: u64,
    pub(super) channel: Channel,
    pub(super) user_data: u64,
}

impl Ticket {
    /// Where the event is, and its cancel must go.
    pub fn channel(self) -> Channel {
        self.channel
    }
}

/// Buffers that one event fills or writes in their order: see [`IoContext::list`](super::IoContext::list).
#[derive(Debug)]
pub struct IoList {
    /// The entries as the engine reads them.
    table: IoBuffer,
    buffers: Vec<IoBuffer>,
}

impl IoList {
    /// `table` has room for an entry per buffer.
    pub(super) fn new(mut table: IoBuffer, buffers: Vec<IoBuffer>) -> Self {
        for (place, buffer) in table.chunks_exact_mut(size_of::<IovEntry>()).zip(&buffers) {
            // A length that does not fit makes a sum that no event may have, and is refused for it.
            let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
            let entry = IovEntry { region: buffer.region(), zero: 0, length, offset: buffer.offset() };
            for (bytes, word) in place.chunks_exact_mut(8).zip(entry.to_words()) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        Self { table, buffers }
    }

    /// Bytes of the table for this many buffers.
    pub(super) fn table_bytes(buffers: usize) -> usize {
        buffers * size_of::<IovEntry>()
    }

    /// The buffers, in their order.
    pub fn into_buffers(self) -> Vec<IoBuffer> {
        self.buffers
    }

    fn bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.len() as u64).sum()
    }
}

/// No memory for a list. The buffers come back.
#[derive(Debug, thiserror::Error)]
#[error("a list of {} buffers: {why}", buffers.len())]
pub struct NoList {
    /// What was to be listed.
    pub buffers: Vec<IoBuffer>,
    /// Why not.
    #[source]
    pub why: AllocError,
}

/// Memory that an event has until its completion.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    One(IoBuffer),
    Many(IoList),
}

impl Held {
    /// All of it is of the context with this guard.
    fn is_of(&self, guard: &ForkGuard) -> bool {
        match self {
            Self::Nothing => true,
            Self::One(buffer) => buffer.is_of(guard),
            Self::Many(list) => list.table.is_of(guard) && list.buffers.iter().all(|b| b.is_of(guard)),
        }
    }

    pub fn into_parts(self) -> (Option<IoBuffer>, Option<IoList>) {
        match self {
            Self::Nothing => (None, None),
            Self::One(buffer) => (Some(buffer), None),
            Self::Many(list) => (None, Some(list)),
        }
    }

    /// Gives the memory up for good: the kernel may still use it.
    pub fn leak(self) {
        match self {
            Self::Nothing => {}
            Self::One(buffer) => buffer.leak(),
            Self::Many(list) => {
                list.table.leak();
                list.buffers.into_iter().for_each(IoBuffer::leak);
            }
        }
    }
}

/// One operation, with the memory that it needs and the callback that gets both back. `C` is `()` where nobody is
/// called: such an event can be submitted and forgotten, or awaited.
#[must_use = "an event does nothing until it is submitted"]
pub struct IoEvent<C = ()> {
    /// Without class and user_data.
    pub(super) sqe: Sqe,
    /// Of the context that the volume belongs to.
    context: u64,
    channel: Channel,
    pub(super) held: Held,
    pub(super) callback: C,
}

impl IoEvent {
    /// Reads the whole buffer from byte `offset` of the volume. Offsets and lengths are multiples of the volume's block.
    pub fn read(volume: IoVolume, offset: u64, buffer: IoBuffer) -> Self {
        Self::one(Opcode::Read, volume, offset, buffer)
    }

    /// Writes the whole buffer to byte `offset` of the volume.
    pub fn write(volume: IoVolume, offset: u64, buffer: IoBuffer) -> Self {
        Self::one(Opcode::Write, volume, offset, buffer)
    }

    /// Reads from byte `offset` of the volume into the buffers of the list, 1 to 256 of them.
    pub fn readv(volume: IoVolume, offset: u64, list: IoList) -> Self {
        Self::many(Opcode::Readv, volume, offset, list)
    }

    /// Writes the buffers of the list to byte `offset` of the volume.
    pub fn writev(volume: IoVolume, offset: u64, list: IoList) -> Self {
        Self::many(Opcode::Writev, volume, offset, list)
    }

    /// Makes durable what was written and completed before.
    pub fn flush(volume: IoVolume) -> Self {
        Self::bare(Opcode::Flush, volume, 0, 0)
    }

    /// Gives a range back to the device; what it reads as afterwards is undefined.
    pub fn discard(volume: IoVolume, offset: u64, length: u64) -> Self {
        Self::bare(Opcode::Discard, volume, offset, length)
    }

    /// Makes a range read as zeros.
    pub fn write_zeroes(volume: IoVolume, offset: u64, length: u64) -> Self {
        Self::bare(Opcode::WriteZeroes, volume, offset, length)
    }

    /// Compares the volume at `offset` with the first half of the buffer and, if equal, writes the second half; else it
    /// fails with `EILSEQ`. Up to 128 KiB are compared, atomically against everything that writes through the same engine.
    pub fn compare_and_write(volume: IoVolume, offset: u64, buffer: IoBuffer) -> Self {
        let half = buffer.len() as u64 / 2;
        let event = Self::one(Opcode::CompareAndWrite, volume, offset, buffer);
        Self { sqe: Sqe { length: half, ..event.sqe }, ..event }
    }

    /// Takes an event back that the kernel does not have yet, which is then answered `ECANCELED`. This one is answered 0 if so,
    /// `EALREADY` if the kernel has it, and nothing changes, `ENOENT` if it was answered, and `EOPNOTSUPP` by contexts that
    /// are not [`cancellable`](super::IoContextBuilder::cancellable). It goes to [`Ticket::channel`], and takes a place.
    pub fn cancel(ticket: Ticket) -> Self {
        let sqe = Sqe { op: Opcode::Cancel as u8, arg: ticket.user_data, ..Sqe::default() };
        Self { sqe, context: ticket.context, channel: ticket.channel, held: Held::Nothing, callback: () }
    }

    /// Who gets the completion.
    pub fn callback<C>(self, callback: C) -> IoEvent<C> {
        let Self { sqe, context, channel, held, callback: () } = self;
        IoEvent { sqe, context, channel, held, callback }
    }

    fn bare(op: Opcode, volume: IoVolume, offset: u64, length: u64) -> Self {
        let sqe = Sqe { op: op as u8, volume: volume.index, offset, length, ..Sqe::default() };
        let reads = matches!(op, Opcode::Read | Opcode::Readv);
        let channel = if reads { Channel::Read } else { Channel::Write };
        Self { sqe, context: volume.context, channel, held: Held::Nothing, callback: () }
    }

    fn one(op: Opcode, volume: IoVolume, offset: u64, buffer: IoBuffer) -> Self {
        let event = Self::bare(op, volume, offset, buffer.len() as u64);
        let sqe = Sqe { region: buffer.region(), region_offset: buffer.offset(), ..event.sqe };
        Self { sqe, held: Held::One(buffer), ..event }
    }

    fn many(op: Opcode, volume: IoVolume, offset: u64, list: IoList) -> Self {
        let event = Self::bare(op, volume, offset, list.bytes());
        let (region, region_offset) = (list.table.region(), list.table.offset());
        // More than u32::MAX are more than there may be, as u32::MAX are.
        let iov_count = u32::try_from(list.buffers.len()).unwrap_or(u32::MAX);
        let sqe = Sqe { region, region_offset, iov_count, ..event.sqe };
        Self { sqe, held: Held::Many(list), ..event }
    }
}

impl<C> IoEvent<C> {
    /// The write, or write-zeroes, is durable when it completes.
    pub fn fua(mut self) -> Self {
        self.sqe.flags |= sqe_flags::FUA;
        self
    }

    /// Fails with `ETIMEDOUT` unless the kernel has it in time; once it has, the real result comes, however late. For
    /// contexts that are [`cancellable`](super::IoContextBuilder::cancellable); others answer `EOPNOTSUPP`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        // 0 would be none, and what does not fit is longer than an hour.
        self.sqe.timeout_us = u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX).max(1);
        self
    }

    /// The channel of its direction, [`Channel::Read`] or [`Channel::Write`]; for a cancel, that of its ticket.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// It may go to this channel.
    pub(super) fn fits(&self, channel: Channel) -> bool {
        channel == self.channel || channel == Channel::Prio && self.sqe.op != Opcode::Cancel as u8
    }

    /// The buffer that it was made with.
    pub fn into_buffer(self) -> Option<IoBuffer> {
        self.held.into_parts().0
    }

    /// The list that it was made with.
    pub fn into_list(self) -> Option<IoList> {
        self.held.into_parts().1
    }

    /// Volume and memory are of this context.
    pub(super) fn is_of(&self, context: u64, guard: &ForkGuard) -> bool {
        self.context == context && self.held.is_of(guard)
    }

    pub(super) fn set_class(&mut self, channel: Channel) {
        let prio = channel == Channel::Prio;
        self.sqe.class = if prio { abi::Class::Prio } else { abi::Class::Default } as u8;
    }
}

// Callbacks are closures mostly, which have nothing to show.
impl<C> fmt::Debug for IoEvent<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoEvent").field("sqe", &self.sqe).field("held", &self.held).finish_non_exhaustive()
    }
}

impl<C> fmt::Debug for Refused<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("why", &self.why).field("event", &self.event).finish()
    }
}

/// An event that was not taken. It comes back as it was.
#[derive(thiserror::Error)]
#[error("{why}")]
pub struct Refused<C = ()> {
    /// The event.
    pub event: IoEvent<C>,
    /// Why.
    pub why: Refusal,
}

/// Why an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All places of the channel are in use.
    #[error(
        "all {depth} places of channel {channel} are in use: submit again when something has completed, or make the context deeper"
    )]
    Full {
        /// Channel.
        channel: Channel,
        /// Its places.
        depth: u32,
    },
    /// The context is shutting down.
    #[error("the context is shutting down and takes no more events")]
    Closed,
    /// An event of the other direction.
    #[error(
        "channel {channel} does not take this operation: use channel {fits}, or prio for what is no cancel"
    )]
    Channel {
        /// Channel that was asked for.
        channel: Channel,
        /// Channel that takes it.
        fits: Channel,
    },
    /// Volume or memory of somebody else.
    #[error("volume and buffers must come from the context that the event is submitted to")]
    Foreign,
    /// Not the process that made the context.
    #[error("the context belongs to the parent of this forked process: make one here")]
    Forked,
}
