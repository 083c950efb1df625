//! The proactor contract: what a backend is, who may call what, and what "in flight" means.
//!
//! A backend hands requests to the kernel and hands back *completions*, not readiness. It comes in two
//! halves, each owned by one thread at a time through `&mut self`:
//!
//! * [`SubmitHalf`]: reserves slots, submits, releases; owns the registered files and regions.
//! * [`ReapHalf`]: takes completions. Cheap to call, never blocks.
//!
//! # The states of a slot
//!
//! ```text
//!            reserve              submit                commit              kernel
//!   free ------------> reserved ----------> staged ------------> in kernel ---------+
//!    ^                    |    <---------- Err(slot): batch full,                   |
//!    |  cancel_reserved   |                commit first                             v
//!    +--------------------+        injected (invalid op, nop, null target) ----> answered
//!    |                                                                              | reap
//!    |                                  release                                     v
//!    +------------------------------------------------------------------------- completed
//! ```
//!
//! *In flight*, as [`SubmitHalf::in_flight`] counts it, is every slot that is not free. The depth of the
//! driver bounds it; the completion queue of the kernel is at least twice as deep, so it never overflows.
//!
//! From `submit` to `release` the file and the region of the request are pinned: unregistering them is
//! refused with [`Busy`]. The memory of a region stays mapped and the file open until then, even when
//! the halves are dropped: the last half to go waits for the kernel ([`DriverConfig::drain_limit`]), and
//! if the kernel does not answer it *leaks* files, regions and ring, with an error in the log, because
//! closing a ring does not stop started I/O and freed memory would be written.
//!
//! # One path for errors
//!
//! A request that `submit` took is answered by exactly one [`Completion`]. An operation the driver
//! refuses (unknown file: `-EBADF`, unknown region: `-ENXIO`, range outside the region: `-EFAULT`, more
//! than [`LENGTH_MAX`] bytes, segments that are none, too many or not the length in sum: `-EINVAL`, what the target
//! cannot do: `-EOPNOTSUPP`, see [`Target::capabilities`]) and one the kernel refuses both become completions with their
//! errno. `Err` from `submit` only ever means "commit first", and gives the slot back. Short transfers
//! are reported as they are; resubmitting the rest is the business of the engine, as are offsets,
//! lengths and alignment: for any `Op` whatever the driver is memory safe, not helpful.
//!
//! A completion whose generation does not fit its slot is counted ([`ReapHalf::stale`]) and dropped.
//!
//! # What would block
//!
//! No thread that calls a half sleeps in a system call on the disk. What a backend cannot do without goes to a bounded
//! pool of helper threads ([`DriverConfig::helpers`]), of which no target keeps the last: the request is staged,
//! committed, answered through the reap half, which wakes for it as for any other, and is waited for when the halves
//! are dropped. Registering, [`Target::open`] and [`Target::resize`] may block.
//!
//! # The two shapes
//!
//! [`Shape::One`]: one thread owns both halves, and [`SubmitHalf::sleep`] wakes on completions too. With
//! io_uring it sleeps inside `io_uring_enter`, the doorbells armed in the same ring: one system call, one
//! wake-up.
//!
//! [`Shape::Two`]: the reap half belongs to another thread, which sleeps on
//! [`ReapHalf::completion_fd`]. io_uring finishes a request in the task that *submitted* it, so this second
//! thread does not take that work off the first, it only adds a wake-up; AIO has no such tie. Two threads
//! on one ring also exclude `IORING_SETUP_SINGLE_ISSUER | DEFER_TASKRUN`, and `COOP_TASKRUN`, which holds
//! completions back while the submitter spins in user space. That is the trade: `One` is the default for
//! io_uring, `Two` pays where posting completions is dear (many clients, AIO).
//!
//! The halves may be created on one thread and used on another; each side must then stay with one thread
//! at a time, which `&mut self` and `Send` express. In `Shape::One` both halves move together.
//!
//! Nothing allocates after [`Driver::open`] except registering and [`SubmitHalf::info`]. Starting the helper threads is
//! part of registering the first file that may need them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::mapping::Region;

