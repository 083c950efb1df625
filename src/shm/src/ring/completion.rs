//! Both ends of the CQ ring, and the daemon's account of its entries.

use super::fault::RingFault;
use super::memory::QueueMemory;
use super::sleep::{Ringer, Sleeper};
use crate::entry::Cqe;
use crate::sync::{Arc, AtomicU32, Ordering};

/// The client's reaping end.
#[derive(Debug)]
pub struct CqConsumer<M> {
    memory: M,
    /// Next CQE to read; ahead of what was released.
    head: u32,
    released: u32,
    /// Last cq_tail that passed the check.
    tail: u32,
    sleeper: Sleeper,
}

impl<M: QueueMemory> CqConsumer<M> {
    /// Goes on at the cq_head in memory, which only this end writes.
    pub fn new(memory: M) -> CqConsumer<M> {
        let head = memory.cq_head().load(Ordering::Relaxed);
        let sleeper = Sleeper::new(memory.client_sleep());
        CqConsumer { memory, head, released: head, tail: head, sleeper }
    }

    /// CQEs that can be popped. Looks at the daemon's index only when all that were known are popped. Finding
    /// some ends a sleep.
    pub fn ready(&mut self) -> Result<u32, RingFault> {
        if self.tail == self.head {
            self.look()?;
        }
        Ok(self.tail.wrapping_sub(self.head))
    }

    fn look(&mut self) -> Result<(), RingFault> {
        // SYNC cq-publish: pairs with CqProducer::publish.
        let tail = self.memory.cq_tail().load(Ordering::Acquire);
        let entries = self.memory.cq_entries();
        if tail.wrapping_sub(self.head) > entries {
            return Err(RingFault::CqTailAhead { head: self.head, tail, entries });
        }
        self.tail = tail;
        if self.tail != self.head {
            self.wake();
        }
        Ok(())
    }

    /// Copies the next CQE out. Its slot stays taken until [`CqConsumer::release`].
    pub fn pop(&mut self) -> Result<Option<Cqe>, RingFault> {
        if self.ready()? == 0 {
            return Ok(None);
        }
        let slot = self.memory.cqe(self.head);
        let words = [slot[0].load(Ordering::Relaxed), slot[1].load(Ordering::Relaxed)];
        self.head = self.head.wrapping_add(1);
        Ok(Some(Cqe::from_words(words)))
    }

    /// Gives the slots of the popped CQEs back. Without it the queue stays full: release once per batch.
    pub fn release(&mut self) {
        if self.head != self.released {
            // SYNC cq-free: pairs with CqCredit::room.
            self.memory.cq_head().store(self.head, Ordering::Release);
            self.released = self.head;
        }
    }

    /// True: nothing is there and the daemon will ring the queue's doorbell when there is. False: something came,
    /// or the ring is broken; pop says which. After a drain of the doorbell call this again before sleeping again: a
    /// ring counts for one call only.
    pub fn prepare_sleep(&mut self) -> bool {
        let mut found = self.ready();
        if found == Ok(0) {
            self.sleeper.announce(self.memory.client_sleep());
            found = self.ready();
        }
        found == Ok(0)
    }

    /// Ends the sleep: the daemon need not ring any more.
    pub fn wake(&mut self) {
        self.sleeper.wake(self.memory.client_sleep());
    }
}

/// The Submitter's account of CQ entries: one is reserved before an SQE is accepted, so that the answer always
/// finds room.
#[derive(Debug)]
pub struct CqCredit<M> {
    memory: M,
    accepted: u32,
    /// Last cq_head that passed the check.
    released: u32,
    /// The producer's tail: what the client may have released at most.
    posted: Arc<AtomicU32>,
}

impl<M: QueueMemory> CqCredit<M> {
    /// The account of a fresh queue.
    pub fn new(memory: M, producer: &CqProducer<M>) -> CqCredit<M> {
        CqCredit::resume(memory, producer, 0)
    }

    /// Goes on with the number of requests accepted so far, from the daemon's own record; no more than the CQ
    /// entries of them are unanswered.
    pub fn resume(memory: M, producer: &CqProducer<M>, accepted: u32) -> CqCredit<M> {
        // The least the client can have released: nothing is believed before the first look.
        let released = accepted.wrapping_sub(memory.cq_entries());
        CqCredit { memory, accepted, released, posted: Arc::clone(&producer.posted) }
    }

    /// CQ entries that can be reserved. Looks at the client's index only when none is known to be free.
    pub fn room(&mut self) -> Result<u32, RingFault> {
        if self.known_room() == 0 {
            self.look()?;
        }
        Ok(self.known_room())
    }

    fn look(&mut self) -> Result<(), RingFault> {
        // SYNC cq-free: pairs with CqConsumer::release.
        let head = self.memory.cq_head().load(Ordering::Acquire);
        // Relaxed: the client released what it had seen in cq_tail, and posted was stored before that one.
        let tail = self.posted.load(Ordering::Relaxed);
        check_head(self.released, head, tail)?;
        self.released = head;
        Ok(())
    }

