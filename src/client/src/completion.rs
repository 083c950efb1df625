//! The answer to a request.

use ferrio_shm::abi::cqe_flags;

use crate::error::{Error, IoFailure};
use crate::{Buffer, Errno, IoVec, RequestError};

/// Names a request from its submission to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub(crate) u64);

impl Ticket {
    /// Place of the request in its queue: below the queue's CQ entries, and nobody else's until it is completed.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// Index of its queue in the session.
    #[must_use]
    pub fn queue(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
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
    /// The list of a readv or writev, with its buffers; `None` as above.
    pub iovec: Option<IoVec>,
    /// `cqe_flags` of the ABI.
    pub flags: u32,
}

impl Completion {
    /// A restarted daemon has taken the request over, and may have issued it again.
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

/// What became of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The request did not happen: it answers [`Errno::ECANCELED`].
    Yes,
    /// It was given to the device, and goes on as if nothing had been said.
    TooLate,
    /// It was answered before.
    NotFound,
}

impl Cancelled {
    pub(crate) fn from_answer(answer: Result<Completion, IoFailure>) -> Result<Self, Error> {
        match answer.map_err(Error::from) {
            Ok(_) => Ok(Cancelled::Yes),
            Err(error) if error.errno() == Some(Errno::EALREADY) => Ok(Cancelled::TooLate),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Cancelled::NotFound),
            Err(error) => Err(error),
        }
    }
}
