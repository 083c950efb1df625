//! `ferrio.v1.Admin`.

use std::time::Instant;

use ferrio_api::v1::admin_server::Admin;
use ferrio_api::v1::{DaemonState, InfoRequest, InfoResponse};
use ferrio_shm::abi::ABI_VERSION;
use tonic::{Request, Response, Status};

use super::Daemon;

#[tonic::async_trait]
impl Admin for Daemon {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let config = &self.config;
        let state = if self.sessions.draining() { DaemonState::Draining } else { DaemonState::Running };
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: state.into(),
            uptime_ms: millis_since(self.since),
            abi_min: ABI_VERSION,
            abi_max: ABI_VERSION,
            config_file: config.file.as_ref().map_or(String::new(), |file| file.display().to_string()),
            control_socket: config.control_socket().display().to_string(),
            attach_socket: config.attach_socket().display().to_string(),
            journal_dir: config.journal_dir().display().to_string(),
            epoch: self.epoch,
            features: 0,
            degraded: Vec::new(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }))
    }
}

/// Milliseconds since `start`.
pub fn millis_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
