//! The pauses between completions, and which of them a restart has made.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// When the daemon was sent its signal; empty until then.
pub type Signalled = Arc<OnceLock<Instant>>;

/// The longest pauses of one queue.
#[derive(Debug, Default)]
pub struct Pauses {
    signalled: Signalled,
    last: Option<Instant>,
    /// The longest that was over before the signal.
    pub before: Duration,
    /// The longest that was over after it; zero: nothing was completed since.
    pub over: Duration,
}

impl Pauses {
    /// Of a queue whose daemon will be sent a signal.
    pub fn new(signalled: Signalled) -> Self {
        Self { signalled, ..Self::default() }
    }

    /// A request was completed.
    pub fn completed(&mut self, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        let pause = now.duration_since(last);
        let over = self.signalled.get().is_some_and(|signalled| now > *signalled);
        let longest = if over { &mut self.over } else { &mut self.before };
        *longest = pause.max(*longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_over_the_signal_is_told_from_those_before() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let signalled = Signalled::default();
        let mut pauses = Pauses::new(Arc::clone(&signalled));
        [0, 3, 4].into_iter().for_each(|at| pauses.completed(start + ms(at)));
        signalled.set(start + ms(22)).unwrap();
        assert_eq!((pauses.before, pauses.over), (ms(3), ms(0)));
        [44, 45].into_iter().for_each(|at| pauses.completed(start + ms(at)));
        assert_eq!((pauses.before, pauses.over), (ms(3), ms(40)));
    }
}
