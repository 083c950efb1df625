//! The buffers of a queue, and which of them the kernel has.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::slice;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::BUFFER_BYTES_MAX;

/// Slots with one buffer each, in one mapping.
#[derive(Debug)]
pub(super) struct Slots {
    start: NonNull<u8>,
    slot_bytes: usize,
    busy: Box<[bool]>,
    in_flight: u32,
}

impl Slots {
    /// `count` buffers of `slot_bytes`, all pages of them there already. Each begins at a multiple of the largest
    /// power of two that divides `slot_bytes`, the first one at a page.
    pub(super) fn new(count: u32, slot_bytes: usize) -> io::Result<Slots> {
        let bytes = (count as usize).checked_mul(slot_bytes).filter(|&bytes| bytes <= BUFFER_BYTES_MAX);
        let Some(bytes) = bytes.filter(|&bytes| bytes > 0) else {
            let text = format!("{count} buffers of {slot_bytes} bytes: 1 to {BUFFER_BYTES_MAX} bytes in all");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping, at an address of the kernel's choice, aliases nothing.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Slots { start, slot_bytes, busy: vec![false; count as usize].into(), in_flight: 0 })
    }

    pub(super) fn count(&self) -> u32 {
        self.busy.len() as u32
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// All of the memory, for registering it.
    pub(super) fn whole(&self) -> libc::iovec {
        libc::iovec { iov_base: self.start.as_ptr().cast(), iov_len: self.bytes() }
    }

    fn bytes(&self) -> usize {
        self.busy.len() * self.slot_bytes
    }

    fn address(&self, slot: u32) -> *mut u8 {
        assert!((slot as usize) < self.busy.len(), "slot {slot} of {}", self.busy.len());
        // SAFETY: a slot below the count lies in the mapping.
        unsafe { self.start.as_ptr().add(slot as usize * self.slot_bytes) }
    }

    pub(super) fn buffer(&mut self, slot: u32) -> &mut [u8] {
        let start = self.address(slot);
        assert!(!self.busy[slot as usize], "slot {slot} is in flight");
        // SAFETY: mapped memory of this slot alone, which `&mut self` reaches alone: the kernel does not have it.
        unsafe { slice::from_raw_parts_mut(start, self.slot_bytes) }
    }

    /// The memory of a slot, for the kernel, until [`give_back`](Self::give_back).
    pub(super) fn lend(&mut self, slot: u32) -> *mut u8 {
        let start = self.address(slot);
        assert!(!self.busy[slot as usize], "slot {slot} is in flight");
        self.busy[slot as usize] = true;
        self.in_flight += 1;
        start
    }

    /// The kernel has answered. False: it never had that slot.
    pub(super) fn give_back(&mut self, slot: u32) -> bool {
        let was_busy = self.busy.get_mut(slot as usize).is_some_and(std::mem::take);
        self.in_flight -= u32::from(was_busy);
        was_busy
    }
}

impl Drop for Slots {
    /// Memory that the kernel may still write to is left where it is.
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: the mapping made in `new`; nobody has a part of it.
            let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.bytes()) };
        }
    }
}
