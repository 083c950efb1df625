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

    /// An ext4 on a block device.
    ///
    /// # Errors
    /// What mkfs.ext4 or mount(8) complains of.
    pub fn ext4_on(&self, name: &str, device: &Path) -> Result<PathBuf, String> {
        let device = device.to_str().unwrap_or_default();
        run("mkfs.ext4", &["-q", "-F", device])?;
        self.mount(name, &[device])
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

    /// Takes the size that the file has now.
    ///
    /// # Errors
    /// What losetup complains of.
    pub fn refresh(&self) -> Result<(), String> {
        run("losetup", &["-c", self.0.to_str().unwrap_or_default()]).map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A cgroup whose processes write to one block device at a crawl. What they have in flight stays so when they are killed.
pub struct Throttle {
    directory: PathBuf,
    device: String,
}

impl Throttle {
    /// Of writes to this device.
    ///
    /// # Errors
    /// Why the machine does not let it.
    pub fn writes_to(device: &Path) -> Result<Self, String> {
        use std::os::unix::fs::MetadataExt;
        let number = std::fs::metadata(device).map_err(|error| error.to_string())?.rdev();
        let device = format!("{}:{}", libc::major(number), libc::minor(number));
        let name = format!("ferrio-test-{}-{}", std::process::id(), device.replace(':', "-"));
        let directory = Path::new("/sys/fs/cgroup/blkio").join(name);
        let failed = |error| format!("no blkio cgroup (version 1) at {}: {error}", directory.display());
        std::fs::create_dir(&directory).map_err(failed)?;
        let throttle = Self { directory, device };
        throttle.set("blkio.throttle.write_bps_device", &format!("{} 64", throttle.device))?;
        Ok(throttle)
    }

    /// Takes a process in.
    ///
    /// # Errors
    /// It is gone.
    pub fn add(&self, pid: u32) -> Result<(), String> {
        self.set("cgroup.procs", &pid.to_string())
    }

    /// What waits goes on at full speed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lift(&self) -> Result<(), String> {
        self.set("blkio.throttle.write_bps_device", &format!("{} 0", self.device))
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let path = self.directory.join(name);
        std::fs::write(&path, value).map_err(|error| format!("{value:?} to {}: {error}", path.display()))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A test that failed: what it has in flight is not to hold up others.
        let _ = self.lift();
        crate::process::wait_until("the cgroup to be empty", || std::fs::remove_dir(&self.directory).is_ok());
    }
}

/// A file with a size and nothing in it.
///
/// # Panics
/// It cannot be made.
pub fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
}

/// A file system whose server never answers: who asks it anything waits until this is dropped.
pub struct SilentFs {
    path: PathBuf,
    /// Its end breaks the connection: those who wait get ENOTCONN.
    _server: std::fs::File,
}

impl SilentFs {
    /// Mounts it at a new directory of `mounts`.
    ///
    /// # Errors
    /// Why the machine does not let it.
    pub fn mount(mounts: &Mounts, name: &str) -> Result<Self, String> {
        let server = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|error| format!("no FUSE: /dev/fuse: {error}"))?;
        let path = mounts.path(name);
        std::fs::create_dir(&path).map_err(|error| error.to_string())?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        let text = |text: &str| std::ffi::CString::new(text).expect("no zero byte");
        let (source, target, kind) = (text("silent"), text(&path.to_string_lossy()), text("fuse"));
        let data = text(&data);
        // SAFETY: mount(2) reads four strings that live until it returns.
        let done =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) };
        if done != 0 {
            return Err(format!("no FUSE: mount: {}", std::io::Error::last_os_error()));
        }
        Ok(Self { path, _server: server })
    }

    /// Where it is mounted. To look at it is to wait.
    pub fn path(&self) -> &Path {
        &self.path
    }
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
