//! Sessions that outlive their daemon, as the daemon sees them: who may come back, for how long, and what is left of who does not.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use ferrio_api::v1::{self, Access};
use ferrio_shm::{
    abi::{Opcode, cqe_flags, errno, features},
    entry::Sqe,
    lease::{LeaseEvent, LeaseMessage},
    mapping::create_memfd,
    peer,
};
use ferrio_tests::{
    Daemon, DaemonBuilder, RawSession,
    beside::sessions,
    process::wait_until,
    raw::{self, add_region, heard, open_request, remove_region, request},
    skip::{is_root, skip},
};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    process::Signal,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;
/// Any uid that is neither root nor the overflow uid.
const OTHER: u32 = 1234;
const ALL: u64 = features::RESUME | features::CLIENT_REGIONS | features::COMPARE_AND_WRITE;

/// One engine, which can be given faults, with a file.
fn daemon() -> DaemonBuilder {
    DaemonBuilder::new().engine("main", "auto", "faults = true").file("data", MIB)
}

#[track_caller]
fn open(daemon: &Daemon, access: Access) -> RawSession {
    let asked = v1::OpenSessionRequest { features: ALL, ..request(&[("data", access)], 32) };
    let opened = open_request(&daemon.control(), asked).expect("a session");
    assert_eq!(opened.features, ALL);
    RawSession::attach(&opened)
}

/// Of every other block, so that no two are merged.
fn write(user_data: u64, block: u64) -> Sqe {
    let (op, offset) = (Opcode::Write as u8, 2 * block * BLOCK);
    Sqe { op, user_data, offset, length: BLOCK, ..Sqe::default() }
}

fn read(user_data: u64, block: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, ..write(user_data, block) }
}

fn stats(daemon: &Daemon) -> Value {
    daemon.ctl_json(&["stats"])
}

