//! A queue for tokio: futures that submit, and one task that picks up.

use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::blocking::{buffer_of, iovec_of};
use crate::chain::{ChainFailure, outcome};
use crate::completion::{Cancelled, Completion, Ticket};
use crate::error::{Error, IoFailure, Reason, SessionEnd, SubmitError};
use crate::lease::Listened;
use crate::session::Inner;
use crate::waiters::Waiters;
use crate::{Buffer, IoVec, Queue, QueueStats, Request, Volume};

/// Reads of the doorbell in one go; one does unless the daemon rings without end.
const DRAINS_MAX: u32 = 4;

/// A [`Queue`] whose verbs are futures. Clones share it, from any task or thread.
///
/// A request that is dropped before it was submitted never happens; dropped after that, it happens, and its buffer goes
/// back to the arena when it is completed. When all entries are in flight, further requests wait for their turn.
#[derive(Clone)]
pub struct AsyncQueue {
    shared: Arc<Shared>,
    owners: Arc<Owners>,
}

struct Shared {
    inner: Arc<Inner>,
    state: Mutex<State>,
    /// One per place in the table of waiters.
    permits: Semaphore,
    places: u32,
    closing: AtomicBool,
    close: Notify,
}

struct State {
    queue: Queue,
    waiters: Waiters,
    /// Kept for its memory.
    wakers: Vec<Waker>,
}

/// Dropped with the last clone of the queue.
struct Owners {
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

/// How the reaping task goes on.
enum Next {
    /// Completions came, more may follow.
    Busy,
    /// Nothing came yet for the requests in flight.
    Waiting,
    /// Nothing is in flight.
    Idle,
    /// The session ended, or the queue has no owner and no request any more.
    Over,
}

impl Queue {
    /// Makes the queue's verbs futures. A task on the current tokio runtime picks the completions up; when the runtime
    /// ends, so does the queue.
    ///
    /// # Errors
    /// [`Error::NoRuntime`] outside of a runtime, [`Error::InFlight`] while requests are in flight.
    ///
    /// # Panics
    /// When the runtime was built without I/O (`enable_io`).
    pub fn into_async(self) -> Result<AsyncQueue, Error> {
        let inner = Arc::clone(self.session());
        inner.check_fork()?;
        if self.in_flight() > 0 {
            return Err(Error::InFlight { queue: self.index(), in_flight: self.in_flight() });
        }
        let handle = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let failed = Error::io("watch the session's descriptors");
        let watched = Watched::new(&self).map_err(failed)?;
        let places = self.sq_entries();
        let state =
            State { queue: self, waiters: Waiters::new(places), wakers: Vec::with_capacity(places as usize) };
        let shared = Arc::new(Shared {
            inner,
            state: Mutex::new(state),
            permits: Semaphore::new(places as usize),
            places,
            closing: AtomicBool::new(false),
            close: Notify::new(),
        });
        let reaper = handle.spawn(reap(Reaper(Arc::clone(&shared)), watched));
        let owners = Owners { shared: Arc::clone(&shared), reaper: Some(reaper) };
        Ok(AsyncQueue { owners: Arc::new(owners), shared })
    }
}

/// The queue's descriptors, registered with tokio. `AsyncFd` would be the type for any descriptor, but its constructor is
/// unsafe and this crate has none of that: the doorbell is a Unix stream, and of the other, which is none that tokio knows, only
/// the readiness is asked. Both are duplicates, so that other queues can register the same.
struct Watched {
    /// Of the link that they belong to.
    generation: u64,
    /// `None`: the daemon has closed its end.
    doorbell: Option<UnixStream>,
    news: UnixStream,
}

impl Watched {
    fn new(queue: &Queue) -> std::io::Result<Self> {
        let register = |fd: BorrowedFd<'_>| UnixStream::from_std(fd.try_clone_to_owned()?.into());
        Ok(Watched {
            generation: queue.link().generation(),
            doorbell: Some(register(queue.doorbell().as_fd())?),
            news: register(queue.link().news())?,
        })
    }
}

impl AsyncQueue {
    /// Reads the whole buffer from byte `offset` of the volume.
    ///
    /// # Errors
    /// [`IoFailure`] says why and has the buffer, unless the session ended.
    pub async fn read(&self, volume: &Volume, offset: u64, buffer: Buffer) -> Result<Buffer, IoFailure> {
        self.execute(Request::read(volume, offset, buffer)).await.map(buffer_of)
    }

    /// Writes the whole buffer to byte `offset` of the volume.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn write(&self, volume: &Volume, offset: u64, buffer: Buffer) -> Result<Buffer, IoFailure> {
        self.execute(Request::write(volume, offset, buffer)).await.map(buffer_of)
    }

