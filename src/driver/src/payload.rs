//! Payloads of requests, erased: a union of what each kind of request needs, and a static table per kind of what can be
//! done with it. So a request of any kind goes by value through slots, queues and threads, without an
//! allocation and no larger than the largest kind.
//!
//! A kind says how each backend builds its entry, and how a helper thread does it all in one. What a request pins is
//! not here: the ledger releases that by its slot.

use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};

use io_uring::{opcode, squeue, types};
use libaio_sys::{Iocb, abi};
use libc::iovec;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

use crate::driver::{Op, OpKind};
use crate::ledger::Transfer;
use crate::target::{Method, Target};

/// A request of some kind, and the description it goes to.
///
/// The addresses in it are for the kernel to follow. Whoever lets a payload be carried out sees to it that they are valid
/// until that has ended: the ledger pins file, region and iovec of an armed request.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    table: &'static Table,
    fd: RawFd,
    data: Data,
}

// SAFETY: the addresses are followed by the kernel alone, which does not care which thread asks it to.
unsafe impl Send for Payload {}

/// Room for the data of one kind: which one, the table beside it knows.
#[derive(Clone, Copy)]
#[repr(C)]
union Data {
    transfer: Transferred,
    vector: Vector,
    range: Range,
}

/// The functions of one kind. Each must be called with data of that kind.
struct Table {
    name: &'static str,
    sqe: unsafe fn(&Data, types::Fd, Option<u16>) -> Option<squeue::Entry>,
    iocb: unsafe fn(&Data) -> Option<Iocb>,
    perform: unsafe fn(&Data, RawFd) -> i32,
}

/// What a kind of request is. Implemented by plain data that fits into [`Data`].
trait Kind: Copy {
    const NAME: &'static str;

    /// Its entry for io_uring; none if that has no such operation. `fixed` is the registered buffer that all its memory
    /// lies in.
    fn sqe(self, fd: types::Fd, fixed: Option<u16>) -> Option<squeue::Entry>;

    /// Its entry for AIO, but for what all have in common; none if that has no such operation.
    fn iocb(self) -> Option<Iocb>;

    /// Does it, and may sleep for long. Bytes, 0, or a negative errno.
    fn perform(self, fd: BorrowedFd<'_>) -> i32;
}

/// The table of a kind.
struct TableOf<K>(K);

impl<K: Kind> TableOf<K> {
    const TABLE: Table = Table {
        name: K::NAME,
        sqe: |data, fd, fixed| {
            // SAFETY: the caller's promise: `data` is of this kind.
            unsafe { data.get::<K>() }.sqe(fd, fixed)
        },
        iocb: |data| {
            // SAFETY: as above.
            unsafe { data.get::<K>() }.iocb()
        },
        perform: |data, fd| {
            // SAFETY: as above; the description stays open for as long as the request is armed.
            unsafe { data.get::<K>().perform(BorrowedFd::borrow_raw(fd)) }
        },
    };
}

impl Data {
    fn new<K: Kind>(kind: K) -> Data {
        const { assert!(size_of::<K>() <= size_of::<Data>() && align_of::<K>() <= align_of::<Data>()) };
        let mut data = Data { range: Range { offset: 0, length: 0, end_or_mode: 0 } };
        // SAFETY: there is room for a `K` (asserted), and any bytes are a valid union.
        unsafe { (&raw mut data).cast::<K>().write(kind) };
        data
    }

    /// # Safety
    ///
    /// It was made of a `K`.
    unsafe fn get<K: Kind>(&self) -> K {
        // SAFETY: the caller's promise; size and alignment were asserted when it was made.
        unsafe { std::ptr::from_ref(self).cast::<K>().read() }
    }
}

impl Payload {
    fn new<K: Kind>(fd: RawFd, kind: K) -> Payload {
        Payload { table: &TableOf::<K>::TABLE, fd, data: Data::new(kind) }
    }

