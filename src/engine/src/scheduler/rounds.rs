//! Which class is served next. Pure.
//!
//! Each class has a budget per round, in units of cost. Within a round prio goes first, then read, then write, each until its
//! budget is used up; a round ends when every class that has requests waiting has used its own. The last request of a class
//! in a round may cost more than is left: what is too much counts against its next rounds, so that big requests do not win.
//!
//! The bound: between two requests of a class that has requests waiting, the first of which cost `c`, the others are given
//! at most `ceil(c / budget) + 1` times the sum of their budgets, and each at most one request's cost beyond that. Where all
//! requests cost 1, as those up to 16 KiB do, this is twice the sum of the other budgets.
//!
//! A class whose turn has come and whose requests a limit holds back misses the rest of its round when the others begin
//! another one. It has that rest before all others once it may go, or those it shares the limit with would be there first
//! whenever the limit lets something through. Of several, the one that missed its own first is first.

use crate::{clock::Nanos, queue::Class};

/// Cost per round by class index, each >= 1.
pub type Budgets = [u32; 3];

/// Greatest budget.
pub const BUDGET_MAX: u32 = 4096;

/// Budgets when none are configured.
pub const DEFAULT_BUDGETS: Budgets = [32, 16, 16];

/// Chooses the class of the next request.
#[derive(Clone, Debug)]
pub struct Rounds {
    budgets: [i64; 3],
    left: [i64; 3],
    /// The round whose rest a class missed, the first of them; 0: none.
    missed: [u64; 3],
    /// Rounds that began.
    round: u64,
}

impl Rounds {
    /// A budget of 0 would starve its class: it is taken as 1.
    pub fn new(budgets: Budgets) -> Self {
        let budgets = budgets.map(|budget| i64::from(budget.max(1)));
        Self { budgets, left: budgets, missed: [0; 3], round: 0 }
    }

    /// Cost per round, by class index.
    pub fn budgets(&self) -> Budgets {
        self.budgets.map(|budget| budget as u32)
    }

    /// Changes the budgets, from this round on.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        self.budgets = budgets.map(|budget| i64::from(budget.max(1)));
        for (left, budget) in self.left.iter_mut().zip(self.budgets) {
            *left = (*left).min(budget);
        }
    }

    /// The class to serve, of those in `backlog`; `None` when there are none. `held` are those that have requests which
    /// limits hold back.
    #[inline]
    pub fn next(&mut self, backlog: [bool; 3], held: impl FnOnce() -> [bool; 3]) -> Option<Class> {
        if let Some(class) = self.in_budget(backlog) {
            return Some(class);
        }
        self.begin(backlog, held())?;
        self.in_budget(backlog)
    }

    /// Requests of this class were served.
    #[inline]
    pub fn charge(&mut self, class: Class, cost: u32) {
        self.left[class.index()] -= i64::from(cost);
    }

    /// They were not served after all.
    pub fn refund(&mut self, class: Class, cost: u32) {
        self.left[class.index()] += i64::from(cost);
    }

    /// What is left of the round for a class.
    #[inline]
    pub fn left(&self, class: Class) -> u32 {
        u32::try_from(self.left[class.index()]).unwrap_or(0)
    }

    #[inline]
    fn in_budget(&mut self, backlog: [bool; 3]) -> Option<Class> {
        if self.missed != [0; 3]
            && let Some(class) = self.catching_up(backlog)
        {
            return Some(class);
        }
        Class::ALL.into_iter().find(|class| backlog[class.index()] && self.left[class.index()] > 0)
    }

    #[inline(never)]
    fn catching_up(&mut self, backlog: [bool; 3]) -> Option<Class> {
        for (missed, left) in self.missed.iter_mut().zip(self.left) {
            *missed = if left > 0 { *missed } else { 0 };
        }
        let waits = |class: &Class| self.missed[class.index()] > 0 && backlog[class.index()];
        // Not by class: two of them would leave nothing of a limit that all three share to the third.
        Class::ALL.into_iter().filter(waits).min_by_key(|class| self.missed[class.index()])
    }

    /// As many rounds as it takes for one of those that wait to have something left.
    #[inline(never)]
    fn begin(&mut self, backlog: [bool; 3], held: [bool; 3]) -> Option<()> {
        let waiting = (0..3).filter(|class| backlog[*class]);
        // Most often one round is enough, and the divisions are spared.
        let one = |class: usize| self.left[class] + self.budgets[class] > 0;
        let rounds = if waiting.clone().any(one) {
            1
        } else {
            waiting.map(|class| -self.left[class] / self.budgets[class] + 1).min()?
        };
        self.round += 1;
        for class in (0..3).filter(|class| held[*class] && !backlog[*class] && self.left[*class] > 0) {
            if self.missed[class] == 0 {
                self.missed[class] = self.round;
            }
        }
        for (left, budget) in self.left.iter_mut().zip(self.budgets) {
            *left = (*left + rounds * budget).min(budget);
        }
        Some(())
    }
}

/// How long each class had requests waiting while others were served instead.
#[derive(Clone, Debug, Default)]
pub struct Starvation {
    /// When a class that waits was served last, or began to wait, or was counted last.
    since: [Option<Nanos>; 3],
    total: [Nanos; 3],
}

