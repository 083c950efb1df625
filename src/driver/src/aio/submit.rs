//! The submit half.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::mapping::Region;
use libaio_sys::abi::{flags, opcode, rwf};
use libaio_sys::{Context, Iocb};

use super::Aio;
use super::setup::Shared;
use crate::bell::Bell;
use crate::driver::{
    Busy, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, Op, OpKind, Pin, RegionIndex, Reserved,
    Segment, Shape, SubmitHalf,
};
use crate::ledger::{Gathered, Ledger, Route, Transfer};
use crate::tag::Tag;
use crate::target::Target;
use crate::wait;

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
        config: &DriverConfig,
    ) -> AioSubmit {
        let room = config.depth.min(BATCH_MAX) as usize;
        let batch = Batch { iocbs: Vec::with_capacity(room), tags: Vec::with_capacity(room) };
        AioSubmit { shared, context: Some(context), ledger, bell, shape: config.shape, batch, submitted: 0 }
    }

    /// Gives the kernel the batch from `from` on.
    fn io_submit(&self, from: usize) -> io::Result<usize> {
        let Some(context) = &self.context else { return Ok(0) };
        // SAFETY: each pointer leads to an iocb in a slot of the ledger, which does not move and is freed only after
        // its completion was reaped. The ledger pins the region that the iocb names until then.
        unsafe { context.submit(&self.batch.iocbs[from..]) }
    }

    fn is_quiet(&self) -> bool {
        !self.ledger.has_injected() && self.context.as_ref().is_some_and(Context::is_empty)
    }
}

fn iocb(tag: Tag, op: &Op, transfer: Transfer, bell: &Bell) -> Iocb {
    let (opcode, rw_flags) = match op.kind {
        OpKind::Nop | OpKind::Discard | OpKind::WriteZeroes => (opcode::NOOP, 0),
        OpKind::Read => (opcode::PREAD, 0),
        OpKind::Write => (opcode::PWRITE, if op.fua { rwf::DSYNC } else { 0 }),
        OpKind::Flush => (opcode::FDSYNC, 0),
    };
    // A flush with an address or a length is refused.
    let (buf, nbytes, offset) = match op.kind {
        OpKind::Read | OpKind::Write => {
            (transfer.address.expose_provenance() as u64, op.length.into(), op.offset.cast_signed())
        }
        _ => (0, 0, 0),
    };
    Iocb {
        data: tag.user_data(),
        rw_flags,
        opcode,
        fildes: transfer.fd.cast_unsigned(),
        buf,
        nbytes,
        offset,
        flags: flags::RESFD,
        resfd: bell.as_fd().as_raw_fd().cast_unsigned(),
        ..Iocb::default()
    }
}

impl SubmitHalf for AioSubmit {
    fn reserve(&mut self) -> Option<Reserved> {
        self.ledger.reserve(Iocb::default())
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        let tag = slot.tag();
        let route = match self.ledger.route(op) {
            Route::Kernel(_) if op.kind.is_range() => Route::Inline(-libc::EOPNOTSUPP),
            route => route,
        };
        if matches!(route, Route::Kernel(_)) && self.batch.is_full() {
            return Err(slot);
        }
        let Some(own) = self.ledger.arm(&slot, user, op, route) else { return Err(slot) };
        match route {
            Route::Kernel(transfer) => {
                *own = iocb(tag, op, transfer, &self.bell);
                self.batch.push(tag, own);
            }
            Route::Inline(result) => self.ledger.inject(tag, result),
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
        match self.ledger.gather(op, segments) {
            Gathered::Full => return Err(slot),
            Gathered::Inline(result) => {
                if self.ledger.arm(&slot, user, op, Route::Inline(result)).is_none() {
                    return Err(slot);
                }
                self.ledger.inject(tag, result);
            }
            Gathered::Kernel { fd, block } => {
                let (iovec, count) = self.ledger.iovec(block);
                let Some(own) = self.ledger.arm_block(&slot, user, op, block) else {
                    self.ledger.give_block(block);
                    return Err(slot);
                };
                *own = iocb(tag, op, Transfer { fd, address: iovec.cast_mut().cast() }, &self.bell);
                own.opcode = if op.kind == OpKind::Read { opcode::PREADV } else { opcode::PWRITEV };
                own.nbytes = count.into();
                self.batch.push(tag, own);
            }
        }
        Ok(tag)
    }

    fn commit(&mut self) -> io::Result<u32> {
        let (mut done, mut taken) = (0, 0);
        while done < self.batch.tags.len() {
            match self.io_submit(done) {
                Ok(0) => break,
                Ok(requests) => {
                    done += requests;
                    taken += requests as u32;
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
        self.submitted += u64::from(taken);
        self.ledger.announce_injected();
        Ok(taken)
    }

    fn staged(&self) -> u32 {
        self.batch.tags.len() as u32
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
        for target in self.ledger.targets() {
            if let Some(reason) = target.direct_reason() {
                degraded.push(format!(
                    "{}: {reason}, and under AIO the submitting thread may block on the disk: use O_DIRECT or io_uring",
                    target.name()
                ));
            }
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
