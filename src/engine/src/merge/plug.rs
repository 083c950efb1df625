//! The operations of one scheduling pass that may still grow. Pure.
//!
//! A pass of the scheduler names one request after the other and ends with one commit. What it names is kept here for so
//! long, in a few *open* operations, and a request that goes on where one of them ends joins it. When there are too many
//! the oldest is submitted, and all are before the commit: nothing waits longer for having been here. That is the plug of a
//! block layer.

use ferrio_driver::{Op, SEGMENTS_MAX, Segment};

use super::{Merge, MergeLimits, segment};
use crate::queue::{Class, Pick};

/// Open operations, and one in the making.
pub const PLACES: usize = 4;

/// Where no request begins.
const NOWHERE: u64 = u64::MAX;

/// Open operations; each has a slot `R` of the driver. The places are used in turn.
pub struct Plug<R> {
    limits: MergeLimits,
    /// Where the next request of each begins, or [`NOWHERE`].
    ends: [u64; PLACES],
    places: [Place<R>; PLACES],
    /// The one in the making, unless all are open.
    vacant: usize,
    open: usize,
}

/// An operation.
pub struct Place<R> {
    merge: Merge,
    slot: Option<R>,
    first: Pick,
    /// Of all its requests, and their memory, once there are more than one.
    picks: Vec<Pick>,
    segments: Vec<Segment>,
    in_a_row: bool,
}

impl<R> Plug<R> {
    /// Nothing is open.
    pub fn new(limits: MergeLimits) -> Self {
        let place = || Place {
            merge: Merge::new(Op::NOP, limits),
            slot: None,
            first: Pick { record: u32::MAX, class: Class::Read, cost: 0 },
            picks: Vec::with_capacity(SEGMENTS_MAX),
            segments: Vec::with_capacity(SEGMENTS_MAX),
            in_a_row: false,
        };
        let places = std::array::from_fn(|_| place());
        let limits = limits.or_off();
        Self { limits, ends: [NOWHERE; PLACES], places, vacant: 0, open: 0 }
    }

    /// Changes the limits. Call while nothing is open.
    pub fn set_limits(&mut self, limits: MergeLimits) {
        debug_assert!(self.is_empty());
        self.limits = limits.or_off();
    }

    /// The limits; [`MergeLimits::OFF`] if nothing is joined.
    pub fn limits(&self) -> MergeLimits {
        self.limits
    }

    /// Nothing is open.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// [`Self::oldest`] must be closed before the next operation is made.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.open == PLACES
    }

    /// The operation of the request that the pass is at: where it is made.
    #[inline]
    pub fn op(&mut self) -> &mut Op {
        &mut self.places[self.vacant].merge.op
    }

    /// That operation joins an open one, of a request of the same class, if it can; returns whether. It must be a read or
    /// write of one stretch of memory.
    #[inline]
    pub fn join(&mut self, pick: Pick) -> bool {
        let offset = self.places[self.vacant].merge.op.offset;
        (0..PLACES).any(|place| self.ends[place] == offset && self.join_at(place, pick))
    }

    #[inline(never)] // out of the way of requests that do not meet
    fn join_at(&mut self, at: usize, pick: Pick) -> bool {
        let op = self.places[self.vacant].merge.op;
        let place = &mut self.places[at];
        let last = place.segments.last().copied().unwrap_or_else(|| segment(place.merge.op()));
        if place.first.class != pick.class || !place.merge.join(&op) {
            return false;
        }
        if place.picks.is_empty() {
            place.picks.push(place.first);
            place.segments.push(last);
            place.in_a_row = true;
        }
        place.in_a_row &=
            op.region == place.merge.op.region && op.region_offset == last.offset + u64::from(last.length);
        place.picks.push(pick);
        place.segments.push(segment(&op));
        self.ends[at] = if place.merge.has_room() { place.merge.end() } else { NOWHERE };
        true
    }

    /// The operation in the making may grow.
    #[inline]
    pub fn may_open(&self) -> bool {
        self.places[self.vacant].merge.op.length < self.limits.bytes_max
    }

    /// Opens the operation in the making, which is that of this one request.
    #[inline]
    pub fn open(&mut self, slot: R, pick: Pick) {
        debug_assert!(!self.is_full());
        let place = &mut self.places[self.vacant];
        (place.merge.parts, place.merge.limits) = (1, self.limits);
        (place.slot, place.first) = (Some(slot), pick);
        self.ends[self.vacant] = place.merge.end();
        self.open += 1;
        self.vacant = (self.vacant + 1) % PLACES;
    }

    /// The operation that was opened first, of those that are open.
    #[inline]
    pub fn oldest(&mut self) -> Option<&mut Place<R>> {
        if self.open == 0 {
            return None;
        }
        Some(&mut self.places[(self.vacant + PLACES - self.open) % PLACES])
    }

    /// It was submitted.
    #[inline]
    pub fn close_oldest(&mut self) {
        let at = (self.vacant + PLACES - self.open) % PLACES;
        self.close(at);
    }

    /// Closes the operation that was opened last, and hands its requests to `each`, the last one first; returns its slot.
    pub fn undo_newest(&mut self, each: impl FnMut(Pick)) -> Option<R> {
        if self.open == 0 {
            return None;
        }
        self.vacant = (self.vacant + PLACES - 1) % PLACES;
        let place = &mut self.places[self.vacant];
        place.picks().iter().rev().copied().for_each(each);
        let slot = place.slot.take();
        self.close(self.vacant);
        slot
    }

    #[inline]
    fn close(&mut self, at: usize) {
        self.ends[at] = NOWHERE;
        self.open -= 1;
        let place = &mut self.places[at];
        if !place.picks.is_empty() {
            place.picks.clear();
            place.segments.clear();
        }
    }
}

impl<R> Place<R> {
    /// What the driver is to do. Its memory is that of [`Self::segments`], unless that is in a row.
    #[inline]
    pub fn op(&self) -> &Op {
        &self.merge.op
    }

    /// Its slot, which is there until it is taken.
    #[inline]
    pub fn slot(&mut self) -> &mut Option<R> {
        &mut self.slot
    }

    /// Its requests, in the order of their data.
    #[inline]
    pub fn picks(&self) -> &[Pick] {
        if self.picks.is_empty() { std::slice::from_ref(&self.first) } else { &self.picks }
    }

    /// The memory of its requests, of more than one; empty for one.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The memory of its requests is one stretch, which begins where that of its operation does.
    pub fn is_in_a_row(&self) -> bool {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests;
