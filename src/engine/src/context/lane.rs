//! A channel: its places, and the submitting end of its ring.
//!
//! ```text
//!            place                    settle                     release
//!   free -------------> in flight ----------------> answered --------------> free
//!            (caller)                 (reaper)      (worker, before it calls; or the future)
//! ```
//!
//! A place holds the memory of its event from `place` to `settle`: whoever asked may be gone, the buffer is not. Callers
//! meet at one lock, which nobody holds for longer than it takes to write one SQE, and never over a system call. It guards the
//! free places, the ring end and those who wait for a place together, so that nobody waits beside a free one. (Queues without
//! locks before the ring, emptied by whoever finds its end free, were measured against it by `benches/context.rs`: dearer for
//! one thread, and no better for several.)

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Poll, Waker},
};

use ferrio_shm::{
    entry::{Cqe, Sqe},
    mapping::MappedQueue,
    ring::SqProducer,
};

use super::{
    IoCounts,
    answer::{Asked, Cause, IoCompletion},
    event::{Channel, Held, IoEvent, Refusal, Refused},
};
use crate::stats::{CountersSnapshot, QueueShared};

/// Who is told of an answer.
#[derive(Debug)]
pub(super) enum Then<C> {
    Call(C),
    /// A future, which has given its waker once it was polled.
    Wake(Option<Waker>),
    /// A future that is gone.
    Forget,
}

#[derive(Debug)]
struct Flight<C> {
    asked: Asked,
    held: Held,
    then: Then<C>,
}

#[derive(Debug)]
enum State<C> {
    Free,
    InFlight(Flight<C>),
    /// For its future.
    Answered(IoCompletion),
}

#[derive(Debug)]
struct Slot<C> {
    /// Of this use: tells an answer to an earlier one.
    generation: u32,
    state: State<C>,
}

/// What the reaper does with an answer.
pub(super) enum Settled<C> {
    /// Call this with it; the place is still taken.
    Call(u32, C, IoCompletion),
    /// Nobody is to be called.
    Told,
    /// An answer to nothing: a bug.
    Stray,
}

/// See the module.
pub(super) struct Lane<C> {
    channel: Channel,
    slots: Box<[Mutex<Slot<C>>]>,
    gate: Mutex<Gate>,
    counters: Arc<QueueShared>,
    /// Written under the gate.
    submitted: AtomicU64,
    free: AtomicU32,
    /// Written by the reaper.
    answered: AtomicU64,
    /// Events that were submitted and whose callback has not returned; for those without one, that have no answer.
    live: AtomicUsize,
}

struct Gate {
    sq: SqProducer<MappedQueue>,
    free: Vec<u32>,
    /// Who waits for a place, by a number that only grows.
    waiting: VecDeque<(u64, Waker)>,
    next_waiter: u64,
    closed: bool,
}

impl<C> Lane<C> {
    /// `depth` places; the rings of `queue` hold twice as many.
    pub fn new(channel: Channel, depth: u32, queue: MappedQueue, counters: Arc<QueueShared>) -> Self {
        let slot = || Mutex::new(Slot { generation: 0, state: State::Free });
        let gate = Gate {
            sq: SqProducer::new(queue),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            next_waiter: 0,
            closed: false,
        };
        Self {
            channel,
            slots: (0..depth).map(|_| slot()).collect(),
            gate: Mutex::new(gate),
            counters,
            submitted: AtomicU64::new(0),
            free: AtomicU32::new(depth),
            answered: AtomicU64::new(0),
            live: AtomicUsize::new(0),
        }
    }

    // ---- callers