    /// Reads from byte `offset` of the volume into the memory of the list.
    ///
    /// # Errors
    /// As [`read`](Self::read), with the list.
    pub async fn readv(&self, volume: &Volume, offset: u64, list: IoVec) -> Result<IoVec, IoFailure> {
        self.execute(Request::readv(volume, offset, list)).await.map(iovec_of)
    }

    /// Writes the memory of the list to byte `offset` of the volume.
    ///
    /// # Errors
    /// As [`read`](Self::read), with the list.
    pub async fn writev(&self, volume: &Volume, offset: u64, list: IoVec) -> Result<IoVec, IoFailure> {
        self.execute(Request::writev(volume, offset, list)).await.map(iovec_of)
    }

    /// Gives a range of the volume back to the device: [`Request::discard`].
    pub async fn discard(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        self.execute(Request::discard(volume, offset, length)).await?;
        Ok(())
    }

    /// Makes a range of the volume read as zeros: [`Request::write_zeroes`].
    pub async fn write_zeroes(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        self.execute(Request::write_zeroes(volume, offset, length)).await?;
        Ok(())
    }

    /// Replaces the volume's content by the buffer's second half if it equals the first: [`Request::compare_and_write`].
    ///
    /// # Errors
    /// [`Errno::EILSEQ`](crate::Errno::EILSEQ), with the buffer, if it differs; otherwise as [`read`](Self::read).
    pub async fn compare_and_write(
        &self,
        volume: &Volume,
        offset: u64,
        buffer: Buffer,
    ) -> Result<Buffer, IoFailure> {
        self.execute(Request::compare_and_write(volume, offset, buffer)).await.map(buffer_of)
    }

    /// Takes back a request that is in flight: the one that [`Pending::ticket`] names. It is answered in any case.
    pub async fn cancel(&self, ticket: Ticket) -> Result<Cancelled, Error> {
        Cancelled::from_answer(self.execute(Request::cancel(ticket)).await)
    }

    /// Makes the writes that were completed before survive a power loss.
    pub async fn flush(&self, volume: &Volume) -> Result<(), Error> {
        self.execute(Request::flush(volume)).await?;
        Ok(())
    }

    /// Goes to the daemon and back.
    pub async fn nop(&self) -> Result<(), Error> {
        self.execute(Request::nop()).await?;
        Ok(())
    }

    /// Submits the request, once there is a place for it, and waits for its completion.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn execute(&self, request: Request) -> Result<Completion, IoFailure> {
        self.submit(request).await?.await
    }

    /// Submits the request, once there is a place for it. The future that comes back is its completion, and can be awaited
    /// later, or not at all.
    ///
    /// # Errors
    /// [`IoFailure`] for a request that was not taken.
    pub async fn submit(&self, mut request: Request) -> Result<Pending, IoFailure> {
        let tag = request.sqe().user_data;
        let Ok(permit) = self.shared.permits.acquire().await else {
            return Err(IoFailure::refused(request, self.shared.why_over()));
        };
        let (place, ticket) = loop {
            match self.shared.submit(request) {
                Ok(taken) => break taken,
                Err(SubmitError::Refused(refused)) => {
                    return Err(IoFailure::refused(refused.request, refused.error));
                }
                // There is a permit, so it is the SQ slots that the daemon is about to free.
                Err(SubmitError::Full(full)) => request = full.tag(tag),
            }
            tokio::task::yield_now().await;
        };
        // The place gives it back, not this scope.
        permit.forget();
        Ok(Pending { shared: Arc::clone(&self.shared), place: Some(place), ticket, tag })
    }

    /// Submits the requests as one chain ([`Queue::submit_chain`]), once there is a place for all of them, and waits for
    /// their completions, which come in their order.
    ///
    /// # Errors
    /// [`ChainFailure`] for a chain that was not taken. How each member fared is in its own result.
    pub async fn execute_chain(
        &self,
        mut requests: Vec<Request>,
    ) -> Result<Vec<Result<Completion, IoFailure>>, Box<ChainFailure>> {
        let tags: Vec<u64> = requests.iter().map(|request| request.sqe().user_data).collect();
        let places = self.shared.places;
        // More than there will ever be are refused by the queue, with words.
        let wanted = u32::try_from(requests.len()).unwrap_or(u32::MAX).min(places);
        let Ok(permits) = self.shared.permits.acquire_many(wanted).await else {
            return Err(Box::new(ChainFailure { error: self.shared.why_over(), requests }));
        };
        let taken = loop {
            match self.shared.submit_chain(requests) {
                Ok(taken) => break taken,
                Err(failure) if matches!(failure.error, Error::Full { .. }) => {
                    let tagged = failure.requests.into_iter().zip(&tags);
                    requests = tagged.map(|(request, tag)| request.tag(*tag)).collect();
                }
                Err(failure) => return Err(failure),
            }
            tokio::task::yield_now().await;
        };
        permits.forget();
        let shared = || Arc::clone(&self.shared);
        let pending = taken.into_iter().zip(tags);
        let pending: Vec<Pending> = pending
            .map(|((place, ticket), tag)| Pending { shared: shared(), place: Some(place), ticket, tag })
            .collect();
        let mut outcomes = Vec::with_capacity(pending.len());
        for member in pending {
            outcomes.push(member.await);
        }
        Ok(outcomes)
    }

    /// Waits until this was the last owner's last request: nothing is in flight, and the task that picks up has ended.
    /// Dropping the queue does the same in the background. With other clones left, it only gives up this one.
    pub async fn close(self) {
        let AsyncQueue { shared, owners } = self;
        let reaper = Arc::into_inner(owners).and_then(|mut owners| owners.reaper.take());
        if let Some(reaper) = reaper {
            // An error is a task that was cancelled with its runtime: it has ended, too.
            let _ = reaper.await;
        }
        drop(shared);
    }

    /// Counters. Stray completions, which have no future to report to, are found here.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.shared.state().queue.stats()
    }
}

