//! The file or block device behind a volume.

mod capabilities;
mod geometry;
mod holder;
mod outline;
mod resize;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FileType, FlockOperation, MemfdFlags, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::driver::OpKind;
pub(crate) use capabilities::Method;
use capabilities::Methods;
pub use capabilities::{Capabilities, Support};
use geometry::Geometry;
pub use holder::Holder;
pub use outline::Outline;

/// What kind of thing a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// Nothing: requests succeed at once and move no data.
    Null,
    /// Memory of this process, gone with it: for scratch and for tests.
    Memory,
}

/// How to open a target.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Open for reading alone. The lock is taken all the same.
    pub read_only: bool,
    /// If nothing is at the path, create a regular file of this many bytes: mode 0600, allocated.
    pub create_bytes: Option<u64>,
    /// Go through the page cache, even where O_DIRECT works.
    pub page_cache: bool,
}

/// One open file description, locked, and never handed out for duplication.
///
/// The `flock(LOCK_EX)` belongs to the description, and I/O in flight pins the description: when a process
/// dies with writes in the kernel, the lock comes free only after the last of them has landed. So whoever
/// holds the lock knows that no older write is still to come, and a second daemon stays out. A duplicate
/// in another process would break exactly that.
#[derive(Debug)]
pub struct Target {
    kind: TargetKind,
    file: Option<File>,
    path: Option<PathBuf>,
    read_only: bool,
    geometry: Geometry,
    /// Changes with [`resize`](Target::resize).
    size_bytes: AtomicU64,
    methods: Methods,
    nowait: bool,
    direct_reason: Option<String>,
}

/// Why a target could not be opened. Each text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing is there, and nothing was to be created.
    #[error("{} does not exist: correct the path, or give a size to create it with", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{} is in use by {}: stop that, or use another path", path.display(), holder_text(holder.as_ref()))]
    Held {
        /// The path.
        path: PathBuf,
        /// Who, as far as `/proc/locks` tells.
        holder: Option<Holder>,
    },
    /// The kernel refuses exclusive use of the block device.
    #[error("{} is mounted or claimed by another driver: unmount it, or use another device", path.display())]
    Claimed {
        /// The path.
        path: PathBuf,
    },
    /// A directory, a socket, a terminal, ...
    #[error("{} is neither a regular file nor a block device: use one of these", path.display())]
    NotRegularOrBlock {
        /// The path.
        path: PathBuf,
    },
    /// The size leaves a part of a block over.
    #[error(
        "{} has {size} bytes, which is not a multiple of its block of {block}: truncate it to {}",
        path.display(),
        size.div_ceil(u64::from(*block)) * u64::from(*block)
    )]
    SizeNotMultiple {
        /// The path.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// No bytes at all.
    #[error("{} is empty: give it a size (truncate -s, or remove it and let it be created)", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// A block device does not change its size because we want it to.
    #[error(
        "{} has {size} bytes, not {asked}: resize the device itself, then give the volume the size it has",
        path.display()
    )]
    DeviceSize {
        /// The path.
        path: PathBuf,
        /// Bytes it has.
        size: u64,
        /// Bytes that were wanted.
        asked: u64,
    },
    /// A lock on a network file system does not outlive the I/O of a dead process.
    #[error(
        "{} is on {file_system}, whose locks do not fence writes in flight: use a local file system",
        path.display()
    )]
    NetworkFilesystem {
        /// The path.
        path: PathBuf,
        /// Its name.
        file_system: &'static str,
    },
    /// A system call failed.
    #[error("{what} {} failed{}", path.display(), hint(source))]
    Io {
        /// The call.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Its errno.
        #[source]
        source: io::Error,
    },
}

impl TargetError {
    /// Nobody can use such a target, so a file just made need not stay.
    fn is_unusable(&self) -> bool {
        matches!(
            self,
            TargetError::SizeNotMultiple { .. }
                | TargetError::Empty { .. }
                | TargetError::NetworkFilesystem { .. }
        )
    }
}

