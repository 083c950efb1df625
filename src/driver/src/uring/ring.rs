//! Set-up and its fallbacks, what both halves share, and the drain at the end.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, types};

use super::Uring;
use super::fixed::{Fixed, FixedTable};
use super::reap::UringReap;
use super::submit::UringSubmit;
use crate::bell::Bell;
use crate::driver::{Driver, DriverConfig, DriverError, Shape};
use crate::helpers::{self, Results, Wake};
use crate::ledger::{Ledger, Pinned};
use crate::slot_table::SlotTable;
use crate::tag::Tag;

/// SQEs of one batch at most.
const BATCH_MAX: u32 = 1024;
/// Memory of a ring closed a moment ago is given back late (16 to 20 ms were seen): a daemon that was just
/// restarted waits for it.
const MEMORY_RETRY: Duration = Duration::from_millis(200);

/// Those needed.
const OPCODES: [(u8, &str); 8] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
];

/// Held by both halves; the last one to go drains it.
pub(super) struct Shared {
    /// Not closed if the kernel does not answer.
    pub(super) ring: ManuallyDrop<IoUring>,
    /// The poll of the doorbells is in the ring (`Shape::One`).
    pub(super) doorbells_armed: AtomicBool,
    /// So is that of the helpers' bell.
    pub(super) helpers_armed: AtomicBool,
    pub(super) legacy: Mutex<Legacy>,
    drain_limit: Duration,
}

/// What the halves leave when they are dropped.
#[derive(Default)]
pub(super) struct Legacy {
    pub(super) pinned: Option<(Pinned<(), Fixed>, Arc<SlotTable>)>,
    pub(super) results: Option<Results>,
    /// Requests the kernel took.
    pub(super) submitted: u64,
    /// Requests it answered.
    pub(super) reaped: u64,
}

/// What the ring was set up with, and what it could not be.
#[derive(Debug)]
pub(super) struct Modes {
    pub(super) in_effect: Vec<String>,
    pub(super) degraded: Vec<String>,
    /// The ring knows FALLOCATE.
    pub(super) fallocate: bool,
    /// It knows READV_FIXED and WRITEV_FIXED.
    pub(super) vectored_fixed: bool,
}

pub(super) fn open(config: &DriverConfig) -> Result<(UringSubmit, UringReap), DriverError> {
    config.check()?;
    let setup = |what| move |source| DriverError::Setup { backend: Uring::NAME, what, source };
    let (ring, mut modes) = build(config)?;
    let opcodes = supported(&ring);
    let opcodes = opcodes.map_err(|reason| DriverError::Unavailable { backend: Uring::NAME, reason })?;
    modes.fallocate = opcodes.is_supported(opcode::Fallocate::CODE);
    if !modes.fallocate {
        modes.degraded.push("IORING_OP_FALLOCATE is missing: helper threads discard and zero".to_owned());
    }
    modes.vectored_fixed =
        [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE].iter().all(|&code| opcodes.is_supported(code));
    let lack = "vectored requests pin their pages each time";
    modes.note(modes.vectored_fixed, "READV_FIXED|WRITEV_FIXED", "6.15", lack);
    let bell = match config.shape {
        Shape::One => None,
        Shape::Two => {
            let bell = Arc::new(Bell::new().map_err(setup("eventfd"))?);
            let registered = ring.submitter().register_eventfd(bell.as_fd().as_raw_fd());
            registered.map_err(setup("IORING_REGISTER_EVENTFD"))?;
            Some(bell)
        }
    };
    let fixed = FixedTable::register(&ring, &mut modes.degraded);
    let (helpers_bell, wake) = match &bell {
        Some(bell) => (Arc::clone(bell), Wake::Announced),
        None => (Arc::new(Bell::new().map_err(setup("eventfd"))?), Wake::Always),
    };
    let (helpers, results) = helpers::pool(config, Arc::clone(&helpers_bell), wake);
    let (ledger, arrivals) = Ledger::new(config, bell.clone(), Some(results));
    let shared = Arc::new(Shared {
        ring: ManuallyDrop::new(ring),
        doorbells_armed: AtomicBool::new(false),
        helpers_armed: AtomicBool::new(false),
        legacy: Mutex::default(),
        drain_limit: config.drain_limit,
    });
    let submit = UringSubmit::new(Arc::clone(&shared), ledger, helpers, fixed, config.shape, modes);
    Ok((submit, UringReap::new(shared, arrivals, bell, helpers_bell)))
}

