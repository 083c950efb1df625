//! Regions as registered buffers.
//!
//! The kernel pins a registered buffer once instead of on every request, but pinning takes the thread away: a millisecond
//! or so for a slot, if the pages are there. A region gets as many slots of the table in a row as it needs; they are
//! filled from the front, one by one ([`Pinning`](super::pinning::Pinning)). A transfer across the seam of two slots goes
//! unregistered, like those of what is not pinned (yet). So does a vectored request whose pieces are not all in one slot,
//! or on a kernel without READV_FIXED. On a file with O_DIRECT, 2 to 32 pieces of 4 KiB and 4 of 64 KiB cost the same CPU
//! time either way (ratios 0.99 to 1.07, within the noise); it keeps the pages from being pinned twice.

use std::io;

use ferrio_shm::mapping::Region;
use io_uring::IoUring;
use libc::iovec;

use crate::ledger::RegionEntry;

/// Bytes of one table slot, as a power of two: 16 MiB. The kernel would take 1 GiB.
const SLOT_SHIFT: u32 = 24;
/// `IORING_MAX_REG_BUFFERS`.
const TABLE_SLOTS: u32 = 1 << 14;

/// How a region stands in the table.
#[derive(Debug)]
pub(super) struct Fixed {
    first: u32,
    /// Slots that are its own, in a row; 0: it is not to be pinned.
    reserved: u32,
    /// Those of them, from the front, that hold its pages.
    pinned: u32,
    slot_shift: u32,
    /// Why it is not pinned.
    shortfall: Option<String>,
}

/// The sparse table of the ring; `used` has one element per slot, none where there is no table.
#[derive(Debug)]
pub(super) struct FixedTable {
    used: Vec<bool>,
    slot_shift: u32,
}

impl FixedTable {
    pub(super) fn register(ring: &IoUring, degraded: &mut Vec<String>) -> FixedTable {
        let slots = match ring.submitter().register_buffers_sparse(TABLE_SLOTS) {
            Ok(()) => TABLE_SLOTS as usize,
            Err(error) => {
                degraded.push(format!(
                    "registered buffers are not in effect ({error}), so every request pins its pages: \
                     Linux 5.19 has sparse tables"
                ));
                0
            }
        };
        FixedTable { used: vec![false; slots], slot_shift: SLOT_SHIFT }
    }

    /// A region that is not pinned.
    pub(super) fn unpinned(&self) -> Fixed {
        Fixed { first: 0, reserved: 0, pinned: 0, slot_shift: self.slot_shift, shortfall: None }
    }

    /// Reserves the slots for a region, as far as there are enough.
    pub(super) fn reserve(&mut self, region: &Region) -> Fixed {
        let mut fixed = self.unpinned();
        let wanted = region.len().div_ceil(1 << self.slot_shift);
        if self.used.is_empty() || wanted == 0 {
            return fixed;
        }
        match self.vacant(wanted) {
            Some(first) => {
                (fixed.first, fixed.reserved) = (first as u32, wanted as u32);
                self.used[first..first + wanted as usize].fill(true);
            }
            None => {
                let text = format!("its {wanted} table slots in a row are not free: close unused regions");
                fixed.shortfall = Some(text);
            }
        }
        fixed
    }

    /// Pins the next slot of a region that has one left to pin. If it cannot be, all are given up, with the reason.
    pub(super) fn pin_next(&mut self, ring: &IoUring, region: &Region, fixed: &mut Fixed) {
        let Some((offset, length)) = fixed.next(region) else { return };
        match set(ring, fixed.first + fixed.pinned, region, offset, length) {
            Ok(()) => fixed.pinned += 1,
            Err(error) => {
                self.unpin(ring, fixed, u32::MAX);
                fixed.shortfall = Some(explain(&error, region.len()));
            }
        }
    }

    /// Gives the pages of at most `slots_max` slots back, and those slots; says whether these were all.
    pub(super) fn unpin(&mut self, ring: &IoUring, fixed: &mut Fixed, slots_max: u32) -> bool {
        for _ in 0..slots_max.min(fixed.reserved) {
            fixed.reserved -= 1;
            let slot = fixed.first + fixed.reserved;
            if fixed.reserved >= fixed.pinned {
                self.used[slot as usize] = false;
                continue;
            }
            fixed.pinned = fixed.reserved;
            let none = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: an empty entry names no memory.
            let cleared = unsafe { ring.submitter().register_buffers_update(slot, &[none], None) };
            match cleared {
                Ok(()) => self.used[slot as usize] = false,
                // The slot keeps its pages, so it is not used again; the ring's end frees it.
                Err(error) => tracing::warn!(slot, %error, "a registered buffer could not be cleared"),
            }
        }
        fixed.reserved == 0
    }

