//! A ferriod of this tree in a private directory.

use std::{
    fmt::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use ferrio_client::{Access, Session, SessionBuilder};
use ferrio_shm::peer;
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Finished, Process, program, wait_until};

/// What a daemon is started with.
pub struct DaemonBuilder {
    directory: tempfile::TempDir,
    config: String,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    process: Option<Process>,
    builder: DaemonBuilder,
    /// Those that were killed: their sockets may stay for a while.
    killed: Vec<i32>,
}

impl Default for DaemonBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl DaemonBuilder {
    /// No volume yet; one engine with the automatic choice of backend.
    ///
    /// # Panics
    /// No temporary directory.
    pub fn new() -> Self {
        // Short, for socket paths hold 107 bytes; and open to other users, for the tests with two of them.
        let directory =
            tempfile::Builder::new().prefix("ferrio-test-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("own directory");
        let run = directory.path().join("run");
        let config = format!("[daemon]\nruntime_dir = {run:?}\nsocket_mode = 0o666\n");
        Self { directory, config, environment: Vec::new(), wrapper: Vec::new() }
    }

    /// Appends text to the configuration.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// An engine.
    #[must_use]
    pub fn engine(self, name: &str, backend: &str, more: &str) -> Self {
        self.config(&format!("[[engine]]\nname = {name:?}\nbackend = {backend:?}\n{more}"))
    }

    /// A file volume that anyone may use, created by the daemon.
    #[must_use]
    pub fn file(self, name: &str, bytes: u64) -> Self {
        let path = self.path(name);
        self.volume(name, &path, &format!("size = {bytes}\nallow_any = true"))
    }

    /// A volume.
    #[must_use]
    pub fn volume(self, name: &str, path: &Path, more: &str) -> Self {
        self.config(&format!("[[volume]]\nname = {name:?}\npath = {path:?}\n{more}"))
    }

    /// A null volume that anyone may use.
    #[must_use]
    pub fn null(self, name: &str, bytes: u64) -> Self {
        self.config(&format!(
            "[[volume]]\nname = {name:?}\nkind = \"null\"\nsize = {bytes}\nallow_any = true"
        ))
    }

    /// A memory volume that anyone may use.
    #[must_use]
    pub fn memory(self, name: &str, bytes: u64) -> Self {
        self.config(&format!(
            "[[volume]]\nname = {name:?}\nkind = \"memory\"\nsize = {bytes}\nallow_any = true"
        ))
    }

    /// Sets an environment variable of the daemon.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon as an argument of another program.
    #[must_use]
    pub fn under(mut self, program: &[&str]) -> Self {
        self.wrapper = program.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// A path in the daemon's private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration and returns its path.
    ///
    /// # Panics
    /// The directory is not writable.
    pub fn write_config(&self) -> PathBuf {
        let path = self.path("ferriod.toml");
        std::fs::write(&path, &self.config).expect("own directory");
        path
    }

    /// Starts the daemon, without waiting for it.
    pub fn spawn(&self) -> Process {
        let config = self.write_config();
        let mut words = self.wrapper.clone();
        words.push(program("ferriod-under-test").to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--config").arg(config);
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Process::start(&mut command)
    }

    /// Starts the daemon and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = Daemon { process: None, builder: self, killed: Vec::new() };
        daemon.restart();
        daemon
    }
}

impl Daemon {
    /// Starts it again after it has ended.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_until_it_serves();
    }

    /// Starts it again, without waiting for it.
    pub fn spawn(&mut self) {
        self.process = Some(self.builder.spawn());
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn wait_until_it_serves(&mut self) {
        let (control, attach) = (self.control(), self.path("run/attach.sock"));
        let process = self.process.as_mut().expect("the daemon runs");
        wait_until("the daemon to serve", || {
            assert!(!process.has_ended(), "the daemon ended:\n{}", process.stderr());
            // A socket file may be a leftover of the daemon before.
            let serves = std::os::unix::net::UnixStream::connect(&control).is_ok_and(|stream| {
                let listener = rustix::net::sockopt::socket_peercred(&stream).expect("a Unix socket");
                !self.killed.contains(&listener.pid.as_raw_nonzero().get())
            });
            serves && peer::connect(&attach).is_ok()
        });
    }

    /// Environment of the next start: a variable, or none of this name.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        let environment = &mut self.builder.environment;
        environment.retain(|(known, _)| known != name);
        environment.extend(value.map(|value| (name.into(), value.into())));
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn ended(&mut self) -> Finished {
        self.process.take().expect("the daemon runs").finish()
    }

    /// Control socket.
    pub fn control(&self) -> PathBuf {
        self.builder.path("run/control.sock")
    }

    /// A path in its private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.builder.path(name)
    }

    /// The running process.
    ///
    /// # Panics
    /// It was ended.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the daemon runs")
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> Finished {
        let process = self.process.take().expect("the daemon runs");
        process.signal(signal);
        process.finish()
    }

    /// Kills it, and does not wait for its end: the kernel may keep it until its I/O is done.
    ///
    /// # Panics
    /// It was ended.
    pub fn kill(&mut self) -> Process {
        let process = self.process.take().expect("the daemon runs");
        process.signal(Signal::KILL);
        self.killed.push(process.pid().try_into().expect("a process id"));
        process
    }

    /// A session with one volume and one queue, to be opened.
    pub fn session(&self, volume: &str, access: Access) -> SessionBuilder {
        Session::builder(self.control()).name("test").volume(volume, access)
    }

    /// Runs ferrioctl with `--socket` and these arguments.
    pub fn ctl(&self, arguments: &[&str]) -> Finished {
        let control = self.control();
        let socket = ["--socket", control.to_str().expect("a plain path")];
        Process::start_program("ferrioctl-under-test", socket.iter().chain(arguments)).finish()
    }

    /// Runs ferrioctl with `--json` and parses what it prints.
    ///
    /// # Panics
    /// It fails, or prints something else.
    #[track_caller]
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let finished = self.ctl(&all).expect(0);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}):\n{}", finished.stdout))
    }

    /// Requests that its engines have joined with others.
    ///
    /// # Panics
    /// As [`Self::ctl_json`].
    #[track_caller]
    pub fn merged(&self) -> u64 {
        let engines = self.ctl_json(&["scheduler", "show"]);
        let engines = engines["engines"].as_array().expect("a list").iter();
        let classes = engines.flat_map(|engine| engine["classes"].as_array().expect("a list"));
        classes.map(|class| class["merged"].as_u64().expect("a number")).sum()
    }

    /// Starts a test client.
    pub fn client(&self, arguments: &[&str]) -> Process {
        Process::start(&mut self.client_command(arguments))
    }

    /// The command of a test client, to be changed before it is started.
    pub fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("ferrio-test-client"));
        command.arg("--socket").arg(self.control()).args(arguments);
        command
    }

    /// What the daemon logged so far.
    ///
    /// # Panics
    /// It was ended.
    pub fn log(&self) -> String {
        let mut log = String::new();
        if let Some(process) = &self.process {
            let _ = write!(log, "{}", process.stderr());
        }
        log
    }
}
