//! Where the demo happens: a private directory, a configuration, a daemon. All of it is gone afterwards.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_api::v1::admin_client::AdminClient;
use rustix::process::{Pid, Signal, getpid, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};
use tonic::transport::{Channel, Endpoint};

use super::message::Failure;
use crate::cli;

/// Name of the demo's volume.
pub const VOLUME: &str = "demo";
const VOLUME_FILE: &str = "volume.img";

const START_LIMIT: Duration = Duration::from_secs(15);
/// The daemon drains: its own limit is in the configuration, and shorter.
const STOP_LIMIT: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of the daemon's log that are shown when it fails.
const LOG_LINES: usize = 10;

const CONFIG: &str = "ferriod.toml";
const DIRECTORY_PREFIX: &str = "ferrio-demo-";

/// A running daemon and the directory it lives in.
pub struct Stage {
    directory: TempDir,
    command: Command,
    daemon: Child,
    /// The daemon ends when this is closed, which the kernel does for a demo that was killed.
    tether: Option<ChildStdin>,
    /// It ended by itself, and that was said.
    lost: bool,
}

impl Stage {
    /// Starts a daemon with one file volume, for so many sessions.
    pub fn set(parent: &Path, backend: &str, volume_bytes: u64, sessions: u64) -> Result<Self, Failure> {
        let cannot = |what: &str, error: std::io::Error| {
            let fix = "name a writable directory on a disk with --dir";
            Failure::new("", format!("cannot {what} in {}: {error}; {fix}", parent.display()))
        };
        let directory = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir_in(parent);
        let directory = directory.map_err(|error| cannot("make a directory", error))?;
        let config = directory.path().join(CONFIG);
        let log =
            std::fs::File::options().append(true).create_new(true).open(directory.path().join("ferriod.log"));
        let log = log.map_err(|error| cannot("make the daemon's log", error))?;
        std::fs::write(&config, configuration(directory.path(), backend, volume_bytes, sessions)?)
            .map_err(|error| cannot("write the configuration", error))?;
        let mut command = myself()?;
        command.arg("demo-daemon").arg(directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        // A demo inside of a systemd unit must not speak for it.
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .env_remove("WATCHDOG_USEC")
            .env_remove("RUST_LOG");
        let mut daemon = command.spawn().map_err(|error| cannot("start the daemon", error))?;
        // Taken, for whoever waits for a child closes what it still has.
        let tether = daemon.stdin.take();
        Ok(Self { directory, command, daemon, tether, lost: false })
    }

    /// Control socket of the daemon.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/control.sock")
    }

    /// The volume's file.
    pub fn volume(&self) -> PathBuf {
        self.directory.path().join(VOLUME_FILE)
    }

    /// Process of the daemon; 0 if it ended.
    pub fn pid(&self) -> u32 {
        self.daemon.id().unwrap_or_default()
    }

