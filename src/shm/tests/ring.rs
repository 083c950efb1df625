//! The four ring ends, one thread: the same code as in life, over heap atomics.
#![cfg(not(loom))]

use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::ring::{
    CqConsumer, CqCredit, CqProducer, Full, HeapQueue, QueueMemory, RingFault, SqConsumer, SqProducer,
};
use ferrio_shm::sync::Ordering;
use proptest::prelude::*;

struct Ends {
    queue: HeapQueue,
    submit: SqProducer<HeapQueue>,
    reap: CqConsumer<HeapQueue>,
    take: SqConsumer<HeapQueue>,
    credit: CqCredit<HeapQueue>,
    post: CqProducer<HeapQueue>,
}

fn ends(sq_entries: u32, cq_entries: u32, start: u32) -> Ends {
    let queue = HeapQueue::starting_at(sq_entries, cq_entries, start);
    let post = CqProducer::resume(queue.clone(), start);
    Ends {
        submit: SqProducer::new(queue.clone()),
        reap: CqConsumer::new(queue.clone()),
        take: SqConsumer::resume(queue.clone(), start),
        credit: CqCredit::resume(queue.clone(), &post, start),
        post,
        queue,
    }
}

fn sqe(user_data: u64) -> Sqe {
    Sqe { op: 2, user_data, length: 4096, arg: !user_data, ..Sqe::default() }
}

impl Ends {
    /// Submits, takes, answers and reaps one request. Returns who was to be rung: daemon, client.
    fn round_trip(&mut self, user_data: u64) -> (bool, bool) {
        self.submit.push(&sqe(user_data)).unwrap();
        let daemon = self.submit.publish();
        assert_eq!(self.take.available(), Ok(1));
        assert_eq!(self.take.take(), Some(sqe(user_data)));
        self.credit.reserve().unwrap();
        self.take.publish();
        let cqe = Cqe { user_data, result: -5, flags: 1 };
        self.post.push(&cqe);
        let client = self.post.publish().unwrap();
        assert_eq!(self.reap.pop(), Ok(Some(cqe)));
        self.reap.release();
        (daemon, client)
    }
}

#[test]
fn indices_wrap_at_u32_max() {
    for entries in [1, 2, 8] {
        let mut ends = ends(entries, 2 * entries, u32::MAX - 4);
        for user_data in 0..20 {
            ends.round_trip(user_data);
        }
        assert_eq!(ends.take.head(), 15);
        assert_eq!(ends.post.tail(), 15);
        assert_eq!(ends.credit.accepted(), 15);
        assert_eq!(ends.queue.sq_head().load(Ordering::Relaxed), 15);
    }
}

#[test]
fn nothing_is_visible_before_publish() {
    let mut ends = ends(4, 8, 0);
    ends.submit.push(&sqe(1)).unwrap();
    ends.submit.push(&sqe(2)).unwrap();
    assert_eq!(ends.submit.staged(), 2);
    assert_eq!(ends.take.available(), Ok(0));
    assert_eq!(ends.take.take(), None);
    assert!(!ends.submit.publish(), "the daemon is awake");
    assert_eq!(ends.submit.staged(), 0);
    assert_eq!(ends.take.available(), Ok(2));

    ends.post.push(&Cqe::default());
    assert_eq!(ends.reap.ready(), Ok(0));
    assert_eq!(ends.reap.pop(), Ok(None));
}

#[test]
fn sq_is_full_until_the_daemon_publishes_its_head() {
    let mut ends = ends(2, 8, 0);
    assert_eq!(ends.submit.room(), 2);
    ends.submit.push(&sqe(1)).unwrap();
    ends.submit.push(&sqe(2)).unwrap();
    assert_eq!(ends.submit.push(&sqe(3)), Err(Full));
    let _ = ends.submit.publish();
    assert_eq!(ends.take.available(), Ok(2));
    ends.take.take().unwrap();
    assert_eq!(ends.submit.push(&sqe(3)), Err(Full), "taken, but not given back");
    ends.take.publish();
    assert_eq!(ends.submit.push(&sqe(3)), Ok(()));
    assert_eq!(ends.submit.push(&sqe(4)), Err(Full));
}

#[test]
fn an_sqe_needs_a_cq_entry_that_was_released() {
    let mut ends = ends(2, 2, 0);
    for user_data in 0..2 {
        ends.submit.push(&sqe(user_data)).unwrap();
        let _ = ends.submit.publish();
        ends.take.available().unwrap();
        ends.take.take().unwrap();
        ends.take.publish();
        ends.credit.reserve().unwrap();
    }
    assert_eq!(ends.submit.push(&sqe(2)), Err(Full), "SQ slots are free, CQ entries are not");
    ends.post.push(&Cqe::default());
    let _ = ends.post.publish().unwrap();
    ends.reap.pop().unwrap().unwrap();
    assert_eq!(ends.submit.push(&sqe(2)), Err(Full), "popped, but not released");
    ends.reap.release();
    assert_eq!(ends.submit.push(&sqe(2)), Ok(()));
    assert_eq!(ends.credit.room(), Ok(1));
}