impl Target {
    /// Opens and locks the file or block device at `path`.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Target, TargetError> {
        match rustix::fs::stat(path) {
            Ok(found) => Target::open_found(path, &found, options),
            Err(Errno::NOENT) => {
                let Some(bytes) = options.create_bytes else {
                    return Err(TargetError::NotFound { path: path.to_owned() });
                };
                let created = create(path, bytes)?;
                let found = rustix::fs::stat(path).map_err(io_error("stat of", path))?;
                let opened = Target::open_found(path, &found, options);
                if created && opened.as_ref().is_err_and(TargetError::is_unusable) {
                    let _ = rustix::fs::unlink(path);
                }
                opened
            }
            Err(errno) => Err(io_error("stat of", path)(errno)),
        }
    }

    fn open_found(path: &Path, found: &Stat, options: &OpenOptions) -> Result<Target, TargetError> {
        let read_only = options.read_only;
        let failed = |what| io_error(what, path);
        let kind = kind_of(found).ok_or_else(|| TargetError::NotRegularOrBlock { path: path.to_owned() })?;
        let (file, mut direct_reason) = open_description(path, kind, options, Use::Exclusive)?;
        let opened = rustix::fs::fstat(&file).map_err(failed("fstat of"))?;
        if kind_of(&opened) != Some(kind) {
            return Err(TargetError::NotRegularOrBlock { path: path.to_owned() });
        }
        if let Some(file_system) = geometry::network_file_system(&file).map_err(failed("fstatfs of"))? {
            return Err(TargetError::NetworkFilesystem { path: path.to_owned(), file_system });
        }
        lock(&file, path)?;
        let (geometry, size) =
            Geometry::of(&file, kind, &mut direct_reason).map_err(failed("reading the geometry of"))?;
        if direct_reason.is_some() {
            // Also when the file system took O_DIRECT at open and cannot do it: the flag would fail every request.
            let flags = rustix::fs::fcntl_getfl(&file).map_err(failed("F_GETFL of"))?;
            rustix::fs::fcntl_setfl(&file, flags - OFlags::DIRECT).map_err(failed("F_SETFL of"))?;
        }
        check_size(path, &geometry, size)?;
        let methods = Methods::of(&file, kind, read_only, &geometry, size);
        let nowait = direct_reason.is_none() && takes_nowait(&file, size);
        let size_bytes = AtomicU64::new(size);
        let (file, path) = (Some(file), Some(path.to_owned()));
        Ok(Target { kind, file, path, read_only, geometry, size_bytes, methods, nowait, direct_reason })
    }

    /// Memory of `bytes` (a multiple of 512), zeros at first, that comes into being page by page.
    ///
    /// # Errors
    /// No memory file of this size can be had.
    pub fn memory(bytes: u64) -> io::Result<Target> {
        let file = File::from(rustix::fs::memfd_create("ferrio-volume", MemfdFlags::CLOEXEC)?);
        rustix::fs::ftruncate(&file, bytes)?;
        let geometry = Geometry { block_bytes: 512, memory_align_bytes: 1 };
        check_size(Path::new("memory target"), &geometry, bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let methods = Methods::of(&file, TargetKind::Memory, false, &geometry, bytes);
        Ok(Target {
            kind: TargetKind::Memory,
            file: Some(file),
            geometry,
            methods,
            ..Target::null(bytes, geometry.block_bytes)
        })
    }

    /// A target that moves no data.
    pub fn null(bytes: u64, block: u32) -> Target {
        Target {
            kind: TargetKind::Null,
            file: None,
            path: None,
            read_only: false,
            geometry: Geometry { block_bytes: block, memory_align_bytes: 1 },
            size_bytes: AtomicU64::new(bytes),
            methods: Methods::NOTHING,
            nowait: false,
            direct_reason: None,
        }
    }

    /// Any descriptor, for tests of what a file never does.
    #[cfg(test)]
    pub(crate) fn of_pipe(file: File) -> Target {
        Target { kind: TargetKind::File, file: Some(file), nowait: true, ..Target::null(1 << 20, 512) }
    }

    /// What it is.
    pub fn kind(&self) -> TargetKind {
        self.kind
    }

    /// Where it was opened; a null or memory target has no path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The path, or what stands for it, for people.
    pub fn name(&self) -> String {
        match (&self.path, self.kind) {
            (Some(path), _) => path.display().to_string(),
            (None, TargetKind::Memory) => "memory target".to_owned(),
            (None, _) => "null target".to_owned(),
        }
    }

    /// Bytes: a multiple of the block, not 0 for a real target. Another number after [`resize`](Target::resize).
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// What it can do besides reading and writing, as found out when it was opened.
    pub fn capabilities(&self) -> &Capabilities {
        &self.methods.capabilities
    }

    /// How a range is discarded or zeroed; nothing is to be done for other kinds.
    pub(crate) fn method(&self, kind: OpKind) -> Method {
        match kind {
            OpKind::Discard => self.methods.discard,
            OpKind::WriteZeroes => self.methods.write_zeroes,
            _ => Method::Nothing,
        }
    }

    /// What offsets and lengths must be multiples of.
    pub fn block_bytes(&self) -> u32 {
        self.geometry.block_bytes
    }

    /// What memory addresses must be multiples of.
    pub fn memory_align_bytes(&self) -> u32 {
        self.geometry.memory_align_bytes
    }

    /// I/O goes past the page cache.
    pub fn direct(&self) -> bool {
        matches!(self.kind, TargetKind::File | TargetKind::Block) && self.direct_reason.is_none()
    }

    /// Submitting a read or write with `RWF_NOWAIT` never sleeps on the disk: one that would fails with EAGAIN.
    pub(crate) fn nowait(&self) -> bool {
        self.nowait
    }

    /// Why it does not.
    pub fn direct_reason(&self) -> Option<&str> {
        self.direct_reason.as_deref()
    }

    /// Writes are refused by the kernel.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The description, for I/O. Do not duplicate it into another process.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }
}

