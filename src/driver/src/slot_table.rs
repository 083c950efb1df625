//! Which slots the kernel, or a helper thread, still owes an answer: the only request state that both halves touch.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::tag::Tag;

/// One word pair per slot. The submit half writes while the slot is not in flight, the reap half while
/// it is, so each pair has one writer at a time:
///
/// ```text
///   submit half: arm         generation = tag.generation (odd)        the kernel may answer
///   either half: hand_over   ... and its bit `help`                   a helper may answer, the kernel no more
///   reap half:   finish      generation = tag.generation + 1 (even)   answered; everything else is stale
/// ```
///
/// The submit half hands over what it has just armed, the reap half what the kernel has just answered.
#[derive(Debug)]
pub struct SlotTable {
    slots: Box<[SlotState]>,
}

#[derive(Debug, Default)]
struct SlotState {
    generation: AtomicU32,
    user: AtomicU32,
}

impl SlotTable {
    /// A table with nothing in flight.
    pub fn new(slots: u32) -> SlotTable {
        SlotTable { slots: (0..slots).map(|_| SlotState::default()).collect() }
    }

    /// Submit half: the request is about to be given to the kernel, `user` is to come back with it.
    pub fn arm(&self, tag: Tag, user: u32) {
        if let Some(slot) = self.slots.get(tag.index() as usize) {
            slot.user.store(user, Ordering::Relaxed);
            // SYNC: slot-armed (pairs with finish): whoever sees the generation sees the user word.
            slot.generation.store(tag.generation(), Ordering::Release);
        }
    }

    /// Has a helper answer from now on. `false`: the kernel does not have this very request (any more).
    pub(crate) fn hand_over(&self, tag: Tag) -> bool {
        let Some(slot) = self.slots.get(tag.index() as usize) else { return false };
        // SYNC: slot-armed (pairs with arm).
        let armed = slot.generation.load(Ordering::Acquire) == tag.owner() && !tag.owner().is_multiple_of(2);
        if armed {
            // SYNC: slot-armed (pairs with finish).
            slot.generation.store(tag.helped().owner(), Ordering::Release);
        }
        armed
    }

    /// Reap half: believes the completion once. `None`: the slot does not wait for this generation, or not from
    /// this side (a duplicate, an old or a made-up tag).
    pub fn finish(&self, tag: Tag) -> Option<u32> {
        let slot = self.slots.get(tag.index() as usize)?;
        // SYNC: slot-armed (pairs with arm and hand_over).
        if slot.generation.load(Ordering::Acquire) != tag.owner() || tag.owner().is_multiple_of(2) {
            return None;
        }
        let user = slot.user.load(Ordering::Relaxed);
        // SYNC: slot-answered (pairs with is_armed): the reader of `user` is done with the slot.
        slot.generation.store(tag.generation() + 1, Ordering::Release);
        Some(user)
    }

    /// The answer to this very request is still owed.
    pub fn is_armed(&self, tag: Tag) -> bool {
        // SYNC: slot-answered (pairs with finish).
        self.slots
            .get(tag.index() as usize)
            .is_some_and(|slot| slot.generation.load(Ordering::Acquire) & Tag::GENERATION == tag.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_believed_once() {
        let table = SlotTable::new(2);
        let tag = Tag::new(1, 1);
        assert_eq!(table.finish(tag), None, "never armed");
        table.arm(tag, 42);
        assert!(table.is_armed(tag));
        assert_eq!(table.finish(Tag::new(3, 1)), None, "generation of a later request");
        assert_eq!(table.finish(Tag::new(1, 0)), None, "another slot");
        assert_eq!(table.finish(Tag::new(1, 9)), None, "no such slot");
        assert_eq!(table.finish(tag), Some(42));
        assert!(!table.is_armed(tag));
        assert_eq!(table.finish(tag), None, "duplicate");
        assert_eq!(table.finish(Tag::new(2, 1)), None, "an even generation is never in flight");
        table.arm(Tag::new(3, 1), 43);
        assert_eq!(table.finish(tag), None, "generation of an earlier request");
        assert_eq!(table.finish(Tag::new(3, 1)), Some(43));
    }

    #[test]
    fn only_who_has_the_request_is_believed() {
        let table = SlotTable::new(1);
        let tag = Tag::new(1, 0);
        assert!(!table.hand_over(tag), "never armed");
        table.arm(tag, 42);
        assert_eq!(table.finish(tag.helped()), None, "the kernel has it");
        assert!(table.hand_over(tag));
        assert!(!table.hand_over(tag), "the kernel answered twice");
        assert!(table.is_armed(tag));
        assert_eq!(table.finish(tag), None, "a helper has it");
        assert_eq!(table.finish(tag.helped()), Some(42));
        assert!(!table.is_armed(tag));
        assert_eq!(table.finish(tag.helped()), None, "duplicate");
    }
}
