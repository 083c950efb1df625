//! What is measured, as asked for.

use std::path::PathBuf;

use clap::{Args as Arguments, ValueEnum};
use serde::{Deserialize, Serialize};

/// Most bytes in flight of one client: what its buffers may take.
pub const FLIGHT_BYTES_MAX: u64 = 1 << 30;

const HELP: &str = "\
Clients are processes. A round lasts --runtime after a warm-up of 0.25 s; rounds of ferrio and of each peer take turns, \
and each peer's round is compared with the round of ferrio right before it. Before the first round the volume is written \
whole: for reads with what is in it, for writes and with --verify with a pattern, WHICH DESTROYS ITS DATA.

The peers open the file themselves, past the daemon, so they need permission for it:
  io_uring       registered file and buffers, COOP_TASKRUN, asleep in io_uring_enter
  io_uring_poll  the same, spinning on its completion queue
  libaio         io_submit and io_getevents
  psync          pread and pwrite, one thread per request in flight
and one that is ferrio itself, for sequential workloads:
  unmerged       sessions whose requests the daemon never puts into one operation of the device
  none           ferrio alone (so with --idle-sessions, where ferrio is compared with itself)

Examples:
  ferrioctl bench --volume data --iodepth 32
  ferrioctl bench --volume data --rw randwrite --iodepth 32 --clients 4 --against io_uring,libaio --json
  ferrioctl bench --volume null --wait poll --ping-pong
  ferrioctl bench --volume data --rw read --iodepth 32 --against unmerged
  ferrioctl bench --volume data --iodepth 32 --idle-sessions 1000";

/// Measures a volume, and compares with processes that do the same I/O themselves.
#[derive(Clone, Debug, Arguments)]
#[command(after_help = HELP)]
pub struct Args {
    /// Volume. Its data is destroyed by write workloads and by --verify.
    #[arg(long, value_name = "NAME")]
    pub volume: String,
    /// Workload. randrw: as many reads as writes.
    #[arg(long, value_name = "WORKLOAD", default_value = "randread")]
    pub rw: Rw,
    /// Length of a request. Bytes, or with k, m, g.
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_size)]
    pub bs: u64,
    /// Requests that each client keeps in flight.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub iodepth: u32,
    /// Client processes at once. They share the volume; each writes to a part of its own.
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Length of a round. Seconds, 0.05 to 3600.
    #[arg(long, value_name = "S", default_value = "2", value_parser = parse_seconds)]
    pub runtime: f64,
    /// How ferrio's clients wait: they spin, spin as long as it pays, or sleep at once.
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    pub wait: Wait,
    /// Pairs of rounds with each peer.
    #[arg(long, value_name = "R", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub rounds: u32,
    /// Peers, separated by commas [default: io_uring, with --wait poll io_uring_poll; none for a null volume].
    #[arg(long, value_name = "PEERS", value_delimiter = ',')]
    pub against: Vec<Against>,
    /// The volume's file or device as the peers find it, where the daemon's path does not lead to it.
    #[arg(long, value_name = "FILE")]
    pub target: Option<PathBuf>,
    /// Uses only so much of the volume, from its start. Bytes, or with k, m, g [default: all of it].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// Lets every round of ferrio be followed by one beside so many sessions that do nothing, and compares the two.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub idle_sessions: Option<u32>,
    /// Does not write the volume before the first round: it was, once. Blocks that never were cost a disk nothing to read.
    #[arg(long, conflicts_with = "verify")]
    pub skip_fill: bool,
    /// Checks every read against what was written: block number, generation, checksum. DESTROYS the data of the volume.
    #[arg(long)]
    pub verify: bool,
    /// Also measures how long a cache line takes to go to another CPU and back, and divides the median latency of ferrio by
    /// it. Meant for a null volume with --iodepth 1 --wait poll.
    #[arg(long)]
    pub ping_pong: bool,
}

/// Workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Rw {
    /// Reads from anywhere.
    RandRead,
    /// Writes to anywhere.
    RandWrite,
    /// Reads one after the other.
    Read,
    /// Writes one after the other.
    Write,
    /// Both, from and to anywhere.
    #[value(name = "randrw")]
    #[serde(rename = "randrw")]
    Mixed,
}

impl Rw {
    /// Some of it writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::Write | Self::Mixed)
    }

    /// Its requests go to anywhere.
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::Mixed)
    }
}

/// How ferrio's clients wait for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Spins.
    Poll,
    /// Spins as long as that is likely to save the sleep.
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

/// Who does the same I/O without ferrio, or without a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    IoUring,
    IoUringPoll,
    Libaio,
    Psync,
    Unmerged,
}

/// An element of --against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Against {
    /// Asleep in io_uring_enter.
    IoUring,
    /// Spins on its completion queue.
    IoUringPoll,
    /// Linux AIO.
    Libaio,
    /// pread and pwrite.
    Psync,
    /// Ferrio without merging.
    Unmerged,
    /// Ferrio alone.
    None,
}

impl Against {
    /// The peer; `None` is none.
    pub fn peer(self) -> Option<Peer> {
        match self {
            Self::IoUring => Some(Peer::IoUring),
            Self::IoUringPoll => Some(Peer::IoUringPoll),
            Self::Libaio => Some(Peer::Libaio),
            Self::Psync => Some(Peer::Psync),
            Self::Unmerged => Some(Peer::Unmerged),
            Self::None => None,
        }
    }
}

/// The name by which a value is asked for.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Peer {
    /// Name, as in --against.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::IoUringPoll => "io_uring_poll",
            Self::Libaio => "libaio",
            Self::Psync => "psync",
            Self::Unmerged => "unmerged",
        }
    }

    /// Its I/O goes through the daemon.
    pub fn is_ferrio(self) -> bool {
        self == Self::Unmerged
    }
}

/// A number of bytes, as people write it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match lower[digits.len()..].trim_start() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("a number of bytes, or one with k, m, g or t, such as 4k".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "it does not start with a number".to_owned())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(|| "1 byte to 16 EiB".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.05..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it is not in 0.05..=3600".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("4K", 4096), ("1MiB", 1 << 20), ("2 g", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "4x", "-1", "0", "99999999999999t", "4kk"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds() {
        assert_eq!(parse_seconds("0.3"), Ok(0.3));
        for text in ["0", "-1", "nan", "inf", "x", "3601"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for against in Against::value_variants() {
            let peer = against.peer().map_or("none", Peer::name);
            assert_eq!(name(*against), peer);
        }
        assert_eq!(name(Rw::RandRead), "randread");
        assert_eq!(serde_json::to_value(Rw::Mixed).unwrap(), "randrw");
        assert_eq!(serde_json::to_value(Peer::IoUringPoll).unwrap(), Peer::IoUringPoll.name());
    }
}
