//! What prio takes without bulk: what 49 of 50 of the last few thousand answers did not exceed, and how many take much longer.
//!
//! The slowest fiftieth is where others than bulk have their say: a busy host, a device that tidies up. It is no measure, as
//! it differs from one second to the next and comes in clusters, but it can be counted.

use crate::clock::Nanos;

/// Bins for each doubling: about 4 % apart.
const BINS_PER_DOUBLING: u32 = 16;
/// The first bin begins at 2^10 ns, the last one ends at 2^36 ns, a minute.
const LEAST: u32 = 10;
const GREATEST: u32 = 36;
const BINS: usize = ((GREATEST - LEAST) * BINS_PER_DOUBLING) as usize;
/// With so many answers, half of what is known is forgotten: soon enough for a device that has changed, and enough to
/// count what is rare.
const ANSWERS_MAX: u32 = 4096;
/// Answers after which the percentile is looked up again.
const LOOK_UP: u32 = 64;
/// Of few answers the slowest may be chance: so many are left out, or a twentieth if that is less.
const LEFT_OUT_MIN: u32 = 4;

/// See the module.
#[derive(Clone, Debug)]
pub struct Alone {
    bins: Box<[u16; BINS]>,
    answers: u32,
    until_look_up: u32,
    usual: Option<Nanos>,
}

impl Default for Alone {
    fn default() -> Self {
        Self { bins: Box::new([0; BINS]), answers: 0, until_look_up: LOOK_UP, usual: None }
    }
}

impl Alone {
    /// Answers that are remembered.
    pub fn answers(&self) -> u32 {
        self.answers
    }

    /// What 49 of 50 answers did not exceed when that was last looked up; fewer of the first ones. `None`: nothing is known.
    pub fn usual(&self) -> Option<Nanos> {
        self.usual
    }

    /// Part of the answers that take longer than this: at most, by two standard deviations.
    pub fn part_beyond(&self, latency: Nanos) -> f64 {
        let beyond = f64::from(self.bins[bin(latency) + 1..].iter().map(|bin| u32::from(*bin)).sum::<u32>());
        (beyond + 2.0 * beyond.sqrt()) / f64::from(self.answers.max(1))
    }

    /// True: the percentile was looked up again.
    pub fn note(&mut self, latency: Nanos) -> bool {
        self.bins[bin(latency)] += 1;
        self.answers += 1;
        self.until_look_up -= 1;
        let again = self.until_look_up == 0;
        if again {
            self.look_up();
        }
        again
    }

    /// Finds the percentile among all that was noted.
    pub fn look_up(&mut self) {
        self.until_look_up = LOOK_UP;
        if self.answers >= ANSWERS_MAX {
            self.bins.iter_mut().for_each(|bin| *bin /= 2);
            self.answers = self.bins.iter().map(|bin| u32::from(*bin)).sum();
        }
        let mut slower = (self.answers / 50).max((self.answers / 20).min(LEFT_OUT_MIN));
        for (bin, count) in self.bins.iter().enumerate().rev() {
            let count = u32::from(*count);
            if count > slower {
                self.usual = Some(middle(bin));
                return;
            }
            slower -= count;
        }
    }
}

fn bin(latency: Nanos) -> usize {
    let latency = latency.clamp(1 << LEAST, (1 << GREATEST) - 1);
    let doubling = latency.ilog2();
    let part = (latency >> (doubling - BINS_PER_DOUBLING.ilog2())) as u32 % BINS_PER_DOUBLING;
    ((doubling - LEAST) * BINS_PER_DOUBLING + part) as usize
}

fn middle(bin: usize) -> Nanos {
    let (doubling, part) =
        (bin as u32 / BINS_PER_DOUBLING + LEAST, bin as u64 % u64::from(BINS_PER_DOUBLING));
    let width = (1 << doubling) / u64::from(BINS_PER_DOUBLING);
    (1 << doubling) + part * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_in_order_and_hold_what_they_say() {
        for place in 0..BINS {
            assert_eq!(bin(middle(place)), place);
        }
        assert_eq!((bin(0), bin(Nanos::MAX)), (0, BINS - 1));
        assert!((10..36).all(|power| bin((1 << power) - 1) <= bin(1 << power)));
    }

    #[test]
    fn the_percentile_is_that_of_what_came() {
        let mut alone = Alone::default();
        assert_eq!(alone.usual(), None);
        for n in 0..ANSWERS_MAX - 1 {
            alone.note(if n % 10 == 0 { 4_000_000 } else { 100_000 });
        }
        alone.look_up();
        let usual = alone.usual().unwrap();
        assert!(usual.abs_diff(4_000_000) < 200_000, "one of ten takes {usual}");
        assert!((0.1..0.12).contains(&alone.part_beyond(1_000_000)));
    }

    #[test]
    fn the_slowest_fiftieth_is_left_out_and_no_more() {
        let usual = |slow: u32| {
            let mut alone = Alone::default();
            (0..2000).for_each(|n| _ = alone.note(if n % 1000 < slow { 400_000 } else { 100_000 }));
            alone.look_up();
            alone.usual().unwrap()
        };
        assert!(usual(15) < 110_000, "a cluster among many");
        assert!(usual(30) > 390_000, "one of thirty");
    }

    #[test]
    fn one_of_few_may_be_chance() {
        let mut alone = Alone::default();
        (0..50).for_each(|_| _ = alone.note(100_000));
        alone.note(4_000_000);
        alone.look_up();
        assert!(alone.usual().unwrap() < 110_000);
    }

    #[test]
    fn a_device_that_has_changed_is_seen() {
        let mut alone = Alone::default();
        (0..10_000).for_each(|_| _ = alone.note(1_000_000));
        assert!(alone.answers() <= ANSWERS_MAX);
        (0..400).for_each(|_| _ = alone.note(3_000_000));
        assert!(alone.usual().unwrap() > 2_900_000, "slower: with the first tenth");
        (0..40_000).for_each(|_| _ = alone.note(100_000));
        assert!(alone.usual().unwrap() < 110_000);
    }
}
