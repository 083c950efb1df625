//! Counters that cost the data path a plain store, and the snapshot that reads them.
//!
//! Every counter has one writer and only grows; what is queued or in flight now is the difference of two of them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{
    clock::Nanos,
    queue::Class,
    request::{Request, Stage},
};

/// A counter with one writing thread and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only its one writer may call this: it is a load and a store, not an atomic addition.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed) + n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is now, with one writing thread.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Only its one writer may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Requests that waited for others or were taken back, of an engine or of a queue. Written by the Submitter, but for
/// `overdue`.
#[derive(Debug, Default)]
pub struct WaitCounters {
    /// Held back now, by a chain or a barrier.
    pub held: Gauge,
    /// Answered ECANCELED because of a cancel.
    pub cancelled: Counter,
    /// Answered ECANCELED because one before it in its chain failed.
    pub broken: Counter,
    /// Answered ETIMEDOUT.
    pub timed_out: Counter,
    /// Answered after their timeout, with the real result. Written by the reaper.
    pub overdue: Counter,
}

/// Counters of a class, of an engine or of a queue. Aligned so that Submitter and reaper do not share a line.
#[derive(Debug, Default)]
pub struct ClassCounters {
    /// Written by the Submitter.
    pub submitter: SubmitterCounters,
    /// Written by the reaper.
    pub reaper: ReaperCounters,
}

/// The Submitter's half.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct SubmitterCounters {
    /// Requests taken from rings.
    pub accepted: Counter,
    /// Requests given to the driver for the first time, or refused.
    pub issued: Counter,
    /// Requests dropped before they were issued because their session ended.
    pub abandoned: Counter,
    /// Requests that went to the device in the operation of another one: so many operations were saved.
    pub merged: Counter,
    /// Issued requests dropped while the rest of a short transfer was to be issued, because their session ended.
    pub dropped: Counter,
}

/// The reaper's half.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ReaperCounters {
    /// Requests answered.
    pub completed: Counter,
    /// Of those, with a negative errno.
    pub errors: Counter,
    /// Bytes moved by the others.
    pub bytes: Counter,
}

/// What a snapshot sees of a queue.
#[derive(Debug)]
pub struct QueueShared {
    /// Session id.
    pub session_id: u64,
    /// Index in the session.
    pub queue: u32,
    /// SQ ring entries.
    pub sq_entries: u32,
    /// CQ ring entries.
    pub cq_entries: u32,
    /// Queue index in the engine; `u32::MAX` until the Submitter has it.
    pub slot: AtomicU32,
    /// By class index.
    pub classes: [ClassCounters; 3],
    /// Order, timeouts and cancel.
    pub waits: WaitCounters,
}

impl QueueShared {
    /// A queue that the Submitter does not have yet.
    pub fn new(session_id: u64, queue: u32, sq_entries: u32, cq_entries: u32) -> Self {
        Self {
            session_id,
            queue,
            sq_entries,
            cq_entries,
            slot: AtomicU32::new(u32::MAX),
            classes: Default::default(),
            waits: WaitCounters::default(),
        }
    }
}

/// What the I/O threads share with whoever looks.
pub struct Shared {
    /// One per journal record.
    pub requests: Box<[Request]>,
    /// By class index.
    pub classes: [ClassCounters; 3],
    /// Order, timeouts and cancel.
    pub waits: WaitCounters,
    /// Submitter: turns of its loop.
    pub submitter_turns: Counter,
    /// Submitter: sleeps.
    pub submitter_sleeps: Counter,
    /// Poller: turns of its loop.
    pub poller_turns: Counter,
    /// Submitter: batches committed.
    pub batches: Counter,
    /// Submitter: requests issued again.
    pub resubmitted: Counter,
    /// Reaper: completions with a stale tag.
    pub stale_completions: Counter,
    /// Submitter: SQEs refused.
    pub refused: Counter,
    /// Submitter: sessions faulted.
    pub sessions_faulted: Counter,
    /// Reaper: doorbells rung.
    pub client_wakes: Counter,
    /// Submitter: what became of requests that resumed sessions were owed.
    pub resumed: ResumeCounters,
}

