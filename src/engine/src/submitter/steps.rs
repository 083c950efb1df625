//! What the driver is to do for a request, step by step.
//!
//! Most requests are one operation, and another one for the rest of a short transfer: the reaper judges those. A request
//! with different steps is stepwise: the reaper hands the result of each to [`Submitter::finish_step`], which says what
//! comes next.
//!
//! | request | steps |
//! |---|---|
//! | discard, write-zeroes | pieces of at most [`PIECE_BYTES`]; with FUA a flush |
//! | compare-and-write | take the range lock; read; compare; write |

use std::ops::Range;

use ferrio_driver::{Op, OpKind, Reserved, Segment, SubmitHalf, Tag};
use ferrio_shm::{
    abi::{Opcode, errno, sqe_flags},
    entry::Sqe,
};

use super::Submitter;
use crate::{
    completion::{Verdict, judge},
    locks::Admission,
    merge::with_memory,
    request::Stage,
    session::{GrantedVolume, Standing, has_volume},
    vectored,
    volumes::Scratch,
};

/// Longest range that is discarded or zeroed by one operation, and what its cuts are multiples of. Zeroes may have to be
/// written: a piece is what a helper thread is away for.
const PIECE_BYTES: u64 = 64 << 20;

/// What comes next for a request. The operation itself stands with the caller: handed back by value it would be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The operation: a read or write of a session whose requests may be joined.
    Transfer,
    /// The operation.
    Op,
    /// The operation, with the segments that the Submitter has gathered.
    Vectored,
    /// Nothing now: a lock keeps it back, or its volume is fenced.
    Held,
}

impl<S: SubmitHalf> Submitter<S> {
    /// The next step: all of a request, or what is left of it. Or the errno of its answer: the volume or region may have
    /// gone, or the volume have shrunk, since it was accepted.
    #[inline]
    pub(super) fn next_step(&mut self, queue: u32, record: u32, op: &mut Op) -> Result<Step, i32> {
        let sqe = self.journal.transfer(record);
        let (read, write) = (sqe.op == Opcode::Read as u8, sqe.op == Opcode::Write as u8);
        if !(read || write) {
            *op = Op::NOP;
            return self.next_step_of_others(queue, record, op);
        }
        let Self { sessions, shared, locks, .. } = self;
        let rights = sessions.rights(queue);
        let Some(volume) = rights.serving(sqe.volume) else {
            return self.wait_for_volume(queue, record, sqe.volume);
        };
        let region = rights.region(sqe.region)?;
        let (length, done) = (sqe.length, shared.requests[record as usize].done());
        let range = sqe.offset..sqe.offset + length;
        if range.end > volume.size {
            return Err(errno::ERANGE);
        }
        if write && locks.write(volume.id, record, range) == Admission::Held {
            return Ok(Step::Held);
        }
        *op = Op {
            kind: if write { OpKind::Write } else { OpKind::Read },
            file: volume.file,
            region: region.index,
            region_offset: sqe.region_offset + done,
            // At most DATA_BYTES_MAX, as was checked.
            length: (length - done) as u32,
            offset: sqe.offset + done,
            fua: sqe.flags & sqe_flags::FUA != 0,
        };
        Ok(if rights.merges { Step::Transfer } else { Step::Op })
    }

    /// The next step of what is not a plain read or write.
    #[inline(never)]
    fn next_step_of_others(&mut self, queue: u32, record: u32, op: &mut Op) -> Result<Step, i32> {
        let sqe = &self.journal.sqe(record);
        let Ok(opcode) = Opcode::try_from(sqe.op) else { unreachable!("checked opcode {}", sqe.op) };
        if !has_volume(opcode) {
            return Ok(Step::Op);
        }
        let Some(volume) = self.sessions.rights(queue).serving(sqe.volume).copied() else {
            return self.wait_for_volume(queue, record, sqe.volume);
        };
        op.file = volume.file;
        if opcode == Opcode::Flush {
            op.kind = OpKind::Flush;
            return Ok(Step::Op);
        }
        if sqe.offset + sqe.length > volume.size {
            return Err(errno::ERANGE);
        }
        op.offset = sqe.offset + self.shared.requests[record as usize].done();
        op.fua = sqe.flags & sqe_flags::FUA != 0;
        match opcode {
            Opcode::Readv | Opcode::Writev => self.next_vectored(queue, record, sqe, &volume, op),
            Opcode::CompareAndWrite => self.next_of_compare_and_write(queue, record, sqe, &volume, op),
            _ => self.next_piece(record, sqe, &volume, op),
        }
    }

