//! Fair shares by weight: start-time fair queueing. Pure: no clock; time is the cost of what was served.
//!
//! A member that is served for `cost` moves on by `cost / weight` of virtual time; the one that is furthest behind is next.
//! So members that always have something get service in proportion to their weights, to within one request each, however
//! large the requests are: a large one is paid for afterwards. A member that had nothing starts at the time of the one that
//! was served last: idleness earns no credit, and coming back pays no debt off. Unlike deficit round robin it interleaves
//! finely whatever the weights, and a member that seldom asks is served at once.
//!
//! A heap over members: serving one is O(log n), and a comparison or two where few have something.

use crate::links::NIL;

/// Weight of who has not been given one.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Greatest weight; the least is 1.
pub const WEIGHT_MAX: u32 = 1000;

/// Virtual time for a cost of 1 at weight 1.
const SCALE: u64 = 1 << 20;
/// No member is further ahead than one request puts it. Who seems to be has been away for so long that time wrapped.
const AHEAD_MAX: u64 = 1 << 48;

#[derive(Clone, Copy, Debug)]
struct Member {
    /// Virtual time at which its next request starts.
    start: u64,
    /// Virtual time for a cost of 1.
    step: u64,
    /// Where it stands in the heap; [`NIL`]: it has nothing.
    place: u32,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    start: u64,
    member: u32,
}

impl Item {
    /// Virtual time wraps; all in the heap are close together.
    #[inline]
    fn before(&self, other: &Item) -> bool {
        self.start.wrapping_sub(other.start).cast_signed() < 0
    }
}

/// Who is next, of members that are numbers close to 0.
#[derive(Clone, Debug, Default)]
pub struct Fair {
    /// Start of what was served last.
    time: u64,
    heap: Vec<Item>,
    members: Vec<Member>,
}

impl Fair {
    /// Makes room for a member that has nothing, or forgets what one was charged.
    pub fn add(&mut self, member: u32, weight: u32) {
        let index = member as usize;
        if self.members.len() <= index {
            self.members.resize(index + 1, Member { start: 0, step: SCALE, place: NIL });
            self.heap.reserve(self.members.len() - self.heap.len());
        }
        self.members[index] = Member { start: self.time, step: SCALE, place: NIL };
        self.set_weight(member, weight);
    }

    /// Changes a weight, taken into 1 ..= [`WEIGHT_MAX`]: it holds for what is served from now on, and for what is still to
    /// be paid of what was: a member that was slow need not wait for long once it is fast.
    pub fn set_weight(&mut self, member: u32, weight: u32) {
        let entry = &mut self.members[member as usize];
        let step = SCALE / u64::from(weight.clamp(1, WEIGHT_MAX));
        let ahead = entry.start.wrapping_sub(self.time);
        if ahead <= AHEAD_MAX {
            let ahead = u128::from(ahead) * u128::from(step) / u128::from(entry.step);
            entry.start = self.time.wrapping_add(ahead as u64); // less than AHEAD_MAX * 2^10
        }
        entry.step = step;
        let (item, place) = (Item { start: entry.start, member }, entry.place);
        if place != NIL {
            self.settle(place as usize, item);
        }
    }

    /// The weight that was set: it is found again exactly, for [`WEIGHT_MAX`] is below the root of the scale.
    pub fn weight(&self, member: u32) -> u32 {
        (SCALE / self.members[member as usize].step) as u32
    }

    /// Nobody has anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Only one has something.
    #[inline]
    pub fn has_one(&self) -> bool {
        self.heap.len() == 1
    }

