//! What a supervisor sees and gives: the watchdog, and sockets that it holds. The test is the supervisor.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use ferrio_tests::{
    DaemonBuilder, Process,
    process::{PATIENCE, program, wait_until},
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// The service manager's end of the notify socket.
struct Manager {
    socket: UnixDatagram,
    _directory: tempfile::TempDir,
}

impl Manager {
    /// And a daemon that is to feed its watchdog every two seconds.
    fn start(builder: &DaemonBuilder) -> (Self, Process) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = Command::new(program("ferriod-under-test"));
        command.arg("--config").arg(builder.write_config());
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000").env_remove("WATCHDOG_PID");
        (Self { socket, _directory: directory }, Process::start(&mut command))
    }

    /// A message with this text comes within this time.
    fn hears(&self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            if String::from_utf8_lossy(&buffer[..length]).contains(text) {
                return true;
            }
        }
    }

    /// Forgets what was said.
    fn skip(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// A thread of another process that stands still until this is dropped.
struct Frozen(libc::pid_t);

impl Frozen {
    fn thread(process: &Process, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().flatten();
        let named = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.into_iter().find(named).expect("the thread runs").file_name();
        let tid: libc::pid_t = task.to_str().unwrap().parse().unwrap();
        // SAFETY: ptrace of a thread of our child; no memory of ours is involved.
        unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, none, none), 0, "a child can be traced");
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none), 0);
            assert_eq!(libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL), tid);
        }
        Self(tid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above; this thread is its tracer.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

fn the_watchdog_is_fed_while_every_thread_turns(backend: &str, thread: &str) {
    let builder = DaemonBuilder::new().engine("main", backend, "").memory("data", MIB);
    let (manager, process) = Manager::start(&builder);
    assert!(manager.hears("READY=1", PATIENCE));
    // Idle, for longer than a watchdog of two seconds has patience.
    for _ in 0..6 {
        assert!(manager.hears("WATCHDOG=1", PATIENCE), "an idle daemon makes progress");
    }
    let frozen = Frozen::thread(&process, thread);
    wait_until("the daemon to notice", || process.stderr().contains("has not turned for"));
    assert!(process.stderr().contains(&format!("I/O thread {thread} ")), "{}", process.stderr());
    manager.skip();
    assert!(!manager.hears("WATCHDOG=1", Duration::from_secs(3)), "a thread that stands still is found");
    drop(frozen);
    assert!(manager.hears("WATCHDOG=1", PATIENCE), "it turns again");
    process.signal(Signal::TERM);
    process.finish().expect(0);
}

#[test]
fn the_watchdog_is_fed_while_the_submitter_turns() {
    the_watchdog_is_fed_while_every_thread_turns("io_uring", "sub-main");
}

#[test]
fn the_watchdog_is_fed_while_the_poller_turns() {
    the_watchdog_is_fed_while_every_thread_turns("aio", "poll-main");
}

/// A device that does not answer is no reason to be killed.
#[test]
fn a_stuck_volume_is_no_reason_to_be_killed() {
    let stuck = "faults = true";
    let rule = "[[volume.fault]]\nops = [\"write\"]\neffect = \"stuck\"";
    let builder = DaemonBuilder::new().engine("main", "io_uring", stuck).memory("data", MIB).config(rule);
    let (manager, process) = Manager::start(&builder);
    assert!(manager.hears("READY=1", PATIENCE));
    let control = builder.path("run/control.sock");
    let mut client = Command::new(program("ferrio-test-client"));
    client.arg("--socket").arg(&control).args(["verify", "data"]);
    let mut client = Process::start(&mut client);
    client.wait_for_line("started");
    for _ in 0..8 {
        assert!(manager.hears("WATCHDOG=1", PATIENCE));
    }
    drop(client);
    process.signal(Signal::KILL);
    process.finish();
}

/// Starts a daemon with these listening sockets as descriptors 3 and on, as systemd does.
fn start_with(builder: &DaemonBuilder, sockets: &[&OwnedFd]) -> Process {
    let numbers: Vec<i32> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(program("ferriod-under-test"));
    command.arg("--config").arg(builder.write_config()).env("LISTEN_FDS", sockets.len().to_string());
    command.env_remove("NOTIFY_SOCKET");
    // SAFETY: fcntl and dup2 are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // Above what is passed first: the numbers may be in the way of each other.
            for (target, number) in (3..).zip(&numbers) {
                let copy = libc::fcntl(*number, libc::F_DUPFD, 100);
                if copy < 0 || libc::dup2(copy, 60 + target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(copy);
            }
            for target in (3..).take(numbers.len()) {
                if libc::dup2(60 + target, target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(60 + target);
            }
            Ok(())
        });
    }
    Process::start(&mut command)
}

