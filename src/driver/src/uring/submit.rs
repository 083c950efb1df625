//! The submit half.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferrio_shm::mapping::Region;
use io_uring::{opcode, squeue, types};

use super::Uring;
use super::fixed::{Fixed, FixedTable};
use super::pinning::Pinning;
use super::ring::{Modes, Shared};
use crate::driver::{
    Busy, Driver, DriverError, DriverInfo, FileIndex, Op, OpKind, Pin, RegionIndex, Reserved, Segment, Shape,
    SubmitHalf,
};
use crate::helpers::Helpers;
use crate::ledger::{Ledger, NoRoom, RegionEntry, Route, Transfer};
use crate::payload::Payload;
use crate::tag::Tag;
use crate::target::{Method, Target};
use crate::wait;

const HELPER: &str = "starting a helper thread";

/// Tag of the doorbell poll.
pub(super) const DOORBELLS: Tag = Tag::control(1, 0);
/// Tag of the poll of the helpers' bell.
pub(super) const HELPERS: Tag = Tag::control(2, 0);

/// Submit half of [`Uring`].
#[derive(Debug)]
pub struct UringSubmit {
    shared: Arc<Shared>,
    ledger: Ledger<(), Fixed>,
    helpers: Helpers,
    fixed: FixedTable,
    pinning: Pinning,
    shape: Shape,
    modes: Modes,
    /// Requests in the submission queue that the kernel has not taken.
    staged: u32,
    /// Where in the submission queue the poll of the doorbells stands, and that of the helpers' bell.
    polls: [Option<u32>; 2],
    /// The descriptor that the doorbell poll names.
    doorbells: Option<RawFd>,
    submitted: u64,
}

impl UringSubmit {
    pub(super) fn new(
        shared: Arc<Shared>,
        ledger: Ledger<(), Fixed>,
        helpers: Helpers,
        fixed: FixedTable,
        shape: Shape,
        modes: Modes,
    ) -> UringSubmit {
        UringSubmit {
            shared,
            ledger,
            helpers,
            fixed,
            pinning: Pinning::default(),
            shape,
            modes,
            staged: 0,
            polls: [None; 2],
            doorbells: None,
            submitted: 0,
        }
    }

    /// The SQE of a request, fixed where its region is pinned.
    fn entry(&self, tag: Tag, op: &Op, transfer: Transfer) -> squeue::Entry {
        let Transfer { fd, address } = transfer;
        let fd = types::Fd(fd);
        let slot = || self.ledger.region(op.region)?.own.slot_of(op.region_offset, op.length);
        let fua = if op.fua { libc::RWF_DSYNC } else { 0 };
        let entry = match op.kind {
            OpKind::Nop | OpKind::Discard | OpKind::WriteZeroes => opcode::Nop::new().build(),
            OpKind::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            OpKind::Read => match slot() {
                Some(slot) => opcode::ReadFixed::new(fd, address, op.length, slot).offset(op.offset).build(),
                None => opcode::Read::new(fd, address, op.length).offset(op.offset).build(),
            },
            OpKind::Write => match slot() {
                Some(slot) => opcode::WriteFixed::new(fd, address, op.length, slot)
                    .offset(op.offset)
                    .rw_flags(fua)
                    .build(),
                None => opcode::Write::new(fd, address, op.length).offset(op.offset).rw_flags(fua).build(),
            },
        };
        entry.user_data(tag.user_data())
    }

    /// The table slot that holds all these pieces. None with an empty one among them: the kernel refuses that (EFAULT).
    fn slot_of_all(&self, segments: &[Segment]) -> Option<u16> {
        if !self.modes.vectored_fixed {
            return None;
        }
        let slot = |segment: &Segment| {
            self.ledger.region(segment.region)?.own.slot_of(segment.offset, segment.length)
        };
        let first = slot(segments.first()?)?;
        // No two regions share a slot.
        let inside = |segment: &Segment| segment.length > 0 && slot(segment) == Some(first);
        segments.iter().all(inside).then_some(first)
    }

    /// A helper does what this ring cannot.
    #[cold]
    fn range(&mut self, tag: Tag, op: &Op, transfer: Transfer) {
        let Some(target) = self.ledger.target(op.file) else {
            return self.ledger.inject(tag, -libc::EBADF);
        };
        let payload = Payload::of(op, transfer, target);
        match payload.sqe(None).filter(|_| self.modes.fallocate) {
            Some(entry) => self.stage(tag, &entry),
            None => {
                self.ledger.hand_over(tag);
                self.helpers.stage(tag, payload);
            }
        }
    }

    /// Puts the SQE of a request into the queue, which has room.
    fn stage(&mut self, tag: Tag, entry: &squeue::Entry) {
        let pushed = self.push(&entry.clone().user_data(tag.user_data()));
        debug_assert!(pushed, "room was found before");
        self.staged += 1;
    }

