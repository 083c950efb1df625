//! Faults made on purpose, by configuration and by ferrioctl; and what a device that does not answer does to the others.

use std::{os::fd::AsFd, time::Duration};

use ferrio_api::v1::{self, Access};
use ferrio_shm::{
    abi::{Opcode, errno, features},
    entry::Sqe,
    mapping::create_memfd,
};
use ferrio_tests::{
    Beside, Daemon, DaemonBuilder, RawSession,
    beside::sessions,
    process::wait_until,
    raw::{add_region, open_request, remove_region, request},
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;

fn write(offset: u64) -> Sqe {
    Sqe { op: Opcode::Write as u8, user_data: offset + 1, offset, length: BLOCK, ..Sqe::default() }
}

fn read(offset: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, ..write(offset) }
}

/// A daemon with a memory volume that has these rules.
#[track_caller]
fn with_rules(backend: &str, rules: &str) -> Daemon {
    let volume =
        "[[volume]]\nname = \"bad\"\nkind = \"memory\"\nsize = \"1 MiB\"\nallow_any = true\nfault_seed = 7\n";
    DaemonBuilder::new().engine("main", backend, "").config(&format!("{volume}{rules}")).start()
}

fn open(daemon: &Daemon, volume: &'static str) -> RawSession {
    RawSession::open(&daemon.control(), &[(volume, Access::ReadWriteShared)], 64)
}

/// The counters of `fault show`: matched and applied, by rule.
#[track_caller]
fn counters(daemon: &Daemon, volume: &str) -> Vec<(u64, u64)> {
    let shown = daemon.ctl_json(&["fault", "show", volume]);
    let pair = |counters: &serde_json::Value| {
        (counters["matched"].as_u64().unwrap(), counters["applied"].as_u64().unwrap())
    };
    shown["counters"].as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn configured_faults_happen_where_they_are_meant_to() {
    for backend in ["io_uring", "aio"] {
        let rules = "[[volume.fault]]\nops = [\"write\"]\noffset = \"64 KiB\"\nlength = \"4 KiB\"\neffect = \"error\"\n\
                     errno = \"ENOSPC\"\ncount = 2\n\
                     [[volume.fault]]\nops = [\"read\"]\noffset = \"128 KiB\"\neffect = \"short\"\n";
        let daemon = with_rules(backend, rules);
        let mut session = open(&daemon, "bad");
        assert_eq!(session.result_of(&write(0)), WHOLE);
        assert_eq!(session.result_of(&read(65536)), WHOLE, "reads are not meant");
        assert_eq!(session.result_of(&write(65536)), -errno::ENOSPC);
        assert_eq!(session.result_of(&write(65536)), -errno::ENOSPC);
        assert_eq!(session.result_of(&write(65536)), WHOLE, "the rule is spent");
        assert_eq!(session.result_of(&read(131_072)), WHOLE, "a short transfer never reaches a client");
        let long = Sqe { length: 32768, ..read(262_144) };
        assert_eq!(session.result_of(&long), 32768);
        let counted = counters(&daemon, "bad");
        assert_eq!(counted[0].1, 2, "{counted:?}");
        assert!(counted[1].1 >= 1, "{counted:?}");
        let shown = daemon.ctl(&["fault", "show", "bad"]).expect(0).stdout;
        for part in ["error 28", "short", "64 KiB to 68 KiB", "seed 7"] {
            assert!(shown.contains(part), "{part:?} not in {shown}");
        }
        let listed = daemon.ctl_json(&["volume", "list"]);
        assert_eq!(listed["volumes"][0]["fault_rules"], 2);
        let info = daemon.ctl(&["info"]).expect(0).stdout;
        assert!(info.contains("faults") && info.contains("can be set"), "{info}");
    }
}

#[test]
fn rules_are_set_added_and_cleared_while_sessions_run() {
    let daemon = DaemonBuilder::new().engine("main", "auto", "faults = true").file("data", MIB).start();
    let mut session = open(&daemon, "data");
    assert_eq!(session.result_of(&write(0)), WHOLE);
    daemon.ctl(&["fault", "set", "data", "--effect", "error", "--op", "write", "--errno", "61"]).expect(0);
    assert_eq!(session.result_of(&write(0)), -61);
    assert_eq!(session.result_of(&read(0)), WHOLE);
    daemon.ctl(&["fault", "set", "data", "--effect", "error", "--op", "read", "--add"]).expect(0);
    assert_eq!((session.result_of(&write(0)), session.result_of(&read(0))), (-61, -errno::EIO));
    let delay =
        ["fault", "set", "data", "--effect", "delay", "--delay-min-us", "300000", "--delay-max-us", "300000"];
    daemon.ctl(&delay).expect(0);
    let begin = std::time::Instant::now();
    assert_eq!(session.result_of(&read(0)), WHOLE);
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
    daemon.ctl(&["fault", "clear", "data"]).expect(0);
    assert!(counters(&daemon, "data").is_empty());
    assert_eq!(session.result_of(&write(0)), WHOLE);
    let cases: [(&[&str], &[&str]); 4] = [
        (&["set", "nope", "--effect", "stuck"], &["\"nope\"", "data"]),
        (&["show", "nope"], &["\"nope\"", "data"]),
        (&["set", "data", "--effect", "reorder", "--window", "1"], &["window of 1", "2 and 1024"]),
        (&["set", "data", "--effect", "stuck", "--errno", "5"], &["errno = 5", "\"error\" alone"]),
    ];
    for (arguments, parts) in cases {
        let refused = daemon.ctl(&[&["fault"], arguments].concat()).expect(1);
        for part in parts {
            assert!(refused.stderr.contains(part), "{part:?} not in {:?}", refused.stderr);
        }
    }
}

#[test]
fn an_engine_without_faults_says_how_to_get_them() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let refused = daemon.ctl(&["fault", "set", "data", "--effect", "stuck"]).expect(1);
    assert!(refused.stderr.contains("faults = true"), "{}", refused.stderr);
    assert!(daemon.ctl(&["fault", "show", "data"]).expect(0).stdout.contains("no faults"));
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let rules = "[[volume.fault]]\nprobability_ppm = 300000\neffect = \"error\"\n";
    let run = || {
        let daemon = with_rules("auto", rules);
        let mut session = open(&daemon, "bad");
        (0..200).map(|n| session.result_of(&write(n * BLOCK)) == WHOLE).collect::<Vec<_>>()
    };
    let first = run();
    let failed = first.iter().filter(|whole| !**whole).count();
    assert!((20..120).contains(&failed), "about 60 of 200 fail: {failed}");
    assert_eq!(first, run());
}

