//! The lease: the connection that a session lives by, and what the daemon says over it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ferrio_shm::abi::errno;
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseEvent, LeaseMessage};
use ferrio_shm::peer;
use ferrio_shm::wake::Notifier;

use crate::error::{Error, Reason, SessionEnd};
use crate::link::Link;
use crate::{Volume, wait};

/// Events that nobody picks up: the oldest go first.
const EVENTS_MAX: usize = 64;

/// Another thread, asleep on its queue and this socket, may take the answer in: so often the asker looks.
const LOOK_FOR_ANSWER: Duration = Duration::from_millis(5);

/// Longest wait for the daemon to let a closed session go. It finds out by itself, only later.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// News from the daemon that do not end the session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The volume has another size; [`Volume::size_bytes`](crate::Volume::size_bytes) says it too.
    Resized {
        /// Index of the volume in the session.
        volume: u16,
        /// Its size now. Bytes.
        size_bytes: u64,
    },
    /// The daemon is about to stop: requests that it has by then are answered. Later ones are not, unless the session is
    /// re-attached ([`SessionBuilder::patience`](crate::SessionBuilder::patience)): then the next daemon answers them.
    Draining {
        /// Time left.
        within: Duration,
    },
    /// The daemon is gone, and the session waits for the next one. Requests stay in flight, and more can be submitted.
    Reattaching,
    /// A daemon serves the session again.
    Reattached {
        /// Epoch of this daemon.
        epoch: u64,
        /// Time since the old one was found to be gone.
        gap: Duration,
    },
}

/// Read by whichever thread waits, rarely; every thread sees the outcome.
///
/// Locks are taken in the order of the fields.
pub(crate) struct Lease {
    heard: Mutex<Heard>,
    link: Mutex<Arc<Link>>,
    /// That of `link`.
    generation: AtomicU64,
    end: OnceLock<SessionEnd>,
    volumes: Vec<Volume>,
    /// Longest wait for an answer.
    limit: Duration,
    /// Wakes the thread that re-attaches, if there is one.
    watcher: Option<Arc<Notifier>>,
}

/// What came of reading the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listened {
    /// All that there is yet.
    All,
    /// Nothing will come any more.
    Closed,
}

#[derive(Default)]
struct Heard {
    events: VecDeque<Event>,
    /// Answers to RegionAdd and RegionRemove: index and errno.
    answers: VecDeque<(u16, i32)>,
    /// Answers to come that nobody waits for any more.
    overdue: u32,
    /// Said by the daemon before it closes the lease.
    farewell: Option<String>,
}

impl Lease {
    /// Takes the link over after the attach. With a watcher, a link that breaks does not end the session.
    pub(crate) fn new(
        link: Link,
        volumes: Vec<Volume>,
        limit: Duration,
        watcher: Option<Arc<Notifier>>,
    ) -> Self {
        Lease {
            heard: Mutex::default(),
            generation: AtomicU64::new(link.generation()),
            link: Mutex::new(Arc::new(link)),
            end: OnceLock::new(),
            volumes,
            limit,
            watcher,
        }
    }

    /// How the session ended, if it did: one load.
    pub(crate) fn end(&self) -> Option<&SessionEnd> {
        self.end.get()
    }

    /// Whether a thread re-attaches the session.
    pub(crate) fn is_watched(&self) -> bool {
        self.watcher.is_some()
    }

