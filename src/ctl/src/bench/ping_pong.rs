//! What two processes that share memory cannot beat: a cache line on its way to another CPU and back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::clock::now_ns;
use super::message::{Failure, Message};
use super::statistics::median;

/// Round trips between two looks at the clock, which would otherwise be a large part of them.
const TRIPS: u64 = 100;
/// Tells the other side to end.
const END: u64 = u64::MAX;

/// Alone in its cache line, and in the one that is fetched with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// Measures for so long.
pub fn run(ms: u64) -> Result<Message, Failure> {
    let cpus = two_cpus();
    let (ping, pong) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let mut trips = Vec::new();
    let bound = thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let bound = cpus.is_some_and(|[_, second]| bind(second));
            echo(&ping.0, &pong.0);
            bound
        });
        let bound = cpus.is_some_and(|[first, _]| bind(first));
        send(&ping.0, &pong.0, ms, &mut trips);
        echo.join().is_ok_and(|other| other && bound)
    });
    let cpus = cpus.filter(|_| bound).map(|cpus| cpus.map(|cpu| cpu as u32));
    Ok(Message::PingPong { round_trip_ns: median(trips), cpus })
}

fn send(ping: &AtomicU64, pong: &AtomicU64, ms: u64, trips: &mut Vec<f64>) {
    let mut now = now_ns();
    let end = now + ms * 1_000_000;
    let mut turn = 0;
    while now < end {
        for _ in 0..TRIPS {
            turn += 1;
            ping.store(turn, Ordering::Release);
            while pong.load(Ordering::Acquire) != turn {}
        }
        let later = now_ns();
        trips.push((later - now) as f64 / TRIPS as f64);
        now = later;
    }
    ping.store(END, Ordering::Release);
}

fn echo(ping: &AtomicU64, pong: &AtomicU64) {
    let mut last = 0;
    loop {
        let turn = ping.load(Ordering::Acquire);
        if turn == END {
            return;
        }
        if turn != last {
            pong.store(turn, Ordering::Release);
            last = turn;
        }
    }
}

/// The first and the last CPU that this process may use.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    Some([cpus.next()?, cpus.next_back()?])
}

/// Keeps this thread on one CPU.
fn bind(cpu: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back() {
        let Message::PingPong { round_trip_ns, .. } = run(20).unwrap() else { panic!("another message") };
        assert!(round_trip_ns > 1.0, "{round_trip_ns}");
    }
}
