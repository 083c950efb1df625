//! What an operator does to volumes, sessions and limits over gRPC, for tests that do it while clients are at work.

use std::path::PathBuf;

use ferrio_api::v1::{
    self, scheduling_client::SchedulingClient, sessions_client::SessionsClient, volumes_client::VolumesClient,
};
use ferrio_client::connect_control;
use tonic::{Response, Status, transport::Channel};

use crate::process::PATIENCE;

/// The control socket of a daemon, one connection per call.
#[derive(Clone, Debug)]
pub struct Operator(PathBuf);

impl Operator {
    /// Of the daemon with this control socket.
    pub fn new(control: PathBuf) -> Self {
        Self(control)
    }

    fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let control = self.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let connector = tower::service_fn(move |_: tonic::transport::Uri| {
                let control = control.clone();
                async move { connect_control(&control, PATIENCE).await.map(hyper_util::rt::TokioIo::new) }
            });
            let endpoint = tonic::transport::Endpoint::from_static("http://ferriod");
            let channel = endpoint.connect_with_connector(connector).await;
            let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
            call(channel).await.map(Response::into_inner)
        })
    }

    /// Volumes.List: this volume.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn volume(&self, name: &str) -> Result<Option<v1::Volume>, Status> {
        let list = |channel| async move { VolumesClient::new(channel).list(v1::ListVolumesRequest {}).await };
        Ok(self.call(list)?.volumes.into_iter().find(|volume| volume.name == name))
    }

    /// Volumes.Create.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn create(&self, request: v1::CreateVolumeRequest) -> Result<v1::CreateVolumeResponse, Status> {
        self.call(|channel| async move { VolumesClient::new(channel).create(request).await })
    }

    /// Volumes.Remove.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn remove(&self, name: &str, wait_ms: u32) -> Result<v1::RemoveVolumeResponse, Status> {
        let request = v1::RemoveVolumeRequest { name: name.into(), wait_ms };
        self.call(|channel| async move { VolumesClient::new(channel).remove(request).await })
    }

    /// Volumes.Resize.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn resize(&self, name: &str, size_bytes: u64) -> Result<v1::ResizeVolumeResponse, Status> {
        let request = v1::ResizeVolumeRequest { name: name.into(), size_bytes };
        self.call(|channel| async move { VolumesClient::new(channel).resize(request).await })
    }

    /// Volumes.SetFaults.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn set_faults(&self, volume: &str, seed: u64, rules: Vec<v1::FaultRule>) -> Result<(), Status> {
        let plan = Some(v1::FaultPlan { seed, rules });
        let request = v1::SetFaultsRequest { volume: volume.into(), plan };
        self.call(|channel| async move { VolumesClient::new(channel).set_faults(request).await })?;
        Ok(())
    }

    /// Volumes.GetFaults: how often each rule has acted.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn faults_applied(&self, volume: &str) -> Result<Vec<u64>, Status> {
        let request = v1::GetFaultsRequest { volume: volume.into() };
        let answer =
            self.call(|channel| async move { VolumesClient::new(channel).get_faults(request).await })?;
        Ok(answer.counters.iter().map(|rule| rule.applied).collect())
    }

    /// Volumes.ClearFaults.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn clear_faults(&self, volume: &str) -> Result<(), Status> {
        let request = v1::ClearFaultsRequest { volume: volume.into() };
        self.call(|channel| async move { VolumesClient::new(channel).clear_faults(request).await })?;
        Ok(())
    }

    /// Scheduling.Get.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn scheduling(&self) -> Result<v1::GetSchedulingResponse, Status> {
        let get =
            |channel| async move { SchedulingClient::new(channel).get(v1::GetSchedulingRequest {}).await };
        self.call(get)
    }

    /// Scheduling.SetLimit.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn set_limit(&self, scope: v1::LimitScope, limit: v1::Limit) -> Result<(), Status> {
        let request = v1::SetLimitRequest { scope: Some(scope), limit: Some(limit) };
        self.call(|channel| async move { SchedulingClient::new(channel).set_limit(request).await })?;
        Ok(())
    }

    /// Scheduling.ClearLimit.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn clear_limit(&self, scope: v1::LimitScope) -> Result<(), Status> {
        let request = v1::ClearLimitRequest { scope: Some(scope) };
        self.call(|channel| async move { SchedulingClient::new(channel).clear_limit(request).await })?;
        Ok(())
    }

    /// Scheduling.SetSession.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn set_session(
        &self,
        session_id: u64,
        weight: Option<u32>,
        group: Option<&str>,
    ) -> Result<(), Status> {
        let request = v1::SetSessionRequest { session_id, weight, group: group.map(str::to_owned) };
        self.call(|channel| async move { SchedulingClient::new(channel).set_session(request).await })?;
        Ok(())
    }

    /// Scheduling.SetEngine.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn set_engine(&self, request: v1::SetEngineRequest) -> Result<(), Status> {
        self.call(|channel| async move { SchedulingClient::new(channel).set_engine(request).await })?;
        Ok(())
    }

    /// Sessions.Evict.
    ///
    /// # Errors
    /// What the daemon answers.
    pub fn evict(&self, session_id: u64, reason: &str) -> Result<(), Status> {
        let request = v1::EvictSessionRequest { session_id, reason: reason.into() };
        self.call(|channel| async move { SessionsClient::new(channel).evict(request).await })?;
        Ok(())
    }
}
