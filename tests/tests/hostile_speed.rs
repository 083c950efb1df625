//! How much a hostile client slows the others. Measures, and asserts nothing; ignored by default:
//!
//! `cargo test --release -p ferrio-tests --test hostile_speed -- --ignored --nocapture`
//!
//! `ferrioctl bench` runs in pairs of rounds: beside a process of another user that does the same hostile thing again and
//! again, then beside one that only computes and takes as much CPU time as that one took. On a machine with few CPUs whoever
//! computes slows everybody; what is left in the ratio is what the daemon lets a client do to others. Wanted: 0.95 or more.
//! Beside floods of connections a second test measures how long an honest client takes to open a session.
//! The control thread's part of a CPU, and the sessions opened per second, beside the hostile client, say what it has done.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use clap::ValueEnum;
use ferrio_client::Access;
use ferrio_tests::{
    Daemon, DaemonBuilder, Process,
    hostile::{Act, TARGET},
    process::copy_program,
    skip::{is_root, skip},
};
use ferrioctl::statistics::{Interval, median};

const MIB: u64 = 1 << 20;
/// Those that connect, again and again.
const FLOODS: [Act; 4] = [Act::AttachFlood, Act::AttachStorm, Act::ControlFlood, Act::ControlGarbage];
/// Any uid that is neither root nor the overflow uid.
const OTHER: u32 = 12345;

#[test]
#[ignore = "measures, and takes minutes of a quiet machine"]
fn what_a_hostile_client_costs_the_others() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let number = |name: &str, or: f64| std::env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let (pairs, runtime) = (number("FERRIO_PAIRS", 9.0) as usize, number("FERRIO_RUNTIME", 1.0));
    let acts = chosen("FERRIO_ACT", Act::value_variants().iter().map(|act| act.name()).collect());
    let volumes = chosen("FERRIO_VOLUME", vec!["data".to_owned(), "null".to_owned()]);
    let mut daemon = DaemonBuilder::new()
        .engine("main", "auto", "")
        .file("data", 256 * MIB)
        .null("null", 256 * MIB)
        .file(TARGET, 4 * MIB)
        .start();
    let client = daemon.path("client");
    copy_program("ferrio-test-client", &client);
    // Writes the file whole.
    iops(&daemon, "data", 0.05, false);
    println!(
        "{:<16} {:>6} {:>6} {:>6} {:>22} {:>12} {:>8} {:>8} {:>10}",
        "act",
        "volume",
        "pairs",
        "ratio",
        "interval (coverage)",
        "IOPS beside",
        "its CPU",
        "control",
        "sessions/s"
    );
    for volume in &volumes {
        for act in &acts {
            let (mut ratios, mut rounds) = (Vec::new(), Vec::new());
            for _ in 0..pairs {
                let hostile = Round::beside(&mut daemon, &client, volume, runtime, &["hostile", act]);
                let compute = ["compute", &hostile.share.to_string()];
                let neutral = Round::beside(&mut daemon, &client, volume, runtime, &compute);
                ratios.push(hostile.iops / neutral.iops);
                rounds.push(hostile);
            }
            let Some(Interval { low, high, coverage }) = Interval::of(ratios.iter().copied()) else { return };
            let of = |number: fn(&Round) -> f64| median(rounds.iter().map(number));
            println!(
                "{act:<16} {volume:>6} {pairs:>6} {:>6.3} {:>22} {:>12.0} {:>6.0} % {:>6.1} % {:>10.0}",
                median(ratios),
                format!("{low:.3} - {high:.3} ({:.0} %)", 100.0 * coverage),
                of(|round| round.iops),
                100.0 * of(|round| round.share),
                100.0 * of(|round| round.control),
                of(|round| round.sessions),
            );
        }
    }
}

