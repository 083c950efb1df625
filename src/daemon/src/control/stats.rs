//! `ferrio.v1.Stats`.

use ferrio_api::v1::stats_server::Stats;
use ferrio_api::v1::{EngineStats, GetStatsRequest, GetStatsResponse};
use ferrio_engine::EngineSnapshot;
use tonic::{Request, Response, Status};

use super::{Daemon, admin::millis_since};
use crate::sessions::{counters, waits};

#[tonic::async_trait]
impl Stats for Daemon {
    async fn get(&self, _: Request<GetStatsRequest>) -> Result<Response<GetStatsResponse>, Status> {
        let snapshots = self.sessions.snapshots();
        let engines =
            self.engines.iter().zip(&snapshots).map(|(engine, snapshot)| show(&engine.info().name, snapshot));
        let totals = self.sessions.totals();
        Ok(Response::new(GetStatsResponse {
            engines: engines.collect(),
            uptime_ms: millis_since(self.since),
            sessions: totals.open,
            sessions_opened: totals.opened,
            sessions_refused: totals.refused,
            sessions_waiting: totals.waiting,
            sessions_resumed: totals.resumed,
            sessions_dropped: totals.dropped,
            requests_dropped: totals.requests_dropped,
            connections_refused: self.refused.attach.count() + self.refused.control.count(),
        }))
    }
}

fn show(name: &str, snapshot: &EngineSnapshot) -> EngineStats {
    let count = &snapshot.counters;
    EngineStats {
        engine: name.to_owned(),
        classes: snapshot.classes.iter().map(|class| counters(&class.counters)).collect(),
        submitter_turns: count.submitter_turns,
        submitter_sleeps: count.submitter_sleeps,
        poller_turns: count.poller_turns,
        batches: count.batches,
        resubmitted: count.resubmitted,
        stale_completions: count.stale_completions,
        refused: count.refused,
        sessions_faulted: count.sessions_faulted,
        client_wakes: count.client_wakes,
        waits: Some(waits(&snapshot.waits)),
        reposted: count.reposted,
        decided: count.decided,
        replayed: count.replayed,
        owner_dead: count.owner_dead,
    }
}
