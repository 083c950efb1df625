//! The loop of a client: keeps requests in flight, and takes the time of each.
//!
//! It is the same for ferrio and for its peers, and reads the clock once per batch of completions: that moment is the end
//! of the requests in the batch and the beginning of their successors.

use std::ops::Range;

use ferrio_driver::random::SplitMix64;
use hdrhistogram::Histogram;

use super::args::Rw;
use super::clock::now_ns;
use super::message::{Failure, Load, LoadOrder, Window};
use super::pattern::Ledger;
use super::usage::Usage;

/// Longest latency that is told apart. Nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// A request: the whole buffer of a slot, to or from a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub slot: u32,
    pub write: bool,
    /// Bytes.
    pub offset: u64,
}

/// The answer to one. The text is the error.
pub struct Answer {
    pub slot: u32,
    pub error: Option<Box<str>>,
}

/// Who does the I/O.
pub trait Engine {
    /// Data of a slot that is not in flight.
    fn buffer(&mut self, slot: u32) -> Result<&mut [u8], Failure>;

    /// Takes a request, for the next [`wait`](Self::wait) to issue.
    fn stage(&mut self, request: Request) -> Result<(), Failure>;

    /// Issues what was staged, waits until something is done, and appends all that is.
    fn wait(&mut self, done: &mut Vec<Answer>) -> Result<(), Failure>;
}

/// The requests of one client, one after the other.
#[derive(Debug)]
pub struct Workload {
    rw: Rw,
    bs: u64,
    area: Range<u64>,
    next: u64,
    random: SplitMix64,
    verify: Option<Check>,
}

/// What is needed to check the data.
#[derive(Debug)]
struct Check {
    ledger: Ledger,
    /// By block of the area, if some of them are written: a request is in flight. A write and another request to the same
    /// block have no order.
    busy: Option<Vec<bool>>,
}

impl Workload {
    pub fn new(order: &LoadOrder) -> Result<Workload, Failure> {
        let LoadOrder { rw, bs, ref area, seed, .. } = *order;
        let ledger = order.verify.as_ref().map(|verify| Ledger::open(verify, area.start * bs..area.end * bs));
        let busy = rw.writes().then(|| vec![false; (area.end - area.start) as usize]);
        let verify = ledger.transpose()?.map(|ledger| Check { ledger, busy });
        let mut random = SplitMix64::new(seed);
        let next = area.start + random.below(area.end - area.start);
        Ok(Workload { rw, bs, area: area.clone(), next, random, verify })
    }

    /// What the slot does next.
    fn next(&mut self, slot: u32) -> Request {
        let write = match self.rw {
            Rw::RandRead | Rw::Read => false,
            Rw::RandWrite | Rw::Write => true,
            Rw::Mixed => self.random.next_u64() & 1 == 1,
        };
        let mut block = self.place();
        while self.is_busy(block) {
            block = self.place();
        }
        Request { slot, write, offset: block * self.bs }
    }

    fn place(&mut self) -> u64 {
        if self.rw.is_random() {
            return self.area.start + self.random.below(self.area.end - self.area.start);
        }
        let block = self.next;
        self.next = if block + 1 == self.area.end { self.area.start } else { block + 1 };
        block
    }

