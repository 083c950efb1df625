//! Blocks for the iovecs of vectored requests: allocated when the driver is opened, taken at submit, given back
//! at release.

use std::mem::offset_of;

use ferrio_shm::mapping::RegionSlice;
use libc::iovec;

use crate::driver::SEGMENTS_MAX;

/// A `struct iovec` as two words: plain data that starts as zeros, so that pages of blocks never used do not come into being.
type Entry = [usize; 2];

const _: () = {
    assert!(size_of::<Entry>() == size_of::<iovec>() && align_of::<Entry>() == align_of::<iovec>());
    assert!(offset_of!(iovec, iov_base) == 0 && offset_of!(iovec, iov_len) == size_of::<usize>());
};

/// All blocks. Their addresses never change.
#[derive(Debug)]
pub(crate) struct Iovecs {
    entries: Vec<Entry>,
    /// The region that each entry lies in.
    regions: Vec<u32>,
    /// Entries in use, by block.
    used: Vec<u32>,
    free: Vec<u32>,
}

impl Iovecs {
    pub(crate) fn new(blocks: u32) -> Iovecs {
        let all = blocks as usize * SEGMENTS_MAX;
        Iovecs {
            entries: vec![[0; 2]; all],
            regions: vec![0; all],
            used: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
        }
    }

    /// Takes an empty block.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Gives a block back.
    pub(crate) fn give(&mut self, block: u32) {
        self.used[block as usize] = 0;
        // As long as there are blocks: it never grows.
        self.free.push(block);
    }

    /// Adds a piece of memory to a block that is not full.
    pub(crate) fn push(&mut self, block: u32, region: u32, memory: RegionSlice<'_>) {
        let used = &mut self.used[block as usize];
        let place = block as usize * SEGMENTS_MAX + *used as usize;
        self.entries[place] = [memory.as_ptr().expose_provenance(), memory.len()];
        self.regions[place] = region;
        *used += 1;
    }

    /// The regions of a block's entries.
    pub(crate) fn regions(&self, block: u32) -> &[u32] {
        let start = block as usize * SEGMENTS_MAX;
        &self.regions[start..start + self.used[block as usize] as usize]
    }

    /// The iovec of a block and its length, for the kernel; valid until the block is given back.
    pub(crate) fn iovec(&self, block: u32) -> (*const iovec, u32) {
        (self.entries[block as usize * SEGMENTS_MAX..].as_ptr().cast(), self.used[block as usize])
    }
}
