//! How long a thread spins before it sleeps. Pure.
//!
//! A wake-up costs tens of microseconds; a spin costs CPU. The device and the clients keep different time, so each has its
//! own estimate: whether a thread waits for one or the other is whether requests are in flight.
//!
//! How soon work comes does not tell which is better. Where a client was put on the CPU of the thread that woke it, it runs
//! at once when that thread sleeps, and not at all while it spins; where it was put on another, the sleep adds two wake-ups
//! to the wait. So both ways are tried, and the shorter one is kept: as the client does on its side.

use crate::clock::{MICROSECOND, Nanos};

/// Weight of a new sample: 1/8.
const SHIFT: u32 = 3;
/// The part of the time without spinning that spinning may take to be worth it, in percent. The CPU is not free.
const WORTH_PERCENT: Nanos = 80;
/// So many waits, and the other way is tried.
const TRY_EVERY: u32 = 16;
/// What was tried in vain is tried less and less often, up to this.
const TRY_EVERY_MAX: u32 = 8192;
/// So many waits in a row are a try.
const TRY_WAITS: u32 = 8;
/// Shorter than any wake-up: who spins so long need not try to sleep.
const WAKE_UP_MIN: Nanos = 5 * MICROSECOND;
/// What two wake-ups take: a wait that is longer than this and the limit would not end within a spin.
const WAKE_UPS_MAX: Nanos = 60 * MICROSECOND;

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
    /// For clients, for the device.
    estimates: [Estimate; 2],
    /// When work was last found.
    since: Nanos,
    /// The thread found nothing at least once since then.
    waiting: bool,
    for_device: bool,
}

impl Idle {
    /// Never spins longer than `limit`; 0 always sleeps.
    pub fn new(limit: Nanos, now: Nanos) -> Self {
        let estimates = [Estimate::new(limit), Estimate::new(limit)];
        Self { limit, estimates, since: now, waiting: false, for_device: false }
    }

    /// After a turn at `now` that found work or did not, with requests in flight or not.
    pub fn step(&mut self, now: Nanos, worked: bool, in_flight: bool) -> Step {
        let waited = now.saturating_sub(self.since);
        if worked {
            if self.waiting {
                self.estimates[usize::from(self.for_device)].observe(waited, self.limit);
            }
            (self.since, self.waiting) = (now, false);
            return Step::Work;
        }
        if !self.waiting {
            (self.waiting, self.for_device) = (true, in_flight);
        }
        let spins = self.estimates[usize::from(self.for_device)].spins_now();
        if spins && waited < self.limit { Step::Spin } else { Step::Sleep }
    }
}

/// What is known of one kind of wait. Averages are exponentially weighted.
#[derive(Clone, Debug)]
struct Estimate {
    spinning: Option<Nanos>,
    sleeping: Option<Nanos>,
    /// The way found to be better.
    spins: bool,
    trying: bool,
    /// Waits until the other way is tried, or left of the try.
    countdown: u32,
    try_every: u32,
}

impl Estimate {
    fn new(limit: Nanos) -> Self {
        Self {
            spinning: None,
            sleeping: None,
            spins: limit > 0,
            trying: false,
            countdown: TRY_EVERY,
            try_every: TRY_EVERY,
        }
    }

    fn spins_now(&self) -> bool {
        self.spins != self.trying
    }

    fn observe(&mut self, waited: Nanos, limit: Nanos) {
        // One long pause must not outweigh many short waits after it.
        let sample = waited.min(4 * limit);
        let average = if self.spins_now() { &mut self.spinning } else { &mut self.sleeping };
        let mean = average.map_or(sample, |mean| mean - (mean >> SHIFT) + (sample >> SHIFT));
        *average = Some(mean);
        if self.trying {
            self.countdown -= 1;
            if self.countdown == 0 {
                self.decide(limit);
            }
        } else if self.spins && mean > limit {
            self.turn(false);
        } else if if self.spins { mean > WAKE_UP_MIN } else { mean <= limit + WAKE_UPS_MAX } {
            self.countdown -= 1;
            if self.countdown == 0 {
                (self.trying, self.countdown) = (true, TRY_WAITS);
                // What it was like long ago does not count.
                *(if self.spins { &mut self.sleeping } else { &mut self.spinning }) = None;
            }
        }
    }