    fn is_full(&self) -> bool {
        // SAFETY: the submission queue is touched by this half alone; `&self` of a half that nobody shares.
        unsafe { self.shared.ring.submission_shared() }.is_full()
    }

    /// What this ring cannot do to `target`.
    fn needs_helpers(&self, target: &Target) -> bool {
        [OpKind::Discard, OpKind::WriteZeroes].iter().any(|&kind| match target.method(kind) {
            Method::Nothing | Method::Unsupported => false,
            Method::Fallocate(_) => !self.modes.fallocate,
            Method::DeviceDiscard | Method::Write => true,
        })
    }

    /// Puts an SQE into the queue, if there is room.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the submission queue is touched by this half alone, through `&mut self`. Memory that the entry
        // names is of a region that the ledger pins until the request was answered (none for a poll).
        unsafe { self.shared.ring.submission_shared().push(entry) }.is_ok()
    }

    /// The kernel took SQEs from the front.
    fn taken(&mut self, entries: usize) -> u32 {
        let entries = entries as u32;
        let mut requests = entries;
        for poll in &mut self.polls {
            *poll = match *poll {
                Some(place) if place < entries => {
                    requests -= 1;
                    None
                }
                Some(place) => Some(place - entries),
                None => None,
            };
        }
        self.staged -= requests;
        self.submitted += u64::from(requests);
        requests
    }

    /// Arms the doorbells in the ring, if they are not. `false`: no room.
    fn arm_doorbells(&mut self, doorbells: BorrowedFd<'_>) -> io::Result<bool> {
        let fd = doorbells.as_raw_fd();
        if self.doorbells.is_some_and(|known| known != fd) {
            let text = "the doorbells of a driver stay the same descriptor for its life";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if self.shared.doorbells_armed() {
            return Ok(true);
        }
        if !self.poll(0, fd, DOORBELLS) {
            return Ok(false);
        }
        self.doorbells = Some(fd);
        self.shared.doorbells_armed.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Arms the helpers' bell in the ring, if they owe something and it is not. `false`: no room.
    fn arm_helpers(&mut self) -> bool {
        if self.helpers.owed() == 0 || self.shared.helpers_armed.load(Ordering::Relaxed) {
            return true;
        }
        let armed = self.poll(1, self.helpers.bell().as_fd().as_raw_fd(), HELPERS);
        self.shared.helpers_armed.store(armed, Ordering::Relaxed);
        armed
    }

    /// Puts a poll into the queue. `false`: no room.
    fn poll(&mut self, which: usize, fd: RawFd, tag: Tag) -> bool {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN.cast_unsigned().into());
        let others = self.polls.iter().flatten().count() as u32;
        let pushed = self.push(&poll.build().user_data(tag.user_data()));
        if pushed {
            self.polls[which] = Some(self.staged + others);
        }
        pushed
    }

    /// Submits and sleeps in one system call. `false`: the kernel takes nothing now.
    fn wait_in_ring(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let submitter = self.shared.ring.submitter();
        let entered = match timeout {
            None => submitter.submit_and_wait(1),
            Some(timeout) => {
                let timeout = types::Timespec::from(timeout);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout))
            }
        };
        match entered {
            Ok(entries) => {
                self.taken(entries);
                Ok(true)
            }
            Err(error) if is_wake(&error) => Ok(true),
            Err(error) if is_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The kernel cannot take more now.
fn is_later(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

/// The sleep is over.
fn is_wake(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR))
}

impl SubmitHalf for UringSubmit {
    fn reserve(&mut self) -> Option<Reserved> {
        self.ledger.reserve(())
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        let tag = slot.tag();
        let route = self.ledger.route(op);
        if matches!(route, Route::Kernel(_)) && self.is_full() {
            return Err(slot);
        }
        if self.ledger.arm(&slot, user, op, route).is_none() {
            return Err(slot);
        }
        match route {
            Route::Inline(result) => self.ledger.inject(tag, result),
            Route::Kernel(transfer) if op.kind.is_range() => self.range(tag, op, transfer),
            Route::Kernel(transfer) => {
                let entry = self.entry(tag, op, transfer);
                let pushed = self.push(&entry);
                debug_assert!(pushed, "room was found above");
                self.staged += 1;
            }
        }
        Ok(tag)
    }

