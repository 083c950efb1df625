//! The end of a drain: what was accepted has its answer, or is left to the next daemon.
//!
//! A fence may hold requests back for as long as the device of a dead daemon is slow. Nothing of them has an effect yet, and the
//! journal has them: where their client comes back, the next daemon takes them over as it takes over those of a daemon that was
//! killed. So they, and what waits for them in turn, do not hold up a drain. What the next daemon could not carry out does.

use ferrio_driver::SubmitHalf;
use ferrio_shm::abi::features;

use super::{Submitter, resume::can_be_replayed};
use crate::request::{Request, Stage};

impl<S: SubmitHalf> Submitter<S> {
    /// Something was answered, or has come to wait: that may have been the last thing that drain waits for.
    #[inline]
    pub(super) fn report_drained(&mut self) {
        if self.drained.is_some() && self.is_drained() {
            self.end_drain();
        }
    }

    #[cold]
    fn end_drain(&mut self) {
        if let Some(done) = self.drained.take() {
            done();
        }
    }

    /// A drain was reported as over: what is left is the next daemon's, and nothing of it may get under way.
    pub(super) fn drain_is_over(&self) -> bool {
        self.draining && self.drained.is_none()
    }

    /// Everything is answered, or waits for a fence: what order holds back waits for some other request, so if nothing is on its
    /// way, all of it waits for those behind fences.
    fn is_drained(&self) -> bool {
        let kept_back = u64::from(self.fences.held()) + u64::from(self.order.held());
        let outstanding = self.sessions.outstanding();
        outstanding == 0
            || outstanding == kept_back
                && (0..).zip(&self.shared.requests).all(|(record, request)| self.may_be_left(record, request))
    }

    /// The next daemon finds the request in the journal, and can carry it out, or answers it as this one would.
    fn may_be_left(&self, record: u32, request: &Request) -> bool {
        request.stage() == Stage::Free
            || self.sessions.rights(request.queue()).has(features::RESUME)
                && (can_be_replayed(self.journal.sqe(record).op) || request.is_owner_dead())
    }
}
