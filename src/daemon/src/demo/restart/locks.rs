//! How long the lock of the volume stayed with the daemon that was ended: its last I/O holds it (`flock(2)` on the one open
//! file description), also when the process is gone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Looks at `/proc/locks` until it is told to stop.
pub struct LockWatch {
    stop: Arc<AtomicBool>,
    watching: Option<JoinHandle<Option<Instant>>>,
}

impl LockWatch {
    /// Watches the lock that this process has on the file. Without the file, or `/proc`, it sees nothing.
    pub fn start(path: &Path, holder: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let inode = fs::metadata(path).map(|metadata| metadata.ino());
        let watch = move |inode| {
            let mut seen = None;
            while !told.load(Relaxed) {
                if is_held(&fs::read_to_string("/proc/locks").unwrap_or_default(), holder, inode) {
                    seen = Some(Instant::now());
                }
                std::thread::sleep(LOOK_EVERY);
            }
            seen
        };
        Self { stop, watching: inode.ok().map(|inode| std::thread::spawn(move || watch(inode))) }
    }

    /// When the lock was seen last.
    pub fn stop(self) -> Option<Instant> {
        self.stop.store(true, Relaxed);
        self.watching.and_then(|watching| watching.join().ok().flatten())
    }
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:131074 0 EOF`
fn is_held(locks: &str, holder: u32, inode: u64) -> bool {
    let (holder, inode) = (holder.to_string(), inode.to_string());
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = words.iter().position(|word| *word == "FLOCK").and_then(|at| words.get(at + 3..at + 5));
        found.is_some_and(|found| found[0] == holder && found[1].rsplit(':').next() == Some(&inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_holder_and_inode() {
        let locks =
            "1: POSIX  ADVISORY  WRITE 12 fe:00:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:00:99 0 EOF\n";
        assert!(is_held(locks, 12, 99));
        assert!(!is_held(locks, 12, 77), "not that kind of lock");
        assert!(!is_held(locks, 1, 99), "another holder");
        assert!(!is_held(locks, 12, 9), "another file");
    }
}
