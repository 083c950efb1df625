//! Limits as configuration and API write them, field by field, and as the engine takes them.

use ferrio_api::v1;
use ferrio_engine::{Limit, RATE_MAX, Rate, Split};

use crate::config::size;

/// The rates, each with its burst, in the order of [`Fields`].
pub const FIELDS: [(&str, &str); 6] = [
    ("iops", "burst_iops"),
    ("read_iops", "burst_read_iops"),
    ("write_iops", "burst_write_iops"),
    ("bytes_per_s", "burst_bytes"),
    ("read_bytes_per_s", "burst_read_bytes"),
    ("write_bytes_per_s", "burst_write_bytes"),
];

/// A limit, field by field; 0 is "not given".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    /// Requests and bytes per second, in the order of [`FIELDS`].
    pub rates: [u64; 6],
    /// What may pass at once.
    pub bursts: [u64; 6],
}

/// A field that does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Which.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl Fields {
    /// The limit; one that limits nothing if no rate is given.
    ///
    /// # Errors
    /// A field does not do.
    pub fn limit(&self) -> Result<Limit, Wrong> {
        let mut rates = [None; 6];
        for (index, (rate, burst)) in FIELDS.into_iter().enumerate() {
            let (per_second, burst_of) = (self.rates[index], self.bursts[index]);
            for (field, value) in [(rate, per_second), (burst, burst_of)] {
                if value > RATE_MAX {
                    let what = format!("is out of range: 1 to {RATE_MAX}, or 0 for none");
                    let fix = "choose a value within the limit".to_owned();
                    return Err(Wrong { field, value, what, fix });
                }
            }
            if per_second == 0 && burst_of != 0 {
                let what = format!("has no effect without {rate}");
                let fix = format!("give {rate} too, or leave it out");
                return Err(Wrong { field: burst, value: burst_of, what, fix });
            }
            rates[index] =
                (per_second > 0).then_some(Rate { per_second, burst: (burst_of > 0).then_some(burst_of) });
        }
        let [iops, read_iops, write_iops, bytes, read_bytes, write_bytes] = rates;
        Ok(Limit {
            iops: Split { read: read_iops, write: write_iops, total: iops },
            bytes: Split { read: read_bytes, write: write_bytes, total: bytes },
        })
    }

    fn of(limit: &Limit) -> Self {
        let Limit { iops, bytes } = limit;
        let all = [iops.total, iops.read, iops.write, bytes.total, bytes.read, bytes.write];
        Self {
            rates: all.map(|rate| rate.map_or(0, |rate| rate.per_second)),
            bursts: all.map(|rate| rate.and_then(|rate| rate.burst).unwrap_or(0)),
        }
    }
}

/// From the wire.
///
/// # Errors
/// A field does not do.
pub fn from_wire(limit: &v1::Limit) -> Result<Limit, Wrong> {
    let rates = [
        limit.iops,
        limit.read_iops,
        limit.write_iops,
        limit.bytes_per_s,
        limit.read_bytes_per_s,
        limit.write_bytes_per_s,
    ];
    let bursts = [
        limit.burst_iops,
        limit.burst_read_iops,
        limit.burst_write_iops,
        limit.burst_bytes,
        limit.burst_read_bytes,
        limit.burst_write_bytes,
    ];
    Fields { rates, bursts }.limit()
}

/// To the wire.
pub fn to_wire(limit: &Limit) -> v1::Limit {
    let Fields { rates, bursts } = Fields::of(limit);
    let [iops, read_iops, write_iops, bytes_per_s, read_bytes_per_s, write_bytes_per_s] = rates;
    let [burst_iops, burst_read_iops, burst_write_iops, burst_bytes, burst_read_bytes, burst_write_bytes] =
        bursts;
    v1::Limit {
        iops,
        read_iops,
        write_iops,
        bytes_per_s,
        read_bytes_per_s,
        write_bytes_per_s,
        burst_iops,
        burst_read_iops,
        burst_write_iops,
        burst_bytes,
        burst_read_bytes,
        burst_write_bytes,
    }
}

/// What is limited to how much, for the log.
pub fn words(limit: &Limit) -> String {
    let Fields { rates, bursts } = Fields::of(limit);
    let given = FIELDS.into_iter().zip(rates.into_iter().zip(bursts)).enumerate();
    let words = given.filter(|(_, (_, (rate, _)))| *rate > 0).map(|(index, ((name, _), (rate, burst)))| {
        let shown = |value: u64| if index < 3 { value.to_string() } else { size::format(value) };
        let burst = if burst > 0 { format!(" (burst {})", shown(burst)) } else { String::new() };
        format!("{name} {}{burst}", shown(rate))
    });
    words.collect::<Vec<_>>().join(", ")
}

/// One of `parts` equal parts of a limit: what each of so many engines lets through. Together they let no more through than the
/// whole, unless that is less than one unit a second for each of them.
pub fn part(limit: &Limit, parts: u64) -> Limit {
    let part = |rate: Rate| Rate {
        per_second: (rate.per_second / parts).max(1),
        burst: rate.burst.map(|burst| (burst / parts).max(1)),
    };
    let split = |split: Split| Split {
        read: split.read.map(part),
        write: split.write.map(part),
        total: split.total.map(part),
    };
    Limit { iops: split(limit.iops), bytes: split(limit.bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_comes_back_as_it_was_sent() {
        let sent = v1::Limit {
            iops: 1,
            read_iops: 2,
            write_iops: 3,
            bytes_per_s: 4,
            read_bytes_per_s: 5,
            write_bytes_per_s: RATE_MAX,
            burst_iops: 7,
            burst_read_iops: 8,
            burst_write_iops: 0,
            burst_bytes: 10,
            burst_read_bytes: 11,
            burst_write_bytes: 12,
        };
        let limit = from_wire(&sent).expect("a good limit");
        assert_eq!(limit.iops.read, Some(Rate { per_second: 2, burst: Some(8) }));
        assert_eq!(limit.iops.write, Some(Rate::new(3)));
        assert_eq!(limit.bytes.total, Some(Rate { per_second: 4, burst: Some(10) }));
        assert_eq!(to_wire(&limit), sent);
        assert!(words(&limit).starts_with("iops 1 (burst 7), read_iops 2"), "{}", words(&limit));
        assert!(from_wire(&v1::Limit::default()).expect("none").is_unlimited());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let burst = from_wire(&v1::Limit { iops: 5, burst_read_iops: 9, ..v1::Limit::default() });
        let burst = burst.expect_err("a burst of nothing");
        assert_eq!((burst.field, burst.value), ("burst_read_iops", 9));
        assert!(burst.what.contains("without read_iops"), "{burst:?}");
        let high = from_wire(&v1::Limit { bytes_per_s: RATE_MAX + 1, ..v1::Limit::default() });
        assert_eq!(high.expect_err("too high").field, "bytes_per_s");
    }

    #[test]
    fn parts_are_together_no_more_than_the_whole() {
        let total = Some(Rate { per_second: 1000, burst: Some(10) });
        let whole = Limit { iops: Split { total, ..Split::default() }, ..Limit::default() };
        assert_eq!(part(&whole, 1), whole);
        assert_eq!(part(&whole, 3).iops.total, Some(Rate { per_second: 333, burst: Some(3) }));
        assert_eq!(part(&whole, 4096).iops.total, Some(Rate { per_second: 1, burst: Some(1) }));
        assert!(part(&Limit::default(), 3).is_unlimited());
    }
}