/// What became of the requests that resumed sessions were owed: see [`crate::Resumed`].
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is documented in Resumed under the same name")]
pub struct ResumeCounters {
    pub reposted: Counter,
    pub decided: Counter,
    pub replayed: Counter,
    pub owner_dead: Counter,
}

impl Shared {
    /// All zero.
    pub fn new(requests_max: u32) -> Self {
        Self {
            requests: crate::request::table(requests_max),
            classes: Default::default(),
            waits: WaitCounters::default(),
            submitter_turns: Counter::default(),
            submitter_sleeps: Counter::default(),
            poller_turns: Counter::default(),
            batches: Counter::default(),
            resubmitted: Counter::default(),
            stale_completions: Counter::default(),
            refused: Counter::default(),
            sessions_faulted: Counter::default(),
            client_wakes: Counter::default(),
            resumed: ResumeCounters::default(),
        }
    }
}

impl Shared {
    /// Counts requests of a queue, and of all. Submitter.
    pub(crate) fn count(
        &self,
        queue: &QueueShared,
        class: Class,
        requests: u64,
        counter: impl Fn(&SubmitterCounters) -> &Counter,
    ) {
        for classes in [&self.classes, &queue.classes] {
            counter(&classes[class.index()].submitter).add(requests);
        }
    }

    /// Requests issued and not answered.
    pub fn in_flight(&self) -> u64 {
        self.classes.iter().map(|counters| CountersSnapshot::of(counters).in_flight).sum()
    }
}

/// Counters at one instant. See `ferrio.v1.Counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Requests waiting for the scheduler.
    pub queued: u64,
    /// Requests in the driver.
    pub in_flight: u64,
    /// Age of the oldest of them, microseconds.
    pub oldest_us: u64,
    /// Requests answered.
    pub completed: u64,
    /// Of those, with an error.
    pub errors: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests that went to the device in the operation of another one: so many operations were saved.
    pub merged: u64,
}

impl CountersSnapshot {
    pub(crate) fn of(counters: &ClassCounters) -> Self {
        // Later counters first, so that a request on its way is seen early rather than negative.
        let completed = counters.reaper.completed.get();
        let issued = counters.submitter.issued.get();
        let dropped = counters.submitter.dropped.get();
        let abandoned = counters.submitter.abandoned.get();
        let accepted = counters.submitter.accepted.get();
        Self {
            queued: accepted.saturating_sub(issued + abandoned),
            in_flight: issued.saturating_sub(completed + dropped),
            oldest_us: 0,
            completed,
            errors: counters.reaper.errors.get(),
            bytes: counters.reaper.bytes.get(),
            merged: counters.submitter.merged.get(),
        }
    }

    /// Sum, and the older of the oldest.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            queued: self.queued + other.queued,
            in_flight: self.in_flight + other.in_flight,
            oldest_us: self.oldest_us.max(other.oldest_us),
            completed: self.completed + other.completed,
            errors: self.errors + other.errors,
            bytes: self.bytes + other.bytes,
            merged: self.merged + other.merged,
        }
    }
}

/// [`WaitCounters`] at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitsSnapshot {
    /// Requests held back now by a chain or a barrier; `queued` contains them.
    pub held: u64,
    /// Requests answered ECANCELED because of a cancel.
    pub cancelled: u64,
    /// Requests answered ECANCELED because one before it in its chain failed.
    pub broken: u64,
    /// Requests answered ETIMEDOUT.
    pub timed_out: u64,
    /// Requests answered after their timeout, with the real result.
    pub overdue: u64,
}

impl WaitsSnapshot {
    fn of(counters: &WaitCounters) -> Self {
        Self {
            held: counters.held.get(),
            cancelled: counters.cancelled.get(),
            broken: counters.broken.get(),
            timed_out: counters.timed_out.get(),
            overdue: counters.overdue.get(),
        }
    }
}

/// A class queue of the engine.
#[derive(Clone, Copy, Debug)]
pub struct ClassSnapshot {
    /// Requests it can hold.
    pub entries: u32,
    /// Counters.
    pub counters: CountersSnapshot,
}

