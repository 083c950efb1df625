//! The one place where errors become gRPC statuses. The errors word their own messages.

use ferrio_driver::{FaultError, TargetError};
use ferrio_engine::EngineError;
use rustix::io::Errno;
use tonic::{Code, Status};

use crate::scheduling::error::ScheduleError;
use crate::sessions::error::OpenError;
use crate::uid_limit::Exceeded;
use crate::volumes::error::VolumeError;

/// Metadata key under which a status carries the errno of the same meaning.
pub const ERRNO_KEY: &str = "ferrio-errno";

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        let (code, errno) = match &error {
            OpenError::Abi { .. } => (Code::Unimplemented, Errno::PROTONOSUPPORT),
            OpenError::ClientName(_)
            | OpenError::Count { .. }
            | OpenError::Layout(_)
            | OpenError::NoAccess(_) => (Code::InvalidArgument, Errno::INVAL),
            OpenError::Volume(error) => volume_code(error),
            OpenError::NoEngine { .. } => (Code::NotFound, Errno::NOENT),
            OpenError::NotAllowed { .. } => (Code::PermissionDenied, Errno::ACCESS),
            OpenError::ReadOnly(_) => (Code::FailedPrecondition, Errno::ROFS),
            OpenError::Busy { .. } => (Code::FailedPrecondition, Errno::BUSY),
            OpenError::Limit { .. } => (Code::ResourceExhausted, Errno::DQUOT),
            OpenError::TooFast { .. } => (Code::ResourceExhausted, Errno::AGAIN),
            OpenError::Draining => (Code::Unavailable, Errno::SHUTDOWN),
            OpenError::System { source, .. } => {
                (Code::ResourceExhausted, Errno::from_io_error(source).unwrap_or(Errno::IO))
            }
        };
        with_errno(Status::new(code, error.to_string()), errno)
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let (code, errno) = volume_code(&error);
        with_errno(Status::new(code, error.to_string()), errno)
    }
}

impl From<ScheduleError> for Status {
    fn from(error: ScheduleError) -> Self {
        let (code, errno) = match &error {
            ScheduleError::Scope
            | ScheduleError::GroupName(_)
            | ScheduleError::Limit(_)
            | ScheduleError::NoRate
            | ScheduleError::Nothing(_)
            | ScheduleError::Range { .. }
            | ScheduleError::Budgets(_) => (Code::InvalidArgument, Errno::INVAL),
            ScheduleError::NoSession(_)
            | ScheduleError::NoGroup { .. }
            | ScheduleError::NoEngine { .. }
            | ScheduleError::Engine(EngineError::NoSession { .. }) => (Code::NotFound, Errno::NOENT),
            ScheduleError::NotServed { .. } => (Code::FailedPrecondition, Errno::BUSY),
            ScheduleError::Volume(error) => volume_code(error),
            ScheduleError::Engine(error) => (Code::Unavailable, Errno::from_raw_os_error(error.errno())),
        };
        with_errno(Status::new(code, error.to_string()), errno)
    }
}

fn volume_code(error: &VolumeError) -> (Code, Errno) {
    match error {
        VolumeError::Invalid { .. } => (Code::InvalidArgument, Errno::INVAL),
        VolumeError::NoVolume { .. } | VolumeError::NoEngine { .. } => (Code::NotFound, Errno::NOENT),
        VolumeError::NotServing { .. } => (Code::FailedPrecondition, Errno::BUSY),
        VolumeError::Fencing { .. } => (Code::Unavailable, Errno::AGAIN),
        VolumeError::NameTaken { .. } | VolumeError::PathTaken { .. } => (Code::AlreadyExists, Errno::EXIST),
        VolumeError::TooManyOpening(_) => (Code::ResourceExhausted, Errno::AGAIN),
        VolumeError::Target { source, .. } => target_code(source),
        VolumeError::Engine { source, .. } => {
            (Code::ResourceExhausted, Errno::from_raw_os_error(source.errno()))
        }
        VolumeError::Faults { source: FaultError::Unsupported, .. } => {
            (Code::FailedPrecondition, Errno::OPNOTSUPP)
        }
        VolumeError::Faults { .. } => (Code::InvalidArgument, Errno::INVAL),
        VolumeError::ReadOnly(_) => (Code::FailedPrecondition, Errno::ROFS),
        VolumeError::Slow { .. } => (Code::DeadlineExceeded, Errno::TIMEDOUT),
        VolumeError::System { .. } => (Code::Internal, Errno::IO),
    }
}

fn target_code(error: &TargetError) -> (Code, Errno) {
    match error {
        TargetError::NotFound { .. } => (Code::NotFound, Errno::NOENT),
        TargetError::Held { .. } | TargetError::Claimed { .. } => (Code::AlreadyExists, Errno::BUSY),
        TargetError::Io { source, .. } => {
            (Code::FailedPrecondition, Errno::from_io_error(source).unwrap_or(Errno::IO))
        }
        _ => (Code::FailedPrecondition, Errno::INVAL),
    }
}

fn with_errno(mut status: Status, errno: Errno) -> Status {
    status.metadata_mut().insert(ERRNO_KEY, errno.raw_os_error().into());
    status
}

