//! `ferrio.v1.Engines`.

use std::time::Duration;

use ferrio_api::v1::engines_server::Engines;
use ferrio_api::v1::{Engine, ListEnginesRequest, ListEnginesResponse};
use tonic::{Request, Response, Status};

use super::Daemon;

/// An I/O thread answers between two batches. Longer is worth no wait: this thread serves all callers.
const ANSWER_LIMIT: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl Engines for Daemon {
    async fn list(&self, _: Request<ListEnginesRequest>) -> Result<Response<ListEnginesResponse>, Status> {
        let engines = self.engines.iter().zip(&self.config.engines).map(|(engine, section)| {
            let info = engine.info();
            let driver = engine.driver_info(ANSWER_LIMIT);
            let budgets = engine.schedule().map(|now| now.classes.map(|class| class.budget));
            Engine {
                name: info.name.clone(),
                backend: info.backend.to_owned(),
                backend_reason: info.backend_reason.clone(),
                threads: info.threads,
                queue_depth: info.depth,
                requests_max: info.requests_max,
                modes: driver.modes,
                degraded: driver.degraded,
                spin_us: section.spin_us,
                budgets: budgets.unwrap_or(section.budgets).to_vec(),
                faults: section.faults,
                helpers: section.helpers,
            }
        });
        Ok(Response::new(ListEnginesResponse { engines: engines.collect() }))
    }
}
