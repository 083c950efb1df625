//! From a configuration to a daemon that is ready: directory, engines, volumes, sockets, in this order.

use std::collections::HashSet;
use std::sync::{Arc, mpsc as sync_mpsc};
use std::time::{Duration, Instant};

use ferrio_driver::TargetError;
use ferrio_engine::{Engine, EngineConfig, EngineError};
use tokio::sync::{mpsc, watch};

use crate::config::{Config, EngineSection, Problem, Problems, VolumeSection};
use crate::control::{Daemon, Phase, Refused};
use crate::listen::{self, Listeners};
use crate::pace::Refusals;
use crate::runtime_dir::{RuntimeDir, RuntimeDirError};
use crate::scheduling::Shares;
use crate::sessions::saved::{Found, Store};
use crate::sessions::{Notice, Sessions, Setup};
use crate::volumes::change::Changes;
use crate::volumes::error::VolumeError;
use crate::volumes::fence::{self, Opened};
use crate::volumes::{Reservation, Volumes, change};

/// How long a path is waited for when others have used up the time that all have together.
const OPEN_AT_LEAST: Duration = Duration::from_millis(100);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the configuration names is not there or not usable.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The runtime directory.
    #[error("{0}")]
    RuntimeDir(#[from] RuntimeDirError),
    /// An engine.
    #[error("{}", crate::chain(.0))]
    Engine(#[from] EngineError),
    /// A volume that its engine does not take.
    #[error("{0}")]
    Volume(#[from] VolumeError),
    /// A socket.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// Path of the socket.
        path: String,
        /// Errno.
        source: std::io::Error,
    },
    /// Sockets that systemd passed.
    #[error("sockets passed by systemd: {0}")]
    Inherited(std::io::Error),
    /// Anything else the kernel refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Errno.
        source: std::io::Error,
    },
}

/// A daemon that is ready to serve.
pub struct Started {
    /// What the services answer from.
    pub daemon: Arc<Daemon>,
    /// Moves the daemon to its next phase.
    pub phase: watch::Sender<Phase>,
    /// Reports of the I/O threads.
    pub notices: mpsc::UnboundedReceiver<Notice>,
    /// Sockets.
    pub listeners: Listeners,
    /// The lock.
    pub runtime_dir: RuntimeDir,
}

/// Starts everything. Must be called within a tokio runtime.
pub fn start(config: Config) -> Result<Started, StartError> {
    raise_nofile();
    let runtime_dir = RuntimeDir::lock(&config.daemon.runtime_dir.value)?;
    let epoch = getrandom::u64().map_err(|error| StartError::System {
        what: "get random bytes",
        source: std::io::Error::other(error),
    })?;
    let mut engines = Vec::new();
    for section in &config.engines {
        engines.push(start_engine(&config, section, epoch)?);
    }
    let store = Store::new(&config.sessions_dir()).map_err(saved)?;
    let found = store.load().map_err(saved)?;
    let volumes = open_volumes(&config, &engines, &found)?;
    let listeners = listen::listen(&config, &runtime_dir)?;
    let (sessions, notices) = Sessions::new(Setup {
        limits: config.limits.clone(),
        shares: Shares::new(config.session.clone(), config.groups.clone()),
        volumes: Arc::clone(&volumes),
        engines: engines.clone(),
        attach_socket: config.attach_socket().display().to_string(),
        epoch,
        store,
        resume_timeout: Duration::from_secs(config.daemon.resume_timeout_s),
        predecessor: runtime_dir.predecessor(),
    });
    sessions.set_group_limits()?;
    sessions.adopt(found);
    let (phase, phases) = watch::channel(Phase::Running);
    let since = Instant::now();
    let changes = Changes::new(Arc::clone(&volumes), engines.clone(), Arc::clone(&sessions));
    let refused = Refused { attach: Refusals::new(since), control: Refusals::new(since) };
    let daemon = Arc::new(Daemon {
        config,
        engines,
        volumes,
        sessions,
        changes,
        since,
        epoch,
        phase: phases,
        refused,
    });
    Ok(Started { daemon, phase, notices, listeners, runtime_dir })
}

fn saved(source: std::io::Error) -> StartError {
    StartError::System {
        what: "read the sessions of the ferriod before in daemon.runtime_dir/journal/sessions",
        source,
    }
}