    fn decide(&mut self, limit: Nanos) {
        self.trying = false;
        let (Some(spinning), Some(sleeping)) = (self.spinning, self.sleeping) else { return };
        let worth = spinning <= limit && spinning * 100 <= sleeping * WORTH_PERCENT;
        if worth == self.spins {
            self.try_every = TRY_EVERY_MAX.min(2 * self.try_every);
            self.countdown = self.try_every;
        } else {
            self.turn(worth);
        }
    }

    fn turn(&mut self, spins: bool) {
        self.spins = spins;
        (self.try_every, self.countdown) = (TRY_EVERY, TRY_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Nanos = 50_000;

    /// A thread, and what its waits are like.
    struct Thread {
        idle: Idle,
        now: Nanos,
    }

    impl Thread {
        fn new() -> Self {
            Self { idle: Idle::new(LIMIT, 0), now: 0 }
        }

        /// Waits for work that comes after `spinning` to one that spins and after `sleeping` to one that sleeps at once;
        /// true if it did not sleep at once.
        fn wait(&mut self, spinning: Nanos, sleeping: Nanos, in_flight: bool) -> bool {
            let start = self.now;
            let spins = self.idle.step(start, false, in_flight) == Step::Spin;
            while self.now < start + if spins { spinning } else { sleeping } {
                self.now += 1000;
                self.idle.step(self.now, false, in_flight);
            }
            assert_eq!(self.idle.step(self.now, true, in_flight), Step::Work);
            spins
        }

        fn spun(&mut self, waits: usize, spinning: Nanos, sleeping: Nanos, in_flight: bool) -> usize {
            (0..waits).filter(|_| self.wait(spinning, sleeping, in_flight)).count()
        }
    }

    #[test]
    fn spins_while_that_saves_the_wake_up() {
        let mut thread = Thread::new();
        assert!(thread.spun(10_000, 34_000, 48_000, true) > 9_800);
        assert_eq!(
            Thread::new().spun(10_000, 1000, 60_000, false),
            10_000,
            "nothing is tried when work is near"
        );
    }

    #[test]
    fn sleeps_at_once_when_work_stays_away_and_recovers() {
        let mut thread = Thread::new();
        assert!(thread.spun(20, 1_000_000, 1_000_000, false) < 3);
        assert_eq!(thread.spun(10_000, 1_000_000, 1_000_000, false), 0, "no spin is wasted on a slow client");
        thread.spun(50, 20_000, 70_000, false);
        assert!(thread.spun(1000, 20_000, 70_000, false) > 950, "spins again after a few short waits");
    }

    #[test]
    fn a_spin_that_keeps_the_client_off_the_cpu_is_given_up() {
        let mut thread = Thread::new();
        thread.spun(50, 40_000, 9_000, false);
        assert!(thread.spun(10_000, 40_000, 9_000, false) < 100);
    }

    #[test]
    fn a_slow_client_does_not_spoil_the_wait_for_the_device() {
        let mut thread = Thread::new();
        let spun = (0..1000).filter(|_| {
            thread.wait(2_000_000, 2_000_000, false);
            thread.wait(30_000, 50_000, true)
        });
        assert!(spun.count() > 950);
    }

    #[test]
    fn limit_zero_never_spins() {
        let mut idle = Idle::new(0, 0);
        for now in 1..1000 {
            assert_eq!(idle.step(2 * now, false, true), Step::Sleep);
            idle.step(2 * now + 1, true, true);
        }
    }
}
