//! The sessions and queues of one engine, as its Submitter sees them.
//!
//! Queues are found by activity: only those in `polled` are looked at each turn, see [`polling`].

mod polling;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ferrio_driver::{Pin, RegionIndex, SubmitHalf};
use ferrio_shm::{
    abi::{SessionState as HeaderState, limits},
    doorbell::DoorbellRx,
    entry::Cqe,
    mapping::{MappedQueue, Region, SessionHeader},
    ring::{CqCredit, CqProducer, RingFault, SqConsumer},
};
use rustix::event::epoll;
use slab::Slab;

use self::polling::{INTERRUPTED_MAX, drop_doorbell};
use crate::{
    bell::Bell,
    clock::Nanos,
    completion::{CqCommand, CqSide, SubmitterLink},
    config::EngineError,
    dormant::Dormant,
    journal::Journal,
    session::{GrantedRegion, GrantedVolume, Rights, SessionSpec, VolumeId},
    stats::QueueShared,
    volumes::Volumes,
};

/// Epoll data of the Submitter's bell; session keys are small.
const BELL: u64 = u64::MAX;

/// A session queue.
pub(crate) struct Queue {
    pub(crate) session_id: u64,
    pub(crate) sq: SqConsumer<MappedQueue>,
    pub(crate) credit: CqCredit<MappedQueue>,
    pub(crate) shared: Arc<QueueShared>,
    pub(crate) busy_at: Nanos,
    /// SQEs stay in the ring because its session may have no more of the engine's records for now.
    pub(crate) waits_for_records: bool,
    /// The SQEs up to the end of a chain that cannot be taken are refused.
    pub(crate) refuses_chain: bool,
    session: usize,
    polled: bool,
}

struct Session {
    id: u64,
    rights: Rights,
    slots: Vec<u32>,
    /// Records in use.
    outstanding: u32,
    /// The queue that was last seen to have a chain without records for it.
    chain_waits: Option<u32>,
    doorbell: Option<DoorbellRx>,
    header: SessionHeader,
    on_fault: Option<Box<dyn FnOnce(String) + Send>>,
    closing: Option<Box<dyn FnOnce() + Send>>,
}

/// A fault to report.
pub(crate) struct Fault {
    pub(crate) text: String,
    pub(crate) on_fault: Box<dyn FnOnce(String) + Send>,
}

/// A session that can be taken apart.
pub(crate) struct Ended {
    key: usize,
    pub(crate) slots: Vec<u32>,
}

/// See the module.
pub(crate) struct Sessions {
    name: String,
    sessions: Slab<Session>,
    /// By slot, which is the queue's cell of the journal too.
    queues: Box<[Option<Queue>]>,
    free_slots: Vec<u32>,
    by_id: HashMap<u64, usize>,
    polled: Vec<u32>,
    /// Went to sleep with the Submitter, with requests in flight.
    interrupted: Vec<u32>,
    marked: Vec<(u32, RingFault)>,
    epoll: OwnedFd,
    sessions_max: u32,
    /// Sessions of the daemon before that may come back.
    dormant: usize,
    outstanding: u64,
    closing: u32,
}

/// A session that is to be taken in.
pub(crate) struct Opening {
    pub(crate) spec: SessionSpec,
    /// Counters, one per queue of the spec, in its order.
    pub(crate) shared: Vec<Arc<QueueShared>>,
    /// Where they go on, in the same order, if a daemon before had the session.
    pub(crate) resume: Option<Vec<Resume>>,
}

/// Where a queue of a resumed session goes on.
pub(crate) struct Resume {
    pub(crate) slot: u32,
    pub(crate) sq_head: u32,
    pub(crate) cq_tail: u32,
    pub(crate) refuses_chain: bool,
    /// CQEs from `cq_tail` on that its client may not have seen.
    pub(crate) cqes: Vec<Cqe>,
}

