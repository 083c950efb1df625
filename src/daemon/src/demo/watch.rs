//! The queues as seen over gRPC while the clients work.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use ferrio_api::v1;
use ferrio_api::v1::queues_client::QueuesClient;
use serde::Serialize;
use tonic::transport::Channel;

const INTERVAL_MS: u32 = 50;

/// The most that was seen in one class queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ClassSeen {
    /// Requests waiting for the scheduler.
    pub queued_max: u64,
    /// Requests given to the driver and not yet answered.
    pub in_flight_max: u64,
    /// Requests completed.
    pub completed: u64,
}

/// What was seen of the queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QueuesSeen {
    /// How often somebody looked.
    pub samples: u64,
    /// Session queues that were there at once.
    pub session_queues_max: usize,
    /// Class queue of requests with priority.
    pub prio: ClassSeen,
    /// Class queue of reads.
    pub read: ClassSeen,
    /// Class queue of writes.
    pub write: ClassSeen,
}

/// The last look, and the most that was seen.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<(QueuesSeen, v1::ListQueuesResponse)>>);

impl Watch {
    /// Looks until the daemon ends.
    pub async fn run(self, channel: Channel) -> Result<(), tonic::Status> {
        let request = v1::WatchQueuesRequest { interval_ms: INTERVAL_MS };
        let mut looks = QueuesClient::new(channel).watch(request).await?.into_inner();
        while let Some(look) = looks.message().await? {
            self.take(look);
        }
        Ok(())
    }

    fn take(&self, look: v1::ListQueuesResponse) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, last) = &mut *state;
        seen.samples += 1;
        seen.session_queues_max = seen.session_queues_max.max(look.queues.len());
        for queue in &look.classes {
            let class = match queue.class() {
                v1::Class::Prio => &mut seen.prio,
                v1::Class::Read => &mut seen.read,
                v1::Class::Write => &mut seen.write,
                v1::Class::Unspecified => continue,
            };
            let counters = queue.counters.unwrap_or_default();
            class.queued_max = class.queued_max.max(counters.queued);
            class.in_flight_max = class.in_flight_max.max(counters.in_flight);
            class.completed = counters.completed;
        }
        *last = look;
    }

    /// The most that was seen.
    pub fn seen(&self) -> QueuesSeen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The last look as a small table, one queue a line.
    pub fn table(&self) -> String {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text =
            format!("{:<26}{:>8}{:>11}{:>12}{:>10}", "queue", "queued", "in-flight", "completed", "oldest");
        let mut line = |name: &str, counters: v1::Counters| {
            let v1::Counters { queued, in_flight, completed, oldest_us, .. } = counters;
            let _ = write!(text, "\n{name:<26}{queued:>8}{in_flight:>11}{completed:>12}{oldest_us:>7} us");
        };
        for queue in &state.1.classes {
            let class = queue.class().as_str_name().trim_start_matches("CLASS_").to_lowercase();
            line(&format!("{} / {class}", queue.engine), queue.counters.unwrap_or_default());
        }
        for queue in &state.1.queues {
            line(&format!("session / {}", queue.client_name), queue.counters.unwrap_or_default());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(queued: u64, in_flight: u64) -> v1::ListQueuesResponse {
        let counters = Some(v1::Counters { queued, in_flight, completed: 7, ..v1::Counters::default() });
        let class =
            v1::ClassQueue { engine: "main".into(), class: v1::Class::Write.into(), entries: 16, counters };
        v1::ListQueuesResponse { classes: vec![class], queues: Vec::new() }
    }

    #[test]
    fn the_most_is_kept_and_the_last_is_shown() {
        let watch = Watch::default();
        watch.take(look(3, 20));
        watch.take(look(9, 1));
        let seen = watch.seen();
        assert_eq!((seen.samples, seen.write.queued_max, seen.write.in_flight_max), (2, 9, 20));
        assert_eq!(seen.prio, ClassSeen::default());
        let table = watch.table();
        let shown: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(shown, ["main", "/", "write", "9", "1", "7", "0", "us"]);
    }
}
