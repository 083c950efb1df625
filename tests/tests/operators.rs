//! What an operator sees: ferrioctl, an idle daemon, the demo.

use std::{collections::BTreeMap, process::Command, time::Duration};

use ferrio_client::{Access, QueueOptions, WaitPolicy};
use ferrio_tests::{
    DaemonBuilder, Process,
    process::{children, is_alive, program, wait_until},
};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

// ---- ferrioctl

#[test]
fn every_list_has_a_table_and_json() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).null("null", MIB).start();
    let mut holder = daemon.client(&["--name", "holder", "hold", "data"]);
    holder.wait_for_line("holding");
    let lists: [(&[&str], &[&str]); 5] = [
        (&["info"], &["ferriod", "main", "backend"]),
        (&["volume", "list"], &["data", "null", "holder"]),
        (&["session", "list"], &["holder", "active"]),
        (&["queue", "list"], &["prio", "read", "write", "holder"]),
        (&["stats"], &["main", "prio"]),
    ];
    for (arguments, words) in lists {
        let table = daemon.ctl(arguments).expect(0).stdout.to_lowercase();
        for word in words {
            assert!(table.contains(word), "{arguments:?} does not show {word:?}:\n{table}");
        }
        assert!(daemon.ctl_json(arguments).is_object());
    }
    let pid = daemon.process().pid();
    assert_eq!(daemon.ctl_json(&["info"])["pid"], pid);
    let session = &daemon.ctl_json(&["session", "list"])["sessions"][0];
    assert_eq!(
        (session["pid"].as_u64(), session["client_name"].as_str()),
        (Some(holder.pid().into()), Some("holder"))
    );
}

