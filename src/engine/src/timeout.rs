//! Deadlines of requests that are not issued: a timer wheel over record indices. Pure: `now` is an argument.
//!
//! Four levels of 64 slots: a slot of level 0 is one tick (2^20 ns, about a millisecond), one of level n is 64 of level
//! n - 1. A deadline stands at the level where its time first differs from the wheel's, and moves down as that time comes:
//! each one at most three times. So inserting and removing is O(1), and however many deadlines a client sets, whenever they
//! are, each costs a bounded amount of work. The wheel is late by less than a tick and never early; whoever issues a request
//! compares its exact deadline.

use crate::{
    clock::Nanos,
    links::{Links, List},
};

const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Nanoseconds in a tick, as a power of two.
const TICK_BITS: u32 = 20;

/// When a deadline is found to have passed.
pub(crate) fn fires_at(deadline: Nanos) -> Nanos {
    deadline.div_ceil(1 << TICK_BITS).saturating_mul(1 << TICK_BITS)
}

/// Longest time that a deadline may lie ahead, nanoseconds: u32 microseconds are less.
const _: () = assert!((u32::MAX as u64 * 1000) >> TICK_BITS < 1 << (SLOT_BITS * LEVELS as u32 - 1));

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// Tick at which it expires.
    at: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    Slot(u8, u8),
    /// Its time has come, and it is to be fetched.
    Expired,
}

#[derive(Debug)]
struct Level {
    /// Which slots are not empty.
    occupied: u64,
    slots: [List; SLOTS],
}

/// The deadlines of an engine's requests.
#[derive(Debug)]
pub struct Timers {
    timers: Box<[Timer]>,
    links: Links,
    levels: [Level; LEVELS],
    expired: List,
    /// Ticks that have passed, as the slots know it.
    elapsed: u64,
    /// Nothing expires before this time.
    next: Nanos,
    count: u32,
}

impl Timers {
    /// For records `0..requests_max`.
    pub fn new(requests_max: u32) -> Self {
        Self {
            timers: vec![Timer { at: 0, place: Place::Out }; requests_max as usize].into(),
            links: Links::new(requests_max),
            levels: std::array::from_fn(|_| Level { occupied: 0, slots: [List::EMPTY; SLOTS] }),
            expired: List::EMPTY,
            elapsed: 0,
            next: Nanos::MAX,
            count: 0,
        }
    }

    /// Nothing expires before this time; `Nanos::MAX` if nothing will.
    pub fn next(&self) -> Nanos {
        self.next
    }

    /// Sets the deadline of a record that has none. It is at most an hour and a half (5 * 10^12 ns) after `now`, and `now`
    /// never goes back.
    pub fn insert(&mut self, record: u32, deadline: Nanos, now: Nanos) {
        if self.count == 0 {
            self.elapsed = now >> TICK_BITS;
        }
        self.count += 1;
        let at = deadline.div_ceil(1 << TICK_BITS).max(self.elapsed + 1);
        self.timers[record as usize].at = at;
        self.file(record);
        self.next = self.next.min(at << TICK_BITS);
    }

    /// Forgets the deadline of a record; false if it has none.
    pub fn remove(&mut self, record: u32) -> bool {
        match self.timers[record as usize].place {
            Place::Out => return false,
            Place::Expired => self.links.remove(&mut self.expired, record),
            Place::Slot(level, slot) => {
                let level = &mut self.levels[usize::from(level)];
                let list = &mut level.slots[usize::from(slot)];
                self.links.remove(list, record);
                if list.is_empty() {
                    level.occupied &= !(1 << slot);
                }
            }
        }
        self.forget(record);
        true
    }

    /// Takes a record whose deadline has passed. Call until there is none.
    pub fn pop_expired(&mut self, now: Nanos) -> Option<u32> {
        if now < self.next {
            return None;
        }
        let ticks = now >> TICK_BITS;
        while self.expired.is_empty() {
            match self.next_slot() {
                Some((level, slot, tick)) if tick <= ticks => self.empty(level, slot, tick),
                next => {
                    self.elapsed = self.elapsed.max(ticks);
                    self.next = next.map_or(Nanos::MAX, |(_, _, tick)| tick << TICK_BITS);
                    return None;
                }
            }
        }
        let record = self.links.pop_front(&mut self.expired)?;
        self.forget(record);
        Some(record)
    }

