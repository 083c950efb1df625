//! The four typed ends of a queue.
//!
//! ```text
//!   client                                    daemon
//!   SqProducer  push, publish  --- SQ --->  SqConsumer  available, take, publish    (Submitter)
//!                                           CqCredit    room, reserve               (Submitter)
//!   CqConsumer  pop, release   <-- CQ ---   CqProducer  push, publish               (Poller)
//! ```
//!
//! Each end is made once per queue and used by one thread at a time (`&mut self`). The indices are
//! free-running u32: they are never masked in memory, only where an entry is addressed, and all arithmetic on
//! them wraps. An end keeps its own index privately and stores it for the other to read; what it reads of the
//! other is checked against its own geometry before it is believed. The client may hold more privileges than
//! sense, so a daemon end answers a bad index with a [`RingFault`] and touches nothing.
//!
//! Orderings come in pairs, each named at both ends by a `SYNC` comment:
//!
//! | name | release | acquire | what becomes visible |
//! |---|---|---|---|
//! | sq-publish | `SqProducer::publish` | `SqConsumer::available` | the SQEs below sq_tail |
//! | sq-free | `SqConsumer::publish` | `SqProducer::room` | that the slots below sq_head were read |
//! | cq-publish | `CqProducer::publish` | `CqConsumer::ready` | the CQEs below cq_tail, and the data |
//! | cq-free | `CqConsumer::release` | `CqCredit::room` | that the slots below cq_head were read, and posted were seen |
//!
//! The sleep handshake is in the private module `sleep`, with the reason why no wake-up is lost.

mod completion;
mod fault;
mod memory;
mod sleep;
mod submission;

pub use completion::{CqConsumer, CqCredit, CqProducer};
pub use fault::{Full, RingFault};
pub use memory::{HeapQueue, QueueMemory};
pub use submission::{SqConsumer, SqProducer};
