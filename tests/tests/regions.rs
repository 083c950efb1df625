//! Memory that clients bring over their lease: used by several engines, counted, refused where it cannot be relied on.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use ferrio_api::v1::{self, Access};
use ferrio_client::QueueOptions;
use ferrio_shm::{
    abi::{Opcode, errno, features},
    entry::Sqe,
    lease::LeaseMessage,
    mapping::{Mapping, create_memfd},
    peer,
};
use ferrio_tests::{
    Beside, Daemon, DaemonBuilder, RawSession,
    beside::sessions,
    process::wait_until,
    raw::{add_region, open_request, remove_region, request},
    skip::skip,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;

fn attacker(daemon: &Daemon) -> RawSession {
    let volumes = [("target", Access::ReadWriteShared)];
    let asked = v1::OpenSessionRequest { features: features::CLIENT_REGIONS, ..request(&volumes, 64) };
    let opened = open_request(&daemon.control(), asked).expect("a session");
    assert_eq!(opened.features, features::CLIENT_REGIONS);
    RawSession::attach(&opened)
}

fn memfd(bytes: u64) -> OwnedFd {
    create_memfd("test-region", bytes).expect("a memfd")
}

/// A memfd with these seals, and no others.
fn sealed(bytes: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("test-region", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&fd, bytes).expect("room");
    fcntl_add_seals(&fd, seals).expect("sealed");
    fd
}

fn write(region: u16, region_offset: u64, offset: u64) -> Sqe {
    let op = Opcode::Write as u8;
    Sqe { op, region, region_offset, user_data: offset + 1, offset, length: BLOCK, ..Sqe::default() }
}

fn read(region: u16, region_offset: u64, offset: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, ..write(region, region_offset, offset) }
}

fn fill(memory: &Mapping, offset: u64, seed: u64) {
    let words = memory.u64s(offset as usize, BLOCK as usize / 8).expect("in bounds");
    for (index, word) in words.iter().enumerate() {
        word.store(seed ^ index as u64, ferrio_shm::sync::Ordering::Relaxed);
    }
}

fn holds(memory: &Mapping, offset: u64, seed: u64) -> bool {
    let words = memory.u64s(offset as usize, BLOCK as usize / 8).expect("in bounds");
    words
        .iter()
        .enumerate()
        .all(|(index, word)| word.load(ferrio_shm::sync::Ordering::Relaxed) == seed ^ index as u64)
}

#[test]
fn data_goes_between_volumes_and_a_clients_own_memory() {
    for backend in ["io_uring", "aio"] {
        let daemon = DaemonBuilder::new().engine("main", backend, "").file("target", 4 * MIB).start();
        let mut session = attacker(&daemon);
        let memfd = memfd(4 * MIB);
        let memory = Mapping::new(memfd.as_fd(), 4 << 20).expect("mapped");
        assert_eq!(session.result_of(&read(7, 0, 0)), -errno::ENXIO, "not yet");
        assert_eq!(add_region(&session.lease, 7, 4 * MIB, &[memfd.as_fd()]), 0);
        for block in 0..16 {
            fill(&memory, block * BLOCK, 0xabcd_0000 + block);
            assert_eq!(session.result_of(&write(7, block * BLOCK, block * BLOCK)), WHOLE);
        }
        for block in 0..16 {
            let at = 2 * MIB + block * BLOCK;
            assert_eq!(session.result_of(&read(7, at, block * BLOCK)), WHOLE);
            assert!(holds(&memory, at, 0xabcd_0000 + block), "block {block}");
        }
        assert_eq!(session.result_of(&read(7, 4 * MIB, 0)), -errno::EFAULT, "beyond its end");
        let listed = &sessions(&daemon)[0];
        assert_eq!((&listed["regions"], &listed["region_bytes"]), (&1.into(), &(4 * MIB).into()));
        assert_eq!(listed["features"], features::CLIENT_REGIONS);

        assert_eq!(remove_region(&session.lease, 7), 0);
        assert_eq!(session.result_of(&read(7, 0, 0)), -errno::ENXIO, "not any more");
        assert_eq!(sessions(&daemon)[0]["regions"], 0);
        assert_eq!(add_region(&session.lease, 7, MIB, &[memfd.as_fd()]), 0, "its index is free again");
        assert_eq!(session.result_of(&read(7, 0, 0)), WHOLE);
    }
}