/// What a resume was refused with.
#[track_caller]
fn refusal((answer, fds, _socket): (Option<LeaseMessage>, Vec<OwnedFd>, OwnedFd)) -> (i32, String) {
    assert!(fds.is_empty(), "a refusal brings no descriptors");
    match answer {
        Some(LeaseMessage::Refused { errno, reason }) => (errno, reason),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_ended(lease: &OwnedFd) {
    while let Some(message) = heard(lease, Duration::from_secs(10)) {
        assert!(matches!(message, LeaseMessage::Event(LeaseEvent::Drain { .. })), "{message:?}");
    }
}

fn saved(daemon: &Daemon) -> Vec<String> {
    let names =
        std::fs::read_dir(daemon.path("run/journal/sessions")).expect("the directory of the sessions");
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

// ---- going on

#[test]
fn a_session_waits_after_a_kill_and_goes_on() {
    for backend in ["io_uring", "aio"] {
        let mut daemon = DaemonBuilder::new().engine("main", backend, "").file("data", MIB).start();
        let mut session = open(&daemon, Access::ReadWrite);
        assert_eq!(session.result_of(&write(1, 0)), WHOLE);
        assert_eq!(saved(&daemon), [session.id.to_string()]);
        daemon.end(Signal::KILL);
        assert_ended(&session.lease);
        // While nobody is there: these are for the next daemon.
        for n in 0..5 {
            session.sq.push(&write(10 + n, n)).expect("room");
        }
        let _nobody_to_ring = session.sq.publish();
        daemon.restart();

        let waiting = &sessions(&daemon)[0];
        assert_eq!((&waiting["state"], &waiting["session_id"]), (&"waiting".into(), &session.id.into()));
        let left = waiting["time_left_ms"].as_u64().expect("a number");
        assert!((1..=30_000).contains(&left), "{waiting}");
        assert_eq!(waiting["volumes"][0]["name"], "data");
        let busy = raw::open(&daemon.control(), &[("data", Access::ReadWrite)], 8).expect_err("it is held");
        assert!(busy.message().contains(&format!("session {}", session.id)), "{busy:?}");

        let epoch = session.resume(&[]);
        assert_eq!(daemon.ctl_json(&["info"])["epoch"], epoch);
        let mut answered: Vec<u64> =
            (0..5).map(|_| session.wait(Duration::from_secs(10)).expect("an answer").user_data).collect();
        answered.sort_unstable();
        assert_eq!(answered, [10, 11, 12, 13, 14]);
        assert_eq!(session.result_of(&read(2, 0)), WHOLE);
        assert_eq!(sessions(&daemon)[0]["state"], "active");
        let counts = stats(&daemon);
        assert_eq!((&counts["sessions_resumed"], &counts["sessions_dropped"]), (&1.into(), &0.into()));

        peer::send_message(&session.lease, &LeaseMessage::Close.encode(), &[]).expect("sent");
        wait_until("the session to go", || sessions(&daemon).is_empty());
        assert!(saved(&daemon).is_empty(), "{:?}", saved(&daemon));
        raw::open(&daemon.control(), &[("data", Access::ReadWrite)], 8).expect("the volume is free");
    }
}

#[test]
fn what_was_in_flight_is_answered_exactly_once() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    assert_eq!(session.result_of(&write(1, 0)), WHOLE);
    daemon.ctl(&["fault", "set", "data", "--effect", "stuck"]).expect(0);
    let caw = Sqe { op: Opcode::CompareAndWrite as u8, length: 512, ..write(100, 64) };
    session.submit(&caw);
    (0..6).for_each(|n| session.submit(&write(10 + n, n)));
    wait_until("all to be stuck", || daemon.ctl_json(&["fault", "show", "data"])["held"] == 7);
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(sessions(&daemon)[0]["owed"], 7);
    session.resume(&[]);
    let mut answers: Vec<_> = (0..7)
        .map(|_| session.wait(Duration::from_secs(10)).expect("an answer"))
        .map(|cqe| (cqe.user_data, cqe.result, cqe.flags & cqe_flags::REPLAYED != 0))
        .collect();
    answers.sort_unstable();
    let mut wanted: Vec<_> = (10..16).map(|user_data| (user_data, WHOLE, true)).collect();
    wanted.push((100, -errno::EOWNERDEAD, false));
    assert_eq!(answers, wanted);
    assert_eq!(session.wait(Duration::from_millis(200)).map(|cqe| cqe.user_data), None, "no answer twice");
    let engine = &stats(&daemon)["engines"][0];
    assert_eq!((&engine["replayed"], &engine["owner_dead"]), (&6.into(), &1.into()));
    assert_eq!(session.result_of(&read(2, 0)), WHOLE);
}

#[test]
fn it_goes_on_as_often_as_the_daemon_dies() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    for round in 0..5 {
        assert_eq!(session.result_of(&write(round, round)), WHOLE);
        daemon.end(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
        daemon.restart();
        session.resume(&[]);
    }
    assert_eq!(session.result_of(&read(9, 3)), WHOLE);
    // Of what was not resumed in between, too.
    daemon.end(Signal::KILL);
    daemon.restart();
    daemon.end(Signal::TERM);
    daemon.restart();
    session.resume(&[]);
    assert_eq!(session.result_of(&read(9, 3)), WHOLE);
}

#[test]
fn a_daemon_that_stops_answers_what_it_took_and_leaves_the_session() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWriteShared);
    let plain = raw::open(&daemon.control(), &[("data", Access::ReadWriteShared)], 8).expect("a session");
    let plain = RawSession::attach(&plain);
    let delay = [
        "fault",
        "set",
        "data",
        "--effect",
        "delay",
        "--delay-min-us",
        "1000000",
        "--delay-max-us",
        "1000000",
    ];
    daemon.ctl(&delay).expect(0);
    (0..4).for_each(|n| session.submit(&write(n, n)));
    wait_until("all to be delayed", || daemon.ctl_json(&["fault", "show", "data"])["held"] == 4);
    daemon.end(Signal::TERM).expect(0);
    for lease in [&session.lease, &plain.lease] {
        let told = heard(lease, Duration::from_secs(1));
        assert!(matches!(told, Some(LeaseMessage::Event(LeaseEvent::Drain { .. }))), "{told:?}");
        assert_eq!(heard(lease, Duration::from_secs(1)), None, "then it closes");
    }
    for _ in 0..4 {
        assert_eq!(session.wait(Duration::ZERO).expect("answered before it stopped").result, WHOLE);
    }
    session.sq.push(&write(9, 9)).expect("room");
    let _nobody_to_ring = session.sq.publish();
    daemon.restart();
    assert_eq!(sessions(&daemon).len(), 1, "the other ended");
    assert_eq!(sessions(&daemon)[0]["owed"], 0);
    session.resume(&[]);
    assert_eq!(session.wait(Duration::from_secs(10)).expect("taken by the next").user_data, 9);
}

