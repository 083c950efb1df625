//! From the daemon's answer to mapped memory: attach socket, token, descriptors, checks.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_shm::abi::limits::DOORBELLS_MAX;
use ferrio_shm::abi::{ABI_VERSION, CQE_BYTES, SQE_BYTES, errno};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::layout::{QueueLayout, SessionLayout};
use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseMessage};
use ferrio_shm::mapping::{Mapping, SessionHeader, check_memfd};
use ferrio_shm::peer;

use crate::errno::Errno;
use crate::error::{Error, Refusal};
use crate::options::SessionBuilder;
use crate::wait;

/// Longest path of a Unix socket, without the NUL. Bytes.
const SOCKET_PATH_MAX: usize = 107;

/// A session's memory and descriptors, checked, and nothing else yet.
pub(crate) struct Attached {
    pub session_id: u64,
    pub layout: SessionLayout,
    pub mapping: Arc<Mapping>,
    pub header: SessionHeader,
    pub fork_guard: ForkGuard,
    pub lease: OwnedFd,
    pub fds: Descriptors,
    /// Where it was attached.
    pub path: PathBuf,
}

/// The descriptors that come with `Attached`, in the order of the ABI.
pub(crate) struct Descriptors {
    pub memory: OwnedFd,
    /// Towards the daemon.
    pub doorbells: Vec<OwnedFd>,
    /// Towards the client, one per queue.
    pub cq_doorbells: Vec<OwnedFd>,
}

pub(crate) fn attach(builder: &SessionBuilder, answer: &v1::OpenSessionResponse) -> Result<Attached, Error> {
    let layout = checked_layout(builder, answer)?;
    let path = attach_path(builder, &answer.attach_socket);
    let lease = peer::connect_within(&path, builder.timeout).map_err(|cause| Error::connect(&path, cause))?;
    let descriptors = exchange(&lease, &path, builder.timeout, answer)?;
    map(answer.session_id, layout, lease, descriptors, path)
}

/// The daemon may see its socket under another path than a client in a container does.
fn attach_path(builder: &SessionBuilder, reported: &str) -> PathBuf {
    let reported = PathBuf::from(reported);
    let sibling = || reported.file_name().map(|name| builder.control_socket.with_file_name(name));
    let path = match (&builder.attach_socket, sibling()) {
        (Some(path), _) => path.clone(),
        (None, Some(sibling)) if !reported.exists() && sibling.exists() => sibling,
        _ => reported,
    };
    // It is connected to again after a restart of the daemon, wherever the client's working directory is by then.
    match std::path::absolute(&path) {
        Ok(absolute) if absolute.as_os_str().len() <= SOCKET_PATH_MAX => absolute,
        _ => path,
    }
}

/// A layout that is used is one that was asked for, lies inside of the memory, and has entries of this ABI.
fn checked_layout(
    builder: &SessionBuilder,
    answer: &v1::OpenSessionResponse,
) -> Result<SessionLayout, Error> {
    let expect = |what: &str, found: u64, expected: u64| {
        if found == expected {
            return Ok(());
        }
        Err(unfit(format!("the session has {what} {found}, this client needs {expected}")))
    };
    expect("ABI version", answer.abi.into(), ABI_VERSION.into())?;
    expect("SQE bytes", answer.sqe_bytes.into(), SQE_BYTES.into())?;
    expect("CQE bytes", answer.cqe_bytes.into(), CQE_BYTES.into())?;
    expect("queues", answer.queues.len() as u64, builder.queues.len() as u64)?;
    expect("volumes", answer.volumes.len() as u64, builder.volumes.len() as u64)?;
    if !(1..=DOORBELLS_MAX).contains(&answer.doorbells) {
        return Err(unfit(format!(
            "the session has {} doorbells, 1 to {DOORBELLS_MAX} are possible",
            answer.doorbells
        )));
    }
    if let Some(queue) = answer.queues.iter().find(|queue| queue.doorbell >= answer.doorbells) {
        return Err(unfit(format!("a queue names doorbell {} of {}", queue.doorbell, answer.doorbells)));
    }
    let queue = |queue: &v1::QueueLayout| QueueLayout {
        sq_entries: queue.sq_entries,
        cq_entries: queue.cq_entries,
        control_offset: queue.control_offset,
        sqes_offset: queue.sqes_offset,
        cqes_offset: queue.cqes_offset,
    };
    let layout = SessionLayout {
        memory_bytes: answer.memory_bytes,
        arena_offset: answer.arena_offset,
        arena_bytes: answer.arena_bytes,
        queues: answer.queues.iter().map(queue).collect(),
    };
    layout.check().map_err(|error| unfit(format!("the session's layout is wrong: {error}")))?;
    Ok(layout)
}

