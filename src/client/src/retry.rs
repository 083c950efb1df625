//! Which failures to open a session pass by themselves while a daemon is restarted, and how long to wait for that.

use std::io;
use std::time::{Duration, Instant};

use crate::error::{Error, Refusal};

/// Wait before the next try, doubled with each one.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// Longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Who has the wrong path is told soon. Where a daemon's journal lies, the path is right, and the daemon is starting.
const MISSING_MAX: Duration = Duration::from_secs(1);
/// Directory of the journal, beside the sockets.
const JOURNAL: &str = "journal";

/// The daemon that was spoken to has ended, or is about to.
pub(crate) fn daemon_ended(error: &Error) -> bool {
    matches!(error, Error::Connect { .. } | Error::Refused { reason: Refusal::Unavailable, .. })
}

/// The tries of one open.
pub(crate) struct Retry {
    start: Instant,
    patience: Duration,
    wait: Duration,
    /// A token that is not known may be that of the daemon before: once for each that ended.
    token: bool,
}

impl Retry {
    pub(crate) fn new(patience: Duration) -> Self {
        Retry { start: Instant::now(), patience, wait: WAIT_MIN, token: true }
    }

    /// How long to wait before the next try after this failure; `None`: it stays.
    pub(crate) fn after(&mut self, error: &Error) -> Option<Duration> {
        let wait = self.wait;
        self.token |= daemon_ended(error);
        self.wait = WAIT_MAX.min(wait * 2);
        (self.start.elapsed() + wait <= self.limit(error)).then_some(wait)
    }

    fn limit(&mut self, error: &Error) -> Duration {
        match error {
            Error::Connect { path, cause, .. } => match cause.kind() {
                io::ErrorKind::NotFound if path.with_file_name(JOURNAL).is_dir() => self.patience,
                io::ErrorKind::NotFound => self.patience.min(MISSING_MAX),
                // A daemon that ends while it is spoken to.
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => self.patience,
                _ => Duration::ZERO,
            },
            Error::Refused { reason: Refusal::Unavailable, .. } => self.patience,
            Error::Refused { reason: Refusal::Attach, .. } if std::mem::take(&mut self.token) => {
                self.patience
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(kind: io::ErrorKind) -> Error {
        Error::connect("sock".as_ref(), kind.into())
    }

    fn refused(reason: Refusal) -> Error {
        Error::Refused { reason, message: String::new() }
    }

    #[test]
    fn what_passes_is_waited_for() {
        let mut retry = Retry::new(Duration::from_secs(60));
        let waits: Vec<_> = (0..6).map(|_| retry.after(&connect(io::ErrorKind::ConnectionRefused))).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 50].map(|ms| Some(Duration::from_millis(ms))));
        assert!(retry.after(&refused(Refusal::Unavailable)).is_some());
        assert!(retry.after(&refused(Refusal::Attach)).is_some(), "once");
        for error in
            [refused(Refusal::Attach), refused(Refusal::Busy), connect(io::ErrorKind::PermissionDenied)]
        {
            assert_eq!(retry.after(&error), None, "{error}");
        }
        assert!(retry.after(&connect(io::ErrorKind::ConnectionReset)).is_some());
        assert!(retry.after(&refused(Refusal::Attach)).is_some(), "once more: another daemon has ended");
    }

    #[test]
    fn patience_ends() {
        let ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        let retry = |patience| Retry { start: ago, ..Retry::new(Duration::from_secs(patience)) };
        let (refused, missing) =
            (connect(io::ErrorKind::ConnectionRefused), connect(io::ErrorKind::NotFound));
        assert!(retry(60).after(&refused).is_some());
        assert_eq!(retry(60).after(&missing), None, "a path that is wrong");
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(JOURNAL)).unwrap();
        let missing = Error::connect(&directory.path().join("sock"), io::ErrorKind::NotFound.into());
        assert!(retry(60).after(&missing).is_some(), "a daemon was there");
        assert_eq!(retry(1).after(&refused), None);
        assert_eq!(Retry::new(Duration::ZERO).after(&refused), None, "none at all");
    }
}
