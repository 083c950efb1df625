//! Commands and options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench;
use crate::scheduler::{Budgets, parse_budgets, parse_goal};

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
    /// What volumes, sessions and groups of sessions may do per second.
    Limit {
        #[command(subcommand)]
        command: LimitCommand,
    },
    /// How the engines share the device out: classes, weights, groups, the latency goal of prio, merging.
    Scheduler {
        #[command(subcommand)]
        command: SchedulerCommand,
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
    /// Changes weight and group of a session, until it ends or the daemon does. For root and the daemon's own user.
    Set(SessionArgs),
    /// Ends a session: its client is told why, then its lease closes. For root and the daemon's own user.
    Evict {
        /// Session id.
        session_id: u64,
        /// Why, for the client's log; at most 256 bytes.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub struct SessionArgs {
    /// Session id.
    pub session_id: u64,
    #[command(flatten)]
    pub change: SessionChange,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct SessionChange {
    /// Share of each class beside other sessions that want more than theirs; 100 if nothing says otherwise.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: Option<u32>,
    /// Group whose limit holds for it too; weight and limit of the session itself stay as they are.
    #[arg(long)]
    pub group: Option<String>,
    /// It is in no group any more.
    #[arg(long, conflicts_with = "group")]
    pub no_group: bool,
}

#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Limits in force, and how often each had requests wait.
    List,
    /// Limits a volume, a session or a group, in place of the limit it had: what is not named is not limited. It holds until
    /// the daemon ends. For root and the daemon's own user.
    Set(LimitArgs),
    /// Takes a limit away. For root and the daemon's own user.
    Clear(ScopeArgs),
}

#[derive(Debug, Args)]
pub struct LimitArgs {
    #[command(flatten)]
    pub scope: ScopeArgs,
    #[command(flatten)]
    pub rates: RateArgs,
    #[command(flatten)]
    pub bursts: BurstArgs,
}

/// On what a limit is set.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ScopeArgs {
    /// All that is done on this volume.
    #[arg(long)]
    pub volume: Option<String>,
    /// All that this session does.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub session: Option<u64>,
    /// All that the sessions of this group do together; the limit makes the group if there is none.
    #[arg(long)]
    pub group: Option<String>,
}

/// Rates.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct RateArgs {
    /// Requests per second, reads and writes together.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub iops: Option<u64>,
    /// Reads per second.
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub read_iops: Option<u64>,
    /// Writes per second.
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub write_iops: Option<u64>,
    /// Data per second, read and written together, such as 100MiB.
    #[arg(long, value_parser = bench::parse_size)]
    pub bytes: Option<u64>,
    /// Data read per second.
    #[arg(long, value_name = "BYTES", value_parser = bench::parse_size)]
    pub read_bytes: Option<u64>,
    /// Data written per second.
    #[arg(long, value_name = "BYTES", value_parser = bench::parse_size)]
    pub write_bytes: Option<u64>,
}

/// What may pass at once after a pause; without them: what passes in 10 ms.
#[derive(Debug, Args)]
pub struct BurstArgs {
    /// Requests that may pass at once after a pause, beyond --iops.
    #[arg(long, value_name = "REQUESTS", requires = "iops", value_parser = clap::value_parser!(u64).range(1..))]
    pub burst_iops: Option<u64>,
    /// The same, of --read-iops.
    #[arg(long, value_name = "REQUESTS", requires = "read_iops", value_parser = clap::value_parser!(u64).range(1..))]
    pub burst_read_iops: Option<u64>,
    /// The same, of --write-iops.
    #[arg(long, value_name = "REQUESTS", requires = "write_iops", value_parser = clap::value_parser!(u64).range(1..))]
    pub burst_write_iops: Option<u64>,
    /// Data that may pass at once after a pause, beyond --bytes.
    #[arg(long, value_name = "BYTES", requires = "bytes", value_parser = bench::parse_size)]
    pub burst_bytes: Option<u64>,
    /// The same, of --read-bytes.
    #[arg(long, value_name = "BYTES", requires = "read_bytes", value_parser = bench::parse_size)]
    pub burst_read_bytes: Option<u64>,
    /// The same, of --write-bytes.
    #[arg(long, value_name = "BYTES", requires = "write_bytes", value_parser = bench::parse_size)]
    pub burst_write_bytes: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum SchedulerCommand {
    /// Classes with the time that each was starved, the latency goal and what it does, merging, weights, groups.
    Show,
    /// Changes how engines schedule, until the daemon ends. For root and the daemon's own user.
    Set(SchedulerArgs),
}

#[derive(Debug, Args)]
pub struct SchedulerArgs {
    /// Engine; without it: all of them.
    #[arg(long)]
    pub engine: Option<String>,
    #[command(flatten)]
    pub change: SchedulerChange,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct SchedulerChange {
    /// How fast the device is to answer prio, at the cost of what reads and writes it does beside: off, a time such as 2ms, or
    /// a part of what prio takes alone such as 200%.
    #[arg(long, value_name = "GOAL", value_parser = parse_goal)]
    pub latency: Option<ferrio_api::v1::LatencyGoal>,
    /// What prio, read and write may take of a round while others wait, 1 to 4096 each: a request costs 1 for each 16 KiB begun.
    #[arg(long, value_name = "PRIO,READ,WRITE", value_parser = parse_budgets)]
    pub budgets: Option<Budgets>,
    /// Data that adjacent requests may have which go to the device in one operation, such as 512KiB.
    #[arg(long, value_name = "BYTES", value_parser = bench::parse_size)]
    pub merge_bytes: Option<u64>,
    /// Adjacent requests that may go to the device in one operation; 1: none are joined.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub merge_requests: Option<u32>,
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
    fn a_limit_has_one_scope_and_a_rate() {
        let parse = |words: &str| Cli::try_parse_from(format!("ferrioctl {words}").split(' '));
        for good in [
            "limit set --volume v --iops 5 --burst-iops 9",
            "limit set --session 7 --read-bytes 50MiB",
            "limit clear --group g",
            "session set 3 --weight 1000",
            "session set 3 --no-group",
            "scheduler set --latency 200% --budgets 1,2,3",
            "scheduler set --engine main --merge-requests 1",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good).err());
        }
        for wrong in [
            "limit set --volume v",
            "limit set --iops 5",
            "limit set --volume v --session 7 --iops 5",
            "limit set --volume v --iops 5 --burst-read-iops 9",
            "limit set --volume v --iops 0",
            "limit set --session 0 --iops 5",
            "limit clear",
            "session set 3",
            "session set 3 --weight 1001",
            "session set 3 --group g --no-group",
            "scheduler set",
            "scheduler set --latency 2",
        ] {
            assert_eq!(parse(wrong).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
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
