//! Both ends of the SQ ring.

use super::fault::{Full, RingFault};
use super::memory::QueueMemory;
use super::sleep::{Ringer, Sleeper};
use crate::entry::Sqe;
use crate::sync::Ordering;

/// The client's submitting end.
#[derive(Debug)]
pub struct SqProducer<M> {
    memory: M,
    /// Next slot to fill; ahead of what was published.
    tail: u32,
    published: u32,
    /// Last sq_head and cq_head seen: how far slots and answers are known to be free.
    taken: u32,
    released: u32,
    ringer: Ringer,
}

impl<M: QueueMemory> SqProducer<M> {
    /// Goes on at the sq_tail in memory, which only this end writes.
    pub fn new(memory: M) -> SqProducer<M> {
        let tail = memory.sq_tail().load(Ordering::Relaxed);
        let taken = memory.sq_head().load(Ordering::Acquire);
        let released = memory.cq_head().load(Ordering::Relaxed);
        SqProducer { memory, tail, published: tail, taken, released, ringer: Ringer::default() }
    }

    /// Whether an SQE can be pushed. Looks at the daemon's index only when no room is known.
    pub fn has_room(&mut self) -> bool {
        self.known_room() > 0 || self.room() > 0
    }

    /// Stages an SQE. The daemon sees it after [`SqProducer::publish`].
    pub fn push(&mut self, sqe: &Sqe) -> Result<(), Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let slot = self.memory.sqe(self.tail);
        for (word, value) in slot.iter().zip(sqe.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// SQEs that can be pushed now: bounded by free SQ slots, and by CQ entries that are neither owed to an
    /// earlier SQE nor waiting to be released.
    pub fn room(&mut self) -> u32 {
        // SYNC sq-free: pairs with SqConsumer::publish.
        self.taken = self.memory.sq_head().load(Ordering::Acquire);
        // Relaxed: no slot is touched for it. Read-read coherence carries the release on to the daemon: its look at
        // cq_head comes after its look at the sq_tail that relies on this one.
        self.released = self.memory.cq_head().load(Ordering::Relaxed);
        self.known_room()
    }

    /// Bad indices give no room rather than too much.
    fn known_room(&self) -> u32 {
        let slots = self.memory.sq_entries().saturating_sub(self.tail.wrapping_sub(self.taken));
        let answers = self.memory.cq_entries().saturating_sub(self.tail.wrapping_sub(self.released));
        slots.min(answers)
    }

    /// SQEs pushed but not published.
    pub fn staged(&self) -> u32 {
        self.tail.wrapping_sub(self.published)
    }

    /// Shows the staged SQEs to the daemon. True: it sleeps, ring the session's doorbell.
    #[must_use = "true means that the daemon sleeps and its doorbell must be rung"]
    pub fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        // SYNC sq-publish: pairs with SqConsumer::available.
        self.memory.sq_tail().store(self.tail, Ordering::Release);
        self.published = self.tail;
        self.ringer.must_ring(self.memory.daemon_sleep())
    }
}

/// The daemon's taking end.
#[derive(Debug)]
pub struct SqConsumer<M> {
    memory: M,
    /// Next SQE to take; ahead of what was published.
    head: u32,
    published: u32,
    /// Last sq_tail that passed the check.
    tail: u32,
    sleeper: Sleeper,
}

impl<M: QueueMemory> SqConsumer<M> {
    /// The end of a fresh queue.
    pub fn new(memory: M) -> SqConsumer<M> {
        SqConsumer::resume(memory, 0)
    }

    /// Goes on at the daemon's own record of sq_head.
    pub fn resume(memory: M, head: u32) -> SqConsumer<M> {
        let sleeper = Sleeper::new(memory.daemon_sleep());
        memory.sq_head().store(head, Ordering::Release);
        SqConsumer { memory, head, published: head, tail: head, sleeper }
    }

    /// SQEs that can be taken. Looks at the client's index only when all that were known are taken.
    ///
    /// Finding some ends a sleep: see [`SqConsumer::prepare_sleep`].
    pub fn available(&mut self) -> Result<u32, RingFault> {
        if self.tail == self.head {
            self.look()?;
        }
        Ok(self.tail.wrapping_sub(self.head))
    }

    fn look(&mut self) -> Result<(), RingFault> {
        // SYNC sq-publish: pairs with SqProducer::publish.
        let tail = self.memory.sq_tail().load(Ordering::Acquire);
        let entries = self.memory.sq_entries();
        if tail.wrapping_sub(self.head) > entries {
            return Err(RingFault::SqTailAhead { head: self.head, tail, entries });
        }
        self.tail = tail;
        if self.tail != self.head {
            self.wake();
        }
        Ok(())
    }

    /// Copies the next SQE out, once, if [`SqConsumer::available`] proved one. The client may write to the slot
    /// meanwhile: the copy is any mixture of what it wrote, and is what gets checked.
    pub fn take(&mut self) -> Option<Sqe> {
        let sqe = self.peek(0)?;
        self.head = self.head.wrapping_add(1);
        Some(sqe)
    }

    /// Copies an SQE out that stands `ahead` of the next one, if it became visible with the same look at the client's index.
    /// It stays to be taken: who goes on from this copy uses it, and then [`SqConsumer::skip`]s the SQE.
    pub fn peek(&self, ahead: u32) -> Option<Sqe> {
        if ahead >= self.tail.wrapping_sub(self.head) {
            return None;
        }
        let slot = self.memory.sqe(self.head.wrapping_add(ahead));
        Some(Sqe::from_words(std::array::from_fn(|word| slot[word].load(Ordering::Relaxed))))
    }

    /// Counts SQEs as taken that were peeked at; no more than are known to be there.
    pub fn skip(&mut self, sqes: u32) {
        self.head = self.head.wrapping_add(sqes.min(self.tail.wrapping_sub(self.head)));
    }

    /// Gives the slots of the taken SQEs back to the client.
    pub fn publish(&mut self) {
        if self.head != self.published {
            // SYNC sq-free: pairs with SqProducer::room.
            self.memory.sq_head().store(self.head, Ordering::Release);
            self.published = self.head;
        }
    }

    /// Index of the next SQE.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// True: nothing is there, and the client will ring the doorbell when there is. False: something came, and the
    /// client will not ring.
    ///
    /// The queue may stay asleep for as long as its doorbell is not drained. Whoever drains it calls this **on
    /// every queue behind it, afterwards**, before it sleeps again: a ring counts for one call only.
    pub fn prepare_sleep(&mut self) -> Result<bool, RingFault> {
        if self.available()? == 0 {
            self.sleeper.announce(self.memory.daemon_sleep());
            self.look()?;
        }
        Ok(self.tail == self.head)
    }

    /// Ends the sleep: the client need not ring any more.
    pub fn wake(&mut self) {
        self.sleeper.wake(self.memory.daemon_sleep());
    }

    /// Whether the client was told to ring.
    pub fn is_asleep(&self) -> bool {
        self.sleeper.is_asleep()
    }
}
