//! Connections to the control socket: who they are, and how many.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ferrio_shm::peer::{self, PeerIdentity};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::errors;
use crate::uid_limit::{Exceeded, Place, UidLimit};
use crate::{dispose, log};

/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Accepts connections. One user cannot take all places. A few over the limit are answered by the limit, the rest is closed.
pub fn accept(listener: UnixListener, limit: UidLimit) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(1);
    let refusals = UidLimit::new(REFUSALS_MAX, REFUSALS_PER_UID_MAX);
    tokio::spawn(async move {
        while !sender.is_closed() {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted.and_then(|(stream, _)| admit_stream(stream, &limit, &refusals)) {
                Ok(Some(stream)) => {
                    if sender.send(Ok(stream)).await.is_err() {
                        return;
                    }
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

fn admit_stream(stream: UnixStream, limit: &UidLimit, refusals: &UidLimit) -> io::Result<Option<PeerStream>> {
    let identity = PeerIdentity::of(&stream)?;
    let (pid, uid) = (identity.pid, identity.uid);
    let (place, refusal) = match limit.take(uid) {
        Ok(place) => (place, None),
        Err(exceeded) => {
            log::refusal(format_args!("control connection refused to pid {pid}, uid {uid}: {exceeded}"));
            let Ok(place) = refusals.take(uid) else {
                dispose::later((stream, limit.count(uid)));
                return Ok(None);
            };
            (place, Some(exceeded))
        }
    };
    let peer = Peer { identity: Arc::new(identity), refusal };
    Ok(Some(PeerStream { stream: Some(stream), peer, place: Some(place) }))
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
