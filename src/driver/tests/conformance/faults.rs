//! Each effect of a fault plan, over the driver `D`.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_driver::fault::{Fault, REORDER_HOLD};
use ferrio_driver::{
    Busy, Completion, DriverConfig, FaultCounters, FaultEffect, FaultError, FaultOps, FaultPlan, FaultRule,
    FileIndex, LENGTH_MAX, Op, OpKind, Pin, ReapHalf, RegionIndex, Segment, Shape, SubmitHalf, Target,
};

use crate::errors::read_only_target;
use crate::rig::{Memory, PATIENCE, Reaper, Rig, Subject, flush, pattern, read, write};

const CHUNK: u32 = 64 << 10;
const EIO: FaultEffect = FaultEffect::Error { errno: libc::EIO };

fn plan(rules: impl IntoIterator<Item = FaultRule>) -> FaultPlan {
    FaultPlan { seed: 11, rules: rules.into_iter().collect() }
}

fn set<D: Subject>(rig: &mut Rig<Fault<D>>, rules: impl IntoIterator<Item = FaultRule>) {
    let file = rig.file;
    rig.submit.set_faults(file, plan(rules)).expect("a good plan");
}

fn counters<D: Subject>(rig: &Rig<Fault<D>>) -> Vec<(u64, u64)> {
    let status = rig.submit.faults(rig.file).expect("a plan");
    status.counters.iter().map(|&FaultCounters { matched, applied }| (matched, applied)).collect()
}

fn held<D: Subject>(rig: &Rig<Fault<D>>) -> u32 {
    rig.submit.faults(rig.file).map_or(0, |status| status.held)
}

/// Waits as a Submitter does, which comes by now and then also in `Shape::Two`.
fn wait<D: Subject>(rig: &mut Rig<Fault<D>>, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} completions came", all.len());
        let nap = match &mut rig.reaper {
            Reaper::Here(reap, out) => {
                reap.reap(out);
                all.append(out);
                None
            }
            Reaper::There(thread) => {
                all.extend(thread.completions.try_iter());
                Some(Duration::from_millis(1))
            }
        };
        if all.len() < count {
            // In `Shape::One` without a timeout: what is due must end it.
            rig.submit.sleep(rig.doorbells.as_fd(), nap).expect("sleep");
        }
    }
    all
}

/// Runs requests to their end and gives their results in order.
fn run<D: Subject>(rig: &mut Rig<Fault<D>>, ops: &[Op]) -> Vec<i32> {
    for (user, op) in (0..).zip(ops) {
        rig.stage(user, op);
    }
    rig.commit();
    let mut results = vec![None; ops.len()];
    for completion in wait(rig, ops.len()) {
        assert_eq!(results[completion.user as usize].replace(completion.result), None);
        rig.submit.release(completion.tag);
    }
    results.into_iter().map(|result| result.expect("an answer")).collect()
}

fn on_disk<D: Subject>(rig: &Rig<Fault<D>>, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    std::fs::File::open(rig.path()).expect("file").read_exact_at(&mut bytes, offset).expect("bytes");
    bytes
}

/// Old data on disk at 0, new data in memory at 0: what a write that fails leaves is then plain to see.
fn old_and_new<D: Subject>(rig: &mut Rig<Fault<D>>) -> (Vec<u8>, Vec<u8>) {
    let (old, new) = (pattern(1, CHUNK as usize), pattern(2, CHUNK as usize));
    rig.memory.fill(0, &old);
    assert_eq!(run(rig, &[rig.write(0, 0, CHUNK)]), [CHUNK.cast_signed()]);
    rig.memory.fill(0, &new);
    (old, new)
}

