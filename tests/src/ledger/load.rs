//! Work on the pairs of a ledger, by blocking, polling and async callers.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use ferrio_client::{
    Access, Completion, Errno, Error, IoFailure, Queue, QueueOptions, QueueStats, Refusal, Request,
    RequestError, Session, Volume, WaitPolicy,
};

use super::{Ledger, Pair};
use crate::{
    history::{BLOCK, WORDS, word},
    mix::words_of,
};

/// Longest that one completion may take, restarts of the daemon included.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that the session of a killed client before this one may hold the volume.
const PREDECESSOR: Duration = Duration::from_secs(30);

/// How the caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Caller {
    /// One call at a time.
    Blocking,
    /// Many in flight, spinning for completions.
    Polling,
    /// Many in flight, sleeping for completions.
    Sleeping,
    /// Tasks on tokio.
    Async,
}

/// What is worked on.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Volume, which nobody else uses.
    pub volume: String,
    /// The ledger.
    #[arg(long)]
    pub ledger: PathBuf,
    /// Pairs of blocks.
    #[arg(long, default_value_t = 16)]
    pub pairs: usize,
    /// How it waits.
    #[arg(long, value_enum, default_value_t = Caller::Blocking)]
    pub caller: Caller,
    /// Seed of what is asked for.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Goes on until this file exists.
    #[arg(long)]
    pub until: PathBuf,
}

type Outcome<T> = Result<T, String>;

/// One request of a unit of work.
#[derive(Clone, Copy, Debug)]
enum Part {
    Read,
    Flush,
    Write(usize),
    Swap(usize),
}

/// An answer, whichever way it came.
#[derive(Debug)]
struct Answer<'a> {
    tag: u64,
    result: Result<u32, Errno>,
    data: Option<&'a [u8]>,
    replayed: bool,
}

impl<'a> Answer<'a> {
    fn of(completion: &'a Completion) -> Outcome<Self> {
        let result = match completion.result {
            Ok(bytes) => Ok(bytes),
            Err(RequestError::Errno(errno)) => Err(errno),
            Err(_) => return Err(format!("not answered: {completion:?}")),
        };
        let (data, replayed) = (completion.buffer.as_deref(), completion.replayed());
        Ok(Self { tag: completion.tag, result, data, replayed })
    }
}

/// One pair and the work on it: nothing, or one unit, is in flight.
struct Lane {
    index: usize,
    ledger: Arc<Ledger>,
    pair: Pair,
    /// The outcome of a change is not known: the blocks are read before anything else.
    unsure: bool,
    unit: Vec<Part>,
    answered: usize,
    broken: bool,
    rng: fastrand::Rng,
}

impl Lane {
    /// The requests of the next unit, which the ledger knows of from now on.
    fn draft(&mut self, session: &Session, volume: &Volume) -> Outcome<Vec<Request>> {
        let member = self.rng.usize(..2);
        self.unit = match self.rng.u32(..100) {
            _ if self.unsure => vec![Part::Read],
            0..=24 => vec![Part::Read],
            25..=54 => vec![Part::Write(member)],
            55..=69 => vec![Part::Swap(member)],
            70..=81 => vec![Part::Write(0), Part::Swap(1)],
            82..=93 => vec![Part::Write(0), Part::Write(1)],
            _ => vec![Part::Flush],
        };
        (self.answered, self.broken) = (0, false);
        let stamp = self.pair.next_stamp();
        let mut pair = self.pair;
        pair.chained = self.unit.len() > 1;
        let mut requests = Vec::new();
        for (place, part) in self.unit.iter().enumerate() {
            let first = 2 * self.index as u64;
            let alloc = |blocks: usize| session.alloc(blocks * BLOCK).map_err(|error| error.to_string());
            let request = match *part {
                Part::Flush => Request::flush(volume),
                Part::Read => {
                    let mut buffer = alloc(2)?;
                    buffer.fill(0xee);
                    Request::read(volume, first * BLOCK as u64, buffer)
                }
                Part::Write(member) => {
                    let mut buffer = alloc(1)?;
                    let block = first + member as u64;
                    fill(&mut buffer, stamp, block);
                    pair.pending[member] = stamp;
                    let request = Request::write(volume, block * BLOCK as u64, buffer);
                    request.fua(self.rng.u32(..8) == 0).barrier(self.rng.u32(..8) == 0)
                }
                Part::Swap(member) => {
                    let mut buffer = alloc(2)?;
                    let block = first + member as u64;
                    fill(&mut buffer[..BLOCK], self.pair.acked[member], block);
                    fill(&mut buffer[BLOCK..], stamp, block);
                    pair.pending[member] = stamp;
                    Request::compare_and_write(volume, block * BLOCK as u64, buffer)
                }
            };
            requests.push(request.tag(self.tag(place)).prio(self.rng.u32(..4) == 0));
        }
        if !self.unsure {
            self.keep(pair)?;
        }
        Ok(requests)
    }