/// Sessions cost descriptors; the soft limit is for programs that use select(2), this one does not.
fn raise_nofile() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(errno) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(
                "cannot raise RLIMIT_NOFILE from {:?} to {:?}: {errno}",
                limit.current,
                limit.maximum
            );
        }
    }
}

fn start_engine(config: &Config, section: &EngineSection, epoch: u64) -> Result<Engine, EngineError> {
    let engine = Engine::start(&EngineConfig {
        name: section.name.value.clone(),
        backend: section.backend,
        depth: section.queue_depth,
        requests_max: section.requests_max,
        queues_max: config.limits.queues_max,
        sessions_max: config.limits.sessions_max,
        regions_per_session: config.limits.regions_per_session_max,
        threads: section.threads,
        helpers: section.helpers,
        faults: section.faults,
        spin_us: section.spin_us,
        budgets: section.budgets,
        merge: section.merge,
        journal: config.journal_dir().join(&section.name.value),
        epoch,
    })?;
    engine.set_latency_goal(section.latency_goal)?;
    let info = engine.info();
    tracing::info!(
        "engine {}: {} with {} I/O thread(s), {} requests deep ({}); modes: {}",
        info.name,
        info.backend,
        info.threads,
        info.depth,
        info.backend_reason,
        info.driver.modes.join(", ")
    );
    for degraded in &info.driver.degraded {
        tracing::warn!("engine {}: {degraded}", info.name);
    }
    Ok(engine)
}

/// Opens every volume, so that all that fail are told at once. Those that sessions found wait for are waited for.
fn open_volumes(config: &Config, engines: &[Engine], found: &Found) -> Result<Arc<Volumes>, StartError> {
    let used: HashSet<&str> =
        found.sessions.iter().flat_map(|session| &session.volumes).map(|volume| &*volume.name).collect();
    let volumes = Arc::new(Volumes::default());
    let mut problems = Vec::new();
    let deadline = Instant::now() + change::ANSWER_LIMIT;
    for section in &config.volumes {
        let home = engines.iter().position(|engine| engine.info().name == section.engine.value);
        // The configuration was checked for it.
        let engine = home.unwrap_or(0);
        let reservation = volumes.reserve(section.clone(), engine, true)?;
        let (answer, answered) = sync_mpsc::channel();
        let own = section.clone();
        let needed = used.contains(section.name.value.as_str());
        let thread = std::thread::Builder::new().name("open".to_owned());
        let spawned = thread.spawn(move || {
            // Nobody waits any more: it is closed here.
            let _ = answer.send((fence::open(&own, needed), reservation));
        });
        spawned
            .map_err(|source| StartError::System { what: "start a thread that opens a volume", source })?;
        let left = deadline.saturating_duration_since(Instant::now()).max(OPEN_AT_LEAST);
        match answered.recv_timeout(left) {
            Ok((Ok(opened), reservation)) => {
                change::take_in(&engines[engine], reservation, opened)?;
            }
            Ok((Err(error), _)) => problems.push(target_problem(config, section, &error)),
            Err(_) => serve_late(section.name.value.clone(), engines[engine].clone(), answered),
        }
    }
    if problems.is_empty() { Ok(volumes) } else { Err(Problems(problems).into()) }
}

/// A volume whose path does not answer does not keep the others out of service.
fn serve_late(
    name: String,
    engine: Engine,
    answered: sync_mpsc::Receiver<(Result<Opened, TargetError>, Reservation)>,
) {
    tracing::error!(
        "volume {name}: its path does not answer: starting without it, it is served when it does"
    );
    tokio::spawn(async move {
        let Ok(Ok((opened, reservation))) = tokio::task::spawn_blocking(move || answered.recv()).await else {
            return;
        };
        let served = opened
            .map_err(|source| VolumeError::Target { name, what: "opened", source })
            .and_then(|opened| change::take_in(&engine, reservation, opened));
        if let Err(error) = served {
            tracing::error!("{error}");
        }
    });
}

fn target_problem(config: &Config, section: &VolumeSection, error: &TargetError) -> Problem {
    let (line, value) =
        section.source.path().map_or((0, String::new()), |path| (path.line, format!("{:?}", path.value)));
    let what = format!("volume {:?} cannot be opened: {}", section.name.value, crate::chain(error));
    config.problem(line, "volume.path", &value, &what, "")
}
