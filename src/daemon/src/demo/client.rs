//! One client process of the demo: fills its area, works, and verifies every block.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ferrio_client::{Access, Features, QueueOptions, Session};
use ferrio_driver::random::SplitMix64;

use super::drive::{Drive, Job, Measured};
use super::message::{Failure, Message, Phase, Report};
use super::pattern::{BLOCK_BYTES, Pattern};

/// Blocks of one request of the filling and verifying: 64 KiB.
const BULK_BLOCKS: u64 = 16;
const BULK_DEPTH: usize = 32;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// One 4 KiB read at a time, with priority, from anywhere in its area.
    PrioReader,
    /// 32 reads of 4 KiB at a time.
    BulkReader,
    /// 32 writes of 64 KiB at a time, over its area again and again.
    BulkWriter,
}

impl Role {
    /// All of them: the demo's clients.
    pub const ALL: [Self; 3] = [Self::PrioReader, Self::BulkReader, Self::BulkWriter];

    /// Name in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrioReader => "prio-reader",
            Self::BulkReader => "bulk-reader",
            Self::BulkWriter => "bulk-writer",
        }
    }

    fn depth(self) -> usize {
        match self {
            Self::PrioReader => 1,
            Self::BulkReader | Self::BulkWriter => BULK_DEPTH,
        }
    }

    fn blocks(self) -> u64 {
        match self {
            Self::PrioReader | Self::BulkReader => 1,
            Self::BulkWriter => BULK_BLOCKS,
        }
    }
}

/// Options of the hidden `ferriod demo-client`.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    /// Control socket.
    #[arg(long)]
    pub socket: PathBuf,
    /// Volume.
    #[arg(long)]
    pub volume: String,
    /// What to do.
    #[arg(long)]
    pub role: Role,
    /// First block of the area.
    #[arg(long)]
    pub first_block: u64,
    /// Blocks of the area, a multiple of 16.
    #[arg(long)]
    pub blocks: u64,
    /// How long to work.
    #[arg(long)]
    pub seconds: u64,
    /// Seed of the pattern.
    #[arg(long)]
    pub seed: u64,
    /// Writes a wrong byte into this block of the area before it is verified.
    #[arg(long)]
    pub corrupt_block: Option<u64>,
}

/// Does the client's part and tells about it on standard output.
pub fn run(args: &ClientArgs) -> Result<Report, Failure> {
    let name = args.role.name();
    let failure = |error: ferrio_client::Error| Failure::new(name, error.to_string());
    let mut drive = open(args).map_err(failure)?;
    let whole_area = |write| {
        let mut firsts = (0..args.blocks).step_by(BULK_BLOCKS as usize);
        move || firsts.next().map(|first| Job { write, first, blocks: BULK_BLOCKS })
    };

    let mut tell = Teller::new(Phase::Fill);
    drive.run(BULK_DEPTH, false, tell.follow(args.blocks, whole_area(true)))?;
    drive.flush()?;
    say(&Message::Filled);
    // The demo lets all clients work at the same time.
    stdin().lock().read_line(&mut String::new()).map_err(|error| Failure::new(name, error.to_string()))?;

    let worked = work(args, &mut drive)?;
    if let Some(block) = args.corrupt_block {
        drive.corrupt(block)?;
    }

    let mut tell = Teller::new(Phase::Verify);
    let verified = drive.run(BULK_DEPTH, false, tell.follow(args.blocks, whole_area(false)))?;
    report(args, &drive, &worked, verified.bytes / BLOCK_BYTES as u64)
}

fn open(args: &ClientArgs) -> Result<Drive, ferrio_client::Error> {
    let buffers = (BULK_DEPTH as u64 * BULK_BLOCKS) * BLOCK_BYTES as u64;
    let session = Session::builder(&args.socket)
        .name(args.role.name())
        .volume(&args.volume, Access::ReadWriteShared)
        .queue(QueueOptions { entries: BULK_DEPTH as u32, ..QueueOptions::default() })
        .arena_bytes(buffers)
        .features(Features::NONE)
        .open()?;
    let volume = session.volume(&args.volume)?;
    let pattern = Pattern { client: args.role as u32, seed: args.seed };
    let area = args.first_block..args.first_block + args.blocks;
    Drive::new(args.role.name(), &session, volume, pattern, area, BULK_DEPTH, BULK_BLOCKS)
}

fn work(args: &ClientArgs, drive: &mut Drive) -> Result<Measured, Failure> {
    let (start, limit) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut tell = Teller::new(Phase::Work);
    let (role, blocks, mut random, mut lap) = (args.role, args.role.blocks(), SplitMix64::new(args.seed), 0);
    let places = args.blocks / blocks;
    let jobs = move || {
        let elapsed = start.elapsed();
        tell.part(elapsed.as_millis() as u64, limit.as_millis() as u64);
        if elapsed >= limit {
            return None;
        }
        let place = match role {
            Role::PrioReader | Role::BulkReader => random.below(places),
            Role::BulkWriter => {
                lap += 1;
                (lap - 1) % places
            }
        };
        Some(Job { write: role == Role::BulkWriter, first: place * blocks, blocks })
    };
    let measured = drive.run(args.role.depth(), args.role == Role::PrioReader, jobs)?;
    drive.flush()?;
    Ok(measured)
}

fn report(
    args: &ClientArgs,
    drive: &Drive,
    worked: &Measured,
    blocks_verified: u64,
) -> Result<Report, Failure> {
    let (stats, seconds) = (drive.queue().stats(), worked.elapsed.as_secs_f64());
    let quantile = |part| worked.latency.value_at_quantile(part) as f64 / 1000.0;
    let report = Report {
        name: args.role.name().to_owned(),
        depth: args.role.depth() as u32,
        request_bytes: args.role.blocks() as u32 * BLOCK_BYTES as u32,
        iops: worked.requests as f64 / seconds,
        mib_s: worked.bytes as f64 / f64::from(1 << 20) / seconds,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        reads: drive.reads,
        writes: drive.writes,
        blocks_verified,
        completions: stats.completed,
        lost: stats.submitted - stats.completed,
        doubled: stats.doubled + stats.unknown,
        errors: stats.errors,
    };
    if blocks_verified != args.blocks {
        return Err(drive.failure(format!("{blocks_verified} of {} blocks were verified", args.blocks)));
    }
    if (report.lost, report.doubled, report.errors) != (0, 0, 0) {
        let Report { lost, doubled, errors, .. } = report;
        return Err(drive.failure(format!("{lost} completions lost, {doubled} doubled, {errors} errors")));
    }
    Ok(report)
}

/// Writes one line to the demo. A demo that is gone does not read it, and the kernel ends this process with it.
pub fn say(message: &Message) {
    let line = serde_json::to_string(message).unwrap_or_else(|error| unreachable!("{error}"));
    let _ = writeln!(stdout().lock(), "{line}");
}

/// Tells how far a phase is, now and then.
struct Teller {
    phase: Phase,
    told: Option<Instant>,
}

impl Teller {
    fn new(phase: Phase) -> Self {
        Self { phase, told: None }
    }

    fn part(&mut self, done: u64, total: u64) {
        if self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY) {
            self.told = Some(Instant::now());
            let permille = (done * 1000 / total).min(1000) as u32;
            say(&Message::Progress { phase: self.phase, permille });
        }
    }

    fn follow<'a>(
        &'a mut self,
        total: u64,
        mut jobs: impl FnMut() -> Option<Job> + 'a,
    ) -> impl FnMut() -> Option<Job> + 'a {
        move || jobs().inspect(|job| self.part(job.first, total))
    }
}
