//! Logging: to journald when systemd runs us, else to stderr. What clients can cause is logged at a bounded rate.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `RUST_LOG`, if set, overrides the level.
pub fn start(level: Level) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        // The libraries below speak at info of things that only their developers need.
        EnvFilter::new(format!(
            "warn,ferriod={level},ferrio_engine={level},ferrio_driver={level},ferrio_shm={level}"
        ))
    });
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_syslog_identifier("ferriod".to_owned());
        // A second start in one process keeps the first subscriber.
        let _ = registry.with(journal).try_init();
        return;
    }
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let stderr =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let _ = registry.with(stderr).try_init();
}

/// systemd names the stream it connected by device and inode: a redirected stderr is not the journal.
fn stderr_is_journal() -> bool {
    let Ok(stat) = fstat(std::io::stderr()) else { return false };
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Sessions that begin and end.
static SESSIONS: Throttle = Throttle::new(100);
/// Clients that are told no.
static REFUSALS: Throttle = Throttle::new(20);

/// Logs a step in the life of a session.
pub fn session(text: fmt::Arguments<'_>) {
    if let Some(missed) = SESSIONS.admit(Instant::now()) {
        tracing::info!("{text}{}", Missed(missed));
    }
}

/// Logs that a client was told no.
pub fn refusal(text: fmt::Arguments<'_>) {
    if let Some(missed) = REFUSALS.admit(Instant::now()) {
        tracing::warn!("{text}{}", Missed(missed));
    }
}

struct Missed(u64);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            Ok(())
        } else {
            write!(f, " ({} lines of this kind before it were not logged)", self.0)
        }
    }
}

/// So many lines per second, and a count of the others: a client must not be able to fill the log.
struct Throttle {
    per_second: u32,
    window: Mutex<Window>,
}

struct Window {
    since: Option<Instant>,
    admitted: u32,
    missed: u64,
}

impl Throttle {
    const fn new(per_second: u32) -> Self {
        Self { per_second, window: Mutex::new(Window { since: None, admitted: 0, missed: 0 }) }
    }

    /// Whether to log, and how many lines were missed since the last one.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            window.since = Some(now);
            window.admitted = 0;
        }
        if window.admitted == self.per_second {
            window.missed += 1;
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let throttle = Throttle::new(2);
        let start = Instant::now();
        let admitted = (0..10).map(|_| throttle.admit(start)).collect::<Vec<_>>();
        assert_eq!(admitted[..3], [Some(0), Some(0), None]);
        assert!(admitted[3..].iter().all(Option::is_none));
        let next = start + Duration::from_secs(1);
        assert_eq!(
            [throttle.admit(next), throttle.admit(next), throttle.admit(next)],
            [Some(8), Some(0), None]
        );
    }
}
