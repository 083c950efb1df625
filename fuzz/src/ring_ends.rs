//! The daemon's ring ends beside a client that owns the words of a queue and stores what it likes.
//!
//! A model predicts every answer: what is available, how much room there is, which fault is found and when.

use arbitrary::{Arbitrary, Result, Unstructured};
use ferrio_shm::{
    entry::{Cqe, Sqe},
    ring::{CqCredit, CqProducer, HeapQueue, QueueMemory, RingFault, SqConsumer},
    sync::Ordering::Relaxed,
};

#[derive(Arbitrary, Debug)]
enum Step {
    /// The client's stores.
    SqTail(Index),
    CqHead(Index),
    Sleeps {
        client: u32,
        daemon: u32,
    },
    /// Words that only the daemon stores, and never reads back.
    Scribble {
        sq_head: u32,
        cq_tail: u32,
    },
    Write {
        index: u32,
        words: [u64; 8],
    },
    /// The daemon's calls.
    Take {
        most: u8,
    },
    Answer {
        most: u8,
    },
    PrepareSleep,
    Wake,
}

/// Mostly near what is allowed, because random indices are far beyond it.
#[derive(Arbitrary, Debug)]
enum Index {
    /// From where the daemon is.
    Ahead(u8),
    Behind(u8),
    /// At the last value allowed, or one or two beyond it.
    Limit(u8),
    Any(u32),
}

impl Index {
    fn value(&self, from: u32, limit: u32) -> u32 {
        match self {
            Index::Ahead(by) => from.wrapping_add(u32::from(*by) % 16),
            Index::Behind(by) => from.wrapping_sub(u32::from(*by) % 16),
            Index::Limit(beyond) => limit.wrapping_add(u32::from(*beyond) % 3),
            Index::Any(value) => *value,
        }
    }
}

/// What the daemon must believe, by ABI.md sections 6 and 8.
struct Model {
    head: u32,
    /// SQEs seen and not yet taken.
    seen: u32,
    accepted: u32,
    /// Last good cq_head that the Submitter saw, and that the reaper saw.
    released: u32,
    released_at_publish: u32,
    posted: u32,
}

struct Daemon {
    queue: HeapQueue,
    sq: SqConsumer<HeapQueue>,
    cq: CqProducer<HeapQueue>,
    credit: CqCredit<HeapQueue>,
    model: Model,
}

/// No store of a client makes the ring ends panic, believe more than a ring holds, or miss a fault.
pub fn ring_ends(data: &[u8]) {
    // Bytes that end early end the run.
    let _ = run(&mut Unstructured::new(data));
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let sq_entries = 1 << input.int_in_range(0..=5)?;
    let cq_entries = sq_entries << input.int_in_range(0..=2)?;
    let start = if input.ratio(1, 2)? {
        0u32.wrapping_sub(input.int_in_range(0..=16)?)
    } else {
        input.arbitrary()?
    };
    let mut daemon = Daemon::new(sq_entries, cq_entries, start);
    while !input.is_empty() {
        let step = Step::arbitrary(input)?;
        if daemon.step(&step).is_err() {
            // The session is faulted: the daemon does not touch this ring again.
            break;
        }
    }
    Ok(())
}

