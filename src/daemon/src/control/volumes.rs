//! `ferrio.v1.Volumes`.

use ferrio_api::v1::volumes_server::Volumes;
use ferrio_api::v1::{
    ClearFaultsRequest, ClearFaultsResponse, CreateVolumeRequest, CreateVolumeResponse, GetFaultsRequest,
    GetFaultsResponse, ListVolumesRequest, ListVolumesResponse, RemoveVolumeRequest, RemoveVolumeResponse,
    ResizeVolumeRequest, ResizeVolumeResponse, SetFaultsRequest, SetFaultsResponse, Support, SupportLevel,
    Volume, VolumeHolder, VolumeKind, VolumeState,
};
use ferrio_driver::TargetKind;
use tonic::{Request, Response, Status};

use super::{Daemon, errors, incoming};
use crate::volumes::Holder;

#[tonic::async_trait]
impl Volumes for Daemon {
    async fn list(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = (0..self.volumes.list().len()).map(|index| show(self, index)).collect();
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn create(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        incoming::admin(&request, "create volumes")?;
        Err(errors::not_served("Volumes.Create"))
    }

    async fn remove(
        &self,
        request: Request<RemoveVolumeRequest>,
    ) -> Result<Response<RemoveVolumeResponse>, Status> {
        incoming::admin(&request, "remove volumes")?;
        Err(errors::not_served("Volumes.Remove"))
    }

    async fn resize(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<ResizeVolumeResponse>, Status> {
        incoming::admin(&request, "resize volumes")?;
        Err(errors::not_served("Volumes.Resize"))
    }

    async fn set_faults(
        &self,
        request: Request<SetFaultsRequest>,
    ) -> Result<Response<SetFaultsResponse>, Status> {
        incoming::admin(&request, "set fault rules")?;
        Err(errors::not_served("Volumes.SetFaults"))
    }

    async fn get_faults(&self, _: Request<GetFaultsRequest>) -> Result<Response<GetFaultsResponse>, Status> {
        Err(errors::not_served("Volumes.GetFaults"))
    }

    async fn clear_faults(
        &self,
        request: Request<ClearFaultsRequest>,
    ) -> Result<Response<ClearFaultsResponse>, Status> {
        incoming::admin(&request, "clear fault rules")?;
        Err(errors::not_served("Volumes.ClearFaults"))
    }
}

fn show(daemon: &Daemon, index: usize) -> Volume {
    let volume = &daemon.volumes.list()[index];
    let (section, target) = (&volume.section, &volume.target);
    let kind = match target.kind() {
        TargetKind::File => VolumeKind::File,
        TargetKind::Block => VolumeKind::Block,
        TargetKind::Null => VolumeKind::Null,
        TargetKind::Memory => VolumeKind::Memory,
    };
    Volume {
        name: section.name.value.clone(),
        kind: kind.into(),
        path: target.path().map_or(String::new(), |path| path.display().to_string()),
        engine: section.engine.value.clone(),
        size_bytes: target.size_bytes(),
        block_bytes: target.block_bytes(),
        memory_align_bytes: target.memory_align_bytes(),
        read_only: section.read_only,
        direct: target.direct(),
        direct_reason: target.direct_reason().unwrap_or_default().to_owned(),
        holders: daemon.volumes.holders(index).iter().map(show_holder).collect(),
        allow_uids: section.allow.uids.clone(),
        allow_gids: section.allow.gids.clone(),
        allow_any: section.allow.any,
        state: VolumeState::Serving.into(),
        discard: Some(not_served()),
        write_zeroes: Some(not_served()),
        configured: true,
        fault_rules: 0,
    }
}

/// Engines of this build refuse it on every volume.
pub fn not_served() -> Support {
    Support { level: SupportLevel::Unsupported.into(), how: "not served by this release".into() }
}

fn show_holder(holder: &Holder) -> VolumeHolder {
    VolumeHolder {
        session_id: holder.session_id,
        client_name: holder.client_name.clone(),
        access: holder.access.to_wire(),
        pid: holder.pid,
        uid: holder.uid,
    }
}
