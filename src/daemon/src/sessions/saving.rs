//! What is saved of a session, and when.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use ferrio_engine::kill_point;
use ferrio_shm::abi::features;

use super::plan::Plan;
use super::process::Birth;
use super::saved::{SavedHugePages, SavedQueue, SavedRegion, SavedSession, SavedVolume};
use super::{Session, Sessions, State};

/// Regions of a session that may be resumed: their descriptors come with one message, after that of the session memory.
const REGIONS_MAX: u32 = ferrio_shm::peer::FDS_MAX as u32 - 1;

/// Who the opener is, if the session is to be known again; a plan whose opener is not known loses that feature.
pub(super) fn birth_of(plan: &mut Plan, pid: u32) -> Option<Birth> {
    if plan.features & features::RESUME == 0 {
        return None;
    }
    let birth = Birth::of_pid(pid);
    if let Err(error) = &birth {
        plan.features &= !features::RESUME;
        tracing::warn!(
            "a session of pid {pid} cannot outlive the daemon: the process cannot be told from another one that has its \
             pid later: {error}; Linux 6.9 has what it takes, or let the daemon see /proc/{pid} (no ProtectProc=)"
        );
    }
    birth.ok()
}

impl Sessions {
    /// How many regions a session may add.
    pub(super) fn regions_max(&self, plan: &Plan) -> u32 {
        let max = self.limits.regions_per_session_max;
        if plan.features & features::RESUME == 0 { max } else { max.min(REGIONS_MAX) }
    }

    /// Saves a session as it is now, if it may outlive the daemon.
    pub(super) fn save(&self, session_id: u64, session: &Session) -> io::Result<()> {
        if let (true, Some(birth)) = (session.is_resumable(), session.birth) {
            self.store.save(&session.to_saved(session_id, birth, &self.engine_names))?;
            kill_point!("session-saved");
        }
        Ok(())
    }

    /// Nobody is to go on with a session.
    pub(super) fn unsave(&self, session_id: u64, session: &Session) {
        if session.is_resumable() {
            self.store.remove(session_id);
            kill_point!("session-removed");
        }
    }
}

impl Session {
    /// It was promised to go on after a restart of the daemon.
    pub(super) fn is_resumable(&self) -> bool {
        self.plan.features & features::RESUME != 0
    }

    /// It is not to end with the daemon.
    pub(super) fn outlives_the_daemon(&self) -> bool {
        self.is_resumable() && matches!(self.state, State::Active | State::Waiting(_))
    }

    fn to_saved(&self, session_id: u64, birth: Birth, engine_names: &[String]) -> SavedSession {
        let plan = &self.plan;
        let queues = plan.layout.queues.iter().zip(&plan.queue_engines).map(|(queue, engine)| SavedQueue {
            engine: *engine,
            sq_entries: queue.sq_entries,
            cq_entries: queue.cq_entries,
            control_offset: queue.control_offset,
            sqes_offset: queue.sqes_offset,
            cqes_offset: queue.cqes_offset,
        });
        let regions =
            self.regions.iter().map(|(index, region)| SavedRegion { index: *index, file: region.file });
        let hugepages = plan
            .hugepages
            .then(|| SavedHugePages { bytes: self.hugepages.bytes, reason: self.hugepages.reason.clone() });
        SavedSession {
            session_id,
            secret: self.secret.clone(),
            token: self.token.clone(),
            pid: self.pid,
            birth,
            uid: self.uid,
            client_name: self.client_name.clone(),
            opened_ms: millis(now().saturating_sub(self.since.elapsed())),
            features: plan.features,
            hugepages,
            no_merge: !plan.merge,
            memory: self.memory_file,
            arena_offset: plan.layout.arena_offset,
            arena_bytes: plan.layout.arena_bytes,
            engines: plan.engines.iter().map(|engine| engine_names[*engine].clone()).collect(),
            queues: queues.collect(),
            volumes: plan
                .volumes
                .iter()
                .map(|volume| SavedVolume::of(&volume.grant, volume.access))
                .collect(),
            regions: regions.collect(),
        }
    }
}

/// When a session was opened, as this process measures time. A clock that was set since makes it the best guess.
pub(super) fn since(opened_ms: u64) -> Instant {
    let ago = now().saturating_sub(Duration::from_millis(opened_ms));
    Instant::now().checked_sub(ago).unwrap_or_else(Instant::now)
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
