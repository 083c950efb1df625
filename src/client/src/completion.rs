//! The answer to a request.

use ferrio_shm::abi::cqe_flags;

use crate::{Buffer, RequestError};

/// Names a request from its submission to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub(crate) u64);

impl Ticket {
    /// Place of the request in its queue: below the queue's CQ entries, and nobody else's until it is completed.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    /// The `user_data` that the daemon sees.
    #[must_use]
    pub fn user_data(self) -> u64 {
        self.0
    }
}

/// The one answer to a request.
#[derive(Debug)]
pub struct Completion {
    /// The request's ticket.
    pub ticket: Ticket,
    /// The request's [`tag`](crate::Request::tag).
    pub tag: u64,
    /// Bytes moved. A read or write moves all of its bytes or fails.
    pub result: Result<u32, RequestError>,
    /// The request's buffer. `None`: it had none, or the session ended first and the kernel may still use it.
    pub buffer: Option<Buffer>,
    /// `cqe_flags` of the ABI.
    pub flags: u32,
}

impl Completion {
    /// The request was in flight when the daemon restarted, and was done again.
    #[must_use]
    pub fn replayed(&self) -> bool {
        self.flags & cqe_flags::REPLAYED != 0
    }

    /// The request went to the device together with its neighbours.
    #[must_use]
    pub fn merged(&self) -> bool {
        self.flags & cqe_flags::MERGED != 0
    }

    /// The request's timeout passed after it was given to the device.
    #[must_use]
    pub fn overdue(&self) -> bool {
        self.flags & cqe_flags::OVERDUE != 0
    }
}
