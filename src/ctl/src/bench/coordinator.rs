//! Prepares the volume, and lets ferrio and its peers take turns.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ferrio_driver::random::SplitMix64;
use hdrhistogram::Histogram;
use rustix::fs::{MemfdFlags, memfd_create};

use super::args::Peer;
use super::clock::now_ns;
use super::load;
use super::message::{
    Failure, IdleOrder, Load, LoadOrder, Message, Order, Route, Sweep, SweepOrder, Verify, Window,
};
use super::pattern::{self, Ledger};
use super::plan::Plan;
use super::process::Client;
use super::progress::Screen;
use super::results::{Results, Round};
use super::usage::{Between, Look, Usage};
use crate::output::bytes;

/// Between the release of the clients and the window.
const WARM_UP: Duration = Duration::from_millis(250);
/// A round takes so much more: processes start, sessions are opened, requests in flight are awaited.
const OVERHEAD: Duration = Duration::from_millis(350);
const PING_PONG_MS: u64 = 30;
/// What it takes to open and close an idle session.
const IDLE_SESSION: Duration = Duration::from_millis(2);
/// Thousands of sessions are opened, or closed.
const IDLE_PATIENCE: Duration = Duration::from_secs(120);

/// A benchmark at work.
pub struct Coordinator {
    plan: Plan,
    screen: Screen,
    seeds: SplitMix64,
    /// All that live now, from their start to their end: they are ended even when nobody waits for them any more.
    clients: Vec<Client>,
    /// So is the one that holds idle sessions.
    idle: Option<Client>,
    /// The file without a name that has the generations of the blocks.
    table: Option<(File, Verify)>,
    results: Results,
}

impl Coordinator {
    pub fn new(plan: Plan, seed: u64) -> Coordinator {
        Coordinator {
            plan,
            screen: Screen::new(),
            seeds: SplitMix64::new(seed),
            clients: Vec::new(),
            idle: None,
            table: None,
            results: Results::default(),
        }
    }

    /// Does everything.
    pub async fn play(&mut self) -> Result<(), Failure> {
        self.fill().await?;
        let pairs: Vec<Option<Peer>> = match self.plan.peers.is_empty() {
            true => vec![None; self.plan.args.rounds as usize],
            false => {
                let peers = self.plan.peers.iter().flat_map(|&peer| [None, Some(peer)]);
                let peers: Vec<_> = peers.collect();
                peers.repeat(self.plan.args.rounds as usize)
            }
        };
        let mut each = WARM_UP + Duration::from_secs_f64(self.plan.args.runtime) + OVERHEAD;
        if let Some(sessions) = self.plan.args.idle_sessions {
            each = 2 * each + sessions * IDLE_SESSION;
        }
        self.screen.rounds(pairs.len(), each);
        for (index, &who) in pairs.iter().enumerate() {
            self.screen.round(index, pairs.len(), each, who.map_or("ferrio", Peer::name));
            if who.is_none() && self.plan.args.ping_pong {
                self.ping_pong().await?;
            }
            let round = self.round(who).await?;
            self.results.rounds.push((who, round));
            if let Some(sessions) = self.plan.args.idle_sessions {
                let beside = self.round_beside(sessions).await?;
                self.results.beside_idle.push((beside, round));
            }
        }
        self.check().await
    }

    /// Ends all clients; what was measured so far.
    pub async fn end(mut self) -> (Plan, Results) {
        self.screen.clear();
        for client in self.clients.drain(..).chain(self.idle.take()) {
            client.kill().await;
        }
        (self.plan, self.results)
    }

