//! From a token, or a secret, to a session that the engines serve.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ferrio_engine::{EngineError, Grant, QueueAttach, Resumed, SessionSpec, kill_point};
use ferrio_shm::doorbell::DoorbellRx;
use ferrio_shm::lease::{LeaseEvent, LeaseMessage};
use ferrio_shm::peer::PeerIdentity;
use tokio::sync::mpsc;

use super::error::AttachError;
use super::memory::EngineEnds;
use super::plan::{Plan, PlannedVolume, VOLUMES_PER_SESSION_MAX};
use super::process::Birth;
use super::{EngineState, Notice, Session, Sessions, State, Token};
use crate::log;

/// Events that wait for a lease. Each volume may change its size, and the lease sends what waits without waiting.
const EVENTS_MAX: usize = 2 * VOLUMES_PER_SESSION_MAX;

/// An attached session, for its lease.
#[derive(Debug)]
pub struct Attached {
    /// Session.
    pub session_id: u64,
    /// Answer to the client.
    pub message: LeaseMessage,
    /// Descriptors that go with it.
    pub fds: Vec<OwnedFd>,
    /// The client has gone on with it, and has its memory.
    pub resumed: bool,
    /// What to tell the client; ends when the session is gone.
    pub events: mpsc::Receiver<LeaseEvent>,
}

impl Sessions {
    /// Turns a token into a session that the engines serve. `birth` tells which process `peer` is, where that can be known.
    pub fn attach(
        &self,
        token: &Token,
        peer: &PeerIdentity,
        birth: Option<Birth>,
    ) -> Result<Attached, AttachError> {
        self.try_attach(token, peer, birth).inspect_err(|error| {
            self.refused.fetch_add(1, Relaxed);
            if let AttachError::Token { .. } = error {
                self.let_go(token, peer, birth);
            }
        })
    }

    fn try_attach(
        &self,
        token: &Token,
        peer: &PeerIdentity,
        birth: Option<Birth>,
    ) -> Result<Attached, AttachError> {
        let mut table = self.table();
        if table.draining {
            return Err(AttachError::Draining);
        }
        let unknown = || AttachError::Token { timeout_s: self.limits.attach_timeout_s };
        let session_id = *table.tokens.get(token).ok_or_else(unknown)?;
        let session = table.by_id.get_mut(&session_id).ok_or_else(unknown)?;
        let another = session.birth.is_some() && session.birth != birth;
        if another || (session.uid, session.pid) != (peer.uid, peer.pid) {
            // The token stays good for its owner, whom a thief must not be able to lock out.
            let (opener_pid, opener_uid) = (session.pid, session.uid);
            return Err(AttachError::Stranger { opener_pid, opener_uid, pid: peer.pid, uid: peer.uid });
        }
        if let Some(gone) = self.gone_volume(&session.plan) {
            drop(table);
            self.end(session_id, &format!("volume {gone:?} was removed before it attached"));
            return Err(AttachError::VolumeGone(gone));
        }
        if !matches!(session.state, State::Opened { .. }) {
            return Err(unknown());
        }
        // From before the client has anything that it could come back with.
        self.save(session_id, session).map_err(AttachError::Save)?;
        let State::Opened { client, engine, .. } = std::mem::replace(&mut session.state, State::Active)
        else {
            return Err(unknown());
        };
        let (pid, uid) = (peer.pid, peer.uid);
        log::session(format_args!(
            "session {session_id} of {:?} (pid {pid}, uid {uid}): attached",
            session.client_name
        ));
        let (message, events) = self.lease_begins(session_id, session);
        let served = self.serve(session_id, session, engine);
        kill_point!("session-served");
        self.tell_sizes(session);
        table.tokens.remove(token);
        self.divide_group_limits(&mut table);
        drop(table);
        if let Err(error) = served {
            self.end(session_id, &format!("not attached: {error}"));
            return Err(error.into());
        }
        Ok(Attached { session_id, message, fds: client.fds, resumed: false, events })
    }

