//! Connecting to a Unix socket, in line with others.
//!
//! A connect that does not block fails while the listener's backlog is full, and a client that tries again now and then rarely
//! meets a free place where others flood the socket. One that blocks stands in the kernel's line: first come, first served.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects to a SOCK_SEQPACKET socket. Waits until its backlog has a place. The result is blocking.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    in_line(path, SocketType::SEQPACKET, Duration::MAX)
}

/// As [`connect`], for `limit` at most: `TimedOut` after it.
pub fn connect_within(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    in_line(path, SocketType::SEQPACKET, limit)
}

/// As [`connect_within`], to a stream socket.
pub fn connect_stream_within(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    in_line(path, SocketType::STREAM, limit)
}

fn in_line(path: &Path, kind: SocketType, limit: Duration) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    // A time that does not fit is longer than anyone waits.
    let until = Instant::now().checked_add(limit);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(&socket, Timeout::Send, left)?;
        match net::connect(&socket, &address) {
            Ok(()) => break,
            // Its place in the line is lost; signals are rare.
            Err(Errno::INTR) => {}
            // What a Unix socket says when the time to send is over.
            Err(Errno::AGAIN) if until.is_some() => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    // It holds for what is sent over the socket, too.
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}
