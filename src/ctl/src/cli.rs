//! Commands and options.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::bench;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 the daemon refused or the benchmark failed, 2 wrong usage, 3 no connection to the daemon.

The socket is --socket, else $FERRIO_SOCKET, else $XDG_RUNTIME_DIR/ferrio/control.sock if it exists, else \
/run/ferrio/control.sock.";

/// Shows what a ferriod is doing, and how fast it is.
#[derive(Debug, Parser)]
#[command(name = "ferrioctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Control socket of the daemon.
    #[arg(long, global = true, env = "FERRIO_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON: in lists, the keys are the field names of proto/ferrio/v1.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon and its engines.
    Info,
    /// Files and block devices the daemon owns.
    Volume {
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Client processes.
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// What is queued and in flight.
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Counters since the daemon started.
    Stats,
    Bench(Box<bench::Args>),
    /// A client process of `bench`.
    #[command(hide = true)]
    BenchClient,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Volumes, how they are opened and who uses them.
    List,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Open sessions, oldest first.
    List,
}

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Class queues of the engines, then the queues of the sessions.
    List {
        /// Again and again, until Ctrl-C. With --json: one object per line.
        #[arg(long, short)]
        watch: bool,
        /// Milliseconds between two looks.
        #[arg(long, requires = "watch", default_value_t = 1000, value_name = "MS",
              value_parser = clap::value_parser!(u32).range(50..=60_000))]
        interval_ms: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_noun() {
        let cli = Cli::try_parse_from(["ferrioctl", "queue", "list", "--watch", "--json", "--socket", "/x"])
            .expect("ok");
        assert!(cli.json);
        assert!(matches!(
            cli.command,
            Command::Queue { command: QueueCommand::List { watch: true, interval_ms: 1000 } }
        ));
    }

    #[test]
    fn an_interval_out_of_range_is_a_usage_error() {
        for arguments in [["--watch", "--interval-ms=49"], ["--watch", "--interval-ms=60001"]] {
            let all = ["ferrioctl", "queue", "list"].into_iter().chain(arguments);
            let error = Cli::try_parse_from(all).expect_err("out of range");
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("50..=60000"), "{error}");
        }
    }
}