    /// What the client is told first, and what it is told later.
    pub(super) fn lease_begins(
        &self,
        session_id: u64,
        session: &mut Session,
    ) -> (LeaseMessage, mpsc::Receiver<LeaseEvent>) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        session.events = Some(sender);
        let message = LeaseMessage::Attached {
            session_id,
            epoch: self.epoch,
            memory_bytes: session.plan.layout.memory_bytes,
            doorbells: session.plan.engines.len() as u32,
            queues: session.plan.queue_engines.len() as u32,
        };
        (message, events)
    }

    /// Tells a client what became of its volumes since it was told of them and could not listen.
    pub(super) fn tell_sizes(&self, session: &mut Session) {
        for index in 0..session.plan.volumes.len() {
            if let Some(volume) = self.volumes.get(session.plan.volumes[index].key) {
                session.resized(index, volume.size_bytes);
            }
        }
    }

    /// A volume that is not in service any more: its id in the engine may be another's now.
    fn gone_volume(&self, plan: &Plan) -> Option<String> {
        let serves = |volume: &&PlannedVolume| self.volumes.get(volume.key).is_some_and(|now| now.serves());
        plan.volumes.iter().find(|volume| !serves(volume)).map(|volume| volume.grant.name.clone())
    }

    /// Hands the session to every engine that serves a queue of it: one that has it in its journal goes on with it.
    pub(super) fn serve(
        &self,
        session_id: u64,
        session: &mut Session,
        ends: EngineEnds,
    ) -> Result<Resumed, EngineError> {
        let mut cq_doorbells: Vec<_> = ends.cq_doorbells.into_iter().map(Some).collect();
        let mut sum = Resumed::default();
        for (place, doorbell) in ends.doorbells.into_iter().enumerate() {
            let mine = session.plan.queue_engines.iter().enumerate().filter(|(_, owner)| **owner == place);
            let queues = mine.filter_map(|(index, _)| {
                let cq_doorbell = cq_doorbells[index].take()?;
                Some(QueueAttach { index: index as u32, cq_doorbell })
            });
            let queues = queues.collect();
            let spec = self.spec(session_id, session, place, queues, doorbell)?;
            let engine = &self.engines[session.plan.engines[place]];
            if session.engines[place] == EngineState::Dormant {
                let resumed = engine.resume_session(spec)?;
                sum.reposted += resumed.reposted;
                sum.decided += resumed.decided;
                sum.replayed += resumed.replayed;
                sum.owner_dead += resumed.owner_dead;
            } else {
                engine.open_session(spec)?;
            }
            session.engines[place] = EngineState::Serving;
        }
        self.apply_limit(session_id, session)?;
        Ok(sum)
    }

    fn spec(
        &self,
        session_id: u64,
        session: &Session,
        place: usize,
        queues: Vec<QueueAttach>,
        doorbell: DoorbellRx,
    ) -> Result<SessionSpec, EngineError> {
        let engine = session.plan.engines[place];
        let no_memory = || EngineError::Spec { session: session_id, what: "its memory is not there" };
        let memory = session.memory.as_ref().ok_or_else(no_memory)?;
        let grants = session.plan.volumes.iter().map(|volume| {
            let grant = Grant { volume: volume.id, writable: volume.access.writes() };
            (volume.engine == engine).then_some(grant)
        });
        let notices = self.notices.clone();
        Ok(SessionSpec {
            session_id,
            memory: Arc::clone(&memory.mapping),
            layout: session.plan.layout.clone(),
            queues,
            doorbell,
            regions: session.regions.iter().map(|(index, region)| (*index, region.region.clone())).collect(),
            grants: grants.collect(),
            features: session.plan.features,
            weight: session.share.weight,
            group: session.share.group.clone(),
            merge: session.plan.merge,
            on_fault: Box::new(move |reason| {
                // The receiver goes away with the daemon only.
                let _ = notices.send(Notice::Fault { session_id, place, reason });
            }),
        })
    }
}
