//! The journal: accepted requests, in a file on tmpfs that outlives the daemon.
//!
//! It is what the next daemon goes on from, so it says at every instant what is owed: a record that is `Accepted` has no
//! CQE yet, one that is `Done` has a result and a CQ slot. Order of the writes, which a kill may cut anywhere:
//! record -> `Accepted` -> sq_head; result and CQ index -> `Done` -> CQE -> cq_tail -> `Free`.
//! A killed process loses no store it has made to a shared file mapping, so the order is that of one memory, not of a disk:
//! `Release` stores are enough.
//!
//! Layout (little-endian, no pointers): a header page, then a cell of 128 bytes per queue, then a record of 128 bytes per
//! request. The file is 0600 in the daemon's runtime directory.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
};

use ferrio_shm::{entry::Sqe, mapping::Mapping};

/// "FERRIOJ" and a zero byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FERRIOJ\0");
/// Version of this layout.
pub const VERSION: u64 = 1;

const HEADER_BYTES: usize = 4096;
const CELL_BYTES: usize = 128;
const RECORD_BYTES: usize = 128;

/// Words of a queue cell. The Submitter writes the first line, the reaper the second.
mod cell {
    pub const SESSION: usize = 0;
    pub const QUEUE: usize = 1;
    pub const SQ_HEAD: usize = 2;
    pub const CQ_TAIL: usize = 8;
    pub const WORDS: usize = 16;
}

/// Words of a record; the SQE stands in words 0 to 7.
mod record {
    pub const SESSION: usize = 8;
    /// queue cell << 32 | sq index
    pub const ORIGIN: usize = 9;
    pub const SEQUENCE: usize = 10;
    /// result << 32 | state: one store, so that no kill separates them.
    pub const STATE: usize = 11;
    pub const CQ_INDEX: usize = 12;
    pub const WORDS: usize = 16;
}

/// State of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No request.
    Free = 0,
    /// Taken from the ring, not answered.
    Accepted = 1,
    /// The result stands in the record; the CQE may or may not be visible.
    Done = 2,
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
    mapping: Arc<Mapping>,
    cells: u32,
    records: u32,
}

impl Journal {
    /// Creates the file anew, all records free.
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
        let journal = Self { mapping: Arc::new(Mapping::of_file(&file, bytes)?), cells, records };
        let header = journal.words(0, 8);
        for (word, value) in header[1..].iter().zip([VERSION, epoch, cells.into(), records.into()]) {
            word.store(value, Relaxed);
        }
        header[0].store(MAGIC, Release);
        Ok(journal)
    }

    /// Length of the file.
    pub fn bytes(cells: u32, records: u32) -> usize {
        HEADER_BYTES + CELL_BYTES * cells as usize + RECORD_BYTES * records as usize
    }

    /// Queue cells.
    pub fn cells(&self) -> u32 {
        self.cells
    }

    /// A queue is opened on a free cell.
    pub fn open_cell(&self, index: u32, session: u64, queue: u32) {
        let words = self.cell(index);
        words[cell::QUEUE].store(queue.into(), Relaxed);
        words[cell::SQ_HEAD].store(0, Relaxed);
        words[cell::CQ_TAIL].store(0, Relaxed);
        words[cell::SESSION].store(session, Release);
    }

    /// The queue is gone.
    pub fn close_cell(&self, index: u32) {
        self.cell(index)[cell::SESSION].store(0, Release);
    }

    /// The SQEs before `head` have their records. Submitter.
    pub fn set_sq_head(&self, index: u32, head: u32) {
        self.cell(index)[cell::SQ_HEAD].store(head.into(), Release);
    }

    /// The CQEs before `tail` are visible to the client. Reaper.
    pub fn set_cq_tail(&self, index: u32, tail: u32) {
        self.cell(index)[cell::CQ_TAIL].store(tail.into(), Release);
    }

    /// Writes a record and makes it `Accepted`. Submitter.
    pub fn accept(&self, index: u32, sqe: &Sqe, origin: &Origin) {
        let words = self.record(index);
        for (word, value) in words.iter().zip(sqe.to_words()) {
            word.store(value, Relaxed);
        }
        words[record::SESSION].store(origin.session, Relaxed);
        words[record::ORIGIN].store(u64::from(origin.cell) << 32 | u64::from(origin.sq_index), Relaxed);
        words[record::SEQUENCE].store(origin.sequence, Relaxed);
        words[record::STATE].store(State::Accepted as u64, Release);
    }

    /// Stores result and CQ index and makes the record `Done`. Reaper, before it writes the CQE.
    pub fn done(&self, index: u32, result: i32, cq_index: u32) {
        let words = self.record(index);
        words[record::CQ_INDEX].store(cq_index.into(), Relaxed);
        words[record::STATE].store(u64::from(result.cast_unsigned()) << 32 | State::Done as u64, Release);
    }

    /// Nothing is owed any more. After cq_tail, or when the session ended before the request was issued.
    pub fn free(&self, index: u32) {
        self.record(index)[record::STATE].store(State::Free as u64, Release);
    }

    /// The SQE of a record.
    pub fn sqe(&self, index: u32) -> Sqe {
        let words = self.record(index);
        Sqe::from_words(std::array::from_fn(|i| words[i].load(Relaxed)))
    }

    /// State and, when `Done`, the result.
    pub fn state(&self, index: u32) -> (State, i32) {
        let word = self.record(index)[record::STATE].load(std::sync::atomic::Ordering::Acquire);
        let state = match word & 0xffff_ffff {
            0 => State::Free,
            1 => State::Accepted,
            _ => State::Done,
        };
        (state, ((word >> 32) as u32).cast_signed())
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

    fn cell(&self, index: u32) -> &[AtomicU64] {
        debug_assert!(index < self.cells);
        self.words(HEADER_BYTES + CELL_BYTES * index as usize, cell::WORDS)
    }

    fn record(&self, index: u32) -> &[AtomicU64] {
        debug_assert!(index < self.records);
        self.words(
            HEADER_BYTES + CELL_BYTES * self.cells as usize + RECORD_BYTES * index as usize,
            record::WORDS,
        )
    }

    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.mapping.u64s(offset, count).expect("the journal was mapped with room for all cells and records")
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
        assert_eq!(journal.state(5), (State::Free, 0));
        journal.accept(5, &sqe, &origin);
        assert_eq!(journal.state(5), (State::Accepted, 0));
        assert_eq!((journal.sqe(5), journal.origin(5)), (sqe, origin));
        journal.done(5, -5, 17);
        assert_eq!(journal.state(5), (State::Done, -5));
        journal.free(5);
        assert_eq!(journal.state(5).0, State::Free);

        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len(), Journal::bytes(4, 8));
        assert_eq!(&file[..8], b"FERRIOJ\0");
        let record = &file[4096 + 4 * 128 + 5 * 128..][..128];
        assert_eq!(
            Sqe::from_words(std::array::from_fn(|i| word(record, i))),
            sqe,
            "the file holds what the mapping does"
        );
        assert_eq!(word(record, record::CQ_INDEX), 17);
    }

    fn word(bytes: &[u8], index: usize) -> u64 {
        u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap())
    }
}
