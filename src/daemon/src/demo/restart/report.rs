//! What the restart was like: a table, or one JSON object.

use std::time::Duration;

use serde::Serialize;

use super::{Ending, worker::Worked};
use crate::demo::{Args, Introduction, message::Failure};

/// Median and maximum over the sessions. Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the sessions have less.
    pub median: f64,
    /// No session has more.
    pub max: f64,
}

/// The outcome of the demo.
#[derive(Debug, Default, Serialize)]
pub struct RestartOutcome {
    /// Every block was right, no completion was lost or came twice, and everything was removed.
    pub verified: bool,
    /// Backend of the engine.
    pub backend: String,
    /// Whether the volume's I/O went past the page cache.
    pub direct: bool,
    /// How the daemon was ended: kill or term.
    pub signal: String,
    /// Sessions.
    pub sessions: usize,
    /// Seed of the patterns.
    pub seed: u64,
    /// Longest pause between two completions of a session before the restart.
    pub pause_before_ms: Spread,
    /// From the last completion before the restart to the first one after it.
    pub gap_ms: Spread,
    /// How long I/O of the old daemon kept the volume locked: since the kill, or since its orderly end.
    pub drain_ms: f64,
    /// The gap, less the drain.
    pub gap_beyond_drain_ms: Spread,
    /// From the signal until the new daemon answered on its control socket.
    pub serving_after_ms: f64,
    /// Requests completed.
    pub requests: u64,
    /// Of these, those that the new daemon did again.
    pub replayed: u64,
    /// Blocks read back in the end and found right: all of them.
    pub blocks_verified: u64,
    /// What went wrong.
    pub failures: Vec<Failure>,
}

impl RestartOutcome {
    pub(super) fn new(
        args: &Args,
        introduced: &Introduction,
        seed: u64,
        serving: Duration,
        drain: Duration,
        worked: &[Worked],
    ) -> Self {
        let spread = |of: &dyn Fn(&Worked) -> Duration| spread(worked.iter().map(of).collect());
        let sum = |of: &dyn Fn(&Worked) -> u64| worked.iter().map(of).sum();
        Self {
            verified: false,
            backend: introduced.backend.clone(),
            direct: introduced.direct,
            signal: if args.signal == Ending::Kill { "kill" } else { "term" }.to_owned(),
            sessions: worked.len(),
            seed,
            pause_before_ms: spread(&|worked| worked.pauses.before),
            gap_ms: spread(&|worked| worked.pauses.over),
            drain_ms: ms(drain),
            gap_beyond_drain_ms: spread(&|worked| worked.pauses.over.saturating_sub(drain)),
            serving_after_ms: ms(serving),
            requests: sum(&|worked| worked.requests),
            replayed: sum(&|worked| worked.replayed),
            blocks_verified: sum(&|worked| worked.blocks_verified),
            failures: Vec::new(),
        }
    }

    /// For people, with what went wrong.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.sessions > 0 {
            let ended = if self.signal == "kill" { "killed (kill -9)" } else { "stopped (SIGTERM)" };
            let mut row = |what: &str, spread: Spread| {
                text.push_str(&format!("{what:<44}{:>8.0} ms{:>8.0} ms\n", spread.median, spread.max));
            };
            row("longest pause of a session before the restart", self.pause_before_ms);
            row("gap of a session over the restart", self.gap_ms);
            row("gap beyond the drain of old I/O", self.gap_beyond_drain_ms);
            text = format!("{:<44}{:>11}{:>11}\n{text}", "", "median", "max");
            text.push_str(&format!(
                "daemon {ended}; its last I/O landed after {:.0} ms, the next daemon served after {:.0} ms\n",
                self.drain_ms, self.serving_after_ms
            ));
        }
        for failure in &self.failures {
            text.push_str(&format!("FAILED  {failure}\n"));
        }
        let path = if self.direct { "O_DIRECT" } else { "through the page cache" };
        text.push_str(&if self.verified {
            format!(
                "verified: {} blocks of 4 KiB by {} sessions over {}, {path}; {} requests, {} of them replayed; no completion lost or doubled",
                self.blocks_verified, self.sessions, self.backend, self.requests, self.replayed
            )
        } else {
            "NOT verified".to_owned()
        });
        text
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn spread(mut durations: Vec<Duration>) -> Spread {
    durations.sort_unstable();
    let at = |index: usize| durations.get(index).copied().map_or(0.0, ms);
    Spread { median: at(durations.len() / 2), max: at(durations.len().saturating_sub(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_maximum() {
        let of = |values: &[u64]| spread(values.iter().copied().map(Duration::from_millis).collect());
        assert_eq!(of(&[30, 10, 20]), Spread { median: 20.0, max: 30.0 });
        assert_eq!(of(&[]), Spread::default());
    }
}
