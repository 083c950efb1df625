//! Which request a free helper takes next. Pure.
//!
//! Targets take turns, so that many requests of one do not keep those of another waiting; those of one target start in
//! the order they came. All together keep `shared` threads busy at most, but a target that keeps none may always have
//! one more: however many stand still, the others go on.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use crate::payload::Payload;
use crate::tag::Tag;

const NONE: u32 = u32::MAX;

/// Requests that wait, and what is being done. Allocates nothing after it was made.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// By slot, of which each has one at most.
    waiting: Box<[Option<Waiting>]>,
    /// Those with requests that wait or are being done, by turn.
    targets: VecDeque<Share>,
    /// Requests that are being done.
    busy: u32,
    shared: u32,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    tag: Tag,
    payload: Payload,
    /// Slot of the next one of its target.
    next: u32,
}

/// A target: an open description, which nobody closes while it has requests.
#[derive(Clone, Copy, Debug)]
struct Share {
    fd: RawFd,
    /// Slots of the first and the last request that waits.
    first: u32,
    last: u32,
    /// Threads that it keeps.
    held: u32,
}

impl Dispatch {
    /// For requests of `slots` slots and `files_max` targets.
    pub(super) fn new(slots: u32, files_max: u32, shared: u32) -> Dispatch {
        Dispatch {
            waiting: (0..slots).map(|_| None).collect(),
            targets: VecDeque::with_capacity(files_max as usize),
            busy: 0,
            shared,
        }
    }

    /// Takes a request in. Its slot has none here.
    pub(super) fn push(&mut self, tag: Tag, payload: Payload) {
        let (slot, fd) = (tag.index(), payload.fd());
        self.waiting[slot as usize] = Some(Waiting { tag, payload, next: NONE });
        let Some(share) = self.targets.iter_mut().find(|share| share.fd == fd) else {
            return self.targets.push_back(Share { fd, first: slot, last: slot, held: 0 });
        };
        match self.waiting.get_mut(share.last as usize).and_then(Option::as_mut) {
            Some(last) if share.first != NONE => last.next = slot,
            _ => share.first = slot,
        }
        share.last = slot;
    }

    /// Requests that are being done.
    pub(super) fn busy(&self) -> u32 {
        self.busy
    }

    /// Whether [`next`](Self::next) would give one.
    pub(super) fn has_next(&self) -> bool {
        self.turn().is_some()
    }

    /// The request that a free thread is to do, until [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<(Tag, Payload)> {
        let mut share = self.targets.remove(self.turn()?)?;
        let Waiting { tag, payload, next } = self.waiting[share.first as usize].take()?;
        share.first = next;
        share.held += 1;
        self.busy += 1;
        self.targets.push_back(share);
        Some((tag, payload))
    }

    /// A thread is done with a request of this description.
    pub(super) fn done(&mut self, fd: RawFd) {
        let Some(at) = self.targets.iter().position(|share| share.fd == fd) else { return };
        self.busy -= 1;
        let share = &mut self.targets[at];
        share.held -= 1;
        if share.held == 0 && share.first == NONE {
            self.targets.remove(at);
        }
    }

    /// Where the target stands whose turn it is.
    fn turn(&self) -> Option<usize> {
        let room = self.busy < self.shared;
        self.targets.iter().position(|share| share.first != NONE && (room || share.held == 0))
    }
}

#[cfg(test)]
mod tests;
