//! Linux AIO, for where io_uring is not allowed.
//!
//! A request lives in its slot as an `iocb`, the completions are read from the ring that the kernel maps into the
//! process, and an eventfd wakes whoever sleeps. Any thread may reap: completions are not tied to the
//! submitting task, as they are under io_uring.
//!
//! What `io_submit` would sleep for goes to the helper pool, so that the submitting thread never does:
//!
//! | request | target | where it is done |
//! |---|---|---|
//! | read, write | direct, and takes `RWF_NOWAIT` | kernel; a helper, if it answers EAGAIN: an allocating write, a large one, a full device queue |
//! | read, write | not direct, or does not take it | helper |
//! | read, write | memory | kernel, inside `io_submit`: nothing there sleeps on a disk |
//! | flush | any | kernel, on a thread of its own |
//! | discard, write-zeroes | any | helper |

mod parked;
mod reap;
mod setup;
mod submit;

use crate::driver::{Driver, DriverConfig, DriverError};

pub use reap::AioReap;
pub(crate) use setup::probe;
pub use submit::AioSubmit;

/// The AIO backend.
#[derive(Debug)]
pub struct Aio;

impl Driver for Aio {
    const NAME: &'static str = "aio";
    type Submit = AioSubmit;
    type Reap = AioReap;

    fn open(config: &DriverConfig) -> Result<(AioSubmit, AioReap), DriverError> {
        setup::open(config)
    }
}

#[cfg(test)]
mod tests;
