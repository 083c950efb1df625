//! The file, opened beside the daemon.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

/// An open file or block device without a lock: whoever writes to it knows that a daemon serves it. Clones share it.
#[derive(Clone, Debug)]
pub struct DirectFile(Arc<File>);

impl DirectFile {
    /// Opens it, for reading alone unless `write`, and past the page cache if `direct`.
    pub fn open(path: &Path, write: bool, direct: bool) -> io::Result<DirectFile> {
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
        flags |= if write { OFlags::RDWR } else { OFlags::RDONLY };
        if direct {
            flags |= OFlags::DIRECT;
        }
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(DirectFile(Arc::new(File::from(fd))))
    }

    /// Where it ends: its size, also of a block device. Bytes.
    pub fn size_bytes(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&*self.0, rustix::fs::SeekFrom::End(0))?)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for DirectFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
