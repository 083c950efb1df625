//! The backend without a kernel behind it: what the rest of the path costs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ferrio_shm::mapping::Region;

use crate::arrivals::Arrivals;
use crate::bell::Bell;
use crate::driver::{
    Busy, Completion, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, Op, Pin, ReapHalf,
    RegionIndex, Reserved, Segment, Shape, SubmitHalf,
};
use crate::ledger::{Gathered, Ledger, Route};
use crate::tag::Tag;
use crate::target::{Target, TargetKind};
use crate::wait;

/// Completes null targets and nops at once; requests to a real target get `-EOPNOTSUPP`.
#[derive(Debug)]
pub struct Null;

/// Submit half of [`Null`].
#[derive(Debug)]
pub struct NullSubmit {
    ledger: Ledger<(), ()>,
    shape: Shape,
}

/// Reap half of [`Null`].
#[derive(Debug)]
pub struct NullReap {
    arrivals: Arrivals,
    bell: Option<Arc<Bell>>,
}

impl Driver for Null {
    const NAME: &'static str = "null";
    type Submit = NullSubmit;
    type Reap = NullReap;

    fn open(config: &DriverConfig) -> Result<(NullSubmit, NullReap), DriverError> {
        config.check()?;
        let bell = match config.shape {
            Shape::One => None,
            Shape::Two => Some(Arc::new(Bell::new().map_err(|source| DriverError::Setup {
                backend: Null::NAME,
                what: "eventfd",
                source,
            })?)),
        };
        let (ledger, arrivals) = Ledger::new(config, bell.clone(), None);
        Ok((NullSubmit { ledger, shape: config.shape }, NullReap { arrivals, bell }))
    }
}

impl SubmitHalf for NullSubmit {
    fn reserve(&mut self) -> Option<Reserved> {
        self.ledger.reserve(())
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        let route = match self.ledger.route(op) {
            Route::Kernel(_) => Route::Inline(-libc::EOPNOTSUPP),
            inline => inline,
        };
        if self.ledger.arm(&slot, user, op, route).is_none() {
            return Err(slot);
        }
        if let Route::Inline(result) = route {
            self.ledger.inject(slot.0, result);
        }
        Ok(slot.0)
    }

    fn submit_vectored(
        &mut self,
        slot: Reserved,
        user: u32,
        op: &Op,
        segments: &[Segment],
    ) -> Result<Tag, Reserved> {
        let result = match self.ledger.gather(op, segments) {
            Gathered::Full => return Err(slot),
            Gathered::Inline(result) => result,
            Gathered::Kernel { block, .. } => {
                self.ledger.give_block(block);
                -libc::EOPNOTSUPP
            }
        };
        if self.ledger.arm(&slot, user, op, Route::Inline(result)).is_none() {
            return Err(slot);
        }
        self.ledger.inject(slot.0, result);
        Ok(slot.0)
    }

    fn commit(&mut self) -> io::Result<u32> {
        self.ledger.announce_injected();
        Ok(0)
    }

    fn staged(&self) -> u32 {
        0
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
        if self.shape == Shape::One && self.ledger.has_injected() {
            return Ok(());
        }
        wait::readable([doorbells], timeout).map(drop)
    }

    fn info(&self) -> DriverInfo {
        let degraded = self
            .ledger
            .targets()
            .filter(|target| target.kind() != TargetKind::Null)
            .map(|target| format!("{}: the null backend does no I/O: use io_uring or aio", target.name()))
            .collect();
        DriverInfo { backend: Null::NAME, modes: vec!["completes inline".to_owned()], degraded }
    }
}

impl ReapHalf for NullReap {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        self.arrivals.take_own(out);
        out.len() - before
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }

    fn prepare_sleep(&mut self) -> bool {
        let Some(bell) = &self.bell else { return false };
        bell.announce();
        let empty = !self.arrivals.has_own();
        if !empty {
            bell.withdraw();
        }
        empty
    }

    fn woke(&mut self) {
        if let Some(bell) = &self.bell {
            bell.withdraw();
            bell.drain();
        }
    }

    fn stale(&self) -> u64 {
        self.arrivals.stale()
    }
}
