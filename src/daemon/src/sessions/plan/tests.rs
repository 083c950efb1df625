//! What a client may ask for, and what it is told when it may not.

use std::sync::Arc;

use ferrio_api::v1;

use super::*;
use crate::acl::AllowList;
use crate::config::read;
use crate::volumes::tests::{section, serve};

fn limits() -> Limits {
    let text =
        "[limits]\nqueues_per_session_max = 4\nqueue_entries_max = 1024\narena_bytes_max = \"1 MiB\"\n";
    read("f.toml", text).0.expect("valid").limits
}

fn volumes() -> Arc<Volumes> {
    let volumes = Arc::new(Volumes::default());
    let any = || AllowList { any: true, ..AllowList::default() };
    serve(&volumes, section("data", "e0", false, any()), 0);
    serve(&volumes, section("rom", "e1", true, any()), 1);
    serve(&volumes, section("secret", "e1", false, AllowList { uids: vec![5], ..AllowList::default() }), 1);
    serve(&volumes, section("going", "e1", false, any()), 1);
    volumes.start_removal("going").expect("in service");
    volumes
}

fn plan(request: &OpenSessionRequest) -> Result<Plan, OpenError> {
    let engines = ["e0".to_owned(), "e1".to_owned()];
    let rules = Rules { limits: &limits(), volumes: &volumes(), engines: &engines, own_uid: 900 };
    rules.plan(request, &PeerIdentity { pid: 4711, uid: 1000, gid: 1000, groups: vec![1000, 6] })
}

fn queue(sq_entries: u32, cq_entries: u32, engine: &str) -> v1::QueueRequest {
    v1::QueueRequest { sq_entries, cq_entries, engine: engine.into() }
}

fn want(name: &str, access: v1::Access) -> v1::VolumeRequest {
    v1::VolumeRequest { name: name.into(), access: access.into() }
}

fn request() -> OpenSessionRequest {
    OpenSessionRequest {
        client_name: "tests, ünïcode and all: (1)".into(),
        queues: vec![queue(64, 0, "")],
        arena_bytes: 65536,
        volumes: vec![want("data", v1::Access::ReadWrite)],
        abi_min: 1,
        abi_max: 1,
        features: u64::MAX,
        hugepages: false,
        no_merge: false,
    }
}

#[test]
fn queues_go_home_to_the_first_volume_unless_they_say_otherwise() {
    let plan = plan(&OpenSessionRequest {
        queues: vec![queue(64, 0, ""), queue(8, 8, "e0"), queue(8, 64, "e1")],
        volumes: vec![want("rom", v1::Access::ReadOnly), want("data", v1::Access::ReadWriteShared)],
        ..request()
    })
    .expect("a good request");
    assert_eq!(plan.engines, [1, 0], "one doorbell per engine, in order of first use");
    assert_eq!(plan.queue_engines, [0, 1, 0]);
    assert_eq!(plan.layout.queues[0].cq_entries, 128, "0 is twice sq_entries");
    assert_eq!(plan.layout.queues[1].cq_entries, 8);
    let shown = |volume: &PlannedVolume| (volume.engine, volume.access, volume.grant.name.clone());
    let [first, second] = [shown(&plan.volumes[0]), shown(&plan.volumes[1])];
    assert_eq!(first, (1, Access::ReadOnly, "rom".to_owned()));
    assert_eq!(second, (0, Access::ReadWriteShared, "data".to_owned()));
    assert_eq!(plan.features, FEATURES, "what is not served is not granted");
}

#[test]
fn limits_themselves_are_allowed() {
    let at_limits = OpenSessionRequest {
        client_name: "x".repeat(64),
        queues: vec![queue(1024, 2048, ""); 4],
        arena_bytes: 1 << 20,
        abi_min: 1,
        abi_max: 9,
        ..request()
    };
    plan(&at_limits).expect("within the limits");
    plan(&OpenSessionRequest { arena_bytes: 0, ..request() }).expect("an arena is not required");
}

