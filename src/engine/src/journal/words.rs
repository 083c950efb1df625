//! How the words of the journal tell damage: a page of zeroes, a flipped bit, words of somewhere else.
//!
//! None of it is against somebody who means it: the file is the daemon's own.

/// State of a record. Far apart, and none of them 0: a page of zeroes is damage, and not "nothing owed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No request.
    Free = 0x5a,
    /// Taken from the ring, not answered.
    Accepted = 0xa6,
    /// The result stands in the record, without a CQ index: it was found without the driver, or after its last step.
    Decided = 0x39,
    /// Result and CQ index stand in the record; the CQE may or may not be visible.
    Done = 0xc5,
}

impl State {
    const ALL: [State; 4] = [State::Free, State::Accepted, State::Decided, State::Done];
}

/// What the state word of a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// State.
    pub state: State,
    /// CQE flags, of a `Done` one.
    pub flags: u8,
    /// Result, of a `Decided` or `Done` one.
    pub result: i32,
}

/// An odd number whose bits are as good as random: 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// The check of nothing: differs from 0 in many bits.
const SEED: u64 = 0x6a09_e667_f3bc_c908;

/// Result << 32 | check << 16 | flags << 8 | state, in one word, so that no kill separates them.
#[inline]
pub const fn state_word(state: State, flags: u8, result: i32) -> u64 {
    let word = (result.cast_unsigned() as u64) << 32 | (flags as u64) << 8 | state as u64;
    word | (word ^ SEED).wrapping_mul(FACTOR) >> 48 << 16
}

/// `None`: damaged. Every change of one bit is found, others but for one in 65536.
pub fn standing(word: u64) -> Option<Standing> {
    let state = State::ALL.into_iter().find(|state| *state as u8 == word as u8)?;
    let standing = Standing { state, flags: (word >> 8) as u8, result: ((word >> 32) as u32).cast_signed() };
    (state_word(state, standing.flags, standing.result) == word).then_some(standing)
}

/// An index with its complement.
#[inline]
pub const fn index_word(index: u32) -> u64 {
    (!index as u64) << 32 | index as u64
}

/// In place of an index that there is not yet. Damage by one bit makes neither of the other.
pub const NO_INDEX: u64 = 0x5555_5555_5555_5555;

/// `None`: damaged, or [`NO_INDEX`].
pub fn index(word: u64) -> Option<u32> {
    (word == index_word(word as u32)).then_some(word as u32)
}

/// Check over the words of record `place` that do not change after its acceptance. Every change within one word is found: each
/// step is a bijection of what is checked so far, and of the word. Others are missed once in 2^64.
#[inline]
pub fn fixed_check(place: u32, sqe: &[u64; 8], origin: &[u64; 3]) -> u64 {
    let [a, b, c, d, e, f, g, h] = *sqe;
    let [session, cell, sequence] = *origin;
    let mut check = SEED ^ u64::from(place);
    for [first, second] in [[a, b], [c, d], [e, f], [g, h], [session, cell], [sequence, 0]] {
        check = (check ^ first).wrapping_mul(FACTOR).wrapping_add(second);
    }
    check
}

/// A word that no daemon has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Whether a queue has a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CellState {
    /// No.
    Free = 0x69,
    /// Yes.
    Open = 0x96,
}

/// Queue << 32 | check << 8 | state.
pub const fn cell_word(state: CellState, session: u64, queue: u32) -> u64 {
    let key = (queue as u64) << 8 | state as u64;
    let check = ((session ^ SEED).wrapping_mul(FACTOR) ^ key).wrapping_mul(FACTOR) >> 40;
    (queue as u64) << 32 | check << 8 | state as u64
}

/// The queue of an open cell, `None` of a free one.
///
/// # Errors
/// It is damaged; changes are missed once in 16 million.
pub fn cell_queue(word: u64, session: u64) -> Result<Option<u32>, Damaged> {
    let queue = (word >> 32) as u32;
    match word {
        FREE_CELL => Ok(None),
        _ if word == cell_word(CellState::Open, session, queue) => Ok(Some(queue)),
        _ => Err(Damaged),
    }
}

/// State word of a cell that no queue has; its other words mean nothing.
pub const FREE_CELL: u64 = cell_word(CellState::Free, 0, 0);

/// Check of the words of the header before it. Full words, as [`fixed_check`].
pub fn header_check(words: &[u64]) -> u64 {
    words.iter().fold(SEED, |check, word| (check ^ word).wrapping_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found() {
        for result in (-140..140).chain([4096, 1 << 20, 1 << 30, i32::MIN, i32::MAX]) {
            for (state, flags) in
                State::ALL.into_iter().flat_map(|state| [(state, 0), (state, 1), (state, 7)])
            {
                let word = state_word(state, flags, result);
                assert_eq!(standing(word), Some(Standing { state, flags, result }));
                for bit in 0..64 {
                    assert_eq!(standing(word ^ 1 << bit), None, "{state:?} {flags} {result}: bit {bit}");
                }
            }
        }
        for value in [0, 1, u32::MAX, 0x8000_0000, 12345] {
            assert_eq!(index(index_word(value)), Some(value));
            assert!((0..64).all(|bit| index(index_word(value) ^ 1 << bit).is_none()));
        }
        for (session, queue) in [(1, 0), (7, 3), (u64::MAX, u32::MAX)] {
            let word = cell_word(CellState::Open, session, queue);
            assert_eq!(cell_queue(word, session), Ok(Some(queue)));
            for bit in 0..64 {
                assert_eq!(cell_queue(word ^ 1 << bit, session), Err(Damaged));
                assert_eq!(cell_queue(word, session ^ 1 << bit), Err(Damaged));
            }
        }
        assert!((0..64).all(|bit| cell_queue(FREE_CELL ^ 1 << bit, 0).is_err()));
        let words: [u64; 11] = [0x0001_0002, 42, 4096, 8192, 0, 0, 0, 0, 3, 5 << 32, 9];
        let check = |place, words: &[u64; 11]| {
            let (sqe, origin) = (words.first_chunk().unwrap(), words.last_chunk().unwrap());
            fixed_check(place, sqe, origin)
        };
        for (word, bit) in (0..11).flat_map(|word| (0..64).map(move |bit| (word, bit))) {
            let mut flipped = words;
            flipped[word] ^= 1 << bit;
            assert_ne!(check(3, &flipped), check(3, &words));
        }
        assert_ne!(check(4, &words), check(3, &words));
    }

    #[test]
    fn zeroes_are_damage() {
        assert_eq!((standing(0), index(0), cell_queue(0, 0)), (None, None, Err(Damaged)));
        assert_ne!(fixed_check(0, &[0; 8], &[0; 3]), 0);
        assert_ne!(header_check(&[0; 7]), 0);
    }
}
