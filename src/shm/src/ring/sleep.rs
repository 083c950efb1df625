//! The sleep handshake, the same in both directions.
//!
//! A sleep word counts the times its owner fell asleep and woke: odd is asleep, even is awake.
//!
//! ```text
//!   sleeper                              publisher
//!   1 sleep word = odd                   1 index = new          (Release)
//!   2 fence SeqCst                       2 fence SeqCst
//!   3 look at the index                  3 look at the sleep word
//!   4 nothing: sleep on the doorbell     4 odd and not rung yet for this value: ring
//!     something: sleep word = even
//! ```
//!
//! No wake-up is lost: the two fences have one order. If the sleeper's comes first, the publisher's look (3) sees
//! the odd word and rings. If the publisher's comes first, the sleeper's look (3) sees the index and does not
//! sleep. Both may happen: then a ring is too many, which is harmless.
//!
//! One ring per epoch is enough, if the sleeper **drains the doorbell first, then begins a new epoch, then looks**.
//! A publisher that rang for an epoch read it after it had begun, hence after the drain before it: the ring is
//! still in the doorbell. An epoch must not outlive a drain, not even if nothing was found: the ring may have been
//! for an entry that was taken before the epoch began, and the publisher will not ring for this epoch again. A
//! sleeper with several queues behind one doorbell begins a new epoch on all of them.
//!
//! Each side keeps its own word's value privately. What the other side wrote over it only hurts the other side.

use crate::sync::{AtomicU32, Ordering, fence};

/// Owner of a sleep word.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoch: u32,
}

impl Sleeper {
    /// Starts awake. The word is left where it was, rounded up: a predecessor that died asleep was rung for its
    /// epoch, perhaps, and will not be rung for it again.
    pub(super) fn new(word: &AtomicU32) -> Sleeper {
        let mut sleeper = Sleeper { epoch: word.load(Ordering::Relaxed) };
        sleeper.wake(word);
        sleeper
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.epoch & 1 == 1
    }

    /// Begins a new epoch asleep, from either state. The caller looks at the index after it.
    pub(super) fn announce(&mut self, word: &AtomicU32) {
        self.epoch = self.epoch.wrapping_add(1) | 1;
        word.store(self.epoch, Ordering::Relaxed);
        // SYNC sleep: pairs with the fence of Ringer::must_ring.
        fence(Ordering::SeqCst);
    }

    pub(super) fn wake(&mut self, word: &AtomicU32) {
        if self.is_asleep() {
            self.epoch = self.epoch.wrapping_add(1);
            // Relaxed: a publisher that still sees the old epoch rings once too often at worst.
            word.store(self.epoch, Ordering::Relaxed);
        }
    }
}

/// The other side of a sleep word: whoever publishes.
#[derive(Debug, Default)]
pub(super) struct Ringer {
    /// Epoch the doorbell was rung for; 0, which is awake, for none.
    rung: u32,
}

impl Ringer {
    /// Whether the doorbell must be rung for what was just published.
    pub(super) fn must_ring(&mut self, word: &AtomicU32) -> bool {
        // SYNC sleep: pairs with the fence of Sleeper::announce.
        fence(Ordering::SeqCst);
        let epoch = word.load(Ordering::Relaxed);
        if epoch & 1 == 0 {
            // Forgetting the epoch keeps a stale one from matching after the counter wrapped.
            self.rung = 0;
            return false;
        }
        let first = epoch != self.rung;
        self.rung = epoch;
        first
    }
}
