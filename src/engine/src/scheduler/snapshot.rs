//! One look at a scheduler, for the control plane.

use super::{Budgets, Limit, Scheduler, Scope, latency::LatencyGoal};
use crate::{clock::Nanos, merge::MergeLimits, queue::Class};

/// A class of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassSchedule {
    /// Cost per round, 1 to 4096.
    pub budget: u32,
    /// Requests that wait, for their turn or for anything else.
    pub waiting: u32,
    /// Time that requests of it waited while only others were served, since the engine started.
    pub starved: Nanos,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSchedule {
    /// Its id.
    pub session_id: u64,
    /// Its share of each class beside others, 1 to 1000.
    pub weight: u32,
    /// Group whose limit holds for it.
    pub group: Option<String>,
}

/// A limit that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSchedule {
    /// On what.
    pub scope: Scope,
    /// How much.
    pub limit: Limit,
    /// How often it had requests wait.
    pub throttles: u64,
}

/// The latency target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencySchedule {
    /// What prio is to have.
    pub goal: LatencyGoal,
    /// Bulk requests (of read and write) that may be in the device now; `None`: they are not capped.
    pub cap: Option<u32>,
    /// Bulk requests in the device.
    pub bulk: u32,
    /// How often the cap was cut because prio was late.
    pub cuts: u64,
    /// What nearly all answers to prio take without bulk, where the goal needs to know it and it was seen.
    pub alone: Option<Nanos>,
}

/// See [`crate::Engine::schedule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleSnapshot {
    /// By class index.
    pub classes: [ClassSchedule; 3],
    /// In the order of their ids.
    pub sessions: Vec<SessionSchedule>,
    /// In no order.
    pub limits: Vec<LimitSchedule>,
    /// How often a limit, any, had requests wait.
    pub throttles: u64,
    /// The latency target.
    pub latency: LatencySchedule,
    /// How far adjacent requests are joined; [`MergeLimits::OFF`] if they are not.
    pub merge: MergeLimits,
}

impl Scheduler {
    /// How things stand, with what holds for merging. Allocates.
    pub fn snapshot(&self, merge: MergeLimits) -> ScheduleSnapshot {
        let (budgets, starved): (Budgets, _) = (self.rounds.budgets(), self.starved());
        let class = |class: Class| ClassSchedule {
            budget: budgets[class.index()],
            waiting: self.len(class),
            starved: starved[class.index()],
        };
        let sessions = self.members.iter().map(|(session_id, member)| SessionSchedule {
            session_id: *session_id,
            weight: self.queues.weight(member.key),
            group: member.group.clone(),
        });
        let mut sessions: Vec<SessionSchedule> = sessions.collect();
        sessions.sort_unstable_by_key(|session| session.session_id);
        let limits = self.named.iter().map(|(scope, key)| {
            let (limit, throttles) = self.limits.get(*key);
            LimitSchedule { scope: scope.clone(), limit, throttles }
        });
        let target = self.latency();
        ScheduleSnapshot {
            classes: Class::ALL.map(class),
            sessions,
            limits: limits.collect(),
            throttles: self.throttles,
            latency: LatencySchedule {
                goal: target.goal(),
                cap: target.cap_now(),
                bulk: target.bulk(),
                cuts: target.cuts(),
                alone: target.alone(),
            },
            merge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{DEFAULT_BUDGETS, bucket::Rate, limits::Split};

    #[test]
    fn it_shows_what_was_set() {
        let mut scheduler = Scheduler::new(64, 8, DEFAULT_BUDGETS);
        scheduler.open_session(7, 300, Some("batch"), &[0, 1], &[None]);
        scheduler.open_session(3, 997, None, &[2], &[None]);
        let iops = Split { total: Some(Rate::new(500)), ..Split::default() };
        let limit = Limit { iops, ..Limit::default() };
        scheduler.set_limit(Scope::Group("batch".to_owned()), &limit, 0);
        scheduler.set_budgets([9, 8, 7]);
        scheduler.set_latency_goal(LatencyGoal::Relative(200));
        let shown = scheduler.snapshot(MergeLimits::OFF);
        assert_eq!(shown.classes.map(|class| (class.budget, class.waiting)), [(9, 0), (8, 0), (7, 0)]);
        let session = |session_id, weight, group: Option<&str>| SessionSchedule {
            session_id,
            weight,
            group: group.map(str::to_owned),
        };
        assert_eq!(shown.sessions, [session(3, 997, None), session(7, 300, Some("batch"))]);
        let scope = Scope::Group("batch".to_owned());
        assert_eq!(shown.limits, [LimitSchedule { scope, limit, throttles: 0 }]);
        let latency = shown.latency;
        assert_eq!((latency.goal, latency.cap, latency.alone), (LatencyGoal::Relative(200), None, None));
    }

    #[test]
    fn every_weight_is_shown_as_it_was_set() {
        for weight in 1..=crate::scheduler::WEIGHT_MAX {
            let mut scheduler = Scheduler::new(1, 1, DEFAULT_BUDGETS);
            scheduler.open_session(1, weight, None, &[0], &[None]);
            assert_eq!(scheduler.snapshot(MergeLimits::OFF).sessions[0].weight, weight);
        }
    }
}
