//! io_uring with all that helps one thread that has the ring to itself.

use std::fmt;
use std::io;

use io_uring::{EnterFlags, IoUring, opcode, squeue, types};

use super::slots::Slots;
use super::{DirectFile, DirectQueue, Done, Transfer};

/// How an [`UringQueue`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UringWait {
    /// Submits and sleeps in one `io_uring_enter`.
    Sleep,
    /// Spins on the CQ, and enters the kernel when the TASKRUN flag asks for it.
    Spin,
}

/// A ring of its own, for the thread that made it. Dropping it waits for what is in flight.
pub struct UringQueue {
    ring: IoUring,
    slots: Slots,
    wait: UringWait,
    staged: u32,
    /// The buffers are registered.
    fixed: bool,
    degraded: Vec<String>,
    _file: DirectFile,
}

impl UringQueue {
    /// A ring for `depth` transfers of `bytes` at once.
    pub fn new(file: &DirectFile, depth: u32, bytes: usize, wait: UringWait) -> io::Result<UringQueue> {
        let slots = Slots::new(depth, bytes)?;
        let mut degraded = Vec::new();
        let ring = build(depth, &mut degraded)?;
        ring.submitter().register_files(&[file.raw()])?;
        // SAFETY: the memory stays mapped for longer than the ring: `slots` is dropped after it, and leaves it where it
        // is when the kernel has not answered.
        let registered = unsafe { ring.submitter().register_buffers(&[slots.whole()]) };
        if let Err(error) = &registered {
            degraded.push(format!(
                "buffers are not registered, so every request pins its pages ({error}): raise RLIMIT_MEMLOCK"
            ));
        }
        let (fixed, file) = (registered.is_ok(), file.clone());
        Ok(UringQueue { ring, slots, wait, staged: 0, fixed, degraded, _file: file })
    }

    /// What was wanted and is not in effect, each with its reason.
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    fn entry(&self, transfer: Transfer, address: *mut u8) -> squeue::Entry {
        let Transfer { slot, write, offset } = transfer;
        let (fd, bytes) = (types::Fixed(0), self.slots.slot_bytes() as u32);
        let entry = match (write, self.fixed) {
            (false, true) => opcode::ReadFixed::new(fd, address, bytes, 0).offset(offset).build(),
            (true, true) => opcode::WriteFixed::new(fd, address, bytes, 0).offset(offset).build(),
            (false, false) => opcode::Read::new(fd, address, bytes).offset(offset).build(),
            (true, false) => opcode::Write::new(fd, address, bytes).offset(offset).build(),
        };
        entry.user_data(slot.into())
    }

    /// Issues what is staged and waits once, as this queue does: at worst nothing is done afterwards.
    fn enter(&mut self) -> io::Result<()> {
        let taken = match self.wait {
            UringWait::Sleep => self.ring.submit_and_wait(1),
            UringWait::Spin if self.staged > 0 => self.ring.submit(),
            UringWait::Spin => self.spin(),
        };
        match taken {
            Ok(taken) => self.staged -= taken as u32,
            Err(error) if is_later(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn spin(&mut self) -> io::Result<usize> {
        let queue = self.ring.submission();
        let wanted = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if wanted {
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: nothing is submitted, waited for or passed.
            return unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None) };
        }
        std::hint::spin_loop();
        Ok(0)
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let slots = &mut self.slots;
        done.extend(self.ring.completion().filter_map(|answer| {
            let slot = answer.user_data() as u32;
            slots.give_back(slot).then_some(Done { slot, result: answer.result() })
        }));
    }
}

/// Not now, but soon: a signal, or no room until something is done.
fn is_later(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// With COOP_TASKRUN and SINGLE_ISSUER, or with what this kernel has.
fn build(depth: u32, degraded: &mut Vec<String>) -> io::Result<IoUring> {
    let entries = depth.next_power_of_two();
    let attempts = [
        (true, true, None),
        (true, false, Some("SINGLE_ISSUER is not in effect: Linux 6.0 has it")),
        (false, false, Some("COOP_TASKRUN is not in effect: Linux 5.19 has it")),
    ];
    for (cooperative, single_issuer, lack) in attempts {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(2 * entries);
        if cooperative {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if single_issuer {
            builder.setup_single_issuer();
        }
        match builder.build(entries) {
            Ok(ring) => {
                degraded.extend(lack.map(str::to_owned));
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

impl DirectQueue for UringQueue {
    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.slots.buffer(slot)
    }

    fn stage(&mut self, transfer: Transfer) {
        let address = self.slots.lend(transfer.slot);
        let entry = self.entry(transfer, address);
        // SAFETY: the memory is lent until the answer, and outlives the ring otherwise.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // One entry per slot, and a slot is lent once.
        assert!(pushed.is_ok(), "the SQ has an entry for every slot");
        self.staged += 1;
    }

    fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        let before = done.len();
        while done.len() == before && self.slots.in_flight() > 0 {
            self.enter()?;
            self.reap(done);
        }
        Ok(())
    }
}

impl fmt::Debug for UringQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringQueue")
            .field("wait", &self.wait)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Drop for UringQueue {
    /// Closing a ring does not stop what was started. What the kernel does not answer keeps its memory.
    fn drop(&mut self) {
        let mut done = Vec::with_capacity(self.slots.in_flight() as usize);
        self.wait = UringWait::Sleep;
        while self.slots.in_flight() > 0 && self.wait(&mut done).is_ok() {}
    }
}
