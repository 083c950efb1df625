//! `ferrioctl bench`: what it says, what it does to the data, and what it leaves behind. Not how fast anything is.

use std::os::unix::fs::FileExt;
use std::process::Command;

use ferrio_client::Access;
use ferrio_tests::process::{children, is_alive, program, wait_until};
use ferrio_tests::{Daemon, DaemonBuilder, Finished, Footprint, Process};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SHORT: [&str; 4] = ["--rounds", "2", "--runtime", "0.3"];

/// `ferrioctl bench` with these options, in words.
fn bench(daemon: &Daemon, options: &str) -> Process {
    let mut command = Command::new(program("ferrioctl-under-test"));
    command.arg("--socket").arg(daemon.control()).arg("bench").args(options.split_whitespace());
    Process::start(&mut command)
}

/// A short one.
fn short(daemon: &Daemon, options: &str) -> Finished {
    bench(daemon, &format!("{} {options}", SHORT.join(" "))).finish()
}

#[track_caller]
fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// The best peer that the machine allows, beside plain calls.
fn peers(daemon: &Daemon) -> Vec<&'static str> {
    let backend = daemon.ctl_json(&["info"])["engines"][0]["backend"].clone();
    if backend == "io_uring" { vec!["io_uring", "io_uring_poll", "psync"] } else { vec!["libaio", "psync"] }
}

#[track_caller]
fn assert_spread(case: &Value, key: &str) {
    let [min, median, max] = ["min", "median", "max"]
        .map(|name| case[key][name].as_f64().unwrap_or_else(|| panic!("{key}: {case}")));
    assert!(0.0 <= min && min <= median && median <= max, "{key}: {case}");
}

#[test]
fn the_report_has_every_number_and_the_data_stays() {
    let builder = DaemonBuilder::new();
    let path = builder.path("data.img");
    let data: Vec<u8> = (0..4 * MIB).map(|at| (at * 7 + at / 4096) as u8).collect();
    std::fs::write(&path, &data).unwrap();
    let daemon = builder.volume("data", &path, "allow_any = true").start();
    let peers = peers(&daemon);

    let finished = short(&daemon, &format!("--volume data --iodepth 4 --json --against {}", peers.join(",")));
    let report = report(&finished.expect(0));
    let cases = report["cases"].as_array().unwrap();
    let engines: Vec<&str> = cases.iter().map(|case| case["engine"].as_str().unwrap()).collect();
    assert_eq!(engines, [&["ferrio"], peers.as_slice()].concat());
    for case in cases {
        for key in ["iops", "mib_s", "p50_us", "p99_us", "p999_us", "max_us", "client_cpu_us_per_io"] {
            assert_spread(case, key);
            assert!(case[key]["min"].as_f64() > Some(0.0), "{key}: {case}");
        }
        for key in ["daemon_cpu_us_per_io", "cpu_us_per_io", "switches_per_io"] {
            assert_spread(case, key);
        }
    }
    assert!(cases[0]["daemon_cpu_us_per_io"]["median"].as_f64() > Some(0.0), "{}", cases[0]);
    let ratios = report["ratios"].as_array().unwrap();
    assert_eq!(ratios.iter().map(|ratio| ratio["against"].as_str().unwrap()).collect::<Vec<_>>(), peers);
    for ratio in ratios {
        for key in ["throughput", "p50", "p99", "p999", "cpu_per_io"] {
            assert!(ratio[key].as_f64() > Some(0.0), "{key}: {ratio}");
        }
        let ends = [0, 1].map(|end| ratio["throughput_ci"][end].as_f64().unwrap());
        assert!(ends[0] <= ends[1] && ends[0] > 0.0, "{ratio}");
    }
    assert_eq!(report["machine"]["noise"]["rounds"], 4 * peers.len());
    assert!(report["machine"]["cpus"].as_u64() >= Some(1) && report["machine"]["kernel"].is_string());
    assert!(std::fs::read(&path).unwrap() == data, "a read workload preserves the data");
}

