//! A driver whose requests are answered when, in the order and with the result that a test says.
//!
//! It is the null driver with its completions kept back. The test and the halves are on one thread, so what they share is
//! the thread's.

use std::{cell::RefCell, io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use ferrio_driver::{
    Busy, Completion, Driver, DriverConfig, DriverError, DriverInfo, FileIndex, Op, Pin, ReapHalf,
    RegionIndex, Reserved, Segment, SubmitHalf, Tag, Target,
    null::{Null, NullReap, NullSubmit},
};
use ferrio_shm::mapping::Region;

#[derive(Default)]
struct Stage {
    /// Offsets of the requests that were submitted, since it was last asked for.
    submitted: Vec<u64>,
    /// Offset of the request of each record, and its bytes.
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    kept: Vec<Completion>,
    ready: Vec<Completion>,
    refuses: Refuses,
    on_submit: Option<Box<dyn FnMut()>>,
}

/// What the driver has no room for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Refuses {
    #[default]
    Nothing,
    Vectored,
    All,
}

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::default();
}

fn on_stage<T>(act: impl FnOnce(&mut Stage) -> T) -> T {
    STAGE.with(|stage| act(&mut stage.borrow_mut()))
}

/// Offsets of the requests that were submitted since the last call, in their order.
pub fn take_submitted() -> Vec<u64> {
    on_stage(|stage| std::mem::take(&mut stage.submitted))
}

/// Offsets of the requests that are not answered, after the reaper looked.
pub fn in_flight() -> Vec<u64> {
    on_stage(|stage| stage.kept.iter().map(|kept| stage.offsets[kept.user as usize]).collect())
}

/// Bytes of one of [`in_flight`].
pub fn length(place: usize) -> u64 {
    on_stage(|stage| stage.lengths[stage.kept[place].user as usize])
}

/// Answers one of [`in_flight`] with an errno (positive), or as the null driver did.
pub fn answer(place: usize, errno: Option<i32>) {
    on_stage(|stage| {
        let mut completion = stage.kept.remove(place);
        if let Some(errno) = errno {
            completion.result = -errno;
        }
        stage.ready.push(completion);
    });
}

/// From now on.
pub fn refuse(what: Refuses) {
    on_stage(|stage| stage.refuses = what);
}

/// What happens while the Submitter hands a request over, from now on. The driver has the request.
pub fn on_submit(act: impl FnMut() + 'static) {
    on_stage(|stage| stage.on_submit = Some(Box::new(act)));
}

fn note(user: u32, op: &Op) {
    on_stage(|stage| {
        stage.submitted.push(op.offset);
        stage.offsets[user as usize] = op.offset;
        stage.lengths[user as usize] = op.length.into();
    });
}

/// The driver.
pub struct Puppet;

pub struct PuppetSubmit(NullSubmit);

pub struct PuppetReap(NullReap, Vec<Completion>);

impl Driver for Puppet {
    const NAME: &'static str = "puppet";
    type Submit = PuppetSubmit;
    type Reap = PuppetReap;

    fn open(config: &DriverConfig) -> Result<(PuppetSubmit, PuppetReap), DriverError> {
        on_stage(|stage| {
            *stage = Stage { offsets: vec![0; 1 << 17], lengths: vec![0; 1 << 17], ..Stage::default() }
        });
        let (submit, reap) = Null::open(config)?;
        Ok((PuppetSubmit(submit), PuppetReap(reap, Vec::with_capacity(config.depth as usize))))
    }
}

impl SubmitHalf for PuppetSubmit {
    fn reserve(&mut self) -> Option<Reserved> {
        self.0.reserve()
    }

    fn submit(&mut self, slot: Reserved, user: u32, op: &Op) -> Result<Tag, Reserved> {
        if on_stage(|stage| stage.refuses) == Refuses::All {
            return Err(slot);
        }
        let tag = self.0.submit(slot, user, op)?;
        note(user, op);
        if let Some(mut act) = on_stage(|stage| stage.on_submit.take()) {
            let _ = self.0.commit();
            act();
            on_stage(|stage| stage.on_submit = Some(act));
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
        if on_stage(|stage| stage.refuses) != Refuses::Nothing {
            return Err(slot);
        }
        let tag = self.0.submit_vectored(slot, user, op, segments)?;
        note(user, op);
        Ok(tag)
    }

    fn commit(&mut self) -> io::Result<u32> {
        self.0.commit()
    }

    fn staged(&self) -> u32 {
        self.0.staged()
    }

    fn in_flight(&self) -> u32 {
        self.0.in_flight()
    }

    fn release(&mut self, tag: Tag) {
        self.0.release(tag);
    }

    fn cancel_reserved(&mut self, slot: Reserved) {
        self.0.cancel_reserved(slot);
    }

    fn register_file(&mut self, target: Arc<Target>) -> Result<FileIndex, DriverError> {
        self.0.register_file(target)
    }

    fn unregister_file(&mut self, file: FileIndex) -> Result<(), Busy> {
        self.0.unregister_file(file)
    }

    fn register_region(&mut self, region: Region, pin: Pin) -> Result<RegionIndex, DriverError> {
        self.0.register_region(region, pin)
    }

    fn continue_pinning(&mut self) -> bool {
        self.0.continue_pinning()
    }

    fn unregister_region(&mut self, region: RegionIndex) -> Result<(), Busy> {
        self.0.unregister_region(region)
    }

    fn sleep(&mut self, doorbells: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.0.sleep(doorbells, timeout)
    }

    fn info(&self) -> DriverInfo {
        self.0.info()
    }
}

impl ReapHalf for PuppetReap {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        self.1.clear();
        self.0.reap(&mut self.1);
        on_stage(|stage| {
            stage.kept.append(&mut self.1);
            let count = stage.ready.len().min(out.capacity() - out.len());
            out.extend(stage.ready.drain(..count));
            count
        })
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.completion_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.0.prepare_sleep()
    }

    fn woke(&mut self) {
        self.0.woke();
    }

    fn stale(&self) -> u64 {
        self.0.stale()
    }
}