    /// Takes an event in: returns its user_data, whose lower half is its place, or the event. The flag says whether the engine's doorbell must be rung. Unless
    /// `publish`, the engine sees the event with the next one that is published, or after [`Self::publish`].
    pub fn place<D>(
        &self,
        event: IoEvent<D>,
        then: impl FnOnce(D) -> Then<C>,
        publish: bool,
    ) -> (Result<u64, Refused<D>>, bool) {
        let mut gate = self.gate();
        if gate.closed {
            return (Err(Refused { event, why: Refusal::Closed }), false);
        }
        if gate.free.is_empty() || !gate.sq.has_room() {
            let why = Refusal::Full { channel: self.channel, depth: self.slots.len() as u32 };
            // A caller that staged them all may wait for one now.
            return (Err(Refused { event, why }), gate.sq.publish());
        }
        let Some(index) = gate.free.pop() else { unreachable!("there was a free place") };
        let IoEvent { sqe, held, callback, .. } = event;
        let user_data = self.fill(index, Flight { asked: Asked::of(&sqe), held, then: then(callback) });
        self.live.fetch_add(1, SeqCst);
        self.submitted.store(self.submitted.load(Relaxed) + 1, Relaxed);
        self.free.store(gate.free.len() as u32, Relaxed);
        let pushed = gate.sq.push(&Sqe { user_data, ..sqe });
        debug_assert!(pushed.is_ok(), "there was room");
        (Ok(user_data), publish && gate.sq.publish())
    }

    /// Shows the engine what was staged. True: its doorbell must be rung.
    pub fn publish(&self) -> bool {
        self.gate().sq.publish()
    }

    /// A future asks for its answer, which frees its place.
    pub fn poll(&self, index: u32, waker: &Waker) -> Poll<IoCompletion> {
        let mut slot = self.slot(index);
        match mem::replace(&mut slot.state, State::Free) {
            State::Answered(completion) => {
                drop(slot);
                self.release(index);
                Poll::Ready(completion)
            }
            State::InFlight(mut flight) => {
                match &mut flight.then {
                    Then::Wake(Some(known)) => known.clone_from(waker),
                    then => *then = Then::Wake(Some(waker.clone())),
                }
                slot.state = State::InFlight(flight);
                Poll::Pending
            }
            State::Free => unreachable!("a future has its place until it has its answer"),
        }
    }

    /// A future goes without its answer. What it asked for is carried out all the same.
    pub fn forget(&self, index: u32) {
        let mut slot = self.slot(index);
        if let State::InFlight(flight) = &mut slot.state {
            flight.then = Then::Forget;
            return;
        }
        let answered = mem::replace(&mut slot.state, State::Free);
        drop(slot);
        drop(answered);
        self.release(index);
    }

    /// Frees a place, and wakes the first who waits for one.
    pub fn release(&self, index: u32) {
        let mut gate = self.gate();
        gate.free.push(index);
        self.free.store(gate.free.len() as u32, Relaxed);
        wake_next(gate);
    }

    // ---- waiting for a place

    /// Ready if there is a free place, or never will be. `waiter` is the number of who asks, once it has one.
    pub fn poll_room(&self, waiter: &mut Option<u64>, waker: &Waker) -> Poll<()> {
        let mut gate = self.gate();
        if gate.closed || !gate.free.is_empty() {
            gate.leave(waiter.take());
            return Poll::Ready(());
        }
        let place = gate.waiting.iter().position(|(number, _)| Some(*number) == *waiter);
        if let Some(place) = place {
            gate.waiting[place].1.clone_from(waker);
        } else {
            let number = gate.next_waiter;
            gate.next_waiter += 1;
            gate.waiting.push_back((number, waker.clone()));
            *waiter = Some(number);
        }
        Poll::Pending
    }

    /// Waits no more. A wake-up that was its own goes on to the next.
    pub fn leave_room(&self, waiter: u64) {
        let mut gate = self.gate();
        if !gate.leave(Some(waiter)) && !gate.free.is_empty() {
            wake_next(gate);
        }
    }

    // ---- the reaper

