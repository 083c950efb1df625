//! Memory that the client adds to its session beside the arena.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrio_shm::abi::{errno, limits};
use ferrio_shm::arena::{AllocError, Arena};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::lease::LeaseMessage;
use ferrio_shm::mapping::{self, Mapping, check_memfd, create_memfd};
use ferrio_shm::peer::FDS_MAX;

use crate::errno::Errno;
use crate::lease::Answer;
use crate::memory::Span;
use crate::session::Inner;
use crate::{Buffer, Error, Features, Session};

/// Greatest index.
const INDEX_MAX: u16 = (limits::REGIONS_MAX - 1) as u16;

/// Those that can be shown together when the session is re-attached: one message has the session memory, too.
const RESUMED_MAX: u16 = (FDS_MAX - 1) as u16;

/// Those of a session by index.
pub(crate) type Regions = BTreeMap<u16, Added>;

/// A region, as its session knows it.
pub(crate) struct Added {
    /// Length of what requests may name. Bytes.
    bytes: u64,
    /// What is shown again when the session is re-attached; only in sessions that are.
    memory: Option<Arc<OwnedFd>>,
    /// The daemon was asked to add or remove it and has not answered.
    in_doubt: bool,
}

/// Takes the lock, which is never held while anyone waits.
pub(crate) fn lock(regions: &Mutex<Regions>) -> MutexGuard<'_, Regions> {
    regions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of the regions by ascending index, with those in doubt or without.
pub(crate) fn memory(regions: &Regions, in_doubt: bool) -> Vec<Arc<OwnedFd>> {
    let shown = regions.values().filter(|region| in_doubt || !region.in_doubt);
    shown.filter_map(|region| region.memory.clone()).collect()
}

/// A region of the session, until [`Session::remove_region`]. Dropped, it stays with the session to its end.
#[derive(Debug)]
pub struct Region(Arc<Brought>);

/// What a region and its spans share.
#[derive(Debug)]
pub(crate) struct Brought {
    pub index: u16,
    pub guard: ForkGuard,
    bytes: u64,
    /// For memory that nobody but the library reaches.
    arena: Option<Arena>,
}

/// A region that was not removed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RegionFailure {
    /// Why.
    pub error: Error,
    /// The region, as it was.
    pub region: Region,
}

impl Region {
    /// Index in the session: the `region` field of an SQE.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.0.index
    }

    /// Length. Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Takes a buffer from a region of [`Session::create_region`]. It starts at a multiple of 4096.
    ///
    /// # Errors
    /// [`Error::NoBuffers`] for a region that the caller brought: use [`span`](Self::span).
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, Error> {
        let arena = self.0.arena.as_ref().ok_or(Error::NoBuffers { index: self.0.index })?;
        Ok(arena.alloc(bytes)?)
    }

    /// Names bytes of a region that the caller brought, for a request.
    ///
    /// # Errors
    /// [`Error::NoSpan`] outside of the region, or in one of [`Session::create_region`]: use [`alloc`](Self::alloc).
    pub fn span(&self, range: Range<u64>) -> Result<Span, Error> {
        if self.0.arena.is_some() || range.start > range.end || range.end > self.0.bytes {
            return Err(Error::NoSpan { index: self.0.index, start: range.start, end: range.end });
        }
        Ok(Span { region: Arc::clone(&self.0), range })
    }
}

impl Session {
    /// Adds `bytes` of new memory to the session, for buffers beside those of the arena. Bytes, rounded up to a multiple
    /// of 4096.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the daemon does not grant [`Features::CLIENT_REGIONS`], [`Error::Region`] with its
    /// words otherwise.
    pub fn create_region(&self, bytes: u64) -> Result<Region, Error> {
        self.inner().check_fork()?;
        let bytes = bytes.checked_next_multiple_of(4096).unwrap_or(bytes);
        if bytes == 0 {
            return Err(AllocError::ZeroLength.into());
        }
        let length = usize::try_from(bytes).map_err(io::Error::other).map_err(Error::io("map the region"))?;
        let memory = create_memfd("ferrio-region", bytes).map_err(Error::io("make memory for a region"))?;
        let guard = self.inner().fork_guard();
        let mapping = Mapping::new_client(memory.as_fd(), length, guard);
        let mapping = Arc::new(mapping.map_err(Error::io("map the region"))?);
        self.add(memory.as_fd(), bytes, |index| {
            let whole = mapping::Region::new(mapping, 0, bytes).expect("all of the mapping is inside of it");
            Ok(Some(Arena::new(index, whole, guard.clone())?))
        })
    }

