//! Bodies of the fuzzers: plain functions of bytes that panic when something does not hold.
//!
//! | function | hostile input |
//! |---|---|
//! | [`sqe_validation`] | SQEs, against the table of checks in ABI.md |
//! | [`ring_ends`] | index words, sleep words and SQE words, against the daemon's ring ends |
//! | [`lease`] | packets on the attach socket |
//! | [`config`] | the text of a configuration file |
//!
//! `cargo +nightly fuzz run NAME` feeds them new bytes; `tests/tests/corpus.rs` replays the kept ones on stable.

#![forbid(unsafe_code)]

mod config;
mod lease;
mod ring_ends;
mod sqe_validation;

pub use config::config;
pub use lease::lease;
pub use ring_ends::ring_ends;
pub use sqe_validation::sqe_validation;
