//! Looks at files that may not answer: a dead file server, a disk that hangs.

use std::sync::mpsc;
use std::time::Duration;

/// How long a path may take before it is said not to answer.
pub const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// Does `work` on a thread of its own; `None` if it is not done within `limit`. The thread then goes on for as long as the
/// kernel lets it.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("look".to_owned());
    thread.spawn(move || sender.send(work())).ok()?;
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_not_waited_for() {
        let (_never, receiver) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || receiver.recv().is_ok()), None);
        assert_eq!(within(LOOK_LIMIT, || 7), Some(7));
    }
}
