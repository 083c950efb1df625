//! Linux AIO by its system calls.

use std::io;

use libaio_sys::abi::opcode;
use libaio_sys::calls::{self, ContextId};
use libaio_sys::{IoEvent, Iocb};

use super::slots::Slots;
use super::{DirectFile, DirectQueue, Done, Transfer};

/// A context of its own. Dropping it waits for what is in flight.
#[derive(Debug)]
pub struct AioQueue {
    context: ContextId,
    /// One per slot. Their addresses go to the kernel, so they are reached by these pointers alone.
    iocbs: Box<[*mut Iocb]>,
    /// To be submitted, in order.
    staged: Vec<*mut Iocb>,
    events: Box<[IoEvent]>,
    slots: Slots,
    file: DirectFile,
}

impl AioQueue {
    /// A context for `depth` transfers of `bytes` at once. EAGAIN: `fs.aio-max-nr` is exhausted.
    pub fn new(file: &DirectFile, depth: u32, bytes: usize) -> io::Result<AioQueue> {
        let slots = Slots::new(depth, bytes)?;
        let context = calls::io_setup(depth)?;
        let iocb = |_| Box::into_raw(Box::new(Iocb::default()));
        Ok(AioQueue {
            context,
            iocbs: (0..slots.count()).map(iocb).collect(),
            staged: Vec::with_capacity(depth as usize),
            events: vec![IoEvent::default(); depth as usize].into(),
            slots,
            file: file.clone(),
        })
    }

    /// Hands the staged requests over; with EAGAIN, the rest of them waits until something is done.
    fn submit(&mut self) -> io::Result<()> {
        let mut taken = 0;
        while taken < self.staged.len() {
            // SAFETY: the pointers are to iocbs of this queue; what they name is lent until the answer, and stays
            // mapped otherwise.
            match unsafe { calls::io_submit(self.context, &self.staged[taken..]) } {
                Ok(count) => taken += count,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && self.is_waited_for(taken) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.staged.drain(..taken);
        Ok(())
    }

    /// Something is with the kernel, so that waiting ends.
    fn is_waited_for(&self, taken: usize) -> bool {
        self.slots.in_flight() as usize > self.staged.len() - taken
    }
}

impl DirectQueue for AioQueue {
    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.slots.buffer(slot)
    }

    fn stage(&mut self, transfer: Transfer) {
        let Transfer { slot, write, offset } = transfer;
        let address = self.slots.lend(slot);
        let iocb = Iocb {
            data: slot.into(),
            opcode: if write { opcode::PWRITE } else { opcode::PREAD },
            fildes: self.file.raw().cast_unsigned(),
            buf: address.expose_provenance() as u64,
            nbytes: self.slots.slot_bytes() as u64,
            offset: offset.cast_signed(),
            ..Iocb::default()
        };
        let place = self.iocbs[slot as usize];
        // SAFETY: an iocb of this queue, which the kernel has copied and forgotten: its slot was free.
        unsafe { place.write(iocb) };
        self.staged.push(place);
    }

    fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        let before = done.len();
        while done.len() == before && self.slots.in_flight() > 0 {
            self.submit()?;
            let answered = match calls::io_getevents(self.context, 1, &mut self.events, None) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                other => other?,
            };
            for event in &self.events[..answered] {
                let slot = event.data as u32;
                if self.slots.give_back(slot) {
                    // A request is shorter than 2 GiB, and an errno is small.
                    done.push(Done { slot, result: event.res as i32 });
                }
            }
        }
        Ok(())
    }
}

impl Drop for AioQueue {
    fn drop(&mut self) {
        // SAFETY: nobody else has the context; its ring was not used.
        let destroyed = unsafe { calls::io_destroy(self.context) };
        if destroyed.is_ok() {
            // It has waited for all that it had, and what is only staged it never had.
            for slot in 0..self.slots.count() {
                self.slots.give_back(slot);
            }
        }
        for &iocb in &self.iocbs {
            // SAFETY: made by `Box::into_raw`, and freed once. The kernel copies iocbs when they are submitted.
            drop(unsafe { Box::from_raw(iocb) });
        }
    }
}
