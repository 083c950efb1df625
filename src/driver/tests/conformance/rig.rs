//! Plays the engine.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::null::Null;
use ferrio_driver::uring::Uring;
use ferrio_driver::{
    Completion, Driver, DriverConfig, DriverError, FileIndex, Op, OpKind, OpenOptions, Pin, ReapHalf,
    RegionIndex, Segment, Shape, SubmitHalf, Tag, Target,
};
use ferrio_shm::mapping::{Mapping, Region, create_memfd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use tempfile::TempDir;

/// Longer than any answer takes; a test that gets here has lost something.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A backend under test, and the targets that suit it.
pub trait Subject: Driver {
    /// Its targets are to be opened with O_DIRECT.
    const DIRECT: bool = true;

    fn target(path: &Path, bytes: u64) -> Arc<Target>;
}

/// A driver on memory targets.
pub struct OnMemory<D>(PhantomData<D>);

/// A driver on files without O_DIRECT.
pub struct OnPageCache<D>(PhantomData<D>);

macro_rules! is_driver {
    ($($name:ident),*) => {$(
        impl<D: Driver> Driver for $name<D> {
            const NAME: &'static str = D::NAME;
            type Submit = D::Submit;
            type Reap = D::Reap;

            fn open(config: &DriverConfig) -> Result<(D::Submit, D::Reap), DriverError> {
                D::open(config)
            }
        }
    )*};
}

is_driver!(OnMemory, OnPageCache);

impl<D: Driver> Subject for OnMemory<D> {
    const DIRECT: bool = false;

    fn target(_: &Path, bytes: u64) -> Arc<Target> {
        Arc::new(Target::memory(bytes).expect("memory"))
    }
}

impl<D: Driver> Subject for OnPageCache<D> {
    const DIRECT: bool = false;

    fn target(path: &Path, bytes: u64) -> Arc<Target> {
        let options = OpenOptions { create_bytes: Some(bytes), page_cache: true, ..OpenOptions::default() };
        Arc::new(Target::open(path, &options).expect("target"))
    }
}

fn file_target(path: &Path, bytes: u64) -> Arc<Target> {
    let options = OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() };
    Arc::new(Target::open(path, &options).expect("target"))
}

impl Subject for Uring {
    fn target(path: &Path, bytes: u64) -> Arc<Target> {
        file_target(path, bytes)
    }
}

impl Subject for Aio {
    fn target(path: &Path, bytes: u64) -> Arc<Target> {
        file_target(path, bytes)
    }
}

impl Subject for Null {
    fn target(_: &Path, bytes: u64) -> Arc<Target> {
        Arc::new(Target::null(bytes, 512))
    }
}

impl<D: Subject> Subject for Fault<D> {
    fn target(path: &Path, bytes: u64) -> Arc<Target> {
        D::target(path, bytes)
    }
}

/// Memory that a client would share, seen from its other side.
pub struct Memory {
    pub mapping: Arc<Mapping>,
    pub region: Region,
    file: File,
}

impl Memory {
    pub fn new(bytes: u64) -> Memory {
        let fd = create_memfd("ferrio-conformance", bytes).expect("memfd");
        let mapping = Arc::new(Mapping::new(fd.as_fd(), bytes as usize).expect("mapping"));
        let region = Region::new(Arc::clone(&mapping), 0, bytes).expect("region");
        Memory { mapping, region, file: File::from(fd) }
    }

    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("write to the memfd");
    }

    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).expect("read of the memfd");
        bytes
    }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

pub fn read(file: FileIndex, region: RegionIndex, region_offset: u64, offset: u64, length: u32) -> Op {
    Op { kind: OpKind::Read, file, region, region_offset, length, offset, fua: false }
}

pub fn write(file: FileIndex, region: RegionIndex, region_offset: u64, offset: u64, length: u32) -> Op {
    Op { kind: OpKind::Write, ..read(file, region, region_offset, offset, length) }
}

pub fn flush(file: FileIndex) -> Op {
    Op { kind: OpKind::Flush, ..read(file, RegionIndex(0), 0, 0, 0) }
}

pub fn nop() -> Op {
    Op { kind: OpKind::Nop, ..flush(FileIndex(0)) }
}

