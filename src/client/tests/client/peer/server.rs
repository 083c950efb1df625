//! `Sessions.Open` and the attach socket.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use ferrio_api::v1;
use ferrio_api::v1::sessions_server::{Sessions, SessionsServer};
use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx, doorbell_to_client, doorbell_to_daemon};
use ferrio_shm::layout::{QueueSpec, SessionLayout};
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::mapping::{MappedQueue, Mapping, SessionHeader, create_memfd};
use ferrio_shm::peer;
use ferrio_shm::ring::{CqCredit, CqProducer, SqConsumer};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::resume::{Identity, Resumes};
use super::{Served, ServedQueue, VOLUME_BYTES};

pub const EPOCH: u64 = 77;

/// A session that is open and waits for its token.
struct Pending {
    session_id: u64,
    layout: SessionLayout,
    queues: usize,
}

type Tokens = Arc<Mutex<HashMap<[u8; 32], Pending>>>;

struct Service {
    attach_socket: PathBuf,
    tokens: Tokens,
    last_id: AtomicU64,
    /// Opens that are answered UNAVAILABLE before one is served.
    unavailable: Arc<AtomicU32>,
}

pub fn start(directory: &Path, serve: Sender<Served>, resumes: Resumes, unavailable: Arc<AtomicU32>) {
    let tokens = Tokens::default();
    let attach_socket = directory.join("attach.sock");
    let attach = peer::listen(&attach_socket, 0o600).unwrap();
    let service =
        Service { attach_socket, tokens: Arc::clone(&tokens), last_id: AtomicU64::new(0), unavailable };
    std::thread::spawn(move || {
        loop {
            super::readable([attach.as_fd()]);
            if attach_one(peer::accept(&attach).unwrap(), &tokens, &serve, &resumes).is_none() {
                return;
            }
        }
    });
    let control = directory.join("control.sock");
    let (listening, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::bind(control).unwrap();
            listening.send(()).unwrap();
            let server = tonic::transport::Server::builder().add_service(SessionsServer::new(service));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
    });
    listens.recv().unwrap();
}

