//! The reap half: answers that a fault changed.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::driver::{Completion, ReapHalf};
use crate::tag::Tag;

/// Reap half of [`Fault`](super::Fault).
#[derive(Debug)]
pub struct FaultReap<R> {
    inner: R,
    patches: Arc<Patches>,
}

/// One word per slot: the errno that the request in it fails with, negative; 0 leaves its answer alone.
#[derive(Debug)]
pub(super) struct Patches(Box<[AtomicI32]>);

impl Patches {
    pub(super) fn new(depth: u32) -> Patches {
        Patches((0..depth).map(|_| AtomicI32::new(0)).collect())
    }

    /// Submit half, before the request is submitted to the driver within.
    pub(super) fn set(&self, tag: Tag, result: i32) {
        if let Some(patch) = self.0.get(tag.index() as usize) {
            // SYNC: slot-armed (pairs with `apply`): the driver within publishes the request after this store, and the
            // reap half loads after it has believed the answer.
            patch.store(result, Ordering::Relaxed);
        }
    }

    /// Reap half: an error of the device goes before ours.
    fn apply(&self, tag: Tag, result: i32) -> i32 {
        // SYNC: slot-armed (pairs with `set`).
        let patch = self.0.get(tag.index() as usize).map_or(0, |patch| patch.load(Ordering::Relaxed));
        if patch != 0 && result >= 0 { patch } else { result }
    }
}

impl<R: ReapHalf> FaultReap<R> {
    pub(super) fn new(inner: R, patches: Arc<Patches>) -> FaultReap<R> {
        FaultReap { inner, patches }
    }
}

impl<R: ReapHalf> ReapHalf for FaultReap<R> {
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        let reaped = self.inner.reap(out);
        for completion in &mut out[before..] {
            completion.result = self.patches.apply(completion.tag, completion.result);
        }
        reaped
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.completion_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.inner.prepare_sleep()
    }

    fn woke(&mut self) {
        self.inner.woke();
    }

    fn stale(&self) -> u64 {
        self.inner.stale()
    }
}
