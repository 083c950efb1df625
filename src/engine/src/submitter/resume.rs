//! How a session of a daemon that is gone goes on: see [`crate::journal`] for what it left.

use std::{collections::HashMap, sync::Arc};

use ferrio_driver::SubmitHalf;
use ferrio_shm::{
    abi::{Opcode, errno, sqe_flags},
    entry::Cqe,
};

use super::{
    Submitter,
    commands::Scheduled,
    take::{REFUSED, arrival},
    waiting::TRACKED,
};
use crate::{
    clock::{self, Nanos},
    config::EngineError,
    dormant::{Place, Resumed, Waiting},
    journal::{Origin, State},
    kill_point,
    request::{Accepted, Stage},
    session::{Checked, SessionSpec},
    stats::QueueShared,
    table::{Opening, Resume},
};

impl<S: SubmitHalf> Submitter<S> {
    pub(super) fn resume_session(
        &mut self,
        spec: SessionSpec,
        shared: Vec<Arc<QueueShared>>,
    ) -> Result<Resumed, EngineError> {
        let session_id = spec.session_id;
        let places = self.places_for(&spec)?;
        let scheduled = Scheduled::of(&spec);
        kill_point!("resume-opened");
        let slots = self.sessions.open(
            &mut self.driver,
            &self.volumes,
            Opening { spec, shared, resume: Some(places) },
            &self.journal,
            &self.link,
        )?;
        kill_point!("resume-reposted");
        self.add_queues(&slots, &scheduled);
        let Some(waiting) = self.dormant.remove(session_id) else { unreachable!("places_for() found it") };
        let mut resumed = Resumed::default();
        let mut owed = Vec::new();
        for record in waiting.places.into_iter().flat_map(|place| place.records) {
            if self.is_done(record) {
                self.journal.free(record);
                self.free.push(record);
                resumed.reposted += 1;
            } else {
                owed.push((self.journal.origin(record), record));
            }
        }
        owed.sort_by_key(|(origin, _)| origin.sequence);
        self.go_on(&owed, &mut resumed);
        self.start_ready();
        let counters = &self.shared.resumed;
        counters.reposted.add(resumed.reposted);
        counters.decided.add(resumed.decided);
        counters.replayed.add(resumed.replayed);
        counters.owner_dead.add(resumed.owner_dead);
        Ok(resumed)
    }

    /// Drops a session of the daemon before. Returns how many requests it was owed.
    pub(super) fn forget_session(&mut self, session_id: u64) -> u64 {
        let Some(waiting) = self.dormant.remove(session_id) else { return 0 };
        let owed = waiting.owed();
        if waiting.unfit.is_some() {
            return owed; // It has no places.
        }
        for place in &waiting.places {
            place.records.iter().for_each(|record| self.journal.free(*record));
            self.free.extend(&place.records);
            self.journal.close_cell(place.cell);
        }
        self.sessions.forget(waiting.places.iter().map(|place| place.cell));
        owed
    }

    /// Where the queues of a spec go on, in its order.
    fn places_for(&self, spec: &SessionSpec) -> Result<Vec<Resume>, EngineError> {
        let (engine, session) = (self.sessions.name(), spec.session_id);
        let Some(waiting) = self.dormant.get(session) else {
            return Err(EngineError::NotDormant { engine: engine.to_owned(), session });
        };
        if let Some(why) = &waiting.unfit {
            return Err(EngineError::Unfit { engine: engine.to_owned(), session, why: why.clone() });
        }
        let mut queues: Vec<u32> = spec.queues.iter().map(|attach| attach.index).collect();
        queues.sort_unstable();
        if queues != waiting.queues {
            let why = format!(
                "its queues here are {queues:?}, and the journal has {:?}: what it says of one is lost",
                waiting.queues
            );
            return Err(EngineError::Unfit { engine: engine.to_owned(), session, why });
        }
        let places = spec.queues.iter().map(|attach| self.place_for(spec, waiting, attach.index));
        places.collect()
    }

    fn place_for(&self, spec: &SessionSpec, waiting: &Waiting, queue: u32) -> Result<Resume, EngineError> {
        let bad = |what| EngineError::Spec { session: spec.session_id, what };
        let place = waiting.queues.binary_search(&queue).map_err(|_| bad("queue unknown to the journal"))?;
        let Place { cell, sq_head, cq_tail, refuses_chain, ref records } = waiting.places[place];
        let layout = spec.layout.queues.get(queue as usize).ok_or(bad("queue index beyond its layout"))?;
        if sq_head.wrapping_sub(cq_tail) > layout.cq_entries {
            return Err(bad("fewer CQ entries than the journal has requests"));
        }
        let mut done: Vec<(u32, Cqe)> =
            records.iter().filter_map(|record| self.cqe_of(*record, cq_tail)).collect();
        done.sort_by_key(|(place, _)| *place);
        let cqes = done.into_iter().map(|(_, cqe)| cqe).collect();
        Ok(Resume { slot: cell, sq_head, cq_tail, refuses_chain, cqes })
    }

