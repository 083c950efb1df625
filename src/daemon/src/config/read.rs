//! Text to [`Config`]: one function per section.

use std::path::PathBuf;

use ferrio_driver::BackendChoice;
use ferrio_engine::{LatencyGoal, MergeLimits, Threads};

use super::keys;
use super::patience::{LOOK_LIMIT, within};
use super::reader::{At, Section, Source};
use super::{
    Config, DEFAULT_ENGINE, DaemonSection, EngineSection, Limits, Problems, SESSIONS_DIR, VolumeSection,
    VolumeSource, fault, group, limit, users,
};
use crate::acl::AllowList;

/// Longest runtime directory: `sun_path` holds 107 bytes and the longest socket name is `/control.sock`.
const RUNTIME_DIR_BYTES_MAX: usize = 107 - "/control.sock".len();

/// Reads the text of a configuration file. `None`: there are errors among the problems.
pub fn read(file: &str, text: &str) -> (Option<Config>, Problems) {
    let (config, problems) = read_what_can_be(file, text);
    (Some(config).filter(|_| !problems.has_errors()), problems)
}

/// As [`read`], but errors leave defaults in their places, and volumes that have any are left out.
pub fn read_what_can_be(file: &str, text: &str) -> (Config, Problems) {
    let source = Source::new(file, text);
    let table = source.parse();
    let mut root = Section::root(&source, &table);
    let daemon = read_daemon(root.section("daemon"));
    let limits = read_limits(root.section("limits"));
    let session = group::read_session(root.section("session"));
    let groups = group::read_groups(root.sections("group"), &session);
    let mut engines = read_engines(root.sections("engine"));
    let volumes = read_volumes(root.sections("volume"), &engines);
    for engine in &mut engines {
        let mut own = volumes.iter().filter(|volume| volume.engine.value == engine.name.value);
        engine.faults |= own.any(|volume| !volume.faults.rules.is_empty());
    }
    root.finish();
    (Config { file: None, daemon, limits, session, groups, engines, volumes }, source.into_problems())
}

pub(super) fn narrow(value: At<u64>) -> u32 {
    u32::try_from(value.value).unwrap_or(u32::MAX)
}

fn read_daemon(mut section: Section<'_, '_>) -> DaemonSection {
    let runtime_dir = section.text("runtime_dir", "\"/run/ferrio\"").map(|text| text.map(PathBuf::from));
    if let Some(dir) = &runtime_dir {
        let written = format!("{:?}", dir.value);
        if !dir.value.is_absolute() {
            section.refuse(
                "runtime_dir",
                dir,
                &written,
                "is a relative path",
                "an absolute path",
                "begin it with /",
            );
        }
        let bytes = dir.value.as_os_str().len();
        if bytes > RUNTIME_DIR_BYTES_MAX {
            let what = format!("has {bytes} bytes: too long for the path of a Unix socket in it");
            let limit = format!("{RUNTIME_DIR_BYTES_MAX} bytes");
            section.refuse("runtime_dir", dir, &written, &what, &limit, "choose a shorter path");
        }
    }
    let group = section.text("group", "\"ferrio\"").and_then(|group| {
        let gid = users::gid(&group.value);
        if gid.is_none() {
            let fix =
                format!("create it with `groupadd --system {}`, or name an existing group", group.value);
            section.refuse(
                "group",
                &group,
                &format!("{:?}", group.value),
                "there is no such group",
                "",
                &fix,
            );
        }
        gid
    });
    let levels = [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
        ("trace", tracing::Level::TRACE),
    ];
    let daemon = DaemonSection {
        runtime_dir: runtime_dir.unwrap_or_else(|| At::default_value(PathBuf::from("/run/ferrio"))),
        socket_mode: section.mode("socket_mode", 0o660, 0o666).value,
        group,
        log_level: section.choice("log_level", &levels, tracing::Level::INFO).value,
        drain_timeout_s: section.number(&keys::DRAIN_TIMEOUT_S).value,
        resume_timeout_s: section.number(&keys::RESUME_TIMEOUT_S).value,
    };
    section.finish();
    daemon
}

