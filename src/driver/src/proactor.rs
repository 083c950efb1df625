//! The proactor: one thread, one driver, and whoever waits for answers.
//!
//! The halves of a [`Driver`] speak of slots and numbers; the engine builds its rings on them directly. [`Proactor`] is the
//! face for everybody else in the process: it joins the halves (in [`Shape::One`]) with an
//! [`OpRegistry`], timers, and an [`Injector`] for other threads.
//!
//! | verb | what it does | on the halves |
//! |---|---|---|
//! | [`reserve`](Proactor::reserve) | takes a place for one operation, or says that all are taken | `reserve` |
//! | [`submit`](Proactor::submit), [`submit_vectored`](Proactor::submit_vectored) | hands the operation over, with the resources it owns from now on | the same |
//! | [`submit_background`](Proactor::submit_background) | both, for an operation whose answer nobody waits for | |
//! | [`submit_timer`](Proactor::submit_timer) | an operation that the clock completes | |
//! | [`poll_op`](Proactor::poll_op) | takes result and resources, or leaves a waker | |
//! | [`attach_remote_completer`](Proactor::attach_remote_completer), [`attach_callback`](Proactor::attach_callback), [`detach`](Proactor::detach) | sends the answer elsewhere | |
//! | [`cancel`](Proactor::cancel) | ends a timer; what the kernel has stays | |
//! | [`wait`](Proactor::wait) | commits the batch and sleeps until something may be there | `sleep` |
//! | [`process_completions`](Proactor::process_completions) | runs injected closures, hands answers over, fires timers | `reap`, `release` |
//! | [`injector`](Proactor::injector) | lets other threads run closures here, [`RemoteOp`]s for instance | |
//! | [`register_files`](Proactor::register_files), [`register_regions`](Proactor::register_regions) | what operations name | `register_file`, `register_region` |
//!
//! # The contract
//!
//! * **One thread.** Everything takes `&mut self`; other threads have the injector. A loop is `wait`, then
//!   `process_completions`, for ever; who never sleeps calls [`commit`](Proactor::commit) in place of `wait`.
//! * **Exactly one answer** for each operation that `submit` took, and it is never lost: until somebody takes it, it keeps its
//!   place in the registry.
//! * **Resources stay owned until the answer.** Who gives up waiting (a future that is dropped) calls `detach`, or nothing at
//!   all: buffers are not free before the kernel has answered. Dropping the proactor commits, waits for the kernel up to
//!   [`DriverConfig::drain_limit`] and hands the answers to wakers and remote completers; callbacks are dropped uncalled,
//!   since there is nothing left to call them with. What is then still unanswered is leaked, with an error in the log.
//! * **Backpressure.** Nothing queues without bound: a full driver, registry or injector gives back what it was given.
//! * **Cancel changes nothing in the kernel** ([`Cancel::TooLate`]): a disk request that was started is answered as it ends, and
//!   only then does its buffer come back. Reserved operations are given back with
//!   [`cancel_reserved`](Proactor::cancel_reserved); timers end with `-ECANCELED`.
//! * **Errors are results**, as with the halves. Short transfers are reported as they are.
//! * **Nothing allocates** after [`open`](Proactor::open) but registering, boxed callbacks and closures, and [`RemoteOp`].
//!
//! ```
//! use std::sync::Arc;
//! use std::task::{Context, Poll, Waker};
//!
//! use ferrio_driver::null::Null;
//! use ferrio_driver::proactor::{Proactor, ProactorConfig};
//! use ferrio_driver::{FileIndex, Op, OpKind, RegionIndex, Target};
//!
//! // Operations own a `String` here, in place of a buffer.
//! let mut proactor = Proactor::<Null, String>::open(&ProactorConfig::default())?;
//! let file = proactor.register_files(&[Arc::new(Target::null(1 << 20, 512))])?[0];
//! let flush = Op {
//!     kind: OpKind::Flush, file, region: RegionIndex(0), region_offset: 0, length: 0, offset: 0, fua: false,
//! };
//!
//! // One with a waker ...
//! let reserved = proactor.reserve().expect("a place");
//! let op = proactor.submit(reserved, &flush, "mine".to_owned()).expect("room");
//! let mut cx = Context::from_waker(Waker::noop());
//! assert!(proactor.poll_op(op, &mut cx).is_pending());
//!
//! // ... one with a callback, that submits another ...
//! let reserved = proactor.reserve().expect("a place");
//! let next = proactor.submit(reserved, &flush, "first".to_owned()).expect("room");
//! proactor.attach_callback(next, Box::new(move |proactor, outcome| {
//!     assert_eq!((outcome.result, outcome.resources.as_str()), (0, "first"));
//!     proactor.submit_background(&flush, "second".to_owned()).expect("room");
//! }));
//!
//! // ... and one from another thread.
//! let injector = proactor.injector();
//! let other = std::thread::spawn(move || {
//!     injector.inject(Box::new(move |proactor| {
//!         proactor.submit_background(&flush, "from elsewhere".to_owned()).expect("room");
//!     }))
//! });
//! other.join().expect("no panic").expect("room");
//!
//! while proactor.in_flight() > 0 {
//!     proactor.wait(None)?;
//!     proactor.process_completions();
//! }
//! let Poll::Ready(Some(outcome)) = proactor.poll_op(op, &mut cx) else { panic!("it has ended") };
//! assert_eq!((outcome.result, outcome.resources.as_str()), (0, "mine"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/copy.rs` copies a file, eight pieces at a time.

