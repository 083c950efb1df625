//! Keeps a queue full of reads and writes of pattern blocks, checks what is read, and takes the time.

use std::time::{Duration, Instant};

use ferrio_client::{Buffer, Completion, Error, Queue, Request, Session, Volume};
use hdrhistogram::Histogram;

use super::message::Failure;
use super::pattern::{BLOCK_BYTES, Pattern};
use super::pauses::Pauses;

/// A request that is not completed after this time is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(30);
/// Longest latency that is told apart. Nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// A range of blocks of the client's area to be read or written.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub write: bool,
    pub first: u64,
    pub blocks: u64,
}

/// What came out of some jobs.
pub struct Measured {
    pub requests: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    pub latency: Histogram<u64>,
}

/// A client's area, and the queue it is reached by.
pub struct Drive {
    name: &'static str,
    queue: Queue,
    volume: Volume,
    pattern: Pattern,
    /// First block of the area in the volume.
    first_block: u64,
    /// How often each block of the area was written.
    generations: Vec<u64>,
    /// Blocks with a write in flight: overlapping writes have no order.
    busy: Vec<bool>,
    /// By slot of the queue.
    flights: Vec<Option<Flight>>,
    spare: Vec<Buffer>,
    pub reads: u64,
    pub writes: u64,
    /// Completions of requests that were done again after a restart.
    pub replayed: u64,
    pub pauses: Pauses,
}

#[derive(Clone, Copy)]
struct Flight {
    job: Job,
    since: Instant,
}

impl Drive {
    pub fn new(
        name: &'static str,
        session: &Session,
        volume: Volume,
        pattern: Pattern,
        area: std::ops::Range<u64>,
        depth: usize,
        blocks_max: u64,
    ) -> Result<Self, Error> {
        let queue = session.take_queue(0)?;
        let buffer = |_| session.alloc(blocks_max as usize * BLOCK_BYTES);
        let blocks = (area.end - area.start) as usize;
        Ok(Self {
            name,
            flights: vec![None; queue.in_flight_max()],
            queue,
            volume,
            pattern,
            first_block: area.start,
            generations: vec![0; blocks],
            busy: vec![false; blocks],
            spare: (0..depth).map(buffer).collect::<Result<_, _>>()?,
            reads: 0,
            writes: 0,
            replayed: 0,
            pauses: Pauses::default(),
        })
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Does the jobs, at most `depth` at once, until there is none left and all are completed.
    pub fn run(
        &mut self,
        depth: usize,
        prio: bool,
        mut jobs: impl FnMut() -> Option<Job>,
    ) -> Result<Measured, Failure> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
            .map_err(|error| self.failure(error.to_string()))?;
        let start = Instant::now();
        let mut measured = Measured { requests: 0, bytes: 0, elapsed: Duration::ZERO, latency };
        let mut next = None;
        loop {
            while self.queue.in_flight() < depth {
                next = next.or_else(&mut jobs);
                let Some(job) = next.take_if(|job| !self.is_busy(job)) else { break };
                self.submit(job, prio)?;
            }
            if self.queue.in_flight() == 0 {
                measured.elapsed = start.elapsed();
                return Ok(measured);
            }
            let completion =
                self.queue.wait(Some(LOST_AFTER)).map_err(|error| self.failure(error.to_string()))?;
            let Some(completion) = completion else {
                let in_flight = self.queue.in_flight();
                return Err(
                    self.failure(format!("{in_flight} requests were not completed within {LOST_AFTER:?}"))
                );
            };
            self.complete(completion, &mut measured)?;
            // Whatever else is there, so that one commit submits its successors together.
            while let Some(completion) = self.queue.poll().map_err(|error| self.failure(error.to_string()))? {
                self.complete(completion, &mut measured)?;
            }
        }
    }

