//! The journal: accepted requests, in a file on tmpfs that outlives the daemon.
//!
//! It is what the next daemon goes on from, so it says at every instant what is owed. Order of the writes, which a kill may
//! cut anywhere:
//!
//! - *Acceptance line*: record -> `Accepted` -> sq_head -> what others may see of it. A record at or beyond sq_head was not
//!   accepted: the next daemon frees it and takes its SQE from the ring again.
//! - An answer that is found without the driver: `Decided` -> whatever follows from it. The next daemon gives the same answer.
//! - *Answer line*: result, CQE flags and CQ index -> `Done` -> CQE -> the client's cq_tail -> cq_tail -> `Free`. The next daemon
//!   writes the CQEs of `Done` records from cq_tail on again, where they stood.
//!
//! A killed process loses no store it has made to a shared file mapping, so the order is that of one memory, not of a disk:
//! `Release` stores are enough.
//!
//! Layout (little-endian, no pointers): a header page, then a cell of 128 bytes per queue, then a record of 128 bytes per
//! request. The file is 0600 in the daemon's runtime directory. [`words`] says how damage is told, [`found`] reads what another
//! daemon has left.

pub mod found;
pub mod renew;
pub mod words;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use ferrio_shm::{
    entry::Sqe,
    mapping::{Mapping, Rows},
};

use self::words::{
    CellState, FREE_CELL, NO_INDEX, cell_word, fixed_check, header_check, index_word, state_word,
};
pub use self::words::{Standing, State};

/// "FERRIOJ" and a zero byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FERRIOJ\0");
/// Version of this layout. 1 had no checks and nothing of it was ever resumed.
pub const VERSION: u64 = 2;

const HEADER_BYTES: usize = 4096;
const CELL_BYTES: usize = 128;
const RECORD_BYTES: usize = 128;

/// Words of the header. Those of magic, version and check stand where they do in every version from 2 on.
mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const EPOCH: usize = 2;
    pub const CELLS: usize = 3;
    pub const RECORDS: usize = 4;
    /// Over the words before it.
    pub const CHECK: usize = 7;
    pub const WORDS: usize = 8;
}

/// Words of a queue cell. The Submitter writes the first line, the reaper the second.
mod cell {
    pub const SESSION: usize = 0;
    pub const STATE: usize = 1;
    pub const SQ_HEAD: usize = 2;
    /// Index of an SQE that goes on a chain that was refused.
    pub const REFUSED: usize = 3;
    pub const CQ_TAIL: usize = 8;
    pub const WORDS: usize = 16;
}

/// Words of a record; the SQE stands in words 0 to 7.
mod record {
    /// Of the SQE, whose words come first.
    pub const OFFSET: usize = 2;
    pub const SESSION: usize = 8;
    /// queue cell << 32 | sq index
    pub const ORIGIN: usize = 9;
    pub const SEQUENCE: usize = 10;
    /// Over the words before it.
    pub const CHECK: usize = 11;
    pub const STATE: usize = 12;
    pub const CQ_INDEX: usize = 13;
    pub const WORDS: usize = 16;
}

/// Where a record's request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Session id.
    pub session: u64,
    /// Queue cell.
    pub cell: u32,
    /// Free-running index of the SQE in its ring.
    pub sq_index: u32,
    /// Order of acceptance in the engine.
    pub sequence: u64,
}

/// The journal of one engine.
#[derive(Clone)]
pub struct Journal {
    header: Rows<{ header::WORDS }>,
    cells: Rows<{ cell::WORDS }>,
    records: Rows<{ record::WORDS }>,
}

