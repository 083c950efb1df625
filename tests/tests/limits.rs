//! Limits: what one user, and all together, may take, and what is left of those who took it and died.

use std::{
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use ferrio_api::v1;
use ferrio_shm::{abi::Opcode, entry::Sqe};
use ferrio_tests::{
    Beside, Daemon, DaemonBuilder, Footprint, Process,
    beside::sessions,
    hostile::{Act, TARGET},
    process::{copy_program, program, wait_until},
    raw,
    skip::{has_program, is_root, skip},
};
use rustix::process::Signal;

/// Any uid that is neither root nor the overflow uid.
const OTHER: u32 = 12345;

fn daemon_with(limits: &str) -> Daemon {
    let limits = format!("[limits]\nattach_timeout_s = 300\n{limits}");
    DaemonBuilder::new().config(&limits).null("data", 1 << 20).start()
}

fn request(queues: usize, arena_bytes: u64) -> v1::OpenSessionRequest {
    let mut request = raw::request(&[("data", v1::Access::ReadWriteShared)], 8);
    request.queues = vec![request.queues[0].clone(); queues];
    request.arena_bytes = arena_bytes;
    request
}

/// Opens sessions until one is refused; returns how many there were, and why.
#[track_caller]
fn open_until_refused(daemon: &Daemon, request: &v1::OpenSessionRequest) -> (usize, String) {
    for opened in 0..100 {
        match raw::open_request(&daemon.control(), request.clone()) {
            Ok(_) => {}
            Err(status) => return (opened, status.message().to_owned()),
        }
    }
    panic!("100 sessions, and no limit was met");
}

#[test]
fn each_refusal_names_limit_value_and_key() {
    let mib = 1 << 20;
    // Limits; queues and arena asked for; sessions that are opened; what the refusal of the next says.
    let cases: &[(&str, usize, u64, usize, &[&str])] = &[
        ("sessions_max = 3", 1, 0, 3, &["3 in use", "limit 3", "limits.sessions_max"]),
        ("sessions_per_uid_max = 2", 1, 0, 2, &["2 in use", "limit 2", "limits.sessions_per_uid_max"]),
        ("queues_max = 8", 3, 0, 2, &["6 in use", "3 more", "limit 8", "limits.queues_max"]),
        ("queues_per_uid_max = 4", 2, 0, 2, &["4 in use", "2 more", "limits.queues_per_uid_max"]),
        ("queues_per_session_max = 2", 3, 0, 0, &["3 asked for", "1 to 2", "limits.queues_per_session_max"]),
        ("queue_entries_max = 4", 1, 0, 0, &["sq_entries", "8 asked for", "limits.queue_entries_max"]),
        ("arena_bytes_max = \"1 MiB\"", 1, mib + 4096, 0, &["1052672 asked for", "limits.arena_bytes_max"]),
        ("memory_bytes_max = \"2 MiB\"", 1, mib, 1, &["limit 2097152", "limits.memory_bytes_max"]),
        (
            "memory_bytes_per_uid_max = \"2 MiB\"",
            1,
            mib,
            1,
            &["limit 2097152", "limits.memory_bytes_per_uid_max"],
        ),
    ];
    for (limits, queues, arena_bytes, sessions, parts) in cases {
        let daemon = daemon_with(limits);
        let (opened, refusal) = open_until_refused(&daemon, &request(*queues, *arena_bytes));
        assert_eq!(opened, *sessions, "{limits}: {refusal}");
        for part in *parts {
            assert!(refusal.contains(part), "{limits}: {part:?} is missing in: {refusal}");
        }
    }
}

#[test]
fn one_user_at_the_limit_leaves_room_for_another() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = daemon_with("sessions_max = 4\nsessions_per_uid_max = 2");
    let client = daemon.path("client");
    std::fs::copy(program("ferrio-test-client"), &client).unwrap();
    let mut command = Command::new(&client);
    command.arg("--socket").arg(daemon.control());
    command.args(["hold", "data", "--access", "rw-shared", "--sessions", "3"]).uid(OTHER).gid(OTHER);
    let refused = Process::start(&mut command).finish().expect(1).stderr;
    assert!(refused.contains("limits.sessions_per_uid_max"), "{refused}");
    let (opened, _) = open_until_refused(&daemon, &request(1, 0));
    assert_eq!(opened, 2);
}

#[test]
fn a_control_connection_too_many_is_told_so() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let mut daemon = daemon_with("connections_per_uid_max = 3");
    let control = daemon.control();
    let refusal = std::thread::spawn(move || {
        // SAFETY: plain system call; no memory is involved. It changes the user of this thread only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, OTHER, OTHER, OTHER) }, 0);
        let _held: Vec<_> =
            (0..3).map(|_| std::os::unix::net::UnixStream::connect(&control).unwrap()).collect();
        raw::open_request(&control, request(1, 0)).expect_err("refused").message().to_owned()
    });
    let refusal = refusal.join().unwrap();
    for part in ["3 connections", &OTHER.to_string(), "limits.connections_per_uid_max"] {
        assert!(refusal.contains(part), "{part:?} is missing in: {refusal}");
    }
    assert!(!daemon.process().has_ended());
    raw::open_request(&daemon.control(), request(1, 0)).expect("another user is served");
}

