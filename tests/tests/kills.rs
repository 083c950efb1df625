//! Daemon and clients are killed again and again under load that is verified: nothing acknowledged is lost, nothing is
//! answered twice, and nothing is there that nobody asked for.
//!
//! `FERRIO_KILLS` (default 500) is how many kills there are over all tests of this file, `FERRIO_KILLS_SEED` (default 1) the
//! seed of who is killed and when.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ferrio_tests::{Daemon, DaemonBuilder, Process, ledger::Ledger};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const PAIRS: usize = 16;
/// Tests of this file, which share the kills.
const TESTS: u64 = 3;
/// Longest from one kill to the next.
const PAUSE_MS: u64 = 120;

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// A client process that is started again when it was killed.
struct Victim {
    volume: &'static str,
    /// Of the test client, without the seed.
    arguments: Vec<String>,
    process: Process,
    lives: u64,
}

impl Victim {
    fn start(daemon: &Daemon, volume: &'static str, until: &std::path::Path) -> Self {
        let until = until.to_str().expect("a plain path").to_owned();
        let mut arguments = vec!["--name".into(), volume.into()];
        if volume == "mix" {
            arguments.extend(["mix".into(), volume.into()]);
        } else {
            let ledger = ledger_of(daemon, volume).into_os_string().into_string().expect("a plain path");
            arguments.extend(["ledger".into(), volume.into(), "--ledger".into(), ledger]);
            arguments.extend(["--caller".into(), volume.into(), "--pairs".into(), PAIRS.to_string()]);
        }
        arguments.extend(["--until".into(), until]);
        let process = Self::life(daemon, &arguments, 1);
        Self { volume, arguments, process, lives: 1 }
    }

    fn life(daemon: &Daemon, arguments: &[String], life: u64) -> Process {
        let seed = life.to_string();
        let all: Vec<&str> = arguments.iter().map(String::as_str).chain(["--seed", &seed]).collect();
        daemon.client(&all)
    }

    /// Kills it, and starts the next one.
    fn kill(&mut self, daemon: &Daemon) {
        self.check();
        self.process.signal(Signal::KILL);
        self.lives += 1;
        self.process = Self::life(daemon, &self.arguments, self.lives);
    }

    /// It ends only when it has found something.
    #[track_caller]
    fn check(&mut self) {
        assert!(!self.process.has_ended(), "client {} failed:\n{}", self.volume, self.process.stderr());
    }
}

fn ledger_of(daemon: &Daemon, volume: &str) -> PathBuf {
    daemon.path(&format!("ledger-{volume}"))
}

/// Who was killed how often.
#[derive(Clone, Copy, Debug, Default)]
struct Kills {
    daemon: u64,
    terms: u64,
    clients: u64,
    /// The daemon and a client in the same moment.
    both: u64,
}

fn kill_all_the_time(builder: DaemonBuilder, callers: [&'static str; 2], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(from_environment("FERRIO_KILLS_SEED", 1) << 8 | seed);
    let volumes = [callers[0], callers[1], "mix"];
    let builder = volumes.iter().fold(builder, |builder, volume| builder.file(volume, MIB));
    let mut daemon = builder.start();
    let until = daemon.path("until");
    let mut clients: Vec<Victim> =
        volumes.iter().map(|volume| Victim::start(&daemon, volume, &until)).collect();
    let wanted = from_environment("FERRIO_KILLS", 500).div_ceil(TESTS);
    let (mut kills, start) = (Kills::default(), Instant::now());
    while kills.daemon + kills.clients < wanted {
        thread::sleep(Duration::from_millis(rng.u64(..PAUSE_MS)));
        let whom = rng.u32(..10);
        if whom < 6 {
            kills.clients += 1;
            let client = rng.usize(..clients.len());
            clients[client].kill(&daemon);
        }
        if whom >= 4 {
            kills.daemon += 1;
            kills.both += u64::from(whom < 6);
            let signal = if rng.u32(..4) == 0 { Signal::TERM } else { Signal::KILL };
            kills.terms += u64::from(signal == Signal::TERM);
            daemon.end(signal);
            daemon.restart();
        }
        clients.iter_mut().for_each(Victim::check);
    }
    std::fs::write(&until, "").expect("own directory");
    let log = daemon.log();
    for client in clients {
        let pid = client.process.pid();
        let finished = client.process.finish();
        assert_eq!(
            finished.code(),
            0,
            "client {} (pid {pid}):\n{}\nthe daemon:\n{log}",
            client.volume,
            finished.stderr
        );
        println!("{} in its life {}: {}", client.volume, client.lives, finished.stdout.trim());
    }
    println!("{kills:?} in {:?}", start.elapsed());
    for caller in callers {
        let [answered, replayed, owner_dead] =
            Ledger::open(&ledger_of(&daemon, caller), PAIRS).unwrap().totals().unwrap();
        println!("{caller}: {answered} answered, {replayed} replayed, {owner_dead} of unknown outcome");
        assert!(answered >= wanted, "{caller} did next to nothing");
        // One at a time is met by chance.
        let met = replayed > 0 || caller == "blocking" || kills.daemon < 20;
        assert!(met, "no kill met {caller} with a request in flight");
    }
    assert!(daemon.ctl_json(&["session", "list"])["sessions"].as_array().is_some_and(Vec::is_empty));
    assert!(!daemon.process().has_ended(), "{}", daemon.log());
}

fn engine(backend: &str, threads: &str) -> DaemonBuilder {
    // The session of a client that was killed while it opened it may hold its volume for so long.
    let builder = DaemonBuilder::new().config("resume_timeout_s = 5");
    builder.engine("main", backend, &format!("threads = {threads:?}"))
}

#[test]
fn over_io_uring_with_one_thread() {
    kill_all_the_time(engine("io_uring", "1"), ["blocking", "async"], 1);
}

#[test]
fn over_io_uring_with_two_threads() {
    kill_all_the_time(engine("io_uring", "2"), ["polling", "sleeping"], 2);
}

#[test]
fn over_aio() {
    kill_all_the_time(engine("aio", "auto"), ["sleeping", "async"], 3);
}
