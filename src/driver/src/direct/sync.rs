//! One request at a time, in the system call.

use std::io;

use super::slots::Slots;
use super::{DirectFile, DirectQueue, Done, Transfer};

/// One slot, for `pread` and `pwrite`.
#[derive(Debug)]
pub struct SyncQueue {
    slots: Slots,
    staged: Option<Transfer>,
    file: DirectFile,
}

impl SyncQueue {
    /// For transfers of `bytes`.
    pub fn new(file: &DirectFile, bytes: usize) -> io::Result<SyncQueue> {
        Ok(SyncQueue { slots: Slots::new(1, bytes)?, staged: None, file: file.clone() })
    }
}

impl DirectQueue for SyncQueue {
    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.slots.buffer(slot)
    }

    fn stage(&mut self, transfer: Transfer) {
        assert!(transfer.slot == 0 && self.staged.is_none(), "slot {} of 1", transfer.slot);
        self.staged = Some(transfer);
    }

    fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        let Some(Transfer { slot, write, offset }) = self.staged.take() else { return Ok(()) };
        let buffer = self.slots.buffer(slot);
        let result = rustix::io::retry_on_intr(|| match write {
            true => rustix::io::pwrite(&self.file, &*buffer, offset),
            false => rustix::io::pread(&self.file, &mut *buffer, offset),
        });
        let result = result
            .map_or_else(|errno| -errno.raw_os_error(), |bytes| i32::try_from(bytes).unwrap_or(i32::MAX));
        done.push(Done { slot, result });
        Ok(())
    }
}
