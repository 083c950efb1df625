//! Stage 2 against a second reading of ABI.md, "Checks, in this order", in numbers that cannot overflow.

use std::{os::fd::AsFd, sync::Arc};

use arbitrary::{Result, Unstructured};
use ferrio_engine::{
    queue::Class,
    session::{Checked, FEATURES, GrantedRegion, GrantedVolume, Rights},
};
use ferrio_shm::{
    abi::{Opcode, errno, features, limits, sqe_flags},
    entry::{IovEntry, Sqe},
    mapping::{Mapping, Region, create_memfd},
    sync::Ordering::Relaxed,
};

/// Length of region 2, which alone has memory, and iovecs at its start.
const MEMORY_BYTES: u64 = 1 << 16;

const NOP: u8 = Opcode::Nop as u8;
const WRITE: u8 = Opcode::Write as u8;
const FLUSH: u8 = Opcode::Flush as u8;
const DISCARD: u8 = Opcode::Discard as u8;
const WRITE_ZEROES: u8 = Opcode::WriteZeroes as u8;
const COMPARE_AND_WRITE: u8 = Opcode::CompareAndWrite as u8;
const CANCEL: u8 = Opcode::Cancel as u8;

#[derive(Clone, Copy, Debug)]
struct Volume {
    size: u64,
    block: u32,
    memory_align: u32,
    writable: bool,
    removed: bool,
    lacks: Option<Opcode>,
}

/// What the session may use. Volume 2 belongs to another engine and region 1 is unknown.
#[derive(Debug)]
struct World {
    features: u64,
    volumes: [Option<Volume>; 5],
    regions: [Option<u64>; 3],
    /// What region 2 begins with.
    entries: Vec<IovEntry>,
}

/// An SQE that is right, or wrong in a word or two, is answered as ABI.md says.
pub fn sqe_validation(data: &[u8]) {
    let mut input = Unstructured::new(data);
    // Bytes that end early stand for zeros.
    let Ok(world) = World::read(&mut input) else { return };
    let rights = world.rights();
    while !input.is_empty() {
        let Ok(sqe) = sqe(&mut input, &world) else { return };
        assert_eq!(rights.check(&sqe), world.answer(&sqe), "{sqe:?} in {world:?}");
    }
}

impl World {
    fn read(input: &mut Unstructured<'_>) -> Result<World> {
        // The last one is no power of two, as a null volume may have it.
        let block = *input.choose(&[512, 1024, 2048, 4096, 1536])?;
        let blocks: u64 =
            if input.ratio(1, 8)? { u64::MAX / u64::from(block) } else { input.int_in_range(0..=4096)? };
        let memory_align = *input.choose(&[1, 4, 512, 4096])?;
        let size = blocks * u64::from(block);
        let lacks = *input.choose(&[Opcode::Discard, Opcode::WriteZeroes, Opcode::CompareAndWrite])?;
        let writable = Volume { size, block, memory_align, writable: true, removed: false, lacks: None };
        let arena = if input.ratio(1, 8)? { u64::MAX } else { input.int_in_range(0..=1 << 20)? };
        let features = match input.int_in_range(0..=3)? {
            0 => 0,
            1 => input.arbitrary()?,
            _ => u64::MAX,
        };
        let entries =
            (0..input.int_in_range(0..=8)?).map(|_| entry(input, &writable)).collect::<Result<_>>()?;
        Ok(World {
            features,
            volumes: [
                Some(writable),
                Some(Volume { writable: false, ..writable }),
                None,
                Some(Volume { removed: true, ..writable }),
                Some(Volume { lacks: Some(lacks), ..writable }),
            ],
            regions: [Some(arena), None, Some(MEMORY_BYTES)],
            entries,
        })
    }

    fn rights(&self) -> Rights {
        let volume = |v: Volume| {
            let mut volume = GrantedVolume::detached(v.size, v.block, v.memory_align, v.writable);
            volume = v.lacks.map_or(volume, |op| volume.lacking(op));
            if v.removed { volume.removed() } else { volume }
        };
        let mut regions: Vec<_> = self.regions.iter().map(|slot| slot.map(GrantedRegion::detached)).collect();
        regions[2] = Some(GrantedRegion::of_memory(self.memory()));
        Rights::new(self.features, self.volumes.iter().map(|slot| slot.map(volume)).collect(), regions)
    }

    fn memory(&self) -> Region {
        let memfd = create_memfd("fuzz", MEMORY_BYTES).expect("a memfd");
        let mapping = Mapping::new(memfd.as_fd(), MEMORY_BYTES as usize).expect("it can be mapped");
        let region = Region::new(Arc::new(mapping), 0, MEMORY_BYTES).expect("it is all of it");
        for (index, entry) in self.entries.iter().enumerate() {
            let words = region.u64s(16 * index as u64, 2).expect("few entries");
            words.iter().zip(entry.to_words()).for_each(|(word, value)| word.store(value, Relaxed));
        }
        region
    }

