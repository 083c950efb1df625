use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*};

use super::*;

const DEPTH: u32 = 128;
const SECOND: Nanos = 1000 * MILLISECOND;

/// A device with one queue: everything takes its time, one after the other, on top of what it takes on the way.
struct Device {
    now: Nanos,
    target: LatencyTarget,
    /// Time of an operation in the queue, and on the way.
    service: Nanos,
    way: Nanos,
    /// Of so many operations one takes ten times as long, and the device is no faster for it.
    hiccup: u32,
    rng: fastrand::Rng,
    free_at: Nanos,
    /// Bulk in the device, by when it is done.
    bulk: VecDeque<Nanos>,
    /// Bulk that wants to go.
    depth: u32,
    latencies: Vec<Nanos>,
    done: u64,
    cap_least: u32,
}

impl Device {
    fn new(goal: LatencyGoal, service: Nanos, way: Nanos) -> Self {
        let mut target = LatencyTarget::new(DEPTH);
        target.set_goal(goal);
        Self {
            now: 0,
            target,
            service,
            way,
            hiccup: 0,
            rng: fastrand::Rng::with_seed(1),
            free_at: 0,
            bulk: VecDeque::new(),
            depth: DEPTH,
            latencies: Vec::new(),
            done: 0,
            cap_least: u32::MAX,
        }
    }

    fn issue(&mut self, class: Class) -> Nanos {
        let times = if self.hiccup > 0 && self.rng.u32(..self.hiccup) == 0 { 10 } else { 1 };
        let jitter = self.rng.u64(..=self.service / 4);
        self.free_at = self.free_at.max(self.now) + self.service + jitter;
        self.target.on_issue(class, self.now);
        self.free_at + (times - 1) * self.service + self.way
    }

    /// What a pass of the scheduler lets go.
    fn pass(&mut self) {
        let cap = self.target.cap(self.now).min(self.depth);
        while self.target.bulk() < cap {
            let done_at = self.issue(Class::Write);
            let place = self.bulk.partition_point(|other| *other <= done_at);
            self.bulk.insert(place, done_at);
        }
        // A probe lets none go; what holds beside it is what is asked.
        if cap > 0 {
            self.cap_least = self.cap_least.min(cap);
        }
    }

    /// Bulk goes on until this time.
    fn run(&mut self, until: Nanos) {
        loop {
            self.pass();
            match self.bulk.front() {
                Some(at) if *at <= until => {
                    self.now = *at;
                    self.bulk.pop_front();
                    self.target.on_complete(Class::Write, 0, self.now);
                    self.done += 1;
                }
                _ => break,
            }
        }
        self.now = until;
    }

    /// Prio reads one after the other for this time.
    fn beside(&mut self, time: Nanos) {
        let until = self.now + time;
        while self.now < until {
            self.pass(); // prio goes first
            let issued = self.now;
            let done_at = self.issue(Class::Prio);
            self.run(done_at);
            self.target.on_complete(Class::Prio, done_at - issued, self.now);
            self.latencies.push(done_at - issued);
        }
    }

    fn p99(&mut self) -> Nanos {
        let mut latencies = std::mem::take(&mut self.latencies);
        latencies.sort_unstable();
        latencies[latencies.len() * 99 / 100]
    }
}

/// What prio takes on such a device without bulk.
fn p99_alone(service: Nanos, way: Nanos, hiccup: u32) -> Nanos {
    let mut device = Device { depth: 0, hiccup, ..Device::new(LatencyGoal::Off, service, way) };
    device.beside(2 * SECOND);
    device.p99()
}

#[test]
fn off_there_is_no_cap() {
    let mut device = Device::new(LatencyGoal::Off, 10_000, 50_000);
    device.beside(SECOND);
    assert_eq!((device.cap_least, device.target.cuts(), device.target.cap_now()), (DEPTH, 0, None));
    assert_eq!(device.target.changes_at(device.now), Nanos::MAX);
}

