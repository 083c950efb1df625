//! A latency target for prio: how much bulk may be in the device while prio is busy. Pure: `now` is an argument.
//!
//! Feedback on the latency that the device shows, as congestion control has it on round trips:
//!
//! ```text
//!              prio comes                    enough samples               prio is late
//!   silent ----------------> probing (cap 0) --------------> ramp (cap x2) ------------> hold <--+
//!     ^                          ^                                                        |      | each answer: grow a
//!     |                          +-------- now and then, to see what prio takes alone ----+------+ little; late: cut
//!     +-- no prio for a while: no cap at all
//! ```
//!
//! In hold the cap grows by a small part with every prio answer that is in time and is cut by a large one when an answer is
//! late, so that it settles where [`LATE_PARTS`] answers are late. Answers to what was issued before the last change, or
//! while more than the cap was in flight, say nothing about the cap and are not looked at. Only a target that is relative to
//! prio's own latency has to know that, and probes: for some 20 ms in 2 s.

use crate::{
    clock::{MICROSECOND, Nanos},
    queue::Class,
};

const MILLISECOND: Nanos = 1000 * MICROSECOND;

/// Prio is silent after this time without a request.
const SILENCE: Nanos = 50 * MILLISECOND;
/// Least bulk in flight beside prio, but for probes.
const CAP_MIN: f64 = 1.0;
/// Part of the cap that is left after a late answer.
const CUT: f64 = 0.7;
/// `ln(1 / CUT)`: what is cut at once grows back in so many steps of a small part each.
const CUT_LOGARITHM: f64 = 0.357;
/// Late answers in hold, per answer.
const LATE_PARTS: f64 = 0.004;
/// The same beyond those that are late without bulk too, where those are as many.
const LATE_PARTS_MORE: f64 = 0.001;
/// More late answers than this part are not put down to the device alone.
const LATE_ALONE_MAX: f64 = 0.05;
/// Probes are remembered by this many answers.
const PROBED_MAX: u32 = 4096;
/// Answers in time before a ramp doubles the cap.
const RAMP_SAMPLES: u32 = 12;
/// Answers that a probe looks at, where there are as many in its time.
const PROBE_SAMPLES: u32 = 64;
/// The slowest of them that it remembers.
const HIGHEST: usize = PROBE_SAMPLES as usize / 10 + 1;
/// Time of a probe.
const PROBE_TIME: Nanos = 20 * MILLISECOND;
/// Longest time of a probe, where prio or the bulk before it is slow.
const PROBE_TIME_MAX: Nanos = 200 * MILLISECOND;
/// Least time between probes; also this many times what the last one took.
const PROBE_INTERVAL: Nanos = 2000 * MILLISECOND;
const PROBE_INTERVAL_TIMES: u64 = 100;
/// What a probe found holds this long beyond prio's silence.
const ALONE_KEPT: Nanos = 30_000 * MILLISECOND;
/// A relative target is aimed at with this part of it.
const MARGIN: f64 = 0.8;

