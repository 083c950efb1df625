//! Stage 2: SQEs become requests.
//!
//! The SQEs of a queue are taken in batches. A session that was granted neither order nor cancel has requests that wait for
//! nobody: a batch of its SQEs is taken in one go. Those of others are taken one by one, or chain by chain
//! ([`super::chains`]).

use ferrio_driver::SubmitHalf;
use ferrio_shm::{
    abi::{Opcode, errno, features},
    entry::Sqe,
    ring::RingFault,
};

use super::{Submitter, waiting::TRACKED};
use crate::{
    clock::Nanos,
    journal::{Journal, Origin},
    kill_point,
    queue::{Arrival, Class},
    request::Accepted,
    session::{Checked, Rights, has_volume, writes},
    stats::Shared,
    table::Queue,
};

/// SQEs taken from one queue before the next queue has its turn.
pub(super) const TAKE_BATCH: u32 = 64;
/// Where a refused SQE is counted.
pub(super) const REFUSED: Checked = Checked { class: Class::Read, length: 0, block: 1 };

/// What others see of a request as soon as it is accepted, and not before the journal says so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    /// Its answer: an errno (positive).
    Refuse(u32, i32),
    /// What it cancels.
    Cancel(u32),
}

impl<S: SubmitHalf> Submitter<S> {
    pub(super) fn take_submissions(&mut self, now: Nanos) -> u32 {
        let queues = self.sessions.polled();
        if self.draining || queues == 0 {
            return 0;
        }
        if self.saving.is_some() {
            self.check_saving();
        }
        // Each turn begins with the next one.
        self.first = if self.first + 1 < queues { self.first + 1 } else { 0 };
        let mut taken = 0;
        let mut position = self.first;
        for _ in 0..queues {
            let slot = self.sessions.polled_at(position);
            position = if position + 1 < queues { position + 1 } else { 0 };
            match self.take_from(slot, now) {
                Ok(n) => taken += n,
                Err(fault) => self.sessions.mark_fault(slot, fault),
            }
        }
        self.fault_marked();
        taken
    }