/// A volume that does not answer, beside one that a client verifies all the time, on the same engine.
fn a_stuck_volume(backend: &str) {
    let builder = DaemonBuilder::new().engine("main", backend, "faults = true");
    let beside = Beside::over(builder.file("stuck", MIB));
    let daemon = &beside.daemon;
    let mut session = RawSession::open(
        &daemon.control(),
        &[("stuck", Access::ReadWriteShared), ("target", Access::ReadWriteShared)],
        64,
    );
    assert_eq!(session.result_of(&write(0)), WHOLE);
    daemon.ctl(&["fault", "set", "stuck", "--effect", "stuck", "--op", "write"]).expect(0);
    session.submit(&write(4096));
    wait_until("the write to be stuck", || daemon.ctl_json(&["fault", "show", "stuck"])["held"] == 1);

    // Nobody waits for it: neither calls, nor new sessions on the same engine, nor the session's other volume.
    for arguments in
        [&["info"][..], &["volume", "list"], &["session", "list"], &["queue", "list"], &["stats"]]
    {
        daemon.ctl(arguments).expect(0);
    }
    assert_eq!(session.result_of(&Sqe { volume: 1, ..write(0) }), WHOLE);
    let mut second = open(daemon, "stuck");
    assert_eq!(second.result_of(&read(0)), WHOLE, "what is not stuck goes on, on that volume too");
    daemon.client(&["verify", "target"]).finish().expect(0);

    // Its removal begins, says what it waits for, and comes back.
    let begun = daemon.ctl(&["volume", "remove", "stuck", "--wait-ms", "200"]).expect(1);
    for part in ["stuck takes no requests any more", "not gone: 1 of its requests", "volume list"] {
        assert!(begun.stderr.contains(part), "{part:?} not in {:?}", begun.stderr);
    }
    let again = daemon.ctl(&["--json", "volume", "remove", "stuck", "--wait-ms", "1"]).expect(1);
    let again: serde_json::Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!((&again["removed"], &again["in_flight"]), (&false.into(), &1.into()));
    let listed = daemon.ctl(&["volume", "list"]).expect(0).stdout;
    assert!(listed.contains("removing"), "{listed}");
    let info = daemon.ctl(&["info"]).expect(0).stdout;
    assert!(info.contains("volume stuck is being removed"), "{info}");
    assert_eq!(session.result_of(&read(0)), -errno::ENODEV);
    let refused = raw_open_error(daemon, "stuck");
    assert!(refused.contains("being removed"), "{refused}");
    let taken = daemon.ctl(&["volume", "create", "stuck", "--kind", "null", "--size", "1MiB"]).expect(1);
    assert!(taken.stderr.contains("being removed"), "{}", taken.stderr);
    assert_eq!(session.wait(Duration::ZERO), None, "its write still waits");

    // The device answers at last: so does the daemon, once, and the volume is gone.
    daemon.ctl(&["fault", "clear", "stuck"]).expect(0);
    assert_eq!(session.wait(Duration::from_secs(10)).expect("answered").result, WHOLE);
    assert_eq!(session.wait(Duration::from_millis(50)), None, "once");
    wait_until("the volume to be gone", || {
        !daemon.ctl(&["volume", "list"]).expect(0).stdout.contains("removing")
    });
    let path = daemon.path("stuck");
    daemon.ctl(&["volume", "create", "stuck", "--path", path.to_str().unwrap()]).expect(0);
    drop((session, second));
    daemon.ctl(&["volume", "remove", "stuck"]).expect(0);
    wait_until("the sessions to end", || sessions(daemon).len() == 1);
    beside.finish();
}

