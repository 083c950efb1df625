//! Requests, end to end: client process, rings, daemon, file, and back.

use std::{os::unix::fs::FileExt, process::Command};

use ferrio_api::v1;
use ferrio_client::{Access, QueueOptions, Request};
use ferrio_shm::{
    abi::{Class, Opcode, errno, sqe_flags},
    entry::Sqe,
};
use ferrio_tests::{
    DaemonBuilder, Process, RawSession,
    seccomp::without_io_uring,
    skip::{has_program, is_root, skip},
};

const MIB: u64 = 1 << 20;

fn three_clients_verify(builder: DaemonBuilder) {
    let daemon = builder.file("data", 8 * MIB).start();
    let client = |offset: u64, more: &[&str]| {
        let offset = offset.to_string();
        let mut arguments = vec!["verify", "data", "--offset", &offset, "--seconds", "1"];
        arguments.extend(more);
        daemon.client(&arguments)
    };
    let clients = [
        client(0, &["--prio", "--entries", "1", "--wait", "poll"]),
        client(2 * MIB, &["--entries", "32", "--wait", "adaptive"]),
        client(4 * MIB, &["--entries", "128", "--wait", "sleep"]),
    ];
    for client in clients {
        let finished = client.finish().expect(0);
        assert!(finished.stdout.contains("verified"), "{}", finished.stdout);
    }
    let stats = daemon.ctl_json(&["stats"]);
    assert_eq!(stats["engines"][0]["stale_completions"], 0, "{stats}");
    let completed: u64 = stats["engines"][0]["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["completed"].as_u64().unwrap())
        .sum();
    assert!(completed >= 3 * 512, "{stats}");
}

#[test]
fn three_clients_verify_over_io_uring_with_one_thread() {
    three_clients_verify(DaemonBuilder::new().engine("main", "io_uring", "threads = \"1\""));
}

#[test]
fn three_clients_verify_over_io_uring_with_two_threads() {
    three_clients_verify(DaemonBuilder::new().engine("main", "io_uring", "threads = \"2\""));
}

#[test]
fn three_clients_verify_over_aio_with_one_thread() {
    three_clients_verify(DaemonBuilder::new().engine("main", "aio", "threads = \"1\""));
}

#[test]
fn three_clients_verify_over_aio_with_two_threads() {
    three_clients_verify(DaemonBuilder::new().engine("main", "aio", "threads = \"2\""));
}

#[test]
fn two_engines_serve_two_volumes() {
    let builder = DaemonBuilder::new().engine("one", "io_uring", "").engine("two", "aio", "");
    let (a, b) = (builder.path("a"), builder.path("b"));
    let more = |engine: &str| format!("size = {}\nallow_any = true\nengine = {engine:?}", 2 * MIB);
    let daemon = builder.volume("a", &a, &more("one")).volume("b", &b, &more("two")).start();
    let clients = ["a", "b"].map(|volume| daemon.client(&["verify", volume, "--seconds", "1"]));
    clients.into_iter().for_each(|client| {
        client.finish().expect(0);
    });
}

#[test]
fn what_was_written_is_in_the_file() {
    let builder = DaemonBuilder::new().file("data", 8 * MIB);
    let path = builder.path("data");
    let daemon = builder.start();
    let session = daemon.session("data", Access::ReadWrite).open().unwrap();
    let volume = session.volume("data").unwrap();
    let mut queue = session.take_queue(0).unwrap();
    let mut buffer = session.alloc(MIB as usize).unwrap();
    buffer.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n % 251) as u8);
    let buffer = queue.write(&volume, 3 * MIB, buffer).unwrap();
    queue.flush(&volume).unwrap();
    let mut found = vec![0; buffer.len()];
    std::fs::File::open(path).unwrap().read_exact_at(&mut found, 3 * MIB).unwrap();
    assert!(found == *buffer, "the file holds what was written");
    let completion = queue.execute(Request::write(&volume, 0, buffer).fua(true)).unwrap();
    assert_eq!(completion.result.unwrap(), 1 << 20, "a FUA write");
}

#[test]
fn a_block_device_is_a_volume() {
    if !is_root() || !has_program("losetup") {
        return skip("a loop device needs root and losetup", false);
    }
    let builder = DaemonBuilder::new();
    let image = builder.path("disk.img");
    std::fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let setup =
        Command::new("losetup").args(["-f", "--show", "--direct-io=on"]).arg(&image).output().unwrap();
    if !setup.status.success() {
        return skip(&format!("losetup: {}", String::from_utf8_lossy(&setup.stderr)), false);
    }
    let device = String::from_utf8(setup.stdout).unwrap().trim().to_owned();
    struct Detach(String);
    impl Drop for Detach {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }
    let detach = Detach(device.clone());
    let daemon = builder.volume("disk", device.as_ref(), "allow_any = true").start();
    let volumes = daemon.ctl_json(&["volume", "list"]);
    let volume = &volumes["volumes"][0];
    assert_eq!(
        (volume["kind"].as_str(), volume["size_bytes"].as_u64()),
        (Some("block"), Some(16 * MIB)),
        "{volume}"
    );
    assert_eq!(volume["direct"], true, "{volume}");
    daemon.client(&["verify", "disk", "--bytes", "8388608"]).finish().expect(0);
    drop(daemon);
    drop(detach);
}