    /// The volume takes no steps: it is gone, or fenced.
    #[cold]
    fn wait_for_volume(&mut self, queue: u32, record: u32, volume: u16) -> Result<Step, i32> {
        let volume = self.sessions.rights(queue).volume(volume)?;
        debug_assert_eq!(volume.standing, Standing::Fenced);
        self.fences.hold(volume.id, record);
        self.report_drained();
        Ok(Step::Held)
    }

    fn admit_write(&mut self, volume: &GrantedVolume, record: u32, range: Range<u64>, step: Step) -> Step {
        match self.locks.write(volume.id, record, range) {
            Admission::Granted => step,
            Admission::Held => Step::Held,
        }
    }

    fn next_vectored(
        &mut self,
        queue: u32,
        record: u32,
        sqe: &Sqe,
        volume: &GrantedVolume,
        op: &mut Op,
    ) -> Result<Step, i32> {
        let request = &self.shared.requests[record as usize];
        let done = request.done();
        let Self { sessions, segments, .. } = self;
        segments.clear();
        vectored::gather(sessions.rights(queue), sqe, volume, |segment| segments.push(segment))?;
        vectored::skip(segments, done);
        op.length = (sqe.length - done) as u32;
        if sqe.op == Opcode::Readv as u8 {
            op.kind = OpKind::Read;
            return Ok(Step::Vectored);
        }
        op.kind = OpKind::Write;
        Ok(self.admit_write(volume, record, sqe.offset..sqe.offset + sqe.length, Step::Vectored))
    }

    fn next_piece(
        &mut self,
        record: u32,
        sqe: &Sqe,
        volume: &GrantedVolume,
        op: &mut Op,
    ) -> Result<Step, i32> {
        let request = &self.shared.requests[record as usize];
        request.set_stepwise();
        op.fua = false;
        let piece = piece(sqe, request.done());
        if piece == 0 {
            op.kind = OpKind::Flush;
            return Ok(Step::Op);
        }
        op.kind = if sqe.op == Opcode::Discard as u8 { OpKind::Discard } else { OpKind::WriteZeroes };
        op.length = piece as u32;
        Ok(self.admit_write(volume, record, sqe.offset..sqe.offset + sqe.length, Step::Op))
    }

    fn next_of_compare_and_write(
        &mut self,
        queue: u32,
        record: u32,
        sqe: &Sqe,
        volume: &GrantedVolume,
        op: &mut Op,
    ) -> Result<Step, i32> {
        let request = &self.shared.requests[record as usize];
        if request.is_owner_dead() {
            return Err(errno::EOWNERDEAD);
        }
        request.set_stepwise();
        let done = request.done();
        let range = sqe.offset..sqe.offset + sqe.length;
        if self.locks.compare_and_write(volume.id, record, range) == Admission::Held {
            return Ok(Step::Held);
        }
        let Some((place, equal)) = self.locks.place(record) else {
            unreachable!("request {record} was granted a place")
        };
        op.length = (sqe.length - done) as u32;
        if equal {
            op.kind = OpKind::Write;
            op.region = self.sessions.rights(queue).region(sqe.region)?.index;
            op.region_offset = sqe.region_offset + sqe.length + done;
        } else {
            let scratch = self.volumes.scratch(volume.id).ok_or(errno::ENODEV)?;
            (op.kind, op.fua) = (OpKind::Read, false);
            op.region = scratch.index;
            op.region_offset = Scratch::offset(place) + done;
        }
        Ok(Step::Op)
    }

    /// Hands a step to the driver; a full batch is committed once to make room. Returns whether it is the first of its
    /// request, which is to be counted.
    #[inline]
    pub(super) fn submit(
        &mut self,
        slot: Reserved,
        record: u32,
        step: Step,
        op: &Op,
    ) -> Result<bool, Reserved> {
        // Before the driver has it: the reaper may look at once.
        let first = self.shared.requests[record as usize].issue();
        let taken = match step {
            Step::Transfer | Step::Op => self.submit_plain(slot, record, op),
            Step::Vectored => self.submit_vectored(slot, record, op),
            Step::Held => unreachable!("nothing to submit"),
        };
        match taken {
            Ok(()) => Ok(first),
            Err(slot) => {
                self.shared.requests[record as usize].take_back(first);
                Err(slot)
            }
        }
    }

    #[inline]
    pub(super) fn submit_plain(&mut self, slot: Reserved, record: u32, op: &Op) -> Result<(), Reserved> {
        match self.driver.submit(slot, record, op) {
            Ok(_) => Ok(()),
            Err(slot) => {
                self.commit();
                self.driver.submit(slot, record, op).map(|_| ())
            }
        }
    }

