//! One pass over the volume through ferrio: writes it whole, or checks all of it.

use std::time::{Duration, Instant};

use ferrio_client::{Access, Buffer, Completion, Queue, QueueOptions, Request, Session, Volume};

use super::message::{Failure, Message, Sweep, SweepOrder};
use super::pattern::{Ledger, Pattern};

const DEPTH: u32 = 16;
const CHUNK_BYTES: u64 = 256 << 10;
const TELL_EVERY: Duration = Duration::from_millis(100);

struct Pass<'a> {
    queue: Queue,
    volume: Volume,
    bytes: u64,
    chunk_bytes: u64,
    work: Work,
    /// Where the next chunk begins.
    next: u64,
    told: Instant,
    tell: &'a mut dyn FnMut(Message),
}

enum Work {
    Rewrite,
    Fill(Pattern),
    Check(Ledger),
}

/// A chunk's request carries its place, and whether it writes.
const WRITES: u64 = 1 << 63;

/// Goes over the volume; nobody else writes to it meanwhile. Returns the blocks that were checked.
pub fn run(order: &SweepOrder, tell: &mut dyn FnMut(Message)) -> Result<u64, Failure> {
    let failed = |error: ferrio_client::Error| Failure(error.to_string());
    let work = match &order.sweep {
        Sweep::Rewrite => Work::Rewrite,
        &Sweep::Fill { seed, block_bytes } => Work::Fill(Pattern { seed, block_bytes }),
        Sweep::Check(verify) => Work::Check(Ledger::open(verify, 0..order.bytes)?),
    };
    let access = if let Work::Check(_) = work { Access::ReadOnly } else { Access::ReadWrite };
    let session = Session::builder(&order.socket)
        .name("bench-sweep")
        .volume(&order.volume, access)
        .queue(QueueOptions { entries: DEPTH, ..QueueOptions::default() })
        .arena_bytes(u64::from(DEPTH) * CHUNK_BYTES)
        .patience(Duration::ZERO)
        .open()
        .map_err(failed)?;
    let volume = session.volume(&order.volume).map_err(failed)?;
    let mut pass = Pass {
        queue: session.take_queue(0).map_err(failed)?,
        chunk_bytes: CHUNK_BYTES.min(u64::from(volume.request_bytes_max()) / 4096 * 4096).max(4096),
        volume,
        bytes: order.bytes,
        work,
        next: 0,
        told: Instant::now(),
        tell,
    };
    for _ in 0..DEPTH {
        pass.begin(session.alloc(CHUNK_BYTES as usize).map_err(failed)?)?;
    }
    while let Some(completion) = pass.queue.wait(None).map_err(failed)? {
        pass.go_on(completion)?;
    }
    if let Work::Check(_) = pass.work {
        let Sweep::Check(verify) = &order.sweep else { return Ok(0) };
        return Ok(order.bytes / verify.block_bytes);
    }
    pass.queue.flush(&pass.volume).map_err(failed)?;
    Ok(0)
}

impl Pass<'_> {
    /// Starts with the next chunk, if there is one.
    fn begin(&mut self, mut buffer: Buffer) -> Result<(), Failure> {
        let at = self.next;
        let length = self.length(at);
        if length == 0 {
            return Ok(());
        }
        self.next += length;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            (self.tell)(Message::Progress((at * 1000 / self.bytes) as u32));
        }
        let Work::Fill(pattern) = &self.work else { return self.submit(at, false, buffer) };
        let first = at / pattern.block_bytes;
        let blocks = buffer[..length as usize].chunks_exact_mut(pattern.block_bytes as usize);
        (first..).zip(blocks).for_each(|(block, bytes)| pattern.fill(block, 1, bytes));
        self.submit(at, true, buffer)
    }

    /// A read is checked or written back; a write makes place for the next chunk.
    fn go_on(&mut self, completion: Completion) -> Result<(), Failure> {
        let (at, wrote) = (completion.tag & !WRITES, completion.tag & WRITES != 0);
        let what = if wrote { "write" } else { "read" };
        completion.result.map_err(|error| Failure(format!("{what} at byte {at}: {error}")))?;
        let Some(buffer) = completion.buffer else {
            return Err(Failure("a buffer did not come back".into()));
        };
        match &self.work {
            Work::Rewrite if !wrote => return self.submit(at, true, buffer),
            Work::Check(ledger) => ledger.after_read(at, &buffer[..self.length(at) as usize])?,
            Work::Rewrite | Work::Fill(_) => {}
        }
        self.begin(buffer)
    }

    fn submit(&mut self, at: u64, write: bool, buffer: Buffer) -> Result<(), Failure> {
        let (request, tag) = match write {
            true => (Request::write(&self.volume, at, buffer), at | WRITES),
            false => (Request::read(&self.volume, at, buffer), at),
        };
        let request = request.range(0..self.length(at) as usize).tag(tag);
        self.queue.submit(request).map(drop).map_err(|error| Failure(error.to_string()))
    }

    fn length(&self, at: u64) -> u64 {
        (self.bytes - at).min(self.chunk_bytes)
    }
}
