//! Everything is bounded, and "full" gives the thing back.

use std::collections::HashSet;

use ferrio_driver::{Busy, DriverConfig, DriverError, Pin, ReapHalf, Shape, SubmitHalf, Target};

use crate::rig::{Memory, Reaper, Rig, Subject, nop};

pub fn depth_bounds_what_is_in_flight<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 3);
    let first = rig.stage(1, &nop());
    rig.stage(2, &nop());
    let reserved = rig.submit.reserve().expect("the third slot");
    assert!(rig.submit.reserve().is_none(), "depth 3");
    assert_eq!(rig.submit.in_flight(), 3);
    rig.submit.cancel_reserved(reserved);
    assert_eq!(rig.submit.in_flight(), 2);
    rig.stage(3, &nop());
    rig.commit();
    let completions = rig.wait(3);
    assert!(rig.submit.reserve().is_none(), "reaped is not released");
    rig.submit.release(first);
    let again = rig.submit.reserve().expect("released");
    assert_eq!(again.tag().index(), first.index(), "the slot just freed");
    assert_ne!(again.tag(), first, "of another generation");
    rig.submit.cancel_reserved(again);
    for completion in &completions {
        rig.submit.release(completion.tag);
    }
    rig.finish();

    for depth in [0, ferrio_driver::driver::DEPTH_MAX + 1] {
        let Err(error) = D::open(&DriverConfig { depth, shape, ..DriverConfig::default() }) else {
            panic!("depth {depth} was taken")
        };
        assert!(matches!(error, DriverError::Depth { .. }), "{error}");
    }
}

pub fn only_reaped_requests_are_released<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    let tag = rig.stage(1, &rig.read(0, 0, 4096));
    rig.submit.release(tag);
    assert_eq!(rig.submit.in_flight(), 1, "it was not reaped: ignored");
    rig.commit();
    assert_eq!(rig.wait(1)[0].tag, tag);
    rig.submit.release(tag);
    assert_eq!(rig.submit.in_flight(), 0);
    let next = rig.stage(2, &nop());
    rig.submit.release(tag);
    assert_eq!(rig.submit.in_flight(), 1, "a second release does not hit the next request");
    rig.commit();
    rig.wait(1);
    rig.submit.release(next);
    rig.finish();
}

pub fn busy_files_and_regions_stay<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    // A null target answers without ever pinning anything, so nothing is busy there.
    if rig.target.as_fd().is_none() {
        assert_eq!(rig.run_one(&rig.read(0, 0, 4096)), 4096);
    } else {
        let tags = [rig.stage(1, &rig.read(0, 0, 4096)), rig.stage(2, &rig.read(4096, 0, 4096))];
        assert_eq!(rig.submit.unregister_file(rig.file), Err(Busy { in_flight: 2 }));
        assert_eq!(rig.submit.unregister_region(rig.region), Err(Busy { in_flight: 2 }));
        rig.commit();
        rig.wait(2);
        rig.submit.release(tags[0]);
        assert_eq!(rig.submit.unregister_region(rig.region), Err(Busy { in_flight: 1 }));
        rig.submit.release(tags[1]);
    }
    assert_eq!(rig.submit.unregister_region(rig.region), Ok(()));
    assert_eq!(rig.run_one(&rig.read(0, 0, 4096)), -libc::ENXIO);
    assert_eq!(rig.submit.unregister_file(rig.file), Ok(()));
    assert_eq!(rig.run_one(&rig.read(0, 0, 4096)), -libc::EBADF);
    assert_eq!(rig.submit.unregister_file(rig.file), Ok(()), "already gone");
    rig.finish();
}

pub fn tables_are_bounded<D: Subject>(shape: Shape) {
    let config = DriverConfig { depth: 1, shape, files_max: 2, regions_max: 2, ..DriverConfig::default() };
    let mut rig = Rig::<D>::with(&config);
    let file = rig.submit.register_file(Target::null(4096, 512).into()).expect("the second file");
    let full = rig.submit.register_file(Target::null(4096, 512).into()).expect_err("full");
    assert!(matches!(full, DriverError::FilesFull { max: 2 }), "{full}");
    rig.submit.unregister_file(file).expect("idle");
    assert_eq!(rig.submit.register_file(Target::null(4096, 512).into()).expect("room again"), file);

    let memory = Memory::new(8192);
    let region = rig.submit.register_region(memory.region.clone(), Pin::Yes).expect("the second region");
    let full = rig.submit.register_region(memory.region.clone(), Pin::Yes).expect_err("full");
    assert!(matches!(full, DriverError::RegionsFull { max: 2 }), "{full}");
    rig.submit.unregister_region(region).expect("idle");
    assert_eq!(rig.submit.register_region(memory.region.clone(), Pin::Yes).expect("room again"), region);
    rig.finish();
}

