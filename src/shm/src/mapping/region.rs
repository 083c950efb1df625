//! A stretch of a mapping that requests name as (region, offset, length).

use std::marker::PhantomData;

use super::Mapping;
use crate::sync::Arc;

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
