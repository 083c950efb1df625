//! The submit half: decides about each request, and holds those that wait.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_shm::mapping::Region;

use super::decide::{Decider, Decision, Verdict};
use super::held::{Held, Parked, Wait};
use super::plan::{FaultError, FaultPlan, FaultStatus};
use super::reap::Patches;
use crate::driver::{
    Busy, DriverConfig, DriverError, DriverInfo, FileIndex, LENGTH_MAX, Op, OpKind, Pin, RegionIndex,
    Reserved, SEGMENTS_MAX, Segment, SubmitHalf,
};
use crate::tag::Tag;
use crate::target::Target;
use crate::wait;

/// Submit half of [`Fault`](super::Fault).
#[derive(Debug)]
pub struct FaultSubmit<S: SubmitHalf> {
    inner: S,
    /// Files that are registered.
    files: Vec<Option<FaultyFile>>,
    held: Held,
    patches: Arc<Patches>,
    /// What is held and has a smaller sequence was committed.
    committed: u64,
    /// Segments of a request that is cut.
    scratch: Vec<Segment>,
    drain_limit: Duration,
}

#[derive(Debug)]
struct FaultyFile {
    /// Parts of its requests are multiples of this, so that direct I/O can do them.
    unit: u32,
    decider: Option<Decider>,
}

impl<S: SubmitHalf> FaultSubmit<S> {
    pub(super) fn new(inner: S, patches: Arc<Patches>, config: &DriverConfig) -> FaultSubmit<S> {
        FaultSubmit {
            inner,
            files: (0..config.files_max).map(|_| None).collect(),
            held: Held::new(config.depth, config.files_max, config.regions_max),
            patches,
            committed: 0,
            scratch: Vec::with_capacity(SEGMENTS_MAX),
            drain_limit: config.drain_limit,
        }
    }

    fn file(&self, file: FileIndex) -> Option<&FaultyFile> {
        self.files.get(file.0 as usize)?.as_ref()
    }

    /// What `op` meets, if its file has a plan. What is too long is refused within.
    fn decide(&self, op: &Op) -> Option<Decision> {
        let file = self.file(op.file).filter(|_| op.length <= LENGTH_MAX)?;
        file.decider.as_ref()?.decide(op, file.unit)
    }

    fn count(&mut self, op: &Op, decision: Option<&Decision>) {
        let file = self.files.get_mut(op.file.0 as usize).and_then(Option::as_mut);
        if let Some(decider) = file.and_then(|file| file.decider.as_mut()) {
            decider.count(op, decision);
        }
    }

    /// Submits to the driver within; its answer becomes `patch` if that is not 0.
    fn pass(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: Option<&[Segment]>,
        patch: i32,
    ) -> Result<Tag, Reserved> {
        self.patches.set(slot.tag(), patch);
        match segments {
            Some(segments) => self.inner.submit_vectored(slot, user, op, segments),
            None => self.inner.submit(slot, user, op),
        }
    }

    /// Decides about a request, and does so.
    fn take(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: Option<&[Segment]>,
    ) -> Result<Tag, Reserved> {
        let decision = self.decide(op);
        let submitted = match &decision {
            Some(decision) => self.carry_out(slot, user, op, segments, decision),
            None => self.pass(slot, user, op, segments, 0),
        };
        if submitted.is_ok() {
            self.count(op, decision.as_ref());
        }
        submitted
    }

    fn carry_out(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: Option<&[Segment]>,
        decision: &Decision,
    ) -> Result<Tag, Reserved> {
        let wait = match decision.verdict {
            Verdict::Fail { errno } => {
                return self.pass(slot, user, &Op { kind: OpKind::Nop, ..*op }, None, -errno);
            }
            Verdict::Part { ref bytes, errno } => {
                return self.pass_part(slot, user, op, segments, bytes, -errno);
            }
            Verdict::Delay(delay) => Wait::Until(Instant::now() + delay),
            Verdict::Stuck => Wait::Ever,
            Verdict::Reorder { window, key } => Wait::Others { rule: decision.rule, window, key },
        };
        let tag = slot.tag();
        self.held.hold(slot, user, *op, segments.map(Box::from), wait);
        Ok(tag)
    }

