//! The common part of every submit half: what is in flight and what it pins.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use ferrio_shm::mapping::Region;
use rtrb::Producer;

use crate::arrivals::{Arrivals, Injected};
use crate::bell::Bell;
use crate::driver::{
    Busy, DriverConfig, DriverError, FileIndex, LENGTH_MAX, Op, OpKind, RegionIndex, Reserved,
};
use crate::slab::StableSlab;
use crate::slot_table::SlotTable;
use crate::tag::Tag;
use crate::target::{Target, TargetKind};

const UNPINNED: u32 = u32::MAX;

/// A slot: what its request pins, and what the backend keeps in it (`S`).
#[derive(Debug, Default)]
pub(crate) struct Slot<S> {
    file: u32,
    region: u32,
    pub(crate) own: S,
}

/// What the kernel may use until it has answered. The backends keep it beyond the submit half.
#[derive(Debug)]
pub(crate) struct Pinned<S, R> {
    pub(crate) slots: StableSlab<Slot<S>>,
    pub(crate) files: Vec<Option<FileEntry>>,
    pub(crate) regions: Vec<Option<RegionEntry<R>>>,
}

#[derive(Debug)]
pub(crate) struct FileEntry {
    target: Arc<Target>,
    in_flight: u32,
}

/// A region and what the backend knows about it (`R`).
#[derive(Debug)]
pub(crate) struct RegionEntry<R> {
    pub(crate) region: Region,
    in_flight: u32,
    pub(crate) own: R,
}

/// What the kernel has to do, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) fd: RawFd,
    /// First byte in our memory; dangling for a flush.
    pub(crate) address: *mut u8,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    Kernel(Transfer),
    /// Answered by the driver itself.
    Inline(i32),
}

#[derive(Debug)]
pub(crate) struct Ledger<S, R> {
    pinned: Pinned<S, R>,
    table: Arc<SlotTable>,
    injected: Producer<Injected>,
    /// Injected since the bell was last rung.
    unannounced: bool,
    bell: Option<Arc<Bell>>,
}

impl<S, R> Ledger<S, R> {
    pub(crate) fn new(config: &DriverConfig, bell: Option<Arc<Bell>>) -> (Ledger<S, R>, Arrivals) {
        let table = Arc::new(SlotTable::new(config.depth));
        let (injected, consumer) = rtrb::RingBuffer::new(config.depth as usize);
        let pinned = Pinned {
            slots: StableSlab::new(config.depth),
            files: (0..config.files_max).map(|_| None).collect(),
            regions: (0..config.regions_max).map(|_| None).collect(),
        };
        let arrivals = Arrivals::new(Arc::clone(&table), consumer);
        (Ledger { pinned, table, injected, unannounced: false, bell }, arrivals)
    }

    pub(crate) fn reserve(&mut self, own: S) -> Option<Reserved> {
        let slot = Slot { file: UNPINNED, region: UNPINNED, own };
        self.pinned.slots.insert(slot).ok().map(Reserved)
    }

    pub(crate) fn cancel_reserved(&mut self, slot: Reserved) {
        if !self.table.is_armed(slot.0) {
            self.pinned.slots.remove(slot.0);
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.pinned.slots.len()
    }

    /// Says where the request goes. Whatever `op` holds, a transfer lies within a registered region.
    pub(crate) fn route(&self, op: &Op) -> Route {
        if op.kind == OpKind::Nop {
            return Route::Inline(0);
        }
        let Some(target) = self.file(op.file).map(|entry| &*entry.target) else {
            return Route::Inline(-libc::EBADF);
        };
        let address = if op.kind == OpKind::Flush {
            std::ptr::dangling_mut()
        } else {
            // An offset of all ones would mean "at the file's own position" to io_uring.
            if op.length > LENGTH_MAX || op.offset > i64::MAX.cast_unsigned() {
                return Route::Inline(-libc::EINVAL);
            }
            let Some(entry) = self.region(op.region) else { return Route::Inline(-libc::ENXIO) };
            let Some(slice) = entry.region.slice(op.region_offset, op.length.into()) else {
                return Route::Inline(-libc::EFAULT);
            };
            slice.as_ptr()
        };
        match target.as_fd() {
            Some(fd) => Route::Kernel(Transfer { fd: fd.as_raw_fd(), address }),
            None => Route::Inline(null_result(target, op)),
        }
    }

    /// Pins file and region and lets the reap half believe the answer. Gives `None` if the slot is not a
    /// reserved one of this driver.
    pub(crate) fn arm(&mut self, slot: &Reserved, user: u32, op: &Op, route: Route) -> Option<&mut S> {
        let tag = slot.0;
        if self.table.is_armed(tag) {
            return None;
        }
        let Pinned { slots, files, regions } = &mut self.pinned;
        let slot = slots.get(tag)?;
        if matches!(route, Route::Kernel(_)) {
            let file = files.get_mut(op.file.0 as usize).and_then(Option::as_mut)?;
            if op.kind != OpKind::Flush {
                let region = regions.get_mut(op.region.0 as usize).and_then(Option::as_mut)?;
                region.in_flight += 1;
                slot.region = op.region.0;
            }
            file.in_flight += 1;
            slot.file = op.file.0;
        }
        self.table.arm(tag, user);
        Some(&mut slot.own)
    }

    /// Answers a request that is armed and not in the kernel.
    pub(crate) fn inject(&mut self, tag: Tag, result: i32) {
        // Each slot has at most one answer, and the queue has room for one of every slot.
        let pushed = self.injected.push(Injected { tag, result });
        debug_assert!(pushed.is_ok(), "more injected answers than slots");
        self.unannounced = true;
    }

    /// Injected answers wake the reaping thread from here on.
    pub(crate) fn announce_injected(&mut self) {
        if std::mem::take(&mut self.unannounced)
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
    }

    /// Injected answers that were not reaped yet.
    pub(crate) fn has_injected(&self) -> bool {
        self.injected.slots() < self.injected.buffer().capacity()
    }

    pub(crate) fn release(&mut self, tag: Tag) {
        if self.table.is_armed(tag) {
            return;
        }
        let Pinned { slots, files, regions } = &mut self.pinned;
        let Some(slot) = slots.remove(tag) else { return };
        if let Some(entry) = files.get_mut(slot.file as usize).and_then(Option::as_mut) {
            entry.in_flight -= 1;
        }
        if let Some(entry) = regions.get_mut(slot.region as usize).and_then(Option::as_mut) {
            entry.in_flight -= 1;
        }
    }

    pub(crate) fn register_file(&mut self, target: Arc<Target>) -> Result<FileIndex, DriverError> {
        let files = &mut self.pinned.files;
        let index = vacant(files).ok_or(DriverError::FilesFull { max: files.len() as u32 })?;
        files[index as usize] = Some(FileEntry { target, in_flight: 0 });
        Ok(FileIndex(index))
    }

    pub(crate) fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        take_idle(&mut self.pinned.files, file.0, |entry| entry.in_flight).map(drop)
    }

