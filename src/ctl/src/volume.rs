//! `ferrioctl volume`.

use ferrio_api::v1::volumes_client::VolumesClient;
use ferrio_api::v1::{
    CreateVolumeRequest, ListVolumesRequest, ListVolumesResponse, RemoveVolumeRequest, RemoveVolumeResponse,
    ResizeVolumeRequest, Volume, VolumeHolder, VolumeKind, VolumeState,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::{CreateArgs, Kind};
use crate::error::CtlError;
use crate::output::{self, Column, access, bytes, print, print_json, short, support, support_json};

/// `volume list`.
pub async fn list(channel: Channel, json: bool) -> Result<(), CtlError> {
    let answer = VolumesClient::new(channel).list(ListVolumesRequest {}).await?.into_inner();
    if json { print_json(&to_json(&answer), false) } else { print(&to_table(&answer)) }
}

/// `volume create`.
pub async fn create(channel: Channel, json: bool, args: CreateArgs) -> Result<(), CtlError> {
    let kind = args.kind.map_or(VolumeKind::Unspecified, |kind| match kind {
        Kind::File => VolumeKind::File,
        Kind::Block => VolumeKind::Block,
        Kind::Memory => VolumeKind::Memory,
        Kind::Null => VolumeKind::Null,
    });
    let path = args.path.unwrap_or_default().into_os_string().into_string();
    let path =
        path.map_err(|path| CtlError::Usage(format!("--path {path:?} is not UTF-8: use another one")))?;
    let request = CreateVolumeRequest {
        name: args.name,
        kind: kind.into(),
        path,
        size_bytes: args.size.unwrap_or(0),
        block_bytes: u32::try_from(args.block_bytes.unwrap_or(0)).unwrap_or(u32::MAX),
        engine: args.engine.unwrap_or_default(),
        read_only: args.read_only,
        allow_uids: args.allow_uid,
        allow_gids: args.allow_gid,
        allow_any: args.allow_any,
    };
    let answer = VolumesClient::new(channel).create(request).await?.into_inner();
    show_one(answer.volume, json)
}

/// `volume remove`.
pub async fn remove(channel: Channel, json: bool, name: String, wait_ms: u32) -> Result<(), CtlError> {
    let request = RemoveVolumeRequest { name: name.clone(), wait_ms };
    let RemoveVolumeResponse { removed, in_flight } =
        VolumesClient::new(channel).remove(request).await?.into_inner();
    if json {
        print_json(&json!({ "removed": removed, "in_flight": in_flight }), false)?;
    } else if removed {
        print(&format!("volume {name}: removed"))?;
    }
    if removed {
        return Ok(());
    }
    Err(CtlError::Unfinished(format!(
        "volume {name} takes no requests any more, and is not gone: {in_flight} of its requests wait for the device; it \
         goes once they are answered, `ferrioctl volume list` shows it until then"
    )))
}

/// `volume resize`.
pub async fn resize(channel: Channel, json: bool, name: String, size: Option<u64>) -> Result<(), CtlError> {
    let request = ResizeVolumeRequest { name, size_bytes: size.unwrap_or(0) };
    let answer = VolumesClient::new(channel).resize(request).await?.into_inner();
    show_one(answer.volume, json)
}

fn show_one(volume: Option<Volume>, json: bool) -> Result<(), CtlError> {
    let volume = volume.unwrap_or_default();
    if json {
        return print_json(&json!({ "volume": volume_json(&volume) }), false);
    }
    print(&to_table(&ListVolumesResponse { volumes: vec![volume] }))
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
        Ok(VolumeState::Fencing) => "fencing",
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
        Column::Left("STATE"),
        Column::Left("MODE"),
        Column::Left("DISCARD"),
        Column::Left("ZEROES"),
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
            state(volume.state).to_owned(),
            mode(volume),
            support(volume.discard.as_ref()).to_owned(),
            support(volume.write_zeroes.as_ref()).to_owned(),
            allowed(volume),
            path.to_owned(),
        ]
    });
    let mut text =
        output::table(&columns, rows.collect(), "no volumes: add a [[volume]] to the configuration");
    let notes: Vec<_> = answer.volumes.iter().flat_map(notes).collect();
    if !notes.is_empty() {
        text.push_str(&format!("\n\n{}", notes.join("\n")));
    }
    let holders = holders(answer);
    if !holders.is_empty() {
        text.push_str(&format!("\n\n{holders}"));
    }
    text
}

