//! One session: fills its area, reads and writes it at random until it is told to stop, and verifies it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ferrio_client::{Access, Features, QueueOptions, Session, WaitPolicy};
use ferrio_driver::random::SplitMix64;

use super::Signs;
use crate::demo::drive::{Drive, Job};
use crate::demo::message::Failure;
use crate::demo::pattern::{BLOCK_BYTES, Pattern};
use crate::demo::pauses::Pauses;
use crate::demo::stage::VOLUME;

/// Requests in flight.
const DEPTH: usize = 4;
/// Requests before it looks up.
const TURN: u32 = 64;
/// Far above what a restart takes: how long it took is for the report to say.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a session is given.
pub struct Order {
    pub number: u32,
    pub socket: PathBuf,
    pub first_block: u64,
    pub blocks: u64,
    pub seed: u64,
}

/// What it has seen.
#[derive(Debug)]
pub struct Worked {
    pub pauses: Pauses,
    pub requests: u64,
    pub replayed: u64,
    pub blocks_verified: u64,
}

pub fn run(order: &Order, signs: &Signs) -> Result<Worked, Failure> {
    let number = order.number;
    work(order, signs).map_err(|failure| Failure { client: format!("session-{number}"), ..failure })
}

fn work(order: &Order, signs: &Signs) -> Result<Worked, Failure> {
    let failed = |error: ferrio_client::Error| Failure::new("", error.to_string());
    let options = QueueOptions { entries: 16, wait: WaitPolicy::Sleep, ..QueueOptions::default() };
    let session = Session::builder(&order.socket)
        .name(format!("session-{}", order.number))
        .volume(VOLUME, Access::ReadWriteShared)
        .queue(options)
        .arena_bytes((2 * DEPTH * BLOCK_BYTES) as u64)
        .features(Features::NONE)
        .patience(PATIENCE)
        .open()
        .map_err(failed)?;
    let volume = session.volume(VOLUME).map_err(failed)?;
    let pattern = Pattern { client: order.number, seed: order.seed };
    let area = order.first_block..order.first_block + order.blocks;
    let mut drive = Drive::new("", &session, volume, pattern, area, DEPTH, 1).map_err(failed)?;
    drive.pauses = Pauses::new(Arc::clone(&signs.signalled));
    let whole_area = |write| {
        let mut firsts = 0..order.blocks;
        move || firsts.next().map(|first| Job { write, first, blocks: 1 })
    };

    drive.run(DEPTH, false, whole_area(true))?;
    signs.filled.fetch_add(1, Relaxed);
    let mut random = SplitMix64::new(order.seed ^ u64::from(order.number));
    let mut is_back = false;
    while !signs.stop.load(Relaxed) {
        // Not both at once: a read beside a write of its block may find either.
        let (write, mut turn) = (random.below(2) == 0, 0..TURN);
        let mut job = || Job { write, first: random.below(order.blocks), blocks: 1 };
        drive.run(DEPTH, false, || turn.next().map(|_| job()))?;
        if !is_back && drive.pauses.over > Duration::ZERO {
            is_back = true;
            signs.back.fetch_add(1, Relaxed);
        }
    }
    let verified = drive.run(DEPTH, false, whole_area(false))?;
    let stats = drive.queue().stats();
    if stats.submitted != stats.completed || stats.doubled + stats.unknown + stats.errors > 0 {
        return Err(drive.failure(format!("not every request was completed once and well: {stats:?}")));
    }
    Ok(Worked {
        requests: stats.completed,
        replayed: drive.replayed,
        blocks_verified: verified.bytes / BLOCK_BYTES as u64,
        pauses: drive.pauses,
    })
}
