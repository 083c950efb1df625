//! The known mistakes of the code bases behind the seeds (DESIGN.md, section on the driver), each as a test that catches it,
//! over io_uring, AIO and fault.
//!
//! | mistake | test |
//! |---|---|
//! | a short I/O resubmitted with a longer length | `short_io_ends_where_it_says`; the engine's `tests/mistakes.rs` has the resubmission |
//! | errors dropped when the result is negative | `negative_results_are_answers` |
//! | a failed `io_submit` loses its batch | `errors::bad_request_amid_a_batch_loses_no_other`, `seccomp.rs` |
//! | EINTR compared with the wrong sign | `signals.rs`, `interrupted.rs` |
//! | livelock on a full submission queue | `a_full_queue_empties_while_one_sleeps`, `bounds::full_batch_gives_the_slot_back` |
//! | in-flight above the CQ size | `all_that_is_in_flight_fits_the_completion_queue`, `what_io_uring_claims_is_in_effect` |
//! | the merge limit checked against one part | `limits_are_those_of_the_whole` |
//! | byte counts in i32 | `a_gigabyte_is_no_errno` |
//! | a mode that silently is not in effect | `what_io_uring_claims_is_in_effect`, `memlock.rs` |

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::uring::Uring;
use ferrio_driver::{
    Driver, DriverConfig, FileIndex, LENGTH_MAX, Op, Pin, ReapHalf, RegionIndex, Segment, Shape, SubmitHalf,
};

use crate::child;
use crate::errors::read_only_target;
use crate::rig::{MEMORY_BYTES, Memory, PATIENCE, Reaper, Rig, Subject, directory, flush, pattern, read};

/// The driver moves what it reports and nothing more: it does not go on by itself, let alone with another length.
pub fn short_io_ends_where_it_says<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let file = OpenOptions::new().write(true).open(rig.path()).expect("the same file");
    file.write_all_at(&pattern(1, 12288), 0).expect("write");
    file.set_len(12288).expect("truncate");
    let marks = pattern(2, 64 << 10);
    rig.memory.fill(0, &marks);
    for (offset, length, wanted) in
        [(8192, 16384, 4096), (4096, 32768, 8192), (12288, 4096, 0), (16384, 4096, 0)]
    {
        assert_eq!(rig.run_one(&rig.read(0, offset, length)), wanted, "{length} bytes at {offset}");
        let (wanted, from, length) = (wanted as usize, offset as usize, length as usize);
        assert!(wanted == 0 || rig.memory.bytes(0, wanted) == pattern(1, 12288)[from..from + wanted]);
        let behind = marks.len() - length;
        assert!(rig.memory.bytes(length as u64, behind) == marks[length..], "behind the request");
        rig.memory.fill(0, &marks);
    }
    rig.finish();
}

/// Every errno arrives as it is, of the kernel's requests and of the driver's own, and frees its slot.
pub fn negative_results_are_answers<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let read_only = read_only_target(&mut rig);
    let (good, size) = (rig.read(0, 0, 4096), rig.target.size_bytes());
    // Refused by the kernel, beyond what a file can have, unknown to the driver, and no error but no bytes either.
    let beyond = (i64::MAX.cast_unsigned() / 4096) * 4096;
    let cases = [
        (Op { file: read_only, ..rig.write(0, 0, 4096) }, vec![-libc::EBADF]),
        (Op { offset: beyond, ..rig.write(0, 0, 4096) }, vec![-libc::EFBIG, -libc::EINVAL]),
        (Op { file: FileIndex(9), ..flush(rig.file) }, vec![-libc::EBADF]),
        (Op { region: RegionIndex(9), ..good }, vec![-libc::ENXIO]),
        (Op { offset: size, ..good }, vec![0]),
    ];
    // More than slots: a lost one is missed.
    for round in 0..20 {
        for (op, wanted) in &cases {
            let results = rig.run(&[*op, good, *op, good]);
            assert!(
                wanted.contains(&results[0]) && results[0] == results[2],
                "{op:?}: {results:?} in {round}"
            );
            assert_eq!((results[1], results[3]), (4096, 4096));
        }
    }
    rig.finish();
}