/// Asks beyond the end, where there is nothing to wait for.
fn takes_nowait(file: &File, size: u64) -> bool {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    let mut slices = [io::IoSliceMut::new(&mut page.0)];
    let read = rustix::io::preadv2(file, &mut slices, size, rustix::io::ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

fn kind_of(stat: &Stat) -> Option<TargetKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(TargetKind::File),
        FileType::BlockDevice => Some(TargetKind::Block),
        _ => None,
    }
}

/// What a description is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// I/O: of a block device nobody else may have one.
    Exclusive,
    /// A look beside whoever has it.
    Look,
}

/// Opens with O_DIRECT, or without and says why.
fn open_description(
    path: &Path,
    kind: TargetKind,
    options: &OpenOptions,
    purpose: Use,
) -> Result<(File, Option<String>), TargetError> {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= if options.read_only || purpose == Use::Look { OFlags::RDONLY } else { OFlags::RDWR };
    if kind == TargetKind::Block && purpose == Use::Exclusive {
        flags |= OFlags::EXCL;
    }
    let open = |flags| match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Ok(File::from(fd))),
        Err(Errno::INVAL) => Ok(Err(Errno::INVAL)),
        Err(Errno::BUSY) if kind == TargetKind::Block => Err(busy(path)),
        Err(errno) => Err(io_error("open of", path)(errno)),
    };
    let buffered = if options.page_cache {
        "I/O goes through the page cache, as was asked for"
    } else {
        if let Ok(file) = open(flags | OFlags::DIRECT)? {
            return Ok((file, None));
        }
        "the file system refuses O_DIRECT (EINVAL): I/O goes through the page cache"
    };
    match open(flags)? {
        Ok(file) => Ok((file, Some(buffered.to_owned()))),
        Err(errno) => Err(io_error("open of", path)(errno)),
    }
}

/// Another ferriod that has the block device holds its lock too, and is named.
fn busy(path: &Path) -> TargetError {
    let path = path.to_owned();
    let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map(File::from);
    match file.ok().as_ref().and_then(Holder::of) {
        Some(holder) => TargetError::Held { path, holder: Some(holder) },
        None => TargetError::Claimed { path },
    }
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(Errno) -> TargetError {
    move |errno| TargetError::Io { what, path: path.to_owned(), source: errno.into() }
}

fn lock(file: &File, path: &Path) -> Result<(), TargetError> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                return Err(TargetError::Held { path: path.to_owned(), holder: Holder::of(file) });
            }
            Err(errno) => return Err(io_error("flock of", path)(errno)),
        }
    }
}

fn check_size(path: &Path, geometry: &Geometry, size_bytes: u64) -> Result<(), TargetError> {
    let block_bytes = geometry.block_bytes;
    if size_bytes == 0 {
        return Err(TargetError::Empty { path: path.to_owned() });
    }
    if !size_bytes.is_multiple_of(block_bytes.into()) {
        return Err(TargetError::SizeNotMultiple {
            path: path.to_owned(),
            size: size_bytes,
            block: block_bytes,
        });
    }
    Ok(())
}

/// Makes a file of allocated blocks, on stable storage together with its name; leaves nothing behind if
/// it cannot. `false`: somebody created it at the same time, and holds the lock that we then meet.
fn create(path: &Path, bytes: u64) -> Result<bool, TargetError> {
    if bytes == 0 {
        return Err(TargetError::Empty { path: path.to_owned() });
    }
    let failed = |what| io_error(what, path);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd),
        Err(Errno::EXIST) => return Ok(false),
        Err(errno) => return Err(failed("creation of")(errno)),
    };
    let filled = lock(&file, path).and_then(|()| {
        match retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)) {
            Err(Errno::OPNOTSUPP) => rustix::fs::ftruncate(&file, bytes).map_err(failed("ftruncate of"))?,
            other => other.map_err(failed("fallocate of"))?,
        }
        rustix::fs::fsync(&file).map_err(failed("fsync of"))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .and_then(rustix::fs::fsync)
            .map_err(failed("fsync of the directory of"))
    });
    if filled.is_err() {
        let _ = rustix::fs::unlink(path);
    }
    // Closing alone would not do at once: a child that another thread forks just now has a copy until it executes.
    let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
    filled.map(|()| true)
}

fn holder_text(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::to_string)
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            " (give this user read and write permission on it and its directories)"
        }
        Some(libc::EROFS) => " (open it read-only, or mount the file system writable)",
        Some(libc::ENOSPC | libc::EDQUOT) => " (free space, raise the quota, or choose a smaller size)",
        Some(libc::EFBIG) => " (choose a smaller size, or raise RLIMIT_FSIZE)",
        Some(libc::EMFILE | libc::ENFILE) => " (raise LimitNOFILE or fs.file-max)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
