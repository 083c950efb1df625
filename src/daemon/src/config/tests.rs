//! Every kind of mistake: line, key, value, limit and fix of its message.

use super::*;
use ferrio_driver::{FaultEffect, FaultOps};
use ferrio_engine::{Rate, Split};

/// Text, then (line, key, value, part of what, part of limit, part of fix) of each problem, in order.
type Case =
    (&'static str, &'static [(u32, &'static str, &'static str, &'static str, &'static str, &'static str)]);

const CASES: &[Case] = &[
    (
        "[[volume]]\nname = \"m\"\nkind = \"memory\"\npath = \"/x\"\nfault_seed = 2\n",
        &[
            (1, "volume.size", "", "is missing", "", "a memory volume has no file"),
            (4, "volume.path", "\"/x\"", "a memory volume has no path", "", "remove it"),
            (5, "volume.fault_seed", "2", "no effect without rules", "", "[[volume.fault]]"),
        ],
    ),
    (
        "[[volume]]\nname = \"m\"\nkind = \"memory\"\nsize = 4096\n[[volume.fault]]\nops = [\"erase\"]\neffect = \"stuck\"\n\
         [[volume.fault]]\ncount = 1\n[[volume.fault]]\neffect = \"stuck\"\nerrno = \"EIO\"\nwindov = 3\n",
        &[
            (6, "volume.fault.ops", "\"erase\"", "is no operation", "read, write, flush", "name one"),
            (8, "volume.fault.effect", "", "is missing", "", "effect = \"error\""),
            (10, "volume.fault.errno", "5", "goes with the effect \"error\" alone", "", "leave it out"),
            (13, "volume.fault.windov", "3", "unknown key", "window", "did you mean window?"),
        ],
    ),
    ("[daemon\n", &[(1, "", "", "", "", "correct the TOML of this line: [daemon")]),
    (
        "[limits]\nsesions_max = 3\n",
        &[(
            2,
            "limits.sesions_max",
            "3",
            "unknown key",
            "known here: queue_entries_max, sessions_max",
            "did you mean sessions_max?",
        )],
    ),
    (
        "[[volumes]]\n",
        &[(
            1,
            "volumes",
            "",
            "unknown key",
            "daemon, limits, session, group, engine, volume",
            "did you mean volume?",
        )],
    ),
    ("\"\" = \"\"\n", &[(1, "\"\"", "\"\"", "unknown key", "daemon", "config/ferriod.toml")]),
    ("zzz = 1\n", &[(1, "zzz", "1", "unknown key", "daemon", "config/ferriod.toml")]),
    (
        "[limits]\n\nsessions_max = \"many\"\n",
        &[(
            3,
            "limits.sessions_max",
            "\"many\"",
            "of type string, not a whole number of sessions",
            "sessions",
            "write sessions_max = 256",
        )],
    ),
    (
        "[limits]\nsessions_max = 0\nattach_timeout_s = 301\nsessions_per_uid_max = -5\n",
        &[
            (
                2,
                "limits.sessions_max",
                "0",
                "out of range",
                "1 to 4096 sessions, default 256",
                "write sessions_max = 1",
            ),
            (
                3,
                "limits.attach_timeout_s",
                "301",
                "out of range",
                "1 to 300 seconds, default 10",
                "attach_timeout_s = 300",
            ),
            (4, "limits.sessions_per_uid_max", "-5", "out of range", "1 to 4096", "sessions_per_uid_max = 1"),
        ],
    ),
    (
        "[limits]\nqueue_entries_max = 1000\n",
        &[(
            2,
            "limits.queue_entries_max",
            "1000",
            "not a power of two",
            "a power of two, 1 to 32768",
            "queue_entries_max = 1024",
        )],
    ),
    (
        "[limits]\narena_bytes_max = \"1 GB\"\nmemory_bytes_max = 1048577\n",
        &[
            (
                2,
                "limits.arena_bytes_max",
                "\"1 GB\"",
                "not a size",
                "KiB, MiB, GiB or TiB",
                "write arena_bytes_max = \"1 GiB\"",
            ),
            (
                3,
                "limits.memory_bytes_max",
                "1048577",
                "not a multiple of the block",
                "a multiple of 4096 bytes",
                "memory_bytes_max = 1052672",
            ),
        ],
    ),
    ("daemon = 3\n", &[(1, "daemon", "3", "not a section", "", "[daemon]")]),
    ("[engine]\nname = \"a\"\n", &[(1, "engine", "", "not a list of sections", "", "[[engine]]")]),
    (
        "[daemon]\nruntime_dir = \"run\"\nsocket_mode = 660\nlog_level = \"loud\"\ngroup = \"no-such-group\"\n",
        &[
            (2, "daemon.runtime_dir", "\"run\"", "relative", "absolute", "begin it with /"),
            (3, "daemon.socket_mode", "660", "is not octal", "0o600 to 0o666", "write socket_mode = 0o660"),
            (
                4,
                "daemon.log_level",
                "\"loud\"",
                "not one of the values",
                "\"error\", \"warn\", \"info\"",
                "log_level = \"error\"",
            ),
            (5, "daemon.group", "\"no-such-group\"", "no such group", "", "groupadd --system no-such-group"),
        ],
    ),
    (
        "[daemon]\nsocket_mode = 0o777\n",
        &[(2, "daemon.socket_mode", "0o777", "not a mode", "0o600 to 0o666", "0o660")],
    ),
    (
        "[[engine]]\nname = \"a\"\nrequests_max = 100\n",
        &[(3, "engine.requests_max", "100", "below queue_depth", "256 or more", "requests_max = 256")],
    ),
    (
        "[[engine]]\nname = \"a\"\n[[engine]]\nname = \"a\"\nbackend = \"uring\"\nthreads = 3\n",
        &[
            (4, "engine.name", "\"a\"", "is the name of line 2 too", "names differ", "rename"),
            (
                5,
                "engine.backend",
                "\"uring\"",
                "not one of",
                "\"auto\", \"io_uring\", \"aio\", \"null\"",
                "backend = \"auto\"",
            ),
            (6, "engine.threads", "3", "not one of", "\"auto\", \"1\", \"2\"", "threads = \"auto\""),
        ],
    ),
    ("[[engine]]\n", &[(1, "engine.name", "", "is missing", "", "add a line name")]),
    (
        "[[engine]]\nname = \"../x\"\n",
        &[(2, "engine.name", "\"../x\"", "not a name", "1 to 64", "choose a name")],
    ),
    (
        "[[volume]]\nname = \"v\"\nkind = \"null\"\n",
        &[(1, "volume.size", "", "is missing", "", "size = \"1 GiB\"")],
    ),
    (
        "[[volume]]\nname = \"v\"\nkind = \"null\"\nsize = 5000\n",
        &[
            (1, "volume.size", "", "is missing", "", ""),
            (
                4,
                "volume.size",
                "5000",
                "not a multiple of the block (5000 bytes, 904 too many)",
                "4096",
                "write size = 8192",
            ),
        ],
    ),
    ("[[volume]]\nname = \"v\"\n", &[(1, "volume.path", "", "is missing", "", "kind = \"null\"")]),
    (
        "[[volume]]\nname = \"v\"\npath = \"x\"\n",
        &[(3, "volume.path", "\"x\"", "relative", "absolute", "working directory")],
    ),
    (
        "[[volume]]\nname = \"v\"\npath = \"/x\"\n[[volume]]\nname = \"w\"\npath = \"/x\"\nengine = \"e\"\n",
        &[
            (6, "volume.path", "\"/x\"", "is the file of line 3 too", "", "remove one"),
            (
                7,
                "volume.engine",
                "\"e\"",
                "no such engine",
                "engines: main",
                "add an [[engine]] with name = \"e\"",
            ),
        ],
    ),
    (
        "[[volume]]\nname = \"v\"\npath = \"/x\"\nallow_users = [\"no-such-user\", 1.5]\nallow_groups = \"disk\"\n",
        &[
            (4, "volume.allow_users", "1.5", "not a name or an id", "", "[\"postgres\", 1000]"),
            (4, "volume.allow_users", "\"no-such-user\"", "no such user", "", "create the user"),
            (5, "volume.allow_groups", "\"disk\"", "not a list", "", "[\"disk\", 6]"),
        ],
    ),
    (
        "[[volume]]\nname = \"v\"\nkind = \"block\"\npath = \"/dev/x\"\nsize = \"1 MiB\"\nblock_bytes = 512\nread_only = 1\n",
        &[
            (5, "volume.size", "1048576", "not created", "", "its own size"),
            (6, "volume.block_bytes", "", "only null volumes", "", "remove it"),
            (7, "volume.read_only", "1", "not true or false", "", "read_only = true"),
        ],
    ),
    (
        "[session]\nweight = 1001\nlimit = { iops = -1, bytes_per_s = \"1 GB\", ipos = 2 }\n",
        &[
            (2, "session.weight", "1001", "out of range", "1 to 1000 shares", "weight = 1000"),
            (3, "session.limit.iops", "-1", "out of range", "requests per second", "iops = 0"),
            (3, "session.limit.bytes_per_s", "\"1 GB\"", "not a size", "KiB, MiB", "write bytes_per_s"),
            (3, "session.limit.ipos", "2", "unknown key", "iops, read_iops", "did you mean iops?"),
        ],
    ),
    (
        "[[group]]\nname = \"a\"\nusers = [\"no-such-user\"]\ngroups = [\"no-such-group\"]\n\
         [[group]]\nname = \"a\"\n[group.limit]\nburst_iops = 5\n[[group]]\nname = \"a b\"\nlimit = 3\n",
        &[
            (3, "group.users", "\"no-such-user\"", "no such user", "", "create the user"),
            (4, "group.groups", "\"no-such-group\"", "no such group", "", "create the group"),
            (6, "group.name", "\"a\"", "is the name of line 2 too", "names differ", "rename"),
            (7, "group.limit.burst_iops", "5", "no effect without iops", "", "give iops too"),
            (10, "group.name", "\"a b\"", "is not a name", "1 to 64", "choose a name"),
            (11, "group.limit", "3", "not a section", "", "[group.limit]"),
        ],
    ),
    (
        "[[engine]]\nname = \"a\"\nlatency_goal = \"99%\"\nbudget_prio = 0\n\
         [[volume]]\nname = \"v\"\nkind = \"null\"\nsize = 4096\n[volume.limit]\nread_bytes_per_s = \"1 TiB\"\n",
        &[
            (3, "engine.latency_goal", "\"99%\"", "is not a goal", "100 % to 10000 %", "\"200%\""),
            (4, "engine.budget_prio", "0", "out of range", "1 to 4096 cost", "budget_prio = 1"),
            (
                10,
                "volume.limit.read_bytes_per_s",
                "\"1 TiB\"",
                "out of range",
                "0 B to 512 GiB",
                "= \"512 GiB\"",
            ),
        ],
    ),
];

fn iops(per_second: u64) -> Limit {
    let total = Some(Rate::new(per_second));
    Limit { iops: Split { total, ..Split::default() }, ..Limit::default() }
}

#[test]
fn nobody_is_limited_unless_it_is_written() {
    let text = "[[group]]\nname = \"g\"\n[[volume]]\nname = \"v\"\nkind = \"null\"\nsize = 4096\n";
    let config = read("f.toml", text).0.expect("valid");
    let nothing = SessionSection { weight: 100, limit: Limit::default() };
    assert_eq!((&config.session, &config.groups[0].session), (&nothing, &nothing));
    assert!(config.groups[0].limit.is_unlimited() && config.volumes[0].limit.is_unlimited());
    assert_eq!(config.engines[0].latency_goal, LatencyGoal::Off);
    let written = read("f.toml", "[[engine]]\nname = \"main\"\n").0.expect("valid");
    for engine in [&config.engines[0], &written.engines[0]] {
        assert_eq!(engine.merge, MergeLimits::default());
    }
}

#[test]
fn weights_limits_and_groups_are_read() {
    let text = "[session]\nweight = 50\nlimit = { iops = 10 }\n\
                [[group]]\nname = \"db\"\nusers = [\"root\", 1000]\nweight = 300\n\
                [group.limit]\nbytes_per_s = \"200 MiB\"\nburst_bytes = \"1 GiB\"\nwrite_iops = 7\n\
                [group.session_limit]\niops = 20\n\
                [[group]]\nname = \"free\"\ngroups = [\"root\", 6]\nsession_limit = {}\n\
                [[group]]\nname = \"as-others\"\n\
                [[engine]]\nname = \"main\"\nlatency_goal = \"2 ms\"\nmerge_bytes_max = \"1 MiB\"\nmerge_requests_max = 1\n\
                [[volume]]\nname = \"v\"\nkind = \"null\"\nsize = 4096\nlimit.iops = 30\n";
    let (config, problems) = read("f.toml", text);
    let config = config.unwrap_or_else(|| panic!("{problems}"));
    assert_eq!(config.session, SessionSection { weight: 50, limit: iops(10) });
    let [db, free, others] = config.groups.as_slice() else { panic!("three groups") };
    assert_eq!((db.uids.as_slice(), db.gids.len()), (&[0, 1000][..], 0));
    assert_eq!(db.session, SessionSection { weight: 300, limit: iops(20) });
    assert_eq!(db.limit.bytes.total, Some(Rate { per_second: 200 << 20, burst: Some(1 << 30) }));
    assert_eq!(db.limit.iops.write, Some(Rate::new(7)));
    assert_eq!(free.gids, [0, 6]);
    assert_eq!(
        free.session,
        SessionSection { weight: 50, limit: Limit::default() },
        "an empty table is no limit"
    );
    assert_eq!(others.session, config.session);
    assert_eq!(config.engines[0].latency_goal, LatencyGoal::Within(2_000_000));
    assert_eq!(config.engines[0].merge, MergeLimits { bytes_max: 1 << 20, segments_max: 1 });
    assert_eq!(config.volumes[0].limit, iops(30));
}

#[test]
fn every_mistake_names_line_key_value_limit_and_fix() {
    for (text, wanted) in CASES {
        let (config, problems) = read("f.toml", text);
        assert!(config.is_none(), "accepted:\n{text}");
        let found = &problems.0;
        assert_eq!(found.len(), wanted.len(), "of:\n{text}\nfound:\n{problems}");
        for (problem, (line, key, value, what, limit, fix)) in found.iter().zip(*wanted) {
            assert_eq!((problem.line, problem.key.as_str()), (*line, *key), "{problem}");
            assert!(problem.value.starts_with(value), "value {value:?} of {problem}");
            assert!(problem.what.contains(what), "what {what:?} of {problem}");
            assert!(problem.limit.contains(limit), "limit {limit:?} of {problem}");
            assert!(problem.fix.contains(fix), "fix {fix:?} of {problem}");
        }
    }
}

#[test]
fn a_message_reads_well() {
    let (_, problems) = read("/etc/f.toml", "[limits]\nsessions_max = 0\n");
    assert_eq!(
        problems.to_string(),
        "/etc/f.toml:2: error: limits.sessions_max = 0: is out of range\n    limit: 1 to 4096 sessions, default 256\n    \
         fix:   write sessions_max = 1 or another value within the limit"
    );
}

#[test]
fn an_empty_file_is_the_defaults() {
    let (config, problems) = read("f.toml", "");
    assert_eq!(problems, Problems::default());
    let config = config.expect("valid");
    assert_eq!(config.daemon.runtime_dir.value, Path::new("/run/ferrio"));
    assert_eq!(config.daemon.socket_mode, 0o660);
    assert_eq!(config.engines.len(), 1);
    assert_eq!(config.engines[0].name.value, DEFAULT_ENGINE);
}

#[test]
fn everything_set_is_everything_read() {
    let text = r#"
        [daemon]
        runtime_dir = "/run/x"
        socket_mode = "0600"
        log_level = "debug"
        group = 0
        [[engine]]
        name = "fast"
        backend = "io_uring"
        threads = 2
        budget_prio = 7
        [[volume]]
        name = "data"
        path = "/data.img"
        size = "1 MiB"
        read_only = true
        allow_users = ["root", 1000, "1001"]
        [[volume]]
        name = "null"
        kind = "null"
        size = 8192
        block_bytes = 4096
        allow_any = true
    "#;
    let (config, problems) = read("f.toml", &text.replace("group = 0", "group = \"root\""));
    assert_eq!(problems, Problems::default());
    let config = config.expect("valid");
    assert_eq!(config.daemon.group, Some(0));
    assert_eq!(config.daemon.socket_mode, 0o600);
    assert_eq!(config.daemon.log_level, tracing::Level::DEBUG);
    assert_eq!(config.engines[0].backend, BackendChoice::IoUring);
    assert_eq!(config.engines[0].threads, Threads::Two);
    assert_eq!(config.engines[0].budgets, [7, 16, 16]);
    assert_eq!(config.volumes[0].engine.value, "fast");
    assert_eq!(config.volumes[0].allow.uids, [0, 1000, 1001]);
    assert!(config.volumes[0].read_only);
    assert_eq!(config.volumes[1].source, VolumeSource::Null { bytes: 8192, block_bytes: 4096 });
    assert!(config.volumes[1].allow.any);
}

fn load(dir: &Path, text: &str) -> Problems {
    let file = dir.join("f.toml");
    std::fs::write(&file, text.replace("DIR", dir.to_str().expect("utf-8"))).expect("written");
    Config::load(&file).1
}

#[test]
fn paths_are_checked_against_the_machine() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("odd.img"), [0; 1000]).expect("written");
    std::fs::write(dir.path().join("good.img"), [0; 8192]).expect("written");
    // (keys after the name, severity, line, part of what, part of fix); none: no problem at all.
    type Wanted = Option<(Severity, u32, &'static str, &'static str)>;
    let cases: &[(&str, Wanted)] = &[
        ("path = \"DIR/no.img\"", Some((Severity::Error, 3, "does not exist", "size = \"64 MiB\""))),
        ("path = \"DIR/no.img\"\nsize = \"1 MiB\"", None),
        ("path = \"DIR/no/no.img\"\nsize = \"1 MiB\"", Some((Severity::Error, 3, "directory", "mkdir -p"))),
        (
            "path = \"DIR/no.img\"\nsize = \"1 MiB\"\nread_only = true",
            Some((Severity::Error, 3, "read-only volume is not created", "create the file")),
        ),
        (
            "path = \"DIR/odd.img\"",
            Some((Severity::Error, 3, "1000 bytes is not a multiple", "truncate -s 4096")),
        ),
        ("path = \"DIR/good.img\"", None),
        ("path = \"DIR/good.img\"\nsize = \"1 MiB\"", Some((Severity::Warning, 4, "no effect", "truncate"))),
        (
            "kind = \"block\"\npath = \"DIR/good.img\"",
            Some((Severity::Error, 4, "not a block device", "remove kind")),
        ),
        ("kind = \"block\"\npath = \"DIR/no\"", Some((Severity::Error, 4, "no such device", "attach"))),
        ("path = \"DIR\"", Some((Severity::Error, 3, "neither a regular file", "name a file"))),
        (
            "kind = \"file\"\npath = \"/dev/null\"",
            Some((Severity::Error, 4, "not a regular file", "remove kind")),
        ),
    ];
    for (keys, wanted) in cases {
        let problems = load(dir.path(), &format!("[[volume]]\nname = \"v\"\n{keys}\n"));
        match (problems.0.as_slice(), wanted) {
            ([], None) => {}
            ([problem], Some((severity, line, what, fix))) => {
                assert_eq!((problem.severity, problem.line), (*severity, *line), "{problem}");
                assert!(problem.what.contains(what), "{problem}");
                assert!(problem.fix.contains(fix), "{problem}");
            }
            _ => panic!("{keys}: wanted {wanted:?}, found:\n{problems}"),
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let (config, problems) = Config::load(Path::new("/no/such/ferriod.toml"));
    assert!(config.is_none());
    assert!(problems.to_string().starts_with("/no/such/ferriod.toml: error: cannot be read: No such file"));
}

#[test]
fn paths_are_checked_beside_other_mistakes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let volume =
        |name: &str, size: &str| format!("[[volume]]\nname = \"{name}\"\npath = \"DIR/{name}\"\n{size}\n");
    let text = volume("a", "") + &volume("b", "size = \"1 GB\"") + "[limits]\nsessions_max = 0\n";
    let found: Vec<_> =
        load(dir.path(), &text).0.into_iter().map(|problem| (problem.line, problem.key)).collect();
    let wanted = [(3, "volume.path"), (8, "volume.size"), (10, "limits.sessions_max")];
    assert_eq!(
        found,
        wanted.map(|(line, key)| (line, key.to_owned())),
        "no word on the missing file of b: it has a size"
    );
}

#[test]
fn no_volumes_is_a_warning() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let problems = load(dir.path(), "");
    assert!(!problems.has_errors());
    assert!(problems.0.iter().any(|problem| problem.key == "volume"), "{problems}");
}

#[test]
fn fault_rules_are_read_and_open_their_engine_for_faults() {
    let text = "[[engine]]\nname = \"plain\"\nhelpers = 8\n[[engine]]\nname = \"bad\"\n\
                [[volume]]\nname = \"v\"\nkind = \"memory\"\nsize = \"1 MiB\"\nengine = \"bad\"\nfault_seed = 7\n\
                [[volume.fault]]\nops = [\"write\"]\noffset = \"64 KiB\"\nlength = 4096\nprobability_ppm = 10\n\
                after = 3\ncount = 2\neffect = \"error\"\nerrno = \"ENOSPC\"\n\
                [[volume.fault]]\neffect = \"delay\"\ndelay_max_us = 5\n";
    let (config, problems) = read("f.toml", text);
    let config = config.unwrap_or_else(|| panic!("{problems}"));
    let shown = |engine: &EngineSection| (engine.faults, engine.helpers);
    assert_eq!([shown(&config.engines[0]), shown(&config.engines[1])], [(false, 8), (true, 4)]);
    let [first, second] = config.volumes[0].faults.rules.as_slice() else { panic!("two rules") };
    assert_eq!(config.volumes[0].faults.seed, 7);
    assert_eq!((first.ops, first.range.clone()), (FaultOps::WRITE, 65536..69632));
    assert_eq!((first.probability_ppm, first.after, first.count), (10, 3, Some(2)));
    assert_eq!(first.effect, FaultEffect::Error { errno: 28 });
    assert_eq!((second.ops, second.range.clone()), (FaultOps::ALL, 0..u64::MAX));
    let max = std::time::Duration::from_micros(5);
    assert_eq!(second.effect, FaultEffect::Delay { min: std::time::Duration::ZERO, max });
}

/// The shipped file is the reference of all keys: each stands there, set or commented out, with unit, range, default.
#[test]
fn the_shipped_file_documents_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/ferriod.toml");
    let text = std::fs::read_to_string(&path).expect("config/ferriod.toml");
    let stands = |key: &str| {
        let line =
            text.lines().position(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("{key} does not stand in config/ferriod.toml"))
    };
    let comment_above = |at: usize| {
        let lines: Vec<_> = text.lines().collect();
        lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.starts_with('#'))
            .copied()
            .collect::<Vec<_>>()
            .join("\n")
    };
    for number in keys::NUMBERS {
        let comment = comment_above(stands(number.key));
        for part in [
            number.unit,
            &format!("{} to {}", number.min, number.max),
            &format!("default {}", number.default),
        ] {
            assert!(
                comment.to_lowercase().contains(&part.to_lowercase()),
                "{}: {part:?} not in {comment}",
                number.key
            );
        }
    }
    for size in keys::SIZES {
        let comment = comment_above(stands(size.key));
        let range = format!("{} to {}", self::size::format(size.min), self::size::format(size.max));
        assert!(comment.contains(&range), "{}: {range:?} not in {comment}", size.key);
    }
    for key in keys::OTHERS.iter().flat_map(|(_, keys)| *keys) {
        stands(key);
    }
    let (config, problems) = Config::load(&path);
    assert!(config.is_some(), "{problems}");
}