/// Shows the token and takes the descriptors.
fn exchange(
    lease: &OwnedFd,
    path: &Path,
    limit: Duration,
    answer: &v1::OpenSessionResponse,
) -> Result<Descriptors, Error> {
    let token = answer.attach_token.as_slice().try_into();
    let token = token
        .map_err(|_| unfit(format!("the attach token has {} bytes, not 32", answer.attach_token.len())))?;
    let failed = |cause| Error::connect(path, cause);
    peer::send_message(lease.as_fd(), &LeaseMessage::Attach { token }.encode(), &[]).map_err(failed)?;
    if !wait::readable(lease.as_fd(), Some(Instant::now() + limit)).map_err(failed)? {
        return Err(Error::Timeout { path: path.to_owned(), what: "attach", limit });
    }
    let (mut bytes, mut fds) = ([0; LEASE_MESSAGE_MAX], Vec::new());
    let fds_max = 1 + answer.doorbells as usize + answer.queues.len();
    let length = peer::recv_message(lease.as_fd(), &mut bytes, &mut fds, fds_max).map_err(failed)?;
    if length == 0 {
        let message = format!("{} was closed without an answer; ferriod ended, see its log", path.display());
        return Err(Error::Refused { reason: Refusal::Unavailable, message });
    }
    match LeaseMessage::decode(&bytes[..length]) {
        Ok(LeaseMessage::Attached { session_id, memory_bytes, doorbells, queues, .. }) => {
            let told = (session_id, memory_bytes, doorbells, queues);
            let open = (answer.session_id, answer.memory_bytes, answer.doorbells, answer.queues.len() as u32);
            if told != open {
                return Err(unfit(format!(
                    "attach answers for (session, bytes, doorbells, queues) {told:?}, not {open:?}"
                )));
            }
            split(fds, doorbells as usize, queues as usize)
        }
        Ok(LeaseMessage::Refused { errno, reason }) => {
            let message = format!("{reason} ({})", Errno(errno));
            let stopping = errno == errno::ESHUTDOWN;
            let reason = if stopping { Refusal::Unavailable } else { Refusal::Attach };
            Err(Error::Refused { reason, message })
        }
        Ok(other) => Err(unfit(format!("the attach socket answers with {other:?}"))),
        Err(error) => Err(unfit(format!("the attach socket's answer cannot be read: {error}"))),
    }
}

fn split(mut fds: Vec<OwnedFd>, doorbells: usize, queues: usize) -> Result<Descriptors, Error> {
    let expected = 1 + doorbells + queues;
    if fds.len() != expected {
        return Err(unfit(format!("attach passes {} descriptors, not {expected}", fds.len())));
    }
    let cq_doorbells = fds.split_off(1 + doorbells);
    let doorbells = fds.split_off(1);
    let memory = fds.pop().ok_or_else(|| unfit("attach passes no memory".into()))?;
    Ok(Descriptors { memory, doorbells, cq_doorbells })
}

fn map(
    session_id: u64,
    layout: SessionLayout,
    lease: OwnedFd,
    fds: Descriptors,
    path: PathBuf,
) -> Result<Attached, Error> {
    let bytes = usize::try_from(layout.memory_bytes).map_err(|_| {
        unfit(format!("{} bytes of session memory exceed the address space", layout.memory_bytes))
    })?;
    check_memfd(fds.memory.as_fd(), layout.memory_bytes)
        .map_err(|error| unfit(format!("the session memory is unfit: {error}")))?;
    let fork_guard = ForkGuard::new().map_err(Error::io("map the fork guard"))?;
    let mapping = Mapping::new_client(fds.memory.as_fd(), bytes, &fork_guard);
    let mapping = Arc::new(mapping.map_err(Error::io("map the session memory"))?);
    let header = SessionHeader::new(Arc::clone(&mapping))
        .ok_or_else(|| unfit(format!("{bytes} bytes of session memory are less than a header")))?;
    header
        .check(session_id)
        .map_err(|error| unfit(format!("the session memory's header is wrong: {error}")))?;
    Ok(Attached { session_id, layout, mapping, header, fork_guard, lease, fds, path })
}

fn unfit(what: String) -> Error {
    Error::Incompatible { what }
}