impl Sessions {
    /// `bell` is the Submitter's: it wakes the epoll too. What is `dormant` has its slots already.
    pub fn new(
        name: String,
        bell: &Bell,
        sessions_max: u32,
        queues_max: u32,
        dormant: &Dormant,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(Self {
            name,
            sessions: Slab::new(),
            queues: std::iter::repeat_with(|| None).take(queues_max as usize).collect(),
            free_slots: (dormant.cells()..queues_max).rev().collect(),
            by_id: HashMap::new(),
            polled: Vec::with_capacity(queues_max as usize),
            interrupted: Vec::with_capacity(INTERRUPTED_MAX),
            marked: Vec::with_capacity(16),
            epoll,
            sessions_max,
            dormant: dormant.sessions(),
            outstanding: 0,
            closing: 0,
        })
    }

    /// What becomes readable when a sleeping queue rings or a command comes.
    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Name of the engine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests accepted and not settled.
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    // ---- open

    /// Takes a session in. Returns the slots of its queues.
    pub fn open(
        &mut self,
        driver: &mut impl SubmitHalf,
        volumes: &Volumes,
        opening: Opening,
        journal: &Journal,
        link: &SubmitterLink,
    ) -> Result<Vec<u32>, EngineError> {
        let Opening { spec, shared, resume } = opening;
        self.check_limits(&spec, resume.is_some())?;
        let bad = |what| EngineError::Spec { session: spec.session_id, what };
        let mut ends = Vec::with_capacity(spec.queues.len());
        for attach in &spec.queues {
            let layout =
                spec.layout.queues.get(attach.index as usize).ok_or(bad("queue index beyond its layout"))?;
            ends.push(
                MappedQueue::new(Arc::clone(&spec.memory), layout).ok_or(bad("queue beyond its memory"))?,
            );
        }
        let header =
            SessionHeader::new(Arc::clone(&spec.memory)).ok_or(bad("memory without room for the header"))?;
        let rights = self.rights_of(driver, volumes, &spec, resume.is_some())?;
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        let data = epoll::EventData::new_u64(key as u64);
        if let Err(errno) = epoll::add(&self.epoll, spec.doorbell.as_fd(), data, epoll::EventFlags::IN) {
            unregister_all(driver, spec.session_id, &rights.regions);
            let (engine, what) = (self.name.clone(), "watching a doorbell");
            return Err(EngineError::System { engine, what, source: errno.into() });
        }
        let resumed = resume.is_some();
        let mut resume = resume.into_iter().flatten();
        let mut slots = Vec::with_capacity(ends.len());
        for ((memory, attach), shared) in ends.into_iter().zip(spec.queues).zip(shared) {
            let Some(Resume { slot, sq_head, cq_tail, refuses_chain, cqes }) =
                resume.next().or_else(|| self.free_slots.pop().map(Resume::fresh))
            else {
                unreachable!("check_limits() counted slots")
            };
            let cq = CqProducer::repost(memory.clone(), cq_tail, &cqes);
            let credit = CqCredit::resume(memory.clone(), &cq, sq_head);
            if !cqes.is_empty() {
                // It may sleep. A closed doorbell means that it is gone; its session ends by the lease.
                let _ = attach.cq_doorbell.ring();
            }
            if resumed {
                journal.set_cq_tail(slot, cq.tail());
            } else {
                journal.open_cell(slot, spec.session_id, attach.index, sq_head, cq_tail);
            }
            let side = CqSide {
                cq,
                doorbell: attach.cq_doorbell,
                shared: Arc::clone(&shared),
                touched: false,
                faulted: false,
            };
            shared.slot.store(slot, Relaxed);
            self.queues[slot as usize] = Some(Queue {
                session_id: spec.session_id,
                sq: SqConsumer::resume(memory, sq_head),
                credit,
                shared,
                busy_at: 0,
                waits_for_records: false,
                refuses_chain,
                session: key,
                polled: true, // until it is found idle
            });
            self.polled.push(slot);
            link.command(CqCommand::Open(slot, Box::new(side)));
            slots.push(slot);
        }
        entry.insert(Session {
            id: spec.session_id,
            rights,
            slots: slots.clone(),
            outstanding: 0,
            chain_waits: None,
            doorbell: Some(spec.doorbell),
            header,
            on_fault: Some(spec.on_fault),
            closing: None,
        });
        self.by_id.insert(spec.session_id, key);
        self.dormant -= usize::from(resumed);
        Ok(slots)
    }

