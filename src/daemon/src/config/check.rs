//! What a configuration says against what the machine has. Opens nothing and changes nothing.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::patience::{LOOK_LIMIT, within};
use super::{At, Config, Problem, Severity, VolumeSection, VolumeSource, size};

/// Looks at the paths of the volumes.
pub fn check_volumes(config: &Config) -> Vec<Problem> {
    config.volumes.iter().filter_map(|volume| check_in_time(config, volume)).collect()
}

/// A path that does not answer is no reason to leave the other volumes alone.
fn check_in_time(config: &Config, volume: &VolumeSection) -> Option<Problem> {
    let path = volume.source.path()?;
    let (own_config, own_volume) = (config.clone(), volume.clone());
    let checked = within(LOOK_LIMIT, move || check_volume(&own_config, &own_volume));
    checked.unwrap_or_else(|| {
        let value = format!("{:?}", path.value);
        let what = "does not answer: ferriod starts without this volume, and serves it when it does";
        let fix = "look after the disk or the file server below it";
        Some(warning(config, path.line, "volume.path", &value, what, fix))
    })
}

fn warning(config: &Config, line: u32, key: &str, value: &str, what: &str, fix: &str) -> Problem {
    Problem { severity: Severity::Warning, ..config.problem(line, key, value, what, fix) }
}

fn check_volume(config: &Config, volume: &VolumeSection) -> Option<Problem> {
    let path = volume.source.path()?;
    let error = |what: &str, fix: &str| {
        Some(config.problem(path.line, "volume.path", &format!("{:?}", path.value), what, fix))
    };
    let metadata = match std::fs::metadata(&path.value) {
        Ok(metadata) => metadata,
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
            return check_absent(config, volume, path);
        }
        Err(fault) => {
            return error(&format!("cannot be examined: {fault}"), "correct the path or its permissions");
        }
    };
    let kind = metadata.file_type();
    match &volume.source {
        VolumeSource::File { .. } if !kind.is_file() => {
            return error("is not a regular file, but kind is \"file\"", "correct the path, or remove kind");
        }
        VolumeSource::Block { .. } if !kind.is_block_device() => {
            return error("is not a block device, but kind is \"block\"", "correct the path, or remove kind");
        }
        _ if !kind.is_file() && !kind.is_block_device() => {
            return error("is neither a regular file nor a block device", "name a file or a block device");
        }
        _ => {}
    }
    if kind.is_file() { check_size(config, volume, path, metadata.size()) } else { None }
}

fn check_absent(config: &Config, volume: &VolumeSection, path: &At<std::path::PathBuf>) -> Option<Problem> {
    let error = |what: &str, fix: &str| {
        Some(config.problem(path.line, "volume.path", &format!("{:?}", path.value), what, fix))
    };
    if matches!(volume.source, VolumeSource::Block { .. }) {
        return error("there is no such device", "correct the path, or attach the device first");
    }
    if volume.source.create_bytes().is_none() {
        return error(
            "does not exist",
            "correct the path, create the file, or add size = \"64 MiB\" to let ferriod create it",
        );
    }
    if volume.read_only {
        return error(
            "does not exist, and a read-only volume is not created",
            "create the file, or remove read_only",
        );
    }
    let parent = path.value.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        let fix = format!("create it with `mkdir -p {}`, owned by the daemon's user", parent.display());
        return error(&format!("its directory {} does not exist", parent.display()), &fix);
    }
    None
}

fn check_size(
    config: &Config,
    volume: &VolumeSection,
    path: &At<std::path::PathBuf>,
    bytes: u64,
) -> Option<Problem> {
    if !bytes.is_multiple_of(512) || bytes == 0 {
        let what = format!("its size of {bytes} bytes is not a multiple of the block (512 bytes) above 0");
        let fix = format!("`truncate -s {} {}`", bytes.max(1).next_multiple_of(4096), path.value.display());
        return Some(config.problem(path.line, "volume.path", &format!("{:?}", path.value), &what, &fix));
    }
    let wanted = volume.source.create_bytes().filter(|wanted| wanted.value != bytes)?;
    let what = format!("has no effect: the file exists and has {}", size::format(bytes));
    let fix = format!("remove it, or `truncate -s {} {}`", wanted.value, path.value.display());
    Some(warning(
        config,
        wanted.line,
        "volume.size",
        &format!("\"{}\"", size::format(wanted.value)),
        &what,
        &fix,
    ))
}

/// File descriptors the sessions may hold: memory, lease and pidfd each; both ends of a doorbell per engine and queue
/// until the client has taken its own.
fn session_fds_max(config: &Config) -> u64 {
    let engines = config.engines.len() as u64;
    u64::from(config.limits.sessions_max) * (3 + 2 * engines) + 2 * u64::from(config.limits.queues_max)
}

/// Looks at what is valid, but will disappoint. For a configuration without errors.
pub fn check_limits(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    if config.volumes.is_empty() {
        let fix = "add a [[volume]] section";
        problems.push(warning(config, 0, "volume", "", "there is none: no client can open a session", fix));
    }
    let limits = &config.limits;
    let need =
        64 + session_fds_max(config) + 2 * u64::from(limits.connections_max) + config.volumes.len() as u64;
    let have = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if let Some(have) = have.filter(|have| *have < need) {
        let what = format!("may need {need} file descriptors, and this process may have {have}");
        let fix =
            format!("LimitNOFILE={need} in the unit (or `ulimit -Hn`), or a smaller limits.sessions_max");
        let value = limits.sessions_max.to_string();
        problems.push(warning(config, 0, "limits.sessions_max", &value, &what, &fix));
    }
    let most = limits.memory_bytes_per_uid_max.min(limits.memory_bytes_max);
    let regions = if limits.regions_per_session_max > 0 { limits.region_bytes_max } else { 0 };
    for (key, bytes) in [("arena_bytes_max", limits.arena_bytes_max), ("region_bytes_max", regions)] {
        if bytes > most {
            let what =
                "is above limits.memory_bytes_per_uid_max or memory_bytes_max: no session can have that much";
            let (key, fix) = (format!("limits.{key}"), format!("raise those, or lower {key}"));
            let value = format!("\"{}\"", size::format(bytes));
            problems.push(warning(config, 0, &key, &value, what, &fix));
        }
    }
    problems
}
