//! The attach socket: a token, or the secret of a session to go on with, comes in, memory and doorbells go out, and the
//! connection becomes the lease.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_engine::kill_point;
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::peer::{self, PeerIdentity};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::pace::Refusals;
use crate::sessions::attaching::Attached;
use crate::sessions::process::Birth;
use crate::sessions::{Claim, Sessions, Token};
use crate::uid_limit::{Place, UidLimit};
use crate::{dispose, lease, log};

/// A connection that has not said anything by then is closed.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for as long as the daemon lives.
pub async fn serve(
    listener: OwnedFd,
    sessions: Arc<Sessions>,
    limit: UidLimit,
    refusals: Refusals,
) -> io::Result<()> {
    let listener = lease::polled(listener)?;
    loop {
        refusals.breathe().await;
        let mut ready = listener.readable().await?;
        match ready.try_io(|listener| peer::accept(listener.get_ref())) {
            Ok(Ok(socket)) => {
                if let Some(admitted) = admit(socket, &limit, &refusals) {
                    tokio::spawn(hold(admitted, Arc::clone(&sessions), limit.clone(), refusals.clone()));
                    // Whoever comes back after a restart has sent its message already, and gives its place back at once:
                    // hundreds that come back together need only a few.
                    tokio::task::yield_now().await;
                }
            }
            Ok(Err(error)) => {
                tracing::error!("attach socket: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(_would_block) => {}
        }
    }
}

/// A connection that has a place among those of its user.
struct Admitted {
    socket: OwnedFd,
    identity: PeerIdentity,
    place: Place,
}

/// Finds a place for the connection, or refuses it.
fn admit(socket: OwnedFd, limit: &UidLimit, refusals: &Refusals) -> Option<Admitted> {
    let identity = match PeerIdentity::of(&socket) {
        Ok(identity) => identity,
        Err(error) => {
            log::refusal(format_args!("attach: a peer without credentials: {error}"));
            refusals.charge(Instant::now());
            dispose::later(socket);
            return None;
        }
    };
    let (errno, reason) = if identity.is_overflow() {
        (Errno::ACCESS, "your uid has no place in the daemon's user namespace; map it".to_owned())
    } else {
        match limit.take(identity.uid) {
            Ok(place) => return Some(Admitted { socket, identity, place }),
            Err(exceeded) => (Errno::BUSY, exceeded.to_string()),
        }
    };
    refuse(&socket, &identity, errno, &reason);
    refusals.charge(Instant::now());
    lease::close_refused(socket, limit.count(identity.uid));
    None
}

/// The life of a connection.
async fn hold(admitted: Admitted, sessions: Arc<Sessions>, limit: UidLimit, refusals: Refusals) {
    let Admitted { socket, identity, place } = admitted;
    let outcome = match lease::polled(socket) {
        Ok(socket) => {
            let mut place = Some(place);
            let outcome = greet(&socket, &identity, &sessions, &mut place, &limit).await;
            // While the daemon drains all its clients come and are told to try again.
            if place.is_some() && !sessions.draining() {
                refusals.charge(Instant::now());
            }
            lease::close_refused(socket.into_inner(), limit.count(identity.uid));
            outcome
        }
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        log::refusal(format_args!("attach of pid {}, uid {}: {error}", identity.pid, identity.uid));
    }
}

/// What a connection may begin with.
enum First {
    Attach { token: Token },
    Resume { session_id: u64, secret: [u8; 32], fds: Vec<OwnedFd> },
}

/// Waits for the token or secret, answers it, and stays as the lease. Takes `place` once it is a session's.
async fn greet(
    socket: &AsyncFd<OwnedFd>,
    identity: &PeerIdentity,
    sessions: &Arc<Sessions>,
    place: &mut Option<Place>,
    limit: &UidLimit,
) -> io::Result<()> {
    let refuse = |errno: Errno, reason: &str| refuse(socket.get_ref(), identity, errno, reason);
    let closing = || limit.count(identity.uid);
    let first = match first_message(socket, &closing).await {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(()),
        Err((errno, reason)) => {
            refuse(errno, &reason);
            return Ok(());
        }
    };
    let attached = begin(socket, identity, sessions, &first);
    if let First::Resume { fds, .. } = first {
        // Mapped by now, or not wanted.
        dispose::wait((fds, closing())).await;
    }
    let (attached, opener) = match attached {
        Ok(attached) => attached,
        Err((errno, reason)) => {
            refuse(errno, &reason);
            return Ok(());
        }
    };
    *place = None;
    let (session_id, message) = (attached.session_id, attached.message.encode());
    let sent = {
        let fds: Vec<_> = attached.fds.iter().map(AsFd::as_fd).collect();
        peer::send_message(socket, &message, &fds)
    };
    if attached.resumed {
        kill_point!("resume-sent");
    } else {
        kill_point!("attach-sent");
    }
    // The client's ends of the doorbells live on in the client alone: their end tells the engine that it is gone.
    drop(attached.fds);
    if let Err(error) = sent {
        sessions.end(session_id, &format!("the client did not take its memory: {error}"));
        return Ok(());
    }
    let mut events = attached.events;
    let reason = lease::keep(socket, &opener, sessions, (session_id, &mut events), &closing).await;
    sessions.end(session_id, &reason);
    // The lease closes when nothing can touch the memory any more: a client may wait for that.
    while events.recv().await.is_some() {}
    Ok(())
}

/// Waits for what a connection begins with; `None`: it closed.
async fn first_message(
    socket: &AsyncFd<OwnedFd>,
    closing: &impl Fn() -> Place,
) -> Result<Option<First>, (Errno, String)> {
    let mut bytes = [0; LEASE_MESSAGE_MAX];
    let received = lease::receive_all(socket, &mut bytes, closing);
    let received = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, received).await.map_err(|_elapsed| {
        let reason = "no message within 5 s; send the attach token right after connecting";
        (Errno::TIMEDOUT, reason.to_owned())
    })?;
    let (message, fds) =
        received.map_err(|error| (Errno::PROTO, format!("the first message cannot be taken: {error}")))?;
    let first = match message {
        Some(LeaseMessage::Resume { session_id, secret }) => {
            return Ok(Some(First::Resume { session_id, secret, fds }));
        }
        Some(LeaseMessage::Attach { token }) => Ok(Some(First::Attach { token })),
        Some(_) => Err((Errno::PROTO, "the first message must be Attach or Resume".to_owned())),
        None => Ok(None),
    };
    if !fds.is_empty() {
        dispose::wait((fds, closing())).await;
    }
    first
}

/// Attaches or resumes; with what tells that the opener exits.
fn begin(
    socket: &AsyncFd<OwnedFd>,
    identity: &PeerIdentity,
    sessions: &Sessions,
    first: &First,
) -> Result<(Attached, AsyncFd<OwnedFd>), (Errno, String)> {
    // Before the session is attached: without a pidfd nobody would notice that its opener exited.
    let opener = peer::peer_pidfd(socket.get_ref())
        .and_then(lease::polled)
        .map_err(|error| (Errno::SRCH, format!("no pidfd of your process can be had: {error}")))?;
    let birth = Birth::of(opener.get_ref(), identity.pid).ok();
    let attached = match first {
        First::Attach { token } => {
            sessions.attach(token, identity, birth).map_err(|error| (error.errno(), error.to_string()))
        }
        First::Resume { session_id, secret, fds } => {
            let claim = Claim { session_id: *session_id, secret, fds, birth };
            sessions.resume(&claim, identity).map_err(|error| (error.errno(), error.to_string()))
        }
    };
    Ok((attached?, opener))
}

/// Answers, and logs whom. What the peer does with the answer is its own affair.
fn refuse(socket: &OwnedFd, identity: &PeerIdentity, errno: Errno, reason: &str) {
    let PeerIdentity { pid, uid, .. } = identity;
    // Clients that come during a restart are to try again, and do so several times a second.
    if errno == Errno::SHUTDOWN {
        tracing::debug!("attach of pid {pid}, uid {uid}: put off: {reason}");
    } else {
        log::refusal(format_args!("attach refused to pid {pid}, uid {uid}: {reason}"));
    }
    let answer = LeaseMessage::Refused { errno: errno.raw_os_error(), reason: reason.to_owned() };
    let _ = peer::send_message(socket, &answer.encode(), &[]);
}
