//! What a client knows of its blocks, kept in a file that it can be killed over.
//!
//! The blocks are used in pairs, by one unit of work at a time: a request, or a chain over both. Before a change is submitted
//! the ledger says which stamp may come; once it is answered, which stamp must be there. So whoever reads the ledger after a
//! kill, of the client, of the daemon or of both, knows for each block the one or two contents that it may have; and of a
//! chain, that its second member has no effect without its first.

pub mod load;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::history::{WORDS, word};

/// Bytes of a pair's entry.
const ENTRY: usize = 32;

/// The pairs of a volume, on a file.
#[derive(Debug)]
pub struct Ledger(File);

/// What is known of a pair of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// By block: the stamp whose change was answered last; 0: zeros, as at the beginning.
    pub acked: [u32; 2],
    /// By block: the stamp of a change that is not answered; 0: none.
    pub pending: [u32; 2],
    /// The pending changes are a chain.
    pub chained: bool,
    /// Requests answered.
    pub answered: u32,
    /// Of these, done again by another daemon than the one that took them.
    pub replayed: u32,
    /// Of these, with an outcome that nobody knew (EOWNERDEAD).
    pub owner_dead: u32,
}

impl Ledger {
    /// Opens it, or makes a new one for blocks that are all zeros.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path, pairs: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len((pairs * ENTRY) as u64)?;
        Ok(Self(file))
    }

    /// An entry.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn pair(&self, index: usize) -> io::Result<Pair> {
        let mut bytes = [0; ENTRY];
        self.0.read_exact_at(&mut bytes, (index * ENTRY) as u64)?;
        let (words, _) = bytes.as_chunks::<4>();
        let [a, b, c, d, chained, answered, replayed, owner_dead] =
            std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        Ok(Pair { acked: [a, b], pending: [c, d], chained: chained != 0, answered, replayed, owner_dead })
    }

    /// Replaces an entry: one system call, which a kill does not divide.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, index: usize, pair: &Pair) -> io::Result<()> {
        let Pair { acked, pending, chained, answered, replayed, owner_dead } = *pair;
        let words =
            [acked[0], acked[1], pending[0], pending[1], u32::from(chained), answered, replayed, owner_dead];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        self.0.write_all_at(&bytes, (index * ENTRY) as u64)
    }

    /// Sums of what the entries count: answered, replayed, of unknown outcome.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn totals(&self) -> io::Result<[u64; 3]> {
        let pairs = self.0.metadata()?.len() as usize / ENTRY;
        let mut totals = [0; 3];
        for index in 0..pairs {
            let pair = self.pair(index)?;
            for (total, count) in totals.iter_mut().zip([pair.answered, pair.replayed, pair.owner_dead]) {
                *total += u64::from(count);
            }
        }
        Ok(totals)
    }
}

impl Pair {
    /// A stamp that neither block has had.
    #[must_use]
    pub fn next_stamp(&self) -> u32 {
        let [a, b] = self.acked;
        let [c, d] = self.pending;
        a.max(b).max(c).max(d) + 1
    }

    /// What is known after nothing is in flight any more and the blocks were read.
    ///
    /// # Errors
    /// They hold what they cannot.
    pub fn settle(&self, first: u64, words: &[u64]) -> Result<Self, String> {
        let mut settled = Self { pending: [0; 2], chained: false, ..*self };
        for (member, found) in words.chunks_exact(WORDS).enumerate() {
            let block = first + member as u64;
            let is = |stamp| (0..WORDS).all(|index| found[index] == content(stamp, block, index));
            let (acked, pending) = (self.acked[member], self.pending[member]);
            settled.acked[member] = match () {
                () if is(acked) => acked,
                () if pending != 0 && is(pending) => pending,
                () => return Err(format!("block {block} is {}: {self:?}", describe(found, block))),
            };
        }
        let asked = |member: usize| self.pending[member] != 0;
        let done = |member: usize| settled.acked[member] == self.pending[member];
        // A first member that was answered is not pending any more.
        if self.chained && asked(0) && !done(0) && asked(1) && done(1) {
            return Err(format!("blocks {first}+2: the second of a chain without the first: {self:?}"));
        }
        Ok(settled)
    }
}

/// A word of a block that has this stamp, or of one that nobody has written.
fn content(stamp: u32, block: u64, index: usize) -> u64 {
    if stamp == 0 { 0 } else { word(stamp, block, index) }
}

fn describe(found: &[u64], block: u64) -> String {
    let stamps = crate::history::stamps(found, block);
    format!("made of {stamps:?} (0: zeros, None: no known content)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(stamps: [u32; 2]) -> Vec<u64> {
        let block = |(block, stamp)| (0..WORDS).map(move |index| content(stamp, block, index));
        (0..).zip(stamps).flat_map(block).collect()
    }

    #[test]
    fn what_was_answered_must_be_there_and_what_was_not_may() {
        let pair = Pair { acked: [3, 4], pending: [5, 0], ..Pair::default() };
        assert_eq!(pair.settle(0, &words([3, 4])).unwrap().acked, [3, 4]);
        assert_eq!(pair.settle(0, &words([5, 4])).unwrap().acked, [5, 4]);
        assert!(pair.settle(0, &words([3, 5])).is_err(), "never asked for");
        assert!(pair.settle(0, &words([2, 4])).is_err(), "older than what was answered");
        assert!(pair.settle(0, &words([0, 4])).is_err(), "lost");
        let mut torn = words([3, 4]);
        torn[7] = content(5, 0, 7);
        assert!(pair.settle(0, &torn).is_err(), "torn");
    }

    #[test]
    fn a_chain_begins_with_its_first() {
        let pair = Pair { acked: [3, 4], pending: [5, 5], chained: true, ..Pair::default() };
        for allowed in [[3, 4], [5, 4], [5, 5]] {
            assert_eq!(pair.settle(0, &words(allowed)).unwrap().acked, allowed);
        }
        assert!(pair.settle(0, &words([3, 5])).is_err());
        let first_answered = Pair { acked: [5, 4], pending: [0, 5], ..pair };
        for allowed in [[5, 4], [5, 5]] {
            assert_eq!(first_answered.settle(0, &words(allowed)).unwrap().acked, allowed);
        }
        assert!(Pair { chained: false, ..pair }.settle(0, &words([3, 5])).is_ok());
    }

    #[test]
    fn entries_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let pair =
            Pair { acked: [1, 2], pending: [3, 4], chained: true, answered: 5, replayed: 6, owner_dead: 7 };
        Ledger::open(&path, 4).unwrap().set(2, &pair).unwrap();
        let again = Ledger::open(&path, 4).unwrap();
        assert_eq!((again.pair(2).unwrap(), again.pair(1).unwrap()), (pair, Pair::default()));
        assert_eq!(again.totals().unwrap(), [5, 6, 7]);
    }
}
