//! The submit half.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::mapping::Region;
use libaio_sys::abi::{flags, rwf};
use libaio_sys::{Context, Iocb};

use super::Aio;
use super::setup::Shared;
use crate::bell::Bell;
use crate::driver::{
    Busy, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, Op, OpKind, Pin, RegionIndex, Reserved,
    Segment, Shape, SubmitHalf,
};
use crate::helpers::Helpers;
use crate::ledger::{Ledger, NoRoom, Route};
use crate::payload::Payload;
use crate::tag::Tag;
use crate::target::{Target, TargetKind};
use crate::wait;

const HELPER: &str = "starting a helper thread";
/// Requests of one `io_submit` at most.
const BATCH_MAX: u32 = 1024;

/// Submit half of [`Aio`].
#[derive(Debug)]
pub struct AioSubmit {
    shared: Arc<Shared>,
    /// Taken only by `drop`.
    context: Option<Context>,
    ledger: Ledger<Iocb, ()>,
    bell: Arc<Bell>,
    helpers: Helpers,
    shape: Shape,
    batch: Batch,
    submitted: u64,
}

/// What the next `io_submit` takes, in order: the iocb in its slot, and the tag it has there.
#[derive(Debug)]
struct Batch {
    iocbs: Vec<*mut Iocb>,
    tags: Vec<Tag>,
}

// SAFETY: the pointers lead into the slots of the ledger that lies beside the batch in the one struct that
// has both, and moves with it.
unsafe impl Send for Batch {}

impl Batch {
    fn is_full(&self) -> bool {
        self.tags.len() == self.tags.capacity()
    }

    fn push(&mut self, tag: Tag, iocb: &mut Iocb) {
        self.iocbs.push(iocb);
        self.tags.push(tag);
    }

    fn remove_front(&mut self, requests: usize) {
        self.iocbs.drain(..requests);
        self.tags.drain(..requests);
    }
}

impl AioSubmit {
    pub(super) fn new(
        shared: Arc<Shared>,
        context: Context,
        ledger: Ledger<Iocb, ()>,
        bell: Arc<Bell>,
        helpers: Helpers,
        config: &DriverConfig,
    ) -> AioSubmit {
        let room = config.depth.min(BATCH_MAX) as usize;
        let batch = Batch { iocbs: Vec::with_capacity(room), tags: Vec::with_capacity(room) };
        let (context, shape) = (Some(context), config.shape);
        AioSubmit { shared, context, ledger, bell, helpers, shape, batch, submitted: 0 }
    }

    /// The iocb of a request to `target`, unless a helper is to do it.
    fn iocb(&self, op: &Op, target: &Target, payload: &Payload) -> Option<Iocb> {
        let iocb = payload.iocb()?;
        let mut rw_flags = iocb.rw_flags;
        if matches!(op.kind, OpKind::Read | OpKind::Write) && target.kind() != TargetKind::Memory {
            if !target.nowait() {
                return None;
            }
            rw_flags |= rwf::NOWAIT;
        }
        let resfd = self.bell.as_fd().as_raw_fd().cast_unsigned();
        Some(Iocb { rw_flags, flags: flags::RESFD, resfd, ..iocb })
    }

    /// Stages a request that is armed.
    fn stage(&mut self, tag: Tag, op: &Op, payload: Payload) {
        let iocb = self.ledger.target(op.file).and_then(|target| self.iocb(op, target, &payload));
        match (iocb, self.ledger.own(tag)) {
            (Some(iocb), Some(own)) => {
                // SAFETY: this is the submit half, the request was armed just now and is committed later.
                unsafe { self.shared.parked.put(tag, payload) };
                *own = Iocb { data: tag.user_data(), ..iocb };
                self.batch.push(tag, own);
            }
            _ => {
                self.ledger.hand_over(tag);
                self.helpers.stage(tag, payload);
            }
        }
    }

    /// Gives the kernel the batch from `from` on.
    fn io_submit(&self, from: usize) -> io::Result<usize> {
        let Some(context) = &self.context else { return Ok(0) };
        // SAFETY: each pointer leads to an iocb in a slot of the ledger, which does not move and is freed only after
        // its completion was reaped. The ledger pins the region that the iocb names until then.
        unsafe { context.submit(&self.batch.iocbs[from..]) }
    }

    fn is_quiet(&self) -> bool {
        !self.ledger.has_injected()
            && !self.helpers.has_ready()
            && self.context.as_ref().is_some_and(Context::is_empty)
    }
}