#[test]
fn every_engine_of_a_session_goes_on() {
    let mut daemon = DaemonBuilder::new()
        .engine("one", "io_uring", "")
        .engine("two", "aio", "")
        .file("first", MIB)
        .config(&format!(
            "[[volume]]\nname = \"second\"\nkind = \"memory\"\nsize = {MIB}\nallow_any = true\nengine = \"two\""
        ))
        .start();
    let volumes = [("first", Access::ReadWrite), ("second", Access::ReadWrite)];
    let mut asked = v1::OpenSessionRequest { features: ALL, ..request(&volumes, 8) };
    let queue = |engine: &str| v1::QueueRequest { sq_entries: 8, cq_entries: 8, engine: engine.into() };
    asked.queues = vec![queue("one"), queue("two"), queue("one")];
    let opened = open_request(&daemon.control(), asked).expect("a session");
    let token = raw::with_token(&opened.attach_token);
    let path = std::path::Path::new(&opened.attach_socket);
    let (_, fds, lease) = raw::attach(path, &token);
    assert_eq!(fds.len(), 1 + 2 + 3);
    daemon.end(Signal::KILL);
    assert_ended(&lease);
    daemon.restart();
    let secret = opened.resume_secret.as_slice().try_into().expect("32 bytes");
    let (answer, new, _lease) = raw::resume(path, opened.session_id, secret, &[fds[0].as_fd()]);
    assert!(matches!(answer, Some(LeaseMessage::Attached { doorbells: 2, queues: 3, .. })), "{answer:?}");
    assert_eq!(new.len(), 2 + 3);
    let queues = daemon.ctl_json(&["queue", "list"]);
    assert_eq!(queues["queues"].as_array().map(Vec::len), Some(3), "{queues}");
}

// ---- regions

#[test]
fn regions_that_are_offered_stay_and_others_go() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    let memfds: Vec<OwnedFd> = (0..3).map(|_| create_memfd("test-region", MIB).expect("a memfd")).collect();
    for (index, memfd) in (1..).zip(&memfds) {
        assert_eq!(add_region(&session.lease, 3 * index, MIB, &[memfd.as_fd()]), 0);
    }
    let at = |region| Sqe { region, ..write(u64::from(region), 1) };
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(
        (&sessions(&daemon)[0]["regions"], &sessions(&daemon)[0]["region_bytes"]),
        (&3.into(), &(3 * MIB).into())
    );

    let offer = |regions: &[&OwnedFd]| {
        let fds: Vec<BorrowedFd<'_>> =
            [&session.memfd].into_iter().chain(regions.iter().copied()).map(AsFd::as_fd).collect();
        refusal(session.offer(session.secret, &fds))
    };
    let stranger = create_memfd("test-region", MIB).expect("a memfd");
    for wrong in [&[&stranger][..], &[&memfds[1], &memfds[0]], &[&memfds[0], &memfds[0]]] {
        let (errno, reason) = offer(wrong);
        assert_eq!(errno, errno::EINVAL, "{reason}");
        assert!(reason.contains("3, 6, 9"), "{reason}");
    }
    session.resume(&[memfds[0].as_fd(), memfds[2].as_fd()]);
    assert_eq!(session.result_of(&at(3)), WHOLE);
    assert_eq!(session.result_of(&at(9)), WHOLE);
    assert_eq!(session.result_of(&at(6)), -errno::ENXIO);
    assert_eq!(sessions(&daemon)[0]["regions"], 2);
    assert_eq!(add_region(&session.lease, 6, MIB, &[memfds[1].as_fd()]), 0, "its index is free");
    assert_eq!(remove_region(&session.lease, 3), 0);

    daemon.end(Signal::KILL);
    daemon.restart();
    session.resume(&[memfds[1].as_fd(), memfds[2].as_fd()]);
    assert_eq!(session.result_of(&at(3)), -errno::ENXIO);
    assert_eq!(session.result_of(&at(6)), WHOLE);
    assert_eq!(session.result_of(&at(9)), WHOLE);
}