/// A request in flight: a future of its completion. Dropped, the request goes on, and its buffer goes back to the arena
/// when it is completed.
#[must_use = "the request is submitted; its completion is what this future waits for"]
pub struct Pending {
    shared: Arc<Shared>,
    place: Option<u32>,
    ticket: Ticket,
    tag: u64,
}

impl Pending {
    /// Names the request for [`AsyncQueue::cancel`].
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Future for Pending {
    type Output = Result<Completion, IoFailure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = || Err(IoFailure::bare(self.shared.why_over()));
        let Some(place) = self.place else { return Poll::Ready(lost()) };
        let Poll::Ready(done) = self.shared.state().waiters.poll(place, context.waker()) else {
            return Poll::Pending;
        };
        let result = done.map_or_else(lost, outcome);
        self.place = None;
        self.shared.permits.add_permits(1);
        let tag = self.tag;
        Poll::Ready(result.map(|completion| Completion { tag, ..completion }))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // In a child the lock may be held for ever by a thread that exists in the parent only.
        let Some(place) = self.place.filter(|_| !self.shared.inner.is_child()) else { return };
        if self.shared.state().waiters.abandon(place) {
            self.shared.permits.add_permits(1);
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("ticket", &self.ticket)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the reaping task is gone.
    fn why_over(&self) -> Error {
        self.inner.lease.end().map_or(Error::NoRuntime, |end| end.clone().into())
    }

    /// Submits for the holder of a permit and returns the place where the completion will be.
    fn submit(&self, request: Request) -> Result<(u32, Ticket), SubmitError> {
        if let Err(error) = self.inner.check_fork() {
            return Err(SubmitError::refused(request, error));
        }
        let mut state = self.state();
        let State { queue, waiters, .. } = &mut *state;
        let Some(place) = waiters.join() else { return Err(SubmitError::Full(request)) };
        match queue.submit(request.tag(place.into())) {
            Ok(ticket) => {
                // Fails only in a forked child, which was ruled out.
                let _ = queue.commit();
                Ok((place, ticket))
            }
            Err(error) => {
                waiters.leave(place);
                Err(error)
            }
        }
    }

    /// The same for a chain, by the holder of a permit for each of its members.
    fn submit_chain(&self, requests: Vec<Request>) -> Result<Vec<(u32, Ticket)>, Box<ChainFailure>> {
        if let Err(error) = self.inner.check_fork() {
            return Err(Box::new(ChainFailure { error, requests }));
        }
        let mut state = self.state();
        let State { queue, waiters, .. } = &mut *state;
        let mut places = Vec::with_capacity(requests.len());
        let tag = |request: Request| {
            // A chain that is longer than the table is refused; its tags do not matter.
            let place = waiters.join();
            places.extend(place);
            request.tag(place.unwrap_or_default().into())
        };
        match queue.submit_chain(requests.into_iter().map(tag).collect()) {
            Ok(tickets) => {
                let _ = queue.commit();
                Ok(places.into_iter().zip(tickets).collect())
            }
            Err(failure) => {
                places.into_iter().for_each(|place| waiters.leave(place));
                Err(failure)
            }
        }
    }

    /// Takes over what a re-attach has changed. True: nothing has come, and the descriptors tell when something does.
    fn renew(&self, watched: &mut Watched) -> bool {
        let mut state = self.state();
        // Whoever has submitted since may have made the queue take its new link over.
        state.queue.renew();
        if state.queue.link().generation() != watched.generation {
            match Watched::new(&state.queue) {
                Ok(renewed) => *watched = renewed,
                Err(error) => {
                    let reason = format!(
                        "cannot watch the descriptors of the session, which was re-attached: {error}"
                    );
                    self.inner.lease.finish(SessionEnd::Disconnected(Reason::new(reason)));
                    return false;
                }
            }
        }
        state.queue.prepare_sleep()
    }

    /// Brings the completions that are there to their futures.
    fn deliver(&self) -> Next {
        let mut state = self.state();
        let State { queue, waiters, wakers } = &mut *state;
        let (mut came, mut freed) = (0, 0);
        let ended = loop {
            match queue.poll() {
                Ok(Some(completion)) => {
                    came += 1;
                    let place = u32::try_from(completion.tag).unwrap_or(u32::MAX);
                    freed += usize::from(waiters.finish(place, completion, wakers));
                }
                Ok(None) => break false,
                // Counted by the queue, and there is no future that it belongs to.
                Err(Error::Protocol(_)) => {}
                Err(_) => break true,
            }
        };
        let closed = queue.in_flight() == 0 && self.closing.load(Ordering::Acquire);
        let next = match came {
            _ if ended || closed => Next::Over,
            0 if queue.in_flight() == 0 => Next::Idle,
            0 => Next::Waiting,
            _ => Next::Busy,
        };
        let mut woken = std::mem::take(wakers);
        drop(state);
        self.permits.add_permits(freed);
        woken.drain(..).for_each(Waker::wake);
        self.state().wakers = woken;
        next
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // A forked child shares the runtime's wake-up descriptor with its parent.
        if !self.shared.inner.is_child() {
            self.shared.close.notify_one();
        }
    }
}

/// The reaping task's hold on the queue. Without the task nothing is picked up any more, and whoever waits is told.
struct Reaper(Arc<Shared>);

impl Drop for Reaper {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        self.0.state().waiters.lose_all(&mut wakers);
        self.0.permits.close();
        wakers.into_iter().for_each(Waker::wake);
    }
}

async fn reap(reaper: Reaper, mut watched: Watched) {
    let shared = &reaper.0;
    let mut wait: Option<Wait> = None;
    loop {
        match shared.deliver() {
            Next::Over => return,
            Next::Busy => {
                if let Some(wait) = wait.take() {
                    shared.state().queue.spinner().observe(wait.since.elapsed());
                }
                // The futures get their turn, and submit more.
                tokio::task::yield_now().await;
                continue;
            }
            Next::Waiting => {
                let wait = wait.get_or_insert_with(|| Wait::new(shared.state().queue.spinner().budget()));
                if wait.spins() {
                    tokio::task::yield_now().await;
                    continue;
                }
                wait.slept = true;
            }
            Next::Idle => wait = None,
        }
        if shared.renew(&mut watched) {
            sleep(shared, &mut watched).await;
            shared.state().queue.woken();
        }
    }
}

/// One wait for a completion, from the first look that found none.
struct Wait {
    since: Instant,
    spin: Option<Duration>,
    slept: bool,
}

impl Wait {
    fn new(spin: Option<Duration>) -> Self {
        Wait { since: Instant::now(), spin, slept: false }
    }

