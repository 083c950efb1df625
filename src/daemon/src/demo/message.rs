//! What a client of the demo tells the demo: one JSON object per line on its standard output.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::Mismatch;

/// What a client does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Writes its pattern over its area.
    Fill,
    /// Does what it is for, for the time given.
    Work,
    /// Reads its whole area back.
    Verify,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fill => "fill",
            Self::Work => "work",
            Self::Verify => "verify",
        })
    }
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// How far it is.
    Progress {
        /// What it does.
        phase: Phase,
        /// Part done. Permille.
        permille: u32,
    },
    /// Its area is full; it waits for a line on its standard input before it works.
    Filled,
    /// It is done, and every block was right.
    Done(Report),
    /// It gave up.
    Failed(Failure),
}

/// What one client did. Speed and latency are those of its work; the counts are of all phases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Requests in flight.
    pub depth: u32,
    /// Bytes of one request of its work.
    pub request_bytes: u32,
    /// Requests per second.
    pub iops: f64,
    /// MiB per second.
    pub mib_s: f64,
    /// Median latency. Microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency. Microseconds.
    pub p99_us: f64,
    /// Read requests; the content of each was checked.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Blocks of its area that it read back in the end and found right: all of them.
    pub blocks_verified: u64,
    /// Requests that were completed.
    pub completions: u64,
    /// Requests that were never completed.
    pub lost: u64,
    /// Completions that came twice, or for no request.
    pub doubled: u64,
    /// Requests that were completed with an error.
    pub errors: u64,
}

/// Why a client gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The client; empty: the demo itself.
    pub client: String,
    /// In words.
    pub what: String,
    /// Number of the offending block in the client's area.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<Box<Mismatch>>,
}

impl Failure {
    /// One without a block.
    pub fn new(client: &str, what: impl Into<String>) -> Self {
        Self { client: client.to_owned(), what: what.into(), block: None, mismatch: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.client.is_empty() {
            write!(f, "{}: ", self.client)?;
        }
        f.write_str(&self.what)?;
        self.mismatch.as_ref().map_or(Ok(()), |mismatch| write!(f, ": {mismatch}"))
    }
}
