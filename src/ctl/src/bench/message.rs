//! What the coordinator and its client processes tell each other: one JSON object per line.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::args::{Peer, Rw, Wait};

/// The first line a client process reads: what it is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Keeps requests in flight through a [`Window`], which is the second line.
    Load(LoadOrder),
    /// Goes once over a volume.
    Sweep(SweepOrder),
    /// Opens sessions and does nothing with them until it is told to end.
    Idle(IdleOrder),
    /// Sends a cache line to another CPU and back for so long. Milliseconds.
    PingPong(u64),
}

/// A client of a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadOrder {
    pub route: Route,
    pub rw: Rw,
    /// Length of a request. Bytes.
    pub bs: u64,
    pub iodepth: u32,
    /// Where it reads and writes, in units of `bs`.
    pub area: Range<u64>,
    pub seed: u64,
    pub verify: Option<Verify>,
}

/// By which way the I/O goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Route {
    Ferrio {
        socket: PathBuf,
        volume: String,
        wait: Wait,
        /// Adjacent requests may be joined.
        merge: bool,
    },
    Direct {
        peer: Peer,
        file: PathBuf,
        /// Past the page cache, as the volume.
        direct: bool,
    },
}

/// How the data of the volume is known again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verify {
    /// Differs from run to run.
    pub seed: u64,
    /// Length of a block of the pattern. Bytes.
    pub block_bytes: u64,
    /// Generation of every block, one u32 each: a file without a name.
    pub generations: PathBuf,
}

/// Sessions that do nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdleOrder {
    pub socket: PathBuf,
    pub volume: String,
    pub sessions: u32,
}

/// A pass over the volume, from its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SweepOrder {
    pub socket: PathBuf,
    pub volume: String,
    pub bytes: u64,
    pub sweep: Sweep,
}

/// What a pass does with every block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Sweep {
    /// Writes what is there already.
    Rewrite,
    /// Writes the pattern's first generation.
    Fill {
        seed: u64,
        /// Length of a block of the pattern. Bytes.
        block_bytes: u64,
    },
    /// Reads it and checks it.
    Check(Verify),
}

/// When the clients of a round measure. Nanoseconds of CLOCK_MONOTONIC, which all processes share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Window {
    pub start_ns: u64,
    pub end_ns: u64,
}

/// A line that a client process writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// It is prepared and waits for its window.
    Ready {
        /// What it wanted to use and cannot, each with its reason.
        degraded: Vec<String>,
    },
    /// How far it is. Permille.
    Progress(u32),
    Loaded(Load),
    /// Blocks that were checked; 0 when nothing was.
    Swept(u64),
    /// The idle sessions are closed.
    Closed,
    /// Median round trip of a cache line. Nanoseconds.
    PingPong {
        round_trip_ns: f64,
        /// The two CPUs, if the threads could be bound to them.
        cpus: Option<[u32; 2]>,
    },
    Failed(Failure),
}

/// What a client of a round did within the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub completed: u64,
    pub elapsed_ns: u64,
    pub cpu_ns: u64,
    pub switches: u64,
    /// Latency in nanoseconds, and how often it was seen.
    pub latency: Vec<(u64, u64)>,
}

/// Why a client gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure(pub String);

impl Failure {
    /// For `map_err`: what failed, and why.
    pub fn of<E: fmt::Display>(what: &str) -> impl Fn(E) -> Failure {
        move |error| Failure(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