    /// Writes the volume whole, so that the disk has something to read.
    async fn fill(&mut self) -> Result<(), Failure> {
        let name = self.plan.scene.volume.name.clone();
        if self.plan.scene.is_null() {
            return Ok(());
        }
        if self.plan.destroys() {
            self.screen.note(&format!("volume {name}: its data is overwritten"));
        }
        if self.plan.args.verify {
            self.table = Some(self.table()?);
        }
        let unwritten = "blocks that were never written cost the disk nothing to read";
        if self.plan.args.skip_fill {
            return Ok(());
        }
        if self.plan.scene.volume.read_only {
            self.results
                .warn(format!("volume {name} is read-only and was not written beforehand: {unwritten}"));
            return Ok(());
        }
        let sweep = match (&self.table, self.plan.destroys()) {
            (Some((_, verify)), _) => Sweep::Fill { seed: verify.seed, block_bytes: verify.block_bytes },
            (None, true) => Sweep::Fill {
                seed: self.seeds.next_u64(),
                block_bytes: pattern::block_bytes(self.plan.args.bs),
            },
            (None, false) => Sweep::Rewrite,
        };
        let written = self.sweep(sweep, "writing the volume").await;
        written.map_err(|Failure(what)| match self.plan.args.verify {
            true => Failure(what),
            false => Failure(format!("{what}; with --skip-fill the volume is not written beforehand")),
        })?;
        self.screen.note(&format!("volume {name}: {} written", bytes(self.plan.bytes)));
        Ok(())
    }

