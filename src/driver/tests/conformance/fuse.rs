//! A file system whose disk stands still when told to: one file of zeros under FUSE, as much of the protocol as that
//! takes (`linux/fuse.h`).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::rig::{PATIENCE, directory};

const ROOT: u64 = 1;
const FILE: u64 = 2;
const WRITE_MAX: usize = 1 << 20;

mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// A mounted file system.
pub struct Fuse {
    directory: TempDir,
    disk: Arc<Disk>,
}

struct Disk {
    device: File,
    bytes: u64,
    gate: Mutex<Gate>,
    arrived: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// Answers that wait for it to open.
    held: Vec<Answer>,
}

struct Answer {
    unique: u64,
    body: Vec<u8>,
}

impl Fuse {
    /// Mounts it with a file of `bytes`, or says why not.
    pub fn mount(bytes: u64) -> Result<Fuse, String> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let directory = directory();
        let text = |text: String| CString::new(text).expect("no zero byte");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let (place, options) = (text(directory.path().display().to_string()), text(options));
        // SAFETY: strings that live through the call.
        let mounted = unsafe {
            libc::mount(
                c"ferrio-conformance".as_ptr(),
                place.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if mounted != 0 {
            return Err(format!("mount of a FUSE file system: {}", io::Error::last_os_error()));
        }
        let disk = Arc::new(Disk { device, bytes, gate: Mutex::default(), arrived: Condvar::new() });
        let serving = Arc::clone(&disk);
        std::thread::spawn(move || serving.serve());
        let fuse = Fuse { directory, disk };
        File::open(fuse.path()).map(drop).map_err(|error| format!("opening a file under FUSE: {error}"))?;
        Ok(fuse)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    /// From now on no read, write, fsync or fallocate is answered.
    pub fn close_gate(&self) {
        self.disk.gate().closed = true;
    }

    /// Answers what waits, and all that comes.
    pub fn open_gate(&self) {
        let mut gate = self.disk.gate();
        gate.closed = false;
        gate.held.drain(..).for_each(|answer| self.disk.reply(&answer, 0));
    }

    /// Waits until that many requests wait at the closed gate.
    pub fn wait_held(&self, count: usize) -> bool {
        let gate = self.disk.gate();
        let waited = self.disk.arrived.wait_timeout_while(gate, PATIENCE, |gate| gate.held.len() < count);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.open_gate();
        let place = CString::new(self.directory.path().display().to_string()).expect("no zero byte");
        // SAFETY: a string that lives through the call.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
        // The server ends with the device, when the last file is closed. Some tests leak one.
    }
}

impl Disk {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut buffer = vec![0; WRITE_MAX + 4096];
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(length) => self.handle(&buffer[..length]),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => {}
                // ENODEV: unmounted.
                Err(_) => return,
            }
        }
    }

    fn handle(&self, request: &[u8]) {
        let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
        let (node, body) = (u64_at(request, 16), &request[40..]);
        let reply = |body: Vec<u8>, error: i32| self.reply(&Answer { unique, body }, error);
        match opcode {
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => {}
            opcode::INIT => reply(init(body), 0),
            opcode::LOOKUP if body == b"volume\0" => reply(self.entry(), 0),
            opcode::LOOKUP => reply(Vec::new(), libc::ENOENT),
            opcode::GETATTR | opcode::SETATTR => {
                reply([&[0; 16], &self.attributes(node)[..]].concat(), 0);
            }
            opcode::OPEN | opcode::STATFS => reply(vec![0; if opcode == opcode::OPEN { 16 } else { 80 }], 0),
            opcode::RELEASE => reply(Vec::new(), 0),
            // Then the kernel asks no more: at the end of the process nobody is left to answer.
            opcode::FLUSH => reply(Vec::new(), libc::ENOSYS),
            opcode::READ => {
                let left = self.bytes.saturating_sub(u64_at(body, 8));
                self.at_the_gate(unique, vec![0; left.min(u32_at(body, 16).into()) as usize]);
            }
            opcode::WRITE => self.at_the_gate(unique, [body[16..20].to_vec(), vec![0; 4]].concat()),
            opcode::FSYNC | opcode::FALLOCATE => self.at_the_gate(unique, Vec::new()),
            _ => reply(Vec::new(), libc::ENOSYS),
        }
    }

    fn at_the_gate(&self, unique: u64, body: Vec<u8>) {
        let mut gate = self.gate();
        let answer = Answer { unique, body };
        if gate.closed {
            gate.held.push(answer);
            self.arrived.notify_all();
        } else {
            self.reply(&answer, 0);
        }
    }

    /// An answer to a request that was interrupted meanwhile is refused.
    fn reply(&self, Answer { unique, body }: &Answer, error: i32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&(-error).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let _ = (&self.device).write_vectored(&[IoSlice::new(&header), IoSlice::new(body)]);
    }

    /// `struct fuse_attr`.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = match node {
            ROOT => (libc::S_IFDIR | 0o755, 4096),
            _ => (libc::S_IFREG | 0o600, self.bytes),
        };
        let mut attributes = vec![0; 88];
        for (at, value) in [(0, node), (8, size), (16, size / 512)] {
            attributes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        for (at, value) in [(60, mode), (64, 1), (80, 4096)] {
            attributes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        attributes
    }

    /// `struct fuse_entry_out`: valid for a minute.
    fn entry(&self) -> Vec<u8> {
        let words = [FILE, 1, 60, 60, 0];
        let head: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
        [head, self.attributes(FILE)].concat()
    }
}

/// `struct fuse_init_out`: version 7.31, asynchronous direct I/O.
fn init(request: &[u8]) -> Vec<u8> {
    const ASYNC_READ: u32 = 1;
    const ASYNC_DIO: u32 = 1 << 15;
    let mut out = vec![0; 64];
    let flags = u32_at(request, 12) & (ASYNC_READ | ASYNC_DIO);
    for (at, value) in [(0, 7), (4, 31), (8, u32_at(request, 8)), (12, flags), (20, WRITE_MAX as u32)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    // Requests of the kernel's own in the background, and from where on it calls that many.
    out[16..18].copy_from_slice(&512_u16.to_ne_bytes());
    out[18..20].copy_from_slice(&512_u16.to_ne_bytes());
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
