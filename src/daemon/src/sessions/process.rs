//! Which process opened a session, told apart from one that has its pid later.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// Where pidfds have a file system of their own (Linux 6.9), each process has an inode number that is not used again.
const PID_FS_MAGIC: i64 = 0x5049_4446;
/// Fields of `/proc/<pid>/stat` after the command name up to the start time, see proc_pid_stat(5).
const FIELDS_TO_START: usize = 19;

/// What only one process of this boot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Birth {
    /// Inode of its pidfd.
    Pidfd(u64),
    /// When it started, in clock ticks since boot: where pidfds have no inodes of their own.
    Ticks(u64),
}

impl Birth {
    /// That of the process behind a pidfd; `pid` is its id. An error also if it has exited.
    ///
    /// `/proc` is the second choice: the unit hides other users' processes there (ProtectProc=invisible).
    pub fn of(pidfd: impl AsFd, pid: u32) -> io::Result<Self> {
        if fstatfs(&pidfd)?.f_type == PID_FS_MAGIC {
            let birth = Self::Pidfd(fstat(&pidfd)?.st_ino);
            return if exited(&pidfd)? { Err(Errno::SRCH.into()) } else { Ok(birth) };
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Looked at afterwards: what has not exited still had its pid when it was read.
        if exited(&pidfd)? {
            return Err(Errno::SRCH.into());
        }
        let ticks = start_ticks(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self::Ticks(ticks))
    }

    /// That of a process by its id.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::of(open(pid)?, pid)
    }

    /// A pidfd of the process that has this pid, if it is the one that was meant.
    pub fn find(self, pid: u32) -> io::Result<OwnedFd> {
        let pidfd = open(pid)?;
        if Self::of(&pidfd, pid)? == self { Ok(pidfd) } else { Err(Errno::SRCH.into()) }
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn exited(pidfd: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

/// The command name may hold anything, parentheses and spaces too.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(FIELDS_TO_START)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_found_while_it_lives() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep(1)");
        let birth = Birth::of_pid(child.id()).expect("it lives");
        assert_eq!(Birth::of_pid(child.id()).ok(), Some(birth));
        assert!(birth.find(child.id()).is_ok());
        let own = std::process::id();
        assert_ne!(Birth::of_pid(own).expect("we live"), birth);
        assert!(birth.find(own).is_err(), "another process has another birth");
        child.kill().expect("killed");
        // A zombie has exited, though it has its pid until it is waited for.
        while birth.find(child.id()).is_ok() {
            std::thread::yield_now();
        }
        child.wait().expect("waited for");
        assert!(birth.find(child.id()).is_err());
    }

    #[test]
    fn the_start_stands_behind_any_command_name() {
        let stat = "4711 (a) S (b c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 123456 20 21";
        assert_eq!(start_ticks(stat), Some(123_456));
        assert_eq!(start_ticks("4711 (a) S 1 2"), None);
        let own = fs::read_to_string("/proc/self/stat").expect("own process");
        assert!(start_ticks(&own).is_some_and(|ticks| ticks > 0));
    }
}