    fn table(&mut self) -> Result<(File, Verify), Failure> {
        let failed = Failure::of("cannot keep the generations of the blocks");
        let file = memfd_create("ferrio-bench-generations", MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        let block_bytes = pattern::block_bytes(self.plan.args.bs);
        Ledger::create(&file, self.plan.bytes / block_bytes).map_err(failed)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let verify = Verify { seed: self.seeds.next_u64(), block_bytes, generations: path.into() };
        Ok((file, verify))
    }

    /// Reads everything in the end.
    async fn check(&mut self) -> Result<(), Failure> {
        if let Some((_, verify)) = &self.table {
            let sweep = Sweep::Check(verify.clone());
            self.results.verified_blocks = Some(self.sweep(sweep, "checking the volume").await?);
        }
        Ok(())
    }

    async fn sweep(&mut self, sweep: Sweep, what: &str) -> Result<u64, Failure> {
        let order = SweepOrder {
            socket: self.plan.socket.clone(),
            volume: self.plan.scene.volume.name.clone(),
            bytes: self.plan.bytes,
            sweep,
        };
        self.start(&Order::Sweep(order)).await?;
        loop {
            match self.clients[0].next(Duration::ZERO).await? {
                Message::Progress(permille) => self.screen.sweep(what, permille),
                Message::Swept(blocks) => {
                    self.finish().await?;
                    return Ok(blocks);
                }
                _ => return Err(unexpected()),
            }
        }
    }

    async fn ping_pong(&mut self) -> Result<(), Failure> {
        self.start(&Order::PingPong(PING_PONG_MS)).await?;
        let Message::PingPong { round_trip_ns, cpus } = self.clients[0].next(Duration::ZERO).await? else {
            return Err(unexpected());
        };
        self.results.ping_pong.push(round_trip_ns);
        self.results.ping_pong_cpus = cpus;
        self.finish().await
    }

    async fn start(&mut self, order: &Order) -> Result<(), Failure> {
        self.clients.push_mut(Client::start()?).tell(order).await
    }

    /// All clients have said what they had to say.
    async fn finish(&mut self) -> Result<(), Failure> {
        for client in &mut self.clients {
            client.finish().await?;
        }
        self.clients.clear();
        Ok(())
    }

    /// A round of ferrio beside sessions that do nothing.
    async fn round_beside(&mut self, sessions: u32) -> Result<Round, Failure> {
        let volume = self.plan.scene.volume.name.clone();
        let order = IdleOrder { socket: self.plan.socket.clone(), volume, sessions };
        let idle = self.idle.insert(Client::start()?);
        idle.tell(&Order::Idle(order)).await?;
        let Message::Ready { .. } = idle.next(IDLE_PATIENCE).await? else { return Err(unexpected()) };
        let round = self.round(None).await?;
        if let Some(idle) = &mut self.idle {
            idle.finish_within(IDLE_PATIENCE).await?;
        }
        self.idle = None;
        Ok(round)
    }

    async fn round(&mut self, who: Option<Peer>) -> Result<Round, Failure> {
        for index in 0..self.plan.args.clients {
            let order = self.order(who, index);
            self.start(&Order::Load(order)).await?;
        }
        for client in &mut self.clients {
            let Message::Ready { degraded } = client.next(Duration::ZERO).await? else {
                return Err(unexpected());
            };
            let name = who.map_or("ferrio", Peer::name);
            degraded.iter().for_each(|what| self.results.warn(format!("{name}: {what}")));
        }
        let runtime = Duration::from_secs_f64(self.plan.args.runtime);
        let start_ns = now_ns() + WARM_UP.as_nanos() as u64;
        let window = Window { start_ns, end_ns: start_ns + runtime.as_nanos() as u64 };
        for client in &mut self.clients {
            client.tell(&window).await?;
        }
        let between = self.look(window).await;
        let mut loads = Vec::with_capacity(self.clients.len());
        for client in &mut self.clients {
            let Message::Loaded(load) = client.next(runtime).await? else { return Err(unexpected()) };
            loads.push(load);
        }
        self.finish().await?;
        self.evaluate(who, &loads, &between)
    }

    fn order(&mut self, who: Option<Peer>, client: u32) -> LoadOrder {
        let Plan { args, scene, socket, target, .. } = &self.plan;
        let route = match who {
            Some(peer) if !peer.is_ferrio() => {
                Route::Direct { peer, file: target.clone(), direct: scene.volume.direct }
            }
            None | Some(_) => Route::Ferrio {
                socket: socket.clone(),
                volume: scene.volume.name.clone(),
                wait: args.wait,
                merge: who != Some(Peer::Unmerged),
            },
        };
        LoadOrder {
            route,
            rw: args.rw,
            bs: args.bs,
            iodepth: args.iodepth,
            area: self.plan.area(client),
            seed: self.seeds.next_u64(),
            verify: self.table.as_ref().map(|(_, verify)| verify.clone()),
        }
    }

    /// What goes on outside of the clients while they measure.
    async fn look(&self, window: Window) -> Between {
        let wait_until = |ns: u64| tokio::time::sleep(Duration::from_nanos(ns.saturating_sub(now_ns())));
        wait_until(window.start_ns).await;
        let first = Look::take(self.plan.scene.daemon.pid);
        wait_until(window.end_ns).await;
        first.until(&Look::take(self.plan.scene.daemon.pid))
    }

    fn evaluate(&self, who: Option<Peer>, loads: &[Load], between: &Between) -> Result<Round, Failure> {
        let mut latency: Histogram<u64> = load::histogram()?;
        for &(value, count) in loads.iter().flat_map(|load| &load.latency) {
            latency.saturating_record_n(value, count);
        }
        let clients = loads
            .iter()
            .fold(Usage::default(), |sum, &Load { cpu_ns, switches, .. }| sum + Usage { cpu_ns, switches });
        let completed: u64 = loads.iter().map(|load| load.completed).sum();
        if completed == 0 {
            return Err(Failure("no request was completed within a round: raise --runtime".to_owned()));
        }
        let rate = |load: &Load| load.completed as f64 / (load.elapsed_ns.max(1) as f64 / 1e9);
        let iops: f64 = loads.iter().map(rate).sum();
        // The daemon is looked at from outside, a little earlier or later: its rate counts.
        let daemon = between.daemon.filter(|_| who.is_none_or(Peer::is_ferrio));
        let per_request = |amount: u64| amount as f64 / (between.elapsed_ns as f64 / 1e9) / iops;
        let measured_ns = clients.cpu_ns + between.own.cpu_ns + daemon.map_or(0, |daemon| daemon.cpu_ns);
        let capacity_ns = between.elapsed_ns as f64 * self.results.cpus as f64;
        let daemon_cpu_us = match who {
            Some(peer) if !peer.is_ferrio() => Some(0.0),
            None | Some(_) => daemon.map(|daemon| per_request(daemon.cpu_ns) / 1e3),
        };
        let quantile_us = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Round {
            iops,
            mib_s: iops * self.plan.args.bs as f64 / f64::from(1 << 20),
            p50_us: quantile_us(0.5),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            max_us: latency.max() as f64 / 1e3,
            client_cpu_us: clients.cpu_ns as f64 / completed as f64 / 1e3,
            daemon_cpu_us,
            switches: clients.switches as f64 / completed as f64
                + daemon.map_or(0.0, |daemon| per_request(daemon.switches)),
            other_load: between.machine_ns.saturating_sub(measured_ns) as f64 / capacity_ns,
        })
    }
}

fn unexpected() -> Failure {
    Failure("a client process said something else than expected".to_owned())
}
