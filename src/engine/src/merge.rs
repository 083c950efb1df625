//! Stage 5: adjacent requests become one operation. Pure.
//!
//! What is joined goes on where the one before it ends, in the same volume, in the same direction, with or without FUA like
//! the others, and of the same class: the scheduler says which requests those may be. The memory stays where it is: one
//! segment per request. Flushes, discards and compare-and-writes are never joined; requests that a barrier or a chain holds
//! apart are never in the class queues together.
//!
//! Which requests meet is for [`plug`]. Only the whole operation tells something of its parts: if it is short or fails, each
//! part is issued again by itself ([`outcome`]), so that every client gets the result of its own bytes.

pub mod plug;

use ferrio_driver::{LENGTH_MAX, Op, OpKind, SEGMENTS_MAX, Segment};

use crate::config::EngineError;

/// How much is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeLimits {
    /// Bytes of one operation, up to 1 GiB; what is larger by itself is not joined with anything.
    pub bytes_max: u32,
    /// Requests in one operation, up to 256; 1 joins nothing.
    pub segments_max: u32,
}

impl MergeLimits {
    /// Nothing is joined.
    pub const OFF: Self = Self { bytes_max: 0, segments_max: 1 };

    /// # Errors
    /// A limit is out of its range.
    pub fn check(&self) -> Result<(), EngineError> {
        let check = EngineError::check_setting;
        check("bytes of a merged operation", self.bytes_max.into(), 0..=LENGTH_MAX.into())?;
        check("requests in a merged operation", self.segments_max.into(), 1..=SEGMENTS_MAX as u64)
    }

    /// The same, with one way to say that nothing is joined.
    fn or_off(self) -> Self {
        if self.segments_max < 2 { Self::OFF } else { self }
    }
}

impl Default for MergeLimits {
    fn default() -> Self {
        Self { bytes_max: 512 << 10, segments_max: 32 }
    }
}

/// One operation in the making.
#[derive(Clone, Copy, Debug)]
pub struct Merge {
    op: Op,
    parts: u32,
    limits: MergeLimits,
}

impl Merge {
    /// An operation of one request.
    pub fn new(op: Op, limits: MergeLimits) -> Self {
        Self { op, parts: 1, limits }
    }

    /// There is room for a request of any length.
    pub fn has_room(&self) -> bool {
        let data = matches!(self.op.kind, OpKind::Read | OpKind::Write);
        let parts_max = self.limits.segments_max.min(SEGMENTS_MAX as u32);
        data && self.parts < parts_max && self.op.length < self.limits.bytes_max
    }

    /// Where the next request must begin, in bytes of the volume.
    pub fn end(&self) -> u64 {
        self.op.end()
    }

    /// A request of so many bytes, FUA or not, that begins at [`Self::end`], may be joined.
    fn takes(&self, bytes: u64, fua: bool) -> bool {
        self.has_room()
            && fua == self.op.fua
            && u64::from(self.op.length).saturating_add(bytes) <= u64::from(self.limits.bytes_max)
    }

    /// Joins a request, if it can be; returns whether.
    pub fn join(&mut self, op: &Op) -> bool {
        let same = op.kind == self.op.kind && op.file == self.op.file && op.offset == self.end();
        if !same || !self.takes(op.length.into(), op.fua) {
            return false;
        }
        self.op.length += op.length;
        self.parts += 1;
        true
    }

    /// The operation: its memory is that of its segments.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// Requests in it.
    pub fn parts(&self) -> u32 {
        self.parts
    }
}

/// The memory of one request.
pub fn segment(op: &Op) -> Segment {
    Segment { region: op.region, offset: op.region_offset, length: op.length }
}

/// The operation with this memory, and as much data: what [`segment`] is the other way round.
pub fn with_memory(op: &Op, memory: Segment) -> Op {
    Op { region: memory.region, region_offset: memory.offset, length: memory.length, ..*op }
}

/// What the result of a joined operation says about its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each part has all its bytes.
    Whole,
    /// Nothing about any one part: each is issued again.
    Singly,
}

/// See [`Outcome`].
pub fn outcome(result: i32, bytes: u64) -> Outcome {
    match u64::try_from(result) {
        Ok(moved) if moved == bytes => Outcome::Whole,
        _ => Outcome::Singly,
    }
}

#[cfg(test)]
mod tests {
    use ferrio_driver::{FileIndex, RegionIndex};
    use proptest::prelude::*;

    use super::*;

    const READ: Op = Op {
        kind: OpKind::Read,
        file: FileIndex(1),
        region: RegionIndex(0),
        region_offset: 0,
        length: 4096,
        offset: 8192,
        fua: false,
    };

