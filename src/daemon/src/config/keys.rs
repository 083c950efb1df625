//! Every number of the configuration: key, unit, range, default. `config/ferriod.toml` is tested against this table.

use ferrio_engine::RATE_MAX;

/// Most bytes per second of a limit, and of its bursts: what the engine takes, rounded to a unit.
const BYTES_PER_S_MAX: u64 = 512 << 30;

/// A key whose value is a whole number.
#[derive(Debug)]
pub struct Number {
    /// Section it stands in.
    pub section: &'static str,
    /// Key.
    pub key: &'static str,
    /// What it counts, in the plural.
    pub unit: &'static str,
    /// Smallest value accepted.
    pub min: u64,
    /// Largest value accepted.
    pub max: u64,
    /// Value when the key is not there.
    pub default: u64,
}

macro_rules! numbers {
    ($($id:ident = $section:literal $key:literal, $unit:literal, $min:literal..=$max:expr, $default:expr;)*) => {
        $(#[doc = concat!("`", $section, ".", $key, "`, in ", $unit, ".")]
        pub const $id: Number =
            Number { section: $section, key: $key, unit: $unit, min: $min, max: $max, default: $default };)*

        /// All of them.
        pub const NUMBERS: &[&Number] = &[$(&$id),*];
    };
}

numbers! {
    DRAIN_TIMEOUT_S = "daemon" "drain_timeout_s", "seconds", 0..=3600, 30;
    RESUME_TIMEOUT_S = "daemon" "resume_timeout_s", "seconds", 1..=3600, 30;

    SESSIONS_MAX = "limits" "sessions_max", "sessions", 1..=4096, 256;
    SESSIONS_PER_UID_MAX = "limits" "sessions_per_uid_max", "sessions", 1..=4096, 64;
    QUEUES_MAX = "limits" "queues_max", "queues", 1..=65536, 1024;
    QUEUES_PER_UID_MAX = "limits" "queues_per_uid_max", "queues", 1..=65536, 256;
    QUEUES_PER_SESSION_MAX = "limits" "queues_per_session_max", "queues", 1..=64, 16;
    QUEUE_ENTRIES_MAX = "limits" "queue_entries_max", "SQ entries", 1..=32768, 4096;
    ATTACH_TIMEOUT_S = "limits" "attach_timeout_s", "seconds", 1..=300, 10;
    REGIONS_PER_SESSION_MAX = "limits" "regions_per_session_max", "regions", 0..=255, 16;
    CONNECTIONS_MAX = "limits" "connections_max", "connections", 16..=65536, 512;
    CONNECTIONS_PER_UID_MAX = "limits" "connections_per_uid_max", "connections", 1..=65536, 64;

    QUEUE_DEPTH = "engine" "queue_depth", "requests", 1..=4096, 256;
    REQUESTS_MAX = "engine" "requests_max", "requests", 64..=1_048_576, 16384;
    SPIN_US = "engine" "spin_us", "microseconds", 0..=10_000, 50;
    BUDGET_PRIO = "engine" "budget_prio", "cost", 1..=4096, 32;
    BUDGET_READ = "engine" "budget_read", "cost", 1..=4096, 16;
    BUDGET_WRITE = "engine" "budget_write", "cost", 1..=4096, 16;
    MERGE_REQUESTS_MAX = "engine" "merge_requests_max", "requests", 1..=256, 32;
    HELPERS = "engine" "helpers", "threads", 1..=64, 4;

    WEIGHT = "session" "weight", "shares", 1..=1000, 100;
    LIMIT_IOPS = "limit" "iops", "requests per second", 0..=RATE_MAX, 0;
    LIMIT_READ_IOPS = "limit" "read_iops", "requests per second", 0..=RATE_MAX, 0;
    LIMIT_WRITE_IOPS = "limit" "write_iops", "requests per second", 0..=RATE_MAX, 0;
    LIMIT_BURST_IOPS = "limit" "burst_iops", "requests", 0..=RATE_MAX, 0;
    LIMIT_BURST_READ_IOPS = "limit" "burst_read_iops", "requests", 0..=RATE_MAX, 0;
    LIMIT_BURST_WRITE_IOPS = "limit" "burst_write_iops", "requests", 0..=RATE_MAX, 0;

    FAULT_SEED = "volume" "fault_seed", "number", 0..=4_294_967_295, 1;
    FAULT_PROBABILITY_PPM = "volume.fault" "probability_ppm", "parts per million", 1..=1_000_000, 1_000_000;
    FAULT_AFTER = "volume.fault" "after", "requests", 0..=1_000_000_000, 0;
    FAULT_COUNT = "volume.fault" "count", "requests", 0..=1_000_000_000, 0;
    FAULT_DELAY_MIN_US = "volume.fault" "delay_min_us", "microseconds", 0..=3_600_000_000, 0;
    FAULT_DELAY_MAX_US = "volume.fault" "delay_max_us", "microseconds", 0..=3_600_000_000, 0;
    FAULT_WINDOW = "volume.fault" "window", "requests", 0..=1024, 0;
}

