//! A killed daemon's writes land after its death. No write of the next daemon may overtake them.

use std::{path::Path, sync::atomic::Ordering::Relaxed, time::Instant};

use ferrio_api::v1::Access;
use ferrio_shm::{abi::Opcode, entry::Sqe};
use ferrio_tests::{
    Daemon, DaemonBuilder, RawSession,
    disk::{Loop, Mounts, Throttle, sparse},
    process::{PATIENCE, Process, wait_until},
    raw,
    skip::{has_program, is_root, skip},
};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const WHOLE: i32 = 4096;
const OLD: u64 = 0x1111_1111_1111_1111;
const NEW: u64 = 0x2222_2222_2222_2222;
/// Where both daemons write.
const PLACE: u64 = 0;
/// Where only the first one does, after that.
const LAST: u64 = MIB;

fn at(op: Opcode, offset: u64) -> Sqe {
    Sqe { op: op as u8, user_data: offset + 1, offset, length: BLOCK, ..Sqe::default() }
}

/// A session on a volume, with its arena.
struct Client {
    session: RawSession,
    arena: usize,
}

impl Client {
    fn open(daemon: &Daemon, volume: &str) -> Result<Self, tonic::Status> {
        let opened = raw::open(&daemon.control(), &[(volume, Access::ReadWriteShared)], 64)?;
        let arena = usize::try_from(opened.arena_offset).expect("a small session");
        Ok(Self { session: RawSession::attach(&opened), arena })
    }

    fn words(&self) -> &[std::sync::atomic::AtomicU64] {
        let words = usize::try_from(BLOCK / 8).expect("few");
        self.session.memory.u64s(self.arena, words).expect("the arena")
    }

    fn fill(&self, word: u64) {
        self.words().iter().for_each(|place| place.store(word, Relaxed));
    }

    fn write(&mut self, offset: u64, word: u64) -> i32 {
        self.fill(word);
        self.session.result_of(&at(Opcode::Write, offset))
    }

    /// The word that a block is full of.
    fn read(&mut self, offset: u64) -> u64 {
        assert_eq!(self.session.result_of(&at(Opcode::Read, offset)), WHOLE);
        let first = self.words()[0].load(Relaxed);
        assert!(self.words().iter().all(|word| word.load(Relaxed) == first), "a torn block");
        first
    }
}