    fn known_room(&self) -> u32 {
        self.memory.cq_entries() - self.accepted.wrapping_sub(self.released)
    }

    /// Reserves one entry. A client must have one free for every SQE it publishes, so that there being none is
    /// a fault.
    pub fn reserve(&mut self) -> Result<(), RingFault> {
        self.reserve_up_to(1).map(|_| ())
    }

    /// Reserves as many entries as are known to be free, at most `entries` and at least one; returns how many. There being
    /// none is a fault.
    pub fn reserve_up_to(&mut self, entries: u32) -> Result<u32, RingFault> {
        let reserved = self.room()?.min(entries);
        if reserved == 0 {
            return Err(RingFault::CqOverbooked { entries: self.memory.cq_entries() });
        }
        self.accepted = self.accepted.wrapping_add(reserved);
        Ok(reserved)
    }

    /// Reserves `entries` together, or none of them.
    pub fn reserve_all(&mut self, entries: u32) -> Result<(), RingFault> {
        if self.known_room() < entries {
            self.look()?;
        }
        if self.known_room() < entries {
            return Err(RingFault::CqOverbooked { entries: self.memory.cq_entries() });
        }
        self.accepted = self.accepted.wrapping_add(entries);
        Ok(())
    }

    /// Requests accepted so far, free-running.
    pub fn accepted(&self) -> u32 {
        self.accepted
    }
}

/// The Poller's posting end.
#[derive(Debug)]
pub struct CqProducer<M> {
    memory: M,
    /// Next slot to fill; ahead of what was published.
    tail: u32,
    /// The published tail, shared with [`CqCredit`] inside the daemon.
    posted: Arc<AtomicU32>,
    /// Last cq_head that passed the check.
    released: u32,
    ringer: Ringer,
}

impl<M: QueueMemory> CqProducer<M> {
    /// The end of a fresh queue.
    pub fn new(memory: M) -> CqProducer<M> {
        CqProducer::resume(memory, 0)
    }

    /// Goes on at the daemon's own record of cq_tail.
    pub fn resume(memory: M, tail: u32) -> CqProducer<M> {
        let released = tail.wrapping_sub(memory.cq_entries());
        memory.cq_tail().store(tail, Ordering::Release);
        CqProducer {
            memory,
            tail,
            posted: Arc::new(AtomicU32::new(tail)),
            released,
            ringer: Ringer::default(),
        }
    }

    /// As [`CqProducer::resume`], where the client may not have seen the CQEs from `tail` on: they are written once more before
    /// it can see them, to where they stood. The client is to look at its CQ.
    pub fn repost(memory: M, tail: u32, cqes: &[Cqe]) -> CqProducer<M> {
        let mut end = tail;
        for cqe in cqes {
            write(&memory, end, cqe);
            end = end.wrapping_add(1);
        }
        CqProducer::resume(memory, end)
    }

    /// Stages a CQE in an entry that [`CqCredit`] reserved and returns its index. The client sees it after
    /// [`CqProducer::publish`].
    pub fn push(&mut self, cqe: &Cqe) -> u32 {
        let index = self.tail;
        write(&self.memory, index, cqe);
        self.tail = index.wrapping_add(1);
        index
    }

    /// Shows the staged CQEs to the client. True: it sleeps, ring the queue's doorbell.
    ///
    /// The fault is found on the way: cq_head shares the line with the sleep word. The CQEs are published anyway.
    pub fn publish(&mut self) -> Result<bool, RingFault> {
        if self.tail == self.posted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.posted.store(self.tail, Ordering::Relaxed);
        // SYNC cq-publish: pairs with CqConsumer::ready.
        self.memory.cq_tail().store(self.tail, Ordering::Release);
        let ring = self.ringer.must_ring(self.memory.client_sleep());
        let head = self.memory.cq_head().load(Ordering::Relaxed);
        check_head(self.released, head, self.tail)?;
        self.released = head;
        Ok(ring)
    }

    /// Index of the next CQE.
    pub fn tail(&self) -> u32 {
        self.tail
    }
}

fn write<M: QueueMemory>(memory: &M, index: u32, cqe: &Cqe) {
    let slot = memory.cqe(index);
    let [first, second] = cqe.to_words();
    slot[0].store(first, Ordering::Relaxed);
    slot[1].store(second, Ordering::Relaxed);
}

/// Whether cq_head moved forward from `released`, to `tail` at most.
fn check_head(released: u32, head: u32, tail: u32) -> Result<(), RingFault> {
    if head.wrapping_sub(released) > tail.wrapping_sub(released) {
        return Err(RingFault::CqHeadAhead { released, head, tail });
    }
    Ok(())
}
