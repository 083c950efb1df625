//! What a process has of the machine, to see whether it gives it back.

/// Descriptors, threads, session memories and private memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mapped session memories.
    pub sessions: usize,
    /// Resident anonymous memory. KiB.
    pub anonymous_kib: u64,
    /// Resident shared memory: sessions and journal. KiB.
    pub shared_kib: u64,
}

/// Allocators keep something. KiB.
const GROWTH_MAX_KIB: u64 = 16 << 10;

impl Footprint {
    /// Of a running process.
    ///
    /// # Panics
    /// It is gone.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("a process").count();
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).expect("a process");
        let status = read("status");
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect("a line of status");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            sessions: read("maps").lines().filter(|line| line.contains("memfd:ferrio-session")).count(),
            anonymous_kib: kib("RssAnon:"),
            shared_kib: kib("RssShmem:"),
        }
    }

    /// Waits until the process has no more than this again.
    ///
    /// # Panics
    /// It keeps more.
    #[track_caller]
    pub fn wait_for_return(&self, pid: u32) {
        let mut now = Self::of(pid);
        let limit = std::time::Instant::now() + crate::process::PATIENCE;
        while !now.is_within(self) {
            assert!(std::time::Instant::now() < limit, "kept: {now:?}, it had {self:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
            now = Self::of(pid);
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.sessions <= before.sessions
            && self.anonymous_kib <= before.anonymous_kib + GROWTH_MAX_KIB
            && self.shared_kib <= before.shared_kib + GROWTH_MAX_KIB
    }
}
