//! How chains are taken: whole, with an entry for each answer and a record for each request, or not at all.
//!
//! A chain can need more records than its session's share. Then it waits, and so that it does not wait for ever, its queue
//! *saves*: the others leave it as many records as it needs. Two bounds keep that from being of use to a greedy client. A
//! queue saves only if its session would hold no more than half of all records, which is what one alone can have. And who
//! holds none may always have one, so that nobody is stopped by somebody else's chain.

use ferrio_driver::SubmitHalf;
use ferrio_shm::{
    abi::{errno, limits, sqe_flags},
    entry::Sqe,
    ring::RingFault,
};

use super::{Submitter, take::fair_share};
use crate::clock::Nanos;

/// A chain that records are saved for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saving {
    slot: u32,
    records: u32,
}

impl<S: SubmitHalf> Submitter<S> {
    /// Records that a queue may take now, while a chain waits for some.
    pub(super) fn records_beside_chains(&self, slot: u32) -> u32 {
        let free = self.free.len();
        let (held, _) = self.sessions.held(slot);
        let fair = fair_share(free, held);
        if self.sessions.yields_to_chain(slot) {
            return 0;
        }
        match self.saving {
            None => fair,
            Some(saving) if saving.slot == slot => {
                if free < saving.records as usize {
                    0
                } else {
                    fair.max(saving.records)
                }
            }
            Some(saving) => {
                let left = free.saturating_sub(saving.records as usize);
                let least = u32::from(held == 0 && free > 0);
                fair.min(u32::try_from(left).unwrap_or(u32::MAX)).max(least)
            }
        }
    }

    /// Takes the next SQE of a queue whose session was granted order, of which `sqe` is the copy, or the chain that it begins.
    /// At most `records` are taken. Returns how many SQEs were; 0: it is a chain, and there are not enough records for it.
    pub(super) fn admit_in_order(
        &mut self,
        slot: u32,
        sqe: &Sqe,
        now: Nanos,
        records: u32,
    ) -> Result<u32, RingFault> {
        let (queue, _) = self.sessions.queue_and_rights(slot);
        let linked = sqe.flags & sqe_flags::LINK != 0;
        if queue.refuses_chain {
            queue.refuses_chain = linked;
            if linked {
                self.journal.refuse_chain(slot, queue.sq.head().wrapping_add(1));
            }
            return self.admit_copy(slot, sqe, now, Err(errno::EINVAL));
        }
        if !linked {
            return self.admit_copy(slot, sqe, now, Ok(None));
        }
        let mut chain = std::mem::take(&mut self.chain);
        let taken = self.admit_chain(slot, now, records, *sqe, &mut chain);
        self.chain = chain;
        taken
    }

    fn admit_chain(
        &mut self,
        slot: u32,
        now: Nanos,
        records: u32,
        first: Sqe,
        chain: &mut Vec<Sqe>,
    ) -> Result<u32, RingFault> {
        let chain_max = limits::CHAIN_MAX.min(self.half_of_records()) as usize;
        let (queue, _) = self.sessions.queue_and_rights(slot);
        chain.clear();
        chain.push(first);
        while chain.last().is_some_and(|sqe| sqe.flags & sqe_flags::LINK != 0) {
            match queue.sq.peek(chain.len() as u32) {
                Some(next) if chain.len() < chain_max => chain.push(next),
                _ => {
                    // Too long, or not visible at once.
                    queue.refuses_chain = true;
                    self.journal.refuse_chain(slot, queue.sq.head().wrapping_add(1));
                    return self.admit_copy(slot, &first, now, Err(errno::EINVAL));
                }
            }
        }
        let length = chain.len() as u32;
        if length > records {
            return Ok(0);
        }
        queue.credit.reserve_all(length)?;
        let mut link = Ok(None);
        for sqe in &*chain {
            let record = self.accept_copy(slot, sqe, now, link);
            link = record.map(Some).map_err(|_| errno::ECANCELED);
        }
        self.carry_out_effects(slot);
        Ok(length)
    }

    /// A queue took `taken` SQEs in this turn and now has a chain for which there are not enough records.
    pub(super) fn wait_for_records(&mut self, slot: u32, taken: u32) {
        self.sessions.wait_for_chain(slot);
        // Who has just taken some lets others save first.
        if self.saving.is_none() && taken == 0 {
            let records = self.chain.len() as u32;
            if self.sessions.held(slot).0 + records <= self.half_of_records() {
                self.saving = Some(Saving { slot, records });
            }
        }
    }

    /// Forgets about saving if its queue no longer waits: it took its chain, or has ended.
    pub(super) fn check_saving(&mut self) {
        if self.saving.is_some_and(|saving| !self.sessions.waits_for_records(saving.slot)) {
            self.saving = None;
        }
    }

    fn half_of_records(&self) -> u32 {
        (self.shared.requests.len() / 2) as u32
    }
}
