//! A queue in a mapping.

use std::ptr::NonNull;

use super::Mapping;
use crate::layout::{CONTROL_BYTES, QueueLayout, control};
use crate::ring::QueueMemory;
use crate::sync::{Arc, AtomicU32, AtomicU64};

/// [`QueueMemory`] over a mapping. Pointers and masks are worked out once; an access is an addition.
#[derive(Clone, Debug)]
pub struct MappedQueue {
    control: NonNull<AtomicU32>,
    sqes: NonNull<[AtomicU64; 8]>,
    cqes: NonNull<[AtomicU64; 2]>,
    sq_mask: u32,
    cq_mask: u32,
    /// What the pointers point into.
    _memory: Arc<Mapping>,
}

// SAFETY: the pointers are to atomics in a mapping that `_memory` keeps, and is Send and Sync itself.
unsafe impl Send for MappedQueue {}
// SAFETY: as above.
unsafe impl Sync for MappedQueue {}

impl MappedQueue {
    /// None if the layout does not fit the mapping or its entry counts are no powers of two.
    #[must_use]
    pub fn new(memory: Arc<Mapping>, layout: &QueueLayout) -> Option<MappedQueue> {
        let QueueLayout { sq_entries, cq_entries, .. } = *layout;
        if !sq_entries.is_power_of_two() || !cq_entries.is_power_of_two() {
            return None;
        }
        let at = |offset: u64| usize::try_from(offset).ok();
        let control = memory.u32s(at(layout.control_offset)?, CONTROL_BYTES as usize / 4)?;
        let (sqes, _) = memory.u64s(at(layout.sqes_offset)?, 8 * sq_entries as usize)?.as_chunks::<8>();
        let (cqes, _) = memory.u64s(at(layout.cqes_offset)?, 2 * cq_entries as usize)?.as_chunks::<2>();
        Some(MappedQueue {
            control: NonNull::from(control).cast(),
            sqes: NonNull::from(sqes).cast(),
            cqes: NonNull::from(cqes).cast(),
            sq_mask: sq_entries - 1,
            cq_mask: cq_entries - 1,
            _memory: Arc::clone(&memory),
        })
    }

    /// The index word at byte `offset` of the control block.
    fn word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset < CONTROL_BYTES as usize);
        // SAFETY: `new` proved that CONTROL_BYTES of words lie at `control`; every caller passes one of the
        // constants of `layout::control`, all of them below. `_memory` keeps the mapping.
        unsafe { self.control.add(offset / 4).as_ref() }
    }
}

impl QueueMemory for MappedQueue {
    fn sq_entries(&self) -> u32 {
        self.sq_mask + 1
    }

    fn cq_entries(&self) -> u32 {
        self.cq_mask + 1
    }

    fn sq_tail(&self) -> &AtomicU32 {
        self.word(control::SQ_TAIL)
    }

    fn cq_head(&self) -> &AtomicU32 {
        self.word(control::CQ_HEAD)
    }

    fn client_sleep(&self) -> &AtomicU32 {
        self.word(control::CLIENT_SLEEP)
    }

    fn sq_head(&self) -> &AtomicU32 {
        self.word(control::SQ_HEAD)
    }

    fn daemon_sleep(&self) -> &AtomicU32 {
        self.word(control::DAEMON_SLEEP)
    }

    fn cq_tail(&self) -> &AtomicU32 {
        self.word(control::CQ_TAIL)
    }

    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        // SAFETY: the masked index is below sq_entries, and `new` proved that many entries at `sqes`, which
        // `_memory` keeps.
        unsafe { self.sqes.add((index & self.sq_mask) as usize).as_ref() }
    }

    fn cqe(&self, index: u32) -> &[AtomicU64; 2] {
        // SAFETY: as in `sqe`, with cq_entries at `cqes`.
        unsafe { self.cqes.add((index & self.cq_mask) as usize).as_ref() }
    }
}
