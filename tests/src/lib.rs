//! Harness of the end-to-end tests: real daemons in private directories, real client processes, real users.
//!
//! Everything is spawned from this tree's own code and killed when the test ends, however it ends.

pub mod beside;
pub mod daemon;
pub mod disk;
pub mod footprint;
pub mod greedy;
pub mod history;
pub mod hostile;
pub mod ledger;
pub mod mix;
pub mod operator;
pub mod process;
pub mod raw;
pub mod seccomp;
pub mod skip;
pub mod worker;

pub use beside::Beside;
pub use daemon::{Daemon, DaemonBuilder};
pub use footprint::Footprint;
pub use greedy::{Appetite, Greedy};
pub use mix::Mix;
pub use operator::Operator;
pub use process::{Finished, Process};
pub use raw::RawSession;
pub use worker::Worker;
