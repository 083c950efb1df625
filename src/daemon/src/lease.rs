//! The lease: the attach connection of a session. The session lives as long as it and the process that opened it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ferrio_engine::EngineError;
use ferrio_shm::lease::{LeaseEvent, LeaseMessage};
use ferrio_shm::peer;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::sessions::Sessions;
use crate::sessions::regions::RegionRefused;
use crate::uid_limit::Place;
use crate::{dispose, log};

/// Messages read from a peer that was refused, so that it gets the refusal instead of a connection reset.
const UNREAD_MAX: u32 = 16;
/// Looks at a region that is busy, before the client is told so.
const BUSY_LOOKS: u32 = 10;
/// Pause between two of them.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// A descriptor that the control thread polls.
#[expect(
    deprecated,
    reason = "its replacement is unsafe for types that can swap their descriptor; OwnedFd cannot"
)]
pub fn polled(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// The next message; `None`: the peer closed. Descriptors are not kept.
pub async fn receive(
    socket: &AsyncFd<OwnedFd>,
    bytes: &mut [u8],
    place: &impl Fn() -> Place,
) -> io::Result<Option<LeaseMessage>> {
    let (message, fds) = receive_all(socket, bytes, place).await?;
    closed(&mut begin_close(fds, place)).await;
    Ok(message)
}

/// A client's descriptors, while a thread closes them.
type Closing = Option<oneshot::Receiver<()>>;

/// `place` gives the place that the closing takes among those of the user.
fn begin_close(fds: Vec<OwnedFd>, place: &impl Fn() -> Place) -> Closing {
    (!fds.is_empty()).then(|| dispose::begin((fds, place())))
}

/// No further message is taken before the descriptors of the last one are closed: a client cannot have more of them here
/// than one message carries.
async fn closed(closing: &mut Closing) {
    if let Some(closed) = closing {
        let _ = closed.await;
        *closing = None;
    }
}

/// As [`receive`]; the caller closes the descriptors.
pub async fn receive_all(
    socket: &AsyncFd<OwnedFd>,
    bytes: &mut [u8],
    place: &impl Fn() -> Place,
) -> io::Result<(Option<LeaseMessage>, Vec<OwnedFd>)> {
    loop {
        let mut ready = socket.readable().await?;
        let mut fds = Vec::new();
        let received = ready.try_io(|socket| peer::recv_message(socket, bytes, &mut fds, peer::FDS_MAX));
        let invalid = |error| Err(io::Error::new(io::ErrorKind::InvalidData, error));
        let outcome = match received {
            Ok(Ok(0)) => return Ok((None, fds)),
            Ok(Ok(length)) => match LeaseMessage::decode(&bytes[..length]) {
                Ok(message) => return Ok((Some(message), fds)),
                Err(error) => invalid(error.to_string()),
            },
            Ok(Err(error)) => Err(error),
            Err(_would_block) => continue,
        };
        closed(&mut begin_close(fds, place)).await;
        return outcome;
    }
}

/// Stays with the session until the lease closes, the opener exits or the session is gone; returns why.
pub async fn keep(
    socket: &AsyncFd<OwnedFd>,
    opener: &AsyncFd<OwnedFd>,
    sessions: &Sessions,
    (session_id, events): (u64, &mut mpsc::Receiver<LeaseEvent>),
    place: &impl Fn() -> Place,
) -> String {
    let mut bytes = [0; ferrio_shm::lease::LEASE_MESSAGE_MAX];
    let mut pace = sessions.region_pace();
    let mut closing = None;
    let mut next = tokio::time::Instant::now();
    loop {
        let paused = next > tokio::time::Instant::now();
        let ready = !paused && closing.is_none();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => send(socket, &LeaseMessage::Event(event)),
                None => return "closed by the daemon".to_owned(),
            },
            exited = opener.readable() => return match exited {
                Ok(_) => "the process that opened it exited".to_owned(),
                Err(error) => format!("its process cannot be watched: {error}"),
            },
            () = tokio::time::sleep_until(next), if paused => {}
            () = closed(&mut closing), if closing.is_some() => {}
            received = receive_all(socket, &mut bytes, place), if ready => {
                let (message, fds) = match received {
                    Ok(received) => received,
                    Err(error) => return format!("the lease broke: {error}"),
                };
                let outcome = match message {
                    Some(LeaseMessage::RegionAdd { index, bytes }) => {
                        let added = sessions.add_region(session_id, index, bytes, &fds);
                        Ok(reply(socket, session_id, index, added.map(|()| bytes)))
                    }
                    Some(LeaseMessage::RegionRemove { index }) => {
                        let removed = remove_region(sessions, session_id, index).await;
                        Ok(reply(socket, session_id, index, removed))
                    }
                    Some(LeaseMessage::Close) => Err("the client closed it".to_owned()),
                    Some(other) => Err(format!("the client sent {other:?}, which is not for a client to send")),
                    None => Err("the client closed its lease".to_owned()),
                };
                closing = begin_close(fds, place);
                let carried_out = match outcome {
                    Ok(bytes) => bytes,
                    Err(reason) => return reason,
                };
                next = tokio::time::Instant::now() + pace.charge(carried_out, std::time::Instant::now());
            },
        }
    }
}

/// A client that has its answers may take its memory back, but an engine lets go of a request a moment after it is
/// answered: what is busy is looked at again.
async fn remove_region(sessions: &Sessions, session_id: u64, index: u16) -> Result<u64, RegionRefused> {
    for _ in 0..BUSY_LOOKS {
        match sessions.remove_region(session_id, index) {
            Err(RegionRefused::Engine(EngineError::RegionBusy { .. })) => {}
            outcome => return outcome,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    sessions.remove_region(session_id, index)
}

/// Answers a message about a region; the bytes that it was about.
fn reply(socket: &AsyncFd<OwnedFd>, session_id: u64, index: u16, outcome: Result<u64, RegionRefused>) -> u64 {
    let errno = outcome.as_ref().map_or_else(RegionRefused::errno, |_| 0);
    send(socket, &LeaseMessage::RegionReply { index, errno });
    outcome.unwrap_or_else(|refused| {
        log::refusal(format_args!("session {session_id}: region {index}: {refused}"));
        0
    })
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
