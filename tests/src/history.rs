//! A model of a volume that knows the order rules of ABI.md, sections 9 and 10.
//!
//! It takes what one client asked for and was answered, and says which answers no volume that keeps the rules could have
//! given. It does not say what the content must be, but what it may be: the daemon, the kernel and the device are free to
//! order whatever the rules leave without order.
//!
//! **A before B** is known in three ways: A was answered before B was submitted; both are members of a chain; both went
//! through one queue with a barrier that was executed between them, or that is one of them. A read may find in each word
//! what any change has written there that was not surely overwritten before the read and is not surely after it. A change
//! that failed may have happened in whole, in part or not at all; one that was cancelled, or whose time was over, did not.
//!
//! A swap tells more: it found what it expected, so a concurrent write that came after what it expected came after the swap.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
};

/// Bytes of a block of the model; a multiple of the volume's.
pub const BLOCK: usize = 4096;
/// Words of a block: the unit that is compared. A block may be torn between two changes, a word is not.
pub const WORDS: usize = BLOCK / 8;

/// What a request does to its blocks.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reads them. The words found, once it succeeded.
    Read(Vec<u64>),
    /// Fills them with [`word`]s of this stamp.
    Write(u32),
    /// Zeros.
    Zero,
    /// Anything.
    Discard,
    /// Fills them with words of this stamp if they hold what was expected.
    Swap {
        /// What was expected.
        expected: Vec<u64>,
        /// Stamp.
        stamp: u32,
    },
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was to do.
    Done,
    /// It was executed and failed: it may have had some of its effect.
    Failed,
    /// A swap that found something else.
    Differed,
    /// It was not executed.
    Not,
}

/// A request and its answer. Times are counted by the client; so are places in a queue.
#[derive(Clone, Debug)]
pub struct Op {
    /// Queue.
    pub queue: usize,
    /// Place in the queue's order of submission.
    pub place: u64,
    /// The chain that it is a member of.
    pub chain: Option<u64>,
    /// It has the barrier flag.
    pub barrier: bool,
    /// First block.
    pub first: u64,
    /// Blocks.
    pub blocks: u64,
    /// Before it was shown to the daemon.
    pub submitted: u64,
    /// After its answer was seen.
    pub answered: u64,
    /// What it was to do.
    pub effect: Effect,
    /// How it ended.
    pub outcome: Outcome,
}

/// An answer that breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Index of the request.
    pub op: usize,
    /// Block.
    pub block: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}, block {}: {}", self.op, self.block, self.what)
    }
}

