//! Which request a cancel means: an index over (queue, user_data).
//!
//! Requests with the same key form a group, which has those that are not issued in the order of their acceptance and a count
//! of those that are. So finding the oldest takes the same few steps whether a key has one request or all of them. Groups are
//! found by a hash with a secret seed: whom a bucket is shared with is not for a client to choose.

use slab::Slab;

use crate::links::{Links, List, NIL};

#[derive(Clone, Copy, Debug)]
struct Group {
    queue: u32,
    user_data: u64,
    waiting: List,
    issued: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    /// `NIL`: not in the index.
    group: u32,
    issued: bool,
}

/// What a cancel finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No request has this key.
    Nothing,
    /// All that have it were issued.
    Issued,
    /// The oldest that was not issued.
    Waiting(u32),
}

/// The requests of an engine that can be meant by a cancel.
#[derive(Debug)]
pub struct Index {
    seed: [u64; 2],
    members: Box<[Member]>,
    /// Of the waiting ones of a group.
    links: Links,
    groups: Slab<Group>,
    /// Of the groups of a bucket.
    group_links: Links,
    buckets: Box<[List]>,
}

impl Index {
    /// For records `0..requests_max`. `seed` is secret.
    pub fn new(requests_max: u32, seed: [u64; 2]) -> Self {
        let buckets = requests_max.next_power_of_two().max(2) as usize;
        Self {
            seed,
            members: vec![Member { group: NIL, issued: false }; requests_max as usize].into(),
            links: Links::new(requests_max),
            groups: Slab::with_capacity(requests_max as usize),
            group_links: Links::new(requests_max),
            buckets: vec![List::EMPTY; buckets].into(),
        }
    }

    /// A request was accepted.
    pub fn insert(&mut self, record: u32, queue: u32, user_data: u64) {
        let bucket = self.bucket(queue, user_data);
        let group = self.group(bucket, queue, user_data).unwrap_or_else(|| {
            let group =
                self.groups.insert(Group { queue, user_data, waiting: List::EMPTY, issued: 0 }) as u32;
            self.group_links.push_back(&mut self.buckets[bucket], group);
            group
        });
        self.members[record as usize] = Member { group, issued: false };
        self.links.push_back(&mut self.groups[group as usize].waiting, record);
    }

    /// A request was issued. One that is not in the index is fine.
    pub fn issue(&mut self, record: u32) {
        let member = &mut self.members[record as usize];
        if member.group == NIL || member.issued {
            return;
        }
        member.issued = true;
        let group = &mut self.groups[member.group as usize];
        self.links.remove(&mut group.waiting, record);
        group.issued += 1;
    }

    /// A request was answered. One that is not in the index is fine.
    pub fn remove(&mut self, record: u32) {
        let member =
            std::mem::replace(&mut self.members[record as usize], Member { group: NIL, issued: false });
        if member.group == NIL {
            return;
        }
        let group = &mut self.groups[member.group as usize];
        if member.issued {
            group.issued -= 1;
        } else {
            self.links.remove(&mut group.waiting, record);
        }
        let Group { queue, user_data, waiting, issued } = *group;
        if waiting.is_empty() && issued == 0 {
            let bucket = self.bucket(queue, user_data);
            self.group_links.remove(&mut self.buckets[bucket], member.group);
            self.groups.remove(member.group as usize);
        }
    }

    /// The request that a cancel for this key means.
    pub fn find(&self, queue: u32, user_data: u64) -> Found {
        let Some(group) = self.group(self.bucket(queue, user_data), queue, user_data) else {
            return Found::Nothing;
        };
        self.groups[group as usize].waiting.first().map_or(Found::Issued, Found::Waiting)
    }

    fn group(&self, bucket: usize, queue: u32, user_data: u64) -> Option<u32> {
        let mut next = self.buckets[bucket].first();
        while let Some(index) = next {
            let group = &self.groups[index as usize];
            if group.user_data == user_data && group.queue == queue {
                return Some(index);
            }
            next = self.group_links.next(index);
        }
        None
    }

    /// Two folded multiplications, as in wyhash.
    fn bucket(&self, queue: u32, user_data: u64) -> usize {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let [a, b] = self.seed;
        let hash = fold(fold(user_data ^ a, u64::from(queue) ^ b), b ^ 0x9e37_79b9_7f4a_7c15);
        hash as usize & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u64),
        Issue(usize),
        Remove(usize),
        Find(u32, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3u32, 0..6u64).prop_map(|(queue, key)| Step::Insert(queue, key)),
            2 => any::<usize>().prop_map(Step::Issue),
            3 => any::<usize>().prop_map(Step::Remove),
            3 => (0..3u32, 0..6u64).prop_map(|(queue, key)| Step::Find(queue, key)),
        ];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        /// Against a list in the order of acceptance.
        #[test]
        fn behaves_as_a_list(steps in steps(), seed in any::<[u64; 2]>()) {
            let mut index = Index::new(32, seed);
            let mut free: Vec<u32> = (0..32).collect();
            // record, queue, key, issued
            let mut model: Vec<(u32, u32, u64, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(queue, key) => if let Some(record) = free.pop() {
                        index.insert(record, queue, key);
                        model.push((record, queue, key, false));
                    },
                    Step::Issue(n) => if !model.is_empty() {
                        let n = n % model.len();
                        index.issue(model[n].0);
                        model[n].3 = true;
                    },
                    Step::Remove(n) => if !model.is_empty() {
                        let (record, ..) = model.remove(n % model.len());
                        index.remove(record);
                        free.push(record);
                    },
                    Step::Find(queue, key) => {
                        let mut same = model.iter().filter(|entry| (entry.1, entry.2) == (queue, key)).peekable();
                        let expected = match same.peek() {
                            None => Found::Nothing,
                            Some(_) => same.find(|entry| !entry.3).map_or(Found::Issued, |entry| Found::Waiting(entry.0)),
                        };
                        prop_assert_eq!(index.find(queue, key), expected);
                    }
                }
            }
            model.iter().for_each(|entry| index.remove(entry.0));
            prop_assert!(index.groups.is_empty());
            prop_assert!(index.buckets.iter().all(List::is_empty));
        }
    }

    /// Keys that a careless client counts up do not meet in few buckets.
    #[test]
    fn counted_keys_spread() {
        let index = Index::new(4096, [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321]);
        let mut load = vec![0u32; 4096];
        for queue in 0..4 {
            (0..1024).for_each(|key| load[index.bucket(queue, key << 12)] += 1);
        }
        assert!(load.iter().all(|load| *load < 16), "{:?}", load.iter().max());
    }
}
