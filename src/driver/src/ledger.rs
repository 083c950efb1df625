//! The common part of every submit half: what is in flight and what it pins.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use ferrio_shm::mapping::{Region, RegionSlice};
use rtrb::Producer;

use crate::arrivals::{Arrivals, Injected};
use crate::bell::Bell;
use crate::driver::{
    Busy, DriverConfig, DriverError, FileIndex, LENGTH_MAX, Op, OpKind, RegionIndex, Reserved, SEGMENTS_MAX,
    Segment, VECTORED_MAX,
};
use crate::helpers::Results;
use crate::iovecs::Iovecs;
use crate::payload::Payload;
use crate::slab::StableSlab;
use crate::slot_table::SlotTable;
use crate::tag::Tag;
use crate::target::{Method, Target, TargetKind};

const UNPINNED: u32 = u32::MAX;
/// Set in [`Slot::memory`]: a block of iovecs, not a region.
const BLOCK: u32 = 1 << 31;

/// A slot: what its request pins, and what the backend keeps in it (`S`).
#[derive(Debug, Default)]
pub(crate) struct Slot<S> {
    file: u32,
    /// A region, or the block with the iovec of a vectored request, which knows its regions.
    memory: u32,
    pub(crate) own: S,
}

/// What the kernel may use until it has answered. The backends keep it beyond the submit half.
#[derive(Debug)]
pub(crate) struct Pinned<S, R> {
    pub(crate) slots: StableSlab<Slot<S>>,
    pub(crate) files: Vec<Option<FileEntry>>,
    pub(crate) regions: Vec<Option<RegionEntry<R>>>,
    iovecs: Iovecs,
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
    /// First byte in our memory; dangling for what moves no data.
    pub(crate) address: *mut u8,
}

/// Where a vectored request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gathered {
    /// Its iovec stands in the block.
    Kernel { fd: RawFd, block: u32 },
    /// Answered by the driver itself.
    Inline(i32),
    /// All blocks are taken.
    Full,
}