    fn tag(&self, place: usize) -> u64 {
        (self.index << 8 | place) as u64
    }

    fn keep(&mut self, pair: Pair) -> Outcome<()> {
        self.pair = pair;
        self.ledger.set(self.index, &pair).map_err(|error| format!("the ledger: {error}"))
    }

    /// Takes an answer in. True: it was the last of the unit.
    fn settle(&mut self, answer: &Answer<'_>) -> Outcome<bool> {
        let Answer { tag, result, data, replayed } = *answer;
        let wrong =
            |what: &str| Err(format!("pair {}: {what}: {result:?} of {tag:#x}, {self:?}", self.index));
        if tag != self.tag(self.answered) {
            return wrong("answered twice, or out of the order of its chain");
        }
        let Some(part) = self.unit.get(self.answered).copied() else {
            return wrong("answered, and nothing was asked for");
        };
        let mut pair = self.pair;
        pair.answered += 1;
        pair.replayed += u32::from(replayed);
        match (part, result) {
            (_, Err(Errno::ECANCELED)) if self.broken => self.forget(&mut pair, part),
            _ if self.broken => return wrong("executed behind a failure in its chain"),
            (Part::Swap(_), Err(Errno::EOWNERDEAD)) => {
                pair.owner_dead += 1;
                (self.unsure, self.broken) = (true, true);
            }
            (Part::Write(member) | Part::Swap(member), Ok(_)) => {
                pair.acked[member] = pair.pending[member];
                pair.pending[member] = 0;
            }
            (Part::Flush, Ok(_)) => {}
            (Part::Read, Ok(_)) => {
                let Some(data) = data else { return wrong("without its memory") };
                pair = pair.settle(2 * self.index as u64, &words_of(data))?;
                self.unsure = false;
            }
            _ => return wrong("an answer that nothing explains"),
        }
        self.answered += 1;
        self.keep(pair)?;
        Ok(self.answered == self.unit.len())
    }

    /// The same for what a future gave, which says no tag when it failed.
    fn settle_async(&mut self, answer: Result<Completion, IoFailure>) -> Outcome<bool> {
        match &answer {
            Ok(completion) => self.settle(&Answer::of(completion)?),
            Err(failure) => {
                let errno = failure.error.errno().ok_or_else(|| failure.error.to_string())?;
                let tag = self.tag(self.answered);
                self.settle(&Answer { tag, result: Err(errno), data: None, replayed: false })
            }
        }
    }

    /// A member that did not happen.
    fn forget(&mut self, pair: &mut Pair, part: Part) {
        if let Part::Write(member) | Part::Swap(member) = part {
            pair.pending[member] = 0;
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({} answered) on {:?}", self.unit, self.answered, self.pair)
    }
}

fn fill(bytes: &mut [u8], stamp: u32, block: u64) {
    let value = |index| if stamp == 0 { 0 } else { word(stamp, block, index) };
    let (words, _) = bytes.as_chunks_mut::<8>();
    (0..WORDS).zip(words).for_each(|(index, bytes)| *bytes = value(index).to_le_bytes());
}

impl Load {
    /// Reads what the clients before have left, works, and reads it again. Returns what all of them have counted.
    ///
    /// # Errors
    /// What broke the rules.
    pub fn run(&self, builder: ferrio_client::SessionBuilder) -> Outcome<[u64; 3]> {
        let wait = match self.caller {
            Caller::Blocking => WaitPolicy::default(),
            Caller::Polling => WaitPolicy::Poll,
            Caller::Sleeping | Caller::Async => WaitPolicy::Sleep,
        };
        let builder = builder
            .volume(&self.volume, Access::ReadWrite)
            .queue(QueueOptions { wait, ..QueueOptions::default() });
        let session = open(builder)?;
        let volume = session.volume(&self.volume).map_err(text)?;
        let ledger =
            Ledger::open(&self.ledger, self.pairs).map_err(|error| format!("the ledger: {error}"))?;
        let ledger = Arc::new(ledger);
        let mut queue = session.take_queue(0).map_err(text)?;
        let mut lanes = Vec::new();
        for index in 0..self.pairs {
            let pair = ledger.pair(index).map_err(|error| format!("the ledger: {error}"))?;
            let rng = fastrand::Rng::with_seed(self.seed << 16 | index as u64);
            let ledger = Arc::clone(&ledger);
            let (unit, unsure) = (Vec::new(), true);
            lanes.push(Lane { index, ledger, pair, unsure, unit, answered: 0, broken: false, rng });
        }
        blocking(&session, &volume, &mut queue, &mut lanes, false)?;
        println!("started");
        let stats = match self.caller {
            Caller::Blocking => {
                while !self.until.exists() {
                    blocking(&session, &volume, &mut queue, &mut lanes, false)?;
                }
                blocking(&session, &volume, &mut queue, &mut lanes, true)?;
                queue.stats()
            }
            Caller::Polling | Caller::Sleeping => {
                self.polling(&session, &volume, &mut queue, &mut lanes)?;
                blocking(&session, &volume, &mut queue, &mut lanes, true)?;
                queue.stats()
            }
            Caller::Async => {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = runtime.map_err(|error| error.to_string())?;
                runtime.block_on(self.concurrently(session, volume, queue, lanes))?
            }
        };
        let QueueStats { submitted, completed, unanswered, unknown, doubled, .. } = stats;
        if submitted != completed || unanswered + unknown + doubled > 0 {
            return Err(format!("not every request was answered once: {stats:?}"));
        }
        ledger.totals().map_err(|error| error.to_string())
    }