    /// Enters a region; `own` is made once its index is known to be free.
    pub(crate) fn register_region(
        &mut self,
        region: Region,
        own: impl FnOnce(&Region) -> R,
    ) -> Result<RegionIndex, DriverError> {
        let regions = &mut self.pinned.regions;
        let index = vacant(regions).ok_or(DriverError::RegionsFull { max: regions.len() as u32 })?;
        let own = own(&region);
        regions[index as usize] = Some(RegionEntry { region, in_flight: 0, own });
        Ok(RegionIndex(index))
    }

    /// Takes a region out, for the backend to unpin before it is dropped.
    pub(crate) fn unregister_region(&mut self, region: RegionIndex) -> Result<Option<RegionEntry<R>>, Busy> {
        take_idle(&mut self.pinned.regions, region.0, |entry| entry.in_flight)
    }

    pub(crate) fn region(&self, region: RegionIndex) -> Option<&RegionEntry<R>> {
        self.pinned.regions.get(region.0 as usize)?.as_ref()
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = (u32, &RegionEntry<R>)> {
        (0..).zip(&self.pinned.regions).filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.pinned.files.iter().flatten().map(|entry| &*entry.target)
    }

    fn file(&self, file: FileIndex) -> Option<&FileEntry> {
        self.pinned.files.get(file.0 as usize)?.as_ref()
    }

    /// Everything the kernel may still use and who it owes, for when the submit half goes first.
    pub(crate) fn take_pinned(&mut self) -> (Pinned<S, R>, Arc<SlotTable>) {
        let none = Pinned { slots: StableSlab::new(0), files: Vec::new(), regions: Vec::new() };
        (std::mem::replace(&mut self.pinned, none), Arc::clone(&self.table))
    }
}

fn vacant<T>(entries: &[Option<T>]) -> Option<u32> {
    entries.iter().position(Option::is_none).and_then(|index| u32::try_from(index).ok())
}

fn take_idle<T>(
    entries: &mut [Option<T>],
    index: u32,
    in_flight: impl Fn(&T) -> u32,
) -> Result<Option<T>, Busy> {
    let Some(entry) = entries.get_mut(index as usize) else { return Ok(None) };
    match entry.as_ref().map_or(0, in_flight) {
        0 => Ok(entry.take()),
        in_flight => Err(Busy { in_flight }),
    }
}

/// A null target behaves like a file of its size whose reads leave the memory as it is.
fn null_result(target: &Target, op: &Op) -> i32 {
    debug_assert_eq!(target.kind(), TargetKind::Null);
    let left = target.size_bytes().saturating_sub(op.offset).min(op.length.into());
    // At most LENGTH_MAX.
    let transferred = i32::try_from(left).unwrap_or(i32::MAX);
    match op.kind {
        OpKind::Nop | OpKind::Flush => 0,
        OpKind::Read => transferred,
        OpKind::Write if target.read_only() => -libc::EBADF,
        OpKind::Write if transferred == 0 && op.length > 0 => -libc::ENOSPC,
        OpKind::Write => transferred,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each backend has a slot of its own: AIO's is the iocb and little more, io_uring's holds none.
    #[test]
    fn slots_are_no_larger_than_their_backend_needs() {
        assert_eq!(size_of::<Slot<()>>(), 8);
        assert_eq!(size_of::<Slot<libaio_sys::Iocb>>(), 8 + 64);
    }
}