    /// The descriptors in use.
    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.current())
    }

    /// Tells whether a link is still the one in use: one load. It comes after the fence between an SQ ring's index and the
    /// daemon's sleep word, and pairs with the fence of [`Lease::renew`].
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends the session for all of its queues; the first reason stays.
    pub(crate) fn finish(&self, end: SessionEnd) {
        let link = self.current();
        let _ = self.end.set(end);
        link.end();
        if let Some(watcher) = &self.watcher {
            watcher.notify();
        }
    }

    /// Ends the session for what was seen elsewhere, in the daemon's own words if it has said why.
    pub(crate) fn finish_unheard(&self, seen: &str) {
        let words = self.heard().farewell.take();
        self.finish(SessionEnd::Disconnected(Reason::new(words.unwrap_or_else(|| seen.to_owned()))));
    }

    /// Tells that the link in use is broken.
    pub(crate) fn lost(&self) {
        self.heard().push(Event::Reattaching);
    }

    /// Puts another link in the place of one that broke, unless the session has ended meanwhile. All that the old one had to
    /// say was heard before.
    pub(crate) fn renew(&self, link: Link, epoch: u64, gap: Duration) {
        let mut heard = self.heard();
        let mut current = self.current();
        if self.end().is_some() {
            return;
        }
        // What was asked and not answered will not be.
        heard.overdue = 0;
        heard.push(Event::Reattached { epoch, gap });
        let link = Arc::new(link);
        let before = std::mem::replace(&mut *current, Arc::clone(&link));
        self.generation.store(link.generation(), Ordering::Release);
        drop((heard, current));
        // A queue that published an SQE, found the new daemon asleep and the generation old has rung the old doorbell. Its
        // fence came before this one: the daemon, rung here, sees the SQE. Had it come after, it had seen the generation.
        fence(Ordering::SeqCst);
        link.ring_all();
        before.end();
    }

    /// Reads what has come, without waiting.
    pub(crate) fn listen(&self) -> Listened {
        self.listen_to(&self.link())
    }

    fn listen_to(&self, link: &Link) -> Listened {
        let mut heard = self.heard();
        let mut bytes = [0; LEASE_MESSAGE_MAX];
        loop {
            let length = match peer::recv_message(link.lease(), &mut bytes, &mut Vec::new(), 0) {
                Ok(0) => {
                    self.closed(&mut heard, None);
                    return Listened::Closed;
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Listened::All,
                Err(error) => {
                    self.closed(&mut heard, Some(&error));
                    return Listened::Closed;
                }
            };
            match LeaseMessage::decode(&bytes[..length]) {
                Ok(LeaseMessage::Event(event)) => self.take_event(&mut heard, event),
                Ok(LeaseMessage::RegionReply { index, errno }) => heard.answer(index, errno),
                // Messages of a newer daemon that this version has not asked for.
                Ok(_) => {}
                Err(error) => {
                    let reason = format!("ferriod sent a lease message that cannot be read: {error}");
                    self.finish(SessionEnd::Disconnected(Reason::new(reason)));
                }
            }
        }
    }

    fn closed(&self, heard: &mut Heard, error: Option<&io::Error>) {
        let words = heard.farewell.take();
        if words.is_none() && self.is_watched() {
            return;
        }
        let words = words.unwrap_or_else(|| match error {
            Some(error) => format!("the lease broke: {error}"),
            None => "ferriod ended or closed the session; open it again".into(),
        });
        self.finish(SessionEnd::Disconnected(Reason::new(words)));
    }

    fn take_event(&self, heard: &mut Heard, event: LeaseEvent) {
        match event {
            LeaseEvent::Fault { reason } => {
                let reason = format!("ferriod faulted the session and serves it no more: {reason}");
                self.finish(SessionEnd::Faulted(Reason::new(reason)));
            }
            LeaseEvent::Evict { reason } => {
                heard.farewell = Some(format!("the session was evicted: {reason}"))
            }
            LeaseEvent::Resize { volume, size_bytes } => {
                if let Some(volume) = self.volumes.get(usize::from(volume)) {
                    volume.resized(size_bytes);
                }
                heard.push(Event::Resized { volume, size_bytes });
            }
            LeaseEvent::Drain { deadline_ms } => {
                if !self.is_watched() {
                    heard.farewell = Some("ferriod stopped; open the session again once it is back".into());
                }
                heard.push(Event::Draining { within: Duration::from_millis(deadline_ms.into()) });
            }
        }
    }

    pub(crate) fn next_event(&self) -> Option<Event> {
        self.heard().events.pop_front()
    }

    /// Sends RegionAdd or RegionRemove and waits for the errno of the answer; answers come in order. One caller at a time.
    /// If the daemon ends before it has answered, or answers that it stops, the question is repeated to the next.
    pub(crate) fn ask(
        &self,
        index: u16,
        question: &LeaseMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, Error> {
        let mut repeated = false;
        loop {
            let link = self.link();
            let answer = self.ask_over(&link, index, question, fds)?;
            match answer {
                // It stops, and does nothing of it.
                Some(errno::ESHUTDOWN) if self.is_watched() => {}
                Some(errno) => return Ok(Answer { errno, repeated }),
                None => repeated = true,
            }
            // Another one comes, or the session ends.
            wait::readable(link.news(), None).map_err(Error::io("wait for ferriod to come back"))?;
        }
    }

    /// `None`: the link broke before the answer came.
    fn ask_over(
        &self,
        link: &Link,
        index: u16,
        question: &LeaseMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<i32>, Error> {
        let until = Instant::now() + self.limit;
        let failed = |what| Error::io(what);
        while let Err(error) = peer::send_message(link.lease(), &question.encode(), fds) {
            // The daemon has not read the ones before.
            if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until {
                std::thread::sleep(LOOK_FOR_ANSWER);
                continue;
            }
            let closed = self.listen_to(link) == Listened::Closed;
            return match self.end() {
                Some(end) => Err(end.clone().into()),
                None if closed => Ok(None),
                None => Err(failed("ask ferriod over the lease")(error)),
            };
        }
        loop {
            let closed = self.listen_to(link) == Listened::Closed;
            if let Some(errno) = self.heard().take_answer(index) {
                return Ok(Some(errno));
            }
            if let Some(end) = self.end() {
                return Err(end.clone().into());
            }
            if closed {
                return Ok(None);
            }
            let now = Instant::now();
            if now >= until {
                return self.give_up(link, index);
            }
            let look = until.min(now + LOOK_FOR_ANSWER);
            wait::readable(link.lease(), Some(look)).map_err(failed("wait for ferriod's answer"))?;
        }
    }

    /// Nobody waits any more for the answer that may still come over this link.
    fn give_up(&self, link: &Link, index: u16) -> Result<Option<i32>, Error> {
        let mut heard = self.heard();
        if let Some(errno) = heard.take_answer(index) {
            return Ok(Some(errno));
        }
        if self.generation() == link.generation() {
            heard.overdue += 1;
        }
        Err(Error::NoAnswer { limit: self.limit })
    }

    /// Tells the daemon that the client is done, and waits until it has let go: it closes its end when nothing touches
    /// the session's memory any more and its volumes are free for the next session.
    pub(crate) fn close(&self) {
        let link = self.link();
        if self.end().is_some()
            || peer::send_message(link.lease(), &LeaseMessage::Close.encode(), &[]).is_err()
        {
            return;
        }
        let until = Instant::now() + CLOSE_WAIT;
        while wait::readable(link.lease(), Some(until)).is_ok_and(|readable| readable) {
            let received = peer::recv_message(link.lease(), &mut [0; LEASE_MESSAGE_MAX], &mut Vec::new(), 0);
            if matches!(received, Ok(0) | Err(_)) {
                return;
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the daemon said to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub errno: i32,
    /// A daemon was asked before that ended without an answer, and may have done it.
    pub repeated: bool,
}

impl Heard {
    fn push(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn answer(&mut self, index: u16, errno: i32) {
        match self.overdue.checked_sub(1) {
            Some(left) => self.overdue = left,
            None => self.answers.push_back((index, errno)),
        }
    }

    /// The errno of the answer to a question about this region.
    fn take_answer(&mut self, index: u16) -> Option<i32> {
        let (answered, errno) = self.answers.pop_front()?;
        Some(if answered == index { errno } else { errno::EPROTO })
    }
}
