//! Closures from other threads, run by the thread that owns a driver, between its batches.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::bell::Bell;

/// Work for the owner of `P`. It must not block: everything else waits meanwhile.
pub type Closure<P> = Box<dyn FnOnce(&mut P) + Send>;

/// The end of other threads. Clones feed the same owner.
pub struct Injector<P> {
    closures: SyncSender<Closure<P>>,
    bell: Arc<Bell>,
}

/// Why a closure was not taken; it comes back.
pub enum Refused<P> {
    /// As many as fit are waiting: try again when the owner had time.
    Full(Closure<P>),
    /// The owner has ended.
    Gone(Closure<P>),
}

/// The end of the owner.
pub(crate) struct Inbox<P> {
    closures: Receiver<Closure<P>>,
    /// Taken while looking whether there is one.
    next: Option<Closure<P>>,
}

/// Both ends; `limit` closures may wait. `bell` wakes the owner.
pub(crate) fn channel<P>(limit: usize, bell: Arc<Bell>) -> (Injector<P>, Inbox<P>) {
    let (sender, receiver) = sync_channel(limit);
    (Injector { closures: sender, bell }, Inbox { closures: receiver, next: None })
}

impl<P> Injector<P> {
    /// Hands a closure over and wakes the owner if it sleeps. Never blocks. Those of one thread are run in their order; those
    /// that wait when the owner ends are dropped.
    pub fn inject(&self, closure: Closure<P>) -> Result<(), Refused<P>> {
        self.closures.try_send(closure).map_err(|refused| match refused {
            TrySendError::Full(closure) => Refused::Full(closure),
            TrySendError::Disconnected(closure) => Refused::Gone(closure),
        })?;
        self.bell.ring();
        Ok(())
    }
}

impl<P> Inbox<P> {
    pub(crate) fn take(&mut self) -> Option<Closure<P>> {
        self.next.take().or_else(|| self.closures.try_recv().ok())
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.closures.try_recv().ok();
        }
        self.next.is_none()
    }
}

impl<P> Clone for Injector<P> {
    fn clone(&self) -> Injector<P> {
        Injector { closures: self.closures.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<P> fmt::Debug for Injector<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Injector")
    }
}

impl<P> fmt::Debug for Inbox<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl<P> fmt::Debug for Refused<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::Full(_) => "Full",
            Refused::Gone(_) => "Gone",
        })
    }
}