/// What prio is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatencyGoal {
    /// Bulk is not capped.
    #[default]
    Off,
    /// Nearly all answers of the device within this time.
    Within(Nanos),
    /// Nearly all within this many per cent, >= 100, of what they take without bulk.
    Relative(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Silent,
    Probing { began: Nanos, samples: u32, highest: [Nanos; HIGHEST] },
    Ramp { in_time: u32 },
    Hold,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct LatencyTarget {
    goal: LatencyGoal,
    cap_max: f64,
    phase: Phase,
    cap: f64,
    /// Requests in the device.
    bulk: u32,
    prio: u32,
    /// When prio was last there.
    prio_at: Nanos,
    /// Since when what is in flight is within the cap.
    settled: Option<Nanos>,
    /// What nearly all answers take without bulk.
    alone: Option<Nanos>,
    probe_at: Nanos,
    cuts: u64,
    /// Answers without bulk, or next to none, and those of them that were late.
    probed: u32,
    late_alone: u32,
}

impl LatencyTarget {
    /// For a device that is given at most `depth` requests.
    pub fn new(goal: LatencyGoal, depth: u32) -> Self {
        let cap_max = f64::from(depth.max(1));
        Self {
            goal,
            cap_max,
            phase: Phase::Silent,
            cap: cap_max,
            bulk: 0,
            prio: 0,
            prio_at: 0,
            settled: None,
            alone: None,
            probe_at: 0,
            cuts: 0,
            probed: 0,
            late_alone: 0,
        }
    }

    /// Changes the goal.
    pub fn set_goal(&mut self, goal: LatencyGoal) {
        (self.goal, self.phase, self.cap) = (goal, Phase::Silent, self.cap_max);
    }

    /// Bulk requests that may be in the device now; `u32::MAX` if it is all the same.
    #[inline]
    pub fn cap(&mut self, now: Nanos) -> u32 {
        if self.phase == Phase::Silent { u32::MAX } else { self.cap_beside_prio(now) }
    }

    /// When the cap may change by itself.
    pub fn changes_at(&self, now: Nanos) -> Nanos {
        match self.phase {
            Phase::Silent => Nanos::MAX,
            Phase::Probing { began, .. } => (began + PROBE_TIME).max(now + MILLISECOND),
            _ if self.prio == 0 => self.prio_at + SILENCE + 1,
            _ => Nanos::MAX,
        }
    }

    /// Bulk requests in the device.
    #[inline]
    pub fn bulk(&self) -> u32 {
        self.bulk
    }

    /// How often the cap was cut because prio was late.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// The goal.
    pub fn goal(&self) -> LatencyGoal {
        self.goal
    }

    /// Bulk requests that may be in the device beside prio; `None` while it is all the same. 0 in a probe.
    pub fn cap_now(&self) -> Option<u32> {
        match self.phase {
            Phase::Silent => None,
            Phase::Probing { .. } => Some(0),
            Phase::Ramp { .. } | Phase::Hold => Some(self.cap as u32),
        }
    }

    /// What nearly all answers to prio take without bulk, where a goal had to know it.
    pub fn alone(&self) -> Option<Nanos> {
        self.alone
    }

    /// A request went to the device.
    #[inline]
    pub fn on_issue(&mut self, class: Class, now: Nanos) {
        if class != Class::Prio {
            self.bulk += 1;
            return;
        }
        self.prio += 1;
        if self.goal != LatencyGoal::Off {
            self.prio_at = now;
            if self.phase == Phase::Silent {
                self.begin(now);
            }
        }
    }

    /// A request did not go to the device after all.
    pub fn taken_back(&mut self, class: Class) {
        match class {
            Class::Prio => self.prio -= 1,
            Class::Read | Class::Write => self.bulk -= 1,
        }
    }

    /// The device is done with a request, `latency` after it was issued.
    #[inline]
    pub fn on_complete(&mut self, class: Class, latency: Nanos, now: Nanos) {
        if class != Class::Prio {
            self.bulk -= 1;
            if self.settled.is_none() {
                self.settle(now);
            }
            return;
        }
        self.prio -= 1;
        if self.phase != Phase::Silent {
            self.prio_at = now;
            self.look_at(latency, now);
        }
    }

    fn cap_beside_prio(&mut self, now: Nanos) -> u32 {
        if self.prio == 0 && now.saturating_sub(self.prio_at) > SILENCE {
            self.phase = Phase::Silent;
            return u32::MAX;
        }
        if let Phase::Probing { began, samples, .. } = self.phase {
            let elapsed = now.saturating_sub(began);
            if elapsed < PROBE_TIME || (samples < 2 && elapsed < PROBE_TIME_MAX) {
                return 0;
            }
            self.end_probe(now);
        } else if matches!(self.goal, LatencyGoal::Relative(_)) && now >= self.probe_at {
            self.probe(now);
            return 0;
        }
        self.cap as u32
    }

    /// Prio has come after a silence.
    fn begin(&mut self, now: Nanos) {
        let fresh = now < self.probe_at.saturating_add(ALONE_KEPT) && self.alone.is_some();
        if matches!(self.goal, LatencyGoal::Relative(_)) && !fresh {
            self.cap = CAP_MIN;
            return self.probe(now);
        }
        self.phase = Phase::Ramp { in_time: 0 };
        self.set_cap(self.cap / 2.0, now);
    }

    fn probe(&mut self, now: Nanos) {
        self.phase = Phase::Probing { began: now, samples: 0, highest: [0; HIGHEST] };
        self.settled = (self.bulk == 0).then_some(now);
    }

    fn end_probe(&mut self, now: Nanos) {
        let Phase::Probing { began, samples, highest } = self.phase else { return };
        // One in ten is slower. Rarer ones are too rare to be seen in a probe, or would be mistaken for what is usual.
        let found = highest[samples as usize / 10];
        let first = self.alone.is_none();
        if self.probed > PROBED_MAX {
            (self.probed, self.late_alone) = (self.probed / 2, self.late_alone / 2);
        }
        if samples > 0 {
            self.alone = Some(self.alone.map_or(found, |alone| (3 * alone + found) / 4));
            self.probed += samples;
            let limit = self.limit().unwrap_or(Nanos::MAX);
            self.late_alone += highest.iter().filter(|latency| **latency > limit).count() as u32;
        }
        self.probe_at = now + PROBE_INTERVAL.max(PROBE_INTERVAL_TIMES * now.saturating_sub(began));
        self.phase = if first { Phase::Ramp { in_time: 0 } } else { Phase::Hold };
        self.set_cap(self.cap, now);
    }

    fn set_cap(&mut self, cap: f64, now: Nanos) {
        self.cap = cap.clamp(CAP_MIN, self.cap_max);
        self.settled = None;
        self.settle(now);
    }

    fn settle(&mut self, now: Nanos) {
        let cap = if matches!(self.phase, Phase::Probing { .. }) { 0 } else { self.cap as u32 };
        self.settled = (self.bulk <= cap).then_some(now);
    }

    /// Latest answer that is in time; `None`: as long as nothing is known every answer is.
    fn limit(&self) -> Option<Nanos> {
        match self.goal {
            LatencyGoal::Off => None,
            LatencyGoal::Within(limit) => Some(limit),
            LatencyGoal::Relative(percent) => {
                let times = (f64::from(percent) / 100.0 * MARGIN).max(1.0);
                self.alone.map(|alone| (alone as f64 * times) as Nanos)
            }
        }
    }

    /// Growth per answer in time, so that the answers that may be late balance it.
    fn growth(&self) -> f64 {
        let alone = f64::from(self.late_alone) / f64::from(self.probed.max(1));
        let parts = LATE_PARTS.max(alone.min(LATE_ALONE_MAX) + LATE_PARTS_MORE);
        parts / (1.0 - parts) * CUT_LOGARITHM
    }

    fn look_at(&mut self, latency: Nanos, now: Nanos) {
        let issued = now.saturating_sub(latency);
        if self.settled.is_none_or(|settled| issued < settled) {
            return;
        }
        let late = self.limit().is_some_and(|limit| latency > limit);
        if self.cap < CAP_MIN * 2.0 && self.phase == Phase::Hold {
            // So little bulk is not to blame.
            self.probed += 1;
            self.late_alone += u32::from(late);
        }
        match &mut self.phase {
            Phase::Silent => {}
            Phase::Probing { samples, highest, .. } => {
                *samples += 1;
                let place = highest.partition_point(|higher| *higher >= latency);
                if place < HIGHEST {
                    highest.copy_within(place..HIGHEST - 1, place + 1);
                    highest[place] = latency;
                }
                if *samples >= PROBE_SAMPLES {
                    self.end_probe(now);
                }
            }
            _ if late => {
                self.cuts += 1;
                self.phase = Phase::Hold;
                self.set_cap(self.cap * CUT, now);
            }
            Phase::Ramp { in_time } => {
                *in_time += 1;
                if *in_time >= RAMP_SAMPLES {
                    *in_time = 0;
                    self.set_cap(self.cap * 2.0, now);
                    self.settled = Some(now);
                }
            }
            Phase::Hold => self.cap = (self.cap * (1.0 + self.growth())).min(self.cap_max),
        }
    }
}
