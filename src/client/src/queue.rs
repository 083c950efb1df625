//! A queue: submit, commit, pick up.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_shm::abi::sqe_flags;
use ferrio_shm::doorbell::{DoorbellRx, Drained};
use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::mapping::MappedQueue;
use ferrio_shm::ring::{CqConsumer, QueueMemory, SqProducer};

use crate::completion::{Completion, Ticket};
use crate::error::{Error, ProtocolError, Reason, RequestError, SessionEnd, SubmitError};
use crate::inflight::{Flight, InFlight, Stray};
use crate::link::Link;
use crate::request::{Expected, Request};
use crate::session::{Inner, QueueParts};
use crate::spin::Spinner;
use crate::wait::Woken;
use crate::{Errno, wait};

/// So many polls that found nothing, and the lease is looked at: a system call, too dear for each.
const EMPTY_POLLS_PER_LEASE_LOOK: u32 = 1024;
/// So many polls, and the clock is looked at.
const SPINS_PER_CLOCK_LOOK: u32 = 32;

/// One SQ ring and one CQ ring, and their only user: it can move between threads, but is not shared.
pub struct Queue {
    inner: Arc<Inner>,
    index: u32,
    engine: String,
    sq_entries: u32,
    sq: SqProducer<MappedQueue>,
    cq: CqConsumer<MappedQueue>,
    link: Arc<Link>,
    /// Index of the doorbell towards the daemon.
    doorbell: usize,
    /// The daemon's end of the CQ doorbell is closed: the end of the session, or another link, is to come.
    deaf: bool,
    in_flight: InFlight,
    /// Completions that a blocking call met while it waited for its own. They count against the CQ entries.
    set_aside: VecDeque<Completion>,
    /// A stray completion that a blocking call met: the next poll reports it.
    stray: Option<ProtocolError>,
    spinner: Spinner,
    empty_polls: u32,
    /// Requests were answered here because the session had ended: from then on the ring is not believed.
    answered_locally: bool,
    stats: QueueStats,
    not_sync: PhantomData<Cell<()>>,
}

/// Counters of a queue since it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Requests submitted.
    pub submitted: u64,
    /// Requests completed, errors included.
    pub completed: u64,
    /// Requests completed with an error.
    pub errors: u64,
    /// Requests whose answer never came, because the session ended. Also counted as completed and as errors.
    pub unanswered: u64,
    /// Completions for requests that were never submitted. They are ignored.
    pub unknown: u64,
    /// Completions for requests that were completed before. They are ignored.
    pub doubled: u64,
    /// Writes to the daemon's doorbell: it slept.
    pub doorbells: u64,
    /// Sleeps in [`Queue::wait`].
    pub sleeps: u64,
}

