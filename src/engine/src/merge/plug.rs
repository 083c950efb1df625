//! The operations of one scheduling pass that may still grow. Pure.
//!
//! A pass of the scheduler names one request after the other and ends with one commit. Those that others are likely to join
//! are kept here for so long, in a few *open* operations, and a request that goes on where one of them ends joins it. When
//! there are too many the oldest is submitted, and all are before the commit: nothing waits longer for having been here.
//! That is the plug of a block layer.
//!
//! A request is likely to be joined if the next one of its flow goes on where it ends, or if it goes on itself where one of
//! the last requests ended: then it is part of a stream. Others are not kept. The first is not even looked at after
//! [`PATIENCE`] requests that were not part of one: so those that go to anywhere pay for four comparisons.

use ferrio_driver::{Op, SEGMENTS_MAX, Segment};

use super::{Merge, MergeLimits, segment};
use crate::queue::{Class, Pick};

/// Open operations at once.
pub const PLACES: usize = 4;
/// Ends of requests that are remembered.
const RECENT: usize = 4;
/// Requests without one that is part of a stream.
pub const PATIENCE: u32 = 64;

/// Where no request begins.
const NOWHERE: u64 = u64::MAX;

/// Open operations; each has a slot `R` of the driver. The places are used in turn.
pub struct Plug<R> {
    limits: MergeLimits,
    /// Where the next request of each begins, or [`NOWHERE`].
    ends: [u64; PLACES],
    places: [Place<R>; PLACES],
    /// The place that is opened next.
    next: usize,
    open: usize,
    /// The next request of the flow of the last one goes on where that ended.
    expects_more: bool,
    /// Where the last requests ended, in this pass or before.
    recent: [u64; RECENT],
    recent_next: usize,
    /// Requests that are looked at more closely.
    patience: u32,
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
        let limits = limits.or_off();
        let place = || Place {
            merge: Merge::new(Op::NOP, limits),
            slot: None,
            first: Pick { record: u32::MAX, class: Class::Read, cost: 0 },
            picks: Vec::with_capacity(SEGMENTS_MAX),
            segments: Vec::with_capacity(SEGMENTS_MAX),
            in_a_row: false,
        };
        Self {
            limits,
            ends: [NOWHERE; PLACES],
            places: std::array::from_fn(|_| place()),
            next: 0,
            open: 0,
            expects_more: false,
            recent: [NOWHERE; RECENT],
            recent_next: 0,
            patience: PATIENCE,
        }
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

    /// [`Self::take_oldest`] must be called before another operation is opened.
    pub fn is_full(&self) -> bool {
        self.open == PLACES
    }

    /// A request joins an open operation, if it can; returns whether. It must be a read or write of one stretch of memory.
    pub fn join(&mut self, op: &Op, pick: Pick) -> bool {
        (0..PLACES).any(|place| self.ends[place] == op.offset && self.join_at(place, op, pick))
    }

    fn join_at(&mut self, at: usize, op: &Op, pick: Pick) -> bool {
        let place = &mut self.places[at];
        let last = place.segments.last().copied().unwrap_or_else(|| segment(place.merge.op()));
        if place.first.class != pick.class || !place.merge.join(op) {
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
        place.segments.push(segment(op));
        self.ends[at] = if place.merge.has_room() { place.merge.end() } else { NOWHERE };
        true
    }

    /// Says whether the next request of the flow of the last one that was opened, or joined, goes on where that ended.
    #[inline]
    pub fn expect(&mut self, more: bool) {
        self.expects_more = more;
    }

    /// The next request is likely to join an open operation.
    #[inline]
    pub fn expects_more(&self) -> bool {
        self.open > 0 && self.expects_more
    }

    /// A request that begins at `offset` goes on where one of the last ones ended.
    #[inline]
    pub fn continues(&self, offset: u64) -> bool {
        self.recent.contains(&offset)
    }

    /// A request may be part of a stream. If not, and it is submitted, this is all it takes.
    #[inline]
    pub fn watches(&mut self, offset: u64, end: u64) -> bool {
        let watched = self.patience > 0 || self.continues(offset);
        if !watched {
            self.remember(end);
        }
        watched
    }

    /// A request that ends at `end` was looked at and is not part of a stream.
    pub fn pass_by(&mut self, end: u64) {
        self.patience = self.patience.saturating_sub(1);
        self.remember(end);
    }

    /// A request that ends at `end` was submitted.
    #[inline]
    pub fn remember(&mut self, end: u64) {
        self.recent[self.recent_next % RECENT] = end;
        self.recent_next = self.recent_next.wrapping_add(1);
    }

    /// The limits let others join this operation.
    pub fn may_open(&self, op: &Op) -> bool {
        op.length < self.limits.bytes_max
    }

    /// Opens an operation, which is that of this one request.
    pub fn open(&mut self, slot: R, op: &Op, pick: Pick) {
        debug_assert!(!self.is_full());
        let place = &mut self.places[self.next];
        place.merge = Merge::new(*op, self.limits);
        (place.slot, place.first) = (Some(slot), pick);
        self.ends[self.next] = place.merge.end();
        self.open += 1;
        self.patience = PATIENCE;
        self.next = (self.next + 1) % PLACES;
    }

    /// Hands out the operation that was opened first, of those that are open. It comes back by [`Self::close_oldest`] or
    /// [`Self::keep_oldest`].
    pub fn take_oldest(&mut self) -> Option<Place<R>> {
        if self.open == 0 {
            return None;
        }
        let at = self.oldest();
        let place = &mut self.places[at];
        let (picks, segments) = (std::mem::take(&mut place.picks), std::mem::take(&mut place.segments));
        let Place { merge, first, in_a_row, .. } = *place;
        Some(Place { merge, slot: place.slot.take(), first, picks, segments, in_a_row })
    }

    /// It was not submitted.
    pub fn keep_oldest(&mut self, place: Place<R>) {
        let at = self.oldest();
        self.places[at] = place;
    }

    /// It was submitted.
    pub fn close_oldest(&mut self, place: Place<R>) {
        self.remember(place.merge.end());
        self.keep_oldest(place);
        self.close(self.oldest());
    }

    /// Closes the operation that was opened last, and hands its requests to `each`, the last one first; returns its slot.
    pub fn undo_newest(&mut self, each: impl FnMut(Pick)) -> Option<R> {
        if self.open == 0 {
            return None;
        }
        self.next = (self.next + PLACES - 1) % PLACES;
        let place = &mut self.places[self.next];
        place.picks().iter().rev().copied().for_each(each);
        let slot = place.slot.take();
        self.close(self.next);
        slot
    }

    /// Where the operation is that was opened first.
    fn oldest(&self) -> usize {
        (self.next + PLACES - self.open) % PLACES
    }

    fn close(&mut self, at: usize) {
        self.ends[at] = NOWHERE;
        self.open -= 1;
        self.places[at].picks.clear();
        self.places[at].segments.clear();
    }
}

impl<R> Place<R> {
    /// What the driver is to do. Its memory is that of [`Self::segments`], unless that is in a row.
    pub fn op(&self) -> &Op {
        &self.merge.op
    }

    /// Its slot, which is there until it is taken.
    pub fn slot(&mut self) -> &mut Option<R> {
        &mut self.slot
    }

    /// Its requests, in the order of their data.
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