mod remote;
mod timers;

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ferrio_shm::mapping::Region;

use crate::bell::Bell;
use crate::driver::{
    Busy, Completion, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, Op, Pin, ReapHalf,
    RegionIndex, Reserved, Segment, Shape, SubmitHalf,
};
use crate::injector::{self, Inbox, Injector};
use crate::op_registry::OpRegistry;
use crate::tag::Tag;
use crate::target::Target;
use crate::wait;
use timers::Timers;

pub use crate::op_registry::{Callback, Cancel, OpId, Outcome, RemoteCompleter};
pub use remote::{Lost, RemoteOp};

/// Closures run in one [`process_completions`](Proactor::process_completions) at most: answers are due, too.
const CLOSURES_PER_TURN: usize = 64;

/// What a proactor is opened with.
#[derive(Clone, Debug)]
pub struct ProactorConfig {
    /// The driver; `shape` is not looked at.
    pub driver: DriverConfig,
    /// Operations at a time, in the driver, timers, and those whose answer was not taken; at least 1.
    pub ops_max: u32,
    /// Injected closures that may wait; at least 1.
    pub closures_max: u32,
}

impl Default for ProactorConfig {
    fn default() -> ProactorConfig {
        let driver = DriverConfig::default();
        ProactorConfig { ops_max: 2 * driver.depth, closures_max: 256, driver }
    }
}

/// A place for one operation: hand it to [`Proactor::submit`] or [`Proactor::cancel_reserved`]; dropped otherwise, it is lost.
#[derive(Debug)]
#[must_use = "a reserved operation that is dropped is lost: submit it or cancel it"]
pub struct ReservedOp {
    op: OpId,
    slot: Reserved,
}

impl ReservedOp {
    /// The id that the operation will have.
    pub fn id(&self) -> OpId {
        self.op
    }
}

/// The kernel takes no more now: both come back, for later.
pub struct Full<R> {
    /// The place.
    pub reserved: ReservedOp,
    /// What the operation was to own.
    pub resources: R,
}

impl<R> fmt::Debug for Full<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Full").field("reserved", &self.reserved).finish_non_exhaustive()
    }
}

