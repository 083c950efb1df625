//! Doubly linked lists over indices: many lists, one pair of links per item, every operation O(1), nothing allocated.

/// No item.
pub(crate) const NIL: u32 = u32::MAX;

/// Ends of one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub const EMPTY: List = List { head: NIL, tail: NIL };

    /// The first item.
    pub fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    prev: u32,
}

/// The links of items `0..n`. An item is in one list at a time; the caller knows in which.
#[derive(Debug)]
pub(crate) struct Links(Box<[Link]>);

impl Links {
    pub fn new(items: u32) -> Self {
        Self(vec![Link { next: NIL, prev: NIL }; items as usize].into())
    }

    pub fn push_back(&mut self, list: &mut List, item: u32) {
        self.0[item as usize] = Link { next: NIL, prev: list.tail };
        match list.tail {
            NIL => list.head = item,
            tail => self.0[tail as usize].next = item,
        }
        list.tail = item;
    }

    pub fn pop_front(&mut self, list: &mut List) -> Option<u32> {
        let first = list.first()?;
        self.remove(list, first);
        Some(first)
    }

    pub fn pop_back(&mut self, list: &mut List) -> Option<u32> {
        let last = (list.tail != NIL).then_some(list.tail)?;
        self.remove(list, last);
        Some(last)
    }

    /// The item after one that is in a list.
    pub fn next(&self, item: u32) -> Option<u32> {
        let next = self.0[item as usize].next;
        (next != NIL).then_some(next)
    }

    /// Takes an item out of the list that it is in.
    pub fn remove(&mut self, list: &mut List, item: u32) {
        let Link { next, prev } = self.0[item as usize];
        match prev {
            NIL => list.head = next,
            _ => self.0[prev as usize].next = next,
        }
        match next {
            NIL => list.tail = prev,
            _ => self.0[next as usize].prev = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against two `VecDeque`s over the same records.
        #[test]
        fn behaves_as_deques(steps in prop::collection::vec((0..4u8, 0..2usize, 0..16u32), 0..200)) {
            let mut links = Links::new(16);
            let mut lists = [List::EMPTY; 2];
            let mut model = [VecDeque::new(), VecDeque::new()];
            for (step, which, record) in steps {
                let place = model[which].iter().position(|r| *r == record);
                match (step, place) {
                    (0, None) if !model[1 - which].contains(&record) => {
                        links.push_back(&mut lists[which], record);
                        model[which].push_back(record);
                    }
                    (1, Some(place)) => {
                        links.remove(&mut lists[which], record);
                        model[which].remove(place);
                    }
                    (2, _) => prop_assert_eq!(links.pop_front(&mut lists[which]), model[which].pop_front()),
                    (3, _) => prop_assert_eq!(links.pop_back(&mut lists[which]), model[which].pop_back()),
                    _ => {}
                }
                prop_assert_eq!(lists[which].first(), model[which].front().copied());
                prop_assert_eq!(lists[which].is_empty(), model[which].is_empty());
            }
        }
    }
}
