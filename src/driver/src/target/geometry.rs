//! Size, block and alignment, as the kernel states them.

use std::fs::File;

use rustix::fs::{AtFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::TargetKind;

/// Sector: offsets and lengths are never finer than this.
const SECTOR_BYTES: u32 = 512;
/// What suits every disk, where the kernel is too old to say (before 6.1).
const SAFE_ALIGN_BYTES: u32 = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) block_bytes: u32,
    pub(super) memory_align_bytes: u32,
}

impl Geometry {
    /// Reads the geometry and the size; sets `direct_reason` if it shows that O_DIRECT does not work here.
    pub(super) fn of(
        file: &File,
        kind: TargetKind,
        direct_reason: &mut Option<String>,
    ) -> Result<(Geometry, u64), Errno> {
        let logical = match kind {
            TargetKind::Block => rustix::fs::ioctl_blksszget(file)?.max(SECTOR_BYTES),
            _ => SECTOR_BYTES,
        };
        // The end of a block device is its size; for a file it is what fstat says.
        let size_bytes = rustix::fs::seek(file, SeekFrom::End(0))?;
        let direct = if direct_reason.is_none() { direct_alignment(file, kind, logical)? } else { None };
        let (block_bytes, memory_align_bytes) = match direct {
            Some(alignment) => alignment,
            None => {
                let told = "statx says that this file has no direct I/O: I/O goes through the page cache";
                direct_reason.get_or_insert_with(|| told.to_owned());
                (logical, 1)
            }
        };
        Ok((Geometry { block_bytes, memory_align_bytes }, size_bytes))
    }
}

/// Block and memory alignment of direct I/O; `None` where the kernel says there is none.
fn direct_alignment(file: &File, kind: TargetKind, logical: u32) -> Result<Option<(u32, u32)>, Errno> {
    let told = match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(told) => (told.stx_mask & StatxFlags::DIOALIGN.bits() != 0).then_some(told),
        Err(Errno::NOSYS) => None,
        Err(errno) => return Err(errno),
    };
    Ok(match told {
        Some(told) if told.stx_dio_offset_align == 0 => None,
        Some(told) => Some((told.stx_dio_offset_align.max(logical), told.stx_dio_mem_align.max(1))),
        None if kind == TargetKind::Block => Some((logical, logical)),
        None => Some((SAFE_ALIGN_BYTES, SAFE_ALIGN_BYTES)),
    })
}

/// The file systems whose locks come free while writes of the dead owner are still on their way.
pub(super) fn network_file_system(file: &File) -> Result<Option<&'static str>, Errno> {
    // Magic numbers of linux/magic.h, compared in 32 bits: the field's width and sign differ by platform.
    Ok(match rustix::fs::fstatfs(file)?.f_type as u32 {
        0x6969 => Some("NFS"),
        0x517b => Some("SMB"),
        0xff53_4d42 => Some("CIFS"),
        0xfe53_4d42 => Some("SMB2"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("CephFS"),
        0x5346_414f => Some("AFS"),
        _ => None,
    })
}
