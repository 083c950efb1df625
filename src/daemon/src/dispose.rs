//! Closes what clients sent, or may have sent, on a thread that may block.
//!
//! The last close of a descriptor takes as long as its maker likes: a socket with SO_LINGER, a file of a FUSE server. A client
//! can put such a descriptor into any message, and what nobody received is closed with the socket that it waits in. So
//! neither descriptors of clients nor sockets to them are closed on the control thread. A user whose descriptors do not
//! close keeps the places that go with them, see [`crate::uid_limit`].

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

type Things = Box<dyn Any + Send>;

/// Threads that wait for things to close, at most: enough for a flood of connections not to start one for most of them.
const IDLE_MAX: usize = 8;
/// A thread that had nothing to close for so long ends.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// Threads that close: as many as hang in a close, and a few more.
struct Closers {
    things: mpsc::Sender<Things>,
    taken: Mutex<mpsc::Receiver<Things>>,
    /// Threads that wait for things and that nobody counts on yet.
    idle: AtomicUsize,
}

static CLOSERS: LazyLock<Closers> = LazyLock::new(|| {
    let (things, taken) = mpsc::channel();
    Closers { things, taken: Mutex::new(taken), idle: AtomicUsize::new(0) }
});

/// Closes it, in due time.
pub fn later(things: impl Send + 'static) {
    let closers = &*CLOSERS;
    // Sent first: a thread that is about to end looks once more when it finds itself counted on.
    let sent = closers.things.send(Box::new(things));
    debug_assert!(sent.is_ok(), "the receiving end is static");
    if closers.count_on_one() {
        return;
    }
    let thread = std::thread::Builder::new().name("close".to_owned());
    if let Err(error) = thread.spawn(|| closers.run()) {
        tracing::error!("a client's descriptors stay open until the next are closed: no thread: {error}");
    }
}

impl Closers {
    fn count_on_one(&self) -> bool {
        let counted = self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, |idle| idle.checked_sub(1));
        counted.is_ok()
    }

    fn wait_with_the_others(&self) -> bool {
        let more = |idle: usize| (idle < IDLE_MAX).then_some(idle + 1);
        self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Begins counted on, and is again whenever somebody took it out of `idle`.
    fn run(&self) {
        loop {
            // Waiting for the lock is waiting for things too: who holds it waits for them.
            let next = self.taken.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(IDLE_LIMIT);
            match next {
                Ok(things) => {
                    drop(things);
                    if !self.wait_with_the_others() {
                        return;
                    }
                }
                // Nobody counts on it: it goes. Otherwise its things are on the way.
                Err(_timeout) if self.count_on_one() => return,
                Err(_timeout) => {}
            }
        }
    }
}

/// Closes it, in due time: then the receiver ends.
pub fn begin(things: impl Send + 'static) -> oneshot::Receiver<()> {
    let (done, closed) = oneshot::channel();
    // The sender is dropped last, which is what it is for.
    later((things, done));
    closed
}

/// Closes it, and waits for it without blocking.
pub async fn wait(things: impl Send + 'static) {
    let _ = begin(things).await;
}
