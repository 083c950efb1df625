//! The descriptors between a session and the daemon that serves it. A re-attach replaces them, all at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx};
use ferrio_shm::wake::Notifier;

/// As they came with one *Attached*. Queues share it until there is the next.
pub(crate) struct Link {
    /// Counts the links of a session.
    generation: u64,
    lease: OwnedFd,
    /// Towards the daemon.
    doorbells: Vec<DoorbellTx>,
    /// Towards the client, one per queue.
    cq_doorbells: Vec<DoorbellRx>,
    /// Readable, for ever, once there is the next link or the session has ended. Only in a session that is re-attached:
    /// in others the lease itself says so.
    over: Option<Notifier>,
}

impl Link {
    pub(crate) fn new(
        generation: u64,
        lease: OwnedFd,
        doorbells: Vec<OwnedFd>,
        cq_doorbells: Vec<OwnedFd>,
        watched: bool,
    ) -> io::Result<Self> {
        // From here on nothing that reads it blocks.
        rustix::io::ioctl_fionbio(&lease, true)?;
        Ok(Link {
            generation,
            lease,
            doorbells: doorbells.into_iter().map(DoorbellTx::from_fd).collect(),
            cq_doorbells: cq_doorbells.into_iter().map(DoorbellRx::from_fd).collect(),
            over: if watched { Some(Notifier::new()?) } else { None },
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn lease(&self) -> BorrowedFd<'_> {
        self.lease.as_fd()
    }

    /// What a sleeping queue polls beside its doorbell.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.over.as_ref().map_or(self.lease.as_fd(), AsFd::as_fd)
    }

    pub(crate) fn doorbells(&self) -> usize {
        self.doorbells.len()
    }

    pub(crate) fn queues(&self) -> usize {
        self.cq_doorbells.len()
    }

    /// Wakes the daemon for the queues behind this doorbell.
    pub(crate) fn ring(&self, doorbell: usize) -> io::Result<()> {
        self.doorbells[doorbell].ring()
    }

    pub(crate) fn ring_all(&self) {
        for doorbell in &self.doorbells {
            // A daemon that does not hear it closes the lease, too.
            let _ = doorbell.ring();
        }
    }

    /// By which the daemon wakes this queue.
    pub(crate) fn cq_doorbell(&self, queue: u32) -> &DoorbellRx {
        &self.cq_doorbells[queue as usize]
    }

    /// Wakes whoever sleeps on it, and lets nobody sleep on it again.
    pub(crate) fn end(&self) {
        // Whoever is just going to sleep finds either of them readable, now and for ever.
        let _ = rustix::net::shutdown(&self.lease, rustix::net::Shutdown::Read);
        if let Some(over) = &self.over {
            over.notify();
        }
    }
}
