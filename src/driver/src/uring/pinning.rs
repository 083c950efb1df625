//! Pins regions part by part, so that a large one does not stop its engine.
//!
//! Most of the time goes into pages that are not there yet. So a thread of its own brings the pages of a part into being,
//! and then the submit half pins them, one part per [`step`](Pinning::step); meanwhile it works. Regions that go are
//! unpinned in parts too, and dropped by that thread: unmapping a gigabyte takes longer than pinning it.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};

use ferrio_shm::mapping::Region;
use io_uring::IoUring;
use rustix::mm::{Advice, madvise};

use super::fixed::{Fixed, FixedTable};
use crate::driver::RegionIndex;
use crate::ledger::Ledger;

/// Regions up to this are pinned when they are registered: a millisecond or two.
const AT_ONCE_BYTES: u64 = 2 << 20;
/// Slots that a step unpins.
const UNPIN_SLOTS: u32 = 8;

/// What waits to be pinned or unpinned.
#[derive(Debug, Default)]
pub(super) struct Pinning {
    /// To be pinned, in this order.
    coming: VecDeque<RegionIndex>,
    leaving: Vec<(Region, Fixed)>,
    thread: Option<Thread>,
    /// The region of the part that the thread populates.
    asked: Option<RegionIndex>,
}

#[derive(Debug)]
struct Thread {
    tasks: SyncSender<Task>,
    done: Receiver<()>,
}

#[derive(Debug)]
enum Task {
    /// Bring these bytes of the region into being, and say so.
    Populate(Region, u64, u64),
    /// Perhaps the last to know it.
    Drop(Region),
}

impl Pinning {
    /// Nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.coming.is_empty() && self.leaving.is_empty()
    }

    /// Pins a small region; a large one waits for [`later`](Self::later).
    pub(super) fn at_once(table: &mut FixedTable, ring: &IoUring, region: &Region) -> Fixed {
        let mut fixed = table.reserve(region);
        while region.len() <= AT_ONCE_BYTES && fixed.next(region).is_some() {
            table.pin_next(ring, region, &mut fixed);
        }
        fixed
    }

    /// Pins a region step by step.
    pub(super) fn later(&mut self, region: RegionIndex) {
        self.coming.push_back(region);
    }

    /// A region has been unregistered: its pages go, those of a large one step by step.
    pub(super) fn leave(
        &mut self,
        index: RegionIndex,
        region: Region,
        mut fixed: Fixed,
        table: &mut FixedTable,
        ring: &IoUring,
    ) {
        // The thread may still be about a part of it, and then has the region as well.
        self.coming.retain(|&coming| coming != index);
        if !table.unpin(ring, &mut fixed, UNPIN_SLOTS) {
            self.leaving.push((region, fixed));
        } else if region.len() > AT_ONCE_BYTES {
            self.drop_elsewhere(region);
        }
    }

    /// Takes one step, and says whether the next can be taken at once.
    pub(super) fn step(
        &mut self,
        ledger: &mut Ledger<(), Fixed>,
        table: &mut FixedTable,
        ring: &IoUring,
    ) -> bool {
        if let Some((region, mut fixed)) = self.leaving.pop() {
            if table.unpin(ring, &mut fixed, UNPIN_SLOTS) {
                self.drop_elsewhere(region);
            } else {
                self.leaving.push((region, fixed));
            }
            return !self.leaving.is_empty();
        }
        if self.asked.is_some() {
            if let Some(Err(TryRecvError::Empty)) = self.thread.as_ref().map(|thread| thread.done.try_recv())
            {
                return false;
            }
            // It may have left meanwhile.
            if self.asked.take() == self.coming.front().copied() {
                self.pin_first(ledger, table, ring);
            }
        }
        self.ask(ledger, table, ring);
        false
    }

    fn pin_first(&mut self, ledger: &mut Ledger<(), Fixed>, table: &mut FixedTable, ring: &IoUring) {
        let Some(entry) = self.coming.front().and_then(|&index| ledger.region_mut(index)) else { return };
        table.pin_next(ring, &entry.region, &mut entry.own);
    }

    /// Has the next part populated. Without a thread it is pinned as it is.
    fn ask(&mut self, ledger: &mut Ledger<(), Fixed>, table: &mut FixedTable, ring: &IoUring) {
        while let Some(&index) = self.coming.front() {
            let next = ledger.region_mut(index).and_then(|entry| {
                let (offset, length) = entry.own.next(&entry.region)?;
                Some(Task::Populate(entry.region.clone(), offset, length))
            });
            let Some(task) = next else {
                self.coming.pop_front();
                continue;
            };
            if self.send(task) {
                self.asked = Some(index);
            } else {
                self.pin_first(ledger, table, ring);
            }
            return;
        }
    }

    fn drop_elsewhere(&mut self, region: Region) {
        self.send(Task::Drop(region));
    }

    /// `false`: there is no thread, or it has enough to do.
    fn send(&mut self, task: Task) -> bool {
        if self.thread.is_none() {
            match Thread::start() {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => tracing::warn!(%error, "no thread for pinning: regions are pinned without"),
            }
        }
        self.thread.as_ref().is_some_and(|thread| thread.tasks.try_send(task).is_ok())
    }
}

impl Thread {
    fn start() -> io::Result<Thread> {
        // Regions that leave at once wait here; beyond that the engine drops them itself.
        let (tasks, receiver) = mpsc::sync_channel(64);
        let (sender, done) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("pinning".to_owned()).spawn(move || run(&receiver, &sender))?;
        Ok(Thread { tasks, done })
    }
}

fn run(tasks: &Receiver<Task>, done: &SyncSender<()>) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Drop(region) => drop(region),
            Task::Populate(region, offset, length) => {
                if let Some(slice) = region.slice(offset, length) {
                    // SAFETY: the range is mapped for as long as `region` lives; populating changes no content. It fails
                    // on Linux before 5.14 and where pages cannot be had: pinning then does it, or says why not.
                    let _ =
                        unsafe { madvise(slice.as_ptr().cast(), slice.len(), Advice::LinuxPopulateWrite) };
                }
                if done.send(()).is_err() {
                    return;
                }
            }
        }
    }
}