    /// Adds the first `bytes` of a memfd that the caller made and reaches itself, such as a database's buffer pool.
    /// It needs the seal `F_SEAL_SHRINK`, no write seals, and normal pages.
    ///
    /// # Errors
    /// [`Error::Unfit`] says what is wrong with the memfd; otherwise as [`create_region`](Self::create_region).
    pub fn add_region(&self, memfd: BorrowedFd<'_>, bytes: u64) -> Result<Region, Error> {
        self.inner().check_fork()?;
        check_memfd(memfd, bytes).map_err(|why| Error::Unfit { why })?;
        self.add(memfd, bytes, |_| Ok(None))
    }

    fn add(
        &self,
        memfd: BorrowedFd<'_>,
        bytes: u64,
        arena: impl FnOnce(u16) -> Result<Option<Arena>, Error>,
    ) -> Result<Region, Error> {
        let inner = self.inner();
        inner.check_features(Features::CLIENT_REGIONS)?;
        let _asking = inner.asking();
        let index = {
            let regions = inner.regions();
            let max = if inner.lease.is_watched() { RESUMED_MAX } else { INDEX_MAX };
            let free = (1..=INDEX_MAX).find(|index| !regions.contains_key(index));
            free.filter(|_| regions.len() < max.into()).ok_or(Error::RegionsFull { max })?
        };
        let arena = arena(index)?;
        let memory = if inner.lease.is_watched() {
            let memory = memfd.try_clone_to_owned();
            Some(Arc::new(memory.map_err(Error::io("keep the region's memory for a restart of ferriod"))?))
        } else {
            None
        };
        // Shown from now on: a daemon that ends before it answers may have added it. None of it can be named yet.
        inner.regions().insert(index, Added { bytes: 0, memory, in_doubt: true });
        match inner.ask("add", index, errno::EBUSY, &LeaseMessage::RegionAdd { index, bytes }, &[memfd]) {
            Ok(()) => {}
            // The daemon may still add it: the index is not to be used again.
            Err(error @ Error::NoAnswer { .. }) => return Err(error),
            Err(error) => {
                inner.regions().remove(&index);
                return Err(error);
            }
        }
        if let Some(added) = inner.regions().get_mut(&index) {
            (added.bytes, added.in_doubt) = (bytes, false);
        }
        Ok(Region(Arc::new(Brought { index, bytes, arena, guard: inner.fork_guard().clone() })))
    }

    /// Takes a region back: the daemon does not touch its memory any more.
    ///
    /// # Errors
    /// With the region, while its buffers or spans, or requests with them, are still there.
    pub fn remove_region(&self, region: Region) -> Result<(), Box<RegionFailure>> {
        self.remove(&region).map_err(|error| Box::new(RegionFailure { error, region }))
    }

    fn remove(&self, region: &Region) -> Result<(), Error> {
        let inner = self.inner();
        inner.check_fork()?;
        if !region.0.guard.is_same(inner.fork_guard()) {
            return Err(Error::Foreign { what: "region" });
        }
        let index = region.0.index;
        // Nobody can make another buffer or span meanwhile: the caller gave the region away.
        if Arc::strong_count(&region.0) > 1 || region.0.arena.as_ref().is_some_and(|arena| arena.used() > 0) {
            return Err(Error::RegionInUse { index });
        }
        let _asking = inner.asking();
        let in_doubt = |in_doubt| {
            if let Some(region) = inner.regions().get_mut(&index) {
                region.in_doubt = in_doubt;
            }
        };
        in_doubt(true);
        let removed = inner.ask("remove", index, errno::ENXIO, &LeaseMessage::RegionRemove { index }, &[]);
        match removed {
            Ok(()) => drop(inner.regions().remove(&index)),
            Err(Error::Region { .. }) => in_doubt(false),
            Err(_) => {}
        }
        removed
    }
}

impl Inner {
    fn regions(&self) -> MutexGuard<'_, Regions> {
        lock(&self.regions)
    }

    /// Held while the daemon is asked about a region: one question at a time.
    fn asking(&self) -> MutexGuard<'_, ()> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes up to `end` lie in a region of the session: there the daemon may write if it is asked to.
    pub(crate) fn reaches(&self, region: u16, end: u64) -> bool {
        let added = || self.regions().get(&region).map(|added| added.bytes);
        let bytes = if region == 0 { Some(self.arena_bytes) } else { added() };
        bytes.is_some_and(|bytes| end <= bytes)
    }

    /// Asks over the lease. `done` is the errno of a daemon that finds it done already: by the one before it.
    fn ask(
        &self,
        verb: &'static str,
        index: u16,
        done: i32,
        message: &LeaseMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        match self.lease.ask(index, message, fds)? {
            Answer { errno: 0, .. } => Ok(()),
            Answer { errno, repeated: true } if errno == done => Ok(()),
            Answer { errno, .. } => Err(Error::Region { verb, index, errno: Errno(errno) }),
        }
    }
}