impl Journal {
    /// Creates the file anew, all cells and records free.
    ///
    /// # Errors
    /// The path is not writable, or its file system is full: the blocks are allocated here, so that no later store to
    /// the mapping can fail (SIGBUS).
    pub fn create(path: &Path, cells: u32, records: u32, epoch: u64) -> io::Result<Self> {
        let bytes = Self::bytes(cells, records);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        allocate(&file, bytes as u64)?;
        let mapping = Arc::new(Mapping::of_file(&file, bytes)?);
        let fits = "the journal was mapped with room for all cells and records";
        let journal = Self {
            header: Rows::new(Arc::clone(&mapping), 0, 1).expect(fits),
            cells: Rows::new(Arc::clone(&mapping), HEADER_BYTES, cells).expect(fits),
            records: Rows::new(mapping, HEADER_BYTES + CELL_BYTES * cells as usize, records).expect(fits),
        };
        (0..cells).for_each(|cell| journal.close_cell(cell));
        (0..records).for_each(|record| journal.free(record));
        let words = [MAGIC, VERSION, epoch, cells.into(), records.into(), 0, 0];
        let header = journal.header.row(0);
        header[header::CHECK].store(header_check(&words), Relaxed);
        for (word, value) in header.iter().zip(words).skip(1) {
            word.store(value, Relaxed);
        }
        header[header::MAGIC].store(MAGIC, Release);
        Ok(journal)
    }

    /// Length of the file.
    pub fn bytes(cells: u32, records: u32) -> usize {
        HEADER_BYTES + CELL_BYTES * cells as usize + RECORD_BYTES * records as usize
    }

    /// Queue cells.
    pub fn cells(&self) -> u32 {
        self.cells.count()
    }

    /// Requests that it has room for.
    pub fn records(&self) -> u32 {
        self.records.count()
    }

    /// A queue is opened on a free cell; the ring ends stand at `sq_head` and `cq_tail`, 0 in a fresh queue.
    pub fn open_cell(&self, index: u32, session: u64, queue: u32, sq_head: u32, cq_tail: u32) {
        let words = self.cell(index);
        words[cell::SESSION].store(session, Relaxed);
        words[cell::SQ_HEAD].store(index_word(sq_head), Relaxed);
        words[cell::REFUSED].store(0, Relaxed);
        words[cell::CQ_TAIL].store(index_word(cq_tail), Relaxed);
        words[cell::STATE].store(cell_word(CellState::Open, session, queue), Release);
    }

    /// The queue ends: nobody comes back for the requests that it still has.
    pub fn close_cell(&self, index: u32) {
        self.cell(index)[cell::STATE].store(FREE_CELL, Release);
    }

    /// The SQEs before `head` have their records. Submitter.
    pub fn set_sq_head(&self, index: u32, head: u32) {
        self.cell(index)[cell::SQ_HEAD].store(index_word(head), Release);
    }

    /// The SQE at `next` goes on a chain that is refused. Submitter, before it moves sq_head there.
    pub fn refuse_chain(&self, index: u32, next: u32) {
        self.cell(index)[cell::REFUSED].store(index_word(next), Relaxed);
    }

    /// The CQEs before `tail` are visible to the client. Reaper.
    pub fn set_cq_tail(&self, index: u32, tail: u32) {
        self.cell(index)[cell::CQ_TAIL].store(index_word(tail), Release);
    }

    /// Writes a record and makes it `Accepted`. Submitter.
    #[inline(always)] // where the words of the SQE were just taken apart
    pub fn accept(&self, index: u32, sqe: &Sqe, origin: &Origin) {
        let words = self.record(index);
        let sqe = sqe.to_words();
        let origin =
            [origin.session, u64::from(origin.cell) << 32 | u64::from(origin.sq_index), origin.sequence];
        for (word, value) in words.iter().zip(sqe.into_iter().chain(origin)) {
            word.store(value, Relaxed);
        }
        words[record::CHECK].store(fixed_check(index, &sqe, &origin), Relaxed);
        // Of its last use: should the state be damaged, this says how far it came.
        words[record::CQ_INDEX].store(NO_INDEX, Relaxed);
        words[record::STATE].store(const { state_word(State::Accepted, 0, 0) }, Release);
    }

    /// Stores the result of a request that is answered without the driver, or after its last step. Submitter, before anything
    /// follows from it.
    pub fn decide(&self, index: u32, result: i32) {
        self.set_state(index, state_word(State::Decided, 0, result));
    }

