//! What the engine knows of an accepted request beyond its journal record.
//!
//! Entries are indexed like journal records. One side at a time works on an entry: the Submitter from acceptance to submit,
//! the reaper from completion to the CQE, then the Submitter again. The hand-over goes through the driver or through the
//! rings between Submitter and reaper, which order it; so the fields need no ordering of their own. They are atomics
//! because a snapshot reads them from a third thread at any time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use ferrio_shm::{
    abi::{cqe_flags, sqe_flags},
    entry::Sqe,
};

use crate::{
    clock::{MICROSECOND, Nanos},
    queue::Class,
    session::Checked,
};

/// Where a request is. `Free -> Queued -> Issued -> Free`; back to `Queued` for the rest of a short transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// No request.
    Free = 0,
    /// In a class queue.
    Queued = 1,
    /// In the driver, or refused and on its way to the CQ.
    Issued = 2,
}

/// What is remembered of a request, in its `place`.
mod mark {
    /// It was given to the driver, or answered without.
    pub const ISSUED: u32 = 1 << 16;
    /// Order, timeouts and cancel know of it.
    pub const TRACKED: u32 = 1 << 17;
    /// It is a cancel.
    pub const CANCEL: u32 = 1 << 18;
    /// Its answer is not an error.
    pub const SUCCEEDED: u32 = 1 << 19;
    /// The Submitter takes it through its steps.
    pub const STEPWISE: u32 = 1 << 20;
    /// The next one of its queue is linked to it.
    pub const LINKED: u32 = 1 << 21;
    /// A daemon before had it, and may have issued it.
    pub const REPLAYED: u32 = 1 << 22;
    /// It went to the driver as a part of an operation with others.
    pub const JOINED: u32 = REPLAYED << 1;
    /// A daemon before had it, and it cannot be issued again.
    pub const OWNER_DEAD: u32 = 1 << 24;
}

/// A CQE has these marks as flags, in the same order.
const FLAGS: u32 = cqe_flags::REPLAYED | cqe_flags::MERGED;
const _: () = assert!(cqe_flags::REPLAYED == 1 && cqe_flags::MERGED == 2);

/// After the last part of an operation.
const NO_PART: u32 = u32::MAX;

/// One entry: a cache line.
#[derive(Default)]
#[repr(align(64))]
pub struct Request {
    accepted_at: AtomicU64,
    user_data: AtomicU64,
    /// [`mark`]s | stage << 8 | class
    place: AtomicU32,
    queue: AtomicU32,
    length: AtomicU64,
    done: AtomicU64,
    /// Logical block size of the volume; progress of a short transfer counts in whole blocks.
    block: AtomicU32,
    retries: AtomicU32,
    /// 0: none.
    timeout_us: AtomicU32,
    /// Of one that is joined: the record of the next part of its operation.
    next_part: AtomicU32,
}

/// What stage 2 fills in.
pub struct Accepted {
    /// Queue index in the engine.
    pub queue: u32,
    /// Class.
    pub class: Class,
    /// Echoed in the CQE.
    pub user_data: u64,
    /// Bytes of the volume that it is about; 0 for nop and flush.
    pub length: u64,
    /// Logical block size, bytes, >= 1.
    pub block: u32,
    /// When.
    pub at: Nanos,
    /// Time to be issued in, microseconds; 0 is unbounded.
    pub timeout_us: u32,
    /// The next one of its queue is linked to it.
    pub linked: bool,
}

impl Accepted {
    /// Of an SQE and what its check said.
    #[inline(always)] // on the way of every request
    pub fn new(queue: u32, sqe: &Sqe, checked: Checked, at: Nanos, timeout_us: u32) -> Self {
        let Checked { class, length, block } = checked;
        let linked = sqe.flags & sqe_flags::LINK != 0;
        Self { queue, class, user_data: sqe.user_data, length, block, at, timeout_us, linked }
    }
}

