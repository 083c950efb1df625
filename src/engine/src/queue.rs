//! Stage 3: the class queues.
//!
//! Per class a list of flows, per flow a FIFO of records. A flow is what one session queue has waiting in one class; the
//! class serves its flows in turn, so that a session with many requests does not stand before one with few. All lists are
//! intrusive over indices: no allocation after [`ClassQueues::add_queue`] has seen the highest queue index.

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

/// End of a list.
const NIL: u32 = u32::MAX;

/// Neighbours of a record in its flow; meaningful while it waits.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    prev: u32,
}

#[derive(Clone, Copy)]
struct Flow {
    head: u32,
    tail: u32,
    /// Neighbours in the class list; meaningful while `len > 0`.
    next: u32,
    prev: u32,
    len: u32,
}

const EMPTY: Flow = Flow { head: NIL, tail: NIL, next: NIL, prev: NIL, len: 0 };

#[derive(Clone, Copy)]
struct ClassList {
    head: u32,
    tail: u32,
    len: u32,
}

/// The queues of one engine. Owned by its Submitter.
pub struct ClassQueues {
    /// By record.
    links: Box<[Link]>,
    /// Flows by queue index, then class.
    flows: Vec<[Flow; 3]>,
    classes: [ClassList; 3],
    /// Requests a flow may give before the next flow has its turn.
    quantum: u32,
    /// What the flow at the head of each class has left of it.
    turn_left: [u32; 3],
}

impl ClassQueues {
    /// Queues for records `0..requests_max`. `quantum` (requests, >= 1) is how many a flow gives before the next one.
    pub fn new(requests_max: u32, quantum: u32) -> Self {
        let list = ClassList { head: NIL, tail: NIL, len: 0 };
        let quantum = quantum.max(1);
        Self {
            links: vec![Link { next: NIL, prev: NIL }; requests_max as usize].into(),
            flows: Vec::new(),
            classes: [list; 3],
            quantum,
            turn_left: [quantum; 3],
        }
    }

    /// Makes room for the flows of queue `queue`, which must have none waiting.
    pub fn add_queue(&mut self, queue: u32) {
        let index = queue as usize;
        if self.flows.len() <= index {
            self.flows.resize(index + 1, [EMPTY; 3]);
        }
    }

    /// Requests waiting in `class`.
    pub fn len(&self, class: Class) -> u32 {
        self.classes[class.index()].len
    }

