//! A latency target for prio: how much bulk may be in the device while prio is busy. Pure: `now` is an argument.
//!
//! Feedback on the latency that the device shows, as congestion control has it on round trips:
//!
//! ```text
//!            prio comes                              enough answers                    late
//!   silent -------------> probing: no bulk is issued ---------------> ramp: cap x2 ---------> hold <--+
//!     ^                      ^                                         |                        |     | in time: a little
//!     |                      +----------- now and then ----------------+------------------------+-----+ more; late: cut
//!     +-- no prio for a while: no cap
//! ```
//!
//! An answer to prio is **late** beyond the goal; a relative goal is so many times what 49 of 50 answers take `alone`. A
//! late answer cuts the cap by much, one in time raises it by little, such that both are in balance where `LATE_PARTS` are
//! late, whatever the device is like. What is late without bulk is not put down to bulk: where that is more, the balance is
//! there. So 99 of 100 answers stay within so many times what 99 of 100 take alone: if their slowest hundredth alone is within
//! the limit, by the limit, and else since bulk adds no more late ones than can be told from those.
//!
//! | answer | says something about |
//! |---|---|
//! | no bulk was in the device from its issue to its answer | what prio takes alone, never about the cap |
//! | issued before the cap was last cut, or before bulk in flight had come down to it | nothing: one queue, one cut |
//! | in time beside less bulk than half of the cap | nothing: the cap was not tried |
//! | any other | the cap |
//!
//! Beside bulk that never ends there are probes, of some milliseconds: at most a tenth of the time until enough is known, then
//! a twenty-fifth. As long as nothing is known bulk keeps `CAP_MIN`. It always keeps that: where even so little is too much,
//! prio is late rather than that bulk stands still. Above that prio wins: that is what a goal is for, and who wants more of
//! bulk sets a higher one.
//!
//! The cap counts requests, joined in one operation or not: that is the finer measure, with the lower least, and what joining
//! saves is in the feedback. One cap holds for all devices of an engine. With the goal off a request costs two counters and two
//! comparisons. Figures: `LATENCY.md` beside this file.

mod alone;
#[cfg(test)]
mod tests;

use self::alone::Alone;
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
/// `ln(1 / CUT)`: what a late answer takes away, spread as growth over those in time.
const CUT_LOGARITHM: f64 = 0.357;
/// Part of the answers that may be late: somewhat less than the hundredth that is meant, as it is met on the average.
const LATE_PARTS: f64 = 0.008;
/// The same where as many are late without bulk. A device of which more are late does not meet the goal by itself, and bulk
/// keeps [`CAP_MIN`].
const LATE_PARTS_MAX: f64 = 0.05;
/// Answers in time before a ramp doubles the cap.
const RAMP_ANSWERS: u32 = 12;
/// Answers that a probe waits for, where they come in its time.
const PROBE_ANSWERS: u32 = 64;
/// Time of a probe.
const PROBE_TIME: Nanos = 20 * MILLISECOND;
/// Longest time of a probe, where the bulk before it has not come back.
const PROBE_TIME_MAX: Nanos = 200 * MILLISECOND;
/// From the end of a probe to the next, in times of what it took.
const PROBE_EVERY: u64 = 25;
/// The same until [`WELL_KNOWN`] answers without bulk are known.
const PROBE_EVERY_FIRST: u64 = 10;
const WELL_KNOWN: u32 = 2048;
/// So many, and it can be told how many are late without bulk.
const KNOWN: u32 = 256;
/// What prio takes alone is forgotten after this time.
const ALONE_KEPT: Nanos = 30_000 * MILLISECOND;