#[test]
fn a_queue_gets_as_long_as_prio_may_be_late() {
    for (service, way) in [(10_000, 40_000), (20_000, 200_000), (100_000, 1_000_000)] {
        let alone = p99_alone(service, way, 0);
        for percent in [150, 200, 400] {
            let mut device = Device::new(LatencyGoal::Relative(percent), service, way);
            device.beside(3 * SECOND);
            device.latencies.clear();
            device.beside(5 * SECOND);
            let ratio = device.p99() as f64 / alone as f64;
            let wanted = f64::from(percent) / 100.0;
            // The cap grows in steps of one operation.
            let step = service as f64 * 1.25 / alone as f64;
            assert!(
                (wanted - 2.0 * step - 0.1..=wanted * 1.05).contains(&ratio),
                "{service} and {way} ns at {percent} %: {ratio}, {:?}",
                device.target
            );
        }
    }
}

#[test]
fn what_is_slow_by_itself_is_not_put_down_to_bulk() {
    // Three of a hundred take ten times as long: without bulk, too.
    let (service, way, hiccup) = (20_000, 100_000, 33);
    let alone = p99_alone(service, way, hiccup);
    let mut device = Device { hiccup, ..Device::new(LatencyGoal::Relative(200), service, way) };
    device.beside(3 * SECOND);
    device.latencies.clear();
    device.done = 0;
    let began = device.now;
    device.beside(5 * SECOND);
    let rate = device.done as f64 * SECOND as f64 / (device.now - began) as f64;
    let p99 = device.p99();
    assert!(p99 <= 2 * alone, "{p99}, alone {alone}");
    assert!(rate > 0.5 * 1e9 / (1.125 * service as f64), "{rate} of bulk a second");
}

#[test]
fn a_goal_that_the_device_does_not_meet_by_itself_leaves_bulk_the_least() {
    let mut device = Device::new(LatencyGoal::Within(1000), 20_000, 100_000);
    device.beside(2 * SECOND);
    let before = device.done;
    device.beside(SECOND);
    assert_eq!(device.target.cap_now().filter(|cap| *cap > 1), None);
    assert!(device.done - before > 1000, "bulk does not stand still: {}", device.done - before);
}

#[test]
fn late_answers_without_bulk_change_nothing_for_bulk() {
    let mut device = Device::new(LatencyGoal::Relative(200), 10_000, 100_000);
    device.beside(3 * SECOND);
    let cuts = device.target.cuts();
    device.run(device.now + 10 * MILLISECOND);
    device.depth = 0;
    device.run(device.now + 10 * MILLISECOND);
    assert_eq!(device.target.bulk(), 0);
    device.way *= 20;
    device.beside(SECOND);
    assert_eq!(device.target.cuts(), cuts, "{:?}", device.target);
    // And now it is known that this is how the device is.
    assert!(device.target.alone().unwrap() > 1_900_000);
    device.depth = DEPTH;
    device.beside(SECOND);
    assert!(device.target.cap_now() != Some(1), "{:?}", device.target);
}

#[test]
fn bulk_is_free_again_when_prio_is_silent() {
    let mut device = Device::new(LatencyGoal::Relative(200), 10_000, 50_000);
    device.beside(2 * SECOND);
    let silent = device.now;
    assert!(device.target.cap_now().is_some());
    let again = device.target.changes_at(silent);
    assert!(again <= silent + SILENCE + 1, "who sleeps until then wakes up in time");
    device.run(silent + SILENCE);
    assert_eq!(device.target.cap(silent + SILENCE + 1), u32::MAX);
    assert_eq!(device.target.cap_now(), None);
    assert_eq!(device.target.changes_at(device.now), Nanos::MAX);
}

#[test]
fn what_takes_long_is_not_silence() {
    let mut target = LatencyTarget::new(DEPTH);
    target.set_goal(LatencyGoal::Relative(200));
    target.on_issue(Class::Prio, 0);
    assert!(target.cap(10 * SECOND) <= DEPTH, "it waits for its answer");
    target.on_complete(Class::Prio, 10 * SECOND, 10 * SECOND);
    assert!(target.cap(10 * SECOND + SILENCE) <= DEPTH);
    assert_eq!(target.cap(10 * SECOND + SILENCE + 1), u32::MAX);
}

