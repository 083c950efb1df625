//! Faults on purpose, for tests and for users who want to see what theirs do.
//!
//! [`Fault<D>`] is a driver around another. Without plans it behaves as the driver within and costs a request two
//! accesses to a table. [`SubmitHalf::set_faults`](crate::SubmitHalf::set_faults) gives a file a [`FaultPlan`]; from then
//! on each request to it is held against the rules when it is submitted:
//!
//! | effect | what the driver within gets | how the answer changes |
//! |---|---|---|
//! | [`Error`](FaultEffect::Error) | a nop | 0 becomes the errno |
//! | [`Short`](FaultEffect::Short) | the first blocks | not at all: the transfer *is* short |
//! | [`TornWrite`](FaultEffect::TornWrite) | some of the blocks, or a nop | bytes become EIO |
//! | [`Delay`](FaultEffect::Delay), [`Stuck`](FaultEffect::Stuck), [`Reorder`](FaultEffect::Reorder) | the request, later | not at all |
//!
//! | file | what it holds |
//! |---|---|
//! | `plan.rs` | the plan, its limits and its counters |
//! | `decide.rs` | which rule applies to a request, and what is drawn for it |
//! | `held.rs` | requests that wait: until a time, for others, or for ever |
//! | `submit.rs`, `reap.rs` | the halves |
//!
//! A request that is held is in flight like any other: its slot is taken, its file and its region are busy, and
//! [`sleep`](crate::SubmitHalf::sleep) ends when it is due. A slot is what a stuck request costs, so more of them than the
//! driver is deep leave nothing for other files; that is what a stuck device does, too. When the submit half is dropped,
//! what was committed and is held goes to the kernel at once, and the driver within waits for it. Holding may allocate,
//! other effects do not.

mod decide;
mod held;
mod plan;
mod reap;
mod submit;

use std::marker::PhantomData;
use std::sync::Arc;

use crate::driver::{Driver, DriverConfig, DriverError};

pub use plan::{
    ALWAYS_PPM, DELAY_MAX, FaultCounters, FaultEffect, FaultError, FaultOps, FaultPlan, FaultRule,
    FaultStatus, REORDER_HOLD, RULES_MAX, WINDOW_MAX,
};
pub use reap::FaultReap;
pub use submit::FaultSubmit;

/// The driver `D`, with faults where a plan says so.
#[derive(Debug)]
pub struct Fault<D>(PhantomData<D>);

impl<D: Driver> Driver for Fault<D> {
    /// That of the driver within: what it suits and who should reap depends on that. [`info`](crate::SubmitHalf::info)
    /// names the faults.
    const NAME: &'static str = D::NAME;
    type Submit = FaultSubmit<D::Submit>;
    type Reap = FaultReap<D::Reap>;

    fn open(config: &DriverConfig) -> Result<(Self::Submit, Self::Reap), DriverError> {
        let (submit, reap) = D::open(config)?;
        let patches = Arc::new(reap::Patches::new(config.depth));
        Ok((FaultSubmit::new(submit, Arc::clone(&patches), config), FaultReap::new(reap, patches)))
    }
}
