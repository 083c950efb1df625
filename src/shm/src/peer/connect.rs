//! Connecting to a Unix socket, in line with others.
//!
//! A connect that does not block fails while the listener's backlog is full, and a client that tries again now and then rarely
//! meets a free place where others flood the socket. One that blocks stands in the kernel's line: first come, first served. Who never
//! stands in line can keep all in it from their places, so now and then a connect leaves the line and does as they do.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest stay in the line.
const IN_LINE: Duration = Duration::from_secs(1);
/// How long a connect then tries without waiting: some of the breaths in which a ferriod that is flooded accepts.
const OUT_OF_LINE: Duration = Duration::from_millis(40);

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
        let left = until.map_or(IN_LINE, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(&socket, Timeout::Send, Some(left.min(IN_LINE)))?;
        match net::connect(&socket, &address) {
            Ok(()) => break,
            // Its place in the line is lost; signals are rare.
            Err(Errno::INTR) => {}
            // What a Unix socket says when the time to send is over.
            Err(Errno::AGAIN) => {
                if out_of_line(&socket, &address)? {
                    break;
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    // It holds for what is sent over the socket, too.
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Tries again and again for a moment: `false` if there was no place. Places that come free go to those who do so, before those in
/// line have woken.
fn out_of_line(socket: &OwnedFd, address: &SocketAddrUnix) -> io::Result<bool> {
    let flags = fcntl_getfl(socket)?;
    fcntl_setfl(socket, flags | OFlags::NONBLOCK)?;
    let until = Instant::now() + OUT_OF_LINE;
    let connected = loop {
        match net::connect(socket, address) {
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < until => {}
            Err(Errno::AGAIN | Errno::INTR) => break false,
            connected => break connected.map(|()| true)?,
        }
    };
    fcntl_setfl(socket, flags)?;
    Ok(connected)
}
