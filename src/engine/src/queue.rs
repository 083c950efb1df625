//! Stage 3: the class queues.
//!
//! A *flow* is what one session queue has waiting in one class for one volume, reads and writes apart: a FIFO of records, so
//! that a volume or direction that must wait holds back nothing else. A session takes turns between its flows; which session
//! of a class is next, its weight decides ([`crate::scheduler::fair`]). All lists are intrusive over indices: nothing is
//! allocated but when sessions and queues come.
//!
//! A turn is a *run* of requests of one flow, charged together when it ends. A request that comes when nothing else waits is
//! *alone*: it is in no list, and as it goes before nobody it is not charged.

mod turns;

use std::ops::Range;

use range_alloc::RangeAllocator;
use slab::Slab;

use self::turns::{NO_RUN, Run};
use crate::{
    links::NIL,
    scheduler::{
        fair::Fair,
        limits::{Cost, LimitKey},
    },
    session::VolumeId,
};

/// Class a request is scheduled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// The SQE asked for priority.
    Prio = 0,
    /// Reads and no-ops.
    Read = 1,
    /// Writes and flushes.
    Write = 2,
}

impl Class {
    /// All classes, in the order of their index.
    pub const ALL: [Class; 3] = [Class::Prio, Class::Read, Class::Write];

    /// Index into arrays by class.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Flows that a queue has for each volume: two of prio, one of read, one of write.
const STREAMS: u32 = 4;
/// Bytes that a request may move for a cost of 1, as a power of two.
const COST_BITS: u32 = 14;

/// What a request costs its class and its session: 1 for each 16 KiB begun, and 1 if it moves none.
#[inline]
pub const fn cost_of(bytes: u32) -> u32 {
    (bytes.saturating_sub(1) >> COST_BITS) + 1
}

/// A request as it is scheduled.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Queue index in the engine.
    pub queue: u32,
    /// Place of its volume among those of its session; `None` for an operation without one.
    pub volume: Option<u16>,
    /// Class.
    pub class: Class,
    /// It changes the volume.
    pub writes: bool,
    /// Of data; at most 1 GiB.
    pub bytes: u32,
    /// Limits count it.
    pub limited: bool,
}

/// A request whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Its record.
    pub record: u32,
    /// Its class.
    pub class: Class,
    /// What it is charged: nothing if it was alone.
    pub cost: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Neighbours in its flow; meaningful while it waits.
    next: u32,
    prev: u32,
    flow: u32,
    bytes: u32,
    class: Class,
    /// Limits have still to let it pass.
    unpaid: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It is among the flows of its session that may be served, if it has anything.
    Open,
    /// It waits for something else than its turn.
    Shut,
}

#[derive(Clone, Copy)]
struct Flow {
    head: u32,
    tail: u32,
    /// Neighbours in its session's list; meaningful while it is open and has something.
    next: u32,
    prev: u32,
    len: u32,
    session: u32,
    /// In the engine; [`NIL`] for none.
    volume: u32,
    state: State,
    class: Class,
    writes: bool,
}

#[derive(Clone, Copy)]
struct FlowList {
    head: u32,
    tail: u32,
}

struct Session {
    /// Flows that may be served, by class.
    flows: [FlowList; 3],
    queues: u32,
    limit: Option<LimitKey>,
    group: Option<LimitKey>,
}

/// Whom the limits of a request belong to, and what it takes of them.
pub(crate) struct Payer {
    pub volume: u32,
    pub session: Option<LimitKey>,
    pub group: Option<LimitKey>,
    pub cost: Cost,
}

/// The queues of one engine. Owned by its Submitter.
pub struct ClassQueues {
    /// By record.
    entries: Box<[Entry]>,
    flows: Vec<Flow>,
    ranges: RangeAllocator<u32>,
    /// The flows of each queue.
    queues: Vec<Range<u32>>,
    sessions: Slab<Session>,
    fair: [Fair; 3],
    /// Requests waiting, by class.
    waiting: [u32; 3],
    run: Run,
    /// The only request that waits, or [`NIL`].
    alone: u32,
}