/// What prio is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatencyGoal {
    /// Bulk is not capped.
    #[default]
    Off,
    /// 99 of 100 answers of the device within this time.
    Within(Nanos),
    /// 99 of 100 answers of the device within this many per cent, >= 100, of what they take without bulk.
    Relative(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Silent,
    Probing { began: Nanos, answers: u32 },
    Beside,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct LatencyTarget {
    goal: LatencyGoal,
    phase: Phase,
    /// Requests in the device.
    bulk: u32,
    prio: u32,
    /// When bulk was last there, if it is not now.
    bulk_at: Nanos,
    // ---- beside prio
    /// More bulk is in flight than the cap allows.
    over: bool,
    cap: f64,
    cap_max: f64,
    /// Answers in time since the cap was last doubled; `None` once one was late.
    ramp: Option<u32>,
    /// Latest answer that is in time; `None`: nothing is known yet.
    limit: Option<Nanos>,
    /// Growth of the cap with an answer in time.
    growth: f64,
    /// Since when bulk in flight is within the cap, once it is.
    settled: Nanos,
    /// When bulk in flight was last half of the cap or more, if it is not now.
    tried_at: Nanos,
    /// When prio was last there.
    prio_at: Nanos,
    alone: Alone,
    /// When that was last added to.
    alone_at: Nanos,
    probe_at: Nanos,
    cuts: u64,
}

impl LatencyTarget {
    /// For a device that is given at most `depth` requests.
    pub fn new(depth: u32) -> Self {
        let cap_max = f64::from(depth.max(1));
        Self {
            goal: LatencyGoal::Off,
            phase: Phase::Silent,
            bulk: 0,
            prio: 0,
            bulk_at: 0,
            over: false,
            cap: cap_max,
            cap_max,
            ramp: None,
            limit: None,
            growth: 0.0,
            settled: 0,
            tried_at: 0,
            prio_at: 0,
            alone: Alone::default(),
            alone_at: 0,
            probe_at: 0,
            cuts: 0,
        }
    }

    /// What prio is to have.
    pub fn goal(&self) -> LatencyGoal {
        self.goal
    }

    /// Changes the goal. What prio takes alone is kept.
    pub fn set_goal(&mut self, goal: LatencyGoal) {
        (self.goal, self.phase, self.cap, self.over) = (goal, Phase::Silent, self.cap_max, false);
        self.aim();
    }

    /// Bulk that may be in the device now; `u32::MAX` if it is all the same.
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

    /// Bulk in the device.
    #[inline]
    pub fn bulk(&self) -> u32 {
        self.bulk
    }

    /// Bulk that may be in the device beside prio; `None` while it is all the same. 0 in a probe.
    pub fn cap_now(&self) -> Option<u32> {
        match self.phase {
            Phase::Silent => None,
            Phase::Probing { .. } => Some(0),
            Phase::Beside => Some(self.cap as u32),
        }
    }

    /// How often the cap was cut because prio was late.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// What 49 of 50 answers take without bulk, as far as it is known.
    pub fn alone(&self) -> Option<Nanos> {
        self.alone.usual()
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

    /// The device is done with a request, `latency` after it was issued; that of bulk is not looked at.
    #[inline]
    pub fn on_complete(&mut self, class: Class, latency: Nanos, now: Nanos) {
        if class != Class::Prio {
            self.bulk -= 1;
            self.bulk_at = now;
            if self.phase != Phase::Silent {
                self.bulk_came_back(now);
            }
            return;
        }
        self.prio -= 1;
        if self.phase != Phase::Silent {
            self.prio_at = now;
            self.look_at(latency, now);
        }
    }

    /// The goal, or what prio takes alone, has changed.
    fn aim(&mut self) {
        self.limit = match self.goal {
            LatencyGoal::Off => None,
            LatencyGoal::Within(limit) => Some(limit),
            LatencyGoal::Relative(percent) => {
                self.alone.usual().map(|alone| alone * u64::from(percent) / 100)
            }
        };
        let late = match self.limit {
            Some(limit) if self.alone.answers() >= KNOWN => self.alone.part_beyond(limit),
            _ => 0.0,
        };
        let parts = late.clamp(LATE_PARTS, LATE_PARTS_MAX);
        self.growth = parts / (1.0 - parts) * CUT_LOGARITHM;
    }

    fn cap_beside_prio(&mut self, now: Nanos) -> u32 {
        if self.prio == 0 && now.saturating_sub(self.prio_at) > SILENCE {
            (self.phase, self.over) = (Phase::Silent, false);
            return u32::MAX;
        }
        if let Phase::Probing { began, answers } = self.phase {
            let elapsed = now.saturating_sub(began);
            let enough = elapsed >= PROBE_TIME && answers > 0;
            if !enough && elapsed < PROBE_TIME_MAX {
                return 0;
            }
            self.end_probe(now);
        } else if now >= self.probe_at {
            self.phase = Phase::Probing { began: now, answers: 0 };
            return 0;
        }
        self.cap as u32
    }

    /// Prio has come after a silence.
    fn begin(&mut self, now: Nanos) {
        if now.saturating_sub(self.alone_at) > ALONE_KEPT {
            self.alone = Alone::default();
            self.aim();
        }
        (self.phase, self.ramp) = (Phase::Beside, Some(0));
        if self.alone.usual().is_none() {
            self.phase = Phase::Probing { began: now, answers: 0 };
            self.cap = CAP_MIN;
        } else {
            self.set_cap(self.cap / 2.0, now);
        }
    }

    fn end_probe(&mut self, now: Nanos) {
        let Phase::Probing { began, .. } = self.phase else { return };
        self.alone.look_up();
        self.aim();
        let times = if self.alone.answers() >= WELL_KNOWN { PROBE_EVERY } else { PROBE_EVERY_FIRST };
        self.probe_at = now + times * now.saturating_sub(began).max(MILLISECOND);
        self.phase = Phase::Beside;
        self.set_cap(self.cap, now);
    }

    fn set_cap(&mut self, cap: f64, now: Nanos) {
        self.cap = cap.clamp(CAP_MIN, self.cap_max);
        self.settle(now);
    }

    fn settle(&mut self, now: Nanos) {
        self.over = self.bulk > self.cap as u32;
        self.settled = now;
    }

    fn bulk_came_back(&mut self, now: Nanos) {
        if self.tries(self.bulk + 1) {
            self.tried_at = now;
        }
        if self.over {
            self.settle(now);
        }
    }

    /// So much bulk says something about the cap.
    fn tries(&self, bulk: u32) -> bool {
        2.0 * f64::from(bulk) >= self.cap
    }

    fn look_at(&mut self, latency: Nanos, now: Nanos) {
        let issued = now.saturating_sub(latency);
        if self.bulk == 0 && issued >= self.bulk_at {
            return self.learn(latency, now);
        }
        if self.over || issued < self.settled {
            return;
        }
        // As long as nothing is known, the cap stays where it is.
        let Some(limit) = self.limit else { return };
        if latency > limit {
            self.cuts += 1;
            self.ramp = None;
            self.set_cap(self.cap * CUT, now);
        } else if self.tries(self.bulk) || self.tried_at >= issued {
            self.grow();
        }
    }

    /// An answer without bulk.
    fn learn(&mut self, latency: Nanos, now: Nanos) {
        self.alone_at = now;
        if self.alone.note(latency) {
            self.aim();
        }
        if let Phase::Probing { answers, .. } = &mut self.phase {
            *answers += 1;
            if *answers >= PROBE_ANSWERS {
                self.end_probe(now);
            }
        }
    }

    fn grow(&mut self) {
        let times = match &mut self.ramp {
            None => 1.0 + self.growth,
            Some(in_time) => {
                *in_time = (*in_time + 1) % RAMP_ANSWERS;
                if *in_time == 0 { 2.0 } else { 1.0 }
            }
        };
        self.cap = (self.cap * times).min(self.cap_max);
    }
}
