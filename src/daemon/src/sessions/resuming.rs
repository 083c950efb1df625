//! From a client that comes back to a session that the engines serve again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use ferrio_engine::{Resumed, VolumeId, kill_point};
use ferrio_shm::mapping::{Region, check_memfd};
use ferrio_shm::peer::PeerIdentity;

use super::attaching::Attached;
use super::error::ResumeError;
use super::memory::SessionMemory;
use super::process::Birth;
use super::regions::{self, ClientRegion, Regions};
use super::saved::{MemoryFile, SavedRegion};
use super::waiting::Waiting;
use super::{EngineState, Session, Sessions, State};
use crate::dispose;
use crate::log;
use crate::volumes::{Fencing, Served, Stage};

/// A volume that no engine has: what names it answers ENODEV.
const GONE: VolumeId = VolumeId(u32::MAX);

/// What a client shows to go on with its session.
#[derive(Debug)]
pub struct Claim<'a> {
    /// Session.
    pub session_id: u64,
    /// Its secret.
    pub secret: &'a [u8; 32],
    /// The session memory, then its regions by ascending index.
    pub fds: &'a [OwnedFd],
    /// Which process it is, where that can be known.
    pub birth: Option<Birth>,
}

impl Sessions {
    /// Goes on with a session that waits for its client. A session that is refused waits on, for who may have it.
    pub fn resume(&self, claim: &Claim<'_>, peer: &PeerIdentity) -> Result<Attached, ResumeError> {
        self.try_resume(claim, peer).inspect_err(|_| {
            self.refused.fetch_add(1, Relaxed);
        })
    }

    fn try_resume(&self, claim: &Claim<'_>, peer: &PeerIdentity) -> Result<Attached, ResumeError> {
        let session_id = claim.session_id;
        let mut table = self.table();
        if table.draining {
            return Err(ResumeError::Draining);
        }
        let unknown = |why: Option<&String>| ResumeError::Unknown { session_id, why: why.cloned() };
        let Some(session) = table.by_id.get_mut(&session_id) else {
            return Err(unknown(table.lost.get(&session_id)));
        };
        let State::Waiting(waiting) = &session.state else { return Err(unknown(None)) };
        if !session.secret.is(claim.secret) {
            return Err(ResumeError::Secret { session_id });
        }
        if (session.uid, session.pid, session.birth) != (peer.uid, peer.pid, claim.birth) {
            let (opener_pid, opener_uid) = (session.pid, session.uid);
            return Err(ResumeError::Stranger { opener_pid, opener_uid, pid: peer.pid, uid: peer.uid });
        }
        let (memfd, others) = claim.fds.split_first().ok_or(ResumeError::NoMemory)?;
        check_file(memfd, session.memory_file).map_err(|what| ResumeError::Memory { what })?;
        let regions = take_back(&waiting.regions, others)?;
        if let Err(error) = self.find_volumes(session, peer) {
            if let (ResumeError::NotYet { .. }, State::Waiting(waiting)) = (&error, &mut session.state) {
                // It is here, and is told to try again.
                waiting.until = Instant::now() + self.resume_timeout;
            }
            return Err(error);
        }
        let (memory, client, ends) = SessionMemory::take_back(&session.plan, memfd, self.epoch)?;
        kill_point!("resume-checked");
        session.memory = Some(memory);
        session.regions = regions;
        let waiting = std::mem::replace(&mut session.state, State::Active);
        // What was set for it before is gone with the daemon that it was set in.
        session.share = self.shares.share_of(peer);
        let (message, events) = self.lease_begins(session_id, session);
        let resumed = match self.serve(session_id, session, ends) {
            Ok(resumed) => resumed,
            Err(error) if session.engines.iter().all(|state| *state == EngineState::Dormant) => {
                session.state = waiting;
                session.events = None;
                dispose::later((session.memory.take(), std::mem::take(&mut session.regions)));
                return Err(error.into());
            }
            Err(error) => {
                // One engine goes on with it, another does not: its client cannot.
                drop(table);
                self.end(session_id, &format!("not resumed: {error}"));
                return Err(error.into());
            }
        };
        self.tell_sizes(session);
        // What was saved before is good for another resume too: regions that are not offered then are not there.
        if let Err(error) = self.save(session_id, session) {
            tracing::warn!("session {session_id}: its file keeps what it was before the restart: {error}");
        }
        kill_point!("resume-served");
        self.resumed.fetch_add(1, Relaxed);
        log_resumed(session_id, session, resumed);
        self.divide_group_limits(&mut table);
        Ok(Attached { session_id, message, fds: client.fds, resumed: true, events })
    }

