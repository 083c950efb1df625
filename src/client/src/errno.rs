//! Errnos of completions, with the names that the ABI gives them.

use std::fmt;
use std::io;

use ferrio_shm::abi::errno;

/// A Linux error number, as found negated in a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Errno = Errno(errno::$name);)*

            /// The symbolic name, for the errnos that the ABI uses.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    ENOENT, "Cancel: no such request. Attach: no such token, or one that was used or expired.";
    ESRCH, "Attach: the process cannot be watched.";
    EIO, "The device failed.";
    ENXIO, "Region index not known.";
    EBADF, "Volume index not granted.";
    ENOMEM, "The kernel has no memory for the request.";
    EACCES, "Attach: the token belongs to another process or user.";
    EFAULT, "Memory out of the region's bounds or misaligned.";
    EBUSY, "RegionAdd: index in use. RegionRemove: I/O in flight.";
    EXDEV, "The volume belongs to another engine than the queue.";
    ENODEV, "The device is gone.";
    EINVAL, "Misaligned offset or length, zero length, unknown opcode, class or flag, or a field that must be zero.";
    ENOSPC, "The volume's file system is full.";
    EROFS, "The volume was granted read-only.";
    ERANGE, "Range beyond the end of the volume.";
    EILSEQ, "Compare-and-write: the content differs.";
    EMSGSIZE, "Length beyond the limit.";
    EOPNOTSUPP, "Defined by the ABI but not served here.";
    ENOBUFS, "Attach: an engine has no place for the session.";
    ESHUTDOWN, "The daemon is stopping.";
    ETIMEDOUT, "The timeout passed before the request was issued. Attach: no message came.";
    EALREADY, "Cancel: the request was issued already.";
    ESTALE, "Resume: the session is not known to this daemon.";
    ECANCELED, "Cancelled, or a request before it in its chain failed.";
    EOWNERDEAD, "The daemon died while the request ran: whether it took effect is not known.";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.name() {
            write!(f, "{name}: ")?;
        }
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}