    /// Of a request that has been checked and goes to the kernel.
    pub(crate) fn of(op: &Op, transfer: Transfer, target: &Target) -> Payload {
        let Transfer { fd, address } = transfer;
        let Op { offset, length, fua, .. } = *op;
        let range = |end_or_mode| Range { offset, length: length.into(), end_or_mode };
        match op.kind {
            OpKind::Read => Payload::new(fd, Read(Transferred { address, offset, length, flags: 0 })),
            OpKind::Write => {
                Payload::new(fd, Write(Transferred { address, offset, length, flags: write_flags(fua) }))
            }
            OpKind::Nop | OpKind::Flush => Payload::new(fd, Flush),
            OpKind::Discard | OpKind::WriteZeroes => match target.method(op.kind) {
                Method::Fallocate(mode) => Payload::new(fd, Fallocate(range(mode.bits().into()))),
                Method::DeviceDiscard => Payload::new(fd, DeviceDiscard(range(0))),
                // What is not supported never gets here, and of nothing nothing needs to be written.
                Method::Write | Method::Nothing | Method::Unsupported => {
                    Payload::new(fd, WriteZeroes(range(target.size_bytes())))
                }
            },
        }
    }

    /// Of a read or write over the iovec of `count` entries.
    pub(crate) fn vectored(op: &Op, fd: RawFd, (iovec, count): (*const iovec, u32)) -> Payload {
        let vector = Vector { iovec, offset: op.offset, count, flags: 0 };
        match op.kind {
            OpKind::Write => Payload::new(fd, WriteVector(Vector { flags: write_flags(op.fua), ..vector })),
            _ => Payload::new(fd, ReadVector(vector)),
        }
    }

    /// The description it goes to.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) fn sqe(&self, fixed: Option<u16>) -> Option<squeue::Entry> {
        // SAFETY: table and data were made of the same kind.
        unsafe { (self.table.sqe)(&self.data, types::Fd(self.fd), fixed) }
    }

    pub(crate) fn iocb(&self) -> Option<Iocb> {
        // SAFETY: table and data were made of the same kind.
        let iocb = unsafe { (self.table.iocb)(&self.data) }?;
        Some(Iocb { fildes: self.fd.cast_unsigned(), ..iocb })
    }

    /// # Safety
    ///
    /// The memory that the payload names is mapped, and its description open, until this returns.
    pub(crate) unsafe fn perform(&self) -> i32 {
        // SAFETY: table and data were made of the same kind; the rest is the caller's promise.
        unsafe { (self.table.perform)(&self.data, self.fd) }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("kind", &self.table.name)
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

fn write_flags(fua: bool) -> i32 {
    if fua { libc::RWF_DSYNC } else { 0 }
}

/// One stretch of memory.
#[derive(Clone, Copy)]
struct Transferred {
    address: *mut u8,
    offset: u64,
    length: u32,
    /// `RWF_*`.
    flags: i32,
}

/// Several stretches of memory.
#[derive(Clone, Copy)]
struct Vector {
    iovec: *const iovec,
    offset: u64,
    count: u32,
    /// `RWF_*`.
    flags: i32,
}

/// Bytes of the target.
#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    length: u64,
    /// Where the target ends, or the mode of `fallocate`.
    end_or_mode: u64,
}

#[derive(Clone, Copy)]
struct Read(Transferred);

impl Kind for Read {
    const NAME: &'static str = "read";

    fn sqe(self, fd: types::Fd, fixed: Option<u16>) -> Option<squeue::Entry> {
        let Transferred { address, offset, length, .. } = self.0;
        Some(match fixed {
            Some(fixed) => opcode::ReadFixed::new(fd, address, length, fixed).offset(offset).build(),
            None => opcode::Read::new(fd, address, length).offset(offset).build(),
        })
    }