#[test]
fn every_engine_of_a_session_reaches_its_regions_and_its_own_volumes() {
    let daemon = DaemonBuilder::new()
        .engine("one", "io_uring", "")
        .engine("two", "aio", "")
        .config("[[engine]]\nname = \"three\"")
        .file("first", MIB)
        .config(&format!(
            "[[volume]]\nname = \"second\"\nkind = \"memory\"\nsize = {MIB}\nallow_any = true\nengine = \"two\"\n\
             [[volume]]\nname = \"third\"\nkind = \"memory\"\nsize = {MIB}\nallow_any = true\nengine = \"three\""
        ))
        .start();
    let mut builder = daemon.session("first", ferrio_client::Access::ReadWrite);
    for name in ["second", "third"] {
        builder = builder.volume(name, ferrio_client::Access::ReadWrite);
    }
    for engine in ["three", "one", "two"] {
        builder = builder.queue(QueueOptions { engine: engine.into(), ..QueueOptions::default() });
    }
    let session = builder.open().expect("opened");
    let region = session.create_region(MIB).expect("added");
    for (position, engine) in ["three", "one", "two"].into_iter().enumerate() {
        let mut queue = session.take_queue(position).expect("a queue");
        assert_eq!(queue.engine(), engine);
        for (name, home) in [("first", "one"), ("second", "two"), ("third", "three")] {
            let volume = session.volume(name).expect("granted");
            assert_eq!(volume.engine(), home);
            let mut buffer = region.alloc(BLOCK as usize).expect("room");
            buffer.fill(position as u8 + 1);
            let written = queue.write(&volume, 0, buffer);
            if home == engine {
                let buffer = queue.read(&volume, 0, written.expect("its own volume")).expect("read");
                assert!(buffer.iter().all(|byte| *byte == position as u8 + 1));
            } else {
                let refused = written.expect_err("another engine's").to_string();
                assert!(refused.contains("engine") || refused.contains("EXDEV"), "{refused}");
            }
        }
    }
    // The queues of all three engines are gone with the last use of the region.
    session.remove_region(region).expect("removed");
}

#[test]
fn what_cannot_be_relied_on_is_refused_and_nobody_else_notices() {
    let beside = Beside::start();
    let mut session = attacker(&beside.daemon);
    let lease = &session.lease;
    let add = |index, bytes, fd: &OwnedFd| add_region(lease, index, bytes, &[fd.as_fd()]);
    let good = memfd(MIB);
    let seals = SealFlags::SHRINK;
    let growing = sealed(MIB, seals);
    let file = tempfile::tempfile().expect("a file");
    file.set_len(MIB).expect("room");
    let file = OwnedFd::from(file);
    let (pipe, _other_end) = rustix::pipe::pipe().expect("a pipe");
    for (what, index, bytes, fd) in [
        ("not sealed", 1, MIB, &sealed(MIB, SealFlags::empty())),
        ("sealed against growing alone", 1, MIB, &sealed(MIB, SealFlags::GROW)),
        ("sealed against writing", 1, MIB, &sealed(MIB, seals | SealFlags::WRITE)),
        ("sealed against writing from now on", 1, MIB, &sealed(MIB, seals | SealFlags::FUTURE_WRITE)),
        ("too short", 1, MIB + 1, &good),
        ("much too short", 1, 1 << 62, &good),
        ("without bytes", 1, 0, &good),
        ("a file", 1, MIB, &file),
        ("a pipe", 1, MIB, &pipe),
        ("a socket", 1, MIB, lease),
        ("the arena's index", 0, MIB, &good),
        ("no index", 256, MIB, &good),
        ("no index at all", u16::MAX, MIB, &good),
    ] {
        let refused = add(index, bytes, fd);
        let limit = bytes == 1 << 62;
        assert_eq!(refused, if limit { errno::ENOBUFS } else { errno::EINVAL }, "{what}");
    }
    let huge = memfd_create("huge", MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB);
    match huge {
        Ok(huge) => {
            fcntl_add_seals(&huge, seals).expect("sealed");
            assert_eq!(add(1, 2 * MIB, &huge), errno::EINVAL, "huge pages, of which there can be too few");
        }
        Err(error) => skip(&format!("no huge memfd: {error}"), true),
    }
    assert_eq!(add_region(lease, 1, MIB, &[]), errno::EINVAL, "without memory");
    assert_eq!(remove_region(lease, 1), errno::ENXIO, "none of them is there");

    assert_eq!(add(1, MIB, &growing), 0, "what grows is as long as it was");
    assert_eq!(add(1, MIB, &good), errno::EBUSY, "in use");
    // What the client can do to its own memory meanwhile.
    let truncated = ftruncate(&growing, 0).expect_err("the seal holds");
    assert_eq!(truncated, rustix::io::Errno::PERM);
    ftruncate(&growing, 8 * MIB).expect("grown");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a plain system call on a memfd of ours.
    assert_eq!(unsafe { libc::fallocate(growing.as_raw_fd(), punch, 0, 1 << 20) }, 0);
    fcntl_add_seals(&growing, SealFlags::FUTURE_WRITE).expect("sealed");
    assert_eq!(session.result_of(&read(1, 0, 0)), WHOLE, "holes are memory");
    assert_eq!(session.result_of(&write(1, MIB - BLOCK, 0)), WHOLE);
    assert_eq!(session.result_of(&read(1, MIB, 0)), -errno::EFAULT, "beyond what was said");
    drop(session);
    wait_until("the session to end", || sessions(&beside.daemon).len() == 1);
    beside.finish();
}

