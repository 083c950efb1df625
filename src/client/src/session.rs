//! A session: memory, rings and volumes that the daemon gave this process.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_shm::abi::{SessionState, features};
use ferrio_shm::arena::Arena;
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::mapping::{MappedQueue, Region, SessionHeader};
use ferrio_shm::wake::Notifier;

use crate::attach::{self, Attached};
use crate::control;
use crate::error::{Error, Reason, SessionEnd};
use crate::lease::{Event, Lease, Listened};
use crate::link::Link;
use crate::memory::TABLE_BYTES;
use crate::options::{QueueOptions, SessionBuilder};
use crate::queue::Queue;
use crate::reattach::{Claim, Watcher};
use crate::region::Regions;
use crate::retry::Retry;
use crate::{Buffer, Features, IoVec, Volume, wait};

/// How long to wait for the reason of a fault that the session header shows already.
const REASON_WAIT: Duration = Duration::from_millis(100);

/// An open session. It lives until it and all of its queues are dropped, in any order. The last drop waits until the
/// daemon has let the session go, so that its volumes can be opened again right after it; one second at most. While there is
/// no daemon the drop does not wait: the next one lets the session go after `daemon.resume_timeout_s`, or with the process.
pub struct Session {
    inner: Arc<Inner>,
    queues: Mutex<Vec<Option<QueueParts>>>,
}

/// How much of an arena is in huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugepages {
    /// Part of the arena that is. Bytes, a multiple of 2 MiB; 0: none, or not asked for.
    pub bytes: u64,
    /// Why not all of it is; empty if it is, or if that was not asked for.
    pub reason: String,
}

/// A session that the daemon has opened, before it is attached.
struct Opened {
    /// With the queues that were asked for.
    builder: SessionBuilder,
    answer: v1::OpenSessionResponse,
}

/// What a queue is made of, until somebody takes it.
pub(crate) struct QueueParts {
    pub index: u32,
    pub engine: String,
    pub rings: MappedQueue,
    /// Index of its doorbell towards the daemon.
    pub doorbell: usize,
    pub options: QueueOptions,
}

/// What the session and its queues share.
pub(crate) struct Inner {
    pub session_id: u64,
    pub lease: Arc<Lease>,
    pub arena_bytes: u64,
    /// Those that the client added.
    pub regions: Arc<Mutex<Regions>>,
    /// Held while the daemon is asked about one of them.
    pub asking: Mutex<()>,
    /// Where the session is re-attached.
    watcher: Option<Watcher>,
    arena: Arena,
    header: SessionHeader,
    volumes: Vec<Volume>,
    features: Features,
    hugepages: Hugepages,
    fork_guard: ForkGuard,
}

impl Opened {
    /// Attaches. If the daemon ends meanwhile, `again` gets what to attach with once more: the next one refuses the token, but
    /// learns by it that nobody has the memory of a session that the one before may have begun, and lets go of its volumes.
    fn attach(self, again: &mut Option<Opened>) -> Result<Session, Error> {
        match attach::attach(&self.builder, &self.answer) {
            Ok(attached) => Session::assemble(attached, self.answer, &self.builder),
            Err(error) => {
                let ended = crate::retry::daemon_ended(&error);
                if ended && self.builder.wants_resume() {
                    *again = Some(self);
                }
                Err(error)
            }
        }
    }
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

    /// Hands out the first queue that is left of those that reach the volume.
    pub fn take_queue_for(&self, volume: &Volume) -> Result<Queue, Error> {
        self.inner.check_fork()?;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let serves = |parts: &QueueParts| parts.engine == volume.engine();
        let found = queues.iter_mut().find(|parts| parts.as_ref().is_some_and(serves)).and_then(Option::take);
        let parts = found.ok_or_else(|| Error::NoQueueFor {
            volume: volume.name().to_owned(),
            engine: volume.engine().to_owned(),
        })?;
        Ok(Queue::new(Arc::clone(&self.inner), parts))
    }

    /// Number of queues, those that were taken included.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What the daemon granted of what the builder asked for.
    #[must_use]
    pub fn features(&self) -> Features {
        self.inner.features
    }

    /// Whether the session goes on after a restart of the daemon: the builder asked for it
    /// ([`SessionBuilder::patience`]), and the daemon can.
    #[must_use]
    pub fn survives_restarts(&self) -> bool {
        self.inner.lease.is_watched()
    }

    /// What came of [`SessionBuilder::hugepages`].
    #[must_use]
    pub fn hugepages(&self) -> &Hugepages {
        &self.inner.hugepages
    }

