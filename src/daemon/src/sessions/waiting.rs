//! Sessions of the daemon before, until their clients come back or have had their time.
//!
//! Such a session is known from two sides: its file says who may come back for it, the journals of the engines what it is owed.
//! Where one of them is missing or does not fit the other, nobody can go on with it: it is dropped, counted and logged, and its
//! client is told why when it comes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ferrio_driver::Holder as LockHolder;
use ferrio_engine::{DormantSession, Engine};
use ferrio_shm::peer::PeerIdentity;
use tokio::io::unix::AsyncFd;

use super::hugepages::HugePages;
use super::plan::Plan;
use super::process::Birth;
use super::saved::{Found, SavedRegion, SavedSession};
use super::{EngineState, Regions, Session, Sessions, State, Token, saving};
use crate::lease;
use crate::scheduling::Share;

/// How often it is looked whether the daemon before is still there.
const PREDECESSOR_LOOK: Duration = Duration::from_millis(250);

/// A session that waits for its client.
pub(super) struct Waiting {
    /// What its client had added.
    pub regions: Vec<SavedRegion>,
    /// Requests that were accepted and whose answers the client may not have.
    pub owed: u64,
    /// It is dropped then.
    pub until: Instant,
}

/// What an engine's journal names, by index of the engine.
type Parts = Vec<(usize, DormantSession)>;

impl Sessions {
    /// Takes the sessions of the daemon before over. Must be called within a tokio runtime, once, before any is opened.
    pub fn adopt(self: &Arc<Self>, found: Found) {
        let mut journals: BTreeMap<u64, Parts> = BTreeMap::new();
        for (index, engine) in self.engines.iter().enumerate() {
            for dormant in engine.dormant() {
                journals.entry(dormant.session_id).or_default().push((index, dormant));
            }
        }
        let highest = journals.keys().next_back().copied().unwrap_or(0).max(found.last_id);
        {
            let mut table = self.table();
            table.last_id = table.last_id.max(highest);
        }
        for saved in found.sessions {
            let parts = journals.remove(&saved.session_id).unwrap_or_default();
            self.adopt_one(&saved, &parts);
        }
        for (session_id, why) in found.damaged {
            let parts = journals.remove(&session_id).unwrap_or_default();
            let what = self.store.path(session_id);
            self.lose(session_id, &parts, &format!("{} cannot be used: {why}", what.display()));
        }
        for (session_id, parts) in journals {
            self.lose(session_id, &parts, "it was not to outlive its daemon, or had ended");
        }
    }

    fn adopt_one(self: &Arc<Self>, saved: &SavedSession, parts: &Parts) {
        let session_id = saved.session_id;
        let (session, opener) = match self.recognise(saved, parts) {
            Ok(recognised) => recognised,
            Err(why) => {
                // Its file first: see Sessions::end.
                self.store.remove(session_id);
                return self.lose(session_id, parts, &why);
            }
        };
        let (client, pid) = (session.client_name.clone(), session.pid);
        let (owed, limit) = (owed(parts), self.resume_timeout);
        tracing::info!(
            "session {session_id} of {client:?} (pid {pid}): waits for its client for {} s, {owed} requests owed",
            limit.as_secs()
        );
        self.table().by_id.insert(session_id, session);
        tokio::spawn(Arc::clone(self).wait_for(session_id, opener));
    }

    /// A saved session as one that waits, and its opener; or why it cannot.
    fn recognise(&self, saved: &SavedSession, parts: &Parts) -> Result<(Session, AsyncFd<OwnedFd>), String> {
        if parts.is_empty() {
            return Err(
                "no engine has it in its journal: it was about to begin, or the journal is lost".to_owned()
            );
        }
        let plan = Plan::of_saved(saved, &self.engine_names, &self.volumes)?;
        self.check_parts(&plan, parts)?;
        let opener = saved.birth.find(saved.pid).and_then(lease::polled);
        let opener = opener.map_err(|_| "the process that opened it has exited".to_owned())?;
        let hold = self
            .take_volumes(saved.session_id, &plan, (saved.pid, saved.uid))
            .map_err(|error| error.to_string())?;
        let hugepages = saved.hugepages.as_ref().map_or_else(HugePages::default, |saved| HugePages {
            bytes: saved.bytes,
            reason: saved.reason.clone(),
        });
        let session = Session {
            client_name: saved.client_name.clone(),
            pid: saved.pid,
            birth: Some(saved.birth),
            uid: saved.uid,
            secret: saved.secret.clone(),
            token: saved.token.clone(),
            since: saving::since(saved.opened_ms),
            engines: vec![EngineState::Dormant; plan.engines.len()],
            plan,
            share: Share::unknown(),
            memory: None,
            memory_file: saved.memory,
            hugepages,
            regions: Regions::new(),
            state: State::Waiting(Waiting {
                regions: saved.regions.clone(),
                owed: owed(parts),
                until: Instant::now() + self.resume_timeout,
            }),
            events: None,
            _hold: hold,
        };
        Ok((session, opener))
    }

