//! The watchdog of systemd: fed while every I/O thread makes progress.
//!
//! A thread makes progress by turning. One that has nothing to do sleeps, and turns once a second at least. A device that is
//! slow holds up requests, and no thread; and should a thread after all wait for it in the kernel, then killing it would be
//! of no use: it could not even die. What is left is a thread that runs in circles or waits for what never comes: a bug,
//! which a restart may remedy.

use std::time::{Duration, Instant};

use ferrio_engine::{Engine, Pulse};
use sd_notify::NotifyState;

use crate::systemd;

/// A thread that sleeps turns once a second.
const STILL_MIN: Duration = Duration::from_secs(2);

/// Feeds the watchdog for as long as there is a reason to, if systemd asked for that.
pub async fn feed(engines: Vec<Engine>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut watch = Watch::new((limit / 2).max(STILL_MIN));
    let mut reported = false;
    loop {
        let pulses = engines.iter().flat_map(Engine::pulses).collect();
        match watch.stalled(pulses, Instant::now(), is_in_the_kernel) {
            None => {
                reported = false;
                systemd::notify(&[NotifyState::Watchdog]);
            }
            Some((thread, still)) if !reported => {
                reported = true;
                tracing::error!(
                    "I/O thread {thread} has not turned for {} s, and does not wait for a device: the watchdog is not fed. \
                     systemd ends ferriod and starts it again: a bug, please report the stack in the core dump",
                    still.as_secs()
                );
            }
            Some(_) => {}
        }
        tokio::time::sleep(limit / 4).await;
    }
}

/// How long each thread has stood still.
struct Watch {
    limit: Duration,
    /// Turns of a thread, and when it was first seen to have done so many.
    seen: Vec<(u64, Instant)>,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self { limit, seen: Vec::new() }
    }

    /// A thread that has stood still for too long, and how long. `pulses` are always of the same threads.
    fn stalled(
        &mut self,
        pulses: Vec<Pulse>,
        now: Instant,
        is_in_the_kernel: impl Fn(&Pulse) -> bool,
    ) -> Option<(String, Duration)> {
        self.seen.resize(pulses.len(), (u64::MAX, now));
        let mut stalled = None;
        for (pulse, seen) in pulses.into_iter().zip(&mut self.seen) {
            let still = now.saturating_duration_since(seen.1);
            if pulse.turns != seen.0 || (still >= self.limit && is_in_the_kernel(&pulse)) {
                *seen = (pulse.turns, now);
            } else if still >= self.limit {
                stalled = Some((pulse.thread, still));
            }
        }
        stalled
    }
}

/// It sleeps where no signal wakes it: state D.
fn is_in_the_kernel(pulse: &Pulse) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", pulse.tid)).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulses(turns: [u64; 2]) -> Vec<Pulse> {
        let pulse = |(tid, turns)| Pulse { thread: format!("sub-{tid}"), tid, turns };
        (0..).zip(turns).map(pulse).collect()
    }

    #[test]
    fn a_thread_that_stands_still_is_found_unless_it_is_in_the_kernel() {
        let mut watch = Watch::new(Duration::from_secs(4));
        let start = Instant::now();
        let mut look = |seconds, turns, in_kernel| {
            let now = start + Duration::from_secs(seconds);
            watch.stalled(pulses(turns), now, |_| in_kernel).map(|(thread, still)| (thread, still.as_secs()))
        };
        assert_eq!(look(0, [0, 0], false), None, "it may not have begun");
        assert_eq!(look(3, [7, 0], false), None);
        assert_eq!(look(4, [8, 0], false), Some(("sub-1".to_owned(), 4)));
        assert_eq!(look(5, [9, 0], true), None, "it waits for a device");
        assert_eq!(look(8, [10, 0], false), None);
        assert_eq!(look(9, [10, 0], false), Some(("sub-1".to_owned(), 4)));
        assert_eq!(look(10, [10, 1], false), None, "it goes on");
        assert_eq!(look(12, [10, 2], false), Some(("sub-0".to_owned(), 4)));
    }
}