impl Request {
    /// Stage 2.
    pub fn accept(&self, accepted: &Accepted) {
        self.accepted_at.store(accepted.at, Relaxed);
        self.user_data.store(accepted.user_data, Relaxed);
        self.queue.store(accepted.queue, Relaxed);
        self.length.store(accepted.length, Relaxed);
        self.block.store(accepted.block, Relaxed);
        self.done.store(0, Relaxed);
        self.retries.store(0, Relaxed);
        self.timeout_us.store(accepted.timeout_us, Relaxed);
        let linked = if accepted.linked { mark::LINKED } else { 0 };
        self.place.store(linked | (Stage::Queued as u32) << 8 | accepted.class as u32, Relaxed);
    }

    /// A daemon before had it: it may have been issued. If it can be issued once more, it will be; else it is answered
    /// EOWNERDEAD.
    pub fn replay(&self, again: bool) {
        let mark = if again { mark::REPLAYED } else { mark::OWNER_DEAD };
        self.place.store(self.place.load(Relaxed) | mark, Relaxed);
    }

    /// What its CQE tells of its way: bits of [`cqe_flags`].
    pub fn flags(&self) -> u32 {
        self.place.load(Relaxed) >> mark::REPLAYED.trailing_zeros() & FLAGS
    }

    /// A daemon before may have issued it, and it cannot be issued again.
    pub fn is_owner_dead(&self) -> bool {
        self.place.load(Relaxed) & mark::OWNER_DEAD != 0
    }

    /// It was answered with an error, and others are linked to it: its record is freed by the Submitter, after theirs are
    /// decided.
    pub fn breaks_chain(&self) -> bool {
        self.place.load(Relaxed) & (mark::LINKED | mark::SUCCEEDED) == mark::LINKED
    }

    /// Moves on; the class stays.
    pub fn set_stage(&self, stage: Stage) {
        let rest = self.place.load(Relaxed) & !0xff00;
        self.place.store(rest | (stage as u32) << 8, Relaxed);
    }

    /// Goes to the driver, which has it only then: the reaper may answer it at once. True the first time.
    pub fn issue(&self) -> bool {
        let place = self.place.load(Relaxed);
        self.place.store(place & !0xff00 | mark::ISSUED | (Stage::Issued as u32) << 8, Relaxed);
        place & mark::ISSUED == 0
    }

    /// The driver did not take it after all: what [`Self::issue`], which said whether it was the first time, did is undone.
    pub fn take_back(&self, first: bool) {
        let issued = if first { mark::ISSUED | mark::JOINED } else { 0 };
        let rest = self.place.load(Relaxed) & !(issued | 0xff00);
        self.place.store(rest | (Stage::Queued as u32) << 8, Relaxed);
    }

    /// It goes to the driver as a part of an operation; `next` is the record of the part after it.
    pub fn join(&self, next: Option<u32>) {
        self.next_part.store(next.unwrap_or(NO_PART), Relaxed);
        self.place.store(self.place.load(Relaxed) | mark::JOINED, Relaxed);
    }

    /// It is to go to the driver by itself.
    pub fn part(&self) {
        self.place.store(self.place.load(Relaxed) & !mark::JOINED, Relaxed);
    }

    /// Is, or was when it was answered, a part of an operation.
    pub fn is_joined(&self) -> bool {
        self.place.load(Relaxed) & mark::JOINED != 0
    }

    /// The part after it in its operation; said of those that are joined.
    pub fn next_part(&self) -> Option<u32> {
        Some(self.next_part.load(Relaxed)).filter(|next| *next != NO_PART)
    }

    /// Was given to the driver before.
    pub fn was_issued(&self) -> bool {
        self.place.load(Relaxed) & mark::ISSUED != 0
    }

    /// Order, timeouts and cancel are to know of it.
    pub fn track(&self, is_cancel: bool) {
        let cancel = if is_cancel { mark::CANCEL } else { 0 };
        self.place.store(self.place.load(Relaxed) | mark::TRACKED | cancel, Relaxed);
    }

