//! `linux/aio_abi.h`.

use std::mem::{offset_of, size_of};

/// `struct iocb`: one request. The kernel copies it when it is submitted, writes `key`, and gives its
/// address back in [`IoEvent::obj`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iocb {
    /// Comes back in [`IoEvent::data`].
    pub data: u64,
    #[cfg(target_endian = "little")]
    /// Written by the kernel.
    pub key: u32,
    /// `RWF_*`.
    pub rw_flags: i32,
    #[cfg(target_endian = "big")]
    /// Written by the kernel.
    pub key: u32,
    /// One of [`opcode`].
    pub opcode: u16,
    /// I/O priority, with [`flags::IOPRIO`].
    pub reqprio: i16,
    /// File descriptor.
    pub fildes: u32,
    /// Address of the data, or of the iovecs.
    pub buf: u64,
    /// Bytes, or number of iovecs; for a poll, see [`opcode::POLL`].
    pub nbytes: u64,
    /// Where in the file.
    pub offset: i64,
    /// Must be 0.
    pub reserved2: u64,
    /// See [`flags`].
    pub flags: u32,
    /// The eventfd to signal, with [`flags::RESFD`].
    pub resfd: u32,
}

/// `struct io_event`: one completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoEvent {
    /// [`Iocb::data`].
    pub data: u64,
    /// Address of the [`Iocb`].
    pub obj: u64,
    /// Bytes, or a negative errno.
    pub res: i64,
    /// Second result; 0 for files.
    pub res2: i64,
}

/// `IOCB_CMD_*`.
pub mod opcode {
    /// `pread`.
    pub const PREAD: u16 = 0;
    /// `pwrite`.
    pub const PWRITE: u16 = 1;
    /// `fsync`, asynchronous since Linux 4.18; `buf`, `nbytes`, `offset` and `rw_flags` must be 0.
    pub const FSYNC: u16 = 2;
    /// `fdatasync`; as [`FSYNC`].
    pub const FDSYNC: u16 = 3;
    /// One-shot poll for the events in `buf` (since Linux 4.18).
    pub const POLL: u16 = 5;
    /// Nothing; refused by the kernel with EINVAL.
    pub const NOOP: u16 = 6;
    /// `preadv`.
    pub const PREADV: u16 = 7;
    /// `pwritev`.
    pub const PWRITEV: u16 = 8;
}

/// `IOCB_FLAG_*`.
pub mod flags {
    /// Signal the eventfd in `resfd` when the request completes.
    pub const RESFD: u32 = 1 << 0;
    /// `reqprio` is valid.
    pub const IOPRIO: u32 = 1 << 1;
}

/// `RWF_*`, for `rw_flags`.
pub mod rwf {
    /// High priority (polled completion).
    pub const HIPRI: i32 = 1;
    /// As if opened with `O_DSYNC`.
    pub const DSYNC: i32 = 2;
    /// As if opened with `O_SYNC`.
    pub const SYNC: i32 = 4;
    /// EAGAIN rather than block.
    pub const NOWAIT: i32 = 8;
    /// Append.
    pub const APPEND: i32 = 16;
}

/// `struct aio_ring` of `fs/aio.c`: the head of the completion ring that is mapped at the context's own
/// address. Not in a header of the kernel, but what libaio and others have relied on since 2.6.
#[repr(C)]
pub(crate) struct RingHeader {
    pub(crate) id: u32,
    pub(crate) entries: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) magic: u32,
    pub(crate) compat_features: u32,
    pub(crate) incompat_features: u32,
    pub(crate) header_bytes: u32,
}

pub(crate) const RING_MAGIC: u32 = 0xa10a_10a1;

const _: () = {
    assert!(size_of::<Iocb>() == 64);
    assert!(offset_of!(Iocb, opcode) == 16);
    assert!(offset_of!(Iocb, fildes) == 20);
    assert!(offset_of!(Iocb, buf) == 24);
    assert!(offset_of!(Iocb, offset) == 40);
    assert!(offset_of!(Iocb, flags) == 56);
    assert!(offset_of!(Iocb, resfd) == 60);
    assert!(size_of::<IoEvent>() == 32);
    assert!(size_of::<RingHeader>() == 32);
    assert!(offset_of!(RingHeader, head) == 8);
    assert!(offset_of!(RingHeader, magic) == 16);
};
