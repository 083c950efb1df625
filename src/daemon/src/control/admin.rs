//! `ferrio.v1.Admin`.

use std::time::Instant;

use ferrio_api::v1::admin_server::Admin;
use ferrio_api::v1::{DaemonState, InfoRequest, InfoResponse};
use ferrio_shm::abi::ABI_VERSION;
use rustix::process::{Resource, getrlimit};
use tonic::{Request, Response, Status};

use super::Daemon;
use crate::sessions::plan::FEATURES;
use crate::volumes::Stage;

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
            features: FEATURES,
            degraded: self.degraded(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }))
    }
}

impl Daemon {
    /// What was asked for and is not in effect, but for what the engines say of themselves.
    fn degraded(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        for volume in self.volumes.list() {
            let name = volume.name();
            if let Some(reason) = volume.served().and_then(|served| served.target.direct_reason()) {
                degraded.push(format!("volume {name}: through the page cache, not O_DIRECT: {reason}"));
            }
            match &volume.stage {
                Stage::Opening => {
                    degraded.push(format!("volume {name} is being opened: its path does not answer"))
                }
                Stage::Fencing(fencing) => {
                    degraded.push(format!("volume {name} is fenced: its lock is held by {}", fencing.by))
                }
                Stage::Removing { id, .. } => {
                    let in_flight = self.engines[volume.engine].requests_of(*id).unwrap_or(0);
                    degraded.push(format!(
                        "volume {name} is being removed: {in_flight} of its requests wait for the device, does it answer?"
                    ));
                }
                Stage::Serving(_) => {}
            }
            if volume.fault_rules > 0 {
                let rules = volume.fault_rules;
                degraded.push(format!(
                    "volume {name}: {rules} fault rules: what it answers is not what its disk does"
                ));
            }
        }
        for session in self.sessions.list().iter().filter(|session| !session.hugepages_reason.is_empty()) {
            let (id, client, reason) = (session.session_id, &session.client_name, &session.hugepages_reason);
            degraded
                .push(format!("session {id} of {client:?}: not all of its arena is in huge pages: {reason}"));
        }
        let limit = getrlimit(Resource::Nofile);
        if let (Some(current), Some(maximum)) = (limit.current, limit.maximum)
            && current < maximum
        {
            degraded.push(format!("RLIMIT_NOFILE is {current} and could not be raised to {maximum}"));
        }
        degraded
    }
}

/// Milliseconds since `start`.
pub fn millis_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
