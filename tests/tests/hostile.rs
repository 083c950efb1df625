//! Clients that own the raw memory and use it against the daemon. Whatever they do: their own session is faulted, with a
//! reason, where the protocol is broken; a client beside them goes on, its data right; the daemon keeps nothing of them.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ferrio_shm::{abi::Opcode, entry::Sqe, mapping::Mapping};
use ferrio_tests::{Beside, DaemonBuilder, RawSession, skip::skip};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_setfl, ftruncate};

/// Words of a control block, from its start.
const SQ_TAIL: u64 = 0;
const CQ_HEAD: u64 = 128;
const CLIENT_SLEEP: u64 = 132;

const PATIENCE: Duration = Duration::from_secs(10);

fn word(session: &RawSession, offset: u64) -> &AtomicU32 {
    session.memory.u32((session.queue.control_offset + offset) as usize).unwrap()
}

fn nop(user_data: u64) -> Sqe {
    Sqe { op: Opcode::Nop as u8, user_data, ..Sqe::default() }
}

fn read(user_data: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, user_data, length: 4096, ..Sqe::default() }
}

/// Does `attack` to a session that works, and returns the reason for which it was faulted.
#[track_caller]
fn fault_by(attack: impl FnOnce(&mut RawSession)) -> String {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    assert_eq!(session.result_of(&read(1)), 4096);
    attack(&mut session);
    session.doorbell.ring().unwrap();
    let reason = beside.fault_of(&session);
    drop(session);
    beside.finish();
    reason
}

/// xorshift64*: reproducible, and good enough to be nasty.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound
    }
}

