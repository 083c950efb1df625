//! `ferrioctl bench`: how fast a volume is, and how it compares with doing the same I/O without a daemon.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`], [`plan`] | the options, and what follows from them and the daemon's answers |
//! | [`coordinator`] | fills the volume, lets ferrio and its peers take turns, checks |
//! | [`process`], [`message`] | the client processes, and what is said between them and the coordinator |
//! | [`client`] | the main function of a client process |
//! | [`load`], [`engines`] | the measured loop, the same for all, and who does its I/O |
//! | [`idle`] | sessions that do nothing, beside which ferrio is measured |
//! | [`sweep`], [`pattern`] | writing and checking the whole volume; what its blocks look like |
//! | [`usage`], [`ping_pong`], [`clock`] | CPU time, the cache line's round trip, the clock |
//! | [`results`], [`statistics`], [`report`], [`progress`] | rounds, ratios, medians; tables and JSON |

mod args;
mod client;
mod clock;
mod coordinator;
mod engines;
mod idle;
mod load;
mod message;
mod pattern;
mod ping_pong;
mod plan;
mod process;
mod progress;
mod report;
mod results;
pub mod statistics;
mod sweep;
mod usage;

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

pub use args::{Args, parse_size};
pub use client::main as client;

use coordinator::Coordinator;
use plan::{Plan, Scene};

use crate::error::CtlError;
use crate::output::{print, print_json};

/// `bench`.
pub async fn run(channel: Channel, socket: PathBuf, args: Args, json: bool) -> Result<(), CtlError> {
    let scene = Scene::look(channel, &args.volume).await?;
    let plan = Plan::make(args, scene, socket)?;
    let seed = getrandom::u64().map_err(|error| CtlError::Bench(format!("no random seed: {error}")))?;
    // From here on a signal does not end the process, but the benchmark, which then ends its clients.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let mut coordinator = Coordinator::new(plan, seed);
    let ended = tokio::select! {
        ended = coordinator.play() => ended.map_err(|failure| CtlError::Bench(failure.0)),
        _ = interrupt.recv() => Err(CtlError::Interrupted(2)),
        _ = terminate.recv() => Err(CtlError::Interrupted(15)),
        _ = hangup.recv() => Err(CtlError::Interrupted(1)),
    };
    let (plan, mut results) = coordinator.end().await;
    ended?;
    report::warn(&plan, &mut results);
    if json {
        print_json(&report::to_json(&plan, &results), false)
    } else {
        print(&report::to_text(&plan, &results))
    }
}
