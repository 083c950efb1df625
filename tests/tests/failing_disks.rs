//! Disks that are full, shrink, fail or die under the daemon: each request gets one answer that says what happened, other
//! volumes are served on.

use std::{collections::HashMap, path::Path, time::Duration};

use ferrio_api::v1;
use ferrio_shm::{abi::Opcode, entry::Sqe};
use ferrio_tests::{
    Beside, DaemonBuilder, RawSession,
    disk::{Loop, Mounts, shut_down, sparse},
    skip::{has_program, is_root, skip},
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;
const EIO: i32 = -libc::EIO;
const ENOSPC: i32 = -libc::ENOSPC;
const EFBIG: i32 = -libc::EFBIG;

fn read(offset: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, user_data: offset, offset, length: BLOCK, ..Sqe::default() }
}

fn write(offset: u64) -> Sqe {
    Sqe { op: Opcode::Write as u8, ..read(offset) }
}

/// A daemon with the volume `disk` on this path, an honest client on another, and a session on `disk`.
#[track_caller]
fn with_disk(builder: DaemonBuilder, path: &Path) -> (Beside, RawSession) {
    let beside = Beside::over(builder.volume("disk", path, "allow_any = true"));
    let session = RawSession::open(&beside.daemon.control(), &[("disk", v1::Access::ReadWriteShared)], 64);
    (beside, session)
}

/// Submits all, as many at a time as there is room for; returns each result by offset.
#[track_caller]
fn results(session: &mut RawSession, sqes: &[Sqe]) -> HashMap<u64, i32> {
    let mut results = HashMap::new();
    for batch in sqes.chunks(64) {
        batch.iter().for_each(|sqe| session.sq.push(sqe).expect("room"));
        if session.sq.publish() {
            session.doorbell.ring().unwrap();
        }
        for _ in batch {
            let cqe = session.wait(Duration::from_secs(20)).expect("each request is answered");
            assert_eq!(results.insert(cqe.user_data, cqe.result), None, "answered twice");
        }
    }
    assert_eq!(session.wait(Duration::ZERO), None, "answered twice");
    assert!(sqes.iter().all(|sqe| results.contains_key(&sqe.user_data)));
    results
}

fn blocks(bytes: u64) -> impl Iterator<Item = u64> {
    (0..bytes / BLOCK).map(|block| block * BLOCK)
}

/// Every result is one of these two, and both are met.
#[track_caller]
fn assert_some(results: &HashMap<u64, i32>, good: i32, bad: i32) {
    let count = |wanted| results.values().filter(|result| **result == wanted).count();
    let (good, bad) = (count(good), count(bad));
    assert!(good > 0 && bad > 0 && good + bad == results.len(), "{results:?}");
}

/// The thread's own mounts; `None` after saying why not.
fn mounts() -> Option<Mounts> {
    if !is_root() {
        skip("mounts need root", false);
        return None;
    }
    Mounts::new().map_err(|reason| skip(&reason, true)).ok()
}

fn a_full_file_system(engine: &str) {
    let Some(mounts) = mounts() else { return };
    let full = mounts.tmpfs("full", 2048).unwrap();
    sparse(&full.join("disk"), 8 * MIB);
    let builder = DaemonBuilder::new().engine("main", engine, "");
    let (beside, mut session) = with_disk(builder, &full.join("disk"));
    let writes: Vec<Sqe> = blocks(8 * MIB).map(write).collect();
    assert_some(&results(&mut session, &writes), WHOLE, ENOSPC);
    let reads: Vec<Sqe> = blocks(8 * MIB).map(read).collect();
    let read = results(&mut session, &reads);
    assert!(read.values().all(|result| *result == WHOLE), "holes and what was written can be read");
    drop(session);
    beside.finish();
}

#[test]
fn a_full_file_system_over_io_uring() {
    a_full_file_system("io_uring");
}

#[test]
fn a_full_file_system_over_aio() {
    a_full_file_system("aio");
}

#[test]
fn a_block_device_that_is_full_and_then_shrinks() {
    let Some(mounts) = mounts() else { return };
    let full = mounts.tmpfs("full", 2048).unwrap();
    let image = full.join("image");
    sparse(&image, 8 * MIB);
    let device = match Loop::over(&image) {
        Ok(device) => device,
        Err(reason) => return skip(&reason, true),
    };
    let (beside, mut session) = with_disk(DaemonBuilder::new(), device.path());
    let writes: Vec<Sqe> = blocks(8 * MIB).map(write).collect();
    assert_some(&results(&mut session, &writes), WHOLE, ENOSPC);
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(MIB).unwrap();
    let reads: Vec<Sqe> = blocks(2 * MIB).map(read).collect();
    assert_some(&results(&mut session, &reads), WHOLE, EIO);
    drop(session);
    beside.finish();
}