#[test]
fn who_did_not_ask_for_the_feature_has_no_regions() {
    let daemon = DaemonBuilder::new().file("target", MIB).start();
    let mut session = RawSession::open(&daemon.control(), &[("target", Access::ReadWriteShared)], 8);
    let memfd = memfd(MIB);
    assert_eq!(add_region(&session.lease, 1, MIB, &[memfd.as_fd()]), errno::EOPNOTSUPP);
    assert_eq!(remove_region(&session.lease, 1), errno::EOPNOTSUPP);
    assert_eq!(session.result_of(&read(0, 0, 0)), WHOLE);
}

#[test]
fn limits_hold_for_a_session_and_for_a_user() {
    let limits = "[limits]\nregions_per_session_max = 2\nregion_bytes_max = \"3 MiB\"\narena_bytes_max = \"1 MiB\"\n\
                  memory_bytes_per_uid_max = \"5 MiB\"";
    let daemon = DaemonBuilder::new().config(limits).file("target", MIB).start();
    let (first, second) = (attacker(&daemon), attacker(&daemon));
    let memfd = memfd(3 * MIB);
    let add = |session: &RawSession, index, bytes| add_region(&session.lease, index, bytes, &[memfd.as_fd()]);
    assert_eq!(add(&first, 1, 3 * MIB + 4096), errno::ENOBUFS, "bytes of the session");
    assert_eq!(add(&first, 1, 2 * MIB), 0);
    assert_eq!(add(&first, 2, 2 * MIB), errno::ENOBUFS, "bytes of the session together");
    assert_eq!(add(&first, 2, BLOCK), 0);
    assert_eq!(add(&first, 3, BLOCK), errno::ENOBUFS, "regions of the session");
    assert_eq!(add(&second, 1, 3 * MIB), errno::ENOBUFS, "bytes of the user: rings, arenas and regions");
    assert_eq!(add(&second, 1, 2 * MIB), 0);
    let arena = v1::OpenSessionRequest { arena_bytes: MIB, ..request(&[("target", Access::ReadOnly)], 8) };
    let refused = open_request(&daemon.control(), arena.clone()).expect_err("bytes of the user");
    assert!(refused.message().contains("limits.memory_bytes_per_uid_max"), "{refused:?}");
    assert_eq!(remove_region(&first.lease, 1), 0);
    open_request(&daemon.control(), arena).expect("given back");
    let log = daemon.log();
    for key in
        ["limits.regions_per_session_max", "limits.region_bytes_max", "limits.memory_bytes_per_uid_max"]
    {
        assert!(log.contains(key), "the log names {key}:\n{log}");
    }
}