/// Who opens sessions and breaks them as fast as it can gets its user's pace, and goes on; another user notices nothing.
#[test]
fn sessions_are_opened_at_the_pace_of_a_user() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = DaemonBuilder::new().file(TARGET, 4 << 20).file("data", 4 << 20).start();
    let client = daemon.path("client");
    copy_program("ferrio-test-client", &client);
    let mut command = Command::new(&client);
    command.arg("--socket").arg(daemon.control()).args(["hostile", &Act::BrokenSessions.name()]);
    let begin = Instant::now();
    let mut hostile = Process::start(command.uid(OTHER).gid(OTHER));
    wait_until("a session to wait for its turn", || daemon.log().contains("waits for its turn"));
    let opened = || daemon.ctl_json(&["stats"])["sessions_opened"].as_u64().expect("a number");
    let before = opened();
    wait_until("its turn to come", || opened() > before + 64);
    let opened = opened();
    // What it may open at once, and in this time.
    let allowed = 64 + (32.0 * begin.elapsed().as_secs_f64()) as u64;
    assert!(opened <= allowed + 1, "{opened} opened, {allowed} allowed");
    let log = daemon.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("waits for its turn")).collect();
    for part in [&format!("uid {OTHER}"), "32 sessions per second", "limits.sessions_per_uid_max"] {
        assert!(told.iter().all(|line| line.contains(part)), "{part:?} is missing in: {told:?}");
    }
    daemon.client(&["verify", "data"]).finish().expect(0);
    assert!(!hostile.has_ended(), "it is not refused: {}", hostile.stderr());
}

/// A client that fills deep rings and never takes an answer holds what it was given, and no more.
#[test]
fn the_records_of_an_engine_are_shared() {
    let beside =
        Beside::over(DaemonBuilder::new().engine("main", "auto", "queue_depth = 16\nrequests_max = 64"));
    let mut greedy = beside.attacker(1024);
    let end = Instant::now() + Duration::from_secs(2);
    let read = Sqe { op: Opcode::Read as u8, length: 65536, ..Sqe::default() };
    let mut answered = 0;
    while Instant::now() < end {
        while greedy.sq.push(&read).is_ok() {}
        if greedy.sq.publish() {
            greedy.doorbell.ring().unwrap();
        }
        while let Some(cqe) = greedy.cq.pop().unwrap() {
            assert_eq!(cqe.result, 65536);
            answered += 1;
        }
        greedy.cq.release();
    }
    assert!(answered > 0);
    drop(greedy);
    beside.finish();
}

#[test]
fn a_thousand_killed_sessions_leave_nothing() {
    let limits = "[limits]\nsessions_max = 1100\nsessions_per_uid_max = 1100\nqueues_max = 1100\nqueues_per_uid_max = 1100";
    let mut daemon = DaemonBuilder::new().config(limits).file("data", 4 << 20).start();
    let pid = daemon.process().pid();
    // What a first session makes once is not held against it.
    daemon.client(&["verify", "data"]).finish().expect(0);
    wait_until("the session to end", || sessions(&daemon).is_empty());
    let files = || {
        let entries = std::fs::read_dir(daemon.path("run")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    };
    let (before, files_before) = (Footprint::of(pid), files());
    let hold = ["hold", "data", "--access", "rw-shared", "--sessions", "50"];
    let mut clients: Vec<Process> = (0..20).map(|_| daemon.client(&hold)).collect();
    clients.iter_mut().for_each(|client| drop(client.wait_for_line("holding")));
    assert_eq!(sessions(&daemon).len(), 1000);
    assert!(Footprint::of(pid).descriptors > before.descriptors + 3000);
    clients.iter().for_each(|client| client.signal(Signal::KILL));
    drop(clients);
    wait_until("the sessions to end", || sessions(&daemon).is_empty());
    before.wait_for_return(pid);
    assert_eq!(files(), files_before);
    daemon.client(&["verify", "data"]).finish().expect(0);
}

#[test]
fn sessions_stop_before_the_descriptors_do() {
    if !has_program("prlimit") {
        return skip("prlimit is not installed", false);
    }
    let limits = "[limits]\nsessions_max = 200\nsessions_per_uid_max = 200\nattach_timeout_s = 300";
    let mut daemon = DaemonBuilder::new()
        .config(limits)
        .null("data", 1 << 20)
        .under(&["prlimit", "--nofile=64:256", "--"])
        .start();
    let pid = daemon.process().pid();
    let soft = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let soft =
        soft.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().nth(3);
    assert_eq!(soft, Some("256"), "raised to the hard limit");
    let log = daemon.log();
    for part in ["LimitNOFILE", "256", "limits.sessions_max"] {
        assert!(log.contains(part), "{part:?} is missing in: {log}");
    }
    let (opened, refusal) = open_until_refused(&daemon, &request(1, 0));
    assert!(opened > 10, "{opened}");
    for part in ["256", "RLIMIT_NOFILE", "LimitNOFILE", "limits.sessions_max"] {
        assert!(refusal.contains(part), "{part:?} is missing in: {refusal}");
    }
    let free = 256 - Footprint::of(pid).descriptors;
    assert!(free >= 50, "connections have {free} descriptors left");
    // The operator gets in all the same.
    assert_eq!(sessions(&daemon).len(), opened);
    // Full still, but for what connections that were closing held when it was refused.
    let (more, _) = open_until_refused(&daemon, &request(1, 0));
    assert!(more <= 2, "{more}");
}