    /// Takes any record that has a deadline.
    pub fn pop_any(&mut self) -> Option<u32> {
        let record = self.expired.first().or_else(|| {
            let (level, slot, _) = self.next_slot()?;
            self.levels[level].slots[slot].first()
        })?;
        self.remove(record);
        Some(record)
    }

    fn forget(&mut self, record: u32) {
        self.timers[record as usize].place = Place::Out;
        self.count -= 1;
        if self.count == 0 {
            self.next = Nanos::MAX;
        }
    }

    /// Puts a record where its time stands.
    fn file(&mut self, record: u32) {
        let timer = &mut self.timers[record as usize];
        if timer.at <= self.elapsed {
            timer.place = Place::Expired;
            return self.links.push_back(&mut self.expired, record);
        }
        let differs = (self.elapsed ^ timer.at) | (SLOTS as u64 - 1);
        let level = ((u64::BITS - 1 - differs.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        let slot = (timer.at >> (level * SLOT_BITS)) % SLOTS as u64;
        timer.place = Place::Slot(level as u8, slot as u8);
        let level = &mut self.levels[level as usize];
        level.occupied |= 1 << slot;
        self.links.push_back(&mut level.slots[slot as usize], record);
    }

    /// The slot that is due next, and its tick. A lower level is always due before a higher one.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let (index, level) = self.levels.iter().enumerate().find(|(_, level)| level.occupied != 0)?;
        let shift = index as u32 * SLOT_BITS;
        let here = (self.elapsed >> shift) % SLOTS as u64;
        // What stands in the slot of now is a whole turn ahead: look from the next one on.
        let ahead = level.occupied.rotate_right(here as u32 + 1).trailing_zeros() + 1;
        let tick = ((self.elapsed >> shift) + u64::from(ahead)) << shift;
        Some((index, (here as usize + ahead as usize) % SLOTS, tick))
    }

    /// The time of a slot has come: each of its records expires or moves down.
    fn empty(&mut self, level: usize, slot: usize, tick: u64) {
        self.elapsed = tick;
        let level = &mut self.levels[level];
        level.occupied &= !(1 << slot);
        let mut list = std::mem::replace(&mut level.slots[slot], List::EMPTY);
        while let Some(record) = self.links.pop_front(&mut list) {
            self.file(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: Nanos = 1 << TICK_BITS;

    #[derive(Clone, Debug)]
    enum Step {
        /// A record and how far ahead its deadline is, nanoseconds.
        Insert(u32, Nanos),
        Remove(u32),
        Pass(Nanos),
    }

    fn spans() -> impl Strategy<Value = Nanos> {
        prop_oneof![0..2 * TICK, 0..100 * TICK, 0..10_000 * TICK, Just(0), 0..u64::from(u32::MAX) * 1000]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..16u32, spans()).prop_map(|(record, ahead)| Step::Insert(record, ahead)),
            2 => (0..16u32).prop_map(Step::Remove),
            3 => spans().prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// Against a map of deadlines: nothing expires early, nothing more than a tick late, nothing twice or never, and
        /// the next look is never announced too late.
        #[test]
        fn behaves_as_a_map(start in 0..u64::MAX >> 16, steps in steps()) {
            let mut timers = Timers::new(16);
            let mut model = BTreeMap::new();
            let mut now = start;
            for step in steps {
                match step {
                    Step::Insert(record, ahead) => if let std::collections::btree_map::Entry::Vacant(place) = model.entry(record) {
                        place.insert(now + ahead);
                        timers.insert(record, now + ahead, now);
                    },
                    Step::Remove(record) => {
                        model.remove(&record);
                        timers.remove(record);
                    }
                    Step::Pass(span) => now += span,
                }
                while let Some(record) = timers.pop_expired(now) {
                    let deadline = model.remove(&record);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now), "{deadline:?} at {now}");
                }
                for deadline in model.values() {
                    prop_assert!(*deadline + 2 * TICK > now, "{deadline} missed at {now}");
                    prop_assert!(timers.next() < deadline + 2 * TICK);
                }
            }
            now += u64::from(u32::MAX) * 1000 + 2 * TICK;
            let left = std::iter::from_fn(|| timers.pop_expired(now)).count();
            prop_assert_eq!(left, model.len());
            prop_assert_eq!(timers.next(), Nanos::MAX);
        }
    }
}