/// Word `index` of a block: tells stamp, block and place, so that no misdirected or stale data passes. Never 0.
#[must_use]
pub fn word(stamp: u32, block: u64, index: usize) -> u64 {
    let place = block as u32 * WORDS as u32 + index as u32;
    (u64::from(stamp) << 32 | u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The stamp that wrote a word, if one did.
fn stamp_of(value: u64, block: u64, index: usize) -> Option<u32> {
    // The inverse of the multiplier modulo 2^64.
    let plain = value.wrapping_mul(0xf1de_83e1_9937_733d);
    let stamp = (plain >> 32) as u32;
    (stamp != 0 && word(stamp, block, index) == value).then_some(stamp)
}

/// The stamps that a block is made of; 0 for zeros, `None` for what nobody wrote there.
#[must_use]
pub fn stamps(words: &[u64], block: u64) -> BTreeSet<Option<u32>> {
    let stamp =
        |(index, value): (usize, &u64)| if *value == 0 { Some(0) } else { stamp_of(*value, block, index) };
    words.iter().enumerate().map(stamp).collect()
}

/// All that was asked of a volume from one quiet moment to the next.
#[derive(Debug, Default)]
pub struct History {
    /// What the blocks held at the beginning, block after block.
    pub initial: Vec<u64>,
    /// In any order.
    pub ops: Vec<Op>,
}

/// Where the content of a block may come from.
enum Source {
    Initial,
    Stamp(u32),
    Zero,
    Any,
}

/// What is worked out once per history.
struct Order<'a> {
    ops: &'a [Op],
    /// By op: barriers executed in its queue before its place, and up to it.
    fences: Vec<(u32, u32)>,
    /// By block: the ops that may have changed it.
    changes: Vec<Vec<usize>>,
    /// Swaps, and what must have overwritten them.
    swapped: HashSet<(usize, usize)>,
}

impl Order<'_> {
    /// Whether `a` surely had all of its effect before `b` had any.
    fn before(&self, a: usize, b: usize) -> bool {
        let (first, second) = (&self.ops[a], &self.ops[b]);
        if first.answered < second.submitted {
            return true;
        }
        if first.queue != second.queue || first.place >= second.place {
            return false;
        }
        let chained = first.chain.is_some() && first.chain == second.chain;
        chained || self.fences[b].1 > self.fences[a].0
    }

    /// The same for what two changes do to a block.
    fn overwritten(&self, a: usize, b: usize) -> bool {
        self.before(a, b) || self.swapped.contains(&(a, b))
    }

    /// Finds what came after a swap because the swap did not find it.
    fn follow_swaps(&mut self) {
        let authors: HashMap<u32, usize> =
            self.ops.iter().enumerate().filter_map(|(index, op)| Some((op.stamp()?, index))).collect();
        for (swap, op) in self.ops.iter().enumerate().filter(|(_, op)| op.outcome == Outcome::Done) {
            let Effect::Swap { expected, .. } = &op.effect else { continue };
            // Zeros, and what was there at the beginning, may have more than one author.
            let author = stamp_of(expected[0], op.first, 0).and_then(|stamp| authors.get(&stamp));
            let Some(author) = author.filter(|_| op.blocks == 1) else { continue };
            for other in self.changes[op.first as usize].iter().filter(|other| **other != swap) {
                let after = self.ops[*other].outcome == Outcome::Done
                    && !matches!(self.ops[*other].effect, Effect::Discard)
                    && !self.before(*other, swap)
                    && self.before(*author, *other);
                if after {
                    self.swapped.insert((swap, *other));
                }
            }
        }
    }
}

impl Op {
    fn stamp(&self) -> Option<u32> {
        match self.effect {
            Effect::Write(stamp) | Effect::Swap { stamp, .. } => Some(stamp),
            _ => None,
        }
    }
}