    /// An answer came.
    pub fn settle(&self, cqe: &Cqe) -> Settled<C> {
        let (generation, index) = ((cqe.user_data >> 32) as u32, cqe.user_data as u32);
        let Some(slot) = self.slots.get(index as usize) else { return Settled::Stray };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.generation != generation {
            return Settled::Stray;
        }
        match mem::replace(&mut slot.state, State::Free) {
            State::InFlight(Flight { asked, held, then }) => {
                self.answered.store(self.answered.load(Relaxed) + 1, Relaxed);
                self.tell(slot, index, asked.answered(cqe.result, held), then)
            }
            other => {
                slot.state = other;
                Settled::Stray
            }
        }
    }

    /// The end of what no answer will come for: nothing of it is in the rings any more. `unused`: nor does the kernel use its
    /// memory.
    pub fn give_up(&self, index: u32, unused: bool) -> Settled<C> {
        let mut slot = self.slot(index);
        match mem::replace(&mut slot.state, State::Free) {
            State::InFlight(Flight { asked, held, then }) => {
                let (buffer, list) = if unused {
                    held.into_parts()
                } else {
                    held.leak();
                    (None, None)
                };
                let result = Err(asked.failed(Cause::Unanswered));
                self.tell(slot, index, IoCompletion { result, buffer, list }, then)
            }
            other => {
                slot.state = other;
                Settled::Stray
            }
        }
    }

    fn tell(
        &self,
        mut slot: MutexGuard<'_, Slot<C>>,
        index: u32,
        completion: IoCompletion,
        then: Then<C>,
    ) -> Settled<C> {
        match then {
            Then::Call(callback) => return Settled::Call(index, callback, completion),
            Then::Wake(waker) => {
                slot.state = State::Answered(completion);
                drop(slot);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Then::Forget => {
                drop(slot);
                drop(completion);
                self.release(index);
            }
        }
        Settled::Told
    }

    /// Who was to be told was told. True: that was the last of the lane.
    pub fn told(&self) -> bool {
        self.live.fetch_sub(1, SeqCst) == 1
    }

    // ---- anyone

    /// Takes nothing more, and shows the engine what was staged. True: its doorbell must be rung.
    pub fn close(&self) -> bool {
        let mut gate = self.gate();
        gate.closed = true;
        let ring = gate.sq.publish();
        let waiting = mem::take(&mut gate.waiting);
        drop(gate);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
        ring
    }

    pub fn is_over(&self) -> bool {
        self.live.load(SeqCst) == 0
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    pub fn depth(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn counts(&self) -> IoCounts {
        // Later counters first, so that an event on its way is seen early rather than negative.
        let answered = self.answered.load(Relaxed);
        let live = self.live.load(Relaxed) as u64;
        let of_class = |class| CountersSnapshot::of(class).in_flight;
        let in_flight: u64 = self.counters.classes.iter().map(of_class).sum();
        let outstanding = self.submitted.load(Relaxed).saturating_sub(answered);
        let running = in_flight.min(outstanding);
        IoCounts {
            pending: outstanding - running,
            running,
            finished: live.saturating_sub(outstanding),
            free_slots: self.free.load(Relaxed).into(),
        }
    }

    fn fill(&self, index: u32, flight: Flight<C>) -> u64 {
        let mut slot = self.slot(index);
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::InFlight(flight);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn slot(&self, index: u32) -> MutexGuard<'_, Slot<C>> {
        self.slots[index as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// False: there is no such waiter, since it was woken.
    fn leave(&mut self, waiter: Option<u64>) -> bool {
        let place = self.waiting.iter().position(|(number, _)| Some(*number) == waiter);
        place.and_then(|place| self.waiting.remove(place)).is_some()
    }
}

/// Wakes outside of the lock: a waker may run anything.
fn wake_next(mut gate: MutexGuard<'_, Gate>) {
    let next = gate.waiting.pop_front();
    drop(gate);
    if let Some((_, waker)) = next {
        waker.wake();
    }
}