    #[test]
    fn joins_what_goes_on_where_it_ends() {
        let mut merge = Merge::new(READ, MergeLimits::default());
        let next = Op { offset: merge.end(), region: RegionIndex(7), region_offset: 1 << 20, ..READ };
        assert!(merge.join(&next));
        assert_eq!((merge.op().offset, merge.op().length, merge.parts()), (8192, 8192, 2));
    }

    #[test]
    fn joins_nothing_else() {
        let next = Op { offset: 12288, ..READ };
        for (what, op) in [
            ("a gap", Op { offset: 16384, ..next }),
            ("an overlap", Op { offset: 8192, ..next }),
            ("what lies before it", Op { offset: 4096, ..next }),
            ("another volume", Op { file: FileIndex(2), ..next }),
            ("another direction", Op { kind: OpKind::Write, ..next }),
            ("a flush", Op { kind: OpKind::Flush, ..next }),
            ("FUA beside none", Op { fua: true, ..next }),
            ("too many bytes", Op { length: 512 << 10, ..next }),
        ] {
            assert!(!Merge::new(READ, MergeLimits::default()).join(&op), "{what}");
        }
        for kind in [OpKind::Flush, OpKind::Discard, OpKind::WriteZeroes, OpKind::Nop] {
            let mut merge = Merge::new(Op { kind, ..READ }, MergeLimits::default());
            assert!(!merge.join(&Op { kind, ..next }), "{kind:?}");
        }
        assert!(!Merge::new(READ, MergeLimits::OFF).join(&next));
    }

    #[test]
    fn the_limits_hold_for_the_sum() {
        let limits = MergeLimits { bytes_max: 10_000, segments_max: 8 };
        let mut merge = Merge::new(READ, limits);
        assert!(merge.join(&Op { offset: merge.end(), ..READ }));
        assert!(!merge.join(&Op { offset: merge.end(), ..READ }), "each is small, all are too many bytes");
        assert!(merge.join(&Op { offset: merge.end(), length: 512, ..READ }));
        let mut merge = Merge::new(READ, MergeLimits { bytes_max: 1 << 20, segments_max: 3 });
        let joined = (0..10)
            .filter(|_| {
                let offset = merge.end();
                merge.join(&Op { offset, ..READ })
            })
            .count();
        assert_eq!(joined, 2);
        let large = Op { length: 1 << 30, ..READ };
        let mut merge = Merge::new(large, MergeLimits { bytes_max: u32::MAX, segments_max: 300 });
        assert!(merge.join(&Op { offset: merge.end(), ..large }), "no overflow below the limit");
    }

    #[test]
    fn only_a_whole_result_answers_the_parts() {
        assert_eq!(outcome(8192, 8192), Outcome::Whole);
        for result in [-5, 0, 4096, 8191, 8193, i32::MIN] {
            assert_eq!(outcome(result, 8192), Outcome::Singly, "{result}");
        }
    }

    proptest! {
        /// Against the bytes themselves: what is joined covers the same range, once, in order, within the limits.
        #[test]
        fn covers_its_parts(
            lengths in prop::collection::vec(1..20u32, 1..100),
            gaps in prop::collection::vec(prop::bool::weighted(0.1), 100),
            bytes_max in 1..100_000u32,
            segments_max in 1..40u32,
        ) {
            let limits = MergeLimits { bytes_max, segments_max };
            let mut offset = 0;
            let mut ops = Vec::new();
            for (length, gap) in lengths.into_iter().zip(gaps) {
                offset += u64::from(gap) * 512;
                ops.push(Op { offset, length: length * 512, ..READ });
                offset += u64::from(length) * 512;
            }
            let mut merged: Vec<(Merge, Vec<Op>)> = Vec::new();
            for op in &ops {
                let joined = merged.last_mut().is_some_and(|(merge, _)| merge.join(op));
                match merged.last_mut() {
                    Some((_, parts)) if joined => parts.push(*op),
                    _ => merged.push((Merge::new(*op, limits), vec![*op])),
                }
            }
            for (index, (merge, parts)) in merged.iter().enumerate() {
                let mut at = merge.op().offset;
                for part in parts {
                    prop_assert_eq!(part.offset, at);
                    at += u64::from(part.length);
                }
                prop_assert_eq!((at, merge.parts() as usize), (merge.end(), parts.len()));
                let alone = parts.len() == 1;
                prop_assert!(alone || merge.op().length <= bytes_max && merge.parts() <= segments_max);
                if let Some((_, next)) = merged.get(index + 1) {
                    let could = next[0].offset == merge.end()
                        && merge.parts() < segments_max
                        && merge.op().length + next[0].length <= bytes_max;
                    prop_assert!(!could, "two that fit were left apart");
                }
            }
        }
    }
}
