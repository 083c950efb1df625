//! The Scheduler as a whole, by what it promises: nothing here knows in which order sessions take their turns.

mod model;

use super::{
    bucket::Rate,
    limits::{Limit, Split},
    *,
};
use crate::queue::cost_of;

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1000 * MILLISECOND;

const READ: Arrival =
    Arrival { queue: 0, volume: Some(0), class: Class::Read, writes: false, bytes: 4096, limited: true };
const WRITE: Arrival = Arrival { class: Class::Write, writes: true, ..READ };
const PRIO: Arrival = Arrival { class: Class::Prio, ..READ };

/// A session with one queue for each of `weights`, all on two volumes: session `n + 1` has queue `n`.
fn scheduler(records: u32, budgets: Budgets, weights: &[u32]) -> Scheduler {
    let mut scheduler = Scheduler::new(records, records, budgets);
    for (queue, weight) in (0..).zip(weights) {
        open(&mut scheduler, queue, *weight);
    }
    scheduler
}

fn open(scheduler: &mut Scheduler, queue: u32, weight: u32) {
    let volumes = [Some(VolumeId(0)), Some(VolumeId(1))];
    scheduler.open_session(u64::from(queue) + 1, weight, None, &[queue], &volumes);
}

fn push(scheduler: &mut Scheduler, records: impl IntoIterator<Item = u32>, arrival: Arrival) {
    for record in records {
        match record % 2 {
            0 => scheduler.push_new(record, &arrival),
            _ => {
                scheduler.arrive(record, &arrival);
                scheduler.push_back(record);
            }
        }
    }
}

/// A pass that issues up to `room` requests.
fn pass(scheduler: &mut Scheduler, now: Nanos, room: usize) -> Vec<Pick> {
    scheduler.begin_pass(now);
    let mut picks = Vec::new();
    while picks.len() < room
        && let Some(pick) = scheduler.next(now)
    {
        scheduler.issued(pick, now);
        picks.push(pick);
    }
    scheduler.end_pass(now);
    picks
}

/// The same, and the device is done with them at once.
fn serve(scheduler: &mut Scheduler, now: Nanos, room: usize) -> Vec<u32> {
    let picks = pass(scheduler, now, room);
    picks.iter().for_each(|pick| scheduler.completed(pick.record, now));
    picks.iter().map(|pick| pick.record).collect()
}

fn iops(per_second: u64) -> Limit {
    let rate = Rate { per_second, burst: Some(1) };
    Limit { iops: Split { total: Some(rate), ..Split::default() }, ..Limit::default() }
}

/// Makes passes as an engine does that sleeps as long as [`Scheduler::wakes_at`] says, until something goes: how many, and when.
fn wait(scheduler: &mut Scheduler, mut now: Nanos) -> (u32, Nanos, Vec<u32>) {
    for passes in 1..10_000 {
        let picks = serve(scheduler, now, usize::MAX);
        if !picks.is_empty() {
            return (passes, now, picks);
        }
        let next = scheduler.wakes_at(now);
        assert!(next > now && next != Nanos::MAX, "what waits for a limit is woken, {next} after {now}");
        now = next;
    }
    panic!("nothing goes: {:?}", Class::ALL.map(|class| scheduler.len(class)))
}

// ---- what waits

#[test]
fn everything_comes_out_once_and_flows_keep_their_order() {
    let mut scheduler = scheduler(96, [4, 2, 2], &[100, 300]);
    let of = |record: u32| Arrival {
        queue: record % 2,
        volume: [Some(0), Some(1), None][(record / 2 % 3) as usize],
        class: Class::ALL[(record / 6 % 3) as usize],
        writes: record / 6 % 3 == 2,
        bytes: record * 3000,
        limited: true,
    };
    (0..96).for_each(|record| push(&mut scheduler, [record], of(record)));
    assert_eq!(Class::ALL.map(|class| scheduler.len(class)), [36, 30, 30]);
    let picks = pass(&mut scheduler, 1, usize::MAX);
    assert!(scheduler.is_empty() && scheduler.backlog() == [false; 3]);
    let mut seen = [false; 96];
    for pick in &picks {
        assert!(!std::mem::replace(&mut seen[pick.record as usize], true), "{} came twice", pick.record);
        assert_eq!((pick.class, pick.cost), (of(pick.record).class, cost_of(of(pick.record).bytes)));
    }
    assert_eq!(picks.len(), 96);
    let order: Vec<u32> = picks.iter().map(|pick| pick.record).collect();
    for flow in 0..18 {
        let of_flow: Vec<u32> = order.iter().copied().filter(|record| record % 18 == flow).collect();
        assert!(of_flow.is_sorted(), "{of_flow:?}");
    }
}

