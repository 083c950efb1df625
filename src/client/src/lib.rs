//! Client of ferriod: block I/O through rings in shared memory, without a system call per request.
//!
//! A [`Session`] is opened over the daemon's control socket. It gives out [`Volume`]s, [`Buffer`]s and [`Queue`]s; a
//! queue has one owner, so a thread that does I/O takes one of its own.
//!
//! | way | calls | for |
//! |---|---|---|
//! | blocking | [`Queue::read`], [`Queue::write`], [`Queue::flush`], [`Queue::execute`] | one request at a time |
//! | polling | [`Queue::submit`], [`Queue::commit`], [`Queue::poll`], [`Queue::wait`] | many requests in flight from one thread |
//! | async | [`Queue::into_async`], then the same verbs on [`AsyncQueue`] | tokio |
//!
//! ```
//! use ferrio_client::{Access, Session};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (Some(socket), Some(name)) = (std::env::var_os("FERRIO_SOCKET"), std::env::var("FERRIO_VOLUME").ok()) else {
//! #     return Ok(()); // No daemon to try it with: compiling it is the test.
//! # };
//! # let name = name.as_str();
//! let session = Session::builder(socket).volume(name, Access::ReadWrite).open()?;
//! let volume = session.volume(name)?;
//! let mut queue = session.take_queue(0)?;
//!
//! let mut buffer = session.alloc(4096)?;
//! buffer.fill(7);
//! let buffer = queue.write(&volume, 0, buffer)?;
//! queue.flush(&volume)?;
//!
//! let buffer = queue.read(&volume, 0, buffer)?;
//! assert!(buffer.iter().all(|&byte| byte == 7));
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! - Every request that was submitted is completed exactly once, by the daemon or, when the session ends first, by the
//!   library with [`RequestError::Unanswered`].
//! - A buffer that the daemon may still use is never handed out again: it stays with its request until the completion,
//!   also when a future is dropped, and is given up for good when the session ends first.
//! - Nothing is allocated per request once the queue is open, except by the async futures' own callers.
//! - In a forked child every call answers [`Error::Forked`]; dropping things there does nothing to the parent.

#![forbid(unsafe_code)]

mod async_queue;
mod attach;
mod blocking;
mod completion;
mod control;
mod errno;
mod error;
mod inflight;
mod lease;
mod options;
mod queue;
mod request;
mod session;
mod spin;
mod volume;
mod wait;
mod waiters;

pub use async_queue::AsyncQueue;
pub use completion::{Completion, Ticket};
pub use errno::Errno;
pub use error::{
    Error, IoFailure, ProtocolError, Reason, Refusal, Refused, RequestError, SessionEnd, SubmitError,
};
pub use ferrio_shm::arena::{AllocError, Buffer};
pub use ferrio_shm::entry::Sqe;
pub use lease::Event;
pub use options::{QueueOptions, SessionBuilder};
pub use queue::{Queue, QueueStats};
pub use request::Request;
pub use session::Session;
pub use spin::WaitPolicy;
pub use volume::{Access, Volume};
