//! `ferrioctl scheduler`.

use ferrio_api::v1::scheduling_client::SchedulingClient;
use ferrio_api::v1::{
    ClassSchedule, EngineSchedule, GetSchedulingRequest, GetSchedulingResponse, Group, LatencyGoal,
    SessionSchedule, SetEngineRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::SchedulerArgs;
use crate::connect::ANSWER_BYTES_MAX;
use crate::error::CtlError;
use crate::limit::limited_json;
use crate::output::{self, Column, bytes, class, facts, micros, print, print_json, short};

/// `scheduler show`.
pub async fn show(channel: Channel, json: bool) -> Result<(), CtlError> {
    let answer = get(channel).await?;
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

/// `scheduler set`.
pub async fn set(channel: Channel, json: bool, args: SchedulerArgs) -> Result<(), CtlError> {
    let request = SetEngineRequest {
        engine: args.engine.unwrap_or_default(),
        latency_goal: args.change.latency,
        budgets: args.change.budgets.map_or_else(Vec::new, |budgets| budgets.0.to_vec()),
        merge_bytes_max: args.change.merge_bytes.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
        merge_requests_max: args.change.merge_requests,
    };
    SchedulingClient::new(channel.clone()).set_engine(request).await?;
    show(channel, json).await
}

async fn get(channel: Channel) -> Result<GetSchedulingResponse, CtlError> {
    let mut client = SchedulingClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    Ok(client.get(GetSchedulingRequest {}).await?.into_inner())
}

/// Reads `off`, `200%`, `2ms` or `500us`.
pub fn parse_goal(text: &str) -> Result<LatencyGoal, String> {
    if text == "off" {
        return Ok(LatencyGoal::default());
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse::<u64>().ok().filter(|number| *number > 0);
    let goal = match (number, text[digits..].trim()) {
        (Some(percent), "%") => u32::try_from(percent).ok().map(|percent| (0, percent)),
        (Some(time), "us") => Some((time, 0)),
        (Some(time), "ms") => time.checked_mul(1_000).map(|time| (time, 0)),
        (Some(time), "s") => time.checked_mul(1_000_000).map(|time| (time, 0)),
        _ => None,
    };
    let (within_us, percent) = goal.ok_or("say off, a time such as 2ms or 500us, or a part such as 200%")?;
    Ok(LatencyGoal { within_us, percent })
}

/// Budgets of prio, read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets(pub [u32; 3]);

/// Reads `32,16,16`.
pub fn parse_budgets(text: &str) -> Result<Budgets, String> {
    let numbers: Option<Vec<u32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let three = numbers.and_then(|numbers| numbers.try_into().ok());
    three
        .map(Budgets)
        .ok_or_else(|| "say three numbers, of prio, read and write, such as 32,16,16".to_owned())
}

fn goal(engine: &EngineSchedule) -> String {
    let alone = match engine.prio_alone_us {
        0 => "not seen yet".to_owned(),
        alone => micros(alone),
    };
    match engine.latency_goal.unwrap_or_default() {
        LatencyGoal { within_us: 0, percent: 0 } => "off".to_owned(),
        LatencyGoal { within_us: 0, percent } => format!("{percent} % of what prio takes alone ({alone})"),
        LatencyGoal { within_us, .. } => format!("within {}", micros(within_us)),
    }
}

fn bulk(engine: &EngineSchedule) -> String {
    let cap =
        if engine.bulk_capped { format!("at most {}", engine.bulk_cap) } else { "not capped".to_owned() };
    format!("{cap}, {} now; cap lowered {} times", engine.bulk_in_device, engine.cap_cuts)
}

fn merging(engine: &EngineSchedule) -> String {
    let limits = engine.merge.unwrap_or_default();
    if limits.requests_max < 2 {
        return "off".to_owned();
    }
    format!("up to {} requests and {} in one operation", limits.requests_max, bytes(limits.bytes_max.into()))
}

fn engine_table(engine: &EngineSchedule) -> String {
    let columns = [
        Column::Left("CLASS"),
        Column::Right("BUDGET"),
        Column::Right("WAITING"),
        Column::Right("STARVED"),
        Column::Right("MERGED"),
    ];
    let rows = engine.classes.iter().map(|row| {
        vec![
            class(row.class).to_owned(),
            row.budget.to_string(),
            row.waiting.to_string(),
            micros(row.starved_us),
            row.merged.to_string(),
        ]
    });
    let classes = output::table(&columns, rows.collect(), "no classes");
    let facts = facts(&[
        ("latency goal", goal(engine)),
        ("bulk in the device", bulk(engine)),
        ("held by limits", format!("{} times", engine.throttled)),
        ("merging", merging(engine)),
    ]);
    let columns =
        [Column::Right("SESSION"), Column::Left("CLIENT"), Column::Right("WEIGHT"), Column::Left("GROUP")];
    let rows = engine.sessions.iter().map(|session| {
        let group = if session.group.is_empty() { "-" } else { &session.group };
        vec![
            session.session_id.to_string(),
            short(&session.client_name),
            session.weight.to_string(),
            group.to_owned(),
        ]
    });
    let sessions = output::table(&columns, rows.collect(), "no sessions");
    format!("engine {}\n{classes}\n{facts}\n\n{sessions}", engine.engine)
}

fn to_table(answer: &GetSchedulingResponse) -> String {
    let mut parts: Vec<String> = answer.engines.iter().map(engine_table).collect();
    if !answer.groups.is_empty() {
        let columns = [Column::Left("GROUP"), Column::Left("CONFIGURED"), Column::Right("SESSIONS")];
        let rows = answer.groups.iter().map(|group| {
            let configured = if group.configured { "yes" } else { "no" };
            vec![group.name.clone(), configured.to_owned(), group.sessions.to_string()]
        });
        parts.push(output::table(&columns, rows.collect(), ""));
    }
    parts.push(match answer.limits.len() {
        0 => "no limits".to_owned(),
        1 => "1 limit: `ferrioctl limit list`".to_owned(),
        limits => format!("{limits} limits: `ferrioctl limit list`"),
    });
    parts.join("\n\n")
}

fn to_json(answer: &GetSchedulingResponse) -> Value {
    json!({
        "engines": answer.engines.iter().map(engine_json).collect::<Vec<_>>(),
        "limits": answer.limits.iter().map(limited_json).collect::<Vec<_>>(),
        "groups": answer.groups.iter().map(group_json).collect::<Vec<_>>(),
    })
}

fn engine_json(engine: &EngineSchedule) -> Value {
    let goal = engine.latency_goal.unwrap_or_default();
    let merge = engine.merge.unwrap_or_default();
    json!({
        "engine": engine.engine,
        "classes": engine.classes.iter().map(class_json).collect::<Vec<_>>(),
        "latency_goal": { "within_us": goal.within_us, "percent": goal.percent },
        "bulk_cap": engine.bulk_cap,
        "bulk_capped": engine.bulk_capped,
        "bulk_in_device": engine.bulk_in_device,
        "cap_cuts": engine.cap_cuts,
        "prio_alone_us": engine.prio_alone_us,
        "throttled": engine.throttled,
        "sessions": engine.sessions.iter().map(session_json).collect::<Vec<_>>(),
        "merge": { "bytes_max": merge.bytes_max, "requests_max": merge.requests_max },
    })
}

fn class_json(row: &ClassSchedule) -> Value {
    json!({
        "class": class(row.class),
        "budget": row.budget,
        "waiting": row.waiting,
        "starved_us": row.starved_us,
        "merged": row.merged,
    })
}

fn session_json(session: &SessionSchedule) -> Value {
    json!({
        "session_id": session.session_id,
        "client_name": session.client_name,
        "weight": session.weight,
        "group": session.group,
    })
}

fn group_json(group: &Group) -> Value {
    json!({ "name": group.name, "configured": group.configured, "sessions": group.sessions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;
    use ferrio_api::v1::{Class, Limit, LimitScope, MergeLimits, ScopedLimit};

    fn answer() -> GetSchedulingResponse {
        let class = |class: Class, budget, waiting, starved_us| ClassSchedule {
            class: class.into(),
            budget,
            waiting,
            starved_us,
            merged: starved_us / 10,
        };
        let session = |session_id, client_name: &str, weight, group: &str| SessionSchedule {
            session_id,
            client_name: client_name.into(),
            weight,
            group: group.into(),
        };
        let engine = EngineSchedule {
            engine: "main".into(),
            classes: vec![
                class(Class::Prio, 32, 0, 0),
                class(Class::Read, 16, 40, 1_250),
                class(Class::Write, 16, 120, 2_500_000),
            ],
            latency_goal: Some(LatencyGoal { within_us: 0, percent: 200 }),
            bulk_cap: 12,
            bulk_capped: true,
            bulk_in_device: 11,
            cap_cuts: 7,
            prio_alone_us: 310,
            throttled: 99,
            merge: Some(MergeLimits { bytes_max: 512 << 10, requests_max: 32 }),
            sessions: vec![session(3, "db", 300, ""), session(12, "backup", 20, "batch")],
        };
        let limited = ScopedLimit {
            scope: Some(LimitScope { group: "batch".into(), ..LimitScope::default() }),
            limit: Some(Limit { iops: 5, ..Limit::default() }),
            throttled: 99,
        };
        let group = Group { name: "batch".into(), configured: true, sessions: 1 };
        GetSchedulingResponse { engines: vec![engine], limits: vec![limited], groups: vec![group] }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
engine main
CLASS  BUDGET  WAITING  STARVED  MERGED
prio       32        0     0 us       0
read       16       40   1.2 ms     125
write      16      120    2.5 s  250000
latency goal        200 % of what prio takes alone (310 us)
bulk in the device  at most 12, 11 now; cap lowered 7 times
held by limits      99 times
merging             up to 32 requests and 512 KiB in one operation

SESSION  CLIENT  WEIGHT  GROUP
      3  db         300  -
     12  backup      20  batch

GROUP  CONFIGURED  SESSIONS
batch  yes                1

1 limit: `ferrioctl limit list`";
        assert_eq!(to_table(&answer()), wanted);
        let idle = EngineSchedule { engine: "main".into(), ..EngineSchedule::default() };
        let idle = GetSchedulingResponse { engines: vec![idle], ..GetSchedulingResponse::default() };
        let text = to_table(&idle);
        for part in [
            "latency goal        off",
            "not capped, 0 now",
            "merging             off",
            "no sessions",
            "no limits",
        ] {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
    }

    #[test]
    fn as_json() {
        let value = to_json(&answer());
        assert_keys(&value, "GetSchedulingResponse");
        assert_eq!(value["engines"][0]["classes"][2]["class"], "write");
    }

    #[test]
    fn goals_and_budgets_are_read() {
        let goal = |within_us, percent| Ok(LatencyGoal { within_us, percent });
        assert_eq!(parse_goal("off"), goal(0, 0));
        assert_eq!(parse_goal("200%"), goal(0, 200));
        assert_eq!(parse_goal("2ms"), goal(2_000, 0));
        assert_eq!(parse_goal("500 us"), goal(500, 0));
        for wrong in ["", "2", "0ms", "on", "1.5ms", "99999999999999999999s", "200%%"] {
            assert!(parse_goal(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_budgets("32, 16,8"), Ok(Budgets([32, 16, 8])));
        for wrong in ["", "1,2", "1,2,3,4", "a,b,c", "-1,2,3"] {
            assert!(parse_budgets(wrong).is_err(), "{wrong:?}");
        }
    }
}