    fn before(&mut self, request: Request, engine: &mut impl Engine) -> Result<(), Failure> {
        self.set_busy(request, true);
        match &mut self.verify {
            Some(check) if request.write => {
                check.ledger.before_write(request.offset, engine.buffer(request.slot)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn after(&mut self, request: Request, engine: &mut impl Engine) -> Result<(), Failure> {
        self.set_busy(request, false);
        match &self.verify {
            Some(check) if !request.write => {
                check.ledger.after_read(request.offset, engine.buffer(request.slot)?)
            }
            _ => Ok(()),
        }
    }

    fn is_busy(&self, block: u64) -> bool {
        let busy = self.verify.as_ref().and_then(|check| check.busy.as_ref());
        busy.is_some_and(|busy| busy[(block - self.area.start) as usize])
    }

    fn set_busy(&mut self, request: Request, value: bool) {
        if let Some(busy) = self.verify.as_mut().and_then(|check| check.busy.as_mut()) {
            busy[(request.offset / self.bs - self.area.start) as usize] = value;
        }
    }

    /// Keeps what the next client of this area has to know.
    fn finish(&self) -> Result<(), Failure> {
        match &self.verify {
            Some(check) if self.rw.writes() => check.ledger.save(),
            _ => Ok(()),
        }
    }
}

/// Random data into every buffer: so every page is there, and a disk that compresses gains nothing.
pub fn touch(engine: &mut impl Engine, depth: u32, seed: u64) -> Result<(), Failure> {
    let mut random = SplitMix64::new(seed);
    for slot in 0..depth {
        engine.buffer(slot)?.chunks_mut(8).for_each(|bytes| {
            let word = random.next_u64().to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        });
    }
    Ok(())
}

/// Keeps `depth` requests in flight until the window closes, and measures within it.
pub fn run<E: Engine>(
    engine: &mut E,
    workload: &mut Workload,
    depth: u32,
    window: Window,
) -> Result<(Load, Histogram<u64>), Failure> {
    let mut drive = Drive {
        engine,
        workload,
        flights: vec![Flight::default(); depth as usize].into(),
        done: Vec::with_capacity(depth as usize),
        now_ns: now_ns(),
    };
    for slot in 0..depth {
        drive.issue(slot)?;
    }
    let mut latency = histogram()?;
    drive.until::<false>(window.start_ns, &mut latency)?;
    let (before, begin_ns) = (Usage::of_this_process(), drive.now_ns);
    drive.until::<true>(window.end_ns, &mut latency)?;
    let used = Usage::of_this_process() - before;
    let elapsed_ns = window.end_ns.saturating_sub(begin_ns);
    drive.drain()?;
    workload.finish()?;
    let Usage { cpu_ns, switches } = used;
    let load = Load { completed: latency.len(), elapsed_ns, cpu_ns, switches, latency: Vec::new() };
    Ok((load, latency))
}

/// For latencies in nanoseconds.
pub fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).map_err(Failure::of("cannot make a histogram"))
}

#[derive(Clone, Copy, Default)]
struct Flight {
    request: Request,
    since_ns: u64,
}

struct Drive<'a, E> {
    engine: &'a mut E,
    workload: &'a mut Workload,
    /// By slot.
    flights: Box<[Flight]>,
    done: Vec<Answer>,
    /// When the last batch was done.
    now_ns: u64,
}

impl<E: Engine> Drive<'_, E> {
    fn issue(&mut self, slot: u32) -> Result<(), Failure> {
        let request = self.workload.next(slot);
        self.workload.before(request, self.engine)?;
        self.flights[slot as usize] = Flight { request, since_ns: self.now_ns };
        self.engine.stage(request)
    }

    fn until<const MEASURE: bool>(
        &mut self,
        end_ns: u64,
        latency: &mut Histogram<u64>,
    ) -> Result<(), Failure> {
        loop {
            self.batch()?;
            let over = self.now_ns >= end_ns;
            for index in 0..self.done.len() {
                let flight = self.answered(index)?;
                if MEASURE && !over {
                    latency.saturating_record(self.now_ns - flight.since_ns);
                }
                self.issue(flight.request.slot)?;
            }
            if over {
                return Ok(());
            }
        }
    }

    fn drain(&mut self) -> Result<(), Failure> {
        let mut in_flight = self.flights.len();
        while in_flight > 0 {
            self.batch()?;
            for index in 0..self.done.len() {
                self.answered(index)?;
                in_flight -= 1;
            }
        }
        Ok(())
    }

    fn batch(&mut self) -> Result<(), Failure> {
        self.done.clear();
        self.engine.wait(&mut self.done)?;
        self.now_ns = now_ns();
        Ok(())
    }