    fn submit_vectored(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<Tag, Reserved> {
        let tag = slot.tag();
        if self.is_full() {
            return Err(slot);
        }
        match self.ledger.arm_vectored(&slot, user, op, segments) {
            Err(NoRoom) => return Err(slot),
            Ok(None) => {}
            Ok(Some(payload)) => match payload.sqe(self.slot_of_all(segments)) {
                Some(entry) => self.stage(tag, &entry),
                None => self.ledger.inject(tag, -libc::EOPNOTSUPP),
            },
        }
        Ok(tag)
    }

    fn commit(&mut self) -> io::Result<u32> {
        self.ledger.announce_injected();
        let mut requests = self.helpers.commit();
        while self.staged > 0 {
            match self.shared.ring.submit() {
                // An older kernel stops behind a refused request, which is answered through the queue.
                Ok(entries) if entries > 0 => requests += self.taken(entries),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(requests)
    }

    fn staged(&self) -> u32 {
        self.staged + self.helpers.staged()
    }

    fn in_flight(&self) -> u32 {
        self.ledger.in_flight()
    }

    fn release(&mut self, tag: Tag) {
        self.ledger.release(tag);
    }

    fn cancel_reserved(&mut self, slot: Reserved) {
        self.ledger.cancel_reserved(slot);
    }

    fn register_file(&mut self, target: Arc<Target>) -> Result<FileIndex, DriverError> {
        if self.needs_helpers(&target) {
            let failed = |source| DriverError::Setup { backend: Uring::NAME, what: HELPER, source };
            self.helpers.start().map_err(failed)?;
        }
        self.ledger.register_file(target)
    }

    fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        self.ledger.unregister_file(file)
    }

    fn register_region(&mut self, region: Region, pin: Pin) -> Result<RegionIndex, DriverError> {
        let (fixed, ring) = (&mut self.fixed, &self.shared.ring);
        let index = self.ledger.register_region(region, |region| match pin {
            Pin::Yes => Pinning::at_once(fixed, ring, region),
            Pin::No => fixed.unpinned(),
        })?;
        if self.ledger.region(index).is_some_and(|entry| entry.own.next(&entry.region).is_some()) {
            self.pinning.later(index);
        }
        Ok(index)
    }

    fn continue_pinning(&mut self) -> bool {
        !self.pinning.is_idle() && self.pinning.step(&mut self.ledger, &mut self.fixed, &self.shared.ring)
    }

    fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy> {
        if let Some(RegionEntry { region: memory, own, .. }) = self.ledger.unregister_region(region)? {
            self.pinning.leave(region, memory, own, &mut self.fixed, &self.shared.ring);
        }
        Ok(())
    }

    fn sleep(&mut self, doorbells: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        if self.shape == Shape::Two {
            self.commit()?;
            let timeout = if self.staged > 0 { wait::at_most(timeout, wait::RETRY) } else { timeout };
            return wait::readable([doorbells], timeout).map(drop);
        }
        let owed = self.helpers.commit() > 0 || self.helpers.owed() > 0;
        if self.ledger.has_injected() || (owed && self.helpers.has_ready()) {
            return self.commit().map(drop);
        }
        if !(self.arm_doorbells(doorbells)? && self.arm_helpers()) {
            // The batch leaves no room for the polls.
            self.commit()?;
        }
        if self.arm_doorbells(doorbells)? && self.arm_helpers() && self.wait_in_ring(timeout)? {
            return Ok(());
        }
        // The kernel takes nothing: look at doorbells and ring from outside, and try again soon.
        wait::readable([doorbells, self.shared.as_fd()], wait::at_most(timeout, wait::RETRY)).map(drop)
    }

    fn info(&self) -> DriverInfo {
        let (mut modes, mut degraded) = (self.modes.in_effect.clone(), self.modes.degraded.clone());
        self.fixed.describe(self.ledger.regions(), &mut modes, &mut degraded);
        if self.helpers.running() > 0 {
            modes.push(format!("{} helper threads for what the ring cannot do", self.helpers.running()));
        }
        for target in self.ledger.targets() {
            if let Some(reason) = target.direct_reason() {
                degraded.push(format!("{}: {reason}", target.name()));
            }
        }
        DriverInfo { backend: Uring::NAME, modes, degraded }
    }
}

impl Drop for UringSubmit {
    fn drop(&mut self) {
        // Entries that are only staged were never seen by the kernel, and never will be.
        let pinned = self.ledger.take_pinned();
        self.shared.leave(|legacy| {
            legacy.pinned = Some(pinned);
            legacy.submitted = self.submitted;
        });
    }
}

#[cfg(test)]
impl UringSubmit {
    pub(super) fn set_slot_shift(&mut self, shift: u32) {
        self.fixed.set_slot_shift(shift);
    }

    pub(super) fn set_fallocate(&mut self, on: bool) {
        self.modes.fallocate = on;
    }

    pub(super) fn set_vectored_fixed(&mut self, on: bool) {
        self.modes.vectored_fixed = on;
    }

    pub(super) fn fixed_of(&self, region: RegionIndex) -> Option<&Fixed> {
        self.ledger.region(region).map(|entry| &entry.own)
    }

    pub(super) fn pinning_is_idle(&self) -> bool {
        self.pinning.is_idle()
    }

    /// Has the kernel answer a request that no slot knows.
    pub(super) fn inject_stray(&mut self, user_data: u64) {
        assert!(self.push(&opcode::Nop::new().build().user_data(user_data)));
        assert_eq!(self.shared.ring.submit().expect("submit"), 1);
    }
}
