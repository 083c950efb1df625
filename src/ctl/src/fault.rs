//! `ferrioctl fault`.

use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_api::v1::{
    ClearFaultsRequest, FaultCounters, FaultEffect, FaultOp, FaultPlan, FaultRule, GetFaultsRequest,
    GetFaultsResponse, SetFaultsRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::{Effect, FaultArgs, Op};
use crate::error::CtlError;
use crate::output::{self, Column, bytes, micros, print, print_json};

/// `fault show`.
pub async fn show(channel: Channel, json: bool, volume: String) -> Result<(), CtlError> {
    let answer = VolumesClient::new(channel).get_faults(GetFaultsRequest { volume: volume.clone() }).await?;
    let answer = answer.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&volume, &answer)) }
}

/// `fault set`.
pub async fn set(channel: Channel, json: bool, args: FaultArgs) -> Result<(), CtlError> {
    let mut client = VolumesClient::new(channel.clone());
    let volume = args.volume.clone();
    let mut plan = FaultPlan { seed: args.seed.unwrap_or(1), rules: Vec::new() };
    if args.add {
        let now = client.get_faults(GetFaultsRequest { volume: volume.clone() }).await?.into_inner();
        plan = now.plan.unwrap_or(plan);
        plan.seed = args.seed.unwrap_or(plan.seed);
    }
    plan.rules.push(rule(&args));
    client.set_faults(SetFaultsRequest { volume: volume.clone(), plan: Some(plan) }).await?;
    show(channel, json, volume).await
}

/// `fault clear`.
pub async fn clear(channel: Channel, json: bool, volume: String) -> Result<(), CtlError> {
    VolumesClient::new(channel).clear_faults(ClearFaultsRequest { volume: volume.clone() }).await?;
    if json { print_json(&json!({}), false) } else { print(&format!("volume {volume}: no faults any more")) }
}

fn rule(args: &FaultArgs) -> FaultRule {
    let op = |op: &Op| match op {
        Op::Read => FaultOp::Read,
        Op::Write => FaultOp::Write,
        Op::Flush => FaultOp::Flush,
        Op::Discard => FaultOp::Discard,
        Op::WriteZeroes => FaultOp::WriteZeroes,
    };
    let effect = match args.effect {
        Effect::Error => FaultEffect::Error,
        Effect::Delay => FaultEffect::Delay,
        Effect::Short => FaultEffect::Short,
        Effect::TornWrite => FaultEffect::TornWrite,
        Effect::Stuck => FaultEffect::Stuck,
        Effect::Reorder => FaultEffect::Reorder,
    };
    FaultRule {
        ops: args.op.iter().map(|asked| op(asked).into()).collect(),
        offset: args.offset.unwrap_or(0),
        length: args.length.unwrap_or(0),
        probability_ppm: args.probability_ppm.unwrap_or(0),
        after: args.after,
        count: args.count,
        effect: effect.into(),
        errno: args.errno.unwrap_or(0),
        delay_min_us: args.delay_min_us,
        delay_max_us: args.delay_max_us,
        window: args.window,
    }
}

fn effect(rule: &FaultRule) -> String {
    match rule.effect() {
        FaultEffect::Error => format!("error {}", rule.errno),
        FaultEffect::Delay => format!("delay {} to {}", micros(rule.delay_min_us), micros(rule.delay_max_us)),
        FaultEffect::Short => "short".to_owned(),
        FaultEffect::TornWrite => "torn-write".to_owned(),
        FaultEffect::Stuck => "stuck".to_owned(),
        FaultEffect::Reorder => format!("reorder {}", rule.window),
        FaultEffect::Unspecified => "unknown".to_owned(),
    }
}

fn op(op: FaultOp) -> &'static str {
    match op {
        FaultOp::Read => "read",
        FaultOp::Write => "write",
        FaultOp::Flush => "flush",
        FaultOp::Discard => "discard",
        FaultOp::WriteZeroes => "write-zeroes",
        FaultOp::Unspecified => "unknown",
    }
}

