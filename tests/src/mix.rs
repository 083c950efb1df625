//! Random requests of all kinds on a few queues, recorded as a [`History`] and checked.
//!
//! What is asked depends on the seed alone; when it is answered does not.

mod draft;

use std::{collections::HashMap, ops::Range, time::Duration};

use ferrio_client::{
    Completion, Errno, Error, IoFailure, Queue, Region, RequestError, Session, SubmitError, Support, Ticket,
    Volume,
};

use crate::history::{BLOCK, Effect, History, Op, Outcome, WORDS};
use draft::{Change, Draft};

/// Longest that one completion may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the region beside the arena.
const REGION_BYTES: u64 = 1 << 20;

/// Whose outcome may be unknown (EOWNERDEAD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarts {
    /// Nobody's: the daemon is not killed.
    Never,
    /// What cannot be done twice: the daemon is killed and started again.
    Killed,
    /// Anybody's: and its journal is damaged.
    Damaged,
}

/// How a round is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks of the volume that are used; the fewer, the more requests overlap.
    pub blocks: u64,
    /// Most blocks of a request.
    pub blocks_max: u64,
    /// Requests of a round.
    pub requests: u64,
    /// Requests in flight on a queue after which one is waited for.
    pub depth: usize,
    /// Most members of a chain; 1: no chains.
    pub chain_max: usize,
    /// Most requests of a stream, each of which goes on where the one before it ends; 1: no streams.
    pub stream_max: u64,
    /// Requests may fail with EIO.
    pub faults: bool,
    /// What may happen to the daemon.
    pub restarts: Restarts,
}

/// What the rounds have seen, so that a test can tell that it tested something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests answered.
    pub answered: u64,
    /// Of these, cancelled, or behind a failure in their chain.
    pub cancelled: u64,
    /// Not executed in time.
    pub timed_out: u64,
    /// Failed with EIO.
    pub failed: u64,
    /// Swaps that found what they expected.
    pub swapped: u64,
    /// Swaps that did not.
    pub differed: u64,
    /// Reads compared.
    pub read: u64,
    /// Answered EOWNERDEAD.
    pub owner_dead: u64,
    /// Done again after a restart.
    pub replayed: u64,
    /// Most requests in flight on one queue.
    pub deepest: usize,
}

/// A client of one volume that knows what it may hold.
pub struct Mix<'a> {
    session: &'a Session,
    volume: Volume,
    queues: Vec<Queue>,
    region: Region,
    shape: Shape,
    rng: fastrand::Rng,
    clock: u64,
    places: Vec<u64>,
    last_stamp: u32,
    last_chain: u64,
    history: History,
    /// By block: what the last change that was asked for writes there.
    guesses: HashMap<u64, Vec<u64>>,
    /// By op of the round: what the history does not hold.
    asked: Vec<Asked>,
    /// By queue: ops in the order of submission, for cancels to choose from.
    recent: Vec<Vec<usize>>,
    tickets: HashMap<usize, Ticket>,
    /// All that was done so far.
    pub tally: Tally,
}

/// A request as it was asked, and its answer.
#[derive(Clone, Debug)]
struct Asked {
    what: &'static str,
    timeout: bool,
    /// Of a readv: where its entries lie in its buffer.
    places: Vec<Range<usize>>,
    /// The op it was to cancel.
    cancels: Option<usize>,
    answer: Option<Result<u32, Errno>>,
}

impl Asked {
    fn plain(what: &'static str) -> Self {
        Self { what, timeout: false, places: Vec::new(), cancels: None, answer: None }
    }
}

type Outcomes = Result<(), String>;