#[test]
fn with_merging_off_it_is_compared_with_itself() {
    let daemon = DaemonBuilder::new().file("data", 4 * MIB).start();
    let options = "--volume data --rw write --iodepth 32 --json --against unmerged";
    let report = report(&short(&daemon, options).expect(0));
    let engines = [0, 1].map(|case| report["cases"][case]["engine"].as_str().unwrap());
    assert_eq!(engines, ["ferrio", "unmerged"]);
    assert_eq!(report["ratios"][0]["against"], "unmerged");
    assert!(report["ratios"][0]["throughput"].as_f64() > Some(0.0), "{report}");
    assert!(daemon.merged() > 0, "adjacent writes of depth 32 were not joined");
}

#[test]
fn a_table_for_people() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let finished = short(&daemon, "--volume data --against psync").expect(0);
    for words in ["IOPS", "p99.9, us", "psync", "FERRIO / PEER", "other load", "too few for a 95 % interval"]
    {
        assert!(finished.stdout.contains(words), "{words} is not in\n{}", finished.stdout);
    }
}

// ---- verify

#[test]
fn what_was_written_is_verified_over_rounds_and_engines() {
    let daemon = DaemonBuilder::new().file("data", 2 * MIB).start();
    let peers = peers(&daemon).join(",");
    for options in [
        format!("--rw randrw --clients 2 --iodepth 4 --against {peers}"),
        "--rw write --bs 6k --iodepth 8 --against none".to_owned(),
    ] {
        let finished = short(&daemon, &format!("--volume data --verify --json {options}")).expect(0);
        assert!(finished.stderr.contains("its data is overwritten"), "{}", finished.stderr);
        let blocks = report(&finished)["verified_blocks"].as_u64();
        assert!(blocks >= Some(512), "{blocks:?}");
    }
}

fn wait_until_written(bench: &Process) {
    wait_until("the volume to be written", || bench.stderr().contains("MiB written"));
}

#[test]
fn a_wrong_block_is_named() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let options = "--volume data --verify --iodepth 2 --rounds 20 --runtime 0.3 --against none";
    let bench = bench(&daemon, options);
    wait_until_written(&bench);
    let file = std::fs::File::options().write(true).open(daemon.path("data")).unwrap();
    file.write_all_at(b"spoilt", 7 * 4096 + 100).unwrap();
    let finished = bench.finish().expect(1);
    let told = "block 7 (byte 28672 of the volume) is wrong: it is damaged, with a wrong checksum";
    assert!(finished.stderr.contains(told), "{}", finished.stderr);
    assert_eq!(finished.stdout, "");
}

// ---- what it leaves behind

#[test]
fn nothing_is_left_when_it_is_interrupted() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let options = "--volume data --rounds 100 --runtime 2 --clients 2 --rw randrw --verify --against psync";
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::KILL, 137)] {
        let bench = bench(&daemon, options);
        wait_until_written(&bench);
        wait_until("two clients", || children(bench.pid()).len() == 2);
        let clients = children(bench.pid());
        bench.signal(signal);
        let finished = bench.finish().expect(code);
        assert_eq!(finished.stdout, "");
        wait_until("the clients to end", || !clients.iter().any(is_alive));
        wait_until("the sessions to end", || {
            daemon.ctl_json(&["session", "list"])["sessions"].as_array().is_some_and(Vec::is_empty)
        });
    }
}

