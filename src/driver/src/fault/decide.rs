//! Which rule applies to a request, and what is drawn for it.

use std::ops::Range;
use std::time::Duration;

use super::plan::{ALWAYS_PPM, FaultCounters, FaultEffect, FaultOps, FaultPlan, FaultRule};
use crate::driver::Op;
use crate::random::SplitMix64;

/// A plan at work.
#[derive(Debug)]
pub(super) struct Decider {
    plan: FaultPlan,
    counters: Vec<FaultCounters>,
}

/// What shall happen to a request, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) rule: usize,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The device is not asked.
    Fail {
        errno: i32,
    },
    /// These bytes of the request are carried out; `errno` other than 0 is the answer nevertheless.
    Part {
        bytes: Range<u32>,
        errno: i32,
    },
    Delay(Duration),
    Stuck,
    /// It goes on behind those of its window that have a smaller key.
    Reorder {
        window: u32,
        key: u64,
    },
}

impl Decider {
    pub(super) fn new(plan: FaultPlan) -> Decider {
        let counters = vec![FaultCounters::default(); plan.rules.len()];
        Decider { plan, counters }
    }

    pub(super) fn plan(&self) -> &FaultPlan {
        &self.plan
    }

    pub(super) fn counters(&self) -> &[FaultCounters] {
        &self.counters
    }

    /// What `op` meets; `unit` is what its parts must be multiples of. Changes nothing: a request that the driver gives
    /// back as "batch full" comes again and must meet the same. [`count`](Self::count) makes it so.
    pub(super) fn decide(&self, op: &Op, unit: u32) -> Option<Decision> {
        self.plan.rules.iter().zip(&self.counters).enumerate().find_map(|(rule, (known, counters))| {
            if !matches(known, op) {
                return None;
            }
            let mut random = Random::new(self.plan.seed, rule as u64, counters.matched);
            let spent = known.count.is_some_and(|count| counters.applied >= count);
            if counters.matched < known.after || spent || !random.chance(known.probability_ppm) {
                return None;
            }
            verdict(&known.effect, op, unit, &mut random).map(|verdict| Decision { rule, verdict })
        })
    }

    /// `op` was taken, and `decision` came of it.
    pub(super) fn count(&mut self, op: &Op, decision: Option<&Decision>) {
        let asked = decision.map_or(self.plan.rules.len(), |decision| decision.rule + 1);
        for (known, counters) in self.plan.rules.iter().zip(&mut self.counters).take(asked) {
            counters.matched += u64::from(matches(known, op));
        }
        if let Some(decision) = decision {
            self.counters[decision.rule].applied += 1;
        }
    }
}

fn matches(rule: &FaultRule, op: &Op) -> bool {
    let ops = FaultOps::of(op.kind);
    // A request without bytes stands for the one it points at.
    let end = op.offset.saturating_add(op.length.max(1).into());
    let touches = op.offset < rule.range.end && rule.range.start < end;
    rule.ops.meets(ops) && (touches || ops == FaultOps::FLUSH)
}

/// `None`: the request is too small to suffer it.
fn verdict(effect: &FaultEffect, op: &Op, unit: u32, random: &mut Random) -> Option<Verdict> {
    let unit = unit.max(1);
    let blocks = op.length.div_ceil(unit);
    let edge = |block: u32| block.saturating_mul(unit).min(op.length);
    let bytes = |start: u32, count: u32| edge(start)..edge(start + count);
    Some(match *effect {
        FaultEffect::Error { errno } => Verdict::Fail { errno },
        FaultEffect::Delay { min, max } => Verdict::Delay(min + random.up_to(max - min)),
        FaultEffect::Stuck => Verdict::Stuck,
        FaultEffect::Reorder { window } => Verdict::Reorder { window, key: random.next() },
        FaultEffect::Short if blocks < 2 => return None,
        FaultEffect::Short => Verdict::Part { bytes: bytes(0, 1 + random.below(blocks - 1)), errno: 0 },
        FaultEffect::TornWrite => match random.below(blocks.max(1)) {
            0 => Verdict::Fail { errno: libc::EIO },
            some => {
                let start = random.below(blocks - some + 1);
                Verdict::Part { bytes: bytes(start, some), errno: libc::EIO }
            }
        },
    })
}

