//! Clients that misuse the sockets: the attach socket, the lease, the control socket. Their own connection or session ends;
//! a client beside them goes on, its data right; the daemon keeps nothing of them.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use ferrio_client::Access;
use ferrio_shm::{
    abi::Opcode,
    entry::Sqe,
    lease::{LEASE_MESSAGE_MAX, LeaseMessage},
    peer,
};
use ferrio_tests::{
    Beside, RawSession,
    beside::sessions,
    process::wait_until,
    raw::{self, with_token},
    skip::{is_root, skip},
};
use rustix::{
    net::{Shutdown, shutdown, sockopt},
    process::Signal,
};

/// Any uid that is neither root nor the overflow uid.
const OTHER: u32 = 12345;

fn nop() -> Sqe {
    Sqe { op: Opcode::Nop as u8, user_data: 1, ..Sqe::default() }
}

fn is_open(beside: &Beside, session: &RawSession) -> bool {
    sessions(&beside.daemon).iter().any(|listed| listed["session_id"] == session.id)
}

/// Messages that no client may send, each of which ends what it is sent on.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let close = LeaseMessage::Close.encode();
    let changed = |at: usize, value: u8| {
        let mut message = close.clone();
        message[at] = value;
        message
    };
    let attached =
        LeaseMessage::Attached { session_id: 1, epoch: 1, memory_bytes: 4096, doorbells: 1, queues: 1 };
    vec![
        ("wrong magic", changed(0, 0)),
        ("wrong version", changed(4, 9)),
        ("unknown kind", changed(6, 99)),
        ("a length without a payload", changed(8, 200)),
        ("reserved bytes", changed(12, 1)),
        ("half a header", close[..7].to_vec()),
        ("half a token", with_token(&[1; 32])[..30].to_vec()),
        ("more than the longest message", vec![0x66; LEASE_MESSAGE_MAX + 1]),
        ("a huge message", vec![0x66; 100_000]),
        ("a message of the daemon", attached.encode()),
    ]
}

#[test]
fn nonsense_on_the_attach_socket_is_refused() {
    let beside = Beside::start();
    let path = beside.daemon.path("run/attach.sock");
    for (what, message) in nonsense() {
        let (answer, fds, _socket) = raw::attach(&path, &message);
        assert!(matches!(answer, Some(LeaseMessage::Refused { .. })) && fds.is_empty(), "{what}: {answer:?}");
    }
    // Nothing at all.
    drop(peer::connect(&path).unwrap());
    shutdown(peer::connect(&path).unwrap(), Shutdown::Write).unwrap();
    beside.finish();
}

#[test]
fn nonsense_on_a_lease_ends_its_session() {
    let beside = Beside::start();
    for (what, message) in nonsense() {
        let mut session = beside.attacker(8);
        assert_eq!(session.result_of(&nop()), 0, "{what}");
        peer::send_message(&session.lease, &message, &[]).unwrap();
        wait_until(what, || !is_open(&beside, &session));
    }
    beside.finish();
}

#[test]
fn a_half_closed_lease() {
    let beside = Beside::start();
    let session = beside.attacker(8);
    shutdown(&session.lease, Shutdown::Write).unwrap();
    wait_until("the session to end", || !is_open(&beside, &session));

    let mut deaf = beside.attacker(8);
    shutdown(&deaf.lease, Shutdown::Read).unwrap();
    assert_eq!(deaf.result_of(&nop()), 0);
    let tail = deaf.memory.u32(deaf.queue.control_offset as usize).unwrap();
    tail.store(1000, std::sync::atomic::Ordering::Relaxed);
    deaf.doorbell.ring().unwrap();
    beside.fault_of(&deaf);
    drop((session, deaf));
    beside.finish();
}