/// What is not as one would wish, and why.
fn notes(volume: &Volume) -> Vec<String> {
    let mut notes = Vec::new();
    if !volume.fenced_by.is_empty() {
        let (name, by) = (&volume.name, &volume.fenced_by);
        let waited = volume.fencing_ms / 1000;
        notes.push(format!("{name}: its requests wait, for {waited} s now: its lock is held by {by}"));
    }
    if !volume.direct_reason.is_empty() {
        notes.push(format!("{}: goes through the page cache: {}", volume.name, volume.direct_reason));
    }
    for (what, found) in [("discard", &volume.discard), ("write-zeroes", &volume.write_zeroes)] {
        let word = support(found.as_ref());
        if let (Some(found), "emulated" | "unsupported") = (found, word) {
            notes.push(format!("{}: {what} is {word}: {}", volume.name, found.how));
        }
    }
    if volume.fault_rules > 0 {
        let rules = volume.fault_rules;
        notes.push(format!(
            "{}: has faults made on purpose ({rules} rules): `ferrioctl fault show {}`",
            volume.name, volume.name
        ));
    }
    notes
}

fn mode(volume: &Volume) -> String {
    let access = if volume.read_only { "ro" } else { "rw" };
    let path = if volume.direct || volume.path.is_empty() { "" } else { ",buffered" };
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
        "fenced_by": volume.fenced_by,
        "fencing_ms": volume.fencing_ms,
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
    use ferrio_api::v1::{Access, Support, SupportLevel};

    fn how(level: SupportLevel, how: &str) -> Option<Support> {
        Some(Support { level: level.into(), how: how.into() })
    }

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
            state: VolumeState::Serving.into(),
            discard: how(SupportLevel::Native, "fallocate(PUNCH_HOLE)"),
            write_zeroes: how(SupportLevel::Emulated, "zeros are written"),
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
            state: VolumeState::Removing.into(),
            discard: how(SupportLevel::Unsupported, "opened read-only"),
            write_zeroes: how(SupportLevel::Unsupported, "opened read-only"),
            fault_rules: 2,
            ..Volume::default()
        };
        let disk = Volume {
            name: "disk".into(),
            kind: VolumeKind::Block.into(),
            path: "/dev/loop0".into(),
            engine: "main".into(),
            size_bytes: 8 << 20,
            block_bytes: 512,
            direct: true,
            state: VolumeState::Fencing.into(),
            fenced_by: "process 4711".into(),
            fencing_ms: 12_345,
            ..Volume::default()
        };
        ListVolumesResponse { volumes: vec![data, slow, disk] }
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
NAME  KIND      SIZE  BLOCK  ENGINE  STATE     MODE         DISCARD      ZEROES       ALLOWED   PATH
data  file    64 MiB    512  main    serving   rw           native       emulated     u1000,g6  /var/lib/ferrio/data.img
slow  file   1.5 GiB    512  main    removing  ro,buffered  unsupported  unsupported  any       /tmp/slow.img
disk  block    8 MiB    512  main    fencing   rw           unknown      unknown      root      /dev/loop0

data: write-zeroes is emulated: zeros are written
slow: goes through the page cache: the file system refuses O_DIRECT
slow: discard is unsupported: opened read-only
slow: write-zeroes is unsupported: opened read-only
slow: has faults made on purpose (2 rules): `ferrioctl fault show slow`
disk: its requests wait, for 12 s now: its lock is held by process 4711

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