#[test]
fn overbooking_is_a_fault() {
    let mut ends = ends(4, 4, 0);
    for user_data in 0..4 {
        ends.submit.push(&sqe(user_data)).unwrap();
    }
    let _ = ends.submit.publish();
    while ends.take.available().unwrap() > 0 {
        ends.take.take().unwrap();
        ends.credit.reserve().unwrap();
    }
    ends.take.publish();
    // A hostile client publishes a fifth although nothing was answered.
    ends.queue.sq_tail().store(5, Ordering::Relaxed);
    assert_eq!(ends.take.available(), Ok(1));
    let fault = ends.credit.reserve().unwrap_err();
    assert_eq!(fault, RingFault::CqOverbooked { entries: 4 });
}

#[test]
fn entries_are_reserved_as_far_as_they_go() {
    let mut ends = ends(4, 4, 0);
    assert_eq!(ends.credit.reserve_up_to(3), Ok(3));
    assert_eq!(ends.credit.reserve_up_to(3), Ok(1), "one is left");
    assert_eq!(ends.credit.reserve_up_to(3), Err(RingFault::CqOverbooked { entries: 4 }));
    assert_eq!(ends.credit.accepted(), 4, "nothing was reserved for who got nothing");
}

#[test]
fn releasing_what_was_not_posted_is_a_fault() {
    let mut ends = ends(2, 2, 0);
    ends.credit.reserve().unwrap();
    ends.credit.reserve().unwrap();
    ends.queue.cq_head().store(1, Ordering::Relaxed);
    let fault = ends.credit.reserve().unwrap_err();
    assert_eq!(fault, RingFault::CqHeadAhead { released: 0, head: 1, tail: 0 });
    assert_eq!(fault.to_string(), "cq_head is 1, it must be from 0 (released before) to 0 (posted)");
}

#[test]
fn taking_a_release_back_is_a_fault() {
    let mut ends = ends(2, 2, 7);
    ends.round_trip(1);
    ends.round_trip(2);
    ends.credit.reserve().unwrap();
    ends.credit.reserve().unwrap();
    ends.queue.cq_head().store(8, Ordering::Relaxed);
    assert_eq!(ends.credit.room(), Err(RingFault::CqHeadAhead { released: 9, head: 8, tail: 9 }));
    // The posting end looks less often: it saw 8 last.
    ends.queue.cq_head().store(7, Ordering::Relaxed);
    ends.post.push(&Cqe::default());
    assert_eq!(ends.post.publish(), Err(RingFault::CqHeadAhead { released: 8, head: 7, tail: 10 }));
}

#[test]
fn faults_name_index_value_and_bound() {
    let mut ends = ends(4, 8, u32::MAX);
    ends.queue.sq_tail().store(4, Ordering::Relaxed);
    let fault = ends.take.available().unwrap_err();
    assert_eq!(fault.to_string(), "sq_tail is 4, with sq_head 4294967295 it may be at most 3 (4 SQ entries)");
    assert_eq!(ends.take.take(), None, "nothing is taken after a fault");

    ends.queue.cq_tail().store(8, Ordering::Relaxed);
    let fault = ends.reap.pop().unwrap_err();
    assert_eq!(fault.to_string(), "cq_tail is 8, with cq_head 4294967295 it may be at most 7 (8 CQ entries)");
    assert!(!ends.reap.prepare_sleep(), "a broken ring is no reason to sleep");
}

#[test]
fn one_ring_for_each_time_the_daemon_falls_asleep() {
    let mut ends = ends(8, 8, 0);
    assert_eq!(ends.take.prepare_sleep(), Ok(true));
    assert!(ends.take.is_asleep());
    ends.submit.push(&sqe(1)).unwrap();
    assert!(ends.submit.publish(), "first of this sleep");
    ends.submit.push(&sqe(2)).unwrap();
    assert!(!ends.submit.publish(), "the doorbell was rung already");
    assert_eq!(ends.take.available(), Ok(2));
    assert!(!ends.take.is_asleep(), "finding something ends the sleep");
    ends.submit.push(&sqe(3)).unwrap();
    assert!(!ends.submit.publish(), "awake");
    assert_eq!(ends.take.prepare_sleep(), Ok(false), "there is something to take");
    while ends.take.available().unwrap() > 0 {
        ends.take.take().unwrap();
    }
    assert_eq!(ends.take.prepare_sleep(), Ok(true));
    assert_eq!(ends.take.prepare_sleep(), Ok(true), "after a spurious wake-up");
    ends.submit.push(&sqe(4)).unwrap();
    assert!(ends.submit.publish(), "a new sleep");
    assert!(!ends.submit.publish(), "nothing staged");
}

