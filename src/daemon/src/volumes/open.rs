//! From what was asked for to an open target. May block for as long as the file system likes.

use ferrio_driver::{OpenOptions, Target, TargetError};

use super::Volume;
use crate::config::{VolumeSection, VolumeSource, size};

/// Opens what a volume is made of.
pub fn open(section: &VolumeSection) -> Result<Target, TargetError> {
    match &section.source {
        VolumeSource::Null { bytes, block_bytes } => Ok(Target::null(*bytes, *block_bytes)),
        VolumeSource::Memory { bytes } => Target::memory(*bytes).map_err(|source| TargetError::Io {
            what: "memfd_create for the",
            path: "memory target".into(),
            source,
        }),
        VolumeSource::File { path, .. } | VolumeSource::Block { path } | VolumeSource::Path { path, .. } => {
            let create_bytes = section.source.create_bytes().map(|bytes| bytes.value);
            Target::open(
                &path.value,
                &OpenOptions { read_only: section.read_only, create_bytes, ..OpenOptions::default() },
            )
        }
    }
}

/// Logs a volume that has come into service.
pub fn log(volume: &Volume) {
    let Some(served) = volume.served() else { return };
    let (name, target, engine) = (volume.name(), &served.target, &volume.section.engine.value);
    let (bytes, block) = (size::format(target.size_bytes()), target.block_bytes());
    tracing::info!("volume {name}: {}, {bytes} in blocks of {block}, on engine {engine}", target.name());
    if let Some(reason) = target.direct_reason() {
        tracing::warn!("volume {name}: not O_DIRECT: {reason}");
    }
}