#[test]
fn what_was_not_issued_is_first_again_and_charged_to_nobody() {
    let mut scheduler = scheduler(64, [1, 1, 1], &[100, 100]);
    push(&mut scheduler, 0..20, READ);
    push(&mut scheduler, 20..40, Arrival { queue: 1, ..READ });
    push(&mut scheduler, 40..60, WRITE);
    for _ in 0..100 {
        scheduler.begin_pass(1);
        let pick = scheduler.next(1).expect("much waits");
        scheduler.put_back(pick);
        scheduler.end_pass(1);
    }
    let reads = |picks: &[u32]| picks.iter().filter(|record| **record < 40).count();
    let of_0 = |picks: &[u32]| picks.iter().filter(|record| **record < 20).count();
    let first = serve(&mut scheduler, 1, 40);
    assert!((19..=21).contains(&reads(&first)), "the class paid for nothing: {first:?}");
    assert!(of_0(&first).abs_diff(10) <= RUN_MAX as usize + 1, "the session paid for nothing: {first:?}");
    // A request that must wait for something else goes on before the others of its flow.
    scheduler.begin_pass(1);
    let pick = scheduler.next(1).expect("20 wait");
    scheduler.held(pick);
    scheduler.end_pass(1);
    let rest = serve(&mut scheduler, 1, usize::MAX);
    assert!(rest.len() == 19 && !rest.contains(&pick.record), "{rest:?}");
    assert!(scheduler.is_empty());
    scheduler.push_front(pick.record);
    assert_eq!(serve(&mut scheduler, 1, usize::MAX), [pick.record]);
}

#[test]
fn what_goes_on_is_before_the_others_of_its_flow() {
    let mut scheduler = scheduler(8, DEFAULT_BUDGETS, &[100]);
    push(&mut scheduler, 0..4, READ);
    assert_eq!(serve(&mut scheduler, 1, 2), [0, 1]);
    scheduler.push_front(1);
    scheduler.push_front(0);
    assert_eq!(serve(&mut scheduler, 1, usize::MAX), [0, 1, 2, 3]);
}

#[test]
fn what_the_driver_had_and_gives_back_is_where_it_was() {
    let mut scheduler = scheduler(16, DEFAULT_BUDGETS, &[100]);
    push(&mut scheduler, 0..2, READ);
    push(&mut scheduler, 2..4, Arrival { volume: Some(1), ..READ });
    for count in 1..5 {
        scheduler.begin_pass(1);
        let mut picks: Vec<Pick> = std::iter::from_fn(|| scheduler.next(1)).take(count).collect();
        picks.iter().for_each(|pick| scheduler.issued(*pick, 1));
        while let Some(pick) = picks.pop() {
            scheduler.taken_back(pick);
        }
        scheduler.end_pass(1);
        assert_eq!(scheduler.len(Class::Read), 4);
    }
    let order = serve(&mut scheduler, 1, usize::MAX);
    let place = |record| order.iter().position(|other| *other == record);
    assert!(order.len() == 4 && place(0) < place(1) && place(2) < place(3), "{order:?}");
    assert!(scheduler.is_empty() && scheduler.backlog() == [false; 3]);
}

#[test]
fn a_flow_that_is_passed_over_waits_for_the_next_pass() {
    let mut scheduler = scheduler(16, DEFAULT_BUDGETS, &[100]);
    push(&mut scheduler, 0..3, READ);
    push(&mut scheduler, 3..5, Arrival { volume: Some(1), ..READ });
    scheduler.begin_pass(1);
    let mut picks = Vec::new();
    while let Some(pick) = scheduler.next(1) {
        if pick.record < 3 {
            assert_eq!(pick.record, 0, "nothing behind it goes");
            scheduler.pass_over(pick);
        } else {
            scheduler.issued(pick, 1);
            picks.push(pick.record);
        }
    }
    assert!(scheduler.backlog() == [false; 3] && !scheduler.is_empty());
    scheduler.end_pass(1);
    assert_eq!(picks, [3, 4]);
    assert_eq!(serve(&mut scheduler, 1, usize::MAX), [0, 1, 2]);
}