/// Whoever meets a full queue and does nothing but sleep gets on. In `Shape::One`, where sleeping sees completions.
pub fn a_full_queue_empties_while_one_sleeps<D: Subject>(shape: Shape) {
    const REQUESTS: usize = 5000;
    let mut rig = Rig::<D>::new(shape, 1500);
    let Reaper::Here(reap, out) = &mut rig.reaper else { panic!("made for Shape::One") };
    let op = read(rig.file, rig.region, 0, 0, 4096);
    let (mut submitted, mut answered, mut full) = (0, 0, 0);
    let deadline = Instant::now() + PATIENCE;
    while answered < REQUESTS {
        assert!(Instant::now() < deadline, "{submitted} submitted, {answered} answered");
        while submitted < REQUESTS
            && let Some(slot) = rig.submit.reserve()
        {
            if let Err(slot) = rig.submit.submit(slot, 0, &op) {
                rig.submit.cancel_reserved(slot);
                full += 1;
                break;
            }
            submitted += 1;
        }
        rig.submit.sleep(rig.doorbells.as_fd(), Some(Duration::from_secs(1))).expect("sleep");
        reap.reap(out);
        for completion in out.drain(..) {
            assert_eq!(completion.result, 4096);
            rig.submit.release(completion.tag);
            answered += 1;
        }
    }
    assert!(full > 0, "the queue was never full");
    rig.finish();
}

/// Nothing is reaped before all is done, again and again, at depths on both sides of a power of two. In `Shape::One` alone: in
/// the other somebody reaps all the time.
pub fn all_that_is_in_flight_fits_the_completion_queue<D: Subject>(shape: Shape) {
    for depth in [1, 3, 64, 65, 1000] {
        let mut rig = Rig::<D>::new(shape, depth);
        for _ in 0..4 {
            for user in 0..depth {
                let op = rig.read(u64::from(user % 512) * 4096, u64::from(user % 1024) * 4096, 4096);
                rig.stage(user, &op);
            }
            rig.commit();
            assert!(rig.submit.reserve().is_none(), "{depth} are in flight");
            // They end meanwhile, with nobody there.
            std::thread::sleep(Duration::from_millis(20));
            let mut users = HashSet::new();
            for completion in rig.wait(depth as usize) {
                assert_eq!(completion.result, 4096);
                assert!(users.insert(completion.user), "twice: {completion:?}");
                rig.submit.release(completion.tag);
            }
        }
        rig.finish();
    }
}

const PIECE: u32 = 8 << 20;

/// Each piece is within the limits, the whole is not.
pub fn limits_are_those_of_the_whole<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let memory = Memory::new(PIECE.into());
    let region = rig.submit.register_region(memory.region.clone(), Pin::No).expect("region");
    let piece = Segment { region, offset: 0, length: PIECE };
    let pieces = [piece; (LENGTH_MAX / PIECE) as usize + 1];
    let whole = Op { length: LENGTH_MAX + PIECE, ..rig.read(0, 0, 0) };
    assert_eq!(rig.run_vectored(&whole, &pieces), -libc::EINVAL);
    // Nor does a sum that wraps around get by.
    let wraps = Segment { region, offset: 0, length: u32::MAX };
    assert_eq!(
        rig.run_vectored(&rig.read(0, 0, 4095), &[wraps, Segment { length: 4096, ..piece }]),
        -libc::EINVAL
    );
    rig.finish();
}

