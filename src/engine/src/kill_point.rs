//! Labelled steps at which a test build kills its own process, as `kill -9` might.
//!
//! Without the cargo feature `kill-points` a [`kill_point!`](crate::kill_point!) is nothing but a check that its label is
//! known. With it, `FERRIO_KILL_POINT=label` or `FERRIO_KILL_POINT=label:n` makes the n-th pass of that label (from 1, over all
//! threads) the last thing the process does. Builds for use have no such feature.

/// Every label that stands in the code, in the order of the way of a request, of recovery and of a session. The tests pass
/// each of them.
pub const LABELS: [&str; 28] = [
    "after-copy",
    "before-record",
    "after-record",
    "after-accept-line",
    "before-submit",
    "after-submit",
    "after-reap",
    "after-done",
    "after-cqe",
    "after-cq-tail",
    "after-answer-line",
    "before-free",
    "after-free",
    "recover-read",
    "recover-written",
    "recover-renamed",
    "resume-opened",
    "resume-reposted",
    "resume-replayed",
    "session-saved",
    "session-served",
    "attach-sent",
    "resume-checked",
    "resume-served",
    "resume-sent",
    "session-removed",
    "fence-waiting",
    "fence-taken",
];

/// Marks a step that a test build can be killed at: one of [`LABELS`].
#[macro_export]
macro_rules! kill_point {
    ($label:literal) => {{
        const { assert!($crate::kill_point::is_known($label), "a label that is not in kill_point::LABELS") };
        $crate::kill_point::pass($label);
    }};
}

/// Whether a label is one of [`LABELS`].
#[must_use]
pub const fn is_known(label: &str) -> bool {
    let mut index = 0;
    while index < LABELS.len() {
        if same(LABELS[index].as_bytes(), label.as_bytes()) {
            return true;
        }
        index += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// Nothing: this build has no kill points. Called by [`kill_point!`](crate::kill_point!) alone.
#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub const fn pass(_label: &str) {}

#[cfg(feature = "kill-points")]
pub use armed::{panic_at, pass};

#[cfg(feature = "kill-points")]
mod armed {
    use std::{
        cell::Cell,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    struct Armed {
        label: String,
        passes_left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let value = std::env::var("FERRIO_KILL_POINT").ok()?;
        let (label, count) = value.split_once(':').unwrap_or((&value, "1"));
        let count: u64 = count.parse().unwrap_or(0);
        assert!(
            super::is_known(label) && count > 0,
            "FERRIO_KILL_POINT={value} is not LABEL or LABEL:N with N from 1; labels are {:?}",
            super::LABELS
        );
        Some(Armed { label: label.to_owned(), passes_left: AtomicU64::new(count) })
    });

    thread_local! {
        static PANIC_AT: Cell<u64> = const { Cell::new(0) };
    }

    /// Lets this thread panic at the `pass`-th kill point that it comes to, whatever its label, from 1; 0: at none. For tests
    /// that drive an engine by its turns and go on after its end: what unwinds writes neither to a journal nor to a ring.
    /// Returns how many were left to go.
    pub fn panic_at(pass: u64) -> u64 {
        PANIC_AT.replace(pass)
    }

    /// Kills the process if `FERRIO_KILL_POINT` says so. Called by [`kill_point!`](crate::kill_point!) alone.
    #[inline]
    pub fn pass(label: &str) {
        if PANIC_AT.get() > 0 {
            PANIC_AT.set(PANIC_AT.get() - 1);
            assert!(PANIC_AT.get() > 0, "killed at {label}");
        }
        if let Some(armed) = &*ARMED
            && armed.label == label
            && armed.passes_left.fetch_sub(1, Relaxed) == 1
        {
            let _ = kill_process(getpid(), Signal::KILL);
            // The signal may take a moment to reach this thread; what stands behind the label must not run.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn labels_are_told_apart() {
        assert_eq!(LABELS.into_iter().collect::<HashSet<_>>().len(), LABELS.len());
        assert!(LABELS.iter().all(|label| is_known(label)));
        assert!(!is_known("after-frea") && !is_known("after-fre") && !is_known(""));
    }

    /// Runs itself as a child that passes a label twice, and another one before.
    #[test]
    fn the_nth_pass_is_the_last() {
        if std::env::var_os("FERRIO_KILL_POINT").is_some() {
            kill_point!("before-free");
            kill_point!("after-free");
            kill_point!("after-free");
            return;
        }
        let killed_by = |value: &str| {
            let this = std::env::current_exe().unwrap();
            let name = "kill_point::tests::the_nth_pass_is_the_last";
            let mut child = Command::new(this);
            child.args(["--exact", name]).env("FERRIO_KILL_POINT", value);
            child.output().unwrap().status.signal()
        };
        let killed = cfg!(feature = "kill-points").then_some(9);
        assert_eq!(killed_by("after-free"), killed);
        assert_eq!(killed_by("after-free:2"), killed);
        assert_eq!(killed_by("after-free:3"), None);
        assert_eq!(killed_by("after-cqe"), None);
    }
}