pub fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory beside the build")
}

/// Under a low RLIMIT_MEMLOCK the rings and regions of tests at the same time may leave no memory for this ring.
fn open<D: Subject>(config: &DriverConfig) -> (D::Submit, D::Reap) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match D::open(config) {
            Err(error) if error.to_string().contains("ENOMEM") && Instant::now() < deadline => {}
            other => return other.expect("driver"),
        }
    }
}

/// An open driver with one target and one region.
pub struct Rig<D: Subject> {
    pub submit: D::Submit,
    pub reaper: Reaper<D::Reap>,
    pub directory: TempDir,
    pub target: Arc<Target>,
    pub file: FileIndex,
    pub memory: Memory,
    pub region: RegionIndex,
    pub doorbells: Doorbells,
}

pub const FILE_BYTES: u64 = 4 << 20;
pub const MEMORY_BYTES: u64 = 2 << 20;

impl<D: Subject> Rig<D> {
    pub fn new(shape: Shape, depth: u32) -> Rig<D> {
        Rig::with(&DriverConfig { depth, shape, ..DriverConfig::default() })
    }

    pub fn with(config: &DriverConfig) -> Rig<D> {
        let directory = directory();
        let target = D::target(&directory.path().join("volume"), FILE_BYTES);
        Rig::on(config, directory, target, MEMORY_BYTES)
    }

    pub fn on(config: &DriverConfig, directory: TempDir, target: Arc<Target>, memory: u64) -> Rig<D> {
        let (mut submit, reap) = open::<D>(config);
        let file = submit.register_file(Arc::clone(&target)).expect("file");
        let memory = Memory::new(memory);
        let region = submit.register_region(memory.region.clone(), Pin::Yes).expect("region");
        let doorbells = Doorbells::new();
        let reaper = Reaper::new(reap, config.shape, config.depth);
        Rig { submit, reaper, directory, target, file, memory, region, doorbells }
    }

    pub fn path(&self) -> PathBuf {
        self.target.path().expect("a real target").to_owned()
    }

    pub fn read(&self, region_offset: u64, offset: u64, length: u32) -> Op {
        read(self.file, self.region, region_offset, offset, length)
    }

    pub fn write(&self, region_offset: u64, offset: u64, length: u32) -> Op {
        write(self.file, self.region, region_offset, offset, length)
    }

    /// Submits one request; commits first where the batch is full.
    pub fn stage(&mut self, user: u32, op: &Op) -> Tag {
        let mut slot = self.submit.reserve().expect("a free slot");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.submit.submit(slot, user, op) {
                Ok(tag) => return tag,
                Err(back) => slot = back,
            }
            assert!(Instant::now() < deadline, "the batch stays full");
            self.submit.commit().expect("commit");
        }
    }

    /// As [`stage`](Self::stage), over several pieces of memory.
    pub fn stage_vectored(&mut self, user: u32, op: &Op, segments: &[Segment]) -> Tag {
        let mut slot = self.submit.reserve().expect("a free slot");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.submit.submit_vectored(slot, user, op, segments) {
                Ok(tag) => return tag,
                Err(back) => slot = back,
            }
            assert!(Instant::now() < deadline, "the batch stays full");
            self.submit.commit().expect("commit");
        }
    }

    /// Commits until the kernel has all.
    pub fn commit(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.submit.commit().expect("commit");
            if self.submit.staged() == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{} stay staged", self.submit.staged());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for `count` completions, not released yet.
    pub fn wait(&mut self, count: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while all.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} completions came", all.len());
            match &mut self.reaper {
                Reaper::Here(reap, out) => {
                    reap.reap(out);
                    all.append(out);
                    if all.len() < count {
                        let second = Some(Duration::from_secs(1));
                        self.submit.sleep(self.doorbells.as_fd(), second).expect("sleep");
                    }
                }
                Reaper::There(thread) => {
                    if let Ok(completion) = thread.completions.recv_timeout(Duration::from_secs(1)) {
                        all.push(completion);
                    }
                }
            }
        }
        assert_eq!(all.len(), count, "more completions than requests");
        all
    }

    /// Runs requests to their end and gives their results in order.
    pub fn run(&mut self, ops: &[Op]) -> Vec<i32> {
        for (user, op) in (0..).zip(ops) {
            self.stage(user, op);
        }
        self.commit();
        let mut results = vec![None; ops.len()];
        for completion in self.wait(ops.len()) {
            let before = results[completion.user as usize].replace(completion.result);
            assert_eq!(before, None, "one completion per request");
            self.submit.release(completion.tag);
        }
        results.into_iter().map(|result| result.expect("an answer")).collect()
    }

    pub fn run_one(&mut self, op: &Op) -> i32 {
        self.run(std::slice::from_ref(op))[0]
    }

    pub fn run_vectored(&mut self, op: &Op, segments: &[Segment]) -> i32 {
        self.stage_vectored(0, op, segments);
        self.commit();
        let completion = self.wait(1)[0];
        self.submit.release(completion.tag);
        completion.result
    }

    pub fn degraded(&self) -> String {
        self.submit.info().degraded.join("\n")
    }

    pub fn modes(&self) -> String {
        self.submit.info().modes.join("\n")
    }

    /// Nothing is in flight and nothing was stale.
    pub fn finish(self) {
        assert_eq!(self.submit.in_flight(), 0);
        assert_eq!(self.reaper.into_half().stale(), 0);
    }
}

