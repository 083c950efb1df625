//! Sleeping on descriptors.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// With requests left that the kernel had no memory for, nobody else may wake us: look again soon.
pub(crate) const RETRY: Duration = Duration::from_millis(1);

/// Sleeps until one of the descriptors is readable, a signal came or `timeout` has passed; says which are.
pub(crate) fn readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let timeout = timeout.map(timespec);
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(Errno::INTR) => Ok([false; N]),
        Err(errno) => Err(errno.into()),
    }
}

/// The shorter of a wish and a bound.
pub(crate) fn at_most(timeout: Option<Duration>, bound: Duration) -> Option<Duration> {
    Some(timeout.map_or(bound, |timeout| timeout.min(bound)))
}

fn timespec(timeout: Duration) -> Timespec {
    // Longer than the kernel's time type is as good as for ever.
    let tv_sec = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() }
}
