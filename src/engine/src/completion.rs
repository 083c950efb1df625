//! Stages 8 to 10: reap, finish short transfers, answer.
//!
//! One batch is: reap; for each completion either send the rest of a short transfer back to the Submitter, or write result
//! and CQE, of each part if it is that of several requests; then publish each touched CQ once and wake its client at most once; then free the records. A refused SQE comes
//! here as a `Post` and is answered on the same path.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Acquire, Ordering::Release},
    mpsc,
};

use ferrio_driver::{Completion, ReapHalf, Tag};
use ferrio_shm::{
    abi::{cqe_flags, errno},
    doorbell::DoorbellTx,
    entry::Cqe,
    mapping::MappedQueue,
    ring::{CqProducer, RingFault},
};

use crate::{
    bell::Bell,
    clock::Nanos,
    journal::Journal,
    kill_point,
    merge::{Outcome, outcome},
    request::Request,
    stats::{QueueShared, Shared},
};

/// Completions handled in one batch.
const BATCH: usize = 256;

const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();

/// EINTR or EAGAIN without progress, before it is reported.
const RETRIES_MAX: u32 = 64;

/// An answer that needs no driver: a refused SQE. Submitter -> reaper.
pub(crate) struct Post {
    pub(crate) record: u32,
    pub(crate) result: i32,
}

/// What the Submitter gets back. Reaper -> Submitter.
#[derive(Clone, Copy)]
pub(crate) enum Return {
    /// Answered; the record is free, and so is the slot, if it had one of its own.
    Finished { record: u32, tag: Option<Tag> },
    /// The rest of the request, or all of it by itself, is to be issued; the slot is free, if it had one of its own.
    Again { record: u32, tag: Option<Tag> },
    /// The slot is free; a request that the Submitter takes through its steps has this result of one.
    Step { record: u32, tag: Tag, result: i32 },
    /// The client broke the CQ ring.
    Faulted { queue: u32, fault: RingFault },
}

/// The client's end of a queue.
pub(crate) struct CqSide {
    pub(crate) cq: CqProducer<MappedQueue>,
    pub(crate) doorbell: DoorbellTx,
    pub(crate) shared: Arc<QueueShared>,
    /// In `touched` of this batch.
    pub(crate) touched: bool,
    pub(crate) faulted: bool,
}

/// Queues come and go. Submitter -> reaper, rare.
pub(crate) enum CqCommand {
    /// A queue was opened.
    Open(u32, Box<CqSide>),
    /// Nothing of these queues is in flight: drop them, then call back.
    Close(Vec<u32>, Box<dyn FnOnce() + Send>),
}

/// The Submitter's end of the rings between the two.
pub struct SubmitterLink {
    pub(crate) posts: rtrb::Producer<Post>,
    pub(crate) returns: rtrb::Consumer<Return>,
    commands: mpsc::Sender<CqCommand>,
    command_waits: Arc<AtomicBool>,
}

impl SubmitterLink {
    /// Hands over a command.
    pub(crate) fn command(&self, command: CqCommand) {
        // The reaper ends after the Submitter; should it have died, its queues died with it.
        let _ = self.commands.send(command);
        self.command_waits.store(true, Release); // pairs with the swap in take_commands()
    }
}

/// The reaper's end.
pub struct ReaperLink {
    posts: rtrb::Consumer<Post>,
    returns: rtrb::Producer<Return>,
    commands: mpsc::Receiver<CqCommand>,
    command_waits: Arc<AtomicBool>,
}

/// Rings that can hold one entry per record, so that neither side ever waits for room; returns also one per queue.
pub fn link(requests_max: u32, queues_max: u32) -> (SubmitterLink, ReaperLink) {
    let (posts_in, posts_out) = rtrb::RingBuffer::new(requests_max as usize);
    let (returns_in, returns_out) = rtrb::RingBuffer::new((requests_max + queues_max) as usize);
    let (commands_in, commands_out) = mpsc::channel();
    let waits = Arc::new(AtomicBool::new(false));
    (
        SubmitterLink {
            posts: posts_in,
            returns: returns_out,
            commands: commands_in,
            command_waits: Arc::clone(&waits),
        },
        ReaperLink { posts: posts_out, returns: returns_in, commands: commands_out, command_waits: waits },
    )
}

/// Reaps and answers. Owned by whichever thread reaps.
pub struct Reaper<R> {
    reap: R,
    link: ReaperLink,
    shared: Arc<Shared>,
    journal: Journal,
    queues: Vec<Option<Box<CqSide>>>,
    completions: Vec<Completion>,
    touched: Vec<u32>,
    finished: Vec<(u32, Option<Tag>)>,
    submitter: Option<Arc<Bell>>,
    stale_seen: u64,
    /// Of this turn.
    now: Nanos,
}