impl SubmitHalf for AioSubmit {
    fn reserve(&mut self) -> Option<Reserved> {
        self.ledger.reserve(Iocb::default())
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        let tag = slot.tag();
        let route = self.ledger.route(op);
        if matches!(route, Route::Kernel(_)) && self.batch.is_full() {
            return Err(slot);
        }
        if self.ledger.arm(&slot, user, op, route).is_none() {
            return Err(slot);
        }
        match (route, self.ledger.target(op.file)) {
            (Route::Kernel(transfer), Some(target)) => {
                let payload = Payload::of(op, transfer, target);
                self.stage(tag, op, payload);
            }
            (Route::Kernel(_), None) => self.ledger.inject(tag, -libc::EBADF),
            (Route::Inline(result), _) => self.ledger.inject(tag, result),
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
        if self.batch.is_full() {
            return Err(slot);
        }
        match self.ledger.arm_vectored(&slot, user, op, segments) {
            Err(NoRoom) => return Err(slot),
            Ok(None) => {}
            Ok(Some(payload)) => self.stage(tag, op, payload),
        }
        Ok(tag)
    }

    fn commit(&mut self) -> io::Result<u32> {
        let (mut done, mut taken) = (0, self.helpers.commit());
        while done < self.batch.tags.len() {
            match self.io_submit(done) {
                Ok(0) => break,
                Ok(requests) => {
                    done += requests;
                    taken += requests as u32;
                    self.submitted += requests as u64;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => break,
                    // About the first request alone; the rest of the batch goes on.
                    errno => {
                        self.ledger.inject(self.batch.tags[done], -errno.unwrap_or(libc::EIO));
                        done += 1;
                    }
                },
            }
        }
        self.batch.remove_front(done);
        self.ledger.announce_injected();
        Ok(taken)
    }

    fn staged(&self) -> u32 {
        self.batch.tags.len() as u32 + self.helpers.staged()
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
        if target.as_fd().is_some() {
            let failed = |source| DriverError::Setup { backend: Aio::NAME, what: HELPER, source };
            self.helpers.start().map_err(failed)?;
        }
        self.ledger.register_file(target)
    }

    fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        self.ledger.unregister_file(file)
    }

    fn register_region(&mut self, region: Region, _: Pin) -> Result<RegionIndex, DriverError> {
        self.ledger.register_region(region, |_| ())
    }

    fn continue_pinning(&mut self) -> bool {
        false
    }

    fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy> {
        self.ledger.unregister_region(region).map(drop)
    }

    fn sleep(&mut self, doorbells: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.commit()?;
        let timeout = if self.staged() > 0 { wait::at_most(timeout, wait::RETRY) } else { timeout };
        if self.shape == Shape::Two {
            return wait::readable([doorbells], timeout).map(drop);
        }
        // The bell may still be ringing for completions reaped without sleeping: silence it, look, sleep again.
        for _ in 0..2 {
            if !self.is_quiet() {
                break;
            }
            let [_, rang] = wait::readable([doorbells, self.bell.as_fd()], timeout)?;
            if !rang {
                break;
            }
            self.bell.drain();
        }
        Ok(())
    }

    fn info(&self) -> DriverInfo {
        let (mut modes, mut degraded) = (vec!["asynchronous FDSYNC".to_owned()], Vec::new());
        match self.context.as_ref().is_some_and(Context::is_mapped) {
            true => modes.push("completion ring read in user space".to_owned()),
            false => degraded
                .push("the completion ring is of an unknown layout: reaping costs a system call".to_owned()),
        }
        let running = self.helpers.running();
        if running > 0 {
            modes.push(format!("RWF_NOWAIT, and {running} helper threads for what would block"));
        }
        for target in self.ledger.targets().filter(|target| target.as_fd().is_some()) {
            let reason = match target.direct_reason() {
                Some(reason) => reason,
                None if target.nowait() || target.kind() == TargetKind::Memory => continue,
                None => "its file system does not take RWF_NOWAIT",
            };
            degraded.push(format!(
                "{}: {reason}, so under AIO reads and writes take one of {running} helper threads each: use io_uring, a                  file system with direct I/O, or more helpers",
                target.name()
            ));
        }
        DriverInfo { backend: Aio::NAME, modes, degraded }
    }
}

#[cfg(test)]
impl AioSubmit {
    pub(super) fn pretend_to_commit(&mut self) {
        self.submitted += u64::from(self.staged());
        self.batch.remove_front(self.batch.tags.len());
    }

    pub(super) fn stage_again(&mut self) {
        self.batch.iocbs.extend_from_within(..);
        self.batch.tags.extend_from_within(..);
    }

    pub(super) fn forget_one(&mut self) {
        self.submitted -= 1;
    }
}

impl Drop for AioSubmit {
    fn drop(&mut self) {
        // Requests that are only staged were never seen by the kernel, and never will be.
        let (pinned, table) = self.ledger.take_pinned();
        let context = self.context.take();
        self.shared.leave(|legacy| {
            legacy.submit = context.map(|context| (context, pinned, table));
            legacy.submitted = self.submitted;
        });
    }
}