    /// Submits these bytes of a request alone.
    fn pass_part(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: Option<&[Segment]>,
        bytes: &Range<u32>,
        patch: i32,
    ) -> Result<Tag, Reserved> {
        // Offsets that overflow are refused within, cut or not.
        let part = Op {
            offset: op.offset.saturating_add(bytes.start.into()),
            region_offset: op.region_offset.saturating_add(bytes.start.into()),
            length: bytes.end - bytes.start,
            ..*op
        };
        let Some(segments) = segments else { return self.pass(slot, user, &part, None, patch) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let submitted = if cut(op, segments, bytes, &mut scratch) {
            self.pass(slot, user, &part, Some(&scratch), patch)
        } else {
            // It makes no sense, and is refused within.
            self.pass(slot, user, op, Some(segments), 0)
        };
        self.scratch = scratch;
        submitted
    }

    /// Submits what is due, as far as the batch takes it, and says how much. Costs a look when nothing is held.
    fn pump(&mut self) -> u32 {
        let mut submitted = 0;
        if self.held.is_empty() {
            return submitted;
        }
        self.held.ripen(Instant::now());
        while let Some(Parked { slot, user, op, segments, sequence }) = self.held.take_ready() {
            match self.pass(slot, user, &op, segments.as_deref(), 0) {
                Ok(tag) => self.held.gone(tag, &op, segments.as_deref()),
                Err(slot) => {
                    self.held.put_back(Parked { slot, user, op, segments, sequence });
                    break;
                }
            }
            submitted += 1;
        }
        submitted
    }

    /// Commits, and goes on while that makes room for what is due.
    fn commit_all(&mut self) -> io::Result<u32> {
        let mut taken = 0;
        loop {
            self.pump();
            let now = self.inner.commit()?;
            taken += now;
            if now == 0 || !self.held.has_ready() {
                return Ok(taken);
            }
        }
    }

    /// How long a sleep may be.
    fn until_due(&self, timeout: Option<Duration>) -> Option<Duration> {
        if self.held.has_ready() {
            return wait::at_most(timeout, wait::RETRY);
        }
        match self.held.next_due() {
            Some(due) => wait::at_most(timeout, due.saturating_duration_since(Instant::now())),
            None => timeout,
        }
    }

    /// Gives the kernel what was committed and is held. What was not is forgotten: the kernel never sees it, as it never
    /// sees what is only staged.
    fn drain(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.held.release_before(self.committed);
        let deadline = Instant::now() + self.drain_limit;
        while self.held.has_ready() || self.inner.staged() > 0 {
            if let Err(error) = self.commit_all() {
                tracing::error!(%error, "the kernel takes no requests: those that a fault held are lost");
                return;
            }
            if Instant::now() > deadline {
                tracing::error!(waited = ?self.drain_limit, "requests that a fault held are lost: no room for them");
                return;
            }
            if self.held.has_ready() || self.inner.staged() > 0 {
                std::thread::sleep(wait::RETRY);
            }
        }
    }
}

/// Writes the segments of these bytes of `op` to `part`. `false`: they are not segments of `op`.
fn cut(op: &Op, segments: &[Segment], bytes: &Range<u32>, part: &mut Vec<Segment>) -> bool {
    part.clear();
    let all: u64 = segments.iter().map(|segment| u64::from(segment.length)).sum();
    if segments.len() > SEGMENTS_MAX || all != u64::from(op.length) {
        return false;
    }
    let mut start = 0;
    for segment in segments {
        let end = start + segment.length;
        let (from, to) = (start.max(bytes.start), end.min(bytes.end));
        if from < to {
            let offset = segment.offset.saturating_add((from - start).into());
            part.push(Segment { region: segment.region, offset, length: to - from });
        }
        start = end;
    }
    true
}

impl<S: SubmitHalf> SubmitHalf for FaultSubmit<S> {
    fn reserve(&mut self) -> Option<Reserved> {
        // Who submits and reaps without ever sleeping may have nothing staged to commit.
        self.pump();
        self.inner.reserve()
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        self.take(slot, user, op, None)
    }

