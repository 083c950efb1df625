//! What a queue's requests wait for among themselves: chains and barriers. Pure: no clock, no I/O.
//!
//! A *lane* is what one queue has for one volume; barriers act within it. It counts the requests that the barriers before
//! them have let through and that are not finished; while a barrier is one of them it is the only one. The others stand
//! behind it in the order of their acceptance. A chain member lets its successor go by succeeding, and breaks what is left of
//! the chain by failing. It counts in its lane from the moment its lane lets it through, though its chain may still hold it:
//! so a barrier waits for chain members that have not started.
//!
//! Whatever waits does so for a request that was accepted before it, so nobody waits in a circle. Every operation is O(1),
//! but those that let several go: each request is let go once.

use crate::links::{Links, List, NIL};

/// What can hold a request back.
mod wait {
    /// It stands behind a barrier, or is one and stands behind others.
    pub const LANE: u8 = 1 << 0;
    /// Its predecessor in the chain has not succeeded yet.
    pub const CHAIN: u8 = 1 << 1;
}

/// Where a request is, as far as order is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Order knows nothing of it.
    #[default]
    Out,
    /// Something holds it back.
    Held,
    /// Let go, and to be fetched by [`Order::pop_ready`].
    Ready,
    /// Not to be started any more, and to be fetched by [`Order::pop_broken`].
    Broken,
    /// Nothing holds it back.
    Free,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    queue: u32,
    lane: u32,
    /// Neighbours in its chain.
    after: u32,
    then: u32,
    place: Place,
    waits: u8,
    barrier: bool,
    /// One of those that its lane counts.
    counted: bool,
}

const OUT: Entry = Entry {
    queue: 0,
    lane: 0,
    after: NIL,
    then: NIL,
    place: Place::Out,
    waits: 0,
    barrier: false,
    counted: false,
};

#[derive(Clone, Copy, Debug)]
struct Lane {
    /// Let through and not finished.
    active: u32,
    /// The one that is active is a barrier.
    barrier: bool,
    /// Those behind.
    behind: List,
}

const IDLE: Lane = Lane { active: 0, barrier: false, behind: List::EMPTY };

#[derive(Debug)]
struct Queue {
    lanes: Box<[Lane]>,
    held: List,
    held_count: u32,
}

/// How a request stands in its queue.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Queue index in the engine.
    pub queue: u32,
    /// Index of its volume, `None` for an operation without one.
    pub volume: Option<u16>,
    /// It is a barrier.
    pub barrier: bool,
    /// Its predecessor in the chain: a record that is not finished.
    pub after: Option<u32>,
}

/// The order of all queues of an engine.
#[derive(Debug)]
pub struct Order {
    entries: Box<[Entry]>,
    /// Of the lists of lanes, of those ready and of those broken: a record is in one of them at most.
    links: Links,
    /// Of the lists of what each queue has held back.
    held_links: Links,
    queues: Vec<Queue>,
    ready: List,
    broken: List,
    held: u32,
}

impl Order {
    /// For records `0..requests_max`.
    pub fn new(requests_max: u32) -> Self {
        Self {
            entries: vec![OUT; requests_max as usize].into(),
            links: Links::new(requests_max),
            held_links: Links::new(requests_max),
            queues: Vec::new(),
            ready: List::EMPTY,
            broken: List::EMPTY,
            held: 0,
        }
    }

    /// Makes lanes for queue `queue`, whose requests may name `volumes` volumes.
    pub fn add_queue(&mut self, queue: u32, volumes: usize) {
        let index = queue as usize;
        if self.queues.len() <= index {
            let none = || Queue { lanes: Box::default(), held: List::EMPTY, held_count: 0 };
            self.queues.resize_with(index + 1, none);
        }
        // The last lane is that of operations without a volume.
        self.queues[index] =
            Queue { lanes: vec![IDLE; volumes + 1].into(), held: List::EMPTY, held_count: 0 };
    }

    /// Frees the lanes of a queue that has ended.
    pub fn remove_queue(&mut self, queue: u32) {
        if let Some(queue) = self.queues.get_mut(queue as usize) {
            queue.lanes = Box::default();
        }
    }

    /// Requests that are held back.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Requests of this queue that are held back.
    pub fn held_of(&self, queue: u32) -> u32 {
        self.queues.get(queue as usize).map_or(0, |queue| queue.held_count)
    }

