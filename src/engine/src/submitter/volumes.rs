//! Volumes that go or change their size, and regions that come and go, as the requests under way meet them.
//!
//! These are commands of the daemon and rare. They look at every record of the engine once, and let the requests that
//! they concern be found by a mark from then on.

use ferrio_driver::SubmitHalf;
use ferrio_shm::entry::Sqe;

use super::Submitter;
use crate::{inject::Done, request::Stage, session::VolumeId};

impl<S: SubmitHalf> Submitter<S> {
    /// New requests get ENODEV, so do those that were not issued; `done` once the others have settled.
    pub(super) fn remove_volume(&mut self, volume: VolumeId, done: Done) {
        self.sessions.set_volume(volume, |grant| grant.gone = true);
        self.volumes.remove(&mut self.driver, volume, done);
    }

    /// The new size holds from now on; `done` once nothing issued before is in flight beyond it.
    pub(super) fn resize_volume(&mut self, volume: VolumeId, size: u64, done: Done) {
        self.sessions.set_volume(volume, |grant| grant.size = size);
        let beyond: Vec<u32> = self
            .issued_requests_of(volume)
            .filter(|(_, sqe)| sqe.offset.saturating_add(sqe.length) > size)
            .map(|(record, _)| record)
            .collect();
        self.volumes.resize(volume, size, beyond.into_iter(), done);
    }

    /// Records, with their SQEs, that were given to the driver once and are not answered.
    fn issued_requests_of(&self, volume: VolumeId) -> impl Iterator<Item = (u32, Sqe)> {
        (0..).zip(&self.shared.requests).filter_map(move |(record, request)| {
            if request.stage() == Stage::Free || !request.was_issued() {
                return None;
            }
            let sqe = self.journal.sqe(record);
            let grant = self.sessions.rights(request.queue()).grant(sqe.volume)?;
            (grant.id == volume).then_some((record, sqe))
        })
    }
}
