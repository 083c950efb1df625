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
/// Connections that wait to be accepted. Not more: each waits for all before it, and while a client floods the socket they are
/// accepted at a pace.
const BACKLOG: i32 = 64;

/// Listens on a socket file made with `mode`, nonblocking. The file must not exist.
pub fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mode = Mode::from_raw_mode(mode);
    // bind makes the file with the socket's mode less the umask: never more open than asked for.
    fchmod(&socket, mode)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    chmod(path, mode)?;
    set_backlog(&socket)?;
    Ok(socket)
}

/// Sets how many connections wait to be accepted by a listening socket, as [`listen`] does: who comes when there are so many
/// waits in line, or is told to come again.
pub fn set_backlog(listener: impl AsFd) -> io::Result<()> {
    Ok(net::listen(listener.as_fd(), BACKLOG)?)
}

/// Accepts a connection. The result is nonblocking.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(retry_on_intr(|| net::accept_with(listener.as_fd(), flags))?)
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