pub fn errors_hit_what_the_rule_says<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 8);
    let second = rig.submit.register_file(Arc::new(Target::null(1 << 20, 512))).expect("file");
    let in_range = FaultRule { range: 8192..12288, ..FaultRule::new(FaultOps::WRITE, EIO) };
    let flushes = FaultRule::new(FaultOps::FLUSH, FaultEffect::Error { errno: libc::ENOSPC });
    set(&mut rig, [in_range, flushes]);
    let ops = [
        rig.write(0, 0, 4096),
        rig.write(0, 8192, 4096),
        rig.write(0, 4096, 8192),
        rig.read(0, 8192, 4096),
        rig.write(0, 12288, 4096),
        write(second, rig.region, 0, 8192, 4096),
        flush(rig.file),
        flush(second),
    ];
    let wanted = [4096, -libc::EIO, -libc::EIO, 4096, 4096, 4096, -libc::ENOSPC, 0];
    assert_eq!(run(&mut rig, &ops), wanted);
    assert_eq!(counters(&rig), [(2, 2), (1, 1)]);
    assert!(rig.modes().contains("2 rules, 3 applied, 0 requests held"), "{}", rig.modes());
    set(&mut rig, []);
    assert_eq!(run(&mut rig, &ops), [4096, 4096, 8192, 4096, 4096, 4096, 0, 0]);
    assert!(rig.submit.faults(rig.file).is_none());
    rig.finish();
}

pub fn failed_writes_leave_the_disk_alone<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    let (old, _) = old_and_new(&mut rig);
    set(&mut rig, [FaultRule::new(FaultOps::WRITE, EIO)]);
    let op = rig.write(0, 0, CHUNK);
    assert_eq!(run(&mut rig, &[op]), [-libc::EIO]);
    assert!(on_disk(&rig, 0, CHUNK) == old);
    // The device's own errors go before those of a plan.
    let read_only = read_only_target(&mut rig);
    let torn = plan([FaultRule::new(FaultOps::WRITE, FaultEffect::TornWrite)]);
    rig.submit.set_faults(read_only, torn).expect("plan");
    let op = Op { file: read_only, ..op };
    let results = run(&mut rig, &[op; 4]);
    assert!(results.contains(&-libc::EBADF), "{results:?}");
    rig.finish();
}

pub fn short_transfers_are_what_they_say<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    let unit = rig.target.block_bytes().max(rig.target.memory_align_bytes());
    let (old, new) = old_and_new(&mut rig);
    set(&mut rig, [FaultRule::new(FaultOps::READ | FaultOps::WRITE, FaultEffect::Short)]);
    for _ in 0..10 {
        let op = rig.write(0, 0, CHUNK);
        let moved = run(&mut rig, &[op])[0].cast_unsigned();
        assert!(moved > 0 && moved < CHUNK && moved.is_multiple_of(unit), "{moved} of {CHUNK}");
        let disk = on_disk(&rig, 0, CHUNK);
        let (front, back) = disk.split_at(moved as usize);
        assert!(front == &new[..front.len()] && back == &old[front.len()..]);
        // The same front comes back, and memory behind it stays as it was.
        rig.memory.fill(0, &old);
        let op = rig.read(0, 0, CHUNK);
        let moved = run(&mut rig, &[op])[0].cast_unsigned() as usize;
        assert!(moved > 0 && moved < CHUNK as usize, "{moved}");
        assert!(rig.memory.bytes(0, moved) == disk[..moved]);
        assert!(rig.memory.bytes(moved as u64, CHUNK as usize - moved) == old[moved..]);
        // Back to the old, past the driver.
        std::fs::OpenOptions::new()
            .write(true)
            .open(rig.path())
            .and_then(|file| file.write_all_at(&old, 0))
            .expect("write");
        rig.memory.fill(0, &new);
    }
    let one = rig.write(0, 0, unit);
    assert_eq!(run(&mut rig, &[one]), [unit.cast_signed()], "one block is whole or fails");
    rig.finish();
}

pub fn torn_writes_fail_half_done<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    let unit = rig.target.block_bytes().max(rig.target.memory_align_bytes()) as usize;
    let (old, new) = old_and_new(&mut rig);
    let (mut blocks_new, mut blocks_old) = (0, 0);
    for n in 0..16 {
        let offset = u64::from(n * CHUNK);
        set(&mut rig, []);
        rig.memory.fill(0, &old);
        let ops = [rig.write(0, offset, CHUNK)];
        assert_eq!(run(&mut rig, &ops), [CHUNK.cast_signed()]);
        rig.memory.fill(0, &new);
        let torn = FaultRule::new(FaultOps::WRITE, FaultEffect::TornWrite);
        let seeded = FaultPlan { seed: n.into(), rules: vec![torn] };
        rig.submit.set_faults(rig.file, seeded).expect("plan");
        assert_eq!(run(&mut rig, &ops), [-libc::EIO]);
        let disk = on_disk(&rig, offset, CHUNK);
        for (at, block) in disk.chunks(unit).enumerate() {
            let range = at * unit..(at + 1) * unit;
            if block == &new[range.clone()] {
                blocks_new += 1;
            } else {
                assert!(block == &old[range], "block {at} is neither old nor new");
                blocks_old += 1;
            }
        }
        assert!(disk != new, "never all of it");
    }
    assert!(blocks_new > 0 && blocks_old > 0, "{blocks_new} new, {blocks_old} old");
    rig.finish();
}

