//! Volumes that go or change their size, and regions that come and go, as the requests under way meet them.
//!
//! These are commands of the daemon and rare. They look at every record of the engine once, and let the requests that
//! they concern be found by a mark from then on.

use std::sync::Arc;

use ferrio_driver::{FaultPlan, FaultStatus, SubmitHalf, Target};
use ferrio_shm::{abi::errno, entry::Sqe};

use super::Submitter;
use crate::{
    config::EngineError,
    inject::Done,
    request::Stage,
    scheduler::{Scope, limits::Limit},
    session::{GrantedVolume, Standing, VolumeId},
};

impl<S: SubmitHalf> Submitter<S> {
    /// New requests get ENODEV, so do those that were not issued; `done` once the others have settled.
    pub(super) fn remove_volume(&mut self, volume: VolumeId, done: Done) {
        self.sessions.set_volume(volume, |grant| grant.standing = Standing::Gone);
        // Its id may come to be another's.
        self.scheduler.set_limit(Scope::Volume(volume), &Limit::default(), self.now);
        let waiting: Vec<u32> =
            self.requests_of(volume).map(|(record, _)| record).filter(|record| self.waits(*record)).collect();
        for record in waiting {
            self.pull_out(record);
            self.answer(record, -errno::ENODEV);
        }
        self.start_ready();
        self.volumes.remove(&mut self.driver, volume, done);
    }

    /// The new size holds from now on; `done` once nothing issued before is in flight beyond it.
    pub(super) fn resize_volume(&mut self, volume: VolumeId, size: u64, done: Done) {
        self.sessions.set_volume(volume, |grant| grant.size = size);
        let beyond: Vec<u32> = self
            .requests_of(volume)
            .filter(|(record, _)| self.shared.requests[*record as usize].was_issued())
            .filter(|(_, sqe)| sqe.offset.saturating_add(sqe.length) > size)
            .map(|(record, _)| record)
            .collect();
        self.volumes.resize(volume, size, beyond.into_iter(), done);
    }

    /// Sets the faults of a volume, where the driver can.
    pub(super) fn set_faults(&mut self, volume: VolumeId, plan: FaultPlan) -> Result<(), EngineError> {
        let file = self.volumes.file(self.sessions.name(), volume)?;
        let engine = || self.sessions.name().to_owned();
        self.driver
            .set_faults(file, plan)
            .map_err(|source| EngineError::Faults { engine: engine(), source })?;
        // What the faults before held back goes on with a commit.
        self.commit();
        Ok(())
    }

    /// Makes no more faults, and lets go of what they hold back: an engine that drains would wait for it in vain.
    pub(super) fn end_faults(&mut self) {
        for file in self.volumes.files() {
            // A driver that cannot make faults holds nothing back.
            let _ = self.driver.set_faults(file, FaultPlan::default());
        }
        self.commit();
    }

    /// The faults of a volume.
    pub(super) fn faults(&self, volume: VolumeId) -> Result<Option<FaultStatus>, EngineError> {
        let file = self.volumes.file(self.sessions.name(), volume)?;
        Ok(self.driver.faults(file))
    }

    /// How many requests of a volume are not answered.
    pub(super) fn count_requests(&self, volume: VolumeId) -> Result<u32, EngineError> {
        self.volumes.check(self.sessions.name(), volume)?;
        Ok(u32::try_from(self.requests_of(volume).count()).unwrap_or(u32::MAX))
    }

    /// Requests of sessions' queues that fences and locks keep back.
    pub(super) fn held_requests_of(&self, slots: &[u32]) -> Vec<u32> {
        if !self.locks.any_held() && self.fences.held() == 0 {
            return Vec::new();
        }
        let requests = (0..).zip(&self.shared.requests);
        let kept_back = |record| self.fences.holds(record) || self.locks.holds(record);
        let held =
            requests.filter(|(record, request)| kept_back(*record) && slots.contains(&request.queue()));
        held.map(|(record, _)| record).collect()
    }

    /// The volume is ours: what waited for it goes on.
    pub(super) fn unfence_volume(
        &mut self,
        volume: VolumeId,
        target: Arc<Target>,
        faults: FaultPlan,
    ) -> Result<(), EngineError> {
        let Self { volumes, driver, sessions, .. } = self;
        let found = volumes.unfence(sessions.name(), driver, volume, target, faults)?;
        self.shares.add_volume(found.file);
        self.sessions.set_volume(volume, |grant| {
            *grant = GrantedVolume { writable: grant.writable && found.writable, ..found };
        });
        if self.drain_is_over() {
            return Ok(());
        }
        // The last first, each before the others: so they stand as they came, and before those that came after them.
        while let Some(record) = self.fences.pop_last(volume) {
            self.scheduler.push_front(record);
        }
        Ok(())
    }

    /// The request waits to be issued, or to go on, in a class queue, behind a fence or behind a lock.
    fn waits(&self, record: u32) -> bool {
        self.shared.requests[record as usize].stage() == Stage::Queued
    }

    /// Records, with their SQEs, that are not answered.
    fn requests_of(&self, volume: VolumeId) -> impl Iterator<Item = (u32, Sqe)> {
        (0..).zip(&self.shared.requests).filter_map(move |(record, request)| {
            if request.stage() == Stage::Free {
                return None;
            }
            let sqe = self.journal.sqe(record);
            let grant = self.sessions.rights(request.queue()).grant(sqe.volume)?;
            (grant.id == volume).then_some((record, sqe))
        })
    }
}
