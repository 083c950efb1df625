//! Which queues are looked at each turn. One that was idle for a while is put to sleep (its `daemon_sleep` word is odd) and
//! comes back when its session's doorbell rings.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use ferrio_shm::doorbell::{DoorbellRx, Drained};
use rustix::event::{Timespec, epoll};

use super::{BELL, Session, Sessions, open, open_mut};
use crate::{bell::Bell, clock::Nanos};

/// Doorbells collected per call.
const EVENTS: usize = 64;
/// Queues that are polled again as soon as the Submitter wakes; it bounds what the wake-up costs.
pub(super) const INTERRUPTED_MAX: usize = 64;

impl Sessions {
    /// How many queues are polled.
    pub fn polled(&self) -> usize {
        self.polled.len()
    }

    /// Slot of a polled queue.
    pub fn polled_at(&self, position: usize) -> u32 {
        self.polled[position]
    }

    /// Looks which doorbells rang, without sleeping, and polls the queues behind them. Returns how many rang.
    pub fn collect_doorbells(&mut self, bell: &Bell, now: Nanos) -> u32 {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let Ok((rung, _)) = epoll::wait(&self.epoll, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        else {
            return 0; // EINTR: it is readable still
        };
        let mut count = 0;
        for event in rung {
            let data = event.data.u64();
            if data == BELL {
                bell.drain();
                continue;
            }
            count += 1;
            self.rang(data as usize, now);
        }
        count
    }

    fn rang(&mut self, key: usize, now: Nanos) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.doorbell.as_ref().map(DoorbellRx::drain) {
            Some(Ok(Drained::Rang | Drained::Empty)) | None => {}
            // It can not be read: it would stay readable for ever, so it must go.
            Some(Ok(Drained::Closed) | Err(_)) => drop_doorbell(&self.epoll, session),
        }
        if session.on_fault.is_none() || session.closing.is_some() {
            return;
        }
        for n in 0..session.slots.len() {
            let slot = self.sessions[key].slots[n];
            self.poll(slot, now);
        }
    }

    fn poll(&mut self, slot: u32, now: Nanos) {
        let queue = open_mut(&mut self.queues, slot);
        if !queue.polled {
            queue.sq.wake();
            queue.polled = true;
            queue.busy_at = now;
            self.polled.push(slot);
        }
    }

    /// Puts queues to sleep that were last busy before `before`.
    pub fn retire_idle(&mut self, before: Nanos) {
        let mut position = 0;
        while position < self.polled.len() {
            let slot = self.polled[position];
            let queue = open_mut(&mut self.queues, slot);
            if queue.busy_at >= before || queue.waits_for_records {
                position += 1;
                continue;
            }
            match queue.sq.prepare_sleep() {
                Ok(true) => self.unpoll(position),
                Ok(false) => position += 1,
                Err(fault) => {
                    self.marked.push((slot, fault));
                    position += 1;
                }
            }
        }
    }

    /// Puts every queue to sleep, before the Submitter itself sleeps. False if one of them has something after all.
    pub fn all_asleep(&mut self) -> bool {
        self.interrupted.clear();
        let mut position = 0;
        while position < self.polled.len() {
            let slot = self.polled[position];
            let queue = open_mut(&mut self.queues, slot);
            if queue.waits_for_records {
                // Records come back as returns, which wake the Submitter.
                position += 1;
                continue;
            }
            match queue.sq.prepare_sleep() {
                Ok(true) => {
                    self.unpoll(position);
                    let answers_come = self.sessions[open(&self.queues, slot).session].outstanding > 0;
                    if answers_come && self.interrupted.len() < INTERRUPTED_MAX {
                        self.interrupted.push(slot);
                    }
                }
                Ok(false) => return false,
                Err(fault) => {
                    self.marked.push((slot, fault));
                    return false;
                }
            }
        }
        true
    }

    /// The Submitter is awake: polls again who will be answered, and then go on. Whoever rings meanwhile does so in vain,
    /// and waits until doorbells are looked at.
    pub fn resume(&mut self, now: Nanos) {
        while let Some(slot) = self.interrupted.pop() {
            self.poll(slot, now);
        }
    }

    /// A returning record lets someone go on.
    pub fn waits_for_returns(&self) -> bool {
        self.closing > 0 || !self.polled.is_empty()
    }

    fn unpoll(&mut self, position: usize) {
        let slot = self.polled.swap_remove(position);
        open_mut(&mut self.queues, slot).polled = false;
    }

    pub(super) fn unpoll_session(&mut self, key: usize) {
        let queues = &mut self.queues;
        self.polled.retain(|slot| {
            let queue = open_mut(queues, *slot);
            let keep = queue.session != key;
            queue.polled = keep;
            keep
        });
    }
}

pub(super) fn drop_doorbell(epoll: &OwnedFd, session: &mut Session) {
    if let Some(doorbell) = session.doorbell.take() {
        // Closing the last descriptor would remove it too; deleting first does not depend on that.
        let _ = epoll::delete(epoll, doorbell.as_fd());
    }
}
