//! Disks to break: mounts that only the test sees, loop devices, a file system that dies.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

/// A directory with mounts of its own. They go with the thread that made it and with what it started, however it ends.
pub struct Mounts {
    directory: tempfile::TempDir,
}

/// A loop device.
pub struct Loop(PathBuf);

impl Mounts {
    /// Gives the calling thread a mount table of its own.
    ///
    /// # Errors
    /// Why the machine does not let it.
    pub fn new() -> Result<Self, String> {
        // SAFETY: plain system call; it changes what this thread, and what it starts, sees as mounted.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(format!("no mount namespace: {}", std::io::Error::last_os_error()));
        }
        run("mount", &["--make-rprivate", "/"])?;
        let directory =
            tempfile::Builder::new().prefix("ferrio-test-").tempdir().map_err(|e| e.to_string())?;
        Ok(Self { directory })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Mounts with these arguments of mount(8) at a new directory.
    ///
    /// # Errors
    /// What mount(8) complains of.
    pub fn mount(&self, name: &str, arguments: &[&str]) -> Result<PathBuf, String> {
        let path = self.path(name);
        std::fs::create_dir(&path).map_err(|error| error.to_string())?;
        run("mount", &[arguments, &[path.to_str().unwrap_or_default()]].concat())?;
        Ok(path)
    }

    /// A tmpfs of so many KiB.
    ///
    /// # Errors
    /// What mount(8) complains of.
    pub fn tmpfs(&self, name: &str, kib: u32) -> Result<PathBuf, String> {
        self.mount(name, &["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
    }

    /// An ext4 of so many MiB.
    ///
    /// # Errors
    /// What mkfs.ext4 or mount(8) complains of.
    pub fn ext4(&self, name: &str, mib: u64) -> Result<PathBuf, String> {
        let image = self.path(&format!("{name}.img"));
        sparse(&image, mib << 20);
        let image = image.to_str().unwrap_or_default();
        run("mkfs.ext4", &["-q", "-F", image])?;
        self.mount(name, &["-o", "loop", image])
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            // Lazily: a daemon that is being killed may have files open there.
            let _ = Command::new("umount").arg("-lq").arg(entry.path()).status();
        }
    }
}

impl Loop {
    /// Over a file.
    ///
    /// # Errors
    /// What losetup complains of.
    pub fn over(file: &Path) -> Result<Self, String> {
        let path = run("losetup", &["-f", "--show", file.to_str().unwrap_or_default()])?;
        Ok(Self(path.trim().into()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file with a size and nothing in it.
///
/// # Panics
/// It cannot be made.
pub fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
}

/// Ends an ext4 as a disk ends that dies for good.
///
/// # Errors
/// It is no ext4, or this is not root.
pub fn shut_down(mount: &Path) -> std::io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let nothing_is_flushed = 2_u32;
    let directory = std::fs::File::open(mount)?;
    // SAFETY: the ioctl reads a u32, which is there.
    let done =
        unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const nothing_is_flushed) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
