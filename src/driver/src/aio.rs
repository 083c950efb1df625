//! Linux AIO, for where io_uring is not allowed.
//!
//! A request lives in its slot as an `iocb`, the completions are read from the ring that the kernel maps into the
//! process, and an eventfd wakes whoever sleeps. Any thread may reap: completions are not tied to the
//! submitting task, as they are under io_uring.
//!
//! AIO is asynchronous for O_DIRECT. On a target without it `io_submit` does the I/O itself, so the submitting
//! thread may block on the disk; [`SubmitHalf::info`](crate::SubmitHalf::info) says so.

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