/// A key whose value is a number of bytes, written as a number or as text with a unit.
#[derive(Debug)]
pub struct Size {
    /// Section it stands in.
    pub section: &'static str,
    /// Key.
    pub key: &'static str,
    /// Smallest value accepted.
    pub min: u64,
    /// Largest value accepted.
    pub max: u64,
    /// Values must be multiples of it.
    pub multiple_of: u64,
    /// Value when the key is not there; `None`: there is no default.
    pub default: Option<u64>,
}

/// `limits.arena_bytes_max`.
pub const ARENA_BYTES_MAX: Size = Size {
    section: "limits",
    key: "arena_bytes_max",
    min: 0,
    max: 1 << 40,
    multiple_of: 4096,
    default: Some(1 << 30),
};
/// `limits.memory_bytes_max`.
pub const MEMORY_BYTES_MAX: Size = Size {
    section: "limits",
    key: "memory_bytes_max",
    min: 1 << 20,
    max: 1 << 44,
    multiple_of: 4096,
    default: Some(8 << 30),
};
/// `limits.memory_bytes_per_uid_max`.
pub const MEMORY_BYTES_PER_UID_MAX: Size = Size {
    section: "limits",
    key: "memory_bytes_per_uid_max",
    min: 1 << 20,
    max: 1 << 44,
    multiple_of: 4096,
    default: Some(2 << 30),
};
/// `limits.region_bytes_max`.
pub const REGION_BYTES_MAX: Size = Size {
    section: "limits",
    key: "region_bytes_max",
    min: 0,
    max: 1 << 40,
    multiple_of: 4096,
    default: Some(1 << 30),
};
/// `volume.size`. The multiple suits every O_DIRECT target: no disk in use has larger logical blocks.
pub const VOLUME_SIZE: Size =
    Size { section: "volume", key: "size", min: 4096, max: 1 << 50, multiple_of: 4096, default: None };
/// `volume.block_bytes`, of null volumes.
pub const BLOCK_BYTES: Size =
    Size { section: "volume", key: "block_bytes", min: 512, max: 4096, multiple_of: 512, default: Some(512) };

/// `engine.merge_bytes_max`.
pub const MERGE_BYTES_MAX: Size = Size {
    section: "engine",
    key: "merge_bytes_max",
    min: 0,
    max: 1 << 30,
    multiple_of: 1,
    default: Some(512 << 10),
};

/// `volume.fault.offset`.
pub const FAULT_OFFSET: Size =
    Size { section: "volume.fault", key: "offset", min: 0, max: 1 << 50, multiple_of: 1, default: Some(0) };
/// `volume.fault.length`.
pub const FAULT_LENGTH: Size =
    Size { section: "volume.fault", key: "length", min: 1, max: 1 << 50, multiple_of: 1, default: None };

macro_rules! byte_rates {
    ($($id:ident = $key:literal;)*) => {
        $(#[doc = concat!("`", $key, "` of a limit; 0: none.")]
        pub const $id: Size = Size {
            section: "limit",
            key: $key,
            min: 0,
            max: BYTES_PER_S_MAX,
            multiple_of: 1,
            default: Some(0),
        };)*
    };
}

byte_rates! {
    LIMIT_BYTES_PER_S = "bytes_per_s";
    LIMIT_READ_BYTES_PER_S = "read_bytes_per_s";
    LIMIT_WRITE_BYTES_PER_S = "write_bytes_per_s";
    LIMIT_BURST_BYTES = "burst_bytes";
    LIMIT_BURST_READ_BYTES = "burst_read_bytes";
    LIMIT_BURST_WRITE_BYTES = "burst_write_bytes";
}

/// All of them.
pub const SIZES: &[&Size] = &[
    &ARENA_BYTES_MAX,
    &REGION_BYTES_MAX,
    &MEMORY_BYTES_MAX,
    &MEMORY_BYTES_PER_UID_MAX,
    &VOLUME_SIZE,
    &BLOCK_BYTES,
    &FAULT_OFFSET,
    &FAULT_LENGTH,
    &MERGE_BYTES_MAX,
    &LIMIT_BYTES_PER_S,
    &LIMIT_READ_BYTES_PER_S,
    &LIMIT_WRITE_BYTES_PER_S,
    &LIMIT_BURST_BYTES,
    &LIMIT_BURST_READ_BYTES,
    &LIMIT_BURST_WRITE_BYTES,
];

/// Keys that are neither numbers nor sizes, by section, for the test of the shipped file.
pub const OTHERS: &[(&str, &[&str])] = &[
    ("daemon", &["runtime_dir", "socket_mode", "group", "log_level"]),
    ("engine", &["name", "backend", "threads", "faults", "latency_goal"]),
    ("group", &["name", "users", "groups"]),
    ("volume.fault", &["ops", "effect", "errno"]),
    ("volume", &["name", "kind", "path", "engine", "read_only", "allow_users", "allow_groups", "allow_any"]),
];