/// See the [module](self).
pub struct Proactor<D: Driver, R: Send + 'static> {
    /// Dropped before the rest: see `drop`.
    submit: ManuallyDrop<D::Submit>,
    reap: D::Reap,
    registry: OpRegistry<Proactor<D, R>, R>,
    timers: Timers,
    injector: Injector<Proactor<D, R>>,
    inbox: Inbox<Proactor<D, R>>,
    /// The doorbell of the injector.
    bell: Arc<Bell>,
    batch: Vec<Completion>,
    /// Regions are being pinned or unpinned, a part at a time.
    pinning: bool,
    drain_limit: Duration,
}

impl<D: Driver, R: Send + 'static> Proactor<D, R> {
    /// Opens the driver.
    pub fn open(config: &ProactorConfig) -> Result<Proactor<D, R>, DriverError> {
        let driver = DriverConfig { shape: Shape::One, ..config.driver.clone() };
        let (submit, reap) = D::open(&driver)?;
        let setup = |source| DriverError::Setup { backend: D::NAME, what: "eventfd", source };
        let bell = Arc::new(Bell::new().map_err(setup)?);
        let (injector, inbox) = injector::channel(config.closures_max.max(1) as usize, Arc::clone(&bell));
        let ops_max = config.ops_max.max(1);
        Ok(Proactor {
            submit: ManuallyDrop::new(submit),
            reap,
            registry: OpRegistry::new(ops_max),
            timers: Timers::new(ops_max),
            injector,
            inbox,
            bell,
            batch: Vec::with_capacity(driver.depth as usize),
            pinning: false,
            drain_limit: driver.drain_limit,
        })
    }

    // ---- operations

    /// Takes a place for one operation. `None`: driver or registry is full; take answers first.
    pub fn reserve(&mut self) -> Option<ReservedOp> {
        let op = self.registry.reserve()?;
        let Some(slot) = self.submit.reserve() else {
            self.registry.cancel_reserved(op);
            return None;
        };
        Some(ReservedOp { op, slot })
    }

    /// Gives a place back.
    pub fn cancel_reserved(&mut self, reserved: ReservedOp) {
        self.submit.cancel_reserved(reserved.slot);
        self.registry.cancel_reserved(reserved.op);
    }

    /// Starts `request`, which owns `resources` until it is answered. The kernel sees it at the next
    /// [`commit`](Self::commit) or [`wait`](Self::wait), or at once if the batch is full.
    pub fn submit(&mut self, reserved: ReservedOp, request: &Op, resources: R) -> Result<OpId, Full<R>> {
        self.start(reserved, resources, |driver, slot, user| driver.submit(slot, user, request))
    }

    /// As [`submit`](Self::submit), for a read or write over several pieces of memory.
    pub fn submit_vectored(
        &mut self,
        reserved: ReservedOp,
        request: &Op,
        segments: &[Segment],
        resources: R,
    ) -> Result<OpId, Full<R>> {
        let submit =
            |driver: &mut D::Submit, slot, user| driver.submit_vectored(slot, user, request, segments);
        self.start(reserved, resources, submit)
    }

    fn start(
        &mut self,
        reserved: ReservedOp,
        resources: R,
        submit: impl Fn(&mut D::Submit, Reserved, u32) -> Result<Tag, Reserved>,
    ) -> Result<OpId, Full<R>> {
        let ReservedOp { op, slot } = reserved;
        let submitted = submit(&mut self.submit, slot, op.index()).or_else(|slot| {
            // An error shows again, and better, in `commit` and `wait`.
            let _ = self.submit.commit();
            submit(&mut self.submit, slot, op.index())
        });
        if let Err(slot) = submitted {
            return Err(Full { reserved: ReservedOp { op, slot }, resources });
        }
        let started = self.registry.start(op, resources);
        debug_assert!(started.is_ok(), "a reserved place belongs to one operation");
        Ok(op)
    }

    /// Starts `request` if there is a place. Nobody gets its result; `resources` are dropped with its answer.
    pub fn submit_background(&mut self, request: &Op, resources: R) -> Result<(), R> {
        let Some(reserved) = self.reserve() else { return Err(resources) };
        match self.submit(reserved, request, resources) {
            Ok(op) => {
                self.detach(op);
                Ok(())
            }
            Err(Full { reserved, resources }) => {
                self.cancel_reserved(reserved);
                Err(resources)
            }
        }
    }

    /// An operation that ends at `at` with 0. The resources come back if the registry is full.
    pub fn submit_timer(&mut self, at: Instant, resources: R) -> Result<OpId, R> {
        let Some(op) = self.registry.reserve() else { return Err(resources) };
        self.registry.start_timer(op, resources)?;
        let registry = &mut self.registry;
        self.timers.set(at, op, |op| registry.is_timer(op));
        Ok(op)
    }

    /// Takes the answer of `op`, or wakes `cx` when it is there. `Ready(None)`: it was taken already, or goes elsewhere.
    pub fn poll_op(&mut self, op: OpId, cx: &mut Context<'_>) -> Poll<Option<Outcome<R>>> {
        self.registry.poll(op, cx)
    }

    /// Sends the answer of `op` to `completer`, at once if it is there.
    pub fn attach_remote_completer(&mut self, op: OpId, completer: Arc<dyn RemoteCompleter<R>>) {
        let delivery = self.registry.attach_remote(op, completer);
        delivery.into_iter().for_each(|delivery| delivery.hand_over(self));
    }

    /// Calls `callback` with the answer of `op`, at once if it is there.
    pub fn attach_callback(&mut self, op: OpId, callback: Callback<Proactor<D, R>, R>) {
        let delivery = self.registry.attach_callback(op, callback);
        delivery.into_iter().for_each(|delivery| delivery.hand_over(self));
    }

    /// Nobody waits for `op` any more. Its resources are dropped when it is answered, not before.
    pub fn detach(&mut self, op: OpId) {
        let delivery = self.registry.detach(op);
        delivery.into_iter().for_each(|delivery| delivery.hand_over(self));
    }

    /// Ends `op` if it is a timer. Its answer goes its usual way.
    pub fn cancel(&mut self, op: OpId) -> Cancel {
        let outcome = self.registry.cancellable(op);
        if outcome == Cancel::Cancelled {
            let delivery = self.registry.complete_timer(op, -libc::ECANCELED);
            delivery.into_iter().for_each(|delivery| delivery.hand_over(self));
        }
        outcome
    }

    /// Operations that the driver has and that are not answered.
    pub fn in_flight(&self) -> u32 {
        self.registry.in_flight()
    }

    // ---- the loop

    /// Gives the batch to the kernel and says how many requests it took.
    pub fn commit(&mut self) -> io::Result<u32> {
        self.submit.commit()
    }

    /// Commits, and sleeps until answers may be there, a closure was injected, a timer is due or `timeout` has passed. Returns
    /// early at will.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = match self.timers.next() {
            Some(due) => wait::at_most(timeout, due.saturating_duration_since(Instant::now())),
            None => timeout,
        };
        self.bell.announce();
        let slept = if self.pinning || !self.inbox.is_empty() {
            self.submit.commit().map(drop)
        } else {
            self.submit.sleep(self.bell.as_fd(), timeout)
        };
        self.bell.withdraw();
        self.bell.drain();
        slept
    }

    /// Runs injected closures, hands the answers over that are there, fires timers; says how many of all of these. Never
    /// sleeps. Goes on with pinning regions, too.
    pub fn process_completions(&mut self) -> usize {
        self.pinning = self.submit.continue_pinning();
        self.run_closures() + self.take_answers() + self.fire_timers()
    }

    fn run_closures(&mut self) -> usize {
        let mut ran = 0;
        while ran < CLOSURES_PER_TURN {
            let Some(closure) = self.inbox.take() else { break };
            closure(self);
            ran += 1;
        }
        ran
    }

    fn take_answers(&mut self) -> usize {
        // A callback that gets here again finds no room, and leaves its turn to this one.
        let mut batch = std::mem::take(&mut self.batch);
        let answers = self.reap.reap(&mut batch);
        for Completion { tag, user, result } in batch.drain(..) {
            self.submit.release(tag);
            if let Some(delivery) = self.registry.complete(user, result) {
                delivery.hand_over(self);
            }
        }
        self.batch = batch;
        answers
    }

    fn fire_timers(&mut self) -> usize {
        let mut fired = 0;
        while let Some(op) = self.timers.take_due(Instant::now) {
            fired += 1;
            if let Some(delivery) = self.registry.complete_timer(op, 0) {
                delivery.hand_over(self);
            }
        }
        fired
    }

    /// For other threads.
    pub fn injector(&self) -> Injector<Proactor<D, R>> {
        self.injector.clone()
    }

    // ---- what operations name

    /// Makes targets usable in [`Op::file`]: all of them, or none.
    pub fn register_files(&mut self, targets: &[Arc<Target>]) -> Result<Vec<FileIndex>, DriverError> {
        let mut files = Vec::with_capacity(targets.len());
        for target in targets {
            match self.submit.register_file(Arc::clone(target)) {
                Ok(file) => files.push(file),
                Err(error) => {
                    // Nothing used them yet.
                    for file in files {
                        let _ = self.submit.unregister_file(file);
                    }
                    return Err(error);
                }
            }
        }
        Ok(files)
    }

    /// Forgets a file.
    pub fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        self.submit.unregister_file(file)
    }

    /// Makes memory usable in [`Op::region`]: all of it, or none.
    pub fn register_regions(
        &mut self,
        regions: &[Region],
        pin: Pin,
    ) -> Result<Vec<RegionIndex>, DriverError> {
        let mut indices = Vec::with_capacity(regions.len());
        for region in regions {
            match self.submit.register_region(region.clone(), pin) {
                Ok(index) => {
                    self.pinning = true;
                    indices.push(index);
                }
                Err(error) => {
                    for index in indices {
                        let _ = self.submit.unregister_region(index);
                    }
                    return Err(error);
                }
            }
        }
        Ok(indices)
    }

    /// Forgets a region.
    pub fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy> {
        self.pinning = true;
        self.submit.unregister_region(region)
    }

    /// The half that submits, for what only it can do: describe the driver, set faults. Slots that are reserved or submitted
    /// there are not the registry's.
    pub fn driver(&mut self) -> &mut D::Submit {
        &mut self.submit
    }

    /// What the driver is and what fell short.
    pub fn info(&self) -> DriverInfo {
        self.submit.info()
    }
}

impl<D: Driver, R: Send + 'static> Drop for Proactor<D, R> {
    fn drop(&mut self) {
        let deadline = Instant::now() + self.drain_limit;
        // Without the submit half nothing is given to the kernel any more, so what is staged goes first.
        while self.submit.commit().is_ok() && self.submit.staged() > 0 && Instant::now() < deadline {
            std::thread::sleep(wait::RETRY);
        }
        let never_seen = self.submit.staged();
        // SAFETY: this is the only place that drops it, and nothing uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.submit) };
        while self.registry.in_flight() > never_seen && Instant::now() < deadline {
            if self.reap.reap(&mut self.batch) == 0 {
                std::thread::sleep(wait::RETRY);
            }
            for Completion { user, result, .. } in self.batch.drain(..) {
                if let Some(delivery) = self.registry.complete(user, result) {
                    delivery.hand_over_last();
                }
            }
        }
        if self.registry.in_flight() > 0 {
            let leaked = self.registry.leak_in_flight();
            tracing::error!(leaked, waited = ?self.drain_limit, "not answered: the resources of operations are leaked");
        }
    }
}

impl<D: Driver, R: Send + 'static> fmt::Debug for Proactor<D, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proactor")
            .field("driver", &D::NAME)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
