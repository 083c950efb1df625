//! Limits: what a volume, a session and a group of sessions may do per second. Pure: `now` is an argument.
//!
//! A request passes all buckets that concern it, or none: those of its volume, of its session and of its session's group,
//! for its direction and for both directions, in requests and in bytes. An engine without limits asks nothing of this.

use slab::Slab;

use super::bucket::{Bucket, Rate};
use crate::clock::Nanos;

/// Rates for reads, for writes, and for both together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Reads alone.
    pub read: Option<Rate>,
    /// Writes alone: what changes a volume.
    pub write: Option<Rate>,
    /// Both together.
    pub total: Option<Rate>,
}

/// What may pass. Nothing is limited by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Requests per second.
    pub iops: Split,
    /// Bytes of data per second.
    pub bytes: Split,
}

impl Limit {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn rates(&self) -> [Option<Rate>; 6] {
        let Split { read, write, total } = self.iops;
        [read, write, total, self.bytes.read, self.bytes.write, self.bytes.total]
    }
}

/// A limit that is set.
#[derive(Clone, Debug, Default)]
struct Buckets {
    limit: Limit,
    /// As [`Limit::rates`] has them.
    buckets: [Option<Bucket>; 6],
    throttles: u64,
}

impl Buckets {
    fn set(&mut self, limit: &Limit, now: Nanos) {
        self.limit = *limit;
        for (bucket, rate) in self.buckets.iter_mut().zip(limit.rates()) {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.set(rate, now),
                (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
            }
        }
    }

    /// The buckets of a direction, with what a request takes of them.
    fn of(&mut self, cost: Cost) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let others = if cost.writes { [0, 3] } else { [1, 4] };
        let takes = move |index| if index < 3 { 1 } else { u64::from(cost.bytes) };
        let buckets = self.buckets.iter_mut().enumerate().filter(move |(index, _)| !others.contains(index));
        let buckets = buckets.filter_map(move |(index, bucket)| Some((bucket.as_mut()?, takes(index))));
        buckets.filter(|(_, takes)| *takes > 0)
    }
}

/// What a request takes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// It changes the volume.
    pub writes: bool,
    /// Of data.
    pub bytes: u32,
}

/// A place in [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitKey(usize);

/// The limits of an engine, by key.
#[derive(Debug, Default)]
pub struct Limits {
    buckets: Slab<Buckets>,
}

impl Limits {
    /// Nothing is limited.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Sets a limit where there may have been one. Buckets that were there keep how far they are filled, see
    /// [`Bucket::set`]; new ones are full. Returns where it is now: nowhere if nothing is limited.
    pub fn set(&mut self, key: Option<LimitKey>, limit: &Limit, now: Nanos) -> Option<LimitKey> {
        if limit.is_unlimited() {
            key.and_then(|key| self.buckets.try_remove(key.0));
            return None;
        }
        let key = key.unwrap_or_else(|| LimitKey(self.buckets.insert(Buckets::default())));
        self.buckets[key.0].set(limit, now);
        Some(key)
    }

    /// Takes what a request costs from all its limits, or from none: then it says when to ask again.
    ///
    /// # Errors
    /// The time, `wake` of the time at which all may be ready; until then nobody else passes those that were not.
    pub fn pass(
        &mut self,
        keys: [Option<LimitKey>; 3],
        cost: Cost,
        now: Nanos,
        wake: impl Fn(Nanos) -> Nanos,
    ) -> Result<(), Nanos> {
        let mut ready = now;
        for key in keys.into_iter().flatten() {
            for (bucket, _) in self.buckets[key.0].of(cost) {
                ready = ready.max(bucket.ready_at(now));
            }
        }
        for key in keys.into_iter().flatten() {
            let mut holds = false;
            for (bucket, takes) in self.buckets[key.0].of(cost) {
                if ready == now {
                    bucket.take(takes);
                } else {
                    let own = bucket.ready_at(now);
                    if own > now {
                        holds = true;
                        bucket.close_until(wake(own));
                    }
                }
            }
            self.buckets[key.0].throttles += u64::from(holds);
        }
        if ready == now { Ok(()) } else { Err(wake(ready)) }
    }

    /// A limit that is set, and how often it had requests wait.
    pub fn get(&self, key: LimitKey) -> (Limit, u64) {
        let Buckets { limit, throttles, .. } = &self.buckets[key.0];
        (*limit, *throttles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Cost = Cost { writes: false, bytes: 4096 };
    const WRITE: Cost = Cost { writes: true, bytes: 4096 };

    fn iops(read: Option<u64>, write: Option<u64>, total: Option<u64>) -> Limit {
        let rate = |rate: Option<u64>| rate.map(|per_second| Rate { per_second, burst: Some(1) });
        Limit { iops: Split { read: rate(read), write: rate(write), total: rate(total) }, ..Limit::default() }
    }

    /// Requests that pass at once.
    fn passes(limits: &mut Limits, keys: [Option<LimitKey>; 3], cost: Cost, now: Nanos) -> usize {
        (0..100).take_while(|_| limits.pass(keys, cost, now, |at| at).is_ok()).count()
    }

    #[test]
    fn reads_and_writes_apart_and_together() {
        let mut limits = Limits::default();
        let apart = [limits.set(None, &iops(Some(10), None, None), 0), None, None];
        assert_eq!(passes(&mut limits, apart, WRITE, 0), 100);
        assert_eq!(passes(&mut limits, apart, READ, 0), 1);
        let both = [limits.set(None, &iops(None, Some(100), Some(10)), 0), None, None];
        assert_eq!(passes(&mut limits, both, READ, 0), 1);
        assert_eq!(passes(&mut limits, both, WRITE, 0), 0, "reads have used up what is for both");
    }

    #[test]
    fn a_request_passes_every_limit_or_takes_from_none() {
        let mut limits = Limits::default();
        let volume = limits.set(None, &iops(None, None, Some(1000)), 0);
        let session = limits.set(None, &iops(None, None, Some(10)), 0);
        let group = limits.set(None, &iops(None, None, Some(1)), 0);
        assert_eq!(passes(&mut limits, [volume, session, group], READ, 0), 1);
        let later = 500_000_000;
        let again = limits.pass([volume, session, group], READ, later, |at| at).unwrap_err();
        assert_eq!(again, 1_000_000_000, "the slowest of them says when");
        let held = [volume, session, group].map(|key| limits.get(key.expect("set")).1);
        assert_eq!(held, [0, 1, 2], "each that held something back counts it");
        assert_eq!(
            passes(&mut limits, [volume, session, None], READ, later),
            1,
            "nothing was taken from the others"
        );
    }

    #[test]
    fn requests_without_data_pass_byte_limits() {
        let mut limits = Limits::default();
        let bytes = Split { total: Some(Rate::new(1)), ..Split::default() };
        let keys = [limits.set(None, &Limit { bytes, ..Limit::default() }, 0), None, None];
        assert_eq!(passes(&mut limits, keys, READ, 0), 1);
        assert_eq!(passes(&mut limits, keys, Cost { bytes: 0, ..READ }, 0), 100);
    }

    #[test]
    fn a_limit_that_goes_leaves_nothing() {
        let mut limits = Limits::default();
        let key = limits.set(None, &iops(Some(1), None, None), 0);
        assert!(!limits.is_empty());
        assert_eq!(limits.set(key, &Limit::default(), 0), None);
        assert!(limits.is_empty());
    }
}
