//! The lease: the connection that a session lives by, and what the daemon says over it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ferrio_shm::abi::errno;
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseEvent, LeaseMessage};
use ferrio_shm::peer;

use crate::error::{Error, Reason, SessionEnd};
use crate::wait;

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
    /// The daemon is about to stop: requests that it has by then are answered, later ones are not.
    Draining {
        /// Time left.
        within: Duration,
    },
}

/// Read by whichever thread waits, rarely; every thread sees the outcome.
pub(crate) struct Lease {
    socket: OwnedFd,
    heard: Mutex<Heard>,
    end: OnceLock<SessionEnd>,
    /// Longest wait for an answer.
    patience: Duration,
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
    /// Takes the socket over after the attach; from here on nothing that reads it blocks.
    pub(crate) fn new(socket: OwnedFd, patience: Duration) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Lease { socket, heard: Mutex::default(), end: OnceLock::new(), patience })
    }

    /// How the session ended, if it did: one load.
    pub(crate) fn end(&self) -> Option<&SessionEnd> {
        self.end.get()
    }

    /// Ends the session for all of its queues; the first reason stays.
    pub(crate) fn finish(&self, end: SessionEnd) {
        let _ = self.end.set(end);
        // The message is read, by one thread: another that is just going to sleep on the socket finds it readable, now
        // and for ever.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
    }

    /// Ends the session for what was seen elsewhere, in the daemon's own words if it has said why.
    pub(crate) fn finish_unheard(&self, seen: &str) {
        let words = self.heard().farewell.take();
        self.finish(SessionEnd::Disconnected(Reason::new(words.unwrap_or_else(|| seen.to_owned()))));
    }

    /// Reads what has come, without waiting. `WouldBlock` in the end, as an async reactor wants it.
    pub(crate) fn listen(&self, mut resized: impl FnMut(u16, u64)) -> io::Result<()> {
        let mut heard = self.heard();
        let mut bytes = [0; LEASE_MESSAGE_MAX];
        loop {
            let length = match peer::recv_message(self.socket.as_fd(), &mut bytes, &mut Vec::new(), 0) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    self.finish(SessionEnd::Disconnected(Reason::new(format!("the lease broke: {error}"))));
                    return Ok(());
                }
            };
            if length == 0 {
                self.finish(SessionEnd::Disconnected(heard.last_words()));
                return Ok(());
            }
            match LeaseMessage::decode(&bytes[..length]) {
                Ok(LeaseMessage::Event(event)) => self.take_event(&mut heard, event, &mut resized),
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

    fn take_event(&self, heard: &mut Heard, event: LeaseEvent, resized: &mut impl FnMut(u16, u64)) {
        match event {
            LeaseEvent::Fault { reason } => {
                let reason = format!("ferriod faulted the session and serves it no more: {reason}");
                self.finish(SessionEnd::Faulted(Reason::new(reason)));
            }
            LeaseEvent::Evict { reason } => {
                heard.farewell = Some(format!("the session was evicted: {reason}"))
            }
            LeaseEvent::Resize { volume, size_bytes } => {
                resized(volume, size_bytes);
                heard.push(Event::Resized { volume, size_bytes });
            }
            LeaseEvent::Drain { deadline_ms } => {
                heard.farewell = Some("ferriod stopped; open the session again once it is back".into());
                heard.push(Event::Draining { within: Duration::from_millis(deadline_ms.into()) });
            }
        }
    }

    pub(crate) fn next_event(&self) -> Option<Event> {
        self.heard().events.pop_front()
    }

    /// Sends RegionAdd or RegionRemove and waits for the errno of the answer; answers come in order. One caller at a time.
    /// `listen` takes in what comes.
    pub(crate) fn ask(
        &self,
        index: u16,
        question: &LeaseMessage,
        fds: &[BorrowedFd<'_>],
        listen: impl Fn(),
    ) -> Result<i32, Error> {
        let until = Instant::now() + self.patience;
        let failed = |what| Error::io(what);
        loop {
            match peer::send_message(&self.socket, &question.encode(), fds) {
                Ok(()) => break,
                // The daemon has not read the ones before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(LOOK_FOR_ANSWER);
                }
                Err(error) => {
                    listen();
                    return Err(self.end().map_or_else(
                        || failed("ask ferriod over the lease")(error),
                        |end| end.clone().into(),
                    ));
                }
            }
        }
        loop {
            listen();
            if let Some((answered, errno)) = self.heard().answers.pop_front() {
                return Ok(if answered == index { errno } else { errno::EPROTO });
            }
            if let Some(end) = self.end() {
                return Err(end.clone().into());
            }
            let now = Instant::now();
            if now >= until {
                self.heard().overdue += 1;
                return Err(Error::NoAnswer { limit: self.patience });
            }
            let look = until.min(now + LOOK_FOR_ANSWER);
            wait::readable(self.as_fd(), Some(look)).map_err(failed("wait for ferriod's answer"))?;
        }
    }

    /// Tells the daemon that the client is done, and waits until it has let go: it closes its end when nothing touches
    /// the session's memory any more and its volumes are free for the next session.
    pub(crate) fn close(&self) {
        if self.end().is_some()
            || peer::send_message(&self.socket, &LeaseMessage::Close.encode(), &[]).is_err()
        {
            return;
        }
        let until = Instant::now() + CLOSE_WAIT;
        while wait::readable(self.as_fd(), Some(until)).is_ok_and(|readable| readable) {
            let received = peer::recv_message(&self.socket, &mut [0; LEASE_MESSAGE_MAX], &mut Vec::new(), 0);
            if matches!(received, Ok(0) | Err(_)) {
                return;
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
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

    fn last_words(&mut self) -> Reason {
        let text = self.farewell.take();
        Reason::new(text.unwrap_or_else(|| "ferriod ended or closed the session; open it again".into()))
    }
}