    /// Who is next.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        self.heap.first().map(|item| item.member)
    }

    /// A member that had nothing has something.
    #[inline]
    pub fn join(&mut self, member: u32) {
        let entry = &mut self.members[member as usize];
        debug_assert_eq!(entry.place, NIL);
        if entry.start.wrapping_sub(self.time) > AHEAD_MAX {
            entry.start = self.time;
        }
        let item = Item { start: entry.start, member };
        self.heap.push(item);
        self.sift_up(self.heap.len() - 1, item);
    }

    /// A member has nothing any more.
    #[inline]
    pub fn leave(&mut self, member: u32) {
        let place = std::mem::replace(&mut self.members[member as usize].place, NIL) as usize;
        let Some(last) = self.heap.pop() else { unreachable!("member {member} had joined") };
        if place < self.heap.len() {
            self.settle(place, last);
        }
    }

    /// A member was served, whether it was the first or not.
    #[inline]
    pub fn charge(&mut self, member: u32, cost: u32) {
        let entry = &mut self.members[member as usize];
        let place = entry.place as usize;
        if place == 0 {
            self.time = entry.start;
        }
        entry.start = entry.start.wrapping_add(u64::from(cost) * entry.step);
        let item = Item { start: entry.start, member };
        self.sift_down(place, item);
    }

    /// Undoes a part of what was charged. The member may have left meanwhile.
    pub fn refund(&mut self, member: u32, cost: u32) {
        let entry = &mut self.members[member as usize];
        entry.start = entry.start.wrapping_sub(u64::from(cost) * entry.step);
        let (item, place) = (Item { start: entry.start, member }, entry.place);
        if place != NIL {
            self.sift_up(place as usize, item);
        }
    }

    /// Puts an item where there is a hole.
    fn settle(&mut self, place: usize, item: Item) {
        if place > 0 && item.before(&self.heap[(place - 1) / 2]) {
            self.sift_up(place, item);
        } else {
            self.sift_down(place, item);
        }
    }

    #[inline]
    fn sift_up(&mut self, mut place: usize, item: Item) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if !item.before(&self.heap[parent]) {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, item);
    }

    #[inline]
    fn sift_down(&mut self, mut place: usize, item: Item) {
        loop {
            let mut child = 2 * place + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].before(&self.heap[child]) {
                child += 1;
            }
            if !self.heap[child].before(&item) {
                break;
            }
            self.put(place, self.heap[child]);
            place = child;
        }
        self.put(place, item);
    }

    #[inline]
    fn put(&mut self, place: usize, item: Item) {
        self.heap[place] = item;
        self.members[item.member as usize].place = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn serve(fair: &mut Fair, cost: u32) -> u32 {
        let member = fair.first().expect("somebody has something");
        fair.charge(member, cost);
        member
    }

    #[test]
    fn weights_1_and_3_share_within_a_request() {
        let mut fair = Fair::default();
        for (member, weight) in [(0, 1), (1, 3)] {
            fair.add(member, weight);
            fair.join(member);
        }
        let served = (0..400).filter(|_| serve(&mut fair, 5) == 1).count();
        assert!((299..=301).contains(&served), "{served}");
    }

    #[test]
    fn large_requests_do_not_win() {
        let mut fair = Fair::default();
        (0..2).for_each(|member| {
            fair.add(member, DEFAULT_WEIGHT);
            fair.join(member);
        });
        let mut cost = [0u32; 2];
        for _ in 0..10_000 {
            let of = |member| if member == 0 { 1 } else { 64 };
            let member = fair.first().expect("both have something");
            fair.charge(member, of(member));
            cost[member as usize] += of(member);
        }
        assert!(cost[0].abs_diff(cost[1]) <= 64, "{cost:?}");
    }

    #[test]
    fn idleness_earns_nothing_and_leaving_pays_nothing_off() {
        let mut fair = Fair::default();
        (0..2).for_each(|member| fair.add(member, DEFAULT_WEIGHT));
        fair.join(0);
        (0..1000).for_each(|_| {
            serve(&mut fair, 1);
        });
        fair.join(1);
        let served = (0..100).filter(|_| serve(&mut fair, 1) == 1).count();
        assert!((49..=51).contains(&served), "{served} of 100 after it was idle for 1000");
        fair.charge(1, 20);
        fair.leave(1);
        fair.join(1);
        let first = (0..).find(|_| serve(&mut fair, 1) == 1).unwrap();
        assert!((19..=21).contains(&first), "a debt of 20 is waited for: {first}");
    }

    #[test]
    fn a_debt_is_paid_by_the_weight_of_now() {
        let mut fair = Fair::default();
        for (member, weight) in [(0, 1), (1, 1000)] {
            fair.add(member, weight);
            fair.join(member);
        }
        assert_eq!(serve(&mut fair, 64), 0);
        fair.set_weight(0, 1000);
        let first = (0..).find(|_| serve(&mut fair, 1) == 0).unwrap();
        assert!((63..=65).contains(&first), "a debt of 64 at equal weights is waited for: {first}");
        fair.leave(0);
        fair.charge(1, 64);
        fair.set_weight(1, 1);
        fair.join(0);
        let served = (0..64_000).filter(|_| serve(&mut fair, 1) == 1).count();
        assert!(served <= 1, "a debt of 64 at 1 to 1000: {served}");
    }

    #[test]
    fn time_that_wraps_changes_nothing() {
        let mut fair = Fair { time: u64::MAX - 5 * SCALE, ..Fair::default() };
        (0..2).for_each(|member| {
            fair.add(member, 1);
            fair.join(member);
        });
        let served = (0..100).filter(|_| serve(&mut fair, 1) == 1).count();
        assert_eq!(served, 50);
    }

    #[test]
    fn a_hundred_mixed_weights() {
        let mut fair = Fair::default();
        let weight = |member: u32| 1 + member * member % 97 * 10;
        (0..100).for_each(|member| {
            fair.add(member, weight(member));
            fair.join(member);
        });
        let total: u32 = (0..100).map(weight).sum();
        let mut served = [0u32; 100];
        (0..20 * total).for_each(|_| served[serve(&mut fair, 1) as usize] += 1);
        for member in 0..100 {
            let due = 20 * weight(member);
            let off = served[member as usize].abs_diff(due);
            assert!(off <= 2 + due / 50, "member {member}: {} of {due}", served[member as usize]);
        }
    }

    proptest! {
        /// Against a search over all members: the one that is furthest behind is next, whoever comes, goes or is refunded.
        #[test]
        fn behaves_as_a_search(steps in prop::collection::vec((0..5u8, 0..8u32, 1..70u32), 0..300)) {
            let mut fair = Fair::default();
            let weights = [1, 2, 3, 100, 100, 500, 999, 1000];
            let mut model = [(0u64, false); 8];
            let (mut time, mut last) = (0, None);
            (0..8).for_each(|member| fair.add(member, weights[member as usize]));
            for (step, member, cost) in steps {
                let (start, there) = model[member as usize];
                let charge = u64::from(cost) * (SCALE / u64::from(weights[member as usize]));
                match (step, there) {
                    (0 | 1, false) => {
                        last = None;
                        fair.join(member);
                        model[member as usize] = (start.max(time), true);
                    }
                    (0, true) => {
                        last = None;
                        fair.leave(member);
                        model[member as usize].1 = false;
                    }
                    (1 | 2, true) => {
                        last = Some((member, cost));
                        if fair.first() == Some(member) {
                            time = start;
                        }
                        fair.charge(member, cost);
                        model[member as usize].0 += charge;
                    }
                    (3, _) => if let Some((member, cost)) = last.take() {
                        fair.refund(member, cost);
                        model[member as usize].0 -= u64::from(cost) * (SCALE / u64::from(weights[member as usize]));
                    }
                    _ => {}
                }
                let least = model.iter().filter(|member| member.1).map(|member| member.0).min();
                prop_assert_eq!(fair.first().map(|first| model[first as usize].0), least);
                prop_assert_eq!(fair.is_empty(), least.is_none());
            }
        }
    }
}
