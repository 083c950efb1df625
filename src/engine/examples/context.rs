//! Copies a file past the page cache over whichever backend works here, and then compares the two:
//!
//! ```console
//! $ cargo run -p ferrio-engine --example context -- [--backend auto|io_uring|aio] [--depth N] FROM TO
//! ```
//!
//! It shows an [`IoContext`] at work without a daemon. The copy is made of callbacks: each read, when it has completed, goes
//! on as a write of the same buffer, and each write as the read of the next piece. The comparison is made of futures, on the
//! channel that goes first.

use std::{
    error::Error,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use ferrio_driver::{OpenOptions, Target, select::BackendChoice};
use ferrio_engine::context::{
    Channel, IoBuffer, IoCompletion, IoContext, IoContextBuilder, IoEvent, IoVolume, IoWorkers,
};

/// Bytes of one read or write.
const PIECE_BYTES: u64 = 256 << 10;
/// How long the end may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

type Failure = Box<dyn Error + Send + Sync>;
type Callback = Box<dyn FnOnce(IoCompletion) + Send>;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// How.
    pub backend: BackendChoice,
    /// Pieces under way at once.
    pub depth: u32,
    /// What is copied.
    pub from: PathBuf,
    /// Where to; created if it is not there.
    pub to: PathBuf,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// `io_uring` or `aio`.
    pub backend: &'static str,
    /// Bytes copied.
    pub bytes: u64,
    /// CRC-32 of the copy, read back.
    pub checksum: u32,
}

/// Copies and compares.
pub fn run(options: &Options) -> Result<Done, Failure> {
    let source = Target::open(&options.from, &OpenOptions { read_only: true, ..OpenOptions::default() })?;
    let bytes = source.size_bytes();
    let sink = open_sink(&options.to, bytes)?;
    let workers = IoWorkers::<Callback>::new(1)?;
    let mut builder = IoContextBuilder::new()
        .name("copy")
        .backend(options.backend)
        .depth(options.depth)
        .arena_bytes(2 * u64::from(options.depth) * PIECE_BYTES);
    let (from, to) = (builder.volume(Arc::new(source)), builder.volume(Arc::new(sink)));
    let context = Arc::new(builder.start(&workers)?);
    let backend = context.engine().info().backend;

    Copy::new(&context, from, to, bytes).run(options.depth)?;
    let checksum = block_on(compare(&context, from, to, bytes))?;

    let report = context.shutdown(SHUTDOWN_LIMIT);
    if report.unanswered > 0 {
        return Err(format!("{} requests were not answered within 10 s", report.unanswered).into());
    }
    Ok(Done { backend, bytes, checksum })
}

fn open_sink(path: &Path, bytes: u64) -> Result<Target, Failure> {
    let sink = Target::open(path, &OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() })?;
    if sink.size_bytes() != bytes {
        let (path, has) = (path.display(), sink.size_bytes());
        return Err(format!("{path} is there, and has {has} bytes instead of {bytes}: remove it").into());
    }
    Ok(sink)
}

/// A copy under way; the callbacks share it.
struct Copy {
    context: Arc<IoContext<Callback>>,
    from: IoVolume,
    to: IoVolume,
    bytes: u64,
    /// Where the next piece begins.
    next: Mutex<u64>,
}

/// How a chain of callbacks has ended; one is sent for each.
type Ended = mpsc::Sender<Result<(), Failure>>;

impl Copy {
    fn new(context: &Arc<IoContext<Callback>>, from: IoVolume, to: IoVolume, bytes: u64) -> Arc<Self> {
        Arc::new(Self { context: Arc::clone(context), from, to, bytes, next: Mutex::new(0) })
    }

    fn run(self: Arc<Self>, depth: u32) -> Result<(), Failure> {
        let (ended, ends) = mpsc::channel();
        for _ in 0..depth {
            let buffer = self.context.buffer(PIECE_BYTES as usize)?;
            Arc::clone(&self).read(buffer, ended.clone());
        }
        drop(ended);
        ends.iter().collect::<Result<(), Failure>>()?;
        let flush = self.context.execute(IoEvent::flush(self.to), Channel::Write);
        block_on(flush).map_err(|refused| refused.why)?.result?;
        Ok(())
    }