    fn submit_vectored(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<Tag, Reserved> {
        self.take(slot, user, op, Some(segments))
    }

    fn commit(&mut self) -> io::Result<u32> {
        self.committed = self.held.commit();
        self.commit_all()
    }

    fn staged(&self) -> u32 {
        self.inner.staged()
    }

    fn in_flight(&self) -> u32 {
        self.inner.in_flight()
    }

    fn release(&mut self, tag: Tag) {
        if !self.held.holds(tag) {
            self.inner.release(tag);
        }
    }

    fn cancel_reserved(&mut self, slot: Reserved) {
        self.inner.cancel_reserved(slot);
    }

    fn register_file(&mut self, target: Arc<Target>) -> Result<FileIndex, DriverError> {
        let unit = target.block_bytes().max(target.memory_align_bytes());
        let file = self.inner.register_file(target)?;
        if let Some(entry) = self.files.get_mut(file.0 as usize) {
            *entry = Some(FaultyFile { unit, decider: None });
        }
        Ok(file)
    }

    /// Those that are held are counted first: then there may be more.
    fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        match self.held.of_file(file.0) {
            0 => self.inner.unregister_file(file)?,
            in_flight => return Err(Busy { in_flight }),
        }
        if let Some(entry) = self.files.get_mut(file.0 as usize) {
            *entry = None;
        }
        Ok(())
    }

    fn register_region(&mut self, region: Region, pin: Pin) -> Result<RegionIndex, DriverError> {
        self.inner.register_region(region, pin)
    }

    fn continue_pinning(&mut self) -> bool {
        self.inner.continue_pinning()
    }

    fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy> {
        match self.held.of_region(region.0) {
            0 => self.inner.unregister_region(region),
            in_flight => Err(Busy { in_flight }),
        }
    }

    fn sleep(&mut self, doorbells: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.committed = self.held.commit();
        self.pump();
        if self.held.has_ready() {
            self.commit_all()?;
        }
        let timeout = self.until_due(timeout);
        self.inner.sleep(doorbells, timeout)?;
        // What became due meanwhile ended the sleep: it goes at once.
        if self.pump() > 0 { self.commit_all().map(drop) } else { Ok(()) }
    }

    fn info(&self) -> DriverInfo {
        let mut info = self.inner.info();
        let before = info.modes.len();
        for (index, file) in (0..).zip(&self.files) {
            let Some(decider) = file.as_ref().and_then(|file| file.decider.as_ref()) else { continue };
            let applied: u64 = decider.counters().iter().map(|counters| counters.applied).sum();
            info.modes.push(format!(
                "faults: file {index} has {} rules, {applied} applied, {} requests held",
                decider.plan().rules.len(),
                self.held.of_file(index),
            ));
        }
        if info.modes.len() == before {
            info.modes.push("faults: none set".to_owned());
        }
        info
    }

    fn set_faults(&mut self, file: FileIndex, plan: FaultPlan) -> Result<(), FaultError> {
        plan.check()?;
        let entry = self.files.get_mut(file.0 as usize).and_then(Option::as_mut);
        let entry = entry.ok_or(FaultError::NoSuchFile(file))?;
        entry.decider = (!plan.rules.is_empty()).then(|| Decider::new(plan));
        self.held.release_file(file.0);
        Ok(())
    }

    fn faults(&self, file: FileIndex) -> Option<FaultStatus> {
        let decider = self.file(file)?.decider.as_ref()?;
        Some(FaultStatus {
            plan: decider.plan().clone(),
            counters: decider.counters().to_vec(),
            held: self.held.of_file(file.0),
        })
    }
}

impl<S: SubmitHalf> Drop for FaultSubmit<S> {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_cut_where_the_bytes_are() {
        let segment = |region, offset, length| Segment { region: RegionIndex(region), offset, length };
        let segments = [segment(0, 100, 10), segment(1, 0, 0), segment(2, 200, 20), segment(3, 300, 30)];
        let op = Op {
            kind: OpKind::Write,
            file: FileIndex(0),
            region: RegionIndex(0),
            region_offset: 0,
            length: 60,
            offset: 0,
            fua: false,
        };
        let parts = |bytes| {
            let mut part = Vec::new();
            assert!(cut(&op, &segments, &bytes, &mut part));
            part
        };
        assert_eq!(parts(0..60), [segments[0], segments[2], segments[3]]);
        assert_eq!(parts(0..10), [segments[0]]);
        assert_eq!(parts(9..31), [segment(0, 109, 1), segments[2], segment(3, 300, 1)]);
        assert_eq!(parts(12..15), [segment(2, 202, 3)]);
        let wrong = Op { length: 59, ..op };
        assert!(!cut(&wrong, &segments, &(0..10), &mut Vec::new()));
    }
}