// ---- who may not

#[test]
fn who_cannot_prove_itself_is_refused_and_the_owner_is_not() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    let (memory, secret) = (session.memfd.as_fd(), session.secret);
    let alive = session.offer(secret, &[memory]);
    assert_eq!(refusal(alive).0, errno::ESTALE, "it is not a waiting session, it is attached");
    daemon.end(Signal::KILL);
    daemon.restart();

    let mut wrong = secret;
    wrong[31] ^= 1;
    let (errno, reason) = refusal(session.offer(wrong, &[memory]));
    assert_eq!(errno, errno::EACCES, "{reason}");
    let (errno, reason) = refusal(session.offer(secret, &[]));
    assert!(errno == errno::EINVAL && reason.contains("without descriptors"), "{reason}");
    let bytes = session.memory.len() as u64;
    let other = create_memfd("test", bytes).expect("a memfd");
    let (errno, reason) = refusal(session.offer(secret, &[other.as_fd()]));
    assert!(errno == errno::EINVAL && reason.contains("other memory"), "{reason}");
    let unsealed = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&unsealed, bytes).expect("room");
    let (errno, reason) = refusal(session.offer(secret, &[unsealed.as_fd()]));
    assert!(errno == errno::EINVAL && reason.contains("F_SEAL_SHRINK"), "{reason}");
    let file = tempfile::tempfile().expect("a file");
    let (errno, reason) = refusal(session.offer(secret, &[file.as_fd()]));
    assert!(errno == errno::EINVAL && reason.contains("memfd"), "{reason}");
    let (errno, _) = refusal(session.offer(secret, &[memory, other.as_fd()]));
    assert_eq!(errno, errno::EINVAL, "a region that it never had");
    let attach_socket = daemon.path("run/attach.sock");
    let (errno, _) = refusal(raw::resume(&attach_socket, session.id + 1, secret, &[memory]));
    assert_eq!(errno, errno::ESTALE);

    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/proc/{}/fd/{}", std::process::id(), session.memfd.as_raw_fd());
    let told = daemon.client(&["usurp", &session.id.to_string(), &digits, &path]).finish().expect(0).stdout;
    assert!(told.contains(&format!("errno: {}", errno::EACCES)) && told.contains("pid"), "{told}");

    assert_eq!(sessions(&daemon)[0]["state"], "waiting", "none of this has ended it");
    session.resume(&[]);
    assert_eq!(session.result_of(&write(1, 1)), WHOLE);
    assert_eq!(stats(&daemon)["sessions_refused"], 8);
}

#[test]
fn another_user_is_refused() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    daemon.end(Signal::KILL);
    daemon.restart();
    // A thread of its own: the raw system call changes the uid of the calling thread only.
    let (errno, reason) = std::thread::scope(|scope| {
        let usurper = scope.spawn(|| {
            // SAFETY: three plain numbers; no memory is touched.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) }, 0);
            refusal(session.offer(session.secret, &[session.memfd.as_fd()]))
        });
        usurper.join().expect("it was answered")
    });
    assert!(errno == errno::EACCES && reason.contains(&format!("uid {OTHER}")), "{reason}");
    session.resume(&[]);
}

