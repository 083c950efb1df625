//! How fast one user may open sessions.
//!
//! To make a session and take it apart again costs about half a millisecond of CPU time, most of it on the control thread: a
//! connection, a call, memory, doorbells, an attach, an end. Whoever opens sessions and breaks or closes them as fast as it
//! can takes that from the I/O of others where CPUs are few. So a user opens as many sessions per second as it may have at
//! once, and twice as many in a burst. Its further calls wait for their turn; nobody else's do.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::OpenError;

/// Every user may open so many sessions per second.
pub(super) const PER_SECOND_MIN: u32 = 64;
/// Who has opened none for so long may open at once what it may open in this time.
const BURST: Duration = Duration::from_secs(2);
/// No call waits longer: clients do not wait for ever. Those whose turn comes later than that are refused after it.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often the log says that a user has to wait.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// The turns of all users.
#[derive(Debug)]
pub struct Pacing {
    per_second: u32,
    /// Those whose sessions are not all paid for.
    users: Mutex<HashMap<u32, User>>,
}

#[derive(Debug)]
struct User {
    /// When all that it has opened will be paid for.
    paid: Instant,
    /// When the log last said that it waits.
    told: Option<Instant>,
}

/// What a call waits for.
#[derive(Debug)]
pub struct Turn {
    /// How long.
    pub wait: Duration,
    /// Its turn, or why it will not have had one by then.
    pub comes: Result<(), OpenError>,
}

impl Pacing {
    /// For users that may have so many sessions at once.
    pub fn new(sessions_per_uid_max: u32) -> Self {
        Self { per_second: sessions_per_uid_max.max(PER_SECOND_MIN), users: Mutex::default() }
    }

    /// Takes the next turn of a user, for a call of process `pid`.
    pub fn turn(&self, uid: u32, pid: u32, now: Instant) -> Turn {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|known, user| *known == uid || user.paid > now);
        let user = users.entry(uid).or_insert(User { paid: now, told: None });
        let paid = user.paid.max(now) + Duration::from_secs(1) / self.per_second;
        let wait = (paid - now).saturating_sub(BURST);
        if !wait.is_zero() && user.told.is_none_or(|told| now - told >= TELL_INTERVAL) {
            user.told = Some(now);
            tracing::warn!(
                "uid {uid} opens more than {} sessions per second, as many as a user may (limits.sessions_per_uid_max, at least \
                 {PER_SECOND_MIN}): each waits for its turn, up to {WAIT_MAX:?}; this one is of pid {pid}",
                self.per_second
            );
        }
        if wait > WAIT_MAX {
            let comes = Err(OpenError::TooFast { uid, per_second: self.per_second, waited: WAIT_MAX });
            return Turn { wait: WAIT_MAX, comes };
        }
        user.paid = paid;
        Turn { wait, comes: Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: u32 = 1000;

    #[test]
    fn a_burst_is_free_and_then_each_call_waits_for_its_turn() {
        let (pacing, now) = (Pacing::new(100), Instant::now());
        for _ in 0..200 {
            let turn = pacing.turn(UID, 1, now);
            assert!(turn.wait.is_zero() && turn.comes.is_ok());
        }
        let waits: Vec<_> = (0..3).map(|_| pacing.turn(UID, 1, now).wait.as_millis()).collect();
        assert_eq!(waits, [10, 20, 30], "100 per second");
        assert!(pacing.turn(UID + 1, 2, now).wait.is_zero(), "another user does not wait");
        let later = now + Duration::from_secs(1);
        assert!(pacing.turn(UID, 1, later).wait.is_zero(), "a second's worth is paid for");
        assert_eq!(pacing.users.lock().expect("not poisoned").len(), 1, "who owes nothing is forgotten");
    }

    #[test]
    fn no_call_waits_for_longer_than_a_second() {
        let (pacing, now) = (Pacing::new(1), Instant::now());
        let turns: Vec<_> = (0..1000).map(|_| pacing.turn(UID, 1, now)).collect();
        let opened = turns.iter().filter(|turn| turn.comes.is_ok()).count();
        assert_eq!(opened, 3 * PER_SECOND_MIN as usize, "the burst, and those that wait up to a second");
        assert!(turns.iter().all(|turn| turn.wait <= WAIT_MAX));
        let refusal = turns[999].comes.as_ref().expect_err("refused").to_string();
        for part in ["uid 1000", "64 sessions per second", "limits.sessions_per_uid_max", "1s"] {
            assert!(refusal.contains(part), "{part:?} is missing in: {refusal}");
        }
        // Who was refused has not spent anything.
        let later = now + Duration::from_secs(1);
        assert!(pacing.turn(UID, 1, later).comes.is_ok());
    }
}
