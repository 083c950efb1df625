//! Opening a session: what is granted, what is refused and with which words.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use ferrio_client::{Access, Error, QueueOptions, Refusal, Session};

use crate::peer::{Daemon, VOLUME_BYTES};

#[test]
fn volume_queues_and_arena_are_there() {
    let daemon = Daemon::start();
    let two =
        daemon.builder().queue(QueueOptions::default()).queue(QueueOptions::default()).arena_bytes(10_000);
    let (session, served) = daemon.open(two);
    assert_eq!(served.queues.len(), 2);
    let volume = session.volume("data").unwrap();
    assert_eq!((volume.size_bytes(), volume.block_bytes()), (VOLUME_BYTES as u64, 512));
    assert_eq!(volume.access(), Access::ReadWrite);
    assert_eq!(session.take_queue(1).unwrap().index(), 1);
    let error = session.take_queue(1).unwrap_err();
    assert!(matches!(error, Error::QueueTaken { index: 1 }), "{error}");
    let error = session.take_queue(2).unwrap_err();
    assert_eq!(error.to_string(), "the session has no queue 2; it was opened with 2, counted from 0");
    let error = session.volume("logs").unwrap_err();
    assert_eq!(error.to_string(), r#"the session has no volume "logs"; it was opened with: data"#);
    // 10,000 bytes are three pages.
    assert_eq!(session.alloc(3 * 4096).unwrap().len(), 3 * 4096);
    assert!(matches!(session.alloc(4 * 4096), Err(Error::Alloc(_))));
}

#[test]
fn inside_of_a_runtime() {
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        daemon.builder().open().unwrap();
        daemon.builder().open_async().await.unwrap();
    });
}

#[test]
fn refusals_keep_the_daemons_words() {
    let daemon = Daemon::start();
    let error = Session::builder(daemon.control()).volume("logs", Access::ReadOnly).open().unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::NotFound, .. }), "{error}");
    assert_eq!(error.to_string(), r#"ferriod refused the session: no volume "logs"; there is: data"#);
    let error = daemon.builder().queue(QueueOptions { entries: 3, ..Default::default() }).open().unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::Invalid, .. }), "{error}");
    let error = daemon.builder().name("expired").open().unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::Attach, .. }), "{error}");
    assert!(error.to_string().contains("unknown, used or expired"), "{error}");
    let error = daemon.builder().name("abi 9").open().unwrap_err();
    assert!(error.to_string().contains("ABI version 9, this client needs 1"), "{error}");
}

#[test]
fn no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let builder = Session::builder(&path).volume("data", Access::ReadOnly).patience(Duration::ZERO);
    let error = builder.open().unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("start it"), "{text}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let builder = Session::builder(&path).volume("data", Access::ReadOnly).patience(Duration::ZERO);
    let error = builder.open().unwrap_err();
    assert!(error.to_string().contains("left over from a ferriod that ended"), "{error}");
}

#[test]
fn silent_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let builder = Session::builder(&path).volume("data", Access::ReadOnly).timeout(Duration::from_millis(50));
    let error = builder.open().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn attach_socket_beside_the_control_socket() {
    let daemon = Daemon::start();
    let (session, _served) = daemon.open(daemon.builder().name("container"));
    assert!(session.id() > 0);
    let elsewhere = daemon.path().join("none.sock");
    let error = daemon.builder().attach_socket(&elsewhere).open().unwrap_err();
    assert!(error.to_string().contains("none.sock"), "{error}");
}

#[test]
fn a_daemon_that_restarts_is_waited_for() {
    let daemon = Daemon::start();
    daemon.unavailable.store(3, Ordering::Relaxed);
    let patient = || daemon.builder().patience(Duration::from_secs(20));
    patient().open().unwrap();
    assert_eq!(daemon.unavailable.load(Ordering::Relaxed), 0);
    daemon.unavailable.store(1, Ordering::Relaxed);
    let error = daemon.builder().open().unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::Unavailable, .. }), "{error}");

    // A socket that nobody listens at yet, of a session in a runtime.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let builder = Session::builder(&path).volume("data", Access::ReadOnly).patience(Duration::from_secs(20));
    let opening = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(builder.open_async()).map(|session| session.volumes().len())
    });
    thread::sleep(Duration::from_millis(50));
    assert!(!opening.is_finished());
    std::fs::remove_file(&path).unwrap();
    let daemon = Daemon::start_in(directory);
    drop(daemon.next_served());
    assert_eq!(opening.join().unwrap().unwrap(), 1);
}