    /// A dormant session was dropped: its slots are free.
    pub fn forget(&mut self, slots: impl Iterator<Item = u32>) {
        self.dormant -= 1;
        self.free_slots.extend(slots);
    }

    fn check_limits(&self, spec: &SessionSpec, resumed: bool) -> Result<(), EngineError> {
        if self.by_id.contains_key(&spec.session_id) {
            return Err(EngineError::Spec { session: spec.session_id, what: "session id is in use" });
        }
        if resumed {
            return Ok(()); // It has its places.
        }
        let limit = |what, limit, key| EngineError::Limit { engine: self.name.clone(), what, limit, key };
        if self.sessions.len() + self.dormant >= self.sessions_max as usize {
            return Err(limit("session", self.sessions_max, "limits.sessions_max"));
        }
        if spec.queues.len() > self.free_slots.len() {
            return Err(limit("queue", self.queues.len() as u32, "limits.queues_max"));
        }
        Ok(())
    }

    fn rights_of(
        &self,
        driver: &mut impl SubmitHalf,
        known: &Volumes,
        spec: &SessionSpec,
        resumed: bool,
    ) -> Result<Rights, EngineError> {
        let bad = |what| EngineError::Spec { session: spec.session_id, what };
        let mut volumes = Vec::with_capacity(spec.grants.len());
        for grant in &spec.grants {
            let Some(grant) = grant else {
                volumes.push(None);
                continue;
            };
            let volume = match known.grant(grant.volume) {
                Some(volume) => volume,
                // It was there when the session was opened.
                None if resumed => {
                    GrantedVolume { id: grant.volume, ..GrantedVolume::detached(0, 1, 1, false).removed() }
                }
                None => return Err(bad("grant of an unknown volume")),
            };
            volumes.push(Some(GrantedVolume { writable: volume.writable && grant.writable, ..volume }));
        }
        let bytes = spec.layout.arena_bytes;
        let mut regions = Vec::new();
        if bytes > 0 {
            let region = Region::new(Arc::clone(&spec.memory), spec.layout.arena_offset, bytes)
                .ok_or(bad("arena beyond its memory"))?;
            let memory = region.clone();
            let index = driver
                .register_region(region, Pin::Yes)
                .map_err(|source| EngineError::Driver { engine: self.name.clone(), source })?;
            regions.push(Some(GrantedRegion { index, bytes, memory: Some(memory) }));
        }
        for (index, region) in &spec.regions {
            let added = add_region(&self.name, driver, spec.session_id, &mut regions, *index, region.clone());
            if let Err(error) = added {
                unregister_all(driver, spec.session_id, &regions);
                return Err(error);
            }
        }
        Ok(Rights { merges: spec.merge, ..Rights::new(spec.features, volumes, regions) })
    }

    /// Changes a volume in the rights of every session.
    pub fn set_volume(&mut self, id: VolumeId, change: impl Fn(&mut GrantedVolume)) {
        let grants = self.sessions.iter_mut().flat_map(|(_, session)| &mut session.rights.volumes);
        grants.flatten().filter(|grant| grant.id == id).for_each(change);
    }

    /// Adds memory that requests of a session may name.
    pub fn add_region(
        &mut self,
        driver: &mut impl SubmitHalf,
        session_id: u64,
        index: u16,
        region: Region,
    ) -> Result<(), EngineError> {
        let name = self.name.clone();
        add_region(&name, driver, session_id, self.regions_of(session_id)?, index, region)
    }

    /// Takes memory away from a session, unless the driver may still use it.
    pub fn remove_region(
        &mut self,
        driver: &mut impl SubmitHalf,
        session_id: u64,
        index: u16,
    ) -> Result<(), EngineError> {
        let regions = self.regions_of(session_id)?;
        let region = regions.get_mut(usize::from(index)).filter(|_| index != 0);
        let Some(region) = region.filter(|region| region.is_some()) else {
            return Err(EngineError::NoRegion { session: session_id, index });
        };
        if let Some(granted) = region {
            driver.unregister_region(granted.index).map_err(|busy| EngineError::RegionBusy {
                session: session_id,
                index,
                in_flight: busy.in_flight,
            })?;
        }
        *region = None;
        Ok(())
    }

