//! `ferrio.v1.Queues`.

use std::sync::Arc;
use std::time::Duration;

use ferrio_api::v1::queues_server::Queues;
use ferrio_api::v1::{ListQueuesRequest, ListQueuesResponse, WatchQueuesRequest};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Daemon, Phase, errors, reached};

const INTERVAL_MS_MIN: u32 = 50;
const INTERVAL_MS_MAX: u32 = 60_000;
const INTERVAL_MS_DEFAULT: u32 = 1_000;

fn out_of_range(asked: u32) -> Status {
    let (min, max) = (INTERVAL_MS_MIN.into(), INTERVAL_MS_MAX.into());
    errors::out_of_range("interval_ms", asked.into(), min, max, "milliseconds")
}

#[tonic::async_trait]
impl Queues for Daemon {
    type WatchStream = ReceiverStream<Result<ListQueuesResponse, Status>>;

    async fn list(&self, _: Request<ListQueuesRequest>) -> Result<Response<ListQueuesResponse>, Status> {
        Ok(Response::new(self.sessions.queues()))
    }

    async fn watch(
        &self,
        request: Request<WatchQueuesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let interval_ms = match request.get_ref().interval_ms {
            0 => INTERVAL_MS_DEFAULT,
            asked @ INTERVAL_MS_MIN..=INTERVAL_MS_MAX => asked,
            asked => return Err(out_of_range(asked)),
        };
        // One answer waits at most: a watcher that does not read misses looks, it does not collect them.
        let (sender, receiver) = mpsc::channel(1);
        let (sessions, phase) = (Arc::clone(&self.sessions), self.phase.clone());
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(interval_ms.into()));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = interval.tick() => {}
                    () = reached(phase.clone(), Phase::Closing) => return,
                    () = sender.closed() => return,
                }
                if sender.send(Ok(sessions.queues())).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