fn to_table(volume: &str, answer: &GetFaultsResponse) -> String {
    let columns = [
        Column::Right("RULE"),
        Column::Left("EFFECT"),
        Column::Left("OPS"),
        Column::Left("RANGE"),
        Column::Right("PPM"),
        Column::Right("AFTER"),
        Column::Right("COUNT"),
        Column::Right("MATCHED"),
        Column::Right("APPLIED"),
    ];
    let plan = answer.plan.clone().unwrap_or_default();
    let rows = plan.rules.iter().zip(&answer.counters).enumerate().map(|(index, (rule, counters))| {
        let ops: Vec<_> = rule.ops().map(op).collect();
        let end = if rule.length == 0 { "end".to_owned() } else { bytes(rule.offset + rule.length) };
        vec![
            index.to_string(),
            effect(rule),
            if ops.len() == 5 { "all".to_owned() } else { ops.join(",") },
            format!("{} to {end}", bytes(rule.offset)),
            rule.probability_ppm.to_string(),
            rule.after.to_string(),
            if rule.count == 0 { "-".to_owned() } else { rule.count.to_string() },
            counters.matched.to_string(),
            counters.applied.to_string(),
        ]
    });
    let mut text = output::table(&columns, rows.collect(), &format!("volume {volume}: no faults"));
    if !plan.rules.is_empty() {
        text.push_str(&format!("\n\nseed {}, {} requests held back now", plan.seed, answer.held));
    }
    text
}

fn to_json(answer: &GetFaultsResponse) -> Value {
    let plan = answer.plan.clone().unwrap_or_default();
    json!({
        "plan": { "seed": plan.seed, "rules": plan.rules.iter().map(rule_json).collect::<Vec<_>>() },
        "counters": answer.counters.iter().map(counters_json).collect::<Vec<_>>(),
        "held": answer.held,
    })
}

fn rule_json(rule: &FaultRule) -> Value {
    let word = effect(rule);
    json!({
        "ops": rule.ops().map(op).collect::<Vec<_>>(),
        "offset": rule.offset,
        "length": rule.length,
        "probability_ppm": rule.probability_ppm,
        "after": rule.after,
        "count": rule.count,
        "effect": word.split(' ').next().unwrap_or_default(),
        "errno": rule.errno,
        "delay_min_us": rule.delay_min_us,
        "delay_max_us": rule.delay_max_us,
        "window": rule.window,
    })
}

fn counters_json(counters: &FaultCounters) -> Value {
    json!({ "matched": counters.matched, "applied": counters.applied })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;

    fn answer() -> GetFaultsResponse {
        let all = [FaultOp::Read, FaultOp::Write, FaultOp::Flush, FaultOp::Discard, FaultOp::WriteZeroes];
        let error = FaultRule {
            ops: vec![FaultOp::Write.into(), FaultOp::Flush.into()],
            offset: 4096,
            length: 4096,
            probability_ppm: 500,
            after: 3,
            count: 1,
            effect: FaultEffect::Error.into(),
            errno: 28,
            ..FaultRule::default()
        };
        let delay = FaultRule {
            ops: all.map(i32::from).to_vec(),
            probability_ppm: 1_000_000,
            effect: FaultEffect::Delay.into(),
            delay_min_us: 500,
            delay_max_us: 20_000,
            ..FaultRule::default()
        };
        let counters =
            vec![FaultCounters { matched: 9, applied: 1 }, FaultCounters { matched: 100, applied: 100 }];
        GetFaultsResponse { plan: Some(FaultPlan { seed: 7, rules: vec![error, delay] }), counters, held: 2 }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
RULE  EFFECT                   OPS          RANGE               PPM  AFTER  COUNT  MATCHED  APPLIED
   0  error 28                 write,flush  4 KiB to 8 KiB      500      3      1        9        1
   1  delay 500 us to 20.0 ms  all          0 B to end      1000000      0      -      100      100

seed 7, 2 requests held back now";
        assert_eq!(to_table("v", &answer()), wanted);
        assert_eq!(to_table("v", &GetFaultsResponse::default()), "volume v: no faults");
    }

    #[test]
    fn as_json() {
        let value = to_json(&answer());
        assert_keys(&value, "GetFaultsResponse");
        assert_eq!(value["plan"]["rules"][0]["effect"], "error");
    }
}
