//! `ferriod demo`: a daemon, three client processes, and every block verified, on an empty machine and without root.
//!
//! | module | what it does |
//! |---|---|
//! | [`pattern`] | what is written, and how it is known again |
//! | [`client`], `drive` | a client process: fill, work, verify |
//! | `message` | what the client processes tell |
//! | `stage` | directory, configuration and daemon, and their end |
//! | `clients` | the client processes, from outside |
//! | `restart`, `pauses` | the other demo: what sessions notice of a restart |
//! | `watch`, `screen`, `report` | the queues over gRPC, progress, the outcome |

pub mod client;
pub mod pattern;

mod clients;
mod drive;
mod message;
mod pauses;
mod report;
mod restart;
mod screen;
mod stage;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ferrio_api::v1;
use ferrio_api::v1::engines_client::EnginesClient;
use ferrio_api::v1::volumes_client::VolumesClient;
use rustix::process::Signal;
use serde::Serialize;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub use client::ClientArgs;
pub use stage::{DaemonArgs, run_daemon};

use client::Role;
use clients::{Client, Order, Tell};
use message::{Failure, Message};
use report::Outcome;
use restart::{Restart, RestartOutcome};
use screen::Screen;
use stage::Stage;
use watch::Watch;

/// Blocks of one client's area: 32 MiB.
const AREA_BLOCKS: u64 = 8192;
const SCREEN_EVERY: Duration = Duration::from_millis(100);

/// Options of `ferriod demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// How long the clients work.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// What does the I/O.
    #[arg(long, default_value = "auto", value_parser = ["auto", "io_uring", "aio"])]
    pub backend: String,
    /// Where to make the temporary directory [default: $TMPDIR, or /tmp].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Kill or stop the daemon in the middle, start it again, and say how long the sessions had to wait.
    #[arg(long)]
    pub restart: bool,
    /// Sessions that meet the restart.
    #[arg(long, default_value_t = 100, requires = "restart", value_parser = clap::value_parser!(u64).range(1..=restart::SESSIONS_MAX))]
    pub sessions: u64,
    /// How the daemon is ended.
    #[arg(long, value_enum, default_value = "kill", requires = "restart")]
    pub signal: restart::Ending,
    /// Lets the bulk writer write a wrong byte into this block of its area, to see that it is found.
    #[arg(long, hide = true, conflicts_with = "restart", value_parser = clap::value_parser!(u64).range(0..AREA_BLOCKS))]
    pub corrupt_block: Option<u64>,
}

