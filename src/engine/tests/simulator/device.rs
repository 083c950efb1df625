//! A device: some requests at a time, each for a time that depends on its size and on chance; the others queue.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use ferrio_engine::clock::Nanos;

#[derive(Clone, Copy, Debug)]
pub struct DeviceModel {
    /// Requests served at once.
    pub parallelism: usize,
    /// Time of a request without bytes.
    pub base: Nanos,
    /// More for each 4 KiB.
    pub per_block: Nanos,
    /// Greatest part of its time that a request takes more or less.
    pub jitter: f64,
    /// One request in so many takes four times as long; 0: none.
    pub hiccup: u32,
}

#[derive(Debug)]
pub struct Device {
    model: DeviceModel,
    busy: BinaryHeap<Reverse<(Nanos, usize)>>,
    queued: VecDeque<(usize, u64)>,
}

impl Device {
    pub fn new(model: DeviceModel) -> Self {
        Self { model, busy: BinaryHeap::new(), queued: VecDeque::new() }
    }

    pub fn in_flight(&self) -> usize {
        self.busy.len() + self.queued.len()
    }

    pub fn submit(&mut self, op: usize, bytes: u64, now: Nanos, rng: &mut fastrand::Rng) {
        self.queued.push_back((op, bytes));
        self.serve(now, rng);
    }

    /// When the next request is done.
    pub fn next(&self) -> Nanos {
        self.busy.peek().map_or(Nanos::MAX, |Reverse((at, _))| *at)
    }

    /// A request that is done.
    pub fn pop(&mut self, now: Nanos, rng: &mut fastrand::Rng) -> Option<usize> {
        if self.next() > now {
            return None;
        }
        let Reverse((at, op)) = self.busy.pop()?;
        self.serve(at, rng);
        Some(op)
    }

    fn serve(&mut self, now: Nanos, rng: &mut fastrand::Rng) {
        while self.busy.len() < self.model.parallelism {
            let Some((op, bytes)) = self.queued.pop_front() else { return };
            let plain = self.model.base + self.model.per_block * bytes.div_ceil(4096);
            let mut time = plain as f64 * (1.0 + self.model.jitter * (2.0 * rng.f64() - 1.0));
            if self.model.hiccup > 0 && rng.u32(..self.model.hiccup) == 0 {
                time *= 4.0;
            }
            self.busy.push(Reverse((now + time as Nanos + 1, op)));
        }
    }
}
