//! Listening sockets that a supervisor opened for this process (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{SocketAddrUnix, SocketType};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// More than anybody passes.
const COUNT_MAX: RawFd = 64;

/// A listening Unix socket that was passed to this process.
#[derive(Debug)]
pub struct InheritedListener {
    /// The socket, nonblocking, and not passed on to programs that this one executes.
    pub socket: OwnedFd,
    /// Where it listens; `None`: it has no path.
    pub path: Option<PathBuf>,
    /// It is a SOCK_SEQPACKET socket, and not a stream.
    pub seqpacket: bool,
}

/// Takes the sockets that `LISTEN_FDS` says were passed to this process. Each is given once: the next call finds none.
/// Call before anything else that the process does with descriptors, as every program that is started so does.
///
/// # Errors
/// The variables say something that is not so, or one of the descriptors is no listening Unix socket.
pub fn inherited_listeners() -> io::Result<Vec<InheritedListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<i32>().ok());
    let own = number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
    let Some(count) = number("LISTEN_FDS").filter(|_| own) else { return Ok(Vec::new()) };
    if TAKEN.swap(true, Relaxed) {
        return Ok(Vec::new());
    }
    if !(0..=COUNT_MAX).contains(&count) {
        return Err(invalid(format!("LISTEN_FDS={count} is not within 0 and {COUNT_MAX}")));
    }
    (FIRST..FIRST + count).map(take).collect()
}

fn take(number: RawFd) -> io::Result<InheritedListener> {
    let what = |errno: Errno| invalid(format!("descriptor {number} of LISTEN_FDS: {errno}"));
    {
        // SAFETY: nothing closes it meanwhile. Whoever executed this program opened it before, and named this process as its
        // owner (LISTEN_PID); were it not open, the call would say so.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if !socket_acceptconn(fd).map_err(what)? {
            return Err(invalid(format!(
                "descriptor {number} of LISTEN_FDS is a socket that does not listen"
            )));
        }
    }
    // SAFETY: it is open, as was seen, has been since before main(), and was passed to this process for whoever takes it:
    // that is us, once, as `TAKEN` sees to.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
    let path = path_of(socket.as_fd())?;
    Ok(InheritedListener { path, seqpacket: socket_type(&socket)? == SocketType::SEQPACKET, socket })
}

fn path_of(socket: BorrowedFd<'_>) -> io::Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let address = rustix::net::getsockname(socket)?;
    let address = SocketAddrUnix::try_from(address)
        .map_err(|_| invalid("a socket of LISTEN_FDS is not a Unix socket".to_owned()))?;
    let bytes = address.path_bytes();
    Ok(bytes.map(|bytes| PathBuf::from(std::ffi::OsStr::from_bytes(bytes))))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
