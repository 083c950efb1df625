//! The latency target in life: what prio takes beside bulk, and what bulk keeps. Measures, and asserts nothing; ignored by
//! default:
//!
//! `cargo test --release -p ferrio-engine --test latency_target -- --ignored --nocapture`
//!
//! On a file that is written whole first, with `O_DIRECT`. `FERRIO_TARGET=path` takes another file or block device, which is
//! overwritten; `FERRIO_BULK=write:4,read:64` (KiB) other bulk, `FERRIO_ROUNDS` and `FERRIO_PHASE` (seconds) more or less time.
//!
//! A round is: prio alone, bulk alone, both without a target, both with it, bulk after prio; then both without a target for
//! each of the depths of bulk, which are the caps that the target chooses from: the curve. Ratios are of one round, what is
//! printed are medians over the rounds.

mod load;

use std::{env, path::PathBuf, sync::Arc, thread, time::Duration};

use ferrio_driver::{OpenOptions, Target, select::BackendChoice};
use ferrio_engine::{
    Engine, EngineConfig, LatencyGoal, Threads, clock, merge::MergeLimits, scheduler::DEFAULT_BUDGETS,
};
use ferrio_shm::abi::Opcode;
use load::{Client, DEPTH_MAX, Load};

const MIB: u64 = 1 << 20;
const FILE_BYTES: u64 = 128 * MIB;
/// Wanted of prio: at most twice what it takes alone.
const GOAL: LatencyGoal = LatencyGoal::Relative(200);
/// Before a phase is measured.
const LEAD_IN: Duration = Duration::from_millis(200);
/// Bulk is looked at in windows of this time after prio.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOWS: usize = 6;

/// One phase.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    p50: f64,
    p99: f64,
    p999: f64,
    prio: f64,
    bulk: f64,
}

struct Bench {
    engine: Engine,
    prio: Client,
    bulk: Client,
    phase: Duration,
}

impl Bench {
    /// Both at work for the time of a phase, or one.
    fn both(&self, prio: bool, bulk: Option<Load>) -> Seen {
        self.bulk.set(bulk);
        self.prio.set(prio.then_some(Load { op: Opcode::Read, bytes: 4096, depth: 1 }));
        thread::sleep(LEAD_IN);
        self.prio.take_latencies();
        let from = clock::now();
        thread::sleep(self.phase);
        let until = clock::now();
        let latencies = self.prio.take_latencies();
        let quantile = |part: f64| {
            let place = (latencies.len() as f64 * part) as usize;
            latencies.get(place).map_or(0.0, |latency| *latency as f64 / 1000.0)
        };
        Seen {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            prio: self.prio.rate(from, until),
            bulk: self.bulk.rate(from, until),
        }
    }

    fn rest(&self) {
        [&self.prio, &self.bulk].into_iter().for_each(|client| client.set(None));
        [&self.prio, &self.bulk].into_iter().for_each(Client::settle);
        thread::sleep(LEAD_IN);
    }

    fn phase(&self, prio: bool, bulk: Option<Load>) -> Seen {
        let seen = self.both(prio, bulk);
        self.rest();
        seen
    }

    /// With the target, and how bulk goes on after prio, by window.
    fn with_goal(&self, bulk: Load) -> (Seen, [f64; WINDOWS]) {
        self.engine.set_latency_goal(GOAL).unwrap();
        let seen = self.both(true, Some(bulk));
        self.prio.set(None);
        self.prio.settle();
        let silent = clock::now();
        thread::sleep(WINDOW * WINDOWS as u32 + WINDOW / 5);
        let window = u64::try_from(WINDOW.as_nanos()).unwrap();
        let after = std::array::from_fn(|n| {
            self.bulk.rate(silent + n as u64 * window, silent + (n as u64 + 1) * window)
        });
        self.engine.set_latency_goal(LatencyGoal::Off).unwrap();
        self.rest();
        (seen, after)
    }
}

/// What one round found.
struct Round {
    alone: Seen,
    bulk_alone: Seen,
    off: Seen,
    on: Seen,
    after: [f64; WINDOWS],
    curve: Vec<Seen>,
}

fn depths() -> impl Iterator<Item = u32> {
    (0..=DEPTH_MAX.ilog2()).map(|power| 1 << power)
}

