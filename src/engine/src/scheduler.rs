//! Stage 4: which class is served next. Pure: no clock, no I/O, no threads.
//!
//! Each class has a budget of requests per round. Within a round prio goes first, then read, then write, each until its
//! budget is used up; a round ends when every class that has requests waiting has used its own. Hence the bound: between two
//! requests of a class that has requests waiting, the others are given at most twice the sum of their budgets.

use crate::queue::Class;

/// Requests per round by class index, each >= 1.
pub type Budgets = [u32; 3];

/// Budgets when none are configured.
pub const DEFAULT_BUDGETS: Budgets = [32, 16, 16];

/// Chooses the class of the next request.
#[derive(Clone, Debug)]
pub struct Scheduler {
    budgets: Budgets,
    left: Budgets,
}

impl Scheduler {
    /// A budget of 0 would starve its class: it is taken as 1.
    pub fn new(budgets: Budgets) -> Self {
        let budgets = budgets.map(|budget| budget.max(1));
        Self { budgets, left: budgets }
    }

    /// The class to serve, of those that have requests waiting; `None` when there are none.
    pub fn next(&mut self, backlog: [bool; 3]) -> Option<Class> {
        if let Some(class) = self.in_budget(backlog) {
            return Some(class);
        }
        self.left = self.budgets;
        self.in_budget(backlog)
    }

    fn in_budget(&mut self, backlog: [bool; 3]) -> Option<Class> {
        let class =
            Class::ALL.into_iter().find(|class| backlog[class.index()] && self.left[class.index()] > 0)?;
        self.left[class.index()] -= 1;
        Some(class)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prio_goes_first_but_not_for_ever() {
        let mut scheduler = Scheduler::new([3, 2, 1]);
        let served: Vec<Class> = (0..12).map(|_| scheduler.next([true; 3]).unwrap()).collect();
        let round = [Class::Prio, Class::Prio, Class::Prio, Class::Read, Class::Read, Class::Write];
        assert_eq!(served, [round, round].concat());
    }

    #[test]
    fn a_class_alone_is_never_held_back() {
        let mut scheduler = Scheduler::new(DEFAULT_BUDGETS);
        assert!((0..1000).all(|_| scheduler.next([false, false, true]) == Some(Class::Write)));
        assert_eq!(scheduler.next([false; 3]), None);
    }

    proptest! {
        /// Whatever the others do, a waiting class is served after at most twice the sum of the other budgets.
        #[test]
        fn starves_nobody(
            budgets in prop::array::uniform3(1..40u32),
            others in prop::collection::vec(any::<(bool, bool)>(), 2000),
            waiting in 0..3usize,
        ) {
            let mut scheduler = Scheduler::new(budgets);
            let bound = 2 * (budgets.iter().sum::<u32>() - budgets[waiting]);
            let mut passed_over = 0;
            for (a, b) in others {
                let mut backlog = [a, b, b];
                backlog[(waiting + 1) % 3] = a;
                backlog[waiting] = true;
                match scheduler.next(backlog).unwrap().index() == waiting {
                    true => passed_over = 0,
                    false => passed_over += 1,
                }
                prop_assert!(passed_over <= bound, "passed over {} times, bound {}", passed_over, bound);
            }
        }
    }
}
