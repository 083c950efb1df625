//! Who waits for an operation, and what it needs until then.
//!
//! The registry lies between a driver, which knows slots and numbers, and those who want answers. An entry owns the
//! *resources* of its operation (a buffer, a lock, whatever must not be given to somebody else) from
//! [`start`](OpRegistry::start) until the answer has come, whether anybody still waits for it or not:
//!
//! ```text
//!           reserve            start / start_timer           complete
//!   free -----------> reserved --------------------> under way ----------+
//!    ^                   |                                               | waker, or nobody yet
//!    |  cancel_reserved  |         poll: takes result and resources      v
//!    +-------------------+<------------------------------------------- done
//!    ^                                                                   |
//!    +--- remote completer, callback, background: at once ---------------+
//! ```
//!
//! Which way an answer goes is decided by the last `attach` or `poll` before it comes, or by the first after it. Nothing
//! allocates after [`OpRegistry::new`].

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::slab::StableSlab;
use crate::tag::Tag;

/// One operation, from its reservation until its answer is taken. An id that outlived its operation finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId(Tag);

impl OpId {
    /// A word for those who keep ids in integers; [`from_word`](Self::from_word) reads it.
    pub const fn word(self) -> u64 {
        self.0.user_data()
    }

    /// The id that [`word`](Self::word) gave.
    pub const fn from_word(word: u64) -> OpId {
        OpId(Tag::from_user_data(word))
    }

    /// Its place in the registry, below the capacity: what a driver carries as `user`.
    pub const fn index(self) -> u32 {
        self.0.index()
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpId({}@{})", self.0.index(), self.0.generation())
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<R> {
    /// Bytes transferred, 0, or a negative errno.
    pub result: i32,
    /// What it was given.
    pub resources: R,
}

/// Gets answers in place of a waker, on the driver's thread: to send them to another one. One completer may serve any number
/// of operations.
pub trait RemoteCompleter<R>: Send + Sync {
    /// `op` has ended. Must not block.
    fn complete(&self, op: OpId, outcome: Outcome<R>);
}

/// Called on the driver's thread with the driver `P` itself, so that one operation can lead to the next.
pub type Callback<P, R> = Box<dyn FnOnce(&mut P, Outcome<R>) + Send>;

/// What became of an attempt to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It ends now, with `-ECANCELED` (a cancel request would answer 0).
    Cancelled,
    /// The kernel has it, or the result is there: nothing changes (`-EALREADY`).
    TooLate,
    /// No such operation: its answer was taken (`-ENOENT`).
    Unknown,
}

/// The operations of one driver. `P` is what callbacks get, `R` what operations own.
#[derive(Debug)]
pub struct OpRegistry<P, R> {
    entries: StableSlab<Entry<P, R>>,
    /// Started and not complete, without timers.
    in_flight: u32,
}

struct Entry<P, R> {
    state: State,
    resources: Option<R>,
    receiver: Receiver<P, R>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reserved,
    InFlight,
    Timer,
    Done(i32),
}

/// Where the answer goes.
enum Receiver<P, R> {
    /// Nobody has asked: it stays.
    Nobody,
    Waker(Waker),
    Remote(Arc<dyn RemoteCompleter<R>>),
    Callback(Callback<P, R>),
    /// Nobody will ask.
    Background,
}

/// An answer on its way. The registry is not borrowed while it is handed over, so the receiver may use the driver.
#[must_use = "an answer that is not handed over is lost"]
pub(crate) enum Delivery<P, R> {
    Wake(Waker),
    Remote(Arc<dyn RemoteCompleter<R>>, OpId, Outcome<R>),
    Callback(Callback<P, R>, Outcome<R>),
    Drop(Outcome<R>),
}

impl<P, R> Delivery<P, R> {
    pub(crate) fn hand_over(self, to: &mut P) {
        match self {
            Delivery::Wake(waker) => waker.wake(),
            Delivery::Remote(completer, op, outcome) => completer.complete(op, outcome),
            Delivery::Callback(callback, outcome) => callback(to, outcome),
            Delivery::Drop(outcome) => drop(outcome),
        }
    }

    /// As [`hand_over`](Self::hand_over) when there is no driver any more: callbacks are dropped.
    pub(crate) fn hand_over_last(self) {
        match self {
            Delivery::Wake(waker) => waker.wake(),
            Delivery::Remote(completer, op, outcome) => completer.complete(op, outcome),
            Delivery::Callback(_, outcome) | Delivery::Drop(outcome) => drop(outcome),
        }
    }
}

impl<P, R> OpRegistry<P, R> {
    /// A registry for `capacity` operations at a time.
    pub fn new(capacity: u32) -> OpRegistry<P, R> {
        OpRegistry { entries: StableSlab::new(capacity), in_flight: 0 }
    }

    /// Takes an entry. `None`: all are taken, by operations under way and by answers that nobody took.
    pub fn reserve(&mut self) -> Option<OpId> {
        let entry = Entry { state: State::Reserved, resources: None, receiver: Receiver::Nobody };
        self.entries.insert(entry).ok().map(OpId)
    }

    /// Frees an entry that was reserved in vain.
    pub fn cancel_reserved(&mut self, op: OpId) {
        if self.state(op) == Some(State::Reserved) {
            self.entries.remove(op.0);
        }
    }