    /// An empty list of memory for readv and writev, which takes 4096 bytes of the arena for its entries.
    pub fn iovec(&self) -> Result<IoVec, Error> {
        Ok(IoVec::new(self.alloc(TABLE_BYTES)?))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
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

    pub(crate) fn open(builder: SessionBuilder) -> Result<Self, Error> {
        let mut retry = Retry::new(builder.patience);
        let mut opened = None;
        loop {
            match Session::try_open(&builder, &mut opened) {
                Err(error) => std::thread::sleep(retry.after(&error).ok_or(error)?),
                opened => return opened,
            }
        }
    }

    pub(crate) async fn open_async(builder: SessionBuilder) -> Result<Self, Error> {
        let mut retry = Retry::new(builder.patience);
        let mut opened = None;
        loop {
            match Session::try_open_async(&builder, &mut opened).await {
                Err(error) => tokio::time::sleep(retry.after(&error).ok_or(error)?).await,
                opened => return opened,
            }
        }
    }

    fn try_open(builder: &SessionBuilder, opened: &mut Option<Opened>) -> Result<Self, Error> {
        let answered = match opened.take() {
            Some(opened) => opened,
            None => {
                let mut builder = builder.clone();
                let answer = control::open(&mut builder)?;
                Opened { builder, answer }
            }
        };
        answered.attach(opened)
    }

    async fn try_open_async(builder: &SessionBuilder, opened: &mut Option<Opened>) -> Result<Self, Error> {
        let answered = match opened.take() {
            Some(opened) => opened,
            None => {
                let mut builder = builder.clone();
                let answer = control::open_async(&mut builder).await?;
                Opened { builder, answer }
            }
        };
        let attach = move || {
            let mut opened = None;
            (answered.attach(&mut opened), opened)
        };
        let attached = tokio::task::spawn_blocking(attach).await;
        let (attached, again) =
            attached.map_err(|error| Error::Io { what: "attach", cause: error.into() })?;
        *opened = again;
        attached
    }

    pub(crate) fn assemble(
        attached: Attached,
        answer: v1::OpenSessionResponse,
        builder: &SessionBuilder,
    ) -> Result<Self, Error> {
        let Attached { session_id, layout, mapping, header, fork_guard, lease, fds, path } = attached;
        let unfit = |what: &str| Error::Incompatible { what: what.to_owned() };
        let mut queues = Vec::with_capacity(layout.queues.len());
        for (index, layout) in (0u32..).zip(&layout.queues) {
            let at = index as usize;
            let (Some(options), Some(granted)) = (builder.queues.get(at), answer.queues.get(at)) else {
                return Err(unfit("more queues than were asked for"));
            };
            let rings = MappedQueue::new(Arc::clone(&mapping), layout);
            queues.push(Some(QueueParts {
                index,
                engine: granted.engine.clone(),
                rings: rings.ok_or_else(|| unfit("a queue that is not inside of the session memory"))?,
                doorbell: granted.doorbell as usize,
                options: options.clone(),
            }));
        }
        let region = Region::new(mapping, layout.arena_offset, layout.arena_bytes)
            .ok_or_else(|| unfit("the arena is not inside of the session memory"))?;
        let arena = Arena::new(0, region, fork_guard.clone())?;
        let volume = |(index, grant)| Volume::new(session_id, index, grant);
        let volumes = answer.volumes.into_iter().enumerate().map(volume).collect::<Result<Vec<_>, _>>()?;
        let regions = Arc::default();
        let claim = if builder.wants_resume() && answer.features & features::RESUME != 0 {
            let secret = answer.resume_secret.as_slice().try_into();
            Some(Claim {
                session_id,
                secret: secret.map_err(|_| unfit("a resume secret that has not 32 bytes"))?,
                attach_socket: path,
                memory: fds.memory,
                memory_bytes: layout.memory_bytes,
                header: header.clone(),
                regions: Arc::clone(&regions),
                patience: builder.patience,
            })
        } else {
            None
        };
        let failed = "set up the lease";
        let wake = claim.as_ref().map(|_| Notifier::new().map(Arc::new)).transpose();
        let wake = wake.map_err(Error::io(failed))?;
        let link = Link::new(0, lease, fds.doorbells, fds.cq_doorbells, wake.is_some());
        let link = link.map_err(Error::io(failed))?;
        let lease = Arc::new(Lease::new(link, volumes.clone(), builder.timeout, wake.clone()));
        let watcher = claim.zip(wake).map(|(claim, wake)| Watcher::start(Arc::clone(&lease), claim, wake));
        let inner = Inner {
            session_id,
            lease,
            arena_bytes: layout.arena_bytes,
            regions,
            asking: Mutex::default(),
            watcher: watcher.transpose().map_err(Error::io("start the thread that watches the lease"))?,
            arena,
            header,
            hugepages: Hugepages { bytes: answer.hugepages_bytes, reason: answer.hugepages_reason },
            features: Features::from_bits(answer.features & builder.features.bits()),
            volumes,
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
        Session::open(self)
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

    /// What its buffers and regions are known by.
    pub(crate) fn fork_guard(&self) -> &ForkGuard {
        &self.fork_guard
    }

    pub(crate) fn check_features(&self, needs: Features) -> Result<(), Error> {
        if self.features.contains(needs) {
            return Ok(());
        }
        Err(Error::Unsupported { missing: needs.without(self.features) })
    }

    /// Takes in what the daemon has said, without waiting.
    pub(crate) fn listen(&self) -> Listened {
        self.lease.listen()
    }

    /// Whether the session header says that nobody serves the rings any more. One load.
    pub(crate) fn header_says_ended(&self) -> bool {
        matches!(self.header.state(), Some(SessionState::Faulted | SessionState::Closed))
    }

    /// Ends the session on the word of its header; the lease has the reason, a moment later at worst.
    pub(crate) fn end_by_header(&self) {
        let _ = wait::readable(self.lease.link().lease(), Some(Instant::now() + REASON_WAIT));
        self.listen();
        match self.header.state() {
            Some(SessionState::Faulted) => {
                self.lease.finish(SessionEnd::Faulted(Reason::new("ferriod faulted the session")));
            }
            _ => self.lease.finish_unheard("ferriod closed the session"),
        }
    }

    /// Ends the session because the daemon's end of a doorbell is closed; what the lease says goes first. A session that
    /// is re-attached hears of it by the lease.
    pub(crate) fn end_by_doorbell(&self) {
        self.listen();
        if self.lease.is_watched() {
            return;
        }
        self.lease.finish_unheard("ferriod closed a doorbell: it ended, or dropped the session");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = self.is_child();
        if let Some(watcher) = &mut self.watcher {
            if child { watcher.forget() } else { watcher.stop() }
        }
        // A child's copy of the socket is closed without a word: the session is the parent's.
        if !child {
            self.lease.close();
        }
    }
}
