//! Sessions from `Open` to the last answer of the kernel.
//!
//! ```text
//!            attach                  rings break the protocol
//! Opened ----------------> Active ---------------------------> Faulted
//!   | token expires         ^ | lease closes, opener exits,       | the same
//!   |                resume | | daemon stops                      |
//!   |                       | |                                   |
//!   |                  Waiting|<- found at the start              |
//!   |   does not come back  | |   of the next daemon              |
//!   v                       v v                                   |
//!  gone <--------------- Draining <-------------------------------+
//!        every engine has
//!        answered what was in flight
//! ```
//!
//! A session keeps its memory and its volumes until it is gone: the kernel may still write to both while it drains.
//!
//! A session that was granted the feature resume has a file ([`saved`]) from before its client gets its memory until the session
//! ends, which is when its file is removed. So what a daemon finds at its start is what its client may come back for: a daemon
//! that is killed ends no session, and one that stops leaves such sessions to the next.
//! Everything here runs on the control thread, except that engines report faults and ends over a channel.

pub mod attaching;
pub mod error;
pub mod hugepages;
mod list;
pub mod memory;
pub mod pacing;
pub mod plan;
pub mod process;
pub mod regions;
mod resuming;
pub mod saved;
mod saving;
mod shares;
mod waiting;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferrio_api::v1;
use ferrio_driver::Holder as LockHolder;
use ferrio_engine::Engine;
use ferrio_shm::abi::{ABI_VERSION, CQE_BYTES, SQE_BYTES, SessionState, features};
use ferrio_shm::lease::LeaseEvent;
use ferrio_shm::peer::PeerIdentity;
use tokio::sync::mpsc;

use crate::config::Limits;
use crate::scheduling::{Share, Shares};
use crate::volumes::{Hold, Holder, VolumeKey, Volumes};
use crate::{dispose, log};
pub use list::{counters, waits};
pub use resuming::Claim;

use error::OpenError;
use hugepages::{HugePages, Makers};
use memory::{ClientEnds, EngineEnds, SessionMemory};
use pacing::Pacing;
use plan::{Plan, PlannedVolume, Rules};
use process::Birth;
use regions::Regions;
use saved::{MemoryFile, Secret, Store};
use shares::GroupLimit;
use waiting::Waiting;

/// A one-time token.
pub type Token = [u8; 32];

/// All sessions.
pub struct Sessions {
    limits: Limits,
    shares: Shares,
    volumes: Arc<Volumes>,
    engines: Vec<Engine>,
    engine_names: Vec<String>,
    attach_socket: String,
    own_uid: u32,
    epoch: u64,
    table: Mutex<Table>,
    notices: mpsc::UnboundedSender<Notice>,
    opened: AtomicU64,
    refused: AtomicU64,
    resumed: AtomicU64,
    dropped: AtomicU64,
    requests_dropped: AtomicU64,
    makers: Makers,
    pacing: Pacing,
    store: Store,
    resume_timeout: Duration,
    predecessor: Option<LockHolder>,
}

#[derive(Default)]
struct Table {
    last_id: u64,
    draining: bool,
    by_id: BTreeMap<u64, Session>,
    tokens: HashMap<Token, u64>,
    /// Why sessions that the daemon before left are gone: for their clients, should they come back.
    lost: BTreeMap<u64, String>,
    /// Limits of groups, by name.
    groups: BTreeMap<String, GroupLimit>,
}

struct Session {
    client_name: String,
    pid: u32,
    /// Which of those that have this pid in the course of time; `None` where that is not known, or not needed.
    birth: Option<Birth>,
    uid: u32,
    secret: Secret,
    token: Secret,
    since: Instant,
    plan: Plan,
    /// Of a session that waits, for its client to say who it is: nothing.
    share: Share,
    /// `None` while it waits for its client, who has it.
    memory: Option<SessionMemory>,
    memory_file: MemoryFile,
    hugepages: HugePages,
    /// What the client has added.
    regions: Regions,
    state: State,
    /// By engine of the plan.
    engines: Vec<EngineState>,
    /// Towards the lease; dropped with the session, which ends the lease.
    events: Option<mpsc::Sender<LeaseEvent>>,
    _hold: Hold,
}

enum State {
    Opened { token: Token, client: ClientEnds, engine: EngineEnds },
    Waiting(Waiting),
    Active,
    Faulted { reason: String },
    Draining { reason: String },
}

