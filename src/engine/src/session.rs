//! Stage 2: what a session may do, and the check of each SQE against it.
//!
//! The check works on the daemon's own copy of the SQE and on the daemon's own notion of volumes and regions; nothing is
//! read from client memory here. Order and errno of the checks are those of ABI.md, "Validation".

use std::sync::Arc;

use ferrio_driver::{FileIndex, Outline, RegionIndex, Target};
use ferrio_shm::{
    abi::{self, Opcode, errno, features, limits, sqe_flags},
    doorbell::{DoorbellRx, DoorbellTx},
    entry::Sqe,
    layout::SessionLayout,
    mapping::{Mapping, Region},
};

use crate::{queue::Class, vectored};

/// What an engine serves beyond what is always there: bits of [`ferrio_shm::abi::features`].
/// Regions that a client brings are served too, but it is for the daemon, which takes them, to say so.
pub const FEATURES: u64 =
    features::VECTORED | features::DISCARD | features::COMPARE_AND_WRITE | features::CANCEL | features::ORDER;

/// A volume of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// A volume as a session may use it.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Volume.
    pub volume: VolumeId,
    /// Writes are allowed.
    pub writable: bool,
}

/// A queue of a session for this engine.
pub struct QueueAttach {
    /// Index into `SessionLayout::queues`.
    pub index: u32,
    /// Wakes the client.
    pub cq_doorbell: DoorbellTx,
}

/// A session as the control plane hands it to an engine.
pub struct SessionSpec {
    /// Session id, never 0.
    pub session_id: u64,
    /// Session memory.
    pub memory: Arc<Mapping>,
    /// Where things lie in it; the daemon's own copy.
    pub layout: SessionLayout,
    /// Queues that this engine serves.
    pub queues: Vec<QueueAttach>,
    /// The client rings here.
    pub doorbell: DoorbellRx,
    /// Memory that the client had brought, by the index that SQEs name it by, 1 to 255; of a session that is resumed, for one
    /// that is opened has none. In ascending order.
    pub regions: Vec<(u16, Region)>,
    /// By SQE volume index; `None` for a volume of another engine.
    pub grants: Vec<Option<Grant>>,
    /// Features granted, of [`FEATURES`] and `resume` (the session may be left to the next daemon): bits of [`ferrio_shm::abi::features`]. What needs another one answers
    /// `EOPNOTSUPP`.
    pub features: u64,
    /// Share that the session has of each class, beside others: 1 to 1000, [`crate::scheduler::fair::DEFAULT_WEIGHT`] if
    /// nothing speaks for another.
    pub weight: u32,
    /// Group whose limit holds for it too.
    pub group: Option<String>,
    /// Its requests may go to the device in one operation with adjacent ones, of its own or of others.
    pub merge: bool,
    /// Called once, from the I/O thread, when the session's rings break the protocol. Must not block.
    pub on_fault: Box<dyn FnOnce(String) + Send>,
}

/// A grant with what the check needs to know of the volume.
#[derive(Clone, Copy, Debug)]
pub struct GrantedVolume {
    pub(crate) id: VolumeId,
    pub(crate) file: FileIndex,
    pub(crate) size: u64,
    pub(crate) block: u32,
    pub(crate) memory_align: u32,
    /// Bits that are 0 in multiples of `block` and of `memory_align`.
    pub(crate) block_mask: u64,
    pub(crate) memory_mask: u64,
    pub(crate) writable: bool,
    /// Operations that it cannot do: bits by opcode.
    pub(crate) lacks: u16,
    pub(crate) standing: Standing,
}

/// Whether a volume takes requests, and issues them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Both.
    Serving,
    /// Takes them, and they wait: its lock is not ours yet.
    Fenced,
    /// Neither: it was removed, or is being removed.
    Gone,
}

impl GrantedVolume {
    /// A volume as the check sees it: `size` and `block` in bytes, `memory_align` of the data in memory in bytes. For
    /// fuzzers and tests, which have no driver: the Submitter fills in what [`SessionSpec`] grants.
    pub fn detached(size: u64, block: u32, memory_align: u32, writable: bool) -> Self {
        Self {
            id: VolumeId(0),
            file: FileIndex(0),
            size,
            block,
            memory_align,
            block_mask: mask(block),
            memory_mask: mask(memory_align),
            writable,
            lacks: 0,
            standing: Standing::Serving,
        }
    }

