//! Going on with a session after the daemon has ended: one thread per session sleeps on its lease and, when that breaks,
//! connects again, proves by the secret whose session it is, and puts the new descriptors in the place of the old ones.
//!
//! The rings need nothing: what was submitted stays there, and the next daemon goes on from its journal. Queues find the
//! new descriptors where they are about to make a system call anyway, before they ring or sleep.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, mem};

use ferrio_shm::abi::errno;
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::mapping::SessionHeader;
use ferrio_shm::peer;
use ferrio_shm::wake::Notifier;

use crate::errno::Errno;
use crate::error::{Reason, SessionEnd};
use crate::lease::{Lease, Listened};
use crate::link::Link;
use crate::region::{self, Regions};
use crate::wait;

/// Wait before the next try, doubled with each one.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// Longest wait between two tries: a daemon that is back is found so soon.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Longest wait for a place in the backlog of the attach socket. An owner that drops its session meanwhile waits as long.
const IN_LINE: Duration = Duration::from_secs(1);

/// What a session shows to be taken up again.
pub(crate) struct Claim {
    pub session_id: u64,
    pub secret: [u8; 32],
    pub attach_socket: PathBuf,
    pub memory: OwnedFd,
    pub memory_bytes: u64,
    pub header: SessionHeader,
    /// Those that the client added: their memory is shown, too.
    pub regions: Arc<Mutex<Regions>>,
    /// Longest wait for a daemon.
    pub patience: Duration,
}

/// The thread, for its owner.
pub(crate) struct Watcher {
    wake: Arc<Notifier>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread. The lease was made with the same notifier.
    pub(crate) fn start(lease: Arc<Lease>, claim: Claim, wake: Arc<Notifier>) -> io::Result<Self> {
        let closing = Arc::new(AtomicBool::new(false));
        let watch = Watch { lease, claim, wake: Arc::clone(&wake), closing: Arc::clone(&closing) };
        let thread = std::thread::Builder::new().name("ferrio-lease".into()).spawn(move || watch.run())?;
        Ok(Watcher { wake, closing, thread: Some(thread) })
    }

    /// Ends the thread, whatever it waits for. The link that is in use then stays.
    pub(crate) fn stop(&mut self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify();
        if let Some(thread) = self.thread.take() {
            // It has no panic to pass on.
            let _ = thread.join();
        }
    }

    /// In a forked child there is no such thread, and its handle points to memory that is used for something else.
    pub(crate) fn forget(&mut self) {
        mem::forget(self.thread.take());
    }
}

/// The thread's own.
struct Watch {
    lease: Arc<Lease>,
    claim: Claim,
    wake: Arc<Notifier>,
    closing: Arc<AtomicBool>,
}

/// How a try ended.
enum Attempt {
    Attached(Link, u64),
    /// Another one may succeed.
    Later(String),
    /// None will.
    Never(String),
}

impl Watch {
    fn run(self) {
        let mut link = self.lease.link();
        loop {
            let slept = wait::either(self.wake.as_fd(), link.lease(), None);
            if self.is_over() {
                return;
            }
            if let Err(error) = slept {
                return self.end(format!("cannot wait for what ferriod says: {error}"));
            }
            if self.lease.listen() == Listened::All {
                continue;
            }
            // Words of farewell have ended the session.
            if self.is_over() {
                return;
            }
            let lost = Instant::now();
            self.lease.lost();
            match self.reattach(lost, link.generation() + 1) {
                Ok(Some((link, epoch))) => self.lease.renew(link, epoch, lost.elapsed()),
                Ok(None) => return,
                Err(reason) => return self.end(reason),
            }
            link = self.lease.link();
        }
    }

    /// Whether the owner is gone, or the session has ended.
    fn is_over(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.lease.end().is_some()
    }

    fn end(&self, reason: String) {
        self.lease.finish(SessionEnd::Disconnected(Reason::new(reason)));
    }

    /// Tries until a daemon takes the session up; `None`: that is not wanted any more. An error is for people.
    fn reattach(&self, lost: Instant, generation: u64) -> Result<Option<(Link, u64)>, String> {
        let Claim { patience, attach_socket, .. } = &self.claim;
        // A time that does not fit is longer than anyone waits.
        let until = lost.checked_add(*patience);
        let mut pause = WAIT_MIN;
        loop {
            let failed = match self.attempt(generation, until) {
                Attempt::Attached(link, epoch) => return Ok(Some((link, epoch))),
                Attempt::Never(reason) => return Err(reason),
                Attempt::Later(reason) => reason,
            };
            let next = Instant::now() + pause;
            let woken = wait::readable(self.wake.as_fd(), Some(until.map_or(next, |until| until.min(next))));
            if woken.is_err() || self.is_over() {
                return Ok(None);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(format!(
                    "ferriod ended and was not back at {} within {patience:?} ({failed}); start it (its log says why it \
                     ended) and open the session again, or let the session wait longer (SessionBuilder::patience)",
                    attach_socket.display()
                ));
            }
            pause = WAIT_MAX.min(pause * 2);
        }
    }