    fn answer(&self, sqe: &Sqe) -> Result<Checked, i32> {
        let granted = |feature| self.features & FEATURES & feature != 0;
        let vectored = matches!(sqe.op, 3 | 4);
        let data = matches!(sqe.op, 1..=4 | COMPARE_AND_WRITE);
        let range = data || matches!(sqe.op, DISCARD | WRITE_ZEROES);
        let writes = matches!(sqe.op, WRITE | 4 | DISCARD | WRITE_ZEROES | COMPARE_AND_WRITE);
        let served = match sqe.op {
            3 | 4 => granted(features::VECTORED),
            DISCARD | WRITE_ZEROES => granted(features::DISCARD),
            COMPARE_AND_WRITE => granted(features::COMPARE_AND_WRITE),
            CANCEL => granted(features::CANCEL),
            _ => true,
        };
        let unused = (!vectored && sqe.iov_count != 0)
            || (sqe.op != CANCEL && sqe.arg != 0)
            || (matches!(sqe.op, NOP | CANCEL) && sqe.volume != 0)
            || (!range && (sqe.offset, sqe.length) != (0, 0))
            || (!data && (sqe.region_offset, sqe.region) != (0, 0));
        let fua_misplaced = sqe.flags & sqe_flags::FUA != 0 && (!writes || sqe.op == DISCARD);
        let unserved_flag = (sqe.flags & 6 != 0 && !granted(features::ORDER))
            || (sqe.timeout_us != 0 && !granted(features::CANCEL));
        let wrong_in_any_world = [
            (sqe.op > 9, errno::EINVAL),
            (!served, errno::EOPNOTSUPP),
            (sqe.reserved != 0 || sqe.flags > 7 || sqe.class > 1, errno::EINVAL),
            (unserved_flag, errno::EOPNOTSUPP),
            (fua_misplaced || unused, errno::EINVAL),
        ];
        first(&wrong_in_any_world)?;
        let class = match sqe.class {
            1 => Class::Prio,
            _ if writes || sqe.op == FLUSH => Class::Write,
            _ => Class::Read,
        };
        if matches!(sqe.op, NOP | CANCEL) {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        let volume = self.volumes.get(usize::from(sqe.volume)).ok_or(errno::EBADF)?.ok_or(errno::EXDEV)?;
        first(&[(volume.removed, errno::ENODEV)])?;
        if sqe.op == FLUSH {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        let block = u64::from(volume.block);
        let end = u128::from(sqe.offset) + u128::from(sqe.length);
        let limit = match sqe.op {
            DISCARD | WRITE_ZEROES => u64::MAX,
            COMPARE_AND_WRITE => limits::CAW_BYTES_MAX,
            _ => limits::DATA_BYTES_MAX,
        };
        first(&[
            (writes && !volume.writable, errno::EROFS),
            (volume.lacks.is_some_and(|op| op as u8 == sqe.op), errno::EOPNOTSUPP),
            (
                sqe.length == 0 || !sqe.length.is_multiple_of(block) || !sqe.offset.is_multiple_of(block),
                errno::EINVAL,
            ),
            (sqe.length > limit, errno::EMSGSIZE),
            (end > u128::from(volume.size), errno::ERANGE),
        ])?;
        if vectored {
            self.iovec_answer(sqe, &volume)?;
        } else if data {
            let halves = if sqe.op == COMPARE_AND_WRITE { 2 } else { 1 };
            let align = u64::from(volume.memory_align);
            let second = if halves == 2 { sqe.length } else { 0 };
            first(&[
                (self.region(sqe.region).is_none(), errno::ENXIO),
                (self.beyond(sqe.region, sqe.region_offset, halves * u128::from(sqe.length)), errno::EFAULT),
                (!sqe.region_offset.is_multiple_of(align), errno::EFAULT),
                (!second.is_multiple_of(align), errno::EFAULT),
            ])?;
        }
        Ok(Checked { class, length: sqe.length, block: volume.block })
    }

    fn iovec_answer(&self, sqe: &Sqe, volume: &Volume) -> Result<(), i32> {
        let bytes = 16 * u128::from(sqe.iov_count);
        first(&[
            (sqe.iov_count == 0 || sqe.iov_count > 256, errno::EINVAL),
            (!sqe.region_offset.is_multiple_of(16), errno::EINVAL),
            (self.region(sqe.region).is_none(), errno::ENXIO),
            (self.beyond(sqe.region, sqe.region_offset, bytes), errno::EFAULT),
            // The other regions have no memory in this world.
            (sqe.region != 2, errno::EFAULT),
        ])?;
        let start = sqe.region_offset as usize / 16;
        let entry = |index| self.entries.get(index).copied().unwrap_or_default();
        let entries: Vec<IovEntry> = (start..start + sqe.iov_count as usize).map(entry).collect();
        let sum: u128 = entries.iter().map(|entry| u128::from(entry.length)).sum();
        let any = |wrong: &dyn Fn(&IovEntry) -> bool| entries.iter().any(wrong);
        first(&[
            (any(&|entry| entry.zero != 0 || entry.length == 0), errno::EINVAL),
            (any(&|entry| !entry.length.is_multiple_of(volume.block)), errno::EINVAL),
            (sum != u128::from(sqe.length), errno::EINVAL),
            (any(&|entry| self.region(entry.region).is_none()), errno::ENXIO),
            (any(&|entry| self.beyond(entry.region, entry.offset, entry.length.into())), errno::EFAULT),
            (any(&|entry| !entry.offset.is_multiple_of(volume.memory_align.into())), errno::EFAULT),
        ])
    }

    fn region(&self, index: u16) -> Option<u64> {
        self.regions.get(usize::from(index)).copied().flatten()
    }

    fn beyond(&self, region: u16, offset: u64, length: u128) -> bool {
        u128::from(offset) + length > u128::from(self.region(region).unwrap_or(0))
    }
}

/// The first check that fails decides.
fn first(checks: &[(bool, i32)]) -> Result<(), i32> {
    checks.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, errno)| Err(*errno))
}

