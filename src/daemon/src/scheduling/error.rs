//! Why scheduling is not changed. Each text says what was asked, what the limit is, and what to do.

use ferrio_engine::EngineError;

use super::limit::Wrong;
use crate::config::NAME_LIMIT;
use crate::volumes::error::VolumeError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// A limit on nothing, or on several things.
    #[error("scope: name exactly one of volume, session_id and group")]
    Scope,
    /// No group can be called so.
    #[error("group {0:?} is not a name: {NAME_LIMIT}; choose a name within the limit")]
    GroupName(String),
    /// A field of a limit.
    #[error("{} = {}: {}; {}", .0.field, .0.value, .0.what, .0.fix)]
    Limit(Wrong),
    /// A limit that limits nothing.
    #[error("the limit has no rate; give one, such as iops, or clear the limit")]
    NoRate,
    /// A call that changes nothing.
    #[error("nothing is to be changed; give {0}")]
    Nothing(&'static str),
    /// A number out of range.
    #[error("{field}: {value} asked for, {min} to {max} allowed; choose a value within the limit")]
    Range {
        /// Which.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// Least.
        min: u64,
        /// Greatest.
        max: u64,
    },
    /// Not one budget for each class.
    #[error("budgets: {0} given, 3 needed: prio, read, write")]
    Budgets(usize),
    /// Unknown session.
    #[error("no session has id {0}; `ferrioctl session list` shows those there are")]
    NoSession(u64),
    /// A session that does not do I/O now.
    #[error("session {session_id} is {state}: {fix}")]
    NotServed {
        /// Session.
        session_id: u64,
        /// What it is.
        state: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// Unknown group.
    #[error(
        "no group is called {name:?}; groups of this daemon: {known}; configure it, or set a limit on it, to make it"
    )]
    NoGroup {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// Unknown engine.
    #[error("no engine is called {name:?}; engines of this daemon: {known}")]
    NoEngine {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// A volume that is not there, or not in service.
    #[error("{0}")]
    Volume(#[from] VolumeError),
    /// An engine refused.
    #[error("{}", crate::chain(.0))]
    Engine(#[from] EngineError),
}
