//! The common part of every reap half: which answers are believed, and those that do not come from the kernel.

use std::sync::Arc;

use rtrb::Consumer;

use crate::driver::Completion;
use crate::helpers::Results;
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
    /// Of the helper pool, where there is one.
    results: Option<Results>,
    stale: u64,
}

impl Arrivals {
    pub(crate) fn new(
        table: Arc<SlotTable>,
        injected: Consumer<Injected>,
        results: Option<Results>,
    ) -> Arrivals {
        Arrivals { table, injected, results, stale: 0 }
    }

    /// Takes an answer in, if the slot waits for it; counts it as stale otherwise.
    pub(crate) fn arrive(&mut self, tag: Tag, result: i32, out: &mut Vec<Completion>) -> bool {
        let user = self.table.finish(tag);
        match user {
            Some(user) => out.push(Completion { tag: tag.plain(), user, result }),
            None => self.stale += 1,
        }
        user.is_some()
    }

    /// A helper answers this request, which the kernel has just answered. `false`, and counted: the kernel did not have it.
    pub(crate) fn hand_over(&mut self, tag: Tag) -> bool {
        let handed_over = self.table.hand_over(tag);
        self.stale += u64::from(!handed_over);
        handed_over
    }

    /// Moves the answers of the submit half and the helpers out while there is room.
    pub(crate) fn take_own(&mut self, out: &mut Vec<Completion>) {
        while out.len() < out.capacity() {
            let Ok(Injected { tag, result }) = self.injected.pop() else { break };
            self.arrive(tag, result, out);
        }
        if self.results.as_ref().is_some_and(Results::has_ready) {
            self.take_helped(out);
        }
    }

    #[cold]
    fn take_helped(&mut self, out: &mut Vec<Completion>) {
        while out.len() < out.capacity() {
            let Some((tag, result)) = self.results.as_mut().and_then(Results::take) else { return };
            self.arrive(tag, result, out);
        }
    }

    /// Answers of the submit half or the helpers wait.
    pub(crate) fn has_own(&self) -> bool {
        !self.injected.is_empty() || self.results.as_ref().is_some_and(Results::has_ready)
    }

    /// The end of the helper pool, for the drain.
    pub(crate) fn take_results(&mut self) -> Option<Results> {
        self.results.take()
    }

    pub(crate) fn stale(&self) -> u64 {
        self.stale
    }
}