/// A value out of range.
pub fn out_of_range(field: &str, value: u64, min: u64, max: u64, unit: &str) -> Status {
    let text =
        format!("{field}: {value} {unit} asked for, {min} to {max} allowed; choose a value within the limit");
    with_errno(Status::invalid_argument(text), Errno::INVAL)
}

/// A text that would act on the terminal or log that shows it.
pub fn not_text(field: &str, value: &str) -> Status {
    let text = format!("{field} = {value:?}: control characters are not allowed; leave them out");
    with_errno(Status::invalid_argument(text), Errno::INVAL)
}

/// A session that is not there.
pub fn no_session(session_id: u64) -> Status {
    let text = format!("no session has id {session_id}; `ferrioctl session list` shows those there are");
    with_errno(Status::not_found(text), Errno::NOENT)
}

/// A caller with too many connections.
pub fn connections(exceeded: &Exceeded) -> Status {
    with_errno(Status::resource_exhausted(exceeded.to_string()), Errno::DQUOT)
}

/// A caller whose uid has no place in the daemon's user namespace.
pub fn overflow_uid(uid: u32) -> Status {
    let text = format!(
        "uid {uid} stands for a user that the daemon's user namespace does not know; map it to a real uid"
    );
    with_errno(Status::permission_denied(text), Errno::ACCESS)
}

/// A caller who may look, but not change.
pub fn not_admin(uid: u32, own_uid: u32, what: &str) -> Status {
    let own =
        if own_uid == 0 { String::new() } else { format!(", and uid {own_uid}, which ferriod runs as") };
    let text = format!("uid {uid} may not {what}: that is for root{own}; run it with sudo");
    with_errno(Status::permission_denied(text), Errno::PERM)
}

/// A call that did not come over the Unix socket.
pub fn no_identity() -> Status {
    with_errno(
        Status::unauthenticated("the caller has no socket credentials; use the Unix control socket"),
        Errno::ACCESS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::volumes::Holder;

    #[test]
    fn every_refusal_has_its_code_errno_and_a_message_that_names_what_to_do() {
        let by = Holder {
            session_id: 7,
            client_name: "db".into(),
            pid: 4711,
            uid: 1000,
            access: Access::ReadWrite,
        };
        let busy = OpenError::Busy { volume: "data".into(), access: Access::ReadWriteShared, by };
        let limit = OpenError::Limit {
            what: "sessions",
            used: 256,
            asked: 1,
            limit: 256,
            key: "limits.sessions_max",
        };
        let not_allowed =
            OpenError::NotAllowed { volume: "data".into(), uid: 1001, groups: "1001, 6".into() };
        let count = OpenError::Count {
            what: "queues",
            value: 17,
            min: 1,
            max: 16,
            key: "limits.queues_per_session_max",
        };
        let no_fds = OpenError::System { what: "make a doorbell", source: Errno::MFILE.into() };
        let cases: Vec<(OpenError, Code, Errno, &[&str])> = vec![
            (
                OpenError::Abi { min: 2, max: 3 },
                Code::Unimplemented,
                Errno::PROTONOSUPPORT,
                &["2 to 3", "client library"],
            ),
            (
                OpenError::ClientName("\u{1b}".into()),
                Code::InvalidArgument,
                Errno::INVAL,
                &["\\u{1b}", "1 to 64 bytes"],
            ),
            (count, Code::InvalidArgument, Errno::INVAL, &["17", "1 to 16", "limits.queues_per_session_max"]),
            (OpenError::NoAccess("data".into()), Code::InvalidArgument, Errno::INVAL, &["data", "rw-shared"]),
            (
                VolumeError::NoVolume { name: "dta".into(), known: "data, log".into() }.into(),
                Code::NotFound,
                Errno::NOENT,
                &["dta", "data, log"],
            ),
            (
                VolumeError::Fencing { name: "data".into(), by: "process 4711".into() }.into(),
                Code::Unavailable,
                Errno::AGAIN,
                &["data", "process 4711", "try again"],
            ),
            (
                OpenError::NoEngine { name: "x".into(), known: "main".into() },
                Code::NotFound,
                Errno::NOENT,
                &["\"x\"", "main"],
            ),
            (not_allowed, Code::PermissionDenied, Errno::ACCESS, &["1001", "data", "allow_users"]),
            (
                OpenError::ReadOnly("data".into()),
                Code::FailedPrecondition,
                Errno::ROFS,
                &["data", "access ro"],
            ),
            (
                busy,
                Code::FailedPrecondition,
                Errno::BUSY,
                &["data", "rw-shared", "session 7", "\"db\"", "pid 4711"],
            ),
            (limit, Code::ResourceExhausted, Errno::DQUOT, &["256", "limits.sessions_max", "close sessions"]),
            (OpenError::Draining, Code::Unavailable, Errno::SHUTDOWN, &["stopping"]),
            (no_fds, Code::ResourceExhausted, Errno::MFILE, &["make a doorbell", "LimitNOFILE"]),
        ];
        for (error, code, errno, parts) in cases {
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{status:?}");
            let carried = status.metadata().get(ERRNO_KEY).and_then(|value| value.to_str().ok());
            assert_eq!(carried, Some(errno.raw_os_error().to_string().as_str()), "{status:?}");
            for part in parts {
                assert!(status.message().contains(part), "{part:?} not in {:?}", status.message());
            }
        }
    }
}