impl<R: ReapHalf> Reaper<R> {
    /// `submitter` is rung when the Submitter sleeps and is to see what came back; none if it is the Submitter that reaps.
    pub fn new(
        reap: R,
        link: ReaperLink,
        shared: Arc<Shared>,
        journal: Journal,
        submitter: Option<Arc<Bell>>,
    ) -> Self {
        let queues_max = journal.cells() as usize;
        // Each record is answered once in a turn, and a completion may be that of many.
        let finished = Vec::with_capacity(shared.requests.len());
        Self {
            reap,
            link,
            shared,
            journal,
            queues: std::iter::repeat_with(|| None).take(queues_max).collect(),
            completions: Vec::with_capacity(BATCH),
            touched: Vec::with_capacity(queues_max),
            finished,
            submitter,
            stale_seen: 0,
            now: 0,
        }
    }

    /// The reap half, to sleep on.
    pub fn driver(&mut self) -> &mut R {
        &mut self.reap
    }

    /// Something waits that no completion descriptor announces.
    pub fn has_posts(&self) -> bool {
        !self.link.posts.is_empty() || self.link.command_waits.load(Acquire)
    }

    /// One batch. Returns how much was done; 0 means nothing was there.
    pub fn turn(&mut self, now: Nanos) -> u32 {
        self.now = now;
        let commands = if self.link.command_waits.load(Acquire) { self.take_commands() } else { 0 };
        let mut again = false;
        self.completions.clear();
        self.reap.reap(&mut self.completions);
        for i in 0..self.completions.len() {
            kill_point!("after-reap");
            again |= self.complete(self.completions[i]);
        }
        let room = (2 * BATCH).saturating_sub(self.finished.len());
        for _ in 0..room.min(self.link.posts.slots()) {
            let Ok(post) = self.link.posts.pop() else { break };
            self.answer(post.record, post.result, None);
        }
        let done = self.finished.len() + self.completions.len();
        if done > 0 {
            let faulted = self.publish();
            self.give_back();
            if let Some(submitter) = &self.submitter {
                submitter.ring(again || faulted);
            }
        }
        self.count_stale();
        commands + u32::try_from(done).unwrap_or(u32::MAX)
    }

    #[cold]
    fn take_commands(&mut self) -> u32 {
        self.link.command_waits.swap(false, Acquire); // pairs with the store in SubmitterLink::command()
        let mut taken = 0;
        while let Ok(command) = self.link.commands.try_recv() {
            taken += 1;
            match command {
                CqCommand::Open(queue, side) => self.queues[queue as usize] = Some(side),
                CqCommand::Close(queues, done) => {
                    queues.into_iter().for_each(|queue| self.queues[queue as usize] = None);
                    done();
                }
            }
        }
        taken
    }

    /// One completion of the driver. True if the rest goes back to the Submitter.
    fn complete(&mut self, completion: Completion) -> bool {
        let record = completion.user;
        let request = &self.shared.requests[record as usize];
        if request.is_special() {
            return self.complete_special(completion);
        }
        match judge(request, completion.result) {
            Verdict::Answer(result) => {
                self.answer(record, result, Some(completion.tag));
                false
            }
            Verdict::Again => {
                self.push_return(Return::Again { record, tag: Some(completion.tag) });
                true
            }
        }
    }

    /// A step, or the operation of several requests.
    #[inline(never)] // out of the way of requests that are one operation
    fn complete_special(&mut self, completion: Completion) -> bool {
        let Completion { tag, user: record, result } = completion;
        if self.shared.requests[record as usize].is_stepwise() {
            self.push_return(Return::Step { record, tag, result });
            return true;
        }
        let bytes = self.parts_of(record).map(|part| self.shared.requests[part as usize].length()).sum();
        let whole = outcome(result, bytes) == Outcome::Whole;
        // The slot goes with the first part: before the memory of any part can be given up.
        let mut tag = Some(tag);
        let mut next = Some(record);
        while let Some(record) = next {
            let request = &self.shared.requests[record as usize];
            next = request.next_part();
            if whole {
                // At most 1 GiB, see ABI.md, "Limits".
                self.answer(record, request.length() as i32, tag.take());
            } else {
                request.part();
                self.push_return(Return::Again { record, tag: tag.take() });
            }
        }
        !whole
    }

