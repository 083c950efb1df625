//! What can be wrong with a ring.

/// No room: reap completions and try again. The entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: reap completions and submit again")]
pub struct Full;

/// The other side broke the ring protocol. The ring cannot be used any more.
///
/// An index that went backwards shows up as one that is far ahead: the indices wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The client's sq_tail covers more than the SQ ring holds.
    #[error("sq_tail is {tail}, with sq_head {head} it may be at most {} ({entries} SQ entries)", .head.wrapping_add(*.entries))]
    SqTailAhead {
        /// The daemon's next SQE.
        head: u32,
        /// Value found.
        tail: u32,
        /// SQ entries.
        entries: u32,
    },
    /// The client's cq_head released entries that were not posted, or took a release back.
    #[error("cq_head is {head}, it must be from {released} (released before) to {tail} (posted)")]
    CqHeadAhead {
        /// Last value that was right.
        released: u32,
        /// Value found.
        head: u32,
        /// CQEs posted.
        tail: u32,
    },
    /// The client published an SQE without a free CQ entry for its answer.
    #[error(
        "SQE published without a free CQ entry: {entries} CQ entries are in flight or not released; release completions before submitting"
    )]
    CqOverbooked {
        /// CQ entries.
        entries: u32,
    },
    /// The daemon's cq_tail covers more than the CQ ring holds.
    #[error("cq_tail is {tail}, with cq_head {head} it may be at most {} ({entries} CQ entries)", .head.wrapping_add(*.entries))]
    CqTailAhead {
        /// The client's next CQE.
        head: u32,
        /// Value found.
        tail: u32,
        /// CQ entries.
        entries: u32,
    },
}
