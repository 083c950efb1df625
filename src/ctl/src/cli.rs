//! Commands and options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 the daemon refused or the benchmark failed, 2 wrong usage, 3 no connection to the daemon.

The socket is --socket, else $FERRIO_SOCKET, else $XDG_RUNTIME_DIR/ferrio/control.sock if it exists, else \
/run/ferrio/control.sock.";

/// Shows and steers what a ferriod is doing, and measures how fast it is.
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
    /// Faults made on purpose, to see what clients do with them.
    Fault {
        #[command(subcommand)]
        command: FaultCommand,
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
    /// Volumes, how they are opened, what they can do and who uses them.
    List,
    /// Opens a volume and serves it, until the daemon ends: it is not written to the configuration. For root and the
    /// daemon's own user.
    Create(CreateArgs),
    /// Takes a volume out of service while sessions use it: their requests for it answer ENODEV. For root and the daemon's
    /// own user. Exit code 1 while requests in flight keep it.
    Remove {
        /// Name.
        name: String,
        /// Longest wait for requests in flight. Milliseconds.
        #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=9_000))]
        wait_ms: u32,
    },
    /// Changes the size of a volume while sessions use it. For root and the daemon's own user.
    Resize {
        /// Name.
        name: String,
        /// New size, such as 2GiB. Without it: the size that the block device has now.
        #[arg(long, value_parser = bench::parse_size, value_name = "BYTES")]
        size: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name.
    pub name: String,
    /// What it is made of; without it: what --path names.
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Absolute path of the file or device, on the daemon's host.
    #[arg(long, value_name = "PATH", required_unless_present = "kind")]
    pub path: Option<PathBuf>,
    /// Size of memory and null volumes; for a file, the size to create it with when it does not exist. Such as 64MiB.
    #[arg(long, value_parser = bench::parse_size, value_name = "BYTES")]
    pub size: Option<u64>,
    /// Logical block of a null volume.
    #[arg(long, value_parser = bench::parse_size, value_name = "BYTES")]
    pub block_bytes: Option<u64>,
    /// Engine that serves it; without it: the first one.
    #[arg(long)]
    pub engine: Option<String>,
    /// No session may write to it.
    #[arg(long)]
    pub read_only: bool,
    /// User that may use it. Without this and the next two: root and the daemon's own user.
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Group, primary or supplementary, that may use it.
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,
    /// Whoever may open the control socket may use it.
    #[arg(long)]
    pub allow_any: bool,
}

#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// The fault rules of a volume, and how often they came into play.
    Show {
        /// Volume.
        volume: String,
    },
    /// Sets a rule in place of those there are, or adds it; the engine needs `faults = true`. For root and the daemon's own
    /// user.
    Set(FaultArgs),
    /// Takes all rules off; requests that were stuck go on. For root and the daemon's own user.
    Clear {
        /// Volume.
        volume: String,
    },
}

#[derive(Debug, Args)]
pub struct FaultArgs {
    /// Volume.
    pub volume: String,
    /// What happens to a request.
    #[arg(long, value_enum)]
    pub effect: Effect,
    /// Requests that it looks at; without it: all that can suffer the effect.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub op: Vec<Op>,
    /// Where the range begins that it looks at.
    #[arg(long, value_parser = bench::parse_size, value_name = "BYTES")]
    pub offset: Option<u64>,
    /// How long the range is; without it: to the end.
    #[arg(long, value_parser = bench::parse_size, value_name = "BYTES")]
    pub length: Option<u64>,
    /// How many of a million matches it hits; without it: all.
    #[arg(long, value_name = "PPM", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub probability_ppm: Option<u32>,
    /// Matches that it lets through first.
    #[arg(long, default_value_t = 0, value_name = "REQUESTS")]
    pub after: u64,
    /// Hits after which it is spent; 0: never.
    #[arg(long, default_value_t = 0, value_name = "REQUESTS")]
    pub count: u64,
    /// Number of the error; without it: 5, EIO.
    #[arg(long)]
    pub errno: Option<u32>,
    /// Shortest delay.
    #[arg(long, default_value_t = 0, value_name = "US")]
    pub delay_min_us: u64,
    /// Longest delay.
    #[arg(long, default_value_t = 0, value_name = "US")]
    pub delay_max_us: u64,
    /// Requests that wait for each other to be reordered, 2 to 1024.
    #[arg(long, default_value_t = 0, value_name = "REQUESTS")]
    pub window: u32,
    /// Start of the random numbers; without it: 1, or as it is with --add.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep the rules there are, and put this one after them.
    #[arg(long)]
    pub add: bool,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Effect {
    /// It fails.
    Error,
    /// It takes longer.
    Delay,
    /// Part of it is transferred, and the daemon goes on with the rest.
    Short,
    /// Part of it is written, then it fails.
    TornWrite,
    /// It is held until the rules change.
    Stuck,
    /// It waits for others, and they go on in a random order.
    Reorder,
}

/// A request.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Op {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// Memory of the daemon, gone with it.
    Memory,
    /// Answers at once and keeps nothing.
    Null,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Open sessions, oldest first.
    List,
    /// Ends a session: its client is told why, then its lease closes. For root and the daemon's own user.
    Evict {
        /// Session id.
        session_id: u64,
        /// Why, for the client's log; at most 256 bytes.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
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
