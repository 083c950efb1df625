//! The attach socket: a token comes in, memory and doorbells go out, and the connection becomes the lease.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::peer::{self, PeerIdentity};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::sessions::Sessions;
use crate::uid_limit::{Place, UidLimit};
use crate::{dispose, lease, log};

/// A connection that has not said anything by then is closed.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that was refused keeps its place: what a user can make the daemon do for nothing is bounded by its
/// places, instead of by how fast it connects.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for as long as the daemon lives.
pub async fn serve(listener: OwnedFd, sessions: Arc<Sessions>, limit: UidLimit) -> io::Result<()> {
    let listener = lease::polled(listener)?;
    loop {
        let mut ready = listener.readable().await?;
        match ready.try_io(|listener| peer::accept(listener.get_ref())) {
            Ok(Ok(socket)) => admit(socket, &sessions, &limit),
            Ok(Err(error)) => {
                tracing::error!("attach socket: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(_would_block) => {}
        }
    }
}

/// Starts a task for the connection, unless its user may not have one.
fn admit(socket: OwnedFd, sessions: &Arc<Sessions>, limit: &UidLimit) {
    let identity = match PeerIdentity::of(&socket) {
        Ok(identity) => identity,
        Err(error) => {
            log::refusal(format_args!("attach: a peer without credentials: {error}"));
            return dispose::later(socket);
        }
    };
    if identity.is_overflow() {
        let reason = "your uid has no place in the daemon's user namespace; map it";
        refuse(&socket, &identity, Errno::ACCESS, reason);
        return lease::close_refused(socket, limit.count(identity.uid));
    }
    let place = match limit.take(identity.uid) {
        Ok(place) => place,
        Err(exceeded) => {
            refuse(&socket, &identity, Errno::NOBUFS, &exceeded.to_string());
            return lease::close_refused(socket, limit.count(identity.uid));
        }
    };
    let (sessions, limit) = (Arc::clone(sessions), limit.clone());
    tokio::spawn(async move {
        let outcome = match lease::polled(socket) {
            Ok(socket) => {
                let mut place = Some(place);
                let outcome = greet(&socket, &identity, &sessions, &mut place, &limit).await;
                if place.is_some() {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                lease::close_refused(socket.into_inner(), limit.count(identity.uid));
                outcome
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            log::refusal(format_args!("attach of pid {}, uid {}: {error}", identity.pid, identity.uid));
        }
    });
}

/// Waits for the token, answers it, and stays as the lease. Takes `place` once it is a session's.
async fn greet(
    socket: &AsyncFd<OwnedFd>,
    identity: &PeerIdentity,
    sessions: &Arc<Sessions>,
    place: &mut Option<Place>,
    limit: &UidLimit,
) -> io::Result<()> {
    let refuse = |errno: Errno, reason: &str| refuse(socket.get_ref(), identity, errno, reason);
    let closing = || limit.count(identity.uid);
    let mut bytes = [0; LEASE_MESSAGE_MAX];
    let first =
        tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, lease::receive(socket, &mut bytes, &closing)).await;
    let token = match first {
        Err(_elapsed) => {
            refuse(Errno::TIMEDOUT, "no message within 5 s; send the attach token right after connecting");
            return Ok(());
        }
        Ok(Err(error)) => {
            refuse(Errno::PROTO, &format!("the first message cannot be taken: {error}"));
            return Ok(());
        }
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(LeaseMessage::Attach { token }))) => token,
        Ok(Ok(Some(LeaseMessage::Resume { session_id, .. }))) => {
            let reason = format!("session {session_id} is not known to this daemon; open a new session");
            refuse(Errno::STALE, &reason);
            return Ok(());
        }
        Ok(Ok(Some(_))) => {
            refuse(Errno::PROTO, "the first message must be Attach");
            return Ok(());
        }
    };
    // Before the session is attached: without a pidfd nobody would notice that its opener exited.
    let opener = match peer::peer_pidfd(socket.get_ref()).and_then(lease::polled) {
        Ok(opener) => opener,
        Err(error) => {
            refuse(Errno::SRCH, &format!("no pidfd of your process can be had: {error}"));
            return Ok(());
        }
    };
    let attached = match sessions.attach(&token, identity) {
        Ok(attached) => attached,
        Err(error) => {
            refuse(error.errno(), &error.to_string());
            return Ok(());
        }
    };
    *place = None;
    let (session_id, message) = (attached.session_id, attached.message.encode());
    let sent = {
        let fds: Vec<_> = attached.fds.iter().map(AsFd::as_fd).collect();
        peer::send_message(socket, &message, &fds)
    };
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

/// Answers, and logs whom. What the peer does with the answer is its own affair.
fn refuse(socket: &OwnedFd, identity: &PeerIdentity, errno: Errno, reason: &str) {
    log::refusal(format_args!("attach refused to pid {}, uid {}: {reason}", identity.pid, identity.uid));
    let answer = LeaseMessage::Refused { errno: errno.raw_os_error(), reason: reason.to_owned() };
    let _ = peer::send_message(socket, &answer.encode(), &[]);
}