#[test]
#[ignore = "measures, and takes minutes of a quiet machine"]
fn what_the_latency_target_gives_and_takes() {
    let number = |name: &str, or: f64| env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let rounds = number("FERRIO_ROUNDS", 7.0) as usize;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = env::var_os("FERRIO_TARGET").map_or_else(|| directory.path().join("volume"), PathBuf::from);
    let options = OpenOptions { create_bytes: Some(FILE_BYTES), ..OpenOptions::default() };
    let target = Target::open(&path, &options).unwrap();
    let bytes = target.size_bytes().min(FILE_BYTES);
    println!("{}: {} MiB, O_DIRECT: {}", target.name(), bytes / MIB, target.direct());
    let journal = tempfile::tempdir_in("/dev/shm").unwrap();
    let engine = Engine::start(&EngineConfig {
        name: "main".into(),
        backend: BackendChoice::Auto,
        depth: 256,
        requests_max: 1024,
        queues_max: 4,
        sessions_max: 4,
        regions_per_session: 1,
        faults: false,
        threads: Threads::Auto,
        spin_us: number("FERRIO_SPIN_US", 50.0) as u32,
        budgets: DEFAULT_BUDGETS,
        helpers: 1,
        merge: MergeLimits::OFF,
        journal: journal.path().join("journal"),
        epoch: 1,
    })
    .unwrap();
    fill(&path, bytes);
    let volume = engine.add_volume(Arc::new(target)).unwrap();
    let [prio, bulk] =
        [(1, true), (2, false)].map(|(id, prio)| Client::open(&engine, id, volume, bytes, prio));
    let phase = Duration::from_secs_f64(number("FERRIO_PHASE", 2.0));
    let bench = Bench { engine, prio, bulk, phase };
    let loads = env::var("FERRIO_BULK").unwrap_or("write:4,write:64,read:4".into());
    for load in loads.split(',').map(parse) {
        let rounds: Vec<Round> = (0..rounds).map(|_| round(&bench, load)).collect();
        report(load, &rounds);
    }
    bench.engine.stop();
}

fn parse(text: &str) -> Load {
    let (op, kib) = text.split_once(':').expect("write:4");
    let op = if op == "read" { Opcode::Read } else { Opcode::Write };
    Load { op, bytes: kib.parse::<u64>().expect("KiB") << 10, depth: DEPTH_MAX }
}

/// So that nothing is allocated while it is measured.
fn fill(path: &std::path::Path, bytes: u64) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    (0..bytes / MIB).for_each(|n| file.write_all(&vec![n as u8 | 1; MIB as usize]).unwrap());
    file.sync_all().unwrap();
}

fn round(bench: &Bench, load: Load) -> Round {
    let alone = bench.phase(true, None);
    let bulk_alone = bench.phase(false, Some(load));
    let off = bench.phase(true, Some(load));
    let (on, after) = bench.with_goal(load);
    let curve = depths().map(|depth| bench.phase(true, Some(Load { depth, ..load }))).collect();
    Round { alone, bulk_alone, off, on, after, curve }
}

fn report(load: Load, rounds: &[Round]) {
    let over = |what: &dyn Fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "\nprio: 4 KiB reads of depth 1; bulk: {:?} of {} KiB, {} rounds",
        load.op,
        load.bytes >> 10,
        rounds.len()
    );
    println!(
        "{:<22} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "", "p50 us", "p99", "p99.9", "p99/alone", "prio/s", "bulk/s", "of alone"
    );
    let row = |name: String, of: &dyn Fn(&Round) -> Seen| {
        println!(
            "{name:<22} {:>8.0} {:>8.0} {:>8.0} {:>9.2} {:>9.0} {:>9.0} {:>9.2}",
            over(&|round| of(round).p50),
            over(&|round| of(round).p99),
            over(&|round| of(round).p999),
            over(&|round| of(round).p99 / round.alone.p99),
            over(&|round| of(round).prio),
            over(&|round| of(round).bulk),
            over(&|round| of(round).bulk / round.bulk_alone.bulk),
        );
    };
    row("prio alone".into(), &|round| round.alone);
    row("bulk alone".into(), &|round| round.bulk_alone);
    row("both, target off".into(), &|round| round.off);
    row("both, target 200 %".into(), &|round| round.on);
    for (n, depth) in depths().enumerate() {
        row(format!("  {depth} of bulk in flight"), &|round| round.curve[n]);
    }
    for n in 0..WINDOWS {
        let share = over(&|round| round.after[n] / round.bulk_alone.bulk);
        println!("bulk {:>3} ms after prio: {share:.2} of alone", (n as u128 + 1) * WINDOW.as_millis());
    }
}
