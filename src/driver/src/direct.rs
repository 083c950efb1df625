//! What a process can do itself, without a daemon: the peers that `ferrioctl bench` compares ferrio with.
//!
//! Each is a [`DirectQueue`] for one thread: a fixed number of slots with one buffer each, everything staged leaves with
//! one system call, and nothing is allocated per request. The file is opened without a lock, because ferriod holds it.
//!
//! | queue | what it uses | how it waits |
//! |---|---|---|
//! | [`UringQueue`] | registered file and buffers, COOP_TASKRUN, TASKRUN_FLAG, SINGLE_ISSUER | sleeps in `io_uring_enter`, or spins on the CQ |
//! | [`AioQueue`] | `io_submit` and `io_getevents`, without libaio | sleeps in `io_getevents` |
//! | [`SyncQueue`] | `pread` and `pwrite` | in the call; more requests at once need more threads |

mod aio;
mod file;
mod slots;
mod sync;
mod uring;

use std::io;

pub use aio::AioQueue;
pub use file::DirectFile;
pub use sync::SyncQueue;
pub use uring::{UringQueue, UringWait};

/// Most bytes of the buffers of one queue: one registered buffer holds no more.
pub const BUFFER_BYTES_MAX: usize = 1 << 30;

/// A read into, or a write of, the whole buffer of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Whose buffer. Nothing else of this slot is in flight.
    pub slot: u32,
    /// Write, else read.
    pub write: bool,
    /// Where in the file. Bytes.
    pub offset: u64,
}

/// The answer to a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Slot of the transfer: free again.
    pub slot: u32,
    /// Bytes, or a negative errno.
    pub result: i32,
}

/// A queue of direct I/O.
pub trait DirectQueue {
    /// Data of a slot.
    ///
    /// # Panics
    /// There is no such slot, or its transfer is in flight.
    fn buffer(&mut self, slot: u32) -> &mut [u8];

    /// Takes a transfer; it is issued by the next [`wait`](Self::wait).
    ///
    /// # Panics
    /// There is no such slot, or its last transfer is in flight.
    fn stage(&mut self, transfer: Transfer);

    /// Issues what was staged, waits until something is done, and appends all that is.
    fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