fn read_limits(mut section: Section<'_, '_>) -> Limits {
    let entries = section.number(&keys::QUEUE_ENTRIES_MAX);
    if !entries.value.is_power_of_two() {
        let fix = format!("write queue_entries_max = {}", entries.value.next_power_of_two().min(32768));
        let limit = "a power of two, 1 to 32768";
        section.refuse(
            "queue_entries_max",
            &entries,
            &entries.value.to_string(),
            "is not a power of two",
            limit,
            &fix,
        );
    }
    let limits = Limits {
        sessions_max: narrow(section.number(&keys::SESSIONS_MAX)),
        sessions_per_uid_max: narrow(section.number(&keys::SESSIONS_PER_UID_MAX)),
        queues_max: narrow(section.number(&keys::QUEUES_MAX)),
        queues_per_uid_max: narrow(section.number(&keys::QUEUES_PER_UID_MAX)),
        queues_per_session_max: narrow(section.number(&keys::QUEUES_PER_SESSION_MAX)),
        queue_entries_max: narrow(entries),
        arena_bytes_max: section.size(&keys::ARENA_BYTES_MAX).map_or(0, |bytes| bytes.value),
        regions_per_session_max: narrow(section.number(&keys::REGIONS_PER_SESSION_MAX)),
        region_bytes_max: section.size(&keys::REGION_BYTES_MAX).map_or(0, |bytes| bytes.value),
        memory_bytes_per_uid_max: section
            .size(&keys::MEMORY_BYTES_PER_UID_MAX)
            .map_or(0, |bytes| bytes.value),
        memory_bytes_max: section.size(&keys::MEMORY_BYTES_MAX).map_or(0, |bytes| bytes.value),
        attach_timeout_s: narrow(section.number(&keys::ATTACH_TIMEOUT_S)),
        connections_max: narrow(section.number(&keys::CONNECTIONS_MAX)),
        connections_per_uid_max: narrow(section.number(&keys::CONNECTIONS_PER_UID_MAX)),
    };
    section.finish();
    limits
}

/// What [`is_name`] accepts, for messages.
pub const NAME_LIMIT: &str = "1 to 64 of a-z A-Z 0-9 - _ . beginning with a letter or digit";

/// Whether an engine or a volume may be called so.
pub fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() <= 64 && name.chars().all(good)
}

/// The name of an engine, a volume or a group: it appears in thread names, file names, tables and messages.
pub(super) fn read_name(section: &mut Section<'_, '_>, example: &str, taken: &[At<String>]) -> At<String> {
    let Some(name) = section.text("name", example) else {
        section.missing("name", "add a line name = \"...\" to this section");
        return At { value: String::new(), line: section.line() };
    };
    let written = format!("{:?}", name.value);
    if !is_name(&name.value) {
        let fix = "choose a name within the limit";
        section.refuse("name", &name, &written, "is not a name", NAME_LIMIT, fix);
    }
    if let Some(first) = taken.iter().find(|other| other.value == name.value) {
        let what = format!("is the name of line {} too", first.line);
        section.refuse("name", &name, &written, &what, "names differ", "rename one of the two");
    }
    name
}

fn read_engines(sections: Vec<Section<'_, '_>>) -> Vec<EngineSection> {
    let backends = [
        ("auto", BackendChoice::Auto),
        ("io_uring", BackendChoice::IoUring),
        ("aio", BackendChoice::Aio),
        ("null", BackendChoice::Null),
    ];
    let threads = [("auto", Threads::Auto), ("1", Threads::One), ("2", Threads::Two)];
    let mut names = Vec::new();
    let mut engines = Vec::new();
    for mut section in sections {
        let name = read_name(&mut section, "\"main\"", &names);
        if name.value == SESSIONS_DIR {
            let what = "is the directory of the saved sessions, beside the journals that are called as their engines";
            section.refuse("name", &name, "\"sessions\"", what, "another name", "rename the engine");
        }
        names.push(name.clone());
        let queue_depth = section.number(&keys::QUEUE_DEPTH).value;
        let requests_max = section.number(&keys::REQUESTS_MAX);
        if requests_max.value < queue_depth {
            let what = format!("is below queue_depth = {queue_depth}: the depth could never be reached");
            let fix = format!("write requests_max = {queue_depth} or more, or lower queue_depth");
            let limit = format!("{queue_depth} or more");
            section.refuse(
                "requests_max",
                &requests_max,
                &requests_max.value.to_string(),
                &what,
                &limit,
                &fix,
            );
        }
        engines.push(EngineSection {
            name,
            backend: section.choice("backend", &backends, BackendChoice::Auto).value,
            queue_depth: narrow(At::default_value(queue_depth)),
            requests_max: narrow(requests_max),
            threads: section.choice("threads", &threads, Threads::Auto).value,
            spin_us: narrow(section.number(&keys::SPIN_US)),
            budgets: [&keys::BUDGET_PRIO, &keys::BUDGET_READ, &keys::BUDGET_WRITE]
                .map(|budget| narrow(section.number(budget))),
            merge: read_merge(&mut section),
            latency_goal: group::read_latency_goal(&mut section),
            helpers: narrow(section.number(&keys::HELPERS)),
            faults: section.flag("faults").value,
        });
        section.finish();
    }
    if engines.is_empty() {
        engines.push(default_engine());
    }
    engines
}