#[test]
fn any_request_can_be_taken_out() {
    for at in 0..6 {
        let mut scheduler = scheduler(8, DEFAULT_BUDGETS, &[100]);
        assert!(scheduler.set_limit(Scope::Session(1), &iops(1), 1));
        push(&mut scheduler, 0..6, READ);
        assert_eq!(serve(&mut scheduler, 1, usize::MAX), [0], "the others wait for the limit");
        push(&mut scheduler, [0], READ);
        scheduler.remove(at);
        assert_eq!(scheduler.len(Class::Read), 5);
        let left: Vec<u32> = (1..6).chain([0]).filter(|record| *record != at).collect();
        let (mut now, mut order) = (1, Vec::new());
        while !scheduler.is_empty() {
            let (_, then, picks) = wait(&mut scheduler, now);
            now = then;
            order.extend(picks);
        }
        assert_eq!(order, left);
    }
}

#[test]
fn a_queue_can_be_emptied_whatever_it_waits_for() {
    let mut scheduler = scheduler(16, DEFAULT_BUDGETS, &[100, 100]);
    assert!(scheduler.set_limit(Scope::Volume(VolumeId(0)), &iops(1), 1));
    push(&mut scheduler, 0..4, READ);
    push(&mut scheduler, 4..8, Arrival { volume: Some(1), ..WRITE });
    push(&mut scheduler, 8..10, Arrival { volume: None, limited: false, ..PRIO });
    push(&mut scheduler, 10..12, Arrival { queue: 1, ..READ });
    let went = serve(&mut scheduler, 1, 1 + 2);
    let mut left: Vec<u32> = std::iter::from_fn(|| scheduler.pop_of_queue(0)).collect();
    left.extend(went.iter().filter(|record| **record < 10));
    left.sort_unstable();
    assert_eq!(left, Vec::from_iter(0..10));
    scheduler.close_queue(0);
    assert_eq!(scheduler.pop_of_queue(0), None);
    let mut rest: Vec<u32> = std::iter::from_fn(|| scheduler.pop_of_queue(1)).collect();
    rest.extend(went.iter().filter(|record| **record >= 10));
    rest.sort_unstable();
    assert_eq!(rest, [10, 11]);
    assert!(scheduler.is_empty());
    assert_eq!(scheduler.wakes_at(1), Nanos::MAX, "nobody is woken for nothing");
}

// ---- shares

/// Requests of each session among the first `count`, all of one class.
fn shares(weights: &[u32], count: usize) -> Vec<usize> {
    let records = 4096;
    let mut scheduler = scheduler(records, DEFAULT_BUDGETS, weights);
    let sessions = weights.len() as u32;
    (0..records)
        .for_each(|record| push(&mut scheduler, [record], Arrival { queue: record % sessions, ..READ }));
    let mut shares = vec![0; weights.len()];
    for _ in 0..count {
        let record = serve(&mut scheduler, 1, 1)[0];
        shares[(record % sessions) as usize] += 1;
        push(&mut scheduler, [record], Arrival { queue: record % sessions, ..READ });
    }
    shares
}

#[test]
fn sessions_share_by_weight() {
    for weights in [[1, 3], [100, 300], [333, 999]] {
        let [one, three] = shares(&weights, 4000)[..] else { panic!("two sessions") };
        assert!(one.abs_diff(1000) <= 2 * RUN_MAX as usize, "{weights:?}: {one} and {three}");
    }
    let weights: Vec<u32> = (0..100).map(|n| [1, 10, 50, 100, 300][n % 5] + n as u32).collect();
    let count = 100_000;
    let sum: u32 = weights.iter().sum();
    for (weight, share) in weights.iter().zip(shares(&weights, count)) {
        let due = count * *weight as usize / sum as usize;
        assert!(share.abs_diff(due) <= due / 50 + 2 * RUN_MAX as usize, "weight {weight}: {share} of {due}");
    }
}