impl History {
    fn order(&self) -> Order<'_> {
        let mut by_place: Vec<usize> = (0..self.ops.len()).collect();
        by_place.sort_by_key(|op| (self.ops[*op].queue, self.ops[*op].place));
        let mut fences = vec![(0, 0); self.ops.len()];
        let (mut queue, mut count) = (usize::MAX, 0);
        for index in by_place {
            let op = &self.ops[index];
            if op.queue != queue {
                (queue, count) = (op.queue, 0);
            }
            let before = count;
            // A barrier that was not executed orders nothing that can be relied on.
            count += u32::from(op.barrier && op.outcome != Outcome::Not);
            fences[index] = (before, count);
        }
        let mut changes = vec![Vec::new(); self.initial.len() / WORDS];
        for (index, op) in self.ops.iter().enumerate() {
            let changed = matches!(op.outcome, Outcome::Done | Outcome::Failed)
                && !matches!(op.effect, Effect::None | Effect::Read(_));
            if changed {
                (op.first..op.first + op.blocks).for_each(|block| changes[block as usize].push(index));
            }
        }
        let mut order = Order { ops: &self.ops, fences, changes, swapped: HashSet::new() };
        order.follow_swaps();
        order
    }

    /// What `reader` may find in a block.
    fn sources(&self, order: &Order<'_>, reader: usize, block: u64) -> Vec<Source> {
        let candidates: Vec<usize> = order.changes[block as usize]
            .iter()
            .copied()
            .filter(|change| *change != reader && !order.before(reader, *change))
            .collect();
        let overwrites: Vec<usize> = candidates
            .iter()
            .copied()
            .filter(|change| self.ops[*change].outcome == Outcome::Done && order.before(*change, reader))
            .collect();
        let hidden = |change: usize| {
            overwrites.iter().any(|other| *other != change && order.overwritten(change, *other))
        };
        let mut sources = Vec::new();
        if overwrites.is_empty() {
            sources.push(Source::Initial);
        }
        for change in candidates.into_iter().filter(|change| !hidden(*change)) {
            sources.push(match self.ops[change].effect {
                Effect::Write(stamp) | Effect::Swap { stamp, .. } => Source::Stamp(stamp),
                Effect::Zero => Source::Zero,
                _ => Source::Any,
            });
        }
        sources
    }

    fn gives(&self, source: &Source, block: u64, index: usize, value: u64) -> bool {
        match source {
            Source::Initial => self.initial[block as usize * WORDS + index] == value,
            Source::Stamp(stamp) => word(*stamp, block, index) == value,
            Source::Zero => value == 0,
            Source::Any => true,
        }
    }

    /// Checks all answers.
    ///
    /// # Errors
    /// The first that breaks the rules.
    pub fn check(&self) -> Result<(), Violation> {
        let order = self.order();
        for (index, op) in self.ops.iter().enumerate() {
            match (&op.effect, op.outcome) {
                (Effect::Read(words), Outcome::Done) => self.check_found(&order, index, words)?,
                (Effect::Swap { expected, .. }, Outcome::Done) => {
                    self.check_found(&order, index, expected)?;
                }
                (Effect::Swap { expected, .. }, Outcome::Differed) => {
                    self.check_differed(&order, index, expected)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_found(&self, order: &Order<'_>, reader: usize, words: &[u64]) -> Result<(), Violation> {
        let op = &self.ops[reader];
        for (block, found) in (op.first..op.first + op.blocks).zip(words.chunks_exact(WORDS)) {
            let sources = self.sources(order, reader, block);
            for (index, value) in found.iter().enumerate() {
                if sources.iter().any(|source| self.gives(source, block, index, *value)) {
                    continue;
                }
                let what = self.describe(&sources, block, index, *value);
                return Err(Violation { op: reader, block, what });
            }
        }
        Ok(())
    }

    /// A swap may say "not equal" only if something else may have been there.
    fn check_differed(&self, order: &Order<'_>, swap: usize, expected: &[u64]) -> Result<(), Violation> {
        let op = &self.ops[swap];
        let certain =
            (op.first..op.first + op.blocks).zip(expected.chunks_exact(WORDS)).all(|(block, words)| {
                let sources = self.sources(order, swap, block);
                let same = |source: &Source| {
                    !matches!(source, Source::Any)
                        && words
                            .iter()
                            .enumerate()
                            .all(|(index, value)| self.gives(source, block, index, *value))
                };
                sources.iter().all(same)
            });
        if !certain {
            return Ok(());
        }
        let what =
            "the swap says that the content differs, and it can only have been what was expected".into();
        Err(Violation { op: swap, block: op.first, what })
    }

    fn describe(&self, sources: &[Source], block: u64, index: usize, value: u64) -> String {
        let author = |value: u64| match stamp_of(value, block, index) {
            Some(stamp) => format!("stamp {stamp}"),
            None => format!("{value:#018x}"),
        };
        let allowed: Vec<String> = sources
            .iter()
            .map(|source| match source {
                Source::Initial => {
                    format!("what was there ({})", author(self.initial[block as usize * WORDS + index]))
                }
                Source::Stamp(stamp) => format!("stamp {stamp}"),
                Source::Zero => "zeros".into(),
                Source::Any => "anything".into(),
            })
            .collect();
        format!("word {index} is {}; it may be {}", author(value), allowed.join(", "))
    }
}
