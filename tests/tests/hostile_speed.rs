//! How much a hostile client slows the others. Measures, and asserts nothing; ignored by default:
//!
//! `cargo test --release -p ferrio-tests --test hostile_speed -- --ignored --nocapture`
//!
//! `ferrioctl bench` runs in pairs of rounds: beside a client that does the same hostile thing again and again, then beside a
//! thread that only computes and takes as much CPU time as that client took. On a machine with few CPUs whoever computes
//! slows everybody; what is left in the ratio is what the daemon lets a client do to others.

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use ferrio_api::v1::Access;
use ferrio_shm::{abi::Opcode, entry::Sqe, lease::LeaseMessage, peer};
use ferrio_tests::{Daemon, DaemonBuilder, RawSession};
use rustix::time::{ClockId, clock_gettime};

const MIB: u64 = 1 << 20;

/// Does one hostile thing to the daemon, again and again until it is told to stop.
type Act = fn(&Daemon, &dyn Fn() -> bool);

const ACTS: [(&str, Act); 5] = [
    ("attach flood", flood_attach),
    ("random bytes in live rings", scribble),
    ("doorbell filled", fill_doorbell),
    ("sessions opened and faulted", open_and_fault),
    ("bad requests", bad_requests),
];

#[test]
#[ignore = "measures, and takes minutes of a quiet machine"]
fn what_a_hostile_client_costs_the_others() {
    let number = |name: &str, or: f64| std::env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let (pairs, runtime) = (number("FERRIO_PAIRS", 9.0) as usize, number("FERRIO_RUNTIME", 1.0));
    let daemon = DaemonBuilder::new()
        // All are of one user: not the limits are measured.
        .config("[limits]\nconnections_per_uid_max = 400\nsessions_per_uid_max = 256")
        .engine("main", "auto", "")
        .file("data", 256 * MIB)
        .null("null", 256 * MIB)
        .file("target", 4 * MIB)
        .start();
    // Writes the file whole.
    iops(&daemon, "data", 0.05, false);
    println!(
        "{:<30} {:>6} {:>8} {:>17} {:>12} {:>10}",
        "act", "volume", "ratio", "min - max", "IOPS beside", "its CPU"
    );
    for volume in ["data", "null"] {
        for (name, act) in ACTS {
            let (mut ratios, mut beside, mut shares) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..pairs {
                let (hostile, share) =
                    during(|go_on| act(&daemon, go_on), || iops(&daemon, volume, runtime, true));
                let (neutral, _) =
                    during(|go_on| compute(share, go_on), || iops(&daemon, volume, runtime, true));
                ratios.push(hostile / neutral);
                beside.push(hostile);
                shares.push(share);
            }
            let (low, high) = ratios
                .iter()
                .fold((f64::MAX, 0.0), |(low, high): (f64, f64), ratio| (low.min(*ratio), high.max(*ratio)));
            println!(
                "{name:<30} {volume:>6} {:>8.3} {low:>8.3} - {high:<6.3} {:>12.0} {:>8.0} %",
                median(&mut ratios),
                median(&mut beside),
                100.0 * median(&mut shares)
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

/// Runs `load` in a thread while `measure` runs; also returns which part of a CPU the thread took.
fn during(load: impl FnOnce(&dyn Fn() -> bool) + Send, measure: impl FnOnce() -> f64) -> (f64, f64) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let start = Instant::now();
            load(&|| !stop.load(Relaxed));
            cpu_time().as_secs_f64() / start.elapsed().as_secs_f64()
        });
        // Whatever becomes of the measurement, the load ends.
        let ending = Ending(&stop);
        let measured = measure();
        drop(ending);
        (measured, thread.join().expect("the load ends well"))
    })
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// ---- loads

/// Takes so much of a CPU.
fn compute(share: f64, go_on: &dyn Fn() -> bool) {
    let start = Instant::now();
    while go_on() {
        if cpu_time().as_secs_f64() < share * start.elapsed().as_secs_f64() {
            for n in 0..1000_u64 {
                black_box(n);
            }
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn attacker(daemon: &Daemon) -> RawSession {
    RawSession::open(&daemon.control(), &[("target", Access::ReadWriteShared)], 32)
}

fn flood_attach(daemon: &Daemon, go_on: &dyn Fn() -> bool) {
    let (path, message) = (daemon.path("run/attach.sock"), LeaseMessage::Close.encode());
    let mut open = std::collections::VecDeque::new();
    while go_on() {
        if let Ok(socket) = peer::connect(&path) {
            let _ = peer::send_message(&socket, &message, &[]);
            open.push_back(socket);
        }
        if open.len() > 50 {
            open.pop_front();
        }
    }
}

/// Random words into the entries of its rings, with indices that are right, so that the session lives.
fn scribble(daemon: &Daemon, go_on: &dyn Fn() -> bool) {
    let mut session = attacker(daemon);
    let (start, length) = (session.queue.sqes_offset as usize, session.queue.sq_entries as usize * 8);
    let mut random = 0x5eed_u64;
    while go_on() {
        let words = session.memory.u64s(start, length).expect("the SQEs lie in the memory");
        for word in words {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.store(random >> 7, Relaxed);
        }
        while session.sq.push(&Sqe { op: (random >> 60) as u8, length: random, ..Sqe::default() }).is_ok() {}
        if session.sq.publish() {
            session.doorbell.ring().expect("the daemon lives");
        }
        while let Ok(Some(_)) = session.cq.pop() {}
        session.cq.release();
    }
}

fn fill_doorbell(daemon: &Daemon, go_on: &dyn Fn() -> bool) {
    let session = attacker(daemon);
    while go_on() {
        session.doorbell.ring().expect("the daemon lives");
    }
}

fn open_and_fault(daemon: &Daemon, go_on: &dyn Fn() -> bool) {
    while go_on() {
        let session = attacker(daemon);
        let tail = session.memory.u32(session.queue.control_offset as usize).expect("the control block");
        tail.store(1000, Relaxed);
        session.doorbell.ring().expect("the daemon lives");
    }
}

fn bad_requests(daemon: &Daemon, go_on: &dyn Fn() -> bool) {
    let mut session = attacker(daemon);
    let wild = Sqe { op: Opcode::Read as u8, volume: 9, length: u64::MAX, ..Sqe::default() };
    while go_on() {
        while session.sq.push(&wild).is_ok() {}
        if session.sq.publish() {
            session.doorbell.ring().expect("the daemon lives");
        }
        while let Ok(Some(_)) = session.cq.pop() {}
        session.cq.release();
    }
}