    fn spins(&self) -> bool {
        !self.slept && self.spin.is_none_or(|spin| self.since.elapsed() < spin)
    }
}

/// Sleeps until the daemon rings or speaks, the session is re-attached, or the last owner leaves.
async fn sleep(shared: &Shared, watched: &mut Watched) {
    let Watched { doorbell, news, .. } = watched;
    let rung = async {
        match doorbell {
            Some(doorbell) => doorbell.readable().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = rung => {
            if !doorbell.as_ref().is_some_and(drain) {
                *doorbell = None;
                shared.inner.end_by_doorbell();
            }
        }
        _ = news.readable() => {
            // WouldBlock, which ends every round of listening, is what tells tokio to wait for more.
            let _ = news.try_io(Interest::READABLE, || match shared.inner.listen() {
                Listened::All => Err(std::io::ErrorKind::WouldBlock.into()),
                Listened::Closed => Ok(()),
            });
        }
        () = shared.close.notified() => {}
    }
}

/// Takes the rings out; false: nobody is left to ring.
fn drain(doorbell: &UnixStream) -> bool {
    let mut rings = [0; 512];
    for _ in 0..DRAINS_MAX {
        match doorbell.try_read(&mut rings) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
    true
}

impl fmt::Debug for AsyncQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncQueue").field("queue", &self.shared.state().queue).finish()
    }
}
