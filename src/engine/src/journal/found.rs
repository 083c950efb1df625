//! What a daemon that is gone has left in a journal, and what is owed by it. Pure: bytes in, findings out.
//!
//! Damage costs what it hit. A record whose state is damaged but whose SQE is not is answered EOWNERDEAD, if its queue is one
//! answer short; a queue that cannot be accounted for makes its session unfit to be resumed.

use std::collections::{BTreeMap, HashMap, HashSet};

use ferrio_shm::{
    abi::{errno, sqe_flags},
    entry::Sqe,
};

use super::{
    CELL_BYTES, HEADER_BYTES, MAGIC, RECORD_BYTES, VERSION, cell, header, record,
    words::{self, Standing, State, cell_queue, fixed_check, header_check},
};

/// Why a file cannot be read as a journal of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Something else, or damaged where the rest is found from.
    #[error("{0}")]
    Damaged(&'static str),
    /// Of an older ferriod.
    #[error("it has version {0}")]
    Older(u64),
    /// Of a newer ferriod.
    #[error("it has version {0}")]
    Newer(u64),
}

/// A journal that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of the daemon's start that wrote it.
    pub epoch: u64,
    /// Order of acceptance: the highest.
    pub sequence: u64,
    /// By session id.
    pub sessions: BTreeMap<u64, FoundSession>,
    /// Records so damaged that it is not known whose they were, or whether they were anyone's.
    pub damaged: u32,
}

/// A session that it names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundSession {
    /// Its queues on this engine, by their index.
    pub queues: Vec<FoundQueue>,
    /// Why it cannot be resumed.
    pub unfit: Option<String>,
}

/// A queue of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundQueue {
    /// Index in the session.
    pub queue: u32,
    /// The next SQE to be taken.
    pub sq_head: u32,
    /// The CQEs before it are visible to the client.
    pub cq_tail: u32,
    /// The next SQE goes on a chain that was refused.
    pub refuses_chain: bool,
    /// Requests that were accepted and whose CQE the client may not have, in the order of their SQEs.
    pub owed: Vec<Owed>,
}

/// A request that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// What was asked for.
    pub sqe: Sqe,
    /// Where its SQE stood in the ring.
    pub sq_index: u32,
    /// Order of acceptance in the engine.
    pub sequence: u64,
    /// Its answer, as far as there is one.
    pub answer: Answer,
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is none.
    None,
    /// The result stands, the CQ entry does not.
    Decided(i32),
    /// The CQE is this one; the client may have seen it.
    Done {
        /// Result.
        result: i32,
        /// CQE flags.
        flags: u8,
        /// Where it stands.
        cq_index: u32,
    },
}

impl FoundSession {
    /// Requests that it is owed, as far as that is known.
    pub fn owed(&self) -> u64 {
        self.queues.iter().map(|queue| queue.owed.len() as u64).sum()
    }

    fn unfit(&mut self, why: String) {
        self.unfit.get_or_insert(why);
    }
}

/// Reads a journal.
///
/// # Errors
/// Its header is not that of a journal of this version.
pub fn read(file: &[u8]) -> Result<Found, Unreadable> {
    let file = File::new(file)?;
    let mut found = Found { epoch: file.epoch, ..Found::default() };
    let mut cells = read_cells(&file, &mut found);
    for index in 0..file.records {
        read_record(&file, index, &mut cells, &mut found);
    }
    let mut cells: Vec<Cell> = cells.into_values().collect();
    cells.sort_by_key(|cell| cell.queue);
    for cell in cells {
        let session = found.sessions.entry(cell.session).or_default();
        let (queue, unfit) = account(cell, found.damaged);
        if let Some(why) = unfit {
            session.unfit(format!("queue {}: {why}", queue.queue));
        }
        session.queues.push(queue);
    }
    Ok(found)
}

/// The words of a file; those behind its end are zeroes.
struct File<'a> {
    bytes: &'a [u8],
    epoch: u64,
    cells: usize,
    records: u32,
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let mut file = Self { bytes, epoch: 0, cells: 0, records: 0 };
        let words: [u64; header::WORDS] = file.words(0);
        if words[header::MAGIC] != MAGIC {
            return Err(Unreadable::Damaged("it does not begin as a journal does"));
        }
        if words[header::VERSION] == 1 {
            return Err(Unreadable::Older(1));
        }
        if words[header::CHECK] != header_check(&words[..header::CHECK]) {
            return Err(Unreadable::Damaged("the check of its header is wrong"));
        }
        match words[header::VERSION] {
            VERSION => {}
            older if older < VERSION => return Err(Unreadable::Older(older)),
            newer => return Err(Unreadable::Newer(newer)),
        }
        file.epoch = words[header::EPOCH];
        file.cells = words[header::CELLS] as usize;
        file.records = words[header::RECORDS] as u32;
        Ok(file)
    }

    fn cell(&self, index: usize) -> [u64; cell::WORDS] {
        self.words(HEADER_BYTES + CELL_BYTES * index)
    }

    fn is_free(&self, cell: usize) -> bool {
        cell < self.cells && self.cell(cell)[cell::STATE] == words::FREE_CELL
    }

    fn record(&self, index: u32) -> [u64; record::WORDS] {
        self.words(HEADER_BYTES + CELL_BYTES * self.cells + RECORD_BYTES * index as usize)
    }

    fn words<const N: usize>(&self, offset: usize) -> [u64; N] {
        std::array::from_fn(|word| {
            let bytes = self.bytes.get(offset + 8 * word..offset + 8 * word + 8);
            bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
        })
    }
}