    /// The records of an operation, from its first on.
    fn parts_of(&self, first: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(first), |part| self.shared.requests[*part as usize].next_part())
    }

    /// Result and CQ index -> `Done` -> CQE. It becomes visible in [`Self::publish`].
    fn answer(&mut self, record: u32, result: i32, tag: Option<Tag>) {
        let slot = self.shared.requests[record as usize].queue();
        if self.queues[slot as usize].is_none() {
            // The queue was opened, and its first request answered, after this turn looked for commands.
            self.take_commands();
        }
        let request = &self.shared.requests[record as usize];
        let Some(side) = self.queues[slot as usize].as_mut() else {
            unreachable!("queue {slot} was closed with request {record} in flight");
        };
        let mut flags = request.flags();
        if request.overdue(self.now) {
            flags |= cqe_flags::OVERDUE;
            side.shared.waits.overdue.add(1);
            self.shared.waits.overdue.add(1);
        }
        // The flags that are defined fit into a byte.
        self.journal.done(record, result, flags as u8, side.cq.tail());
        kill_point!("after-done");
        side.cq.push(&Cqe { user_data: request.user_data(), result, flags });
        kill_point!("after-cqe");
        if !side.touched {
            side.touched = true;
            self.touched.push(slot);
        }
        let class = request.class().index();
        for counters in [&side.shared.classes[class], &self.shared.classes[class]] {
            counters.reaper.completed.add(1);
            match u64::try_from(result) {
                Ok(bytes) => counters.reaper.bytes.add(bytes),
                Err(_) => counters.reaper.errors.add(1),
            }
        }
        request.answered(result);
        self.finished.push((record, tag));
    }

    /// cq_tail of each touched queue, and its doorbell if the client sleeps. True if a client broke its CQ.
    fn publish(&mut self) -> bool {
        let mut any_fault = false;
        for i in 0..self.touched.len() {
            let slot = self.touched[i];
            let Some(side) = self.queues[slot as usize].as_mut() else { continue };
            side.touched = false;
            let outcome = side.cq.publish();
            kill_point!("after-cq-tail");
            self.journal.set_cq_tail(slot, side.cq.tail());
            kill_point!("after-answer-line");
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    self.shared.client_wakes.add(1);
                    // A closed doorbell means that the client is gone; its session ends by the lease.
                    let _ = side.doorbell.ring();
                }
                Err(fault) if !side.faulted => {
                    side.faulted = true;
                    any_fault = true;
                    self.push_return(Return::Faulted { queue: slot, fault });
                }
                Err(_) => {}
            }
        }
        self.touched.clear();
        any_fault
    }

    /// Records are free only now that their CQEs are visible.
    fn give_back(&mut self) {
        for i in 0..self.finished.len() {
            let (record, tag) = self.finished[i];
            if !self.shared.requests[record as usize].breaks_chain() {
                kill_point!("before-free");
                self.journal.free(record);
                kill_point!("after-free");
            }
            self.push_return(Return::Finished { record, tag });
        }
        self.finished.clear();
    }

    fn push_return(&mut self, message: Return) {
        if self.link.returns.push(message).is_err() {
            unreachable!("the return ring has room for every record and queue");
        }
    }

    fn count_stale(&mut self) {
        let stale = self.reap.stale();
        if stale != self.stale_seen {
            tracing::error!(
                count = stale - self.stale_seen,
                "completions with a stale tag dropped: a kernel or driver bug"
            );
            self.shared.stale_completions.add(stale - self.stale_seen);
            self.stale_seen = stale;
        }
    }
}

/// What a result of the driver means for its request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is whole, or has failed.
    Answer(i32),
    /// The rest is to be issued.
    Again,
}

/// Stage 9: whole, short, or failed.
pub(crate) fn judge(request: &Request, result: i32) -> Verdict {
    if result < 0 {
        let retry = matches!(-result, EINTR | EAGAIN) && request.retry() <= RETRIES_MAX;
        return if retry { Verdict::Again } else { Verdict::Answer(result) };
    }
    let moved = result.cast_unsigned();
    let rest = request.length() - request.done();
    if u64::from(moved) == rest {
        // At most 1 GiB, see ABI.md, "Limits".
        return Verdict::Answer(request.length() as i32);
    }
    // 0 is the end of the file: the target is shorter than it was. More than asked for is a broken kernel.
    // Less than a block cannot be continued with direct I/O.
    if u64::from(moved) > rest || request.advance(moved) == 0 {
        Verdict::Answer(-errno::EIO)
    } else {
        Verdict::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{queue::Class, request::Accepted};

    fn request(length: u64) -> Request {
        let request = Request::default();
        request.accept(&Accepted {
            queue: 0,
            class: Class::Read,
            user_data: 1,
            length,
            block: 512,
            at: 0,
            timeout_us: 0,
            linked: false,
        });
        request
    }

    #[test]
    fn the_rest_of_a_short_transfer_shrinks() {
        let request = request(8192);
        assert_eq!(judge(&request, 4096), Verdict::Again);
        assert_eq!(request.done(), 4096);
        assert_eq!(judge(&request, 700), Verdict::Again);
        assert_eq!(request.done(), 4608, "progress counts in whole blocks");
        assert_eq!(judge(&request, 3584), Verdict::Answer(8192), "the client sees the whole length");
    }

    #[test]
    fn no_progress_is_an_error() {
        assert_eq!(judge(&request(4096), 0), Verdict::Answer(-errno::EIO), "end of file");
        assert_eq!(judge(&request(4096), 100), Verdict::Answer(-errno::EIO), "less than a block");
        assert_eq!(judge(&request(4096), 8192), Verdict::Answer(-errno::EIO), "more than asked for");
    }

    #[test]
    fn a_negative_result_is_never_dropped() {
        assert_eq!(judge(&request(4096), -errno::EIO), Verdict::Answer(-errno::EIO));
        let request = request(4096);
        let retries = (0..).take_while(|_| judge(&request, -EAGAIN) == Verdict::Again).count();
        assert_eq!(retries, RETRIES_MAX as usize, "EAGAIN is retried, but not for ever");
    }

    #[test]
    fn operations_without_data_answer_zero() {
        assert_eq!(judge(&request(0), 0), Verdict::Answer(0));
    }
}