fn read_merge(section: &mut Section<'_, '_>) -> MergeLimits {
    let bytes = section.size(&keys::MERGE_BYTES_MAX).unwrap_or(At::default_value(0));
    MergeLimits { bytes_max: narrow(bytes), segments_max: narrow(section.number(&keys::MERGE_REQUESTS_MAX)) }
}

fn default_engine() -> EngineSection {
    let default = |number: &keys::Number| u32::try_from(number.default).unwrap_or(u32::MAX);
    EngineSection {
        name: At::default_value(DEFAULT_ENGINE.to_owned()),
        backend: BackendChoice::Auto,
        queue_depth: default(&keys::QUEUE_DEPTH),
        requests_max: default(&keys::REQUESTS_MAX),
        threads: Threads::Auto,
        spin_us: default(&keys::SPIN_US),
        budgets: [&keys::BUDGET_PRIO, &keys::BUDGET_READ, &keys::BUDGET_WRITE].map(default),
        merge: MergeLimits::default(),
        latency_goal: LatencyGoal::Off,
        helpers: default(&keys::HELPERS),
        faults: false,
    }
}

fn read_volumes(sections: Vec<Section<'_, '_>>, engines: &[EngineSection]) -> Vec<VolumeSection> {
    let mut names = Vec::new();
    let mut paths: Vec<At<PathBuf>> = Vec::new();
    let mut volumes = Vec::new();
    for mut section in sections {
        let problems_before = section.problem_count();
        let name = read_name(&mut section, "\"data\"", &names);
        names.push(name.clone());
        let source = read_source(&mut section);
        if let Some(path) = source.as_ref().and_then(VolumeSource::path) {
            let real = real(path);
            if let Some(first) = paths.iter().find(|other| other.value == real.value) {
                let what = format!("is the file of line {} too: a volume is opened once", first.line);
                let fix = "remove one of the two, or give it another file";
                section.refuse("path", path, &format!("{:?}", path.value), &what, "", fix);
            }
            paths.push(real);
        }
        let engine = read_engine_name(&mut section, engines);
        let read_only = section.flag("read_only").value;
        let allow = read_allow(&mut section);
        let limit = limit::read_limit(section.section_of("limit", "volume.limit"));
        let faults = fault::read_plan(&mut section);
        let good = section.problem_count() == problems_before;
        section.finish();
        if let (Some(source), true) = (source, good) {
            volumes.push(VolumeSection { name, source, engine, read_only, allow, limit, faults });
        }
    }
    volumes
}

/// The file that a path leads to; the path as it stands where nothing is there, or nothing answers.
fn real(path: &At<PathBuf>) -> At<PathBuf> {
    let own = path.value.clone();
    let found = within(LOOK_LIMIT, move || own.canonicalize().ok()).flatten();
    At { value: found.unwrap_or_else(|| path.value.clone()), line: path.line }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    ByPath,
    File,
    Block,
    Null,
    Memory,
}