pub fn delays_hold_their_request_alone<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 8);
    let delay = Duration::from_millis(30);
    let slow = FaultEffect::Delay { min: delay, max: delay * 2 };
    set(&mut rig, [FaultRule { range: 0..4096, ..FaultRule::new(FaultOps::READ, slow) }]);
    let begun = Instant::now();
    rig.stage(1, &rig.read(0, 0, 4096));
    rig.stage(2, &rig.read(0, 4096, 4096));
    rig.commit();
    let first = wait(&mut rig, 1)[0];
    assert_eq!((first.user, first.result), (2, 4096));
    assert_eq!(held(&rig), 1);
    let last = wait(&mut rig, 1)[0];
    assert_eq!((last.user, last.result), (1, 4096));
    assert!(begun.elapsed() >= delay);
    assert_eq!(held(&rig), 0);
    for completion in [first, last] {
        rig.submit.release(completion.tag);
    }
    rig.finish();
}

pub fn stuck_requests_wait_for_other_rules<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    let second = rig.submit.register_file(Arc::clone(&rig.target)).expect("file");
    let memory = Memory::new(64 << 10);
    let region = rig.submit.register_region(memory.region.clone(), Pin::Yes).expect("region");
    set(&mut rig, [FaultRule { count: Some(2), ..FaultRule::new(FaultOps::ALL, FaultEffect::Stuck) }]);
    let tag = rig.stage(1, &read(rig.file, region, 0, 0, 4096));
    rig.stage(2, &flush(rig.file));
    rig.commit();
    // Others pass: of another file, and of this one as the rule is spent.
    for _ in 0..20 {
        let ops = [read(second, rig.region, 0, 0, 4096), rig.read(0, 0, 4096)];
        assert_eq!(run(&mut rig, &ops), [4096, 4096]);
    }
    assert_eq!((rig.submit.in_flight(), held(&rig)), (2, 2));
    assert_eq!(rig.submit.unregister_file(rig.file), Err(Busy { in_flight: 2 }));
    assert_eq!(rig.submit.unregister_region(region), Err(Busy { in_flight: 1 }));
    rig.submit.release(tag);
    assert_eq!(rig.submit.in_flight(), 2, "not reaped: ignored");
    // A change of the other file's rules changes nothing here.
    rig.submit.set_faults(second, plan([FaultRule::new(FaultOps::ALL, EIO)])).expect("plan");
    rig.commit();
    assert_eq!(held(&rig), 2);

    set(&mut rig, [FaultRule::new(FaultOps::ALL, EIO)]);
    rig.commit();
    let mut completions = wait(&mut rig, 2);
    completions.sort_by_key(|completion| completion.user);
    let answers: Vec<_> = completions.iter().map(|completion| (completion.user, completion.result)).collect();
    assert_eq!(answers, [(1, 4096), (2, 0)], "the new rules are for new requests");
    for completion in completions {
        rig.submit.release(completion.tag);
    }
    assert_eq!(rig.submit.unregister_region(region), Ok(()));
    assert_eq!(rig.submit.unregister_file(rig.file), Ok(()));
    assert_eq!(rig.submit.set_faults(rig.file, plan([])), Err(FaultError::NoSuchFile(rig.file)));
    // Whoever gets the index next starts without faults.
    let again = rig.submit.register_file(Arc::clone(&rig.target)).expect("file");
    assert_eq!(again, rig.file);
    let op = rig.read(0, 0, 4096);
    assert_eq!(run(&mut rig, &[op]), [4096]);
    rig.finish();
}