/// A thread that does the same again and again until it is dropped.
struct Again(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Again {
    fn and_again(mut act: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Relaxed) {
                act();
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.take().map(JoinHandle::join);
    }
}

// ---- indices

#[test]
fn sq_tail_beyond_the_ring() {
    let reason = fault_by(|session| word(session, SQ_TAIL).store(1 + 8 + 1, Relaxed));
    assert!(reason.contains("queue 0") && reason.contains("sq_tail is 10"), "{reason}");
}

#[test]
fn sq_tail_backwards() {
    let reason = fault_by(|session| word(session, SQ_TAIL).store(0, Relaxed));
    assert!(reason.contains("sq_tail is 0"), "{reason}");
}

#[test]
fn sq_tail_at_the_other_end_of_the_numbers() {
    let reason = fault_by(|session| word(session, SQ_TAIL).store(1 << 31, Relaxed));
    assert!(reason.contains("sq_tail is 2147483648"), "{reason}");
}

#[test]
fn cq_head_beyond_cq_tail() {
    let reason = fault_by(|session| {
        word(session, CQ_HEAD).store(1000, Relaxed);
        // The daemon looks at cq_head when it needs room: at the latest after as many requests as there are entries.
        publish(session, 8);
    });
    assert!(reason.contains("cq_head is 1000"), "{reason}");
}

#[test]
fn cq_head_backwards() {
    let reason = fault_by(|session| {
        for n in 0..20 {
            assert_eq!(session.result_of(&nop(n)), 0);
        }
        word(session, CQ_HEAD).store(3, Relaxed);
        publish(session, 8);
    });
    assert!(reason.contains("cq_head is 3"), "{reason}");
}

#[test]
fn more_requests_than_places_for_answers() {
    let reason = fault_by(|session| {
        for _ in 0..2 {
            publish(session, 8);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(reason.contains("without a free CQ entry"), "{reason}");
}

/// Publishes whatever stands in the SQ, without regard to room.
fn publish(session: &RawSession, count: u32) {
    word(session, SQ_TAIL).fetch_add(count, Relaxed);
    session.doorbell.ring().unwrap();
}

// ---- entries

#[test]
fn sqes_rewritten_while_they_are_read_get_one_answer_each() {
    let beside = Beside::start();
    let mut session = beside.attacker(64);
    let memory = Arc::clone(&session.memory);
    let (sqes, words) = (session.queue.sqes_offset as usize, 64 * 8);
    let mut random = Random(0x5eed);
    let scribbler = Again::and_again(move || {
        let slots = memory.u64s(sqes, words).unwrap();
        // The first word holds opcode, class, flags, volume and region: nearly right ones get further.
        let value = match random.next() % 4 {
            0 => random.next(),
            1 => random.next() % 11,
            2 => 4096 << (random.next() % 8),
            _ => 0,
        };
        slots[random.below(words)].store(value, Relaxed);
    });
    let end = Instant::now() + Duration::from_secs(3);
    let mut answered = 0_u64;
    while Instant::now() < end {
        let room = session.sq.room();
        for n in 0..room {
            session.sq.push(&read(n.into())).unwrap();
        }
        if session.sq.publish() {
            session.doorbell.ring().unwrap();
        }
        for n in 0..room {
            assert!(session.wait(PATIENCE).is_some(), "answer {n} of {room} after {answered} is missing");
        }
        answered += u64::from(room);
        assert_eq!(session.wait(Duration::ZERO), None, "more answers than requests");
    }
    drop(scribbler);
    assert!(answered > 1000, "{answered}");
    assert_eq!(session.result_of(&read(7)), 4096, "the session was never at fault");
    drop(session);
    beside.finish();
}

#[test]
fn wild_requests_get_an_errno_each() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    let mut random = Random(0xbad);
    for op in [Opcode::Readv, Opcode::Writev] {
        for iov_count in [0, 1, 256, 257, u32::MAX] {
            for region_offset in [0, 16, 65536 - 8, 1 << 63, u64::MAX] {
                let sqe = Sqe { op: op as u8, iov_count, region_offset, ..read(9) };
                assert!(session.result_of(&sqe) < 0, "{sqe:?}");
            }
        }
    }
    for n in 0..2000 {
        let mut sqe = Sqe::from_words(std::array::from_fn(|_| random.next()));
        sqe.user_data = n;
        if n % 2 == 0 {
            (sqe.op, sqe.class, sqe.flags, sqe.reserved) = (1 + (n % 9) as u8, 0, 0, 0);
        }
        assert!(session.result_of(&sqe) < 0, "{sqe:?}");
    }
    drop(session);
    beside.finish();
}

// ---- doorbells

#[test]
fn a_client_that_never_hears_its_doorbell_gets_its_answers() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    for n in 0..2000 {
        word(&session, CLIENT_SLEEP).store(2 * n + 1, Relaxed);
        assert_eq!(session.result_of(&nop(n.into())), 0, "the daemon rings a full doorbell");
    }
    let (_, closed) = ferrio_shm::doorbell::doorbell_to_client().unwrap();
    drop(std::mem::replace(&mut session.cq_doorbell, closed));
    for n in 2000..4000 {
        word(&session, CLIENT_SLEEP).store(2 * n + 1, Relaxed);
        assert_eq!(session.result_of(&nop(n.into())), 0, "the daemon rings a closed doorbell");
    }
    drop(session);
    beside.finish();
}

#[test]
fn flags_of_the_descriptors_are_the_clients_own() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    for fd in [session.doorbell.as_fd(), session.cq_doorbell.as_fd(), session.lease.as_fd()] {
        fcntl_setfl(fd, OFlags::empty()).unwrap();
    }
    rustix::io::write(&session.doorbell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for n in 0..2000 {
        word(&session, CLIENT_SLEEP).store(2 * n + 1, Relaxed);
        session.sq.push(&nop(n.into())).unwrap();
        let _ = session.sq.publish();
        // Blocks this thread until the daemon empties it, should it be full.
        session.doorbell.ring().unwrap();
        assert!(session.wait(PATIENCE).is_some());
    }
    drop(session);
    beside.finish();
}

#[test]
fn a_client_that_closed_its_doorbells_harms_itself_only() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    assert_eq!(session.result_of(&nop(1)), 0);
    let (other, hears) = ferrio_shm::doorbell::doorbell_to_daemon().unwrap();
    drop(std::mem::replace(&mut session.doorbell, other));
    std::thread::sleep(Duration::from_millis(100));
    session.submit(&nop(2));
    std::thread::sleep(Duration::from_millis(300));
    drop((session, hears));
    beside.finish();
}

/// A page whose first access stops the thread, in the kernel too, until the descriptor is closed.
fn stuck_page() -> Option<(OwnedFd, usize)> {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    // SAFETY: makes a descriptor, which is owned from here; a fresh anonymous page, which is never freed, so that the
    // threads that are stuck on it have no dangling address; the structs have the lengths that the ioctls encode.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let fd: OwnedFd = std::os::fd::FromRawFd::from_raw_fd(fd as i32);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        let mut api = [0xaa_u64, 0, 0];
        // Address, length, "missing pages", 0.
        let mut register = [page.addr() as u64, 4096, 1, 0];
        let registered = libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) == 0
            && libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) == 0;
        registered.then_some((fd, page.addr()))
    }
}

