use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::driver::{Op, OpKind};
use crate::ledger::Transfer;
use crate::target::Target;

const SLOTS: u32 = 16;
const FILES: u32 = 4;

fn payload(fd: RawFd) -> Payload {
    let op = Op { kind: OpKind::Flush, ..Op::NOP };
    Payload::of(&op, Transfer { fd, address: std::ptr::dangling_mut() }, &Target::null(512, 512))
}

fn push(dispatch: &mut Dispatch, slot: u32, fd: RawFd) {
    dispatch.push(Tag::new(1, slot), payload(fd));
}

fn next(dispatch: &mut Dispatch) -> Option<(u32, RawFd)> {
    dispatch.next().map(|(tag, payload)| (tag.index(), payload.fd()))
}

#[test]
fn a_stuck_target_leaves_a_thread_to_each_other() {
    let mut dispatch = Dispatch::new(SLOTS, FILES, 2);
    (0..5).for_each(|slot| push(&mut dispatch, slot, 7));
    assert_eq!((next(&mut dispatch), next(&mut dispatch)), (Some((0, 7)), Some((1, 7))));
    assert!(!dispatch.has_next(), "it has its share");
    (5..7).for_each(|slot| push(&mut dispatch, slot, 8));
    push(&mut dispatch, 7, 9);
    assert_eq!((next(&mut dispatch), next(&mut dispatch)), (Some((5, 8)), Some((7, 9))));
    assert_eq!((next(&mut dispatch), dispatch.busy()), (None, 4));
    dispatch.done(8);
    assert_eq!(next(&mut dispatch), Some((6, 8)), "one at a time for as long as the others stand still");
    (0..2).for_each(|_| dispatch.done(7));
    dispatch.done(9);
    assert_eq!(next(&mut dispatch), Some((2, 7)));
}

#[test]
fn targets_take_turns() {
    let mut dispatch = Dispatch::new(SLOTS, FILES, 4);
    (0..6).for_each(|slot| push(&mut dispatch, slot, 7));
    (6..8).for_each(|slot| push(&mut dispatch, slot, 8));
    let order: Vec<_> = std::iter::from_fn(|| {
        let (slot, fd) = next(&mut dispatch)?;
        dispatch.done(fd);
        Some(slot)
    })
    .collect();
    assert_eq!(order, [0, 6, 1, 7, 2, 3, 4, 5]);
}

proptest! {
    /// Against the rule spelled out: pushes, takes and ends in any order.
    #[test]
    fn the_rule_holds(steps in prop::collection::vec((0..3_u8, 0..FILES), 0..200), shared in 1..5_u32) {
        let mut dispatch = Dispatch::new(SLOTS, FILES, shared);
        let mut free: Vec<u32> = (0..SLOTS).collect();
        let mut waiting: HashMap<RawFd, VecDeque<u32>> = HashMap::new();
        let mut held: Vec<(RawFd, u32)> = Vec::new();
        for (step, file) in steps {
            let fd = file.cast_signed();
            match step {
                0 => if let Some(slot) = free.pop() {
                    push(&mut dispatch, slot, fd);
                    waiting.entry(fd).or_default().push_back(slot);
                },
                1 => {
                    let room = held.len() < shared as usize;
                    let may = |fd: &RawFd| room || held.iter().all(|(holder, _)| holder != fd);
                    let any = waiting.iter().any(|(fd, slots)| !slots.is_empty() && may(fd));
                    prop_assert_eq!(dispatch.has_next(), any);
                    let taken = next(&mut dispatch);
                    prop_assert_eq!(taken.is_some(), any);
                    if let Some((slot, fd)) = taken {
                        prop_assert!(may(&fd), "beyond its share");
                        prop_assert_eq!(waiting.get_mut(&fd).and_then(VecDeque::pop_front), Some(slot), "in order");
                        held.push((fd, slot));
                    }
                }
                _ => if let Some(at) = held.iter().position(|&(holder, _)| holder == fd) {
                    let (fd, slot) = held.swap_remove(at);
                    dispatch.done(fd);
                    free.push(slot);
                },
            }
            prop_assert_eq!(dispatch.busy() as usize, held.len());
        }
    }
}