    /// Nothing waits in any class.
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(|list| list.len == 0)
    }

    /// Which classes have requests waiting, by class index.
    pub fn backlog(&self) -> [bool; 3] {
        self.classes.map(|list| list.len > 0)
    }

    /// Appends a record.
    pub fn push_back(&mut self, class: Class, queue: u32, record: u32) {
        let flow = &mut self.flows[queue as usize][class.index()];
        self.links[record as usize] = Link { next: NIL, prev: flow.tail };
        let tail = std::mem::replace(&mut flow.tail, record);
        flow.len += 1;
        if flow.len > 1 {
            self.links[tail as usize].next = record;
        } else {
            flow.head = record;
            self.link_last(class, queue);
        }
        self.classes[class.index()].len += 1;
    }

    /// Puts back a record that the driver had no room for, or the rest of a short transfer: it is next in its class.
    pub fn push_front(&mut self, class: Class, queue: u32, record: u32) {
        let flow = &mut self.flows[queue as usize][class.index()];
        self.links[record as usize] = Link { next: flow.head, prev: NIL };
        match flow.len {
            0 => flow.tail = record,
            _ => self.links[flow.head as usize].prev = record,
        }
        flow.head = record;
        flow.len += 1;
        if flow.len == 1 {
            self.link_first(class, queue);
        }
        self.classes[class.index()].len += 1;
    }

    /// Takes the next record of `class`, with its queue.
    pub fn pop(&mut self, class: Class) -> Option<(u32, u32)> {
        let c = class.index();
        let queue = self.classes[c].head;
        if queue == NIL {
            return None;
        }
        let flow = &mut self.flows[queue as usize][c];
        let record = flow.head;
        flow.head = self.links[record as usize].next;
        flow.len -= 1;
        let emptied = flow.len == 0;
        self.classes[c].len -= 1;
        self.turn_left[c] -= 1;
        if emptied || self.turn_left[c] == 0 {
            self.unlink_first(class);
            if !emptied {
                self.link_last(class, queue);
            }
        }
        Some((queue, record))
    }

    /// Puts back a record that must wait, and with it its flow, behind the other flows of its class.
    pub fn pass_over(&mut self, class: Class, queue: u32, record: u32) {
        self.push_front(class, queue, record);
        if self.classes[class.index()].head == queue {
            self.unlink_first(class);
            self.link_last(class, queue);
        }
    }

    /// Takes a record of one queue, whatever its class: for a session that ends.
    pub fn pop_of_queue(&mut self, queue: u32) -> Option<(Class, u32)> {
        let class = Class::ALL.into_iter().find(|class| self.flows[queue as usize][class.index()].len > 0)?;
        let flow = &mut self.flows[queue as usize][class.index()];
        let record = flow.head;
        self.remove(class, queue, record);
        Some((class, record))
    }

    /// Takes out a record that waits in this class and queue, wherever it stands.
    pub fn remove(&mut self, class: Class, queue: u32, record: u32) {
        let flow = &mut self.flows[queue as usize][class.index()];
        let Link { next, prev } = self.links[record as usize];
        if flow.head == record {
            flow.head = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if flow.tail == record {
            flow.tail = prev;
        } else {
            self.links[next as usize].prev = prev;
        }
        flow.len -= 1;
        self.classes[class.index()].len -= 1;
        if flow.len == 0 {
            self.unlink(class, queue);
        }
    }

    fn link_last(&mut self, class: Class, queue: u32) {
        let c = class.index();
        let list = &mut self.classes[c];
        let flow = &mut self.flows[queue as usize][c];
        (flow.next, flow.prev) = (NIL, list.tail);
        if list.head == NIL {
            list.head = queue;
            self.turn_left[c] = self.quantum;
        } else {
            self.flows[list.tail as usize][c].next = queue;
        }
        list.tail = queue;
    }

    fn link_first(&mut self, class: Class, queue: u32) {
        let c = class.index();
        let list = &mut self.classes[c];
        let flow = &mut self.flows[queue as usize][c];
        (flow.next, flow.prev) = (list.head, NIL);
        if list.head == NIL {
            list.tail = queue;
        } else {
            self.flows[list.head as usize][c].prev = queue;
        }
        list.head = queue;
        self.turn_left[c] = self.quantum;
    }

    fn unlink_first(&mut self, class: Class) {
        self.unlink(class, self.classes[class.index()].head);
    }

    fn unlink(&mut self, class: Class, queue: u32) {
        let c = class.index();
        let list = &mut self.classes[c];
        let Flow { next, prev, .. } = self.flows[queue as usize][c];
        if list.head == queue {
            list.head = next;
            self.turn_left[c] = self.quantum;
        } else {
            self.flows[prev as usize][c].next = next;
        }
        if list.tail == queue {
            list.tail = prev;
        } else {
            self.flows[next as usize][c].prev = prev;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flow_gives_way_after_its_quantum() {
        let mut queues = ClassQueues::new(16, 2);
        queues.add_queue(0);
        queues.add_queue(1);
        for record in 0..5 {
            queues.push_back(Class::Read, 0, record);
        }
        queues.push_back(Class::Read, 1, 10);
        queues.push_back(Class::Read, 1, 11);
        let order: Vec<u32> =
            std::iter::from_fn(|| queues.pop(Class::Read)).map(|(_, record)| record).collect();
        assert_eq!(order, [0, 1, 10, 11, 2, 3, 4]);
    }

    #[test]
    fn put_back_is_next() {
        let mut queues = ClassQueues::new(8, 1);
        queues.add_queue(0);
        queues.add_queue(1);
        queues.push_back(Class::Write, 0, 0);
        queues.push_back(Class::Write, 0, 1);
        queues.push_back(Class::Write, 1, 2);
        let (queue, record) = queues.pop(Class::Write).unwrap();
        assert_eq!((queue, record), (0, 0));
        queues.push_front(Class::Write, queue, record);
        let rest: Vec<u32> =
            std::iter::from_fn(|| queues.pop(Class::Write)).map(|(_, record)| record).collect();
        assert_eq!(rest.len(), 3);
        assert!(
            rest.iter().position(|r| *r == 0) < rest.iter().position(|r| *r == 1),
            "FIFO within the flow: {rest:?}"
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, u32),
        PushFront(u8, u32),
        Pop(u8),
        Remove(u8, u32, usize),
        DropQueue(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3u8, 0..5u32).prop_map(|(class, queue)| Step::Push(class, queue)),
            1 => (0..3u8, 0..5u32).prop_map(|(class, queue)| Step::PushFront(class, queue)),
            4 => (0..3u8).prop_map(Step::Pop),
            2 => (0..3u8, 0..5u32, any::<usize>())
                .prop_map(|(class, queue, place)| Step::Remove(class, queue, place)),
            1 => (0..5u32).prop_map(Step::DropQueue),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        /// Against a model of one `VecDeque` per flow: nothing lost, nothing doubled, FIFO within a flow, and no flow is
        /// passed over for more than one quantum of each other flow.
        #[test]
        fn behaves_as_fifos(steps in steps(), quantum in 1..4u32) {
            const RECORDS: u32 = 64;
            let mut queues = ClassQueues::new(RECORDS, quantum);
            (0..5).for_each(|queue| queues.add_queue(queue));
            let mut free: Vec<u32> = (0..RECORDS).collect();
            let mut model: Vec<[VecDeque<u32>; 3]> = (0..5).map(|_| Default::default()).collect();
            for step in steps {
                match step {
                    Step::Push(class, queue) => if let Some(record) = free.pop() {
                        queues.push_back(Class::ALL[class as usize], queue, record);
                        model[queue as usize][class as usize].push_back(record);
                    },
                    Step::PushFront(class, queue) => if let Some(record) = free.pop() {
                        queues.push_front(Class::ALL[class as usize], queue, record);
                        model[queue as usize][class as usize].push_front(record);
                    },
                    Step::Pop(class) => match queues.pop(Class::ALL[class as usize]) {
                        Some((queue, record)) => {
                            prop_assert_eq!(model[queue as usize][class as usize].pop_front(), Some(record));
                            free.push(record);
                        }
                        None => prop_assert!(model.iter().all(|flows| flows[class as usize].is_empty())),
                    },
                    Step::Remove(class, queue, place) => {
                        let flow = &mut model[queue as usize][class as usize];
                        if !flow.is_empty() {
                            let record = flow.remove(place % flow.len()).unwrap();
                            queues.remove(Class::ALL[class as usize], queue, record);
                            free.push(record);
                        }
                    }
                    Step::DropQueue(queue) => {
                        while let Some((class, record)) = queues.pop_of_queue(queue) {
                            prop_assert_eq!(model[queue as usize][class.index()].pop_front(), Some(record));
                            free.push(record);
                        }
                        prop_assert!(model[queue as usize].iter().all(VecDeque::is_empty));
                    }
                }
                for class in Class::ALL {
                    let waiting: usize = model.iter().map(|flows| flows[class.index()].len()).sum();
                    prop_assert_eq!(queues.len(class) as usize, waiting);
                }
            }
        }
    }
}
