//! `Volumes.Create` to the section that a configuration would have for it.

use std::path::PathBuf;

use ferrio_api::v1::{CreateVolumeRequest, VolumeKind};

use ferrio_driver::FaultPlan;
use ferrio_engine::Limit;

use super::error::VolumeError;
use crate::acl::AllowList;
use crate::config::{At, NAME_LIMIT, VolumeSection, VolumeSource, is_name, keys, size};

/// Users or groups that one request may name.
const ALLOWED_MAX: usize = 256;

/// Checks a request. The first of `engines` is the default.
pub fn section(request: CreateVolumeRequest, engines: &[String]) -> Result<VolumeSection, VolumeError> {
    if !is_name(&request.name) {
        return invalid("name", format!("{:?}", request.name), NAME_LIMIT, "choose a name within the limit");
    }
    let first = engines.first().cloned().unwrap_or_default();
    let engine = if request.engine.is_empty() { first } else { request.engine.clone() };
    if !engines.contains(&engine) {
        return Err(VolumeError::NoEngine { name: engine, known: engines.join(", ") });
    }
    for (field, ids) in [("allow_uids", &request.allow_uids), ("allow_gids", &request.allow_gids)] {
        if ids.len() > ALLOWED_MAX {
            let value = format!("{} entries", ids.len());
            return invalid(field, value, &format!("at most {ALLOWED_MAX}"), "allow a group instead");
        }
    }
    let source = source(&request)?;
    Ok(VolumeSection {
        name: At::default_value(request.name),
        source,
        engine: At::default_value(engine),
        read_only: request.read_only,
        allow: AllowList { any: request.allow_any, uids: request.allow_uids, gids: request.allow_gids },
        limit: Limit::default(),
        faults: FaultPlan::default(),
    })
}

fn source(request: &CreateVolumeRequest) -> Result<VolumeSource, VolumeError> {
    let kind = VolumeKind::try_from(request.kind).unwrap_or(VolumeKind::Unspecified);
    let has_path = matches!(kind, VolumeKind::Unspecified | VolumeKind::File | VolumeKind::Block);
    if has_path {
        if request.block_bytes != 0 {
            let fix = "leave it out: files and devices have the block size of their disk";
            return invalid(
                "block_bytes",
                request.block_bytes.to_string(),
                "only null volumes choose it",
                fix,
            );
        }
        return with_path(request, kind);
    }
    if !request.path.is_empty() {
        let fix = "leave it out, or choose another kind";
        return invalid("path", format!("{:?}", request.path), "this kind of volume has no path", fix);
    }
    let bytes = check_size("size_bytes", request.size_bytes, &keys::VOLUME_SIZE)?;
    if kind == VolumeKind::Memory {
        if request.block_bytes != 0 {
            let value = request.block_bytes.to_string();
            return invalid("block_bytes", value, "memory has blocks of 512 bytes", "leave it out");
        }
        return Ok(VolumeSource::Memory { bytes });
    }
    let block_bytes = if request.block_bytes == 0 { 512 } else { request.block_bytes };
    if !block_bytes.is_power_of_two() || !(512..=4096).contains(&block_bytes) {
        let fix = "choose a value within the limit";
        return invalid("block_bytes", block_bytes.to_string(), "512, 1024, 2048 or 4096 allowed", fix);
    }
    Ok(VolumeSource::Null { bytes, block_bytes })
}

fn with_path(request: &CreateVolumeRequest, kind: VolumeKind) -> Result<VolumeSource, VolumeError> {
    let path = PathBuf::from(&request.path);
    if !path.is_absolute() {
        let fix = "begin it with /: the daemon's working directory is not yours";
        return invalid("path", format!("{:?}", request.path), "an absolute path is needed", fix);
    }
    let path = At::default_value(path);
    let create_bytes = match request.size_bytes {
        0 => None,
        _ if kind == VolumeKind::Block => {
            let value = request.size_bytes.to_string();
            return invalid("size_bytes", value, "a block device has its own size", "leave it out");
        }
        bytes => Some(At::default_value(check_size("size_bytes", bytes, &keys::VOLUME_SIZE)?)),
    };
    Ok(match kind {
        VolumeKind::Block => VolumeSource::Block { path },
        VolumeKind::File => VolumeSource::File { path, create_bytes },
        _ => VolumeSource::Path { path, create_bytes },
    })
}

fn check_size(field: &'static str, bytes: u64, spec: &keys::Size) -> Result<u64, VolumeError> {
    let keys::Size { min, max, multiple_of, .. } = *spec;
    if (min..=max).contains(&bytes) && bytes.is_multiple_of(multiple_of) {
        return Ok(bytes);
    }
    let limit =
        format!("{} to {} allowed, a multiple of {multiple_of}", size::format(min), size::format(max));
    invalid(field, bytes.to_string(), &limit, "choose a value within the limit")
}

fn invalid<T>(field: &'static str, value: String, what: &str, fix: &str) -> Result<T, VolumeError> {
    Err(VolumeError::Invalid { field, value, what: what.to_owned(), fix: fix.to_owned() })
}