    fn vacant(&self, wanted: u64) -> Option<usize> {
        let wanted = usize::try_from(wanted).ok().filter(|&wanted| wanted <= self.used.len())?;
        let mut free = 0;
        self.used
            .iter()
            .position(|&used| {
                free = if used { 0 } else { free + 1 };
                free == wanted
            })
            .map(|last| last + 1 - wanted)
    }

    /// What is in effect, and what is not, of `regions`.
    pub(super) fn describe<'a>(
        &self,
        regions: impl Iterator<Item = (u32, &'a RegionEntry<Fixed>)>,
        modes: &mut Vec<String>,
        degraded: &mut Vec<String>,
    ) {
        let (mut registered, mut slots, mut all) = (0, 0, 0);
        for (index, entry) in regions {
            all += 1;
            registered += u32::from(entry.own.pinned > 0);
            slots += entry.own.pinned;
            if entry.own.pinned < entry.own.reserved {
                let Fixed { pinned, reserved, .. } = entry.own;
                modes.push(format!("region {index} is being pinned: {pinned} of {reserved} slots"));
            }
            if let Some(shortfall) = &entry.own.shortfall {
                degraded.push(format!("region {index} is not registered: {shortfall}"));
            }
        }
        if !self.used.is_empty() {
            modes.push(format!(
                "registered buffers: {registered} of {all} regions, {slots} of {} slots",
                self.used.len()
            ));
        }
    }

    #[cfg(test)]
    pub(super) fn set_slot_shift(&mut self, shift: u32) {
        self.slot_shift = shift;
    }
}

impl Fixed {
    /// The table slot that holds these bytes of the region.
    #[inline]
    pub(super) fn slot_of(&self, offset: u64, length: u32) -> Option<u16> {
        let slot = offset >> self.slot_shift;
        let slot_bytes = 1 << self.slot_shift;
        if slot >= self.pinned.into() || (offset & (slot_bytes - 1)) + u64::from(length) > slot_bytes {
            return None;
        }
        // The table has 2^14 slots at most.
        u16::try_from(u64::from(self.first) + slot).ok()
    }

    /// Offset and length of the next part to pin, in bytes.
    pub(super) fn next(&self, region: &Region) -> Option<(u64, u64)> {
        if self.pinned == self.reserved {
            return None;
        }
        let offset = u64::from(self.pinned) << self.slot_shift;
        Some((offset, (region.len() - offset).min(1 << self.slot_shift)))
    }

    #[cfg(test)]
    pub(super) fn pinned(&self) -> u32 {
        self.pinned
    }

    #[cfg(test)]
    pub(super) fn first(&self) -> u32 {
        self.first
    }
}

fn set(ring: &IoUring, slot: u32, region: &Region, offset: u64, length: u64) -> io::Result<()> {
    let slice = region.slice(offset, length).ok_or(io::ErrorKind::InvalidInput)?;
    let entry = iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() };
    // SAFETY: the memory is mapped; the region, and with it the mapping, is kept until `unpin` has cleared the slot, or
    // past the end of the ring.
    unsafe { ring.submitter().register_buffers_update(slot, &[entry], None) }
}

fn explain(error: &io::Error, bytes: u64) -> String {
    if error.raw_os_error() != Some(libc::ENOMEM) {
        return format!("registering its {bytes} bytes failed ({error})");
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{limit} bytes"));
    format!(
        "RLIMIT_MEMLOCK is {limit} for all processes of this user, the region needs {bytes} more: \
         raise LimitMEMLOCK= or give CAP_IPC_LOCK; until then every request pins its own pages"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_across_a_seam_has_no_slot() {
        let fixed = Fixed { first: 5, reserved: 3, pinned: 2, slot_shift: 30, shortfall: None };
        let gib = 1 << 30;
        assert_eq!(fixed.slot_of(0, 1 << 30), Some(5));
        assert_eq!(fixed.slot_of(gib - 4096, 4096), Some(5));
        assert_eq!(fixed.slot_of(gib - 4096, 4097), None);
        assert_eq!(fixed.slot_of(gib, 4096), Some(6));
        assert_eq!(fixed.slot_of(2 * gib, 0), None);
        let unregistered = Fixed { pinned: 0, ..fixed };
        assert_eq!(unregistered.slot_of(0, 1), None);
    }
}
