//! Client of ferriod: block I/O through rings in shared memory, without a system call per request.
//!
//! A [`Session`] is opened over the daemon's control socket. It gives out [`Volume`]s, [`Buffer`]s and [`Queue`]s; a
//! queue has one owner, so a thread that does I/O takes one of its own.
//!
//! | way | calls | for |
//! |---|---|---|
//! | blocking | [`Queue::read`], [`Queue::write`], [`Queue::flush`] and so on, [`Queue::execute`] | one request at a time |
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
//! # Beyond reads and writes
//! [`Request`] has a constructor for every operation of the ABI, and what goes with all of them: [`Request::prio`],
//! [`Request::timeout`], [`Request::barrier`]. Requests that depend on each other go by [`Queue::submit_chain`]; one that
//! waits is taken back by [`Request::cancel`]. Data can lie in several buffers ([`IoVec`]), and in memory of the
//! caller's own ([`Session::add_region`]). What a daemon serves of all this is in [`Session::features`].
//!
//! A session with volumes at several engines has a queue at each of them, unless it was opened with queues of its own
//! choice: [`Session::take_queue_for`].
//!
//! # What holds
//! - Every request that was submitted is completed exactly once, by the daemon or, when the session ends first, by the
//!   library with [`RequestError::Unanswered`].
//! - A buffer that the daemon may still use is never handed out again: it stays with its request until the completion,
//!   also when a future is dropped, and is given up for good when the session ends first.
//! - A session goes on after the daemon was restarted, upgraded or killed, where the daemon can ([`Session::survives_restarts`]).
//!   Nobody needs to do anything for it; [`SessionBuilder::patience`] says how long it waits. Until then it has not ended.
//! - Nothing is allocated per request once the queue is open, except for chains and by the async futures' own callers.
//! - In a forked child every call answers [`Error::Forked`]; dropping things there does nothing to the parent.

#![forbid(unsafe_code)]

mod async_queue;
mod attach;
mod blocking;
mod chain;
mod completion;
mod control;
mod errno;
mod error;
mod features;
mod inflight;
mod lease;
mod link;
mod memory;
mod options;
mod queue;
mod reattach;
mod region;
mod request;
mod retry;
mod session;
mod spin;
mod volume;
mod wait;
mod waiters;

pub use async_queue::{AsyncQueue, Pending};
pub use chain::ChainFailure;
pub use completion::{Cancelled, Completion, Ticket};
pub use control::connect_control;
pub use errno::Errno;
pub use error::{
    Error, IoFailure, ProtocolError, Reason, Refusal, Refused, RequestError, SessionEnd, SubmitError,
};
pub use features::Features;
pub use ferrio_shm::arena::{AllocError, Buffer};
pub use ferrio_shm::entry::Sqe;
pub use ferrio_shm::mapping::RegionError;
pub use lease::Event;
pub use memory::{IoVec, Memory, Span};
pub use options::{QueueOptions, SessionBuilder};
pub use queue::{Queue, QueueStats};
pub use region::{Region, RegionFailure};
pub use request::Request;
pub use session::{Hugepages, Session};
pub use spin::WaitPolicy;
pub use volume::{Access, Support, Volume};