    /// Reads the next piece, if there is one, and goes on with it.
    fn read(self: Arc<Self>, buffer: IoBuffer, ended: Ended) {
        let Some((offset, length)) = self.take_piece() else { return end(&ended, Ok(())) };
        let buffer = match self.fitting(buffer, length) {
            Ok(buffer) => buffer,
            Err(error) => return end(&ended, Err(error)),
        };
        let (copy, told) = (Arc::clone(&self), ended.clone());
        let callback: Callback = Box::new(move |completion| match take(completion) {
            Ok(buffer) => copy.write(offset, buffer, told),
            Err(error) => end(&told, Err(error)),
        });
        let event = IoEvent::read(self.from, offset, buffer).callback(callback);
        if let Err(refused) = self.context.submit(event, Channel::Read) {
            end(&ended, Err(refused.why.into()));
        }
    }

    fn write(self: Arc<Self>, offset: u64, buffer: IoBuffer, ended: Ended) {
        let (copy, told) = (Arc::clone(&self), ended.clone());
        let callback: Callback = Box::new(move |completion| match take(completion) {
            Ok(buffer) => copy.read(buffer, told),
            Err(error) => end(&told, Err(error)),
        });
        let event = IoEvent::write(self.to, offset, buffer).callback(callback);
        if let Err(refused) = self.context.submit(event, Channel::Write) {
            end(&ended, Err(refused.why.into()));
        }
    }

    fn take_piece(&self) -> Option<(u64, u64)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (offset, length) = (*next, PIECE_BYTES.min(self.bytes - *next));
        *next += length;
        (length > 0).then_some((offset, length))
    }

    /// The last piece may be shorter.
    fn fitting(&self, buffer: IoBuffer, length: u64) -> Result<IoBuffer, Failure> {
        if buffer.len() as u64 == length { Ok(buffer) } else { Ok(self.context.buffer(length as usize)?) }
    }
}

fn take(completion: IoCompletion) -> Result<IoBuffer, Failure> {
    completion.into_buffer()?.ok_or_else(|| "the buffer did not come back".into())
}

fn end(ended: &Ended, how: Result<(), Failure>) {
    // Nobody listens any more after an error.
    let _ = ended.send(how);
}

/// Reads both files piece by piece, before everything else. Returns the checksum of both.
async fn compare(
    context: &IoContext<Callback>,
    from: IoVolume,
    to: IoVolume,
    bytes: u64,
) -> Result<u32, Failure> {
    let mut checksum = crc32fast::Hasher::new();
    let mut offset = 0;
    while offset < bytes {
        let length = PIECE_BYTES.min(bytes - offset) as usize;
        let original = read(context, from, offset, length).await?;
        let copied = read(context, to, offset, length).await?;
        if let Some(at) = original.iter().zip(&*copied).position(|(a, b)| a != b) {
            return Err(format!("the copy differs at byte {}", offset + at as u64).into());
        }
        checksum.update(&copied);
        offset += length as u64;
    }
    Ok(checksum.finalize())
}

async fn read(
    context: &IoContext<Callback>,
    volume: IoVolume,
    offset: u64,
    length: usize,
) -> Result<IoBuffer, Failure> {
    let event = IoEvent::read(volume, offset, context.buffer(length)?);
    take(context.execute(event, Channel::Prio).await.map_err(|refused| refused.why)?)
}

/// Any executor does; this one is a thread that sleeps.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

const USAGE: &str = "usage: context [--backend auto|io_uring|aio] [--depth 1..4096] FROM TO";

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, Failure> {
    let (mut backend, mut depth, mut paths) = (BackendChoice::Auto, 16, Vec::new());
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value; {USAGE}"));
        match word.as_str() {
            "--backend" => backend = value()?.parse()?,
            "--depth" => depth = value()?.parse().map_err(|error| format!("--depth: {error}; {USAGE}"))?,
            _ if word.starts_with('-') => return Err(format!("{word} is not known; {USAGE}").into()),
            _ => paths.push(PathBuf::from(word)),
        }
    }
    let [from, to] = <[PathBuf; 2]>::try_from(paths).map_err(|_| USAGE)?;
    Ok(Options { backend, depth, from, to })
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(Done { backend, bytes, checksum }) => {
            println!("copied and compared {bytes} bytes over {backend}, CRC-32 {checksum:08x}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