#[test]
fn a_flood_on_a_lease_is_answered_as_far_as_it_is_read() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    let message = LeaseMessage::RegionAdd { index: 1, bytes: 4096 }.encode();
    let memfds: Vec<BorrowedFd<'_>> = vec![session.memfd.as_fd(); 60];
    for n in 0..5000 {
        let fds = if n % 4 == 0 { &memfds[..] } else { &[] };
        if peer::send_message(&session.lease, &message, fds).is_err() {
            break;
        }
    }
    assert_eq!(session.result_of(&nop()), 0, "the rings work beside it");
    drop(session);
    beside.finish();
}

#[test]
fn a_flooded_attach_socket_refuses_the_one_who_floods() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let beside = Beside::start();
    let path = beside.daemon.path("run/attach.sock");
    let control = beside.daemon.control();
    let flood = std::thread::spawn(move || {
        become_other();
        let silent: Vec<OwnedFd> = (0..200).filter_map(|_| peer::connect(&path).ok()).collect();
        let refused = silent.iter().find_map(|socket| {
            let mut answer = [0; LEASE_MESSAGE_MAX];
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let (length, _) = rustix::net::recv(socket, &mut answer[..], flags).ok()?;
            LeaseMessage::decode(&answer[..length]).ok()
        });
        let idle: Vec<_> =
            (0..200).filter_map(|_| std::os::unix::net::UnixStream::connect(&control).ok()).collect();
        (silent, idle, refused)
    });
    let (silent, idle, refused) = flood.join().unwrap();
    let Some(LeaseMessage::Refused { reason, .. }) = refused else { panic!("none was refused: {refused:?}") };
    for part in ["64", &OTHER.to_string(), "limits.connections_per_uid_max"] {
        assert!(reason.contains(part), "{part:?} is missing in: {reason}");
    }
    let mut session = beside.attacker(8);
    assert_eq!(session.result_of(&nop()), 0, "another user is served");
    drop((session, silent, idle));
    beside.finish();
}

/// Changes the user of this thread only.
fn become_other() {
    // SAFETY: plain system call; no memory is involved.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) }, 0);
}

#[test]
fn an_honest_client_gets_in_while_messages_pour_in() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let beside = Beside::start();
    let path = beside.daemon.path("run/attach.sock");
    let end = Instant::now() + Duration::from_secs(2);
    let pour = std::thread::spawn(move || {
        become_other();
        while Instant::now() < end {
            if let Ok(socket) = peer::connect(&path) {
                for (_, message) in nonsense() {
                    let _ = peer::send_message(&socket, &message, &[]);
                }
            }
        }
    });
    let mut opened = 0;
    while Instant::now() < end {
        beside.daemon.session("target", Access::ReadWrite).open().expect("served");
        opened += 1;
        wait_until("it to end", || sessions(&beside.daemon).len() == 1);
    }
    pour.join().unwrap();
    assert!(opened > 0);
    beside.finish();
}

/// Connects to a socket and closes the connection, as another user, on some threads until `end`; returns how often.
fn flood(threads: usize, end: Instant, connect: impl Fn() -> std::io::Result<OwnedFd> + Sync) -> u64 {
    std::thread::scope(|scope| {
        let flood = || {
            become_other();
            let mut connected = 0;
            while Instant::now() < end {
                connected += u64::from(connect().is_ok());
            }
            connected
        };
        let floods: Vec<_> = (0..threads).map(|_| scope.spawn(flood)).collect();
        floods.into_iter().map(|flood| flood.join().unwrap()).sum()
    })
}