    fn iocb(self) -> Option<Iocb> {
        Some(self.0.iocb(abi::opcode::PREAD))
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        self.0.as_vector(|vector| ReadVector(vector).perform(fd))
    }
}

#[derive(Clone, Copy)]
struct Write(Transferred);

impl Kind for Write {
    const NAME: &'static str = "write";

    fn sqe(self, fd: types::Fd, fixed: Option<u16>) -> Option<squeue::Entry> {
        let Transferred { address, offset, length, flags } = self.0;
        Some(match fixed {
            Some(fixed) => {
                opcode::WriteFixed::new(fd, address, length, fixed).offset(offset).rw_flags(flags).build()
            }
            None => opcode::Write::new(fd, address, length).offset(offset).rw_flags(flags).build(),
        })
    }

    fn iocb(self) -> Option<Iocb> {
        Some(self.0.iocb(abi::opcode::PWRITE))
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        self.0.as_vector(|vector| WriteVector(vector).perform(fd))
    }
}

impl Transferred {
    fn iocb(self, opcode: u16) -> Iocb {
        Iocb {
            opcode,
            rw_flags: self.flags,
            buf: self.address.expose_provenance() as u64,
            nbytes: self.length.into(),
            offset: self.offset.cast_signed(),
            ..Iocb::default()
        }
    }

    fn as_vector(self, perform: impl FnOnce(Vector) -> i32) -> i32 {
        let iovec = iovec { iov_base: self.address.cast(), iov_len: self.length as usize };
        perform(Vector { iovec: &raw const iovec, offset: self.offset, count: 1, flags: self.flags })
    }
}

#[derive(Clone, Copy)]
struct ReadVector(Vector);

impl Kind for ReadVector {
    const NAME: &'static str = "readv";

    fn sqe(self, fd: types::Fd, fixed: Option<u16>) -> Option<squeue::Entry> {
        let Vector { iovec, offset, count, .. } = self.0;
        Some(match fixed {
            Some(fixed) => opcode::ReadvFixed::new(fd, iovec, count, fixed).offset(offset).build(),
            None => opcode::Readv::new(fd, iovec, count).offset(offset).build(),
        })
    }

    fn iocb(self) -> Option<Iocb> {
        Some(self.0.iocb(abi::opcode::PREADV))
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        // SAFETY: the iovec and what it names are valid until the request is answered (see `Payload`).
        self.0.call(|Vector { iovec, offset, count, flags }| unsafe {
            libc::preadv2(fd_of(fd), iovec, count.cast_signed(), offset.cast_signed(), flags)
        })
    }
}

#[derive(Clone, Copy)]
struct WriteVector(Vector);

impl Kind for WriteVector {
    const NAME: &'static str = "writev";

    fn sqe(self, fd: types::Fd, fixed: Option<u16>) -> Option<squeue::Entry> {
        let Vector { iovec, offset, count, flags } = self.0;
        Some(match fixed {
            Some(fixed) => {
                opcode::WritevFixed::new(fd, iovec, count, fixed).offset(offset).rw_flags(flags).build()
            }
            None => opcode::Writev::new(fd, iovec, count).offset(offset).rw_flags(flags).build(),
        })
    }

    fn iocb(self) -> Option<Iocb> {
        Some(self.0.iocb(abi::opcode::PWRITEV))
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        // SAFETY: the iovec and what it names are valid until the request is answered (see `Payload`).
        self.0.call(|Vector { iovec, offset, count, flags }| unsafe {
            libc::pwritev2(fd_of(fd), iovec, count.cast_signed(), offset.cast_signed(), flags)
        })
    }
}

impl Vector {
    fn iocb(self, opcode: u16) -> Iocb {
        Iocb {
            opcode,
            rw_flags: self.flags,
            buf: self.iovec.expose_provenance() as u64,
            nbytes: self.count.into(),
            offset: self.offset.cast_signed(),
            ..Iocb::default()
        }
    }