    fn regions_of(&mut self, session_id: u64) -> Result<&mut Vec<Option<GrantedRegion>>, EngineError> {
        let key = self.by_id.get(&session_id).copied();
        let session = key.map(|key| &mut self.sessions[key]).filter(|session| session.closing.is_none());
        session
            .map(|session| &mut session.rights.regions)
            .ok_or(EngineError::NoSession { session: session_id })
    }

    // ---- what the others ask

    /// A queue, and what its session may name.
    pub fn queue_and_rights(&mut self, slot: u32) -> (&mut Queue, &Rights) {
        let queue = open_mut(&mut self.queues, slot);
        let rights = &self.sessions[queue.session].rights;
        (queue, rights)
    }

    /// A queue.
    pub fn queue(&self, slot: u32) -> &Queue {
        open(&self.queues, slot)
    }

    /// What its session may name.
    pub fn rights(&self, slot: u32) -> &Rights {
        &self.sessions[open(&self.queues, slot).session].rights
    }

    /// Records in use by the session of a queue, and whether one of its queues has, or had, a chain that waited for some.
    pub fn held(&self, slot: u32) -> (u32, bool) {
        let session = &self.sessions[open(&self.queues, slot).session];
        (session.outstanding, session.chain_waits.is_some())
    }

    /// A queue has a chain without records for it.
    pub fn wait_for_chain(&mut self, slot: u32) {
        let queue = open_mut(&mut self.queues, slot);
        queue.waits_for_records = true;
        self.sessions[queue.session].chain_waits = Some(slot);
    }

    /// Another queue of its session has a chain that waits for records.
    pub fn yields_to_chain(&self, slot: u32) -> bool {
        let waits = self.sessions[open(&self.queues, slot).session].chain_waits;
        waits.is_some_and(|waiting| waiting != slot && self.waits_for_records(waiting))
    }

    /// There is such a queue, and it is looked at for the records that it waits for.
    pub fn waits_for_records(&self, slot: u32) -> bool {
        let queue = self.queues.get(slot as usize).and_then(Option::as_ref);
        queue.is_some_and(|queue| queue.polled && queue.waits_for_records)
    }

    /// Requests were taken from a queue.
    pub fn accepted(&mut self, slot: u32, requests: u32) {
        self.sessions[open(&self.queues, slot).session].outstanding += requests;
        self.outstanding += u64::from(requests);
    }

    // ---- faults

    /// A ring broke the protocol; [`Self::fault_next`] reports it.
    pub fn mark_fault(&mut self, slot: u32, fault: RingFault) {
        self.marked.push((slot, fault));
    }

    /// There are such rings.
    #[inline]
    pub fn has_marked(&self) -> bool {
        !self.marked.is_empty()
    }

    /// Stops taking from the next session with a broken ring. Its accepted requests are answered as usual.
    pub fn fault_next(&mut self) -> Option<Fault> {
        while let Some((slot, fault)) = self.marked.pop() {
            let queue = open(&self.queues, slot);
            let (key, index) = (queue.session, queue.shared.queue);
            let session = &mut self.sessions[key];
            let Some(on_fault) = session.on_fault.take() else { continue };
            session.header.set_state(HeaderState::Faulted);
            drop_doorbell(&self.epoll, session);
            self.unpoll_session(key);
            return Some(Fault { text: format!("queue {index}: {fault}"), on_fault });
        }
        None
    }

    // ---- end

    /// Takes nothing more from a session. Returns its slots, whose waiting requests the caller drops; `done` is called at
    /// once if there is no such session.
    pub fn begin_close(&mut self, session_id: u64, done: Box<dyn FnOnce() + Send>) -> Option<Vec<u32>> {
        let Some(key) = self.by_id.get(&session_id).copied() else {
            done();
            return None;
        };
        let session = &mut self.sessions[key];
        if session.closing.replace(done).is_none() {
            self.closing += 1;
        }
        drop_doorbell(&self.epoll, session);
        let slots = session.slots.clone();
        self.unpoll_session(key);
        Some(slots)
    }