/// Over a null target answers come in the order in which the driver within got the requests.
pub fn reordered_requests_all_come_back<D: Subject>(shape: Shape) {
    let order = |seed: u64, window: u32| {
        let mut rig = Rig::<Fault<D>>::new(shape, 64);
        rig.file = rig.submit.register_file(Arc::new(Target::null(1 << 20, 512))).expect("file");
        let rule = FaultRule::new(FaultOps::READ, FaultEffect::Reorder { window });
        rig.submit.set_faults(rig.file, FaultPlan { seed, rules: vec![rule] }).expect("plan");
        for user in 0..64 {
            rig.stage(user, &rig.read(0, u64::from(user) * 4096, 4096));
        }
        rig.commit();
        let completions = wait(&mut rig, 64);
        let users: Vec<u32> = completions.iter().map(|completion| completion.user).collect();
        completions.iter().for_each(|completion| rig.submit.release(completion.tag));
        rig.finish();
        users
    };
    let in_order: Vec<u32> = (0..64).collect();
    let users = order(5, 64);
    assert_ne!(users, in_order);
    assert_eq!(users, order(5, 64), "by the seed");
    assert_ne!(users, order(6, 64));
    let mut sorted = users.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, in_order, "each once");
    // A window of 8: nobody is overtaken by those of a later window.
    for (n, window) in (0..).zip(order(5, 8).chunks(8)) {
        assert!(window.iter().all(|user| user / 8 == n), "window {n}: {window:?}");
    }
    // A window that never fills does not hold its requests for ever.
    let begun = Instant::now();
    assert_eq!(order(5, 1000).len(), 64);
    assert!(begun.elapsed() >= REORDER_HOLD);
}

/// The results of 300 requests under a mix of faults, submitted in batches of `batch`.
fn mixed<D: Subject>(shape: Shape, seed: u64, batch: usize) -> Vec<i32> {
    let mut rig = Rig::<Fault<D>>::new(shape, 64);
    let some = |ops, effect| FaultRule { probability_ppm: 200_000, ..FaultRule::new(ops, effect) };
    let delay = FaultEffect::Delay { min: Duration::ZERO, max: Duration::from_micros(300) };
    let rules = vec![
        some(FaultOps::ALL, EIO),
        some(FaultOps::READ, FaultEffect::Short),
        some(FaultOps::WRITE, FaultEffect::TornWrite),
        some(FaultOps::ALL, delay),
        some(FaultOps::ALL, FaultEffect::Reorder { window: 4 }),
    ];
    rig.submit.set_faults(rig.file, FaultPlan { seed, rules }).expect("plan");
    let ops: Vec<Op> = (0..300)
        .map(|n: u64| {
            let (memory, offset) = (n % 32 * 65536, n % 40 * 65536);
            if n.is_multiple_of(3) {
                rig.write(memory, offset, CHUNK)
            } else {
                rig.read(memory, offset, CHUNK)
            }
        })
        .collect();
    let results = ops.chunks(batch).flat_map(|ops| run(&mut rig, ops)).collect();
    let applied = counters(&rig);
    assert!(applied.iter().all(|&(matched, applied)| 0 < applied && applied < matched), "{applied:?}");
    rig.finish();
    results
}

pub fn same_seed_same_faults<D: Subject>(shape: Shape) {
    let results = mixed::<D>(shape, 1, 64);
    assert_eq!(results, mixed::<D>(shape, 1, 64));
    assert_eq!(results, mixed::<D>(shape, 1, 7), "whatever the batches");
    assert_ne!(results, mixed::<D>(shape, 2, 64));
}

/// A request that comes again because the batch was full is not decided about twice.
pub fn full_batches_draw_once<D: Subject>(shape: Shape) {
    let draw = |batch: usize| {
        let mut rig = Rig::<Fault<D>>::new(shape, 1500);
        let unit = rig.target.block_bytes().max(rig.target.memory_align_bytes());
        let half =
            FaultRule { probability_ppm: 500_000, ..FaultRule::new(FaultOps::READ, FaultEffect::Short) };
        set(&mut rig, [half]);
        let ops = vec![rig.read(0, 0, 4 * unit); 1500];
        let results: Vec<i32> = ops.chunks(batch).flat_map(|ops| run(&mut rig, ops)).collect();
        assert_eq!(counters(&rig)[0].0, 1500);
        rig.finish();
        results
    };
    assert_eq!(draw(1500), draw(100));
}