/// An entry of an iovec, most often a good one.
fn entry(input: &mut Unstructured<'_>, volume: &Volume) -> Result<IovEntry> {
    let good = !input.ratio(1, 8)?;
    let words = IovEntry {
        region: if good { 2 } else { input.int_in_range(0..=3)? },
        zero: 0,
        length: volume.block * input.int_in_range(1..=4)?,
        offset: 4096 * input.int_in_range(0..=8)?,
    }
    .to_words();
    let mut words = words;
    if !good && input.arbitrary()? {
        let word = input.choose_index(words.len())?;
        words[word] = hostile(input, words[word], volume)?;
    }
    Ok(IovEntry::from_words(words))
}

/// An SQE that is right in most worlds, then up to two words of it as hostile as they come.
fn sqe(input: &mut Unstructured<'_>, world: &World) -> Result<Sqe> {
    let volume = world.volumes[0].expect("volume 0 is granted");
    let block = u64::from(volume.block);
    let op = input.int_in_range(0..=9)?;
    let mut sqe = Sqe { op, class: input.int_in_range(0..=1)?, ..Sqe::default() };
    if world.features != 0 && input.ratio(1, 4)? {
        sqe.timeout_us = input.int_in_range(0..=1000)?;
        sqe.flags = input.int_in_range(0..=3)? << 1;
    }
    if op == CANCEL {
        sqe.arg = input.arbitrary()?;
    } else if op != NOP && input.ratio(1, 4)? {
        sqe.volume = input.int_in_range(0..=4)?;
    }
    if !matches!(op, NOP | FLUSH | CANCEL) {
        sqe.offset = input.int_in_range(0..=volume.size / block)? * block;
        sqe.length = input.int_in_range(1..=16)? * block;
        let fua = matches!(op, WRITE | 4 | WRITE_ZEROES | COMPARE_AND_WRITE);
        sqe.flags |= u16::from(fua && input.arbitrary()?);
    }
    if matches!(op, 1 | WRITE | COMPARE_AND_WRITE) {
        sqe.region_offset = input.int_in_range(0..=64)? * 4096;
    }
    if matches!(op, 3 | 4) {
        let count = world.entries.len().max(1);
        let start = input.int_in_range(0..=count - 1)?;
        sqe.region = 2;
        sqe.region_offset = 16 * start as u64;
        sqe.iov_count = input.int_in_range(1..=count - start)? as u32;
        let named = world.entries.iter().skip(start).take(sqe.iov_count as usize);
        sqe.length = named.map(|entry| u64::from(entry.length)).sum();
    }
    let mut words = sqe.to_words();
    for _ in 0..input.int_in_range(0..=2)? {
        let word = input.choose_index(words.len())?;
        words[word] = hostile(input, words[word], &volume)?;
    }
    Ok(Sqe::from_words(words))
}

fn hostile(input: &mut Unstructured<'_>, word: u64, volume: &Volume) -> Result<u64> {
    let edges = [0, 1, 1 << 30, 1 << 32, 1 << 63, u64::MAX, volume.size, volume.size.wrapping_neg()];
    Ok(match input.int_in_range(0..=3)? {
        0 => input.arbitrary()?,
        1 => word ^ 1 << input.int_in_range(0..=63)?,
        2 => word.wrapping_add(*input.choose(&[512, 4096, 512u64.wrapping_neg(), u64::MAX])?),
        _ => *input.choose(&edges)?,
    })
}
