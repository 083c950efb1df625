//! Credentials of a peer, as the kernel knew them when it connected.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::LazyLock;

use libc::{SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD, c_int, socklen_t};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a user id shows as that has no place in this process's user namespace, unless configured otherwise.
const OVERFLOW_UID: u32 = 65534;

/// Process, user and groups of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Process id; 0 if the process is outside of this pid namespace.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl PeerIdentity {
    /// Identity of the process that connected, or made the pair.
    pub fn of(socket: impl AsFd) -> io::Result<PeerIdentity> {
        let mut credentials = [0u32; 3];
        let bytes = getsockopt(&socket, SO_PEERCRED, &mut credentials)?;
        if bytes != size_of_val(&credentials) {
            return Err(io::Error::other(format!("SO_PEERCRED gave {bytes} bytes")));
        }
        let [pid, uid, gid] = credentials;
        Ok(PeerIdentity { pid, uid, gid, groups: peer_groups(&socket)? })
    }

    /// Whether the user has no id here: nothing may be granted to it, it could be anybody.
    #[must_use]
    pub fn is_overflow(&self) -> bool {
        // Read once: every connection asks, and a kernel has one for good.
        static CONFIGURED: LazyLock<u32> = LazyLock::new(|| {
            let configured = fs::read_to_string("/proc/sys/kernel/overflowuid");
            configured.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID)
        });
        self.uid == *CONFIGURED || self.uid == u32::MAX
    }

    /// Whether the user is in the group, as its main group or a supplementary one.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 64];
    loop {
        match getsockopt(socket, SO_PEERGROUPS, &mut groups) {
            Ok(bytes) => {
                groups.truncate(bytes / size_of::<u32>());
                return Ok(groups);
            }
            // NGROUPS_MAX is 65536.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < 65536 => {
                groups.resize(groups.len() * 4, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A pidfd of the peer: readable once it exits. Kernels without SO_PEERPIDFD (before 6.5) look the process up by
/// its id, which is only sure while the peer has not exited.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd = [u32::MAX];
    match getsockopt(&socket, SO_PEERPIDFD, &mut fd) {
        Ok(_) => {
            let raw = fd[0].cast_signed();
            if raw < 0 {
                return Err(io::Error::other("SO_PEERPIDFD gave no descriptor"));
            }
            // SAFETY: the kernel just installed this descriptor for the caller, nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let peer = PeerIdentity::of(&socket)?;
            let pid = i32::try_from(peer.pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("the peer is outside of this pid namespace"))?;
            Ok(pidfd_open(pid, PidfdFlags::empty())?)
        }
        Err(error) => Err(error),
    }
}

/// Reads a SOL_SOCKET option made of 32-bit words and returns how many bytes there were.
fn getsockopt(socket: &impl AsFd, option: c_int, words: &mut [u32]) -> io::Result<usize> {
    let mut bytes = size_of_val(words) as socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `bytes` bytes to
    // `words`, which has that many, and any bits are valid u32.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            words.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(bytes as usize) }
}
