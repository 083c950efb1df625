//! What can be known of a target while somebody else has its lock.

use std::path::Path;

use super::{
    Geometry, OpenOptions, Target, TargetError, TargetKind, Use, check_size, io_error, kind_of,
    open_description,
};

/// A target as it looks from outside: found out without its lock, and without a change to it.
///
/// What it can do besides reading and writing is not known: to find that out is to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// What it is.
    pub kind: TargetKind,
    /// Its size. Bytes, a multiple of the block, not 0.
    pub size_bytes: u64,
    /// What offsets and lengths must be multiples of. Bytes.
    pub block_bytes: u32,
    /// What memory addresses must be multiples of. Bytes.
    pub memory_align_bytes: u32,
    /// I/O is to go past the page cache.
    pub direct: bool,
    /// It is to be opened for reading alone.
    pub read_only: bool,
}

impl Target {
    /// Looks at the file or block device at `path` as [`Target::open`] with these options would find it, but for the lock.
    /// Creates nothing.
    ///
    /// # Errors
    /// As [`Target::open`], but for those about the lock.
    pub fn outline(path: &Path, options: &OpenOptions) -> Result<Outline, TargetError> {
        let failed = |what| io_error(what, path);
        let found = rustix::fs::stat(path).map_err(failed("stat of"))?;
        let kind = kind_of(&found).ok_or_else(|| TargetError::NotRegularOrBlock { path: path.to_owned() })?;
        let (file, mut direct_reason) = open_description(path, kind, options, Use::Look)?;
        let (geometry, size_bytes) =
            Geometry::of(&file, kind, &mut direct_reason).map_err(failed("reading the geometry of"))?;
        check_size(path, &geometry, size_bytes)?;
        let Geometry { block_bytes, memory_align_bytes } = geometry;
        let (direct, read_only) = (direct_reason.is_none(), options.read_only);
        Ok(Outline { kind, size_bytes, block_bytes, memory_align_bytes, direct, read_only })
    }
}
