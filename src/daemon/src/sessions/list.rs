//! What the control services show of the sessions.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_engine::{CountersSnapshot, EngineSnapshot, WaitsSnapshot};

use super::saving::millis;
use super::{Session, Sessions, State};

/// Totals of [`Sessions`].
#[derive(Debug, Clone, Copy)]
pub struct Totals {
    /// Open now.
    pub open: u32,
    /// Opened since the start.
    pub opened: u64,
    /// Opens, attaches and resumes refused.
    pub refused: u64,
    /// Of the daemon before, waiting for their clients now.
    pub waiting: u32,
    /// Of the daemon before, whose clients came back.
    pub resumed: u64,
    /// Of the daemon before, dropped.
    pub dropped: u64,
    /// Requests that those were owed.
    pub requests_dropped: u64,
}

impl Sessions {
    /// How many there are and were.
    pub fn totals(&self) -> Totals {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let table = self.table();
        let waiting = table.by_id.values().filter(|session| matches!(session.state, State::Waiting(_)));
        Totals {
            open: count(table.by_id.len()),
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            waiting: count(waiting.count()),
            resumed: self.resumed.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            requests_dropped: self.requests_dropped.load(Relaxed),
        }
    }

    /// The sessions, oldest first.
    pub fn list(&self) -> Vec<v1::Session> {
        let mut counters: HashMap<u64, v1::Counters> = HashMap::new();
        for queue in self.snapshots().iter().flat_map(|snapshot| &snapshot.queues) {
            add(counters.entry(queue.session_id).or_default(), &queue.total);
        }
        let table = self.table();
        let sessions = table.by_id.iter();
        sessions
            .map(|(id, session)| Self::show(*id, session, counters.remove(id).unwrap_or_default()))
            .collect()
    }

    fn show(session_id: u64, session: &Session, counters: v1::Counters) -> v1::Session {
        let (state, reason) = match &session.state {
            State::Opened { .. } => (v1::SessionState::Opened, ""),
            State::Waiting(_) => (v1::SessionState::Waiting, ""),
            State::Active => (v1::SessionState::Active, ""),
            State::Faulted { reason } => (v1::SessionState::Faulted, reason.as_str()),
            State::Draining { reason } => (v1::SessionState::Draining, reason.as_str()),
        };
        let (owed, time_left, regions) = match &session.state {
            State::Waiting(waiting) => {
                (waiting.owed, waiting.until.saturating_duration_since(Instant::now()), waiting.regions.len())
            }
            _ => (0, Duration::ZERO, session.regions.len()),
        };
        let volumes = session.plan.volumes.iter().map(|volume| v1::VolumeRequest {
            name: volume.grant.name.clone(),
            access: volume.access.to_wire(),
        });
        v1::Session {
            session_id,
            client_name: session.client_name.clone(),
            state: state.into(),
            reason: reason.to_owned(),
            pid: session.pid,
            uid: session.uid,
            volumes: volumes.collect(),
            queues: session.plan.queue_engines.len() as u32,
            memory_bytes: session.plan.layout.memory_bytes,
            age_ms: millis(session.since.elapsed()),
            counters: Some(counters),
            features: session.plan.features,
            hugepages: session.plan.hugepages,
            hugepages_bytes: session.hugepages.bytes,
            hugepages_reason: session.hugepages.reason.clone(),
            regions: regions as u32,
            region_bytes: session.region_bytes(),
            owed,
            time_left_ms: millis(time_left),
            weight: session.share.weight,
            group: session.share.group.clone().unwrap_or_default(),
        }
    }

    /// Class queues of the engines and queues of the sessions.
    pub fn queues(&self) -> v1::ListQueuesResponse {
        let snapshots = self.snapshots();
        let mut answer = v1::ListQueuesResponse::default();
        for (name, snapshot) in self.engine_names.iter().zip(&snapshots) {
            let classes = [v1::Class::Prio, v1::Class::Read, v1::Class::Write];
            answer.classes.extend(classes.iter().zip(&snapshot.classes).map(|(class, shot)| {
                v1::ClassQueue {
                    engine: name.clone(),
                    class: (*class).into(),
                    entries: shot.entries,
                    counters: Some(counters(&shot.counters)),
                }
            }));
        }
        let table = self.table();
        for (name, snapshot) in self.engine_names.iter().zip(&snapshots) {
            answer.queues.extend(snapshot.queues.iter().map(|queue| v1::SessionQueue {
                session_id: queue.session_id,
                client_name:
                    table.by_id.get(&queue.session_id).map_or(String::new(), |s| s.client_name.clone()),
                queue: queue.queue,
                engine: name.clone(),
                sq_entries: queue.sq_entries,
                cq_entries: queue.cq_entries,
                counters: Some(counters(&queue.total)),
                classes: queue.classes.iter().map(counters).collect(),
                waits: Some(waits(&queue.waits)),
            }));
        }
        answer.queues.sort_by_key(|queue| (queue.session_id, queue.queue));
        answer
    }

    /// By engine.
    pub fn snapshots(&self) -> Vec<EngineSnapshot> {
        self.engines.iter().map(ferrio_engine::Engine::snapshot).collect()
    }
}

/// Requests that waited or were taken back, as they go over the wire.
pub fn waits(shot: &WaitsSnapshot) -> v1::Waits {
    v1::Waits {
        held: shot.held,
        cancelled: shot.cancelled,
        broken: shot.broken,
        timed_out: shot.timed_out,
        overdue: shot.overdue,
    }
}

/// Counters as they go over the wire.
pub fn counters(shot: &CountersSnapshot) -> v1::Counters {
    v1::Counters {
        queued: shot.queued,
        in_flight: shot.in_flight,
        oldest_us: shot.oldest_us,
        completed: shot.completed,
        errors: shot.errors,
        bytes: shot.bytes,
        merged: shot.merged,
    }
}

fn add(sum: &mut v1::Counters, shot: &CountersSnapshot) {
    sum.queued += shot.queued;
    sum.in_flight += shot.in_flight;
    sum.oldest_us = sum.oldest_us.max(shot.oldest_us);
    sum.completed += shot.completed;
    sum.errors += shot.errors;
    sum.bytes += shot.bytes;
    sum.merged += shot.merged;
}