impl ClassQueues {
    /// Queues for records `0..requests_max`.
    pub fn new(requests_max: u32) -> Self {
        let entry = Entry { next: NIL, prev: NIL, flow: NIL, bytes: 0, class: Class::Read, unpaid: false };
        Self {
            entries: vec![entry; requests_max as usize].into(),
            flows: Vec::new(),
            ranges: RangeAllocator::new(0..0),
            queues: Vec::new(),
            sessions: Slab::new(),
            fair: std::array::from_fn(|_| Fair::default()),
            waiting: [0; 3],
            run: NO_RUN,
            alone: NIL,
        }
    }

    // ---- sessions and queues

    /// Takes a session in; returns its key.
    pub fn add_session(&mut self, weight: u32) -> u32 {
        let empty = FlowList { head: NIL, tail: NIL };
        let session = Session { flows: [empty; 3], queues: 0, limit: None, group: None };
        let key = self.sessions.insert(session) as u32;
        self.fair.iter_mut().for_each(|fair| fair.add(key, weight));
        key
    }

    /// Changes the weight of a session, for what it issues from now on.
    pub fn set_weight(&mut self, session: u32, weight: u32) {
        self.fair.iter_mut().for_each(|fair| fair.set_weight(session, weight));
    }

    /// The weight of a session.
    pub fn weight(&self, session: u32) -> u32 {
        self.fair[0].weight(session)
    }

    /// Changes which limits hold for a session.
    pub(crate) fn set_limits(&mut self, session: u32, limit: Option<LimitKey>, group: Option<LimitKey>) {
        let session = &mut self.sessions[session as usize];
        (session.limit, session.group) = (limit, group);
    }

    /// Makes the flows of queue `queue` of a session. `volumes` are those its requests may name.
    pub fn add_queue(&mut self, queue: u32, session: u32, volumes: &[Option<VolumeId>]) {
        let count = (volumes.len() as u32 + 1) * STREAMS;
        let range = match self.ranges.allocate_range(count) {
            Ok(range) => range,
            Err(_) => {
                self.ranges.grow_to(self.flows.len() as u32 + count);
                let Ok(range) = self.ranges.allocate_range(count) else {
                    unreachable!("it was made room for")
                };
                range
            }
        };
        let classes = [Class::Prio, Class::Prio, Class::Read, Class::Write];
        let made = volumes.iter().chain([&None]).flat_map(|volume| {
            classes.into_iter().enumerate().map(|(stream, class)| Flow {
                head: NIL,
                tail: NIL,
                next: NIL,
                prev: NIL,
                len: 0,
                session,
                volume: volume.map_or(NIL, |volume| volume.0),
                state: State::Open,
                class,
                writes: stream % 2 == 1,
            })
        });
        for (id, flow) in range.clone().zip(made) {
            match self.flows.get_mut(id as usize) {
                Some(place) => *place = flow,
                None => self.flows.push(flow),
            }
        }
        if self.queues.len() <= queue as usize {
            self.queues.resize(queue as usize + 1, 0..0);
        }
        self.queues[queue as usize] = range;
        self.sessions[session as usize].queues += 1;
    }

    /// Forgets a queue that has nothing waiting; with its last queue a session goes, whose key this returns.
    pub fn remove_queue(&mut self, queue: u32) -> Option<u32> {
        let range = std::mem::take(self.queues.get_mut(queue as usize)?);
        if range.is_empty() {
            return None;
        }
        let key = self.flows[range.start as usize].session;
        self.ranges.free_range(range);
        let session = &mut self.sessions[key as usize];
        session.queues -= 1;
        if session.queues > 0 {
            return None;
        }
        self.sessions.remove(key as usize);
        Some(key)
    }

    // ---- what waits

    /// Requests waiting in `class`, those among them that must wait for something else than their turn.
    pub fn len(&self, class: Class) -> u32 {
        self.waiting[class.index()]
    }

