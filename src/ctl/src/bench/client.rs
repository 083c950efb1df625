//! A client process of the benchmark. It reads its order, and then its window, from standard input.

use std::io::{BufRead, Write, stdin, stdout};
use std::process::ExitCode;
use std::thread;

use ferrio_driver::direct::{AioQueue, DirectFile, DirectQueue, SyncQueue, UringQueue, UringWait};
use hdrhistogram::Histogram;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::de::DeserializeOwned;

use super::args::Peer;
use super::engines::{Direct, Ferrio};
use super::load::{self, Engine, Workload};
use super::message::{Failure, Load, LoadOrder, Message, Order, Route, Window};
use super::{idle, ping_pong, sweep};

/// `ferrioctl bench-client`.
pub fn main() -> ExitCode {
    // Nobody is left to end it when the coordinator was killed.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let message = read().and_then(|order| obey(&order)).unwrap_or_else(Message::Failed);
    let failed = matches!(message, Message::Failed(_));
    say(&message);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn obey(order: &Order) -> Result<Message, Failure> {
    match order {
        Order::Load(order) => load(order).map(Message::Loaded),
        Order::Sweep(order) => sweep::run(order, &mut |message| say(&message)).map(Message::Swept),
        Order::Idle(order) => {
            idle::run(order, || say(&Message::Ready { degraded: Vec::new() })).map(|()| Message::Closed)
        }
        Order::PingPong(ms) => ping_pong::run(*ms),
    }
}

fn load(order: &LoadOrder) -> Result<Load, Failure> {
    let Route::Direct { peer, file: path, direct } = &order.route else {
        return single(Ferrio::open(order)?, order, Vec::new());
    };
    let file = DirectFile::open(path, order.rw.writes(), *direct);
    let file = file.map_err(Failure::of(&format!("cannot open {}", path.display())))?;
    let failed = Failure::of(peer.name());
    let bs = order.bs as usize;
    let uring = |wait| UringQueue::new(&file, order.iodepth, bs, wait).map_err(&failed);
    match peer {
        Peer::IoUring | Peer::IoUringPoll => {
            let queue = uring(if *peer == Peer::IoUring { UringWait::Sleep } else { UringWait::Spin })?;
            let degraded = queue.degraded().to_vec();
            single(direct_engine(queue, order), order, degraded)
        }
        Peer::Libaio => {
            let queue = AioQueue::new(&file, order.iodepth, bs).map_err(&failed)?;
            single(direct_engine(queue, order), order, Vec::new())
        }
        Peer::Psync => threads(&file, order),
        Peer::Unmerged => Err(Failure("its I/O goes through the daemon".to_owned())),
    }
}

fn direct_engine<Q: DirectQueue>(queue: Q, order: &LoadOrder) -> Direct<Q> {
    Direct::new(queue, order.bs, order.iodepth)
}

/// One thread that keeps all requests of the client in flight.
fn single(mut engine: impl Engine, order: &LoadOrder, degraded: Vec<String>) -> Result<Load, Failure> {
    let mut workload = Workload::new(order)?;
    load::touch(&mut engine, order.iodepth, order.seed)?;
    say(&Message::Ready { degraded });
    let (load, latency) = load::run(&mut engine, &mut workload, order.iodepth, read()?)?;
    Ok(Load { latency: counts(&latency), ..load })
}

/// One thread for each request in flight, with a part of the area of its own if it writes or goes in order.
fn threads(file: &DirectFile, order: &LoadOrder) -> Result<Load, Failure> {
    say(&Message::Ready { degraded: Vec::new() });
    let window: Window = read()?;
    let thread = |index: u32| {
        let order = LoadOrder {
            area: super::plan::part(&order.area, order.rw, index, order.iodepth),
            seed: order.seed ^ u64::from(index) << 32,
            ..order.clone()
        };
        let queue = SyncQueue::new(file, order.bs as usize).map_err(Failure::of("psync"))?;
        let (mut engine, mut workload) = (Direct::new(queue, order.bs, 1), Workload::new(&order)?);
        load::touch(&mut engine, 1, order.seed)?;
        load::run(&mut engine, &mut workload, 1, window)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..order.iodepth)
            .map(|index| thread::Builder::new().spawn_scoped(scope, move || thread(index)))
            .collect::<Result<_, _>>()
            .map_err(Failure::of("psync needs a thread for each request in flight"))?;
        let (mut all, mut sum) = (load::histogram()?, None);
        for thread in threads {
            let (load, latency) = thread.join().map_err(|_| Failure("a thread panicked".to_owned()))??;
            all.add(&latency).map_err(Failure::of("histogram"))?;
            // Each has looked at the CPU time of the whole process.
            let sum: &mut Load = sum.get_or_insert(Load { completed: 0, ..load });
            sum.completed += load.completed;
        }
        let sum = sum.ok_or_else(|| Failure("no thread".to_owned()))?;
        Ok(Load { latency: counts(&all), ..sum })
    })
}

fn counts(latency: &Histogram<u64>) -> Vec<(u64, u64)> {
    latency.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}

fn read<T: DeserializeOwned>() -> Result<T, Failure> {
    let mut line = String::new();
    let failed = Failure::of("cannot read the order");
    stdin().lock().read_line(&mut line).map_err(&failed)?;
    if line.is_empty() {
        return Err(Failure("this is a part of `ferrioctl bench`, which is gone; run that".to_owned()));
    }
    serde_json::from_str(&line).map_err(Failure::of("not an order of `ferrioctl bench`"))
}

/// Writes one line. A coordinator that is gone does not read it, and the kernel ends this process with it.
fn say(message: &Message) {
    let line = serde_json::to_string(message).unwrap_or_else(|error| unreachable!("{error}"));
    let _ = writeln!(stdout().lock(), "{line}");
}