    /// The volume as its driver knows it.
    pub(crate) fn of(id: VolumeId, file: FileIndex, target: &Target) -> Self {
        let (block, memory_align) = (target.block_bytes(), target.memory_align_bytes());
        Self { id, file, ..Self::detached(target.size_bytes(), block, memory_align, !target.read_only()) }
    }

    /// A volume that no driver has yet.
    pub(crate) fn fenced(id: VolumeId, outline: &Outline) -> Self {
        let Outline { size_bytes, block_bytes, memory_align_bytes, read_only, .. } = *outline;
        let standing = Standing::Fenced;
        Self { id, standing, ..Self::detached(size_bytes, block_bytes, memory_align_bytes, !read_only) }
    }

    /// The same where the volume cannot do an operation.
    #[must_use]
    pub fn lacking(self, op: Opcode) -> Self {
        Self { lacks: self.lacks | 1 << op as u8, ..self }
    }

    /// The same after the volume was removed.
    #[must_use]
    pub fn removed(self) -> Self {
        Self { standing: Standing::Gone, ..self }
    }
}

/// Bits that are 0 in all multiples. All bits where that does not tell, so that 0 alone is taken for one.
fn mask(multiple: u32) -> u64 {
    if multiple.is_power_of_two() { u64::from(multiple) - 1 } else { u64::MAX }
}

/// Memory of a session that requests may name.
#[derive(Clone, Debug)]
pub struct GrantedRegion {
    pub(crate) index: RegionIndex,
    pub(crate) bytes: u64,
    /// For what the engine itself reads there: iovecs, and what is to be compared.
    pub(crate) memory: Option<Region>,
}

impl GrantedRegion {
    /// A region of `bytes`, without a driver or memory behind it, as [`GrantedVolume::detached`].
    pub fn detached(bytes: u64) -> Self {
        Self { index: RegionIndex(0), bytes, memory: None }
    }

    /// A region with memory and without a driver, as [`GrantedVolume::detached`].
    pub fn of_memory(memory: Region) -> Self {
        Self { index: RegionIndex(0), bytes: memory.len(), memory: Some(memory) }
    }
}

/// An SQE that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Class.
    pub class: Class,
    /// Bytes of the volume that it is about.
    pub length: u64,
    /// Logical block size of the volume, or 1.
    pub block: u32,
}

/// What a session may name in an SQE.
#[derive(Debug, Default)]
pub struct Rights {
    pub(crate) features: u64,
    /// See [`SessionSpec::merge`].
    pub(crate) merges: bool,
    pub(crate) volumes: Vec<Option<GrantedVolume>>,
    pub(crate) regions: Vec<Option<GrantedRegion>>,
}

impl Rights {
    /// What an SQE may use (`features`, bits of [`ferrio_shm::abi::features`]) and name, by its volume index (`None`: a
    /// volume of another engine) and its region index (`None`: no such region).
    pub fn new(
        features: u64,
        volumes: Vec<Option<GrantedVolume>>,
        regions: Vec<Option<GrantedRegion>>,
    ) -> Self {
        Self { features: features & (FEATURES | features::RESUME), merges: false, volumes, regions }
    }

    /// One of these features was granted.
    pub(crate) fn has(&self, features: u64) -> bool {
        self.features & features != 0
    }

    /// Checks an SQE.
    ///
    /// # Errors
    /// The errno (positive) that its CQE is to carry.
    #[inline]
    pub fn check(&self, sqe: &Sqe) -> Result<Checked, i32> {
        self.check_plain(sqe).map_or_else(|| self.check_in_order(sqe), Ok)
    }

    /// Whether it is a read or write like most, and right: all the checks of [`Self::check_in_order`] that it can fail at
    /// once, in the order that is cheapest.
    #[inline]
    fn check_plain(&self, sqe: &Sqe) -> Option<Checked> {
        let is_write = sqe.op == Opcode::Write as u8;
        if !is_write && sqe.op != Opcode::Read as u8 {
            return None;
        }
        let flags = sqe.flags & !(if is_write { sqe_flags::FUA } else { 0 });
        let unused = u64::from(flags) | u64::from(sqe.iov_count | sqe.timeout_us) | sqe.arg | sqe.reserved;
        let class = match sqe.class {
            0 if is_write => Class::Write,
            0 => Class::Read,
            1 => Class::Prio,
            _ => return None,
        };
        let volume = self.volumes.get(usize::from(sqe.volume))?.as_ref()?;
        let region = self.regions.get(usize::from(sqe.region))?.as_ref()?;
        let good = unused == 0
            && volume.standing != Standing::Gone
            && (volume.writable || !is_write)
            && sqe.length.wrapping_sub(1) < limits::DATA_BYTES_MAX
            && sqe.offset <= volume.size
            && sqe.length <= volume.size - sqe.offset
            && sqe.region_offset <= region.bytes
            && sqe.length <= region.bytes - sqe.region_offset
            && (sqe.length | sqe.offset) & volume.block_mask == 0
            && sqe.region_offset & volume.memory_mask == 0;
        good.then_some(Checked { class, length: sqe.length, block: volume.block })
    }

