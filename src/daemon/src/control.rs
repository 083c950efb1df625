//! The gRPC services on the control socket, one file per noun.

mod admin;
mod engines;
pub mod errors;
pub mod incoming;
mod queues;
mod scheduling;
mod sessions;
mod stats;
mod volumes;

use std::sync::Arc;
use std::time::Instant;

use ferrio_api::v1;
use ferrio_api::v1::admin_server::AdminServer;
use ferrio_api::v1::engines_server::EnginesServer;
use ferrio_api::v1::queues_server::QueuesServer;
use ferrio_api::v1::scheduling_server::SchedulingServer;
use ferrio_api::v1::sessions_server::SessionsServer;
use ferrio_api::v1::stats_server::StatsServer;
use ferrio_api::v1::volumes_server::VolumesServer;
use ferrio_engine::Engine;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use crate::config::Config;
use crate::pace::Refusals;
use crate::sessions::Sessions;
use crate::sessions::error::OpenError;
use crate::volumes::Volumes;
use crate::volumes::change::Changes;
use incoming::PeerStream;

/// Requests of this API are small; the longest answers are lists, which are not bounded by this.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls under way on one connection.
const CALLS_PER_CONNECTION_MAX: u32 = 16;
const HEADER_BYTES_MAX: u32 = 8 << 10;

/// What the services answer from.
pub struct Daemon {
    /// Configuration.
    pub config: Config,
    /// Engines, in its order.
    pub engines: Vec<Engine>,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// Sessions.
    pub sessions: Arc<Sessions>,
    /// Who changes volumes.
    pub changes: Changes,
    /// When it started.
    pub since: Instant,
    /// Random number of this start.
    pub epoch: u64,
    /// How far the daemon is from its end.
    pub phase: Phases,
    /// Connections that were refused.
    pub refused: Refused,
}

/// Connections that were refused, by socket.
#[derive(Debug, Clone)]
pub struct Refused {
    /// To the attach socket.
    pub attach: Refusals,
    /// To the control socket.
    pub control: Refusals,
}

impl Daemon {
    /// Nothing new is begun by a daemon that stops.
    fn check_running(&self) -> Result<(), Status> {
        if self.sessions.draining() { Err(OpenError::Draining.into()) } else { Ok(()) }
    }
}

/// Where the daemon stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Opens no sessions; answers what it has.
    Draining,
    /// The control socket closes: streams end.
    Closing,
}

/// A phase that others can wait for.
pub type Phases = watch::Receiver<Phase>;

/// Resolves once `phase` is reached.
pub async fn reached(mut phases: Phases, phase: Phase) {
    // An error means that the daemon is gone, which is past every phase.
    let _ = phases.wait_for(|now| *now >= phase).await;
}

/// Serves until the daemon closes and the calls under way are answered.
pub async fn serve(
    daemon: Arc<Daemon>,
    incoming: impl Stream<Item = std::io::Result<PeerStream>> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(health_reporter, daemon.phase.clone()));
    let phase = daemon.phase.clone();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap_or_else(|error| unreachable!("the generated descriptors are valid: {error}"));
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX as usize)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .layer(InterceptorLayer::new(incoming::admit))
        .add_service(
            SessionsServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .add_service(
            VolumesServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .add_service(QueuesServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(
            EnginesServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .add_service(StatsServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(
            SchedulingServer::from_arc(Arc::clone(&daemon)).max_decoding_message_size(REQUEST_BYTES_MAX),
        )
        .add_service(AdminServer::from_arc(daemon).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, reached(phase, Phase::Closing))
        .await
}

async fn report_health(reporter: tonic_health::server::HealthReporter, phase: Phases) {
    use tonic::server::NamedService;
    use tonic_health::ServingStatus::{NotServing, Serving};
    let names = [
        "",
        SessionsServer::<Daemon>::NAME,
        VolumesServer::<Daemon>::NAME,
        QueuesServer::<Daemon>::NAME,
        EnginesServer::<Daemon>::NAME,
        StatsServer::<Daemon>::NAME,
        SchedulingServer::<Daemon>::NAME,
        AdminServer::<Daemon>::NAME,
    ];
    for name in names {
        reporter.set_service_status(name, Serving).await;
    }
    reached(phase, Phase::Draining).await;
    for name in names {
        reporter.set_service_status(name, NotServing).await;
    }
}
