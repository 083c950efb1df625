//! The life of a request.
//!
//! | # | stage | where | thread | on failure, who answers |
//! |---|---|---|---|---|
//! | 1 | client SQ ring | `ferrio_client::Queue::submit` -> [`ferrio_shm::ring::SqProducer`] | client | full: the request is handed back |
//! | 2 | take and validate | `submitter::take`: copy the SQE once, reserve CQ entry and record, write the [`journal`]; [`session`]: check | Submitter | bad SQE: CQE with errno; bad ring: the session is faulted, nobody else |
//! | 2a | wait | [`order`], [`timeout`], [`cancel`]: chains, barriers, deadlines; only for sessions that were granted them | Submitter | ECANCELED, ETIMEDOUT |
//! | 3 | class queues | [`queue`]: prio / read / write, per session queue and volume; intrusive lists over record indices | Submitter | cannot be full: reserved at 2 |
//! | 4 | schedule | [`scheduler`]: pure; classes and budgets, weights of sessions, limits, a latency target for prio | Submitter | - |
//! | 5 | merge | [`merge`]: pure; adjacent requests of a pass in one operation, also across sessions, by iovec and never copied; `submitter::merging` | Submitter | - |
//! | 6 | submit | [`submitter`]: the next step of the request, unless its volume is fenced (`fences`), or a compare-and-write has its range locked (`locks`) -> [`ferrio_driver::SubmitHalf`]: queue, then one commit for the batch | Submitter | refused: stays at the head; errno: becomes a completion |
//! | 7 | kernel | io_uring / AIO | - | - |
//! | 8 | reap | [`completion`] -> [`ferrio_driver::ReapHalf`] | whoever holds the reap half: Submitter ([`Shape::One`]) or Poller ([`Shape::Two`]) | stale tag: counted, dropped |
//! | 9 | split, short I/O, steps | [`completion`]: the requests of an operation that is whole are answered together, those of one that is short or failed are each issued again, by themselves, before anything is answered; the rest of a short transfer, and each result of a request of several steps, goes back to the Submitter | reaper -> Submitter | - |
//! | 10 | client CQ ring | [`completion`] -> [`ferrio_shm::ring::CqProducer`], at most one wake per queue and batch | reaper | cannot be full: reserved at 2 |
//!
//! Every accepted SQE gets exactly one CQE. In steady state nothing on this way allocates, blocks or takes a contended
//! lock. Each thread's loop is a `turn(now)` that tests call without the thread.
//!
//! An engine goes on from the journal of the one before it, which may have been killed anywhere:
//!
//! | what | where | shown by |
//! |---|---|---|
//! | what each kill leaves, as one order of stores | [`journal`] | `tests/killed.rs`: killed at every kill point, and again while it recovers |
//! | what was left is read, damage is told, the rest goes into a new file | [`journal::found`], `journal::renew` | `tests/journal.rs`: flipped bits, other versions, limits |
//! | sessions wait for their clients | `dormant` | `tests/recovery.rs` |
//! | answers are given again, the rest is carried out once more or answered EOWNERDEAD | `submitter::resume` | `tests/recovery.rs` |
//! | nothing overtakes writes of a dead daemon | `fences`, [`Engine::add_volume_fenced`] | `tests/fences.rs` |
//! | a drain leaves what waits behind a fence to the next engine | `submitter::drain`, [`Engine::drain`] | `tests/fences.rs` |
//! | where a test build can be killed | [`mod@kill_point`] | the whole daemon: `tests/tests/kill_points.rs`, `kills.rs` of the workspace |
//!
//! `src/daemon/RESTART.md` says what of this is promised.
//!
//! All of this serves ring sessions of other processes and, by [`context`], the process that it runs in.
//!
//! [`Shape::One`]: ferrio_driver::Shape::One
//! [`Shape::Two`]: ferrio_driver::Shape::Two

#![forbid(unsafe_code)]

pub mod session;

pub mod queue;

pub mod scheduler;

pub mod merge;

pub mod order;

pub mod timeout;

pub mod cancel;

pub mod submitter;

pub mod completion;

pub mod poller;

mod bell;
pub mod clock;
pub mod config;
pub mod context;
mod dormant;
pub mod engine;
mod fences;
pub mod idle;
pub mod inject;
pub mod journal;
pub mod kill_point;
mod links;
mod locks;
mod pulse;
pub mod request;
mod shares;
pub mod stats;
mod table;
mod threaded;
mod vectored;
mod volumes;

pub use config::{EngineConfig, EngineError, Threads};
pub use dormant::{DormantSession, Resumed};
pub use engine::{DrainReport, Engine, EngineInfo};
pub use inject::IoThread;
pub use merge::MergeLimits;
pub use pulse::Pulse;
pub use scheduler::{
    Budgets, ClassSchedule, DEFAULT_BUDGETS, DEFAULT_WEIGHT, LatencySchedule, LimitSchedule,
    ScheduleSnapshot, Scope, SessionSchedule, WEIGHT_MAX,
    bucket::{RATE_MAX, Rate},
    latency::LatencyGoal,
    limits::{Limit, Split},
};
pub use session::{FEATURES, Grant, QueueAttach, SessionSpec, VolumeId};
pub use stats::{
    ClassSnapshot, CountersSnapshot, EngineCounters, EngineSnapshot, QueueSnapshot, WaitsSnapshot,
};
