//! Medians and how sure they are.

use serde::Serialize;

/// Coverage that an interval should have.
const COVERAGE: f64 = 0.95;

/// The middle, and how far it goes to both sides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The mean of the two in the middle of an even number.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Where the median of what the samples were drawn from lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// One of the samples.
    pub low: f64,
    /// Another one, or the same.
    pub high: f64,
    /// How probable that is; below 0.95 with fewer than 6 samples.
    pub coverage: f64,
}

impl Spread {
    /// `None`: there are no samples.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let sorted = sorted(samples);
        Some(Spread { median: middle(&sorted)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// Median; 0 without samples.
pub fn median(samples: impl IntoIterator<Item = f64>) -> f64 {
    middle(&sorted(samples)).unwrap_or(0.0)
}

impl Interval {
    /// From order statistics, which assume nothing about the distribution: the k-th smallest and the k-th largest sample
    /// enclose the median unless fewer than k samples fall on one side of it, which is a matter of coin tosses. The
    /// narrowest such pair with a coverage of 95 %, else smallest and largest.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Interval> {
        let sorted = sorted(samples);
        let count = sorted.len();
        let (mut below, mut chance) = (0.0, 0.5_f64.powi(i32::try_from(count).ok()?));
        let mut interval = None;
        for k in 0..count.div_ceil(2) {
            // The probability that at most k of the samples lie on one side.
            below += chance;
            chance *= (count - k) as f64 / (k + 1) as f64;
            let coverage = 1.0 - 2.0 * below;
            if interval.is_some() && coverage < COVERAGE {
                break;
            }
            interval =
                Some(Interval { low: sorted[k], high: sorted[count - 1 - k], coverage: coverage.max(0.0) });
        }
        interval
    }
}

fn sorted(samples: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[half - 1], upper) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // Ranks and coverage from tables of the sign test.
        for (count, low, high, coverage) in [
            (1, 1, 1, 0.0),
            (2, 1, 2, 0.5),
            (5, 1, 5, 0.9375),
            (6, 1, 6, 0.9688),
            (15, 4, 12, 0.9648),
            (30, 10, 21, 0.9572),
        ] {
            let interval = Interval::of((1..=count).rev().map(f64::from)).unwrap();
            assert_eq!((interval.low, interval.high), (f64::from(low), f64::from(high)), "{count}");
            assert!((interval.coverage - coverage).abs() < 1e-4, "{count}: {}", interval.coverage);
        }
        assert_eq!(Interval::of([]), None);
        assert!(Interval::of((0..500).map(f64::from)).unwrap().coverage >= 0.95);
    }
}
