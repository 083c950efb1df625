//! Who holds the lock of a file.

use std::fmt;
use std::fs::{self, File};

use rustix::fs::{AtFlags, StatxFlags};

/// The process that locked a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as seen from here.
    pub pid: u32,
    /// Its name; empty if it could not be read.
    pub comm: String,
}

impl Holder {
    /// Looks `file` up in `/proc/locks`.
    pub(super) fn of(file: &File) -> Option<Holder> {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::INO).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = find(&locks, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Holder { pid, comm: comm.trim_end().to_owned() })
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
}
