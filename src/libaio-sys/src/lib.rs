//! The Linux AIO kernel ABI, without libaio.
//!
//! * [`abi`]: `struct iocb` and `struct io_event` of `linux/aio_abi.h`, opcodes and flags.
//! * [`calls`]: the system calls, with their errno as [`std::io::Error`]: the C library's `syscall` returns -1
//!   and sets errno, the kernel's own convention of a negative result is never seen.
//! * [`Context`] and [`Reaper`]: a context whose completions are read from the ring that the kernel maps into the
//!   process, without a system call.

pub mod abi;
pub mod calls;
mod context;

pub use abi::{IoEvent, Iocb};
pub use context::{Context, Reaper};
