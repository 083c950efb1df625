//! Where completions wait for the futures that asked for them, in a table that is allocated once.

use std::task::{Poll, Waker};

use crate::completion::Completion;

enum Waiter {
    Free,
    Waiting(Option<Waker>),
    /// Boxes nothing: the table holds the completion until its future looks.
    Done(Completion),
    /// The future is gone; the request and its buffer are not.
    Abandoned,
    /// Nobody is left to pick the completion up.
    Lost,
}

pub(crate) struct Waiters {
    waiters: Box<[Waiter]>,
    free: Vec<u32>,
}

impl Waiters {
    pub(crate) fn new(count: u32) -> Self {
        Waiters { waiters: (0..count).map(|_| Waiter::Free).collect(), free: (0..count).rev().collect() }
    }

    /// Takes a place; there is one for every permit.
    pub(crate) fn join(&mut self) -> Option<u32> {
        let index = self.free.pop()?;
        self.waiters[index as usize] = Waiter::Waiting(None);
        Some(index)
    }

    /// The place is free again.
    pub(crate) fn leave(&mut self, index: u32) {
        self.waiters[index as usize] = Waiter::Free;
        self.free.push(index);
    }

    /// The future is dropped. True: the place is free again; false: it stays taken until the completion.
    pub(crate) fn abandon(&mut self, index: u32) -> bool {
        let waiter = &mut self.waiters[index as usize];
        if let Waiter::Waiting(_) = waiter {
            *waiter = Waiter::Abandoned;
            return false;
        }
        self.leave(index);
        true
    }

    /// Brings the completion to its place. The waker of a future that waits is appended to `wakers`. True: nobody wants
    /// it, and the place is free again.
    pub(crate) fn finish(&mut self, index: u32, completion: Completion, wakers: &mut Vec<Waker>) -> bool {
        let Some(waiter) = self.waiters.get_mut(index as usize) else { return false };
        match std::mem::replace(waiter, Waiter::Done(completion)) {
            Waiter::Waiting(waker) => {
                wakers.extend(waker);
                false
            }
            _ => {
                self.leave(index);
                true
            }
        }
    }

    /// The completion, for the future of this place, which is free afterwards. `None`: it will never come.
    pub(crate) fn poll(&mut self, index: u32, waker: &Waker) -> Poll<Option<Completion>> {
        let waiter = &mut self.waiters[index as usize];
        if let Waiter::Waiting(known) = waiter {
            match known {
                Some(known) => known.clone_from(waker),
                None => *known = Some(waker.clone()),
            }
            return Poll::Pending;
        }
        let done = match std::mem::replace(waiter, Waiter::Free) {
            Waiter::Done(completion) => Some(completion),
            _ => None,
        };
        self.free.push(index);
        Poll::Ready(done)
    }

    /// Tells every waiting future that nothing will come.
    pub(crate) fn lose_all(&mut self, wakers: &mut Vec<Waker>) {
        for waiter in &mut self.waiters {
            if let Waiter::Waiting(waker) = waiter {
                wakers.extend(waker.take());
                *waiter = Waiter::Lost;
            }
        }
    }
}