    fn call(self, call: impl Fn(Vector) -> isize) -> i32 {
        loop {
            // At most LENGTH_MAX.
            match i32::try_from(call(self)) {
                Ok(-1) => match std::io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    errno => return -errno.unwrap_or(libc::EIO),
                },
                result => return result.unwrap_or(-libc::EIO),
            }
        }
    }
}

fn fd_of(fd: BorrowedFd<'_>) -> RawFd {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}

#[derive(Clone, Copy)]
struct Flush;

impl Kind for Flush {
    const NAME: &'static str = "flush";

    fn sqe(self, fd: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        Some(opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build())
    }

    /// With an address, a length or flags it would be refused.
    fn iocb(self) -> Option<Iocb> {
        Some(Iocb { opcode: abi::opcode::FDSYNC, ..Iocb::default() })
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        result(retry_on_intr(|| rustix::fs::fdatasync(fd)))
    }
}

/// Discard and write-zeroes, where the file system or the device does it.
#[derive(Clone, Copy)]
struct Fallocate(Range);

impl Fallocate {
    fn mode(self) -> FallocateFlags {
        FallocateFlags::from_bits_retain(self.0.end_or_mode as u32)
    }
}

impl Kind for Fallocate {
    const NAME: &'static str = "fallocate";

    fn sqe(self, fd: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        let mode = self.mode().bits().cast_signed();
        Some(opcode::Fallocate::new(fd, self.0.length).offset(self.0.offset).mode(mode).build())
    }

    fn iocb(self) -> Option<Iocb> {
        None
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        result(retry_on_intr(|| rustix::fs::fallocate(fd, self.mode(), self.0.offset, self.0.length)))
    }
}

/// Discard on a block device.
#[derive(Clone, Copy)]
struct DeviceDiscard(Range);

/// `BLKDISCARD`: `_IO(0x12, 119)`.
const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);

impl Kind for DeviceDiscard {
    const NAME: &'static str = "discard";

    fn sqe(self, _: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        None
    }

    fn iocb(self) -> Option<Iocb> {
        None
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        let range = [self.0.offset, self.0.length];
        // SAFETY: BLKDISCARD reads two u64, start and length in bytes, from the address given; it takes a pointer
        // despite its number.
        let discarded = retry_on_intr(|| unsafe {
            rustix::ioctl::ioctl(fd, rustix::ioctl::Setter::<BLKDISCARD, [u64; 2]>::new(range))
        });
        result(discarded)
    }
}

/// Write-zeroes, where nobody does it for us.
#[derive(Clone, Copy)]
struct WriteZeroes(Range);

/// Aligned for every disk.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);

static ZEROES: Zeroes = Zeroes([0; 64 << 10]);
/// How often they go into one call.
const ZEROES_VECTOR: usize = 16;

impl Kind for WriteZeroes {
    const NAME: &'static str = "write-zeroes";

    fn sqe(self, _: types::Fd, _: Option<u16>) -> Option<squeue::Entry> {
        None
    }

    fn iocb(self) -> Option<Iocb> {
        None
    }

    fn perform(self, fd: BorrowedFd<'_>) -> i32 {
        let Range { mut offset, length, end_or_mode: end } = self.0;
        // Never beyond the end: that would make the file longer.
        let end = offset.saturating_add(length).min(end);
        while offset < end {
            let mut left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let slices: [std::io::IoSlice<'_>; ZEROES_VECTOR] = std::array::from_fn(|_| {
                let now = left.min(ZEROES.0.len());
                left -= now;
                std::io::IoSlice::new(&ZEROES.0[..now])
            });
            match retry_on_intr(|| rustix::io::pwritev(fd, &slices, offset)) {
                Ok(0) => return -libc::EIO,
                Ok(written) => offset += written as u64,
                Err(errno) => return result(Err(errno)),
            }
        }
        0
    }
}

fn result(outcome: Result<(), Errno>) -> i32 {
    outcome.map_or_else(|errno| -errno.raw_os_error(), |()| 0)
}

#[cfg(test)]
mod tests;
