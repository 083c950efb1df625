//! Who holds the lock of a file.

use std::fmt;
use std::fs::{self, File};
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// The process that locked a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as seen from here.
    pub pid: u32,
    /// Its name; empty if it could not be read.
    pub comm: String,
}

impl Holder {
    /// Looks `file` up in `/proc/locks`. `None`: nobody holds it any more, or the holder is not to be seen from here, as one
    /// in a namespace of process ids that has ended.
    pub fn of(file: &File) -> Option<Holder> {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::INO).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = find(&locks, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Holder { pid, comm: comm.trim_end().to_owned() })
    }

    /// It runs, and may hold the lock for as long as it likes. A process that has ended, or was killed and waits in the kernel
    /// for its last I/O, does nothing more of its own: its lock comes free by itself.
    pub fn lives(&self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        if rustix::process::test_kill_process(pid) == Err(Errno::SRCH) {
            return false;
        }
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.pid));
        // A process of another user may be hidden from us: then it is there, and that is all we know.
        let (Ok(status), Ok(stat)) = (read("status"), read("stat")) else { return true };
        !is_ending(&status, &stat)
    }
}

impl Holder {
    /// Waits until a process that ends runs no more on any CPU: a SIGKILL takes a moment to reach its threads. Those that are
    /// left sleep in the kernel.
    pub fn wait_until_still(&self) {
        while self.runs() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A thread of it is left, if only in the kernel: its descriptors are open.
    pub fn is_there(&self) -> bool {
        self.has_thread(|state| !matches!(state, 'Z' | 'X'))
    }

    fn runs(&self) -> bool {
        self.has_thread(|state| matches!(state, 'R' | 'S' | 'T' | 't'))
    }

    fn has_thread(&self, in_state: impl Fn(char) -> bool) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).is_some_and(&in_state)
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.comm.is_empty() {
            write!(f, "process {}", self.pid)
        } else {
            write!(f, "process {} ({})", self.pid, self.comm)
        }
    }
}

/// By `/proc/PID/status` and `/proc/PID/stat`: a zombie, or on its way out, or with a SIGKILL that it will see first thing.
fn is_ending(status: &str, stat: &str) -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    const PF_EXITING: u64 = 4;
    let value = |key| status.lines().find_map(|line| line.strip_prefix(key)).map_or("", str::trim);
    let kills = |key| u64::from_str_radix(value(key), 16).is_ok_and(|pending| pending & SIGKILL != 0);
    // Behind the name, which may hold anything: state, six numbers, flags.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    let exits =
        flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING != 0);
    value("State:").starts_with(['Z', 'X']) || exits || kills("SigPnd:") || kills("ShdPnd:")
}

/// A line reads `1: FLOCK  ADVISORY  WRITE 708 fd:01:1234 0 EOF`; waiters have `->` after the number. Some file systems
/// show another device there than statx does: the inode alone then has to do.
fn find(locks: &str, major: u32, minor: u32, inode: u64) -> Option<u32> {
    let mut by_inode = None;
    for line in locks.lines() {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(place)) = (words.nth(2), words.next()) else { continue };
        let Ok(pid) = pid.parse() else { continue };
        let mut place = place.split(':');
        let mut device = || u32::from_str_radix(place.next()?, 16).ok();
        let device = (device(), device());
        if place.next().and_then(|word| word.parse().ok()) != Some(inode) {
            continue;
        }
        if device == (Some(major), Some(minor)) {
            return Some(pid);
        }
        by_inode.get_or_insert(pid);
    }
    by_inode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_holder_among_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fd:01:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 fd:02:99 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 fd:01:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 44 fd:01:99 0 EOF\n";
        assert_eq!(find(locks, 0xfd, 1, 99), Some(44));
        assert_eq!(find(locks, 0xfd, 2, 99), Some(22));
        assert_eq!(find(locks, 0, 7, 99), Some(22), "the inode alone");
        assert_eq!(find(locks, 0xfd, 1, 98), None);
    }

    #[test]
    fn a_process_lives_until_it_ends() {
        let holder = |pid| Holder { pid, comm: String::new() };
        assert!(holder(std::process::id()).lives() && holder(1).lives());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let sleeping = holder(child.id());
        assert!(sleeping.lives());
        child.kill().expect("killed");
        // Nobody has waited for it: at the latest as a zombie it does not live.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while sleeping.lives() {
            assert!(std::time::Instant::now() < limit, "a killed process lives on");
            std::thread::yield_now();
        }
        child.wait().expect("waited for");
        assert!(!sleeping.lives());
        assert!(!holder(u32::MAX).lives());
    }

    #[test]
    fn what_ends_is_told_by_its_state_its_flags_or_its_signal() {
        let status = |state: &str, signals: &str| {
            format!("Name:\td)\nState:\t{state}\nSigPnd:\t{signals}\nShdPnd:\t0\n")
        };
        let stat = |flags: u64| format!("7 (d) 1) D 1 7 7 0 -1 {flags} 0 0");
        assert!(!is_ending(&status("S (sleeping)", "0000000000000200"), &stat(0x40_0040)));
        assert!(is_ending(&status("Z (zombie)", "0"), &stat(0)));
        assert!(is_ending(&status("D (disk sleep)", "0000000000000100"), &stat(0)));
        assert!(is_ending(&status("D (disk sleep)", "0"), &stat(0x44)));
    }
}