#[test]
fn one_ring_for_each_time_the_client_falls_asleep() {
    let mut ends = ends(8, 8, 0);
    assert!(ends.reap.prepare_sleep());
    ends.post.push(&Cqe::default());
    assert_eq!(ends.post.publish(), Ok(true));
    ends.post.push(&Cqe::default());
    assert_eq!(ends.post.publish(), Ok(false));
    assert!(!ends.reap.prepare_sleep());
    while ends.reap.pop().unwrap().is_some() {}
    ends.reap.release();
    assert!(ends.reap.prepare_sleep());
    ends.reap.wake();
    ends.post.push(&Cqe::default());
    assert_eq!(ends.post.publish(), Ok(false), "woken by something else");
}

#[test]
fn a_daemon_that_takes_over_is_rung_anew() {
    let mut ends = ends(4, 4, 0);
    assert_eq!(ends.take.prepare_sleep(), Ok(true));
    ends.submit.push(&sqe(1)).unwrap();
    assert!(ends.submit.publish());
    // The daemon dies here; the next one starts from its journal.
    let mut take = SqConsumer::resume(ends.queue.clone(), 0);
    assert!(!take.is_asleep());
    assert_eq!(take.available(), Ok(1));
    take.take().unwrap();
    assert_eq!(take.prepare_sleep(), Ok(true));
    ends.submit.push(&sqe(2)).unwrap();
    assert!(ends.submit.publish());
}

#[test]
fn a_daemon_index_that_is_wrong_gives_no_room() {
    let mut ends = ends(4, 4, 0);
    ends.queue.sq_head().store(1, Ordering::Relaxed);
    assert_eq!(ends.submit.room(), 0);
    assert_eq!(ends.submit.push(&sqe(1)), Err(Full));
    ends.queue.sq_head().store(0, Ordering::Relaxed);
    assert_eq!(ends.submit.push(&sqe(1)), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 4096 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a client stores as sq_tail, the daemon neither panics nor takes more than the ring holds.
    #[test]
    fn any_sq_tail_is_survived(log in 0u32..8, start: u32, tails in prop::collection::vec(any::<u32>(), 1..20), near in prop::collection::vec(0u32..600, 1..20)) {
        let entries = 1 << log;
        let mut ends = ends(entries, 2 * entries, start);
        let near = near.into_iter().map(|ahead| start.wrapping_add(ahead));
        for tail in near.chain(tails) {
            ends.queue.sq_tail().store(tail, Ordering::Relaxed);
            let head = ends.take.head();
            match ends.take.available() {
                Ok(available) => {
                    prop_assert!(available <= entries);
                    let mut taken = 0;
                    while ends.take.take().is_some() {
                        taken += 1;
                    }
                    prop_assert_eq!(taken, available);
                    prop_assert_eq!(ends.take.head(), tail);
                }
                Err(RingFault::SqTailAhead { .. }) => {
                    prop_assert!(tail.wrapping_sub(head) > entries);
                    prop_assert_eq!(ends.take.take(), None);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
            ends.take.publish();
            let _ = ends.take.prepare_sleep();
        }
    }

    /// Whatever a client stores as cq_head, no more than the ring holds is in flight, and what is posted fits.
    #[test]
    fn any_cq_head_is_survived(log in 0u32..6, start: u32, heads in prop::collection::vec((any::<u32>(), 0u32..80, any::<bool>()), 1..40)) {
        let entries = 1 << log;
        let mut ends = ends(entries, entries, start);
        let mut in_flight = 0;
        for (far, near, use_near) in heads {
            let head = if use_near { start.wrapping_add(near) } else { far };
            ends.queue.cq_head().store(head, Ordering::Relaxed);
            while let Ok(()) = ends.credit.reserve() {
                in_flight += 1;
                prop_assert!(in_flight <= entries);
            }
            if in_flight > 0 {
                ends.post.push(&Cqe::default());
                in_flight -= 1;
                let _ = ends.post.publish();
            }
        }
    }

    /// Whatever the sleep words hold, publishing works and rings at most once per value.
    #[test]
    fn any_sleep_word_is_survived(words in prop::collection::vec(any::<u32>(), 1..20)) {
        let mut ends = ends(4, 4, 0);
        for word in words {
            ends.queue.client_sleep().store(word, Ordering::Relaxed);
            ends.queue.daemon_sleep().store(word, Ordering::Relaxed);
            let first = ends.round_trip(1);
            prop_assert!(first == (false, false) || word & 1 == 1);
            prop_assert_eq!(ends.round_trip(2), (false, false));
        }
    }
}
