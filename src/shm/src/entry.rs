//! SQE, CQE and iov entry.
//!
//! In shared memory an entry is a row of atomic 64-bit words; these structs are private copies of one. The
//! conversion is arithmetic, so the bytes do not depend on how the compiler lays a struct out; the `repr(C)`
//! layout is asserted to be the same anyway, for those who dump or store entries.

use std::mem::{offset_of, size_of};

use crate::abi::{CQE_BYTES, IOV_ENTRY_BYTES, SQE_BYTES};

/// Submission queue entry: one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sqe {
    /// [`crate::abi::Opcode`].
    pub op: u8,
    /// [`crate::abi::Class`].
    pub class: u8,
    /// [`crate::abi::sqe_flags`].
    pub flags: u16,
    /// Index into the volumes granted to the session.
    pub volume: u16,
    /// Index of the memory region.
    pub region: u16,
    /// Returned in the CQE, not looked at.
    pub user_data: u64,
    /// Start on the volume. Bytes.
    pub offset: u64,
    /// Length. Bytes.
    pub length: u64,
    /// Start of the data, or of the iovec, in the region. Bytes.
    pub region_offset: u64,
    /// Entries of the iovec (readv, writev).
    pub iov_count: u32,
    /// Time to be issued in. Microseconds, 0: unbounded.
    pub timeout_us: u32,
    /// Argument of the opcode (cancel: user_data of the request to cancel).
    pub arg: u64,
    /// Zero.
    pub reserved: u64,
}

const _: () = {
    assert!(size_of::<Sqe>() == SQE_BYTES as usize);
    assert!(offset_of!(Sqe, op) == 0);
    assert!(offset_of!(Sqe, class) == 1);
    assert!(offset_of!(Sqe, flags) == 2);
    assert!(offset_of!(Sqe, volume) == 4);
    assert!(offset_of!(Sqe, region) == 6);
    assert!(offset_of!(Sqe, user_data) == 8);
    assert!(offset_of!(Sqe, offset) == 16);
    assert!(offset_of!(Sqe, length) == 24);
    assert!(offset_of!(Sqe, region_offset) == 32);
    assert!(offset_of!(Sqe, iov_count) == 40);
    assert!(offset_of!(Sqe, timeout_us) == 44);
    assert!(offset_of!(Sqe, arg) == 48);
    assert!(offset_of!(Sqe, reserved) == 56);
};

impl Sqe {
    /// The eight little-endian words of the entry.
    #[must_use]
    pub fn to_words(&self) -> [u64; 8] {
        [
            u64::from(self.op)
                | u64::from(self.class) << 8
                | u64::from(self.flags) << 16
                | u64::from(self.volume) << 32
                | u64::from(self.region) << 48,
            self.user_data,
            self.offset,
            self.length,
            self.region_offset,
            u64::from(self.iov_count) | u64::from(self.timeout_us) << 32,
            self.arg,
            self.reserved,
        ]
    }

    /// The entry that these words hold. Any words make one: it is for the reader to check.
    #[must_use]
    pub fn from_words(words: [u64; 8]) -> Sqe {
        let [head, user_data, offset, length, region_offset, counts, arg, reserved] = words;
        Sqe {
            op: head as u8,
            class: (head >> 8) as u8,
            flags: (head >> 16) as u16,
            volume: (head >> 32) as u16,
            region: (head >> 48) as u16,
            user_data,
            offset,
            length,
            region_offset,
            iov_count: counts as u32,
            timeout_us: (counts >> 32) as u32,
            arg,
            reserved,
        }
    }
}

/// Completion queue entry: the answer to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cqe {
    /// `user_data` of the SQE.
    pub user_data: u64,
    /// Bytes moved, or a negative errno.
    pub result: i32,
    /// [`crate::abi::cqe_flags`].
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<Cqe>() == CQE_BYTES as usize);
    assert!(offset_of!(Cqe, user_data) == 0);
    assert!(offset_of!(Cqe, result) == 8);
    assert!(offset_of!(Cqe, flags) == 12);
};

impl Cqe {
    /// The two little-endian words of the entry.
    #[must_use]
    pub fn to_words(&self) -> [u64; 2] {
        [self.user_data, u64::from(self.result.cast_unsigned()) | u64::from(self.flags) << 32]
    }

    /// The entry that these words hold.
    #[must_use]
    pub fn from_words([user_data, rest]: [u64; 2]) -> Cqe {
        Cqe { user_data, result: (rest as u32).cast_signed(), flags: (rest >> 32) as u32 }
    }
}

/// One stretch of memory of a readv or writev.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IovEntry {
    /// Index of the memory region.
    pub region: u16,
    /// Zero.
    pub zero: u16,
    /// Length. Bytes.
    pub length: u32,
    /// Start in the region. Bytes.
    pub offset: u64,
}

const _: () = {
    assert!(size_of::<IovEntry>() == IOV_ENTRY_BYTES as usize);
    assert!(offset_of!(IovEntry, region) == 0);
    assert!(offset_of!(IovEntry, zero) == 2);
    assert!(offset_of!(IovEntry, length) == 4);
    assert!(offset_of!(IovEntry, offset) == 8);
};

impl IovEntry {
    /// The two little-endian words of the entry.
    #[must_use]
    pub fn to_words(&self) -> [u64; 2] {
        [u64::from(self.region) | u64::from(self.zero) << 16 | u64::from(self.length) << 32, self.offset]
    }

    /// The entry that these words hold.
    #[must_use]
    pub fn from_words([head, offset]: [u64; 2]) -> IovEntry {
        IovEntry { region: head as u16, zero: (head >> 16) as u16, length: (head >> 32) as u32, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqe_words_round_trip_every_field() {
        let sqe = Sqe {
            op: 1,
            class: 2,
            flags: 0x0403,
            volume: 0x0605,
            region: 0x0807,
            user_data: 9,
            offset: 10,
            length: 11,
            region_offset: 12,
            iov_count: 13,
            timeout_us: 14,
            arg: 15,
            reserved: 16,
        };
        assert_eq!(Sqe::from_words(sqe.to_words()), sqe);
        assert_eq!(sqe.to_words()[0], 0x0807_0605_0403_0201);
        assert_eq!(sqe.to_words()[5], 14 << 32 | 13);
    }

    #[test]
    fn any_words_survive_the_round_trip() {
        let words = [u64::MAX, 1, u64::MAX - 1, 3, 0x8000_0000_0000_0000, 0x1234_5678_9abc_def0, 7, u64::MAX];
        assert_eq!(Sqe::from_words(words).to_words(), words);
        let pair = [u64::MAX, 0xffff_fffb_8000_0000];
        assert_eq!(Cqe::from_words(pair).to_words(), pair);
        assert_eq!(IovEntry::from_words(pair).to_words(), pair);
    }

    #[test]
    fn a_negative_result_does_not_spill_into_the_flags() {
        let cqe = Cqe { user_data: 5, result: -22, flags: 0 };
        assert_eq!(cqe.to_words()[1], 0xffff_ffea);
        assert_eq!(Cqe::from_words(cqe.to_words()), cqe);
    }
}
