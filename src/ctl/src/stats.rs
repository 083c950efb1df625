//! `ferrioctl stats`.

use ferrio_api::v1::stats_client::StatsClient;
use ferrio_api::v1::{EngineStats, GetStatsRequest, GetStatsResponse};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::error::CtlError;
use crate::output::{
    self, CLASSES, COUNTER_COLUMNS, Column, counter_cells, counters_json, facts, millis, print, print_json,
    waits_json,
};

/// `stats`.
pub async fn run(channel: Channel, json: bool) -> Result<(), CtlError> {
    let answer = StatsClient::new(channel).get(GetStatsRequest {}).await?.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

fn to_table(answer: &GetStatsResponse) -> String {
    let mut parts = vec![facts(&[
        ("uptime", millis(answer.uptime_ms)),
        (
            "sessions",
            format!(
                "{} open, {} opened, {} refused",
                answer.sessions, answer.sessions_opened, answer.sessions_refused
            ),
        ),
        (
            "of the ferriod before",
            format!(
                "{} waiting, {} resumed, {} dropped with {} requests owed",
                answer.sessions_waiting,
                answer.sessions_resumed,
                answer.sessions_dropped,
                answer.requests_dropped
            ),
        ),
        ("connections", format!("{} refused", answer.connections_refused)),
    ])];
    for engine in &answer.engines {
        let columns = [Column::Left("CLASS")].into_iter().chain(COUNTER_COLUMNS).collect::<Vec<_>>();
        let rows = CLASSES.iter().zip(&engine.classes).map(|(class, counters)| {
            let mut cells = vec![(*class).to_owned()];
            cells.extend(counter_cells(Some(counters)));
            cells
        });
        let table = output::table(&columns, rows.collect(), "");
        parts.push(format!("engine {}\n{table}\n{}", engine.engine, engine_facts(engine)));
    }
    parts.join("\n\n")
}

fn engine_facts(engine: &EngineStats) -> String {
    let waits = engine.waits.unwrap_or_default();
    facts(&[
        ("submitter turns", engine.submitter_turns.to_string()),
        ("submitter sleeps", engine.submitter_sleeps.to_string()),
        ("poller turns", engine.poller_turns.to_string()),
        ("batches", engine.batches.to_string()),
        ("resubmitted", engine.resubmitted.to_string()),
        ("stale completions", engine.stale_completions.to_string()),
        ("refused", engine.refused.to_string()),
        ("sessions faulted", engine.sessions_faulted.to_string()),
        ("client wakes", engine.client_wakes.to_string()),
        ("held by order", waits.held.to_string()),
        ("cancelled", waits.cancelled.to_string()),
        ("chains broken", format!("{} requests", waits.broken)),
        ("timed out", waits.timed_out.to_string()),
        ("overdue", waits.overdue.to_string()),
        (
            "after a restart",
            format!(
                "{} posted again, {} as decided, {} issued again, {} outcome unknown",
                engine.reposted, engine.decided, engine.replayed, engine.owner_dead
            ),
        ),
    ])
}

fn to_json(answer: &GetStatsResponse) -> Value {
    json!({
        "engines": answer.engines.iter().map(engine_json).collect::<Vec<_>>(),
        "uptime_ms": answer.uptime_ms,
        "sessions": answer.sessions,
        "sessions_opened": answer.sessions_opened,
        "sessions_refused": answer.sessions_refused,
        "sessions_waiting": answer.sessions_waiting,
        "sessions_resumed": answer.sessions_resumed,
        "sessions_dropped": answer.sessions_dropped,
        "requests_dropped": answer.requests_dropped,
        "connections_refused": answer.connections_refused,
    })
}

fn engine_json(engine: &EngineStats) -> Value {
    json!({
        "engine": engine.engine,
        "classes": engine.classes.iter().map(counters_json).collect::<Vec<_>>(),
        "submitter_turns": engine.submitter_turns,
        "submitter_sleeps": engine.submitter_sleeps,
        "poller_turns": engine.poller_turns,
        "batches": engine.batches,
        "resubmitted": engine.resubmitted,
        "stale_completions": engine.stale_completions,
        "refused": engine.refused,
        "sessions_faulted": engine.sessions_faulted,
        "client_wakes": engine.client_wakes,
        "waits": waits_json(&engine.waits.unwrap_or_default()),
        "reposted": engine.reposted,
        "decided": engine.decided,
        "replayed": engine.replayed,
        "owner_dead": engine.owner_dead,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;
    use ferrio_api::v1::{Counters, Waits};

    fn answer() -> GetStatsResponse {
        let engine = EngineStats {
            engine: "main".into(),
            classes: vec![
                Counters::default(),
                Counters { completed: 7, bytes: 28672, ..Counters::default() },
                Counters::default(),
            ],
            submitter_turns: 120,
            batches: 9,
            client_wakes: 4,
            waits: Some(Waits { held: 3, cancelled: 2, broken: 5, timed_out: 1, overdue: 6 }),
            reposted: 7,
            decided: 8,
            replayed: 9,
            owner_dead: 10,
            ..EngineStats::default()
        };
        GetStatsResponse {
            engines: vec![engine],
            uptime_ms: 3_661_000,
            sessions: 2,
            sessions_opened: 5,
            sessions_refused: 1,
            sessions_waiting: 2,
            sessions_resumed: 3,
            sessions_dropped: 4,
            requests_dropped: 11,
            connections_refused: 12,
        }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
uptime                 1 h 1 m
sessions               2 open, 5 opened, 1 refused
of the ferriod before  2 waiting, 3 resumed, 4 dropped with 11 requests owed
connections            12 refused

engine main
CLASS  QUEUED  IN-FLIGHT  COMPLETED  ERRORS  MERGED   BYTES  OLDEST
prio        0          0          0       0       0     0 B       -
read        0          0          7       0       0  28 KiB       -
write       0          0          0       0       0     0 B       -
submitter turns    120
submitter sleeps   0
poller turns       0
batches            9
resubmitted        0
stale completions  0
refused            0
sessions faulted   0
client wakes       4
held by order      3
cancelled          2
chains broken      5 requests
timed out          1
overdue            6
after a restart    7 posted again, 8 as decided, 9 issued again, 10 outcome unknown";
        assert_eq!(to_table(&answer()), wanted);
    }

    #[test]
    fn as_json() {
        assert_keys(&to_json(&answer()), "GetStatsResponse");
    }
}
