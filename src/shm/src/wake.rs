//! A doorbell between threads of one process: an eventfd, whose shared O_NONBLOCK nobody else can reach.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::retry_on_intr;

use crate::sync::Arc;

/// Wakes a thread that polls its descriptor. Clones share it.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<OwnedFd>);

impl Notifier {
    /// A notifier that was not notified.
    pub fn new() -> io::Result<Notifier> {
        Ok(Notifier(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Makes the descriptor readable, until [`Notifier::drain`].
    pub fn notify(&self) {
        // The one error is EAGAIN, from a counter that is full: notified 2^64 - 2 times already.
        let _ = retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
    }

    /// Takes the notifications out. Look at what they were for **after** this.
    pub fn drain(&self) {
        // The one error is EAGAIN: nothing to take.
        let _ = retry_on_intr(|| rustix::io::read(&self.0, &mut [0; 8]));
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