pub fn bad_plans_change_nothing<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    set(&mut rig, [FaultRule::new(FaultOps::READ, EIO)]);
    let bad = plan([FaultRule::new(FaultOps::FLUSH, FaultEffect::Short)]);
    assert!(matches!(rig.submit.set_faults(rig.file, bad), Err(FaultError::Rule { rule: 0, .. })));
    let stranger = FileIndex(u32::MAX);
    assert_eq!(rig.submit.set_faults(stranger, plan([])), Err(FaultError::NoSuchFile(stranger)));
    let op = rig.read(0, 0, 4096);
    assert_eq!(run(&mut rig, &[op]), [-libc::EIO], "the plan before is in force");
    rig.finish();

    let (mut plain, _reap) =
        D::open(&DriverConfig { depth: 1, shape, ..DriverConfig::default() }).expect("driver");
    let file = plain.register_file(Arc::new(Target::null(4096, 512))).expect("file");
    assert_eq!(plain.set_faults(file, plan([])), Err(FaultError::Unsupported));
    assert_eq!(plain.faults(file), None);
}

/// A write that was committed lands although it was stuck; one that was not is forgotten.
fn dropped_while_stuck<D: Subject>(shape: Shape, submit_first: bool) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    let (old, new) = old_and_new(&mut rig);
    set(&mut rig, [FaultRule::new(FaultOps::WRITE, FaultEffect::Stuck)]);
    rig.stage(1, &rig.write(0, 0, 4096));
    rig.commit();
    rig.stage(2, &rig.write(4096, 4096, 4096));
    let Rig { submit, reaper, directory, target, .. } = rig;
    if submit_first {
        drop(submit);
        drop(reaper);
    } else {
        drop(reaper);
        drop(submit);
    }
    let disk = std::fs::read(target.path().expect("a real target")).expect("file");
    assert!(disk[..4096] == new[..4096], "landed before the last drop returned");
    assert!(disk[4096..8192] == old[4096..8192], "never committed, never written");
    drop(directory);
}

pub fn drop_drains_what_is_stuck<D: Subject>(shape: Shape) {
    dropped_while_stuck::<D>(shape, true);
    dropped_while_stuck::<D>(shape, false);
}

/// Requests over several pieces of memory meet the same: here as one request over one piece does.
pub fn vectored_requests_meet_the_same<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 8);
    let unit = rig.target.block_bytes().max(rig.target.memory_align_bytes());
    let other = Memory::new(64 << 10);
    let second = rig.submit.register_region(other.region.clone(), Pin::Yes).expect("region");
    let (old, new) = old_and_new(&mut rig);
    other.fill(0, &new);
    let pieces: Vec<Segment> = (0..CHUNK / unit)
        .map(|n| Segment {
            region: if n.is_multiple_of(2) { rig.region } else { second },
            offset: u64::from(n * unit),
            length: unit,
        })
        .collect();
    let op = rig.write(0, 0, CHUNK);
    let one = |rig: &mut Rig<Fault<D>>| {
        rig.stage_vectored(1, &op, &pieces);
        rig.commit();
        let completion = wait(rig, 1)[0];
        rig.submit.release(completion.tag);
        completion.result
    };
    let restore = |rig: &Rig<Fault<D>>| {
        let file = std::fs::OpenOptions::new().write(true).open(rig.path()).expect("file");
        file.write_all_at(&old, 0).expect("write");
    };
    // What is on disk afterwards tells which bytes were passed on, and with which memory.
    for effect in [FaultEffect::Short, FaultEffect::TornWrite] {
        let mut outcomes = |vectored: bool| {
            set(&mut rig, [FaultRule::new(FaultOps::WRITE, effect.clone())]);
            let mut outcomes = Vec::new();
            for _ in 0..5 {
                let result = if vectored { one(&mut rig) } else { run(&mut rig, &[op])[0] };
                outcomes.push((result, on_disk(&rig, 0, CHUNK)));
                restore(&rig);
            }
            outcomes
        };
        let plain = outcomes(false);
        assert!(outcomes(true) == plain, "{effect:?}");
        assert!(plain.iter().any(|(_, disk)| *disk != old), "{effect:?} passed nothing on");
    }
    set(&mut rig, [FaultRule::new(FaultOps::WRITE, EIO)]);
    assert_eq!(one(&mut rig), -libc::EIO);
    assert!(on_disk(&rig, 0, CHUNK) == old);

    set(&mut rig, [FaultRule::new(FaultOps::WRITE, FaultEffect::Stuck)]);
    rig.stage_vectored(1, &op, &pieces);
    rig.commit();
    assert_eq!(rig.submit.unregister_region(second), Err(Busy { in_flight: CHUNK / unit / 2 }));
    set(&mut rig, []);
    rig.commit();
    let completion = wait(&mut rig, 1)[0];
    assert_eq!(completion.result, CHUNK.cast_signed());
    assert!(on_disk(&rig, 0, CHUNK) == new);
    rig.submit.release(completion.tag);
    assert_eq!(rig.submit.unregister_region(second), Ok(()));
    rig.finish();
}