/// With pipes for doorbells this stopped the I/O threads: readers and writers of a pipe copy under one mutex.
#[test]
fn a_client_stuck_in_a_system_call_on_a_shared_descriptor_holds_no_lock_of_the_daemon() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    // Should the test fail, this is dropped first: a daemon that hangs cannot be killed before.
    let Some((faults, page)) = stuck_page() else {
        return skip("userfaultfd is not permitted here", true);
    };
    word(&session, CLIENT_SLEEP).store(1, Relaxed);
    assert_eq!(session.result_of(&nop(1)), 0);
    let (write, reads) = (session.doorbell.as_fd(), [session.cq_doorbell.as_fd(), session.lease.as_fd()]);
    let mut threads = vec![stuck(write, page, true)];
    threads.extend(reads.map(|fd| stuck(fd, page, false)));
    std::thread::sleep(Duration::from_millis(200));
    for n in 1..500 {
        word(&session, CLIENT_SLEEP).store(2 * n + 1, Relaxed);
        assert_eq!(session.result_of(&nop(n.into())), 0);
        if n % 100 == 0 {
            std::thread::sleep(Duration::from_millis(20)); // the queue falls asleep, and its doorbell is needed
        }
    }
    word(&session, SQ_TAIL).store(0, Relaxed);
    session.doorbell.ring().unwrap();
    beside.fault_of(&session);
    drop(session);
    drop(faults);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    beside.finish();
}

fn stuck(fd: std::os::fd::BorrowedFd<'_>, page: usize, write: bool) -> JoinHandle<()> {
    let fd = fd.try_clone_to_owned().unwrap();
    std::thread::spawn(move || {
        let page = std::ptr::with_exposed_provenance_mut::<libc::c_void>(page);
        // SAFETY: the page stays mapped for ever; nothing in this process looks at its contents.
        unsafe {
            if write {
                libc::write(fd.as_raw_fd(), page, 8);
            } else {
                libc::read(fd.as_raw_fd(), page, 8);
            }
        }
    })
}

// ---- memory

#[test]
fn the_memory_cannot_be_cut() {
    let beside = Beside::start();
    let session = beside.attacker(8);
    for bytes in [0, 4096, 1 << 30] {
        ftruncate(&session.memfd, bytes).expect_err("sealed");
    }
    drop(session);
    beside.finish();
}

#[test]
fn holes_in_rings_and_arena_read_as_zeros() {
    let beside = Beside::start();
    for what in ["all", "arena"] {
        let mut session = beside.attacker(32);
        assert_eq!(session.result_of(&read(1)), 4096);
        let bytes = session.memory.len() as u64;
        let arena = bytes - 65536;
        let (offset, length) = if what == "all" { (0, bytes) } else { (arena, 65536) };
        let memfd = session.memfd.try_clone().unwrap();
        let puncher = Again::and_again(move || {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&memfd, flags, offset, length).expect("the seals allow it");
        });
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            while session.sq.push(&read(2)).is_ok() {}
            let _ = session.sq.publish();
            session.doorbell.ring().unwrap();
            while let Ok(Some(_)) = session.cq.pop() {}
            session.cq.release();
        }
        drop(puncher);
        if what == "all" {
            // The daemon is ahead of the zeros that it reads now.
            session.doorbell.ring().unwrap();
            beside.fault_of(&session);
        }
    }
    beside.finish();
}