#[track_caller]
fn raw_open_error(daemon: &Daemon, volume: &'static str) -> String {
    let refused = open_request(&daemon.control(), request(&[(volume, Access::ReadOnly)], 8));
    refused.expect_err("refused").message().to_owned()
}

#[test]
fn a_stuck_volume_hangs_nobody_else_under_io_uring() {
    a_stuck_volume("io_uring");
}

#[test]
fn a_stuck_volume_hangs_nobody_else_under_aio() {
    a_stuck_volume("aio");
}

#[test]
fn a_session_with_a_stuck_request_stays_until_it_is_answered_and_the_daemon_ends_all_the_same() {
    let mut daemon = DaemonBuilder::new()
        .engine("main", "auto", "faults = true")
        .config("[[volume]]\nname = \"bad\"\nkind = \"memory\"\nsize = \"1 MiB\"\nallow_any = true")
        .start();
    daemon.ctl(&["fault", "set", "bad", "--effect", "stuck"]).expect(0);
    let mut session = open(&daemon, "bad");
    session.submit(&write(0));
    wait_until("the write to be stuck", || daemon.ctl_json(&["fault", "show", "bad"])["held"] == 1);
    drop(session);
    wait_until("the session to be draining", || sessions(&daemon)[0]["state"] == "draining");
    daemon.ctl(&["fault", "clear", "bad"]).expect(0);
    wait_until("the session to end", || sessions(&daemon).is_empty());
    daemon.end(Signal::TERM).expect(0);
}

#[test]
fn a_region_in_use_by_the_device_stays() {
    // What is stuck is in flight: nothing else is as patient.
    let rules = "[[volume.fault]]\nops = [\"write\"]\neffect = \"stuck\"";
    let builder = DaemonBuilder::new();
    let path = builder.path("target");
    let target = format!("size = {MIB}\nallow_any = true\n{rules}");
    let daemon = builder.volume("target", &path, &target).start();
    let asked = v1::OpenSessionRequest {
        features: features::CLIENT_REGIONS,
        ..request(&[("target", Access::ReadWriteShared)], 64)
    };
    let mut session = RawSession::attach(&open_request(&daemon.control(), asked).expect("a session"));
    let memfd = create_memfd("test-region", MIB).expect("a memfd");
    assert_eq!(add_region(&session.lease, 1, MIB, &[memfd.as_fd()]), 0);
    session.submit(&Sqe { region: 1, ..write(0) });
    wait_until("the write to be in flight", || sessions(&daemon)[0]["counters"]["in_flight"] == 1);
    assert_eq!(remove_region(&session.lease, 1), errno::EBUSY);
    assert_eq!(
        session.result_of(&Sqe { region: 1, region_offset: 4096, ..read(4096) }),
        WHOLE,
        "it is still there"
    );
    daemon.ctl(&["fault", "clear", "target"]).expect(0);
    let answer = session.wait(Duration::from_secs(10)).expect("the write goes on");
    assert_eq!(answer.result, WHOLE);
    assert_eq!(remove_region(&session.lease, 1), 0);
}