#[test]
fn bulk_that_does_not_come_back_ends_a_probe() {
    let mut target = LatencyTarget::new(DEPTH);
    (0..DEPTH).for_each(|_| target.on_issue(Class::Write, 0));
    target.set_goal(LatencyGoal::Relative(200));
    let mut now = 0;
    let mut prio = |target: &mut LatencyTarget, until: Nanos| {
        while now < until {
            target.on_issue(Class::Prio, now);
            now += MILLISECOND;
            target.on_complete(Class::Prio, MILLISECOND, now);
        }
        target.cap(now)
    };
    assert_eq!(prio(&mut target, PROBE_TIME_MAX / 2), 0);
    assert_eq!(prio(&mut target, PROBE_TIME_MAX), 1, "nothing is known");
    assert_eq!(prio(&mut target, 5 * PROBE_TIME_MAX), 1);
    assert_eq!((target.alone(), target.cuts()), (None, 0));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Issue(Class),
    Complete(bool),
    TakenBack,
    Pass,
    Goal(LatencyGoal),
    Wait(Nanos),
}

fn event() -> impl Strategy<Value = Event> {
    let goal = prop_oneof![
        Just(LatencyGoal::Off),
        (1..10 * MILLISECOND).prop_map(LatencyGoal::Within),
        (100..1000_u32).prop_map(LatencyGoal::Relative),
    ];
    prop_oneof![
        8 => (0..3_usize).prop_map(|class| Event::Issue(Class::ALL[class])),
        8 => any::<bool>().prop_map(Event::Complete),
        1 => Just(Event::TakenBack),
        6 => Just(Event::Pass),
        1 => goal.prop_map(Event::Goal),
        4 => prop_oneof![Just(0), 0..MILLISECOND, 0..2 * SILENCE].prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order, on a clock that may stand still: what is in the device is counted, the cap is
    /// within the depth, and there is none without a goal or once prio is silent.
    #[test]
    fn the_cap_is_in_its_bounds(events in vec(event(), 1..400), depth in 1..200_u32) {
        let mut target = LatencyTarget::new(depth);
        let (mut now, mut prio_at) = (0, 0);
        // When each was issued.
        let (mut prio, mut bulk) = (Vec::<Nanos>::new(), 0);
        for event in events {
            match event {
                Event::Issue(Class::Prio) => {
                    target.on_issue(Class::Prio, now);
                    prio.push(now);
                    prio_at = now;
                }
                Event::Issue(class) => {
                    target.on_issue(class, now);
                    bulk += 1;
                }
                Event::Complete(true) => {
                    let Some(issued) = prio.pop() else { continue };
                    target.on_complete(Class::Prio, now - issued, now);
                    prio_at = now;
                }
                Event::Complete(false) if bulk > 0 => {
                    target.on_complete(Class::Write, 0, now);
                    bulk -= 1;
                }
                Event::TakenBack if bulk > 0 => {
                    target.taken_back(Class::Read);
                    bulk -= 1;
                }
                Event::Complete(false) | Event::TakenBack => {}
                Event::Pass => {
                    let cap = target.cap(now);
                    let silent = prio.is_empty() && now > prio_at + SILENCE;
                    if target.goal() == LatencyGoal::Off || silent {
                        prop_assert_eq!(cap, u32::MAX);
                    }
                    prop_assert!(cap <= depth || cap == u32::MAX);
                    prop_assert_eq!(target.cap_now().unwrap_or(u32::MAX), cap);
                    prop_assert_eq!(target.cap(now), cap, "nothing has happened");
                    prop_assert!(target.changes_at(now) > now);
                    prop_assert!(cap == u32::MAX || !prio.is_empty() || target.changes_at(now) != Nanos::MAX);
                }
                Event::Goal(goal) => target.set_goal(goal),
                Event::Wait(time) => now += time,
            }
            prop_assert_eq!(target.bulk(), bulk);
        }
    }
}
