//! Bounds how many connections to a socket one user, and all users together, may have at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Places kept free for root, so that an operator gets in when the users have taken all others.
const RESERVED_FOR_ROOT: u32 = 4;

/// Counts by uid. Clones count together.
#[derive(Debug, Clone)]
pub struct UidLimit {
    max: u32,
    per_uid_max: u32,
    counts: Arc<Mutex<HashMap<u32, u32>>>,
}

/// One place taken; given back on drop.
#[derive(Debug)]
pub struct Place {
    limit: UidLimit,
    uid: u32,
}

/// Which of the two bounds was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// All users together.
    #[error(
        "{0} connections are open, as many as users other than root may have together (limits.connections_max, of which \
         {RESERVED_FOR_ROOT} are kept for root); close some, or raise the limit"
    )]
    Total(u32),
    /// This user.
    #[error(
        "{limit} connections of uid {uid} are open, as many as one user may have (limits.connections_per_uid_max); close \
         some, or raise the limit"
    )]
    PerUid {
        /// The user.
        uid: u32,
        /// The limit.
        limit: u32,
    },
}

impl UidLimit {
    /// At most `max` in all and `per_uid_max` of one user.
    pub fn new(max: u32, per_uid_max: u32) -> Self {
        Self { max, per_uid_max, counts: Arc::default() }
    }

    /// Takes a place.
    pub fn take(&self, uid: u32) -> Result<Place, Exceeded> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = if uid == 0 { 0 } else { RESERVED_FOR_ROOT.min(self.max / 2) };
        if counts.values().sum::<u32>() >= self.max - reserved {
            return Err(Exceeded::Total(self.max - reserved));
        }
        let count = counts.entry(uid).or_insert(0);
        if *count >= self.per_uid_max {
            return Err(Exceeded::PerUid { uid, limit: self.per_uid_max });
        }
        *count += 1;
        Ok(Place { limit: self.clone(), uid })
    }

    /// Takes a place whether there is one or not, for what is there already.
    pub fn count(&self, uid: u32) -> Place {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(uid).or_insert(0) += 1;
        Place { limit: self.clone(), uid }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.limit.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_places_of_another() {
        let limit = UidLimit::new(100, 2);
        let places = [limit.take(1000), limit.take(1000)];
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(limit.take(1000).err(), Some(Exceeded::PerUid { uid: 1000, limit: 2 }));
        let third = limit.count(1000);
        assert!(limit.take(1001).is_ok());
        drop((places, third));
        assert!(limit.take(1000).is_ok());
        assert!(limit.counts.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn root_gets_in_when_it_is_full_for_others() {
        let limit = UidLimit::new(10, 100);
        let _taken: Vec<_> = (0..6).map(|_| limit.take(1000).expect("room")).collect();
        assert_eq!(limit.take(1000).err(), Some(Exceeded::Total(6)));
        let _root: Vec<_> = (0..4).map(|_| limit.take(0).expect("reserved")).collect();
        assert_eq!(limit.take(0).err(), Some(Exceeded::Total(10)));
    }
}