/// A cell, and what the records say of it.
struct Cell {
    session: u64,
    queue: u32,
    sq_head: u32,
    cq_tail: u32,
    refuses_chain: bool,
    entries: Vec<Entry>,
}

/// A record of a queue.
#[derive(Clone, Copy)]
struct Entry {
    sqe: Sqe,
    sq_index: u32,
    sequence: u64,
    /// `None`: damaged.
    standing: Option<Standing>,
    cq: Cq,
}

/// Where the answer of a record stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cq {
    /// Nowhere yet.
    Nowhere,
    At(u32),
    Damaged,
}

impl Cq {
    fn of(word: u64) -> Self {
        match words::index(word) {
            Some(index) => Self::At(index),
            None if word == words::NO_INDEX => Self::Nowhere,
            None => Self::Damaged,
        }
    }
}

/// What a record says of itself.
enum Says {
    /// It is owed.
    Owed(Answer),
    /// Its answer is visible.
    Settled,
    /// It has this result and these CQE flags, and may be owed or not.
    Perhaps(i32, u8),
    /// Nothing.
    Nothing,
}

fn read_cells(file: &File<'_>, found: &mut Found) -> HashMap<u32, Cell> {
    let mut cells = HashMap::new();
    for index in 0..file.cells {
        let words = file.cell(index);
        let session = words[cell::SESSION];
        let queue = cell_queue(words[cell::STATE], session);
        if queue == Ok(None) {
            continue;
        }
        let (head, tail) = (words::index(words[cell::SQ_HEAD]), words::index(words[cell::CQ_TAIL]));
        if let (Ok(Some(queue)), Some(sq_head), Some(cq_tail)) = (queue, head, tail) {
            let refuses_chain = words::index(words[cell::REFUSED]) == Some(sq_head);
            let cell = Cell { session, queue, sq_head, cq_tail, refuses_chain, entries: Vec::new() };
            cells.insert(index as u32, cell);
        } else if session != 0 {
            let unfit = "what the journal says of one of its queues is damaged";
            found.sessions.entry(session).or_default().unfit(unfit.into());
        } else {
            found.damaged += 1;
        }
    }
    cells
}

fn read_record(file: &File<'_>, index: u32, cells: &mut HashMap<u32, Cell>, found: &mut Found) {
    let words = file.record(index);
    let standing = words::standing(words[record::STATE]);
    if standing.is_some_and(|standing| standing.state == State::Free) {
        return;
    }
    let sqe = std::array::from_fn(|word| words[word]);
    let rest @ [session, origin, sequence] =
        [words[record::SESSION], words[record::ORIGIN], words[record::SEQUENCE]];
    if words[record::CHECK] != fixed_check(index, &sqe, &rest) {
        found.damaged += 1;
        return;
    }
    found.sequence = found.sequence.max(sequence);
    match cells.get_mut(&((origin >> 32) as u32)) {
        Some(cell) if cell.session == session => cell.entries.push(Entry {
            sqe: Sqe::from_words(sqe),
            sq_index: origin as u32,
            sequence,
            standing,
            cq: Cq::of(words[record::CQ_INDEX]),
        }),
        // Its last use, long ago, or by the session before; or one of a session that was ending.
        _ if standing.is_none() || file.is_free((origin >> 32) as usize) => {}
        _ => {
            let unfit = "what the journal says of a queue that it has requests of is damaged";
            found.sessions.entry(session).or_default().unfit(unfit.into());
        }
    }
}

