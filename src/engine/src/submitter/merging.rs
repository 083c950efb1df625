//! Stage 5: what a pass has joined goes to the driver.
//!
//! The requests of an operation are a chain of records ([`crate::request::Request::join`]), from the one whose slot it has.
//! The reaper answers them all, or sends each back to be issued by itself; from then on nothing joins it.

use ferrio_driver::{Op, Reserved, SubmitHalf};

use super::{Submitter, steps::Step};
use crate::merge::plug::{Place, Plug};

impl<S: SubmitHalf> Submitter<S> {
    /// The plug between passes.
    pub(super) fn plug_mut(&mut self) -> &mut Plug<Reserved> {
        let Some(plug) = &mut self.plug else { unreachable!("commands are not taken within a pass") };
        plug
    }

    /// Submits the oldest open operation. False: the driver takes nothing more, and nothing is open any more. What was put
    /// back is taken off `submitted`.
    #[inline]
    pub(super) fn unplug(&mut self, plug: &mut Plug<Reserved>, submitted: &mut u32) -> bool {
        let Some(place) = plug.oldest() else { return true };
        let Some(slot) = place.slot().take() else { unreachable!("an open operation has a slot") };
        let taken = if place.segments().is_empty() {
            self.submit_one(slot, place)
        } else {
            self.submit_joined(slot, place, submitted)
        };
        match taken {
            Ok(()) => {
                plug.close_oldest();
                true
            }
            Err(slot) => {
                *place.slot() = Some(slot);
                self.put_all_back(plug, submitted);
                false
            }
        }
    }

    #[inline]
    fn submit_one(&mut self, slot: Reserved, place: &Place<Reserved>) -> Result<(), Reserved> {
        let record = place.picks()[0].record;
        self.submit_plain(slot, record, place.op())?;
        self.count_issue(record);
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
            self.submit_segments(slot, first, place)
        };
        let Err(slot) = taken else {
            self.count_joined(place);
            return Ok(());
        };
        for pick in picks {
            self.shared.requests[pick.record as usize].take_back();
        }
        // The driver may have as many vectored operations as it can: the first goes by itself, so that it holds up nobody.
        let memory = place.segments()[0];
        let alone = Op { region: memory.region, region_offset: memory.offset, length: memory.length, ..*op };
        self.submit(slot, first, Step::Op, &alone)?;
        self.count_issue(first);
        for pick in picks[1..].iter().rev() {
            self.scheduler.taken_back(*pick);
            *submitted -= 1;
        }
        Ok(())
    }

    fn submit_segments(
        &mut self,
        slot: Reserved,
        first: u32,
        place: &Place<Reserved>,
    ) -> Result<(), Reserved> {
        let Err(slot) = self.driver.submit_vectored(slot, first, place.op(), place.segments()) else {
            return Ok(());
        };
        self.commit();
        self.driver.submit_vectored(slot, first, place.op(), place.segments()).map(|_| ())
    }

    fn count_joined(&mut self, place: &Place<Reserved>) {
        for (n, pick) in place.picks().iter().enumerate() {
            self.count_first_issue(pick.record);
            if n > 0 {
                let request = &self.shared.requests[pick.record as usize];
                let class = pick.class.index();
                for classes in [&self.shared.classes, &self.sessions.queue(request.queue()).shared.classes] {
                    classes[class].submitter.merged.add(1);
                }
            }
        }
    }

    /// The driver takes nothing more: what is open waits in its flows again, in the order in which it was there.
    #[cold]
    fn put_all_back(&mut self, plug: &mut Plug<Reserved>, submitted: &mut u32) {
        loop {
            let mut first = None;
            let slot = plug.undo_newest(|pick| {
                first = Some(pick.record);
                self.scheduler.taken_back(pick);
                *submitted -= 1;
            });
            let (Some(slot), Some(first)) = (slot, first) else { return };
            self.shares.give_back(first);
            self.driver.cancel_reserved(slot);
        }
    }
}