impl Starvation {
    /// After each pass: which classes have requests waiting still, and which were served.
    #[inline]
    pub fn note(&mut self, waiting: [bool; 3], served: [bool; 3], now: Nanos) {
        if waiting != [false; 3] || !self.is_over() {
            self.count(waiting, served, now);
        }
    }

    #[inline(never)]
    fn count(&mut self, waiting: [bool; 3], served: [bool; 3], now: Nanos) {
        let any = served != [false; 3];
        for class in Class::ALL.map(Class::index) {
            let since = &mut self.since[class];
            match *since {
                Some(_) if !waiting[class] => *since = None,
                Some(then) if any => {
                    self.total[class] += if served[class] { 0 } else { now.saturating_sub(then) };
                    *since = Some(now);
                }
                None if waiting[class] => *since = Some(now),
                _ => {}
            }
        }
    }

    /// Nothing waited at the last look.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.since == [None; 3]
    }

    /// Nanoseconds by class index.
    pub fn total(&self) -> [Nanos; 3] {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn serve(rounds: &mut Rounds, backlog: [bool; 3], cost: [u32; 3]) -> Class {
        let class = rounds.next(backlog, || [false; 3]).expect("something waits");
        rounds.charge(class, cost[class.index()]);
        class
    }

    #[test]
    fn prio_goes_first_but_not_for_ever() {
        let mut rounds = Rounds::new([3, 2, 1]);
        let served: Vec<Class> = (0..12).map(|_| serve(&mut rounds, [true; 3], [1; 3])).collect();
        let round = [Class::Prio, Class::Prio, Class::Prio, Class::Read, Class::Read, Class::Write];
        assert_eq!(served, [round, round].concat());
    }

    #[test]
    fn a_class_alone_is_never_held_back() {
        let mut rounds = Rounds::new(DEFAULT_BUDGETS);
        let alone = [false, false, true];
        assert!((0..1000).all(|_| serve(&mut rounds, alone, [1, 1, 65536]) == Class::Write));
        assert_eq!(rounds.next([false; 3], || [false; 3]), None);
    }

    #[test]
    fn big_requests_do_not_win() {
        let mut rounds = Rounds::new([8, 8, 8]);
        let mut cost = [0u32; 3];
        for _ in 0..100_000 {
            let class = serve(&mut rounds, [false, true, true], [1, 1, 64]);
            cost[class.index()] += if class == Class::Write { 64 } else { 1 };
        }
        assert!(cost[1].abs_diff(cost[2]) <= 100, "{cost:?}");
    }

    #[test]
    fn who_missed_its_turn_has_it_later() {
        let mut rounds = Rounds::new([2, 2, 2]);
        let next = |rounds: &mut Rounds, backlog, held| {
            let class = rounds.next(backlog, || held).expect("something waits");
            rounds.charge(class, 1);
            class
        };
        (0..2).for_each(|_| assert_eq!(next(&mut rounds, [true, false, true], [false; 3]), Class::Prio));
        // It is the turn of writes, which a limit holds back: prio goes on.
        assert_eq!(next(&mut rounds, [true, false, false], [false, false, true]), Class::Prio);
        (0..2).for_each(|_| assert_eq!(next(&mut rounds, [true, false, true], [false; 3]), Class::Write));
        assert_eq!(next(&mut rounds, [true, false, true], [false; 3]), Class::Prio);
    }

    #[test]
    fn starvation_is_the_time_that_others_were_served_in() {
        let mut starvation = Starvation::default();
        starvation.note([false, true, true], [false; 3], 100);
        starvation.note([false, true, true], [false, true, false], 150);
        starvation.note([false, true, true], [false; 3], 170);
        assert_eq!(starvation.total(), [0, 0, 50], "a pass that serves nobody counts for nobody");
        starvation.note([false, true, true], [true, true, false], 190);
        assert_eq!(starvation.total(), [0, 0, 90]);
        starvation.note([false, true, true], [false, false, true], 200);
        starvation.note([false; 3], [false, true, true], 300);
        starvation.note([false, true, false], [true, false, false], 400);
        assert_eq!(starvation.total(), [0, 10, 90], "time without anything waiting does not count");
    }

    proptest! {
        /// Whatever the others do, a waiting class is served within the bound.
        #[test]
        fn starves_nobody(
            budgets in prop::array::uniform3(1..40u32),
            others in prop::collection::vec((any::<(bool, bool)>(), prop::array::uniform3(1..200u32)), 2000),
            small in any::<bool>(),
            waiting in 0..3usize,
        ) {
            let mut rounds = Rounds::new(budgets);
            let sum = budgets.iter().sum::<u32>() - budgets[waiting];
            let (mut last, mut passed_over) = (1, 0);
            for ((a, b), cost) in others {
                let cost = if small { [1; 3] } else { cost };
                let mut backlog = [a, b, b];
                backlog[(waiting + 1) % 3] = a;
                backlog[waiting] = true;
                let class = serve(&mut rounds, backlog, cost).index();
                match class == waiting {
                    true => (last, passed_over) = (cost[class], 0),
                    false => passed_over += cost[class],
                }
                let beyond = if small { 0 } else { 2 * 199 };
                let bound = (u32::div_ceil(last, budgets[waiting]) + 1) * sum + beyond;
                prop_assert!(passed_over <= bound, "passed over by {}, bound {}", passed_over, bound);
            }
        }
    }
}
