//! A client process for the tests: does verified I/O, holds a session, or tries to get one.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use ferrio_api::v1;
use ferrio_client::{
    Access, Buffer, Queue, QueueOptions, Request, Session, SessionBuilder, Volume, WaitPolicy,
};
use ferrio_shm::abi::features;
use ferrio_tests::{
    Mix, RawSession,
    hostile::{self, Act},
    ledger::load::{self, Load},
    mix::{Restarts, Shape},
    raw::{self, open_request, request},
};

const BLOCK: u64 = 4096;
const MIX: Shape = Shape {
    blocks: 48,
    blocks_max: 8,
    requests: 400,
    depth: 32,
    chain_max: 6,
    stream_max: 12,
    faults: false,
    restarts: Restarts::Killed,
};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long, default_value = "test-client")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a pattern, flushes, reads it back, compares every word; again and again for `--seconds`, or until a file
    /// exists.
    Verify {
        volume: String,
        #[arg(long, default_value_t = 0)]
        offset: u64,
        #[arg(long, default_value_t = 1 << 20)]
        bytes: u64,
        #[arg(long, default_value_t = 32)]
        entries: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 0)]
        seconds: u64,
        #[arg(long)]
        until: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
        wait: Wait,
        #[arg(long)]
        prio: bool,
    },
    /// Says so, and does a hostile thing until it is killed.
    Hostile { act: Act },
    /// Says so, and takes a part of a CPU until it is killed.
    Compute {
        /// 0 to 1.
        share: f64,
    },
    /// Works on the blocks of a ledger.
    Ledger(#[command(flatten)] Load),
    /// Random requests of all kinds against a model of the volume, round after round, until a file exists.
    Mix {
        volume: String,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long)]
        until: PathBuf,
    },
    /// Opens sessions, says so, does a little with each, and waits for a signal.
    Hold {
        volume: String,
        #[arg(long, value_enum, default_value_t = Mode::Rw)]
        access: Mode,
        #[arg(long, default_value_t = 1)]
        sessions: u32,
    },
    /// Opens a session that could be resumed, says so, and waits for a signal. Never comes back.
    Leave { volume: String },
    /// Tries to go on with the session of another process, and says what it is told.
    Usurp {
        session: u64,
        /// 64 hexadecimal digits.
        secret: String,
        /// Its memory, under /proc.
        memory: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Wait {
    Poll,
    Adaptive,
    Sleep,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Ro,
    Rw,
    RwShared,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn at_work() {
    println!("at work");
}

fn builder(arguments: &Arguments) -> SessionBuilder {
    Session::builder(&arguments.socket).name(&arguments.name).patience(Duration::from_secs(60))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    match &arguments.command {
        Command::Hostile { act } => act.run(&arguments.socket, at_work),
        Command::Compute { share } => {
            at_work();
            hostile::compute(*share)
        }
        Command::Hold { volume, access, sessions } => {
            let access = match access {
                Mode::Ro => Access::ReadOnly,
                Mode::Rw => Access::ReadWrite,
                Mode::RwShared => Access::ReadWriteShared,
            };
            let open = || {
                let session = Session::builder(&arguments.socket)
                    .name(&arguments.name)
                    .volume(volume, access)
                    .arena_bytes(64 << 10)
                    .open()?;
                session.take_queue(0)?.nop()?;
                Ok(session)
            };
            let sessions: Vec<Session> = (0..*sessions).map(|_| open()).collect::<Outcome<_>>()?;
            println!("holding session {}", sessions[0].id());
            loop {
                std::thread::park();
            }
        }
        Command::Leave { volume } => {
            let asked = request(&[(volume, v1::Access::ReadWrite)], 8);
            let opened = open_request(
                &arguments.socket,
                v1::OpenSessionRequest { features: features::RESUME, ..asked },
            )?;
            let session = RawSession::attach(&opened);
            println!("holding session {}", session.id);
            loop {
                std::thread::park();
            }
        }
        Command::Usurp { session, secret, memory } => {
            let mut bytes = [0; 32];
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(secret.get(2 * index..2 * index + 2).ok_or("short")?, 16)?;
            }
            let memory = std::fs::File::options().read(true).write(true).open(memory)?;
            let path = arguments.socket.with_file_name("attach.sock");
            let (answer, _, _) = raw::resume(&path, *session, bytes, &[memory.as_fd()]);
            println!("told {answer:?}");
            Ok(())
        }
        Command::Ledger(load) => {
            let [answered, replayed, owner_dead] = load.run(builder(arguments))?;
            println!("answered {answered}, replayed {replayed}, owner dead {owner_dead}");
            Ok(())
        }
        Command::Mix { volume, seed, until } => {
            let options = QueueOptions { wait: WaitPolicy::Sleep, ..QueueOptions::default() };
            let builder = builder(arguments).volume(volume, Access::ReadWrite).arena_bytes(16 << 20);
            let session = load::open(builder.queue(options.clone()).queue(options))?;
            let queues = vec![session.take_queue(0)?, session.take_queue(1)?];
            let mut mix = Mix::new(&session, &session.volume(volume)?, queues, MIX);
            println!("started");
            for round in 0.. {
                mix.round(seed + round)?;
                if until.exists() {
                    break;
                }
            }
            println!("{:?}", mix.tally);
            Ok(())
        }
        Command::Verify { volume, offset, bytes, entries, seed, seconds, until, wait, prio } => {
            let wait = match wait {
                Wait::Poll => WaitPolicy::Poll,
                Wait::Adaptive => WaitPolicy::default(),
                Wait::Sleep => WaitPolicy::Sleep,
            };
            let session = Session::builder(&arguments.socket)
                .name(&arguments.name)
                .volume(volume, Access::ReadWriteShared)
                .queue(QueueOptions { entries: *entries, wait, ..QueueOptions::default() })
                .open()?;
            let mut verifier = Verifier {
                volume: session.volume(volume)?,
                queue: session.take_queue(0)?,
                free: (0..*entries).map(|_| session.alloc(BLOCK as usize)).collect::<Result<_, _>>()?,
                first: offset / BLOCK,
                blocks: bytes / BLOCK,
                prio: *prio,
            };
            println!("started");
            let end = Instant::now() + Duration::from_secs(*seconds);
            let mut rounds = 0;
            let goes_on = || until.as_ref().map_or_else(|| Instant::now() < end, |file| !file.exists());
            while rounds == 0 || goes_on() {
                verifier.round(seed.wrapping_add(rounds))?;
                rounds += 1;
            }
            println!("verified {} blocks", rounds * verifier.blocks);
            Ok(())
        }
    }
}

struct Verifier {
    volume: Volume,
    queue: Queue,
    free: Vec<Buffer>,
    first: u64,
    blocks: u64,
    prio: bool,
}

/// Word `index` of a block: depends on block, seed and place, so that no misdirected or stale data passes.
fn word(block: u64, seed: u64, index: u64) -> u64 {
    (block << 20 ^ seed ^ index << 50).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

impl Verifier {
    fn round(&mut self, seed: u64) -> Outcome<()> {
        self.pass(seed, true)?;
        self.queue.flush(&self.volume)?;
        self.pass(seed, false)
    }

    fn pass(&mut self, seed: u64, write: bool) -> Outcome<()> {
        let (mut next, mut done) = (0, 0);
        while done < self.blocks {
            while next < self.blocks
                && let Some(mut buffer) = self.free.pop()
            {
                let block = self.first + next;
                if write {
                    for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
                        bytes.copy_from_slice(&word(block, seed, index as u64).to_le_bytes());
                    }
                } else {
                    buffer.fill(0);
                }
                let make = if write { Request::write } else { Request::read };
                let request = make(&self.volume, block * BLOCK, buffer).prio(self.prio).tag(block);
                if let Err(refused) = self.queue.submit(request) {
                    if !refused.is_full() {
                        return Err(refused.to_string().into());
                    }
                    self.free.extend(refused.into_request().into_buffer());
                    break;
                }
                next += 1;
            }
            self.queue.commit()?;
            let Some(completion) = self.queue.wait(Some(Duration::from_secs(20)))? else {
                return Err(
                    format!("no completion for 20 s with {} in flight", self.queue.in_flight()).into()
                );
            };
            let block = completion.tag;
            let moved = completion.result.map_err(|error| format!("block {block}: {error}"))?;
            let buffer = completion.buffer.ok_or("a data request came back without its buffer")?;
            if u64::from(moved) != BLOCK {
                return Err(format!("block {block}: {moved} bytes moved").into());
            }
            if !write {
                check(block, seed, &buffer)?;
            }
            self.free.push(buffer);
            done += 1;
        }
        Ok(())
    }
}

fn check(block: u64, seed: u64, buffer: &[u8]) -> Outcome<()> {
    for (index, bytes) in buffer.chunks_exact(8).enumerate() {
        let (found, expected) = (u64::from_le_bytes(bytes.try_into()?), word(block, seed, index as u64));
        if found != expected {
            return Err(format!(
                "block {block}, word {index}: found {found:#018x}, expected {expected:#018x}"
            )
            .into());
        }
    }
    Ok(())
}
