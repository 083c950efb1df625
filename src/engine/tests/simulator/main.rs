//! The scheduler beside a device that is made up, under thousands of seeds. A failure prints its seed; to run that one alone:
//! `FERRIO_SIM_SEED=n cargo test -p ferrio-engine --test simulator`. `FERRIO_SIM_SEEDS=n` runs as many.

mod device;
#[path = "../common/seeds.rs"]
mod seeds;
mod world;

use device::DeviceModel;
use ferrio_engine::{
    LatencyGoal, Limit, Rate, Scope, Split, VolumeId,
    merge::MergeLimits,
    queue::Class,
    scheduler::{DEFAULT_BUDGETS, RUN_MAX},
};
use world::{Faults, Load, MILLISECOND, SECOND, World};

/// About 20000 requests a second of 4 KiB, 16 at a time.
const DISK: DeviceModel =
    DeviceModel { parallelism: 16, base: 750_000, per_block: 50_000, jitter: 0.3, hiccup: 0 };

/// Any mixture of clients, settings and faults: every request is answered once, and no rule is broken on the way.
#[test]
fn whatever_happens_the_rules_hold() {
    seeds::each(anything);
}

fn anything(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let model = DeviceModel {
        parallelism: rng.usize(1..=32),
        base: rng.u64(1_000..500_000),
        per_block: rng.u64(0..20_000),
        jitter: rng.f64(),
        hiccup: rng.u32(0..100),
    };
    let sessions = rng.usize(1..=8);
    let weights: Vec<u32> = (0..sessions).map(|_| rng.u32(1..=1000)).collect();
    let budgets = [rng.u32(1..=40), rng.u32(1..=40), rng.u32(1..=40)];
    let depth = rng.usize(1..=64);
    let mut world = World::new(seed, model, depth, budgets, &weights);
    if rng.bool() {
        let thousandths = |rng: &mut fastrand::Rng| rng.u32(0..100);
        let (error, short) = (thousandths(&mut rng), thousandths(&mut rng));
        world.faults = Faults { error, short, full: thousandths(&mut rng), share: thousandths(&mut rng) };
    }
    if rng.bool() {
        world.merge = MergeLimits { bytes_max: rng.u32(1..1 << 19), segments_max: rng.u32(1..=32) };
    }
    world.scheduler.set_latency_goal(match rng.u32(..3) {
        0 => LatencyGoal::Off,
        1 => LatencyGoal::Within(rng.u64(1_000..10_000_000)),
        _ => LatencyGoal::Relative(rng.u32(100..400)),
    });
    for _ in 0..rng.usize(1..=6) {
        let class = Class::ALL[rng.usize(..3)];
        let bytes = 512 * rng.u32(1..=2048);
        world.add(Load {
            volume: rng.u16(..2),
            writes: if class == Class::Prio { rng.bool() } else { class == Class::Write },
            bytes: (512, bytes),
            sequential: rng.bool(),
            barriers: if rng.bool() { rng.u32(..20) } else { 0 },
            links: if rng.bool() { rng.u32(..50) } else { 0 },
            ..Load::new(rng.u32(..sessions as u32), class, rng.usize(1..=32))
        });
    }
    for _ in 0..8 {
        world.run(world.now + model.base * rng.u64(1..=8));
        change_anything(&mut world, &mut rng, sessions as u64);
        (0..rng.u32(..3)).for_each(|_| world.cancel_any());
    }
    world.drain();
}

fn change_anything(world: &mut World, rng: &mut fastrand::Rng, sessions: u64) {
    let session = rng.u64(1..=sessions);
    match rng.u32(..6) {
        0 => assert!(world.scheduler.set_weight(session, rng.u32(1..=1000))),
        1 => assert!(world.scheduler.set_group(session, rng.bool().then_some("group"))),
        2 | 3 => {
            let mut rate = |least: u64| {
                rng.bool().then(|| Rate {
                    per_second: rng.u64(least..least * 10_000),
                    burst: rng.bool().then_some(1),
                })
            };
            let iops = Split { read: rate(10), write: rate(10), total: rate(10) };
            let bytes = Split { read: rate(1 << 20), write: rate(1 << 20), total: rate(1 << 20) };
            let scope = match rng.u32(..3) {
                0 => Scope::Volume(VolumeId(rng.u32(..2))),
                1 => Scope::Session(session),
                _ => Scope::Group("group".into()),
            };
            let limit = if rng.u32(..4) == 0 { Limit::default() } else { Limit { iops, bytes } };
            assert!(world.scheduler.set_limit(scope, &limit, world.now));
        }
        _ => {}
    }
}

