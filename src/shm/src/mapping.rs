//! Memory that two processes map: memfds, mappings, and what lies in them.
//!
//! Nothing here forms a reference to plain data over a mapping. Words are reached as atomics, data as raw
//! pointers that only the kernel follows; [`crate::arena`] is the one exception, in the client, for buffers that
//! the daemon was not asked to touch.

mod header;
mod memfd;
mod queue;
mod region;
mod rows;

pub use header::{HeaderError, SessionHeader};
pub use memfd::{RegionError, check_memfd, create_memfd};
pub use queue::MappedQueue;
pub use region::{Region, RegionSlice};
pub use rows::Rows;

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::{io, ptr, slice};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::fork::ForkGuard;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A shared, readable and writable mapping of a memfd or file, unmapped on drop.
///
/// Others may write to it at any time. They cannot shorten a sealed memfd; whoever maps an unsealed file vouches
/// that nobody truncates it, else an access raises SIGBUS.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// In the client: tells whether this process is the one that mapped.
    guard: Option<ForkGuard>,
    /// Whether an [`crate::arena::Arena`] hands out parts of it.
    arena: AtomicBool,
}

// SAFETY: the memory is reached through atomics and raw pointers only; the struct itself is immutable but for an
// atomic. Unmapping waits for the last owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a memfd.
    pub fn new(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Mapping> {
        let file_bytes = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        if bytes == 0 || bytes as u64 > file_bytes {
            let text = format!("cannot map {bytes} bytes of a file of {file_bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let base = if bytes < HUGE_PAGE_BYTES { map_anywhere(fd, bytes)? } else { map_aligned(fd, bytes)? };
        Ok(Mapping { base, bytes, guard: None, arena: AtomicBool::new(false) })
    }

    /// Brings the whole huge pages of the `bytes` at `offset` into being, and says how many of these bytes they cover. They stay
    /// huge until somebody punches holes into them; what is then touched comes back in normal pages, so that nobody who
    /// shares the memory can take it away under the others (as pages of hugetlbfs can be). Takes as long as the kernel needs to
    /// zero them.
    ///
    /// # Errors
    /// With what was done before: why the kernel has not made all of them.
    pub fn make_huge(&self, offset: usize, bytes: usize) -> Result<u64, (u64, io::Error)> {
        let end = offset.saturating_add(bytes).min(self.bytes);
        let first = (self.base.as_ptr() as usize + offset).next_multiple_of(HUGE_PAGE_BYTES)
            - self.base.as_ptr() as usize;
        let mut done = 0;
        for at in (first..end).step_by(HUGE_PAGE_BYTES) {
            let Some(start) = self.pointer(at, HUGE_PAGE_BYTES).filter(|_| at + HUGE_PAGE_BYTES <= end)
            else {
                break;
            };
            // Nothing there is nothing to make huge: a write that changes nothing brings the first page.
            if let Some(word) = self.u32(at) {
                word.fetch_or(0, Ordering::Relaxed);
            }
            // SAFETY: the range was just checked to lie within the mapping; COLLAPSE changes no content.
            let made = unsafe { libc::madvise(start.as_ptr().cast(), HUGE_PAGE_BYTES, libc::MADV_COLLAPSE) };
            if made != 0 {
                return Err((done, io::Error::last_os_error()));
            }
            done += HUGE_PAGE_BYTES as u64;
        }
        Ok(done)
    }

    /// As [`Mapping::new`], for a client: a forked child does not get the memory, so that it cannot disturb the
    /// rings, and leaves its address range alone when it drops its copy of this struct.
    pub fn new_client(fd: BorrowedFd<'_>, bytes: usize, guard: &ForkGuard) -> io::Result<Mapping> {
        let mut mapping = Mapping::new(fd, bytes)?;
        // SAFETY: the range was just mapped and is owned by `mapping`; DONTFORK changes nothing in this process.
        unsafe { mm::madvise(mapping.base.as_ptr().cast::<c_void>(), bytes, Advice::LinuxDontFork)? };
        mapping.guard = Some(guard.clone());
        Ok(mapping)
    }

    /// Maps the first `bytes` of a file that nobody truncates: the engine's journal.
    pub fn of_file(file: &File, bytes: usize) -> io::Result<Mapping> {
        Mapping::new(file.as_fd(), bytes)
    }

    /// Length. Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an empty mapping cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The word at byte `offset`; none if it is out of bounds or misaligned.
    #[must_use]
    pub fn u32(&self, offset: usize) -> Option<&AtomicU32> {
        self.u32s(offset, 1)?.first()
    }

    /// `count` words from byte `offset`; none if they are out of bounds or misaligned.
    #[must_use]
    pub fn u32s(&self, offset: usize, count: usize) -> Option<&[AtomicU32]> {
        let start = self.words::<AtomicU32>(offset, count)?;
        // SAFETY: `words` proved bounds and alignment. The mapping outlives the borrow, any bits are a valid u32,
        // and everyone with access to these bytes, in this process or not, accesses them as atomics or behind a raw
        // pointer that only the kernel follows. Buffers of the arena are the exception; `SessionLayout::check` keeps
        // the arena apart from all words that are looked up by a layout.
        Some(unsafe { slice::from_raw_parts(start, count) })
    }

    /// `count` words from byte `offset`; none if they are out of bounds or misaligned.
    #[must_use]
    pub fn u64s(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        let start = self.words::<AtomicU64>(offset, count)?;
        // SAFETY: as in `u32s`.
        Some(unsafe { slice::from_raw_parts(start, count) })
    }

    /// `count` bytes from byte `offset`; none if they are out of bounds.
    #[must_use]
    pub fn u8s(&self, offset: usize, count: usize) -> Option<&[AtomicU8]> {
        let start = self.words::<AtomicU8>(offset, count)?;
        // SAFETY: as in `u32s`.
        Some(unsafe { slice::from_raw_parts(start, count) })
    }

    /// Address of `count` values of `T` at `offset`, if they lie within the mapping and are aligned.
    fn words<T>(&self, offset: usize, count: usize) -> Option<*const T> {
        let bytes = count.checked_mul(size_of::<T>())?;
        if !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        self.pointer(offset, bytes).map(|start| start.cast::<T>().as_ptr().cast_const())
    }

    /// Address of the `bytes` at `offset`, if they lie within the mapping.
    pub(crate) fn pointer(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: offset <= self.bytes, so the result lies in the mapping or one past its end.
        Some(unsafe { self.base.add(offset) })
    }

    /// Whether an arena hands out parts of it as buffers that nobody else may look at.
    pub(crate) fn has_arena(&self) -> bool {
        self.arena.load(Ordering::Relaxed)
    }

    /// Claims the mapping for the one arena that may hand out parts of it.
    pub(crate) fn claim_arena(&self) -> bool {
        !self.arena.swap(true, Ordering::Relaxed)
    }
}

/// Length of a huge page, to which longer mappings are aligned so that they can have some. Bytes.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

fn map_anywhere(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe {
        mm::mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)?
    };
    not_null(base)
}

/// Maps at a multiple of the huge page: into a reservation that is one huge page longer, and given back around it.
fn map_aligned(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<NonNull<u8>> {
    let bytes = bytes.next_multiple_of(4096);
    let room = bytes.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: as in `map_anywhere`; nobody can touch a mapping without permissions.
    let reserved = not_null(unsafe {
        mm::mmap_anonymous(
            ptr::null_mut(),
            room,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?
    })?;
    let before = (reserved.as_ptr() as usize).next_multiple_of(HUGE_PAGE_BYTES) - reserved.as_ptr() as usize;
    let after = room - before - bytes;
    // SAFETY: `before` is less than a huge page, by which the reservation is longer than `bytes`: the new mapping replaces a
    // part of the reservation, which nobody else knows. On an error the reservation is given back whole.
    unsafe {
        let base = reserved.add(before).as_ptr();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let mapped = mm::mmap(base.cast(), bytes, protection, flags, fd, 0);
        if let Err(errno) = mapped {
            let _ = mm::munmap(reserved.as_ptr().cast(), room);
            return Err(errno.into());
        }
        for (start, length) in [(reserved.as_ptr(), before), (base.add(bytes), after)] {
            if length > 0 {
                mm::munmap(start.cast(), length)?;
            }
        }
        not_null(base.cast())
    }
}

fn not_null(base: *mut c_void) -> io::Result<NonNull<u8>> {
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.guard.as_ref().is_some_and(ForkGuard::is_child) {
            // The parent's mapping does not exist here, something else may have its address.
            return;
        }
        // SAFETY: base and bytes are those of mmap. No reference into the mapping is left: all borrow self or
        // hold the Arc around it. An error is not possible for a range that was mapped.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast::<c_void>(), self.bytes) };
    }
}
