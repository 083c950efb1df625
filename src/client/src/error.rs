//! What can go wrong, by kind, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::arena::AllocError;
use ferrio_shm::mapping::RegionError;

use crate::{Buffer, Errno, Features, IoVec, Request};

/// Why a call failed. Its text is complete: it repeats what the operating system or the daemon said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A socket of the daemon cannot be reached.
    #[error("cannot connect to ferriod at {}: {cause}; {fix}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
        /// What to do.
        fix: String,
    },
    /// The daemon answered, and the answer is no.
    #[error("ferriod refused the session: {message}")]
    Refused {
        /// What kind of refusal it is.
        reason: Refusal,
        /// The daemon's words: they name volume, user, holder, limit.
        message: String,
    },
    /// The daemon did not answer in the time that the builder allows.
    #[error("ferriod at {} did not answer within {limit:?} ({what}); raise it with SessionBuilder::timeout", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The daemon's answer cannot be used by this version of the library.
    #[error("ferriod and this client do not fit together: {what}; run the same version of both")]
    Incompatible {
        /// What does not fit.
        what: String,
    },
    /// The session has no such volume.
    #[error("the session has no volume {name:?}; it was opened with: {known}")]
    NoSuchVolume {
        /// The name asked for.
        name: String,
        /// The names it was opened with.
        known: String,
    },
    /// The session has no such queue.
    #[error("the session has no queue {index}; it was opened with {queues}, counted from 0")]
    NoSuchQueue {
        /// The index asked for.
        index: usize,
        /// Number of queues.
        queues: usize,
    },
    /// The queue has an owner already.
    #[error(
        "queue {index} was taken before; a queue has one owner, open the session with one queue per thread"
    )]
    QueueTaken {
        /// The index asked for.
        index: usize,
    },
    /// All queues that reach the volume were taken, or the session was opened with none.
    #[error(
        "no queue is left that reaches volume {volume:?}; open the session with one more on engine {engine:?} (QueueOptions::engine)"
    )]
    NoQueueFor {
        /// Volume.
        volume: String,
        /// Its engine.
        engine: String,
    },
    /// The session was not granted what this needs.
    #[error(
        "the session has not the features this needs: {missing}; ask for them with SessionBuilder::features, of a ferriod that serves them"
    )]
    Unsupported {
        /// What is missing.
        missing: Features,
    },
    /// A list of memory for readv or writev is empty, or too long.
    #[error("the list of memory has {entries} entries; readv and writev take 1 to {max}")]
    IoVecLength {
        /// Entries.
        entries: usize,
        /// Most entries.
        max: u32,
    },
    /// A chain is empty, or too long for the ABI or for the queue's rings.
    #[error("the chain has {requests} requests; one on this queue has 1 to {max}")]
    ChainLength {
        /// Requests.
        requests: usize,
        /// Most requests.
        max: usize,
    },
    /// A raw SQE with the link flag was submitted alone.
    #[error("an SQE with the link flag must be shown with the rest of its chain: use Queue::submit_chain")]
    LooseLink,
    /// The queue has no room for all of a chain.
    #[error("queue {queue} has no room for all of the chain; pick completions up and submit it again")]
    Full {
        /// Queue.
        queue: u32,
    },
    /// The memfd cannot become a region.
    #[error("the memory cannot become a region: {why}")]
    Unfit {
        /// What is wrong.
        why: RegionError,
    },
    /// The daemon does not add or remove the region.
    #[error("ferriod does not {verb} region {index}: {errno}")]
    Region {
        /// "add" or "remove".
        verb: &'static str,
        /// Index of the region.
        index: u16,
        /// Why not.
        errno: Errno,
    },
    /// No index is left for another region.
    #[error("the session has {max} regions beside its arena, the most there can be: remove one")]
    RegionsFull {
        /// Most regions.
        max: u16,
    },
    /// Buffers or spans of the region are still there.
    #[error(
        "region {index} is in use: drop its buffers and spans, and pick its requests up, before it is removed"
    )]
    RegionInUse {
        /// Index of the region.
        index: u16,
    },
    /// The region's memory is the caller's own.
    #[error("region {index} is memory that the caller brought: name parts of it with Region::span")]
    NoBuffers {
        /// Index of the region.
        index: u16,
    },
    /// The bytes are not in the region, or are the library's to hand out.
    #[error(
        "bytes {start} to {end} of region {index} cannot be named: they are outside of it, or it hands out buffers (Region::alloc)"
    )]
    NoSpan {
        /// Index of the region.
        index: u16,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The daemon did not answer over the lease.
    #[error("ferriod did not answer over the lease within {limit:?}; raise it with SessionBuilder::timeout")]
    NoAnswer {
        /// The limit.
        limit: Duration,
    },
    /// The arena cannot give the buffer.
    #[error("{0}")]
    Alloc(#[from] AllocError),
    /// The buffer, volume, region or ticket belongs to another session or queue.
    #[error("the {what} belongs to another session or queue; use the one that this one gave out")]
    Foreign {
        /// Buffer, volume, region or ticket.
        what: &'static str,
    },
    /// A request names memory of the session that its own buffer does not cover.
    #[error(
        "the request's memory, bytes {start} to {end} of its region, is not inside its buffer; hand the buffer over with Request::with_buffer"
    )]
    NotOwned {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Called in a child of the process that opened the session.
    #[error("the session belongs to the parent of this forked process; open one of its own in the child")]
    Forked,
    /// The lease broke: the daemon ended, or evicted the session.
    #[error("{0}")]
    Disconnected(Reason),
    /// The daemon does not serve the session any more, because its rings broke the protocol.
    #[error("{0}")]
    Faulted(Reason),
    /// The daemon's ring said something that cannot be true. It is counted and not believed.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// A request was answered with an error, or not at all.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// Every place of the queue holds a completion that nobody has picked up.
    #[error(
        "queue {queue} holds {entries} completions that were not picked up; call Queue::poll before more blocking requests"
    )]
    Unpolled {
        /// Queue.
        queue: u32,
        /// Its CQ entries.
        entries: u32,
    },
    /// `into_async` was called while requests were in flight.
    #[error(
        "queue {queue} has {in_flight} requests in flight; pick their completions up before Queue::into_async"
    )]
    InFlight {
        /// Queue.
        queue: u32,
        /// Requests in flight.
        in_flight: usize,
    },
    /// `into_async` was called outside of a tokio runtime, or the runtime it was called in ended.
    #[error(
        "the async queue has no tokio runtime: call Queue::into_async inside of one, and use the queue while it runs"
    )]
    NoRuntime,
    /// A system call failed.
    #[error("cannot {what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        cause: io::Error,
    },
}