fn read_source(section: &mut Section<'_, '_>) -> Option<VolumeSource> {
    let kinds =
        [("file", Kind::File), ("block", Kind::Block), ("null", Kind::Null), ("memory", Kind::Memory)];
    let kind = section.choice("kind", &kinds, Kind::ByPath);
    let path = section.text("path", "\"/var/lib/ferrio/data.img\"").map(|text| text.map(PathBuf::from));
    let size = section.size(&keys::VOLUME_SIZE);
    let block_bytes = section.size(&keys::BLOCK_BYTES).unwrap_or(At::default_value(512));
    if kind.value == Kind::Null {
        return read_null(section, path, size, block_bytes);
    }
    if block_bytes.line > 0 {
        let fix = "remove it: files and devices have the block size of their disk, memory has 512 bytes";
        section.refuse("block_bytes", &block_bytes, "", "only null volumes choose their block size", "", fix);
    }
    if kind.value == Kind::Memory {
        let bytes = read_pathless(section, "memory", path, size)?;
        return Some(VolumeSource::Memory { bytes });
    }
    let Some(path) = path else {
        section.missing(
            "path",
            "add a line path = \"/...\", or kind = \"null\" for a volume that keeps nothing",
        );
        return None;
    };
    if !path.value.is_absolute() {
        let fix = "begin it with /: the daemon's working directory is not yours";
        section.refuse(
            "path",
            &path,
            &format!("{:?}", path.value),
            "is a relative path",
            "an absolute path",
            fix,
        );
    }
    if let (Kind::Block, Some(size)) = (kind.value, &size) {
        let fix = "remove it: a block device has its own size";
        section.refuse("size", size, &size.value.to_string(), "a block device is not created", "", fix);
    }
    Some(match kind.value {
        Kind::File => VolumeSource::File { path, create_bytes: size },
        Kind::Block => VolumeSource::Block { path },
        Kind::ByPath | Kind::Null | Kind::Memory => VolumeSource::Path { path, create_bytes: size },
    })
}

fn read_null(
    section: &Section<'_, '_>,
    path: Option<At<PathBuf>>,
    size: Option<At<u64>>,
    block_bytes: At<u64>,
) -> Option<VolumeSource> {
    if !block_bytes.value.is_power_of_two() {
        let written = block_bytes.value.to_string();
        let limit = "512, 1024, 2048 or 4096";
        section.refuse(
            "block_bytes",
            &block_bytes,
            &written,
            "is not a power of two",
            limit,
            "write block_bytes = 4096",
        );
    }
    let bytes = read_pathless(section, "null", path, size)?;
    Some(VolumeSource::Null { bytes, block_bytes: narrow(block_bytes) })
}

/// The size of a volume that has no path.
fn read_pathless(
    section: &Section<'_, '_>,
    kind: &str,
    path: Option<At<PathBuf>>,
    size: Option<At<u64>>,
) -> Option<u64> {
    if let Some(path) = path {
        let fix = format!("remove it, or remove kind = \"{kind}\"");
        let what = format!("a {kind} volume has no path");
        section.refuse("path", &path, &format!("{:?}", path.value), &what, "", &fix);
    }
    if size.is_none() {
        let fix = format!("add a line size = \"1 GiB\": a {kind} volume has no file to take its size from");
        section.missing("size", &fix);
    }
    size.map(|size| size.value)
}

fn read_engine_name(section: &mut Section<'_, '_>, engines: &[EngineSection]) -> At<String> {
    let first = At::default_value(engines[0].name.value.clone());
    let Some(engine) = section.text("engine", "\"main\"") else { return first };
    if engines.iter().all(|other| other.name.value != engine.value) {
        let names = engines.iter().map(|engine| engine.name.value.as_str()).collect::<Vec<_>>().join(", ");
        let written = format!("{:?}", engine.value);
        let fix = format!("name one of them, or add an [[engine]] with name = {written}");
        section.refuse(
            "engine",
            &engine,
            &written,
            "there is no such engine",
            &format!("engines: {names}"),
            &fix,
        );
    }
    engine
}

fn read_allow(section: &mut Section<'_, '_>) -> AllowList {
    let uids = read_ids(section, "allow_users", "user", "[\"postgres\", 1000]", users::uid);
    let gids = read_ids(section, "allow_groups", "group", "[\"disk\", 6]", users::gid);
    let any = section.flag("allow_any");
    if any.value && !(uids.is_empty() && gids.is_empty()) {
        let fix = "remove allow_any, or remove the lists";
        section.warn(any.line, "allow_any", "true", "makes allow_users and allow_groups meaningless", fix);
    }
    AllowList { any: any.value, uids, gids }
}

/// A list of users or groups, as ids.
pub(super) fn read_ids(
    section: &mut Section<'_, '_>,
    key: &'static str,
    noun: &str,
    example: &str,
    id: fn(&str) -> Option<u32>,
) -> Vec<u32> {
    let mut ids = Vec::new();
    for name in section.names(key, example) {
        match id(&name.value) {
            Some(id) => ids.push(id),
            None => {
                let what = format!("there is no such {noun}");
                let fix = format!("create the {noun}, correct the name, or write its number");
                section.refuse(key, &name, &format!("{:?}", name.value), &what, "", &fix);
            }
        }
    }
    ids
}