// ---- shares

fn shares(seed: u64, weights: &[u32], bytes: &[u32], time: u64) -> Vec<u64> {
    let mut world = World::new(seed, DISK, 32, DEFAULT_BUDGETS, weights);
    for (queue, bytes) in (0..weights.len() as u32).zip(bytes.iter().cycle()) {
        world.add(Load { bytes: (*bytes, *bytes), ..Load::new(queue, Class::Read, 8) });
    }
    world.run(time);
    (0..weights.len()).map(|client| world.throughput(client, time / 10, time).1).collect()
}

#[test]
fn greedy_sessions_with_weights_1_and_3() {
    for seed in 0..2 {
        for size in [4096, 16384, 1 << 20] {
            let mut world = World::new(seed, DISK, 16, DEFAULT_BUDGETS, &[1, 3]);
            for queue in 0..2 {
                world.add(Load { bytes: (size, size), ..Load::new(queue, Class::Write, 64) });
            }
            let time = 2 * SECOND;
            world.run(time);
            let [one, three] = [0, 1].map(|client| world.throughput(client, SECOND / 2, time).0 as f64);
            let ratio = three / one;
            assert!((2.7..=3.3).contains(&ratio), "seed {seed}, {size} bytes: {one} and {three}");
        }
    }
}

#[test]
fn big_requests_do_not_win() {
    let bytes = shares(1, &[100, 100], &[16384, 1 << 20], 8 * SECOND);
    let ratio = bytes[0] as f64 / bytes[1] as f64;
    // Eight of 16 KiB are not enough to fill half of the device.
    let mut world = World::new(1, DISK, 16, DEFAULT_BUDGETS, &[100, 100]);
    world.add(Load { bytes: (16384, 16384), ..Load::new(0, Class::Read, 512) });
    world.add(Load { bytes: (1 << 20, 1 << 20), ..Load::new(1, Class::Read, 64) });
    world.run(8 * SECOND);
    let [small, large] = [0, 1].map(|client| world.throughput(client, SECOND, 8 * SECOND).1 as f64);
    assert!((0.9..=1.1).contains(&(small / large)), "{small} and {large}; a shallow queue had {ratio}");
}

#[test]
fn a_hundred_sessions_of_mixed_weights() {
    let weights: Vec<u32> = (0..100).map(|n| [1, 10, 50, 100, 300][n % 5] + n as u32).collect();
    let bytes = shares(7, &weights, &[4096], 12 * SECOND);
    let total: f64 = bytes.iter().sum::<u64>() as f64;
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    for (weight, bytes) in weights.iter().zip(&bytes) {
        let due = total * f64::from(*weight) / sum;
        let off = (*bytes as f64 - due).abs() / due;
        let turn = f64::from(RUN_MAX + 1) * 4096.0;
        assert!(off < 0.1 || (*bytes as f64 - due).abs() < turn, "weight {weight}: {bytes} of {due}");
    }
}

// ---- limits

fn limited(rate: Rate, in_bytes: bool) -> Limit {
    let split = Split { total: Some(rate), ..Split::default() };
    if in_bytes {
        Limit { bytes: split, ..Limit::default() }
    } else {
        Limit { iops: split, ..Limit::default() }
    }
}

