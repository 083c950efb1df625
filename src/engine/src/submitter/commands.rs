//! What other threads tell the Submitter, between batches.

use ferrio_driver::{DriverInfo, FaultPlan, FaultStatus, SubmitHalf};
use ferrio_shm::abi::features;

use super::Submitter;
use crate::{
    config::EngineError,
    inject::{Command, IoThread},
    merge::MergeLimits,
    scheduler::{ScheduleSnapshot, Setting},
    session::{SessionSpec, VolumeId},
    table::Opening,
};

impl<S: SubmitHalf> Submitter<S> {
    #[cold]
    pub(super) fn take_commands(&mut self) -> u32 {
        let mut taken = 0;
        while let Some(command) = self.inbox.take() {
            taken += 1;
            match command {
                Command::AddVolume { target, reply } => {
                    let added = self.volumes.add(self.sessions.name(), &mut self.driver, target);
                    if let Ok(id) = &added {
                        self.locks.add_volume(*id);
                        if let Ok(file) = self.volumes.file(self.sessions.name(), *id) {
                            self.shares.add_volume(file);
                        }
                    }
                    reply(added);
                }
                Command::AddFencedVolume { outline, reply } => {
                    let id = self.volumes.add_fenced(outline);
                    self.locks.add_volume(id);
                    reply(Ok(id));
                }
                Command::UnfenceVolume { volume, target, faults, reply } => {
                    reply(self.unfence_volume(volume, target, faults));
                }
                Command::RemoveVolume { volume, done } => self.remove_volume(volume, done),
                Command::ResizeVolume { volume, size_bytes, done } => {
                    self.resize_volume(volume, size_bytes, done);
                }
                Command::SetFaults { volume, plan, reply } => reply(self.set_faults(volume, plan)),
                Command::GetFaults { volume, reply } => reply(self.faults(volume)),
                Command::AddRegion { session_id, index, region, reply } => {
                    reply(self.sessions.add_region(&mut self.driver, session_id, index, region));
                }
                Command::RemoveRegion { session_id, index, reply } => {
                    reply(self.sessions.remove_region(&mut self.driver, session_id, index));
                }
                Command::OpenSession { spec, shared, reply } => {
                    let opening = Scheduled::of(&spec);
                    let opened = self.sessions.open(
                        &mut self.driver,
                        &self.volumes,
                        Opening { spec: *spec, shared, resume: None },
                        &self.journal,
                        &self.link,
                    );
                    reply(opened.map(|slots| self.add_queues(&slots, &opening)));
                }
                Command::ResumeSession { spec, shared, reply } => reply(self.resume_session(*spec, shared)),
                Command::ForgetSession { session_id, reply } => reply(Ok(self.forget_session(session_id))),
                Command::CloseSession { session_id, done } => self.close_session(session_id, done),
                Command::Drain { done } => {
                    self.end_faults();
                    // What was accepted is not kept waiting for a rate that ends with the engine.
                    self.scheduler.lift_limits(self.now);
                    self.draining = true;
                    self.drained = Some(done);
                    self.report_drained();
                }
                Command::Run(closure) => closure(self),
                Command::Stop => self.stopped = true,
            }
        }
        taken
    }

    /// The queues of a session were opened.
    pub(super) fn add_queues(&mut self, slots: &[u32], opened: &Scheduled) {
        let Scheduled { session_id, weight, ref group, ref volumes, features } = *opened;
        self.scheduler.open_session(session_id, weight, group.as_deref(), slots, volumes);
        if features & features::ORDER != 0 {
            slots.iter().for_each(|slot| self.order.add_queue(*slot, volumes.len()));
        }
    }
}

/// What the scheduler and order know of a session.
pub(super) struct Scheduled {
    session_id: u64,
    weight: u32,
    group: Option<String>,
    volumes: Vec<Option<VolumeId>>,
    features: u64,
}

impl Scheduled {
    pub fn of(spec: &SessionSpec) -> Self {
        Self {
            session_id: spec.session_id,
            weight: spec.weight,
            group: spec.group.clone(),
            volumes: spec.grants.iter().map(|grant| grant.map(|grant| grant.volume)).collect(),
            features: spec.features,
        }
    }
}

impl<S: SubmitHalf> IoThread for Submitter<S> {
    fn driver_info(&self) -> DriverInfo {
        self.driver.info()
    }

    fn in_flight(&self) -> u32 {
        self.driver.in_flight()
    }

    fn requests_of(&self, volume: VolumeId) -> Result<u32, EngineError> {
        self.count_requests(volume)
    }

    fn set_faults(&mut self, volume: VolumeId, plan: FaultPlan) -> Result<(), EngineError> {
        Submitter::set_faults(self, volume, plan)
    }

    fn faults(&self, volume: VolumeId) -> Result<Option<FaultStatus>, EngineError> {
        Submitter::faults(self, volume)
    }

    fn set_schedule(&mut self, setting: Setting) -> Result<(), EngineError> {
        Submitter::set_schedule(self, setting)
    }

    fn set_merge(&mut self, limits: MergeLimits) -> Result<(), EngineError> {
        limits.check()?;
        self.plug.set_limits(limits);
        Ok(())
    }

    fn schedule(&self) -> ScheduleSnapshot {
        self.scheduler.snapshot(self.plug.limits())
    }
}
