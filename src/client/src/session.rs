//! A session: memory, rings and volumes that the daemon gave this process.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_shm::abi::SessionState;
use ferrio_shm::arena::Arena;
use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::mapping::{MappedQueue, Region, SessionHeader};

use crate::attach::{self, Attached};
use crate::control;
use crate::error::{Error, Reason, SessionEnd};
use crate::lease::{Event, Lease};
use crate::options::{QueueOptions, SessionBuilder};
use crate::queue::Queue;
use crate::{Buffer, Volume, wait};

/// How long to wait for the reason of a fault that the session header shows already.
const REASON_WAIT: Duration = Duration::from_millis(100);

/// An open session. It lives until it and all of its queues are dropped, in any order. The last drop waits until the
/// daemon has let the session go, so that its volumes can be opened again right after it; one second at most.
pub struct Session {
    inner: Arc<Inner>,
    queues: Mutex<Vec<Option<QueueParts>>>,
}

/// What a queue is made of, until somebody takes it.
pub(crate) struct QueueParts {
    pub index: u32,
    pub rings: MappedQueue,
    pub sq_doorbell: Arc<DoorbellTx>,
    pub cq_doorbell: DoorbellRx,
    pub options: QueueOptions,
}

/// What the session and its queues share.
pub(crate) struct Inner {
    pub session_id: u64,
    pub lease: Lease,
    pub arena_bytes: u64,
    arena: Arena,
    /// Address of the arena in this process: a buffer of another session lies elsewhere.
    arena_address: Option<usize>,
    header: SessionHeader,
    volumes: Vec<Volume>,
    fork_guard: ForkGuard,
}

impl Session {
    /// Describes a session with the daemon that listens on this control socket.
    pub fn builder(control_socket: impl AsRef<Path>) -> SessionBuilder {
        SessionBuilder::new(control_socket.as_ref().to_owned())
    }

    /// Id of the session in the daemon's lists.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.session_id
    }

    /// A volume that the session was opened with.
    pub fn volume(&self, name: &str) -> Result<Volume, Error> {
        self.volumes().iter().find(|volume| volume.name() == name).cloned().ok_or_else(|| {
            Error::NoSuchVolume {
                name: name.to_owned(),
                known: self.volumes().iter().map(Volume::name).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// All volumes, in the order of the builder.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.inner.volumes
    }

    /// Hands a queue to its owner. Each can be taken once; they are counted from 0 in the order of the builder.
    pub fn take_queue(&self, index: usize) -> Result<Queue, Error> {
        self.inner.check_fork()?;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queues.len();
        let parts = queues.get_mut(index).ok_or(Error::NoSuchQueue { index, queues: count })?;
        let parts = parts.take().ok_or(Error::QueueTaken { index })?;
        Ok(Queue::new(Arc::clone(&self.inner), parts))
    }

    /// Takes a buffer from the session's arena; it goes back when it is dropped. It starts at a multiple of 4096.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, Error> {
        self.inner.check_fork()?;
        Ok(self.inner.arena.alloc(bytes)?)
    }

    /// The next piece of news from the daemon, without waiting; an error once the session has ended.
    pub fn next_event(&self) -> Result<Option<Event>, Error> {
        self.inner.check_fork()?;
        self.inner.listen();
        match (self.inner.lease.next_event(), self.inner.lease.end()) {
            (None, Some(end)) => Err(end.clone().into()),
            (event, _) => Ok(event),
        }
    }

    pub(crate) fn open(builder: &SessionBuilder) -> Result<Self, Error> {
        let answer = control::open(builder)?;
        let attached = attach::attach(builder, &answer)?;
        Session::assemble(attached, answer.volumes, builder.queues_or_default(), &answer.queues)
    }

    pub(crate) async fn open_async(builder: SessionBuilder) -> Result<Self, Error> {
        let answer = control::open_async(&builder).await?;
        let attach = move || {
            let attached = attach::attach(&builder, &answer)?;
            Session::assemble(attached, answer.volumes, builder.queues_or_default(), &answer.queues)
        };
        let attached = tokio::task::spawn_blocking(attach).await;
        attached.map_err(|error| Error::Io { what: "attach", cause: error.into() })?
    }

    pub(crate) fn assemble(
        attached: Attached,
        grants: Vec<v1::VolumeGrant>,
        options: Vec<QueueOptions>,
        granted: &[v1::QueueLayout],
    ) -> Result<Self, Error> {
        let Attached { session_id, layout, mapping, header, fork_guard, lease, doorbells, cq_doorbells } =
            attached;
        let unfit = |what: &str| Error::Incompatible { what: what.to_owned() };
        let mut queues = Vec::with_capacity(layout.queues.len());
        for (index, cq_doorbell) in (0u32..).zip(cq_doorbells) {
            let at = index as usize;
            let (Some(layout), Some(options), Some(granted)) =
                (layout.queues.get(at), options.get(at), granted.get(at))
            else {
                return Err(unfit("more CQ doorbells than queues"));
            };
            let doorbell = doorbells.get(granted.doorbell as usize);
            let sq_doorbell = doorbell.ok_or_else(|| unfit("a queue without a doorbell"))?;
            let rings = MappedQueue::new(Arc::clone(&mapping), layout);
            queues.push(Some(QueueParts {
                index,
                rings: rings.ok_or_else(|| unfit("a queue that is not inside of the session memory"))?,
                sq_doorbell: Arc::clone(sq_doorbell),
                cq_doorbell,
                options: options.clone(),
            }));
        }
        let region = Region::new(mapping, layout.arena_offset, layout.arena_bytes)
            .ok_or_else(|| unfit("the arena is not inside of the session memory"))?;
        let arena = Arena::new(region, fork_guard.clone())?;
        let volume = |(index, grant)| Volume::new(session_id, index, grant);
        let inner = Inner {
            session_id,
            lease: Lease::new(lease).map_err(Error::io("set up the lease"))?,
            arena_bytes: layout.arena_bytes,
            arena_address: arena.alloc(1).ok().map(|first| arena_address(&first)),
            arena,
            header,
            volumes: grants.into_iter().enumerate().map(volume).collect::<Result<_, _>>()?,
            fork_guard,
        };
        Ok(Session { inner: Arc::new(inner), queues: Mutex::new(queues) })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.inner.session_id)
            .field("volumes", &self.volumes())
            .finish()
    }
}

