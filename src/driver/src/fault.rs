//! Faults on purpose, for tests and for users who want to see what theirs do.

mod plan;

pub use plan::{
    ALWAYS_PPM, DELAY_MAX, FaultCounters, FaultEffect, FaultError, FaultOps, FaultPlan, FaultRule,
    FaultStatus, REORDER_HOLD, RULES_MAX, WINDOW_MAX,
};