#[test]
fn what_is_wrong_is_named_with_value_limit_and_key() {
    let rw = v1::Access::ReadWrite;
    let cases: Vec<(OpenSessionRequest, &[&str])> = vec![
        (OpenSessionRequest { abi_min: 2, abi_max: 3, ..request() }, &["ABI", "2 to 3"]),
        (OpenSessionRequest { abi_min: 0, abi_max: 0, ..request() }, &["ABI", "0 to 0"]),
        (OpenSessionRequest { client_name: String::new(), ..request() }, &["client_name", "1 to 64"]),
        (OpenSessionRequest { client_name: "é".repeat(33), ..request() }, &["client_name", "1 to 64"]),
        (OpenSessionRequest { client_name: "a\nb".into(), ..request() }, &["client_name", "a\\nb"]),
        (OpenSessionRequest { client_name: "a\u{202e}b".into(), ..request() }, &["client_name"]),
        (
            OpenSessionRequest { queues: vec![], ..request() },
            &["queues: 0", "1 to 4", "limits.queues_per_session_max"],
        ),
        (OpenSessionRequest { queues: vec![queue(1, 0, ""); 5], ..request() }, &["queues: 5", "1 to 4"]),
        (OpenSessionRequest { queues: vec![queue(0, 0, "")], ..request() }, &["sq_entries: 0", "1 to 1024"]),
        (
            OpenSessionRequest { queues: vec![queue(2048, 0, "")], ..request() },
            &["2048", "limits.queue_entries_max"],
        ),
        (
            OpenSessionRequest { queues: vec![queue(u32::MAX, 0, "")], ..request() },
            &["4294967295", "1 to 1024"],
        ),
        (
            OpenSessionRequest { queues: vec![queue(100, 0, "")], ..request() },
            &["sq_entries is 100", "power of two"],
        ),
        (OpenSessionRequest { queues: vec![queue(64, 32, "")], ..request() }, &["cq_entries is 32", "64 to"]),
        (
            OpenSessionRequest { queues: vec![queue(64, 4096, "")], ..request() },
            &["cq_entries: 4096", "1 to 2048"],
        ),
        (OpenSessionRequest { queues: vec![queue(64, 0, "zz")], ..request() }, &["\"zz\"", "e0, e1"]),
        (OpenSessionRequest { arena_bytes: 5000, ..request() }, &["arena_bytes is 5000", "multiple of 4096"]),
        (
            OpenSessionRequest { arena_bytes: u64::MAX, ..request() },
            &["arena_bytes", "limits.arena_bytes_max"],
        ),
        (OpenSessionRequest { volumes: vec![], ..request() }, &["volumes: 0", "1 to 64"]),
        (
            OpenSessionRequest { volumes: vec![want("data", rw); 65], ..request() },
            &["volumes: 65", "1 to 64"],
        ),
        (
            OpenSessionRequest { volumes: vec![want("nope", rw)], ..request() },
            &["\"nope\"", "data, rom, secret"],
        ),
        (
            OpenSessionRequest { volumes: vec![want("data", v1::Access::Unspecified)], ..request() },
            &["\"data\"", "no access"],
        ),
        (
            OpenSessionRequest { volumes: vec![want("going", v1::Access::ReadOnly)], ..request() },
            &["\"going\" is being removed", "volume list"],
        ),
        (OpenSessionRequest { volumes: vec![want("rom", rw)], ..request() }, &["\"rom\"", "read-only"]),
        (
            OpenSessionRequest { volumes: vec![want("secret", v1::Access::ReadOnly)], ..request() },
            &["uid 1000", "groups 1000, 6)", "\"secret\"", "allow_users"],
        ),
    ];
    for (request, parts) in cases {
        let text = plan(&request).expect_err("must be refused").to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} not in {text:?}");
        }
    }
}
