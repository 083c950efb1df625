//! The memory that the ends of a queue share.

use std::array;

use crate::sync::{Arc, AtomicU32, AtomicU64};

/// One queue's index words and entries: in a mapping in life, on the heap in models and tests.
///
/// The entry counts are this side's own copy, never read from shared memory, and powers of two. `sqe` and `cqe`
/// take free-running indices and mask them.
pub trait QueueMemory {
    /// SQ ring entries.
    fn sq_entries(&self) -> u32;
    /// CQ ring entries.
    fn cq_entries(&self) -> u32;
    /// Next SQE the client publishes.
    fn sq_tail(&self) -> &AtomicU32;
    /// Next CQE the client reads.
    fn cq_head(&self) -> &AtomicU32;
    /// Sleep epoch of the client.
    fn client_sleep(&self) -> &AtomicU32;
    /// Next SQE the daemon takes.
    fn sq_head(&self) -> &AtomicU32;
    /// Sleep epoch of the daemon.
    fn daemon_sleep(&self) -> &AtomicU32;
    /// Next CQE the daemon posts.
    fn cq_tail(&self) -> &AtomicU32;
    /// The words of an SQE.
    fn sqe(&self, index: u32) -> &[AtomicU64; 8];
    /// The words of a CQE.
    fn cqe(&self, index: u32) -> &[AtomicU64; 2];
}

/// A queue on the heap, shared by its clones.
#[derive(Clone, Debug)]
pub struct HeapQueue(Arc<HeapMemory>);

#[derive(Debug)]
struct HeapMemory {
    sq_tail: AtomicU32,
    cq_head: AtomicU32,
    client_sleep: AtomicU32,
    sq_head: AtomicU32,
    daemon_sleep: AtomicU32,
    cq_tail: AtomicU32,
    sqes: Box<[[AtomicU64; 8]]>,
    cqes: Box<[[AtomicU64; 2]]>,
}

impl HeapQueue {
    /// An empty queue whose indices begin at 0.
    ///
    /// # Panics
    /// If an entry count is not a power of two.
    #[must_use]
    pub fn new(sq_entries: u32, cq_entries: u32) -> HeapQueue {
        HeapQueue::starting_at(sq_entries, cq_entries, 0)
    }

    /// An empty queue that has already gone round to `index`; the ends on the daemon's side resume there.
    ///
    /// # Panics
    /// If an entry count is not a power of two.
    #[must_use]
    pub fn starting_at(sq_entries: u32, cq_entries: u32, index: u32) -> HeapQueue {
        assert!(sq_entries.is_power_of_two(), "sq_entries is {sq_entries}, not a power of two");
        assert!(cq_entries.is_power_of_two(), "cq_entries is {cq_entries}, not a power of two");
        HeapQueue(Arc::new(HeapMemory {
            sq_tail: AtomicU32::new(index),
            cq_head: AtomicU32::new(index),
            client_sleep: AtomicU32::new(0),
            sq_head: AtomicU32::new(index),
            daemon_sleep: AtomicU32::new(0),
            cq_tail: AtomicU32::new(index),
            sqes: (0..sq_entries).map(|_| array::from_fn(|_| AtomicU64::new(0))).collect(),
            cqes: (0..cq_entries).map(|_| array::from_fn(|_| AtomicU64::new(0))).collect(),
        }))
    }
}

impl QueueMemory for HeapQueue {
    fn sq_entries(&self) -> u32 {
        self.0.sqes.len() as u32
    }

    fn cq_entries(&self) -> u32 {
        self.0.cqes.len() as u32
    }

    fn sq_tail(&self) -> &AtomicU32 {
        &self.0.sq_tail
    }

    fn cq_head(&self) -> &AtomicU32 {
        &self.0.cq_head
    }

    fn client_sleep(&self) -> &AtomicU32 {
        &self.0.client_sleep
    }

    fn sq_head(&self) -> &AtomicU32 {
        &self.0.sq_head
    }

    fn daemon_sleep(&self) -> &AtomicU32 {
        &self.0.daemon_sleep
    }

    fn cq_tail(&self) -> &AtomicU32 {
        &self.0.cq_tail
    }

    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        &self.0.sqes[(index & (self.sq_entries() - 1)) as usize]
    }

    fn cqe(&self, index: u32) -> &[AtomicU64; 2] {
        &self.0.cqes[(index & (self.cq_entries() - 1)) as usize]
    }
}