/// Whether they are still being opened, or stand beside a round.
#[test]
fn idle_sessions_go_with_the_bench() {
    const SESSIONS: usize = 120;
    let limits = format!("[limits]\nsessions_per_uid_max = {}", SESSIONS + 10);
    let mut daemon = DaemonBuilder::new().config(&limits).file("data", MIB).start();
    let pid = daemon.process().pid();
    let options = format!("--volume data --skip-fill --rounds 100 --runtime 0.1 --idle-sessions {SESSIONS}");
    let open = || daemon.ctl_json(&["session", "list"])["sessions"].as_array().unwrap().len();
    // The first list of sessions may leave more in the daemon than it found.
    open();
    let before = Footprint::of(pid);
    let (opening, measuring) = (SESSIONS / 4, SESSIONS + 1);
    for (signal, code, sessions) in [
        (Signal::INT, 130, opening),
        (Signal::INT, 130, measuring),
        (Signal::TERM, 143, measuring),
        (Signal::KILL, 137, opening),
    ] {
        let bench = bench(&daemon, &options);
        wait_until("the sessions to be opened", || open() >= sessions);
        let clients = children(bench.pid());
        bench.signal(signal);
        let finished = bench.finish().expect(code);
        assert_eq!(finished.stdout, "");
        if signal == Signal::KILL {
            wait_until("the clients to end", || !clients.iter().any(is_alive));
        }
        let left: Vec<_> = clients.iter().filter(|pid| is_alive(pid)).collect();
        assert!(!clients.is_empty() && left.is_empty(), "{left:?} of {clients:?} outlive it, {signal:?}");
        wait_until("the sessions to end", || open() == 0);
    }
    before.wait_for_return(pid);
}

#[test]
fn beside_idle_sessions_ferrio_is_compared_with_itself() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let finished = short(&daemon, "--volume data --idle-sessions 20 --json").expect(0);
    let report = report(&finished);
    let beside = &report["beside_idle_sessions"];
    assert_eq!((&beside["sessions"], &beside["pairs"]), (&20.into(), &2.into()));
    assert!(beside["throughput"].as_f64() > Some(0.0) && beside["throughput_ci"][0].is_f64(), "{report}");
    assert_eq!(report["ratios"].as_array().unwrap().len(), 0);
    wait_until("the sessions to end", || {
        daemon.ctl_json(&["session", "list"])["sessions"].as_array().is_some_and(Vec::is_empty)
    });
}

// ---- what it refuses

#[test]
fn a_null_volume_is_measured_alone() {
    let daemon = DaemonBuilder::new().null("null", MIB).start();
    let finished = short(&daemon, "--volume null --wait poll --ping-pong --json").expect(0);
    let report = report(&finished);
    assert_eq!(report["cases"].as_array().unwrap().len(), 1);
    assert_eq!(report["ratios"].as_array().unwrap().len(), 0);
    assert!(report["ping_pong"]["round_trip_ns"]["median"].as_f64() > Some(0.0), "{report}");
    assert!(report["ping_pong"]["ferrio_p50_per_round_trip"].as_f64() > Some(0.0), "{report}");

    let refused = short(&daemon, "--volume null --against io_uring").expect(2);
    assert!(
        refused.stderr.contains("null volume") && refused.stderr.contains("--against"),
        "{}",
        refused.stderr
    );
}

#[test]
fn what_it_cannot_do_is_said_with_the_fix() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    for (options, code, words) in [
        ("--volume data --rw scan", 2, "possible values"),
        ("--volume data --against fio", 2, "possible values"),
        ("--volume data --iodepth 0", 2, "1..=16384"),
        ("--volume nosuch", 2, "the daemon has: data"),
        ("--volume data --bs 1000", 2, "multiple of"),
        ("--volume data --bs 2m", 2, "raise --size"),
        ("--volume data --target /no/such", 2, "--target"),
        ("--volume data --idle-sessions 5 --against psync", 2, "leave --against out"),
        ("--volume data --idle-sessions 100 --skip-fill", 1, "sessions_per_uid_max"),
        ("--volume data --clients 256 --against none --skip-fill", 1, "sessions_per_uid_max"),
    ] {
        let finished = short(&daemon, options).expect(code);
        assert!(finished.stderr.contains(words), "{options}: {}", finished.stderr);
    }
    let help = daemon.ctl(&["bench", "--help"]).expect(0).stdout;
    assert!(help.contains("DESTROYS") && help.contains("io_uring_poll"), "{help}");
}

#[test]
fn a_volume_in_use_is_not_written_beforehand() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let _reader = daemon.session("data", Access::ReadWriteShared).name("somebody").open().unwrap();
    let refused = short(&daemon, "--volume data --against none").expect(1);
    for words in ["somebody", "--skip-fill"] {
        assert!(refused.stderr.contains(words), "{words} is not in {}", refused.stderr);
    }
    short(&daemon, "--volume data --against none --skip-fill").expect(0);
}
