//! Memory and doorbells of a session: what the client gets at attach, and what the engines keep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ferrio_shm::abi::SessionState;
use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx, doorbell_to_client, doorbell_to_daemon};
use ferrio_shm::mapping::{Mapping, SessionHeader, create_memfd};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::error::OpenError;
use super::plan::Plan;
use super::saved::MemoryFile;

/// Descriptors that sessions leave to connections.
const CONNECTION_FDS: u64 = 64;

/// The descriptors a client gets, in the order of ABI.md: memfd unless it has it, doorbells towards the daemon, CQ doorbells.
#[derive(Debug)]
pub struct ClientEnds {
    /// All of them.
    pub fds: Vec<OwnedFd>,
}

/// What the engines get.
#[derive(Debug)]
pub struct EngineEnds {
    /// By engine of the plan.
    pub doorbells: Vec<DoorbellRx>,
    /// By queue.
    pub cq_doorbells: Vec<DoorbellTx>,
}

/// Memory of a session, mapped, with its header.
#[derive(Debug)]
pub struct SessionMemory {
    /// The mapping.
    pub mapping: Arc<Mapping>,
    /// What its file is known by.
    pub file: MemoryFile,
    header: SessionHeader,
}

impl SessionMemory {
    /// Makes memory and doorbells.
    pub fn create(
        plan: &Plan,
        session_id: u64,
        epoch: u64,
    ) -> Result<(Self, ClientEnds, EngineEnds), OpenError> {
        let failed = |what| move |source| OpenError::System { what, source };
        let memory_bytes = plan.layout.memory_bytes;
        let memfd =
            create_memfd("ferrio-session", memory_bytes).map_err(failed("make the session memory"))?;
        let memory = Self::map(&memfd, memory_bytes).map_err(failed("map the session memory"))?;
        memory.header.init(session_id, epoch, &plan.layout);
        let (mut client, engine) = doorbells(plan)?;
        client.fds.insert(0, memfd);
        Ok((memory, client, engine))
    }

    /// Maps memory that a client kept over a restart of the daemon, and makes new doorbells. The caller has checked that it is
    /// the session's.
    pub fn take_back(
        plan: &Plan,
        memfd: impl AsFd,
        epoch: u64,
    ) -> Result<(Self, ClientEnds, EngineEnds), OpenError> {
        let failed = |source| OpenError::System { what: "map the session memory", source };
        let memory = Self::map(memfd, plan.layout.memory_bytes).map_err(failed)?;
        let (client, engine) = doorbells(plan)?;
        memory.header.set_epoch(epoch);
        memory.header.set_state(SessionState::Active);
        Ok((memory, client, engine))
    }

    fn map(memfd: impl AsFd, bytes: u64) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mapping = Arc::new(Mapping::new(memfd.as_fd(), length)?);
        let header = SessionHeader::new(Arc::clone(&mapping))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { mapping, file: MemoryFile::of(memfd, bytes)?, header })
    }

    /// Tells the client where its session stands, in memory that it may be spinning on.
    pub fn set_state(&self, state: SessionState) {
        self.header.set_state(state);
    }
}

/// Sessions do not take the descriptors that connections need: whoever holds many sessions would keep everybody else out,
/// the operator too. The kernel gives the lowest number that is free, so a new one tells how many there are.
fn check_descriptors(newest: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let number = newest.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs()));
    if number.saturating_add(CONNECTION_FDS) < limit { Ok(()) } else { Err(Errno::MFILE.into()) }
}

/// A doorbell for each engine of the plan, and one for each queue towards the client.
fn doorbells(plan: &Plan) -> Result<(ClientEnds, EngineEnds), OpenError> {
    let failed = |what| move |source| OpenError::System { what, source };
    let (mut fds, mut doorbells, mut cq_doorbells) = (Vec::new(), Vec::new(), Vec::new());
    for _ in &plan.engines {
        let (tx, rx) = doorbell_to_daemon().map_err(failed("make a doorbell"))?;
        fds.push(tx.into());
        doorbells.push(rx);
    }
    for _ in &plan.queue_engines {
        let (tx, rx) = doorbell_to_client().map_err(failed("make a doorbell"))?;
        fds.push(rx.into());
        cq_doorbells.push(tx);
    }
    let newest = cq_doorbells.last().map(AsFd::as_fd);
    check_descriptors(newest).map_err(failed("keep descriptors free for connections"))?;
    Ok((ClientEnds { fds }, EngineEnds { doorbells, cq_doorbells }))
}
