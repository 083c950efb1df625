//! What goes wrong, and when: the plan of one file.

use std::fmt;
use std::ops::{BitOr, Range};
use std::time::Duration;

use crate::driver::{FileIndex, OpKind};

/// Rules of one plan at most: each request is held against all of them.
pub const RULES_MAX: usize = 64;

/// What [`FaultRule::probability_ppm`] is when a rule always applies.
pub const ALWAYS_PPM: u32 = 1_000_000;

/// Longest [`FaultEffect::Delay`].
pub const DELAY_MAX: Duration = Duration::from_secs(3600);

/// Largest [`FaultEffect::Reorder`] window.
pub const WINDOW_MAX: u32 = 1024;

/// How long [`FaultEffect::Reorder`] holds committed requests for others to join them.
pub const REORDER_HOLD: Duration = Duration::from_millis(2);

/// The faults of one file: which requests they hit, and how.
///
/// The rules are tried in their order; the first that applies decides, and a request meets one fault at most. Each
/// rule draws from numbers of its own, made of the seed, its place in the plan and how many requests it has matched:
/// **the same plan and the same requests in the same order give the same faults**, whatever the machine, the backend or
/// the batches. (When a delayed request goes on is a matter of the clock.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Start of the random numbers.
    pub seed: u64,
    /// At most [`RULES_MAX`]. None: no faults.
    pub rules: Vec<FaultRule>,
}

/// One kind of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Operations it matches.
    pub ops: FaultOps,
    /// Bytes of the file. A request that touches one of them matches; a flush always does.
    pub range: Range<u64>,
    /// How many of a million matches it applies to, 1 ..= [`ALWAYS_PPM`].
    pub probability_ppm: u32,
    /// Matches that are let through first.
    pub after: u64,
    /// How often it applies at most. `None`: no limit.
    pub count: Option<u64>,
    /// What then happens.
    pub effect: FaultEffect,
}

/// What happens to a request that a rule applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// The device is not asked; the request fails.
    Error {
        /// Positive, 1 ..= 4095 (`EIO` is 5).
        errno: i32,
    },
    /// The device is asked later.
    Delay {
        /// At least.
        min: Duration,
        /// At most; up to [`DELAY_MAX`].
        max: Duration,
    },
    /// A read or write moves fewer bytes than it was told to, in whole blocks, and says so. A request of one block cannot
    /// fall short: the rule does not apply to it.
    Short,
    /// Some blocks of a write, discard or write-zeroes (perhaps none, never all) are carried out, then it fails with EIO.
    TornWrite,
    /// The device is not asked until the rules of the file change or the driver is dropped.
    Stuck,
    /// Requests are held until there are `window` of them, or [`REORDER_HOLD`] is over, and go on in a random order.
    Reorder {
        /// 2 ..= [`WINDOW_MAX`].
        window: u32,
    },
}

/// A set of operations.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultOps(u8);

impl FaultOps {
    /// No operation.
    pub const NONE: FaultOps = FaultOps(0);
    /// Reads.
    pub const READ: FaultOps = FaultOps(1);
    /// Writes.
    pub const WRITE: FaultOps = FaultOps(2);
    /// Flushes.
    pub const FLUSH: FaultOps = FaultOps(4);
    /// Discards.
    pub const DISCARD: FaultOps = FaultOps(8);
    /// Write-zeroes.
    pub const WRITE_ZEROES: FaultOps = FaultOps(16);
    /// All of them.
    pub const ALL: FaultOps = FaultOps(31);

    /// The operations with their names for configuration and people.
    pub const NAMED: [(&'static str, FaultOps); 5] = [
        ("read", FaultOps::READ),
        ("write", FaultOps::WRITE),
        ("flush", FaultOps::FLUSH),
        ("discard", FaultOps::DISCARD),
        ("write-zeroes", FaultOps::WRITE_ZEROES),
    ];

    /// The set with the operation of this name.
    pub fn named(name: &str) -> Option<FaultOps> {
        FaultOps::NAMED.iter().find(|(known, _)| *known == name).map(|&(_, ops)| ops)
    }

    /// The names of its operations.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FaultOps::NAMED.into_iter().filter(move |&(_, ops)| self.meets(ops)).map(|(name, _)| name)
    }

    /// An operation is in both.
    pub const fn meets(self, other: FaultOps) -> bool {
        self.0 & other.0 != 0
    }

    /// The set of one kind of request. Nops never reach a device: none.
    pub fn of(kind: OpKind) -> FaultOps {
        match kind {
            OpKind::Nop => FaultOps::NONE,
            OpKind::Read => FaultOps::READ,
            OpKind::Write => FaultOps::WRITE,
            OpKind::Flush => FaultOps::FLUSH,
            OpKind::Discard => FaultOps::DISCARD,
            OpKind::WriteZeroes => FaultOps::WRITE_ZEROES,
        }
    }

    fn is_within(self, other: FaultOps) -> bool {
        self.0 & !other.0 == 0
    }
}

impl BitOr for FaultOps {
    type Output = FaultOps;

    fn bitor(self, other: FaultOps) -> FaultOps {
        FaultOps(self.0 | other.0)
    }
}

impl fmt::Debug for FaultOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// How often a rule came into play.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Requests of its operations and range that no rule before it took.
    pub matched: u64,
    /// Those it applied to.
    pub applied: u64,
}

/// The faults of a file as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultStatus {
    /// What was set.
    pub plan: FaultPlan,
    /// One per rule, in the plan's order; from 0 since it was set.
    pub counters: Vec<FaultCounters>,
    /// Requests that a delay, a reorder window or a stuck rule holds now.
    pub held: u32,
}

