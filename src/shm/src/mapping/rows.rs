//! A table in a mapping: rows of words, found by their number.

use std::ptr::NonNull;

use super::Mapping;
use crate::sync::{Arc, AtomicU64};

/// `count` rows of `N` words. Checked once, so that a row costs one comparison.
#[derive(Clone, Debug)]
pub struct Rows<const N: usize> {
    first: NonNull<[AtomicU64; N]>,
    count: u32,
    /// What `first` points into.
    _memory: Arc<Mapping>,
}

// SAFETY: the pointer is to atomics in a mapping that `_memory` keeps, and is Send and Sync itself.
unsafe impl<const N: usize> Send for Rows<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for Rows<N> {}

impl<const N: usize> Rows<N> {
    /// The rows from byte `offset` of the mapping; none if they are out of bounds or misaligned.
    #[must_use]
    pub fn new(memory: Arc<Mapping>, offset: usize, count: u32) -> Option<Rows<N>> {
        let words = memory.u64s(offset, N.checked_mul(count as usize)?)?;
        let first = NonNull::from(words).cast();
        Some(Rows { first, count, _memory: memory })
    }

    /// Number of rows.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// One row.
    ///
    /// # Panics
    /// There is no such row.
    #[inline]
    #[must_use]
    pub fn row(&self, index: u32) -> &[AtomicU64; N] {
        assert!(index < self.count, "row {index} of {}", self.count);
        // SAFETY: `new` proved that `count` rows lie at `first`, aligned; `_memory` keeps the mapping, and its words are
        // only ever reached as atomics.
        unsafe { self.first.add(index as usize).as_ref() }
    }
}
