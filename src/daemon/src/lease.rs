//! The lease: the attach connection of a session. The session lives as long as it and the process that opened it.

use std::io;
use std::os::fd::OwnedFd;

use ferrio_shm::lease::{LeaseEvent, LeaseMessage};
use ferrio_shm::peer;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::dispose;
use crate::uid_limit::Place;

/// Messages read from a peer that was refused, so that it gets the refusal instead of a connection reset.
const UNREAD_MAX: u32 = 16;
/// Descriptors with one message: a resume brings the session memory and its regions.
const FDS_MAX: usize = 64;

/// A descriptor that the control thread polls.
#[expect(
    deprecated,
    reason = "its replacement is unsafe for types that can swap their descriptor; OwnedFd cannot"
)]
pub fn polled(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// The next message; `None`: the peer closed. Descriptors are not kept, and no further message is taken before they are
/// closed: a client cannot have more of them here than one message carries.
///
/// `place` gives the place that the closing takes among those of the user.
pub async fn receive(
    socket: &AsyncFd<OwnedFd>,
    bytes: &mut [u8],
    place: &impl Fn() -> Place,
) -> io::Result<Option<LeaseMessage>> {
    loop {
        let mut ready = socket.readable().await?;
        let mut fds = Vec::new();
        let received = ready.try_io(|socket| peer::recv_message(socket, bytes, &mut fds, peer::FDS_MAX));
        let count = fds.len();
        if count > 0 {
            dispose::wait((fds, place())).await;
        }
        match received {
            Ok(Ok(_)) if count > FDS_MAX => {
                let text = format!("the message carries {count} descriptors, at most {FDS_MAX} are taken");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(length)) => {
                let message = LeaseMessage::decode(&bytes[..length]);
                return message.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// Stays with the session until the lease closes, the opener exits or the session is gone; returns why.
pub async fn keep(
    socket: &AsyncFd<OwnedFd>,
    opener: &AsyncFd<OwnedFd>,
    events: &mut mpsc::Receiver<LeaseEvent>,
    place: &impl Fn() -> Place,
) -> String {
    let mut bytes = [0; ferrio_shm::lease::LEASE_MESSAGE_MAX];
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => send(socket, &LeaseMessage::Event(event)),
                None => return "closed by the daemon".to_owned(),
            },
            exited = opener.readable() => return match exited {
                Ok(_) => "the process that opened it exited".to_owned(),
                Err(error) => format!("its process cannot be watched: {error}"),
            },
            received = receive(socket, &mut bytes, place) => match received {
                Ok(None) => return "the client closed its lease".to_owned(),
                Ok(Some(LeaseMessage::Close)) => return "the client closed it".to_owned(),
                Ok(Some(LeaseMessage::RegionAdd { index, .. } | LeaseMessage::RegionRemove { index })) => {
                    // ABI.md marks regions as reserved for a later release.
                    let errno = Errno::OPNOTSUPP.raw_os_error();
                    send(socket, &LeaseMessage::RegionReply { index, errno });
                }
                Ok(Some(other)) => return format!("the client sent {other:?}, which is not for a client to send"),
                Err(error) => return format!("the lease broke: {error}"),
            },
        }
    }
}

/// A client that does not read its lease misses the message; the state in its session header tells it the same.
fn send(socket: &AsyncFd<OwnedFd>, message: &LeaseMessage) {
    if let Err(error) = peer::send_message(socket, &message.encode(), &[]) {
        tracing::debug!("lease message {message:?} not sent: {error}");
    }
}

/// Closes the socket of a peer that was refused. What it has sent already is read before: a socket closed with unread
/// messages resets the connection, and the peer would see the reset instead of the last answer. `with` is dropped after.
pub fn close_refused(socket: OwnedFd, with: impl Send + 'static) {
    let mut fds = Vec::new();
    for _ in 0..UNREAD_MAX {
        match peer::recv_message(&socket, &mut [0; 1], &mut fds, peer::FDS_MAX) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            _ => {}
        }
    }
    dispose::later((fds, socket, with));
}