use crate::fault::{FaultError, FaultPlan, FaultStatus};
use crate::tag::Tag;
use crate::target::Target;

/// Bytes of one request at most; so that byte counts and negative errnos never meet in an `i32`.
pub const LENGTH_MAX: u32 = 1 << 30;

/// Pieces of memory of one vectored request at most: `ferrio_shm::abi::IOV_MAX`.
pub const SEGMENTS_MAX: usize = 256;

/// Vectored requests in flight at most, where the depth allows as many: each has a block for its iovec, all of which
/// are there from the start.
pub const VECTORED_MAX: u32 = 256;

/// Requests in flight at most: what the completion queue of io_uring can hold twice.
pub const DEPTH_MAX: u32 = 16384;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Nothing; completes with 0 without a system call.
    Nop,
    /// File to region.
    Read,
    /// Region to file.
    Write,
    /// What was written and completed before is on stable storage (`fdatasync`).
    Flush,
    /// The range has undefined content afterwards, and its space may be given back.
    Discard,
    /// The range reads as zeros afterwards.
    WriteZeroes,
}

impl OpKind {
    /// Works on a range of the file and moves no data: `Discard`, `WriteZeroes`.
    pub const fn is_range(self) -> bool {
        matches!(self, OpKind::Discard | OpKind::WriteZeroes)
    }
}

/// One request. Plain data: any value is memory safe.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// What to do.
    pub kind: OpKind,
    /// Registered file; not looked at for `Nop`.
    pub file: FileIndex,
    /// Registered region; looked at for `Read` and `Write` only, unless they are vectored.
    pub region: RegionIndex,
    /// Where in the region the data is, in bytes.
    pub region_offset: u64,
    /// Bytes to transfer, discard or zero, at most [`LENGTH_MAX`].
    pub length: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// `Write` only: on stable storage before it completes (`RWF_DSYNC`).
    pub fua: bool,
}

impl Op {
    /// Does nothing, and names nothing.
    pub const NOP: Op = Op {
        kind: OpKind::Nop,
        file: FileIndex(0),
        region: RegionIndex(0),
        region_offset: 0,
        length: 0,
        offset: 0,
        fua: false,
    };

    /// Where in the file it ends, in bytes; of offsets and lengths that are within a file.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length as u64)
    }
}

/// One piece of the memory of a vectored request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Registered region.
    pub region: RegionIndex,
    /// Where in the region the piece begins, in bytes.
    pub offset: u64,
    /// Bytes of the piece.
    pub length: u32,
}

/// Whether a region's pages shall be pinned where the backend gains by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Memory that much data goes through.
    Yes,
    /// Memory that is touched seldom, or shall come into being page by page.
    No,
}

/// A file registered with [`SubmitHalf::register_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIndex(pub u32);

/// A region registered with [`SubmitHalf::register_region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionIndex(pub u32);

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, to be released once the answer was handled.
    pub tag: Tag,
    /// The word given to `submit`.
    pub user: u32,
    /// Bytes transferred (0 for what transfers none), or a negative errno.
    pub result: i32,
}

/// Who reaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The submitting thread reaps, and sleeps inside the driver.
    One,
    /// Another thread reaps.
    Two,
}

/// What a driver is opened with.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// Requests in flight at most, 1 ..= [`DEPTH_MAX`].
    pub depth: u32,
    /// Who reaps.
    pub shape: Shape,
    /// Files registered at most.
    pub files_max: u32,
    /// Regions registered at most.
    pub regions_max: u32,
    /// Threads of the helper pool that all targets share, at least 1, for what the backend cannot do without blocking. They
    /// are started when the first target that may need them is registered. One that does not answer may keep them all: then
    /// each other target has one thread of its own beyond these.
    pub helpers: u32,
    /// How long the last half to be dropped waits for the kernel before it leaks what is in flight.
    pub drain_limit: Duration,
}