#[derive(Clone, Copy, PartialEq)]
enum EngineState {
    /// Knows nothing of the session, or no longer.
    Clear,
    /// Has it in the journal, and what it is owed.
    Dormant,
    /// Serves it.
    Serving,
    /// Was told to close it.
    Closing,
}

/// What an I/O thread reports. It must not block, so it does not touch the table.
#[derive(Debug)]
pub enum Notice {
    /// The rings broke the protocol.
    Fault {
        /// Session.
        session_id: u64,
        /// Index of the engine in the session's plan.
        place: usize,
        /// What the client did.
        reason: String,
    },
    /// Nothing of the session is left in the engine.
    Closed {
        /// Session.
        session_id: u64,
        /// Index of the engine in the session's plan.
        place: usize,
    },
}

/// What sessions are made from.
pub struct Setup {
    /// Limits.
    pub limits: Limits,
    /// Who gets how much.
    pub shares: Shares,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// Engines.
    pub engines: Vec<Engine>,
    /// Attach socket.
    pub attach_socket: String,
    /// Random number of this start of the daemon.
    pub epoch: u64,
    /// Where sessions are saved.
    pub store: Store,
    /// How long the sessions of the daemon before wait for their clients.
    pub resume_timeout: Duration,
    /// The daemon before, if the kernel keeps it: sessions wait for as long as it does, and then for that time.
    pub predecessor: Option<LockHolder>,
}