#[test]
fn it_is_resumed_once() {
    let mut daemon = daemon().start();
    let mut session = open(&daemon, Access::ReadWrite);
    daemon.end(Signal::KILL);
    daemon.restart();
    session.resume(&[]);
    let (errno, reason) = refusal(session.offer(session.secret, &[session.memfd.as_fd()]));
    assert_eq!(errno, errno::ESTALE, "{reason}");
    assert_eq!(session.result_of(&write(1, 1)), WHOLE, "and is served still");
}

// ---- who does not come

#[test]
fn who_does_not_come_back_in_time_is_dropped() {
    let mut daemon = DaemonBuilder::new()
        .config("resume_timeout_s = 1")
        .engine("main", "auto", "faults = true")
        .file("data", MIB)
        .start();
    let mut session = open(&daemon, Access::ReadWrite);
    daemon.ctl(&["fault", "set", "data", "--effect", "stuck"]).expect(0);
    (0..3).for_each(|n| session.submit(&write(n, n)));
    wait_until("all to be stuck", || daemon.ctl_json(&["fault", "show", "data"])["held"] == 3);
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(sessions(&daemon)[0]["owed"], 3);
    wait_until("it to be dropped", || sessions(&daemon).is_empty());
    let counts = stats(&daemon);
    assert_eq!((&counts["sessions_dropped"], &counts["requests_dropped"]), (&1.into(), &3.into()));
    assert!(
        daemon.log().contains("did not come back within daemon.resume_timeout_s = 1"),
        "{}",
        daemon.log()
    );
    assert!(saved(&daemon).is_empty());
    let (errno, reason) = refusal(session.offer(session.secret, &[session.memfd.as_fd()]));
    assert!(errno == errno::ESTALE && reason.contains("resume_timeout_s"), "{reason}");
    let next = open(&daemon, Access::ReadWrite);
    assert!(next.id > session.id, "no id is used again");
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(sessions(&daemon).len(), 1, "what was dropped does not come back with the next daemon");
}

#[test]
fn a_client_that_is_gone_is_not_waited_for() {
    let mut daemon = daemon().start();
    let mut client = daemon.client(&["leave", "data"]);
    client.wait_for_line("holding");
    daemon.end(Signal::KILL);
    client.signal(Signal::KILL);
    client.finish();
    daemon.restart();
    assert!(sessions(&daemon).is_empty());
    assert_eq!(stats(&daemon)["sessions_dropped"], 1);
    assert!(daemon.log().contains("has exited"), "{}", daemon.log());

    // Nor longer than it lives.
    let mut client = daemon.client(&["leave", "data"]);
    client.wait_for_line("holding");
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(sessions(&daemon)[0]["state"], "waiting");
    client.signal(Signal::KILL);
    client.finish();
    wait_until("it to be dropped", || sessions(&daemon).is_empty());
    assert!(daemon.log().contains("exited"), "{}", daemon.log());
    open(&daemon, Access::ReadWrite);
}

#[test]
fn who_never_got_its_memory_does_not_stand_in_its_own_way() {
    let mut daemon = daemon().start();
    let asked = v1::OpenSessionRequest { features: ALL, ..request(&[("data", Access::ReadWrite)], 8) };
    let opened = open_request(&daemon.control(), asked).expect("a session");
    let (path, token) = (std::path::Path::new(&opened.attach_socket), raw::with_token(&opened.attach_token));
    drop(raw::attach(path, &token));
    wait_until("the first to end", || sessions(&daemon).is_empty());
    let session = open(&daemon, Access::ReadWrite);
    daemon.end(Signal::KILL);
    daemon.restart();
    assert_eq!(refusal(raw::attach(path, &token)).0, errno::ENOENT);
    assert_eq!(sessions(&daemon).len(), 1, "the token of another session ends none");
    assert_eq!(refusal(raw::attach(path, &raw::with_token(&session.token))).0, errno::ENOENT);
    assert!(sessions(&daemon).is_empty());
    open(&daemon, Access::ReadWrite);
}

