//! `ferrio.v1.Volumes`.

use ferrio_api::v1::volumes_server::Volumes;
use ferrio_api::v1::{ListVolumesRequest, ListVolumesResponse, Volume, VolumeHolder, VolumeKind};
use ferrio_driver::TargetKind;
use tonic::{Request, Response, Status};

use super::Daemon;
use crate::volumes::Holder;

#[tonic::async_trait]
impl Volumes for Daemon {
    async fn list(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = (0..self.volumes.list().len()).map(|index| show(self, index)).collect();
        Ok(Response::new(ListVolumesResponse { volumes }))
    }
}

fn show(daemon: &Daemon, index: usize) -> Volume {
    let volume = &daemon.volumes.list()[index];
    let (section, target) = (&volume.section, &volume.target);
    let kind = match target.kind() {
        TargetKind::File => VolumeKind::File,
        TargetKind::Block => VolumeKind::Block,
        TargetKind::Null => VolumeKind::Null,
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
