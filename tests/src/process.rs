//! Child processes that do not outlive their test.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Longest that any single step of a test may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A program of this tree.
///
/// # Panics
/// Not called from a test of this package, whose binaries cargo builds.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").join(name);
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// The same at `path`, where another user may execute it. Another process copies it: a child that a test beside this one
/// starts just then would have it open for writing, and it could not be executed.
///
/// # Panics
/// It cannot be copied.
pub fn copy_program(name: &str, path: &Path) {
    let copied = Command::new("cp").arg(program(name)).arg(path).status().expect("cp");
    assert!(copied.success(), "{name} was not copied to {}", path.display());
}

/// A running child; killed when dropped.
pub struct Process {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: PathBuf,
    _directory: tempfile::TempDir,
}

/// What a child left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Finished {
    /// Exit code; signals count as 128 + n, as in a shell.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails the test unless the exit code is this.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl Process {
    /// Starts `command` with its output captured. It dies with the thread that started it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let stderr = directory.path().join("stderr");
        let file = File::create(&stderr).expect("a file for stderr");
        // A group of its own: what it starts goes when it goes.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).process_group(0);
        die_with_parent(command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout, stderr, _directory: directory }
    }

    /// Starts a program of this tree.
    pub fn start_program(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start(Command::new(program(name)).args(arguments))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process is there");
    }

    /// Next line of its output; `None` at the end.
    ///
    /// # Panics
    /// Its output is not text.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stdout.as_mut()?.read_line(&mut line).expect("output is text");
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Reads lines until one contains `text`.
    ///
    /// # Panics
    /// The output ends without it.
    #[track_caller]
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while let Some(line) = self.line() {
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        panic!("ended without saying {text:?}; it said:\n{seen}\nand complained:\n{}", self.stderr());
    }

    /// What it complained of so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// It has ended.
    ///
    /// # Panics
    /// wait(2) fails.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end within [`PATIENCE`].
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let reader = self.stdout.take().map(|stdout| std::thread::spawn(move || io::read_to_string(stdout)));
        let limit = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(
                Instant::now() < limit,
                "still running after {PATIENCE:?}; it complained:\n{}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout =
            reader.map_or_else(String::new, |reader| reader.join().expect("reader").expect("output is text"));
        Finished { status, stdout, stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Waits until `done`, looking every few milliseconds.
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes whose parent is this one.
///
/// # Panics
/// There is no /proc.
#[must_use]
pub fn children(parent: u32) -> BTreeSet<u32> {
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    };
    let pids = std::fs::read_dir("/proc").expect("/proc");
    pids.filter_map(|entry| entry.expect("/proc").file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}

/// It runs or sleeps, and is no zombie.
#[must_use]
pub fn is_alive(pid: &u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