fn serves(builder: &DaemonBuilder) {
    let mut client = Command::new(program("ferrio-test-client"));
    client.arg("--socket").arg(builder.path("run/control.sock")).args(["verify", "data"]);
    Process::start(&mut client).finish().expect(0);
}

fn listen(builder: &DaemonBuilder) -> [OwnedFd; 2] {
    std::fs::create_dir(builder.path("run")).unwrap();
    let control = UnixListener::bind(builder.path("run/control.sock")).unwrap();
    let attach = ferrio_shm::peer::listen(&builder.path("run/attach.sock"), 0o666).unwrap();
    [control.into(), attach]
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("the socket is there"))
}

#[test]
fn sockets_that_a_supervisor_holds_outlive_the_daemon() {
    let builder = DaemonBuilder::new().file("data", MIB);
    let sockets = listen(&builder);
    let paths = ["run/control.sock", "run/attach.sock"].map(|name| builder.path(name));
    let inodes = paths.each_ref().map(|path| inode(path));
    let passed = [&sockets[1], &sockets[0]];
    for signal in [Signal::TERM, Signal::KILL] {
        let daemon = start_with(&builder, &passed);
        serves(&builder);
        assert!(daemon.stderr().contains("systemd listens"), "{}", daemon.stderr());
        daemon.signal(signal);
        daemon.finish();
        assert_eq!(paths.each_ref().map(|path| inode(path)), inodes, "they are not the daemon's to remove");
    }
    // Who connects while there is no daemon waits for the next one.
    let mut early = UnixStream::connect(&paths[0]).expect("systemd listens");
    early.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let daemon = start_with(&builder, &passed);
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(early.read(&mut [0; 9]).expect("an HTTP/2 frame") > 0);
    serves(&builder);
    daemon.signal(Signal::TERM);
    daemon.finish().expect(0);
}

#[test]
fn one_socket_passed_is_as_good_as_two() {
    let builder = DaemonBuilder::new().file("data", MIB);
    let [control, attach] = listen(&builder);
    drop(attach);
    let daemon = start_with(&builder, &[&control]);
    serves(&builder);
    daemon.signal(Signal::TERM);
    daemon.finish().expect(0);
    assert!(builder.path("run/control.sock").exists() && !builder.path("run/attach.sock").exists());
}

#[test]
fn sockets_that_are_not_the_daemons_are_refused() {
    let builder = DaemonBuilder::new().file("data", MIB);
    let [control, attach] = listen(&builder);
    let elsewhere = builder.path("elsewhere.sock");
    let stranger: OwnedFd = UnixListener::bind(&elsewhere).unwrap().into();
    let refused = start_with(&builder, &[&control, &attach, &stranger]).finish().expect(1);
    for part in [elsewhere.to_str().unwrap(), "ListenSequentialPacket=", "run/control.sock"] {
        assert!(refused.stderr.contains(part), "{part:?} not in {}", refused.stderr);
    }
    let stream: OwnedFd = UnixStream::pair().unwrap().0.into();
    let refused = start_with(&builder, &[&stream]).finish().expect(1);
    assert!(refused.stderr.contains("does not listen"), "{}", refused.stderr);
}
