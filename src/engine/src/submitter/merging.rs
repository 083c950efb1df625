//! Stage 5: what a pass has joined goes to the driver.
//!
//! The requests of an operation are a chain of records ([`crate::request::Request::join`]), from the one whose slot it has.
//! The reaper answers them all, or sends each back to be issued by itself; from then on nothing joins it.

use ferrio_driver::{Op, Reserved, SubmitHalf};

use super::{Submitter, steps::Step};
use crate::{
    merge::{plug::Place, with_memory},
    queue::Pick,
};

impl<S: SubmitHalf> Submitter<S> {
    /// The request joins an open operation, if it can; returns whether. What comes a second time does so because it was
    /// short, or failed, perhaps together with others: nothing joins it.
    #[inline(never)] // out of the way of requests that are not part of a stream
    pub(super) fn join_open(&mut self, op: &Op, pick: Pick) -> bool {
        let joined = !self.shared.requests[pick.record as usize].was_issued() && self.plug.join(op, pick);
        if joined {
            self.plug.expect(self.goes_on(pick.record, op));
        }
        joined
    }

    /// Keeps the operation of a request open, if others are likely to join it; else submits it. `Err`: the driver takes
    /// nothing more.
    #[inline(never)]
    pub(super) fn submit_of_a_stream(
        &mut self,
        slot: Reserved,
        pick: Pick,
        op: &Op,
        submitted: &mut u32,
    ) -> Result<(), Reserved> {
        let goes_on = self.goes_on(pick.record, op);
        let opens = (goes_on || self.plug.continues(op.offset))
            && self.plug.may_open(op)
            && !self.shared.requests[pick.record as usize].was_issued();
        if !opens {
            self.plug.pass_by(op.end());
            return self.submit_singly(slot, pick.record, op);
        }
        if self.plug.is_full() && !self.unplug(submitted) {
            return Err(slot);
        }
        self.plug.open(slot, op, pick);
        self.plug.expect(goes_on);
        Ok(())
    }

    /// The next request of its flow begins where this one ends.
    fn goes_on(&self, record: u32, op: &Op) -> bool {
        self.scheduler.next_of_flow(record).is_some_and(|next| self.journal.offset(next) == op.end())
    }

    /// Submits the oldest open operation. False: the driver takes nothing more, and nothing is open any more. What was put
    /// back is taken off `submitted`.
    #[inline(never)]
    pub(super) fn unplug(&mut self, submitted: &mut u32) -> bool {
        let Some(mut place) = self.plug.take_oldest() else { return true };
        let Some(slot) = place.slot().take() else { unreachable!("an open operation has a slot") };
        let taken = if place.segments().is_empty() {
            self.submit_singly(slot, place.picks()[0].record, place.op())
        } else {
            self.submit_joined(slot, &place, submitted)
        };
        match taken {
            Ok(()) => {
                self.plug.close_oldest(place);
                true
            }
            Err(slot) => {
                *place.slot() = Some(slot);
                self.plug.keep_oldest(place);
                self.put_all_back(submitted);
                false
            }
        }
    }

    fn submit_singly(&mut self, slot: Reserved, record: u32, op: &Op) -> Result<(), Reserved> {
        if self.submit(slot, record, Step::Transfer, op)? {
            self.count_first_issue(record);
        }
        Ok(())
    }

    fn submit_joined(
        &mut self,
        slot: Reserved,
        place: &Place<Reserved>,
        submitted: &mut u32,
    ) -> Result<(), Reserved> {
        let (picks, op) = (place.picks(), place.op());
        // Before the driver has it: the reaper may look at once.
        for (place, pick) in picks.iter().enumerate() {
            let request = &self.shared.requests[pick.record as usize];
            request.issue();
            request.join(picks.get(place + 1).map(|next| next.record));
        }
        let first = picks[0].record;
        let taken = if place.is_in_a_row() {
            self.submit_plain(slot, first, op)
        } else {
            self.submit_segments(slot, first, op, place.segments())
        };
        let Err(slot) = taken else {
            self.count_joined(place);
            return Ok(());
        };
        for pick in picks {
            self.shared.requests[pick.record as usize].take_back(true);
        }
        // The driver may have as many vectored operations as it can: the first goes by itself, so that it holds up nobody.
        self.submit_singly(slot, first, &with_memory(op, place.segments()[0]))?;
        for pick in picks[1..].iter().rev() {
            self.scheduler.taken_back(*pick);
            *submitted -= 1;
        }
        Ok(())
    }

    fn count_joined(&mut self, place: &Place<Reserved>) {
        for (n, pick) in place.picks().iter().enumerate() {
            self.count_first_issue(pick.record);
            if n > 0 {
                self.count_by_class(pick.record, |counters| &counters.merged);
            }
        }
    }

    /// The driver takes nothing more: what is open waits in its flows again, in the order in which it was there.
    #[cold]
    fn put_all_back(&mut self, submitted: &mut u32) {
        let Self { plug, scheduler, .. } = self;
        loop {
            let mut first = None;
            let slot = plug.undo_newest(|pick| {
                first = Some(pick.record);
                scheduler.taken_back(pick);
                *submitted -= 1;
            });
            let (Some(slot), Some(first)) = (slot, first) else { return };
            self.shares.give_back(first);
            self.driver.cancel_reserved(slot);
        }
    }
}
