//! What is written, and how it is known again.
//!
//! A block says where it belongs and how often it was written, is filled from a generator seeded with the same, and ends
//! with a checksum over all of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use ferrio_driver::random::SplitMix64;

use super::message::{Failure, Verify};

const MAGIC: u64 = u64::from_le_bytes(*b"ferrioBB");
const HEADER_WORDS: usize = 4;
const CHECKSUM_BYTES: usize = 8;
const GENERATION_BYTES: u64 = 4;
/// Longest block of a pattern.
const BLOCK_BYTES_MAX: u64 = 4096;

/// The pattern of one run.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    pub seed: u64,
    /// Length of a block. Bytes, a power of two.
    pub block_bytes: u64,
}

/// The longest block that requests of `bs` bytes consist of.
pub fn block_bytes(bs: u64) -> u64 {
    (1 << bs.trailing_zeros()).min(BLOCK_BYTES_MAX)
}

impl Pattern {
    /// Writes block number `block`, for the `generation`-th time, into `bytes`.
    pub fn fill(&self, block: u64, generation: u32, bytes: &mut [u8]) {
        let header = self.header(block, generation);
        let mut random =
            SplitMix64::new(header.into_iter().fold(0, |seed, word| SplitMix64::new(seed ^ word).next_u64()));
        let words = header.into_iter().chain(std::iter::repeat_with(|| random.next_u64()));
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let (content, checksum) = bytes.split_at_mut(bytes.len() - CHECKSUM_BYTES);
        checksum.copy_from_slice(&u64::from(crc32fast::hash(content)).to_le_bytes());
    }

    /// Whether `bytes` are what [`fill`](Self::fill) writes; else what they are.
    pub fn check(&self, block: u64, generation: u32, bytes: &[u8]) -> Result<(), String> {
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        let right = word(checksum, 0) == u64::from(crc32fast::hash(content));
        let found: [u64; HEADER_WORDS] = std::array::from_fn(|index| word(content, index));
        let [magic, found_block, found_generation, seed] = found;
        if right && found == self.header(block, generation) {
            return Ok(());
        }
        let checksum = if right { "right" } else { "wrong" };
        let what = if magic != MAGIC {
            "it is no block of this benchmark".to_owned()
        } else if seed != self.seed {
            "it is left over from another run".to_owned()
        } else if found_block != block {
            format!("it is block {found_block}")
        } else if found_generation != u64::from(generation) {
            format!("it is of generation {found_generation}, not {generation}")
        } else {
            "it is damaged".to_owned()
        };
        Err(format!("{what}, with a {checksum} checksum"))
    }

    fn header(&self, block: u64, generation: u32) -> [u64; HEADER_WORDS] {
        [MAGIC, block, generation.into(), self.seed]
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| bytes[index * 8 + at]))
}

/// How often the blocks of an area were written, and the check of what is read there.
///
/// The numbers outlive the client in a file without a name, which the coordinator holds: the next round, whoever does it,
/// goes on with them.
#[derive(Debug)]
pub struct Ledger {
    pattern: Pattern,
    file: File,
    first_block: u64,
    generations: Vec<u32>,
}

impl Ledger {
    /// The blocks that make up `area`, which is in bytes.
    pub fn open(verify: &Verify, area: Range<u64>) -> Result<Ledger, Failure> {
        let pattern = Pattern { seed: verify.seed, block_bytes: verify.block_bytes };
        let failed = Failure::of("cannot use the table of generations");
        let file = File::options().read(true).write(true).open(&verify.generations).map_err(&failed)?;
        let (first_block, end) = (area.start / verify.block_bytes, area.end / verify.block_bytes);
        let mut bytes = vec![0; ((end - first_block) * GENERATION_BYTES) as usize];
        file.read_exact_at(&mut bytes, first_block * GENERATION_BYTES).map_err(&failed)?;
        let generation = |bytes: &[u8]| u32::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        let generations = bytes.chunks_exact(GENERATION_BYTES as usize).map(generation).collect();
        Ok(Ledger { pattern, file, first_block, generations })
    }

