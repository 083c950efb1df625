//! Memory that the client adds to its session beside the arena.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, MutexGuard, PoisonError};

use ferrio_shm::abi::limits;
use ferrio_shm::arena::{AllocError, Arena};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::lease::LeaseMessage;
use ferrio_shm::mapping::{self, Mapping, check_memfd, create_memfd};

use crate::errno::Errno;
use crate::memory::Span;
use crate::session::Inner;
use crate::{Buffer, Error, Features, Session};

/// Greatest index.
const INDEX_MAX: u16 = (limits::REGIONS_MAX - 1) as u16;

/// Lengths of regions by index, in a session.
pub(crate) type Regions = BTreeMap<u16, u64>;

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
        let mut regions = inner.regions();
        let index = (1..=INDEX_MAX).find(|index| !regions.contains_key(index));
        let index = index.ok_or(Error::RegionsFull { max: INDEX_MAX })?;
        let arena = arena(index)?;
        let added = inner.ask("add", index, &LeaseMessage::RegionAdd { index, bytes }, &[memfd]);
        if let Err(Error::NoAnswer { .. }) = added {
            // The daemon may still add it: the index is not to be used again.
            regions.insert(index, 0);
        }
        added?;
        regions.insert(index, bytes);
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
        let mut regions = inner.regions();
        inner.ask("remove", index, &LeaseMessage::RegionRemove { index }, &[])?;
        regions.remove(&index);
        Ok(())
    }
}

impl Inner {
    fn regions(&self) -> MutexGuard<'_, Regions> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes up to `end` lie in a region of the session: there the daemon may write if it is asked to.
    pub(crate) fn reaches(&self, region: u16, end: u64) -> bool {
        let bytes = if region == 0 { Some(self.arena_bytes) } else { self.regions().get(&region).copied() };
        bytes.is_some_and(|bytes| end <= bytes)
    }

    /// Asks over the lease. The caller holds the lock of the regions: one question at a time.
    fn ask(
        &self,
        verb: &'static str,
        index: u16,
        message: &LeaseMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let listen = || self.listen();
        match self.lease.ask(index, message, fds, listen)? {
            0 => Ok(()),
            errno => Err(Error::Region { verb, index, errno: Errno(errno) }),
        }
    }
}
