//! Sleeping in poll(2) until a descriptor is readable.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Which of the two descriptors woke the sleeper; neither: the time is over, or a signal came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Woken {
    pub doorbell: bool,
    pub lease: bool,
}

/// Sleeps until one of the two is readable or hung up.
pub(crate) fn either(
    doorbell: BorrowedFd<'_>,
    lease: BorrowedFd<'_>,
    until: Option<Instant>,
) -> io::Result<Woken> {
    let mut fds =
        [PollFd::from_borrowed_fd(doorbell, PollFlags::IN), PollFd::from_borrowed_fd(lease, PollFlags::IN)];
    match poll(&mut fds, timespec(until).as_ref()) {
        Ok(_) => Ok(Woken { doorbell: !fds[0].revents().is_empty(), lease: !fds[1].revents().is_empty() }),
        Err(rustix::io::Errno::INTR) => Ok(Woken::default()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sleeps until the descriptor is readable or hung up; false: the time is over.
pub(crate) fn readable(fd: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<bool> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timespec(until).as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timespec(until: Option<Instant>) -> Option<Timespec> {
    let left: Duration = until?.saturating_duration_since(Instant::now());
    // A time that does not fit is longer than anyone waits.
    Timespec::try_from(left).ok()
}
