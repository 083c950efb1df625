//! The engine in a process: no daemon, no client, no socket.
//!
//! | part | where | what it is |
//! |---|---|---|
//! | context | [`IoContext`], made by [`IoContextBuilder`] | a session that never leaves the process, on an engine of its own or on any other |
//! | event | [`IoEvent`]: read, write, readv, writev, flush, discard, write-zeroes, compare-and-write, cancel | an operation, the memory that it owns, and who is called |
//! | memory | [`IoBuffer`] of [`IoContext::buffer`], [`IoList`] of [`IoContext::list`] | the arena of the session: aligned, registered, no copy |
//! | channel | [`Channel`]: prio, read, write | a queue of the session, with `depth` places; full gives the event back |
//! | callback | [`IoCallback`], closures | gets the [`IoCompletion`], with the memory, once |
//! | callback workers | [`IoWorkers`], for any number of contexts | threads that run callbacks |
//! | future | [`IoFuture`] of [`IoContext::request`], [`IoContext::execute`] | the completion on any executor |
//!
//! What follows an event's submission is the way of every request ([the table](crate)): its ring is a ring like those of
//! clients, so that classes, weights, limits, journal and counters are the same, and hold across the contexts and
//! ring sessions that share an engine. Before and after that stand two short stages:
//!
//! ```text
//!  any thread: submit -> `lane`: place + SQ ring -> engine, stages 2 to 10 -> CQ ring -> `reaper` -> workers: callback
//!                                                                                             \-> future: waker
//! ```
//!
//! ```
//! use std::sync::{Arc, mpsc};
//!
//! use ferrio_driver::Target;
//! use ferrio_engine::context::{Channel, IoCompletion, IoContextBuilder, IoEvent, IoWorkers};
//!
//! let workers = IoWorkers::new(1)?;
//! let mut builder = IoContextBuilder::new().depth(32);
//! // A file or block device in life: `Target::open`.
//! let volume = builder.volume(Arc::new(Target::memory(1 << 20)?));
//! let context = builder.start(&workers)?;
//!
//! let mut buffer = context.buffer(4096)?;
//! buffer.fill(7);
//! let (sender, receiver) = mpsc::channel();
//! let event = IoEvent::write(volume, 8192, buffer)
//!     .callback(move |completion: IoCompletion| sender.send(completion).unwrap());
//! context.submit(event, Channel::Write)?;
//! let buffer = receiver.recv()?.into_buffer()?.expect("a write has a buffer");
//!
//! // Or awaited, on any executor.
//! # struct Unpark(std::thread::Thread);
//! # impl std::task::Wake for Unpark {
//! #     fn wake(self: Arc<Self>) { self.0.unpark() }
//! # }
//! # fn block_on<T>(future: impl Future<Output = T>) -> T {
//! #     let waker = Arc::new(Unpark(std::thread::current())).into();
//! #     let mut future = std::pin::pin!(future);
//! #     loop {
//! #         match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
//! #             std::task::Poll::Ready(output) => return output,
//! #             std::task::Poll::Pending => std::thread::park(),
//! #         }
//! #     }
//! # }
//! # let buffer = block_on(async {
//! let completion = context.execute(IoEvent::read(volume, 8192, buffer), Channel::Prio).await?;
//! let buffer = completion.into_buffer()?.expect("a read has a buffer");
//! # Ok::<_, Box<dyn std::error::Error>>(buffer)
//! # })?;
//! assert!(buffer.iter().all(|byte| *byte == 7));
//!
//! let report = context.shutdown(std::time::Duration::from_secs(5));
//! assert_eq!((report.answered, report.unanswered), (2, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Not promised: an order between events in flight (submit the next when the one before has completed), that a file
//! survives without flush or FUA, or that a context goes on in another process. Its journal, which the engine
//! needs, is a file without a name on a tmpfs and ends with the process.

mod answer;
mod builder;
mod close;
mod event;
mod future;
mod lane;
mod reaper;
mod workers;

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ferrio_shm::{
    arena::{AllocError, Arena},
    doorbell::DoorbellTx,
    fork::ForkGuard,
};

pub use self::{
    answer::{Cause, IoCallback, IoCompletion, IoError},
    builder::{ContextError, IoContextBuilder},
    close::ShutdownReport,
    event::{Channel, IoBuffer, IoEvent, IoList, IoVolume, NoList, Refusal, Refused, Ticket},
    future::IoFuture,
    workers::IoWorkers,
};
use self::{
    builder::Home,
    close::Running,
    future::Room,
    lane::{Lane, Then},
};
use crate::engine::Engine;

