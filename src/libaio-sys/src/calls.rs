//! The system calls.

use std::io;
use std::os::raw::c_long;
use std::ptr;

use crate::abi::{IoEvent, Iocb};

/// `aio_context_t`: the address at which the kernel mapped the completion ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextId(pub usize);

/// `io_setup(2)`: a context for `entries` requests in flight. EAGAIN: `fs.aio-max-nr` is exhausted.
pub fn io_setup(entries: u32) -> io::Result<ContextId> {
    let mut id: usize = 0;
    // SAFETY: the kernel writes one unsigned long, which `id` is; it was set to 0 as the call demands.
    check(unsafe { libc::syscall(libc::SYS_io_setup, entries, ptr::from_mut(&mut id)) })?;
    Ok(ContextId(id))
}

/// `io_destroy(2)`: waits for the requests in flight, then unmaps the ring.
///
/// # Safety
///
/// Nobody uses the context or its ring any more.
pub unsafe fn io_destroy(context: ContextId) -> io::Result<()> {
    // SAFETY: the caller gave up the ring, the only memory that goes away.
    check(unsafe { libc::syscall(libc::SYS_io_destroy, context.0) }).map(drop)
}

/// `io_submit(2)`: says how many requests the kernel took, from the front. An error is about the first one
/// and means that none was taken.
///
/// # Safety
///
/// Each pointer is to an [`Iocb`] that may be read and written during the call. What the request names (the
/// data, the iovecs and their data) stays valid for the kernel to use until its completion was read.
pub unsafe fn io_submit(context: ContextId, iocbs: &[*mut Iocb]) -> io::Result<usize> {
    // SAFETY: the caller's promise; the array of pointers is a slice of exactly this length.
    let taken = check(unsafe { libc::syscall(libc::SYS_io_submit, context.0, iocbs.len(), iocbs.as_ptr()) })?;
    Ok(count(taken))
}

/// `io_getevents(2)`: waits for at least `events_min` completions, and reads at most `events.len()`.
/// `None` waits for ever.
pub fn io_getevents(
    context: ContextId,
    events_min: usize,
    events: &mut [IoEvent],
    timeout: Option<&libc::timespec>,
) -> io::Result<usize> {
    let timeout = timeout.map_or(ptr::null(), ptr::from_ref);
    let (wanted, room) = (events_min.min(events.len()), events.len());
    // SAFETY: the kernel writes at most `room` events, which the slice has, and any bits make an IoEvent.
    let read = check(unsafe {
        libc::syscall(libc::SYS_io_getevents, context.0, wanted, room, events.as_mut_ptr(), timeout)
    })?;
    Ok(count(read))
}

/// `io_cancel(2)`: the completion of the cancelled request comes through the ring. Only polls can be
/// cancelled; files answer EINVAL.
///
/// # Safety
///
/// `iocb` is to an [`Iocb`] that may be read during the call.
pub unsafe fn io_cancel(context: ContextId, iocb: *mut Iocb) -> io::Result<()> {
    let mut event = IoEvent::default();
    // SAFETY: the caller's promise for `iocb`; the kernel may write one event, which `event` has room for.
    match check(unsafe { libc::syscall(libc::SYS_io_cancel, context.0, iocb, ptr::from_mut(&mut event)) }) {
        // What success has been called since the kernel stopped filling in `event`.
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.map(drop),
    }
}

fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A count that `check` has let pass.
fn count(result: c_long) -> usize {
    usize::try_from(result).unwrap_or(0)
}