#[test]
fn a_flood_of_regions_costs_the_others_little() {
    let beside = Beside::start();
    let session = attacker(&beside.daemon);
    rustix::io::ioctl_fionbio(&session.lease, true).expect("nonblocking");
    let memfd = memfd(64 * MIB);
    let mut sent = 0;
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        for message in [
            LeaseMessage::RegionAdd { index: 1, bytes: 64 * MIB },
            LeaseMessage::RegionRemove { index: 1 },
            LeaseMessage::RegionRemove { index: 9 },
        ] {
            let fds = [memfd.as_fd()];
            let fds = if matches!(message, LeaseMessage::RegionAdd { .. }) { &fds[..] } else { &[] };
            sent += u32::from(peer::send_message(&session.lease, &message.encode(), fds).is_ok());
        }
        // Nobody reads the answers: they get lost, and nobody waits for that.
        if sent % 64 == 0 {
            beside.daemon.ctl(&["info"]).expect(0);
        }
    }
    assert!(sent > 10, "only {sent} messages were taken");
    drop(session);
    wait_until("the session to end", || sessions(&beside.daemon).len() == 1);
    beside.finish();
}

#[test]
fn regions_go_with_their_session() {
    let beside = Beside::start();
    for _ in 0..20 {
        let session = attacker(&beside.daemon);
        for index in 1..=16 {
            let memfd = memfd(4 * MIB);
            assert_eq!(add_region(&session.lease, index, 4 * MIB, &[memfd.as_fd()]), 0);
        }
    }
    wait_until("the sessions to end", || sessions(&beside.daemon).len() == 1);
    beside.finish();
}

#[test]
fn an_arena_is_in_huge_pages_or_says_why_not() {
    let mut daemon = DaemonBuilder::new().file("target", MIB).start();
    let asked = |arena_bytes| v1::OpenSessionRequest {
        hugepages: true,
        arena_bytes,
        ..request(&[("target", Access::ReadWriteShared)], 64)
    };
    let opened = open_request(&daemon.control(), asked(8 * MIB)).expect("a session, in any case");
    assert_eq!(opened.arena_offset % (2 * MIB), 0);
    let mut session = RawSession::attach(&opened);
    assert_eq!(session.result_of(&write(0, 8 * MIB - BLOCK, 0)), WHOLE);
    assert_eq!(session.result_of(&read(0, 0, 0)), WHOLE);
    let listed = &sessions(&daemon)[0];
    assert_eq!(
        (&listed["hugepages"], &listed["hugepages_bytes"]),
        (&true.into(), &opened.hugepages_bytes.into())
    );
    assert_eq!(listed["hugepages_reason"], opened.hugepages_reason);
    let info = |daemon: &Daemon| daemon.ctl(&["info"]).expect(0).stdout;
    if opened.hugepages_bytes == 8 * MIB {
        assert_eq!(opened.hugepages_reason, "");
        // What the kernel says of the daemon's mapping.
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.process().pid())).unwrap();
        let kib: u64 = smaps
            .lines()
            .filter_map(|line| line.strip_prefix("ShmemPmdMapped:"))
            .map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap())
            .sum();
        assert_eq!(kib << 10, 8 * MIB);
        assert!(!info(&daemon).contains("huge pages"));
    } else {
        skip(&format!("no huge pages here: {}", opened.hugepages_reason), true);
        assert_ne!(opened.hugepages_reason, "");
    }
    let odd = open_request(&daemon.control(), asked(5 * MIB)).expect("a session");
    assert!(odd.hugepages_bytes <= 4 * MIB);
    assert_ne!(odd.hugepages_reason, "", "what is missing is said");
    assert!(info(&daemon).contains("not all of its arena is in huge pages"), "{}", info(&daemon));
    let plain =
        open_request(&daemon.control(), request(&[("target", Access::ReadWriteShared)], 8)).expect("opened");
    assert_eq!((plain.hugepages_bytes, plain.hugepages_reason.as_str()), (0, ""));
}
