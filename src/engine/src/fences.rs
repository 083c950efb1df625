//! Requests whose volume is *fenced*: its lock is not ours yet, because writes of a dead daemon are still on their way to it.
//!
//! What overtook them would be overwritten by them. So a request for such a volume is accepted and then waits here, in the
//! order in which it came to be issued, while those for other volumes go on.

use crate::{
    links::{Links, List, NIL},
    session::VolumeId,
};

/// The requests that wait. Owned by the Submitter.
pub(crate) struct Fences {
    links: Links,
    /// By volume.
    lists: Vec<List>,
    /// By record: the volume that it waits for, or `NIL`.
    places: Box<[u32]>,
    held: u32,
}

impl Fences {
    /// For requests in records `0..records`.
    pub fn new(records: u32) -> Self {
        let places = vec![NIL; records as usize].into();
        Self { links: Links::new(records), lists: Vec::new(), places, held: 0 }
    }

    /// Requests that wait.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The request waits here.
    pub fn holds(&self, record: u32) -> bool {
        self.places[record as usize] != NIL
    }

    /// A request that is in no other place waits for its volume.
    pub fn hold(&mut self, volume: VolumeId, record: u32) {
        let index = volume.0 as usize;
        if self.lists.len() <= index {
            self.lists.resize(index + 1, List::EMPTY);
        }
        self.links.push_back(&mut self.lists[index], record);
        self.places[record as usize] = volume.0;
        self.held += 1;
    }

    /// Takes a request out. False: it does not wait here.
    pub fn withdraw(&mut self, record: u32) -> bool {
        let volume = std::mem::replace(&mut self.places[record as usize], NIL);
        if volume == NIL {
            return false;
        }
        self.links.remove(&mut self.lists[volume as usize], record);
        self.held -= 1;
        true
    }

    /// Takes out the request of a volume that came last.
    pub fn pop_last(&mut self, volume: VolumeId) -> Option<u32> {
        let record = self.links.pop_back(self.lists.get_mut(volume.0 as usize)?)?;
        self.places[record as usize] = NIL;
        self.held -= 1;
        Some(record)
    }
}