    /// A table for `blocks` blocks that were written once.
    pub fn create(file: &File, blocks: u64) -> io::Result<()> {
        let ones = 1_u32.to_le_bytes().repeat(1 << 14);
        let bytes = blocks * GENERATION_BYTES;
        for at in (0..bytes).step_by(ones.len()) {
            let length = (bytes - at).min(ones.len() as u64) as usize;
            file.write_all_at(&ones[..length], at)?;
        }
        Ok(())
    }

    /// Fills what is to be written at byte `offset` with the next generation.
    pub fn before_write(&mut self, offset: u64, bytes: &mut [u8]) {
        let (pattern, first) = (self.pattern, offset / self.pattern.block_bytes);
        for (block, bytes) in (first..).zip(bytes.chunks_exact_mut(pattern.block_bytes as usize)) {
            let generation = &mut self.generations[(block - self.first_block) as usize];
            *generation = generation.wrapping_add(1);
            pattern.fill(block, *generation, bytes);
        }
    }

    /// Checks what was read at byte `offset`.
    pub fn after_read(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let first = offset / self.pattern.block_bytes;
        for (block, bytes) in (first..).zip(bytes.chunks_exact(self.pattern.block_bytes as usize)) {
            let generation = self.generations[(block - self.first_block) as usize];
            self.pattern.check(block, generation, bytes).map_err(|what| {
                let at = block * self.pattern.block_bytes;
                Failure(format!("block {block} (byte {at} of the volume) is wrong: {what}"))
            })?;
        }
        Ok(())
    }

    /// Keeps the generations for whoever comes next.
    pub fn save(&self) -> Result<(), Failure> {
        let bytes: Vec<u8> =
            self.generations.iter().flat_map(|generation| generation.to_le_bytes()).collect();
        let saved = self.file.write_all_at(&bytes, self.first_block * GENERATION_BYTES);
        saved.map_err(Failure::of("cannot save the table of generations"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { seed: 99, block_bytes: 512 };

    fn block(pattern: Pattern, block: u64, generation: u32) -> Vec<u8> {
        let mut bytes = vec![0; pattern.block_bytes as usize];
        pattern.fill(block, generation, &mut bytes);
        bytes
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let good = block(PATTERN, 7, 3);
        PATTERN.check(7, 3, &good).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            PATTERN.check(7, 3, &bytes).unwrap_err();
        }
    }

    #[test]
    fn what_happened_is_told() {
        let told = |bytes: &[u8], words: &str| {
            let text = PATTERN.check(7, 3, bytes).unwrap_err();
            assert!(text.contains(words), "{text}");
        };
        told(&block(PATTERN, 7, 2), "generation 2, not 3, with a right checksum");
        told(&block(PATTERN, 8, 3), "it is block 8");
        told(&block(Pattern { seed: 5, ..PATTERN }, 7, 3), "another run");
        told(&[0; 512], "no block of this benchmark, with a wrong checksum");
        let (old, mut torn) = (block(PATTERN, 7, 2), block(PATTERN, 7, 3));
        torn[256..].copy_from_slice(&old[256..]);
        told(&torn, "it is damaged, with a wrong checksum");
    }

    #[test]
    fn requests_consist_of_whole_blocks() {
        for (bs, bytes) in [(512, 512), (4096, 4096), (6144, 2048), (131_072, 4096), (1536, 512)] {
            assert_eq!(block_bytes(bs), bytes);
        }
    }

    #[test]
    fn the_ledger_outlives_its_client() {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        Ledger::create(&file, 100_000).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)).into();
        let verify = Verify { seed: 99, block_bytes: 512, generations: path };
        let area = || 99_990 * 512..100_000 * 512;
        let at = 99_998 * 512;

        let mut ledger = Ledger::open(&verify, area()).unwrap();
        let mut bytes = [0; 1024];
        ledger.before_write(at, &mut bytes);
        ledger.after_read(at, &bytes).unwrap();
        ledger.save().unwrap();

        let next = Ledger::open(&verify, area()).unwrap();
        next.after_read(at, &bytes).unwrap();
        bytes[600] ^= 1;
        let told = next.after_read(at, &bytes).unwrap_err().to_string();
        assert!(told.contains("block 99999 (byte 51199488 of the volume) is wrong"), "{told}");
        assert!(Ledger::open(&verify, 0..100_001 * 512).is_err());
    }
}