    /// All checks, in the order of ABI.md: the first that fails decides.
    fn check_in_order(&self, sqe: &Sqe) -> Result<Checked, i32> {
        let op = Opcode::try_from(sqe.op).map_err(|_| errno::EINVAL)?;
        if needs(op) & !self.features != 0 {
            return Err(errno::EOPNOTSUPP);
        }
        check_flags(sqe, self.features)?;
        check_fields(sqe, op)?;
        let direction = if writes(op) || op == Opcode::Flush { Class::Write } else { Class::Read };
        let class = if sqe.class == abi::Class::Prio as u8 { Class::Prio } else { direction };
        if !has_volume(op) {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        let volume = self.volume(sqe.volume)?;
        if op == Opcode::Flush {
            return Ok(Checked { class, length: 0, block: 1 });
        }
        if writes(op) && !volume.writable {
            return Err(errno::EROFS);
        }
        if volume.lacks >> op as u8 & 1 != 0 {
            return Err(errno::EOPNOTSUPP);
        }
        let length = check_range(op, sqe, volume)?;
        match op {
            Opcode::Read | Opcode::Write => self.check_memory(sqe, sqe.length, volume)?,
            Opcode::Readv | Opcode::Writev => vectored::gather(self, sqe, volume, |_| ())?,
            Opcode::CompareAndWrite => {
                self.check_memory(sqe, 2 * sqe.length, volume)?;
                if !sqe.length.is_multiple_of(volume.memory_align.into()) {
                    return Err(errno::EFAULT);
                }
            }
            _ => {}
        }
        Ok(Checked { class, length, block: volume.block })
    }

    /// The volume an SQE names.
    pub(crate) fn volume(&self, index: u16) -> Result<&GrantedVolume, i32> {
        let grant = self.volumes.get(usize::from(index)).ok_or(errno::EBADF)?;
        let volume = grant.as_ref().ok_or(errno::EXDEV)?;
        if volume.standing == Standing::Gone { Err(errno::ENODEV) } else { Ok(volume) }
    }

    /// The volume an SQE names, if requests for it are issued.
    #[inline]
    pub(crate) fn serving(&self, index: u16) -> Option<&GrantedVolume> {
        let volume = self.volumes.get(usize::from(index))?.as_ref()?;
        (volume.standing == Standing::Serving).then_some(volume)
    }

    /// The volume that was granted under an index, removed or not; none if it was another engine's.
    pub(crate) fn grant(&self, index: u16) -> Option<&GrantedVolume> {
        self.volumes.get(usize::from(index))?.as_ref()
    }

    /// The region an SQE names.
    pub(crate) fn region(&self, index: u16) -> Result<&GrantedRegion, i32> {
        self.regions.get(usize::from(index)).and_then(Option::as_ref).ok_or(errno::ENXIO)
    }

    fn check_memory(&self, sqe: &Sqe, bytes: u64, volume: &GrantedVolume) -> Result<(), i32> {
        let region = self.region(sqe.region)?;
        let end = sqe.region_offset.checked_add(bytes).ok_or(errno::EFAULT)?;
        if end > region.bytes || !sqe.region_offset.is_multiple_of(volume.memory_align.into()) {
            return Err(errno::EFAULT);
        }
        Ok(())
    }
}

/// The features that an operation needs, 0 for what is always there.
fn needs(op: Opcode) -> u64 {
    match op {
        Opcode::Nop | Opcode::Read | Opcode::Write | Opcode::Flush => 0,
        Opcode::Readv | Opcode::Writev => features::VECTORED,
        Opcode::Discard | Opcode::WriteZeroes => features::DISCARD,
        Opcode::CompareAndWrite => features::COMPARE_AND_WRITE,
        Opcode::Cancel => features::CANCEL,
    }
}

/// The operation changes what a volume holds.
pub(crate) fn writes(op: Opcode) -> bool {
    use Opcode::{CompareAndWrite, Discard, Write, WriteZeroes, Writev};
    matches!(op, Write | Writev | Discard | WriteZeroes | CompareAndWrite)
}

/// The operation is one on a volume.
pub(crate) fn has_volume(op: Opcode) -> bool {
    !matches!(op, Opcode::Nop | Opcode::Cancel)
}

/// What all operations have: flags, class, timeout.
fn check_flags(sqe: &Sqe, granted: u64) -> Result<(), i32> {
    if sqe.reserved != 0 || sqe.flags & !sqe_flags::ALL != 0 || abi::Class::try_from(sqe.class).is_err() {
        return Err(errno::EINVAL);
    }
    let order = sqe.flags & (sqe_flags::LINK | sqe_flags::BARRIER) != 0 && granted & features::ORDER == 0;
    let timeout = sqe.timeout_us != 0 && granted & features::CANCEL == 0;
    if order || timeout { Err(errno::EOPNOTSUPP) } else { Ok(()) }
}

/// The fields that this operation does not use.
fn check_fields(sqe: &Sqe, op: Opcode) -> Result<(), i32> {
    let vectored = matches!(op, Opcode::Readv | Opcode::Writev);
    let memory = vectored || matches!(op, Opcode::Read | Opcode::Write | Opcode::CompareAndWrite);
    let range = memory || matches!(op, Opcode::Discard | Opcode::WriteZeroes);
    let fua_misplaced = sqe.flags & sqe_flags::FUA != 0 && (!writes(op) || op == Opcode::Discard);
    let unused_memory = !memory && (sqe.region_offset | u64::from(sqe.region)) != 0;
    let unused_range = !range && (sqe.offset | sqe.length) != 0;
    let unused_iovec = !vectored && sqe.iov_count != 0;
    let unused_volume = !has_volume(op) && sqe.volume != 0;
    let unused_arg = op != Opcode::Cancel && sqe.arg != 0;
    if fua_misplaced || unused_memory || unused_range || unused_iovec || unused_volume || unused_arg {
        return Err(errno::EINVAL);
    }
    Ok(())
}

fn check_range(op: Opcode, sqe: &Sqe, volume: &GrantedVolume) -> Result<u64, i32> {
    let block = u64::from(volume.block);
    if sqe.length == 0 || !sqe.length.is_multiple_of(block) || !sqe.offset.is_multiple_of(block) {
        return Err(errno::EINVAL);
    }
    let limit = match op {
        Opcode::Discard | Opcode::WriteZeroes => u64::MAX,
        Opcode::CompareAndWrite => limits::CAW_BYTES_MAX,
        _ => limits::DATA_BYTES_MAX,
    };
    if sqe.length > limit {
        return Err(errno::EMSGSIZE);
    }
    match sqe.offset.checked_add(sqe.length) {
        Some(end) if end <= volume.size => Ok(sqe.length),
        _ => Err(errno::ERANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const ARENA: u64 = 64 << 10;

    fn rights() -> Rights {
        let volume = GrantedVolume::detached(SIZE, 512, 512, true);
        Rights {
            merges: true,
            features: FEATURES,
            volumes: vec![
                Some(volume),
                Some(GrantedVolume { writable: false, ..volume }),
                None,
                Some(volume.removed()),
            ],
            regions: vec![Some(GrantedRegion::detached(ARENA))],
        }
    }

    fn read() -> Sqe {
        Sqe { op: Opcode::Read as u8, length: 4096, ..Sqe::default() }
    }

    fn write() -> Sqe {
        Sqe { op: Opcode::Write as u8, ..read() }
    }

    #[test]
    fn good_requests_pass() {
        let rights = rights();
        let last = Sqe { offset: SIZE - 4096, region_offset: ARENA - 4096, ..read() };
        assert_eq!(rights.check(&last), Ok(Checked { class: Class::Read, length: 4096, block: 512 }));
        let fua = Sqe { flags: sqe_flags::FUA, ..write() };
        assert_eq!(rights.check(&fua).unwrap().class, Class::Write);
        let prio = Sqe { class: abi::Class::Prio as u8, volume: 1, ..read() };
        assert_eq!(rights.check(&prio).unwrap().class, Class::Prio);
        let flush = Sqe { op: Opcode::Flush as u8, volume: 1, ..Sqe::default() };
        assert_eq!(rights.check(&flush).unwrap().class, Class::Write);
        assert_eq!(rights.check(&Sqe::default()).unwrap().class, Class::Read);
    }

    #[test]
    fn bad_requests_get_the_errno_of_the_abi() {
        let nop = Sqe::default();
        let flush = Sqe { op: Opcode::Flush as u8, ..nop };
        let cancel = Sqe { op: Opcode::Cancel as u8, arg: 7, ..nop };
        let cases = [
            ("unknown opcode", Sqe { op: 10, ..nop }, errno::EINVAL),
            ("opcode 255", Sqe { op: 255, ..nop }, errno::EINVAL),
            ("reserved", Sqe { reserved: 1, ..read() }, errno::EINVAL),
            ("unknown flag", Sqe { flags: 1 << 15, ..read() }, errno::EINVAL),
            ("unknown class", Sqe { class: 2, ..read() }, errno::EINVAL),
            ("volume on a cancel", Sqe { volume: 1, ..cancel }, errno::EINVAL),
            ("length on a cancel", Sqe { length: 512, ..cancel }, errno::EINVAL),
            ("FUA on a cancel", Sqe { flags: sqe_flags::FUA, ..cancel }, errno::EINVAL),
            ("FUA on a read", Sqe { flags: sqe_flags::FUA, ..read() }, errno::EINVAL),
            ("iov_count on a read", Sqe { iov_count: 1, ..read() }, errno::EINVAL),
            ("arg on a read", Sqe { arg: 1, ..read() }, errno::EINVAL),
            ("length on a nop", Sqe { length: 1, ..nop }, errno::EINVAL),
            ("volume on a nop", Sqe { volume: 1, ..nop }, errno::EINVAL),
            ("offset on a flush", Sqe { offset: 512, ..flush }, errno::EINVAL),
            ("volume not granted", Sqe { volume: 4, ..read() }, errno::EBADF),
            ("volume 65535", Sqe { volume: u16::MAX, ..flush }, errno::EBADF),
            ("volume of another engine", Sqe { volume: 2, ..read() }, errno::EXDEV),
            ("removed volume", Sqe { volume: 3, ..read() }, errno::ENODEV),
            ("flush of a removed volume", Sqe { volume: 3, ..flush }, errno::ENODEV),
            ("write to a read-only grant", Sqe { volume: 1, ..write() }, errno::EROFS),
            ("length 0", Sqe { length: 0, ..read() }, errno::EINVAL),
            ("misaligned length", Sqe { length: 513, ..read() }, errno::EINVAL),
            ("misaligned offset", Sqe { offset: 1, ..read() }, errno::EINVAL),
            ("length above the limit", Sqe { length: (1 << 30) + 512, ..read() }, errno::EMSGSIZE),
            ("length 2^63", Sqe { length: 1 << 63, ..read() }, errno::EMSGSIZE),
            ("beyond the end", Sqe { offset: SIZE - 512, ..read() }, errno::ERANGE),
            ("offset overflow", Sqe { offset: u64::MAX - 511, ..read() }, errno::ERANGE),
            ("unknown region", Sqe { region: 1, ..read() }, errno::ENXIO),
            ("beyond the region", Sqe { region_offset: ARENA - 512, ..read() }, errno::EFAULT),
            ("region offset overflow", Sqe { region_offset: u64::MAX - 511, ..read() }, errno::EFAULT),
            ("misaligned memory", Sqe { region_offset: 8, ..read() }, errno::EFAULT),
        ];
        for (what, sqe, errno) in cases {
            assert_eq!(rights().check(&sqe), Err(errno), "{what}");
        }
    }

    #[test]
    fn a_feature_is_used_by_those_who_have_it() {
        let cases = [
            ("cancel", Sqe { op: Opcode::Cancel as u8, arg: 7, ..Sqe::default() }, features::CANCEL),
            ("timeout", Sqe { timeout_us: 1, ..read() }, features::CANCEL),
            ("link", Sqe { flags: sqe_flags::LINK, ..read() }, features::ORDER),
            ("barrier", Sqe { flags: sqe_flags::BARRIER, ..Sqe::default() }, features::ORDER),
        ];
        for (what, sqe, feature) in cases {
            assert!(rights().check(&sqe).is_ok(), "{what}");
            let without = Rights { features: FEATURES & !feature, ..rights() };
            assert_eq!(without.check(&sqe), Err(errno::EOPNOTSUPP), "{what}");
        }
    }
}