#[test]
fn the_queues_are_seen_while_they_are_full() {
    let daemon = DaemonBuilder::new()
        .engine("main", "auto", "queue_depth = 2\nmerge_requests_max = 1")
        .file("data", 64 * MIB)
        .start();
    let mut client =
        daemon.client(&["verify", "data", "--bytes", "33554432", "--entries", "128", "--seconds", "3"]);
    client.wait_for_line("started");
    let mut seen = BTreeMap::from([("queued", 0), ("in_flight", 0), ("oldest_us", 0), ("completed", 0)]);
    for _ in 0..100 {
        let list = daemon.ctl_json(&["queue", "list"]);
        for queue in list["queues"].as_array().unwrap() {
            assert_eq!(queue["sq_entries"], 128);
            seen.iter_mut()
                .for_each(|(key, max)| *max = u64::max(*max, queue["counters"][*key].as_u64().unwrap()));
        }
        if seen.values().all(|max| *max > 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(seen.values().all(|max| *max > 0), "never seen: {seen:?}");
    assert!(seen["in_flight"] <= 2 + 1, "in flight is bounded by queue_depth: {seen:?}");
    client.finish().expect(0);
}

#[test]
fn watch_prints_again_and_again_and_stops_on_interrupt() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let control = daemon.control();
    let arguments = ["--json", "queue", "list", "--watch", "--interval-ms", "50"];
    let mut watch = Process::start(
        Command::new(program("ferrioctl-under-test")).arg("--socket").arg(control).args(arguments),
    );
    for _ in 0..3 {
        let line = watch.line().expect("one object per line");
        let object: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(object["classes"].as_array().unwrap().len(), 3);
    }
    watch.signal(Signal::INT);
    let finished = watch.finish();
    assert!([0, 130].contains(&finished.code()), "{finished:?}");
}

#[test]
fn ferrioctl_says_what_is_wrong() {
    let nowhere =
        Process::start_program("ferrioctl-under-test", ["--socket", "/no/such/control.sock", "info"])
            .finish()
            .expect(3);
    assert!(nowhere.stderr.contains("/no/such/control.sock"), "{}", nowhere.stderr);
    Process::start_program("ferrioctl-under-test", ["queues"]).finish().expect(2);
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    daemon.end(Signal::KILL);
    let stale = daemon.ctl(&["info"]).expect(3);
    assert!(stale.stderr.contains("not running") || stale.stderr.contains("refused"), "{}", stale.stderr);
}

// ---- an idle daemon

/// utime + stime, in ticks; voluntary context switches by thread; memory of its own, without the pages of the program, in KiB.
fn usage(pid: u32) -> (u64, BTreeMap<String, u64>, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        stat[stat.rfind(')').unwrap() + 2..].split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    let line = |text: &str, key: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let switches = tasks.filter_map(|task| {
        let task = task.unwrap();
        // It may end while it is looked at.
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        Some((task.file_name().into_string().unwrap(), line(&status, "voluntary_ctxt_switches:")))
    });
    let switches = switches.collect();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    (fields[11] + fields[12], switches, line(&status, "RssAnon:") + line(&status, "RssShmem:"))
}

#[test]
fn an_idle_daemon_costs_nothing() {
    let mut daemon = DaemonBuilder::new().file("data", MIB).start();
    let sessions: Vec<_> = (0..2)
        .map(|_| daemon.session("data", Access::ReadWriteShared).arena_bytes(65536).open().unwrap())
        .collect();
    let volume = sessions[0].volume("data").unwrap();
    sessions[0].take_queue(0).unwrap().flush(&volume).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pid = daemon.process().pid();
    let before = usage(pid);
    std::thread::sleep(Duration::from_secs(5));
    let after = usage(pid);
    let ticks = after.0 - before.0;
    // Of threads that ended meanwhile nothing is known.
    let wakes: u64 = after.1.iter().map(|(task, wakes)| wakes - before.1.get(task).unwrap_or(&0)).sum();
    println!(
        "idle for 5 s with 2 sessions: {ticks} ticks of CPU, {wakes} wake-ups, {} KiB of memory",
        after.2
    );
    assert!(ticks <= 1, "{ticks} ticks of CPU in 5 s");
    assert!(wakes <= 50, "{wakes} wake-ups in 5 s");
    assert!(after.2 <= 10 * 1024, "{} KiB of memory", after.2);
}

#[test]
fn an_idle_session_is_woken_by_its_next_request() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let options = QueueOptions { wait: WaitPolicy::Sleep, ..QueueOptions::default() };
    let session = daemon.session("data", Access::ReadWrite).queue(options).open().unwrap();
    let volume = session.volume("data").unwrap();
    let mut queue = session.take_queue(0).unwrap();
    for pause_ms in [0, 1, 5, 20, 100, 1500, 0, 3, 300] {
        std::thread::sleep(Duration::from_millis(pause_ms));
        let begin = std::time::Instant::now();
        queue.flush(&volume).unwrap();
        // The daemon looks once a second on its own: a lost wake-up would show here.
        assert!(
            begin.elapsed() < Duration::from_millis(900),
            "after {pause_ms} ms of idling: {:?}",
            begin.elapsed()
        );
    }
}

// ---- the demo

fn leftovers(directory: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn demo(directory: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("ferriod-under-test"));
    command.arg("demo").args(arguments).env("TMPDIR", directory).env_remove("XDG_RUNTIME_DIR");
    command
}

