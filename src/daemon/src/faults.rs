//! Fault rules as configuration and API write them, field by field, and as the driver takes them.

use std::time::Duration;

use ferrio_api::v1;
use ferrio_driver::{FaultCounters, FaultEffect, FaultOps, FaultPlan, FaultRule, FaultStatus};

use crate::volumes::error::VolumeError;

const EIO: u32 = 5;
/// What [`FaultRule::probability_ppm`] is when a rule always applies.
pub const ALWAYS_PPM: u32 = 1_000_000;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails.
    Error,
    /// It is held back for a while.
    Delay,
    /// Part of it is transferred.
    Short,
    /// Part of it is done, then it fails.
    TornWrite,
    /// It is held until the rules change.
    Stuck,
    /// Others may overtake it.
    Reorder,
}

impl Effect {
    /// All of them, with their words.
    pub const NAMED: [(&'static str, Effect); 6] = [
        ("error", Effect::Error),
        ("delay", Effect::Delay),
        ("short", Effect::Short),
        ("torn-write", Effect::TornWrite),
        ("stuck", Effect::Stuck),
        ("reorder", Effect::Reorder),
    ];
}

/// A rule, field by field. 0 is "not given" where a comment says so.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Operations; none: all that can suffer the effect.
    pub ops: FaultOps,
    /// Start of the range. Bytes.
    pub offset: u64,
    /// Its length. Bytes; 0: to the end.
    pub length: u64,
    /// Share of the matches. Parts per million; 0: all.
    pub probability_ppm: u32,
    /// Matches let through first.
    pub after: u64,
    /// Hits; 0: no limit.
    pub count: u64,
    /// What happens.
    pub effect: Effect,
    /// Of an error; 0: EIO.
    pub errno: u32,
    /// Of a delay. Microseconds.
    pub delay_min_us: u64,
    /// Of a delay. Microseconds.
    pub delay_max_us: u64,
    /// Of a reordering. Requests.
    pub window: u32,
}

/// A field that does not do.
#[derive(Debug, Clone)]
pub struct Wrong {
    /// Which.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl Fields {
    /// The rule.
    pub fn rule(&self) -> Result<FaultRule, Wrong> {
        let strangers = [
            ("errno", u64::from(self.errno), Effect::Error),
            ("delay_min_us", self.delay_min_us, Effect::Delay),
            ("delay_max_us", self.delay_max_us, Effect::Delay),
            ("window", self.window.into(), Effect::Reorder),
        ];
        for (field, value, effect) in strangers {
            if value != 0 && effect != self.effect {
                let what = format!("goes with the effect {:?} alone", name(effect));
                let fix = "leave it out, or choose that effect".to_owned();
                return Err(Wrong { field, value: value.to_string(), what, fix });
            }
        }
        let end = if self.length == 0 { Some(u64::MAX) } else { self.offset.checked_add(self.length) };
        let Some(end) = end else {
            let what = "the range ends beyond 2^64".to_owned();
            let fix = "give a shorter one, or leave it out".to_owned();
            return Err(Wrong { field: "length", value: self.length.to_string(), what, fix });
        };
        let rule = FaultRule {
            ops: if self.ops == FaultOps::NONE { self.able() } else { self.ops },
            range: self.offset..end,
            probability_ppm: if self.probability_ppm == 0 { ALWAYS_PPM } else { self.probability_ppm },
            after: self.after,
            count: (self.count > 0).then_some(self.count),
            effect: self.effect(),
        };
        let plan = FaultPlan { seed: 0, rules: vec![rule.clone()] };
        plan.check().map(|()| rule).map_err(|error| {
            let text = error.to_string();
            Wrong {
                field: "effect",
                value: format!("{:?}", name(self.effect)),
                what: text.strip_prefix("rule 0: ").unwrap_or(&text).to_owned(),
                fix: "choose values within the limits".to_owned(),
            }
        })
    }

    fn effect(&self) -> FaultEffect {
        let micros = Duration::from_micros;
        match self.effect {
            Effect::Error => {
                let errno = if self.errno == 0 { EIO } else { self.errno };
                FaultEffect::Error { errno: i32::try_from(errno).unwrap_or(i32::MAX) }
            }
            Effect::Delay => {
                FaultEffect::Delay { min: micros(self.delay_min_us), max: micros(self.delay_max_us) }
            }
            Effect::Short => FaultEffect::Short,
            Effect::TornWrite => FaultEffect::TornWrite,
            Effect::Stuck => FaultEffect::Stuck,
            Effect::Reorder => FaultEffect::Reorder { window: self.window },
        }
    }