#[test]
fn limits_hold_within_a_twentieth_over_two_seconds() {
    for seed in 0..2 {
        for (rate, in_bytes, size) in [
            (Rate::new(100), false, 4096),
            (Rate::new(5000), false, 4096),
            (Rate { per_second: 3000, burst: Some(1) }, false, 65536),
            (Rate::new(8 << 20), true, 4096),
            (Rate::new(64 << 20), true, 1 << 20),
            (Rate { per_second: 64 << 20, burst: Some(4096) }, true, 1 << 20),
        ] {
            for scope in [Scope::Volume(VolumeId(0)), Scope::Session(1), Scope::Group("group".into())] {
                let mut world = World::new(seed, DISK, 32, DEFAULT_BUDGETS, &[100, 100]);
                world.scheduler.set_group(1, Some("group"));
                let limit = limited(rate, in_bytes);
                world.scheduler.set_limit(scope.clone(), &limit, 1);
                let client = world.add(Load { bytes: (size, size), ..Load::new(0, Class::Read, 32) });
                let free = world.add(Load { volume: 1, ..Load::new(1, Class::Read, 1) });
                world.run(3 * SECOND);
                let (requests, bytes) = world.throughput(client, SECOND, 3 * SECOND);
                let (passed, unit) = if in_bytes { (bytes, size.into()) } else { (requests, 1) };
                let due = 2 * rate.per_second;
                let off = passed.abs_diff(due);
                assert!(
                    off <= due / 20 + unit,
                    "seed {seed}, {scope:?}, {rate:?} at {size} bytes: {passed} of {due}"
                );
                assert!(world.throughput(free, SECOND, 3 * SECOND).0 > 1000, "nobody else is limited");
            }
        }
    }
}

/// Any rate, size and burst: off by less than a twentieth and a request over two seconds, however late who waits is woken.
#[test]
fn any_limit_holds_within_a_twentieth() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let in_bytes = rng.bool();
        let size = 512 << rng.u32(..12);
        let unit = if in_bytes { size.into() } else { 1 };
        // Two to two thousand requests a second, evenly by magnitude.
        let per_second = (unit as f64 * 2.0 * 1000f64.powf(rng.f64())) as u64;
        let burst = rng.bool().then(|| 1 + rng.u64(..unit * 4));
        let rate = Rate { per_second, burst };
        let disk = DeviceModel { per_block: 100, ..DISK };
        let mut world = World::new(seed, disk, 32, DEFAULT_BUDGETS, &[100, 100]);
        world.late = rng.u64(..2 * MILLISECOND);
        world.scheduler.set_limit(Scope::Volume(VolumeId(0)), &limited(rate, in_bytes), 1);
        for queue in 0..2 {
            world.add(Load { bytes: (size, size), ..Load::new(queue, Class::ALL[rng.usize(..3)], 8) });
        }
        world.run(3 * SECOND);
        let done = (0..2).map(|client| world.throughput(client, SECOND, 3 * SECOND));
        let passed: u64 = done.map(|(requests, bytes)| if in_bytes { bytes } else { requests }).sum();
        let due = 2 * per_second;
        assert!(
            passed.abs_diff(due) <= due / 20 + unit,
            "seed {seed}, {rate:?} at {size} bytes, {} ns late: {passed} of {due}",
            world.late
        );
    }
}

#[test]
fn a_thousand_limits_set_ten_times_each() {
    let sessions = 1000;
    let rate = |session: u64, time: u64| 10 + (session * 7919 + time * 104_729) % 50;
    let disk = DeviceModel { parallelism: 64, base: 100_000, ..DISK };
    let mut world = World::new(1, disk, 128, DEFAULT_BUDGETS, &[100; 1000]);
    for queue in 0..sessions {
        world.add(Load::new(queue, Class::ALL[queue as usize % 3], 1));
    }
    for time in 0..10 {
        for session in 1..=u64::from(sessions) {
            let limit = limited(Rate::new(rate(session, time)), false);
            assert!(world.scheduler.set_limit(Scope::Session(session), &limit, world.now));
        }
        world.run((time + 1) * SECOND / 5);
    }
    for session in 1..=u64::from(sessions) {
        let (passed, _) = world.throughput(session as usize - 1, 0, 2 * SECOND);
        let due = (0..10).map(|time| rate(session, time)).sum::<u64>() / 5;
        assert!(passed.abs_diff(due) <= due / 20 + 1, "session {session}: {passed} of {due}");
    }
}

