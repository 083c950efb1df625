//! Faults made on purpose: errors, delays, short and torn transfers, requests that overtake each other or are stuck. Nothing
//! is lost, nothing is answered twice, and a device that does not answer stops nobody else.

use std::{
    thread,
    time::{Duration, Instant},
};

use ferrio_api::v1::{FaultEffect, FaultOp, FaultRule, VolumeState};
use ferrio_client::{Access, Buffer, Cancelled, Errno, Queue, QueueOptions, Request, Session, Volume};
use ferrio_tests::{
    Daemon, DaemonBuilder, Mix, Operator,
    mix::{Restarts, Shape, Tally},
    process::wait_until,
};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn from_environment(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// A bit of everything that a bad disk does.
fn bad_disk() -> Vec<FaultRule> {
    let rule = |effect: FaultEffect, probability_ppm: u32| FaultRule {
        effect: effect.into(),
        probability_ppm,
        ..FaultRule::default()
    };
    let only = |rule: FaultRule, ops: &[FaultOp]| FaultRule {
        ops: ops.iter().map(|op| i32::from(*op)).collect(),
        ..rule
    };
    vec![
        rule(FaultEffect::Error, 10_000),
        only(rule(FaultEffect::TornWrite, 20_000), &[FaultOp::Write]),
        only(rule(FaultEffect::Short, 150_000), &[FaultOp::Read, FaultOp::Write]),
        FaultRule { delay_min_us: 50, delay_max_us: 3000, ..rule(FaultEffect::Delay, 100_000) },
        FaultRule { window: 8, ..rule(FaultEffect::Reorder, 200_000) },
    ]
}

fn mix_on_a_bad_disk(builder: DaemonBuilder) -> Tally {
    let mut daemon = builder.start();
    let operator = Operator::new(daemon.control());
    let seed = from_environment("FERRIO_MIX_SEED", 1);
    let session = daemon.session("data", Access::ReadWrite).arena_bytes(16 * MIB);
    let session = session.queue(QueueOptions::default()).queue(QueueOptions::default()).open().unwrap();
    let volume = session.volume("data").unwrap();
    let queues = vec![session.take_queue(0).unwrap(), session.take_queue(1).unwrap()];
    let shape = Shape {
        blocks: 48,
        blocks_max: 8,
        requests: 1000,
        depth: 48,
        chain_max: 6,
        stream_max: 12,
        faults: true,
        restarts: Restarts::Never,
    };
    let mut mix = Mix::new(&session, &volume, queues, shape);
    operator.set_faults("data", seed, bad_disk()).expect("faults");
    let end = Instant::now() + Duration::from_secs(from_environment("FERRIO_MIX_SECONDS", 2));
    let mut round = 0;
    while round < 2 || Instant::now() < end {
        mix.round(seed + round).unwrap_or_else(|what| panic!("{what}"));
        round += 1;
    }
    let applied = operator.faults_applied("data").unwrap();
    println!("{round} rounds from seed {seed}, faults {applied:?}: {:?}", mix.tally);
    assert!(applied.iter().all(|count| *count > 0), "a rule never acted: {applied:?}");
    assert!(mix.tally.failed > 0, "{:?}", mix.tally);
    // Without faults nothing fails any more.
    operator.clear_faults("data").unwrap();
    let failed = mix.tally.failed;
    mix.round(seed + round).unwrap_or_else(|what| panic!("{what}"));
    assert_eq!(mix.tally.failed, failed);
    assert!(!daemon.process().has_ended(), "{}", daemon.log());
    mix.tally
}

fn engine(backend: &str, threads: &str) -> DaemonBuilder {
    DaemonBuilder::new().engine("main", backend, &format!("threads = {threads:?}\nfaults = true"))
}

#[test]
fn all_operations_on_a_bad_disk_over_io_uring_with_one_thread() {
    mix_on_a_bad_disk(engine("io_uring", "1").file("data", MIB));
}

#[test]
fn all_operations_on_a_bad_disk_over_io_uring_with_two_threads() {
    mix_on_a_bad_disk(engine("io_uring", "2").file("data", MIB));
}

#[test]
fn all_operations_on_a_bad_disk_over_aio() {
    mix_on_a_bad_disk(engine("aio", "auto").file("data", MIB));
}

#[test]
fn all_operations_on_bad_memory() {
    mix_on_a_bad_disk(engine("auto", "auto").memory("data", MIB));
}

/// From now on writes to this volume are not answered.
fn stick(operator: &Operator) {
    let (ops, effect) = (vec![FaultOp::Write.into()], FaultEffect::Stuck.into());
    let rule = FaultRule { ops, effect, ..FaultRule::default() };
    operator.set_faults("stuck", 1, vec![rule]).expect("faults");
}

/// A client with requests that no device answers.
struct Stuck {
    session: Session,
    volume: Volume,
    queue: Queue,
    count: usize,
}

impl Stuck {
    fn start(daemon: &Daemon, operator: &Operator) -> Self {
        stick(operator);
        let session = daemon.session("stuck", Access::ReadWriteShared).open().unwrap();
        let volume = session.volume("stuck").unwrap();
        let mut stuck = Self { queue: session.take_queue(0).unwrap(), session, volume, count: 16 };
        for place in 0..stuck.count {
            let write = Request::write(&stuck.volume, (place * BLOCK) as u64, stuck.buffer());
            stuck.queue.submit(write.tag(1000)).unwrap();
        }
        stuck.queue.commit().unwrap();
        // Reads of the same volume are answered, behind the writes.
        let read = stuck.queue.read(&stuck.volume, 0, stuck.buffer()).unwrap();
        drop(read);
        stuck
    }

    fn buffer(&self) -> Buffer {
        self.session.alloc(BLOCK).unwrap()
    }

    /// Submits another write, and takes it back; too late, if it was issued meanwhile.
    fn write_and_cancel(&mut self) -> Cancelled {
        let write = Request::write(&self.volume, 0, self.buffer()).tag(1000);
        let ticket = self.queue.submit(write).unwrap();
        self.queue.commit().unwrap();
        thread::sleep(Duration::from_millis(20));
        let cancelled = self.queue.cancel(ticket).unwrap();
        match cancelled {
            Cancelled::Yes => {
                let completion = self.queue.wait(Some(Duration::from_secs(20))).unwrap().unwrap();
                assert_eq!(completion.result.unwrap_err().errno(), Errno::ECANCELED);
            }
            Cancelled::TooLate => self.count += 1,
            Cancelled::NotFound => panic!("it was answered"),
        }
        cancelled
    }

    fn expect_answers(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        for left in (0..self.count).rev() {
            let wait = end.saturating_duration_since(Instant::now());
            let completion = self.queue.wait(Some(wait)).unwrap().unwrap_or_else(|| panic!("{left} left"));
            assert_eq!((completion.tag, completion.result), (1000, Ok(BLOCK as u32)));
        }
    }
}

/// A client on another volume of the same engine does all it has to do.
fn others_go_on(daemon: &Daemon) {
    daemon.client(&["verify", "data", "--seconds", "1"]).finish().expect(0);
}

fn a_stuck_device(builder: DaemonBuilder) {
    let mut daemon = builder.file("stuck", MIB).file("data", 4 * MIB).start();
    let operator = Operator::new(daemon.control());
    let mut stuck = Stuck::start(&daemon, &operator);
    others_go_on(&daemon);
    // What was issued cannot be taken back, and is not waited for when the volume is to go.
    while stuck.write_and_cancel() == Cancelled::Yes {}
    let start = Instant::now();
    let removed = operator.remove("stuck", 200).unwrap();
    assert!(!removed.removed && removed.in_flight >= stuck.count as u32, "{removed:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "the operator was held up");
    assert_eq!(operator.volume("stuck").unwrap().unwrap().state(), VolumeState::Removing);
    others_go_on(&daemon);
    let failure = stuck.queue.read(&stuck.volume, 0, stuck.buffer()).unwrap_err();
    assert_eq!(failure.error.errno(), Some(Errno::ENODEV));
    // The device comes back.
    operator.clear_faults("stuck").unwrap();
    stuck.expect_answers();
    wait_until("the volume to go", || operator.volume("stuck").unwrap().is_none());
    others_go_on(&daemon);
    drop(stuck);
    daemon.end(Signal::TERM).expect(0);
}

#[test]
fn a_stuck_device_stops_nobody_else_over_io_uring() {
    a_stuck_device(engine("io_uring", "auto"));
}

#[test]
fn a_stuck_device_stops_nobody_else_over_aio() {
    a_stuck_device(engine("aio", "auto"));
}

/// What waits behind a stuck request can be taken back, and its time passes; what does not wait for it goes on.
#[test]
fn a_barrier_on_a_stuck_volume_holds_back_its_own_volume_only() {
    let daemon = engine("auto", "auto").file("stuck", MIB).file("data", MIB).start();
    let operator = Operator::new(daemon.control());
    stick(&operator);
    let session = daemon.session("stuck", Access::ReadWriteShared).volume("data", Access::ReadWrite);
    let session = session.queue(QueueOptions::default()).queue(QueueOptions::default()).open().unwrap();
    let (stuck, data) = (session.volume("stuck").unwrap(), session.volume("data").unwrap());
    let (mut queue, mut other) = (session.take_queue(0).unwrap(), session.take_queue(1).unwrap());
    let buffer = || session.alloc(BLOCK).unwrap();
    let barrier = queue.submit(Request::write(&stuck, 0, buffer()).barrier(true).tag(1)).unwrap();
    let behind = queue.submit(Request::read(&stuck, 0, buffer()).tag(2)).unwrap();
    let timeout = Duration::from_millis(30);
    queue.submit(Request::read(&stuck, 0, buffer()).timeout(timeout).tag(3)).unwrap();
    let chain = vec![Request::flush(&stuck).tag(4), Request::read(&data, 0, buffer()).tag(5)];
    let chain = queue.submit_chain(chain).unwrap();
    // The other volume, and the same volume in another queue.
    queue.write(&data, 0, buffer()).unwrap();
    other.read(&stuck, 0, buffer()).unwrap();
    let completion = queue.wait(Some(Duration::from_secs(20))).unwrap().expect("the time passes");
    assert_eq!((completion.tag, completion.result.unwrap_err().errno()), (3, Errno::ETIMEDOUT));
    assert_eq!(queue.cancel(barrier).unwrap(), Cancelled::TooLate);
    assert_eq!(queue.cancel(behind).unwrap(), Cancelled::Yes);
    assert_eq!(queue.cancel(chain[0]).unwrap(), Cancelled::Yes);
    let mut cancelled: Vec<u64> = (0..3)
        .map(|_| {
            let completion = queue.wait(Some(Duration::from_secs(20))).unwrap().expect("it was cancelled");
            assert_eq!(completion.result.unwrap_err().errno(), Errno::ECANCELED);
            completion.tag
        })
        .collect();
    cancelled.sort_unstable();
    assert_eq!(cancelled, [2, 4, 5], "the rest of a chain goes with its member");
    operator.clear_faults("stuck").unwrap();
    let completion = queue.wait(Some(Duration::from_secs(20))).unwrap().expect("it is let go");
    assert_eq!((completion.tag, completion.result), (1, Ok(BLOCK as u32)));
}

#[test]
fn a_client_of_a_stuck_device_can_go_and_its_memory_stays_until_the_answer() {
    let mut daemon = engine("auto", "auto").file("stuck", MIB).file("data", 4 * MIB).start();
    let operator = Operator::new(daemon.control());
    let stuck = Stuck::start(&daemon, &operator);
    let id = stuck.session.id();
    drop(stuck);
    let listed = |daemon: &Daemon| {
        let sessions = daemon.ctl_json(&["session", "list"])["sessions"].as_array().unwrap().clone();
        sessions.into_iter().find(|session| session["session_id"] == id)
    };
    let state = listed(&daemon).expect("it is there for as long as the device may use its memory");
    assert_eq!(state["state"], "draining", "{state}");
    others_go_on(&daemon);
    operator.clear_faults("stuck").unwrap();
    wait_until("the session to go", || listed(&daemon).is_none());
    daemon.end(Signal::TERM).expect(0);
}

#[test]
fn a_daemon_that_stops_does_not_wait_for_a_stuck_device() {
    let mut daemon = engine("auto", "auto").file("stuck", MIB).file("data", 4 * MIB).start();
    let operator = Operator::new(daemon.control());
    let mut stuck = Stuck::start(&daemon, &operator);
    let waiter = thread::spawn(move || {
        stuck.expect_answers();
    });
    daemon.end(Signal::TERM).expect(0);
    waiter.join().expect("what was stuck is let go and answered before the end");
}
