//! `ferriod demo --restart`: many sessions at work, their daemon killed or stopped in the middle, another one started at once;
//! how long each session had to wait, and that every block is right.

mod locks;
mod report;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Args;
use super::message::Failure;
use super::pauses::Signalled;
use super::stage::Stage;
use super::{introduction, pattern::BLOCK_BYTES};

use locks::LockWatch;
pub use report::RestartOutcome;
use worker::{Order, Worked};

/// Most sessions.
pub const SESSIONS_MAX: u64 = 512;
/// Blocks of one session's area: 256 KiB.
const AREA_BLOCKS: u64 = 64;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longest that a session may stay without a completion.
const BACK_LIMIT: Duration = Duration::from_secs(60);

/// How the daemon is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ending {
    /// kill -9: nothing is drained.
    Kill,
    /// SIGTERM, as `systemctl restart` sends it.
    Term,
}

/// What the sessions and the demo tell each other.
#[derive(Debug, Default)]
struct Signs {
    signalled: Signalled,
    filled: AtomicUsize,
    /// Sessions with a completion after the signal.
    back: AtomicUsize,
    stop: AtomicBool,
}

/// The sessions at work.
pub struct Restart {
    signs: Arc<Signs>,
    workers: Vec<JoinHandle<Result<Worked, Failure>>>,
}

/// Bytes of the volume for so many sessions.
pub fn volume_bytes(sessions: u64) -> u64 {
    sessions * AREA_BLOCKS * BLOCK_BYTES as u64
}

impl Restart {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { signs: Arc::default(), workers: Vec::new() }
    }

    /// Until every session has met the restart and has verified all of its blocks.
    pub async fn play(
        &mut self,
        stage: &mut Stage,
        args: &Args,
        seed: u64,
    ) -> Result<RestartOutcome, Failure> {
        let channel = stage.ready().await?;
        let introduced = introduction(channel, stage).await?;
        eprintln!("{}", introduced.text);
        for number in 0..args.sessions {
            let order = Order {
                number: number as u32,
                socket: stage.socket(),
                first_block: number * AREA_BLOCKS,
                blocks: AREA_BLOCKS,
                seed,
            };
            let signs = Arc::clone(&self.signs);
            let name = format!("session-{number}");
            let worker = std::thread::Builder::new().name(name).spawn(move || worker::run(&order, &signs));
            self.workers
                .push(worker.map_err(|error| Failure::new("", format!("cannot start a thread: {error}")))?);
        }
        self.until(stage, |signs, sessions| signs.filled.load(Relaxed) == sessions, "fill their areas")
            .await?;
        let half = Duration::from_secs(args.seconds) / 2;
        tokio::time::sleep(half).await;

        let lock = LockWatch::start(&stage.volume(), stage.pid());
        let signal = if args.signal == Ending::Kill { Signal::KILL } else { Signal::TERM };
        let signalled = Instant::now();
        // Set once, here.
        let _ = self.signs.signalled.set(signalled);
        let ended = stage.restart(signal).await?;
        stage.ready().await?;
        let serving = signalled.elapsed();
        self.until(stage, |signs, sessions| signs.back.load(Relaxed) == sessions, "go on after the restart")
            .await?;
        // What was drained before the end is the old daemon's time, not its disk's.
        let since = if args.signal == Ending::Kill { signalled } else { ended };
        let drain = lock.stop().map_or(Duration::ZERO, |held| held.saturating_duration_since(since));
        tokio::time::sleep(half).await;

        let worked = self.finish(stage).await?;
        Ok(RestartOutcome::new(args, &introduced, seed, serving, drain, &worked))
    }

    /// Waits for all sessions, or for one that fails.
    async fn until(
        &mut self,
        stage: &mut Stage,
        done: impl Fn(&Signs, usize) -> bool,
        what: &str,
    ) -> Result<(), Failure> {
        let limit = Instant::now() + BACK_LIMIT;
        while !done(&self.signs, self.workers.len()) {
            if let Some(failed) = self.workers.iter().position(JoinHandle::is_finished) {
                return Err(failure_of(self.workers.swap_remove(failed)));
            }
            if Instant::now() > limit {
                return Err(Failure::new("", format!("the sessions did not {what} within {BACK_LIMIT:?}")));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                failure = stage.ended() => return Err(failure),
            }
        }
        Ok(())
    }

    async fn finish(&mut self, stage: &mut Stage) -> Result<Vec<Worked>, Failure> {
        self.signs.stop.store(true, Relaxed);
        let all = |workers: &[JoinHandle<_>]| workers.iter().all(JoinHandle::is_finished);
        while !all(&self.workers) {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                failure = stage.ended() => return Err(failure),
            }
        }
        self.workers.drain(..).map(outcome_of).collect()
    }
}

fn outcome_of(worker: JoinHandle<Result<Worked, Failure>>) -> Result<Worked, Failure> {
    worker.join().unwrap_or_else(|_| Err(Failure::new("", "a session's thread panicked")))
}

fn failure_of(worker: JoinHandle<Result<Worked, Failure>>) -> Failure {
    outcome_of(worker).err().unwrap_or_else(|| Failure::new("", "a session ended before it was told to"))
}
