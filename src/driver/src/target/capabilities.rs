//! What a target can do besides reading and writing, found out without changing its data.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

use super::TargetKind;
use super::geometry::Geometry;

/// Whether a target can do something, and how or why not, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It can, by this.
    Native(&'static str),
    /// It cannot, but this has the same effect.
    Emulated(&'static str),
    /// It cannot, and requests are answered with `-EOPNOTSUPP`; why.
    Unsupported(&'static str),
}

/// What a target can do besides reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`OpKind::Discard`](crate::OpKind::Discard).
    pub discard: Support,
    /// [`OpKind::WriteZeroes`](crate::OpKind::WriteZeroes).
    pub write_zeroes: Support,
}

impl Support {
    /// Requests are carried out, one way or the other.
    pub fn is_supported(self) -> bool {
        !matches!(self, Support::Unsupported(_))
    }
}

/// How a range of a target is discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// There is nothing to do.
    Nothing,
    /// `fallocate` with this mode.
    Fallocate(FallocateFlags),
    /// The ioctl `BLKDISCARD`.
    DeviceDiscard,
    /// Zeros are written.
    Write,
    /// Not at all.
    Unsupported,
}

/// What a target can do, and how it is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Methods {
    pub(super) capabilities: Capabilities,
    pub(super) discard: Method,
    pub(super) write_zeroes: Method,
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

type Found = (Support, Method);

impl Methods {
    /// Of what has no data.
    pub(super) const NOTHING: Methods = {
        let nothing = (Support::Native("nothing to do"), Method::Nothing);
        Methods::new(nothing, nothing)
    };

    const fn new(discard: Found, write_zeroes: Found) -> Methods {
        let capabilities = Capabilities { discard: discard.0, write_zeroes: write_zeroes.0 };
        Methods { capabilities, discard: discard.1, write_zeroes: write_zeroes.1 }
    }

    pub(super) fn of(
        file: &File,
        kind: TargetKind,
        read_only: bool,
        geometry: &Geometry,
        size: u64,
    ) -> Methods {
        if read_only {
            let refused = (Support::Unsupported("opened read-only"), Method::Unsupported);
            return Methods::new(refused, refused);
        }
        match kind {
            TargetKind::Null => Methods::NOTHING,
            TargetKind::Block => of_device(file),
            TargetKind::File | TargetKind::Memory => of_file(file, geometry, size),
        }
    }
}

fn of_file(file: &File, geometry: &Geometry, size: u64) -> Methods {
    // Beyond the end nothing is kept, whatever the file system does there.
    let block = u64::from(geometry.block_bytes.max(4096));
    let beyond = size.next_multiple_of(block);
    let works = |mode| retry_on_intr(|| rustix::fs::fallocate(file, mode, beyond, block));
    let punches = works(PUNCH).is_ok();
    let discard = match punches {
        true => (Support::Native("fallocate(PUNCH_HOLE)"), Method::Fallocate(PUNCH)),
        false => (Support::Unsupported("the file system cannot punch holes"), Method::Unsupported),
    };
    let blocks = |file| rustix::fs::fstat(file).map(|stat| stat.st_blocks);
    let before = blocks(file);
    // That there is no room is said by those who could.
    let zeroes = matches!(works(ZERO), Ok(()) | Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG));
    if blocks(file) != before {
        // Blocks were allocated beyond the end: this gives them back.
        let _ = rustix::fs::ftruncate(file, size);
    }
    let write_zeroes = match (zeroes, punches) {
        (true, _) => (Support::Native("fallocate(ZERO_RANGE)"), Method::Fallocate(ZERO)),
        (false, true) => {
            (Support::Emulated("a hole is punched, which reads as zeros"), Method::Fallocate(PUNCH))
        }
        (false, false) => (Support::Emulated("zeros are written"), Method::Write),
    };
    Methods::new(discard, write_zeroes)
}

fn of_device(file: &File) -> Methods {
    let discard = match limit(file, "discard_max_bytes") {
        Some(0) => (Support::Unsupported("the device does not discard"), Method::Unsupported),
        Some(_) => (Support::Native("ioctl(BLKDISCARD)"), Method::DeviceDiscard),
        None => (
            Support::Unsupported("/sys/dev/block does not say that the device discards"),
            Method::Unsupported,
        ),
    };
    let write_zeroes = match limit(file, "write_zeroes_max_bytes") {
        Some(bytes) if bytes > 0 => Support::Native("fallocate(ZERO_RANGE): the device writes zeros"),
        _ => Support::Emulated("fallocate(ZERO_RANGE): the kernel writes zeros"),
    };
    Methods::new(discard, (write_zeroes, Method::Fallocate(ZERO)))
}

/// A limit of the device's queue; a partition has that of its disk.
fn limit(file: &File, name: &str) -> Option<u64> {
    let device = rustix::fs::fstat(file).ok()?.st_rdev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let directory = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let read = |queue: &str| fs::read_to_string(directory.join(queue).join(name)).ok();
    read("queue").or_else(|| read("../queue"))?.trim().parse().ok()
}
