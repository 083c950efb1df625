//! Memory files: made by the daemon, or offered by a client and checked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, MemfdFlags, SealFlags};
use rustix::io::Errno;

/// A memfd of `bytes`, sealed against shrinking, growing and further seals.
pub fn create_memfd(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let fd = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    fs::ftruncate(&fd, bytes)?;
    fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Why a descriptor cannot be used as shared memory.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Another kind of file, or a memfd with huge pages, of which there can be too few when one is touched.
    #[error(
        "the descriptor is not a memfd with normal pages; make it with memfd_create(MFD_ALLOW_SEALING) and without MFD_HUGETLB"
    )]
    NotMemfd,
    /// Its owner could cut it off under the reader.
    #[error("the memfd is not sealed against shrinking; add F_SEAL_SHRINK")]
    NotSealed,
    /// Its owner closed it to writing: the daemon could not read into it.
    #[error("the memfd is sealed against writing; leave out F_SEAL_WRITE and F_SEAL_FUTURE_WRITE")]
    WriteSealed,
    /// Shorter than said.
    #[error("the memfd has {file_bytes} bytes, {bytes} are needed; extend it before sealing")]
    TooShort {
        /// Length of the memfd.
        file_bytes: u64,
        /// Length needed.
        bytes: u64,
    },
    /// The system call that asks failed.
    #[error("cannot inspect the descriptor")]
    Io(#[from] io::Error),
}

/// Whether `fd` is a memfd that keeps at least `bytes`, whatever its other owners do. Does not block, whatever `fd` is.
pub fn check_memfd(fd: impl AsFd, bytes: u64) -> Result<(), RegionError> {
    // First what the kernel answers by itself: only memory files have seals. A file system of the client's own making
    // (FUSE) would let us wait in fstatfs.
    let seals = match fs::fcntl_get_seals(&fd) {
        Err(Errno::INVAL) => return Err(RegionError::NotMemfd),
        seals => seals.map_err(io::Error::from)?,
    };
    // A memfd is a file on a tmpfs of the kernel's own. Files on other tmpfs pass this, but cannot be sealed.
    if fs::fstatfs(&fd).map_err(io::Error::from)?.f_type != libc::TMPFS_MAGIC {
        return Err(RegionError::NotMemfd);
    }
    if !seals.contains(SealFlags::SHRINK) {
        return Err(RegionError::NotSealed);
    }
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err(RegionError::WriteSealed);
    }
    // The seal is looked at first: what is measured after it stays.
    let file_bytes = u64::try_from(fs::fstat(&fd).map_err(io::Error::from)?.st_size).unwrap_or(0);
    if file_bytes < bytes {
        return Err(RegionError::TooShort { file_bytes, bytes });
    }
    Ok(())
}