/// The reap half, on this thread or on its own.
pub enum Reaper<R> {
    Here(R, Vec<Completion>),
    There(ReapThread<R>),
}

pub struct ReapThread<R> {
    pub completions: Receiver<Completion>,
    stop: Arc<AtomicBool>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<R>>,
}

impl<R: ReapHalf> Reaper<R> {
    fn new(mut reap: R, shape: Shape, depth: u32) -> Reaper<R> {
        let room = depth as usize;
        if shape == Shape::One {
            assert!(reap.completion_fd().is_none());
            return Reaper::Here(reap, Vec::with_capacity(room));
        }
        let (sender, completions) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let bell = Arc::new(new_eventfd());
        let (stopping, stop_bell) = (Arc::clone(&stop), Arc::clone(&bell));
        let thread = std::thread::spawn(move || {
            let mut out = Vec::with_capacity(room);
            while !stopping.load(Ordering::Relaxed) {
                reap.reap(&mut out);
                for completion in out.drain(..) {
                    // A test that is over does not listen.
                    let _ = sender.send(completion);
                }
                if reap.prepare_sleep() {
                    let fd = reap.completion_fd().expect("Shape::Two has one");
                    let _ = readable(&[fd, stop_bell.as_fd()], None);
                    reap.woke();
                }
            }
            reap
        });
        Reaper::There(ReapThread { completions, stop, bell, thread: Some(thread) })
    }

    pub fn into_half(self) -> R {
        match self {
            Reaper::Here(reap, _) => reap,
            Reaper::There(mut thread) => thread.end().expect("still running"),
        }
    }
}

impl<R> ReapThread<R> {
    fn end(&mut self) -> Option<R> {
        self.stop.store(true, Ordering::Relaxed);
        rustix::io::write(&*self.bell, &1u64.to_ne_bytes()).expect("eventfd");
        self.thread.take()?.join().ok()
    }
}

impl<R> Drop for ReapThread<R> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// An epoll descriptor with one doorbell in it.
pub struct Doorbells {
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl Doorbells {
    fn new() -> Doorbells {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let bell = new_eventfd();
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("epoll_ctl");
        Doorbells { epoll, bell }
    }

    pub fn ring(&self) {
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).expect("eventfd");
    }

    /// Says whether it had been rung.
    pub fn silence(&self) -> bool {
        rustix::io::read(&self.bell, &mut [0; 8]).is_ok()
    }

    pub fn bell(&self) -> OwnedFd {
        self.bell.try_clone().expect("dup")
    }

    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

pub fn readable(fds: &[std::os::fd::BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = timeout.map(|timeout| timeout.try_into().expect("short"));
    Ok(poll(&mut fds, timeout.as_ref())?)
}

/// For messages.
pub fn describe(target: &Target) -> String {
    let fd = target.as_fd().map(|fd| fd.as_raw_fd());
    format!("{} (fd {fd:?}, direct: {}, {:?})", target.name(), target.direct(), target.direct_reason())
}
