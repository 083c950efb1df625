//! What requests move data between: buffers, spans of the caller's own memory, and lists of both.

use std::ops::Range;
use std::sync::Arc;

use ferrio_shm::abi::limits::IOV_MAX;
use ferrio_shm::entry::IovEntry;
use ferrio_shm::fork::ForkGuard;

use crate::region::Brought;
use crate::{Buffer, Error};

/// Bytes of an iovec of the greatest length: one page.
pub(crate) const TABLE_BYTES: usize = IOV_MAX as usize * size_of::<IovEntry>();

/// One piece of memory of a request.
#[derive(Debug)]
pub enum Memory {
    /// A buffer of the session's arena or of a region that the library made.
    Buffer(Buffer),
    /// A stretch of memory that the caller brought, and reaches in its own ways.
    Span(Span),
}

/// A stretch of a region that the caller brought ([`Session::add_region`](crate::Session::add_region)).
///
/// The library does not know what else the caller does with that memory: between submission and completion it should
/// leave it alone, as ABI.md says.
#[derive(Clone, Debug)]
pub struct Span {
    pub(crate) region: Arc<Brought>,
    pub(crate) range: Range<u64>,
}

/// A list of memory for [`Request::readv`](crate::Request::readv) and [`Request::writev`](crate::Request::writev), 1 to
/// 256 entries. It owns its buffers until they are taken out.
///
/// Made by [`Session::iovec`](crate::Session::iovec), and as good as new after [`clear`](Self::clear): a list that is
/// used again allocates nothing.
#[derive(Debug)]
pub struct IoVec(Box<List>);

#[derive(Debug)]
struct List {
    /// The entries as the daemon reads them.
    table: Buffer,
    pieces: Vec<Memory>,
    /// Entries asked for; those beyond the greatest length are counted and not written.
    entries: usize,
    bytes: u64,
    /// A range that did not lie in its piece.
    outside: Option<(u64, u64)>,
}

/// What a request holds until its completion.
#[derive(Debug, Default)]
pub(crate) enum Held {
    #[default]
    Nothing,
    One(Memory),
    Many(IoVec),
}

impl Memory {
    /// Index of its region.
    #[must_use]
    pub fn region(&self) -> u16 {
        match self {
            Memory::Buffer(buffer) => buffer.region(),
            Memory::Span(span) => span.region.index,
        }
    }

    /// Where it lies in its region. Bytes.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self {
            Memory::Buffer(buffer) => buffer.offset()..buffer.offset() + buffer.len() as u64,
            Memory::Span(span) => span.range.clone(),
        }
    }

    /// The buffer, unless it is a span.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Memory::Buffer(buffer) => Some(buffer),
            Memory::Span(_) => None,
        }
    }

    fn is_of(&self, guard: &ForkGuard) -> bool {
        match self {
            Memory::Buffer(buffer) => buffer.is_of(guard),
            Memory::Span(span) => span.region.guard.is_same(guard),
        }
    }

    fn leak(self) {
        if let Memory::Buffer(buffer) = self {
            buffer.leak();
        }
    }
}

impl From<Buffer> for Memory {
    fn from(buffer: Buffer) -> Self {
        Memory::Buffer(buffer)
    }
}

impl From<Span> for Memory {
    fn from(span: Span) -> Self {
        Memory::Span(span)
    }
}

impl IoVec {
    /// `table` has [`TABLE_BYTES`].
    pub(crate) fn new(table: Buffer) -> Self {
        IoVec(Box::new(List { table, pieces: Vec::new(), entries: 0, bytes: 0, outside: None }))
    }

    /// Adds an entry: all of the buffer or span.
    pub fn push(&mut self, memory: impl Into<Memory>) {
        let memory = memory.into();
        let range = memory.range();
        self.push_range(memory, 0..(range.end - range.start) as usize);
    }

    /// Adds an entry: these bytes of the buffer or span. A range outside of it is refused when the request is submitted.
    pub fn push_range(&mut self, memory: impl Into<Memory>, range: Range<usize>) {
        self.0.pieces.push(memory.into());
        self.again(self.0.pieces.len() - 1, range);
    }