/// The vectored request was not armed: all blocks are taken, or its slot is not a reserved one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRoom;

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
    pub(crate) fn new(
        config: &DriverConfig,
        bell: Option<Arc<Bell>>,
        results: Option<Results>,
    ) -> (Ledger<S, R>, Arrivals) {
        let table = Arc::new(SlotTable::new(config.depth));
        let (injected, consumer) = rtrb::RingBuffer::new(config.depth as usize);
        let pinned = Pinned {
            slots: StableSlab::new(config.depth),
            files: (0..config.files_max).map(|_| None).collect(),
            regions: (0..config.regions_max.min(BLOCK)).map(|_| None).collect(),
            iovecs: Iovecs::new(config.depth.min(VECTORED_MAX)),
        };
        let arrivals = Arrivals::new(Arc::clone(&table), consumer, results);
        (Ledger { pinned, table, injected, unannounced: false, bell }, arrivals)
    }

    pub(crate) fn reserve(&mut self, own: S) -> Option<Reserved> {
        let slot = Slot { file: UNPINNED, memory: UNPINNED, own };
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
        // An offset of all ones would mean "at the file's own position" to io_uring.
        let out_of_range = op.length > LENGTH_MAX || op.offset > i64::MAX.cast_unsigned();
        let address = match op.kind {
            OpKind::Nop | OpKind::Flush => std::ptr::dangling_mut(),
            _ if out_of_range => return Route::Inline(-libc::EINVAL),
            OpKind::Read | OpKind::Write => match self.memory(op.region, op.region_offset, op.length) {
                Ok(memory) => memory.as_ptr(),
                Err(errno) => return Route::Inline(-errno),
            },
            OpKind::Discard | OpKind::WriteZeroes => match target.method(op.kind) {
                Method::Unsupported => return Route::Inline(-libc::EOPNOTSUPP),
                _ => std::ptr::dangling_mut(),
            },
        };
        match target.as_fd() {
            Some(fd) => Route::Kernel(Transfer { fd: fd.as_raw_fd(), address }),
            None => Route::Inline(null_result(target, op)),
        }
    }

    /// Says where a vectored request goes. Whatever the segments hold, those in the block lie within registered regions; a
    /// block that is not armed is to be given back.
    pub(crate) fn gather(&mut self, op: &Op, segments: &[Segment]) -> Gathered {
        let Some(target) = self.file(op.file).map(|entry| &*entry.target) else {
            return Gathered::Inline(-libc::EBADF);
        };
        let length: u64 = segments.iter().map(|segment| u64::from(segment.length)).sum();
        let fits = (1..=SEGMENTS_MAX).contains(&segments.len())
            && matches!(op.kind, OpKind::Read | OpKind::Write)
            && length == u64::from(op.length)
            && op.length <= LENGTH_MAX
            && op.offset <= i64::MAX.cast_unsigned();
        if !fits {
            return Gathered::Inline(-libc::EINVAL);
        }
        let target = target.as_fd().map(|fd| fd.as_raw_fd()).ok_or_else(|| null_result(target, op));
        let Some(block) = self.pinned.iovecs.take() else { return Gathered::Full };
        let filled = self.fill(block, segments);
        match (filled, target) {
            (Ok(()), Ok(fd)) => Gathered::Kernel { fd, block },
            (Err(errno), _) => {
                self.give_block(block);
                Gathered::Inline(-errno)
            }
            (Ok(()), Err(result)) => {
                self.give_block(block);
                Gathered::Inline(result)
            }
        }
    }

    fn fill(&mut self, block: u32, segments: &[Segment]) -> Result<(), i32> {
        let Pinned { regions, iovecs, .. } = &mut self.pinned;
        for segment in segments {
            let memory = slice(regions, segment.region, segment.offset, segment.length)?;
            iovecs.push(block, segment.region.0, memory);
        }
        Ok(())
    }

    /// Gives back a block that was not armed.
    pub(crate) fn give_block(&mut self, block: u32) {
        self.pinned.iovecs.give(block);
    }

    /// Arms a vectored request and says what the kernel has to do, through an iovec that is valid until the request is
    /// released. `None`: it is answered.
    pub(crate) fn arm_vectored(
        &mut self,
        slot: &Reserved,
        user: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<Option<Payload>, NoRoom> {
        match self.gather(op, segments) {
            Gathered::Full => Err(NoRoom),
            Gathered::Inline(result) => {
                self.arm(slot, user, op, Route::Inline(result)).ok_or(NoRoom)?;
                self.inject(slot.0, result);
                Ok(None)
            }
            Gathered::Kernel { fd, block } => {
                if self.arm_block(slot, user, op, block).is_none() {
                    self.give_block(block);
                    return Err(NoRoom);
                }
                Ok(Some(Payload::vectored(op, fd, self.pinned.iovecs.iovec(block))))
            }
        }
    }

    /// As [`arm`](Self::arm), for a request whose iovec stands in `block`.
    fn arm_block(&mut self, slot: &Reserved, user: u32, op: &Op, block: u32) -> Option<&mut S> {
        let tag = slot.0;
        if self.table.is_armed(tag) {
            return None;
        }
        let Pinned { slots, files, regions, iovecs } = &mut self.pinned;
        let slot = slots.get(tag)?;
        let file = files.get_mut(op.file.0 as usize).and_then(Option::as_mut)?;
        for &region in iovecs.regions(block) {
            if let Some(entry) = regions.get_mut(region as usize).and_then(Option::as_mut) {
                entry.in_flight += 1;
            }
        }
        file.in_flight += 1;
        (slot.file, slot.memory) = (op.file.0, BLOCK | block);
        self.table.arm(tag, user);
        Some(&mut slot.own)
    }

    /// Pins file and region and lets the reap half believe the answer. Gives `None` if the slot is not a
    /// reserved one of this driver.
    pub(crate) fn arm(&mut self, slot: &Reserved, user: u32, op: &Op, route: Route) -> Option<&mut S> {
        let tag = slot.0;
        if self.table.is_armed(tag) {
            return None;
        }
        let Pinned { slots, files, regions, .. } = &mut self.pinned;
        let slot = slots.get(tag)?;
        if matches!(route, Route::Kernel(_)) {
            let file = files.get_mut(op.file.0 as usize).and_then(Option::as_mut)?;
            if matches!(op.kind, OpKind::Read | OpKind::Write) {
                let region = regions.get_mut(op.region.0 as usize).and_then(Option::as_mut)?;
                region.in_flight += 1;
                slot.memory = op.region.0;
            }
            file.in_flight += 1;
            slot.file = op.file.0;
        }
        self.table.arm(tag, user);
        Some(&mut slot.own)
    }

    /// What the backend keeps in a slot.
    pub(crate) fn own(&mut self, tag: Tag) -> Option<&mut S> {
        self.pinned.slots.get(tag).map(|slot| &mut slot.own)
    }

    /// A helper answers this request, which is armed.
    pub(crate) fn hand_over(&mut self, tag: Tag) {
        let handed_over = self.table.hand_over(tag);
        debug_assert!(handed_over, "it was just armed");
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
        let Pinned { slots, files, regions, .. } = &mut self.pinned;
        let Some(slot) = slots.remove(tag) else { return };
        if let Some(entry) = files.get_mut(slot.file as usize).and_then(Option::as_mut) {
            entry.in_flight -= 1;
        }
        if let Some(entry) = regions.get_mut(slot.memory as usize).and_then(Option::as_mut) {
            entry.in_flight -= 1;
        } else if slot.memory != UNPINNED {
            self.release_block(slot.memory & !BLOCK);
        }
    }

    fn release_block(&mut self, block: u32) {
        let Pinned { regions, iovecs, .. } = &mut self.pinned;
        for &region in iovecs.regions(block) {
            if let Some(entry) = regions.get_mut(region as usize).and_then(Option::as_mut) {
                entry.in_flight -= 1;
            }
        }
        iovecs.give(block);
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

    pub(crate) fn region_mut(&mut self, region: RegionIndex) -> Option<&mut RegionEntry<R>> {
        self.pinned.regions.get_mut(region.0 as usize)?.as_mut()
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = (u32, &RegionEntry<R>)> {
        (0..).zip(&self.pinned.regions).filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.pinned.files.iter().flatten().map(|entry| &*entry.target)
    }

    /// The target of a registered file.
    pub(crate) fn target(&self, file: FileIndex) -> Option<&Target> {
        self.file(file).map(|entry| &*entry.target)
    }

    fn memory(&self, region: RegionIndex, offset: u64, length: u32) -> Result<RegionSlice<'_>, i32> {
        slice(&self.pinned.regions, region, offset, length)
    }

    fn file(&self, file: FileIndex) -> Option<&FileEntry> {
        self.pinned.files.get(file.0 as usize)?.as_ref()
    }

    /// Everything the kernel may still use and who it owes, for when the submit half goes first.
    pub(crate) fn take_pinned(&mut self) -> (Pinned<S, R>, Arc<SlotTable>) {
        let none = Pinned {
            slots: StableSlab::new(0),
            files: Vec::new(),
            regions: Vec::new(),
            iovecs: Iovecs::new(0),
        };
        (std::mem::replace(&mut self.pinned, none), Arc::clone(&self.table))
    }
}

/// A stretch of a registered region, or the errno that says why not.
fn slice<R>(
    regions: &[Option<RegionEntry<R>>],
    region: RegionIndex,
    offset: u64,
    length: u32,
) -> Result<RegionSlice<'_>, i32> {
    let entry = regions.get(region.0 as usize).and_then(Option::as_ref).ok_or(libc::ENXIO)?;
    entry.region.slice(offset, length.into()).ok_or(libc::EFAULT)
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
        OpKind::Nop | OpKind::Flush | OpKind::Discard | OpKind::WriteZeroes => 0,
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
        let (uring, aio) = (size_of::<Slot<()>>(), size_of::<Slot<libaio_sys::Iocb>>());
        eprintln!("bytes of a slot: {uring} under io_uring, {aio} under AIO");
        assert_eq!(uring, 8);
        assert_eq!(aio, 8 + 64);
    }
}
