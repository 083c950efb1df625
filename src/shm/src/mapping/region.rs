//! A stretch of a mapping that requests name as (region, offset, length).

use std::marker::PhantomData;

use super::Mapping;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Part of a mapping, whole for a region that a client brought, the arena for region 0.
#[derive(Clone, Debug)]
pub struct Region {
    memory: Arc<Mapping>,
    base: usize,
    bytes: usize,
}

impl Region {
    /// None if the part does not lie within the mapping.
    #[must_use]
    pub fn new(memory: Arc<Mapping>, base: u64, bytes: u64) -> Option<Region> {
        let (base, bytes) = (usize::try_from(base).ok()?, usize::try_from(bytes).ok()?);
        memory.pointer(base, bytes)?;
        Some(Region { memory, base, bytes })
    }

    /// Length. Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether it has no bytes, as the arena of a session without one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The stretch of `length` bytes at `offset`; none if it does not lie within the region.
    #[must_use]
    pub fn slice(&self, offset: u64, length: u64) -> Option<RegionSlice<'_>> {
        if offset.checked_add(length)? > self.len() {
            return None;
        }
        let (offset, bytes) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        let start = self.memory.pointer(self.base.checked_add(offset)?, bytes)?;
        Some(RegionSlice { start: start.as_ptr(), bytes, region: PhantomData })
    }

    /// `count` words at byte `offset` of the region, for the daemon to read what a client wrote there; none if they are
    /// out of bounds or misaligned, or if an [`crate::arena::Arena`] hands out parts of this mapping as plain buffers, as
    /// it does in the client.
    #[must_use]
    pub fn u64s(&self, offset: u64, count: usize) -> Option<&[AtomicU64]> {
        let start = self.words_at(offset, count.checked_mul(8)?)?;
        self.memory.u64s(start, count)
    }

    /// Whether `length` bytes at `offset` are those of another region. Each byte is looked at once at most, whoever changes
    /// it meanwhile. None under the conditions of [`Region::u64s`], of which alignment is the one that does not matter.
    #[must_use]
    pub fn equals(&self, offset: u64, other: &Region, other_offset: u64, length: u64) -> Option<bool> {
        let bytes = usize::try_from(length).ok()?;
        let (start, other_start) = (self.words_at(offset, bytes)?, other.words_at(other_offset, bytes)?);
        if (bytes | start | other_start).is_multiple_of(8) {
            let (a, b) = (self.memory.u64s(start, bytes / 8)?, other.memory.u64s(other_start, bytes / 8)?);
            return Some(
                a.iter().zip(b).all(|(a, b)| a.load(Ordering::Relaxed) == b.load(Ordering::Relaxed)),
            );
        }
        let (a, b) = (self.memory.u8s(start, bytes)?, other.memory.u8s(other_start, bytes)?);
        Some(a.iter().zip(b).all(|(a, b)| a.load(Ordering::Relaxed) == b.load(Ordering::Relaxed)))
    }

    /// Where `bytes` at `offset` begin in the mapping, if they lie within the region and may be looked at as atomics.
    fn words_at(&self, offset: u64, bytes: usize) -> Option<usize> {
        if self.memory.has_arena() || offset.checked_add(bytes as u64)? > self.len() {
            return None;
        }
        self.base.checked_add(usize::try_from(offset).ok()?)
    }

    pub(crate) fn memory(&self) -> &Mapping {
        &self.memory
    }
}

/// A stretch of memory that belongs to a client. An address for the kernel to follow, never a reference: the
/// client may write to it at any time.
#[derive(Clone, Copy, Debug)]
pub struct RegionSlice<'a> {
    start: *mut u8,
    bytes: usize,
    region: PhantomData<&'a Region>,
}

impl RegionSlice<'_> {
    /// Its address, valid for as long as the region is kept.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Length. Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}
