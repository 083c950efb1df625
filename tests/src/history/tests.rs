//! The model accepts what the rules allow and finds what they forbid.

use super::*;

/// Builds histories over two blocks that begin as zeros.
struct Story {
    history: History,
    clock: u64,
}

fn story() -> Story {
    Story { history: History { initial: vec![0; 2 * WORDS], ops: Vec::new() }, clock: 1 }
}

fn content(stamp: u32) -> Vec<u64> {
    (0..WORDS).map(|index| if stamp == 0 { 0 } else { word(stamp, 0, index) }).collect()
}

impl Story {
    /// Submitted and not answered until [`answer`](Self::answer), on block 0.
    fn submit(&mut self, effect: Effect, outcome: Outcome) -> usize {
        self.clock += 1;
        let place = self.history.ops.len() as u64;
        self.history.ops.push(Op {
            queue: 0,
            place,
            chain: None,
            barrier: false,
            first: 0,
            blocks: 1,
            submitted: self.clock,
            answered: u64::MAX,
            effect,
            outcome,
        });
        self.history.ops.len() - 1
    }

    fn answer(&mut self, op: usize) {
        self.clock += 1;
        self.history.ops[op].answered = self.clock;
    }

    fn whole(&mut self, effect: Effect, outcome: Outcome) -> usize {
        let op = self.submit(effect, outcome);
        self.answer(op);
        op
    }

    fn write(&mut self, stamp: u32) {
        self.whole(Effect::Write(stamp), Outcome::Done);
    }

    /// A read of block 0 that finds this, and whether it may.
    fn may_find(&mut self, words: Vec<u64>) -> bool {
        self.whole(Effect::Read(words), Outcome::Done);
        let allowed = self.history.check().is_ok();
        self.history.ops.pop();
        allowed
    }

    fn may_be(&mut self, stamp: u32) -> bool {
        self.may_find(content(stamp))
    }
}

#[test]
fn stamps_are_found_again() {
    for stamp in [1, 77, u32::MAX] {
        assert_eq!(stamp_of(word(stamp, 5, 9), 5, 9), Some(stamp));
        assert_eq!(stamp_of(word(stamp, 5, 9), 5, 10), None);
    }
    assert_eq!(stamp_of(0, 0, 0), None);
}

#[test]
fn the_last_of_two_writes_one_after_the_other_is_found() {
    let mut story = story();
    assert!(story.may_be(0));
    story.write(1);
    assert!(story.may_be(1) && !story.may_be(0));
    story.write(2);
    assert!(story.may_be(2));
    assert!(!story.may_be(1), "a stale write");
    assert!(!story.may_be(0), "a lost write");
    assert!(!story.may_be(3), "content from nowhere");
}

#[test]
fn data_of_another_block_is_found_out() {
    let mut story = story();
    story.write(1);
    assert!(!story.may_find((0..WORDS).map(|index| word(1, 1, index)).collect()));
    let mut stale = content(1);
    stale[WORDS - 1] = 0;
    assert!(!story.may_find(stale), "a tear where nothing was concurrent");
}

#[test]
fn concurrent_writes_have_no_order_and_may_tear() {
    let mut story = story();
    let first = story.submit(Effect::Write(1), Outcome::Done);
    let second = story.submit(Effect::Write(2), Outcome::Done);
    story.answer(second);
    story.answer(first);
    assert!(story.may_be(1) && story.may_be(2) && !story.may_be(0));
    let mut torn = content(1);
    torn[7] = word(2, 0, 7);
    assert!(story.may_find(torn.clone()));
    torn[7] = 0;
    assert!(!story.may_find(torn));
}

#[test]
fn a_read_may_find_what_is_in_flight() {
    let mut story = story();
    story.write(1);
    let flying = story.submit(Effect::Write(2), Outcome::Done);
    assert!(story.may_be(1) && story.may_be(2) && !story.may_be(0));
    story.answer(flying);
    assert!(!story.may_be(1));
}

#[test]
fn what_failed_may_be_there_and_what_was_not_executed_may_not() {
    let mut story = story();
    story.write(1);
    story.whole(Effect::Write(2), Outcome::Failed);
    assert!(story.may_be(1) && story.may_be(2));
    let mut part = content(1);
    part[3] = word(2, 0, 3);
    assert!(story.may_find(part));
    story.whole(Effect::Write(3), Outcome::Not);
    assert!(!story.may_be(3), "it was cancelled");
    story.write(4);
    assert!(!story.may_be(2), "a failed write that comes after a later one");
}

#[test]
fn zeros_and_discards() {
    let mut story = story();
    story.write(1);
    story.whole(Effect::Zero, Outcome::Done);
    assert!(story.may_be(0) && !story.may_be(1));
    story.whole(Effect::Discard, Outcome::Done);
    assert!(story.may_be(1) && story.may_be(99), "undefined");
    story.write(2);
    assert!(!story.may_be(99));
}