impl Default for DriverConfig {
    fn default() -> DriverConfig {
        DriverConfig {
            depth: 128,
            shape: Shape::One,
            files_max: 64,
            regions_max: 1024,
            helpers: 4,
            drain_limit: Duration::from_secs(10),
        }
    }
}

impl DriverConfig {
    pub(crate) fn check(&self) -> Result<(), DriverError> {
        if self.depth == 0 || self.depth > DEPTH_MAX {
            return Err(DriverError::Depth { depth: self.depth });
        }
        Ok(())
    }
}

/// What a driver turned out to be, for people. Modes that were asked for and are not in effect stand in
/// `degraded`, each with limit, need and fix; nothing falls short silently.
#[derive(Clone, Debug, Default)]
pub struct DriverInfo {
    /// Name of the backend.
    pub backend: &'static str,
    /// What is in effect.
    pub modes: Vec<String>,
    /// What fell short, and what to do about it.
    pub degraded: Vec<String>,
}

/// Why a driver, file or region could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The depth is out of range.
    #[error("depth {depth} is not within 1 and {DEPTH_MAX}: lower the depth, or use more engines")]
    Depth {
        /// What was asked for.
        depth: u32,
    },
    /// The backend cannot run here.
    #[error("{backend} cannot be used here: {reason}")]
    Unavailable {
        /// Name of the backend.
        backend: &'static str,
        /// Cause and fix.
        reason: String,
    },
    /// A call of the set-up failed.
    #[error("{backend}: {what} failed")]
    Setup {
        /// Name of the backend.
        backend: &'static str,
        /// The call.
        what: &'static str,
        /// Its errno.
        #[source]
        source: io::Error,
    },
    /// The file table is full.
    #[error("all {max} files of this driver are registered: raise files_max, or use another engine")]
    FilesFull {
        /// The limit.
        max: u32,
    },
    /// The region table is full.
    #[error("all {max} regions of this driver are registered: raise regions_max, or use another engine")]
    RegionsFull {
        /// The limit.
        max: u32,
    },
}

/// The file or region still has requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} requests in flight: release them first")]
pub struct Busy {
    /// Requests not yet released.
    pub in_flight: u32,
}

/// A free slot taken for one request: hand it to [`SubmitHalf::submit`] or
/// [`SubmitHalf::cancel_reserved`]; dropped otherwise, it is lost to the driver.
#[derive(Debug)]
#[must_use = "a reserved slot that is dropped is lost: submit it or cancel it"]
pub struct Reserved(pub(crate) Tag);

impl Reserved {
    /// The tag the request will have.
    pub fn tag(&self) -> Tag {
        self.0
    }
}

/// A backend: how to open its two halves. Chosen once; the loops are monomorphised over it.
pub trait Driver: 'static {
    /// Name for people and configuration.
    const NAME: &'static str;
    /// The half that submits.
    type Submit: SubmitHalf;
    /// The half that reaps.
    type Reap: ReapHalf;
    /// Opens both halves.
    fn open(config: &DriverConfig) -> Result<(Self::Submit, Self::Reap), DriverError>;
}