#[tonic::async_trait]
impl Sessions for Service {
    async fn open(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let one_less = |left: u32| left.checked_sub(1);
        if self.unavailable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return Err(Status::unavailable("the daemon is stopping"));
        }
        let request = request.into_inner();
        let mut volumes = Vec::new();
        for volume in &request.volumes {
            if volume.name != "data" {
                return Err(Status::not_found(format!("no volume {:?}; there is: data", volume.name)));
            }
            volumes.push(v1::VolumeGrant {
                name: volume.name.clone(),
                access: volume.access,
                size_bytes: VOLUME_BYTES as u64,
                block_bytes: 512,
                memory_align_bytes: 512,
                request_bytes_max: 1 << 20,
                engine: "main".into(),
                ..v1::VolumeGrant::default()
            });
        }
        let spec = |queue: &v1::QueueRequest| QueueSpec {
            sq_entries: queue.sq_entries,
            cq_entries: if queue.cq_entries == 0 { queue.sq_entries * 2 } else { queue.cq_entries },
        };
        let specs: Vec<_> = request.queues.iter().map(spec).collect();
        let layout = SessionLayout::new(&specs, request.arena_bytes)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let session_id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let token = [session_id as u8; 32];
        let queue = |queue: &ferrio_shm::layout::QueueLayout| v1::QueueLayout {
            sq_entries: queue.sq_entries,
            cq_entries: queue.cq_entries,
            control_offset: queue.control_offset,
            sqes_offset: queue.sqes_offset,
            cqes_offset: queue.cqes_offset,
            doorbell: 0,
            engine: "main".into(),
        };
        let answer = v1::OpenSessionResponse {
            session_id,
            attach_token: token.to_vec(),
            resume_secret: super::resume::secret(session_id).to_vec(),
            // A name that asks for another ABI than the library speaks gets it.
            abi: if request.client_name == "abi 9" { 9 } else { request.abi_max },
            // A name that asks for nothing more gets nothing more.
            features: if request.client_name == "plain" { 0 } else { request.features },
            memory_bytes: layout.memory_bytes,
            arena_offset: layout.arena_offset,
            arena_bytes: layout.arena_bytes,
            queues: layout.queues.iter().map(queue).collect(),
            volumes,
            sqe_bytes: 64,
            cqe_bytes: 16,
            // A daemon in another mount namespace names a path that is not there.
            attach_socket: match request.client_name.as_str() {
                "container" => "/nowhere/attach.sock".into(),
                _ => self.attach_socket.to_string_lossy().into_owned(),
            },
            doorbells: 1,
            ..v1::OpenSessionResponse::default()
        };
        let pending = Pending { session_id, layout, queues: specs.len() };
        if request.client_name != "expired" {
            self.tokens.lock().unwrap().insert(token, pending);
        }
        Ok(Response::new(answer))
    }

    async fn evict(
        &self,
        _: Request<v1::EvictSessionRequest>,
    ) -> Result<Response<v1::EvictSessionResponse>, Status> {
        Err(Status::unimplemented("not needed by these tests"))
    }

    async fn list(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

fn attach_one(lease: OwnedFd, tokens: &Tokens, serve: &Sender<Served>, resumes: &Resumes) -> Option<()> {
    let (mut bytes, mut shown) = ([0; LEASE_MESSAGE_MAX], Vec::new());
    super::readable([lease.as_fd()]);
    let length = peer::recv_message(&lease, &mut bytes, &mut shown, peer::FDS_MAX).unwrap();
    let token = match LeaseMessage::decode(&bytes[..length]) {
        Ok(LeaseMessage::Attach { token }) => token,
        Ok(LeaseMessage::Resume { session_id, secret }) => {
            return match resumes.answer(lease, session_id, secret, shown) {
                Some(served) => serve.send(served).ok(),
                None => Some(()),
            };
        }
        _ => panic!("not a first message: {:?}", &bytes[..length]),
    };
    let Some(pending) = tokens.lock().unwrap().remove(&token) else {
        let reason = "the token is unknown, used or expired".into();
        let refused = LeaseMessage::Refused { errno: libc::EACCES, reason };
        peer::send_message(&lease, &refused.encode(), &[]).unwrap();
        return Some(());
    };
    serve.send(hand_over(lease, pending)).ok()
}

fn hand_over(lease: OwnedFd, pending: Pending) -> Served {
    let Pending { session_id, layout, queues } = pending;
    let memory = create_memfd("test", layout.memory_bytes).unwrap();
    let mapping = Arc::new(Mapping::new(memory.as_fd(), layout.memory_bytes as usize).unwrap());
    let header = SessionHeader::new(Arc::clone(&mapping)).unwrap();
    header.init(session_id, EPOCH, &layout);
    let (doorbells, doorbell, to_client) = doorbells(queues);
    let identity = Identity { session_id, epoch: EPOCH, memory };
    let mut fds: Vec<BorrowedFd<'_>> = vec![identity.memory.as_fd()];
    fds.extend(doorbells.iter().map(AsFd::as_fd));
    identity.send_attached(&lease, &layout, &fds);
    let served = |(layout, doorbell): (&ferrio_shm::layout::QueueLayout, DoorbellTx)| {
        let rings = MappedQueue::new(Arc::clone(&mapping), layout).unwrap();
        let cq = CqProducer::new(rings.clone());
        let credit = CqCredit::new(rings.clone(), &cq);
        ServedQueue { sq: SqConsumer::new(rings.clone()), credit, cq, doorbell, rings }
    };
    let queues = layout.queues.iter().zip(to_client).map(served).collect();
    let volume = vec![0; VOLUME_BYTES / 8];
    Served { header, lease, doorbell, queues, mapping, layout, volume, identity, shown: Vec::new() }
}

/// The client's ends, the one towards the daemon first; the daemon's end of that; those towards the client.
pub fn doorbells(queues: usize) -> (Vec<OwnedFd>, DoorbellRx, Vec<DoorbellTx>) {
    let (to_daemon, doorbell) = doorbell_to_daemon().unwrap();
    let (to_client, cq_rx): (Vec<DoorbellTx>, Vec<_>) =
        (0..queues).map(|_| doorbell_to_client().unwrap()).unzip();
    let mut ends = vec![OwnedFd::from(to_daemon)];
    ends.extend(cq_rx.into_iter().map(OwnedFd::from));
    (ends, doorbell, to_client)
}
