//! What can go wrong, and the exit code of each.

use std::path::PathBuf;

use tonic::Status;

/// Why ferrioctl failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// There is no daemon to talk to.
    #[error("cannot connect to {}: {source}\n  {hint}", path.display())]
    Connect {
        /// Socket tried.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
        /// Likely cause and what to do.
        hint: &'static str,
    },
    /// Something listens on the socket but does not speak gRPC, or the daemon went away.
    #[error("lost the connection to the daemon: {0}\n  is ferriod still running? `systemctl status ferriod`")]
    Lost(String),
    /// The daemon said no.
    #[error("{}", .0.message())]
    Refused(Status),
    /// Options that do not fit the volume or each other.
    #[error("{0}")]
    Usage(String),
    /// It is begun, and goes on by itself.
    #[error("{0}")]
    Unfinished(String),
    /// The benchmark could not be finished, or found wrong data.
    #[error("bench: {0}")]
    Bench(String),
    /// A signal ended the benchmark.
    #[error("interrupted")]
    Interrupted(u8),
    /// Standard output.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl CtlError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Unfinished(_) | Self::Bench(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Connect { .. } | Self::Lost(_) => 3,
            // As a shell counts them.
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}

impl From<Status> for CtlError {
    /// A status with a source was made on this side of the connection: no daemon said it.
    fn from(status: Status) -> Self {
        let source = std::error::Error::source(&status);
        match source.map(|source| source.source().unwrap_or(source).to_string()) {
            Some(source) => Self::Lost(source),
            None => Self::Refused(status),
        }
    }
}