/// The in-process face of an engine: see the [module](self). Any thread may use it, shared by reference or in an `Arc`.
///
/// Dropped, it shuts down as [`shutdown`](Self::shutdown) does, with a limit of 15 seconds; dropped by a callback, another thread
/// does that.
pub struct IoContext<C: IoCallback> {
    shared: Arc<Shared<C>>,
    engine: Engine,
    /// `None` once it is shut down.
    running: Mutex<Option<Running<C>>>,
}

/// What callers, reaper, workers and futures share.
struct Shared<C> {
    id: u64,
    name: String,
    lanes: [Lane<C>; 3],
    arena: Arena,
    guard: ForkGuard,
    /// Wakes the engine.
    doorbell: DoorbellTx,
    /// Somebody waits until everything was told.
    closing: AtomicBool,
    over: (Mutex<()>, Condvar),
}

/// Events of a channel, or of all, at one instant, as near as it can be had without stopping anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Submitted, and not with the kernel yet.
    pub pending: u64,
    /// With the kernel.
    pub running: u64,
    /// Answered, and their callback has not returned.
    pub finished: u64,
    /// Events that can be submitted now.
    pub free_slots: u64,
}

impl IoCounts {
    fn plus(self, other: Self) -> Self {
        Self {
            pending: self.pending + other.pending,
            running: self.running + other.running,
            finished: self.finished + other.finished,
            free_slots: self.free_slots + other.free_slots,
        }
    }
}

#[allow(clippy::result_large_err, reason = "an event comes back by value: nothing is allocated to refuse it")]
impl<C: IoCallback> IoContext<C> {
    fn new(shared: Arc<Shared<C>>, running: Running<C>) -> Self {
        let engine = running.home.engine().clone();
        Self { shared, engine, running: Mutex::new(Some(running)) }
    }

    // ---- memory

    /// A buffer of `length` bytes; its content is whatever was there before.
    ///
    /// # Errors
    /// The arena has no room of this length in one piece.
    pub fn buffer(&self, length: usize) -> Result<IoBuffer, AllocError> {
        self.shared.arena.alloc(length)
    }

    /// Buffers for one [`IoEvent::readv`] or [`IoEvent::writev`]: 1 to 256, or the event is answered `EINVAL`.
    ///
    /// # Errors
    /// The arena has no room for the list itself, 16 bytes for each buffer; or there is no buffer at all.
    pub fn list(&self, buffers: Vec<IoBuffer>) -> Result<IoList, NoList> {
        match self.shared.arena.alloc(IoList::table_bytes(buffers.len())) {
            Ok(table) => Ok(IoList::new(table, buffers)),
            Err(why) => Err(NoList { buffers, why }),
        }
    }

    // ---- events

    /// Hands an event over and wakes the engine if it sleeps. Never waits for I/O. Its callback is called exactly once,
    /// with the completion, unless the event comes back here. The ticket is for who may want to
    /// [cancel](IoEvent::cancel) it.
    ///
    /// # Errors
    /// [`Refused`] has the event, and says why it was not taken.
    pub fn submit(&self, event: IoEvent<C>, channel: Channel) -> Result<Ticket, Refused<C>> {
        self.place(event, channel, Then::Call, true)
    }

    /// As [`submit`](Self::submit), but the engine need not see the event before [`notify`](Self::notify): several events then
    /// cost one wake-up.
    ///
    /// # Errors
    /// As there. A channel that is full was notified.
    pub fn stage(&self, event: IoEvent<C>, channel: Channel) -> Result<Ticket, Refused<C>> {
        self.place(event, channel, Then::Call, false)
    }

    /// Shows the engine what was staged, by any thread.
    pub fn notify(&self) {
        if !self.shared.is_child() && self.shared.lanes.iter().fold(false, |ring, lane| lane.publish() | ring)
        {
            self.shared.ring();
        }
    }

    /// As [`submit`](Self::submit); the completion is had from the future, which no callback worker is needed for.
    ///
    /// # Errors
    /// As there.
    pub fn request(&self, event: IoEvent, channel: Channel) -> Result<IoFuture<C>, Refused> {
        let ticket = self.place(event, channel, |()| Then::Wake(None), true)?;
        Ok(IoFuture::new(Arc::clone(&self.shared), ticket))
    }

    /// Submits once there is a place, and waits for the completion. Dropped before, the event may have been submitted or not.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), but never because of a full channel. That an event failed stands in the completion.
    pub async fn execute(&self, mut event: IoEvent, channel: Channel) -> Result<IoCompletion, Refused> {
        loop {
            match self.request(event, channel) {
                Ok(future) => return Ok(future.await),
                Err(Refused { event: full, why: Refusal::Full { .. } }) => event = full,
                Err(refused) => return Err(refused),
            }
            Room::of(self.shared.lane(channel)).await;
        }
    }

