//! Doorbells between processes: an eventfd towards the daemon, a socket towards the client.
//!
//! The daemon must not block on what it shares with a hostile client, whatever the client does with its end. That
//! excludes the obvious ones:
//! - a pipe: its readers and writers copy under one mutex. A client that reads into (or writes from) memory whose page
//!   fault it serves itself, by userfaultfd or FUSE, holds that mutex for as long as it likes, and O_NONBLOCK does not
//!   help the daemon against a mutex;
//! - an eventfd towards the client: writing to a full one blocks, unless O_NONBLOCK is set in the description, which
//!   both sides share and the client can change.
//!
//! Reading an eventfd takes a flag per call and copies outside its lock, so it serves towards the daemon. Sending on
//! a socket takes a flag per call and never waits for the receiver; its receiving side is shut down at the daemon's end,
//! so that the client cannot fill it with messages or descriptors that the daemon would have to dispose of.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, shutdown, socketpair,
    sockopt,
};

/// What a ring writes: the eventfd adds it, the socket carries it.
const RING: [u8; 8] = 1u64.to_ne_bytes();
/// Most that one drain takes. Bytes.
const DRAIN_BYTES: usize = 4096;

/// A new doorbell towards the daemon, which keeps the second end.
pub fn doorbell_to_daemon() -> io::Result<(DoorbellTx, DoorbellRx)> {
    let rx = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let tx = rx.try_clone()?;
    Ok((DoorbellTx(End::Event(tx)), DoorbellRx(End::Event(rx))))
}

/// A new doorbell towards a client; the daemon keeps the first end.
pub fn doorbell_to_client() -> io::Result<(DoorbellTx, DoorbellRx)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tx, rx) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    shutdown(&tx, Shutdown::Read)?;
    // One ring that is not heard yet would do; the kernel raises this to its minimum, which holds a few.
    sockopt::set_socket_send_buffer_size(&tx, 1)?;
    Ok((DoorbellTx(End::Socket(tx)), DoorbellRx(End::Socket(rx))))
}

#[derive(Debug)]
enum End {
    Event(OwnedFd),
    Socket(OwnedFd),
}

impl End {
    fn fd(&self) -> &OwnedFd {
        match self {
            End::Event(fd) | End::Socket(fd) => fd,
        }
    }

    fn into_fd(self) -> OwnedFd {
        match self {
            End::Event(fd) | End::Socket(fd) => fd,
        }
    }
}

/// The end that rings.
#[derive(Debug)]
pub struct DoorbellTx(End);

/// The end that is polled.
#[derive(Debug)]
pub struct DoorbellRx(End);

/// What [`DoorbellRx::drain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// It was rung.
    Rang,
    /// Nothing.
    Empty,
    /// Nothing, and nobody is left to ring. Only a client learns this; the daemon has the lease for it.
    Closed,
}

impl DoorbellTx {
    /// The end towards the daemon, received from it.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> DoorbellTx {
        DoorbellTx(End::Event(fd))
    }

    /// Rings. A full doorbell is one that was rung already. The error of a client that is gone is BrokenPipe.
    pub fn ring(&self) -> io::Result<()> {
        let rung = match &self.0 {
            // The daemon empties it, and writes nothing itself: this end may rely on the description's flag.
            End::Event(fd) => retry_on_intr(|| rustix::io::write(fd, &RING)),
            End::Socket(fd) => {
                retry_on_intr(|| net::send(fd, &RING, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
            }
        };
        match rung {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl DoorbellRx {
    /// The end of a client, received from the daemon.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> DoorbellRx {
        DoorbellRx(End::Socket(fd))
    }

    /// Takes the rings out. Look at the rings of all queues behind the doorbell **after** this. One read only: a
    /// peer that rings without end makes it ready again, but does not keep the caller here.
    pub fn drain(&self) -> io::Result<Drained> {
        let mut rings = [0; DRAIN_BYTES];
        let taken = match &self.0 {
            End::Event(fd) => retry_on_intr(|| {
                // The offset -1 is that of read(2).
                preadv2(fd, &mut [IoSliceMut::new(&mut rings)], u64::MAX, ReadWriteFlags::NOWAIT)
            }),
            End::Socket(fd) => {
                retry_on_intr(|| net::recv(fd, &mut rings[..], RecvFlags::DONTWAIT).map(|(taken, _)| taken))
            }
        };
        match taken {
            Ok(0) => Ok(Drained::Closed),
            Ok(_) => Ok(Drained::Rang),
            Err(Errno::AGAIN) => Ok(Drained::Empty),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for DoorbellTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd().as_fd()
    }
}

impl AsFd for DoorbellRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd().as_fd()
    }
}

impl From<DoorbellTx> for OwnedFd {
    fn from(doorbell: DoorbellTx) -> OwnedFd {
        doorbell.0.into_fd()
    }
}

impl From<DoorbellRx> for OwnedFd {
    fn from(doorbell: DoorbellRx) -> OwnedFd {
        doorbell.0.into_fd()
    }
}
