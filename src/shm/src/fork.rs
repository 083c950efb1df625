//! Tells a forked child that the session is its parent's.
//!
//! Session memory is not mapped in a child (MADV_DONTFORK), so touching it there would crash, or worse, hit
//! whatever was mapped at its address since. Every way to it in the client asks this guard first.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::{io, ptr};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::sync::{Arc, AtomicU32, Ordering};

const PAGE_BYTES: usize = 4096;
const PARENT: u32 = 1;

/// A page that the kernel wipes in a forked child. Clones share it.
#[derive(Clone, Debug)]
pub struct ForkGuard(Arc<WipedPage>);

#[derive(Debug)]
struct WipedPage(NonNull<AtomicU32>);

// SAFETY: the page is private to this process, holds one atomic, and is unmapped by the last owner.
unsafe impl Send for WipedPage {}
// SAFETY: as above.
unsafe impl Sync for WipedPage {}

impl ForkGuard {
    /// Marks the calling process as the owner.
    pub fn new() -> io::Result<ForkGuard> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let page = unsafe { mm::mmap_anonymous(ptr::null_mut(), PAGE_BYTES, protection, MapFlags::PRIVATE)? };
        let page = NonNull::new(page).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        let guard = ForkGuard(Arc::new(WipedPage(page.cast())));
        // SAFETY: the page was just mapped and nothing is in it yet.
        unsafe { mm::madvise(page.as_ptr(), PAGE_BYTES, Advice::LinuxWipeOnFork)? };
        guard.0.marker().store(PARENT, Ordering::Relaxed);
        Ok(guard)
    }

    /// Whether it is a clone of the other.
    #[must_use]
    pub fn is_same(&self, other: &ForkGuard) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether this process was forked from the one that made the guard.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.0.marker().load(Ordering::Relaxed) != PARENT
    }
}

impl WipedPage {
    fn marker(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped, in a child too, until drop; any bits are a valid u32.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for WipedPage {
    fn drop(&mut self) {
        // SAFETY: the page is this struct's own, in a child the child's own copy, and no borrow of it is left.
        let _ = unsafe { mm::munmap(self.0.as_ptr().cast::<c_void>(), PAGE_BYTES) };
    }
}
