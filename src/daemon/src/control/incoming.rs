//! Connections to the control socket: who they are, and how many.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use ferrio_shm::peer::{self, PeerIdentity};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::errors;
use crate::pace::{Refusals, UserPace};
use crate::uid_limit::{Exceeded, Place, UidLimit};
use crate::{dispose, log};

/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// So many connections of one user are served per second, or as many as it may open sessions.
const PER_SECOND_MIN: u32 = 256;
/// Who has made none for so long may make at once what it may make in this time: as with sessions.
const BURST: Duration = Duration::from_secs(2);

/// Connections of users who have too many, kept only to tell them so.
const REFUSALS_MAX: u32 = 32;
/// The same, of one user.
const REFUSALS_PER_UID_MAX: u32 = 4;

/// Who is at the other end; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    identity: Arc<PeerIdentity>,
    /// Every call is answered with this.
    refusal: Option<Exceeded>,
}

/// A connection that knows its peer.
#[derive(Debug)]
pub struct PeerStream {
    /// `None` only while it is dropped.
    stream: Option<UnixStream>,
    peer: Peer,
    place: Option<Place>,
}

/// Accepts connections. One user cannot take all places, nor the time of the control thread: a connection costs it a
/// tenth of a millisecond before anything is asked. A few over the limits are answered by the limit, the rest is closed.
pub fn accept(
    listener: UnixListener,
    limit: UidLimit,
    sessions_per_uid_max: u32,
    refusals: Refusals,
) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(1);
    let admission = Admission {
        limit,
        told: UidLimit::new(REFUSALS_MAX, REFUSALS_PER_UID_MAX),
        refusals,
        pace: UserPace::new(sessions_per_uid_max.max(PER_SECOND_MIN), BURST),
    };
    tokio::spawn(async move {
        while !sender.is_closed() {
            admission.refusals.breathe().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted.and_then(|(stream, _)| admission.admit(stream)) {
                Ok(Some((stream, wait))) if wait.is_zero() => {
                    if sender.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Ok(Some((stream, wait))) => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = sender.send(Ok(stream)).await;
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("control socket: accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Who gets in.
struct Admission {
    limit: UidLimit,
    /// Those that are refused and told so.
    told: UidLimit,
    refusals: Refusals,
    pace: UserPace,
}

impl Admission {
    /// A connection that is served, and how long after now. Until then it keeps its place: who connects faster soon has no
    /// places left, and is refused.
    fn admit(&self, stream: UnixStream) -> io::Result<Option<(PeerStream, Duration)>> {
        let identity = PeerIdentity::of(&stream)?;
        let (pid, uid) = (identity.pid, identity.uid);
        let (place, refusal) = match self.limit.take(uid) {
            Ok(place) => (place, None),
            Err(exceeded) => {
                log::refusal(format_args!("control connection refused to pid {pid}, uid {uid}: {exceeded}"));
                self.refusals.charge(Instant::now());
                let Ok(place) = self.told.take(uid) else {
                    dispose::later((stream, self.limit.count(uid)));
                    return Ok(None);
                };
                (place, Some(exceeded))
            }
        };
        let wait = self.pace.turn(uid, Duration::MAX, Instant::now()).unwrap_or_default();
        let peer = Peer { identity: Arc::new(identity), refusal };
        Ok(Some((PeerStream { stream: Some(stream), peer, place: Some(place) }, wait)))
    }
}

/// Runs before every call: a user whose real id is unknown gets no answer, it could be anybody; nor does one who has too
/// many connections.
pub fn admit(request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(exceeded) = request.extensions().get::<Peer>().and_then(|peer| peer.refusal) {
        return Err(errors::connections(&exceeded));
    }
    let peer = identity(&request)?;
    if peer.is_overflow() { Err(errors::overflow_uid(peer.uid)) } else { Ok(request) }
}

/// Who makes a request.
pub fn identity<T>(request: &Request<T>) -> Result<Arc<PeerIdentity>, Status> {
    let peer = request.extensions().get::<Peer>().ok_or_else(errors::no_identity)?;
    Ok(Arc::clone(&peer.identity))
}

/// Who makes a request that is for root and the user that the daemon runs as. `what` is what it would do.
pub fn admin<T>(request: &Request<T>, what: &str) -> Result<Arc<PeerIdentity>, Status> {
    let peer = identity(request)?;
    let own_uid = rustix::process::geteuid().as_raw();
    if peer.uid == 0 || peer.uid == own_uid {
        Ok(peer)
    } else {
        Err(errors::not_admin(peer.uid, own_uid, what))
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl PeerStream {
    fn stream(&mut self) -> Pin<&mut UnixStream> {
        let Some(stream) = &mut self.stream else { unreachable!("taken in drop only") };
        Pin::new(stream)
    }
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        dispose::later((self.stream.take(), self.place.take()));
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.stream();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let mut fds = Vec::new();
            let received = stream.try_io(Interest::READABLE, || {
                peer::recv_message(&*stream, buf.initialize_unfilled(), &mut fds, peer::FDS_MAX)
            });
            if !fds.is_empty() {
                // Given to the kernel to discard, they would be closed here and now.
                dispose::later((fds, self.place.take()));
                let text = "descriptors on the control socket, which takes none";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received.map(|length| buf.advance(length))),
            }
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(UnixStream::is_write_vectored)
    }
}
