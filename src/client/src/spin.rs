//! How long to spin before sleeping: a pure estimate, fed with how long the last waits took.

use std::time::Duration;

/// How [`Queue::wait`](crate::Queue::wait) waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Never sleeps: lowest latency, a whole CPU.
    Poll,
    /// Spins as long as that is likely to save the sleep, at most so long, then sleeps.
    Adaptive {
        /// Longest spin. Microseconds.
        spin_us: u32,
    },
    /// Sleeps at once: least CPU.
    Sleep,
}

impl Default for WaitPolicy {
    fn default() -> Self {
        WaitPolicy::Adaptive { spin_us: 50 }
    }
}

/// The part of the time without spinning that spinning may take to be worth it, in percent. The CPU is not free.
const WORTH_PERCENT: u64 = 80;
/// So many waits, and the other way is tried.
const TRY_EVERY: u32 = 128;
/// What was tried in vain is tried less and less often, up to this.
const TRY_EVERY_MAX: u32 = 8192;
/// So many waits in a row are a try: the daemon, too, spins or sleeps as it has learnt.
const TRY_WAITS: u32 = 4;

/// Learns which of two ways of waiting is shorter, by trying both: spinning first, or sleeping at once.
///
/// How long a request takes does not tell. Where CPUs are scarce, the client that spins keeps the daemon off the CPU, and
/// the same request that comes quickly to a sleeper does not come to a spinner at all.
pub(crate) struct Spinner {
    policy: WaitPolicy,
    spinning: Average,
    sleeping: Average,
    /// The way found to be better.
    spins: bool,
    /// Waits until the other way is tried, then waits left of the try.
    countdown: u32,
    trying: bool,
    try_every: u32,
}

/// Moving average of how long a wait took. Nanoseconds.
#[derive(Default)]
struct Average(Option<u64>);

impl Average {
    fn add(&mut self, ns: u64) {
        self.0 = Some(self.0.map_or(ns, |average| average - average / 8 + ns / 8));
    }
}

impl Spinner {
    /// On a machine with one CPU the daemon cannot run while the client spins.
    pub(crate) fn new(policy: WaitPolicy, cpus: usize) -> Self {
        let policy = if cpus == 1 { WaitPolicy::Sleep } else { policy };
        Spinner {
            policy,
            spinning: Average::default(),
            sleeping: Average::default(),
            spins: true,
            countdown: TRY_WAITS,
            trying: false,
            try_every: TRY_EVERY,
        }
    }

    /// How long to spin in the wait that starts now; `None`: for ever.
    pub(crate) fn budget(&self) -> Option<Duration> {
        match self.policy {
            WaitPolicy::Poll => None,
            WaitPolicy::Adaptive { spin_us } if self.spins != self.trying => {
                Some(Duration::from_micros(spin_us.into()))
            }
            WaitPolicy::Adaptive { .. } | WaitPolicy::Sleep => Some(Duration::ZERO),
        }
    }

    /// Learns from a wait with the last budget.
    pub(crate) fn observe(&mut self, waited: Duration) {
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.average().add(waited_ns);
        self.countdown -= 1;
        if self.countdown > 0 {
            return;
        }
        if self.trying {
            self.decide();
        }
        self.trying = !self.trying;
        self.countdown = self.try_every;
        if self.trying {
            self.countdown = TRY_WAITS;
            // What it was like long ago does not count.
            *self.average() = Average::default();
        }
    }

    /// The average of the way in use.
    fn average(&mut self) -> &mut Average {
        if self.spins != self.trying { &mut self.spinning } else { &mut self.sleeping }
    }

    fn decide(&mut self) {
        let (Average(Some(spinning)), Average(Some(sleeping))) = (&self.spinning, &self.sleeping) else {
            return;
        };
        let worth = u128::from(*spinning) * 100 <= u128::from(*sleeping) * u128::from(WORTH_PERCENT);
        self.try_every = if worth == self.spins { TRY_EVERY_MAX.min(self.try_every * 2) } else { TRY_EVERY };
        self.spins = worth;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn adaptive() -> Spinner {
        Spinner::new(WaitPolicy::Adaptive { spin_us: 50 }, 2)
    }

    /// Lets it wait, and returns how many of the waits spun. What a wait takes depends on the way.
    fn waits(spinner: &mut Spinner, count: u32, spinning: Duration, sleeping: Duration) -> u32 {
        let mut spun = 0;
        for _ in 0..count {
            let spins = spinner.budget() == Some(50 * US);
            spun += u32::from(spins);
            spinner.observe(if spins { spinning } else { sleeping });
        }
        spun
    }

    #[test]
    fn fixed_policies() {
        assert_eq!(Spinner::new(WaitPolicy::Poll, 2).budget(), None);
        assert_eq!(Spinner::new(WaitPolicy::Sleep, 2).budget(), Some(Duration::ZERO));
        assert_eq!(Spinner::new(WaitPolicy::Poll, 1).budget(), Some(Duration::ZERO), "one CPU never spins");
        let mut fixed = Spinner::new(WaitPolicy::Poll, 2);
        (0..1000).for_each(|_| fixed.observe(US));
        assert_eq!(fixed.budget(), None, "what is learnt does not matter");
    }

    #[test]
    fn spins_where_that_saves_the_wake_up() {
        let mut spinner = adaptive();
        waits(&mut spinner, 100, 34 * US, 48 * US);
        let spun = waits(&mut spinner, 10_000, 34 * US, 48 * US);
        assert!(spun > 9_600, "{spun}");
    }

    #[test]
    fn slow_device_is_slept_on() {
        let mut spinner = adaptive();
        waits(&mut spinner, 100, 1030 * US, 1000 * US);
        let spun = waits(&mut spinner, 100_000, 1030 * US, 1000 * US);
        assert!(spun < 150, "{spun}");
    }

    #[test]
    fn spinning_that_keeps_the_daemon_off_the_cpu_is_given_up() {
        let mut spinner = adaptive();
        waits(&mut spinner, 100, 60 * US, 7 * US);
        let spun = waits(&mut spinner, 100_000, 60 * US, 7 * US);
        assert!(spun < 150, "{spun}");
    }

    #[test]
    fn changes_its_mind() {
        let mut spinner = adaptive();
        waits(&mut spinner, 100_000, 60 * US, 20 * US);
        waits(&mut spinner, TRY_EVERY_MAX, 5 * US, 20 * US);
        let spun = waits(&mut spinner, 1000, 5 * US, 20 * US);
        assert!(spun > 950, "spinning became quicker: {spun}");
        waits(&mut spinner, TRY_EVERY_MAX, 60 * US, 20 * US);
        let spun = waits(&mut spinner, 1000, 60 * US, 20 * US);
        assert!(spun < 50, "and slower again: {spun}");
    }

    #[test]
    fn longest_waits_do_not_overflow() {
        waits(&mut adaptive(), 10_000, Duration::MAX, Duration::MAX);
    }
}