    /// Operations that can suffer the effect.
    fn able(&self) -> FaultOps {
        match self.effect {
            Effect::Short => FaultOps::READ | FaultOps::WRITE,
            Effect::TornWrite => FaultOps::WRITE | FaultOps::DISCARD | FaultOps::WRITE_ZEROES,
            _ => FaultOps::ALL,
        }
    }
}

fn name(effect: Effect) -> &'static str {
    Effect::NAMED.iter().find(|(_, known)| *known == effect).map_or("", |(name, _)| *name)
}

/// Operations, with the numbers they have in the API.
const OPS: [(v1::FaultOp, FaultOps); 5] = [
    (v1::FaultOp::Read, FaultOps::READ),
    (v1::FaultOp::Write, FaultOps::WRITE),
    (v1::FaultOp::Flush, FaultOps::FLUSH),
    (v1::FaultOp::Discard, FaultOps::DISCARD),
    (v1::FaultOp::WriteZeroes, FaultOps::WRITE_ZEROES),
];

/// From the wire.
pub fn from_wire(plan: &v1::FaultPlan) -> Result<FaultPlan, VolumeError> {
    let mut rules = Vec::new();
    for rule in &plan.rules {
        let fields = fields(rule)?;
        rules.push(fields.rule().map_err(|wrong| VolumeError::Invalid {
            field: wrong.field,
            value: wrong.value,
            what: format!("in rule {}: {}", rules.len(), wrong.what),
            fix: wrong.fix,
        })?);
    }
    Ok(FaultPlan { seed: plan.seed, rules })
}

fn fields(rule: &v1::FaultRule) -> Result<Fields, VolumeError> {
    let unknown = |field, value: i32| VolumeError::Invalid {
        field,
        value: value.to_string(),
        what: "is not one of the values known".to_owned(),
        fix: "name one of them; a newer ferrioctl may know more than this daemon".to_owned(),
    };
    let mut ops = FaultOps::NONE;
    for op in &rule.ops {
        let known = OPS.iter().find(|(known, _)| *known as i32 == *op);
        ops = ops | known.ok_or_else(|| unknown("ops", *op))?.1;
    }
    let effect = match v1::FaultEffect::try_from(rule.effect) {
        Ok(v1::FaultEffect::Error) => Effect::Error,
        Ok(v1::FaultEffect::Delay) => Effect::Delay,
        Ok(v1::FaultEffect::Short) => Effect::Short,
        Ok(v1::FaultEffect::TornWrite) => Effect::TornWrite,
        Ok(v1::FaultEffect::Stuck) => Effect::Stuck,
        Ok(v1::FaultEffect::Reorder) => Effect::Reorder,
        Ok(v1::FaultEffect::Unspecified) | Err(_) => return Err(unknown("effect", rule.effect)),
    };
    Ok(Fields {
        ops,
        offset: rule.offset,
        length: rule.length,
        probability_ppm: rule.probability_ppm,
        after: rule.after,
        count: rule.count,
        effect,
        errno: rule.errno,
        delay_min_us: rule.delay_min_us,
        delay_max_us: rule.delay_max_us,
        window: rule.window,
    })
}

/// To the wire.
pub fn to_wire(status: Option<FaultStatus>) -> v1::GetFaultsResponse {
    let Some(FaultStatus { plan, counters, held }) = status else { return v1::GetFaultsResponse::default() };
    let counters =
        counters.into_iter().map(|FaultCounters { matched, applied }| v1::FaultCounters { matched, applied });
    v1::GetFaultsResponse {
        plan: Some(v1::FaultPlan { seed: plan.seed, rules: plan.rules.iter().map(rule_to_wire).collect() }),
        counters: counters.collect(),
        held,
    }
}

