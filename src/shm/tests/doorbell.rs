//! Doorbells between processes and between threads.
#![cfg(not(any(loom, miri)))]

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};

use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx, Drained, doorbell_to_client, doorbell_to_daemon};
use ferrio_shm::wake::Notifier;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

fn readable(fd: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
}

fn both() -> [(DoorbellTx, DoorbellRx); 2] {
    [doorbell_to_daemon().unwrap(), doorbell_to_client().unwrap()]
}

#[test]
fn a_ring_is_kept_until_it_is_drained() {
    for (tx, rx) in both() {
        assert!(!readable(&rx));
        assert_eq!(rx.drain().unwrap(), Drained::Empty);
        tx.ring().unwrap();
        tx.ring().unwrap();
        assert!(readable(&rx));
        assert_eq!(rx.drain().unwrap(), Drained::Rang);
        assert!(!readable(&rx));
        assert_eq!(rx.drain().unwrap(), Drained::Empty);
    }
}

#[test]
fn a_full_doorbell_was_rung() {
    for (tx, rx) in both() {
        for _ in 0..100_000 {
            tx.ring().unwrap();
        }
        assert_eq!(rx.drain().unwrap(), Drained::Rang);
        assert_eq!(rx.drain().unwrap(), Drained::Empty, "it holds no more than one drain takes");
    }
    let (tx, rx) = doorbell_to_daemon().unwrap();
    rustix::io::write(&tx, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    tx.ring().unwrap();
    assert_eq!(rx.drain().unwrap(), Drained::Rang);
}

#[test]
fn a_client_learns_that_the_daemon_is_gone_and_the_daemon_that_the_client_is() {
    let (tx, rx) = doorbell_to_client().unwrap();
    tx.ring().unwrap();
    drop(tx);
    assert_eq!(rx.drain().unwrap(), Drained::Rang, "what was rung before is still heard");
    assert_eq!(rx.drain().unwrap(), Drained::Closed);

    let (tx, rx) = doorbell_to_client().unwrap();
    drop(rx);
    assert_eq!(tx.ring().unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// An eventfd's flags are those of both sides, so the daemon must not depend on them.
#[test]
fn the_daemon_does_not_block_though_the_client_clears_the_flags() {
    let (tx, rx) = doorbell_to_client().unwrap();
    fcntl_setfl(&rx, OFlags::empty()).unwrap();
    for _ in 0..10_000 {
        tx.ring().unwrap();
    }

    let (tx, rx) = doorbell_to_daemon().unwrap();
    fcntl_setfl(&tx, OFlags::empty()).unwrap();
    assert!(!fcntl_getfl(&rx).unwrap().contains(OFlags::NONBLOCK), "the flag is shared");
    assert_eq!(rx.drain().unwrap(), Drained::Empty);
}

#[test]
fn a_client_cannot_send_to_the_daemon_over_the_doorbell_that_it_hears() {
    let (_tx, rx) = doorbell_to_client().unwrap();
    let sent = rustix::net::send(&rx, b"x", rustix::net::SendFlags::NOSIGNAL);
    assert_eq!(sent.unwrap_err(), rustix::io::Errno::PIPE);
}

#[test]
fn an_end_survives_being_passed_on() {
    let (tx, rx) = doorbell_to_daemon().unwrap();
    DoorbellTx::from_fd(OwnedFd::from(tx)).ring().unwrap();
    assert_eq!(rx.drain().unwrap(), Drained::Rang);

    let (tx, rx) = doorbell_to_client().unwrap();
    tx.ring().unwrap();
    assert_eq!(DoorbellRx::from_fd(OwnedFd::from(rx)).drain().unwrap(), Drained::Rang);
}

#[test]
fn a_notifier_is_readable_until_it_is_drained() {
    let notifier = Notifier::new().unwrap();
    assert!(!readable(&notifier));
    notifier.drain();
    let other = notifier.clone();
    other.notify();
    other.notify();
    assert!(readable(&notifier));
    notifier.drain();
    assert!(!readable(&notifier));
}