#[test]
fn what_shares_a_limit_shares_it_by_weight() {
    let mut world = World::new(3, DISK, 32, DEFAULT_BUDGETS, &[100, 300]);
    (1..3).for_each(|session| assert!(world.scheduler.set_group(session, Some("group"))));
    world.scheduler.set_limit(Scope::Group("group".into()), &limited(Rate::new(2000), false), 1);
    for queue in 0..2 {
        world.add(Load::new(queue, Class::Read, 32));
    }
    world.run(4 * SECOND);
    let [one, three] = [0, 1].map(|client| world.throughput(client, SECOND, 4 * SECOND).0 as f64);
    assert!((2.7..=3.3).contains(&(three / one)), "{one} and {three}");
}

#[test]
fn prio_leaves_bulk_its_part_of_a_limit() {
    for rate in [50, 700, 10_000] {
        let mut world = World::new(3, DISK, 32, DEFAULT_BUDGETS, &[100, 100]);
        world.scheduler.set_limit(Scope::Volume(VolumeId(0)), &limited(Rate::new(rate), false), 1);
        let prio = world.add(Load::new(0, Class::Prio, 32));
        let bulk = world.add(Load::new(1, Class::Write, 32));
        world.run(5 * SECOND);
        let [prio, bulk] = [prio, bulk].map(|client| world.throughput(client, SECOND, 5 * SECOND).0);
        let [of_prio, _, of_bulk] = DEFAULT_BUDGETS.map(u64::from);
        let due = (prio + bulk) * of_bulk / (of_prio + of_bulk);
        assert!(bulk.abs_diff(due) * 5 <= due, "at {rate}: {bulk} of {}, {due} are due", prio + bulk);
    }
}

#[test]
fn classes_that_share_a_limit_share_it_by_budget() {
    for (rate, size) in [(50, 4096), (700, 65536), (1000, 4096), (10_000, 4096)] {
        let mut world = World::new(3, DISK, 32, DEFAULT_BUDGETS, &[100]);
        world.scheduler.set_limit(Scope::Volume(VolumeId(0)), &limited(Rate::new(rate), false), 1);
        let classes =
            Class::ALL.map(|class| world.add(Load { bytes: (size, size), ..Load::new(0, class, 32) }));
        world.run(9 * SECOND);
        let passed = classes.map(|client| world.throughput(client, SECOND, 9 * SECOND).0);
        for (class, budget) in DEFAULT_BUDGETS.map(u64::from).into_iter().enumerate() {
            let due = passed.iter().sum::<u64>() * budget / 64;
            assert!(passed[class].abs_diff(due) * 5 <= due, "at {rate} of {size} bytes: {passed:?}");
        }
    }
}

#[test]
fn a_limited_volume_does_not_hold_up_another_of_the_same_queue() {
    let mut world = World::new(3, DISK, 32, DEFAULT_BUDGETS, &[100]);
    world.scheduler.set_limit(Scope::Volume(VolumeId(0)), &limited(Rate::new(10), false), 1);
    let slow = world.add(Load::new(0, Class::Read, 16));
    let fast = world.add(Load { volume: 1, ..Load::new(0, Class::Read, 16) });
    world.run(2 * SECOND);
    let [slow, fast] = [slow, fast].map(|client| world.throughput(client, 0, 2 * SECOND).0);
    assert!(slow <= 22 && fast > 20_000, "{slow} and {fast}");
}

// ---- latency

struct Found {
    p99_alone: u64,
    p99_beside: u64,
    bulk_alone: u64,
    bulk_beside: u64,
    bulk_after: u64,
}

