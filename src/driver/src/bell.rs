//! What the reaping thread sleeps on, where that is not the ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// An eventfd and the sleeper's announcement. The kernel rings it for its completions, the submit half
/// for those it injects, and then only if the sleeper has announced itself.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    asleep: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd, asleep: AtomicBool::new(false) })
    }

    /// After something was injected: wakes the sleeper, if there is one.
    pub(crate) fn ring(&self) {
        // SYNC: bell (pairs with announce). Either this load sees the announcement, or the sleeper's look
        // after its own fence sees what was injected before this one.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.ring_always();
        }
    }

    /// For a sleeper that does not announce itself.
    pub(crate) fn ring_always(&self) {
        // Only a counter at its limit refuses, and then the descriptor is readable already.
        let _ = write(&self.fd, &1u64.to_ne_bytes());
    }

    /// The caller must look for completions between this and sleeping.
    pub(crate) fn announce(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // SYNC: bell (pairs with ring).
        fence(Ordering::SeqCst);
    }

    pub(crate) fn withdraw(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Makes the descriptor unreadable.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        let _ = read(&self.fd, &mut count);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
