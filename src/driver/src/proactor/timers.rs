//! Operations that the clock completes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::op_registry::OpId;

/// Due times, the earliest first. A timer that was cancelled stays until it comes up or the room is needed.
#[derive(Debug)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    room: usize,
}

impl Timers {
    /// For `timers_max` that are not cancelled. Twice the room: sweeping then frees at least half of it.
    pub(super) fn new(timers_max: u32) -> Timers {
        let room = 2 * timers_max as usize;
        Timers { heap: BinaryHeap::with_capacity(room), room }
    }

    pub(super) fn set(&mut self, at: Instant, op: OpId, mut live: impl FnMut(OpId) -> bool) {
        if self.heap.len() >= self.room {
            self.heap.retain(|&Reverse((_, word))| live(OpId::from_word(word)));
        }
        self.heap.push(Reverse((at, op.word())));
    }

    /// A timer that is due, perhaps a cancelled one.
    pub(super) fn take_due(&mut self, now: impl FnOnce() -> Instant) -> Option<OpId> {
        let &Reverse((at, word)) = self.heap.peek()?;
        if at > now() {
            return None;
        }
        self.heap.pop();
        Some(OpId::from_word(word))
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|&Reverse((at, _))| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_earliest_comes_first() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut timers = Timers::new(4);
        for ms in [30, 10, 20] {
            timers.set(at(ms), OpId::from_word(ms), |_| true);
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.take_due(|| at(9)), None);
        assert_eq!(timers.take_due(|| at(20)), Some(OpId::from_word(10)));
        assert_eq!(timers.take_due(|| at(20)), Some(OpId::from_word(20)));
        assert_eq!(timers.take_due(|| at(20)), None);
    }

    #[test]
    fn cancelled_timers_do_not_pile_up() {
        let mut timers = Timers::new(4);
        let capacity = timers.heap.capacity();
        for n in 0..1000 {
            // The last one alone lives.
            timers.set(Instant::now(), OpId::from_word(n), |op| op.word() + 1 == n);
        }
        assert_eq!(timers.heap.capacity(), capacity, "never grown");
    }
}