/// Neither socket takes connections as fast as a client can make them; another user is served all the while, and the end
/// of the flood is the end of it.
#[test]
fn floods_of_connections_are_taken_at_a_pace() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let beside = Beside::start();
    let (control, attach) = (beside.daemon.control(), beside.daemon.path("run/attach.sock"));
    let to_control = || std::os::unix::net::UnixStream::connect(&control).map(OwnedFd::from);
    let to_attach = || peer::connect(&attach);
    let refused = || beside.daemon.ctl_json(&["stats"])["connections_refused"].as_u64().expect("a number");
    let sockets: [(&str, &(dyn Fn() -> std::io::Result<OwnedFd> + Sync)); 2] =
        [("attach", &to_attach), ("control", &to_control)];
    for (socket, connect) in sockets {
        for threads in [1, 8] {
            let (begin, before) = (Instant::now(), refused());
            let end = begin + Duration::from_secs(2);
            let (connected, opened) = std::thread::scope(|scope| {
                let flood = scope.spawn(|| flood(threads, end, connect));
                let mut opened = 0;
                while Instant::now() < end {
                    drop(beside.daemon.session("target", Access::ReadWriteShared).open().expect("served"));
                    opened += 1;
                }
                (flood.join().unwrap(), opened)
            });
            assert!(opened > 0, "{socket}: another user was not served");
            // Twice what is refused, what is served, the bursts, and the backlog.
            let allowed = 2.0 * (250.0 + 256.0) * begin.elapsed().as_secs_f64() + 128.0 + 512.0 + 64.0;
            assert!((connected as f64) < allowed, "{socket}: {connected} connections, {allowed} allowed");
            assert!(refused() - before > 100, "{socket}: {before} refused before and {} after", refused());
        }
    }
    beside.finish();
}

// ---- descriptors nobody asked for

/// A TCP connection with unsent data that lingers for a minute: whoever closes the last descriptor of it waits so long. Stands
/// for all descriptors whose close blocks: FUSE files do it for ever.
struct Linger {
    _listener: TcpListener,
    _peer: TcpStream,
}

fn lingering() -> (TcpStream, Linger) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65536]).is_ok() {}
    sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).unwrap();
    (stream, Linger { _listener: listener, _peer: peer })
}

/// The daemon answers although each of `messages` was sent over `socket`, with as many copies of a descriptor as it says, of
/// which the daemon has the last.
#[track_caller]
fn survives(beside: &mut Beside, what: &str, socket: impl AsFd, messages: &[(&[u8], usize)]) {
    let (stream, linger) = lingering();
    // It finds them when the test has closed its own.
    beside.daemon.process().signal(Signal::STOP);
    for (bytes, copies) in messages {
        peer::send_message(&socket, bytes, &vec![stream.as_fd(); *copies]).unwrap();
    }
    drop((stream, socket));
    beside.daemon.process().signal(Signal::CONT);
    let start = Instant::now();
    for _ in 0..4 {
        sessions(&beside.daemon);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{what}: the control thread hung {:?}",
        start.elapsed()
    );
    drop(linger);
}

#[test]
fn descriptors_whose_close_blocks_do_not_stop_the_daemon() {
    let mut beside = Beside::start();
    let path = beside.daemon.path("run/attach.sock");
    let control = beside.daemon.control();
    let close = LeaseMessage::Close.encode();
    let region = LeaseMessage::RegionAdd { index: 1, bytes: 4096 }.encode();
    let attach = || peer::connect(&path).unwrap();

    survives(&mut beside, "with the first message", attach(), &[(&close, 1)]);
    let mut behind = vec![(&close[..], 0); 50];
    behind.push((&close, 1));
    survives(&mut beside, "behind the first message", attach(), &behind);
    survives(&mut beside, "more than are taken", attach(), &[(&close, 200)]);
    survives(&mut beside, "with a message that is too long", attach(), &[(&[0; 2000], 1)]);
    let session = beside.attacker(8);
    survives(&mut beside, "with a region", session.lease, &[(&region, 1), (&region, 1)]);
    let session = beside.attacker(8);
    survives(&mut beside, "behind the end of the lease", session.lease, &[(&close, 0), (&close, 1)]);
    let hello: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let stream = std::os::unix::net::UnixStream::connect(&control).unwrap();
    survives(&mut beside, "on the control socket", stream, &[(hello, 1)]);
    let stream = std::os::unix::net::UnixStream::connect(&control).unwrap();
    survives(&mut beside, "behind nonsense on the control socket", stream, &[(&[0; 100], 0), (b"x", 1)]);
    beside.finish();
}