    /// A driver has the operation. Gives the resources back if it is not a reserved one.
    pub fn start(&mut self, op: OpId, resources: R) -> Result<(), R> {
        self.begin(op, resources, State::InFlight)?;
        self.in_flight += 1;
        Ok(())
    }

    /// The clock has it.
    pub fn start_timer(&mut self, op: OpId, resources: R) -> Result<(), R> {
        self.begin(op, resources, State::Timer)
    }

    fn begin(&mut self, op: OpId, resources: R, state: State) -> Result<(), R> {
        match self.entries.get(op.0) {
            Some(entry) if entry.state == State::Reserved => {
                entry.state = state;
                entry.resources = Some(resources);
                Ok(())
            }
            _ => Err(resources),
        }
    }

    /// Takes the answer if it is there; else `cx` is woken when it comes. `Ready(None)`: there is no such operation.
    pub fn poll(&mut self, op: OpId, cx: &mut Context<'_>) -> Poll<Option<Outcome<R>>> {
        let Some(entry) = self.entries.get(op.0) else { return Poll::Ready(None) };
        if matches!(entry.state, State::Done(_)) {
            return Poll::Ready(self.take(op));
        }
        match &mut entry.receiver {
            Receiver::Waker(waker) => waker.clone_from(cx.waker()),
            receiver => *receiver = Receiver::Waker(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The answer goes to `completer`.
    pub(crate) fn attach_remote(
        &mut self,
        op: OpId,
        completer: Arc<dyn RemoteCompleter<R>>,
    ) -> Option<Delivery<P, R>> {
        self.attach(op, Receiver::Remote(completer))
    }

    /// The answer goes to `callback`.
    pub(crate) fn attach_callback(&mut self, op: OpId, callback: Callback<P, R>) -> Option<Delivery<P, R>> {
        self.attach(op, Receiver::Callback(callback))
    }

    /// Nobody waits any more: the resources are dropped with the answer.
    pub(crate) fn detach(&mut self, op: OpId) -> Option<Delivery<P, R>> {
        self.attach(op, Receiver::Background)
    }

    /// What is to be done at once, because the answer is there.
    fn attach(&mut self, op: OpId, receiver: Receiver<P, R>) -> Option<Delivery<P, R>> {
        let entry = self.entries.get(op.0)?;
        entry.receiver = receiver;
        self.deliver(op)
    }

    /// The operation at `index` was answered.
    pub(crate) fn complete(&mut self, index: u32, result: i32) -> Option<Delivery<P, R>> {
        let op = OpId(self.entries.tag_at(index)?);
        let entry = self.entries.get(op.0)?;
        if entry.state != State::InFlight {
            return None;
        }
        entry.state = State::Done(result);
        self.in_flight -= 1;
        self.deliver(op)
    }

    /// A timer is over, by the clock or by a cancel.
    pub(crate) fn complete_timer(&mut self, op: OpId, result: i32) -> Option<Delivery<P, R>> {
        let entry = self.entries.get(op.0)?;
        if entry.state != State::Timer {
            return None;
        }
        entry.state = State::Done(result);
        self.deliver(op)
    }

    fn deliver(&mut self, op: OpId) -> Option<Delivery<P, R>> {
        let entry = self.entries.get(op.0)?;
        if !matches!(entry.state, State::Done(_)) {
            return None;
        }
        match std::mem::replace(&mut entry.receiver, Receiver::Nobody) {
            Receiver::Nobody => None,
            Receiver::Waker(waker) => Some(Delivery::Wake(waker)),
            Receiver::Remote(completer) => {
                self.take(op).map(|outcome| Delivery::Remote(completer, op, outcome))
            }
            Receiver::Callback(callback) => {
                self.take(op).map(|outcome| Delivery::Callback(callback, outcome))
            }
            Receiver::Background => self.take(op).map(Delivery::Drop),
        }
    }

    fn take(&mut self, op: OpId) -> Option<Outcome<R>> {
        let Entry { state: State::Done(result), resources, .. } = self.entries.remove(op.0)? else {
            return None;
        };
        resources.map(|resources| Outcome { result, resources })
    }

    /// What a cancel can do: only a timer can be stopped.
    pub(crate) fn cancellable(&mut self, op: OpId) -> Cancel {
        match self.state(op) {
            Some(State::Timer) => Cancel::Cancelled,
            Some(_) => Cancel::TooLate,
            None => Cancel::Unknown,
        }
    }

    pub(crate) fn is_timer(&mut self, op: OpId) -> bool {
        self.state(op) == Some(State::Timer)
    }

    fn state(&mut self, op: OpId) -> Option<State> {
        self.entries.get(op.0).map(|entry| entry.state)
    }

    /// Operations that a driver has and did not answer.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Entries that are not free.
    pub fn len(&self) -> u32 {
        self.entries.len()
    }

    /// All entries are free.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The kernel will not answer: whatever it may still use is never freed. Says of how many.
    pub(crate) fn leak_in_flight(&mut self) -> u32 {
        let mut leaked = 0;
        for index in 0..self.entries.capacity() {
            let Some(tag) = self.entries.tag_at(index) else { continue };
            let Some(entry) = self.entries.get(tag) else { continue };
            if entry.state == State::InFlight {
                std::mem::forget(entry.resources.take());
                leaked += 1;
            }
        }
        leaked
    }
}

impl<P, R> fmt::Debug for Entry<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<P, R> fmt::Debug for Delivery<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Delivery")
    }
}

#[cfg(test)]
mod tests;