/// A prio reader of depth 1 beside a bulk writer of depth 128, each of them alone, and bulk after prio.
fn beside(seed: u64, model: DeviceModel, goal: LatencyGoal) -> Found {
    let prio = || Load::new(0, Class::Prio, 1);
    let bulk = || Load::new(1, Class::Write, 128);
    let new = || World::new(seed, model, 128, DEFAULT_BUDGETS, &[100, 100]);
    let mut alone = new();
    alone.add(prio());
    alone.run(SECOND);
    let mut bulk_alone = new();
    bulk_alone.add(bulk());
    bulk_alone.run(SECOND);
    let mut both = new();
    both.scheduler.set_latency_goal(goal);
    both.add(Load { from: SECOND / 2, until: 4 * SECOND, ..prio() });
    both.add(bulk());
    let after = 4 * SECOND + 100 * MILLISECOND;
    both.run(after + SECOND / 2);
    Found {
        p99_alone: alone.p99(0, 0, SECOND),
        p99_beside: both.p99(0, SECOND / 2, 4 * SECOND),
        bulk_alone: bulk_alone.throughput(0, SECOND / 2, SECOND).0 * 2,
        bulk_beside: both.throughput(1, SECOND / 2, 4 * SECOND).0 * 2 / 7,
        bulk_after: both.throughput(1, after, after + SECOND / 2).0 * 2,
    }
}

fn disks() -> Vec<DeviceModel> {
    let disk = |parallelism, base, jitter, hiccup| DeviceModel {
        parallelism,
        base,
        per_block: base / 16,
        jitter,
        hiccup,
    };
    vec![
        disk(4, 80_000, 0.2, 0),
        disk(8, 80_000, 0.5, 1000),
        disk(16, 250_000, 0.3, 200),
        disk(32, 160_000, 0.4, 500),
        disk(64, 400_000, 0.2, 0),
        // One in forty takes four times as long, with bulk or without.
        disk(16, 100_000, 0.3, 40),
    ]
}

#[test]
fn prio_meets_its_target_and_bulk_goes_on() {
    for model in disks() {
        for seed in 0..1 {
            let Found { p99_alone, p99_beside, bulk_alone, bulk_beside, bulk_after } =
                beside(seed, model, LatencyGoal::Relative(200));
            println!(
                "{model:?}: p99 {} -> {} us, bulk {bulk_alone} -> {bulk_beside}, after {bulk_after}",
                p99_alone / 1000,
                p99_beside / 1000
            );
            assert!(p99_beside <= 2 * p99_alone, "p99 {p99_alone} alone, {p99_beside} beside: {model:?}");
            assert!(
                2 * bulk_beside >= bulk_alone,
                "bulk {bulk_alone} alone, {bulk_beside} beside: {model:?}"
            );
            assert!(
                bulk_after * 100 >= bulk_alone * 95,
                "bulk {bulk_alone} alone, {bulk_after} after: {model:?}"
            );
        }
    }
}

#[test]
fn without_a_target_bulk_is_not_capped() {
    let found = beside(0, disks()[0], LatencyGoal::Off);
    assert!(found.p99_beside > 8 * found.p99_alone, "else the target proves nothing");
    assert!(found.bulk_beside * 100 >= found.bulk_alone * 95);
}

#[test]
fn a_fixed_target_is_met() {
    let found = beside(0, disks()[3], LatencyGoal::Within(400_000));
    assert!(found.p99_beside <= 400_000, "{}", found.p99_beside);
    assert!(2 * found.bulk_beside >= found.bulk_alone);
}

// ---- merging

#[test]
fn sequential_requests_are_joined_and_random_ones_are_not() {
    let run = |sequential, merge| {
        // Like most devices, it takes little longer for more bytes.
        let disk = DeviceModel { per_block: 2_000, ..DISK };
        let mut world = World::new(5, disk, 16, DEFAULT_BUDGETS, &[100]);
        world.merge = merge;
        world.add(Load { sequential, ..Load::new(0, Class::Read, 32) });
        world.run(SECOND);
        (world.throughput(0, 0, SECOND).0, world.merged)
    };
    let (apart, none) = run(true, MergeLimits::OFF);
    let (joined, merged) = run(true, MergeLimits::default());
    assert_eq!(none, 0);
    assert!(merged > 0 && joined > apart, "{joined} joined, {apart} apart");
    assert_eq!(run(false, MergeLimits::default()).1, 0);
}