impl<'a> Mix<'a> {
    /// On these queues of the session, from a volume whose blocks are read first.
    ///
    /// # Panics
    /// The session cannot give what is needed.
    pub fn new(session: &'a Session, volume: &Volume, queues: Vec<Queue>, shape: Shape) -> Self {
        Self {
            session,
            volume: volume.clone(),
            places: vec![0; queues.len()],
            recent: vec![Vec::new(); queues.len()],
            queues,
            region: session.create_region(REGION_BYTES).expect("a region"),
            shape,
            rng: fastrand::Rng::new(),
            clock: 0,
            last_stamp: 0,
            last_chain: 0,
            history: History::default(),
            guesses: HashMap::new(),
            asked: Vec::new(),
            tickets: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// One round: random requests, then silence, then a look at every block.
    ///
    /// # Errors
    /// What broke the rules, with the seed that asks for the same again.
    pub fn round(&mut self, seed: u64) -> Outcomes {
        self.rng = fastrand::Rng::with_seed(seed);
        self.try_round().map_err(|what| format!("{what}\nreplay: FERRIO_MIX_SEED={seed}"))
    }

    fn try_round(&mut self) -> Outcomes {
        if self.history.initial.is_empty() {
            self.history.initial = self.look()?;
        }
        let end = self.shape.requests as usize;
        while self.history.ops.len() < end {
            self.step()?;
        }
        self.drain()?;
        let seen = self.look_recorded()?;
        self.check()?;
        // The look at the end is the beginning of the next round.
        self.history.initial = seen;
        self.history.ops.clear();
        self.asked.clear();
        self.tickets.clear();
        self.guesses.clear();
        self.recent.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    fn step(&mut self) -> Outcomes {
        let queue = self.rng.usize(..self.queues.len());
        match self.rng.u32(..100) {
            0..=9 if self.shape.chain_max > 1 => {
                let members = self.rng.usize(2..=self.shape.chain_max);
                let drafts = (0..members).map(|_| self.draft(queue)).collect::<Result<Vec<_>, _>>()?;
                self.submit_chain(queue, drafts)?;
            }
            10..=14 if self.shape.stream_max > 1 => self.submit_stream(queue)?,
            _ => {
                let draft = self.draft(queue)?;
                self.submit(queue, draft)?;
            }
        }
        if self.rng.u32(..4) == 0 {
            self.commit(queue)?;
        }
        // Never deeper than asked, and now and then nothing left in flight.
        let low = if self.rng.usize(..8 * self.shape.depth) == 0 { 0 } else { self.shape.depth };
        while self.queues[queue].in_flight() > low {
            self.wait(queue)?;
        }
        Ok(())
    }

    fn submit(&mut self, queue: usize, draft: Draft) -> Outcomes {
        let Draft { mut request, asked, change } = draft;
        let op = self.record(queue, asked, change, None);
        loop {
            match self.queues[queue].submit(request.tag(op as u64)) {
                Ok(ticket) => {
                    self.tickets.insert(op, ticket);
                    break;
                }
                Err(SubmitError::Full(full)) => request = full,
                Err(SubmitError::Refused(refused)) => return Err(format!("refused: {}", refused.error)),
            }
            self.make_room(queue)?;
        }
        self.deepen(queue);
        Ok(())
    }

    fn submit_stream(&mut self, queue: usize) -> Outcomes {
        let requests = self.rng.u64(2..=self.shape.stream_max.min(self.shape.blocks));
        let first = self.rng.u64(..=self.shape.blocks - requests);
        let (write, prio) = (self.rng.bool(), self.rng.u32(..4) == 0);
        for block in first..first + requests {
            let mut draft = self.draft_of_stream(block, write)?;
            draft.request = draft.request.prio(prio);
            self.submit(queue, draft)?;
        }
        Ok(())
    }

    fn submit_chain(&mut self, queue: usize, drafts: Vec<Draft>) -> Outcomes {
        self.last_chain += 1;
        let (mut ops, mut requests) = (Vec::new(), Vec::new());
        for Draft { request, asked, change } in drafts {
            ops.push(self.record(queue, asked, change, Some(self.last_chain)));
            requests.push(request);
        }
        let tickets = loop {
            let tagged = requests.into_iter().zip(&ops).map(|(request, op)| request.tag(*op as u64));
            match self.queues[queue].submit_chain(tagged.collect()) {
                Ok(tickets) => break tickets,
                Err(failure) if matches!(failure.error, Error::Full { .. }) => requests = failure.requests,
                Err(failure) => return Err(format!("refused: {}", failure.error)),
            }
            self.make_room(queue)?;
        };
        self.tickets.extend(ops.into_iter().zip(tickets));
        self.deepen(queue);
        Ok(())
    }

    /// Enters a request into the history, at the end of its queue.
    fn record(&mut self, queue: usize, asked: Asked, change: Change, chain: Option<u64>) -> usize {
        self.clock += 1;
        self.places[queue] += 1;
        let Change { effect, barrier, first, blocks } = change;
        let op = self.history.ops.len();
        self.history.ops.push(Op {
            queue,
            place: self.places[queue],
            chain,
            barrier,
            first,
            blocks,
            submitted: self.clock,
            answered: u64::MAX,
            effect,
            outcome: Outcome::Not,
        });
        self.asked.push(asked);
        self.recent[queue].push(op);
        op
    }

    fn deepen(&mut self, queue: usize) {
        self.tally.deepest = self.tally.deepest.max(self.queues[queue].in_flight());
    }

    fn make_room(&mut self, queue: usize) -> Outcomes {
        self.commit(queue)?;
        if self.queues[queue].in_flight() > 0 {
            return self.wait(queue);
        }
        // All is answered, and the daemon is about to free the SQ slots.
        std::thread::yield_now();
        Ok(())
    }

    fn commit(&mut self, queue: usize) -> Outcomes {
        self.queues[queue].commit().map(drop).map_err(|error| error.to_string())
    }

    /// Waits for one completion and takes in what else is there.
    fn wait(&mut self, queue: usize) -> Outcomes {
        let completion = self.queues[queue].wait(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let Some(completion) = completion else { return Err(self.hang(queue)) };
        self.take(completion)?;
        while let Some(completion) = self.queues[queue].poll().map_err(|error| error.to_string())? {
            self.take(completion)?;
        }
        Ok(())
    }

    fn hang(&self, queue: usize) -> String {
        let open = |op: &usize| self.asked[*op].answer.is_none();
        let left: Vec<String> =
            (0..self.asked.len()).filter(open).take(20).map(|op| self.describe(op)).collect();
        format!("nothing on queue {queue} for {PATIENCE:?}; unanswered: {}", left.join(", "))
    }

    fn describe(&self, op: usize) -> String {
        let (asked, known) = (&self.asked[op], &self.history.ops[op]);
        format!(
            "{op} {} of blocks {}+{} on queue {}, chain {:?}, barrier {}, timeout {}: {:?}",
            asked.what,
            known.first,
            known.blocks,
            known.queue,
            known.chain,
            known.barrier,
            asked.timeout,
            asked.answer
        )
    }

    fn take(&mut self, completion: Completion) -> Outcomes {
        self.clock += 1;
        let index = usize::try_from(completion.tag).map_err(|error| error.to_string())?;
        let (asked, op) = (&mut self.asked[index], &mut self.history.ops[index]);
        let answer = match &completion.result {
            Ok(bytes) => Ok(*bytes),
            Err(RequestError::Errno(errno)) => Err(*errno),
            Err(other) => return Err(format!("{}: {other}", self.describe(index))),
        };
        if asked.answer.replace(answer).is_some() {
            return Err(format!("answered twice: {}", self.describe(index)));
        }
        if completion.overdue() && (!asked.timeout || answer == Err(Errno::ETIMEDOUT)) {
            return Err(format!("overdue without a timeout, or not issued: {}", self.describe(index)));
        }
        op.answered = self.clock;
        op.outcome = match answer {
            Ok(_) => Outcome::Done,
            Err(Errno::ECANCELED | Errno::ETIMEDOUT | Errno::EOPNOTSUPP) => Outcome::Not,
            Err(Errno::ENOENT | Errno::EALREADY) => Outcome::Failed,
            Err(Errno::EILSEQ) => Outcome::Differed,
            Err(_) => Outcome::Failed,
        };
        self.tally.count(&op.effect, answer);
        self.tally.replayed += u64::from(completion.replayed());
        if let (Effect::Read(words), Outcome::Done) = (&mut op.effect, op.outcome) {
            match (&completion.buffer, &completion.iovec) {
                (Some(buffer), None) => *words = words_of(buffer),
                (None, Some(list)) => {
                    let buffer = list.buffer(0).map_or(&[][..], |buffer| &buffer[..]);
                    *words = asked.places.iter().flat_map(|place| words_of(&buffer[place.clone()])).collect();
                }
                _ => return Err(format!("without its memory: {}", self.describe(index))),
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) -> Outcomes {
        for queue in 0..self.queues.len() {
            self.commit(queue)?;
            while self.queues[queue].in_flight() > 0 {
                self.wait(queue)?;
            }
        }
        Ok(())
    }

    /// What every block holds, when nothing is in flight.
    fn look(&mut self) -> Result<Vec<u64>, String> {
        let mut words = Vec::with_capacity(self.shape.blocks as usize * WORDS);
        let mut buffer = self.session.alloc(BLOCK).map_err(|error| error.to_string())?;
        for block in 0..self.shape.blocks {
            let read = loop {
                match self.queues[0].read(&self.volume, block * BLOCK as u64, buffer) {
                    Ok(read) => break read,
                    // Faults are made on purpose, and not for ever.
                    Err(IoFailure { error, buffer: Some(back), .. })
                        if self.shape.faults && error.errno() == Some(Errno::EIO) =>
                    {
                        buffer = back;
                    }
                    Err(failure) => return Err(format!("block {block}: {failure}")),
                }
            };
            words.extend(words_of(&read));
            buffer = read;
        }
        Ok(words)
    }

    /// The same, as the last requests of the history.
    fn look_recorded(&mut self) -> Result<Vec<u64>, String> {
        let seen = self.look()?;
        for (block, words) in (0..).zip(seen.chunks_exact(WORDS)) {
            let asked = Asked::plain("look");
            let change =
                Change { effect: Effect::Read(words.to_vec()), barrier: false, first: block, blocks: 1 };
            let op = self.record(0, asked, change, None);
            self.clock += 1;
            self.history.ops[op].answered = self.clock;
            self.history.ops[op].outcome = Outcome::Done;
            self.asked[op].answer = Some(Ok(BLOCK as u32));
        }
        Ok(seen)
    }

    fn check(&self) -> Outcomes {
        self.check_answers()?;
        self.history.check().map_err(|violation| {
            let near = |op: &usize| {
                let op = &self.history.ops[*op];
                (op.first..op.first + op.blocks).contains(&violation.block)
            };
            let around: Vec<String> =
                (0..self.history.ops.len()).filter(near).map(|op| self.describe(op)).collect();
            format!(
                "{violation}\n  it is {}\n  on this block:\n    {}",
                self.describe(violation.op),
                around.join("\n    ")
            )
        })
    }

    /// What answers say about each other.
    fn check_answers(&self) -> Outcomes {
        let mut cancelled = vec![0; self.asked.len()];
        let mut unknown = vec![false; self.asked.len()];
        let mut broken: HashMap<u64, usize> = HashMap::new();
        let fail = |op: usize, what: &str| Err(format!("{what}: {}", self.describe(op)));
        for (index, asked) in self.asked.iter().enumerate() {
            let Some(target) = asked.cancels else { continue };
            let missed = self.asked[target].answer != Some(Err(Errno::ECANCELED));
            match asked.answer {
                Some(Ok(_)) if missed => return fail(target, "cancelled, and answers something else"),
                Some(Ok(_)) if self.history.ops[target].answered > self.history.ops[index].answered => {
                    return fail(target, "answered after the cancel that took it back");
                }
                Some(Ok(_)) => cancelled[target] += 1,
                // Whether it took the request back is not known.
                Some(Err(Errno::EOWNERDEAD)) => unknown[target] = true,
                Some(Err(Errno::EALREADY)) if !missed && !self.is_behind_unknown(target) => {
                    return fail(target, "a cancel came too late for it, and it is cancelled");
                }
                Some(Err(Errno::ENOENT))
                    if self.history.ops[target].answered > self.history.ops[index].answered =>
                {
                    return fail(target, "a cancel did not find it, and it was not answered");
                }
                _ => {}
            }
            if cancelled[target] > 1 {
                return fail(target, "two cancels took it back");
            }
        }
        for (index, asked) in self.asked.iter().enumerate() {
            let Some(answer) = asked.answer else { return fail(index, "never answered") };
            let chain = self.history.ops[index].chain;
            let behind = chain.is_some_and(|chain| broken.contains_key(&chain));
            match answer {
                Err(Errno::ECANCELED) if behind || cancelled[index] > 0 || unknown[index] => {}
                Err(Errno::ECANCELED) => return fail(index, "cancelled by nobody"),
                Err(Errno::ETIMEDOUT) if asked.timeout => {}
                _ if behind => return fail(index, "executed behind a failure in its chain"),
                Err(Errno::EILSEQ) if asked.what == "compare-and-write" => {}
                Err(Errno::ENOENT | Errno::EALREADY) if asked.cancels.is_some() => {}
                Err(Errno::EIO) if self.shape.faults => {}
                Err(Errno::EOWNERDEAD) if self.may_be_unknown(asked) => {}
                Err(Errno::EOPNOTSUPP) if self.is_unsupported(asked.what) => {}
                Ok(_) => {}
                Err(_) => return fail(index, "an answer that nothing explains"),
            }
            if let (Err(_), Some(chain)) = (answer, chain) {
                broken.entry(chain).or_insert(index);
            }
        }
        Ok(())
    }

    /// After a restart all that is done again counts as issued, and one behind a request of unknown outcome is not done.
    fn is_behind_unknown(&self, target: usize) -> bool {
        let chain = self.history.ops[target].chain;
        let mut before = (0..target).filter(|op| chain.is_some() && self.history.ops[*op].chain == chain);
        before.any(|op| self.asked[op].answer == Some(Err(Errno::EOWNERDEAD)))
    }

    fn may_be_unknown(&self, asked: &Asked) -> bool {
        match self.shape.restarts {
            Restarts::Never => false,
            Restarts::Killed => asked.what == "compare-and-write" || asked.cancels.is_some(),
            Restarts::Damaged => true,
        }
    }

    fn is_unsupported(&self, what: &str) -> bool {
        let support = match what {
            "discard" => self.volume.discard(),
            "write-zeroes" => self.volume.write_zeroes(),
            _ => return false,
        };
        matches!(support, Support::Unsupported(_))
    }
}

impl Tally {
    fn count(&mut self, effect: &Effect, answer: Result<u32, Errno>) {
        self.answered += 1;
        match (effect, answer) {
            (Effect::Read(_), Ok(_)) => self.read += 1,
            (Effect::Swap { .. }, Ok(_)) => self.swapped += 1,
            (_, Err(Errno::EILSEQ)) => self.differed += 1,
            (_, Err(Errno::ECANCELED)) => self.cancelled += 1,
            (_, Err(Errno::ETIMEDOUT)) => self.timed_out += 1,
            (_, Err(Errno::EIO)) => self.failed += 1,
            (_, Err(Errno::EOWNERDEAD)) => self.owner_dead += 1,
            _ => {}
        }
    }
}

pub(crate) fn words_of(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}