    /// The volumes as they are in their engines now, if the client may still use them.
    fn find_volumes(&self, session: &mut Session, peer: &PeerIdentity) -> Result<(), ResumeError> {
        for planned in &mut session.plan.volumes {
            planned.id = GONE;
            let Some(volume) = self.volumes.get(planned.key) else { continue };
            let name = || volume.name().to_owned();
            if !volume.section.allow.admits(peer, self.own_uid) {
                return Err(ResumeError::NotAllowed { volume: name(), uid: peer.uid });
            }
            match &volume.stage {
                Stage::Serving(Served { id, .. }) | Stage::Fencing(Fencing { id, .. }) => planned.id = *id,
                Stage::Removing { .. } => {}
                Stage::Opening => {
                    return Err(ResumeError::NotYet { volume: name(), stage: volume.stage.to_string() });
                }
            }
        }
        Ok(())
    }
}

/// The regions that a client still has. Those it does not offer, it has removed, or was about to.
fn take_back(saved: &[SavedRegion], offered: &[OwnedFd]) -> Result<Regions, ResumeError> {
    let mut taken = Regions::new();
    let mut candidates = saved.iter();
    for (position, memfd) in offered.iter().enumerate() {
        let refused = |what| ResumeError::Region { position: position + 1, what };
        let found = |memfd: &OwnedFd, region: &&SavedRegion| check_file(memfd, region.file).is_ok();
        let Some(SavedRegion { index, file }) = candidates.by_ref().find(|region| found(memfd, region))
        else {
            let named: Vec<String> = saved.iter().map(|region| region.index.to_string()).collect();
            return Err(refused(format!(
                "it is none of the session's regions, or not in their order ({})",
                if named.is_empty() { "there are none".to_owned() } else { named.join(", ") }
            )));
        };
        let region: Region = regions::map(memfd, file.bytes).map_err(|error| refused(error.to_string()))?;
        taken.insert(*index, ClientRegion { region, file: *file });
    }
    Ok(taken)
}

/// Whether a descriptor is the memory that was saved, and can still be relied on. Does not block, whatever it is.
fn check_file(memfd: impl AsFd, saved: MemoryFile) -> Result<(), String> {
    check_memfd(&memfd, saved.bytes).map_err(|error| crate::chain(&error))?;
    match MemoryFile::of(memfd, saved.bytes) {
        Ok(offered) if offered == saved => Ok(()),
        Ok(_) => Err("it is other memory than the session's".to_owned()),
        Err(error) => Err(format!("it cannot be examined: {error}")),
    }
}

fn log_resumed(session_id: u64, session: &Session, resumed: Resumed) {
    let Resumed { reposted, decided, replayed, owner_dead } = resumed;
    log::session(format_args!(
        "session {session_id} of {:?} (pid {}): resumed: {reposted} answers posted again, {decided} as decided before, \
         {replayed} requests issued again, {owner_dead} of unknown outcome",
        session.client_name, session.pid
    ));
}

impl From<super::error::OpenError> for ResumeError {
    fn from(error: super::error::OpenError) -> Self {
        Self::NoRoom(error.to_string())
    }
}

impl From<ferrio_engine::EngineError> for ResumeError {
    fn from(error: ferrio_engine::EngineError) -> Self {
        Self::Engine(error)
    }
}

impl Waiting {
    /// Length of the regions that its client had. Bytes.
    pub(super) fn region_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.file.bytes).sum()
    }
}
