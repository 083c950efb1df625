//! A second client, in Python, written from ABI.md and the proto files alone: they are enough to write one.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use ferrio_tests::{
    Daemon, DaemonBuilder, Process,
    process::wait_until,
    skip::{has_program, skip},
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Longest that pip may take to fetch grpcio.
const INSTALL_PATIENCE: Duration = Duration::from_secs(180);

/// An interpreter that has grpcio, and the directory of the generated code.
struct Python {
    interpreter: PathBuf,
    generated: tempfile::TempDir,
}

/// Made once per test process; the environment is kept in the target directory.
fn python() -> Option<&'static Python> {
    static PYTHON: OnceLock<Result<Python, String>> = OnceLock::new();
    match PYTHON.get_or_init(Python::make) {
        Ok(python) => Some(python),
        Err(reason) => {
            // Even in CI: PyPI is not ours.
            skip(reason, true);
            None
        }
    }
}

impl Python {
    fn make() -> Result<Self, String> {
        if !has_program("python3") {
            return Err("python3 is not installed".into());
        }
        let interpreter = environment()?;
        let generated = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut protoc = Command::new(&interpreter);
        protoc.args(["-m", "grpc_tools.protoc", "-I", "proto"]).current_dir(TREE);
        for out in ["--python_out", "--grpc_python_out"] {
            protoc.arg(format!("{out}={}", generated.path().display()));
        }
        let protos = std::fs::read_dir(format!("{TREE}/proto/ferrio/v1")).expect("the proto files");
        protoc.args(
            protos.map(|entry| Path::new("proto/ferrio/v1").join(entry.expect("an entry").file_name())),
        );
        Process::start(&mut protoc).finish().expect(0);
        Ok(Self { interpreter, generated })
    }

    /// Runs client.py, which prints what it did.
    fn client(&self, scenario: &str, arguments: &[&str]) -> String {
        Process::start(self.command(scenario).args(arguments)).finish().expect(0).stdout
    }

    fn command(&self, scenario: &str) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.arg(format!("{TREE}/tests/python/client.py")).arg(scenario);
        command.env("PYTHONPATH", self.generated.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// The interpreter of a virtual environment with tests/python/requirements.txt.
fn environment() -> Result<PathBuf, String> {
    let requirements = format!("{TREE}/tests/python/requirements.txt");
    let names = std::fs::read_to_string(&requirements).expect("the requirements");
    let names = names.split_whitespace().collect::<Vec<_>>().join("-").replace("==", "-");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{names}"));
    let interpreter = place.join("bin/python");
    if interpreter.exists() {
        return Ok(interpreter);
    }
    // Made beside it and renamed: another test process may be at it, too, and half an environment is none.
    let making = place.with_extension(format!("making-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&making);
    bounded(Command::new("python3").args(["-m", "venv"]).arg(&making), "make a virtual environment")?;
    let mut install = Command::new(making.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    install.args(["--retries", "1", "--timeout", "20", "-r", &requirements]);
    bounded(&mut install, "install grpcio from PyPI")?;
    if std::fs::rename(&making, &place).is_err() {
        let _ = std::fs::remove_dir_all(&making);
    }
    Ok(interpreter)
}

fn bounded(command: &mut Command, what: &str) -> Result<(), String> {
    let mut process = Process::start(command);
    let limit = Instant::now() + INSTALL_PATIENCE;
    while !process.has_ended() {
        if Instant::now() > limit {
            return Err(format!("cannot {what} within {INSTALL_PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let finished = process.finish();
    let last = || finished.stderr.lines().last().unwrap_or_default().to_owned();
    if finished.code() == 0 { Ok(()) } else { Err(format!("cannot {what}: {}", last())) }
}

fn daemon(backend: &str, threads: &str) -> Daemon {
    let more = format!("threads = {threads:?}");
    let builder = DaemonBuilder::new().engine("main", backend, &more).engine("other", backend, &more);
    let far = builder.path("far");
    let far_more = format!("size = {MIB}\nallow_any = true\nengine = \"other\"");
    builder.file("data", 4 * MIB).volume("far", &far, &far_more).start()
}

/// Every scenario, polling and asleep.
fn all(backend: &str, threads: &str) {
    let Some(python) = python() else { return };
    let mut daemon = daemon(backend, threads);
    let control = daemon.control();
    let socket = ["--socket", control.to_str().expect("a plain path")];
    let asleep = [socket[0], socket[1], "--sleep"];
    for arguments in [&socket[..], &asleep] {
        for (scenario, says) in [
            ("verify", "verified"),
            ("checks", "checked"),
            ("not_granted", "nothing granted"),
            ("operations", "not granted: none"),
            ("fault", "told: fault"),
            ("events", "told of two sizes"),
        ] {
            let said = python.client(scenario, arguments);
            if said.starts_with("SKIPPED") {
                return skip(said.trim(), false);
            }
            assert!(said.contains(says), "{scenario} {arguments:?} said {said:?}");
            println!("{scenario}: {}", said.trim());
        }
    }
    assert!(!daemon.process().has_ended(), "{}", daemon.log());
}

#[test]
fn python_reads_the_dumps_as_they_are_meant() {
    let Some(python) = python() else { return };
    let said = python.client("dumps", &["--abi", &format!("{TREE}/src/shm/ABI.md")]);
    assert!(said.contains("dumps agree"), "{said}");
}

#[test]
fn python_over_io_uring_with_one_thread() {
    all("io_uring", "1");
}

#[test]
fn python_over_io_uring_with_two_threads() {
    all("io_uring", "2");
}

#[test]
fn python_over_aio() {
    all("aio", "auto");
}

/// The session outlives daemons, as the page says how: polling and asleep, after SIGKILL and after SIGTERM.
#[test]
fn python_goes_on_over_restarts() {
    let Some(python) = python() else { return };
    let mut daemon = daemon("auto", "auto");
    let control = daemon.control();
    for asleep in [&[][..], &["--sleep"]] {
        let mut command = python.command("resume");
        command.arg("--socket").arg(&control).args(["--restarts", "2"]).args(asleep);
        let mut client = Process::start(&mut command);
        client.wait_for_line("started");
        for signal in [Signal::KILL, Signal::TERM] {
            std::thread::sleep(Duration::from_millis(200));
            daemon.end(signal);
            daemon.restart();
            wait_until("the client to be back", || {
                let sessions = daemon.ctl_json(&["session", "list"]);
                client.has_ended() || sessions.to_string().contains("\"active\"")
            });
        }
        let said = client.finish().expect(0).stdout;
        assert!(said.contains("resumed 2 times"), "{said}");
    }
}
