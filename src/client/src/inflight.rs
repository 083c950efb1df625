//! The requests of one queue that have no answer yet, in a table that is allocated once.
//!
//! The `user_data` of an SQE is slot (16 bits), queue (16) and generation (32). A slot's generation moves on when its request is answered, so a
//! second completion for it is recognised even after the slot has a new request.

use crate::memory::Held;
use crate::request::Expected;

/// A request in flight, as its completion needs it.
pub(crate) struct Flight {
    pub tag: u64,
    pub expected: Expected,
    pub held: Held,
}

/// A completion that no request in flight explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stray {
    Unknown,
    Doubled,
}

struct Slot {
    generation: u32,
    in_use: bool,
    /// Of the request in flight, or whatever the last one left.
    tag: u64,
    expected: Expected,
    held: Held,
}

pub(crate) struct InFlight {
    queue: u32,
    slots: Box<[Slot]>,
    free: Vec<u32>,
    /// Slots that [`InFlight::take_any`] has emptied.
    swept: usize,
}

impl InFlight {
    /// Of the queue with this index; at most 65536 entries, as a CQ ring has.
    pub(crate) fn new(queue: u32, entries: u32) -> Self {
        let slots = (0..entries).map(|_| Slot::new()).collect();
        // Popped from the end: a queue that is used lightly stays in the first, warm slots.
        InFlight { queue, slots, free: (0..entries).rev().collect(), swept: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is a slot.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a slot, which [`InFlight::has_room`] has said is there, and returns the `user_data` for the SQE.
    #[inline(always)]
    pub(crate) fn insert(&mut self, flight: Flight) -> u64 {
        let index = self.free.pop().expect("the caller has asked for room");
        let slot = &mut self.slots[index as usize];
        // Field by field: a flight that is put together on the stack and copied from there costs more than all the rest.
        slot.in_use = true;
        slot.tag = flight.tag;
        slot.expected = flight.expected;
        slot.held = flight.held;
        user_data(self.queue, index, slot.generation)
    }

    /// Takes the request out that a completion answers.
    #[inline(always)]
    pub(crate) fn take(&mut self, user_data: u64) -> Result<Flight, Stray> {
        let (index, queue) = (user_data as u32 & 0xffff, (user_data >> 16) as u32 & 0xffff);
        let generation = (user_data >> 32) as u32;
        let slot = self.slots.get_mut(index as usize).ok_or(Stray::Unknown)?;
        if queue != self.queue {
            return Err(Stray::Unknown);
        }
        if slot.generation != generation {
            return Err(slot.stray(generation));
        }
        if !slot.in_use {
            return Err(Stray::Unknown);
        }
        let flight = Flight { tag: slot.tag, expected: slot.expected, held: std::mem::take(&mut slot.held) };
        slot.retire();
        self.free.push(index);
        Ok(flight)
    }

    /// Takes any request out, for a session that ended and takes no new ones; `None` when there is none left.
    pub(crate) fn take_any(&mut self) -> Option<(u64, Flight)> {
        let (slots, swept) = (self.slots.iter().enumerate(), self.swept);
        let (index, slot) = slots.skip(swept).find(|(_, slot)| slot.in_use)?;
        let user_data = user_data(self.queue, index as u32, slot.generation);
        self.swept = index + 1;
        self.take(user_data).ok().map(|flight| (user_data, flight))
    }
}

fn user_data(queue: u32, index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(queue) << 16 | u64::from(index)
}

impl Slot {
    fn new() -> Self {
        Slot { generation: 1, in_use: false, tag: 0, expected: Expected::Anything, held: Held::Nothing }
    }

    /// 0 is never a generation: a zeroed CQE is not an answer to anything.
    fn retire(&mut self) {
        self.in_use = false;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
    }

    /// A generation from the past was answered before; one from the future was never given out.
    fn stray(&self, generation: u32) -> Stray {
        let age = self.generation.wrapping_sub(generation);
        if generation != 0 && age < u32::MAX / 2 { Stray::Doubled } else { Stray::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(tag: u64) -> Flight {
        Flight { tag, expected: Expected::Anything, held: Held::Nothing }
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = InFlight::new(0, 2);
        let first = table.insert(flight(1));
        table.insert(flight(2));
        assert!(!table.has_room());
        assert_eq!(table.take(first).unwrap().tag, 1);
        assert_eq!(table.len(), 1);
        assert!(table.has_room());
    }

    #[test]
    fn strays_are_told_apart() {
        let mut table = InFlight::new(0, 4);
        let first = table.insert(flight(1));
        assert_eq!(table.take(0).err(), Some(Stray::Unknown), "zeroed CQE");
        assert_eq!(table.take(1 << 32 | 99).err(), Some(Stray::Unknown), "slot out of range");
        assert_eq!(table.take(1 << 32 | 3).err(), Some(Stray::Unknown), "free slot, never used");
        assert_eq!(table.take(7 << 32).err(), Some(Stray::Unknown), "future generation");
        assert_eq!(table.take(first | 1 << 16).err(), Some(Stray::Unknown), "another queue");
        assert_eq!(table.take(first).unwrap().tag, 1);
        assert_eq!(table.take(first).err(), Some(Stray::Doubled), "slot free again");
        let second = table.insert(flight(2));
        assert_eq!(second as u32, first as u32, "the slot is reused");
        assert_eq!(table.take(first).err(), Some(Stray::Doubled), "slot in use again");
        assert_eq!(table.take(second).unwrap().tag, 2);
    }

    #[test]
    fn generation_wraps_past_zero() {
        let mut table = InFlight::new(63, 1);
        table.slots[0].generation = u32::MAX;
        let last = table.insert(flight(1));
        table.take(last).unwrap();
        let next = table.insert(flight(2));
        assert_eq!(next >> 32, 1);
        assert_eq!(table.take(last).err(), Some(Stray::Doubled));
    }

    #[test]
    fn take_any_empties_the_table() {
        let mut table = InFlight::new(1, 8);
        for tag in 0..5 {
            table.insert(flight(tag));
        }
        let mut tags: Vec<u64> =
            std::iter::from_fn(|| table.take_any()).map(|(_, flight)| flight.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, [0, 1, 2, 3, 4]);
        assert_eq!(table.len(), 0);
    }
}
