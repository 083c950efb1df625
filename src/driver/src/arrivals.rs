//! The common part of every reap half: which answers are believed, and those that never saw the kernel.

use std::sync::Arc;

use rtrb::Consumer;

use crate::driver::Completion;
use crate::slot_table::SlotTable;
use crate::tag::Tag;

/// An answer that the submit half gave itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injected {
    pub(crate) tag: Tag,
    pub(crate) result: i32,
}

#[derive(Debug)]
pub(crate) struct Arrivals {
    table: Arc<SlotTable>,
    injected: Consumer<Injected>,
    stale: u64,
}

impl Arrivals {
    pub(crate) fn new(table: Arc<SlotTable>, injected: Consumer<Injected>) -> Arrivals {
        Arrivals { table, injected, stale: 0 }
    }

    /// Takes an answer in, if the slot waits for it; counts it as stale otherwise.
    pub(crate) fn arrive(&mut self, tag: Tag, result: i32, out: &mut Vec<Completion>) -> bool {
        let user = self.table.finish(tag);
        match user {
            Some(user) => out.push(Completion { tag, user, result }),
            None => self.stale += 1,
        }
        user.is_some()
    }

    /// Moves injected answers out while there is room.
    pub(crate) fn take_injected(&mut self, out: &mut Vec<Completion>) {
        while out.len() < out.capacity() {
            let Ok(Injected { tag, result }) = self.injected.pop() else { return };
            self.arrive(tag, result, out);
        }
    }

    pub(crate) fn has_injected(&self) -> bool {
        !self.injected.is_empty()
    }

    pub(crate) fn stale(&self) -> u64 {
        self.stale
    }
}