    /// Adds an entry: these bytes of the `piece`-th buffer or span, which is in the list already.
    ///
    /// # Panics
    /// There is no such piece.
    pub fn again(&mut self, piece: usize, range: Range<usize>) {
        let list = &mut *self.0;
        let (region, whole) = (list.pieces[piece].region(), list.pieces[piece].range());
        let start = whole.start.saturating_add(range.start as u64);
        let end = whole.start.saturating_add(range.end as u64);
        if start > end || end > whole.end {
            list.outside.get_or_insert((start, end));
        }
        let length = end.saturating_sub(start);
        // What does not fit has a sum that no request may have, and is refused for it.
        let short = u32::try_from(length).unwrap_or(u32::MAX);
        let entry = IovEntry { region, zero: 0, length: short, offset: start };
        let at = list.entries * size_of::<IovEntry>();
        if let Some(place) = list.table.get_mut(at..at + size_of::<IovEntry>()) {
            for (bytes, word) in place.chunks_exact_mut(8).zip(entry.to_words()) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        list.entries += 1;
        list.bytes += length;
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.entries
    }

    /// Whether it has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.entries == 0
    }

    /// Sum of the entries. Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// The `piece`-th buffer; `None`: there is no such piece, or it is a span.
    #[must_use]
    pub fn buffer(&self, piece: usize) -> Option<&Buffer> {
        match self.0.pieces.get(piece)? {
            Memory::Buffer(buffer) => Some(buffer),
            Memory::Span(_) => None,
        }
    }

    /// The same, to be written to.
    #[must_use]
    pub fn buffer_mut(&mut self, piece: usize) -> Option<&mut Buffer> {
        match self.0.pieces.get_mut(piece)? {
            Memory::Buffer(buffer) => Some(buffer),
            Memory::Span(_) => None,
        }
    }

    /// Empties it, and hands out what it had, in the order of the pushes.
    pub fn clear(&mut self) -> impl Iterator<Item = Memory> {
        (self.0.entries, self.0.bytes, self.0.outside) = (0, 0, None);
        self.0.pieces.drain(..)
    }

    /// Where the daemon finds the entries: region and offset.
    pub(crate) fn table(&self) -> (u16, u64) {
        (self.0.table.region(), self.0.table.offset())
    }

    fn check(&self) -> Result<(), Error> {
        if self.is_empty() || self.len() > IOV_MAX as usize {
            return Err(Error::IoVecLength { entries: self.len(), max: IOV_MAX });
        }
        self.0.outside.map_or(Ok(()), |(start, end)| Err(Error::NotOwned { start, end }))
    }

    fn is_of(&self, guard: &ForkGuard) -> bool {
        self.0.table.is_of(guard) && self.0.pieces.iter().all(|piece| piece.is_of(guard))
    }

    fn leak(self) {
        let List { table, pieces, .. } = *self.0;
        table.leak();
        pieces.into_iter().for_each(Memory::leak);
    }
}

impl Held {
    /// Whether all of it is of the session with this guard, and a list is one that can be sent.
    pub(crate) fn check(&self, guard: &ForkGuard) -> Result<(), Error> {
        let own = match self {
            Held::Nothing => true,
            Held::One(memory) => memory.is_of(guard),
            Held::Many(list) => {
                list.check()?;
                list.is_of(guard)
            }
        };
        if own { Ok(()) } else { Err(Error::Foreign { what: "buffer" }) }
    }

    pub(crate) fn into_parts(self) -> (Option<Buffer>, Option<IoVec>) {
        match self {
            Held::Nothing => (None, None),
            Held::One(memory) => (memory.into_buffer(), None),
            Held::Many(list) => (None, Some(list)),
        }
    }

    /// Gives the memory up for good: the kernel may still use it.
    pub(crate) fn leak(self) {
        match self {
            Held::Nothing => {}
            Held::One(memory) => memory.leak(),
            Held::Many(list) => list.leak(),
        }
    }
}
