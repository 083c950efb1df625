//! A client made of bare gRPC, socket, memory and ring ends: it can do what `ferrio-client` refuses to do.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ferrio_api::v1;
use ferrio_client::connect_control;
use ferrio_shm::{
    doorbell::{DoorbellRx, DoorbellTx},
    entry::{Cqe, Sqe},
    layout::QueueLayout,
    lease::{LEASE_MESSAGE_MAX, LeaseMessage},
    mapping::{MappedQueue, Mapping},
    peer,
    ring::{CqConsumer, SqProducer},
};

use crate::process::PATIENCE;

/// Descriptors of the largest session.
const FDS_MAX: usize = 200;

/// What asks for these volumes and one queue.
pub fn request(volumes: &[(&str, v1::Access)], sq_entries: u32) -> v1::OpenSessionRequest {
    v1::OpenSessionRequest {
        client_name: "raw".into(),
        queues: vec![v1::QueueRequest { sq_entries, cq_entries: sq_entries, engine: String::new() }],
        arena_bytes: 65536,
        volumes: volumes
            .iter()
            .map(|(name, access)| v1::VolumeRequest { name: (*name).into(), access: (*access).into() })
            .collect(),
        abi_min: 1,
        abi_max: 1,
        ..v1::OpenSessionRequest::default()
    }
}

/// Sessions.Open with these volumes and one queue.
///
/// # Errors
/// What the daemon answers.
///
/// # Panics
/// The daemon is not there.
pub fn open(
    control: &Path,
    volumes: &[(&str, v1::Access)],
    sq_entries: u32,
) -> Result<v1::OpenSessionResponse, tonic::Status> {
    open_request(control, request(volumes, sq_entries))
}

/// Sessions.Open.
///
/// # Errors
/// What the daemon answers.
///
/// # Panics
/// The daemon is not there.
pub fn open_request(
    control: &Path,
    request: v1::OpenSessionRequest,
) -> Result<v1::OpenSessionResponse, tonic::Status> {
    let control = control.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let control = control.clone();
            async move { connect_control(&control, PATIENCE).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://ferriod");
        let channel = endpoint.connect_with_connector(connector).await.expect("the daemon serves");
        v1::sessions_client::SessionsClient::new(channel).open(request).await.map(tonic::Response::into_inner)
    })
}

/// Sends one message to the attach socket; returns the answer, its descriptors, and the socket.
///
/// # Panics
/// The daemon is not there.
pub fn attach(path: &Path, message: &[u8]) -> (Option<LeaseMessage>, Vec<OwnedFd>, OwnedFd) {
    let socket = peer::connect(path).expect("the daemon serves");
    peer::send_message(&socket, message, &[]).expect("a message");
    let mut fds = Vec::new();
    let mut answer = [0; LEASE_MESSAGE_MAX];
    let length = peer::recv_message(&socket, &mut answer, &mut fds, FDS_MAX).unwrap_or(0);
    (LeaseMessage::decode(&answer[..length]).ok(), fds, socket)
}

/// Asks to go on with a session; returns the answer, its descriptors, and the socket.
///
/// # Panics
/// The daemon is not there.
pub fn resume(
    path: &Path,
    session_id: u64,
    secret: [u8; 32],
    memory: &[BorrowedFd<'_>],
) -> (Option<LeaseMessage>, Vec<OwnedFd>, OwnedFd) {
    let socket = peer::connect(path).expect("the daemon serves");
    peer::send_message(&socket, &LeaseMessage::Resume { session_id, secret }.encode(), memory).expect("sent");
    let mut fds = Vec::new();
    let mut answer = [0; LEASE_MESSAGE_MAX];
    let length = peer::recv_message(&socket, &mut answer, &mut fds, FDS_MAX).unwrap_or(0);
    (LeaseMessage::decode(&answer[..length]).ok(), fds, socket)
}

/// The next message of the daemon on a lease; `None` after `patience`, and when the lease has ended.
///
/// # Panics
/// It is not a message.
#[track_caller]
pub fn heard(lease: &OwnedFd, patience: Duration) -> Option<LeaseMessage> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(patience).expect("not for long");
    if poll(&mut [PollFd::new(lease, PollFlags::IN)], Some(&limit)).expect("a socket") == 0 {
        return None;
    }
    let mut message = [0; LEASE_MESSAGE_MAX];
    let length = peer::recv_message(lease, &mut message, &mut Vec::new(), FDS_MAX).unwrap_or(0);
    (length > 0).then(|| LeaseMessage::decode(&message[..length]).expect("a message of the ABI"))
}

