//! Payloads of requests in the kernel, for the reap half to hand to a helper if the kernel would have to wait.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

use crate::payload::Payload;
use crate::tag::Tag;

/// One cell per slot. It belongs to the submit half until the request is committed, and to the reap half from the kernel's
/// answer on: the kernel's completion ring orders the two, and the slot table says which answer is of which request.
#[derive(Debug)]
pub(super) struct Parked {
    cells: Box<[UnsafeCell<MaybeUninit<Payload>>]>,
}

// SAFETY: see `Parked`; the two functions are unsafe for this.
unsafe impl Sync for Parked {}

impl Parked {
    pub(super) fn new(slots: u32) -> Parked {
        Parked { cells: (0..slots).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect() }
    }

    /// # Safety
    ///
    /// The caller is the submit half, the request is armed and not yet committed.
    pub(super) unsafe fn put(&self, tag: Tag, payload: Payload) {
        if let Some(cell) = self.cells.get(tag.index() as usize) {
            // SAFETY: the caller's promise: nobody else accesses the cell.
            unsafe { cell.get().write(MaybeUninit::new(payload)) };
        }
    }

    /// # Safety
    ///
    /// The caller is the reap half, the kernel has answered the request and nobody else has, and its payload was put.
    pub(super) unsafe fn get(&self, tag: Tag) -> Option<Payload> {
        let cell = self.cells.get(tag.index() as usize)?;
        // SAFETY: the caller's promise: the cell is initialised, and not written before the request is released.
        Some(unsafe { cell.get().read().assume_init() })
    }
}