fn volume(daemon: &Daemon, name: &str) -> Value {
    let list = daemon.ctl_json(&["volume", "list"]);
    list["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).cloned().unwrap()
}

fn in_flight(daemon: &Daemon) -> u64 {
    let queues = daemon.ctl_json(&["queue", "list"]);
    let classes = queues["classes"].as_array().unwrap();
    classes.iter().map(|class| class["counters"]["in_flight"].as_u64().unwrap()).sum()
}

/// The first daemon has writes in flight on `path`, which lies on `device`, and is killed. The second one gets a newer write
/// for the same place at once.
fn a_newer_write_stays(backend: &str, path: &Path, device: &Path, traced: bool) {
    let throttle = match Throttle::writes_to(device) {
        Ok(throttle) => throttle,
        Err(reason) => return skip(&reason, true),
    };
    let mut daemon = DaemonBuilder::new()
        .engine("main", backend, "")
        .volume("disk", path, "allow_any = true")
        .memory("other", MIB)
        .start();
    let mut first = Client::open(&daemon, "disk").expect("a session");
    throttle.add(daemon.process().pid()).unwrap();
    first.fill(OLD);
    // The first one pays for the others: the device takes them later, in this order.
    for offset in [8 * BLOCK, PLACE, LAST] {
        first.session.submit(&at(Opcode::Write, offset));
    }
    wait_until("the writes to be in flight", || in_flight(&daemon) >= 2);
    assert!(volume(&daemon, "disk")["fenced_by"] == "");

    let tracer = traced.then(|| trace(daemon.process().pid()));
    let dying = daemon.kill();
    daemon.restart();
    let mut other = Client::open(&daemon, "other").expect("other volumes are served");
    assert_eq!(other.write(0, NEW), WHOLE);
    // Until it is acknowledged, or waits: the newer write is not to be the later one by chance.
    let (mut seen, mut refusal) = (volume(&daemon, "disk"), None);
    let mut second = match Client::open(&daemon, "disk") {
        Ok(mut client) => {
            assert_eq!(client.write(PLACE, NEW), WHOLE);
            Some(client)
        }
        Err(status) => {
            refusal = Some(status);
            None
        }
    };
    if refusal.is_some() {
        wait_until("the volume to be seen fenced", || {
            seen = volume(&daemon, "disk");
            seen["fencing_ms"].as_u64() > Some(0)
        });
    }
    throttle.lift().unwrap();
    let limit = Instant::now() + PATIENCE;
    let client = loop {
        if let Some(client) = &mut second {
            break client;
        }
        assert!(Instant::now() < limit, "still fenced: {}", volume(&daemon, "disk"));
        second = Client::open(&daemon, "disk").ok();
        if let Some(client) = &mut second {
            assert_eq!(client.write(PLACE, NEW), WHOLE);
        }
    };
    wait_until("the last of the old writes", || client.read(LAST) == OLD);
    assert_eq!(client.read(PLACE), NEW, "an old write overtook a newer one, which was acknowledged");

    assert_eq!(seen["state"], "fencing", "{seen}");
    let by = seen["fenced_by"].as_str().unwrap();
    assert!(by.contains(&format!("process {}", dying.pid())), "{by}");
    assert_eq!((&seen["size_bytes"], &seen["block_bytes"]), (&(8 * MIB).into(), &512.into()), "{seen}");
    let refusal = refusal.expect("not to be used before the lock is ours");
    assert_eq!(refusal.code(), tonic::Code::Unavailable, "{refusal}");
    assert!(refusal.message().contains("fenced") && refusal.message().contains(by), "{refusal}");
    let serving = volume(&daemon, "disk");
    assert_eq!((&serving["state"], &serving["fenced_by"]), (&"serving".into(), &"".into()), "{serving}");
    let log = daemon.log();
    for part in ["volume disk: fenced: its lock is held by process", "volume disk: its lock is ours after"] {
        assert!(log.contains(part), "{part:?} not in {log}");
    }
    drop((second, other, tracer));
    dying.finish().expect(128 + libc::SIGKILL);
    daemon.end(Signal::TERM).expect(0);
}

/// A process that is traced dies more slowly: its threads stop once more on their way out, and are zombies until their tracer has
/// looked at each.
fn trace(pid: u32) -> Process {
    let strace = Process::start(std::process::Command::new("strace").args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-p",
        &pid.to_string(),
    ]));
    wait_until("strace to have every thread", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        tasks
            .map(|task| std::fs::read_to_string(task.path().join("status")).unwrap_or_default())
            .all(|status| status.lines().any(|line| line == format!("TracerPid:\t{}", strace.pid())))
    });
    strace
}

fn mounts() -> Option<Mounts> {
    if !is_root() {
        skip("mounts and loop devices need root", false);
        return None;
    }
    Mounts::new().map_err(|reason| skip(&reason, true)).ok()
}

fn on_a_device(backend: &str, traced: bool) {
    let Some(mounts) = mounts() else { return };
    let image = mounts.path("image");
    sparse(&image, 8 * MIB);
    match Loop::over(&image) {
        Ok(device) => a_newer_write_stays(backend, device.path(), device.path(), traced),
        Err(reason) => skip(&reason, true),
    }
}

fn on_a_file(backend: &str) {
    let Some(mounts) = mounts() else { return };
    let image = mounts.path("image");
    sparse(&image, 64 * MIB);
    let device = match Loop::over(&image) {
        Ok(device) => device,
        Err(reason) => return skip(&reason, true),
    };
    let directory = mounts.ext4_on("files", device.path()).unwrap();
    let file = directory.join("disk");
    std::fs::write(&file, vec![0; 8 << 20]).unwrap();
    rustix::fs::sync();
    a_newer_write_stays(backend, &file, device.path(), false);
}

#[test]
fn a_newer_write_stays_on_a_device_over_io_uring() {
    on_a_device("io_uring", false);
}

#[test]
fn a_newer_write_stays_on_a_device_over_aio() {
    on_a_device("aio", false);
}

