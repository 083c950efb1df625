//! One token bucket. Pure: `now` is an argument.
//!
//! A bucket fills at its rate up to its capacity. One unit in it, a request or a byte, lets one request through, however
//! large; what the request takes beyond what is there is a debt, and nothing more passes until it is paid. So large requests
//! pass no later than small ones that want the same bucket, and over any time `t` what passes is at most
//! `capacity + rate * t`, and what the last request was too large.
//!
//! Who waits is woken late, by a tick of the timers and what the machine adds. What comes in meanwhile is not lost: while
//! somebody waits the bucket takes in more than its capacity, by what comes in in `LATE_MAX`. Else a rate whose requests
//! come one by one, as they do where the capacity is about one request, would lose that much with each.

use crate::clock::Nanos;

/// Greatest rate and burst.
pub const RATE_MAX: u64 = 1_000_000_000_000;

/// Burst where none is given, as a time at full rate.
const DEFAULT_BURST: i128 = 10_000_000;
/// A bucket holds at least what comes in in this time: who waits for it is woken late by up to a millisecond.
const CAPACITY_MIN: i128 = 4_000_000;
/// Time for which a bucket that somebody waits for goes on filling when it is full.
const LATE_MAX: i128 = 4_000_000;
/// Fill is counted in units * nanoseconds per second, so that rates of one unit a second are exact.
const NANO: i128 = 1_000_000_000;

/// A rate, and how much may pass at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests or bytes per second, 1 ..= [`RATE_MAX`].
    pub per_second: u64,
    /// Requests or bytes, 1 ..= [`RATE_MAX`]; `None` is what comes in in 10 ms. At least what comes in in 4 ms, and one
    /// unit, whatever is asked for.
    pub burst: Option<u64>,
}

impl Rate {
    /// A rate with the default burst.
    pub const fn new(per_second: u64) -> Self {
        Self { per_second, burst: None }
    }

    fn capacity(&self) -> i128 {
        let rate = i128::from(self.per_second);
        let burst = self.burst.map_or(rate * DEFAULT_BURST, |burst| i128::from(burst) * NANO);
        burst.max(rate * CAPACITY_MIN).max(NANO)
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: i128,
    capacity: i128,
    /// Negative: a debt.
    fill: i128,
    at: Nanos,
    /// Those who wait are woken then; until then nobody who comes later goes before them.
    closed_until: Nanos,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Nanos) -> Self {
        let capacity = rate.capacity();
        Self { rate: rate.per_second.into(), capacity, fill: capacity, at: now, closed_until: 0 }
    }

    /// Changes the rate. A bucket that was filled to a part is filled to the same part of its new capacity; a debt stays what
    /// it was, or takes as long to pay as before, whichever is sooner paid.
    pub fn set(&mut self, rate: Rate, now: Nanos) {
        self.refill(now);
        let capacity = rate.capacity();
        let per_second = i128::from(rate.per_second);
        self.fill = if self.fill < 0 {
            self.fill.max(self.fill / self.rate * per_second)
        } else {
            // Rounding by floats moves less than a millionth.
            ((self.fill as f64 / self.capacity as f64 * capacity as f64) as i128).clamp(0, capacity)
        };
        (self.rate, self.capacity, self.closed_until) = (per_second, capacity, 0);
    }

    /// When it lets a request through: `now`, or later.
    #[inline]
    pub fn ready_at(&mut self, now: Nanos) -> Nanos {
        self.refill(now);
        if self.fill >= NANO {
            return now.max(self.closed_until);
        }
        let wait = (NANO - self.fill + self.rate - 1) / self.rate;
        let ready = now.saturating_add(Nanos::try_from(wait).unwrap_or(Nanos::MAX));
        ready.max(self.closed_until)
    }

    /// Takes what a request costs; it may not be there.
    #[inline]
    pub fn take(&mut self, cost: u64) {
        self.fill -= i128::from(cost) * NANO;
    }

    /// Somebody waits until then.
    pub fn close_until(&mut self, then: Nanos) {
        self.closed_until = self.closed_until.max(then);
    }