/// Runs one client of the demo.
pub fn run_client(args: ClientArgs) -> ExitCode {
    // Nobody is left to end it when the demo was killed.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    match client::run(&args) {
        Ok(report) => {
            client::say(&Message::Done(report));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            client::say(&Message::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo.
pub fn run(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.restart {
        let outcome = runtime.block_on(perform_restart(&args));
        print(args.json, outcome.verified, &outcome, outcome.text())
    } else {
        let outcome = runtime.block_on(perform(&args));
        let outcome =
            outcome.unwrap_or_else(|failure| Outcome { failures: vec![failure], ..Outcome::default() });
        print(args.json, outcome.verified, &outcome, outcome.text())
    }
}

fn print(json: bool, verified: bool, outcome: &impl Serialize, text: String) -> ExitCode {
    if json {
        println!("{}", serde_json::to_string_pretty(outcome).unwrap_or_else(|error| unreachable!("{error}")));
    } else {
        println!("{text}");
    }
    if verified { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn perform(args: &Args) -> Result<Outcome, Failure> {
    let seed = seed()?;
    let mut interrupts = Interrupts::listen()?;
    let bytes = Role::ALL.len() as u64 * AREA_BLOCKS * pattern::BLOCK_BYTES as u64;
    let mut stage = set(args, bytes, Role::ALL.len() as u64)?;
    let mut show = Show::new(args.seconds, seed);
    let ended = tokio::select! {
        ended = show.play(&mut stage, args) => ended,
        failure = interrupts.next() => Err(failure),
    };
    let mut outcome = show.end().await;
    outcome.failures.extend(ended.err());
    outcome.failures.extend(stage.clear().await.err());
    outcome.verified = outcome.failures.is_empty() && outcome.clients.len() == Role::ALL.len();
    Ok(outcome)
}

async fn perform_restart(args: &Args) -> RestartOutcome {
    let set_up = || {
        let (seed, interrupts) = (seed()?, Interrupts::listen()?);
        Ok((seed, interrupts, set(args, restart::volume_bytes(args.sessions), args.sessions)?))
    };
    let failed = |failure| RestartOutcome { failures: vec![failure], ..RestartOutcome::default() };
    let (seed, mut interrupts, mut stage) = match set_up() {
        Ok(set) => set,
        Err(failure) => return failed(failure),
    };
    let mut restart = Restart::new();
    let ended = tokio::select! {
        ended = restart.play(&mut stage, args, seed) => ended,
        failure = interrupts.next() => Err(failure),
    };
    let mut outcome = ended.unwrap_or_else(failed);
    outcome.failures.extend(stage.clear().await.err());
    outcome.verified = outcome.failures.is_empty();
    outcome
}

fn seed() -> Result<u64, Failure> {
    getrandom::u64().map_err(|error| Failure::new("", format!("no random seed: {error}")))
}

fn set(args: &Args, volume_bytes: u64, sessions: u64) -> Result<Stage, Failure> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    Stage::set(&parent, &args.backend, volume_bytes, sessions)
}

/// Signals that end not the process, but the demo, which then removes what it made.
struct Interrupts([(unix::Signal, &'static str); 3]);

impl Interrupts {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind, name| match unix::signal(kind) {
            Ok(signal) => Ok((signal, name)),
            Err(error) => Err(Failure::new("", format!("cannot listen for signals: {error}"))),
        };
        Ok(Self([
            listen(SignalKind::interrupt(), "SIGINT")?,
            listen(SignalKind::terminate(), "SIGTERM")?,
            listen(SignalKind::hangup(), "SIGHUP")?,
        ]))
    }

    async fn next(&mut self) -> Failure {
        let [interrupt, terminate, hangup] = &mut self.0;
        let name = tokio::select! {
            _ = interrupt.0.recv() => interrupt.1,
            _ = terminate.0.recv() => terminate.1,
            _ = hangup.0.recv() => hangup.1,
        };
        Failure::new("", format!("interrupted ({name})"))
    }
}

/// What a demo says of the daemon that it has started.
struct Introduction {
    text: String,
    backend: String,
    backend_reason: String,
    direct: bool,
}

async fn introduction(channel: Channel, stage: &Stage) -> Result<Introduction, Failure> {
    let failed =
        |status: tonic::Status| Failure::new("", format!("the daemon does not answer: {}", status.message()));
    let engines =
        EnginesClient::new(channel.clone()).list(v1::ListEnginesRequest {}).await.map_err(failed)?;
    let volumes = VolumesClient::new(channel).list(v1::ListVolumesRequest {}).await.map_err(failed)?;
    let engine = engines.into_inner().engines.pop().unwrap_or_default();
    let volume = volumes.into_inner().volumes.pop().unwrap_or_default();
    let text = format!(
        "daemon serves {}; volume {} of {} MiB, {}; {} ({})",
        stage.socket().display(),
        volume.path,
        volume.size_bytes >> 20,
        if volume.direct { "O_DIRECT".to_owned() } else { format!("not O_DIRECT: {}", volume.direct_reason) },
        engine.backend,
        engine.backend_reason,
    );
    let (backend, backend_reason) = (engine.backend, engine.backend_reason);
    Ok(Introduction { text, backend, backend_reason, direct: volume.direct })
}

/// The demo between its start and its end, whatever ends it.
struct Show {
    outcome: Outcome,
    screen: Screen,
    watch: Watch,
    watching: Option<JoinHandle<Result<(), tonic::Status>>>,
    clients: Vec<Client>,
}

impl Show {
    fn new(seconds: u64, seed: u64) -> Self {
        let outcome = Outcome { seconds, seed, ..Outcome::default() };
        Self { outcome, screen: Screen::new(), watch: Watch::default(), watching: None, clients: Vec::new() }
    }

    /// Until all clients are done, or one of them or the daemon fails.
    async fn play(&mut self, stage: &mut Stage, args: &Args) -> Result<(), Failure> {
        let channel = stage.ready().await?;
        self.introduce(channel.clone(), stage).await?;
        self.watching = Some(tokio::spawn(self.watch.clone().run(channel)));
        for (index, (role, first_block)) in
            Role::ALL.into_iter().zip((0..).step_by(AREA_BLOCKS as usize)).enumerate()
        {
            let corrupt_block = args.corrupt_block.filter(|_| role == Role::BulkWriter);
            let Outcome { seconds, seed, .. } = self.outcome;
            let order = Order { role, first_block, blocks: AREA_BLOCKS, seconds, seed, corrupt_block };
            self.clients.push(Client::start(index, &stage.socket(), order)?);
        }
        let (tell, mut heard) = unbounded_channel();
        let Self { clients, screen, watch, outcome, .. } = self;
        let ended = tokio::select! {
            ended = work(clients, &tell) => ended,
            failure = stage.ended() => Err(failure),
            () = follow(&mut heard, screen, watch, outcome) => Ok(()),
        };
        while let Ok((client, message)) = heard.try_recv() {
            hear(client, message, screen, outcome);
        }
        ended
    }

    async fn introduce(&mut self, channel: Channel, stage: &Stage) -> Result<(), Failure> {
        let introduced = introduction(channel, stage).await?;
        self.screen.note(&introduced.text);
        self.outcome.backend = introduced.backend;
        self.outcome.backend_reason = introduced.backend_reason;
        self.outcome.direct = introduced.direct;
        Ok(())
    }

    async fn end(self) -> Outcome {
        self.screen.clear();
        for client in self.clients {
            client.kill().await;
        }
        if let Some(watching) = self.watching {
            watching.abort();
        }
        let mut outcome = self.outcome;
        outcome.queues_seen = self.watch.seen();
        outcome.clients.sort_by_key(|report| Role::ALL.iter().position(|role| role.name() == report.name));
        outcome
    }
}

/// All fill their areas, then all work at the same time.
async fn work(clients: &mut [Client], tell: &Tell) -> Result<(), Failure> {
    let [a, b, c] = clients else { return Err(Failure::new("", "there are not three clients")) };
    tokio::try_join!(a.filled(tell), b.filled(tell), c.filled(tell))?;
    tokio::try_join!(a.finish(tell), b.finish(tell), c.finish(tell))?;
    Ok(())
}

/// Shows what the clients tell and what is in the queues, for as long as somebody may still tell something.
async fn follow(
    heard: &mut UnboundedReceiver<(usize, Message)>,
    screen: &mut Screen,
    watch: &Watch,
    outcome: &mut Outcome,
) {
    let mut tick = tokio::time::interval(SCREEN_EVERY);
    loop {
        tokio::select! {
            message = heard.recv() => {
                let Some((client, message)) = message else { return };
                hear(client, message, screen, outcome);
            }
            _ = tick.tick() => screen.show_queues(watch),
        }
    }
}

fn hear(client: usize, message: Message, screen: &mut Screen, outcome: &mut Outcome) {
    screen.show(client, &message);
    if let Message::Done(report) = message {
        outcome.clients.push(report);
    }
}