    fn answered(&mut self, index: usize) -> Result<Flight, Failure> {
        let Answer { slot, ref error } = self.done[index];
        let flight = self.flights[slot as usize];
        let Request { write, offset, .. } = flight.request;
        if let Some(error) = error {
            let what = if write { "write" } else { "read" };
            return Err(Failure(format!("{what} at byte {offset}: {error}")));
        }
        self.workload.after(flight.request, self.engine)?;
        Ok(flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::args::Wait;
    use crate::bench::message::{self, Route};

    const BS: u64 = 512;

    /// A disk in memory that answers everything at once, last first.
    struct Memory {
        disk: Vec<u8>,
        buffers: Vec<Vec<u8>>,
        staged: Vec<Request>,
        seen: Vec<Request>,
        fail_at: Option<u64>,
    }

    impl Memory {
        fn new(blocks: u64, depth: u32) -> Memory {
            Memory {
                disk: vec![0; (blocks * BS) as usize],
                buffers: vec![vec![0; BS as usize]; depth as usize],
                staged: Vec::new(),
                seen: Vec::new(),
                fail_at: None,
            }
        }
    }

    impl Engine for Memory {
        fn buffer(&mut self, slot: u32) -> Result<&mut [u8], Failure> {
            Ok(&mut self.buffers[slot as usize])
        }

        fn stage(&mut self, request: Request) -> Result<(), Failure> {
            assert!(self.staged.iter().all(|other| other.slot != request.slot), "one request per slot");
            self.staged.push(request);
            self.seen.push(request);
            Ok(())
        }

        fn wait(&mut self, done: &mut Vec<Answer>) -> Result<(), Failure> {
            for request in self.staged.drain(..).rev() {
                let place = request.offset as usize..(request.offset + BS) as usize;
                let buffer = &mut self.buffers[request.slot as usize];
                match request.write {
                    true => self.disk[place].copy_from_slice(buffer),
                    false => buffer.copy_from_slice(&self.disk[place]),
                }
                let error = (self.fail_at == Some(request.offset)).then(|| "EIO".into());
                done.push(Answer { slot: request.slot, error });
            }
            Ok(())
        }
    }

    fn order(rw: Rw, area: Range<u64>) -> LoadOrder {
        let route = Route::Ferrio { socket: "".into(), volume: "".into(), wait: Wait::Poll, merge: true };
        LoadOrder { route, rw, bs: BS, iodepth: 4, area, seed: 7, verify: None }
    }

    fn window() -> Window {
        let now = now_ns();
        Window { start_ns: now + 1_000_000, end_ns: now + 3_000_000 }
    }

    #[test]
    fn requests_stay_in_the_area_and_are_counted_in_the_window() {
        for rw in [Rw::RandRead, Rw::RandWrite, Rw::Read, Rw::Write, Rw::Mixed] {
            let mut engine = Memory::new(64, 4);
            let mut workload = Workload::new(&order(rw, 16..48)).unwrap();
            let (load, latency) = run(&mut engine, &mut workload, 4, window()).unwrap();
            assert!(load.completed < engine.seen.len() as u64, "not what was done before and after");
            assert_eq!(load.completed, latency.len());
            assert!(load.elapsed_ns <= 2_000_000);
            assert!(engine.seen.iter().all(|request| (16 * BS..48 * BS).contains(&request.offset)));
            assert_eq!(engine.seen.iter().any(|request| request.write), rw.writes());
            let follows = |pair: &[Request]| {
                pair[1].offset == pair[0].offset + BS
                    || (pair[0].offset, pair[1].offset) == (47 * BS, 16 * BS)
            };
            assert_eq!(engine.seen.windows(2).all(follows), !rw.is_random());
        }
    }

    #[test]
    fn an_error_names_the_place() {
        let mut engine = Memory { fail_at: Some(3 * BS), ..Memory::new(8, 4) };
        let mut workload = Workload::new(&order(Rw::Read, 0..8)).unwrap();
        let error = run(&mut engine, &mut workload, 4, window()).unwrap_err();
        assert_eq!(error.0, "read at byte 1536: EIO");
    }

    #[test]
    fn what_was_written_is_found_again_and_what_was_not_is_named() {
        let file =
            std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        Ledger::create(&file, 64).unwrap();
        let generations = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)).into();
        let verify = message::Verify { seed: 1, block_bytes: BS, generations };
        let order = LoadOrder { verify: Some(verify), ..order(Rw::Mixed, 0..64) };
        let mut engine = Memory::new(64, 4);
        let pattern = super::super::pattern::Pattern { seed: 1, block_bytes: BS };
        for (block, bytes) in engine.disk.chunks_exact_mut(BS as usize).enumerate() {
            pattern.fill(block as u64, 1, bytes);
        }
        for _ in 0..2 {
            run(&mut engine, &mut Workload::new(&order).unwrap(), 4, window()).unwrap();
        }
        engine.disk[5 * BS as usize] ^= 1;
        let reads = LoadOrder { rw: Rw::RandRead, ..order };
        let error = run(&mut engine, &mut Workload::new(&reads).unwrap(), 4, window()).unwrap_err();
        assert!(error.0.contains("block 5 (byte 2560 of the volume) is wrong"), "{error}");
    }
}