    fn take_from(&mut self, slot: u32, now: Nanos) -> Result<u32, RingFault> {
        let (held, chain_waits) = self.sessions.held(slot);
        let records = if self.saving.is_none() && !chain_waits {
            fair_share(self.free.len(), held)
        } else {
            self.records_beside_chains(slot)
        };
        let (queue, rights) = self.sessions.queue_and_rights(slot);
        let tracked = rights.has(TRACKED);
        let available = queue.sq.available()?;
        queue.waits_for_records = available > 0 && records == 0;
        let wanted = available.min(records).min(TAKE_BATCH);
        if wanted == 0 {
            return Ok(0);
        }
        queue.busy_at = now;
        let mut taken = 0;
        let mut outcome = Ok(());
        while taken < wanted {
            let step = if tracked {
                self.admit_tracked(slot, now, records - taken)
            } else {
                self.admit_batch(slot, now, wanted - taken)
            };
            match step {
                Ok(0) => {
                    self.wait_for_records(slot, taken);
                    break;
                }
                Ok(sqes) => taken += sqes,
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        self.sessions.accepted(slot, taken);
        // The SQEs have their records: only now may the client reuse their slots.
        let (queue, _) = self.sessions.queue_and_rights(slot);
        self.journal.set_sq_head(slot, queue.sq.head());
        kill_point!("after-accept-line");
        queue.sq.publish();
        outcome.map(|()| taken)
    }

    /// Takes SQEs of a session whose requests are not tracked: as many as there are CQ entries for, and at most `wanted`, which
    /// are known to be there and to find records. Returns how many, never 0.
    fn admit_batch(&mut self, slot: u32, now: Nanos, wanted: u32) -> Result<u32, RingFault> {
        let Self { sessions, journal, shared, free, sequence, effects, scheduler, .. } = self;
        let (queue, rights) = sessions.queue_and_rights(slot);
        let entries = queue.credit.reserve_up_to(wanted)?;
        let mut intake = Intake { journal, shared, free, sequence, effects, slot, now };
        let mut accepted = [0; 3];
        for _ in 0..entries {
            let sq_index = queue.sq.head();
            let Some(sqe) = queue.sq.take() else { unreachable!("take_from() counted SQEs") };
            kill_point!("after-copy");
            let (record, checked) = intake.accept(queue, rights, sq_index, &sqe, Ok(()));
            let class = checked.unwrap_or(REFUSED).class;
            accepted[class.index()] += 1;
            match checked {
                Ok(_) => scheduler.push_new(record, &arrival(slot, class, &sqe)),
                Err(errno) => intake.refuse(queue, record, errno),
            }
        }
        for class in Class::ALL {
            if accepted[class.index()] > 0 {
                shared.count(&queue.shared, class, accepted[class.index()], |counters| &counters.accepted);
            }
        }
        self.carry_out_effects(slot);
        Ok(entries)
    }

    /// Takes the next SQE of a session whose requests are tracked, or the chain that it begins. Returns how many SQEs were
    /// taken; 0: there are not enough records for the chain.
    fn admit_tracked(&mut self, slot: u32, now: Nanos, records: u32) -> Result<u32, RingFault> {
        let (queue, rights) = self.sessions.queue_and_rights(slot);
        let Some(sqe) = queue.sq.peek(0) else { unreachable!("take_from() counted SQEs") };
        kill_point!("after-copy");
        if rights.has(features::ORDER) {
            self.admit_in_order(slot, &sqe, now, records)
        } else {
            self.admit_copy(slot, &sqe, now, Ok(None))
        }
    }

    /// Takes the next SQE, of which `sqe` is the copy. `chain` as in [`Self::accept_copy`].
    pub(super) fn admit_copy(
        &mut self,
        slot: u32,
        sqe: &Sqe,
        now: Nanos,
        chain: Result<Option<u32>, i32>,
    ) -> Result<u32, RingFault> {
        self.sessions.queue_and_rights(slot).0.credit.reserve()?;
        let _ = self.accept_copy(slot, sqe, now, chain);
        self.carry_out_effects(slot);
        Ok(1)
    }

    /// Makes a request of the next SQE, which is tracked and has its CQ entry. `chain` is the record of its predecessor in its
    /// chain, or the errno (positive) that its chain has for it. Returns its record; `Err` if it was refused.
    pub(super) fn accept_copy(
        &mut self,
        slot: u32,
        sqe: &Sqe,
        now: Nanos,
        chain: Result<Option<u32>, i32>,
    ) -> Result<u32, i32> {
        let Self { sessions, journal, shared, free, sequence, effects, .. } = self;
        let (queue, rights) = sessions.queue_and_rights(slot);
        let sq_index = queue.sq.head();
        queue.sq.skip(1);
        let mut intake = Intake { journal, shared, free, sequence, effects, slot, now };
        let (record, checked) = intake.accept(queue, rights, sq_index, sqe, chain.map(|_| ()));
        let class = checked.unwrap_or(REFUSED).class;
        shared.count(&queue.shared, class, 1, |counters| &counters.accepted);
        if let Err(errno) = checked {
            intake.refuse(queue, record, errno);
            return Err(errno);
        }
        self.track(record, sqe, chain.unwrap_or(None), now);
        Ok(record)
    }

    /// An SQE, a batch of them or a whole chain has its records: lets what follows from that happen.
    #[inline]
    pub(super) fn carry_out_effects(&mut self, slot: u32) {
        if !self.effects.is_empty() {
            self.carry_out(slot);
        }
    }

    #[inline(never)] // out of the way of requests that wait for nobody
    fn carry_out(&mut self, slot: u32) {
        // Accepted before anyone can see it: a daemon after this one must not take these SQEs from the ring again.
        self.journal.set_sq_head(slot, self.sessions.queue(slot).sq.head());
        kill_point!("after-accept-line");
        for place in 0..self.effects.len() {
            match self.effects[place] {
                Effect::Refuse(record, errno) => self.answer(record, -errno),
                Effect::Cancel(record) => {
                    self.cancel(record);
                    self.start_ready();
                }
            }
        }
        self.effects.clear();
    }
}

/// What every SQE that is taken goes through.
struct Intake<'a> {
    journal: &'a Journal,
    shared: &'a Shared,
    free: &'a mut Vec<u32>,
    sequence: &'a mut u64,
    effects: &'a mut Vec<Effect>,
    slot: u32,
    now: Nanos,
}

impl Intake<'_> {
    /// Makes a request of an SQE that has its CQ entry, unless its chain, or its check, has an errno (positive) for it.
    #[inline(always)] // for a session without order, `chain` is a constant
    fn accept(
        &mut self,
        queue: &Queue,
        rights: &Rights,
        sq_index: u32,
        sqe: &Sqe,
        chain: Result<(), i32>,
    ) -> (u32, Result<Checked, i32>) {
        let Some(record) = self.free.pop() else { unreachable!("take_from() counted records") };
        *self.sequence += 1;
        let origin =
            Origin { session: queue.session_id, cell: self.slot, sq_index, sequence: *self.sequence };
        kill_point!("before-record");
        self.journal.accept(record, sqe, &origin);
        kill_point!("after-record");
        let checked = chain.and_then(|()| rights.check(sqe));
        let timeout_us = if checked.is_ok() { sqe.timeout_us } else { 0 };
        let accepted = Accepted::new(self.slot, sqe, checked.unwrap_or(REFUSED), self.now, timeout_us);
        self.shared.requests[record as usize].accept(&accepted);
        (record, checked)
    }

