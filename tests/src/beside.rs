//! A daemon with a hostile client, and an honest one beside it.

use ferrio_api::v1;
use rustix::process::Signal;

use crate::{Daemon, DaemonBuilder, Footprint, Process, RawSession, process::wait_until};

const MIB: u64 = 1 << 20;

/// A daemon with two volumes: `honest`, on which a client verifies its data all the time, and `target`, for the test.
pub struct Beside {
    /// The daemon.
    pub daemon: Daemon,
    honest: Process,
    before: Footprint,
}

impl Beside {
    /// With the automatic choice of backend.
    #[track_caller]
    pub fn start() -> Self {
        Self::over(DaemonBuilder::new())
    }

    /// On this daemon.
    #[track_caller]
    pub fn over(builder: DaemonBuilder) -> Self {
        let mut daemon = builder.file("honest", 4 * MIB).file("target", 4 * MIB).start();
        // What the daemon makes once, such as its first buffers, is not held against it.
        daemon.client(&["verify", "honest"]).finish().expect(0);
        wait_until("the session to end", || sessions(&daemon).is_empty());
        let before = Footprint::of(daemon.process().pid());
        let stop = daemon.path("stop");
        let mut honest = daemon.client(&[
            "--name",
            "honest",
            "verify",
            "honest",
            "--until",
            stop.to_str().expect("a plain path"),
        ]);
        honest.wait_for_line("started");
        Self { daemon, honest, before }
    }

    /// A session on `target` with bare ring ends.
    #[track_caller]
    pub fn attacker(&self, sq_entries: u32) -> RawSession {
        RawSession::open(&self.daemon.control(), &[("target", v1::Access::ReadWriteShared)], sq_entries)
    }

    /// Waits until the session is faulted; returns the reason that `session list` shows.
    #[track_caller]
    pub fn fault_of(&self, session: &RawSession) -> String {
        let mut reason = String::new();
        wait_until("the session to be faulted", || {
            let listed = sessions(&self.daemon);
            let found = listed.iter().find(|listed| listed["session_id"] == session.id);
            let found = found.unwrap_or_else(|| panic!("session {} ended: {listed:?}", session.id));
            reason = found["reason"].as_str().unwrap_or_default().to_owned();
            found["state"] == "faulted"
        });
        reason
    }

    /// The honest client has verified on, and is asked no more; the sessions of the test are closed. The daemon is as it
    /// was, and serves.
    #[track_caller]
    pub fn finish(mut self) {
        assert!(!self.daemon.process().has_ended(), "the daemon ended:\n{}", self.daemon.log());
        assert!(!self.honest.has_ended(), "the honest client ended: {}", self.honest.stderr());
        std::fs::write(self.daemon.path("stop"), []).expect("own directory");
        let honest = self.honest.finish().expect(0);
        assert!(honest.stdout.contains("verified"), "{}", honest.stdout);
        wait_until("the sessions to end", || sessions(&self.daemon).is_empty());
        self.before.wait_for_return(self.daemon.process().pid());
        self.daemon.client(&["verify", "target"]).finish().expect(0);
        self.daemon.end(Signal::TERM).expect(0);
    }
}

/// What `session list` shows.
#[track_caller]
pub fn sessions(daemon: &Daemon) -> Vec<serde_json::Value> {
    daemon.ctl_json(&["session", "list"])["sessions"].as_array().expect("a list").clone()
}