#[test]
fn a_client_without_its_memory_harms_itself_only() {
    let beside = Beside::start();
    let mut session = beside.attacker(32);
    while session.sq.push(&read(2)).is_ok() {}
    let _ = session.sq.publish();
    session.doorbell.ring().unwrap();
    let RawSession { memory, sq, cq, memfd, lease, .. } = session;
    drop((sq, cq));
    let Ok(Mapping { .. }) = Arc::try_unwrap(memory) else { panic!("somebody else maps the memory") };
    drop(memfd);
    std::thread::sleep(Duration::from_millis(200));
    drop(lease);
    beside.finish();
}

#[test]
fn the_header_page_is_not_read_by_the_daemon() {
    let beside = Beside::start();
    let mut session = beside.attacker(8);
    let mut random = Random(0xfeed);
    for n in 0..200 {
        session.memory.u64s(0, 512).unwrap().iter().for_each(|word| word.store(random.next(), Relaxed));
        assert_eq!(session.result_of(&read(n)), 4096);
    }
    drop(session);
    beside.finish();
}

// ---- noise

/// Seconds of random bytes. A minute: FERRIO_HOSTILE_SECONDS=60.
fn noise_seconds() -> u64 {
    std::env::var("FERRIO_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn random_bytes_in_live_memory(backend: &str) {
    let beside = Beside::over(DaemonBuilder::new().engine("main", backend, ""));
    let end = Instant::now() + Duration::from_secs(noise_seconds());
    let mut random = Random(0xf00d);
    let (mut sessions, mut faulted) = (Vec::new(), 0);
    while Instant::now() < end {
        while sessions.len() < 4 {
            sessions.push((beside.attacker(32), 0));
        }
        for (session, spoiled) in &mut sessions {
            spoil(session, &mut random);
            *spoiled += 1;
        }
        let listed = ferrio_tests::beside::sessions(&beside.daemon);
        sessions.retain(|(session, spoiled)| {
            let is_faulted = listed
                .iter()
                .any(|listed| listed["session_id"] == session.id && listed["state"] == "faulted");
            faulted += u32::from(is_faulted);
            !is_faulted && *spoiled < 50
        });
    }
    assert!(faulted > 0, "noise is noticed");
    drop(sessions);
    beside.finish();
}

/// Random words into rings and arena for some milliseconds; indices stay believable most of the time.
fn spoil(session: &RawSession, random: &mut Random) {
    let memory = session.memory.u64s(0, session.memory.len() / 8).unwrap();
    let rings = 4096 / 8..(session.memory.len() - 65536) / 8;
    let control = session.queue.control_offset as usize / 8;
    let end = Instant::now() + Duration::from_millis(5);
    while Instant::now() < end {
        for _ in 0..64 {
            let index = match random.next() % 4 {
                0 => random.below(memory.len()),
                _ => rings.start + random.below(rings.len()),
            };
            // The four control lines only now and then: they end the session.
            if !(control..control + 64).contains(&index) || random.next().is_multiple_of(64) {
                memory[index].store(random.next(), Relaxed);
            }
        }
        word(session, SQ_TAIL).fetch_add((random.next() % 3) as u32, Relaxed);
        word(session, CLIENT_SLEEP).store(random.next() as u32, Relaxed);
        // It may have released what it never saw.
        if random.next().is_multiple_of(8) {
            let tail = session.memory.u32((session.queue.control_offset + 384) as usize).unwrap();
            word(session, CQ_HEAD).store(tail.load(Relaxed), Relaxed);
        }
        session.doorbell.ring().unwrap();
    }
}

#[test]
fn random_bytes_in_live_memory_over_io_uring() {
    random_bytes_in_live_memory("io_uring");
}

#[test]
fn random_bytes_in_live_memory_over_aio() {
    random_bytes_in_live_memory("aio");
}
