//! Regions as registered buffers.
//!
//! The kernel pins a registered buffer once instead of on every request, but takes at most 1 GiB per table
//! slot. A region gets as many slots in a row as it has gigabytes; a transfer across the seam of two slots goes
//! unregistered, like those of a region that could not be pinned.

use std::io;

use ferrio_shm::mapping::Region;
use io_uring::IoUring;
use libc::iovec;

use crate::ledger::RegionEntry;

/// Bytes of one table slot at most.
const SLOT_BYTES_MAX: u64 = 1 << 30;
/// `IORING_MAX_REG_BUFFERS`.
const TABLE_SLOTS_MAX: u32 = 1 << 14;
/// Slots beyond one per region, for regions of more than one.
const TABLE_SLOTS_SPARE: u32 = 1024;

/// How a region stands in the table.
#[derive(Debug)]
pub(super) struct Fixed {
    first: u32,
    /// 0: not registered.
    slots: u32,
    slot_bytes: u64,
    /// Why not.
    shortfall: Option<String>,
}

/// The sparse table of the ring; `used` has one element per slot, none where there is no table.
#[derive(Debug)]
pub(super) struct FixedTable {
    used: Vec<bool>,
    slot_bytes: u64,
}

impl FixedTable {
    pub(super) fn register(ring: &IoUring, regions_max: u32, degraded: &mut Vec<String>) -> FixedTable {
        let slots = regions_max.saturating_add(TABLE_SLOTS_SPARE).min(TABLE_SLOTS_MAX);
        let slots = match ring.submitter().register_buffers_sparse(slots) {
            Ok(()) => slots as usize,
            Err(error) => {
                degraded.push(format!(
                    "registered buffers are not in effect ({error}), so every request pins its pages: \
                     Linux 5.19 has sparse tables"
                ));
                0
            }
        };
        FixedTable { used: vec![false; slots], slot_bytes: SLOT_BYTES_MAX }
    }

    /// A region that shall not be pinned.
    pub(super) fn unpinned(&self) -> Fixed {
        Fixed { first: 0, slots: 0, slot_bytes: self.slot_bytes, shortfall: None }
    }

    /// Pins a region, or says why not.
    pub(super) fn pin(&mut self, ring: &IoUring, region: &Region) -> Fixed {
        let slot_bytes = self.slot_bytes;
        let mut fixed = self.unpinned();
        let wanted = region.len().div_ceil(slot_bytes);
        if self.used.is_empty() || wanted == 0 {
            return fixed;
        }
        let Some(first) = self.vacant(wanted) else {
            fixed.shortfall =
                Some(format!("its {wanted} table slots in a row are not free: close unused regions"));
            return fixed;
        };
        fixed.first = first as u32;
        for slot in 0..wanted {
            let offset = slot * slot_bytes;
            let length = (region.len() - offset).min(slot_bytes);
            match self.set(ring, fixed.first + slot as u32, region, offset, length) {
                Ok(()) => fixed.slots += 1,
                Err(error) => {
                    self.unpin(ring, &mut fixed);
                    fixed.shortfall = Some(explain(&error, region.len()));
                    break;
                }
            }
        }
        fixed
    }

    /// Gives the pages back.
    pub(super) fn unpin(&mut self, ring: &IoUring, fixed: &mut Fixed) {
        for slot in fixed.first..fixed.first + std::mem::take(&mut fixed.slots) {
            let none = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: an empty entry names no memory.
            let cleared = unsafe { ring.submitter().register_buffers_update(slot, &[none], None) };
            match cleared {
                Ok(()) => self.used[slot as usize] = false,
                // The slot keeps its pages, so it is not used again; the ring's end frees it.
                Err(error) => tracing::warn!(slot, %error, "a registered buffer could not be cleared"),
            }
        }
    }

    fn set(
        &mut self,
        ring: &IoUring,
        slot: u32,
        region: &Region,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let slice = region.slice(offset, length).ok_or(io::ErrorKind::InvalidInput)?;
        let entry = iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() };
        // SAFETY: the memory is mapped; the ledger keeps the region, and with it the mapping, until `unpin` has
        // cleared the slot, or past the end of the ring.
        unsafe { ring.submitter().register_buffers_update(slot, &[entry], None) }?;
        self.used[slot as usize] = true;
        Ok(())
    }

    fn vacant(&self, wanted: u64) -> Option<usize> {
        let wanted = usize::try_from(wanted).ok().filter(|&wanted| wanted <= self.used.len())?;
        self.used.windows(wanted).position(|slots| !slots.contains(&true))
    }

    /// What is in effect, and what is not, of `regions`.
    pub(super) fn describe<'a>(
        &self,
        regions: impl Iterator<Item = (u32, &'a RegionEntry<Fixed>)>,
        modes: &mut Vec<String>,
        degraded: &mut Vec<String>,
    ) {
        let (mut registered, mut all) = (0, 0);
        for (index, entry) in regions {
            all += 1;
            registered += u32::from(entry.own.slots > 0);
            if let Some(shortfall) = &entry.own.shortfall {
                degraded.push(format!("region {index} is not registered: {shortfall}"));
            }
        }
        if !self.used.is_empty() {
            let slots = self.used.iter().filter(|&&used| used).count();
            modes.push(format!(
                "registered buffers: {registered} of {all} regions, {slots} of {} slots",
                self.used.len()
            ));
        }
    }

    #[cfg(test)]
    pub(super) fn set_slot_bytes(&mut self, bytes: u64) {
        self.slot_bytes = bytes;
    }
}

impl Fixed {
    /// The table slot that holds these bytes of the region.
    pub(super) fn slot_of(&self, offset: u64, length: u32) -> Option<u16> {
        let slot = offset / self.slot_bytes;
        if slot >= self.slots.into() || offset % self.slot_bytes + u64::from(length) > self.slot_bytes {
            return None;
        }
        // The table has 2^14 slots at most.
        u16::try_from(u64::from(self.first) + slot).ok()
    }
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
        let fixed = Fixed { first: 5, slots: 2, slot_bytes: 1 << 30, shortfall: None };
        let gib = 1 << 30;
        assert_eq!(fixed.slot_of(0, 1 << 30), Some(5));
        assert_eq!(fixed.slot_of(gib - 4096, 4096), Some(5));
        assert_eq!(fixed.slot_of(gib - 4096, 4097), None);
        assert_eq!(fixed.slot_of(gib, 4096), Some(6));
        assert_eq!(fixed.slot_of(2 * gib, 0), None);
        let unregistered = Fixed { slots: 0, ..fixed };
        assert_eq!(unregistered.slot_of(0, 1), None);
    }
}