    /// The journals of all engines of the plan have exactly its queues, and can account for them.
    fn check_parts(&self, plan: &Plan, parts: &Parts) -> Result<(), String> {
        for (index, dormant) in parts {
            let name = &self.engine_names[*index];
            if let Some(why) = &dormant.unfit {
                return Err(format!("the journal of engine {name} is damaged: {why}"));
            }
            let place = plan.engines.iter().position(|engine| engine == index);
            let own = plan.queue_engines.iter().enumerate().filter(|(_, owner)| Some(**owner) == place);
            let own: Vec<u32> = own.map(|(queue, _)| queue as u32).collect();
            let mut known = dormant.queues.clone();
            known.sort_unstable();
            if own != known {
                return Err(format!(
                    "the journal of engine {name} has its queues {known:?} instead of {own:?}"
                ));
            }
        }
        match plan.engines.iter().find(|engine| parts.iter().all(|(index, _)| index != *engine)) {
            None => Ok(()),
            Some(missing) => {
                Err(format!("the journal of engine {} does not have it", self.engine_names[*missing]))
            }
        }
    }

    /// Nobody can go on with a session of the daemon before.
    fn lose(&self, session_id: u64, parts: &Parts, why: &str) {
        let dropped = parts.iter().map(|(engine, _)| forget(&self.engines[*engine], session_id)).sum();
        self.count_dropped(dropped);
        tracing::warn!(
            "session {session_id} of the ferriod before is dropped, with {dropped} requests owed: {why}"
        );
        self.table().lost.insert(session_id, why.to_owned());
    }

    /// A session of the daemon before is dropped, and so many of its requests with it.
    pub(super) fn count_dropped(&self, requests: u64) {
        self.dropped.fetch_add(1, Relaxed);
        self.requests_dropped.fetch_add(requests, Relaxed);
    }

    /// Drops a session whose opener exits, or that has had its time.
    async fn wait_for(self: Arc<Self>, session_id: u64, opener: AsyncFd<OwnedFd>) {
        while let Some(until) = self.waits_until(session_id) {
            if self.predecessor.as_ref().is_some_and(LockHolder::is_there) {
                self.wait_on(session_id);
                tokio::select! {
                    _ = opener.readable() => {}
                    () = tokio::time::sleep(PREDECESSOR_LOOK) => continue,
                }
            }
            if until <= Instant::now() {
                let limit = self.resume_timeout.as_secs();
                let reason = format!("its client did not come back within daemon.resume_timeout_s = {limit}");
                return self.end_waiting(session_id, &reason);
            }
            tokio::select! {
                _ = opener.readable() => {
                    return self.end_waiting(session_id, "the process that opened it exited");
                }
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// Its client has its time from now on.
    fn wait_on(&self, session_id: u64) {
        if let Some(Session { state: State::Waiting(waiting), .. }) = self.table().by_id.get_mut(&session_id)
        {
            waiting.until = Instant::now() + self.resume_timeout;
        }
    }

    fn waits_until(&self, session_id: u64) -> Option<Instant> {
        match &self.table().by_id.get(&session_id)?.state {
            State::Waiting(waiting) => Some(waiting.until),
            _ => None,
        }
    }

    /// Whose opener shows its attach token again: the daemon before ended before that client got its memory, so that it cannot
    /// come back for it, and is about to open another session with the same volumes.
    pub(super) fn let_go(&self, token: &Token, peer: &PeerIdentity, birth: Option<Birth>) {
        let shown = |session: &Session| {
            let waits = matches!(session.state, State::Waiting(_));
            let own = (session.uid, session.pid, session.birth) == (peer.uid, peer.pid, birth);
            waits && own && session.token.is(token)
        };
        let found = self.table().by_id.iter().find(|(_, session)| shown(session)).map(|(id, _)| *id);
        if let Some(session_id) = found {
            self.end(session_id, "its client had not got its memory when the ferriod before ended");
        }
    }

    /// Once it was resumed, its lease looks after it.
    fn end_waiting(&self, session_id: u64, reason: &str) {
        if self.waits_until(session_id).is_some() {
            self.end(session_id, reason);
        }
    }
}

/// Drops what a journal has of a session. Returns how many requests that were.
pub(super) fn forget(engine: &Engine, session_id: u64) -> u64 {
    engine.forget_session(session_id).unwrap_or_else(|error| {
        tracing::error!("session {session_id} stays in the journal: {error}");
        0
    })
}

fn owed(parts: &Parts) -> u64 {
    parts.iter().map(|(_, dormant)| dormant.owed).sum()
}
