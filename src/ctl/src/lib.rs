//! Command line for ferriod. One file per noun; each asks the daemon, then prints a table or JSON.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod connect;
mod error;
mod fault;
mod info;
mod limit;
mod output;
mod queue;
mod scheduler;
mod session;
mod stats;
#[cfg(test)]
mod testing;
mod volume;

pub use bench::statistics;

use std::process::ExitCode;

use clap::Parser;

use cli::{
    Cli, Command, FaultCommand, LimitCommand, QueueCommand, SchedulerCommand, SessionCommand, VolumeCommand,
};
use error::CtlError;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::BenchClient = cli.command {
        return bench::client();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("ferrioctl: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough, as in `ferrioctl queue list --watch | head`.
        Err(CtlError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrioctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), CtlError> {
    let socket = connect::socket(cli.socket);
    let channel = connect::connect(&socket).await?;
    let json = cli.json;
    match cli.command {
        Command::Info => info::run(channel, json).await,
        Command::Volume { command } => match command {
            VolumeCommand::List => volume::list(channel, json).await,
            VolumeCommand::Create(args) => volume::create(channel, json, args).await,
            VolumeCommand::Remove { name, wait_ms } => volume::remove(channel, json, name, wait_ms).await,
            VolumeCommand::Resize { name, size } => volume::resize(channel, json, name, size).await,
        },
        Command::Fault { command } => match command {
            FaultCommand::Show { volume } => fault::show(channel, json, volume).await,
            FaultCommand::Set(args) => fault::set(channel, json, args).await,
            FaultCommand::Clear { volume } => fault::clear(channel, json, volume).await,
        },
        Command::Session { command } => match command {
            SessionCommand::List => session::list(channel, json).await,
            SessionCommand::Set(args) => session::set(channel, json, args).await,
            SessionCommand::Evict { session_id, reason } => {
                session::evict(channel, json, session_id, reason).await
            }
        },
        Command::Limit { command } => match command {
            LimitCommand::List => limit::list(channel, json).await,
            LimitCommand::Set(args) => limit::set(channel, json, args).await,
            LimitCommand::Clear(scope) => limit::clear(channel, json, scope).await,
        },
        Command::Scheduler { command } => match command {
            SchedulerCommand::Show => scheduler::show(channel, json).await,
            SchedulerCommand::Set(args) => scheduler::set(channel, json, args).await,
        },
        Command::Queue { command: QueueCommand::List { watch: false, .. } } => {
            queue::list(channel, json).await
        }
        Command::Queue { command: QueueCommand::List { interval_ms, .. } } => {
            queue::watch(channel, json, interval_ms).await
        }
        Command::Stats => stats::run(channel, json).await,
        Command::Bench(args) => bench::run(channel, socket, *args, json).await,
        // Needs no daemon of its own: `main` has seen to it.
        Command::BenchClient => Ok(()),
    }
}
