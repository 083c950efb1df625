//! Sessions: who may open one, how it is attached, how it ends.

use std::{os::unix::process::CommandExt, path::Path, process::Command, time::Duration};

use ferrio_api::v1;
use ferrio_client::{Access, Error};
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_tests::{
    Daemon, DaemonBuilder, Process,
    process::wait_until,
    raw::{self, attach, with_token},
    skip::{is_root, skip},
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const NOBODY: u32 = 65534;
/// Any uid that is neither root nor the overflow uid.
const OTHER: u32 = 12345;

fn sessions(daemon: &Daemon) -> Vec<serde_json::Value> {
    daemon.ctl_json(&["session", "list"])["sessions"].as_array().unwrap().clone()
}

fn as_user(command: &mut Command, uid: u32) -> &mut Command {
    command.uid(uid).gid(uid)
}

/// A program of this tree where another user may execute it.
fn reachable_by_others(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let path = daemon.path(name);
    if !path.exists() {
        ferrio_tests::process::copy_program(name, &path);
    }
    path
}

// ---- access

#[test]
fn a_writer_excludes_writers_and_the_refusal_names_it() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let mut holder = daemon.client(&["--name", "database", "hold", "data"]);
    holder.wait_for_line("holding");
    let refused =
        daemon.session("data", Access::ReadWrite).open().expect_err("there is a writer").to_string();
    for part in ["data", "database", &holder.pid().to_string()] {
        assert!(refused.contains(part), "{part:?} is missing in: {refused}");
    }
    daemon.session("data", Access::ReadWriteShared).open().expect_err("not beside an exclusive writer");
    daemon.session("data", Access::ReadOnly).open().expect("readers live beside all");
    holder.signal(Signal::KILL);
    wait_until("the volume to be free again", || daemon.session("data", Access::ReadWrite).open().is_ok());
}

#[test]
fn shared_writers_live_beside_each_other() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let _first = daemon.session("data", Access::ReadWriteShared).open().unwrap();
    let _second = daemon.session("data", Access::ReadWriteShared).open().unwrap();
    daemon.session("data", Access::ReadWrite).open().expect_err("an exclusive writer beside shared ones");
}

#[test]
fn a_read_only_volume_is_not_opened_for_writing() {
    let builder = DaemonBuilder::new();
    let path = builder.path("ro");
    std::fs::write(&path, vec![7; MIB as usize]).unwrap();
    let daemon = builder.volume("ro", &path, "read_only = true\nallow_any = true").start();
    let refused = daemon.session("ro", Access::ReadWrite).open().expect_err("read-only").to_string();
    assert!(refused.contains("ro") && refused.contains("read-only"), "{refused}");
    let session = daemon.session("ro", Access::ReadOnly).open().unwrap();
    let volume = session.volume("ro").unwrap();
    let buffer = session.alloc(4096).unwrap();
    let buffer = session.take_queue(0).unwrap().read(&volume, 0, buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 7));
}

#[test]
fn an_unknown_volume_is_named() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let refused = daemon.session("date", Access::ReadOnly).open().expect_err("no such volume").to_string();
    assert!(refused.contains("date"), "{refused}");
}

#[test]
fn the_allow_list_decides() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let builder = DaemonBuilder::new();
    let (mine, theirs) = (builder.path("mine"), builder.path("theirs"));
    let size = format!("size = {MIB}\n");
    let daemon = builder
        .volume("mine", &mine, &size)
        .volume("theirs", &theirs, &format!("{size}allow_users = [{OTHER}]"))
        .start();
    let client = reachable_by_others(&daemon, "ferrio-test-client");
    let verify = |volume: &str| {
        let mut command = Command::new(&client);
        command.arg("--socket").arg(daemon.control()).args(["verify", volume]);
        Process::start(as_user(&mut command, OTHER)).finish()
    };
    verify("theirs").expect(0);
    let refused = verify("mine").expect(1).stderr;
    assert!(
        refused.contains("mine") && refused.contains(&OTHER.to_string()),
        "names volume and user: {refused}"
    );
}

// ---- attach

fn open(control: &Path) -> v1::OpenSessionResponse {
    raw::open(control, &[("data", v1::Access::ReadWriteShared)], 8).unwrap()
}

#[test]
fn a_token_is_good_once() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let opened = open(&daemon.control());
    let path = Path::new(&opened.attach_socket);
    let (wrong, fds, _) = attach(path, &with_token(&[7; 32]));
    assert!(
        matches!(wrong, Some(LeaseMessage::Refused { .. })) && fds.is_empty(),
        "a wrong token: {wrong:?}"
    );
    let (right, fds, _lease) = attach(path, &with_token(&opened.attach_token));
    assert!(matches!(right, Some(LeaseMessage::Attached { .. })), "{right:?}");
    assert_eq!(fds.len(), 3, "memfd, doorbell, CQ doorbell");
    let (again, fds, _) = attach(path, &with_token(&opened.attach_token));
    assert!(matches!(again, Some(LeaseMessage::Refused { .. })) && fds.is_empty(), "a used token: {again:?}");
}

