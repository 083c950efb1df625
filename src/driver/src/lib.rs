//! Memory shared with the kernel: one proactor contract over io_uring, Linux AIO and a null backend.
//!
//! Read [`driver`] first: it states the contract, draws the states of a slot and names the two thread
//! shapes. A request goes `reserve -> submit -> commit -> (kernel) -> reap -> release`.
//!
//! | module | what it holds |
//! |---|---|
//! | [`driver`] | the traits of the two halves, the operation, the completion, the configuration |
//! | [`target`] | the file or block device behind a volume: one locked open file description |
//! | [`tag`] | what travels through the kernel's `user_data`: slot index and generation |
//! | [`slab`] | [`slab::StableSlab`]: paged slots whose addresses never move |
//! | [`slot_table`] | which slots the kernel still owes an answer, shared by the two halves |
//! | [`uring`], [`aio`], [`null`] | the backends |
//! | [`fault`] | faults on purpose, over any of them |
//! | [`proactor`] | both halves on one thread, for those in this process who wait for answers |
//! | [`op_registry`] | who waits for an operation, and what it owns until then |
//! | [`injector`] | closures from other threads |
//! | [`random`] | seeded random numbers, for faults, and for those who load or check a driver |
//! | [`select`] | which backend this machine can run, and why |
//! | [`direct`] | the same I/O without a daemon, for `ferrioctl bench` to compare with |
//!
//! ```
//! use std::sync::Arc;
//!
//! use ferrio_driver::null::Null;
//! use ferrio_driver::{Driver, DriverConfig, Op, OpKind, ReapHalf, RegionIndex, SubmitHalf, Target};
//!
//! let (mut submit, mut reap) = Null::open(&DriverConfig::default())?;
//! let file = submit.register_file(Arc::new(Target::null(1 << 20, 512)))?;
//! let flush = Op {
//!     kind: OpKind::Flush, file, region: RegionIndex(0), region_offset: 0, length: 0, offset: 0, fua: false,
//! };
//! let slot = submit.reserve().expect("fewer than 128 in flight");
//! let tag = submit.submit(slot, 42, &flush).expect("the batch is not full");
//! submit.commit()?;
//!
//! let mut completions = Vec::with_capacity(128);
//! assert_eq!(reap.reap(&mut completions), 1);
//! assert_eq!((completions[0].tag, completions[0].user, completions[0].result), (tag, 42, 0));
//! submit.release(tag);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod direct;
pub mod driver;
pub mod injector;
pub mod op_registry;
pub mod proactor;
pub mod random;
pub mod slab;
pub mod slot_table;
pub mod tag;
pub mod target;

pub mod aio;
pub mod fault;
pub mod null;
pub mod select;
pub mod uring;

mod arrivals;
mod bell;
mod helpers;
mod iovecs;
mod ledger;
mod payload;
mod wait;

pub use driver::{
    Busy, Completion, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, LENGTH_MAX, Op, OpKind, Pin,
    ReapHalf, RegionIndex, Reserved, SEGMENTS_MAX, Segment, Shape, SubmitHalf, VECTORED_MAX,
};
pub use fault::{FaultCounters, FaultEffect, FaultError, FaultOps, FaultPlan, FaultRule, FaultStatus};
pub use select::{Backend, BackendChoice, Probe, choose, probe};
pub use tag::Tag;
pub use target::{Capabilities, Holder, OpenOptions, Outline, Support, Target, TargetError, TargetKind};
