//! The daemon's own life: start, refusal to start, stop, configuration.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    time::Duration,
};

use ferrio_client::Access;
use ferrio_tests::{
    DaemonBuilder, Finished, Process,
    process::{program, wait_until},
    skip::{has_program, is_root, skip},
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

fn ferriod(arguments: &[&str]) -> Finished {
    Process::start_program("ferriod-under-test", arguments).finish()
}

#[test]
fn it_starts_serves_and_stops() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    daemon.client(&["verify", "data"]).finish().expect(0);
    let sockets = [daemon.control(), daemon.path("run/attach.sock")];
    assert!(sockets.iter().all(|path| path.exists()));
    daemon.end(Signal::TERM).expect(0);
    assert!(sockets.iter().all(|path| !path.exists()), "it removes its sockets");
}

#[test]
fn it_drains_what_is_in_flight_when_it_is_told_to_stop() {
    let mut daemon = DaemonBuilder::new().file("data", 8 * MIB).start();
    let mut client = daemon.client(&["verify", "data", "--seconds", "30"]);
    client.wait_for_line("started");
    std::thread::sleep(Duration::from_millis(200));
    daemon.end(Signal::TERM).expect(0);
    let client = client.finish();
    assert_eq!(client.code(), 1, "the client is told, it does not hang");
    assert!(!client.stderr.contains("expected 0x"), "no wrong data: {}", client.stderr);
}

#[test]
fn interrupt_stops_it_too() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    daemon.end(Signal::INT).expect(0);
}

#[test]
fn it_comes_back_after_a_kill() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    daemon.end(Signal::KILL);
    assert!(daemon.control().exists(), "a stale socket is left");
    daemon.restart();
    daemon.client(&["verify", "data"]).finish().expect(0);
}

#[test]
fn a_second_daemon_on_the_same_sockets_is_refused() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    let config = daemon.path("ferriod.toml");
    let second = ferriod(&["--config", config.to_str().unwrap()]).expect(1);
    assert!(
        second.stderr.contains(&daemon.process().pid().to_string()),
        "it names the first: {}",
        second.stderr
    );
    daemon.client(&["verify", "data"]).finish().expect(0);
}

#[test]
fn a_second_daemon_on_the_same_volume_is_refused() {
    let mut first = DaemonBuilder::new().file("data", MIB).start();
    let second = DaemonBuilder::new()
        .volume("data", &first.path("data"), "allow_any = true")
        .spawn()
        .finish()
        .expect(1);
    let volume = first.path("data");
    for part in [volume.to_str().unwrap(), &first.process().pid().to_string()] {
        assert!(second.stderr.contains(part), "{part:?} is missing in: {}", second.stderr);
    }
}

#[test]
fn without_a_configuration_it_needs_no_root() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let daemon = home.path().join("ferriod");
    std::fs::copy(program("ferriod-under-test"), &daemon).unwrap();
    let mut command = Command::new(&daemon);
    command.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", home.path()).current_dir("/");
    if is_root() {
        command.uid(12345).gid(12345);
    }
    let mut process = Process::start(&mut command);
    let text = || process_output(home.path());
    wait_until("its directory", || text().is_some());
    let directory = text().unwrap();
    let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "private: {mode:o}");
    let control = directory.join("control.sock");
    wait_until("the daemon to serve", || {
        assert!(!process.has_ended(), "{}", process.stderr());
        std::os::unix::net::UnixStream::connect(&control).is_ok()
    });
    let session = ferrio_client::Session::builder(&control).volume("dev", Access::ReadWrite).open().unwrap();
    let volume = session.volume("dev").unwrap();
    let buffer = session.alloc(4096).unwrap();
    session.take_queue(0).unwrap().write(&volume, 0, buffer).unwrap();
    drop(session);
    process.signal(Signal::TERM);
    let finished = process.finish().expect(0);
    let printed = finished.stdout + &finished.stderr;
    assert!(printed.contains(directory.to_str().unwrap()), "it prints its directory: {printed}");
}

/// The private directory that the daemon made below `home`.
fn process_output(home: &Path) -> Option<std::path::PathBuf> {
    let mut directories = std::fs::read_dir(home).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    directories.find(|path| path.is_dir())
}