#[test]
fn a_token_expires() {
    let daemon = DaemonBuilder::new().config("[limits]\nattach_timeout_s = 1").file("data", MIB).start();
    let opened = open(&daemon.control());
    wait_until("the session to expire", || sessions(&daemon).is_empty());
    let (late, fds, _) = attach(Path::new(&opened.attach_socket), &with_token(&opened.attach_token));
    assert!(
        matches!(late, Some(LeaseMessage::Refused { .. })) && fds.is_empty(),
        "an expired token: {late:?}"
    );
}

#[test]
fn nonsense_on_the_attach_socket_is_refused() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    let path = daemon.path("run/attach.sock");
    for message in
        [vec![0; 16], vec![0xff; LEASE_MESSAGE_MAX], b"GET / HTTP/1.1".to_vec(), LeaseMessage::Close.encode()]
    {
        let (answer, fds, _) = attach(&path, &message);
        assert!(!matches!(answer, Some(LeaseMessage::Attached { .. })) && fds.is_empty(), "{answer:?}");
    }
    assert!(!daemon.process().has_ended());
    daemon.session("data", Access::ReadWrite).open().expect("it serves on");
}

#[test]
fn a_token_of_another_user_is_refused() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let opened = open(&daemon.control());
    let message = with_token(&opened.attach_token);
    let path = opened.attach_socket.clone();
    // A thread of its own: the raw system call changes the uid of the calling thread only.
    let answer = std::thread::spawn(move || {
        // SAFETY: plain system call; no memory is involved.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) }, 0);
        attach(Path::new(&path), &message)
    })
    .join()
    .unwrap();
    assert!(matches!(answer.0, Some(LeaseMessage::Refused { .. })) && answer.1.is_empty(), "{:?}", answer.0);
    let (mine, _, _lease) = attach(Path::new(&opened.attach_socket), &with_token(&opened.attach_token));
    assert!(matches!(mine, Some(LeaseMessage::Attached { .. })), "a stranger does not use it up: {mine:?}");
}

#[test]
fn the_overflow_user_is_refused() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let client = reachable_by_others(&daemon, "ferrio-test-client");
    let mut command = Command::new(&client);
    command.arg("--socket").arg(daemon.control()).args(["verify", "data"]);
    let refused = Process::start(as_user(&mut command, NOBODY)).finish().expect(1);
    assert!(refused.stderr.contains(&NOBODY.to_string()), "{}", refused.stderr);
}

// ---- end

#[test]
fn a_killed_client_leaves_nothing() {
    let mut daemon = DaemonBuilder::new().file("data", 8 * MIB).start();
    let pid = daemon.process().pid();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // The first sessions fill caches; what counts is that the number does not grow.
    let mut counts = Vec::new();
    for _ in 0..6 {
        let mut client = daemon.client(&["verify", "data", "--seconds", "60"]);
        client.wait_for_line("started");
        std::thread::sleep(Duration::from_millis(50));
        client.signal(Signal::KILL);
        drop(client);
        wait_until("the session to end", || sessions(&daemon).is_empty());
        wait_until("its connections to close", || counts.last().is_none_or(|last| descriptors() <= *last));
        counts.push(descriptors());
    }
    daemon.client(&["verify", "data"]).finish().expect(0);
}

#[test]
fn a_forked_child_gets_an_error_and_the_parent_goes_on() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let session = daemon.session("data", Access::ReadWrite).open().unwrap();
    let volume = session.volume("data").unwrap();
    let mut queue = session.take_queue(0).unwrap();
    let buffer = session.alloc(4096).unwrap();
    // SAFETY: the child calls only this library, which takes no lock that another thread of the test could hold, and _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forked = matches!(queue.nop(), Err(Error::Forked));
        drop(queue);
        drop(session);
        // SAFETY: ends the child without running the test harness's exit handlers.
        unsafe { libc::_exit(if forked { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made; status is a valid place.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child saw Error::Forked");
    queue.write(&volume, 0, buffer).expect("the parent's session lives");
    assert_eq!(sessions(&daemon).len(), 1);
}

#[test]
fn a_session_ends_with_its_process_though_a_child_holds_the_lease() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let mut parent = daemon.client(&["hold", "data"]);
    parent.wait_for_line("holding");
    // A descriptor of the lease in another process: pidfd_getfd stands for a child that inherited it.
    let inherited = inherit_sockets(parent.pid());
    if inherited.is_empty() {
        return skip("pidfd_getfd is not permitted here", true);
    }
    parent.signal(Signal::KILL);
    drop(parent);
    wait_until("the session to end with the process that opened it", || sessions(&daemon).is_empty());
    drop(inherited);
}

fn inherit_sockets(pid: u32) -> Vec<std::os::fd::OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Vec::new() };
    let is_socket = |path: &Path| {
        std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| is_socket(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok())
        .collect()
}