    #[inline(never)]
    fn submit_vectored(&mut self, slot: Reserved, record: u32, op: &Op) -> Result<(), Reserved> {
        let first = with_memory(op, self.segments[0]);
        if self.segments.len() == 1 {
            return self.submit_plain(slot, record, &first);
        }
        let segments = std::mem::take(&mut self.segments);
        let taken = self.submit_segments(slot, record, op, &segments);
        self.segments = segments;
        // The driver has as many vectored requests as it can: this one goes on segment by segment, like one that is short, so
        // that it holds up nobody.
        taken.or_else(|slot| self.driver.submit(slot, record, &first).map(|_| ()))
    }

    pub(super) fn submit_segments(
        &mut self,
        slot: Reserved,
        record: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<(), Reserved> {
        let Err(slot) = self.driver.submit_vectored(slot, record, op, segments) else { return Ok(()) };
        self.commit();
        self.driver.submit_vectored(slot, record, op, segments).map(|_| ())
    }

    /// A step of a stepwise request has its result.
    pub(super) fn finish_step(&mut self, record: u32, tag: Tag, result: i32) {
        self.release(record, tag);
        let request = &self.shared.requests[record as usize];
        if self.sessions.is_closing(request.queue()) {
            self.abandon(record);
            return self.settle(record);
        }
        let sqe = self.journal.sqe(record);
        let outcome = if sqe.op == Opcode::CompareAndWrite as u8 {
            self.compare_and_write_did(record, &sqe, result)
        } else {
            self.piece_did(record, &sqe, result)
        };
        match outcome {
            None => self.requeue(record),
            Some(result) => {
                // Before the answer: who waits for the range need not wait for the client.
                self.unlock(record);
                self.answer(record, result);
            }
        }
    }

    /// The answer, or `None` if there is another step.
    fn piece_did(&self, record: u32, sqe: &Sqe, result: i32) -> Option<i32> {
        let request = &self.shared.requests[record as usize];
        if result < 0 {
            return match judge(request, result) {
                Verdict::Again => None,
                Verdict::Answer(result) => Some(result),
            };
        }
        let piece = piece(sqe, request.done());
        request.complete_piece(piece);
        let whole = request.done() == sqe.length;
        let flushed = piece == 0 || sqe.flags & sqe_flags::FUA == 0;
        (whole && flushed).then_some(0)
    }

    /// The answer, or `None` if there is another step.
    fn compare_and_write_did(&mut self, record: u32, sqe: &Sqe, result: i32) -> Option<i32> {
        let request = &self.shared.requests[record as usize];
        let Verdict::Answer(result) = judge(request, result) else { return None };
        let Some((place, equal)) = self.locks.place(record) else {
            unreachable!("request {record} has its place until it is over")
        };
        if result < 0 || equal {
            return Some(result);
        }
        match self.compare(request.queue(), sqe, place) {
            Ok(true) => {
                self.locks.set_equal(record);
                request.rewind();
                None
            }
            Ok(false) => Some(-errno::EILSEQ),
            Err(errno) => Some(-errno),
        }
    }

    /// Whether the volume holds what the client expects. Its memory is read once: a client that changes it meanwhile
    /// compares with a mixture of its own making.
    fn compare(&self, queue: u32, sqe: &Sqe, place: usize) -> Result<bool, i32> {
        let rights = self.sessions.rights(queue);
        let scratch = self.volumes.scratch(rights.volume(sqe.volume)?.id).ok_or(errno::ENODEV)?;
        let region = rights.region(sqe.region)?.memory.as_ref().ok_or(errno::EFAULT)?;
        let held = Scratch::offset(place);
        region.equals(sqe.region_offset, &scratch.memory, held, sqe.length).ok_or(errno::EFAULT)
    }

    /// The request goes on before the others of its queue.
    pub(super) fn requeue(&mut self, record: u32) {
        let request = &self.shared.requests[record as usize];
        request.set_stage(Stage::Queued);
        self.scheduler.push_front(record);
    }

    /// The request is over, and so are its locks.
    #[inline]
    pub(super) fn unlock(&mut self, record: u32) {
        if self.locks.knows(record) {
            self.forget_locks(record);
        }
    }

    #[inline(never)]
    fn forget_locks(&mut self, record: u32) {
        self.locks.forget(record);
        while let Some(ready) = self.locks.next_ready() {
            self.scheduler.push_front(ready);
        }
    }
}

/// Bytes of the next piece of a discard or write-zeroes; 0 when all are done.
fn piece(sqe: &Sqe, done: u64) -> u64 {
    let start = sqe.offset + done;
    (PIECE_BYTES - start % PIECE_BYTES).min(sqe.length - done)
}
