//! `ferriod demo`: a daemon, three client processes, and every block verified, on an empty machine and without root.
//!
//! | module | what it does |
//! |---|---|
//! | [`pattern`] | what is written, and how it is known again |
//! | [`client`], `drive` | a client process: fill, work, verify |
//! | `message` | what the client processes tell |
//! | `stage` | directory, configuration and daemon, and their end |
//! | `clients` | the client processes, from outside |
//! | `watch`, `screen`, `report` | the queues over gRPC, progress, the outcome |

pub mod client;
pub mod pattern;

mod clients;
mod drive;
mod message;
mod report;
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
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub use client::ClientArgs;
pub use stage::{DaemonArgs, run_daemon};

use client::Role;
use clients::{Client, Order, Tell};
use message::{Failure, Message};
use report::Outcome;
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
    /// Lets the bulk writer write a wrong byte into this block of its area, to see that it is found.
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(0..AREA_BLOCKS))]
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
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(perform(&args)),
        Err(error) => Err(Failure::new("", format!("cannot start: {error}"))),
    };
    let outcome = outcome.unwrap_or_else(|failure| Outcome { failures: vec![failure], ..Outcome::default() });
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&outcome).unwrap_or_else(|error| unreachable!("{error}"))
        );
    } else {
        println!("{}", outcome.text());
    }
    if outcome.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn perform(args: &Args) -> Result<Outcome, Failure> {
    let seed = getrandom::u64().map_err(|error| Failure::new("", format!("no random seed: {error}")))?;
    let cannot = |error: std::io::Error| Failure::new("", format!("cannot listen for signals: {error}"));
    // From here on a signal does not end the process, but the demo, which then removes what it made.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut stage = Stage::set(
        &parent,
        &args.backend,
        Role::ALL.len() as u64 * AREA_BLOCKS * pattern::BLOCK_BYTES as u64,
    )?;

    let mut show = Show::new(args.seconds, seed);
    let ended = tokio::select! {
        ended = show.play(&mut stage, args) => ended,
        _ = interrupt.recv() => Err(Failure::new("", "interrupted (SIGINT)")),
        _ = terminate.recv() => Err(Failure::new("", "interrupted (SIGTERM)")),
        _ = hangup.recv() => Err(Failure::new("", "interrupted (SIGHUP)")),
    };
    let mut outcome = show.end().await;
    outcome.failures.extend(ended.err());
    outcome.failures.extend(stage.clear().await.err());
    outcome.verified = outcome.failures.is_empty() && outcome.clients.len() == Role::ALL.len();
    Ok(outcome)
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
        let failed = |status: tonic::Status| {
            Failure::new("", format!("the daemon does not answer: {}", status.message()))
        };
        let engines =
            EnginesClient::new(channel.clone()).list(v1::ListEnginesRequest {}).await.map_err(failed)?;
        let volumes = VolumesClient::new(channel).list(v1::ListVolumesRequest {}).await.map_err(failed)?;
        let engine = engines.into_inner().engines.pop().unwrap_or_default();
        let volume = volumes.into_inner().volumes.pop().unwrap_or_default();
        self.screen.note(&format!(
            "daemon serves {}; volume {} of {} MiB, {}; {} ({})",
            stage.socket().display(),
            volume.path,
            volume.size_bytes >> 20,
            if volume.direct {
                "O_DIRECT".to_owned()
            } else {
                format!("not O_DIRECT: {}", volume.direct_reason)
            },
            engine.backend,
            engine.backend_reason,
        ));
        self.outcome.backend = engine.backend;
        self.outcome.backend_reason = engine.backend_reason;
        self.outcome.direct = volume.direct;
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
