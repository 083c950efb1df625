//! A client's allocator for data buffers: in its arena, region 0, or in a region of its own.

use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

use range_alloc::RangeAllocator;

use crate::fork::ForkGuard;
use crate::mapping::Region;
use crate::sync::Arc;

/// Buffers begin at multiples of it and take multiples of it. Bytes.
const GRAIN_BYTES: u64 = 4096;
/// Offset of a buffer that is not to be freed.
const LEAKED: u64 = u64::MAX;

/// What a buffer of `length` takes. Bytes.
fn taken(length: usize) -> u64 {
    (length as u64).checked_next_multiple_of(GRAIN_BYTES).unwrap_or(u64::MAX)
}

/// Why there is no buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Nothing to allocate.
    #[error("a buffer of 0 bytes was asked for; it takes at least 1")]
    ZeroLength,
    /// Not enough in one piece.
    #[error(
        "no {asked} bytes in one piece are free ({free} of {total} bytes are free); drop buffers, open the session with a larger arena, or add a region"
    )]
    Full {
        /// Length asked for, rounded up to 4096. Bytes.
        asked: u64,
        /// Free bytes in all.
        free: u64,
        /// Length of the arena. Bytes.
        total: u64,
    },
    /// Buffers of two arenas could overlap.
    #[error("the memory has an arena already; clone that one")]
    Taken,
    /// Not the process that opened the session.
    #[error("the session belongs to the parent of this forked process; open one of its own here")]
    Forked,
}

/// Hands out buffers. Clones share it.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: u16,
    region: Region,
    guard: ForkGuard,
    free: Mutex<RangeAllocator<u64>>,
}

impl Arena {
    /// The one arena over the memory of `region`, which no ring or other region may overlap: a layout that passed
    /// [`crate::layout::SessionLayout::check`] sees to that. Requests name it by `index`.
    ///
    /// `guard` is the session's: it tells its buffers from those of another ([`Buffer::is_of`]).
    pub fn new(index: u16, region: Region, guard: ForkGuard) -> Result<Arena, AllocError> {
        if !region.memory().claim_arena() {
            return Err(AllocError::Taken);
        }
        let free = Mutex::new(RangeAllocator::new(0..region.len() / GRAIN_BYTES * GRAIN_BYTES));
        Ok(Arena(Arc::new(Shared { index, region, guard, free })))
    }

    /// A buffer of `length` bytes at a multiple of 4096. Its content is whatever was there before.
    pub fn alloc(&self, length: usize) -> Result<Buffer, AllocError> {
        if self.0.guard.is_child() {
            return Err(AllocError::Forked);
        }
        if length == 0 {
            return Err(AllocError::ZeroLength);
        }
        let total = self.0.region.len();
        let asked = taken(length);
        let mut free = self.0.free();
        // Only lengths that can fit go to the allocator, whose arithmetic is not checked.
        let range = if asked <= total { free.allocate_range(asked).ok() } else { None };
        let Some(range) = range else {
            return Err(AllocError::Full { asked, free: free.total_available(), total });
        };
        drop(free);
        let slice = self.0.region.slice(range.start, asked).expect("the allocator covers the region");
        Ok(Buffer { start: slice.as_ptr(), length, offset: range.start, arena: Arc::clone(&self.0) })
    }

    /// Bytes in buffers, those that were leaked included.
    #[must_use]
    pub fn used(&self) -> u64 {
        let whole = self.0.region.len() / GRAIN_BYTES * GRAIN_BYTES;
        if self.0.guard.is_child() { whole } else { whole - self.0.free().total_available() }
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, RangeAllocator<u64>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that requests can name. Freed on drop.
///
/// While the daemon may read or write it, the buffer is owned by the queue's table of requests in flight, so that
/// nobody can look at it.
#[derive(Debug)]
pub struct Buffer {
    start: *mut u8,
    length: usize,
    /// Start of what was taken from the allocator, or [`LEAKED`].
    offset: u64,
    arena: Arc<Shared>,
}

// SAFETY: the memory at `start` belongs to this buffer alone (the allocator gave it out once, the mapping has one
// arena) and is kept mapped by `arena`, which is Send and Sync.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Index of its region: the session's arena is region 0.
    #[must_use]
    pub fn region(&self) -> u16 {
        self.arena.index
    }

    /// Whether it is of the session with this guard.
    #[must_use]
    pub fn is_of(&self, guard: &ForkGuard) -> bool {
        self.arena.guard.is_same(guard)
    }

    /// Start in the region. Bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length. Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: a buffer of 0 bytes cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Gives the buffer up without freeing its range: for one that the daemon may still write to when nobody is
    /// left to wait for it.
    pub fn leak(mut self) {
        self.offset = LEAKED;
    }

    fn check_process(&self) {
        assert!(
            !self.arena.guard.is_child(),
            "a ferrio buffer was used in a forked process; open a session of its own there"
        );
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.check_process();
        // SAFETY: start..start+length lies in the mapping that `arena` keeps, is mapped in this process (checked),
        // was zeroed by the kernel, and belongs to this buffer alone; the daemon writes to it only while the
        // buffer sits in the table of requests in flight, where nobody dereferences it.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.check_process();
        // SAFETY: as in deref, and `&mut self` is the only way to it.
        unsafe { slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // In a child another thread of the parent may have held the lock at the fork.
        if self.offset != LEAKED && !self.arena.guard.is_child() {
            self.arena.free().free_range(self.offset..self.offset + taken(self.length));
        }
    }
}