    #[cold]
    fn refuse(&mut self, queue: &Queue, record: u32, errno: i32) {
        if errno == errno::ECANCELED {
            self.shared.waits.broken.add(1);
            queue.shared.waits.broken.add(1);
        } else {
            self.shared.refused.add(1);
        }
        // Before the acceptance line: a daemon after this one cannot see all that it was refused for.
        self.journal.decide(record, -errno);
        // Settled as one that others may be linked to: see Request::breaks_chain().
        self.shared.requests[record as usize].track(false);
        self.effects.push(Effect::Refuse(record, errno));
    }
}

/// How a request that passed its checks is scheduled.
#[inline]
pub(super) fn arrival(queue: u32, class: Class, sqe: &Sqe) -> Arrival {
    let (read, write) = (sqe.op == Opcode::Read as u8, sqe.op == Opcode::Write as u8);
    if read || write {
        let bytes = sqe.length as u32; // at most DATA_BYTES_MAX, as was checked
        return Arrival { queue, volume: Some(sqe.volume), class, writes: write, bytes, limited: true };
    }
    arrival_of_others(queue, class, sqe)
}

#[inline(never)]
fn arrival_of_others(queue: u32, class: Class, sqe: &Sqe) -> Arrival {
    let Ok(op) = Opcode::try_from(sqe.op) else { unreachable!("checked opcode {}", sqe.op) };
    let moves_data = matches!(op, Opcode::Readv | Opcode::Writev | Opcode::CompareAndWrite);
    Arrival {
        queue,
        volume: has_volume(op).then_some(sqe.volume),
        class,
        writes: writes(op) || op == Opcode::Flush,
        bytes: if moves_data { sqe.length as u32 } else { 0 },
        limited: moves_data || writes(op),
    }
}

/// Records that a session with `held` of them may take while `free` are free: as long as it holds fewer than are free.
///
/// So one session alone has half of all records, `n` of them that want all have `1 / (n + 1)` each, and the rest stays for
/// who comes next. When none is left, those that come back go to the sessions that hold none.
pub(super) fn fair_share(free: usize, held: u32) -> u32 {
    u32::try_from(free).unwrap_or(u32::MAX).saturating_sub(held).div_ceil(2)
}