    /// There is such a session, perhaps closing.
    pub fn is_open(&self, session_id: u64) -> bool {
        self.by_id.contains_key(&session_id)
    }

    /// The session of this queue is closing.
    pub fn is_closing(&self, slot: u32) -> bool {
        self.sessions[open(&self.queues, slot).session].closing.is_some()
    }

    /// Records of this queue are free again. The session, if that was the last thing it waited for.
    pub fn settle(&mut self, slot: u32, records: u32) -> Option<Ended> {
        self.outstanding -= u64::from(records);
        let key = open(&self.queues, slot).session;
        self.sessions[key].outstanding -= records;
        self.ended(key)
    }

    /// A closing session with nothing in flight.
    pub fn ended_by_id(&self, session_id: u64) -> Option<Ended> {
        self.ended(*self.by_id.get(&session_id)?)
    }

    fn ended(&self, key: usize) -> Option<Ended> {
        let session = &self.sessions[key];
        (session.closing.is_some() && session.outstanding == 0)
            .then(|| Ended { key, slots: session.slots.clone() })
    }

    /// Frees everything of a session. Its client's end of the queues goes with the reaper's copy, which calls `done`.
    pub fn dismantle(&mut self, driver: &mut impl SubmitHalf, ended: Ended, link: &SubmitterLink) {
        let session = self.sessions.remove(ended.key);
        self.by_id.remove(&session.id);
        self.closing -= 1;
        self.marked.retain(|(slot, _)| !ended.slots.contains(slot));
        for slot in &ended.slots {
            if let Some(queue) = self.queues[*slot as usize].take() {
                queue.shared.slot.store(u32::MAX, Relaxed);
                self.free_slots.push(*slot);
            }
        }
        unregister_all(driver, session.id, &session.rights.regions);
        let done = session.closing.unwrap_or_else(|| Box::new(|| ()));
        link.command(CqCommand::Close(ended.slots, done));
    }
}

impl Resume {
    /// A queue that begins.
    fn fresh(slot: u32) -> Self {
        Self { slot, sq_head: 0, cq_tail: 0, refuses_chain: false, cqes: Vec::new() }
    }
}

#[inline]
fn open(queues: &[Option<Queue>], slot: u32) -> &Queue {
    let Some(queue) = &queues[slot as usize] else { unreachable!("queue {slot} is open") };
    queue
}

#[inline]
fn open_mut(queues: &mut [Option<Queue>], slot: u32) -> &mut Queue {
    let Some(queue) = &mut queues[slot as usize] else { unreachable!("queue {slot} is open") };
    queue
}

fn add_region(
    engine: &str,
    driver: &mut impl SubmitHalf,
    session: u64,
    regions: &mut Vec<Option<GrantedRegion>>,
    index: u16,
    region: Region,
) -> Result<(), EngineError> {
    if index == 0 || u32::from(index) >= limits::REGIONS_MAX {
        return Err(EngineError::RegionIndex { session, index });
    }
    let place = usize::from(index);
    if regions.get(place).is_some_and(Option::is_some) {
        return Err(EngineError::RegionInUse { session, index });
    }
    let (bytes, memory) = (region.len(), region.clone());
    let index = driver
        .register_region(region, Pin::Yes)
        .map_err(|source| EngineError::Driver { engine: engine.to_owned(), source })?;
    if regions.len() <= place {
        regions.resize(place + 1, None);
    }
    regions[place] = Some(GrantedRegion { index, bytes, memory: Some(memory) });
    Ok(())
}

fn unregister_all(driver: &mut impl SubmitHalf, session: u64, regions: &[Option<GrantedRegion>]) {
    for region in regions.iter().flatten() {
        unregister(driver, session, region.index);
    }
}

fn unregister(driver: &mut impl SubmitHalf, session: u64, region: RegionIndex) {
    if let Err(busy) = driver.unregister_region(region) {
        // The driver keeps the memory mapped: nothing is corrupted, but it is lost until the daemon restarts.
        tracing::error!(
            session,
            ?busy,
            "the memory of an ended session is still in use and is not freed: a bug"
        );
    }
}
