//! Volumes that come, change their size and go while sessions use them, and paths that do not answer.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use ferrio_api::v1::Access;
use ferrio_shm::{
    abi::{Opcode, errno},
    entry::Sqe,
    lease::{LeaseEvent, LeaseMessage},
};
use ferrio_tests::{
    Beside, Daemon, DaemonBuilder, Finished, Process, RawSession,
    disk::{Loop, Mounts, SilentFs, sparse},
    process::{copy_program, program, wait_until},
    raw,
    skip::{is_root, skip},
};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;

fn write(volume: u16, offset: u64) -> Sqe {
    Sqe { op: Opcode::Write as u8, volume, user_data: offset + 1, offset, length: BLOCK, ..Sqe::default() }
}

fn read(volume: u16, offset: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, ..write(volume, offset) }
}

#[track_caller]
fn volume(daemon: &Daemon, name: &str) -> Option<Value> {
    let list = daemon.ctl_json(&["volume", "list"]);
    list["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).cloned()
}

#[track_caller]
fn said(finished: &Finished, parts: &[&str]) {
    for part in parts {
        assert!(finished.stderr.contains(part), "{part:?} not in {:?}", finished.stderr);
    }
}

fn shared(names: &[&str]) -> Vec<(&'static str, Access)> {
    let leak = |name: &str| -> &'static str { Box::leak(name.to_owned().into_boxed_str()) };
    names.iter().map(|name| (leak(name), Access::ReadWriteShared)).collect()
}

#[test]
fn a_volume_comes_and_goes_while_a_session_uses_it_and_another() {
    for backend in ["io_uring", "aio"] {
        let mut daemon = DaemonBuilder::new().engine("main", backend, "").file("data", MIB).start();
        let made = daemon
            .ctl(&["volume", "create", "scratch", "--kind", "memory", "--size", "1MiB", "--allow-any"])
            .expect(0);
        assert!(made.stdout.contains("scratch") && made.stdout.contains("memory"), "{}", made.stdout);
        let listed = volume(&daemon, "scratch").expect("listed");
        assert_eq!((&listed["state"], &listed["configured"]), (&"serving".into(), &false.into()));
        assert_eq!(volume(&daemon, "data").expect("listed")["configured"], true);

        let mut session = RawSession::open(&daemon.control(), &shared(&["scratch", "data"]), 16);
        assert_eq!(session.result_of(&write(0, 8192)), WHOLE);
        assert_eq!(session.result_of(&write(1, 8192)), WHOLE);
        let gone = daemon.ctl(&["volume", "remove", "scratch"]).expect(0);
        assert!(gone.stdout.contains("scratch: removed"), "{}", gone.stdout);
        assert!(volume(&daemon, "scratch").is_none());
        assert_eq!(session.result_of(&write(0, 8192)), -errno::ENODEV);
        assert_eq!(session.result_of(&read(0, 0)), -errno::ENODEV);
        assert_eq!(session.result_of(&read(1, 8192)), WHOLE, "its other volume goes on");

        // The name is free; who had the old volume does not get the new one.
        daemon
            .ctl(&["volume", "create", "scratch", "--kind", "memory", "--size", "2MiB", "--allow-any"])
            .expect(0);
        assert_eq!(session.result_of(&read(0, 0)), -errno::ENODEV);
        let mut second = RawSession::open(&daemon.control(), &shared(&["scratch"]), 16);
        assert_eq!(second.result_of(&read(0, MIB)), WHOLE);
        daemon.client(&["verify", "scratch", "--bytes", "1048576"]).finish().expect(0);

        daemon.end(Signal::TERM).expect(0);
        daemon.restart();
        assert!(volume(&daemon, "scratch").is_none(), "it was not written to the configuration");
    }
}

#[test]
fn a_configured_volume_gives_its_file_back_while_clients_write_to_it() {
    let beside = Beside::start();
    let daemon = &beside.daemon;
    let path = daemon.path("target");
    let mut writer = daemon.client(&["--name", "writer", "verify", "target", "--seconds", "60"]);
    writer.wait_for_line("started");
    daemon.ctl(&["volume", "remove", "target", "--wait-ms", "9000"]).expect(0);
    let finished = writer.finish();
    assert_ne!(finished.code(), 0, "its requests fail");
    assert!(finished.stderr.contains("device"), "with ENODEV: {}", finished.stderr);
    // Closed, and unlocked: it can be opened again, here under another name first.
    let path = path.to_str().unwrap();
    daemon.ctl(&["volume", "create", "other", "--path", path]).expect(0);
    said(
        &daemon.ctl(&["volume", "create", "target", "--path", path]).expect(1),
        &[path, "is volume \"other\" already"],
    );
    daemon.ctl(&["volume", "remove", "other"]).expect(0);
    daemon.ctl(&["volume", "create", "target", "--path", path, "--allow-any"]).expect(0);
    beside.finish();
}

#[test]
fn a_volume_removed_between_open_and_attach_is_refused() {
    let daemon = DaemonBuilder::new().null("a", MIB).null("b", MIB).start();
    let opened = raw::open(&daemon.control(), &shared(&["a", "b"]), 8).expect("opened");
    daemon.ctl(&["volume", "remove", "a"]).expect(0);
    // Its id in the engine may be given to this one.
    daemon.ctl(&["volume", "create", "secret", "--kind", "memory", "--size", "1MiB"]).expect(0);
    let (answer, fds, _lease) =
        raw::attach(Path::new(&opened.attach_socket), &raw::with_token(&opened.attach_token));
    let Some(LeaseMessage::Refused { errno: refused, reason }) = answer else { panic!("{answer:?}") };
    assert_eq!((refused, fds.len()), (errno::ENODEV, 0));
    assert!(reason.contains("\"a\" was removed") && reason.contains("open a new session"), "{reason}");
    RawSession::open(&daemon.control(), &shared(&["b"]), 8);
}

/// What the client is told, and what holds from then on.
#[track_caller]
fn resize(daemon: &Daemon, session: &mut RawSession, name: &str, index: u16, bytes: u64) {
    let answer = daemon.ctl_json(&["volume", "resize", name, "--size", &bytes.to_string()]);
    assert_eq!(answer["volume"]["size_bytes"], bytes);
    let heard = raw::heard(&session.lease, Duration::from_secs(10));
    let wanted = LeaseEvent::Resize { volume: index, size_bytes: bytes };
    assert_eq!(heard, Some(LeaseMessage::Event(wanted)));
    assert_eq!(session.result_of(&write(index, bytes - BLOCK)), WHOLE, "up to the new end");
    assert_eq!(session.result_of(&write(index, bytes)), -errno::ERANGE, "and not beyond");
}

#[test]
fn sessions_hear_of_a_new_size_and_get_it() {
    for backend in ["io_uring", "aio"] {
        let daemon = DaemonBuilder::new()
            .engine("main", backend, "")
            .file("data", MIB)
            .config("[[volume]]\nname = \"scratch\"\nkind = \"memory\"\nsize = \"1 MiB\"\nallow_any = true")
            .start();
        let mut session = RawSession::open(&daemon.control(), &shared(&["data", "scratch"]), 16);
        for (index, name) in [(0, "data"), (1, "scratch")] {
            for bytes in [3 * MIB, MIB / 2, MIB] {
                resize(&daemon, &mut session, name, index, bytes);
            }
        }
        let length = std::fs::metadata(daemon.path("data")).unwrap().len();
        assert_eq!(length, MIB, "the file has the size that the volume has");
        assert_eq!(session.result_of(&read(0, MIB / 2)), WHOLE);
        // Who opens, and attaches later, hears what happened between.
        let opened = raw::open(&daemon.control(), &shared(&["data"]), 8).expect("opened");
        assert_eq!(opened.volumes[0].size_bytes, MIB);
        daemon.ctl(&["volume", "resize", "data", "--size", "2MiB"]).expect(0);
        let (_, _fds, lease) =
            raw::attach(Path::new(&opened.attach_socket), &raw::with_token(&opened.attach_token));
        let wanted = LeaseEvent::Resize { volume: 0, size_bytes: 2 * MIB };
        assert_eq!(raw::heard(&lease, Duration::from_secs(10)), Some(LeaseMessage::Event(wanted)));
    }
}

#[test]
fn a_device_has_the_size_it_has() {
    if !is_root() {
        return skip("loop devices need root", false);
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    sparse(&image, 2 * MIB);
    let device = match Loop::over(&image) {
        Ok(device) => device,
        Err(reason) => return skip(&reason, true),
    };
    let daemon = DaemonBuilder::new().volume("disk", device.path(), "allow_any = true").start();
    let mut session = RawSession::open(&daemon.control(), &shared(&["disk"]), 16);
    said(
        &daemon.ctl(&["volume", "resize", "disk", "--size", "1MiB"]).expect(1),
        &["1048576", "leave --size out"],
    );
    for bytes in [4 * MIB, 3 * MIB] {
        sparse(&image, bytes);
        device.refresh().unwrap();
        assert_eq!(daemon.ctl_json(&["volume", "resize", "disk"])["volume"]["size_bytes"], bytes);
        let wanted = LeaseEvent::Resize { volume: 0, size_bytes: bytes };
        assert_eq!(raw::heard(&session.lease, Duration::from_secs(10)), Some(LeaseMessage::Event(wanted)));
        assert_eq!(session.result_of(&write(0, bytes - BLOCK)), WHOLE);
        assert_eq!(session.result_of(&write(0, bytes)), -errno::ERANGE);
    }
}

#[test]
fn what_cannot_be_made_or_changed_says_why() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let image = daemon.path("new.img");
    let image = image.to_str().unwrap();
    let rom = daemon.path("rom.img");
    sparse(&rom, MIB);
    daemon.ctl(&["volume", "create", "rom", "--path", rom.to_str().unwrap(), "--read-only"]).expect(0);
    let cases: [(&[&str], &[&str]); 13] = [
        (
            &["create", "data", "--kind", "null", "--size", "1MiB"],
            &["\"data\" is in service", "another name"],
        ),
        (&["create", "a b", "--kind", "null", "--size", "1MiB"], &["name", "\"a b\"", "1 to 64"]),
        (
            &["create", "x", "--kind", "memory", "--size", "1000"],
            &["size_bytes", "1000", "4 KiB to 1024 TiB"],
        ),
        (&["create", "x", "--kind", "memory"], &["size_bytes", "4 KiB to"]),
        (&["create", "x", "--kind", "memory", "--size", "1MiB", "--path", "/x"], &["path", "no path"]),
        (&["create", "x", "--path", "relative"], &["path", "\"relative\"", "begin it with /"]),
        (&["create", "x", "--path", image], &[image, "does not exist", "size"]),
        (
            &["create", "x", "--path", "/dev/null"],
            &["/dev/null", "neither a regular file nor a block device"],
        ),
        (&["create", "x", "--kind", "null", "--size", "1MiB", "--engine", "zz"], &["\"zz\"", "main"]),
        (&["remove", "nope"], &["\"nope\"", "data, rom"]),
        (&["resize", "nope", "--size", "1MiB"], &["\"nope\"", "data, rom"]),
        (&["resize", "data", "--size", "5000"], &["size_bytes", "5000", "multiple of 4096"]),
        (&["resize", "rom", "--size", "2MiB"], &["\"rom\"", "read-only"]),
    ];
    for (arguments, parts) in cases {
        let refused = daemon.ctl(&[&["volume"], arguments].concat()).expect(1);
        said(&refused, parts);
    }
    daemon.ctl(&["volume", "create", "new", "--path", image, "--size", "1MiB"]).expect(0);
    said(&daemon.ctl(&["volume", "create", "again", "--path", image]).expect(1), &[image, "\"new\" already"]);
    let alias = daemon.path("alias.img");
    std::fs::hard_link(image, &alias).unwrap();
    let alias = alias.to_str().unwrap();
    said(&daemon.ctl(&["volume", "create", "again", "--path", alias]).expect(1), &[alias, "in use by"]);
    assert!(volume(&daemon, "again").is_none() && volume(&daemon, "x").is_none(), "nothing is left of them");
}

#[test]
fn other_users_may_look_but_not_change() {
    if !is_root() {
        return skip("a second user needs root", false);
    }
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let mut session = RawSession::open(&daemon.control(), &shared(&["data"]), 8);
    let id = session.id.to_string();
    let ctl = daemon.path("ferrioctl");
    copy_program("ferrioctl-under-test", &ctl);
    let as_other = |arguments: &[&str]| {
        let mut command = Command::new(&ctl);
        command.uid(4711).gid(4711).arg("--socket").arg(daemon.control()).args(arguments);
        Process::start(&mut command).finish()
    };
    let changes: [&[&str]; 6] = [
        &["volume", "create", "x", "--kind", "null", "--size", "1MiB"],
        &["volume", "remove", "data"],
        &["volume", "resize", "data", "--size", "2MiB"],
        &["session", "evict", &id],
        &["fault", "set", "data", "--effect", "stuck"],
        &["fault", "clear", "data"],
    ];
    for arguments in changes {
        said(&as_other(arguments).expect(1), &["uid 4711 may not", "for root", "sudo"]);
    }
    as_other(&["volume", "list"]).expect(0);
    assert_eq!(session.result_of(&write(0, 0)), WHOLE, "nothing has happened");
}

#[test]
fn an_evicted_client_is_told_why() {
    let daemon = DaemonBuilder::new().file("data", MIB).start();
    let session = RawSession::open(&daemon.control(), &shared(&["data"]), 8);
    let id = session.id.to_string();
    daemon.ctl(&["session", "evict", &id, "--reason", "the disk moves"]).expect(0);
    let reason = "the disk moves".to_owned();
    let heard = raw::heard(&session.lease, Duration::from_secs(10));
    assert_eq!(heard, Some(LeaseMessage::Event(LeaseEvent::Evict { reason })));
    wait_until("the session to end", || ferrio_tests::beside::sessions(&daemon).is_empty());
    said(&daemon.ctl(&["session", "evict", &id]).expect(1), &["no session has id", "session list"]);
}

#[test]
fn a_configured_path_that_does_not_answer_keeps_no_other_out_of_service() {
    if !is_root() {
        return skip("mounts need root", false);
    }
    let mounts = match Mounts::new() {
        Ok(mounts) => mounts,
        Err(reason) => return skip(&reason, true),
    };
    let silent = match SilentFs::mount(&mounts, "silent") {
        Ok(silent) => silent,
        Err(reason) => return skip(&reason, false),
    };
    let path = silent.path().join("disk");
    let mut daemon = DaemonBuilder::new().volume("slow", &path, "").file("data", MIB).start();
    daemon.client(&["verify", "data"]).finish().expect(0);
    assert_eq!(volume(&daemon, "slow").expect("listed")["state"], "opening");
    let info = daemon.ctl(&["info"]).expect(0).stdout;
    assert!(info.contains("volume slow is being opened: its path does not answer"), "{info}");
    let refused = raw::open(&daemon.control(), &shared(&["slow"]), 8).expect_err("not yet");
    assert!(refused.message().contains("\"slow\" is being opened"), "{refused:?}");
    drop(silent);
    wait_until("the volume to be given up", || volume(&daemon, "slow").is_none());
    let log = daemon.log();
    for part in ["slow: its path does not answer", "\"slow\" cannot be opened"] {
        assert!(log.contains(part), "{part:?} not in {log}");
    }
    daemon.end(Signal::TERM).expect(0);
}

#[test]
fn a_path_that_does_not_answer_hangs_nobody_else() {
    if !is_root() {
        return skip("mounts need root", false);
    }
    let mounts = match Mounts::new() {
        Ok(mounts) => mounts,
        Err(reason) => return skip(&reason, true),
    };
    let silent = match SilentFs::mount(&mounts, "silent") {
        Ok(silent) => silent,
        Err(reason) => return skip(&reason, false),
    };
    let beside = Beside::start();
    let daemon = &beside.daemon;
    let path = silent.path().join("disk");
    let control = daemon.control();
    let mut opening = Process::start(
        Command::new(program("ferrioctl-under-test"))
            .arg("--socket")
            .arg(&control)
            .args(["volume", "create", "slow", "--path"])
            .arg(&path),
    );
    wait_until("the volume to be opening", || {
        volume(daemon, "slow").is_some_and(|volume| volume["state"] == "opening")
    });
    // Calls, sessions and data go on meanwhile.
    let begin = Instant::now();
    for _ in 0..20 {
        daemon.ctl(&["info"]).expect(0);
        RawSession::open(&control, &shared(&["target"]), 8);
    }
    daemon.client(&["verify", "target"]).finish().expect(0);
    assert!(!opening.has_ended(), "it took {:?}, and nobody waited for the path", begin.elapsed());
    said(&daemon.ctl(&["volume", "remove", "slow"]).expect(1), &["\"slow\" is being opened"]);
    let given_up = opening.finish().expect(1);
    said(&given_up, &["\"slow\"", "did not end within 8 s", "does the disk or file server answer"]);
    assert!(volume(daemon, "slow").is_some(), "the thread still waits for the kernel");
    drop(silent);
    wait_until("the name to be free", || volume(daemon, "slow").is_none());
    beside.finish();
}