    /// The CQE of a `Done` record, and how far behind `cq_tail` it stands.
    fn cqe_of(&self, record: u32, cq_tail: u32) -> Option<(u32, Cqe)> {
        let standing = self.journal.standing(record)?;
        let place = self.journal.cq_index(record)?.wrapping_sub(cq_tail);
        let user_data = self.journal.sqe(record).user_data;
        let cqe = Cqe { user_data, result: standing.result, flags: standing.flags.into() };
        (standing.state == State::Done).then_some((place, cqe))
    }

    fn is_done(&self, record: u32) -> bool {
        self.journal.standing(record).is_some_and(|standing| standing.state == State::Done)
    }

    /// Answers or replays what is owed, in the order in which it was accepted.
    fn go_on(&mut self, owed: &[(Origin, u32)], resumed: &mut Resumed) {
        let now = clock::now();
        // By queue: where the SQE stands that goes on a chain, and what the one before it has for it.
        let mut chains: HashMap<u32, (u32, Result<u32, i32>)> = HashMap::new();
        for (origin, record) in owed {
            let before = chains.remove(&origin.cell).filter(|(next, _)| *next == origin.sq_index);
            let chain = before.map(|(_, chain)| chain).transpose();
            let decided = self.journal.standing(*record).filter(|standing| standing.state == State::Decided);
            if let Some(standing) = decided {
                let count = if standing.result == -errno::EOWNERDEAD {
                    &mut resumed.owner_dead
                } else {
                    &mut resumed.decided
                };
                *count += 1;
                self.enter(*record, origin.cell, REFUSED, now);
                self.shared.requests[*record as usize].track(false); // as a refused one
                self.answer(*record, standing.result);
                continue;
            }
            let sqe = self.journal.sqe(*record);
            let again = can_be_replayed(sqe.op);
            *if again { &mut resumed.replayed } else { &mut resumed.owner_dead } += 1;
            let outcome = self.replay(*record, origin.cell, again, chain, now);
            if sqe.flags & sqe_flags::LINK != 0 {
                chains.insert(origin.cell, (origin.sq_index.wrapping_add(1), outcome));
            }
            kill_point!("resume-replayed");
        }
    }

    /// Sends a request that was accepted on its way again. `chain` is as in [`Self::accept`]. Returns what the next one of its chain
    /// is told.
    fn replay(
        &mut self,
        record: u32,
        slot: u32,
        again: bool,
        chain: Result<Option<u32>, i32>,
        now: Nanos,
    ) -> Result<u32, i32> {
        let sqe = self.journal.sqe(record);
        let rights = self.sessions.rights(slot);
        let tracked = rights.has(TRACKED);
        let checked = chain.and_then(|_| rights.check(&sqe));
        self.enter(record, slot, checked.unwrap_or(REFUSED), now);
        let request = &self.shared.requests[record as usize];
        if let Err(errno) = checked {
            request.track(false);
            self.answer(record, -errno);
            return Err(errno::ECANCELED);
        }
        request.replay(again);
        if tracked {
            self.track(record, &sqe, chain.unwrap_or(None), now);
        } else {
            self.scheduler.push_new(record, &arrival(slot, request.class(), &sqe));
        }
        // The daemon before may have issued it: it cannot be taken back.
        self.count_issue(record);
        self.shared.requests[record as usize].set_stage(Stage::Queued);
        self.carry_out_effects(slot);
        Ok(record)
    }

    /// A record of the daemon before is a request of this one. It has no timeout any more.
    fn enter(&mut self, record: u32, slot: u32, checked: Checked, now: Nanos) {
        let accepted = Accepted::new(slot, &self.journal.sqe(record), checked, now, 0);
        self.shared.requests[record as usize].accept(&accepted);
        self.count_by_class(record, |counters| &counters.accepted);
        self.sessions.accepted(slot, 1);
    }
}

/// Carrying it out once more changes nothing.
pub(super) fn can_be_replayed(op: u8) -> bool {
    use Opcode::{Cancel, CompareAndWrite, Discard, Flush, Nop, Read, Readv, Write, WriteZeroes, Writev};
    match Opcode::try_from(op) {
        Ok(Nop | Read | Write | Readv | Writev | Flush | Discard | WriteZeroes) => true,
        Ok(CompareAndWrite | Cancel) => false,
        Err(_) => true, // It is refused again.
    }
}