/// What is owed on a queue, and why that cannot be said. `lost`: records of the file that say nothing.
fn account(cell: Cell, mut lost: u32) -> (FoundQueue, Option<String>) {
    let Cell { queue, sq_head, cq_tail, refuses_chain, mut entries, .. } = cell;
    // At or beyond the acceptance line: not accepted.
    entries.retain(|entry| before(entry.sq_index, sq_head));
    entries.sort_by_key(|entry| entry.sq_index.wrapping_sub(sq_head));
    let mut owed = Vec::new();
    let mut perhaps = Vec::new();
    for entry in &entries {
        match says(entry, cq_tail) {
            Says::Owed(answer) => owed.push(entry.owed(answer)),
            Says::Perhaps(result, flags) => perhaps.push((entry, result, flags)),
            Says::Nothing => lost += 1,
            Says::Settled => {}
        }
    }
    let short = sq_head.wrapping_sub(cq_tail);
    // The one that is missing, if no other can be.
    if let [(entry, result, flags)] = perhaps[..]
        && lost == 0
        && owed.len() + 1 == short as usize
    {
        let cq_index = cq_tail.wrapping_add(gap(&owed, cq_tail));
        owed.push(entry.owed(Answer::Done { result, flags, cq_index }));
    }
    let unfit = check(&owed, cq_tail, short).err();
    break_chains(&entries, &mut owed, sq_head);
    (FoundQueue { queue, sq_head, cq_tail, refuses_chain, owed }, unfit)
}

/// `a` stands before `b`, of two free-running indices that are not far apart.
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

impl Entry {
    fn owed(&self, answer: Answer) -> Owed {
        Owed { sqe: self.sqe, sq_index: self.sq_index, sequence: self.sequence, answer }
    }
}

/// Where the state is damaged, the CQ index tells how far the request came, but not its result.
fn says(entry: &Entry, cq_tail: u32) -> Says {
    let done = |result, flags| match entry.cq {
        Cq::At(cq_index) if before(cq_index, cq_tail) => Says::Settled,
        Cq::At(cq_index) => Says::Owed(Answer::Done { result, flags, cq_index }),
        Cq::Nowhere | Cq::Damaged => Says::Perhaps(result, flags),
    };
    match (entry.standing, entry.cq) {
        (Some(Standing { state: State::Free, .. }), _) => Says::Settled,
        (Some(Standing { state: State::Accepted, .. }), _) => Says::Owed(Answer::None),
        (Some(Standing { state: State::Decided, result, .. }), _) => Says::Owed(Answer::Decided(result)),
        (Some(Standing { state: State::Done, result, flags }), _) => done(result, flags),
        (None, Cq::Nowhere) => Says::Owed(Answer::Decided(-errno::EOWNERDEAD)),
        (None, Cq::At(_)) => done(-errno::EOWNERDEAD, 0),
        (None, Cq::Damaged) => Says::Nothing,
    }
}

/// The first CQ entry from `cq_tail` on that no answer has.
fn gap(owed: &[Owed], cq_tail: u32) -> u32 {
    let places: HashSet<u32> = owed.iter().filter_map(|owed| place_of(owed, cq_tail)).collect();
    (0..).find(|place| !places.contains(place)).unwrap_or_default()
}

/// All that is owed is there, and the answers stand without a gap from `cq_tail` on.
fn check(owed: &[Owed], cq_tail: u32, short: u32) -> Result<(), String> {
    if owed.len() != short as usize {
        return Err(format!("its indices say that {short} requests are owed, its records {}", owed.len()));
    }
    let places: Vec<u32> = owed.iter().filter_map(|owed| place_of(owed, cq_tail)).collect();
    if gap(owed, cq_tail) as usize != places.len() {
        return Err("an answer that the client may have seen is lost".into());
    }
    Ok(())
}

fn place_of(owed: &Owed, cq_tail: u32) -> Option<u32> {
    match owed.answer {
        Answer::Done { cq_index, .. } => Some(cq_index.wrapping_sub(cq_tail)),
        Answer::None | Answer::Decided(_) => None,
    }
}

/// What follows a request that failed in its chain is not started any more. A failed one stands in the journal until those
/// behind it are decided: who has nobody before it may go.
fn break_chains(entries: &[Entry], owed: &mut [Owed], sq_head: u32) {
    owed.sort_by_key(|owed| owed.sq_index.wrapping_sub(sq_head));
    // Index of the SQE after one that is linked, and failed.
    let mut broken: HashSet<u32> = HashSet::new();
    let settled = entries.iter().filter(|entry| {
        let done = entry.standing.filter(|standing| standing.state == State::Done);
        done.is_some_and(|standing| standing.result < 0) && entry.sqe.flags & sqe_flags::LINK != 0
    });
    broken.extend(settled.map(|entry| entry.sq_index.wrapping_add(1)));
    for owed in owed {
        if owed.answer == Answer::None && broken.contains(&owed.sq_index) {
            owed.answer = Answer::Decided(-errno::ECANCELED);
        }
        let failed = match owed.answer {
            Answer::None => false,
            Answer::Decided(result) | Answer::Done { result, .. } => result < 0,
        };
        if failed && owed.sqe.flags & sqe_flags::LINK != 0 {
            broken.insert(owed.sq_index.wrapping_add(1));
        }
    }
}