#[test]
fn a_weight_can_be_changed() {
    let mut scheduler = scheduler(64, DEFAULT_BUDGETS, &[100, 100]);
    let mut shares = [0u32; 2];
    (0..64).for_each(|record| push(&mut scheduler, [record], Arrival { queue: record % 2, ..READ }));
    for count in 0..2000 {
        if count == 1000 {
            assert!(scheduler.set_weight(2, 900));
            assert!(!scheduler.set_weight(3, 900), "there is no such session");
            assert!(shares[0].abs_diff(500) <= RUN_MAX, "{shares:?}");
            shares = [0u32; 2];
        }
        let record = serve(&mut scheduler, 1, 1)[0];
        shares[(record % 2) as usize] += 1;
        push(&mut scheduler, [record], Arrival { queue: record % 2, ..READ });
    }
    assert!(shares[0].abs_diff(100) <= 2 * RUN_MAX, "{shares:?}");
}

#[test]
fn classes_share_by_budget_and_prio_is_first() {
    let budgets = [8, 4, 2];
    let mut scheduler = scheduler(1024, budgets, &[100]);
    push(&mut scheduler, 0..300, WRITE);
    push(&mut scheduler, 300..600, READ);
    push(&mut scheduler, 600..900, PRIO);
    let class = |record: u32| {
        if record < 300 {
            2
        } else if record < 600 {
            1
        } else {
            0
        }
    };
    let order: Vec<usize> = serve(&mut scheduler, 1, 280).into_iter().map(class).collect();
    let round = [vec![0; 8], vec![1; 4], vec![2; 2]].concat();
    assert!(order.chunks(14).all(|classes| classes == round), "{order:?}");
    let rest: Vec<usize> = serve(&mut scheduler, 1, usize::MAX).into_iter().map(class).collect();
    assert_eq!(rest.len(), 620);
}

#[test]
fn starvation_is_counted_by_class() {
    let mut scheduler = scheduler(64, [1, 1, 1], &[100]);
    push(&mut scheduler, 0..10, PRIO);
    push(&mut scheduler, 10..20, WRITE);
    assert_eq!(serve(&mut scheduler, 100, 1), [0]);
    assert_eq!(serve(&mut scheduler, 150, 1), [10], "writes waited since 100, and are served");
    assert_eq!(scheduler.starved(), [50, 0, 0], "prio waited beside them");
    assert_eq!(serve(&mut scheduler, 170, 1), [1]);
    assert_eq!(scheduler.starved(), [50, 0, 20]);
    assert!(serve(&mut scheduler, 500, 0).is_empty());
    assert_eq!(serve(&mut scheduler, 600, usize::MAX).len(), 17);
    assert!(scheduler.is_idle(), "nothing waits, nothing is left to count");
    assert_eq!(scheduler.starved(), [50, 0, 20], "who is served does not starve");
    assert!(pass(&mut scheduler, 900, 1).is_empty());
    assert_eq!(scheduler.starved(), [50, 0, 20]);
}

// ---- limits

#[test]
fn a_limit_holds_back_its_flow_alone() {
    let mut scheduler = scheduler(64, DEFAULT_BUDGETS, &[100, 100]);
    assert!(scheduler.set_limit(Scope::Volume(VolumeId(0)), &iops(10), 1));
    push(&mut scheduler, 0..10, READ);
    push(&mut scheduler, 10..20, Arrival { volume: Some(1), ..READ });
    push(&mut scheduler, 20..30, Arrival { queue: 1, volume: Some(1), ..READ });
    push(&mut scheduler, 30..32, Arrival { volume: None, limited: false, ..READ });
    push(&mut scheduler, 40..44, Arrival { class: Class::Write, limited: false, ..READ });
    let picks = serve(&mut scheduler, 1, usize::MAX);
    assert_eq!(picks.iter().filter(|record| **record < 10).count(), 1);
    assert_eq!(picks.len(), 27, "{picks:?}");
    assert!(scheduler.throttles() >= 1);
    let mut now = 1;
    for record in 1..10 {
        let (_, then, picks) = wait(&mut scheduler, now);
        assert_eq!(picks, [record]);
        let waited = then - now;
        assert!(
            (SECOND / 10 - 2 * MILLISECOND..=SECOND / 10 + 2 * MILLISECOND).contains(&waited),
            "{waited}"
        );
        now = then;
    }
}

