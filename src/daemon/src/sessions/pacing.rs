//! How fast one user may open sessions.
//!
//! To make a session and take it apart again costs about half a millisecond of CPU time, most of it on the control thread: a
//! connection, a call, memory, doorbells, an attach, an end. Whoever opens sessions and breaks or closes them as fast as it
//! can takes that from the I/O of others where CPUs are few. So a user opens at once as many sessions as it may have at once, and
//! half as many per second. Its further calls wait for their turn; nobody else's do.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::OpenError;
use crate::pace::UserPace;

/// Every user may open so many sessions per second.
pub(super) const PER_SECOND_MIN: u32 = 32;
/// Who has opened none for so long may open at once what it may open in this time.
const BURST: Duration = Duration::from_secs(2);
/// No call waits longer: clients do not wait for ever. Those whose turn comes later than that are refused after it.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often the log says that a user has to wait.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// The turns of all users.
#[derive(Debug)]
pub struct Pacing {
    pace: UserPace,
    /// When the log last said that a user waits.
    told: Mutex<HashMap<u32, Instant>>,
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
        let pace = UserPace::new((sessions_per_uid_max / 2).max(PER_SECOND_MIN), BURST);
        Self { pace, told: Mutex::default() }
    }

    /// Takes the next turn of a user, for a call of process `pid`.
    pub fn turn(&self, uid: u32, pid: u32, now: Instant) -> Turn {
        let turn = self.pace.turn(uid, WAIT_MAX, now);
        if turn != Some(Duration::ZERO) {
            self.tell(uid, pid, now);
        }
        let per_second = self.pace.per_second();
        let comes = turn.map(drop).ok_or(OpenError::TooFast { uid, per_second, waited: WAIT_MAX });
        Turn { wait: turn.unwrap_or(WAIT_MAX), comes }
    }

    fn tell(&self, uid: u32, pid: u32, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_duration_since(*at) < TELL_INTERVAL);
        if let Entry::Vacant(place) = told.entry(uid) {
            place.insert(now);
            tracing::warn!(
                "uid {uid} opens more than {} sessions per second, as many as a user may (half of limits.sessions_per_uid_max, at least \
                 {PER_SECOND_MIN}): each waits for its turn, up to {WAIT_MAX:?}; this one is of pid {pid}",
                self.pace.per_second()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: u32 = 1000;

    #[test]
    fn no_call_waits_for_longer_than_a_second() {
        let (pacing, now) = (Pacing::new(1), Instant::now());
        let turns: Vec<_> = (0..1000).map(|_| pacing.turn(UID, 1, now)).collect();
        let opened = turns.iter().filter(|turn| turn.comes.is_ok()).count();
        assert_eq!(opened, 3 * PER_SECOND_MIN as usize, "the burst, and those that wait up to a second");
        assert!(turns.iter().all(|turn| turn.wait <= WAIT_MAX));
        let refusal = turns[999].comes.as_ref().expect_err("refused").to_string();
        for part in ["uid 1000", "32 sessions per second", "limits.sessions_per_uid_max", "1s"] {
            assert!(refusal.contains(part), "{part:?} is missing in: {refusal}");
        }
        // Who was refused has not spent anything.
        let later = now + Duration::from_secs(1);
        assert!(pacing.turn(UID, 1, later).comes.is_ok());
    }
}
