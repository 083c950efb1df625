//! A context, split into what submits and what reaps.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::abi::{IoEvent, Iocb, RING_MAGIC, RingHeader};
use crate::calls::{self, ContextId};

/// The submitting end. The context ends when both ends are dropped; that waits for the requests in flight.
#[derive(Debug)]
pub struct Context {
    shared: Arc<Shared>,
    ring: Option<Ring>,
}

/// The reaping end; there is one, because the ring has one head.
pub struct Reaper {
    shared: Arc<Shared>,
    ring: Option<Ring>,
}

#[derive(Debug)]
struct Shared {
    id: ContextId,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: both ends hold an Arc of this, so neither is left.
        let _ = unsafe { calls::io_destroy(self.id) };
    }
}

impl Context {
    /// Sets a context up for `entries` requests in flight.
    pub fn setup(entries: u32) -> io::Result<(Context, Reaper)> {
        let id = calls::io_setup(entries)?;
        let shared = Arc::new(Shared { id });
        // SAFETY: the context was just made, and `shared` keeps it for as long as the ring is used.
        let ring = unsafe { Ring::of(id) };
        Ok((Context { shared: Arc::clone(&shared), ring }, Reaper { shared, ring }))
    }

    /// `io_submit`: says how many requests the kernel took, from the front.
    ///
    /// # Safety
    ///
    /// See [`calls::io_submit`].
    pub unsafe fn submit(&self, iocbs: &[*mut Iocb]) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { calls::io_submit(self.shared.id, iocbs) }
    }

    /// No completion is there; never said where the ring cannot be read in user space.
    pub fn is_empty(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::is_empty)
    }

    /// The ring is of the layout that can be read in user space.
    pub fn is_mapped(&self) -> bool {
        self.ring.is_some()
    }
}

impl Reaper {
    /// Hands at most `max` completions to `take`, without a system call where the ring can be read in user
    /// space ([`is_mapped`](Self::is_mapped)). Never blocks.
    pub fn reap(&mut self, max: usize, take: impl FnMut(IoEvent)) -> usize {
        match &mut self.ring {
            Some(ring) => ring.reap(max, take),
            None => self.getevents(max, take),
        }
    }

    /// No completion is there; never said where the ring cannot be read in user space, so that the caller reaps.
    pub fn is_empty(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::is_empty)
    }

    /// The ring is of the layout that can be read in user space.
    pub fn is_mapped(&self) -> bool {
        self.ring.is_some()
    }

    /// Waits at most `timeout_ms` for a completion to be there, and hands it to `take`.
    pub fn wait(&mut self, timeout_ms: u32, take: impl FnOnce(IoEvent)) -> io::Result<bool> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::from(timeout_ms / 1000),
            tv_nsec: libc::c_long::from(timeout_ms % 1000) * 1_000_000,
        };
        let mut event = [IoEvent::default()];
        let found = calls::io_getevents(self.shared.id, 1, &mut event, Some(&timeout))? == 1;
        if found {
            take(event[0]);
        }
        Ok(found)
    }

    fn getevents(&mut self, max: usize, mut take: impl FnMut(IoEvent)) -> usize {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = [IoEvent::default(); 64];
        let mut taken = 0;
        while taken < max {
            let room = (max - taken).min(events.len());
            // An error leaves the completions where they are; the next call finds them.
            let read = calls::io_getevents(self.shared.id, 0, &mut events[..room], Some(&now)).unwrap_or(0);
            events[..read].iter().copied().for_each(&mut take);
            taken += read;
            if read < room {
                break;
            }
        }
        taken
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").field("context", &self.shared.id).field("mapped", &self.is_mapped()).finish()
    }
}

/// The completion ring that the kernel maps into the process at the address of the context. The Reaper moves
/// its head; the Context only looks.
#[derive(Clone, Copy, Debug)]
struct Ring {
    header: NonNull<RingHeader>,
    entries: u32,
}

// SAFETY: the ring is memory of the process, whichever thread reads it; its indices are accessed as atomics,
// its events by the one Reaper, through `&mut self`.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// `None`: the layout is not the one known here.
    ///
    /// # Safety
    ///
    /// The context exists, and goes on existing for as long as the ring is used.
    unsafe fn of(id: ContextId) -> Option<Ring> {
        let header = NonNull::new(std::ptr::with_exposed_provenance_mut::<RingHeader>(id.0))?;
        if !header.is_aligned() {
            return None;
        }
        // SAFETY: io_setup maps the ring, header first, readable and writable at the address that it gives out
        // as the context; what is read here is set once, before io_setup returns.
        let (magic, incompat_features, header_bytes, entries) = unsafe {
            let header = header.as_ptr();
            (
                (&raw const (*header).magic).read(),
                (&raw const (*header).incompat_features).read(),
                (&raw const (*header).header_bytes).read(),
                (&raw const (*header).entries).read(),
            )
        };
        let known = magic == RING_MAGIC
            && incompat_features == 0
            && header_bytes as usize == size_of::<RingHeader>()
            && entries > 0;
        known.then_some(Ring { header, entries })
    }

    fn head(&self) -> &AtomicU32 {
        // SAFETY: aligned memory of the mapped ring (see `of`), reached by reference only through these two
        // functions; the kernel accesses it as a word.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.header.as_ptr()).head) }
    }

    fn tail(&self) -> &AtomicU32 {
        // SAFETY: as for `head`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.header.as_ptr()).tail) }
    }

    fn is_empty(&self) -> bool {
        // SYNC: aio-completion (pairs with smp_wmb before the tail store in aio_complete).
        self.head().load(Ordering::Relaxed) == self.tail().load(Ordering::Acquire)
    }

    fn reap(&mut self, max: usize, mut take: impl FnMut(IoEvent)) -> usize {
        let mut head = self.head().load(Ordering::Relaxed);
        // SYNC: aio-completion (pairs with smp_wmb before the tail store in aio_complete).
        let tail = self.tail().load(Ordering::Acquire);
        let mut taken = 0;
        while taken < max && head != tail && head < self.entries {
            // SAFETY: the events follow the header, `entries` of them, and `head` is below that. The kernel wrote
            // this one before it moved the tail past it and leaves it alone until the head has passed it.
            take(unsafe { self.header.add(1).cast::<IoEvent>().add(head as usize).read_volatile() });
            head = if head + 1 == self.entries { 0 } else { head + 1 };
            taken += 1;
        }
        if taken > 0 {
            // SYNC: aio-room (the kernel reads the head before it reuses an entry).
            self.head().store(head, Ordering::Release);
        }
        taken
    }
}

#[cfg(test)]
mod tests;