#[test]
fn a_group_has_one_limit_together_and_who_leaves_it_is_free() {
    let mut scheduler = scheduler(64, DEFAULT_BUDGETS, &[100, 100, 100]);
    let group = || Scope::Group("group".into());
    assert!(scheduler.set_limit(group(), &iops(1), 1), "before its sessions");
    assert!(!scheduler.set_limit(Scope::Session(9), &iops(1), 1), "there is no such session");
    (1..3).for_each(|session| assert!(scheduler.set_group(session, Some("group"))));
    for queue in 0..3 {
        push(&mut scheduler, queue * 4..queue * 4 + 4, Arrival { queue, ..READ });
    }
    let picks = serve(&mut scheduler, 1, usize::MAX);
    assert_eq!(picks.iter().filter(|record| **record < 8).count(), 1, "{picks:?}");
    assert_eq!(picks.len(), 5);
    assert!(scheduler.set_group(2, None));
    let free = serve(&mut scheduler, 2, usize::MAX);
    assert!(free.iter().all(|record| (4..8).contains(record)) && free.len() >= 3, "{free:?}");
    assert!(scheduler.set_limit(group(), &Limit::default(), 2), "no limit any more");
    assert_eq!(serve(&mut scheduler, 2, usize::MAX).len(), 7 - free.len());
    assert!(scheduler.is_empty());
}

#[test]
fn a_change_of_the_limit_holds_at_once() {
    let mut scheduler = scheduler(64, DEFAULT_BUDGETS, &[100]);
    assert!(scheduler.set_limit(Scope::Session(1), &iops(1), 1));
    push(&mut scheduler, 0..40, READ);
    assert_eq!(serve(&mut scheduler, 1, usize::MAX), [0]);
    assert!(scheduler.wakes_at(1) > SECOND / 2);
    assert!(scheduler.set_limit(Scope::Session(1), &iops(1000), 2));
    let (_, now, picks) = wait(&mut scheduler, 2);
    assert!(now <= 4 * MILLISECOND && !picks.is_empty(), "at {now}: {picks:?}");
}

#[test]
fn the_limit_of_a_session_ends_with_it() {
    let mut scheduler = scheduler(16, DEFAULT_BUDGETS, &[100, 100]);
    for round in 0..50 {
        let now = round + 1;
        assert!(scheduler.set_limit(Scope::Session(1), &iops(1), now));
        push(&mut scheduler, 0..3, READ);
        push(&mut scheduler, 3..6, Arrival { queue: 1, ..READ });
        assert_eq!(serve(&mut scheduler, now, usize::MAX).len(), 4);
        while scheduler.pop_of_queue(0).is_some() {}
        scheduler.close_queue(0);
        assert!(!scheduler.set_weight(1, 1), "session 1 has gone");
        open(&mut scheduler, 0, 100);
        push(&mut scheduler, 0..3, READ);
        assert_eq!(serve(&mut scheduler, now, usize::MAX).len(), 3, "session 1 of now has no limit");
    }
    assert!(scheduler.is_empty());
}

#[test]
fn a_large_request_passes_a_small_bucket_and_is_paid_for_afterwards() {
    let mut scheduler = scheduler(16, DEFAULT_BUDGETS, &[100]);
    let rate = Rate { per_second: 1 << 20, burst: Some(4096) };
    let bytes = Split { total: Some(rate), ..Split::default() };
    assert!(scheduler.set_limit(Scope::Session(1), &Limit { bytes, ..Limit::default() }, 1));
    push(&mut scheduler, 0..8, Arrival { bytes: 1 << 20, ..READ });
    assert_eq!(serve(&mut scheduler, 1, usize::MAX), [0]);
    let mut now = 1;
    for record in 1..8 {
        let (passes, then, picks) = wait(&mut scheduler, now);
        assert_eq!((picks, passes), (vec![record], 2));
        now = then;
    }
    assert!((7 * SECOND - 20 * MILLISECOND..=7 * SECOND + 20 * MILLISECOND).contains(&now), "{now}");
}