    /// Writes, as if by mistake, a block of the area with one byte that is not the pattern's.
    pub fn corrupt(&mut self, block: u64) -> Result<(), Failure> {
        let Some(mut buffer) = self.spare.pop() else { return Err(self.failure("no buffer is left".into())) };
        let (number, bytes) = (self.first_block + block, &mut buffer[..BLOCK_BYTES]);
        self.pattern.fill(number, self.generations[block as usize], bytes);
        bytes[BLOCK_BYTES / 2] ^= 1;
        let request = Request::write(&self.volume, number * BLOCK_BYTES as u64, buffer);
        let completion = self.queue.execute(request.range(0..BLOCK_BYTES));
        let completion = completion.map_err(|failure| self.failure(failure.to_string()))?;
        self.spare.extend(completion.buffer);
        self.writes += 1;
        Ok(())
    }

    /// Makes everything written so far survive a power loss.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.queue.flush(&self.volume).map_err(|error| self.failure(error.to_string()))
    }

    fn is_busy(&self, job: &Job) -> bool {
        job.write && self.busy[range(job)].contains(&true)
    }

    fn submit(&mut self, job: Job, prio: bool) -> Result<(), Failure> {
        let Some(mut buffer) = self.spare.pop() else {
            return Err(self.failure("more requests than buffers".into()));
        };
        let offset = (self.first_block + job.first) * BLOCK_BYTES as u64;
        let bytes = job.blocks as usize * BLOCK_BYTES;
        let request = if job.write {
            for (block, bytes) in range(&job).zip(buffer.chunks_exact_mut(BLOCK_BYTES)) {
                self.generations[block] += 1;
                self.busy[block] = true;
                self.pattern.fill(self.first_block + block as u64, self.generations[block], bytes);
            }
            self.writes += 1;
            Request::write(&self.volume, offset, buffer)
        } else {
            self.reads += 1;
            Request::read(&self.volume, offset, buffer)
        };
        let since = Instant::now();
        let ticket = self.queue.submit(request.range(0..bytes).prio(prio));
        let ticket = ticket.map_err(|error| self.failure(error.to_string()))?;
        self.flights[ticket.slot()] = Some(Flight { job, since });
        Ok(())
    }

    fn complete(&mut self, completion: Completion, measured: &mut Measured) -> Result<(), Failure> {
        let Some(Flight { job, since }) = self.flights[completion.ticket.slot()].take() else {
            return Err(self.failure("a completion for a request that was not submitted".into()));
        };
        let now = Instant::now();
        measured.latency.saturating_record(u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX));
        self.pauses.completed(now);
        self.replayed += u64::from(completion.replayed());
        let verb = if job.write { "writing" } else { "reading" };
        let result = completion.result.map_err(|error| {
            self.failure(format!("{verb} blocks {} to {}: {error}", job.first, job.first + job.blocks - 1))
        });
        measured.bytes += u64::from(result?);
        measured.requests += 1;
        let Some(buffer) = completion.buffer else {
            return Err(self.failure("a buffer did not come back".into()));
        };
        if job.write {
            self.busy[range(&job)].fill(false);
        } else {
            self.check(&job, &buffer)?;
        }
        self.spare.push(buffer);
        Ok(())
    }

    fn check(&self, job: &Job, bytes: &[u8]) -> Result<(), Failure> {
        for (block, bytes) in range(job).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let number = self.first_block + block as u64;
            if let Err(mismatch) = self.pattern.check(number, self.generations[block], bytes) {
                let what = format!(
                    "block {block} of its area (byte {} of the volume) is wrong",
                    number * BLOCK_BYTES as u64
                );
                return Err(Failure {
                    block: Some(block as u64),
                    mismatch: Some(mismatch),
                    ..self.failure(what)
                });
            }
        }
        Ok(())
    }

    pub fn failure(&self, what: String) -> Failure {
        Failure::new(self.name, what)
    }
}

fn range(job: &Job) -> std::ops::Range<usize> {
    job.first as usize..(job.first + job.blocks) as usize
}
