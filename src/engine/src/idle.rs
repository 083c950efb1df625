//! How long a thread spins before it sleeps. Pure.
//!
//! A wake-up costs tens of microseconds; a spin costs CPU. So a thread spins while what it waits for has lately come
//! within the limit, and sleeps at once while it has not. The device and the clients keep different time, so each has its
//! own estimate: whether a thread waits for one or the other is whether requests are in flight.

use crate::clock::Nanos;

/// Weight of a new sample: 1/8.
const SHIFT: u32 = 3;

/// What a thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It found work: look for more.
    Work,
    /// Look again.
    Spin,
    /// Sleep.
    Sleep,
}

/// Idle policy of one thread.
#[derive(Clone, Debug)]
pub struct Idle {
    limit: Nanos,
    /// Mean waits, exponentially weighted: for clients, for the device.
    expected: [Nanos; 2],
    /// When work was last found.
    since: Nanos,
    /// The thread found nothing at least once since then.
    waiting: bool,
    for_device: bool,
}

impl Idle {
    /// Never spins longer than `limit`; 0 always sleeps.
    pub fn new(limit: Nanos, now: Nanos) -> Self {
        Self { limit, expected: [limit / 2; 2], since: now, waiting: false, for_device: false }
    }

    /// After a turn at `now` that found work or did not, with requests in flight or not.
    pub fn step(&mut self, now: Nanos, worked: bool, in_flight: bool) -> Step {
        let waited = now.saturating_sub(self.since);
        if worked {
            if self.waiting {
                self.observe(waited);
            }
            (self.since, self.waiting) = (now, false);
            return Step::Work;
        }
        if !self.waiting {
            (self.waiting, self.for_device) = (true, in_flight);
        }
        let pays = self.expected[usize::from(self.for_device)] <= self.limit;
        if pays && waited < self.limit { Step::Spin } else { Step::Sleep }
    }

    fn observe(&mut self, waited: Nanos) {
        let expected = &mut self.expected[usize::from(self.for_device)];
        // One long pause must not outweigh many short waits after it.
        let sample = waited.min(4 * self.limit);
        *expected = *expected - (*expected >> SHIFT) + (sample >> SHIFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Nanos = 50_000;

    /// Waits `wait` for work, looking every microsecond; true if the thread slept meanwhile.
    fn wait(idle: &mut Idle, now: &mut Nanos, wait: Nanos, in_flight: bool) -> bool {
        let mut slept = false;
        for _ in 0..wait / 1000 {
            *now += 1000;
            slept |= idle.step(*now, false, in_flight) == Step::Sleep;
        }
        assert_eq!(idle.step(*now, true, in_flight), Step::Work);
        slept
    }

    #[test]
    fn spins_while_work_comes_quickly() {
        let (mut idle, mut now) = (Idle::new(LIMIT, 0), 0);
        assert!((0..100).all(|_| !wait(&mut idle, &mut now, 40_000, true)));
    }

    #[test]
    fn sleeps_at_once_when_work_stays_away_and_recovers() {
        let (mut idle, mut now) = (Idle::new(LIMIT, 0), 0);
        (0..20).for_each(|_| assert!(wait(&mut idle, &mut now, 1_000_000, false)));
        now += 1;
        assert_eq!(
            idle.step(now, false, false),
            Step::Sleep,
            "no spin is wasted on a client that is slow to ask"
        );
        wait(&mut idle, &mut now, 1000, false);
        let needed = (0..100).take_while(|_| wait(&mut idle, &mut now, 20_000, false)).count();
        assert!(needed < 25, "spins again after a few short waits, not {needed}");
    }

    #[test]
    fn a_slow_client_does_not_spoil_the_wait_for_the_device() {
        let (mut idle, mut now) = (Idle::new(LIMIT, 0), 0);
        for _ in 0..50 {
            wait(&mut idle, &mut now, 2_000_000, false);
            assert!(!wait(&mut idle, &mut now, 30_000, true));
        }
    }

    #[test]
    fn limit_zero_never_spins() {
        let (mut idle, mut now) = (Idle::new(0, 0), 0);
        assert!((0..10).all(|_| wait(&mut idle, &mut now, 1000, true)));
    }
}