/// A request that the driver refuses is refused, whatever would have become of it.
pub fn senseless_requests_are_refused_first<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 8);
    let good = rig.write(0, 0, 8192);
    let ops = [
        Op { length: LENGTH_MAX + 1, ..good },
        Op { length: u32::MAX, ..good },
        Op { offset: u64::MAX, ..good },
        Op { region_offset: u64::MAX, ..good },
        Op { region: RegionIndex(u32::MAX), ..good },
    ];
    let wanted = [-libc::EINVAL, -libc::EINVAL, -libc::EINVAL, -libc::EFAULT, -libc::ENXIO];
    let delay = FaultEffect::Delay { min: Duration::ZERO, max: Duration::ZERO };
    for effect in [FaultEffect::Short, delay, FaultEffect::Reorder { window: 5 }] {
        set(&mut rig, [FaultRule::new(FaultOps::WRITE, effect)]);
        assert_eq!(run(&mut rig, &ops), wanted);
        let piece = Segment { region: rig.region, offset: 0, length: 4096 };
        for pieces in [&[piece][..], &[piece; 3], &[]] {
            rig.stage_vectored(1, &good, pieces);
            rig.commit();
            let completion = wait(&mut rig, 1)[0];
            assert_eq!(completion.result, -libc::EINVAL);
            rig.submit.release(completion.tag);
        }
    }
    rig.finish();
}

/// Discards and write-zeroes are torn like writes.
pub fn torn_zeroes_leave_blocks_as_they_were<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 4);
    if !rig.target.capabilities().write_zeroes.is_supported() {
        return eprintln!("SKIPPED: no write-zeroes on {}", rig.target.name());
    }
    let unit = rig.target.block_bytes().max(rig.target.memory_align_bytes()) as usize;
    let (old, _) = old_and_new(&mut rig);
    set(&mut rig, [FaultRule::new(FaultOps::WRITE_ZEROES, FaultEffect::TornWrite)]);
    let op = Op { kind: OpKind::WriteZeroes, ..rig.write(0, 0, CHUNK) };
    assert_eq!(run(&mut rig, &[op]), [-libc::EIO]);
    let disk = on_disk(&rig, 0, CHUNK);
    let zeroed = disk.chunks(unit).filter(|block| block.iter().all(|byte| *byte == 0)).count();
    let kept = disk.chunks(unit).zip(old.chunks(unit)).filter(|(block, old)| block == old).count();
    assert_eq!(zeroed + kept, CHUNK as usize / unit, "each block is zero or as it was");
    assert!(zeroed > 0 && kept > 0, "{zeroed} zeroed, {kept} kept");
    rig.finish();
}

/// The reaping half sees nothing of it.
pub fn stale_answers_stay_uncounted<D: Subject>(shape: Shape) {
    let mut rig = Rig::<Fault<D>>::new(shape, 2);
    let always = FaultEffect::Delay { min: Duration::ZERO, max: Duration::ZERO };
    set(&mut rig, [FaultRule::new(FaultOps::READ, always)]);
    for _ in 0..50 {
        let op = rig.read(0, 0, 4096);
        assert_eq!(run(&mut rig, &[op, op]), [4096, 4096]);
    }
    assert_eq!(counters(&rig), [(100, 100)]);
    assert_eq!(rig.reaper.into_half().stale(), 0);
}