fn a_disk_that_dies(engine: &str) {
    let Some(mounts) = mounts() else { return };
    if !has_program("mkfs.ext4") {
        return skip("mkfs.ext4 is not installed", false);
    }
    let disk = match mounts.ext4("dies", 16) {
        Ok(disk) => disk,
        Err(reason) => return skip(&reason, true),
    };
    std::fs::write(disk.join("disk"), vec![1; 4 << 20]).unwrap();
    let builder = DaemonBuilder::new().engine("main", engine, "");
    let (beside, mut session) = with_disk(builder, &disk.join("disk"));
    assert_eq!(session.result_of(&write(0)), WHOLE);
    for offset in blocks(64 * BLOCK) {
        session.sq.push(&write(offset)).unwrap();
    }
    let _ = session.sq.publish();
    session.doorbell.ring().unwrap();
    shut_down(&disk).unwrap();
    for _ in 0..64 {
        let result = session.wait(Duration::from_secs(20)).expect("each request is answered").result;
        assert!([WHOLE, EIO].contains(&result), "{result}");
    }
    let flush = Sqe { op: Opcode::Flush as u8, user_data: 1, ..Sqe::default() };
    for sqe in [write(0), read(0), flush] {
        assert_eq!(session.result_of(&sqe), EIO, "{sqe:?}");
    }
    drop(session);
    beside.finish();
}

#[test]
fn a_disk_that_dies_over_io_uring() {
    a_disk_that_dies("io_uring");
}

#[test]
fn a_disk_that_dies_over_aio() {
    a_disk_that_dies("aio");
}

#[test]
fn a_file_truncated_under_the_volume() {
    let builder = DaemonBuilder::new();
    let path = builder.path("disk");
    std::fs::write(&path, vec![7; 4 << 20]).unwrap();
    let (beside, mut session) = with_disk(builder, &path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MIB).unwrap();
    let reads: Vec<Sqe> = blocks(4 * MIB).map(read).collect();
    let read = results(&mut session, &reads);
    for (offset, result) in read {
        assert_eq!(result, if offset < MIB { WHOLE } else { EIO }, "at {offset}");
    }
    file.set_len(4 * MIB).unwrap();
    assert_eq!(session.result_of(&reads[1000]), WHOLE, "it is there again");
    drop(session);
    beside.finish();
}

/// What lies beyond the limit is answered; the signal that comes with it ends nobody.
#[test]
fn a_file_size_limit() {
    if !has_program("prlimit") {
        return skip("prlimit is not installed", false);
    }
    for engine in ["io_uring", "aio"] {
        let builder = DaemonBuilder::new().engine("main", engine, "");
        let path = builder.path("disk");
        sparse(&path, 16 * MIB);
        let builder = builder.under(&["prlimit", "--fsize=8388608", "--"]);
        let (beside, mut session) = with_disk(builder, &path);
        assert_eq!(session.result_of(&write(0)), WHOLE);
        assert_eq!(session.result_of(&write(12 * MIB)), EFBIG);
        drop(session);
        beside.finish();
    }
}

#[test]
fn a_full_tmpfs_for_the_journal() {
    let Some(mounts) = mounts() else { return };
    let run = mounts.tmpfs("run", 512).unwrap();
    let config = |requests_max: u32| {
        let directory = run.join("ferrio");
        let text = format!(
            "[daemon]\nruntime_dir = {directory:?}\n[limits]\nqueues_max = 16\nqueues_per_uid_max = 16\n\
             queues_per_session_max = 16\n[[engine]]\nname = \"main\"\nrequests_max = {requests_max}\n\
             [[volume]]\nname = \"data\"\nkind = \"null\"\nsize = 1048576\nallow_any = true\n"
        );
        let path = mounts.path("ferriod.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    let start = |requests_max: u32| {
        let config = config(requests_max);
        let arguments = ["--config", config.to_str().unwrap()];
        ferrio_tests::Process::start_program("ferriod-under-test", arguments)
    };
    let refused = start(16384).finish().expect(1).stderr;
    for part in ["journal", "No space left", "requests_max", "2103296 bytes"] {
        assert!(refused.contains(part), "{part:?} is missing in: {refused}");
    }
    // A journal that was made has its blocks: what fills the rest of the tmpfs does not reach it.
    let mut daemon = start(256);
    let control = run.join("ferrio/control.sock");
    ferrio_tests::process::wait_until("the daemon to serve", || {
        std::os::unix::net::UnixStream::connect(&control).is_ok()
    });
    std::fs::write(run.join("fill"), vec![0; 1 << 20]).expect_err("it is full now");
    let mut session = RawSession::open(&control, &[("data", v1::Access::ReadWriteShared)], 64);
    let reads: Vec<Sqe> = blocks(MIB).map(read).collect();
    assert!(results(&mut session, &reads).values().all(|result| *result == WHOLE));
    assert!(!daemon.has_ended());
}
