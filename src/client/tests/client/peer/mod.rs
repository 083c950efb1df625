//! The daemon's side, held by the test.

pub mod resume;
mod server;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferrio_client::{Access, Queue, QueueOptions, Session, SessionBuilder, Volume, WaitPolicy};
use ferrio_shm::abi::Opcode;
use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx, Drained};
use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::layout::SessionLayout;
use ferrio_shm::lease::{LeaseEvent, LeaseMessage};
use ferrio_shm::mapping::{MappedQueue, Mapping, SessionHeader};
use ferrio_shm::peer::send_message;
use ferrio_shm::ring::{CqCredit, CqProducer, SqConsumer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use resume::{Identity, Remains, Resumes};

pub const VOLUME_BYTES: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

/// Listens on both sockets.
pub struct Daemon {
    directory: TempDir,
    served: Mutex<Receiver<Served>>,
    pub resumes: Resumes,
    /// Opens that are answered UNAVAILABLE before one is served.
    pub unavailable: Arc<AtomicU32>,
}

/// The daemon's side of one session.
pub struct Served {
    pub header: SessionHeader,
    pub lease: OwnedFd,
    pub doorbell: DoorbellRx,
    pub queues: Vec<ServedQueue>,
    mapping: Arc<Mapping>,
    layout: SessionLayout,
    volume: Vec<u64>,
    identity: Identity,
    /// Memory of the regions that came with Resume.
    pub shown: Vec<OwnedFd>,
}

pub struct ServedQueue {
    pub sq: SqConsumer<MappedQueue>,
    pub credit: CqCredit<MappedQueue>,
    pub cq: CqProducer<MappedQueue>,
    pub doorbell: DoorbellTx,
    pub rings: MappedQueue,
}

impl Daemon {
    pub fn start() -> Self {
        Daemon::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(directory: TempDir) -> Self {
        let (serve, served) = channel();
        let (resumes, unavailable) = (Resumes::default(), Arc::default());
        server::start(directory.path(), serve, resumes.clone(), Arc::clone(&unavailable));
        Daemon { directory, served: Mutex::new(served), resumes, unavailable }
    }

    pub fn control(&self) -> PathBuf {
        self.path().join("control.sock")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Of a session that ends with its daemon.
    pub fn builder(&self) -> SessionBuilder {
        let builder = Session::builder(self.control()).name("test").volume("data", Access::ReadWrite);
        builder.patience(Duration::ZERO)
    }

    pub fn open(&self, builder: SessionBuilder) -> (Session, Served) {
        let session = builder.open().unwrap();
        (session, self.next_served())
    }

    pub fn next_served(&self) -> Served {
        self.served.lock().unwrap().recv_timeout(LONG).unwrap()
    }

    /// A session with one queue of as many SQ and CQ entries.
    pub fn queue(&self, entries: u32, cq_entries: u32, wait: WaitPolicy) -> Opened {
        let options = QueueOptions { entries, cq_entries, wait, ..QueueOptions::default() };
        self.open_queue(self.builder().queue(options))
    }

    pub fn open_queue(&self, builder: SessionBuilder) -> Opened {
        let (session, served) = self.open(builder);
        let (queue, volume) = (session.take_queue(0).unwrap(), session.volume("data").unwrap());
        Opened { session, queue, volume, served }
    }

    pub async fn served(&self) -> Served {
        tokio::task::block_in_place(|| self.next_served())
    }
}

pub struct Opened {
    pub session: Session,
    pub queue: Queue,
    pub volume: Volume,
    pub served: Served,
}

impl Served {
    /// Takes what is in the SQ ring of queue 0, without answering.
    pub fn take(&mut self) -> Vec<Sqe> {
        self.take_from(0)
    }

    pub fn take_from(&mut self, queue: usize) -> Vec<Sqe> {
        let queue = &mut self.queues[queue];
        let mut taken = Vec::new();
        while queue.sq.available().unwrap() > 0 {
            taken.extend(queue.sq.take());
            queue.credit.reserve().unwrap();
        }
        queue.sq.publish();
        taken
    }

    /// Posts an answer on queue 0, whatever it says, and rings if the client sleeps.
    pub fn post(&mut self, user_data: u64, result: i32) {
        self.post_to(0, Cqe { user_data, result, flags: 0 });
    }

    pub fn post_to(&mut self, queue: usize, cqe: Cqe) {
        let queue = &mut self.queues[queue];
        queue.cq.push(&cqe);
        if queue.cq.publish().unwrap() {
            queue.doorbell.ring().unwrap();
        }
    }

    /// Does what the SQE asks for and answers it.
    pub fn answer(&mut self, sqe: &Sqe) {
        let result = self.perform(sqe);
        self.post(sqe.user_data, result);
    }

    pub fn answer_all(&mut self) -> usize {
        let taken = self.take();
        taken.iter().for_each(|sqe| self.answer(sqe));
        taken.len()
    }

    /// The same without a list of what was taken.
    pub fn answer_each(&mut self) {
        while self.queues[0].sq.available().unwrap() > 0 {
            let queue = &mut self.queues[0];
            let Some(sqe) = queue.sq.take() else { return };
            queue.credit.reserve().unwrap();
            queue.sq.publish();
            self.answer(&sqe);
        }
    }

    fn perform(&mut self, sqe: &Sqe) -> i32 {
        let (words, at) = (sqe.length as usize / 8, sqe.offset as usize / 8);
        let memory = (self.layout.arena_offset + sqe.region_offset) as usize;
        match Opcode::try_from(sqe.op) {
            Ok(Opcode::Nop | Opcode::Flush) => return 0,
            Ok(Opcode::Read) => {
                let target = self.mapping.u64s(memory, words).unwrap();
                for (word, value) in target.iter().zip(&self.volume[at..at + words]) {
                    word.store(*value, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Ok(Opcode::Write) => {
                let source = self.mapping.u64s(memory, words).unwrap();
                for (value, word) in self.volume[at..at + words].iter_mut().zip(source) {
                    *value = word.load(std::sync::atomic::Ordering::Relaxed);
                }
            }
            _ => return -libc::EOPNOTSUPP,
        }
        sqe.length as i32
    }

    /// What the client has put into its arena.
    pub fn arena(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let words = self.mapping.u64s((self.layout.arena_offset + offset) as usize, bytes / 8).unwrap();
        words.iter().flat_map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes()).collect()
    }

    pub fn say(&self, event: LeaseEvent) {
        send_message(self.lease.as_fd(), &LeaseMessage::Event(event).encode(), &[]).unwrap();
    }

    /// Serves until it is killed.
    pub fn run_until(mut self, killed: &AtomicBool) -> Remains {
        while !killed.load(Ordering::Acquire) {
            self.answer_all();
            if self.queues[0].sq.prepare_sleep().unwrap() {
                let mut doorbell = [PollFd::new(&self.doorbell, PollFlags::IN)];
                let limit = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                poll(&mut doorbell, Some(&limit)).unwrap();
                self.doorbell.drain().unwrap();
            }
        }
        self.die()
    }

    /// Serves until the client is done, asleep on doorbell and lease whenever there is nothing to do.
    pub fn run(mut self) {
        loop {
            self.answer_all();
            if self.queues[0].sq.prepare_sleep().unwrap() {
                let [doorbell, lease] = readable([self.doorbell.as_fd(), self.lease.as_fd()]);
                if lease || doorbell && self.doorbell.drain().unwrap() == Drained::Closed {
                    return;
                }
            }
        }
    }
}

/// Waits until one of them is readable, and says which are.
pub fn readable<const N: usize>(fds: [BorrowedFd<'_>; N]) -> [bool; N] {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    poll(&mut fds, None).unwrap();
    fds.map(|fd| !fd.revents().is_empty())
}

/// Waits for something that another thread does, for as long as a test may take.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "did not happen within {LONG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