/// Adds a region, and waits for the answer: 0, or an errno.
///
/// # Panics
/// The daemon answers something else, or nothing.
#[track_caller]
pub fn add_region(lease: &OwnedFd, index: u16, bytes: u64, fds: &[BorrowedFd<'_>]) -> i32 {
    peer::send_message(lease, &LeaseMessage::RegionAdd { index, bytes }.encode(), fds).expect("sent");
    region_reply(lease, index)
}

/// Removes a region, and waits for the answer: 0, or an errno.
///
/// # Panics
/// The daemon answers something else, or nothing.
#[track_caller]
pub fn remove_region(lease: &OwnedFd, index: u16) -> i32 {
    peer::send_message(lease, &LeaseMessage::RegionRemove { index }.encode(), &[]).expect("sent");
    region_reply(lease, index)
}

#[track_caller]
fn region_reply(lease: &OwnedFd, asked: u16) -> i32 {
    match heard(lease, Duration::from_secs(20)) {
        Some(LeaseMessage::RegionReply { index, errno }) if index == asked => errno,
        other => panic!("no answer for region {asked}: {other:?}"),
    }
}

/// The message that shows a token.
///
/// # Panics
/// It is not 32 bytes long.
pub fn with_token(token: &[u8]) -> Vec<u8> {
    LeaseMessage::Attach { token: token.try_into().expect("32 bytes") }.encode()
}

/// An attached session with one queue.
pub struct RawSession {
    /// Session id.
    pub id: u64,
    /// The whole session memory.
    pub memory: Arc<Mapping>,
    /// Where the queue lies in it.
    pub queue: QueueLayout,
    /// Submitting end.
    pub sq: SqProducer<MappedQueue>,
    /// Reaping end.
    pub cq: CqConsumer<MappedQueue>,
    /// Wakes the daemon.
    pub doorbell: DoorbellTx,
    /// Woken by the daemon.
    pub cq_doorbell: DoorbellRx,
    /// The session ends with it.
    pub lease: OwnedFd,
    /// The session memory's descriptor.
    pub memfd: OwnedFd,
    /// Proves that the session is this client's.
    pub secret: [u8; 32],
    /// What it was attached with.
    pub token: Vec<u8>,
    attach_socket: PathBuf,
}

impl RawSession {
    /// Opens and attaches.
    ///
    /// # Panics
    /// The daemon refuses.
    #[track_caller]
    pub fn open(control: &Path, volumes: &[(&str, v1::Access)], sq_entries: u32) -> Self {
        Self::attach(&open(control, volumes, sq_entries).expect("a session"))
    }

    /// Attaches to a session with one queue that was opened.
    ///
    /// # Panics
    /// The daemon refuses.
    #[track_caller]
    pub fn attach(opened: &v1::OpenSessionResponse) -> Self {
        let (answer, fds, lease) =
            attach(Path::new(&opened.attach_socket), &with_token(&opened.attach_token));
        assert!(matches!(answer, Some(LeaseMessage::Attached { .. })), "{answer:?}");
        let [memfd, doorbell, cq_doorbell] =
            <[OwnedFd; 3]>::try_from(fds).expect("memfd, doorbell, CQ doorbell");
        let bytes = usize::try_from(opened.memory_bytes).expect("a small session");
        let memory = Arc::new(Mapping::new(memfd.as_fd(), bytes).expect("the memory maps"));
        let queue = &opened.queues[0];
        let queue = QueueLayout {
            sq_entries: queue.sq_entries,
            cq_entries: queue.cq_entries,
            control_offset: queue.control_offset,
            sqes_offset: queue.sqes_offset,
            cqes_offset: queue.cqes_offset,
        };
        let rings = MappedQueue::new(Arc::clone(&memory), &queue).expect("the queue lies in the memory");
        Self {
            id: opened.session_id,
            memory,
            queue,
            sq: SqProducer::new(rings.clone()),
            cq: CqConsumer::new(rings),
            doorbell: DoorbellTx::from_fd(doorbell),
            cq_doorbell: DoorbellRx::from_fd(cq_doorbell),
            lease,
            memfd,
            secret: opened.resume_secret.as_slice().try_into().expect("32 bytes"),
            token: opened.attach_token.clone(),
            attach_socket: PathBuf::from(&opened.attach_socket),
        }
    }

    /// Shows what it takes to go on with the session, and these regions; returns the answer.
    pub fn offer(
        &self,
        secret: [u8; 32],
        memory: &[BorrowedFd<'_>],
    ) -> (Option<LeaseMessage>, Vec<OwnedFd>, OwnedFd) {
        resume(&self.attach_socket, self.id, secret, memory)
    }

    /// Goes on with the session after a restart of the daemon. Returns the epoch of the new one.
    ///
    /// # Panics
    /// The daemon refuses.
    #[track_caller]
    pub fn resume(&mut self, regions: &[BorrowedFd<'_>]) -> u64 {
        let memory = [&[self.memfd.as_fd()], regions].concat();
        let (answer, fds, lease) = self.offer(self.secret, &memory);
        let Some(LeaseMessage::Attached { session_id, epoch, .. }) = answer else {
            panic!("not resumed: {answer:?}");
        };
        assert_eq!(session_id, self.id);
        let [doorbell, cq_doorbell] = <[OwnedFd; 2]>::try_from(fds).expect("doorbell, CQ doorbell");
        self.doorbell = DoorbellTx::from_fd(doorbell);
        self.cq_doorbell = DoorbellRx::from_fd(cq_doorbell);
        self.lease = lease;
        epoch
    }

    /// Submits one SQE.
    ///
    /// # Panics
    /// The ring is full, or the doorbell broken.
    #[track_caller]
    pub fn submit(&mut self, sqe: &Sqe) {
        self.sq.push(sqe).expect("room in the SQ");
        if self.sq.publish() {
            self.doorbell.ring().expect("the daemon lives");
        }
    }

    /// The next CQE; `None` after `patience`.
    ///
    /// # Panics
    /// The daemon broke the CQ.
    pub fn wait(&mut self, patience: Duration) -> Option<Cqe> {
        let end = Instant::now() + patience;
        loop {
            if let Some(cqe) = self.cq.pop().expect("the daemon keeps the protocol") {
                self.cq.release();
                return Some(cqe);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Submits one SQE and waits for its answer.
    ///
    /// # Panics
    /// There is none within ten seconds.
    #[track_caller]
    pub fn result_of(&mut self, sqe: &Sqe) -> i32 {
        self.submit(sqe);
        let cqe = self.wait(Duration::from_secs(10)).expect("an answer within ten seconds");
        assert_eq!(cqe.user_data, sqe.user_data);
        cqe.result
    }
}