impl Queue {
    pub(crate) fn new(inner: Arc<Inner>, parts: QueueParts) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cq_entries = parts.rings.cq_entries();
        Queue {
            link: inner.lease.link(),
            doorbell: parts.doorbell,
            deaf: false,
            inner,
            index: parts.index,
            engine: parts.engine,
            sq_entries: parts.rings.sq_entries(),
            sq: SqProducer::new(parts.rings.clone()),
            cq: CqConsumer::new(parts.rings),
            in_flight: InFlight::new(parts.index, cq_entries),
            set_aside: VecDeque::with_capacity(cq_entries as usize),
            stray: None,
            spinner: Spinner::new(parts.options.wait, cpus),
            empty_polls: 0,
            answered_locally: false,
            stats: QueueStats::default(),
            not_sync: PhantomData,
        }
    }

    /// Index of the queue in its session.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Engine that serves it: it reaches the volumes of this engine.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Requests that were submitted and not picked up yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.set_aside.len()
    }

    /// Most requests in flight: the CQ entries.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.in_flight.capacity()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Puts the request into the SQ ring, where the daemon sees it after the next [`commit`](Self::commit) or
    /// [`wait`](Self::wait). The queue keeps the buffer until the completion.
    ///
    /// # Errors
    /// Every error hands the request back. [`SubmitError::Full`]: pick completions up and try again.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, SubmitError> {
        if let Err(error) = self.admit(&request) {
            return Err(SubmitError::refused(request, error));
        }
        if request.sqe().flags & sqe_flags::LINK != 0 {
            return Err(SubmitError::refused(request, Error::LooseLink));
        }
        if self.in_flight() >= self.in_flight_max() {
            return Err(SubmitError::Full(request));
        }
        self.stage(request).map_err(SubmitError::Full)
    }

    /// Puts an admitted request into ring and table; no room gives it back.
    #[inline(always)]
    pub(crate) fn stage(&mut self, request: Request) -> Result<Ticket, Request> {
        if !self.has_room() {
            return Err(request);
        }
        let expected = request.expected();
        let Request { sqe, held, .. } = request;
        let user_data = self.in_flight.insert(Flight { tag: sqe.user_data, expected, held });
        let pushed = self.sq.push(&Sqe { user_data, ..sqe });
        debug_assert!(pushed.is_ok(), "there was room");
        self.stats.submitted += 1;
        Ok(Ticket(user_data))
    }

    /// Requests that can be staged now, all of them before anything is picked up.
    pub(crate) fn room(&mut self) -> usize {
        self.cq.release();
        (self.sq.room() as usize).min(self.in_flight_max() - self.in_flight())
    }

    pub(crate) fn admit(&self, request: &Request) -> Result<(), Error> {
        self.inner.check_fork()?;
        if let Some(end) = self.inner.lease.end() {
            return Err(end.clone().into());
        }
        request.check(&self.inner, self.index)
    }

    /// Room for a request in ring and table. CQ entries that were picked up but not yet released count as taken in the
    /// ring's account.
    fn has_room(&mut self) -> bool {
        self.in_flight.has_room()
            && (self.sq.has_room() || {
                self.cq.release();
                self.sq.has_room()
            })
    }

    /// Shows the submitted requests to the daemon and wakes it if it sleeps: one store, and at most one system call.
    /// Returns how many they were.
    pub fn commit(&mut self) -> Result<u32, Error> {
        self.inner.check_fork()?;
        self.cq.release();
        let staged = self.sq.staged();
        if self.sq.publish() {
            self.stats.doorbells += 1;
            self.renew();
            if self.link.ring(self.doorbell).is_err() {
                // Nobody listens: the session is over, and the requests are answered from here.
                self.inner.end_by_doorbell();
            }
        }
        Ok(staged)
    }

    /// Picks up one completion, without waiting and without a system call. `None`: there is none yet.
    ///
    /// # Errors
    /// [`Error::Disconnected`] and [`Error::Faulted`] come after every request in flight was completed.
    /// [`Error::Protocol`] reports a completion that was ignored; the queue goes on.
    pub fn poll(&mut self) -> Result<Option<Completion>, Error> {
        self.inner.check_fork()?;
        if let Some(stray) = self.stray.take() {
            return Err(stray.into());
        }
        match self.set_aside.pop_front() {
            Some(completion) => Ok(Some(completion)),
            None => self.reap(),
        }
    }

    /// Commits, then waits for one completion as the queue's [`WaitPolicy`](crate::WaitPolicy) says. `None`: the
    /// time is over, or nothing is in flight that could complete.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<Completion>, Error> {
        self.commit()?;
        match self.poll()? {
            Some(completion) => Ok(Some(completion)),
            None => self.wait_reap(timeout),
        }
    }

    /// As `poll`, without what was set aside.
    #[inline]
    pub(crate) fn reap(&mut self) -> Result<Option<Completion>, Error> {
        if self.answered_locally {
            return self.answer_locally();
        }
        match self.cq.pop() {
            Ok(Some(cqe)) => self.complete(cqe),
            Ok(None) => self.found_nothing(),
            Err(fault) => {
                let reason = Reason::new(format!("ferriod broke queue {}'s ring: {fault}", self.index));
                self.inner.lease.finish(SessionEnd::Faulted(reason));
                self.answer_locally()
            }
        }
    }

    /// The completion goes to the caller's memory in one piece: it is too large to be handed on by each function between.
    #[inline(always)]
    fn complete(&mut self, cqe: Cqe) -> Result<Option<Completion>, Error> {
        let flight = match self.in_flight.take(cqe.user_data) {
            Ok(flight) => flight,
            Err(stray) => return Err(self.count_stray(stray, cqe.user_data)),
        };
        let result = match (u32::try_from(cqe.result), flight.expected) {
            (Err(_), _) => Err(RequestError::Errno(Errno(cqe.result.saturating_neg()))),
            (Ok(found), Expected::Bytes(expected)) if found != expected => {
                Err(RequestError::WrongLength { expected, found })
            }
            (Ok(bytes), _) => Ok(bytes),
        };
        self.stats.completed += 1;
        self.stats.errors += u64::from(result.is_err());
        let ticket = Ticket(cqe.user_data);
        let (buffer, iovec) = flight.held.into_parts();
        Ok(Some(Completion { ticket, tag: flight.tag, result, buffer, iovec, flags: cqe.flags }))
    }

    #[cold]
    fn count_stray(&mut self, stray: Stray, user_data: u64) -> Error {
        let queue = self.index;
        match stray {
            Stray::Unknown => {
                self.stats.unknown += 1;
                ProtocolError::Unknown { queue, user_data }.into()
            }
            Stray::Doubled => {
                self.stats.doubled += 1;
                ProtocolError::Doubled { queue, user_data }.into()
            }
        }
    }

    /// Looks, now and then, whether the session is still there.
    fn found_nothing(&mut self) -> Result<Option<Completion>, Error> {
        self.cq.release();
        self.empty_polls = self.empty_polls.wrapping_add(1);
        if self.inner.lease.end().is_none() {
            if self.inner.header_says_ended() {
                self.inner.end_by_header();
            } else if self.empty_polls.is_multiple_of(EMPTY_POLLS_PER_LEASE_LOOK) {
                self.inner.listen();
            }
        }
        if self.inner.lease.end().is_none() {
            return Ok(None);
        }
        // What was posted before the end is still an answer.
        match self.cq.pop() {
            Ok(Some(cqe)) => self.complete(cqe),
            _ => self.answer_locally(),
        }
    }

    /// Completes what is in flight in a session that ended. The kernel may still use the buffers: they are given up.
    fn answer_locally(&mut self) -> Result<Option<Completion>, Error> {
        self.answered_locally = true;
        let end = match self.inner.lease.end() {
            Some(end) => end.clone(),
            None => return Ok(None),
        };
        let Some((user_data, flight)) = self.in_flight.take_any() else { return Err(end.into()) };
        flight.held.leak();
        self.stats.completed += 1;
        self.stats.errors += 1;
        self.stats.unanswered += 1;
        let result = Err(RequestError::Unanswered(end));
        let (ticket, tag) = (Ticket(user_data), flight.tag);
        Ok(Some(Completion { ticket, tag, result, buffer: None, iovec: None, flags: 0 }))
    }

    /// Waits for a completion that comes from the ring.
    pub(crate) fn wait_reap(&mut self, timeout: Option<Duration>) -> Result<Option<Completion>, Error> {
        if let Some(completion) = self.reap()? {
            return Ok(Some(completion));
        }
        if self.in_flight.len() == 0 {
            return Ok(None);
        }
        let start = Instant::now();
        // A time that does not fit is longer than anyone waits.
        let until = timeout.and_then(|timeout| start.checked_add(timeout));
        let mut found = self.spin(start, until)?;
        if found.is_none() && until.is_none_or(|until| Instant::now() < until) {
            found = self.sleep(until)?;
        }
        if found.is_some() {
            self.spinner.observe(start.elapsed());
        }
        Ok(found)
    }

    fn spin(&mut self, start: Instant, until: Option<Instant>) -> Result<Option<Completion>, Error> {
        let budget_end = self.spinner.budget().and_then(|budget| start.checked_add(budget));
        let end = [until, budget_end].into_iter().flatten().min();
        if end.is_some_and(|end| end <= start) {
            return Ok(None);
        }
        loop {
            for _ in 0..SPINS_PER_CLOCK_LOOK {
                std::hint::spin_loop();
                if let Some(completion) = self.reap()? {
                    return Ok(Some(completion));
                }
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }

    fn sleep(&mut self, until: Option<Instant>) -> Result<Option<Completion>, Error> {
        loop {
            self.renew();
            if self.prepare_sleep() {
                let news = self.link.news();
                let woken = if self.deaf {
                    wait::readable(news, until).map(|lease| Woken { doorbell: false, lease })
                } else {
                    wait::either(self.doorbell().as_fd(), news, until)
                };
                let woken = woken.map_err(Error::io("sleep until a completion comes"))?;
                if woken.lease {
                    self.inner.listen();
                }
                if woken.doorbell {
                    self.drain_doorbell();
                }
            }
            let found = self.reap()?;
            if found.is_some() || until.is_some_and(|until| Instant::now() >= until) {
                self.woken();
                return Ok(found);
            }
        }
    }

    /// Takes the rings out; the completions are looked at afterwards.
    fn drain_doorbell(&mut self) {
        if matches!(self.doorbell().drain(), Ok(Drained::Closed) | Err(_)) {
            self.deaf = true;
            self.inner.end_by_doorbell();
        }
    }

    /// Takes the descriptors of a re-attached session over. Called before each system call with one of them.
    pub(crate) fn renew(&mut self) {
        if self.inner.lease.generation() != self.link.generation() {
            self.link = self.inner.lease.link();
            self.deaf = false;
        }
    }

    pub(crate) fn session(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn sq_entries(&self) -> u32 {
        self.sq_entries
    }

    /// Readable when completions came after [`prepare_sleep`](Self::prepare_sleep) said true.
    pub(crate) fn doorbell(&self) -> &DoorbellRx {
        self.link.cq_doorbell(self.index)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// True: nothing is there, and the doorbell rings when there is.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        let asleep = self.cq.prepare_sleep();
        self.stats.sleeps += u64::from(asleep);
        asleep
    }

    /// Ends the sleep: the daemon need not ring.
    pub(crate) fn woken(&mut self) {
        self.cq.wake();
    }

    pub(crate) fn spinner(&mut self) -> &mut Spinner {
        &mut self.spinner
    }

    /// Keeps a completion that is not the one a blocking call waits for, until it is polled.
    pub(crate) fn set_aside(&mut self, completion: Completion) {
        self.set_aside.push_back(completion);
    }

    /// Keeps the report of a stray completion until the next poll. The counters have them all, this has the last.
    pub(crate) fn set_stray_aside(&mut self, stray: ProtocolError) {
        self.stray = Some(stray);
    }

    /// Whether every place is held by a completion that was set aside.
    pub(crate) fn is_clogged(&self) -> bool {
        self.set_aside.len() >= self.in_flight_max()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("session", &self.inner.session_id)
            .field("index", &self.index)
            .field("in_flight", &self.in_flight())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Drop for Queue {
    /// Nobody is left to wait for the completions, and the kernel may still use the buffers: they are given up.
    fn drop(&mut self) {
        while let Some((_, flight)) = self.in_flight.take_any() {
            flight.held.leak();
        }
    }
}
