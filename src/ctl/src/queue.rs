//! `ferrioctl queue`.

use std::io::IsTerminal;

use ferrio_api::v1::queues_client::QueuesClient;
use ferrio_api::v1::{ClassQueue, ListQueuesRequest, ListQueuesResponse, SessionQueue, WatchQueuesRequest};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::connect::ANSWER_BYTES_MAX;
use crate::error::CtlError;
use crate::output::{
    self, COUNTER_COLUMNS, Column, class, counter_cells, counters_json, print, print_json, short, waits_json,
};

/// Cursor home, clear to the end of the screen.
const REDRAW: &str = "\x1b[H\x1b[J";

fn client(channel: Channel) -> QueuesClient<Channel> {
    QueuesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// `queue list`.
pub async fn list(channel: Channel, json: bool) -> Result<(), CtlError> {
    let answer = client(channel).list(ListQueuesRequest {}).await?.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

/// `queue list --watch`: until Ctrl-C.
pub async fn watch(channel: Channel, json: bool, interval_ms: u32) -> Result<(), CtlError> {
    let mut answers = client(channel).watch(WatchQueuesRequest { interval_ms }).await?.into_inner();
    let redraw = !json && std::io::stdout().is_terminal();
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let Some(answer) = answer else {
            return Err(CtlError::Lost("the daemon is stopping".to_owned()));
        };
        match (json, redraw) {
            (true, _) => print_json(&to_json(&answer), true)?,
            (false, true) => print(&format!("{REDRAW}{}", to_table(&answer)))?,
            (false, false) => print(&format!("{}\n", to_table(&answer)))?,
        }
    }
}

fn to_table(answer: &ListQueuesResponse) -> String {
    let classes = [Column::Left("ENGINE"), Column::Left("CLASS"), Column::Right("ENTRIES")];
    let classes = classes.into_iter().chain(COUNTER_COLUMNS).collect::<Vec<_>>();
    let rows = answer.classes.iter().map(|queue| {
        let mut cells = vec![queue.engine.clone(), class(queue.class).to_owned(), queue.entries.to_string()];
        cells.extend(counter_cells(queue.counters.as_ref()));
        cells
    });
    let classes = output::table(&classes, rows.collect(), "no engines");
    let queues = [
        Column::Right("SESSION"),
        Column::Left("CLIENT"),
        Column::Right("QUEUE"),
        Column::Left("ENGINE"),
        Column::Right("SQ/CQ"),
    ];
    let queues = queues.into_iter().chain(COUNTER_COLUMNS).chain([Column::Right("HELD")]).collect::<Vec<_>>();
    let rows = answer.queues.iter().map(|queue| {
        let mut cells = vec![
            queue.session_id.to_string(),
            short(&queue.client_name),
            queue.queue.to_string(),
            queue.engine.clone(),
            format!("{}/{}", queue.sq_entries, queue.cq_entries),
        ];
        cells.extend(counter_cells(queue.counters.as_ref()));
        cells.push(queue.waits.unwrap_or_default().held.to_string());
        cells
    });
    format!("{classes}\n\n{}", output::table(&queues, rows.collect(), "no sessions"))
}

fn to_json(answer: &ListQueuesResponse) -> Value {
    json!({
        "classes": answer.classes.iter().map(class_json).collect::<Vec<_>>(),
        "queues": answer.queues.iter().map(queue_json).collect::<Vec<_>>(),
    })
}

fn class_json(queue: &ClassQueue) -> Value {
    json!({
        "engine": queue.engine,
        "class": class(queue.class),
        "entries": queue.entries,
        "counters": counters_json(&queue.counters.unwrap_or_default()),
    })
}

fn queue_json(queue: &SessionQueue) -> Value {
    json!({
        "session_id": queue.session_id,
        "client_name": queue.client_name,
        "queue": queue.queue,
        "engine": queue.engine,
        "sq_entries": queue.sq_entries,
        "cq_entries": queue.cq_entries,
        "counters": counters_json(&queue.counters.unwrap_or_default()),
        "classes": queue.classes.iter().map(counters_json).collect::<Vec<_>>(),
        "waits": waits_json(&queue.waits.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;
    use ferrio_api::v1::{Class, Counters, Waits};

    fn answer() -> ListQueuesResponse {
        let counters = Counters {
            queued: 3,
            in_flight: 32,
            oldest_us: 1_250,
            completed: 123_456,
            errors: 1,
            bytes: 3 << 30,
            merged: 999,
        };
        let class = |class: Class| ClassQueue {
            engine: "main".into(),
            class: class.into(),
            entries: 16384,
            counters: Some(counters),
        };
        let queue = SessionQueue {
            session_id: 12,
            client_name: "bulk-reader".into(),
            queue: 0,
            engine: "main".into(),
            sq_entries: 64,
            cq_entries: 128,
            counters: Some(counters),
            classes: vec![Counters::default(), counters, Counters::default()],
            waits: Some(Waits { held: 2, ..Waits::default() }),
        };
        ListQueuesResponse { classes: vec![class(Class::Prio), class(Class::Read)], queues: vec![queue] }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
ENGINE  CLASS  ENTRIES  QUEUED  IN-FLIGHT  COMPLETED  ERRORS  MERGED  BYTES  OLDEST
main    prio     16384       3         32     123456       1     999  3 GiB  1.2 ms
main    read     16384       3         32     123456       1     999  3 GiB  1.2 ms

SESSION  CLIENT       QUEUE  ENGINE   SQ/CQ  QUEUED  IN-FLIGHT  COMPLETED  ERRORS  MERGED  BYTES  OLDEST  HELD
     12  bulk-reader      0  main    64/128       3         32     123456       1     999  3 GiB  1.2 ms     2";
        assert_eq!(to_table(&answer()), wanted);
        let widest = to_table(&answer()).lines().map(str::len).max();
        assert!(widest <= Some(120));
    }

    #[test]
    fn as_json() {
        let value = to_json(&answer());
        assert_keys(&value, "ListQueuesResponse");
        assert_eq!(value["classes"][0]["class"], "prio");
        assert_eq!(value["queues"][0]["classes"][1]["completed"], 123_456);
    }
}