#[test]
fn the_demo_verifies_every_block() {
    let directory = tempfile::tempdir().unwrap();
    let finished =
        Process::start(&mut demo(directory.path(), &["--json", "--seconds", "2"])).finish().expect(0);
    let report: Value = serde_json::from_str(&finished.stdout).expect("one JSON object and nothing else");
    assert_eq!(report["verified"], true, "{report}");
    let clients = report["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 3);
    for client in clients {
        assert!(
            client["blocks_verified"].as_u64().unwrap() > 0 && client["iops"].as_f64().unwrap() > 0.0,
            "{client}"
        );
        assert_eq!((&client["lost"], &client["doubled"]), (&Value::from(0), &Value::from(0)), "{client}");
    }
    assert!(leftovers(directory.path()).is_empty(), "left behind: {:?}", leftovers(directory.path()));
}

/// A line without what differs from run to run: numbers, names of temporary files, widths of columns.
fn shape(line: &str) -> String {
    let masked =
        line.split_whitespace().map(|word| if word.contains("ferrio-demo-") { "PATH" } else { word });
    let words: Vec<String> =
        masked.map(|word| word.replace(|c: char| c.is_ascii_digit() || c == '.', "")).collect();
    words.join(" ")
}

/// The README shows, as its `nth` text (from 1), what the demo prints with these arguments.
#[track_caller]
fn is_shown(nth: usize, arguments: &[&str]) {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let block = readme
        .split("```text\n")
        .nth(nth)
        .and_then(|rest| rest.split("```").next())
        .expect("the demo's output");
    let directory = tempfile::tempdir().unwrap();
    let finished = Process::start(&mut demo(directory.path(), arguments)).finish().expect(0);
    let printed = finished.stderr + &finished.stdout;
    let shapes: Vec<String> = printed.lines().map(shape).collect();
    let shown: Vec<&str> = block.lines().filter(|line| *line != "...").collect();
    assert!(shown.len() > 5, "{block}");
    for line in shown {
        assert!(shapes.contains(&shape(line)), "the demo does not print {line:?}:\n{printed}");
    }
}

#[test]
fn the_readme_shows_what_the_demos_print() {
    is_shown(1, &["--seconds", "2"]);
    is_shown(2, &["--restart", "--seconds", "2"]);
}

#[test]
fn the_demo_of_a_restart_loses_nothing() {
    for signal in ["kill", "term"] {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ["--restart", "--sessions", "20", "--signal", signal, "--json", "--seconds", "2"];
        let finished = Process::start(&mut demo(directory.path(), &arguments)).finish().expect(0);
        let report: Value = serde_json::from_str(&finished.stdout).expect("one JSON object and nothing else");
        assert_eq!(
            (&report["verified"], &report["sessions"]),
            (&Value::from(true), &Value::from(20)),
            "{report}"
        );
        let gap = report["gap_ms"]["max"].as_f64().unwrap();
        assert!(gap > 0.0 && report["gap_beyond_drain_ms"]["max"].as_f64().unwrap() <= gap, "{report}");
        assert_eq!(report["blocks_verified"], 20 * 64, "{report}");
        assert!(leftovers(directory.path()).is_empty(), "left behind: {:?}", leftovers(directory.path()));
    }
}

#[test]
fn the_demo_fails_on_a_wrong_block() {
    let directory = tempfile::tempdir().unwrap();
    let finished =
        Process::start(&mut demo(directory.path(), &["--json", "--seconds", "2", "--corrupt-block", "17"]))
            .finish();
    assert_ne!(finished.code(), 0, "{}", finished.stdout);
    let said = finished.stdout.clone() + &finished.stderr;
    assert!(said.contains("17") && said.contains("block"), "it names the block: {said}");
    assert!(leftovers(directory.path()).is_empty());
}

#[test]
fn the_demo_cleans_up_when_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(&mut demo(directory.path(), &["--seconds", "30"]));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!leftovers(directory.path()).is_empty(), "it runs");
    process.signal(Signal::INT);
    let finished = process.finish();
    assert_ne!(finished.code(), 0);
    assert!(leftovers(directory.path()).is_empty(), "left behind: {:?}", leftovers(directory.path()));
}

/// Nobody is left to tell its processes to end.
#[test]
fn nothing_is_left_of_a_demo_that_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = Process::start(&mut demo(directory.path(), &["--seconds", "30"]));
    wait_until("a daemon and three clients", || {
        assert!(!process.has_ended(), "{}", process.stderr());
        children(process.pid()).len() == 4
    });
    let family = children(process.pid());
    process.signal(Signal::KILL);
    process.finish().expect(137);
    wait_until("the daemon and the clients to end", || !family.iter().any(is_alive));
    assert!(leftovers(directory.path()).is_empty(), "left behind: {:?}", leftovers(directory.path()));
}
