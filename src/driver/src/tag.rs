//! What travels through the kernel in `user_data`.

use std::fmt;

/// Slot index and generation of one request; 64 bits, because that is what the kernel hands back.
///
/// ```text
///    63   62         32 31             0
///  +------+------------+----------------+
///  | help | generation |   slot index   |   generation is odd while the slot is occupied
///  +------+------------+----------------+
/// ```
///
/// `help` says that a helper thread has the request, not the kernel: an answer counts only from whoever has it.
/// A completion is believed only if its generation is the one the slot has now. Indices from
/// [`Tag::CONTROL_BASE`] up belong to no slot: the driver's own requests (arming a poll, cancelling it)
/// use them, and their completions are never shown outside.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(u64);

impl Tag {
    /// First index that is not a slot.
    pub const CONTROL_BASE: u32 = 0xffff_ff00;

    /// Bits of a generation.
    pub(crate) const GENERATION: u32 = u32::MAX >> 1;
    const HELP: u64 = 1 << 63;

    pub(crate) const fn new(generation: u32, index: u32) -> Tag {
        Tag((generation as u64) << 32 | index as u64)
    }

    pub(crate) const fn control(kind: u8, generation: u32) -> Tag {
        Tag::new(generation, Tag::CONTROL_BASE | kind as u32)
    }

    /// The tag that a completion's `user_data` carries.
    pub const fn from_user_data(user_data: u64) -> Tag {
        Tag(user_data)
    }

    /// What goes into `user_data`.
    pub const fn user_data(self) -> u64 {
        self.0
    }

    /// Index of the slot.
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// Generation of the slot when the request was reserved.
    pub const fn generation(self) -> u32 {
        self.owner() & Tag::GENERATION
    }

    /// Generation and `help`.
    pub(crate) const fn owner(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same request, in the hands of a helper.
    pub(crate) const fn helped(self) -> Tag {
        Tag(self.0 | Tag::HELP)
    }

    /// The request, whoever has it.
    pub(crate) const fn plain(self) -> Tag {
        Tag(self.0 & !Tag::HELP)
    }

    /// A request of the driver itself, not of a slot.
    pub const fn is_control(self) -> bool {
        self.index() >= Tag::CONTROL_BASE
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({}@{})", self.index(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_index_and_generation() {
        let tag = Tag::new(0x5ead_beef, 77);
        assert_eq!((tag.index(), tag.generation()), (77, 0x5ead_beef));
        assert_eq!(Tag::from_user_data(tag.user_data()), tag);
        let helped = tag.helped();
        assert_eq!((helped.index(), helped.generation(), helped.plain()), (77, 0x5ead_beef, tag));
        assert_ne!(helped, tag);
        assert!(!tag.is_control());
        let poll = Tag::control(3, 9);
        assert!(poll.is_control());
        assert_eq!(poll.generation(), 9);
    }
}