    /// Stores result, CQE flags and CQ index and makes the record `Done`. Reaper, before it writes the CQE.
    pub fn done(&self, index: u32, result: i32, flags: u8, cq_index: u32) {
        self.record(index)[record::CQ_INDEX].store(index_word(cq_index), Relaxed);
        self.set_state(index, state_word(State::Done, flags, result));
    }

    /// Nothing is owed any more. After cq_tail, or when the session ended before the request was issued.
    pub fn free(&self, index: u32) {
        self.set_state(index, const { state_word(State::Free, 0, 0) });
    }

    fn set_state(&self, index: u32, word: u64) {
        self.record(index)[record::STATE].store(word, Release);
    }

    /// The SQE of a record.
    pub fn sqe(&self, index: u32) -> Sqe {
        let words = self.record(index);
        Sqe::from_words(std::array::from_fn(|i| words[i].load(Relaxed)))
    }

    /// As [`Self::sqe`], but only what a plain read or write has: the other fields are 0.
    #[inline]
    pub fn transfer(&self, index: u32) -> Sqe {
        let words = self.record(index);
        let word = |place: usize| words[place].load(Relaxed);
        Sqe::from_words([word(0), 0, word(record::OFFSET), word(3), word(4), 0, 0, 0])
    }

    /// Where in its volume the request of a record begins, bytes.
    #[inline]
    pub fn offset(&self, index: u32) -> u64 {
        self.record(index)[record::OFFSET].load(Relaxed)
    }

    /// State, and what goes with it. `None` if something else than this daemon has written to the file.
    pub fn standing(&self, index: u32) -> Option<Standing> {
        words::standing(self.record(index)[record::STATE].load(Acquire))
    }

    /// CQ index of a `Done` record. `None` as in [`Self::standing`].
    pub fn cq_index(&self, index: u32) -> Option<u32> {
        words::index(self.record(index)[record::CQ_INDEX].load(Relaxed))
    }

    /// Where a record's request came from.
    pub fn origin(&self, index: u32) -> Origin {
        let words = self.record(index);
        let origin = words[record::ORIGIN].load(Relaxed);
        Origin {
            session: words[record::SESSION].load(Relaxed),
            cell: (origin >> 32) as u32,
            sq_index: origin as u32,
            sequence: words[record::SEQUENCE].load(Relaxed),
        }
    }

    fn cell(&self, index: u32) -> &[AtomicU64; cell::WORDS] {
        self.cells.row(index)
    }

    fn record(&self, index: u32) -> &[AtomicU64; record::WORDS] {
        self.records.row(index)
    }
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes).or_else(|errno| {
        if errno == rustix::io::Errno::OPNOTSUPP { file.set_len(bytes) } else { Err(errno.into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_is_owed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path, 4, 8, 7).unwrap();
        let sqe = Sqe { op: 1, user_data: 42, offset: 4096, length: 8192, ..Sqe::default() };
        let origin = Origin { session: 3, cell: 2, sq_index: u32::MAX, sequence: 9 };
        let standing = |state, flags, result| Some(Standing { state, flags, result });
        assert_eq!(journal.standing(5), standing(State::Free, 0, 0));
        journal.accept(5, &sqe, &origin);
        assert_eq!(journal.standing(5), standing(State::Accepted, 0, 0));
        assert_eq!((journal.sqe(5), journal.origin(5)), (sqe, origin));
        journal.decide(5, -125);
        assert_eq!(journal.standing(5), standing(State::Decided, 0, -125));
        journal.done(5, -5, 1, 17);
        assert_eq!((journal.standing(5), journal.cq_index(5)), (standing(State::Done, 1, -5), Some(17)));

        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len(), Journal::bytes(4, 8));
        assert_eq!(&file[..8], b"FERRIOJ\0");
        let record = &file[4096 + 4 * 128 + 5 * 128..][..128];
        assert_eq!(
            Sqe::from_words(std::array::from_fn(|i| word(record, i))),
            sqe,
            "the file holds what the mapping does"
        );
        assert_eq!(word(record, record::CQ_INDEX) as u32, 17);
        journal.free(5);
        assert_eq!(journal.standing(5), standing(State::Free, 0, 0));
    }

    fn word(bytes: &[u8], index: usize) -> u64 {
        u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap())
    }
}