impl Error {
    /// The errno of a request that failed, or of a region that was refused; `None` for everything else.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Request(error) => Some(error.errno()),
            Error::Region { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |cause| Error::Io { what, cause }
    }

    pub(crate) fn connect(path: &Path, cause: io::Error) -> Error {
        let fix = match cause.kind() {
            io::ErrorKind::NotFound => {
                "no ferriod listens there: start it, or name the control socket of the one that runs".into()
            }
            io::ErrorKind::ConnectionRefused => {
                "the socket is left over from a ferriod that ended: start it again".into()
            }
            io::ErrorKind::PermissionDenied => format!(
                "uid {} may not open it: join the group that owns the socket (usually `ferrio`)",
                rustix::process::geteuid().as_raw()
            ),
            io::ErrorKind::TimedOut => {
                "too many wait to be accepted there: ferriod is stopped, or its log says who floods the socket".into()
            }
            _ => "see the log of ferriod".into(),
        };
        Error::Connect { path: path.to_owned(), cause, fix }
    }
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A value is out of range.
    Invalid,
    /// No such volume or engine.
    NotFound,
    /// The volume's allow list does not name this user or its groups.
    Permission,
    /// The volume is held by another writer, or is read-only.
    Busy,
    /// A limit of the daemon is reached.
    Limit,
    /// Something that this daemon does not have, such as the ABI version.
    Unsupported,
    /// The attach socket did not take the token.
    Attach,
    /// The daemon is stopping, or ended while the session was opened, or a volume cannot be served yet: try again, or let
    /// the session wait longer ([`SessionBuilder::patience`](crate::SessionBuilder::patience)).
    Unavailable,
    /// Anything else; the message says what.
    Other,
}