#[test]
fn an_operator_can_end_what_waits() {
    let mut daemon = daemon().start();
    let session = open(&daemon, Access::ReadWrite);
    daemon.end(Signal::KILL);
    daemon.restart();
    assert!(
        daemon.ctl(&["session", "list"]).expect(0).stdout.contains("waiting for its client to come back")
    );
    daemon.ctl(&["session", "evict", &session.id.to_string(), "--reason", "maintenance"]).expect(0);
    assert!(sessions(&daemon).is_empty());
    let (errno, reason) = refusal(session.offer(session.secret, &[session.memfd.as_fd()]));
    assert!(errno == errno::ESTALE && reason.contains("maintenance"), "{reason}");
}

#[test]
fn a_session_without_the_feature_ends_with_its_daemon() {
    let mut daemon = daemon().start();
    let session = RawSession::open(&daemon.control(), &[("data", Access::ReadWrite)], 8);
    assert!(saved(&daemon).is_empty());
    daemon.end(Signal::KILL);
    daemon.restart();
    assert!(sessions(&daemon).is_empty());
    assert_eq!(refusal(session.offer(session.secret, &[session.memfd.as_fd()])).0, errno::ESTALE);
    open(&daemon, Access::ReadWrite);
}

// ---- files that are damaged, journals and configurations that changed

#[test]
fn a_damaged_file_costs_its_session_and_no_other() {
    let mut daemon = daemon().start();
    let mut whole = open(&daemon, Access::ReadWriteShared);
    let damaged = open(&daemon, Access::ReadWriteShared);
    daemon.end(Signal::KILL);
    let path = daemon.path("run/journal/sessions").join(damaged.id.to_string());
    let mut bytes = std::fs::read(&path).expect("saved");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, bytes).expect("written");
    daemon.restart();
    assert_eq!(sessions(&daemon).len(), 1);
    assert_eq!(saved(&daemon), [whole.id.to_string(), format!("{}.damaged", damaged.id)]);
    assert!(daemon.log().contains("checksum"), "{}", daemon.log());
    assert_eq!(stats(&daemon)["sessions_dropped"], 1);
    let (errno, reason) = refusal(damaged.offer(damaged.secret, &[damaged.memfd.as_fd()]));
    assert!(errno == errno::ESTALE && reason.contains("checksum"), "{reason}");
    whole.resume(&[]);
    assert_eq!(whole.result_of(&write(1, 1)), WHOLE);
}

#[test]
fn a_session_whose_journal_is_gone_is_dropped() {
    let mut daemon = daemon().start();
    let session = open(&daemon, Access::ReadWrite);
    daemon.end(Signal::KILL);
    std::fs::remove_file(daemon.path("run/journal/main")).expect("it was there");
    daemon.restart();
    assert!(sessions(&daemon).is_empty() && saved(&daemon).is_empty());
    let (errno, reason) = refusal(session.offer(session.secret, &[session.memfd.as_fd()]));
    assert!(errno == errno::ESTALE && reason.contains("journal"), "{reason}");
}

#[test]
fn a_volume_that_is_not_there_any_more_answers_enodev() {
    let mut daemon = daemon().start();
    let create = ["volume", "create", "gone", "--kind", "memory", "--size", "1MiB"];
    daemon.ctl(&create).expect(0);
    let volumes = [("data", Access::ReadWrite), ("gone", Access::ReadWrite)];
    let asked = v1::OpenSessionRequest { features: ALL, ..request(&volumes, 8) };
    let mut session = RawSession::attach(&open_request(&daemon.control(), asked).expect("a session"));
    let gone = |user_data| Sqe { volume: 1, ..write(user_data, 0) };
    assert_eq!(session.result_of(&gone(1)), WHOLE);
    daemon.end(Signal::KILL);
    daemon.restart();
    session.resume(&[]);
    assert_eq!(session.result_of(&gone(2)), -errno::ENODEV);
    assert_eq!(session.result_of(&write(3, 0)), WHOLE);
}