pub fn reaping_keeps_to_the_room_given<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 16);
    if let Reaper::Here(reap, _) = &mut rig.reaper {
        for user in 0..10 {
            let slot = rig.submit.reserve().expect("a slot");
            rig.submit.submit(slot, user, &nop()).expect("inline");
        }
        rig.submit.commit().expect("commit");
        let mut out = Vec::with_capacity(4);
        let room = out.capacity();
        assert_eq!(reap.reap(&mut out), room);
        assert_eq!(reap.reap(&mut out), 0, "no room");
        let mut users: Vec<u32> = Vec::new();
        while users.len() < 10 {
            users.extend(out.iter().map(|completion| completion.user));
            out.drain(..).for_each(|completion| rig.submit.release(completion.tag));
            reap.reap(&mut out);
        }
        assert_eq!(users, (0..10).collect::<Vec<_>>());
        assert_eq!(out.capacity(), room, "never grown");
    }
    rig.finish();
}

pub fn full_batch_gives_the_slot_back<D: Subject>(shape: Shape) {
    // Deeper than any batch.
    let mut rig = Rig::<D>::new(shape, 1500);
    let op = rig.read(0, 0, 4096);
    let mut staged = 0;
    let slot = loop {
        let slot = rig.submit.reserve().expect("deep enough");
        match rig.submit.submit(slot, staged, &op) {
            Ok(_) => staged += 1,
            Err(slot) => break slot,
        }
    };
    assert_eq!(rig.submit.staged(), staged);
    assert!(rig.submit.submit(slot, 0, &op).is_err_and(|slot| {
        rig.submit.cancel_reserved(slot);
        true
    }));
    rig.commit();
    rig.stage(staged, &op);
    rig.commit();
    let mut users = HashSet::new();
    for completion in rig.wait(staged as usize + 1) {
        assert_eq!(completion.result, 4096);
        assert!(users.insert(completion.user), "twice: {completion:?}");
        rig.submit.release(completion.tag);
    }
    rig.finish();
}

pub fn many_requests_through_a_shallow_driver<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let ops: Vec<_> = (0..8).map(|n| rig.read(n * 4096, n * 65536, 4096)).collect();
    for _ in 0..200 {
        assert_eq!(rig.run(&ops), [4096; 8]);
    }
    rig.finish();
}

/// The answers also come when the thread that submitted has ended.
pub fn halves_move_with_requests_in_flight<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    for round in 0..10 {
        let submitter = std::thread::spawn(move || {
            for n in 0..8 {
                let op = rig.read(u64::from(n) * 4096, u64::from(round * 8 + n) * 4096, 4096);
                rig.stage(n, &op);
            }
            rig.commit();
            rig
        });
        rig = submitter.join().expect("no panic");
        for completion in rig.wait(8) {
            assert_eq!(completion.result, 4096);
            rig.submit.release(completion.tag);
        }
    }
    rig.finish();
}

/// Both halves can be made here and used elsewhere.
#[test]
fn halves_move_to_another_thread() {
    fn moves<D: Subject>() {
        let (mut submit, mut reap) = D::open(&DriverConfig::default()).expect("driver");
        let mover = std::thread::spawn(move || {
            let slot = submit.reserve().expect("a slot");
            submit.submit(slot, 5, &nop()).expect("inline");
            submit.commit().expect("commit");
            let mut out = Vec::with_capacity(1);
            assert_eq!(reap.reap(&mut out), 1);
            submit.release(out[0].tag);
        });
        mover.join().expect("no panic");
    }
    moves::<ferrio_driver::uring::Uring>();
    moves::<ferrio_driver::aio::Aio>();
    moves::<ferrio_driver::null::Null>();
}