impl From<tonic::Code> for Refusal {
    fn from(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Refusal::Invalid,
            tonic::Code::NotFound => Refusal::NotFound,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Refusal::Permission,
            tonic::Code::FailedPrecondition | tonic::Code::AlreadyExists => Refusal::Busy,
            tonic::Code::ResourceExhausted => Refusal::Limit,
            tonic::Code::Unimplemented => Refusal::Unsupported,
            tonic::Code::Unavailable => Refusal::Unavailable,
            _ => Refusal::Other,
        }
    }
}

/// Why a session ended; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Arc<str>);

impl Reason {
    pub(crate) fn new(text: impl Into<Arc<str>>) -> Self {
        Reason(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a session ended. It ends once, for all of its queues.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The lease broke: the daemon ended, or evicted the session.
    #[error("{0}")]
    Disconnected(Reason),
    /// The daemon does not serve the session any more, because its rings broke the protocol.
    #[error("{0}")]
    Faulted(Reason),
}

impl From<SessionEnd> for Error {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Disconnected(reason) => Error::Disconnected(reason),
            SessionEnd::Faulted(reason) => Error::Faulted(reason),
        }
    }
}

/// Why one request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The daemon's answer.
    #[error("the request failed: {0}")]
    Errno(Errno),
    /// The session ended before the answer came. A write may or may not have reached the volume, and may still do so;
    /// its buffer is not handed back, because the kernel may still use it.
    #[error("the request was not answered, its outcome is unknown: {0}")]
    Unanswered(SessionEnd),
    /// The daemon reports a transfer that is neither whole nor an error, which the ABI rules out.
    #[error("ferriod reports {found} bytes for a request of {expected}: the data is not to be trusted")]
    WrongLength {
        /// Bytes asked for.
        expected: u32,
        /// Bytes reported.
        found: u32,
    },
}

impl RequestError {
    /// The error as an errno: `EOWNERDEAD` where the outcome is unknown, `EIO` where the answer makes no sense.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            RequestError::Errno(errno) => *errno,
            RequestError::Unanswered(_) => Errno::EOWNERDEAD,
            RequestError::WrongLength { .. } => Errno::EIO,
        }
    }
}

/// What the daemon's ring said that cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A completion for a request that was never submitted.
    #[error(
        "ferriod completed a request that queue {queue} never submitted (user_data {user_data:#x}); ignored"
    )]
    Unknown {
        /// Queue.
        queue: u32,
        /// The completion's user_data.
        user_data: u64,
    },
    /// A second completion for a request that was answered before.
    #[error("ferriod completed a request of queue {queue} a second time (user_data {user_data:#x}); ignored")]
    Doubled {
        /// Queue.
        queue: u32,
        /// The completion's user_data.
        user_data: u64,
    },
}

/// A request that was not taken. It is handed back whole, with its buffer.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: pick completions up, then submit it again.
    #[error(
        "the queue is full; pick up completions with Queue::poll or Queue::wait and submit the request again"
    )]
    Full(Request),
    /// Trying again does not help.
    #[error("{}", .0.error)]
    Refused(Box<Refused>),
}

/// A request that was not taken, and why.
#[derive(Debug)]
pub struct Refused {
    /// The request.
    pub request: Request,
    /// Why it was not taken.
    pub error: Error,
}

impl SubmitError {
    /// Whether the queue was full, so that trying again later helps.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, SubmitError::Full(_))
    }

    /// The request.
    pub fn into_request(self) -> Request {
        match self {
            SubmitError::Full(request) => request,
            SubmitError::Refused(refused) => refused.request,
        }
    }
}

/// A blocking or async request that failed, with its buffer where it can be handed back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct IoFailure {
    /// Why.
    pub error: Error,
    /// The request's buffer. `None`: it had none, or the kernel may still use it.
    pub buffer: Option<Buffer>,
    /// The list of a readv or writev; `None` as above.
    pub iovec: Option<IoVec>,
}

impl SubmitError {
    pub(crate) fn refused(request: Request, error: Error) -> Self {
        SubmitError::Refused(Box::new(Refused { request, error }))
    }
}

impl IoFailure {
    /// With nothing to hand back.
    pub(crate) fn bare(error: Error) -> Self {
        IoFailure { error, buffer: None, iovec: None }
    }

    pub(crate) fn refused(request: Request, error: Error) -> Self {
        let (buffer, iovec) = request.held.into_parts();
        IoFailure { error, buffer, iovec }
    }
}

impl From<IoFailure> for Error {
    fn from(failure: IoFailure) -> Self {
        failure.error
    }
}