#[test]
fn a_chain_orders_its_members() {
    let mut story = story();
    let ops = [Effect::Write(1), Effect::Write(2), Effect::Read(content(2))]
        .map(|e| story.submit(e, Outcome::Done));
    ops.iter().for_each(|op| story.history.ops[*op].chain = Some(1));
    ops.iter().rev().for_each(|op| story.answer(*op));
    assert_eq!(story.history.check(), Ok(()));
    assert!(story.may_be(2) && !story.may_be(1));
    story.history.ops[ops[2]].effect = Effect::Read(content(1));
    let violation = story.history.check().unwrap_err();
    assert_eq!((violation.op, violation.block), (ops[2], 0));
    assert!(violation.what.contains("is stamp 1; it may be stamp 2"), "{violation}");
    // Without the chain nothing is wrong with it.
    ops.iter().for_each(|op| story.history.ops[*op].chain = None);
    assert_eq!(story.history.check(), Ok(()));
}

#[test]
fn a_barrier_orders_what_is_around_it() {
    let flying = |barrier: usize, executed: bool, found: u32| {
        let mut story = story();
        let effects = [Effect::Write(1), Effect::None, Effect::Write(2), Effect::Read(content(found))];
        let ops = effects.map(|effect| story.submit(effect, Outcome::Done));
        story.history.ops[ops[barrier]].barrier = true;
        if !executed {
            story.history.ops[ops[barrier]].outcome = Outcome::Not;
        }
        ops.iter().for_each(|op| story.answer(*op));
        story.history.check().is_ok()
    };
    assert!(flying(1, true, 1) && flying(1, true, 2), "between the writes: the read is after one of them");
    assert!(!flying(1, true, 0));
    assert!(flying(1, false, 0), "a barrier that was cancelled orders nothing");
    assert!(!flying(2, true, 1) && !flying(2, true, 0), "the second write is one");
    assert!(flying(3, true, 1) && !flying(3, true, 0), "the read is one");
    assert!(flying(0, true, 1) && !flying(0, true, 0), "the first write is one");
}

#[test]
fn a_barrier_of_another_queue_orders_nothing() {
    let mut story = story();
    let write = story.submit(Effect::Write(1), Outcome::Done);
    let read = story.submit(Effect::Read(content(0)), Outcome::Done);
    story.history.ops[read].barrier = true;
    assert!(story.history.check().is_err());
    story.history.ops[read].queue = 1;
    [write, read].into_iter().for_each(|op| story.answer(op));
    assert_eq!(story.history.check(), Ok(()));
}

#[test]
fn a_swap_must_have_found_what_it_replaced() {
    let mut story = story();
    story.write(1);
    let swap = |expected: u32, stamp: u32| Effect::Swap { expected: content(expected), stamp };
    let good = story.whole(swap(1, 2), Outcome::Done);
    assert!(story.may_be(2) && !story.may_be(1));
    story.history.ops[good].effect = swap(0, 2);
    assert!(story.history.check().is_err(), "it replaced what was not there");
    story.history.ops[good].effect = swap(1, 2);
    let refused = story.whole(swap(2, 3), Outcome::Differed);
    assert!(story.history.check().is_err(), "it differed from what it can only have found");
    story.history.ops[refused].effect = swap(1, 3);
    assert_eq!(story.history.check(), Ok(()));
    assert!(story.may_be(2) && !story.may_be(3));
    story.history.ops.pop();
    story.submit(Effect::Write(4), Outcome::Done);
    story.whole(swap(2, 3), Outcome::Differed);
    assert_eq!(story.history.check(), Ok(()), "a write was in flight");
}

#[test]
fn a_write_that_a_swap_did_not_find_came_after_it() {
    let swap = |stamp: u32| Effect::Swap { expected: content(1), stamp };
    let mut story = story();
    story.write(1);
    let flying = story.submit(swap(2), Outcome::Done);
    story.write(3);
    story.answer(flying);
    assert!(story.may_be(3));
    assert!(!story.may_be(2), "the swap wrote over what it had not compared with");
    // What it expected may have been written again after the other write: then nothing is known.
    let again = story.submit(Effect::Write(4), Outcome::Done);
    let other = story.submit(Effect::Write(5), Outcome::Done);
    let expects = Effect::Swap { expected: content(4), stamp: 6 };
    let swapping = story.submit(expects, Outcome::Done);
    [again, other, swapping].into_iter().for_each(|op| story.answer(op));
    assert!(story.may_be(5) && story.may_be(6));
}

#[test]
fn two_swaps_cannot_replace_the_same() {
    let swap = |stamp: u32| Effect::Swap { expected: content(1), stamp };
    let mut story = story();
    story.write(1);
    let swaps = [swap(2), swap(3)].map(|effect| story.submit(effect, Outcome::Done));
    swaps.into_iter().for_each(|op| story.answer(op));
    assert!(!story.may_be(2) && !story.may_be(3));
}