fn under_strace(backend: &str) {
    if has_program("strace") { on_a_device(backend, true) } else { skip("strace is not installed", false) }
}

#[test]
fn a_newer_write_stays_under_strace_over_io_uring() {
    under_strace("io_uring");
}

#[test]
fn a_newer_write_stays_under_strace_over_aio() {
    under_strace("aio");
}

#[test]
fn a_newer_write_stays_on_a_file_over_io_uring() {
    on_a_file("io_uring");
}

#[test]
fn a_newer_write_stays_on_a_file_over_aio() {
    on_a_file("aio");
}

/// A client that knows nothing of all that: its write goes on over the death of the daemon, and the end of another one that had
/// waited for the lock, and the next one comes after it.
fn a_session_goes_on_over_the_fence(backend: &str) {
    let Some(mounts) = mounts() else { return };
    let image = mounts.path("image");
    sparse(&image, 8 * MIB);
    let device = match Loop::over(&image) {
        Ok(device) => device,
        Err(reason) => return skip(&reason, true),
    };
    let throttle = match Throttle::writes_to(device.path()) {
        Ok(throttle) => throttle,
        Err(reason) => return skip(&reason, true),
    };
    let mut daemon = DaemonBuilder::new()
        .config("drain_timeout_s = 3600")
        .engine("main", backend, "")
        .volume("disk", device.path(), "allow_any = true")
        .start();
    let session = daemon.session("disk", ferrio_client::Access::ReadWrite).open().expect("a session");
    throttle.add(daemon.process().pid()).unwrap();
    let disk = session.volume("disk").unwrap();
    let write = |queue: &mut ferrio_client::Queue, offset, byte| {
        let mut buffer = session.alloc(4096).unwrap();
        buffer.fill(byte);
        queue.write(&disk, offset, buffer).expect("a write goes on");
    };
    let mut queue = session.take_queue(0).unwrap();
    std::thread::scope(|scope| {
        let old = scope.spawn(|| write(&mut queue, PLACE, 1));
        wait_until("the write to be in flight", || in_flight(&daemon) >= 1);
        let dying = daemon.kill();
        daemon.restart();
        wait_until("the volume to be seen fenced", || volume(&daemon, "disk")["state"] == "fencing");
        // Over AIO a killed process keeps its sockets until its I/O is done: its client does not notice before.
        let resumes = backend == "io_uring";
        let goes_on = |daemon: &Daemon| {
            wait_until("the session to go on", || {
                daemon.ctl_json(&["session", "list"])["sessions"][0]["state"] == "active"
            });
            assert_eq!(in_flight(daemon), 1, "its write waits");
        };
        if resumes {
            goes_on(&daemon);
        }
        assert_eq!(volume(&daemon, "disk")["state"], "fencing");
        let stopped = daemon.end(Signal::TERM).expect(0);
        let left = "drained, but for 1 requests that wait for fenced volumes";
        assert_eq!(stopped.stderr.contains(left), resumes, "{left:?} in {}", stopped.stderr);
        daemon.restart();
        if resumes {
            goes_on(&daemon);
        }
        std::fs::File::options().write(true).open(&image).unwrap().set_len(16 * MIB).unwrap();
        device.refresh().unwrap();
        assert_eq!((&volume(&daemon, "disk")["state"], disk.size_bytes()), (&"fencing".into(), 8 * MIB));
        assert!(!old.is_finished(), "its daemon has not landed it");
        throttle.lift().unwrap();
        old.join().unwrap();
        dying.finish().expect(128 + libc::SIGKILL);
    });
    wait_until("the client to know the size behind the fence", || disk.size_bytes() == 16 * MIB);
    write(&mut queue, PLACE, 2);
    let buffer = queue.read(&disk, PLACE, session.alloc(4096).unwrap()).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 2), "the write that came after was overtaken");
    drop((queue, session));
    daemon.end(Signal::TERM).expect(0);
}

#[test]
fn a_session_goes_on_over_the_fence_over_io_uring() {
    a_session_goes_on_over_the_fence("io_uring");
}

#[test]
fn a_session_goes_on_over_the_fence_over_aio() {
    a_session_goes_on_over_the_fence("aio");
}
