//! A target gets another size.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::{Target, TargetError, TargetKind, check_size, io_error};

impl Target {
    /// Gives the target another size: a file is cut off or gets blocks at its end, durably, as does memory; a block device
    /// must have that size already. [`size_bytes`](Target::size_bytes) is the new one from then on. Whoever shrinks
    /// a target sees to it that nothing beyond the new end is in flight. May block; on an error nothing has changed.
    ///
    /// # Errors
    /// `bytes` is 0, leaves a part of a block over, or is not the size of the block device; the file system refuses.
    pub fn resize(&self, bytes: u64) -> Result<(), TargetError> {
        check_size(&self.place(), &self.geometry, bytes)?;
        match (&self.file, self.kind) {
            (None, _) | (_, TargetKind::Null) => {}
            (Some(_), TargetKind::Block) => {
                self.refresh_size()?;
                let size = self.size_bytes();
                if size != bytes {
                    return Err(TargetError::DeviceSize { path: self.place(), size, asked: bytes });
                }
            }
            (Some(file), TargetKind::File | TargetKind::Memory) => {
                let place = self.place();
                let failed = |what| io_error(what, &place);
                let old = self.size_bytes();
                let grows_allocated = bytes > old && self.kind == TargetKind::File;
                let allocated = grows_allocated
                    && match retry_on_intr(|| {
                        rustix::fs::fallocate(file, FallocateFlags::empty(), old, bytes - old)
                    }) {
                        Err(Errno::OPNOTSUPP) => false,
                        other => other.map(|()| true).map_err(failed("fallocate of"))?,
                    };
                if !allocated {
                    rustix::fs::ftruncate(file, bytes).map_err(failed("ftruncate of"))?;
                }
                rustix::fs::fsync(file).map_err(failed("fsync of"))?;
            }
        }
        self.size_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the size again, after somebody else changed it, and says what it is.
    ///
    /// # Errors
    /// It leaves a part of a block over, is 0, or cannot be read; the size known stays as it is.
    pub fn refresh_size(&self) -> Result<u64, TargetError> {
        if let Some(file) = &self.file {
            let place = self.place();
            let bytes =
                rustix::fs::seek(file, SeekFrom::End(0)).map_err(io_error("reading the size of", &place))?;
            check_size(&place, &self.geometry, bytes)?;
            self.size_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(self.size_bytes())
    }

    fn place(&self) -> PathBuf {
        PathBuf::from(self.name())
    }
}