    /// Shows the session with its regions. One that was being added or removed when the daemon ended may be known to the
    /// next one or not: if the daemon does not agree with all of them, it may do so without these.
    fn attempt(&self, generation: u64, until: Option<Instant>) -> Attempt {
        let (all, sure) = {
            let regions = region::lock(&self.claim.regions);
            (region::memory(&regions, true), region::memory(&regions, false))
        };
        match self.resume(generation, &all, until) {
            Err(Refused { errno: errno::EINVAL, .. }) if sure.len() < all.len() => {
                self.resume(generation, &sure, until).unwrap_or_else(Refused::into_attempt)
            }
            attempt => attempt.unwrap_or_else(Refused::into_attempt),
        }
    }

    fn resume(
        &self,
        generation: u64,
        regions: &[Arc<OwnedFd>],
        until: Option<Instant>,
    ) -> Result<Attempt, Refused> {
        let later =
            |what: &str, error: &dyn std::fmt::Display| Ok(Attempt::Later(format!("{what}: {error}")));
        let Claim { session_id, secret, attach_socket, memory, .. } = &self.claim;
        let left = until.map_or(IN_LINE, |until| until.saturating_duration_since(Instant::now()));
        let socket = match peer::connect_within(attach_socket, IN_LINE.min(left)) {
            Ok(socket) => socket,
            Err(error) => return later("cannot connect", &error),
        };
        let message = LeaseMessage::Resume { session_id: *session_id, secret: *secret };
        let mut fds: Vec<BorrowedFd<'_>> = vec![memory.as_fd()];
        fds.extend(regions.iter().map(|memory| memory.as_fd()));
        if let Err(error) = peer::send_message(&socket, &message.encode(), &fds) {
            return later("cannot ask for the session", &error);
        }
        // As long as it takes: with socket activation the question waits until a daemon is there. A socket that is closed
        // too early ends the session, if that daemon has just taken it up.
        loop {
            match wait::either(self.wake.as_fd(), socket.as_fd(), until) {
                Ok(woken) if woken.lease => break,
                Ok(_) if self.is_over() => return later("no answer", &"not wanted any more"),
                Ok(_) if until.is_none_or(|until| Instant::now() < until) => {}
                Ok(_) => return later("no answer", &"it accepts the connection and says nothing"),
                Err(error) => return later("cannot wait for an answer", &error),
            }
        }
        let before = self.lease.link();
        let (mut bytes, mut fds) = ([0; LEASE_MESSAGE_MAX], Vec::new());
        let fds_max = before.doorbells() + before.queues();
        match peer::recv_message(&socket, &mut bytes, &mut fds, fds_max) {
            Ok(0) => later("no answer", &"it closed the connection"),
            Ok(length) => match LeaseMessage::decode(&bytes[..length]) {
                Ok(LeaseMessage::Refused { errno, reason }) => Err(Refused { errno, reason }),
                Ok(message) => Ok(self.take(&message, socket, fds, &before, generation)),
                Err(error) => Ok(unfit(&error)),
            },
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(unfit(&error)),
            Err(error) => later("no answer", &error),
        }
    }

    /// Checks that what the daemon goes on with is this session, and takes its descriptors.
    fn take(
        &self,
        message: &LeaseMessage,
        socket: OwnedFd,
        mut doorbells: Vec<OwnedFd>,
        before: &Link,
        generation: u64,
    ) -> Attempt {
        let LeaseMessage::Attached { session_id, epoch, memory_bytes, doorbells: count, queues } = *message
        else {
            return unfit(&format!("it answers with {message:?}"));
        };
        let told = (session_id, memory_bytes, count as usize, queues as usize, doorbells.len());
        let Claim { session_id, memory_bytes, header, .. } = &self.claim;
        let (count, queues) = (before.doorbells(), before.queues());
        let expected = (*session_id, *memory_bytes, count, queues, count + queues);
        if told != expected {
            return unfit(&format!(
                "it answers for (session, bytes, doorbells, queues, descriptors) {told:?}, not {expected:?}"
            ));
        }
        if let Err(error) = header.check(*session_id) {
            return unfit(&format!("the session memory's header is wrong: {error}"));
        }
        if header.epoch() != epoch {
            return unfit(&format!("the header has epoch {}, it answers with {epoch}", header.epoch()));
        }
        let cq_doorbells = doorbells.split_off(count);
        match Link::new(generation, socket, doorbells, cq_doorbells, true) {
            Ok(link) => Attempt::Attached(link, epoch),
            Err(error) => Attempt::Never(format!(
                "ferriod is back, but its descriptors cannot be used: {error}; open the session again"
            )),
        }
    }
}

fn unfit(what: &dyn std::fmt::Display) -> Attempt {
    Attempt::Never(format!(
        "the new ferriod and this client do not fit together: {what}; run the same version of both, and open the session again"
    ))
}

/// The daemon's answer, and no.
struct Refused {
    errno: i32,
    reason: String,
}

impl Refused {
    fn into_attempt(self) -> Attempt {
        let Refused { errno, reason } = self;
        match errno {
            // It is stopping, or too busy to listen, or short of memory.
            errno::ESHUTDOWN | errno::ETIMEDOUT | errno::EBUSY | errno::ENOMEM => Attempt::Later(reason),
            _ => Attempt::Never(format!(
                "ferriod ended, and the next one does not go on with the session: {reason} ({})",
                Errno(errno)
            )),
        }
    }
}
