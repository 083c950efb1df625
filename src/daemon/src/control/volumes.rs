//! `ferrio.v1.Volumes`.

use std::time::Duration;

use ferrio_api::v1::volumes_server::Volumes;
use ferrio_api::v1::{
    ClearFaultsRequest, ClearFaultsResponse, CreateVolumeRequest, CreateVolumeResponse, GetFaultsRequest,
    GetFaultsResponse, ListVolumesRequest, ListVolumesResponse, RemoveVolumeRequest, RemoveVolumeResponse,
    ResizeVolumeRequest, ResizeVolumeResponse, SetFaultsRequest, SetFaultsResponse, Volume, VolumeHolder,
    VolumeKind, VolumeState,
};
use ferrio_driver::{FaultPlan, TargetKind};
use tonic::{Request, Response, Status};

use super::admin::millis_since;
use super::{Daemon, errors, incoming};
use crate::config::VolumeSource;
use crate::faults;
use crate::volumes::{self, Fencing, Holder, Stage, request};

const REMOVE_WAIT_MS_DEFAULT: u32 = 1_000;
const REMOVE_WAIT_MS_MAX: u32 = 60_000;

#[tonic::async_trait]
impl Volumes for Daemon {
    async fn list(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = self.volumes.list().iter().map(show).collect();
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn create(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        incoming::admin(&request, "create volumes")?;
        self.check_running()?;
        let section = request::section(request.into_inner(), &self.changes.engine_names())?;
        let volume = self.changes.create(section).await?;
        Ok(Response::new(CreateVolumeResponse { volume: Some(show(&volume)) }))
    }

    async fn remove(
        &self,
        request: Request<RemoveVolumeRequest>,
    ) -> Result<Response<RemoveVolumeResponse>, Status> {
        incoming::admin(&request, "remove volumes")?;
        let RemoveVolumeRequest { name, wait_ms } = request.into_inner();
        let wait_ms = match wait_ms {
            0 => REMOVE_WAIT_MS_DEFAULT,
            asked @ 1..=REMOVE_WAIT_MS_MAX => asked,
            asked => {
                let max = REMOVE_WAIT_MS_MAX.into();
                return Err(errors::out_of_range("wait_ms", asked.into(), 0, max, "milliseconds"));
            }
        };
        let (removed, in_flight) = self.changes.remove(&name, Duration::from_millis(wait_ms.into())).await?;
        Ok(Response::new(RemoveVolumeResponse { removed, in_flight }))
    }

    async fn resize(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<ResizeVolumeResponse>, Status> {
        incoming::admin(&request, "resize volumes")?;
        self.check_running()?;
        let ResizeVolumeRequest { name, size_bytes } = request.into_inner();
        let volume = self.changes.resize(&name, size_bytes).await?;
        Ok(Response::new(ResizeVolumeResponse { volume: Some(show(&volume)) }))
    }

    async fn set_faults(
        &self,
        request: Request<SetFaultsRequest>,
    ) -> Result<Response<SetFaultsResponse>, Status> {
        incoming::admin(&request, "set fault rules")?;
        let SetFaultsRequest { volume, plan } = request.into_inner();
        self.changes.set_faults(&volume, faults::from_wire(&plan.unwrap_or_default())?)?;
        Ok(Response::new(SetFaultsResponse {}))
    }

    async fn get_faults(
        &self,
        request: Request<GetFaultsRequest>,
    ) -> Result<Response<GetFaultsResponse>, Status> {
        Ok(Response::new(faults::to_wire(self.changes.faults(&request.get_ref().volume)?)))
    }

    async fn clear_faults(
        &self,
        request: Request<ClearFaultsRequest>,
    ) -> Result<Response<ClearFaultsResponse>, Status> {
        incoming::admin(&request, "clear fault rules")?;
        self.changes.set_faults(&request.get_ref().volume, FaultPlan::default())?;
        Ok(Response::new(ClearFaultsResponse {}))
    }
}

fn show(volume: &volumes::Volume) -> Volume {
    let section = &volume.section;
    let state = match volume.stage {
        Stage::Opening => VolumeState::Opening,
        Stage::Serving(_) => VolumeState::Serving,
        Stage::Removing { .. } => VolumeState::Removing,
        Stage::Fencing(_) => VolumeState::Fencing,
    };
    let path = section.source.path().map_or(String::new(), |path| path.value.display().to_string());
    let shown = Volume {
        name: volume.name().to_owned(),
        kind: kind(volume).into(),
        path,
        engine: section.engine.value.clone(),
        size_bytes: volume.size_bytes,
        read_only: section.read_only,
        holders: volume.holders.iter().map(show_holder).collect(),
        allow_uids: section.allow.uids.clone(),
        allow_gids: section.allow.gids.clone(),
        allow_any: section.allow.any,
        state: state.into(),
        configured: volume.configured,
        fault_rules: u32::try_from(volume.fault_rules).unwrap_or(u32::MAX),
        ..Volume::default()
    };
    if let Stage::Fencing(Fencing { outline, by, since, .. }) = &volume.stage {
        return Volume {
            block_bytes: outline.block_bytes,
            memory_align_bytes: outline.memory_align_bytes,
            direct: outline.direct,
            fenced_by: by.clone(),
            fencing_ms: millis_since(*since),
            ..shown
        };
    }
    let Some(served) = volume.served() else { return shown };
    let target = &served.target;
    Volume {
        block_bytes: target.block_bytes(),
        memory_align_bytes: target.memory_align_bytes(),
        direct: target.direct(),
        direct_reason: target.direct_reason().unwrap_or_default().to_owned(),
        discard: Some(served.discard()),
        write_zeroes: Some(served.write_zeroes()),
        ..shown
    }
}

fn kind(volume: &volumes::Volume) -> VolumeKind {
    let found = match &volume.stage {
        Stage::Fencing(fencing) => Some(fencing.outline.kind),
        _ => volume.served().map(|served| served.target.kind()),
    };
    match found {
        Some(TargetKind::File) => VolumeKind::File,
        Some(TargetKind::Block) => VolumeKind::Block,
        Some(TargetKind::Null) => VolumeKind::Null,
        Some(TargetKind::Memory) => VolumeKind::Memory,
        None => match volume.section.source {
            VolumeSource::File { .. } => VolumeKind::File,
            VolumeSource::Block { .. } => VolumeKind::Block,
            VolumeSource::Null { .. } => VolumeKind::Null,
            VolumeSource::Memory { .. } => VolumeKind::Memory,
            // What the path names is not known yet.
            VolumeSource::Path { .. } => VolumeKind::Unspecified,
        },
    }
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