/// Why faults could not be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The driver was opened without the fault layer.
    #[error("this engine was opened without fault injection: open it with faults = true")]
    Unsupported,
    /// No such file.
    #[error("file {} is not registered", .0.0)]
    NoSuchFile(FileIndex),
    /// More than the driver looks through; nothing was changed.
    #[error("{0} rules, at most {RULES_MAX} are possible: leave some out")]
    TooManyRules(usize),
    /// A rule makes no sense; nothing was changed.
    #[error("rule {rule}: {reason}")]
    Rule {
        /// Its place in the plan, from 0.
        rule: usize,
        /// Value, limit and fix.
        reason: String,
    },
}

impl FaultRule {
    /// A rule that always applies, in the whole file.
    pub fn new(ops: FaultOps, effect: FaultEffect) -> FaultRule {
        FaultRule { ops, range: 0..u64::MAX, probability_ppm: ALWAYS_PPM, after: 0, count: None, effect }
    }

    fn check(&self) -> Result<(), String> {
        if self.ops == FaultOps::NONE {
            return Err("it names no operation: name at least one".to_owned());
        }
        if self.range.is_empty() {
            return Err(format!("its range {:?} is empty: end it after its start", self.range));
        }
        if self.probability_ppm == 0 || self.probability_ppm > ALWAYS_PPM {
            let ppm = self.probability_ppm;
            return Err(format!("its probability of {ppm} ppm is not within 1 and {ALWAYS_PPM}"));
        }
        self.effect.check(self.ops)
    }
}

impl FaultEffect {
    fn check(&self, ops: FaultOps) -> Result<(), String> {
        match *self {
            FaultEffect::Error { errno } if !(1..=4095).contains(&errno) => {
                Err(format!("its errno {errno} is not within 1 and 4095"))
            }
            FaultEffect::Delay { min, max } if min > max => {
                Err(format!("its delay of at least {min:?} is longer than at most {max:?}"))
            }
            FaultEffect::Delay { max, .. } if max > DELAY_MAX => {
                Err(format!("its delay of {max:?} is longer than {DELAY_MAX:?}: use stuck"))
            }
            FaultEffect::Reorder { window } if !(2..=WINDOW_MAX).contains(&window) => {
                Err(format!("its window of {window} is not within 2 and {WINDOW_MAX}"))
            }
            _ if !ops.is_within(self.suits()) => {
                let able: Vec<_> = self.suits().names().collect();
                Err(format!("it names {ops:?}, but only {} can do that", able.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// Operations that can suffer it.
    fn suits(&self) -> FaultOps {
        match self {
            FaultEffect::Short => FaultOps::READ | FaultOps::WRITE,
            FaultEffect::TornWrite => FaultOps::WRITE | FaultOps::DISCARD | FaultOps::WRITE_ZEROES,
            _ => FaultOps::ALL,
        }
    }
}

impl FaultPlan {
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), FaultError> {
        if self.rules.len() > RULES_MAX {
            return Err(FaultError::TooManyRules(self.rules.len()));
        }
        for (rule, known) in self.rules.iter().enumerate() {
            known.check().map_err(|reason| FaultError::Rule { rule, reason })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut FaultRule)) -> String {
        let good = FaultRule::new(FaultOps::WRITE, FaultEffect::TornWrite);
        let mut bad = good.clone();
        change(&mut bad);
        let plan = FaultPlan { seed: 0, rules: vec![good, bad] };
        plan.check().expect_err("refused").to_string()
    }

    #[test]
    fn senseless_rules_are_refused_by_name() {
        let ops = FaultOps::READ | FaultOps::WRITE;
        let cases: [(&str, String); 9] = [
            ("names no operation", refusal(|rule| rule.ops = FaultOps::NONE)),
            ("range 4096..4096 is empty", refusal(|rule| rule.range = 4096..4096)),
            ("0 ppm", refusal(|rule| rule.probability_ppm = 0)),
            ("1000001 ppm", refusal(|rule| rule.probability_ppm = ALWAYS_PPM + 1)),
            ("errno -5", refusal(|rule| rule.effect = FaultEffect::Error { errno: -5 })),
            ("window of 1 ", refusal(|rule| rule.effect = FaultEffect::Reorder { window: 1 })),
            ("only write, discard, write-zeroes", refusal(|rule| rule.ops = ops)),
            (
                "longer than at most",
                refusal(|rule| {
                    rule.effect = FaultEffect::Delay { min: DELAY_MAX, max: Duration::ZERO };
                }),
            ),
            (
                "use stuck",
                refusal(|rule| rule.effect = FaultEffect::Delay { min: Duration::ZERO, max: DELAY_MAX * 2 }),
            ),
        ];
        for (wanted, text) in cases {
            assert!(text.starts_with("rule 1: ") && text.contains(wanted), "{wanted:?} in {text:?}");
        }
        let many = FaultPlan { seed: 0, rules: vec![FaultRule::new(ops, FaultEffect::Stuck); RULES_MAX + 1] };
        assert_eq!(many.check(), Err(FaultError::TooManyRules(RULES_MAX + 1)));
        assert_eq!(FaultPlan::default().check(), Ok(()));
    }

    #[test]
    fn operations_have_names() {
        assert_eq!(FaultOps::named("write-zeroes"), Some(FaultOps::WRITE_ZEROES));
        assert_eq!(FaultOps::named("erase"), None);
        assert_eq!(format!("{:?}", FaultOps::READ | FaultOps::FLUSH), r#"{"read", "flush"}"#);
        let all = FaultOps::NAMED.into_iter().fold(FaultOps::NONE, |all, (_, ops)| all | ops);
        assert_eq!(all, FaultOps::ALL);
    }
}
