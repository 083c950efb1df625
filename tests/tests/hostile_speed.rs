//! How much a hostile client slows the others. Measures, and asserts nothing; ignored by default:
//!
//! `cargo test --release -p ferrio-tests --test hostile_speed -- --ignored --nocapture`
//!
//! `ferrioctl bench` runs in pairs of rounds: beside a process of another user that does the same hostile thing again and
//! again, then beside one that only computes and takes as much CPU time as that one took. On a machine with few CPUs whoever
//! computes slows everybody; what is left in the ratio is what the daemon lets a client do to others. Wanted: 0.95 or more.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use clap::ValueEnum;
use ferrio_tests::{
    Daemon, DaemonBuilder, Process,
    hostile::{Act, TARGET},
    process::copy_program,
    skip::{is_root, skip},
};
use ferrioctl::statistics::{Interval, median};

const MIB: u64 = 1 << 20;
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
    let daemon = DaemonBuilder::new()
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
        "{:<16} {:>6} {:>6} {:>6} {:>22} {:>12} {:>8}",
        "act", "volume", "pairs", "ratio", "interval (coverage)", "IOPS beside", "its CPU"
    );
    for volume in ["data", "null"] {
        for act in Act::value_variants() {
            let (mut ratios, mut beside, mut shares) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..pairs {
                let measure = || iops(&daemon, volume, runtime, true);
                let (hostile, share) =
                    Neighbour::start(&daemon, &client, &["hostile", &act.name()]).during(measure);
                let compute = ["compute", &share.to_string()];
                let (neutral, _) = Neighbour::start(&daemon, &client, &compute).during(measure);
                ratios.push(hostile / neutral);
                beside.push(hostile);
                shares.push(share);
            }
            let Some(Interval { low, high, coverage }) = Interval::of(ratios.iter().copied()) else { return };
            println!(
                "{:<16} {volume:>6} {pairs:>6} {:>6.3} {:>22} {:>12.0} {:>6.0} %",
                act.name(),
                median(ratios),
                format!("{low:.3} - {high:.3} ({:.0} %)", 100.0 * coverage),
                median(beside),
                100.0 * median(shares)
            );
        }
    }
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

    /// Measures while it runs; also returns which part of a CPU it took.
    fn during(mut self, measure: impl FnOnce() -> f64) -> (f64, f64) {
        let (begin, used) = (Instant::now(), self.cpu_seconds());
        let measured = measure();
        let share = (self.cpu_seconds() - used) / begin.elapsed().as_secs_f64();
        assert!(!self.0.has_ended(), "it ended: {}", self.0.stderr());
        (measured, share)
    }

    fn cpu_seconds(&self) -> f64 {
        let path = PathBuf::from(format!("/proc/{}/schedstat", self.0.pid()));
        let text = std::fs::read_to_string(&path).expect("a kernel with CONFIG_SCHED_INFO");
        let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
        nanoseconds.unwrap_or_else(|| panic!("{}: {text}", path.display())) / 1e9
    }
}
