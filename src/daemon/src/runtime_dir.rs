//! The directory of sockets, lock and journal, and the lock that keeps a second ferriod out of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrio_driver::Holder;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// How long a process that holds the lock may look as if it ran after it was killed.
const ENDING_GRACE: Duration = Duration::from_millis(500);
/// Between two looks at it.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// Another daemon has it.
    #[error(
        "{} is in use by another ferriod{}; stop that one, or choose another daemon.runtime_dir",
        path.display(), pid_text(*pid)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Process that holds the lock.
        pid: Option<u32>,
    },
    /// Others could replace the sockets.
    #[error(
        "{} is writable by every user (mode {mode:o}): anyone could replace the sockets; `chmod o-w {}`, or choose another \
         daemon.runtime_dir", path.display(), path.display()
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something else has the name of a socket.
    #[error("{} is in the way: it is not a socket; remove it", path.display())]
    NotASocket {
        /// Its path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {what} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Errno.
        source: io::Error,
    },
}

/// The directory, locked until drop.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    _lock: File,
    predecessor: Option<Holder>,
}

impl RuntimeDir {
    /// Makes the directory if need be, and takes its lock.
    ///
    /// A daemon that was killed keeps its lock while the kernel waits for its I/O, which may be for ever. It does nothing
    /// more of its own, so its lock is laid aside for a new one. All that happens under a lock of the directory itself, which
    /// is held for this alone: so nobody waits for a lock that was laid aside.
    pub fn lock(path: &Path) -> Result<Self, RuntimeDirError> {
        make_dir(path, 0o755)?;
        let mode = fs::metadata(path).map_err(io_error("examine", path))?.mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(RuntimeDirError::Unsafe { path: path.to_owned(), mode });
        }
        let directory = File::open(path).map_err(io_error("open", path))?;
        retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))
            .map_err(|errno| io_error("lock", path)(errno.into()))?;
        let lock_path = path.join("ferriod.lock");
        let mut predecessor = None;
        let mut lock = match try_lock_for(&lock_path, ENDING_GRACE)? {
            Ok(lock) => lock,
            Err((held, None)) => {
                return Err(RuntimeDirError::InUse { path: path.to_owned(), pid: pid_in(held) });
            }
            Err((_, Some(ending))) => {
                ending.wait_until_still();
                tracing::warn!(
                    "{ending} was killed and waits for I/O in the kernel; going on without it: the volumes that it has \
                     are fenced"
                );
                predecessor = Some(ending);
                fs::remove_file(&lock_path).map_err(io_error("remove", &lock_path))?;
                try_lock(&lock_path)?
                    .map_err(|held| RuntimeDirError::InUse { path: path.to_owned(), pid: pid_in(held) })?
            }
        };
        // For the message above, and for people; the lock itself is the flock.
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(io_error("write", &lock_path))?;
        make_dir(&path.join("journal"), 0o700)?;
        Ok(Self { path: path.to_owned(), _lock: lock, predecessor })
    }

    /// Removes a socket that a daemon of the past left behind: whoever made it does not live, we have the lock.
    pub fn remove_stale_socket(&self, path: &Path) -> Result<(), RuntimeDirError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("examine", path)(error)),
            Ok(found) if !found.file_type().is_socket() => {
                Err(RuntimeDirError::NotASocket { path: path.to_owned() })
            }
            Ok(_) => fs::remove_file(path).map_err(io_error("remove", path)),
        }
    }

    /// Gives a socket its mode and group.
    pub fn permit(&self, socket: &Path, mode: u32, group: Option<u32>) -> Result<(), RuntimeDirError> {
        if let Some(gid) = group {
            std::os::unix::fs::chown(socket, None, Some(gid))
                .map_err(io_error("change the group of", socket))?;
        }
        fs::set_permissions(socket, fs::Permissions::from_mode(mode))
            .map_err(io_error("change the mode of", socket))
    }

    /// The daemon before, if the kernel keeps it for its I/O. As long as it is there its clients do not notice that it was
    /// killed: it has their sockets.
    pub fn predecessor(&self) -> Option<Holder> {
        self.predecessor.clone()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `Err`: the file, which somebody else has locked, and who, if that process is ending. One that was killed this moment may
/// still look as if it ran, and one that was found may be gone when it is looked at: that is waited for.
fn try_lock_for(path: &Path, grace: Duration) -> Result<Result<File, Held>, RuntimeDirError> {
    let limit = Instant::now() + grace;
    loop {
        let held = match try_lock(path)? {
            Ok(lock) => return Ok(Ok(lock)),
            Err(held) => held,
        };
        let ending = Holder::of(&held).filter(|holder| !holder.lives());
        if ending.is_some() || Instant::now() >= limit {
            return Ok(Err((held, ending)));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// A file that somebody else has locked, and who, if that process is ending.
type Held = (File, Option<Holder>);

/// `Err`: the file, which somebody else has locked.
fn try_lock(path: &Path) -> Result<Result<File, File>, RuntimeDirError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(io_error("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Ok(file)),
        Err(Errno::WOULDBLOCK) => Ok(Err(file)),
        Err(errno) => Err(io_error("lock", path)(errno.into())),
    }
}

fn pid_in(mut lock: File) -> Option<u32> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok())
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RuntimeDirError> {
    match DirBuilder::new().mode(mode).create(path) {
        // The umask of a daemon is strict; the mode was chosen above.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(io_error("change the mode of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(io_error("create the directory", path)(error)),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeDirError {
    let path = path.to_owned();
    move |source| RuntimeDirError::Io { what, path, source }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run as the user the directory belongs to, let systemd make it (RuntimeDirectory=ferrio), or choose another \
             daemon.runtime_dir"
        }
        io::ErrorKind::NotFound => "; create its parent directory, or choose another daemon.runtime_dir",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let path = parent.path().join("run");
        let first = RuntimeDir::lock(&path).expect("free");
        let error = RuntimeDir::lock(&path).expect_err("held").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("daemon.runtime_dir"), "{error}");
        drop(first);
        RuntimeDir::lock(&path).expect("free again");
    }

    #[test]
    fn a_directory_of_everyone_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        let error = RuntimeDir::lock(dir.path()).expect_err("unsafe").to_string();
        assert!(error.contains("mode 1777") && error.contains("chmod o-w"), "{error}");
    }

    #[test]
    fn stale_sockets_go_and_other_files_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = RuntimeDir::lock(dir.path()).expect("free");
        let socket = dir.path().join("control.sock");
        run.remove_stale_socket(&socket).expect("nothing there");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
        run.remove_stale_socket(&socket).expect("stale");
        assert!(!socket.exists());
        fs::write(&socket, "precious").expect("written");
        let error = run.remove_stale_socket(&socket).expect_err("a file").to_string();
        assert!(error.contains("not a socket"), "{error}");
    }
}
