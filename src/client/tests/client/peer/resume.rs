//! A daemon that ends, and the next one, which the client asks to go on with the session.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use ferrio_shm::abi::SessionState;
use ferrio_shm::layout::SessionLayout;
use ferrio_shm::lease::LeaseMessage;
use ferrio_shm::mapping::{MappedQueue, Mapping, SessionHeader};
use ferrio_shm::peer;
use ferrio_shm::ring::{CqCredit, CqProducer, SqConsumer};

use super::{Served, ServedQueue, server};

/// What the session is known by.
pub struct Identity {
    pub session_id: u64,
    pub epoch: u64,
    pub memory: OwnedFd,
}

pub fn secret(session_id: u64) -> [u8; 32] {
    [!session_id as u8; 32]
}

/// What a daemon leaves behind: the memory, and the indices in its journal.
pub struct Remains {
    layout: SessionLayout,
    mapping: Arc<Mapping>,
    volume: Vec<u64>,
    identity: Identity,
    /// Of each queue: sq_head, cq_tail, requests accepted.
    indices: Vec<(u32, u32, u32)>,
}

/// What is done with the next Resume.
pub enum Answer {
    Refuse(i32),
    /// The connection is closed without a word.
    Close,
    Serve(Remains, Preparation),
    /// As the one before, with an epoch that is not that of the header.
    ServeFalsely(Remains),
}

/// Done by the next daemon between the look at its journal and Attached.
pub type Preparation = Box<dyn FnOnce(&mut Served) + Send>;

/// Answers to come, in order. Without any, the daemon is stopping.
#[derive(Clone, Default)]
pub struct Resumes(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    answers: VecDeque<Answer>,
    asked: usize,
}

impl Resumes {
    pub fn then(&self, answer: Answer) {
        self.0.lock().unwrap().answers.push_back(answer);
    }

    pub fn serve(&self, remains: Remains) {
        self.then(Answer::Serve(remains, Box::new(|_| {})));
    }

    /// How often a Resume came.
    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    pub(super) fn answer(
        &self,
        lease: OwnedFd,
        session_id: u64,
        shown_secret: [u8; 32],
        mut shown: Vec<OwnedFd>,
    ) -> Option<Served> {
        let answer = {
            let mut shared = self.0.lock().unwrap();
            shared.asked += 1;
            shared.answers.pop_front()
        };
        assert_eq!(shown_secret, secret(session_id));
        let (remains, prepare, falsely) = match answer {
            Some(Answer::Serve(remains, prepare)) => (remains, prepare, false),
            Some(Answer::ServeFalsely(remains)) => {
                (remains, Box::new(|_: &mut Served| {}) as Preparation, true)
            }
            Some(Answer::Refuse(errno)) => return refuse(&lease, errno),
            Some(Answer::Close) => return None,
            None => return refuse(&lease, libc::ESHUTDOWN),
        };
        assert_eq!(remains.identity.session_id, session_id);
        assert_eq!(file(&shown.remove(0)), file(&remains.identity.memory), "the session memory comes first");
        Some(remains.serve(lease, shown, prepare, falsely))
    }
}

fn refuse(lease: &OwnedFd, errno: i32) -> Option<Served> {
    let refused = LeaseMessage::Refused { errno, reason: "the test says no".into() };
    // A client that is dropped does not wait for it.
    let _ = peer::send_message(lease, &refused.encode(), &[]);
    None
}

/// Device and inode.
pub fn file(fd: &OwnedFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

impl Identity {
    pub(super) fn send_attached(&self, lease: &OwnedFd, layout: &SessionLayout, fds: &[BorrowedFd<'_>]) {
        let attached = LeaseMessage::Attached {
            session_id: self.session_id,
            epoch: self.epoch,
            memory_bytes: layout.memory_bytes,
            doorbells: 1,
            queues: layout.queues.len() as u32,
        };
        peer::send_message(lease, &attached.encode(), fds).unwrap();
    }
}

impl Served {
    /// Ends as by kill -9: descriptors are closed, memory stays as it is.
    pub fn die(self) -> Remains {
        let Served { queues, mapping, layout, volume, identity, .. } = self;
        let indices = |queue: &ServedQueue| (queue.sq.head(), queue.cq.tail(), queue.credit.accepted());
        Remains { indices: queues.iter().map(indices).collect(), layout, mapping, volume, identity }
    }
}

impl Remains {
    fn serve(self, lease: OwnedFd, shown: Vec<OwnedFd>, prepare: Preparation, falsely: bool) -> Served {
        let Remains { layout, mapping, volume, mut identity, indices } = self;
        identity.epoch += 1;
        let header = SessionHeader::new(Arc::clone(&mapping)).unwrap();
        header.set_epoch(identity.epoch);
        header.set_state(SessionState::Active);
        let (doorbells, doorbell, to_client) = server::doorbells(layout.queues.len());
        let queues = layout.queues.iter().zip(to_client).zip(indices);
        let queues = queues.map(|((layout, doorbell), (head, tail, accepted))| {
            let rings = MappedQueue::new(Arc::clone(&mapping), layout).unwrap();
            let cq = CqProducer::resume(rings.clone(), tail);
            let credit = CqCredit::resume(rings.clone(), &cq, accepted);
            ServedQueue { sq: SqConsumer::resume(rings.clone(), head), credit, cq, doorbell, rings }
        });
        let queues = queues.collect();
        let mut served = Served { header, lease, doorbell, queues, mapping, layout, volume, identity, shown };
        prepare(&mut served);
        if falsely {
            served.header.set_epoch(0);
        }
        let fds: Vec<_> = doorbells.iter().map(AsFd::as_fd).collect();
        served.identity.send_attached(&served.lease, &served.layout, &fds);
        served
    }
}