/// Sets the ring up with all that helps, or with what this kernel has. SINGLE_ISSUER | DEFER_TASKRUN is not
/// among it: it ties the ring to one thread, its drain too, and reads at depth 1, 32 and 128 showed no
/// difference to COOP_TASKRUN beyond the noise.
fn build(config: &DriverConfig) -> Result<(IoUring, Modes), DriverError> {
    let sq_entries = config.depth.next_power_of_two().min(BATCH_MAX);
    // Twice the requests in flight: the driver's own (the doorbell poll) fit beside them, and it never overflows.
    let cq_entries = (2 * config.depth.next_power_of_two()).max(2 * sq_entries);
    let mut modes = Modes {
        in_effect: vec![format!("SQ {sq_entries}, CQ {cq_entries}")],
        degraded: Vec::new(),
        fallocate: false,
        vectored_fixed: false,
    };
    let attempts = [(true, config.shape == Shape::One), (true, false), (false, false)];
    for (submit_all, cooperative) in attempts {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(cq_entries);
        if submit_all {
            builder.setup_submit_all();
        }
        if cooperative {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        match with_memory_retry(|| builder.build(sq_entries)) {
            Ok(ring) => {
                modes.note(submit_all, "SUBMIT_ALL", "5.18", "a refused request ends its batch early");
                if config.shape == Shape::One {
                    let lack = "completions interrupt the submitting thread";
                    modes.note(cooperative, "COOP_TASKRUN|TASKRUN_FLAG", "5.19", lack);
                }
                return Ok((ring, modes));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => {
                return Err(DriverError::Unavailable { backend: Uring::NAME, reason: explain(&source) });
            }
        }
    }
    let reason =
        "io_uring_setup refuses every combination of flags (EINVAL): Linux 5.11 is needed".to_owned();
    Err(DriverError::Unavailable { backend: Uring::NAME, reason })
}

impl Modes {
    fn note(&mut self, in_effect: bool, flag: &str, kernel: &str, lack: &str) {
        if in_effect {
            self.in_effect.push(flag.to_owned());
        } else {
            self.degraded.push(format!("{flag} is not in effect, so {lack}: Linux {kernel} has it"));
        }
    }
}

fn with_memory_retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + MEMORY_RETRY;
    loop {
        match call() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Whether io_uring can be used here, tried with a small ring and a NOP; else why not and what to do.
pub(crate) fn probe() -> Result<(), String> {
    let mut ring = with_memory_retry(|| IoUring::new(4)).map_err(|error| explain(&error))?;
    supported(&ring)?;
    // SAFETY: a NOP names no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(|_| "the submission queue of a new ring is full".to_owned())?;
    let entered = loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    entered
        .map_err(|error| format!("io_uring_setup works but io_uring_enter does not: {}", explain(&error)))?;
    match ring.completion().next() {
        Some(answer) if answer.result() == 0 => Ok(()),
        Some(answer) => Err(format!("a NOP was answered with {}", answer.result())),
        None => Err("a NOP was not answered".to_owned()),
    }
}

fn supported(ring: &IoUring) -> Result<Probe, String> {
    let features = ring.params();
    if !features.is_feature_ext_arg() || !features.is_feature_nodrop() {
        return Err("io_uring of this kernel lacks EXT_ARG or NODROP: Linux 5.11 is needed".to_owned());
    }
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe);
    probed.map_err(|error| format!("IORING_REGISTER_PROBE failed: {error}"))?;
    match OPCODES.iter().find(|&&(code, _)| !probe.is_supported(code)) {
        Some((_, name)) => Err(format!("opcode IORING_OP_{name} is missing: a newer kernel is needed")),
        None => Ok(probe),
    }
}

/// The likely cause of a refused set-up, and the fix.
fn explain(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (error.raw_os_error(), disabled.trim()) {
        (Some(libc::EPERM), level @ ("1" | "2")) => format!(
            "kernel.io_uring_disabled={level} (EPERM): set it to 0, or to 1 with this user in kernel.io_uring_group"
        ),
        (Some(libc::EPERM), _) => "blocked by seccomp (EPERM): allow io_uring_setup, io_uring_enter and \
             io_uring_register in the container profile or in SystemCallFilter="
            .to_owned(),
        (Some(libc::ENOSYS), _) => "the kernel has no io_uring (ENOSYS), or seccomp hides it: \
             a kernel with CONFIG_IO_URING is needed"
            .to_owned(),
        (Some(libc::ENOMEM), _) => {
            "no memory for the ring (ENOMEM): raise LimitMEMLOCK= or lower the depth".to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "no file descriptor left: raise LimitNOFILE=".to_owned(),
        _ => error.to_string(),
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let legacy = std::mem::take(self.legacy.get_mut().unwrap_or_else(PoisonError::into_inner));
        let Some((pinned, table)) = legacy.pinned else { return };
        let owed = legacy.submitted - legacy.reaped;
        let deadline = Instant::now() + self.drain_limit;
        let mut left = drain(&mut self.ring, &table, owed, deadline);
        if let Some(mut results) = legacy.results {
            left += u64::from(results.drain(&table, deadline));
        }
        if left == 0 {
            // At once; closing gives the pinned memory back some milliseconds later.
            let _ = self.ring.submitter().unregister_buffers();
            // SAFETY: the ring is not used again: this is its owner's drop.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        } else {
            tracing::error!(
                left,
                waited = ?self.drain_limit,
                "io_uring or a helper did not answer: files, regions and ring are leaked, the kernel may still write them"
            );
            std::mem::forget(pinned);
        }
    }
}

/// Waits for the answers the kernel owes; says how many it still owes at the end.
fn drain(ring: &mut IoUring, table: &SlotTable, mut owed: u64, deadline: Instant) -> u64 {
    loop {
        for answer in ring.completion() {
            if table.finish(Tag::from_user_data(answer.user_data())).is_some() {
                owed -= 1;
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if owed == 0 || left.is_zero() {
            return owed;
        }
        // In slices: task work of a thread that has ended is run by a kernel thread that may come late.
        let slice = types::Timespec::from(left.min(Duration::from_millis(100)));
        let args = types::SubmitArgs::new().timespec(&slice);
        let flags = io_uring::EnterFlags::GETEVENTS | io_uring::EnterFlags::EXT_ARG;
        // SAFETY: nothing is submitted (0), and `args` lives through the call. Errors (timeout, signal) are
        // for the deadline to judge.
        let _ = unsafe { ring.submitter().enter(0, 1, flags.bits(), Some(&args)) };
    }
}

impl Shared {
    pub(super) fn leave(&self, entry: impl FnOnce(&mut Legacy)) {
        entry(&mut self.legacy.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn doorbells_armed(&self) -> bool {
        self.doorbells_armed.load(Ordering::Relaxed)
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring stays open for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("ring", &self.ring.as_raw_fd()).finish_non_exhaustive()
    }
}