#[test]
fn it_notifies_systemd() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let builder = DaemonBuilder::new().file("data", MIB);
    let config = builder.write_config();
    let process = Process::start(
        Command::new(program("ferriod-under-test")).arg("--config").arg(&config).env("NOTIFY_SOCKET", &path),
    );
    let message = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a message to the service manager");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(std::iter::from_fn(|| Some(message())).any(|text| text.contains("READY=1")));
    process.signal(Signal::TERM);
    assert!(std::iter::from_fn(|| Some(message())).any(|text| text.contains("STOPPING=1")));
    process.finish().expect(0);
}

#[test]
fn a_bad_configuration_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferriod.toml");
    let missing = directory.path().join("no/such/file");
    let odd = directory.path().join("odd");
    std::fs::write(&odd, [0; 1000]).unwrap();
    let volume = |name: &str, path: &Path, more: &str| {
        format!("[[volume]]\nname = {name:?}\npath = {path:?}\n{more}\n")
    };
    let cases = [
        ("unknown key", "[daemon]\nruntime_dri = \"/tmp\"\n".to_owned(), vec![":2", "runtime_dri"]),
        ("wrong type", "[limits]\nsessions_max = \"many\"\n".to_owned(), vec![":2", "sessions_max", "many"]),
        ("out of range", "[limits]\n\nsessions_max = 0\n".to_owned(), vec![":3", "sessions_max", "0", "1"]),
        (
            "duplicate name",
            volume("twice", &odd, "size = 4096")
                + &volume("twice", &directory.path().join("b"), "size = 4096"),
            vec![":6", "twice"],
        ),
        ("path missing", volume("gone", &missing, ""), vec![":3", missing.to_str().unwrap(), "size"]),
        ("size not a multiple", volume("odd", &odd, ""), vec![":3", "1000", "512"]),
        ("unknown engine", volume("e", &odd, "size = 4096\nengine = \"fast\""), vec![":5", "fast"]),
        ("not TOML", "[daemon\n".to_owned(), vec![":1"]),
    ];
    for (what, text, parts) in cases {
        std::fs::write(&path, text).unwrap();
        for arguments in
            [&["check", "--config", path.to_str().unwrap()][..], &["--config", path.to_str().unwrap()]]
        {
            let finished = ferriod(arguments).expect(1);
            let said = finished.stdout + &finished.stderr;
            assert!(said.contains(path.to_str().unwrap()), "{what}: names the file: {said}");
            for part in &parts {
                assert!(said.contains(part), "{what}: {part:?} is missing in: {said}");
            }
        }
    }
}

#[test]
fn a_good_configuration_passes_the_check_and_nothing_is_created() {
    let builder = DaemonBuilder::new().file("data", MIB);
    let config = builder.write_config();
    ferriod(&["check", "--config", config.to_str().unwrap()]).expect(0);
    assert!(!builder.path("data").exists() && !builder.path("run").exists(), "a check changes nothing");
}

#[test]
fn wrong_arguments_are_usage_errors() {
    ferriod(&["--confg", "x"]).expect(2);
    ferriod(&["frobnicate"]).expect(2);
    let missing = ferriod(&["--config", "/no/such/file.toml"]).expect(1);
    assert!(missing.stderr.contains("/no/such/file.toml"), "{}", missing.stderr);
    ferriod(&["--version"]).expect(0);
    ferriod(&["--help"]).expect(0);
}

#[test]
fn where_io_uring_is_blocked_it_takes_aio_and_says_why() {
    if !has_program("strace") {
        return skip("strace is not installed", false);
    }
    let inject = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=io_uring_setup",
        "-e",
        "inject=io_uring_setup:error=EPERM",
    ];
    let daemon = DaemonBuilder::new().under(&inject).file("data", MIB).start();
    let info = daemon.ctl_json(&["info"]);
    let engine = &info["engines"][0];
    assert_eq!(engine["backend"], "aio", "{engine}");
    let reason = engine["backend_reason"].as_str().unwrap();
    assert!(reason.contains("EPERM") && reason.contains("seccomp"), "{reason}");
    daemon.client(&["verify", "data"]).finish().expect(0);
}