struct Random(SplitMix64);

impl Random {
    /// The numbers for one match of one rule, whatever was drawn for others.
    fn new(seed: u64, rule: u64, matched: u64) -> Random {
        let fold = |seed, word| SplitMix64::new(seed).next_u64() ^ word;
        Random(SplitMix64::new(fold(fold(seed, rule), matched)))
    }

    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Less than `limit`, which is not 0.
    fn below(&mut self, limit: u32) -> u32 {
        // The high word of the product: less than `limit`.
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    fn chance(&mut self, ppm: u32) -> bool {
        self.below(ALWAYS_PPM) < ppm
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        // Within `DELAY_MAX`, whose nanoseconds fit.
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.next() % (limit + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{FileIndex, OpKind, RegionIndex};

    fn write(offset: u64, length: u32) -> Op {
        Op {
            kind: OpKind::Write,
            file: FileIndex(0),
            region: RegionIndex(0),
            region_offset: 0,
            length,
            offset,
            fua: false,
        }
    }

    fn decider(rules: Vec<FaultRule>) -> Decider {
        let plan = FaultPlan { seed: 42, rules };
        plan.check().expect("a good plan");
        Decider::new(plan)
    }

    /// Takes `op` and says what it met.
    fn take(decider: &mut Decider, op: &Op) -> Option<Decision> {
        let decision = decider.decide(op, 512);
        assert_eq!(decider.decide(op, 512), decision, "asking twice changes nothing");
        decider.count(op, decision.as_ref());
        decision
    }

    const EIO: FaultEffect = FaultEffect::Error { errno: libc::EIO };

    #[test]
    fn a_rule_meets_its_operations_in_its_range() {
        let rule = FaultRule { range: 4096..8192, ..FaultRule::new(FaultOps::WRITE | FaultOps::FLUSH, EIO) };
        let mut decider = decider(vec![rule]);
        let hit = |decider: &mut Decider, op: &Op| take(decider, op).is_some();
        assert!(!hit(&mut decider, &write(0, 4096)));
        assert!(hit(&mut decider, &write(0, 4097)));
        assert!(hit(&mut decider, &write(8191, 512)));
        assert!(!hit(&mut decider, &write(8192, 512)));
        assert!(!hit(&mut decider, &write(u64::MAX, 512)), "no overflow");
        assert!(!hit(&mut decider, &Op { kind: OpKind::Read, ..write(4096, 512) }));
        assert!(!hit(&mut decider, &Op { kind: OpKind::Nop, ..write(4096, 512) }));
        assert!(
            hit(&mut decider, &Op { kind: OpKind::Flush, ..write(0, 0) }),
            "a flush is about the whole file"
        );
        assert_eq!(decider.counters(), [FaultCounters { matched: 3, applied: 3 }]);
    }

    #[test]
    fn after_and_count_bound_a_rule() {
        let rule = FaultRule { after: 2, count: Some(3), ..FaultRule::new(FaultOps::WRITE, EIO) };
        let mut decider = decider(vec![rule]);
        let hits: Vec<bool> = (0..7).map(|n| take(&mut decider, &write(n * 512, 512)).is_some()).collect();
        assert_eq!(hits, [false, false, true, true, true, false, false]);
        assert_eq!(decider.counters(), [FaultCounters { matched: 7, applied: 3 }]);
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let once = FaultRule { count: Some(1), ..FaultRule::new(FaultOps::WRITE, EIO) };
        let mut decider = decider(vec![once, FaultRule::new(FaultOps::ALL, FaultEffect::Stuck)]);
        let rules: Vec<_> =
            (0..3).filter_map(|n| take(&mut decider, &write(n, 1))).map(|decision| decision.rule).collect();
        assert_eq!(rules, [0, 1, 1]);
        let counters = [(3, 1), (2, 2)].map(|(matched, applied)| FaultCounters { matched, applied });
        assert_eq!(decider.counters(), counters);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let rules = || {
            let some = |ops, effect| FaultRule { probability_ppm: 300_000, ..FaultRule::new(ops, effect) };
            let delay = FaultEffect::Delay { min: Duration::ZERO, max: Duration::from_secs(1) };
            vec![
                some(FaultOps::ALL, EIO),
                some(FaultOps::WRITE, FaultEffect::TornWrite),
                some(FaultOps::WRITE, FaultEffect::Short),
                some(FaultOps::ALL, delay),
            ]
        };
        let run = |seed| {
            let mut decider = Decider::new(FaultPlan { seed, rules: rules() });
            (0..500).map(|n| take(&mut decider, &write(n * 512, 16 << 10))).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let hits = run(3).iter().flatten().filter(|decision| decision.rule == 0).count();
        assert!((100..200).contains(&hits), "{hits} of 500 at 30 %");
    }

    /// The numbers themselves: a change of the generator would change what old seeds mean.
    #[test]
    fn seeds_keep_their_meaning() {
        let mut random = Random::new(7, 1, 3);
        assert_eq!([random.next(), random.next()], [0xd11d_9fdd_9a95_57bc, 0x8381_7cdd_4182_72c3]);
    }

    #[test]
    fn parts_are_whole_blocks_and_never_all_of_them() {
        let mut short = decider(vec![FaultRule::new(FaultOps::WRITE, FaultEffect::Short)]);
        let mut torn = decider(vec![FaultRule::new(FaultOps::WRITE, FaultEffect::TornWrite)]);
        let (mut seen, mut nothing) = (std::collections::HashSet::new(), 0);
        for n in 0..500 {
            let op = write(n * 2048, 2048);
            let Some(Decision { verdict: Verdict::Part { bytes, errno: 0 }, .. }) = take(&mut short, &op)
            else {
                panic!("short is a part")
            };
            assert_eq!(bytes.start, 0);
            seen.insert(bytes.end);
            match take(&mut torn, &op).expect("always").verdict {
                Verdict::Fail { errno: libc::EIO } => nothing += 1,
                Verdict::Part { bytes, errno: libc::EIO } => {
                    assert!(bytes.start % 512 == 0 && bytes.end % 512 == 0 && bytes.end <= 2048);
                    assert!(!bytes.is_empty() && bytes.len() < 2048, "{bytes:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, [512, 1024, 1536].into());
        assert!((50..250).contains(&nothing), "{nothing} of 500");
        assert_eq!(take(&mut short, &write(0, 512)), None, "one block cannot fall short");
        assert_eq!(short.counters()[0], FaultCounters { matched: 501, applied: 500 });
        assert_eq!(
            take(&mut torn, &write(0, 512)).expect("torn").verdict,
            Verdict::Fail { errno: libc::EIO }
        );
        assert_eq!(take(&mut torn, &write(0, 0)).expect("torn").verdict, Verdict::Fail { errno: libc::EIO });
    }

    #[test]
    fn delays_lie_between_their_bounds() {
        let (min, max) = (Duration::from_millis(3), Duration::from_millis(5));
        let mut decider = decider(vec![FaultRule::new(FaultOps::ALL, FaultEffect::Delay { min, max })]);
        for n in 0..200 {
            let Some(Decision { verdict: Verdict::Delay(delay), .. }) = take(&mut decider, &write(n, 1))
            else {
                panic!("always delayed")
            };
            assert!(min <= delay && delay <= max, "{delay:?}");
        }
    }
}
