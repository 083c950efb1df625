//! A client that works while its daemon is killed: a thread with a [`Mix`] that goes on until it is told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ferrio_client::{Access, QueueOptions, Session, SessionBuilder, WaitPolicy};

use crate::{
    Daemon, Mix,
    ledger::load,
    mix::{Restarts, Shape, Tally},
    process::wait_until,
};

/// Far above any pause that the tests make.
const PATIENCE: Duration = Duration::from_secs(60);

const SHAPE: Shape = Shape {
    blocks: 48,
    blocks_max: 8,
    requests: 300,
    depth: 32,
    chain_max: 6,
    stream_max: 12,
    faults: false,
    restarts: Restarts::Killed,
};

/// Why a worker ended before it was told to.
#[derive(Debug)]
pub enum Failure {
    /// The session ended, with these words.
    Ended(String),
    /// An answer broke the rules.
    Wrong(String),
}

/// See the module.
pub struct Worker {
    thread: JoinHandle<Result<Tally, Failure>>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Worker {
    /// On a volume that nobody else uses.
    ///
    /// # Panics
    /// No thread.
    pub fn start(daemon: &Daemon, volume: &'static str, restarts: Restarts) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let options = QueueOptions { wait: WaitPolicy::Sleep, ..QueueOptions::default() };
        let builder = daemon.session(volume, Access::ReadWrite).arena_bytes(16 << 20).patience(PATIENCE);
        let builder = builder.queue(options.clone()).queue(options);
        let shape = Shape { restarts, ..SHAPE };
        let thread = thread::spawn(move || work(builder, volume, shape, &told, &counted));
        Self { thread, stop, rounds }
    }

    /// Waits until so many rounds are over, or it has failed.
    ///
    /// # Panics
    /// It takes too long.
    #[track_caller]
    pub fn wait_for_rounds(&self, rounds: u64) {
        wait_until("the client to work", || self.rounds.load(Relaxed) > rounds || self.thread.is_finished());
    }

    /// Lets it go on for one more round.
    ///
    /// # Errors
    /// Why it ended.
    ///
    /// # Panics
    /// It did.
    pub fn finish(self) -> Result<Tally, Failure> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("the client does not panic")
    }
}

fn work(
    builder: SessionBuilder,
    volume: &str,
    shape: Shape,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> Result<Tally, Failure> {
    let session = load::open(builder).map_err(Failure::Ended)?;
    work_in(&session, volume, shape, stop, rounds).map_err(|what| {
        loop {
            match session.next_event() {
                Ok(Some(_)) => {}
                Ok(None) => return Failure::Wrong(what),
                Err(ended) => return Failure::Ended(format!("{ended} ({what})")),
            }
        }
    })
}

fn work_in(
    session: &Session,
    volume: &str,
    shape: Shape,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> Result<Tally, String> {
    let queues = (0..2).map(|queue| session.take_queue(queue));
    let queues = queues.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let volume = session.volume(volume).map_err(|error| error.to_string())?;
    let mut mix = Mix::new(session, &volume, queues, shape);
    loop {
        let last = stop.load(Relaxed);
        mix.round(rounds.fetch_add(1, Relaxed))?;
        if last {
            return Ok(mix.tally);
        }
    }
}