    /// Nothing waits in any class.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting == [0; 3]
    }

    /// Which classes have requests that may be served, by class index.
    #[inline]
    pub fn backlog(&self) -> [bool; 3] {
        let mut backlog = self.fair.each_ref().map(|fair| !fair.is_empty());
        if let Some(flow) = self.flows.get(self.run.flow as usize) {
            let only = flow.next == NIL && flow.prev == NIL && self.fair[flow.class.index()].has_one();
            backlog[flow.class.index()] = flow.len > 0 || !only;
        }
        if let Some(entry) = self.entries.get(self.alone as usize) {
            backlog[entry.class.index()] = true;
        }
        backlog
    }

    /// Makes a record that of a new request; [`Self::push_back`] it when nothing but its turn holds it back.
    pub fn arrive(&mut self, record: u32, arrival: &Arrival) {
        let flow = self.flow_of(arrival);
        let Arrival { class, bytes, limited, .. } = *arrival;
        self.entries[record as usize] = Entry { next: NIL, prev: NIL, flow, bytes, class, unpaid: limited };
    }

    /// Both at once.
    #[inline]
    pub fn push_new(&mut self, record: u32, arrival: &Arrival) {
        let flow = self.flow_of(arrival);
        let Arrival { class, bytes, limited, .. } = *arrival;
        let prev = if self.is_empty() {
            self.waiting[class.index()] = 1;
            self.alone = record;
            NIL
        } else {
            self.join_others();
            self.append(record, flow)
        };
        self.entries[record as usize] = Entry { next: NIL, prev, flow, bytes, class, unpaid: limited };
    }

    /// What was alone is not any more.
    #[inline]
    pub fn join_others(&mut self) {
        if self.alone != NIL {
            let record = std::mem::replace(&mut self.alone, NIL);
            let Entry { flow, class, .. } = self.entries[record as usize];
            self.waiting[class.index()] -= 1;
            self.append(record, flow);
        }
    }

    #[inline]
    fn flow_of(&self, arrival: &Arrival) -> u32 {
        let range = &self.queues[arrival.queue as usize];
        let stream = match arrival.class {
            Class::Prio => u32::from(arrival.writes),
            Class::Read => 2,
            Class::Write => 3,
        };
        stream
            + match arrival.volume {
                Some(volume) => range.start + u32::from(volume) * STREAMS,
                None => range.end - STREAMS,
            }
    }

    /// Links the neighbours and the flow of a record that is the last now; returns the one before it.
    #[inline]
    fn append(&mut self, record: u32, id: u32) -> u32 {
        debug_assert_eq!(self.run.flow, NIL, "a flow stays linked while its run lasts");
        let flow = &mut self.flows[id as usize];
        let tail = std::mem::replace(&mut flow.tail, record);
        flow.len += 1;
        self.waiting[flow.class.index()] += 1;
        if flow.len > 1 {
            self.entries[tail as usize].next = record;
        } else {
            flow.head = record;
            self.link(id);
        }
        tail
    }

    /// The record that is next in the flow of one that was popped.
    #[inline]
    pub fn next_of_flow(&self, record: u32) -> Option<u32> {
        let flow = &self.flows[self.entries[record as usize].flow as usize];
        (flow.len > 0).then_some(flow.head)
    }

    /// Class of a request that has arrived.
    #[inline]
    pub fn class(&self, record: u32) -> Class {
        self.entries[record as usize].class
    }

    /// Appends a record to its flow.
    #[inline]
    pub fn push_back(&mut self, record: u32) {
        self.join_others();
        let prev = self.append(record, self.entries[record as usize].flow);
        let entry = &mut self.entries[record as usize];
        (entry.next, entry.prev) = (NIL, prev);
    }

    /// Puts a record before the others of its flow: it goes on, and is charged again. A flow that was shut is open then.
    pub fn push_front(&mut self, record: u32) {
        self.join_others();
        let id = self.insert_front(record);
        let flow = self.flows[id as usize];
        if flow.state == State::Shut {
            self.flows[id as usize].state = State::Open;
            self.link(id);
        } else if flow.len == 1 {
            self.link(id);
        }
    }

    fn insert_front(&mut self, record: u32) -> u32 {
        let id = self.entries[record as usize].flow;
        let flow = &mut self.flows[id as usize];
        let entry = &mut self.entries[record as usize];
        (entry.next, entry.prev) = (flow.head, NIL);
        match flow.len {
            0 => flow.tail = record,
            _ => self.entries[flow.head as usize].prev = record,
        }
        flow.head = record;
        flow.len += 1;
        self.waiting[flow.class.index()] += 1;
        id
    }

    /// After [`Self::refund`] and the end of the run: the flow is shut until [`Self::reopen`], as what is its first must wait.
    pub fn shut(&mut self, record: u32) {
        debug_assert_eq!(self.run.flow, NIL);
        let id = self.insert_front(record);
        let flow = &mut self.flows[id as usize];
        flow.state = State::Shut;
        if flow.len > 1 {
            self.unlink(id);
        }
    }

    /// The flow of a record may be served again; false if it was not shut.
    pub fn reopen(&mut self, record: u32) -> bool {
        let id = self.entries[record as usize].flow;
        let flow = &mut self.flows[id as usize];
        if flow.state == State::Open {
            return false;
        }
        flow.state = State::Open;
        if flow.len > 0 {
            self.link(id);
        }
        true
    }

    /// The first record of the flow of this one, if the flow is shut.
    pub fn shut_head(&self, record: u32) -> Option<u32> {
        let flow = &self.flows[self.entries[record as usize].flow as usize];
        (flow.state == State::Shut).then_some(flow.head)
    }

    /// Any record that waits in a queue.
    pub fn first_of_queue(&mut self, queue: u32) -> Option<u32> {
        self.join_others();
        let range = self.queues.get(queue as usize)?;
        let flows = &self.flows[range.start as usize..range.end as usize];
        flows.iter().find(|flow| flow.len > 0).map(|flow| flow.head)
    }

    /// Takes out a record that waits, wherever it stands, and charges nobody. A flow that was shut is open then.
    pub fn remove(&mut self, record: u32) {
        self.join_others();
        let Entry { next, prev, flow: id, .. } = self.entries[record as usize];
        let flow = &mut self.flows[id as usize];
        if flow.head == record {
            flow.head = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if flow.tail == record {
            flow.tail = prev;
        } else {
            self.entries[next as usize].prev = prev;
        }
        flow.len -= 1;
        self.waiting[flow.class.index()] -= 1;
        let (len, state) = (flow.len, flow.state);
        match state {
            State::Shut => {
                self.reopen(record);
            }
            State::Open if len == 0 => self.unlink(id),
            State::Open => {}
        }
    }

    /// Who has to let a record pass; `None` if nobody has.
    pub(crate) fn payer(&self, record: u32) -> Option<Payer> {
        let entry = &self.entries[record as usize];
        if !entry.unpaid {
            return None;
        }
        let flow = &self.flows[entry.flow as usize];
        let session = &self.sessions[flow.session as usize];
        let cost = Cost { writes: flow.writes, bytes: entry.bytes };
        Some(Payer { volume: flow.volume, session: session.limit, group: session.group, cost })
    }

    /// Limits have let a record pass, once and for all.
    pub(crate) fn paid(&mut self, record: u32) {
        self.entries[record as usize].unpaid = false;
    }

    // ---- the lists of sessions

    #[inline]
    fn link(&mut self, id: u32) {
        let flow = &mut self.flows[id as usize];
        let class = flow.class.index();
        let list = &mut self.sessions[flow.session as usize].flows[class];
        (flow.next, flow.prev) = (NIL, list.tail);
        let session = flow.session;
        let tail = std::mem::replace(&mut list.tail, id);
        if tail == NIL {
            list.head = id;
            self.fair[class].join(session);
        } else {
            self.flows[tail as usize].next = id;
        }
    }

    #[inline]
    fn unlink(&mut self, id: u32) {
        let Flow { next, prev, session, class, .. } = self.flows[id as usize];
        let list = &mut self.sessions[session as usize].flows[class.index()];
        match prev {
            NIL => list.head = next,
            _ => self.flows[prev as usize].next = next,
        }
        match next {
            NIL => list.tail = prev,
            _ => self.flows[next as usize].prev = prev,
        }
        if prev == NIL && next == NIL {
            self.fair[class.index()].leave(session);
        }
    }

    /// Another flow of the session is next. There are others.
    fn rotate(&mut self, id: u32) {
        let Flow { next, session, class, .. } = self.flows[id as usize];
        let list = &mut self.sessions[session as usize].flows[class.index()];
        list.head = next;
        let tail = std::mem::replace(&mut list.tail, id);
        self.flows[next as usize].prev = NIL;
        self.flows[tail as usize].next = id;
        let flow = &mut self.flows[id as usize];
        (flow.next, flow.prev) = (NIL, tail);
    }
}

#[cfg(test)]
mod tests;