    /// Every pair has a unit in flight.
    fn polling(
        &self,
        session: &Session,
        volume: &Volume,
        queue: &mut Queue,
        lanes: &mut [Lane],
    ) -> Outcome<()> {
        let mut idle: Vec<usize> = (0..lanes.len()).collect();
        loop {
            let goes_on = !self.until.exists();
            while goes_on && let Some(index) = idle.pop() {
                let requests = lanes[index].draft(session, volume)?;
                queue.submit_chain(requests).map_err(|failure| failure.error.to_string())?;
            }
            queue.commit().map_err(text)?;
            if queue.in_flight() == 0 {
                return Ok(());
            }
            let completion = queue.wait(Some(PATIENCE)).map_err(text)?;
            let mut next = Some(completion.ok_or_else(|| hang(lanes))?);
            while let Some(completion) = next {
                let index = completion.tag as usize >> 8;
                if lanes.get_mut(index).ok_or("a tag of nobody")?.settle(&Answer::of(&completion)?)? {
                    idle.push(index);
                }
                next = queue.poll().map_err(text)?;
            }
        }
    }

    /// Every pair has a task.
    async fn concurrently(
        &self,
        session: Session,
        volume: Volume,
        queue: Queue,
        lanes: Vec<Lane>,
    ) -> Outcome<QueueStats> {
        let queue = queue.into_async().map_err(text)?;
        let session = Arc::new(session);
        let tasks: Vec<_> = lanes
            .into_iter()
            .map(|mut lane| {
                let (session, queue, volume, until) =
                    (Arc::clone(&session), queue.clone(), volume.clone(), self.until.clone());
                tokio::spawn(async move {
                    loop {
                        let ends = until.exists();
                        lane.unsure |= ends;
                        let requests = lane.draft(&session, &volume)?;
                        let answers = tokio::time::timeout(PATIENCE, queue.execute_chain(requests)).await;
                        let answers = answers.map_err(|_| hang(std::slice::from_ref(&lane)))?;
                        for answer in answers.map_err(|failure| failure.error.to_string())? {
                            lane.settle_async(answer)?;
                        }
                        if ends {
                            return Outcome::Ok(());
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(|error| error.to_string())??;
        }
        Ok(queue.stats())
    }
}

/// One unit of each pair after the other; a read, if it is to be seen.
fn blocking(
    session: &Session,
    volume: &Volume,
    queue: &mut Queue,
    lanes: &mut [Lane],
    look: bool,
) -> Outcome<()> {
    for lane in lanes {
        lane.unsure |= look;
        let requests = lane.draft(session, volume)?;
        for completion in &queue.execute_chain(requests).map_err(|failure| failure.error.to_string())? {
            lane.settle(&Answer::of(completion)?)?;
        }
    }
    Ok(())
}

fn hang(lanes: &[Lane]) -> String {
    let open: Vec<&Lane> = lanes.iter().filter(|lane| lane.answered < lane.unit.len()).collect();
    format!("no answer for {PATIENCE:?}: {open:?}")
}

/// Opens the session, once the daemon is there and has let that of a killed client before it go.
///
/// # Errors
/// Any other refusal, or that one for too long.
pub fn open(builder: ferrio_client::SessionBuilder) -> Outcome<Session> {
    let limit = Instant::now() + PREDECESSOR;
    loop {
        match builder.clone().open() {
            Ok(session) => return Ok(session),
            // A socket that is not there at all is no restart for the library, but here it is.
            Err(Error::Refused { reason: Refusal::Busy, .. } | Error::Connect { .. })
                if Instant::now() < limit =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn text(error: Error) -> String {
    error.to_string()
}
