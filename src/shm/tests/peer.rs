//! Credentials of a peer, and messages with descriptors.
#![cfg(not(any(loom, miri)))]

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ferrio_shm::peer::{
    PeerIdentity, accept, connect, connect_within, listen, peer_pidfd, recv_message, send_message,
    set_backlog,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::sockopt::{Timeout, socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn own_groups() -> Vec<u32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    line.split_whitespace().map(|gid| gid.parse().unwrap()).collect()
}

#[test]
fn the_identity_of_a_peer_is_the_kernels() {
    let (one, _other) = UnixStream::pair().unwrap();
    let peer = PeerIdentity::of(&one).unwrap();
    assert_eq!(peer.pid, std::process::id());
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    assert_eq!(peer.groups, own_groups());
    assert!(peer.in_group(peer.gid));
    assert!(peer.groups.iter().all(|&gid| peer.in_group(gid)));
    assert!(!PeerIdentity { groups: vec![5, 6], ..peer }.in_group(7_654_321));
}

#[test]
fn a_file_has_no_peer() {
    let file = tempfile::tempfile().unwrap();
    assert!(PeerIdentity::of(&file).is_err());
    assert!(peer_pidfd(&file).is_err());
}

#[test]
fn the_overflow_user_is_nobody_in_particular() {
    let peer = PeerIdentity { pid: 1, uid: 65534, gid: 65534, groups: vec![] };
    assert!(peer.is_overflow());
    assert!(PeerIdentity { uid: u32::MAX, ..peer.clone() }.is_overflow());
    assert!(!PeerIdentity { uid: 0, ..peer }.is_overflow());
}

/// Runs the named test of this file in a process of its own, with `value` in the environment.
fn in_own_process(test: &str, value: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1"]).env(OWN_PROCESS, value).stdout(Stdio::null());
    command
}

const OWN_PROCESS: &str = "FERRIO_SHM_TEST_OWN_PROCESS";

/// The parent holds the socket open, but the process that connected exits.
#[test]
fn a_pidfd_tells_that_the_peer_exited() {
    if let Some(path) = std::env::var_os(OWN_PROCESS) {
        let _connection = connect(Path::new(&path)).unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = listen(&path, 0o600).unwrap();
    let mut child = in_own_process("a_pidfd_tells_that_the_peer_exited", &path);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    let ready = |fd: &OwnedFd, tv_sec| {
        let limit = Timespec { tv_sec, tv_nsec: 0 };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
    };
    assert!(ready(&listener, 20));
    let socket = accept(&listener).unwrap();
    assert_eq!(PeerIdentity::of(&socket).unwrap().pid, child.id());
    let pidfd = peer_pidfd(&socket).unwrap();
    assert!(fcntl_getfd(&pidfd).unwrap().contains(FdFlags::CLOEXEC));
    assert!(!ready(&pidfd, 0));
    drop(child.stdin.take());
    assert!(ready(&pidfd, 20));
    assert!(child.wait().unwrap().success());
}

#[test]
fn messages_carry_descriptors() {
    let (one, other) = pair();
    let mut file = tempfile::tempfile().unwrap();
    send_message(&one, b"hello", &[file.as_fd(), other.as_fd()]).unwrap();
    let (mut bytes, mut fds) = ([0; 64], Vec::new());
    assert_eq!(recv_message(&other, &mut bytes, &mut fds, 2).unwrap(), 5);
    assert_eq!(&bytes[..5], b"hello");
    assert_eq!(fds.len(), 2);
    assert!(fcntl_getfd(&fds[0]).unwrap().contains(FdFlags::CLOEXEC));
    file.write_all(b"same file").unwrap();
    let mut received = File::from(fds.remove(0));
    received.rewind().unwrap();
    let mut text = String::new();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "same file");

    send_message(&one, b"no descriptors", &[]).unwrap();
    assert_eq!(recv_message(&other, &mut bytes, &mut fds, 0).unwrap(), 14);
    drop(one);
    assert_eq!(recv_message(&other, &mut bytes, &mut fds, 0).unwrap(), 0, "closed");
}

/// As many as an attach passes at most: memfd, 64 doorbells, 64 CQ doorbells.
#[test]
fn a_message_carries_all_of_a_sessions_descriptors() {
    let (one, other) = pair();
    let many = vec![one.as_fd(); 129];
    send_message(&one, b"x", &many).unwrap();
    let mut fds = Vec::new();
    assert_eq!(recv_message(&other, &mut [0; 8], &mut fds, 129).unwrap(), 1);
    assert_eq!(fds.len(), 129);
    let error = send_message(&one, b"x", &vec![one.as_fd(); 254]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// Wants a process to itself: it counts the descriptors of the process.
fn surplus_leaves_nothing_behind() {
    let (one, other) = pair();
    for (sent, wanted) in [(1, 0), (2, 0), (2, 1), (3, 1), (5, 2), (253, 4)] {
        let before = open_descriptors();
        send_message(&one, b"surplus", &vec![one.as_fd(); sent]).unwrap();
        let mut fds = Vec::new();
        let error = recv_message(&other, &mut [0; 64], &mut fds, wanted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(error.to_string(), format!("the message carries more than {wanted} descriptors"));
        drop(fds);
        assert_eq!(open_descriptors(), before, "{sent} sent, {wanted} wanted");
    }
    let before = open_descriptors();
    send_message(&one, &[0; 65], &[one.as_fd()]).unwrap();
    let mut fds = Vec::new();
    let error = recv_message(&other, &mut [0; 64], &mut fds, 1).unwrap_err();
    assert_eq!(error.to_string(), "the message is longer than 64 bytes");
    assert_eq!(fds.len(), 1, "for the caller to close");
    drop(fds);
    assert_eq!(open_descriptors(), before);
}

#[test]
fn surplus_descriptors_and_bytes_are_refused() {
    // Other tests of this file open and close descriptors meanwhile.
    if std::env::var_os(OWN_PROCESS).is_some() {
        return surplus_leaves_nothing_behind();
    }
    let mut alone = in_own_process("surplus_descriptors_and_bytes_are_refused", Path::new("alone"));
    assert!(alone.status().unwrap().success());
}

#[test]
fn a_listening_socket_has_the_mode_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("attach.sock");
    let listener = listen(&path, 0o660).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(accept(&listener).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(listen(&path, 0o660).unwrap_err().kind(), ErrorKind::AddrInUse);

    let client = connect(&path).unwrap();
    let server = accept(&listener).unwrap();
    assert_ne!(client.as_raw_fd(), server.as_raw_fd());
    let mut bytes = [0; 16];
    let empty = recv_message(&server, &mut bytes, &mut Vec::new(), 0).unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::WouldBlock, "an accepted connection is nonblocking");
    send_message(&client, b"to the daemon", &[]).unwrap();
    assert_eq!(recv_message(&server, &mut bytes, &mut Vec::new(), 0).unwrap(), 13);
    drop(client);
    // A child that another test is just starting has a copy of `client` until it executes.
    let gone = std::iter::repeat_with(|| send_message(&server, b"gone", &[])).find_map(Result::err).unwrap();
    assert!(matches!(gone.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{gone}");
}

/// Fills the backlog of a listener: the next connection waits for a place.
fn fill(listener: &OwnedFd, path: &Path) -> Vec<OwnedFd> {
    set_backlog(listener).unwrap();
    let connect = || connect_within(path, Duration::from_millis(50));
    let filled: Vec<_> = std::iter::from_fn(|| connect().ok()).take(1000).collect();
    assert!((50..100).contains(&filled.len()), "{} connections in the backlog", filled.len());
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
    filled
}

#[test]
fn who_finds_the_backlog_full_waits_in_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = listen(&path, 0o600).unwrap();
    let _filled = fill(&listener, &path);
    let waiting = |limit| {
        let path = path.clone();
        std::thread::spawn(move || connect_within(&path, limit))
    };
    let patient = waiting(Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!patient.is_finished());
    drop(accept(&listener).unwrap());
    let connected = patient.join().unwrap().unwrap();
    assert_eq!(socket_timeout(&connected, Timeout::Send).unwrap(), None, "for connecting alone");
    let patient = waiting(Duration::MAX);
    std::thread::sleep(Duration::from_millis(50));
    drop(listener);
    assert_eq!(patient.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("attach.sock");
    assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
    drop(listen(&path, 0o600).unwrap());
    assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
