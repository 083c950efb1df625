//! What the demo writes, and how it knows it again.
//!
//! A block says of itself whose it is, where it belongs and how often it was written, carries a checksum over all of
//! it, and is otherwise filled from a generator seeded with the same. So a block that is not the expected one tells
//! what happened: torn, stale, misplaced, another client's, or nothing of ours.

use std::fmt;

use ferrio_driver::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// Length of a block. Bytes.
pub const BLOCK_BYTES: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"ferrioBK");
const HEADER_BYTES: usize = 40;
const CHECKSUM_AT: usize = BLOCK_BYTES - 8;
/// Bytes of the first difference that a mismatch shows.
const SHOWN_BYTES: usize = 16;

/// What one client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Number of the client.
    pub client: u32,
    /// Differs from run to run.
    pub seed: u64,
}

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Number of the block in the volume.
    pub block: u64,
    /// How often it was written, counted from 1.
    pub generation: u64,
    /// Client that wrote it.
    pub client: u32,
    /// Seed of the run.
    pub seed: u64,
}

/// A block that is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// What should be there.
    pub expected: Identity,
    /// What the block says it is; `None`: it is no block of this demo.
    pub found: Option<Identity>,
    /// Whether the checksum of what was found is right.
    pub checksum_right: bool,
    /// First byte that differs, counted from the start of the block.
    pub first_difference: usize,
    /// How many bytes differ.
    pub bytes_different: usize,
    /// What should be there from the first difference on, in hexadecimal.
    pub expected_bytes: String,
    /// What is there instead.
    pub found_bytes: String,
}

impl Pattern {
    /// Writes block number `block`, for the `generation`-th time, into `bytes`.
    ///
    /// # Panics
    /// `bytes` is not one block long.
    pub fn fill(&self, block: u64, generation: u64, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), BLOCK_BYTES);
        let header = [MAGIC, block, generation, u64::from(self.client), self.seed];
        let mut random = SplitMix64::new(
            header.into_iter().fold(0, |state, word| SplitMix64::new(state ^ word).next_u64()),
        );
        let words = header.into_iter().chain(std::iter::repeat_with(|| random.next_u64()));
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&u64::from(checksum).to_le_bytes());
    }

    /// Whether `bytes` are what [`fill`](Self::fill) writes.
    ///
    /// # Errors
    /// They are not; the mismatch says what they are.
    ///
    /// # Panics
    /// `bytes` is not one block long.
    pub fn check(&self, block: u64, generation: u64, bytes: &[u8]) -> Result<(), Box<Mismatch>> {
        let mut expected = [0; BLOCK_BYTES];
        self.fill(block, generation, &mut expected);
        if bytes == expected {
            return Ok(());
        }
        assert_eq!(bytes.len(), BLOCK_BYTES);
        let differs = |at: &usize| bytes[*at] != expected[*at];
        let first_difference = (0..BLOCK_BYTES).find(differs).unwrap_or_default();
        let shown = first_difference..BLOCK_BYTES.min(first_difference + SHOWN_BYTES);
        Err(Box::new(Mismatch {
            expected: Identity { block, generation, client: self.client, seed: self.seed },
            found: identity(bytes),
            checksum_right: word(bytes, CHECKSUM_AT) == u64::from(crc32fast::hash(&bytes[..CHECKSUM_AT])),
            first_difference,
            bytes_different: (0..BLOCK_BYTES).filter(differs).count(),
            expected_bytes: hex(&expected[shown.clone()]),
            found_bytes: hex(&bytes[shown]),
        }))
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn identity(bytes: &[u8]) -> Option<Identity> {
    let [magic, block, generation, client, seed] =
        std::array::from_fn(|index| word(&bytes[..HEADER_BYTES], index * 8));
    let client = u32::try_from(client).ok()?;
    (magic == MAGIC).then_some(Identity { block, generation, client, seed })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected;
        match self.found {
            None => f.write_str("it is no block of this demo")?,
            Some(found) if found == expected && !self.checksum_right => f.write_str("it is damaged")?,
            Some(found) if found == expected => f.write_str("it is another content under the right name")?,
            Some(found) if found.seed != expected.seed => f.write_str("it is left over from another run")?,
            Some(found) if found.client != expected.client => {
                write!(f, "it belongs to client {}", found.client)?
            }
            Some(found) if found.block != expected.block => {
                write!(f, "it is block {} of the volume", found.block)?
            }
            Some(found) => {
                write!(f, "it is of generation {}, not {}", found.generation, expected.generation)?
            }
        }
        write!(
            f,
            "; checksum {}, {} of {BLOCK_BYTES} bytes differ, from byte {} on: expected {}, found {}",
            if self.checksum_right { "right" } else { "wrong" },
            self.bytes_different,
            self.first_difference,
            self.expected_bytes,
            self.found_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { client: 2, seed: 99 };

    fn block(pattern: Pattern, block: u64, generation: u64) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        pattern.fill(block, generation, &mut bytes);
        bytes
    }

    fn complaint(bytes: &[u8]) -> String {
        PATTERN.check(7, 3, bytes).unwrap_err().to_string()
    }

    #[test]
    fn own_block_is_known() {
        PATTERN.check(7, 3, &block(PATTERN, 7, 3)).unwrap();
    }

    #[test]
    fn every_flipped_byte_is_found_and_named() {
        let good = block(PATTERN, 7, 3);
        for at in 0..BLOCK_BYTES {
            let mut bytes = good;
            bytes[at] ^= 0x10;
            let mismatch = PATTERN.check(7, 3, &bytes).unwrap_err();
            assert_eq!((mismatch.first_difference, mismatch.bytes_different), (at, 1));
            assert!(!mismatch.checksum_right);
            assert_eq!(mismatch.found_bytes[..2], hex(&bytes[at..=at]));
            assert_eq!(mismatch.expected_bytes[..2], hex(&good[at..=at]));
        }
    }

    #[test]
    fn what_happened_is_told() {
        let told =
            |bytes: &[u8], words: &str| assert!(complaint(bytes).contains(words), "{}", complaint(bytes));
        told(&block(PATTERN, 7, 2), "it is of generation 2, not 3; checksum right");
        told(&block(PATTERN, 8, 3), "it is block 8 of the volume");
        told(&block(Pattern { client: 1, ..PATTERN }, 7, 3), "it belongs to client 1");
        told(&block(Pattern { seed: 5, ..PATTERN }, 7, 3), "another run");
        told(&[0; BLOCK_BYTES], "no block of this demo; checksum wrong");
        let (old, mut torn) = (block(PATTERN, 7, 2), block(PATTERN, 7, 3));
        torn[2048..].copy_from_slice(&old[2048..]);
        told(&torn, "it is damaged; checksum wrong");
    }
}