impl Sessions {
    /// No sessions yet; [`Sessions::adopt`] takes those of the daemon before. The receiver belongs to [`Sessions::serve_notices`].
    pub fn new(setup: Setup) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (notices, receiver) = mpsc::unbounded_channel();
        let engine_names = setup.engines.iter().map(|engine| engine.info().name.clone()).collect();
        let sessions = Self {
            pacing: Pacing::new(setup.limits.sessions_per_uid_max),
            limits: setup.limits,
            shares: setup.shares,
            volumes: setup.volumes,
            engines: setup.engines,
            engine_names,
            attach_socket: setup.attach_socket,
            own_uid: rustix::process::geteuid().as_raw(),
            epoch: setup.epoch,
            table: Mutex::default(),
            notices,
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            requests_dropped: AtomicU64::new(0),
            makers: Makers::default(),
            store: setup.store,
            resume_timeout: setup.resume_timeout,
            predecessor: setup.predecessor,
        };
        (Arc::new(sessions), receiver)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a token is valid.
    pub fn attach_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.attach_timeout_s.into())
    }

    /// Resolves when it is the turn of `peer`'s user to open a session: see [`pacing`].
    pub async fn turn_of(&self, peer: &PeerIdentity) -> Result<(), OpenError> {
        let turn = self.pacing.turn(peer.uid, peer.pid, Instant::now());
        if !turn.wait.is_zero() {
            tokio::time::sleep(turn.wait).await;
        }
        turn.comes.inspect_err(|error| self.refuse(error, peer))
    }

    /// Opens a session for `peer`. The caller sees to it that [`Sessions::expire`] is called in time.
    pub fn open(
        &self,
        request: &v1::OpenSessionRequest,
        peer: &PeerIdentity,
    ) -> Result<v1::OpenSessionResponse, OpenError> {
        self.try_open(request, peer).inspect_err(|error| self.refuse(error, peer))
    }

    fn refuse(&self, error: &OpenError, peer: &PeerIdentity) {
        self.refused.fetch_add(1, Relaxed);
        log::refusal(format_args!("session refused to pid {}, uid {}: {error}", peer.pid, peer.uid));
    }

    fn try_open(
        &self,
        request: &v1::OpenSessionRequest,
        peer: &PeerIdentity,
    ) -> Result<v1::OpenSessionResponse, OpenError> {
        let rules = Rules {
            limits: &self.limits,
            volumes: &self.volumes,
            engines: &self.engine_names,
            own_uid: self.own_uid,
        };
        let mut table = self.table();
        if table.draining {
            return Err(OpenError::Draining);
        }
        let mut plan = rules.plan(request, peer)?;
        let birth = saving::birth_of(&mut plan, peer.pid);
        table.check_limits(&self.limits, &plan, peer.uid)?;
        let session_id = table.last_id + 1;
        let hold = self.take_volumes(session_id, &plan, (peer.pid, peer.uid))?;
        let (memory, client, engine) = SessionMemory::create(&plan, session_id, self.epoch)?;
        let (token, secret) = (random()?, random()?);
        let answer = self.answer(session_id, &plan, token, secret);
        let session = Session {
            client_name: plan.client_name.clone(),
            pid: peer.pid,
            birth,
            uid: peer.uid,
            secret: Secret::new(secret),
            token: Secret::new(token),
            since: Instant::now(),
            engines: vec![EngineState::Clear; plan.engines.len()],
            plan,
            share: self.shares.share_of(peer),
            memory_file: memory.file,
            memory: Some(memory),
            hugepages: HugePages::default(),
            regions: Regions::new(),
            state: State::Opened { token, client, engine },
            events: None,
            _hold: hold,
        };
        table.last_id = session_id;
        table.tokens.insert(token, session_id);
        table.by_id.insert(session_id, session);
        self.opened.fetch_add(1, Relaxed);
        Ok(answer)
    }

    fn take_volumes(&self, session_id: u64, plan: &Plan, (pid, uid): (u32, u32)) -> Result<Hold, OpenError> {
        let holder = |access| Holder { session_id, client_name: plan.client_name.clone(), pid, uid, access };
        let wanted = plan.volumes.iter().map(|volume| (volume.key, holder(volume.access))).collect();
        self.volumes.take(session_id, wanted).map_err(|held| {
            let PlannedVolume { grant, access, .. } = &plan.volumes[held.wanted];
            OpenError::Busy { volume: grant.name.clone(), access: *access, by: held.by }
        })
    }

    fn answer(&self, session_id: u64, plan: &Plan, token: Token, secret: Token) -> v1::OpenSessionResponse {
        let engine_of = |place: usize| self.engine_names[plan.engines[place]].clone();
        let regions = plan.features & features::CLIENT_REGIONS != 0;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let queues =
            plan.layout.queues.iter().zip(&plan.queue_engines).map(|(queue, place)| v1::QueueLayout {
                sq_entries: queue.sq_entries,
                cq_entries: queue.cq_entries,
                control_offset: queue.control_offset,
                sqes_offset: queue.sqes_offset,
                cqes_offset: queue.cqes_offset,
                doorbell: count(*place),
                engine: engine_of(*place),
            });
        v1::OpenSessionResponse {
            session_id,
            attach_token: token.to_vec(),
            resume_secret: secret.to_vec(),
            abi: ABI_VERSION,
            features: plan.features,
            memory_bytes: plan.layout.memory_bytes,
            arena_offset: plan.layout.arena_offset,
            arena_bytes: plan.layout.arena_bytes,
            queues: queues.collect(),
            volumes: plan.volumes.iter().map(|volume| volume.grant.clone()).collect(),
            sqe_bytes: SQE_BYTES,
            cqe_bytes: CQE_BYTES,
            attach_socket: self.attach_socket.clone(),
            doorbells: count(plan.engines.len()),
            hugepages_bytes: 0,
            hugepages_reason: String::new(),
            regions_max: if regions { self.regions_max(plan) } else { 0 },
            region_bytes_max: if regions { self.limits.region_bytes_max } else { 0 },
        }
    }

    /// Tells every session that uses a volume its new size.
    pub fn resized(&self, volume: VolumeKey, bytes: u64) {
        for session in self.table().by_id.values_mut().filter(|session| session.events.is_some()) {
            for index in 0..session.plan.volumes.len() {
                if session.plan.volumes[index].key == volume {
                    session.resized(index, bytes);
                }
            }
        }
    }

    /// Tells clients the sizes of volumes that were fenced, for as long as the daemon lives.
    pub async fn follow_fences(self: Arc<Self>) {
        let mut unfenced = self.volumes.unfenced();
        while unfenced.changed().await.is_ok() {
            for session in self.table().by_id.values_mut().filter(|session| session.events.is_some()) {
                self.tell_sizes(session);
            }
        }
    }

    /// Drops a session whose token was not used in time.
    pub fn expire(&self, session_id: u64) {
        let unused =
            matches!(self.table().by_id.get(&session_id), Some(Session { state: State::Opened { .. }, .. }));
        if unused {
            self.end(session_id, "the attach token expired");
        }
    }

    /// Ends a session: nothing is taken from it any more, and it is gone once the engines have nothing of it.
    pub fn end(&self, session_id: u64, reason: &str) {
        let mut table = self.table();
        let Some(session) = table.by_id.get_mut(&session_id) else { return };
        if let State::Draining { .. } = session.state {
            return;
        }
        log::session(format_args!("session {session_id} of {:?}: ends: {reason}", session.client_name));
        let ended = State::Draining { reason: reason.to_owned() };
        let before = std::mem::replace(&mut session.state, ended);
        // First: whenever the daemon is killed from here on, the next one does not wait for this client.
        self.unsave(session_id, session);
        if let State::Active = before {
            session.tell_state(SessionState::Draining);
        }
        let dropped = self.close_in_engines(session_id, session);
        match before {
            State::Opened { token, .. } => drop(table.tokens.remove(&token)),
            State::Waiting(_) => {
                self.count_dropped(dropped);
                table.lost.insert(session_id, reason.to_owned());
            }
            _ => {}
        }
        table.remove_if_done(session_id);
    }

    /// Ends a session for an operator, and tells its client so. `false`: there is no such session.
    pub fn evict(&self, session_id: u64, reason: &str) -> bool {
        {
            let table = self.table();
            let Some(session) = table.by_id.get(&session_id) else { return false };
            if let Some(events) = &session.events {
                let _ = events.try_send(LeaseEvent::Evict { reason: reason.to_owned() });
            }
        }
        self.end(session_id, &format!("evicted: {reason}"));
        true
    }

    /// Returns how many requests are dropped that the daemon before had accepted.
    fn close_in_engines(&self, session_id: u64, session: &mut Session) -> u64 {
        let mut dropped = 0;
        for (place, state) in session.engines.iter_mut().enumerate() {
            let engine = &self.engines[session.plan.engines[place]];
            match *state {
                EngineState::Serving => {
                    *state = EngineState::Closing;
                    let notices = self.notices.clone();
                    let done = Box::new(move || {
                        let _ = notices.send(Notice::Closed { session_id, place });
                    });
                    engine.close_session(session_id, done);
                }
                EngineState::Dormant => {
                    *state = EngineState::Clear;
                    dropped += waiting::forget(engine, session_id);
                }
                EngineState::Clear | EngineState::Closing => {}
            }
        }
        dropped
    }

    /// Takes what the I/O threads report, for as long as the daemon lives.
    pub async fn serve_notices(self: Arc<Self>, mut notices: mpsc::UnboundedReceiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Fault { session_id, place, reason } => self.fault(session_id, place, reason),
                Notice::Closed { session_id, place } => self.closed(session_id, place),
            }
        }
    }

    fn fault(&self, session_id: u64, place: usize, reason: String) {
        let mut table = self.table();
        let Some(session) = table.by_id.get_mut(&session_id) else { return };
        if !matches!(session.state, State::Active) {
            return;
        }
        log::refusal(format_args!(
            "session {session_id} of {:?} (pid {}): faulted: {reason}",
            session.client_name, session.pid
        ));
        self.unsave(session_id, session);
        session.tell_state(SessionState::Faulted);
        if let Some(events) = &session.events {
            let _ = events.try_send(LeaseEvent::Fault { reason: reason.clone() });
        }
        session.state = State::Faulted { reason };
        // The engine that found the fault takes nothing any more; the others are told to.
        let found_by = std::mem::replace(&mut session.engines[place], EngineState::Closing);
        self.close_in_engines(session_id, session);
        session.engines[place] = found_by;
    }

    fn closed(&self, session_id: u64, place: usize) {
        let mut table = self.table();
        if let Some(session) = table.by_id.get_mut(&session_id) {
            session.engines[place] = EngineState::Clear;
        }
        self.divide_group_limits(&mut table);
        table.remove_if_done(session_id);
    }

    /// From now on no session is opened or attached; the clients hear how long they have.
    pub fn drain(&self, limit: Duration) {
        let mut table = self.table();
        table.draining = true;
        let deadline_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        for session in table.by_id.values_mut() {
            if let State::Active = session.state {
                session.tell_state(SessionState::Draining);
            }
            if let Some(events) = &session.events {
                let _ = events.try_send(LeaseEvent::Drain { deadline_ms });
            }
        }
    }

    /// Leaves the sessions that can be resumed to the next daemon, and ends the others. Their leases close.
    pub fn leave_all(&self, reason: &str) {
        let (left, others): (Vec<u64>, Vec<u64>) = {
            let table = self.table();
            table.by_id.keys().copied().partition(|session_id| table.by_id[session_id].outlives_the_daemon())
        };
        let left: Vec<Session> = {
            let mut table = self.table();
            left.iter().filter_map(|session_id| table.by_id.remove(session_id)).collect()
        };
        if !left.is_empty() {
            tracing::info!(
                "{} sessions are left to the next ferriod, their clients may come back",
                left.len()
            );
        }
        // The engines have the memory for as long as they need it; unmapping takes its time.
        dispose::later(left);
        others.into_iter().for_each(|session_id| self.end(session_id, reason));
    }

    /// Whether the daemon is stopping.
    pub fn draining(&self) -> bool {
        self.table().draining
    }
}