impl SessionBuilder {
    /// Opens the session and waits until that is done. It may be called inside of an async runtime, but blocks it.
    pub fn open(self) -> Result<Session, Error> {
        Session::open(&self)
    }

    /// The same for callers inside of a tokio runtime that must not block.
    pub async fn open_async(self) -> Result<Session, Error> {
        Session::open_async(self).await
    }
}

impl Inner {
    /// The session's memory does not exist in a forked child: every call asks this first.
    pub(crate) fn check_fork(&self) -> Result<(), Error> {
        if self.fork_guard.is_child() { Err(Error::Forked) } else { Ok(()) }
    }

    pub(crate) fn is_child(&self) -> bool {
        self.fork_guard.is_child()
    }

    /// Whether the buffer is from this session's arena.
    pub(crate) fn owns(&self, buffer: &Buffer) -> bool {
        self.arena_address == Some(arena_address(buffer))
    }

    /// Takes in what the daemon has said, without waiting.
    pub(crate) fn listen(&self) {
        // Only an async reactor needs to know that there is no more.
        let _ = self.listen_all();
    }

    /// The same; `WouldBlock` when there is no more.
    pub(crate) fn listen_all(&self) -> io::Result<()> {
        self.lease.listen(|volume, size_bytes| self.resized(volume, size_bytes))
    }

    fn resized(&self, volume: u16, size_bytes: u64) {
        if let Some(volume) = self.volumes.get(usize::from(volume)) {
            volume.resized(size_bytes);
        }
    }

    /// Whether the session header says that nobody serves the rings any more. One load.
    pub(crate) fn header_says_ended(&self) -> bool {
        matches!(self.header.state(), Some(SessionState::Faulted | SessionState::Closed))
    }

    /// Ends the session on the word of its header; the lease has the reason, a moment later at worst.
    pub(crate) fn end_by_header(&self) {
        let _ = wait::readable(self.lease.as_fd(), Some(Instant::now() + REASON_WAIT));
        self.listen();
        self.lease.finish(match self.header.state() {
            Some(SessionState::Faulted) => SessionEnd::Faulted(Reason::new("ferriod faulted the session")),
            _ => SessionEnd::Disconnected(Reason::new("ferriod closed the session")),
        });
    }

    /// Ends the session because the daemon's end of a doorbell is closed; what the lease says goes first.
    pub(crate) fn end_by_doorbell(&self) {
        self.listen();
        let reason = "ferriod closed a doorbell: it ended, or dropped the session";
        self.lease.finish(SessionEnd::Disconnected(Reason::new(reason)));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A child's copy of the socket is closed without a word: the session is the parent's.
        if !self.is_child() {
            self.lease.close();
        }
    }
}

fn arena_address(buffer: &Buffer) -> usize {
    buffer.as_ptr().addr().wrapping_sub(buffer.offset() as usize)
}