/// A queue of a session.
#[derive(Clone, Copy, Debug)]
pub struct QueueSnapshot {
    /// Session id.
    pub session_id: u64,
    /// Index in the session.
    pub queue: u32,
    /// SQ ring entries.
    pub sq_entries: u32,
    /// CQ ring entries.
    pub cq_entries: u32,
    /// Over all classes.
    pub total: CountersSnapshot,
    /// By class index.
    pub classes: [CountersSnapshot; 3],
    /// Order, timeouts and cancel.
    pub waits: WaitsSnapshot,
}

/// Counters of the loops. See `ferrio.v1.EngineStats`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is documented in stats.proto under the same name")]
pub struct EngineCounters {
    pub submitter_turns: u64,
    pub submitter_sleeps: u64,
    pub poller_turns: u64,
    pub batches: u64,
    pub resubmitted: u64,
    pub stale_completions: u64,
    pub refused: u64,
    pub sessions_faulted: u64,
    pub client_wakes: u64,
    pub reposted: u64,
    pub decided: u64,
    pub replayed: u64,
    pub owner_dead: u64,
}

/// One look at an engine.
#[derive(Clone, Debug)]
pub struct EngineSnapshot {
    /// By class index.
    pub classes: [ClassSnapshot; 3],
    /// Open queues.
    pub queues: Vec<QueueSnapshot>,
    /// Order, timeouts and cancel, of all queues since the engine started.
    pub waits: WaitsSnapshot,
    /// Loops.
    pub counters: EngineCounters,
}

/// Looks at everything without disturbing the I/O threads. Counters are each exact, together only nearly of one instant.
pub fn snapshot(shared: &Shared, queues: &[Arc<QueueShared>], now: Nanos) -> EngineSnapshot {
    let mut classes = shared.classes.each_ref().map(CountersSnapshot::of);
    let mut by_queue: Vec<[CountersSnapshot; 3]> =
        queues.iter().map(|queue| queue.classes.each_ref().map(CountersSnapshot::of)).collect();
    let positions = positions_by_slot(queues);
    for request in shared.requests.iter().filter(|request| request.stage() != Stage::Free) {
        let age = now.saturating_sub(request.accepted_at()) / 1000;
        let class = request.class().index();
        classes[class].oldest_us = classes[class].oldest_us.max(age);
        if let Some(Some(position)) = positions.get(request.queue() as usize) {
            let counters = &mut by_queue[*position][class];
            counters.oldest_us = counters.oldest_us.max(age);
        }
    }
    let entries = u32::try_from(shared.requests.len()).unwrap_or(u32::MAX);
    EngineSnapshot {
        classes: classes.map(|counters| ClassSnapshot { entries, counters }),
        queues: queues
            .iter()
            .zip(by_queue)
            .map(|(queue, classes)| QueueSnapshot {
                session_id: queue.session_id,
                queue: queue.queue,
                sq_entries: queue.sq_entries,
                cq_entries: queue.cq_entries,
                total: Class::ALL
                    .into_iter()
                    .fold(CountersSnapshot::default(), |sum, class| sum.plus(classes[class.index()])),
                classes,
                waits: WaitsSnapshot::of(&queue.waits),
            })
            .collect(),
        waits: WaitsSnapshot::of(&shared.waits),
        counters: loops(shared),
    }
}

fn positions_by_slot(queues: &[Arc<QueueShared>]) -> Vec<Option<usize>> {
    let mut positions = Vec::new();
    for (position, queue) in queues.iter().enumerate() {
        let slot = queue.slot.load(Relaxed);
        if slot == u32::MAX {
            continue;
        }
        if positions.len() <= slot as usize {
            positions.resize(slot as usize + 1, None);
        }
        positions[slot as usize] = Some(position);
    }
    positions
}

fn loops(shared: &Shared) -> EngineCounters {
    EngineCounters {
        submitter_turns: shared.submitter_turns.get(),
        submitter_sleeps: shared.submitter_sleeps.get(),
        poller_turns: shared.poller_turns.get(),
        batches: shared.batches.get(),
        resubmitted: shared.resubmitted.get(),
        stale_completions: shared.stale_completions.get(),
        refused: shared.refused.get(),
        sessions_faulted: shared.sessions_faulted.get(),
        client_wakes: shared.client_wakes.get(),
        reposted: shared.resumed.reposted.get(),
        decided: shared.resumed.decided.get(),
        replayed: shared.resumed.replayed.get(),
        owner_dead: shared.resumed.owner_dead.get(),
    }
}