/// The half of the thread that submits.
pub trait SubmitHalf: Send + 'static {
    /// Takes a free slot. `None`: `depth` slots are not free.
    fn reserve(&mut self) -> Option<Reserved>;

    /// Stages a request; the kernel sees it at the next [`commit`](Self::commit). `user` comes back with
    /// the completion. `Err` gives the slot back: the batch is full, commit first.
    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved>;

    /// Stages a `Read` or `Write` over several pieces of memory, in their order: [`Op::length`] is their sum, the op's own
    /// region is not looked at. The segments are copied before it returns. `Err` gives the slot back: the batch is
    /// full, commit first, or [`VECTORED_MAX`] of them are in flight, release one first.
    fn submit_vectored(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<Tag, Reserved>;

    /// Gives the batch to the kernel, in order, in one system call, and says how many requests the kernel
    /// took. EINTR is retried. EAGAIN and EBUSY keep what the kernel did not take for the next commit:
    /// `staged` says how many. A request that the kernel refuses becomes a completion.
    fn commit(&mut self) -> io::Result<u32>;

    /// Requests submitted but not yet taken by the kernel.
    fn staged(&self) -> u32;

    /// Slots that are not free: reserved, staged, in the kernel, and completed but not released.
    fn in_flight(&self) -> u32;

    /// Frees the slot of a reaped completion and unpins its file and region. A tag that was not reaped or
    /// was already released is ignored: the kernel may still hold its memory.
    fn release(&mut self, tag: Tag);

    /// Frees a slot that was reserved in vain.
    fn cancel_reserved(&mut self, slot: Reserved);

    /// Makes a target usable in [`Op::file`]. The driver keeps it open until it is unregistered.
    fn register_file(&mut self, target: Arc<Target>) -> Result<FileIndex, DriverError>;

    /// Forgets a file. An index that is not registered is fine.
    fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy>;

    /// Makes a region usable in [`Op::region`] at once. With [`Pin::Yes`] its pages are pinned where the backend gains by it,
    /// by [`continue_pinning`](Self::continue_pinning). Pinning that fails is not an error: the region works unpinned and
    /// [`info`](Self::info) says so.
    fn register_region(&mut self, region: Region, pin: Pin) -> Result<RegionIndex, DriverError>;

    /// Pins the next part of the registered regions, or unpins the next part of those unregistered, and says whether
    /// more is left to do. Bounded: the thread is away for milliseconds. Call it between batches, until it says
    /// `false`; costs a load when there is nothing to do.
    fn continue_pinning(&mut self) -> bool;

    /// Forgets a region and unpins its pages. An index that is not registered is fine.
    fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy>;

    /// Commits what is staged and sleeps until `doorbells` is readable, `timeout` has passed, or, in
    /// [`Shape::One`], completions may be there. `doorbells` is level-triggered (an epoll descriptor) and the
    /// same one on every call of a driver's life. Returns early at will: look again, and call again. With
    /// io_uring in `Shape::One` batch and sleep are one system call: do not commit just before.
    fn sleep(&mut self, doorbells: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()>;

    /// What the driver is and what fell short.
    fn info(&self) -> DriverInfo;

    /// Sets the faults of a file in place of those it had; a plan without rules clears them. Requests that the rules
    /// before held go to the kernel with the next commit. Only [`Fault`](crate::fault) can do it.
    fn set_faults(&mut self, file: FileIndex, plan: FaultPlan) -> Result<(), FaultError> {
        let _ = (file, plan);
        Err(FaultError::Unsupported)
    }

    /// The faults of a file; `None` if it has none.
    fn faults(&self, file: FileIndex) -> Option<FaultStatus> {
        let _ = file;
        None
    }
}

/// The half of the thread that reaps.
pub trait ReapHalf: Send + 'static {
    /// Appends completions to `out`, at most up to its capacity, and says how many. Never blocks.
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize;

    /// In [`Shape::Two`]: readable once completions may be there after
    /// [`prepare_sleep`](Self::prepare_sleep) said `true`. `None` in `Shape::One`, where
    /// [`SubmitHalf::sleep`] sees completions.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Announces that the caller is about to sleep on [`completion_fd`](Self::completion_fd). `false`: completions
    /// may be there already, reap instead. After `true`, call [`woke`](Self::woke) before reaping.
    fn prepare_sleep(&mut self) -> bool;

    /// Takes the announcement back and makes the descriptor unreadable again.
    fn woke(&mut self);

    /// Completions that belonged to no request in flight: counted, never believed.
    fn stale(&self) -> u64;
}
