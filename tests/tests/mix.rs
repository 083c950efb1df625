//! All operations at once, with cancels, timeouts and faults, against a model of the volume that knows the order rules.
//!
//! `FERRIO_MIX_SECONDS` (default 2) is how long each test goes on, `FERRIO_MIX_SEED` (default 1) the seed of its first
//! round; a failure names the seed that asks for the same requests again.

use std::time::{Duration, Instant};

use ferrio_client::{Access, Features, QueueOptions, Session, WaitPolicy};
use ferrio_tests::{
    Daemon, DaemonBuilder, Mix,
    mix::{Restarts, Shape, Tally},
    seccomp::without_io_uring,
    skip::{has_program, skip},
};

const MIB: u64 = 1 << 20;

const SHAPE: Shape = Shape {
    blocks: 48,
    blocks_max: 8,
    requests: 1000,
    depth: 48,
    chain_max: 6,
    stream_max: 12,
    faults: false,
    restarts: Restarts::Never,
};

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Rounds until the time is over, two at least.
fn rounds(mix: &mut Mix<'_>) -> Tally {
    let end = Instant::now() + Duration::from_secs(from_environment("FERRIO_MIX_SECONDS", 2));
    let first = from_environment("FERRIO_MIX_SEED", 1);
    let mut done = 0;
    while done < 2 || Instant::now() < end {
        mix.round(first + done).unwrap_or_else(|what| panic!("{what}"));
        done += 1;
    }
    println!("{done} rounds from seed {first}: {:?}", mix.tally);
    mix.tally
}

/// Two queues on one volume.
fn open(daemon: &Daemon, options: QueueOptions, arena: u64) -> Session {
    let builder = daemon.session("data", Access::ReadWrite).arena_bytes(arena);
    builder.queue(options.clone()).queue(options).open().expect("a session")
}

fn mix(daemon: &mut Daemon, options: QueueOptions, shape: Shape) -> Tally {
    let session = open(daemon, options, 16 * MIB);
    assert_eq!(session.features(), Features::ALL);
    let volume = session.volume("data").unwrap();
    let queues = vec![session.take_queue(0).unwrap(), session.take_queue(1).unwrap()];
    let mut mix = Mix::new(&session, &volume, queues, shape);
    let tally = rounds(&mut mix);
    for (count, what) in [
        (tally.cancelled, "cancelled"),
        (tally.swapped, "swapped"),
        (tally.differed, "differed"),
        (tally.read, "read"),
    ] {
        assert!(count > 0, "nothing was {what}: {tally:?}");
    }
    drop(mix);
    drop(session);
    assert!(daemon.merged() > 0, "no stream was joined: {tally:?}");
    let stats = daemon.ctl_json(&["stats"]);
    assert_eq!(stats["engines"][0]["stale_completions"], 0, "{stats}");
    assert!(!daemon.process().has_ended(), "{}", daemon.log());
    tally
}

fn file(backend: &str, threads: &str) -> DaemonBuilder {
    DaemonBuilder::new().engine("main", backend, &format!("threads = {threads:?}")).file("data", MIB)
}

fn memory(backend: &str, threads: &str) -> DaemonBuilder {
    DaemonBuilder::new().engine("main", backend, &format!("threads = {threads:?}")).memory("data", MIB)
}

#[test]
fn over_a_file_and_io_uring_with_one_thread() {
    mix(&mut file("io_uring", "1").start(), QueueOptions::default(), SHAPE);
}

#[test]
fn over_a_file_and_io_uring_with_two_threads() {
    mix(&mut file("io_uring", "2").start(), QueueOptions::default(), SHAPE);
}

#[test]
fn over_a_file_and_aio() {
    mix(&mut file("aio", "auto").start(), QueueOptions::default(), SHAPE);
}

#[test]
fn over_memory_and_io_uring() {
    mix(&mut memory("io_uring", "auto").start(), QueueOptions::default(), SHAPE);
}

#[test]
fn over_memory_and_aio() {
    mix(&mut memory("aio", "auto").start(), QueueOptions::default(), SHAPE);
}

#[test]
fn few_blocks_and_many_writers() {
    let shape = Shape { blocks: 4, blocks_max: 4, ..SHAPE };
    mix(&mut file("auto", "auto").start(), QueueOptions::default(), shape);
}

#[test]
fn rings_of_eight() {
    let options = QueueOptions { entries: 8, cq_entries: 8, ..QueueOptions::default() };
    let tally = mix(&mut file("auto", "auto").start(), options, Shape { depth: 8, ..SHAPE });
    assert_eq!(tally.deepest, 8, "the rings were never full");
}

#[test]
fn a_client_that_sleeps() {
    let options = QueueOptions { wait: WaitPolicy::Sleep, ..QueueOptions::default() };
    mix(&mut file("io_uring", "2").start(), options, SHAPE);
}

#[test]
fn under_a_seccomp_filter_without_io_uring() {
    if !has_program("bwrap") {
        return skip("bubblewrap is not installed", false);
    }
    let builder = file("auto", "auto");
    let filter = builder.path("no-io-uring.bpf");
    std::fs::write(&filter, without_io_uring()).unwrap();
    // The filter is passed as descriptor 9. The daemon dies with bubblewrap, and that with the test.
    let script =
        format!("exec bwrap --dev-bind / / --die-with-parent --seccomp 9 \"$@\" 9<{}", filter.display());
    let mut daemon = builder.under(&["sh", "-c", &script, "sh"]).start();
    let engines = daemon.ctl_json(&["info"]);
    let engine = &engines["engines"][0];
    assert_eq!(engine["backend"], "aio", "{engines}");
    let reason = engine["backend_reason"].as_str().unwrap();
    assert!(reason.contains("seccomp") || reason.contains("EPERM"), "{reason}");
    mix(&mut daemon, QueueOptions::default(), SHAPE);
}

fn four_thousand(backend: &str) {
    let more = "queue_depth = 4096\nrequests_max = 16384";
    let mut daemon = DaemonBuilder::new().engine("main", backend, more).file("data", 16 * MIB).start();
    let options = QueueOptions { entries: 4096, cq_entries: 4096, ..QueueOptions::default() };
    let session = open(&daemon, options, 128 * MIB);
    let volume = session.volume("data").unwrap();
    let queues = vec![session.take_queue(0).unwrap(), session.take_queue(1).unwrap()];
    let shape = Shape { blocks: 1024, blocks_max: 2, requests: 20_000, depth: 4096, ..SHAPE };
    let mut mix = Mix::new(&session, &volume, queues, shape);
    mix.round(from_environment("FERRIO_MIX_SEED", 1)).unwrap_or_else(|what| panic!("{what}"));
    assert_eq!(mix.tally.deepest, 4096, "the queue was never full");
    drop(mix);
    drop(session);
    assert!(!daemon.process().has_ended(), "{}", daemon.log());
}

#[test]
fn four_thousand_in_flight_over_io_uring() {
    four_thousand("io_uring");
}

#[test]
fn four_thousand_in_flight_over_aio() {
    four_thousand("aio");
}