#[test]
fn bad_requests_get_their_errno_and_nobody_else_notices() {
    let mut daemon = DaemonBuilder::new().file("data", 8 * MIB).file("other", MIB).start();
    let mut beside =
        daemon.client(&["--name", "beside", "verify", "data", "--offset", "4194304", "--seconds", "2"]);
    beside.wait_for_line("started");
    let volumes = [("data", v1::Access::ReadWriteShared), ("other", v1::Access::ReadOnly)];
    let mut session = RawSession::open(&daemon.control(), &volumes, 8);
    let read = Sqe { op: Opcode::Read as u8, length: 4096, ..Sqe::default() };
    let write = Sqe { op: Opcode::Write as u8, ..read };
    let cases = [
        ("a good read", read, 4096),
        ("unknown opcode", Sqe { op: 200, ..read }, -errno::EINVAL),
        ("an opcode of a later release", Sqe { op: Opcode::Discard as u8, ..read }, -errno::EOPNOTSUPP),
        ("volume index", Sqe { volume: 7, ..read }, -errno::EBADF),
        ("read-only volume", Sqe { volume: 1, ..write }, -errno::EROFS),
        ("misaligned offset", Sqe { offset: 100, ..read }, -errno::EINVAL),
        ("misaligned length", Sqe { length: 100, ..read }, -errno::EINVAL),
        ("offset out of range", Sqe { offset: 8 * MIB, ..read }, -errno::ERANGE),
        ("length 0", Sqe { length: 0, ..read }, -errno::EINVAL),
        ("length above the limit", Sqe { length: 1 << 40, ..read }, -errno::EMSGSIZE),
        ("region index", Sqe { region: 3, ..read }, -errno::ENXIO),
        ("region range", Sqe { region_offset: 1 << 40, ..read }, -errno::EFAULT),
        ("misaligned buffer", Sqe { region_offset: 1, ..read }, -errno::EFAULT),
        ("unknown flag", Sqe { flags: 1 << 9, ..read }, -errno::EINVAL),
        ("FUA read", Sqe { flags: sqe_flags::FUA, ..read }, -errno::EINVAL),
        ("unknown class", Sqe { class: 9, ..read }, -errno::EINVAL),
        ("reserved bytes", Sqe { reserved: 1, ..read }, -errno::EINVAL),
        ("a good prio read after all that", Sqe { class: Class::Prio as u8, ..read }, 4096),
    ];
    for (what, sqe, expected) in cases {
        assert_eq!(session.result_of(&sqe), expected, "{what}");
    }
    beside.finish().expect(0);
    assert!(!daemon.process().has_ended());
}

#[test]
fn a_queue_deeper_than_the_engine_works() {
    let daemon = DaemonBuilder::new()
        .engine("main", "auto", "queue_depth = 4\nrequests_max = 64")
        .file("data", 4 * MIB)
        .start();
    daemon.client(&["verify", "data", "--entries", "256"]).finish().expect(0);
}

#[test]
fn blocking_polling_and_async_callers_share_a_volume() {
    let daemon = DaemonBuilder::new().file("data", 4 * MIB).start();
    let session = daemon
        .session("data", Access::ReadWrite)
        .queue(QueueOptions::default())
        .queue(QueueOptions::default())
        .open()
        .unwrap();
    let volume = session.volume("data").unwrap();
    let mut blocking = session.take_queue(0).unwrap();
    let queue = session.take_queue(1).unwrap();
    let mut buffer = session.alloc(8192).unwrap();
    buffer.fill(0x5a);
    blocking.write(&volume, 8192, buffer).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let queue = queue.into_async().unwrap();
        let buffer = session.alloc(8192).unwrap();
        let buffer = queue.read(&volume, 8192, buffer).await.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0x5a));
        queue.flush(&volume).await.unwrap();
    });
}

#[test]
fn a_client_without_io_uring_gets_io_all_the_same() {
    if !has_program("bwrap") {
        return skip("bubblewrap is not installed", false);
    }
    let daemon = DaemonBuilder::new().file("data", 4 * MIB).start();
    let filter = daemon.path("no-io-uring.bpf");
    std::fs::write(&filter, without_io_uring()).unwrap();
    let run = daemon.path("run");
    let client = ferrio_tests::process::program("ferrio-test-client");
    let script = format!(
        "exec bwrap --ro-bind / / --dev /dev --proc /proc --bind {run} {run} --unshare-all --uid 1000 --gid 1000 --seccomp 9 \
         {client} --socket {run}/control.sock verify data 9<{filter}",
        run = run.display(),
        client = client.display(),
        filter = filter.display(),
    );
    Process::start(Command::new("sh").args(["-c", &script])).finish().expect(0);
}
