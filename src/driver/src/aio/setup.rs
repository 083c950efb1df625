//! Set-up, what both halves leave, and the drain at the end.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libaio_sys::abi::opcode;
use libaio_sys::{Context, Iocb, Reaper};
use rustix::fs::{MemfdFlags, memfd_create};

use super::Aio;
use super::parked::Parked;
use super::reap::AioReap;
use super::submit::AioSubmit;
use crate::bell::Bell;
use crate::driver::{Driver, DriverConfig, DriverError, Shape};
use crate::helpers::{self, Results, Wake};
use crate::ledger::{Ledger, Pinned};
use crate::slot_table::SlotTable;
use crate::tag::Tag;

/// Held by both halves; the last one to go drains the context.
#[derive(Debug)]
pub(super) struct Shared {
    legacy: Mutex<Legacy>,
    pub(super) parked: Parked,
    drain_limit: Duration,
}

/// What the halves leave when they are dropped.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    pub(super) submit: Option<(Context, Pinned<Iocb, ()>, Arc<SlotTable>)>,
    pub(super) reaper: Option<Reaper>,
    pub(super) results: Option<Results>,
    /// Requests the kernel took.
    pub(super) submitted: u64,
    /// Requests it answered.
    pub(super) reaped: u64,
}

pub(super) fn open(config: &DriverConfig) -> Result<(AioSubmit, AioReap), DriverError> {
    config.check()?;
    let unavailable = |reason| DriverError::Unavailable { backend: Aio::NAME, reason };
    let (context, reaper) =
        Context::setup(config.depth).map_err(|error| unavailable(explain(&error, config.depth)))?;
    let bell = Bell::new();
    let bell = bell.map_err(|source| DriverError::Setup { backend: Aio::NAME, what: "eventfd", source })?;
    let bell = Arc::new(bell);
    let wake = if config.shape == Shape::Two { Wake::Announced } else { Wake::Always };
    let (helpers, results) = helpers::pool(config, Arc::clone(&bell), wake);
    let (ledger, arrivals) = Ledger::new(config, Some(Arc::clone(&bell)), Some(results));
    let shared = Arc::new(Shared {
        legacy: Mutex::default(),
        parked: Parked::new(config.depth),
        drain_limit: config.drain_limit,
    });
    let reap = AioReap::new(
        Arc::clone(&shared),
        reaper,
        arrivals,
        Arc::clone(&bell),
        helpers.sender(),
        config.shape,
    );
    Ok((AioSubmit::new(shared, context, ledger, bell, helpers, config), reap))
}

/// Whether AIO can be used here, tried with a context for one request and an asynchronous flush; else why not
/// and what to do.
pub(crate) fn probe() -> Result<(), String> {
    let (context, mut reaper) = Context::setup(1).map_err(|error| explain(&error, 1))?;
    let file = memfd_create("ferrio-aio-probe", MemfdFlags::CLOEXEC)
        .map_err(|errno| format!("memfd_create failed: {errno}"))?;
    let mut flush =
        Iocb { opcode: opcode::FDSYNC, fildes: file.as_raw_fd().cast_unsigned(), ..Iocb::default() };
    // SAFETY: a flush names no memory; the kernel copies the iocb during the call.
    let taken = unsafe { context.submit(&[&raw mut flush]) };
    taken.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => {
            "the kernel has no asynchronous FDSYNC (EINVAL): Linux 4.18 is needed".to_owned()
        }
        Some(libc::EPERM) => "io_setup works but seccomp blocks io_submit (EPERM): allow it".to_owned(),
        _ => format!("io_submit failed: {error}"),
    })?;
    let mut result = None;
    for _ in 0..10 {
        match reaper.wait(100, |event| result = Some(event.res)) {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("io_getevents failed: {error}")),
        }
    }
    match result {
        Some(0) => Ok(()),
        Some(result) => Err(format!("FDSYNC was answered with {result}")),
        None => Err("FDSYNC was not answered within a second".to_owned()),
    }
}

/// The likely cause of a refused set-up, and the fix.
fn explain(error: &io::Error, depth: u32) -> String {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/fs/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    match error.raw_os_error() {
        Some(libc::EAGAIN) => format!(
            "fs.aio-max-nr={} of which fs.aio-nr={} are taken, {depth} are needed (EAGAIN): \
             raise fs.aio-max-nr or lower the depth",
            read("aio-max-nr"),
            read("aio-nr")
        ),
        Some(libc::EPERM) => {
            "blocked by seccomp (EPERM): allow io_setup, io_submit, io_getevents and io_destroy in \
             the container profile or with SystemCallFilter=@aio"
                .to_owned()
        }
        Some(libc::ENOSYS) => {
            "the kernel has no AIO (ENOSYS), or seccomp hides it: a kernel with CONFIG_AIO is \
             needed"
                .to_owned()
        }
        Some(libc::ENOMEM) => format!("no memory for a ring of {depth} requests (ENOMEM): lower the depth"),
        _ => error.to_string(),
    }
}

impl Shared {
    pub(super) fn leave(&self, entry: impl FnOnce(&mut Legacy)) {
        entry(&mut self.legacy.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let legacy = std::mem::take(self.legacy.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (Some((context, pinned, table)), Some(mut reaper)) = (legacy.submit, legacy.reaper) else {
            return;
        };
        let deadline = Instant::now() + self.drain_limit;
        let mut left = drain(&mut reaper, &table, legacy.submitted - legacy.reaped, deadline);
        if let Some(mut results) = legacy.results {
            left += u64::from(results.drain(&table, deadline));
        }
        if left > 0 {
            tracing::error!(
                left,
                waited = ?self.drain_limit,
                "AIO or a helper did not answer: files, regions and context are leaked, the kernel may still write them"
            );
            // Not even the context is dropped: io_destroy would wait for ever.
            std::mem::forget((context, reaper, pinned));
        }
    }
}

/// Waits for the answers the kernel owes; says how many it still owes at the end.
fn drain(reaper: &mut Reaper, table: &SlotTable, mut owed: u64, deadline: Instant) -> u64 {
    loop {
        let mut believe = |event: libaio_sys::IoEvent| {
            if table.finish(Tag::from_user_data(event.data)).is_some() {
                owed -= 1;
            }
        };
        reaper.reap(usize::MAX, &mut believe);
        let left = deadline.saturating_duration_since(Instant::now());
        // Errors (a signal) are for the deadline to judge.
        if owed > 0 && !left.is_zero() {
            let slice_ms = left.as_millis().clamp(1, 100) as u32;
            let _ = reaper.wait(slice_ms, |event| {
                owed -= u64::from(table.finish(Tag::from_user_data(event.data)).is_some());
            });
        } else {
            return owed;
        }
    }
}
