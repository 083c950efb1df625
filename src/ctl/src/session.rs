//! `ferrioctl session`.

use ferrio_api::v1::scheduling_client::SchedulingClient;
use ferrio_api::v1::sessions_client::SessionsClient;
use ferrio_api::v1::{
    EvictSessionRequest, ListSessionsRequest, ListSessionsResponse, Session, SessionState, SetSessionRequest,
    VolumeRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::SessionArgs;
use crate::connect::ANSWER_BYTES_MAX;
use crate::error::CtlError;
use crate::output::{
    self, COUNTER_COLUMNS, Column, access, bytes, counter_cells, counters_json, millis, print, print_json,
    short,
};

/// `session list`.
pub async fn list(channel: Channel, json: bool) -> Result<(), CtlError> {
    let mut client = SessionsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.list(ListSessionsRequest {}).await?.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

/// `session set`.
pub async fn set(channel: Channel, json: bool, args: SessionArgs) -> Result<(), CtlError> {
    let (session_id, weight) = (args.session_id, args.change.weight);
    let group = args.change.group.or_else(|| args.change.no_group.then(String::new));
    let mut said = Vec::new();
    said.extend(weight.map(|weight| format!("weight {weight}")));
    said.extend(group.as_ref().map(|group| match group.as_str() {
        "" => "no group".to_owned(),
        group => format!("group {group}"),
    }));
    SchedulingClient::new(channel).set_session(SetSessionRequest { session_id, weight, group }).await?;
    let said = format!("session {session_id}: {} from now on", said.join(", "));
    if json { print_json(&json!({}), false) } else { print(&said) }
}

/// `session evict`.
pub async fn evict(channel: Channel, json: bool, session_id: u64, reason: String) -> Result<(), CtlError> {
    SessionsClient::new(channel).evict(EvictSessionRequest { session_id, reason }).await?;
    let said = format!("session {session_id}: told, and ended once what it has in flight is answered");
    if json { print_json(&json!({}), false) } else { print(&said) }
}

fn state(state: i32) -> &'static str {
    match SessionState::try_from(state) {
        Ok(SessionState::Opened) => "opened",
        Ok(SessionState::Active) => "active",
        Ok(SessionState::Faulted) => "faulted",
        Ok(SessionState::Draining) => "draining",
        Ok(SessionState::Waiting) => "waiting",
        Ok(SessionState::Unspecified) | Err(_) => "unknown",
    }
}

/// Two tables: who it is, and what it did; one would be wider than a terminal.
fn to_table(answer: &ListSessionsResponse) -> String {
    let who = [
        Column::Right("SESSION"),
        Column::Left("CLIENT"),
        Column::Left("STATE"),
        Column::Right("PID"),
        Column::Right("UID"),
        Column::Right("AGE"),
        Column::Right("MEMORY"),
        Column::Right("REGIONS"),
        Column::Right("QUEUES"),
        Column::Left("VOLUMES"),
    ];
    let rows = answer.sessions.iter().map(|session| {
        vec![
            session.session_id.to_string(),
            short(&session.client_name),
            state(session.state).to_owned(),
            session.pid.to_string(),
            session.uid.to_string(),
            millis(session.age_ms),
            bytes(session.memory_bytes),
            if session.regions == 0 {
                "-".to_owned()
            } else {
                format!("{}: {}", session.regions, bytes(session.region_bytes))
            },
            session.queues.to_string(),
            session
                .volumes
                .iter()
                .map(|volume| format!("{}:{}", volume.name, access(volume.access)))
                .collect::<Vec<_>>()
                .join(" "),
        ]
    });
    let mut text = output::table(&who, rows.collect(), "no sessions");
    let did = [Column::Right("SESSION"), Column::Right("WEIGHT"), Column::Left("GROUP")];
    let did = did.into_iter().chain(COUNTER_COLUMNS).collect::<Vec<_>>();
    let rows = answer.sessions.iter().map(|session| {
        let group = if session.group.is_empty() { "-" } else { &session.group };
        let mut cells = vec![session.session_id.to_string(), session.weight.to_string(), group.to_owned()];
        cells.extend(counter_cells(session.counters.as_ref()));
        cells
    });
    let did = output::table(&did, rows.collect(), "");
    if !did.is_empty() {
        text.push_str(&format!("\n\n{did}"));
    }
    for session in answer.sessions.iter().filter(|session| session.hugepages) {
        let (id, huge) = (session.session_id, bytes(session.hugepages_bytes));
        let why = match session.hugepages_reason.as_str() {
            "" => "all of its arena".to_owned(),
            reason => format!("not all of its arena: {reason}"),
        };
        text.push_str(&format!("\n\nsession {id}: {huge} in huge pages, {why}"));
    }
    for session in answer.sessions.iter().filter(|session| session.state == SessionState::Waiting as i32) {
        text.push_str(&format!(
            "\n\nsession {}: waiting for its client to come back: {} requests owed, dropped in {}",
            session.session_id,
            session.owed,
            millis(session.time_left_ms)
        ));
    }
    for session in answer.sessions.iter().filter(|session| !session.reason.is_empty()) {
        text.push_str(&format!(
            "\n\nsession {}: {}: {}",
            session.session_id,
            state(session.state),
            session.reason
        ));
    }
    text
}

fn to_json(answer: &ListSessionsResponse) -> Value {
    json!({ "sessions": answer.sessions.iter().map(session_json).collect::<Vec<_>>() })
}

fn session_json(session: &Session) -> Value {
    json!({
        "session_id": session.session_id,
        "client_name": session.client_name,
        "state": state(session.state),
        "reason": session.reason,
        "pid": session.pid,
        "uid": session.uid,
        "volumes": session.volumes.iter().map(volume_json).collect::<Vec<_>>(),
        "queues": session.queues,
        "memory_bytes": session.memory_bytes,
        "age_ms": session.age_ms,
        "features": session.features,
        "hugepages": session.hugepages,
        "hugepages_bytes": session.hugepages_bytes,
        "hugepages_reason": session.hugepages_reason,
        "regions": session.regions,
        "region_bytes": session.region_bytes,
        "owed": session.owed,
        "time_left_ms": session.time_left_ms,
        "weight": session.weight,
        "group": session.group,
        "counters": counters_json(&session.counters.unwrap_or_default()),
    })
}

fn volume_json(volume: &VolumeRequest) -> Value {
    json!({ "name": volume.name, "access": access(volume.access) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;
    use ferrio_api::v1::{Access, Counters};

    fn answer() -> ListSessionsResponse {
        let session = Session {
            session_id: 1,
            client_name: "prio-reader".into(),
            state: SessionState::Active.into(),
            pid: 4711,
            uid: 1000,
            volumes: vec![
                VolumeRequest { name: "data".into(), access: Access::ReadOnly.into() },
                VolumeRequest { name: "log".into(), access: Access::ReadWriteShared.into() },
            ],
            queues: 2,
            memory_bytes: 9 << 20,
            age_ms: 61_500,
            counters: Some(Counters {
                queued: 1,
                in_flight: 2,
                oldest_us: 350,
                completed: 9,
                errors: 0,
                bytes: 4096,
                merged: 5,
            }),
            hugepages: true,
            hugepages_bytes: 4 << 20,
            hugepages_reason: "4194304 of 8388608 bytes are: no memory".into(),
            regions: 2,
            region_bytes: 3 << 20,
            weight: 300,
            group: "db".into(),
            ..Session::default()
        };
        let faulted = Session {
            session_id: 2,
            client_name: "broken".into(),
            state: SessionState::Faulted.into(),
            reason: "queue 0: sq_tail is 900 ahead of sq_head, the ring has 64 entries".into(),
            ..Session::default()
        };
        let waiting = Session {
            session_id: 3,
            client_name: "restarted".into(),
            state: SessionState::Waiting.into(),
            owed: 12,
            time_left_ms: 29_000,
            ..Session::default()
        };
        ListSessionsResponse { sessions: vec![session, faulted, waiting] }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
SESSION  CLIENT       STATE     PID   UID      AGE  MEMORY   REGIONS  QUEUES  VOLUMES
      1  prio-reader  active   4711  1000  1 m 1 s   9 MiB  2: 3 MiB       2  data:ro log:rw-shared
      2  broken       faulted     0     0     0 ms     0 B         -       0
      3  restarted    waiting     0     0     0 ms     0 B         -       0

SESSION  WEIGHT  GROUP  QUEUED  IN-FLIGHT  COMPLETED  ERRORS  MERGED  BYTES  OLDEST
      1     300  db          1          2          9       0       5  4 KiB  350 us
      2       0  -           0          0          0       0       0    0 B       -
      3       0  -           0          0          0       0       0    0 B       -

session 1: 4 MiB in huge pages, not all of its arena: 4194304 of 8388608 bytes are: no memory

session 3: waiting for its client to come back: 12 requests owed, dropped in 29.0 s

session 2: faulted: queue 0: sq_tail is 900 ahead of sq_head, the ring has 64 entries";
        assert_eq!(to_table(&answer()), wanted);
        assert_eq!(to_table(&ListSessionsResponse::default()), "no sessions");
    }

    #[test]
    fn as_json() {
        let value = to_json(&answer());
        assert_keys(&value, "ListSessionsResponse");
        assert_eq!(value["sessions"][0]["volumes"][1]["access"], "rw-shared");
        assert_eq!(value["sessions"][1]["state"], "faulted");
    }
}
