//! What clients can make the daemon do for nothing is paid for with time: a burst is free, and then it is done at a pace.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Connections refused per second, to each socket, all users together.
const REFUSALS_PER_SECOND: u32 = 250;
/// So many may be refused at once.
const REFUSALS_BURST: u32 = 128;
/// How long a socket accepts nothing once so many were refused. Short: in each such breath those who wait in line have another chance
/// against clients that try again and again without ever waiting.
const BREATH: Duration = Duration::from_millis(16);

/// The refusals of a socket. Clones count together.
///
/// A connection costs the control thread its acceptance before anything is known of whoever connects, so a flood is held up at
/// the socket itself: it fills the kernel's backlog, and who connects then stands in line. Only refusals count: clients that
/// get what they want are accepted as fast as they come.
#[derive(Debug, Clone)]
pub struct Refusals {
    state: Arc<RefusalState>,
}

#[derive(Debug)]
struct RefusalState {
    /// When all refusals will be paid for.
    paid: Mutex<Instant>,
    count: AtomicU64,
}

impl Refusals {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self { state: Arc::new(RefusalState { paid: Mutex::new(now), count: AtomicU64::new(0) }) }
    }

    /// One more.
    pub fn charge(&self, now: Instant) {
        self.state.count.fetch_add(1, Relaxed);
        let mut paid = self.state.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + Duration::from_secs(1) / REFUSALS_PER_SECOND;
    }

    /// Waits, if so many were refused, before the next connection is accepted.
    pub async fn breathe(&self) {
        if let Some(pause) = self.pause(Instant::now()) {
            tokio::time::sleep(pause).await;
        }
    }

    /// How long to wait; `None`: not at all.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let paid = *self.state.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let burst = Duration::from_secs(1) * REFUSALS_BURST / REFUSALS_PER_SECOND;
        (paid.saturating_duration_since(now) >= burst).then_some(BREATH)
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state.count.load(Relaxed)
    }
}

/// A pace for each user.
#[derive(Debug)]
pub struct UserPace {
    per_second: u32,
    burst: Duration,
    /// When all that a user has done will be paid for; those who owe nothing are forgotten.
    paid: Mutex<HashMap<u32, Instant>>,
}

impl UserPace {
    /// So many per second, and at once what is allowed in the time of `burst`.
    pub fn new(per_second: u32, burst: Duration) -> Self {
        Self { per_second, burst, paid: Mutex::default() }
    }

    /// How many per second.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// How long until a user's next turn, which is taken; `None`: longer than `wait_max`, and it is not taken.
    pub fn turn(&self, uid: u32, wait_max: Duration, now: Instant) -> Option<Duration> {
        let mut users = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|known, paid| *known == uid || *paid > now);
        let paid = users.entry(uid).or_insert(now);
        let then = (*paid).max(now) + Duration::from_secs(1) / self.per_second;
        let wait = (then - now).saturating_sub(self.burst);
        if wait > wait_max {
            return None;
        }
        *paid = then;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: u32 = 1000;

    #[test]
    fn after_a_burst_refusals_come_in_breaths() {
        let start = Instant::now();
        let (refusals, mut now) = (Refusals::new(start), start);
        let (mut refused, mut burst) = (0, None);
        while now - start < Duration::from_secs(2) {
            match refusals.pause(now) {
                None => {
                    refusals.clone().charge(now);
                    refused += 1;
                }
                Some(pause) => {
                    burst.get_or_insert(refused);
                    now += pause;
                }
            }
        }
        assert_eq!(burst, Some(REFUSALS_BURST));
        let allowed = REFUSALS_BURST + 2 * REFUSALS_PER_SECOND;
        assert!((2 * REFUSALS_PER_SECOND..=allowed).contains(&refused), "{refused} refused");
        assert_eq!(refusals.count(), u64::from(refused));
        assert_eq!(refusals.pause(now + Duration::from_secs(1)), None, "paid for");
    }

    #[test]
    fn a_burst_is_free_and_then_each_user_waits_for_its_turn() {
        let (pace, now) = (UserPace::new(100, Duration::from_secs(2)), Instant::now());
        let turn = |uid, now| pace.turn(uid, Duration::from_secs(1), now);
        for _ in 0..200 {
            assert_eq!(turn(UID, now), Some(Duration::ZERO));
        }
        let waits: Vec<_> = (0..3).filter_map(|_| turn(UID, now)).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [10, 20, 30], "100 per second");
        assert_eq!(turn(UID + 1, now), Some(Duration::ZERO), "another user does not wait");
        let later = now + Duration::from_secs(1);
        assert_eq!(turn(UID, later), Some(Duration::ZERO), "a second's worth is paid for");
        assert_eq!(pace.paid.lock().expect("not poisoned").len(), 1, "who owes nothing is forgotten");
    }

    #[test]
    fn a_turn_that_is_too_far_off_is_not_taken() {
        let (pace, now) = (UserPace::new(10, Duration::from_secs(1)), Instant::now());
        let taken = (0..100).filter(|_| pace.turn(UID, Duration::from_secs(2), now).is_some()).count();
        assert_eq!(taken, 10 + 20, "the burst, and those that wait up to two seconds");
        assert!(pace.turn(UID, Duration::from_secs(2), now + Duration::from_millis(100)).is_some());
    }
}