    #[inline]
    fn refill(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.at);
        if elapsed > 0 {
            let late = if self.at < self.closed_until { self.rate * LATE_MAX } else { 0 };
            self.at = now;
            self.fill = (self.fill + i128::from(elapsed) * self.rate).min(self.capacity + late);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    /// What passes from `from` for `time` if requests of `cost` always wait.
    fn passed(bucket: &mut Bucket, cost: u64, from: Nanos, time: Nanos) -> u64 {
        let (mut now, mut sum) = (from, 0);
        loop {
            now = bucket.ready_at(now);
            if now >= from + time {
                return sum;
            }
            bucket.take(cost);
            sum += cost;
        }
    }

    #[test]
    fn the_error_over_two_seconds_is_below_a_twentieth_and_a_request() {
        for rate in [1, 7, 100, 1_000, 250_000, 3 << 20, 10 << 30] {
            for cost in [1, 512, 4096, 1 << 20, 1 << 30].into_iter().filter(|cost| rate / cost < 1 << 20) {
                let mut bucket = Bucket::new(Rate::new(rate), 5);
                let sum = passed(&mut bucket, cost, 5, 2 * SECOND);
                let due = 2 * rate;
                assert!(sum + cost >= due, "rate {rate} cost {cost}: {sum} of {due}");
                let most = due + due / 20 + cost + 1;
                assert!(sum <= most, "rate {rate} cost {cost}: {sum} of {due}");
            }
        }
    }

    #[test]
    fn who_is_woken_late_loses_nothing() {
        for rate in [10, 99, 100, 150, 250, 300, 700, 3000] {
            for burst in [None, Some(1)] {
                let mut bucket = Bucket::new(Rate { per_second: rate, burst }, 0);
                let (mut now, mut sum, mut rng) = (0, 0, fastrand::Rng::with_seed(rate));
                while now < 2 * SECOND {
                    let ready = bucket.ready_at(now);
                    if ready > now {
                        bucket.close_until(ready);
                        now = ready + rng.u64(..2_500_000);
                    } else {
                        bucket.take(1);
                        sum += 1;
                    }
                }
                assert!(sum <= 2 * rate + rate / 50 + 2, "rate {rate}, burst {burst:?}: {sum}");
                assert!(sum >= 2 * rate - rate / 50 - 1, "rate {rate}, burst {burst:?}: {sum}");
            }
        }
    }

    #[test]
    fn a_bucket_that_nobody_waits_for_holds_its_capacity() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: Some(10) }, 0);
        bucket.take(11);
        let ready = bucket.ready_at(0);
        bucket.close_until(ready);
        assert_eq!(bucket.ready_at(ready), ready);
        bucket.take(1);
        let mut at_once = 0;
        while bucket.ready_at(100 * SECOND) == 100 * SECOND {
            bucket.take(1);
            at_once += 1;
        }
        assert_eq!(at_once, 10);
    }

    #[test]
    fn after_a_pause_the_burst_passes_at_once() {
        let mut bucket = Bucket::new(Rate { per_second: 100, burst: Some(50) }, 0);
        for now in [7, 100 * SECOND] {
            let mut at_once = 0;
            while bucket.ready_at(now) == now {
                bucket.take(1);
                at_once += 1;
            }
            assert_eq!(at_once, 50, "at {now}");
        }
    }

    #[test]
    fn a_slow_rate_is_exact() {
        let mut bucket = Bucket::new(Rate::new(1), 0);
        assert_eq!(passed(&mut bucket, 1, 0, 1000 * SECOND), 1000);
    }

    #[test]
    fn a_thousand_limits_set_ten_times_each() {
        for n in 0..1000u64 {
            let rate = |k: u64| 1 + (n * 7919 + k * 104_729) % 100_000;
            let mut bucket = Bucket::new(Rate::new(rate(0)), 0);
            let (mut now, mut due, mut sum, mut slack) = (0, 0u64, 0u64, 0u64);
            for k in 0..10 {
                if k > 0 {
                    bucket.set(Rate::new(rate(k)), now);
                }
                sum += passed(&mut bucket, 1, now, SECOND / 5);
                now += SECOND / 5;
                due += rate(k) / 5;
                slack += rate(k) / 100 + 2;
            }
            assert!(sum.abs_diff(due) <= slack, "limit {n}: {sum} of {due}, slack {slack}");
        }
    }

    #[test]
    fn a_change_keeps_the_part_that_was_filled_and_the_time_of_a_debt() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: Some(1000) }, 0);
        bucket.take(500);
        bucket.set(Rate { per_second: 10, burst: Some(10) }, 0);
        assert!((bucket.fill - 5 * NANO).abs() < NANO / 1000, "{bucket:?}");
        bucket.take(25);
        assert_eq!(bucket.ready_at(0), 2 * SECOND + SECOND / 10);
        let mut faster = bucket;
        faster.set(Rate { per_second: 1_000_000, burst: Some(10) }, 0);
        assert_eq!(faster.ready_at(0), 21_000, "the same debt");
        bucket.set(Rate { per_second: 1, burst: Some(10) }, 0);
        assert_eq!(bucket.ready_at(0), 3 * SECOND, "the same time, and one unit more");
    }

    #[test]
    fn who_comes_later_does_not_go_before_who_waits() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: Some(4) }, 0);
        bucket.take(5);
        let ready = bucket.ready_at(0);
        bucket.close_until(ready + 500_000);
        assert_eq!(bucket.ready_at(ready + 1), ready + 500_000);
        assert_eq!(bucket.ready_at(ready + 500_000), ready + 500_000);
    }

    proptest! {
        /// Over any stretch of time no more passes than the capacity, the rate and one request allow, and a bucket that is
        /// always asked gives all of its rate.
        #[test]
        fn keeps_its_bound(
            rate in 1..10_000_000u64,
            burst in prop::option::of(1..10_000_000u64),
            steps in prop::collection::vec((0..5_000_000u64, 1..100_000u64), 1..300),
        ) {
            let rate = Rate { per_second: rate, burst };
            let capacity = rate.capacity() / NANO + 1;
            let mut bucket = Bucket::new(rate, 0);
            let mut now = 0;
            let mut passed: Vec<(Nanos, u64)> = Vec::new();
            for (step, cost) in steps {
                now += step;
                if bucket.ready_at(now) == now {
                    bucket.take(cost);
                    passed.push((now, cost));
                }
            }
            for first in 0..passed.len() {
                let mut sum = 0;
                for (at, cost) in &passed[first..] {
                    let time = i128::from(at - passed[first].0);
                    let before = capacity + i128::from(rate.per_second) * time / NANO + 1;
                    prop_assert!(sum <= before, "{} before {} of {}", sum, at, before);
                    sum += i128::from(*cost);
                }
            }
        }
    }
}
