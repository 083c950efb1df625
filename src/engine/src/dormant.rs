//! Sessions that the journal of the daemon before names, and whose clients have not come back yet.

use std::collections::BTreeMap;

/// A session that the journal names, and whose client has not come back yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DormantSession {
    /// Session id.
    pub session_id: u64,
    /// Indices of its queues on this engine, ascending.
    pub queues: Vec<u32>,
    /// Requests that were accepted and whose answers its client may not have; what is known of them, if it is unfit.
    pub owed: u64,
    /// Why it cannot be resumed: its part of the journal is damaged.
    pub unfit: Option<String>,
}

/// What became of the requests that a resumed session was owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Had been answered: their CQEs stand where they stood.
    pub reposted: u64,
    /// Had a result, which is their answer.
    pub decided: u64,
    /// Are carried out, perhaps once more.
    pub replayed: u64,
    /// Are answered EOWNERDEAD: it is not known whether they took effect.
    pub owner_dead: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Dormant(BTreeMap<u64, Waiting>);

/// Such a session.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Indices of its queues, ascending.
    pub(crate) queues: Vec<u32>,
    /// Where they go on, in the same order; empty if it is unfit.
    pub(crate) places: Vec<Place>,
    pub(crate) unfit: Option<String>,
    /// Requests that were owed and are not in the journal any more.
    pub(crate) lost: u64,
}

/// Where a queue of it goes on.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) cell: u32,
    pub(crate) sq_head: u32,
    pub(crate) cq_tail: u32,
    pub(crate) refuses_chain: bool,
    /// In the order of their SQEs.
    pub(crate) records: Vec<u32>,
}

impl Waiting {
    pub fn owed(&self) -> u64 {
        self.lost + self.places.iter().map(|place| place.records.len() as u64).sum::<u64>()
    }
}

impl Dormant {
    pub fn insert(&mut self, session_id: u64, waiting: Waiting) {
        self.0.insert(session_id, waiting);
    }

    pub fn get(&self, session_id: u64) -> Option<&Waiting> {
        self.0.get(&session_id)
    }

    pub fn remove(&mut self, session_id: u64) -> Option<Waiting> {
        self.0.remove(&session_id)
    }

    /// All of them, as others see them.
    pub fn list(&self) -> Vec<DormantSession> {
        let seen = self.0.iter().map(|(session_id, waiting)| DormantSession {
            session_id: *session_id,
            queues: waiting.queues.clone(),
            owed: waiting.owed(),
            unfit: waiting.unfit.clone(),
        });
        seen.collect()
    }

    /// Sessions that have queues here, which count in the limit.
    pub fn sessions(&self) -> usize {
        self.0.values().filter(|waiting| waiting.unfit.is_none()).count()
    }

    /// Cells that they have. They are the first ones: `0..cells()`.
    pub fn cells(&self) -> u32 {
        self.places().count() as u32
    }

    /// Records that they have. They are the first ones: `0..records()`.
    pub fn records(&self) -> u32 {
        self.places().map(|place| place.records.len() as u32).sum()
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.values().flat_map(|waiting| &waiting.places)
    }
}
