//! Commands and options of ferriod.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Severity};
use crate::daemon::Ending;
use crate::start::StartError;
use crate::{daemon, demo, dev, log};

const AFTER_HELP: &str = "\
Without --config it runs the development default: sockets and one 64 MiB file volume in $XDG_RUNTIME_DIR/ferrio, or in a \
private temporary directory that it prints. That needs no root.";

/// Storage I/O daemon: owns files and block devices, and serves them through shared-memory rings.
#[derive(Debug, Parser)]
#[command(name = "ferriod", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says what is wrong with a configuration file, and exits with 1 if the daemon would not start.
    Check {
        /// Configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Shows a daemon and three clients at work, verifies every block, and removes what it made.
    Demo(demo::Args),
    #[command(hide = true)]
    DemoDaemon(demo::DaemonArgs),
    #[command(hide = true)]
    DemoClient(demo::ClientArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match (cli.command, cli.config) {
        (Some(Command::Check { config }), _) => check(&config),
        (Some(Command::Demo(args)), _) => demo::run(args),
        (Some(Command::DemoDaemon(args)), _) => demo::run_daemon(&args),
        (Some(Command::DemoClient(args)), _) => demo::run_client(args),
        (None, Some(path)) => serve(&path),
        (None, None) => dev::serve(),
    }
}

fn check(path: &std::path::Path) -> ExitCode {
    let (_, problems) = Config::load(path);
    for problem in &problems.0 {
        eprintln!("{problem}");
    }
    let (errors, warnings) = (problems.count(Severity::Error), problems.count(Severity::Warning));
    if errors > 0 {
        eprintln!("{}: {errors} error(s), {warnings} warning(s): ferriod would not start", path.display());
        return ExitCode::FAILURE;
    }
    println!("{}: ok, {warnings} warning(s)", path.display());
    ExitCode::SUCCESS
}

/// A daemon with an I/O thread less answers nobody: better to end, so that a supervisor starts it again.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Runs the daemon that this file configures.
pub fn serve(path: &std::path::Path) -> ExitCode {
    abort_on_panic();
    let (config, problems) = Config::load(path);
    let Some(config) = config else {
        eprintln!("{problems}\nferriod: not started");
        return ExitCode::FAILURE;
    };
    log::start(config.daemon.log_level);
    for problem in &problems.0 {
        tracing::warn!("{problem}");
    }
    finish(daemon::run(config, |_| {}))
}

/// Exit code of a daemon that has ended.
pub fn finish(outcome: Result<Ending, StartError>) -> ExitCode {
    match outcome {
        Ok(Ending::Drained) => ExitCode::SUCCESS,
        Ok(Ending::Hurried) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("not started: {error}");
            ExitCode::FAILURE
        }
    }
}
