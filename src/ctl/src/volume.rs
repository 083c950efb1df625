//! `ferrioctl volume`.

use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_api::v1::{
    ListVolumesRequest, ListVolumesResponse, Volume, VolumeHolder, VolumeKind, VolumeState,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::error::CtlError;
use crate::output::{self, Column, access, bytes, print, print_json, short, support_json};

/// `volume list`.
pub async fn list(channel: Channel, json: bool) -> Result<(), CtlError> {
    let answer = VolumesClient::new(channel).list(ListVolumesRequest {}).await?.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

fn kind(kind: i32) -> &'static str {
    match VolumeKind::try_from(kind) {
        Ok(VolumeKind::File) => "file",
        Ok(VolumeKind::Block) => "block",
        Ok(VolumeKind::Null) => "null",
        Ok(VolumeKind::Memory) => "memory",
        Ok(VolumeKind::Unspecified) | Err(_) => "unknown",
    }
}

fn state(state: i32) -> &'static str {
    match VolumeState::try_from(state) {
        Ok(VolumeState::Serving) => "serving",
        Ok(VolumeState::Removing) => "removing",
        Ok(VolumeState::Opening) => "opening",
        Ok(VolumeState::Unspecified) | Err(_) => "unknown",
    }
}

fn to_table(answer: &ListVolumesResponse) -> String {
    let columns = [
        Column::Left("NAME"),
        Column::Left("KIND"),
        Column::Right("SIZE"),
        Column::Right("BLOCK"),
        Column::Left("ENGINE"),
        Column::Left("MODE"),
        Column::Left("ALLOWED"),
        Column::Left("PATH"),
    ];
    let rows = answer.volumes.iter().map(|volume| {
        let path = if volume.path.is_empty() { "-" } else { &volume.path };
        vec![
            volume.name.clone(),
            kind(volume.kind).to_owned(),
            bytes(volume.size_bytes),
            volume.block_bytes.to_string(),
            volume.engine.clone(),
            mode(volume),
            allowed(volume),
            path.to_owned(),
        ]
    });
    let mut text =
        output::table(&columns, rows.collect(), "no volumes: add a [[volume]] to the configuration");
    for volume in &answer.volumes {
        if !volume.direct_reason.is_empty() {
            text.push_str(&format!(
                "\n\n{}: goes through the page cache: {}",
                volume.name, volume.direct_reason
            ));
        }
    }
    let holders = holders(answer);
    if !holders.is_empty() {
        text.push_str(&format!("\n\n{holders}"));
    }
    text
}

fn mode(volume: &Volume) -> String {
    let access = if volume.read_only { "ro" } else { "rw" };
    let path = if volume.direct || volume.kind == VolumeKind::Null as i32 { "" } else { ",buffered" };
    format!("{access}{path}")
}

fn allowed(volume: &Volume) -> String {
    if volume.allow_any {
        return "any".to_owned();
    }
    let uids = volume.allow_uids.iter().map(|uid| format!("u{uid}"));
    let gids = volume.allow_gids.iter().map(|gid| format!("g{gid}"));
    let all = uids.chain(gids).collect::<Vec<_>>();
    if all.is_empty() { "root".to_owned() } else { all.join(",") }
}

fn holders(answer: &ListVolumesResponse) -> String {
    let columns = [
        Column::Left("VOLUME"),
        Column::Left("ACCESS"),
        Column::Right("SESSION"),
        Column::Left("CLIENT"),
        Column::Right("PID"),
        Column::Right("UID"),
    ];
    let rows = answer.volumes.iter().flat_map(|volume| {
        volume.holders.iter().map(|holder| {
            vec![
                volume.name.clone(),
                access(holder.access).to_owned(),
                holder.session_id.to_string(),
                short(&holder.client_name),
                holder.pid.to_string(),
                holder.uid.to_string(),
            ]
        })
    });
    output::table(&columns, rows.collect(), "")
}

fn to_json(answer: &ListVolumesResponse) -> Value {
    json!({ "volumes": answer.volumes.iter().map(volume_json).collect::<Vec<_>>() })
}

fn volume_json(volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "kind": kind(volume.kind),
        "path": volume.path,
        "engine": volume.engine,
        "size_bytes": volume.size_bytes,
        "block_bytes": volume.block_bytes,
        "memory_align_bytes": volume.memory_align_bytes,
        "read_only": volume.read_only,
        "direct": volume.direct,
        "direct_reason": volume.direct_reason,
        "holders": volume.holders.iter().map(holder_json).collect::<Vec<_>>(),
        "allow_uids": volume.allow_uids,
        "allow_gids": volume.allow_gids,
        "allow_any": volume.allow_any,
        "state": state(volume.state),
        "discard": support_json(volume.discard.as_ref()),
        "write_zeroes": support_json(volume.write_zeroes.as_ref()),
        "configured": volume.configured,
        "fault_rules": volume.fault_rules,
    })
}

fn holder_json(holder: &VolumeHolder) -> Value {
    json!({
        "session_id": holder.session_id,
        "client_name": holder.client_name,
        "access": access(holder.access),
        "pid": holder.pid,
        "uid": holder.uid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;
    use ferrio_api::v1::Access;

    fn answer() -> ListVolumesResponse {
        let holder = VolumeHolder {
            session_id: 3,
            client_name: "bulk-writer".into(),
            access: Access::ReadWrite.into(),
            pid: 4711,
            uid: 1000,
        };
        let data = Volume {
            name: "data".into(),
            kind: VolumeKind::File.into(),
            path: "/var/lib/ferrio/data.img".into(),
            engine: "main".into(),
            size_bytes: 64 << 20,
            block_bytes: 512,
            memory_align_bytes: 4096,
            direct: true,
            holders: vec![holder],
            allow_uids: vec![1000],
            allow_gids: vec![6],
            ..Volume::default()
        };
        let slow = Volume {
            name: "slow".into(),
            kind: VolumeKind::File.into(),
            path: "/tmp/slow.img".into(),
            engine: "main".into(),
            size_bytes: 3 << 29,
            block_bytes: 512,
            memory_align_bytes: 1,
            read_only: true,
            direct_reason: "the file system refuses O_DIRECT".into(),
            allow_any: true,
            ..Volume::default()
        };
        ListVolumesResponse { volumes: vec![data, slow] }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
NAME  KIND     SIZE  BLOCK  ENGINE  MODE         ALLOWED   PATH
data  file   64 MiB    512  main    rw           u1000,g6  /var/lib/ferrio/data.img
slow  file  1.5 GiB    512  main    ro,buffered  any       /tmp/slow.img

slow: goes through the page cache: the file system refuses O_DIRECT

VOLUME  ACCESS  SESSION  CLIENT        PID   UID
data    rw            3  bulk-writer  4711  1000";
        assert_eq!(to_table(&answer()), wanted);
        assert!(to_table(&ListVolumesResponse::default()).contains("[[volume]]"));
    }

    #[test]
    fn as_json() {
        let value = to_json(&answer());
        assert_keys(&value, "ListVolumesResponse");
        assert_eq!(value["volumes"][0]["holders"][0]["access"], "rw");
        assert_eq!(value["volumes"][0]["kind"], "file");
    }
}
