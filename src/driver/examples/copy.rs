//! Copies a file past the page cache, eight pieces at a time, over whichever backend works here:
//!
//! ```console
//! $ cargo run -p ferrio-driver --example copy -- FROM TO
//! ```
//!
//! It shows the proactor at work: operations own the piece of memory they use, one completer brings all answers back, and what
//! a short transfer left is asked for again, *with the length that is left*.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use ferrio_driver::aio::Aio;
use ferrio_driver::proactor::{OpId, Outcome, Proactor, ProactorConfig, RemoteCompleter};
use ferrio_driver::select::{Backend, BackendChoice, choose};
use ferrio_driver::uring::Uring;
use ferrio_driver::{
    Driver, FaultPlan, FileIndex, Op, OpKind, OpenOptions, Pin, RegionIndex, SubmitHalf, Target,
};
use ferrio_shm::mapping::{Mapping, Region, create_memfd};

const PIECES: u64 = 8;
const PIECE_BYTES: u32 = 256 << 10;

/// A piece of memory, and what is in it. Whoever has it may use the memory: its operation, or we.
struct Piece {
    /// In the memory.
    place: u64,
    /// In the files.
    offset: u64,
    length: u32,
    done: u32,
    kind: OpKind,
}

struct Copy<D: Driver> {
    proactor: Proactor<D, Piece>,
    from: FileIndex,
    to: FileIndex,
    region: RegionIndex,
    completer: Arc<ToUs>,
}

/// Answers come back through a channel.
struct ToUs(Mutex<Sender<Outcome<Piece>>>);

impl RemoteCompleter<Piece> for ToUs {
    fn complete(&self, _: OpId, outcome: Outcome<Piece>) {
        // Nobody listens any more after an error.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(outcome);
    }
}

/// Copies `from` to `to`, which is created if it is not there; says how many bytes. `faults` are those of both files, for a
/// driver that has them.
pub fn copy<D: Driver>(from: &Path, to: &Path, faults: &FaultPlan) -> Result<u64, Box<dyn Error>> {
    let source = Target::open(from, &OpenOptions { read_only: true, ..OpenOptions::default() })?;
    let bytes = source.size_bytes();
    let sink = Target::open(to, &OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() })?;
    if sink.size_bytes() != bytes {
        return Err(format!("{} is there, and not of {bytes} bytes", to.display()).into());
    }
    let mut proactor = Proactor::<D, Piece>::open(&ProactorConfig::default())?;
    let files = proactor.register_files(&[Arc::new(source), Arc::new(sink)])?;
    let region = proactor.register_regions(&[memory()?], Pin::Yes)?[0];
    if !faults.rules.is_empty() {
        for &file in &files {
            proactor.driver().set_faults(file, faults.clone())?;
        }
    }
    let (answers, answered) = mpsc::channel();
    let completer = Arc::new(ToUs(Mutex::new(answers)));
    Copy { proactor, from: files[0], to: files[1], region, completer }.run(bytes, &answered)
}

fn memory() -> io::Result<Region> {
    let bytes = PIECES * u64::from(PIECE_BYTES);
    let mapping = Mapping::new(create_memfd("copy", bytes)?.as_fd(), bytes as usize)?;
    Region::new(Arc::new(mapping), 0, bytes).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl<D: Driver> Copy<D> {
    fn run(mut self, bytes: u64, answered: &Receiver<Outcome<Piece>>) -> Result<u64, Box<dyn Error>> {
        let (mut begun, mut copied) = (0, 0);
        let mut next = |place: u64| {
            let length = u32::try_from(bytes - begun).unwrap_or(u32::MAX).min(PIECE_BYTES);
            let piece = Piece { place, offset: begun, length, done: 0, kind: OpKind::Read };
            begun += u64::from(length);
            (length > 0).then_some(piece)
        };
        for piece in (0..PIECES).filter_map(|n| next(n * u64::from(PIECE_BYTES))) {
            self.submit(piece)?;
        }
        while copied < bytes {
            self.proactor.wait(None)?;
            self.proactor.process_completions();
            for Outcome { result, resources: piece } in answered.try_iter() {
                let piece = advance(piece, result)?;
                if piece.done < piece.length {
                    self.submit(piece)?;
                } else if piece.kind == OpKind::Read {
                    self.submit(Piece { kind: OpKind::Write, done: 0, ..piece })?;
                } else {
                    copied += u64::from(piece.length);
                    if let Some(piece) = next(piece.place) {
                        self.submit(piece)?;
                    }
                }
            }
        }
        Ok(copied)
    }

    /// Starts what is left of a piece.
    fn submit(&mut self, piece: Piece) -> Result<(), Box<dyn Error>> {
        let done = u64::from(piece.done);
        let op = Op {
            kind: piece.kind,
            file: if piece.kind == OpKind::Read { self.from } else { self.to },
            region: self.region,
            region_offset: piece.place + done,
            length: piece.length - piece.done,
            offset: piece.offset + done,
            fua: false,
        };
        let reserved = self.proactor.reserve().ok_or("more pieces than the driver is deep")?;
        let op = self.proactor.submit(reserved, &op, piece).map_err(|_| "the kernel takes nothing")?;
        self.proactor.attach_remote_completer(op, Arc::clone(&self.completer) as Arc<_>);
        Ok(())
    }
}

/// Notes what was moved.
fn advance(mut piece: Piece, result: i32) -> io::Result<Piece> {
    match u32::try_from(result) {
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(moved) => {
            piece.done += moved;
            Ok(piece)
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [from, to] = &arguments[..] else { return Err("two arguments are needed: FROM TO".into()) };
    let (backend, reason) = choose(BackendChoice::Auto)?;
    let run = match backend {
        Backend::Aio => copy::<Aio>,
        Backend::IoUring | Backend::Null => copy::<Uring>,
    };
    let copied = run(from.as_ref(), to.as_ref(), &FaultPlan::default())?;
    println!("{copied} bytes over {backend} ({reason})");
    Ok(())
}
