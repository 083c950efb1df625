//! How the engine's own threads, and the threads that command them, wake each other.
//!
//! The same handshake as between client and daemon (ABI.md, "Sleep and wake"): who sleeps says so, fences, and looks once
//! more; who has something to hand over makes it visible, fences, and looks whether the other sleeps. One of the two sees
//! the other.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{
        AtomicU32,
        Ordering::{Relaxed, SeqCst},
        fence,
    },
};

use ferrio_shm::wake::Notifier;

/// What a sleeper waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WaitsFor {
    /// It is awake.
    Nothing = 0,
    /// Only what cannot wait, such as a command.
    Urgent = 1,
    /// Anything.
    Anything = 2,
}

/// Bell of one thread.
pub struct Bell {
    notifier: Notifier,
    waits_for: AtomicU32,
}

impl Bell {
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { notifier: Notifier::new()?, waits_for: AtomicU32::new(WaitsFor::Nothing as u32) })
    }

    /// The owner will sleep. It must look for work once more before it does, and [`Self::retract`] afterwards.
    pub fn announce(&self, waits_for: WaitsFor) {
        self.waits_for.store(waits_for as u32, Relaxed);
        fence(SeqCst); // pairs with the fence in ring()
    }

    /// The owner is awake.
    pub fn retract(&self) {
        self.waits_for.store(WaitsFor::Nothing as u32, Relaxed);
    }

    /// Wakes the owner if it waits for this. Call after the work is visible.
    pub fn ring(&self, urgent: bool) {
        fence(SeqCst); // pairs with the fence in announce()
        let waits_for = self.waits_for.load(Relaxed);
        let wake = waits_for == WaitsFor::Anything as u32 || (urgent && waits_for == WaitsFor::Urgent as u32);
        if wake && self.waits_for.swap(WaitsFor::Nothing as u32, Relaxed) != WaitsFor::Nothing as u32 {
            self.notifier.notify();
        }
    }

    /// The owner saw the descriptor readable.
    pub fn drain(&self) {
        self.notifier.drain();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}
