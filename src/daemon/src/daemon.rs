//! The life of the daemon: start, serve, drain, stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferrio_engine::DrainReport;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::control::{self, Daemon, Phase, Refused, incoming};
use crate::listen::Listeners;
use crate::runtime_dir::RuntimeDir;
use crate::start::{self, StartError, Started};
use crate::uid_limit::UidLimit;
use crate::{attach, systemd, watchdog};

/// How long clients and watchers get to notice the end, once their requests are answered.
const FAREWELL: Duration = Duration::from_secs(1);

/// A second signal counts this much later than the first: timeout(1), and a terminal beside a supervisor, send one twice.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After the first signal: what was in flight was answered, or its time was over.
    Drained,
    /// After the second signal: at once.
    Hurried,
}

/// Runs the daemon until a signal ends it.
pub fn run(config: Config, ready: impl FnOnce(&Daemon)) -> Result<Ending, StartError> {
    // Sockets and files get their modes explicitly; whatever forgets to is not open to others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // One thread: the control plane is idle nearly always, and must cost nearly nothing.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "start the control thread", source })?;
    let ending = runtime.block_on(serve(config, ready));
    // After a second signal an engine may still be draining on a blocking thread: do not wait for it.
    runtime.shutdown_background();
    ending
}

async fn serve(config: Config, ready: impl FnOnce(&Daemon)) -> Result<Ending, StartError> {
    let mut signals =
        Signals::new().map_err(|source| StartError::System { what: "listen for signals", source })?;
    let Started { daemon, phase, notices, listeners, runtime_dir } = start::start(config)?;
    let Listeners { control, attach, own: sockets } = listeners;
    let limits = &daemon.config.limits;
    let limit = || UidLimit::new(limits.connections_max, limits.connections_per_uid_max);
    tokio::spawn(Arc::clone(&daemon.sessions).serve_notices(notices));
    tokio::spawn(Arc::clone(&daemon.sessions).follow_fences());
    let Refused { attach: refused, control: refused_calls } = daemon.refused.clone();
    let attaching = tokio::spawn(attach::serve(attach, Arc::clone(&daemon.sessions), limit(), refused));
    let incoming = incoming::accept(control, limit(), limits.sessions_per_uid_max, refused_calls);
    let server = tokio::spawn(control::serve(Arc::clone(&daemon), incoming));
    tracing::info!("ready on {}", daemon.config.control_socket().display());
    systemd::ready(&daemon);
    tokio::spawn(watchdog::feed(daemon.engines.clone()));
    ready(&daemon);

    let signal = signals.next().await;
    tracing::info!("{signal}: draining; a second signal ends at once");
    tokio::select! {
        () = drain(&daemon, &phase) => {}
        signal = signals.another() => {
            tracing::warn!("{signal} again: ending at once, requests in flight are left to the kernel");
            remove_sockets(&sockets, &runtime_dir);
            return Ok(Ending::Hurried);
        }
    }
    attaching.abort();
    if tokio::time::timeout(FAREWELL, server).await.is_err() {
        tracing::debug!("a control connection did not close");
    }
    remove_sockets(&sockets, &runtime_dir);
    tracing::info!("stopped");
    Ok(Ending::Drained)
}

/// Takes nothing new, answers what was accepted, leaves the sessions that can be resumed to the next daemon, ends the others and
/// the engines.
async fn drain(daemon: &Arc<Daemon>, phase: &watch::Sender<Phase>) {
    let limit = Duration::from_secs(daemon.config.daemon.drain_timeout_s);
    systemd::stopping();
    phase.send_replace(Phase::Draining);
    daemon.sessions.drain(limit);
    let DrainReport { late, kept } = drain_engines(daemon, limit).await;
    daemon.sessions.leave_all("ferriod stops");
    let gone = async {
        while daemon.sessions.totals().open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(FAREWELL, gone).await.is_ok();
    phase.send_replace(Phase::Closing);
    if late > 0 {
        let limit_s = limit.as_secs();
        tracing::warn!(
            "{late} requests not answered within daemon.drain_timeout_s = {limit_s}; the journal has them"
        );
    } else if !gone {
        tracing::warn!("drained, but sessions did not end within {FAREWELL:?}");
    } else {
        // On a blocking thread: an engine waits for the kernel before it frees anything.
        let engines = daemon.engines.clone();
        let _ =
            tokio::task::spawn_blocking(move || engines.iter().for_each(ferrio_engine::Engine::stop)).await;
        if kept == 0 {
            tracing::info!("drained: every accepted request was answered");
        } else {
            tracing::info!(
                "drained, but for {kept} requests that wait for fenced volumes: the journal has them for the next ferriod"
            );
        }
    }
}

async fn drain_engines(daemon: &Daemon, limit: Duration) -> DrainReport {
    let drains: Vec<_> = daemon
        .engines
        .iter()
        .map(|engine| {
            let engine = engine.clone();
            tokio::task::spawn_blocking(move || engine.drain(limit))
        })
        .collect();
    let mut all = DrainReport::default();
    for drain in drains {
        let DrainReport { late, kept } = drain.await.unwrap_or_default();
        all = DrainReport { late: all.late + late, kept: all.kept + kept };
    }
    all
}

fn remove_sockets(sockets: &[PathBuf], runtime_dir: &RuntimeDir) {
    for path in sockets {
        if let Err(error) = runtime_dir.remove_stale_socket(path) {
            tracing::warn!("{error}");
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        // A write beyond RLIMIT_FSIZE is to fail with EFBIG. The signal that comes with it would end the daemon, and a
        // handler is as good as ignoring it: it stays when this one is dropped.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal that is not the same one once more.
    async fn another(&mut self) -> &'static str {
        let first = tokio::time::Instant::now();
        loop {
            let signal = self.next().await;
            if first.elapsed() >= SAME_SIGNAL {
                return signal;
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