    /// Order, timeouts and cancel know of it.
    pub fn is_tracked(&self) -> bool {
        self.place.load(Relaxed) & mark::TRACKED != 0
    }

    /// It is a cancel; said of those that are tracked.
    pub fn is_cancel(&self) -> bool {
        self.place.load(Relaxed) & mark::CANCEL != 0
    }

    /// It has its CQE.
    pub fn answered(&self, result: i32) {
        let succeeded = if result >= 0 { mark::SUCCEEDED } else { 0 };
        let place = self.place.load(Relaxed) & !0xff00;
        self.place.store(place | succeeded | (Stage::Free as u32) << 8, Relaxed);
    }

    /// It was answered, and not with an error.
    pub fn succeeded(&self) -> bool {
        self.place.load(Relaxed) & mark::SUCCEEDED != 0
    }

    /// Takes more than one operation of the driver: the Submitter, and not the reaper, says when it is over.
    pub fn set_stepwise(&self) {
        self.place.store(self.place.load(Relaxed) | mark::STEPWISE, Relaxed);
    }

    /// See [`Self::set_stepwise`].
    pub fn is_stepwise(&self) -> bool {
        self.place.load(Relaxed) & mark::STEPWISE != 0
    }

    /// The result of the driver is not simply its own: it is stepwise or joined.
    pub fn is_special(&self) -> bool {
        self.place.load(Relaxed) & (mark::STEPWISE | mark::JOINED) != 0
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        match self.place.load(Relaxed) >> 8 & 0xff {
            0 => Stage::Free,
            1 => Stage::Queued,
            _ => Stage::Issued,
        }
    }

    /// Its class.
    pub fn class(&self) -> Class {
        match self.place.load(Relaxed) & 0xff {
            0 => Class::Prio,
            1 => Class::Read,
            _ => Class::Write,
        }
    }

    /// Its queue.
    pub fn queue(&self) -> u32 {
        self.queue.load(Relaxed)
    }

    /// When it was accepted.
    pub fn accepted_at(&self) -> Nanos {
        self.accepted_at.load(Relaxed)
    }

    /// By when it is to be issued; `None` for ever.
    pub fn deadline(&self) -> Option<Nanos> {
        match self.timeout_us.load(Relaxed) {
            0 => None,
            timeout => Some(self.accepted_at() + Nanos::from(timeout) * MICROSECOND),
        }
    }

    /// It is answered without having been issued: it cannot be overdue.
    pub fn clear_deadline(&self) {
        self.timeout_us.store(0, Relaxed);
    }

    /// Its deadline has passed.
    pub fn overdue(&self, now: Nanos) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// What its CQE echoes.
    pub fn user_data(&self) -> u64 {
        self.user_data.load(Relaxed)
    }

    /// Bytes asked for.
    pub fn length(&self) -> u64 {
        self.length.load(Relaxed)
    }

    /// Bytes moved so far: a multiple of the block size.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Counts bytes of a short transfer, rounded down to whole blocks; returns what counted.
    pub fn advance(&self, bytes: u32) -> u32 {
        let block = self.block.load(Relaxed).max(1);
        let whole = bytes - bytes % block;
        self.done.store(self.done() + u64::from(whole), Relaxed);
        whole
    }

    /// A step over this many bytes, all of them, is done.
    pub fn complete_piece(&self, bytes: u64) {
        self.done.store(self.done() + bytes, Relaxed);
        self.retries.store(0, Relaxed);
    }

    /// Begins the next pass over the same bytes.
    pub fn rewind(&self) {
        self.done.store(0, Relaxed);
        self.retries.store(0, Relaxed);
    }

    /// Counts a retry without progress; returns how many there were.
    pub fn retry(&self) -> u32 {
        let retries = self.retries.load(Relaxed) + 1;
        self.retries.store(retries, Relaxed);
        retries
    }
}

/// All entries of an engine.
pub fn table(requests_max: u32) -> Box<[Request]> {
    (0..requests_max).map(|_| Request::default()).collect()
}