    /// Ends the daemon with a signal and starts another one in the same moment. Returns when the first had ended.
    pub async fn restart(&mut self, signal: Signal) -> Result<Instant, Failure> {
        self.send(signal);
        match tokio::time::timeout(STOP_LIMIT, self.daemon.wait()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Failure::new("", format!("the daemon was lost: {error}"))),
            Err(_) => return Err(self.with_log(&format!("the daemon did not end within {STOP_LIMIT:?}"))),
        }
        let ended = Instant::now();
        let again = self.command.spawn();
        self.daemon =
            again.map_err(|error| Failure::new("", format!("cannot start the daemon again: {error}")))?;
        self.tether = self.daemon.stdin.take();
        Ok(ended)
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = self.daemon.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until the daemon serves.
    pub async fn ready(&mut self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket().display()))
            .map_err(|error| Failure::new("", format!("cannot use {}: {error}", self.socket().display())))?;
        let serves = async {
            loop {
                if let Ok(channel) = endpoint.connect().await
                    && AdminClient::new(channel.clone()).info(v1::InfoRequest {}).await.is_ok()
                {
                    return channel;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let serves = tokio::time::timeout(START_LIMIT, serves);
        let what = tokio::select! {
            channel = serves => match channel {
                Ok(channel) => return Ok(channel),
                Err(_) => format!("the daemon does not serve after {START_LIMIT:?}"),
            },
            status = self.daemon.wait() => {
                self.lost = true;
                match status {
                    Ok(status) => format!("the daemon ended at once ({status})"),
                    Err(error) => format!("the daemon was lost: {error}"),
                }
            }
        };
        Err(self.with_log(&what))
    }

    /// Waits until the daemon ends, which it must not before it is told to.
    pub async fn ended(&mut self) -> Failure {
        let status =
            self.daemon.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        self.lost = true;
        self.with_log(&format!("the daemon ended in the middle of the demo ({status})"))
    }

    /// Ends the daemon and removes the directory.
    pub async fn clear(mut self) -> Result<(), Failure> {
        let ended = self.stop().await;
        let path = self.directory.path().to_owned();
        let removed = self.directory.close();
        ended?;
        removed.map_err(|error| Failure::new("", format!("cannot remove {}: {error}", path.display())))
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        if self.lost {
            return Ok(());
        }
        self.send(Signal::TERM);
        match tokio::time::timeout(STOP_LIMIT, self.daemon.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.with_log(&format!("the daemon did not end well ({status})"))),
            Ok(Err(error)) => Err(Failure::new("", format!("the daemon was lost: {error}"))),
            Err(_) => {
                let _ = self.daemon.kill().await;
                Err(self.with_log(&format!("the daemon did not end within {STOP_LIMIT:?} and was killed")))
            }
        }
    }

    fn with_log(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(self.directory.path().join("ferriod.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        Failure::new("", format!("{what}; its log ends with:\n  {}", last.join("\n  ")))
    }
}

/// Options of the hidden `ferriod demo-daemon`.
#[derive(Debug, clap::Args)]
pub struct DaemonArgs {
    /// The demo's directory.
    pub directory: PathBuf,
}

/// Runs the daemon of a demo, and ends it in order when the demo is gone: then nobody else removes the directory.
pub fn run_daemon(args: &DaemonArgs) -> ExitCode {
    let orphan = Arc::new(AtomicBool::new(false));
    let found = Arc::clone(&orphan);
    std::thread::spawn(move || {
        // The demo holds the other end, and never writes.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        found.store(true, SeqCst);
        let _ = kill_process(getpid(), Signal::TERM);
    });
    let ended = cli::serve(&args.directory.join(CONFIG));
    let name = args.directory.file_name().unwrap_or_default().as_encoded_bytes();
    // Never a directory that no demo made.
    if orphan.load(SeqCst) && name.starts_with(DIRECTORY_PREFIX.as_bytes()) {
        let _ = std::fs::remove_dir_all(&args.directory);
    }
    ended
}

/// This program, to be started again. It does not get the terminal's Ctrl-C: the demo ends it in order.
pub fn myself() -> Result<Command, Failure> {
    let program = std::env::current_exe();
    let program = program.map_err(|error| Failure::new("", format!("cannot find this program: {error}")))?;
    let mut command = Command::new(program);
    command.process_group(0).kill_on_drop(true);
    Ok(command)
}

fn configuration(
    directory: &Path,
    backend: &str,
    volume_bytes: u64,
    sessions: u64,
) -> Result<String, Failure> {
    let text = |name: &str| {
        let path = directory.join(name);
        let path =
            path.to_str().ok_or_else(|| Failure::new("", format!("{} is not UTF-8", path.display())))?;
        Ok(toml::Value::String(path.to_owned()).to_string())
    };
    Ok(format!(
        "[daemon]\nruntime_dir = {run}\ndrain_timeout_s = 5\n\n\
         [limits]\nsessions_max = {sessions}\nsessions_per_uid_max = {sessions}\nqueues_per_uid_max = {sessions}\n\
         connections_per_uid_max = {connections}\n\n\
         [[engine]]\nname = \"main\"\nbackend = \"{backend}\"\n\n\
         [[volume]]\nname = \"{VOLUME}\"\nkind = \"file\"\npath = {path}\nsize = {volume_bytes}\nallow_any = true\n",
        run = text("run")?,
        path = text(VOLUME_FILE)?,
        connections = 2 * sessions,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_accepted_whatever_the_path() {
        let directory = Path::new(r#"/tmp/a "quoted" \ name"#);
        let text = configuration(directory, "auto", 96 << 20, 100).unwrap();
        let (config, problems) = crate::config::read("demo", &text);
        assert!(!problems.has_errors(), "{problems}\n{text}");
        assert_eq!(config.unwrap().control_socket(), directory.join("run/control.sock"));
    }
}