    /// A request was accepted, the last one of its queue so far. True: nothing holds it back.
    pub fn admit(&mut self, record: u32, standing: &Standing) -> bool {
        let queue = &mut self.queues[standing.queue as usize];
        let none = queue.lanes.len() - 1;
        let index = standing.volume.map_or(none, usize::from);
        let lane = &mut queue.lanes[index];
        let entry = &mut self.entries[record as usize];
        *entry = Entry { queue: standing.queue, lane: index as u32, barrier: standing.barrier, ..OUT };
        let passes = lane.behind.is_empty() && !lane.barrier && !(standing.barrier && lane.active > 0);
        if passes {
            entry.counted = true;
            lane.active += 1;
            lane.barrier = standing.barrier;
        } else {
            entry.waits |= wait::LANE;
            self.links.push_back(&mut lane.behind, record);
        }
        if let Some(after) = standing.after {
            entry.waits |= wait::CHAIN;
            entry.after = after;
        }
        let free = entry.waits == 0;
        entry.place = if free { Place::Free } else { Place::Held };
        if let Some(after) = standing.after {
            self.entries[after as usize].then = record;
        }
        if !free {
            self.held += 1;
            let queue = &mut self.queues[standing.queue as usize];
            queue.held_count += 1;
            self.held_links.push_back(&mut queue.held, record);
        }
        free
    }

    /// Takes out a request that was not started, if order still has it: held back, or let go and not fetched. False: it has
    /// not. It counts in its lane until [`Self::finish`], which also breaks the chain after it.
    pub fn withdraw(&mut self, record: u32) -> bool {
        let entry = self.entries[record as usize];
        match entry.place {
            Place::Out | Place::Free | Place::Broken => return false,
            Place::Ready => self.links.remove(&mut self.ready, record),
            Place::Held => self.release(record),
        }
        self.entries[record as usize].place = Place::Free;
        if entry.after != NIL {
            self.entries[entry.after as usize].then = NIL;
            self.entries[record as usize].after = NIL;
        }
        self.entries[record as usize].waits = 0;
        if entry.waits & wait::LANE != 0 {
            let lane = &mut self.queues[entry.queue as usize].lanes[entry.lane as usize];
            self.links.remove(&mut lane.behind, record);
            // Those behind it may have waited for this barrier alone.
            self.advance(entry.queue, entry.lane);
        }
        true
    }

    /// A request was answered: what waited for it may be ready, or broken. A request that order does not know is fine.
    pub fn finish(&mut self, record: u32, succeeded: bool) {
        let entry = self.entries[record as usize];
        if entry.place == Place::Out {
            return;
        }
        self.entries[record as usize] = OUT;
        if entry.then != NIL {
            if succeeded {
                let then = &mut self.entries[entry.then as usize];
                then.after = NIL;
                then.waits &= !wait::CHAIN;
                self.let_go(entry.then);
            } else {
                self.break_chain(entry.then);
            }
        }
        if entry.counted {
            let lane = &mut self.queues[entry.queue as usize].lanes[entry.lane as usize];
            lane.active -= 1;
            if lane.active == 0 {
                lane.barrier = false;
                self.advance(entry.queue, entry.lane);
            }
        }
    }

    /// There is one for [`Self::pop_ready`].
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next request that nothing holds back any more.
    pub fn pop_ready(&mut self) -> Option<u32> {
        let record = self.links.pop_front(&mut self.ready)?;
        self.entries[record as usize].place = Place::Free;
        Some(record)
    }

    /// The next request that is not to be started, because one before it in its chain failed.
    pub fn pop_broken(&mut self) -> Option<u32> {
        let record = self.links.pop_front(&mut self.broken)?;
        self.entries[record as usize].place = Place::Free;
        Some(record)
    }

    /// Takes out any request that this queue has held back.
    pub fn pop_held(&mut self, queue: u32) -> Option<u32> {
        let record = self.queues.get(queue as usize)?.held.first()?;
        self.withdraw(record);
        Some(record)
    }

    /// The chain from `record` on.
    fn break_chain(&mut self, record: u32) {
        let mut next = record;
        while next != NIL {
            let record = next;
            let entry = &mut self.entries[record as usize];
            next = entry.then;
            // Its neighbours go the same way: nobody is to be told.
            (entry.after, entry.then) = (NIL, NIL);
            self.withdraw(record);
            self.entries[record as usize].place = Place::Broken;
            self.links.push_back(&mut self.broken, record);
        }
    }

    /// Lets those through that the lane no longer has to hold.
    fn advance(&mut self, queue: u32, lane_index: u32) {
        loop {
            let lane = &mut self.queues[queue as usize].lanes[lane_index as usize];
            let Some(first) = lane.behind.first() else { return };
            let entry = &mut self.entries[first as usize];
            if lane.barrier || (entry.barrier && lane.active > 0) {
                return;
            }
            self.links.remove(&mut lane.behind, first);
            lane.active += 1;
            lane.barrier = entry.barrier;
            entry.counted = true;
            entry.waits &= !wait::LANE;
            self.let_go(first);
        }
    }

    /// It is ready, if nothing else holds it back.
    fn let_go(&mut self, record: u32) {
        if self.entries[record as usize].waits == 0 {
            self.release(record);
            self.entries[record as usize].place = Place::Ready;
            self.links.push_back(&mut self.ready, record);
        }
    }

    /// It is no longer among those held back.
    fn release(&mut self, record: u32) {
        let queue = &mut self.queues[self.entries[record as usize].queue as usize];
        self.held_links.remove(&mut queue.held, record);
        queue.held_count -= 1;
        self.held -= 1;
    }
}