impl Session {
    /// Tells the client where its session stands, in memory that it may be spinning on.
    fn tell_state(&self, state: SessionState) {
        if let Some(memory) = &self.memory {
            memory.set_state(state);
        }
    }

    /// Tells the client the size of a volume, if it is news.
    fn resized(&mut self, index: usize, size_bytes: u64) {
        let grant = &mut self.plan.volumes[index].grant;
        if grant.size_bytes == size_bytes {
            return;
        }
        grant.size_bytes = size_bytes;
        if let Some(events) = &self.events {
            let _ = events.try_send(LeaseEvent::Resize { volume: index as u16, size_bytes });
        }
    }
}

impl Table {
    fn check_limits(&self, limits: &Limits, plan: &Plan, uid: u32) -> Result<(), OpenError> {
        let used = |of: &dyn Fn(&Session) -> u64| {
            let all = self.by_id.values().map(|session| (session.uid == uid, of(session)));
            all.fold((0, 0), |(total, own), (is_own, n)| (total + n, own + if is_own { n } else { 0 }))
        };
        let (sessions, own_sessions) = used(&|_| 1);
        let (queues, own_queues) = used(&|session| session.plan.queue_engines.len() as u64);
        let (memory, own_memory) = self.memory(uid);
        let (more_queues, more_memory) = (plan.queue_engines.len() as u64, plan.layout.memory_bytes);
        let Limits { sessions_max, sessions_per_uid_max, queues_max, queues_per_uid_max, .. } = *limits;
        let Limits { memory_bytes_max, memory_bytes_per_uid_max, .. } = *limits;
        let rows = [
            (
                "sessions of this user",
                own_sessions,
                1,
                sessions_per_uid_max.into(),
                "limits.sessions_per_uid_max",
            ),
            (
                "queues of this user",
                own_queues,
                more_queues,
                queues_per_uid_max.into(),
                "limits.queues_per_uid_max",
            ),
            (
                "bytes of this user",
                own_memory,
                more_memory,
                memory_bytes_per_uid_max,
                "limits.memory_bytes_per_uid_max",
            ),
            ("sessions", sessions, 1, sessions_max.into(), "limits.sessions_max"),
            ("queues", queues, more_queues, queues_max.into(), "limits.queues_max"),
            ("bytes of session memory", memory, more_memory, memory_bytes_max, "limits.memory_bytes_max"),
        ];
        for (what, used, asked, limit, key) in rows {
            if used.saturating_add(asked) > limit {
                return Err(OpenError::Limit { what, used, asked, limit, key });
            }
        }
        Ok(())
    }

    /// Bytes that all sessions have, regions included, and that those of one user have.
    fn memory(&self, uid: u32) -> (u64, u64) {
        self.by_id.values().fold((0, 0), |(total, own), session| {
            let bytes = session.plan.layout.memory_bytes + session.region_bytes();
            (total + bytes, own + if session.uid == uid { bytes } else { 0 })
        })
    }

    fn remove_if_done(&mut self, session_id: u64) {
        let done = self.by_id.get(&session_id).is_some_and(|session| {
            matches!(session.state, State::Draining { .. })
                && session.engines.iter().all(|state| *state == EngineState::Clear)
        });
        if done && let Some(session) = self.by_id.remove(&session_id) {
            session.tell_state(SessionState::Closed);
            // Unmapping takes its time, and nobody waits for it.
            dispose::later((session.memory, session.regions));
            tracing::debug!("session {session_id}: gone");
        }
    }
}

fn random() -> Result<Token, OpenError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| OpenError::System {
        what: "get random bytes",
        source: std::io::Error::other(error),
    })?;
    Ok(bytes)
}
