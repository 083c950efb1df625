//! Stage 2 against a second reading of ABI.md, "Checks, in this order", in numbers that cannot overflow.

use arbitrary::{Result, Unstructured};
use ferrio_engine::{
    queue::Class,
    session::{Checked, GrantedRegion, GrantedVolume, Rights},
};
use ferrio_shm::{
    abi::{Opcode, errno, features, limits, sqe_flags},
    entry::Sqe,
};

#[derive(Clone, Copy, Debug)]
struct Volume {
    size: u64,
    block: u32,
    memory_align: u32,
    writable: bool,
}

/// What the session may use. Volume 2 belongs to another engine and region 1 is unknown.
#[derive(Debug)]
struct World {
    /// Of `features`.
    features: u64,
    volumes: [Option<Volume>; 3],
    regions: [Option<u64>; 3],
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
        let block = 512 << input.int_in_range(0..=3)?;
        let blocks: u64 =
            if input.ratio(1, 8)? { u64::MAX / u64::from(block) } else { input.int_in_range(0..=4096)? };
        let memory_align = *input.choose(&[1, 4, 512, 4096])?;
        let writable = Volume { size: blocks * u64::from(block), block, memory_align, writable: true };
        let arena = if input.ratio(1, 8)? { u64::MAX } else { input.int_in_range(0..=1 << 20)? };
        let features = *input.choose(&[0, features::CANCEL, features::ORDER, u64::MAX])?;
        Ok(World {
            features,
            volumes: [Some(writable), Some(Volume { writable: false, ..writable }), None],
            regions: [Some(arena), None, Some(1 << 16)],
        })
    }

    fn rights(&self) -> Rights {
        let volume = |v: Volume| GrantedVolume::detached(v.size, v.block, v.memory_align, v.writable);
        Rights::new(
            self.features,
            self.volumes.iter().map(|slot| slot.map(volume)).collect(),
            self.regions.iter().map(|slot| slot.map(GrantedRegion::detached)).collect(),
        )
    }

    fn answer(&self, sqe: &Sqe) -> Result<Checked, i32> {
        const NOP: u8 = Opcode::Nop as u8;
        const WRITE: u8 = Opcode::Write as u8;
        const FLUSH: u8 = Opcode::Flush as u8;
        const CANCEL: u8 = Opcode::Cancel as u8;
        let (may_cancel, may_order) =
            (self.features & features::CANCEL != 0, self.features & features::ORDER != 0);
        let data = matches!(sqe.op, 1 | 2);
        let unused = sqe.iov_count != 0
            || (sqe.op != CANCEL && sqe.arg != 0)
            || (matches!(sqe.op, NOP | CANCEL) && sqe.volume != 0)
            || (!data && (sqe.offset, sqe.length, sqe.region_offset, sqe.region) != (0, 0, 0, 0));
        let fua_misplaced = sqe.flags & sqe_flags::FUA != 0 && sqe.op != WRITE;
        let wrong_in_any_world = [
            (sqe.op > 9, errno::EINVAL),
            (!data && !matches!(sqe.op, NOP | FLUSH | CANCEL), errno::EOPNOTSUPP),
            (sqe.op == CANCEL && !may_cancel, errno::EOPNOTSUPP),
            (sqe.reserved != 0 || sqe.flags > 7 || sqe.class > 1, errno::EINVAL),
            (sqe.flags & 6 != 0 && !may_order, errno::EOPNOTSUPP),
            (sqe.timeout_us != 0 && !may_cancel, errno::EOPNOTSUPP),
            (fua_misplaced || unused, errno::EINVAL),
        ];
        first(&wrong_in_any_world)?;
        let class = match (sqe.class, sqe.op) {
            (1, _) => Class::Prio,
            (_, WRITE | FLUSH) => Class::Write,
            _ => Class::Read,
        };
        if matches!(sqe.op, NOP | CANCEL) {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        let volume = self.volumes.get(usize::from(sqe.volume)).ok_or(errno::EBADF)?.ok_or(errno::EXDEV)?;
        if sqe.op == FLUSH {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        let block = u64::from(volume.block);
        let end = u128::from(sqe.offset) + u128::from(sqe.length);
        let region = self.regions.get(usize::from(sqe.region)).copied().flatten();
        let memory_end = u128::from(sqe.region_offset) + u128::from(sqe.length);
        first(&[
            (sqe.op == WRITE && !volume.writable, errno::EROFS),
            (
                sqe.length == 0 || !sqe.length.is_multiple_of(block) || !sqe.offset.is_multiple_of(block),
                errno::EINVAL,
            ),
            (sqe.length > limits::DATA_BYTES_MAX, errno::EMSGSIZE),
            (end > u128::from(volume.size), errno::ERANGE),
            (region.is_none(), errno::ENXIO),
            (memory_end > u128::from(region.unwrap_or(0)), errno::EFAULT),
            (!sqe.region_offset.is_multiple_of(volume.memory_align.into()), errno::EFAULT),
        ])?;
        Ok(Checked { class, length: sqe.length, block: volume.block })
    }
}

/// The first check that fails decides.
fn first(checks: &[(bool, i32)]) -> Result<(), i32> {
    checks.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, errno)| Err(*errno))
}

/// An SQE that is right in most worlds, then up to two words of it as hostile as they come.
fn sqe(input: &mut Unstructured<'_>, world: &World) -> Result<Sqe> {
    let volume = world.volumes[0].expect("volume 0 is granted");
    let block = u64::from(volume.block);
    let op = *input.choose(&[Opcode::Read, Opcode::Write, Opcode::Flush, Opcode::Nop, Opcode::Cancel])?;
    let mut sqe = Sqe { op: op as u8, class: input.int_in_range(0..=1)?, ..Sqe::default() };
    if world.features != 0 && input.ratio(1, 4)? {
        sqe.timeout_us = input.int_in_range(0..=1000)?;
        sqe.flags = input.int_in_range(0..=3)? << 1;
    }
    if op == Opcode::Cancel {
        sqe.arg = input.arbitrary()?;
    } else if op != Opcode::Nop {
        sqe.volume = u16::from(input.ratio(1, 4)?);
    }
    if matches!(op, Opcode::Read | Opcode::Write) {
        sqe.offset = input.int_in_range(0..=volume.size / block)? * block;
        sqe.length = input.int_in_range(1..=16)? * block;
        sqe.region_offset = input.int_in_range(0..=64)? * 4096;
        sqe.flags |= u16::from(op == Opcode::Write && input.arbitrary()?);
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