impl Daemon {
    fn new(sq_entries: u32, cq_entries: u32, start: u32) -> Daemon {
        let queue = HeapQueue::starting_at(sq_entries, cq_entries, start);
        let cq = CqProducer::resume(queue.clone(), start);
        let model = Model {
            head: start,
            seen: 0,
            accepted: start,
            released: start.wrapping_sub(cq_entries),
            released_at_publish: start.wrapping_sub(cq_entries),
            posted: start,
        };
        Daemon {
            sq: SqConsumer::resume(queue.clone(), start),
            credit: CqCredit::resume(queue.clone(), &cq, start),
            cq,
            queue,
            model,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), RingFault> {
        let queue = self.queue.clone();
        match step {
            Step::SqTail(index) => {
                let (head, limit) = (self.model.head, self.model.head.wrapping_add(queue.sq_entries()));
                queue.sq_tail().store(index.value(head, limit), Relaxed);
            }
            Step::CqHead(index) => {
                let (released, limit) = (self.model.released, self.model.posted);
                queue.cq_head().store(index.value(released, limit), Relaxed);
            }
            Step::Sleeps { client, daemon } => {
                queue.client_sleep().store(*client, Relaxed);
                queue.daemon_sleep().store(*daemon, Relaxed);
            }
            Step::Scribble { sq_head, cq_tail } => {
                queue.sq_head().store(*sq_head, Relaxed);
                queue.cq_tail().store(*cq_tail, Relaxed);
            }
            Step::Write { index, words } => {
                for (slot, word) in queue.sqe(*index).iter().zip(words) {
                    slot.store(*word, Relaxed);
                }
            }
            Step::Take { most } => self.take(*most)?,
            Step::Answer { most } => self.answer(*most)?,
            Step::PrepareSleep => {
                let asleep = self.sq.prepare_sleep();
                assert_eq!(asleep, self.model.look(&queue).map(|()| self.model.seen == 0));
                assert!(asleep? <= self.sq.is_asleep());
            }
            Step::Wake => {
                self.sq.wake();
                assert!(!self.sq.is_asleep());
            }
        }
        Ok(())
    }

    /// As the Submitter does it: bound, reserve, copy, publish.
    fn take(&mut self, most: u8) -> Result<(), RingFault> {
        let available = self.sq.available();
        assert_eq!(available, self.model.look(&self.queue).map(|()| self.model.seen));
        let available = available?;
        assert!(available <= self.queue.sq_entries());
        for _ in 0..available.min(most.into()) {
            let reserved = self.credit.reserve();
            assert_eq!(reserved, self.model.reserve(&self.queue));
            reserved?;
            let slot = self.queue.sqe(self.model.head);
            let there = Sqe::from_words(std::array::from_fn(|word| slot[word].load(Relaxed)));
            assert_eq!(self.sq.take(), Some(there), "the SQE at the daemon's own index");
            self.model.head = self.model.head.wrapping_add(1);
            self.model.seen -= 1;
            assert_eq!((self.sq.head(), self.credit.accepted()), (self.model.head, self.model.accepted));
        }
        if self.model.seen == 0 {
            assert_eq!(self.sq.take(), None, "nothing beyond what was proved to be there");
        }
        self.sq.publish();
        Ok(())
    }

    /// As the reaper does it: only what was accepted is answered, then shown at once.
    fn answer(&mut self, most: u8) -> Result<(), RingFault> {
        let open = self.model.accepted.wrapping_sub(self.model.posted);
        assert!(open <= self.queue.cq_entries(), "{open} requests in flight");
        let count = open.min(most.into());
        for n in 0..count {
            let index = self.model.posted.wrapping_add(n);
            assert_eq!(self.cq.push(&Cqe { user_data: index.into(), result: 0, flags: 0 }), index);
        }
        self.model.posted = self.model.posted.wrapping_add(count);
        let published = self.cq.publish().map(drop);
        assert_eq!(self.cq.tail(), self.model.posted);
        if count == 0 {
            return published;
        }
        assert_eq!(self.queue.cq_tail().load(Relaxed), self.model.posted, "shown even beside a fault");
        let head = self.queue.cq_head().load(Relaxed);
        let from = self.model.released_at_publish;
        assert_eq!(published, check_head(from, head, self.model.posted));
        self.model.released_at_publish = head;
        published
    }
}

impl Model {
    /// The client's tail is looked at only when nothing is known to be there.
    fn look(&mut self, queue: &HeapQueue) -> Result<(), RingFault> {
        if self.seen > 0 {
            return Ok(());
        }
        let (tail, entries) = (queue.sq_tail().load(Relaxed), queue.sq_entries());
        let seen = tail.wrapping_sub(self.head);
        if seen > entries {
            return Err(RingFault::SqTailAhead { head: self.head, tail, entries });
        }
        self.seen = seen;
        Ok(())
    }

    /// The client's head is looked at only when no entry is known to be free.
    fn reserve(&mut self, queue: &HeapQueue) -> Result<(), RingFault> {
        let entries = queue.cq_entries();
        if self.accepted.wrapping_sub(self.released) == entries {
            let head = queue.cq_head().load(Relaxed);
            check_head(self.released, head, self.posted)?;
            self.released = head;
        }
        if self.accepted.wrapping_sub(self.released) == entries {
            return Err(RingFault::CqOverbooked { entries });
        }
        self.accepted = self.accepted.wrapping_add(1);
        Ok(())
    }
}

/// Forward, and no further than what was posted.
fn check_head(released: u32, head: u32, tail: u32) -> Result<(), RingFault> {
    if head.wrapping_sub(released) <= tail.wrapping_sub(released) {
        return Ok(());
    }
    Err(RingFault::CqHeadAhead { released, head, tail })
}