    fn place<D>(
        &self,
        mut event: IoEvent<D>,
        channel: Channel,
        then: impl FnOnce(D) -> Then<C>,
        publish: bool,
    ) -> Result<Ticket, Refused<D>> {
        if let Err(why) = self.check(&event, channel) {
            return Err(Refused { event, why });
        }
        event.set_class(channel);
        let (placed, ring) = self.shared.lane(channel).place(event, then, publish);
        if ring {
            self.shared.ring();
        }
        placed.map(|user_data| Ticket { context: self.shared.id, channel, user_data })
    }

    fn check<D>(&self, event: &IoEvent<D>, channel: Channel) -> Result<(), Refusal> {
        let Shared { id, guard, .. } = &*self.shared;
        if guard.is_child() {
            return Err(Refusal::Forked);
        }
        if !event.fits(channel) {
            return Err(Refusal::Channel { channel, fits: event.channel() });
        }
        if event.is_of(*id, guard) { Ok(()) } else { Err(Refusal::Foreign) }
    }

    // ---- counts

    /// Events submitted that are not with the kernel yet, of all channels.
    pub fn pending(&self) -> u64 {
        self.counts().pending
    }

    /// Events with the kernel, of all channels.
    pub fn running(&self) -> u64 {
        self.counts().running
    }

    /// Events that can be submitted now, on all channels together.
    pub fn free_slots(&self) -> u64 {
        self.counts().free_slots
    }

    /// All of this.
    pub fn counts(&self) -> IoCounts {
        self.shared.lanes.iter().fold(IoCounts::default(), |sum, lane| sum.plus(lane.counts()))
    }

    /// All of this, of one channel.
    pub fn channel_counts(&self, channel: Channel) -> IoCounts {
        self.shared.lane(channel).counts()
    }

    // ---- the whole

    /// The engine, with its backend ([`Engine::info`]) and settings: weights, limits, latency goal.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The id of its session in the engine, for settings of the engine.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Takes no more events, waits up to `limit` until all are answered and all callbacks have returned, and ends. Events
    /// whose answer did not come are told so then: see [`Cause::Unanswered`]; what the kernel has of them is waited for once
    /// more as long. Futures keep their completions. Done once: who calls it again learns what was answered.
    ///
    /// Not for a callback of this context: it would wait for itself until the limit.
    pub fn shutdown(&self, limit: Duration) -> ShutdownReport {
        // In a forked child there is nothing to shut down, and the lock may be held for ever.
        let running = if self.shared.is_child() { None } else { self.lock().take() };
        let over = ShutdownReport { answered: self.shared.answered(), ..ShutdownReport::default() };
        running.map_or(over, |running| running.close(limit))
    }

    /// Its engine, which ends with the last context that has it.
    fn home(&self) -> Home {
        let own = self.lock().as_ref().map(|running| running.home.clone());
        own.unwrap_or_else(|| Home::Given(self.engine.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running<C>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: IoCallback> Drop for IoContext<C> {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.end();
        }
    }
}

impl<C: IoCallback> fmt::Debug for IoContext<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { id, name, .. } = &*self.shared;
        f.debug_struct("IoContext")
            .field("name", name)
            .field("id", id)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl<C> Shared<C> {
    fn new(
        id: u64,
        name: String,
        lanes: [Lane<C>; 3],
        arena: Arena,
        guard: ForkGuard,
        doorbell: DoorbellTx,
    ) -> Self {
        let (closing, over) = (AtomicBool::new(false), (Mutex::new(()), Condvar::new()));
        Self { id, name, lanes, arena, guard, doorbell, closing, over }
    }

    fn id(&self) -> u64 {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn lane(&self, channel: Channel) -> &Lane<C> {
        &self.lanes[channel.index()]
    }

    fn is_child(&self) -> bool {
        self.guard.is_child()
    }

    fn ring(&self) {
        // The one error is that of a closed end: an engine that has stopped. What it does not answer, the shutdown does.
        let _ = self.doorbell.ring();
    }

    fn answered(&self) -> u64 {
        self.lanes.iter().map(Lane::answered).sum()
    }

    /// Everyone was told of everything.
    fn is_over(&self) -> bool {
        self.lanes.iter().all(Lane::is_over)
    }

    /// Who was to be told of an event was told.
    fn told(&self, channel: Channel) {
        // SeqCst: pairs with wait_until_over(), which says that it waits before it looks.
        if self.lane(channel).told() && self.closing.load(SeqCst) {
            let (lock, over) = &self.over;
            drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
            over.notify_all();
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// Takes nothing more.
    fn close(&self) {
        self.closing.store(true, SeqCst);
        if self.lanes.iter().fold(false, |ring, lane| lane.close() | ring) {
            self.ring();
        }
    }

    /// Waits until everyone was told of everything.
    fn wait_until_over(&self, until: Option<Instant>) {
        let (lock, over) = &self.over;
        let mut locked = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_over() {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            locked = over.wait_timeout(locked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
