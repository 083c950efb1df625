//! Closures that other threads hand to a running engine.

mod common;

use std::{sync::mpsc, thread};

use common::{BLOCK, Rig, VOLUME_BYTES, request};
use ferrio_driver::{
    FaultEffect, FaultOps, FaultPlan, FaultRule, Outline, Target, TargetKind, fault::ALWAYS_PPM, null::Null,
    select::BackendChoice,
};
use ferrio_engine::{
    Engine, EngineConfig, EngineError, LatencyGoal, Limit, MergeLimits, Rate, Scope, Split, Threads,
    VolumeId, inject::Command,
};
use ferrio_shm::abi::{Opcode, errno};

fn engine(threads: Threads) -> (Engine, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        name: "test".into(),
        backend: BackendChoice::Null,
        depth: 8,
        requests_max: 32,
        queues_max: 4,
        sessions_max: 4,
        regions_per_session: 1,
        faults: true,
        threads,
        spin_us: 0,
        budgets: [4, 2, 2],
        merge: MergeLimits::OFF,
        helpers: 1,
        journal: directory.path().join("journal"),
        epoch: 1,
    };
    (Engine::start(&config).unwrap(), directory)
}

fn reads_fail() -> FaultRule {
    FaultRule {
        ops: FaultOps::READ,
        range: 0..VOLUME_BYTES,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: None,
        effect: FaultEffect::Error { errno: errno::EIO },
    }
}

#[test]
fn they_run_on_the_submitter_and_in_order() {
    for threads in [Threads::One, Threads::Two] {
        let (engine, _directory) = engine(threads);
        let volume = engine.add_volume(Target::null(VOLUME_BYTES, 512).into()).unwrap();
        let place = engine.run(|_| thread::current().name().map(str::to_owned)).unwrap();
        assert_eq!(place.as_deref(), Some("sub-test"));
        assert_eq!(engine.run(|thread| thread.driver_info().backend).unwrap(), "null");

        // Asleep or not, from many threads at once; those of each in their order.
        let (told, heard) = mpsc::channel();
        thread::scope(|scope| {
            for who in 0..4 {
                let (engine, told) = (engine.clone(), told.clone());
                scope.spawn(move || {
                    for n in 0..200 {
                        let told = told.clone();
                        let back = engine.run(move |_| told.send((who, n)).map(|()| n)).unwrap();
                        assert_eq!(back, Ok(n));
                    }
                });
            }
        });
        drop(told);
        let all: Vec<(i32, i32)> = heard.iter().collect();
        assert_eq!(all.len(), 800);
        for who in 0..4 {
            let of_one = all.iter().filter(|(teller, _)| *teller == who).map(|(_, n)| *n);
            assert!(of_one.eq(0..200), "the order of thread {who}");
        }

        // What one closure does, no other sees half done.
        let plan = FaultPlan { seed: 1, rules: vec![reads_fail()] };
        let (before, after) = engine
            .run(move |thread| {
                let before = thread.faults(volume).unwrap().is_some();
                thread.set_faults(volume, plan).unwrap();
                (before, thread.faults(volume).unwrap().is_some())
            })
            .unwrap();
        assert_eq!((before, after), (false, true));
        assert!(engine.faults(volume).unwrap().is_some(), "and the engine has it");
        assert!(engine.run(|thread| thread.requests_of(VolumeId(77))).unwrap().is_err(), "no such volume");

        engine.stop();
        assert!(matches!(engine.run(|_| ()), Err(EngineError::Stopped(name)) if name == "test"));
    }
}

/// Between two batches, what is accepted and what is in flight are of one moment.
#[test]
fn they_see_all_of_a_batch_or_nothing() {
    let mut rig = Rig::<Null>::new(4, 32);
    rig.merge = false;
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 16);
    let look = |rig: &mut Rig<Null>| {
        let (sender, receiver) = mpsc::channel();
        rig.send(Command::Run(Box::new(move |thread| {
            sender.send((thread.requests_of(volume).unwrap(), thread.in_flight())).unwrap();
        })));
        receiver.try_recv().expect("it was run in that turn")
    };
    client.submit(&(0..10).map(|n| request(Opcode::Read, n, n * BLOCK)).collect::<Vec<_>>());
    assert_eq!(look(&mut rig), (0, 0), "commands come first in a turn, and in that turn the batch");
    assert_eq!(look(&mut rig), (10, 4), "as many as the depth are with the driver");
    assert_eq!(rig.results(&mut client, 10).len(), 10);
    assert_eq!(look(&mut rig), (0, 0));
}

fn iops(per_second: u64) -> Limit {
    let iops = Split { total: Some(Rate::new(per_second)), ..Split::default() };
    Limit { iops, ..Limit::default() }
}

#[test]
fn the_schedule_is_shown_as_it_was_set_and_a_limit_goes_with_its_volume() {
    let (engine, _directory) = engine(Threads::Auto);
    let outline = Outline {
        kind: TargetKind::File,
        size_bytes: VOLUME_BYTES,
        block_bytes: 512,
        memory_align_bytes: 512,
        direct: true,
        read_only: false,
    };
    let volume = engine.add_volume(Target::null(VOLUME_BYTES, 512).into()).unwrap();
    let fenced = engine.add_volume_fenced(outline).unwrap();
    engine.set_limit(Scope::Volume(volume), iops(10)).unwrap();
    engine.set_limit(Scope::Volume(fenced), iops(20)).unwrap();
    engine.set_budgets([7, 8, 9]).unwrap();
    engine.set_latency_goal(LatencyGoal::Within(2_000_000)).unwrap();
    let shown = engine.schedule().unwrap();
    assert_eq!(shown.classes.map(|class| class.budget), [7, 8, 9]);
    assert_eq!(shown.latency.goal, LatencyGoal::Within(2_000_000));
    assert_eq!(shown.merge, MergeLimits::OFF);
    let merge = MergeLimits { bytes_max: 65536, segments_max: 9 };
    engine.set_merge(merge).unwrap();
    assert_eq!(engine.schedule().unwrap().merge, merge);
    let mut limits: Vec<_> = shown.limits.iter().map(|limit| (limit.scope.clone(), limit.limit)).collect();
    limits.sort_by_key(|(_, limit)| limit.iops.total.unwrap().per_second);
    assert_eq!(limits, [(Scope::Volume(volume), iops(10)), (Scope::Volume(fenced), iops(20))]);

    // An id is used again.
    for volume in [volume, fenced] {
        let (done, removed) = common::done();
        engine.remove_volume(volume, done);
        removed.recv().unwrap();
        let gone = engine.set_limit(Scope::Volume(volume), iops(30)).unwrap_err();
        assert!(matches!(gone, EngineError::NoVolume { .. }), "{gone}");
    }
    assert_eq!(engine.add_volume_fenced(outline).unwrap(), fenced);
    assert!(engine.schedule().unwrap().limits.is_empty());

    let refused = engine.set_budgets([7, 0, 9]).unwrap_err();
    assert!(refused.to_string().contains("budget 0 is not within 1 and 4096"), "{refused}");
    engine.stop();
    assert!(matches!(engine.schedule(), Err(EngineError::Stopped(_))));
}