/// How long an honest client of another user takes to open a session beside floods of connections, of one process and of many.
#[test]
#[ignore = "measures, and takes a minute of a quiet machine"]
fn how_long_an_honest_open_takes_beside_a_flood() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = DaemonBuilder::new().null("null", 256 * MIB).file(TARGET, 4 * MIB).start();
    let client = daemon.path("client");
    copy_program("ferrio-test-client", &client);
    println!("{:<16} {:>9} {:>10} {:>10} {:>10}", "act", "processes", "median ms", "95 % ms", "worst ms");
    for act in chosen("FERRIO_ACT", FLOODS.iter().map(|act| act.name()).collect()) {
        for processes in [0, 1, 50] {
            let floods: Vec<_> =
                (0..processes).map(|_| Neighbour::start(&daemon, &client, &["hostile", &act])).collect();
            let mut times: Vec<_> = (0..100)
                .map(|_| {
                    let begin = Instant::now();
                    let session = daemon.session("null", Access::ReadWriteShared).open().expect("served");
                    let time = begin.elapsed().as_secs_f64() * 1e3;
                    drop(session);
                    time
                })
                .collect();
            drop(floods);
            times.sort_by(f64::total_cmp);
            let (median, most, worst) = (times[50], times[95], times[99]);
            println!("{act:<16} {processes:>9} {median:>10.1} {most:>10.1} {worst:>10.1}");
        }
    }
}

/// What an environment variable names, or all.
fn chosen(variable: &str, all: Vec<String>) -> Vec<String> {
    let Ok(name) = std::env::var(variable) else { return all };
    assert!(all.contains(&name), "{variable}={name}: one of {all:?} is wanted");
    vec![name]
}

/// A round of ferrio beside a neighbour.
struct Round {
    iops: f64,
    /// Part of a CPU that the neighbour took.
    share: f64,
    /// The same of the daemon's control thread.
    control: f64,
    /// Sessions opened per second; the bench's own is one of them.
    sessions: f64,
}

impl Round {
    fn beside(daemon: &mut Daemon, client: &Path, volume: &str, runtime: f64, words: &[&str]) -> Self {
        let mut neighbour = Neighbour::start(daemon, client, words);
        let control = daemon.process().pid();
        let begin = (Instant::now(), neighbour.cpu_seconds(), cpu_seconds(control), opened(daemon));
        let iops = iops(daemon, volume, runtime, true);
        let elapsed = begin.0.elapsed().as_secs_f64();
        let round = Self {
            iops,
            share: (neighbour.cpu_seconds() - begin.1) / elapsed,
            control: (cpu_seconds(control) - begin.2) / elapsed,
            sessions: (opened(daemon) - begin.3) / elapsed,
        };
        assert!(!neighbour.0.has_ended(), "it ended: {}", neighbour.0.stderr());
        round
    }
}

fn opened(daemon: &Daemon) -> f64 {
    daemon.ctl_json(&["stats"])["sessions_opened"].as_f64().expect("a number")
}

/// One round of ferrio.
fn iops(daemon: &Daemon, volume: &str, runtime: f64, written: bool) -> f64 {
    let runtime = runtime.to_string();
    let mut words =
        vec!["bench", "--volume", volume, "--iodepth", "32", "--against", "none", "--rounds", "1"];
    words.extend(["--runtime", &runtime]);
    if written {
        words.push("--skip-fill");
    }
    words.push("--json");
    let finished = daemon.ctl(&words);
    if finished.code() != 0 {
        // Not measured is what the hostile client is after: it counts as nothing done.
        println!("{}", finished.stderr.trim_end());
        return 0.0;
    }
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    report["cases"][0]["iops"]["median"].as_f64().expect("a number")
}

/// A process of another user, of one thread.
struct Neighbour(Process);

impl Neighbour {
    fn start(daemon: &Daemon, client: &Path, words: &[&str]) -> Self {
        let mut command = Command::new(client);
        command.arg("--socket").arg(daemon.control()).args(words).uid(OTHER).gid(OTHER);
        let mut process = Process::start(&mut command);
        process.wait_for_line("at work");
        Self(process)
    }

    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.0.pid())
    }
}

/// CPU time of a process's first thread.
fn cpu_seconds(pid: u32) -> f64 {
    let path = PathBuf::from(format!("/proc/{pid}/schedstat"));
    let text = std::fs::read_to_string(&path).expect("a kernel with CONFIG_SCHED_INFO");
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.unwrap_or_else(|| panic!("{}: {text}", path.display())) / 1e9
}