fn rule_to_wire(rule: &FaultRule) -> v1::FaultRule {
    let ops = OPS.iter().filter(|(_, ops)| rule.ops.meets(*ops)).map(|(op, _)| (*op).into());
    let mut wire = v1::FaultRule {
        ops: ops.collect(),
        offset: rule.range.start,
        length: if rule.range.end == u64::MAX { 0 } else { rule.range.end - rule.range.start },
        probability_ppm: rule.probability_ppm,
        after: rule.after,
        count: rule.count.unwrap_or(0),
        ..v1::FaultRule::default()
    };
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let effect = match rule.effect {
        FaultEffect::Error { errno } => {
            wire.errno = errno.unsigned_abs();
            v1::FaultEffect::Error
        }
        FaultEffect::Delay { min, max } => {
            (wire.delay_min_us, wire.delay_max_us) = (micros(min), micros(max));
            v1::FaultEffect::Delay
        }
        FaultEffect::Short => v1::FaultEffect::Short,
        FaultEffect::TornWrite => v1::FaultEffect::TornWrite,
        FaultEffect::Stuck => v1::FaultEffect::Stuck,
        FaultEffect::Reorder { window } => {
            wire.window = window;
            v1::FaultEffect::Reorder
        }
    };
    wire.effect = effect.into();
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(effect: v1::FaultEffect) -> v1::FaultRule {
        v1::FaultRule { effect: effect.into(), ..v1::FaultRule::default() }
    }

    #[test]
    fn rules_come_back_as_they_were_sent() {
        let (read, write) = (v1::FaultOp::Read.into(), v1::FaultOp::Write.into());
        let rules = vec![
            v1::FaultRule {
                ops: vec![read, write],
                offset: 4096,
                length: 8192,
                probability_ppm: 20,
                after: 3,
                count: 7,
                errno: 61,
                ..wire(v1::FaultEffect::Error)
            },
            v1::FaultRule {
                ops: vec![write],
                probability_ppm: ALWAYS_PPM,
                delay_min_us: 5,
                delay_max_us: 3_600_000_000,
                ..wire(v1::FaultEffect::Delay)
            },
            v1::FaultRule {
                ops: vec![read],
                probability_ppm: 1,
                window: 9,
                ..wire(v1::FaultEffect::Reorder)
            },
        ];
        let sent = v1::FaultPlan { seed: 42, rules };
        let plan = from_wire(&sent).expect("good rules");
        let counters = vec![FaultCounters { matched: 2, applied: 1 }; 3];
        let answer = to_wire(Some(FaultStatus { plan, counters, held: 5 }));
        assert_eq!((answer.plan, answer.held), (Some(sent), 5));
        assert_eq!(answer.counters[2], v1::FaultCounters { matched: 2, applied: 1 });
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let plan = v1::FaultPlan {
            seed: 0,
            rules: vec![wire(v1::FaultEffect::Error), wire(v1::FaultEffect::TornWrite)],
        };
        let plan = from_wire(&plan).expect("good rules");
        assert_eq!(plan.rules[0], FaultRule::new(FaultOps::ALL, FaultEffect::Error { errno: 5 }));
        let torn = FaultOps::WRITE | FaultOps::DISCARD | FaultOps::WRITE_ZEROES;
        assert_eq!(plan.rules[1], FaultRule::new(torn, FaultEffect::TornWrite));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let stuck = || wire(v1::FaultEffect::Stuck);
        let delay = |delay_min_us, delay_max_us| v1::FaultRule {
            delay_min_us,
            delay_max_us,
            ..wire(v1::FaultEffect::Delay)
        };
        let cases: [(v1::FaultRule, &[&str]); 9] = [
            (wire(v1::FaultEffect::Unspecified), &["effect = 0", "values known"]),
            (v1::FaultRule { effect: 99, ..stuck() }, &["effect = 99"]),
            (v1::FaultRule { ops: vec![77], ..stuck() }, &["ops = 77"]),
            (v1::FaultRule { errno: 5, ..stuck() }, &["errno = 5", "rule 1", "\"error\" alone"]),
            (v1::FaultRule { window: 5, ..stuck() }, &["window = 5", "\"reorder\" alone"]),
            (v1::FaultRule { offset: 9, length: u64::MAX, ..stuck() }, &["length", "2^64"]),
            (v1::FaultRule { probability_ppm: 1_000_001, ..stuck() }, &["1000001 ppm"]),
            (delay(2, 1), &["longer than at most"]),
            (
                v1::FaultRule { ops: vec![v1::FaultOp::Flush.into()], ..wire(v1::FaultEffect::Short) },
                &["flush", "only read, write"],
            ),
        ];
        for (rule, parts) in cases {
            let plan = v1::FaultPlan { seed: 0, rules: vec![stuck(), rule] };
            let error = from_wire(&plan).expect_err("refused").to_string();
            for part in parts {
                assert!(error.contains(part), "{part:?} not in {error:?}");
            }
        }
    }
}
