//! io_uring.
//!
//! | file | what it holds |
//! |---|---|
//! | `ring.rs` | set-up and its fallbacks, what both halves share, the drain at the end |
//! | `submit.rs` | the submit half: SQEs, commit, sleeping inside the ring |
//! | `reap.rs` | the reap half |
//! | `fixed.rs` | regions as registered buffers |
//! | `pinning.rs` | pins and unpins them part by part |
//!
//! | Linux | what for |
//! |---|---|
//! | 5.11 | needed: timeouts of `io_uring_enter` (EXT_ARG) |
//! | 5.18 | SUBMIT_ALL: a refused request does not end its batch |
//! | 5.19 | COOP_TASKRUN and TASKRUN_FLAG; registered buffers (sparse table) |
//! | 6.15 | READV_FIXED and WRITEV_FIXED: registered buffers for vectored requests |
//!
//! What an older kernel lacks stands in [`DriverInfo::degraded`](crate::DriverInfo::degraded).
//!
//! Which thread touches what: the submission queue and its tail belong to the submit half, the completion
//! queue and its head to the reap half, and the kernel's own side of each is atomic. That is the discipline of
//! `submission_shared` and `completion_shared`.

mod fixed;
mod pinning;
mod reap;
mod ring;
mod submit;

use crate::driver::{Driver, DriverConfig, DriverError};

pub use reap::UringReap;
pub(crate) use ring::probe;
pub use submit::UringSubmit;

/// The io_uring backend.
#[derive(Debug)]
pub struct Uring;

impl Driver for Uring {
    const NAME: &'static str = "io_uring";
    type Submit = UringSubmit;
    type Reap = UringReap;

    fn open(config: &DriverConfig) -> Result<(UringSubmit, UringReap), DriverError> {
        ring::open(config)
    }
}

#[cfg(test)]
mod tests;