/// A gigabyte into the same few megabytes again and again, so that it costs no memory.
pub fn a_gigabyte_is_no_errno<D: Subject>(shape: Shape) {
    let directory = directory();
    let path = directory.path().join("sparse");
    let file = OpenOptions::new().create_new(true).write(true).open(&path).expect("file");
    file.set_len(LENGTH_MAX.into()).expect("sparse");
    let target = D::target(&path, 0);
    let config = DriverConfig { depth: 2, shape, ..DriverConfig::default() };
    let mut rig = Rig::<D>::on(&config, directory, target, PIECE.into());
    let piece = Segment { region: rig.region, offset: 0, length: PIECE };
    let pieces = [piece; (LENGTH_MAX / PIECE) as usize];
    rig.memory.fill(0, &pattern(1, PIECE as usize));
    assert_eq!(rig.run_vectored(&rig.read(0, 0, LENGTH_MAX), &pieces), 1 << 30);
    assert!(rig.memory.bytes(0, PIECE as usize).iter().all(|byte| *byte == 0), "a hole was read");
    rig.finish();
}

/// A ring of this process, in the kernel's own words.
#[derive(Debug)]
struct Ring {
    /// In its table of buffers.
    buffer_bytes: u64,
    /// A thread of the kernel submits.
    polled: bool,
    cq_entries: u64,
}

fn rings() -> Vec<Ring> {
    let fds = std::fs::read_dir("/proc/self/fd").expect("/proc").map(|entry| entry.expect("entry"));
    fds.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.ends_with(RING)))
        .map(|entry| ring(&format!("/proc/self/fdinfo/{}", entry.file_name().display())))
        .collect()
}

fn ring(path: &str) -> Ring {
    let text = std::fs::read_to_string(path).expect("fdinfo");
    let value = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {text}")).trim()
    };
    let (_, buffers) = text.split_once("UserBufs:").expect("its buffers");
    // `    0: 0x7fba28350000/2097152`
    let bytes = |line: &str| line.split_once(": 0x")?.1.split_once('/')?.1.parse::<u64>().ok();
    let cq_mask = value("CqMask:").trim_start_matches("0x");
    Ring {
        buffer_bytes: buffers.lines().filter_map(bytes).sum(),
        polled: value("SqThread:") != "-1",
        cq_entries: u64::from_str_radix(cq_mask, 16).expect("hexadecimal") + 1,
    }
}

const RING: &str = "anon_inode:[io_uring]";

/// What `info` claims is what the kernel has; what it does not claim is not there.
fn claims<D: Subject>(name: &str) {
    if !child::is_child(name) {
        child::run(name);
        return;
    }
    // Deeper than a batch.
    let depth = 1500;
    let mut rig = Rig::<D>::new(Shape::One, depth);
    while rig.submit.continue_pinning() {}
    let (modes, degraded) = (rig.modes(), rig.degraded());
    let (pinned, refused) =
        (modes.contains("1 of 1 regions"), degraded.contains("region 0 is not registered"));
    if D::NAME == Uring::NAME {
        let rings = rings();
        let [ref ring] = rings[..] else { panic!("one ring: {rings:?}") };
        assert_eq!(ring.buffer_bytes, if pinned { MEMORY_BYTES } else { 0 }, "{modes}\n{degraded}");
        assert!(pinned != refused, "one of both is said:\n{modes}\n{degraded}");
        assert_eq!(ring.polled, modes.contains("SQPOLL"));
        assert!(ring.cq_entries >= u64::from(depth), "{ring:?}");
        assert!(modes.contains(&format!("CQ {}", ring.cq_entries)), "{ring:?}, but {modes}");
    } else {
        assert!(rings().is_empty() && !pinned && !modes.contains("registered buffers"), "{modes}");
    }
    rig.submit.unregister_region(rig.region).expect("idle");
    while rig.submit.continue_pinning() {}
    assert!(rings().iter().all(|ring| ring.buffer_bytes == 0), "given back");
    rig.finish();
}

#[test]
fn what_io_uring_claims_is_in_effect() {
    claims::<Uring>("mistakes::what_io_uring_claims_is_in_effect");
}

#[test]
fn what_aio_claims_is_in_effect() {
    claims::<Aio>("mistakes::what_aio_claims_is_in_effect");
}

#[test]
fn what_fault_claims_is_in_effect() {
    claims::<Fault<Uring>>("mistakes::what_fault_claims_is_in_effect");
}
