//! SOCK_SEQPACKET Unix sockets with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, chmod, fchmod};
use rustix::io::retry_on_intr;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Descriptors that the kernel takes with one message (SCM_MAX_FD).
pub const FDS_MAX: usize = 253;
const BACKLOG: i32 = 128;

/// Listens on a socket file made with `mode`, nonblocking. The file must not exist.
pub fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let mode = Mode::from_raw_mode(mode);
    // bind makes the file with the socket's mode less the umask: never more open than asked for.
    fchmod(&socket, mode)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    chmod(path, mode)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to a listening socket. The result is blocking.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::CLOEXEC)?;
    retry_on_intr(|| net::connect(&socket, &SocketAddrUnix::new(path)?))?;
    Ok(socket)
}

/// As [`connect`], without waiting: `WouldBlock` when the listener's backlog is full. The result is nonblocking.
pub fn try_connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    retry_on_intr(|| net::connect(&socket, &SocketAddrUnix::new(path)?))?;
    Ok(socket)
}

/// Accepts a connection. The result is nonblocking.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(retry_on_intr(|| net::accept_with(listener.as_fd(), flags))?)
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one message, whole, with descriptors.
pub fn send_message(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && (fds.len() > FDS_MAX || !ancillary.push(message)) {
        let text = format!("{} descriptors in one message, at most {FDS_MAX} can be passed", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    retry_on_intr(|| {
        net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one message and appends its descriptors, `fds_max` at most, to `fds`. 0: the peer closed.
///
/// A message longer than `bytes` or with more descriptors is an error. Even then those that came are in `fds`, for the caller
/// to close where it may take its time: the close of a descriptor that a hostile peer made can block.
/// With [`FDS_MAX`] the kernel has none left to close here.
pub fn recv_message(
    socket: impl AsFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    fds_max: usize,
) -> io::Result<usize> {
    let space = if fds_max == 0 { 0 } else { rustix::cmsg_space!(ScmRights(fds_max.min(FDS_MAX))) };
    let mut space = vec![MaybeUninit::uninit(); space];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let before = fds.len();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    if message.flags.contains(ReturnFlags::TRUNC) {
        return invalid(format!("the message is longer than {} bytes", bytes.len()));
    }
    // The control buffer is rounded up: the kernel may find room for one descriptor more than it was made for.
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() - before > fds_max {
        return invalid(format!("the message carries more than {fds_max} descriptors"));
    }
    Ok(message.bytes)
}
