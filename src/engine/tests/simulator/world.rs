//! Clients, the real scheduler, order and merge, and a device, on made-up time. Every rule that must hold at any time is
//! checked as it goes.

use std::collections::VecDeque;

use ferrio_driver::{FileIndex, Op, OpKind, RegionIndex};
use ferrio_engine::{
    VolumeId,
    clock::Nanos,
    merge::{Merge, MergeLimits, Outcome, outcome},
    order::{Order, Standing},
    queue::{Arrival, Class, Pick},
    scheduler::{Budgets, Scheduler},
};

use crate::device::{Device, DeviceModel};

pub const MILLISECOND: Nanos = 1_000_000;
pub const SECOND: Nanos = 1000 * MILLISECOND;

/// What a client does, in a closed loop.
#[derive(Clone, Debug)]
pub struct Load {
    pub queue: u32,
    pub volume: u16,
    pub class: Class,
    pub writes: bool,
    pub bytes: (u32, u32),
    pub depth: usize,
    pub sequential: bool,
    pub from: Nanos,
    pub until: Nanos,
    /// Of a hundred requests, those that are barriers, and those that go on a chain.
    pub barriers: u32,
    pub links: u32,
}

impl Load {
    pub fn new(queue: u32, class: Class, depth: usize) -> Self {
        Self {
            queue,
            volume: 0,
            class,
            writes: class == Class::Write,
            bytes: (4096, 4096),
            depth,
            sequential: false,
            from: 0,
            until: Nanos::MAX,
            barriers: 0,
            links: 0,
        }
    }
}

pub struct Client {
    pub load: Load,
    outstanding: usize,
    offset: u64,
    /// Its last request, if that goes on a chain.
    chain: Option<u32>,
    pub submitted: u64,
    pub answered: u64,
    /// When, how many bytes, and after what time in the device.
    pub done: Vec<(Nanos, u32, Nanos)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Held,
    Waiting,
    Device,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    place: Place,
    client: usize,
    offset: u64,
    bytes: u32,
    issued: Nanos,
    barrier: bool,
    /// Order of acceptance.
    sequence: u64,
    after: Option<u64>,
    singly: bool,
}

/// How often, of a thousand, something goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub error: u32,
    pub short: u32,
    pub full: u32,
    pub share: u32,
}

pub struct World {
    pub now: Nanos,
    pub rng: fastrand::Rng,
    pub scheduler: Scheduler,
    pub clients: Vec<Client>,
    pub faults: Faults,
    pub merge: MergeLimits,
    /// By how much at most the engine is woken late.
    pub late: Nanos,
    pub merged: u64,
    depth: usize,
    budgets: Budgets,
    order: Order,
    device: Device,
    ops: Vec<Vec<u32>>,
    free_ops: Vec<usize>,
    requests: Vec<Request>,
    free: Vec<u32>,
    /// Some client has barriers or chains.
    ordered: bool,
    sequence: u64,
    /// Not answered, by queue: (sequence, volume, barrier).
    alive: Vec<VecDeque<(u64, u16, bool)>>,
    /// Cost that others were given since a class that waits was served, and what its last request cost.
    passed: [u64; 3],
    last: [u32; 3],
    failed: u64,
}

impl World {
    /// A session with one queue for each of `weights`.
    pub fn new(seed: u64, device: DeviceModel, depth: usize, budgets: Budgets, weights: &[u32]) -> Self {
        let records = 1024;
        let mut scheduler = Scheduler::new(records, depth as u32, budgets);
        let mut order = Order::new(records);
        let volumes = [Some(VolumeId(0)), Some(VolumeId(1))];
        for (queue, weight) in (0..).zip(weights) {
            scheduler.open_session(u64::from(queue) + 1, *weight, None, &[queue], &volumes);
            order.add_queue(queue, volumes.len());
        }
        let request = Request {
            place: Place::Free,
            client: 0,
            offset: 0,
            bytes: 0,
            issued: 0,
            barrier: false,
            sequence: 0,
            after: None,
            singly: false,
        };
        Self {
            now: 1,
            rng: fastrand::Rng::with_seed(seed),
            scheduler,
            clients: Vec::new(),
            faults: Faults::default(),
            merge: MergeLimits::OFF,
            late: 0,
            merged: 0,
            depth,
            budgets,
            order,
            device: Device::new(device),
            ops: Vec::new(),
            free_ops: Vec::new(),
            requests: vec![request; records as usize],
            free: (0..records).rev().collect(),
            ordered: false,
            sequence: 0,
            alive: vec![VecDeque::new(); weights.len()],
            passed: [0; 3],
            last: [1; 3],
            failed: 0,
        }
    }

    pub fn add(&mut self, load: Load) -> usize {
        self.ordered |= load.barriers + load.links > 0;
        let client = Client {
            load,
            outstanding: 0,
            offset: 0,
            chain: None,
            submitted: 0,
            answered: 0,
            done: Vec::new(),
        };
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Goes on until this time.
    pub fn run(&mut self, until: Nanos) {
        while self.now < until {
            self.submit();
            self.pass();
            let starts = self.clients.iter().map(|client| client.load.from).filter(|from| *from > self.now);
            let late = if self.late > 0 { self.rng.u64(..=self.late) } else { 0 };
            let woken = self.scheduler.wakes_at(self.now).saturating_add(late);
            let next = self.device.next().min(woken).min(starts.min().unwrap_or(until));
            self.now = next.max(self.now + 1).min(until);
            while let Some(op) = self.device.pop(self.now, &mut self.rng) {
                self.finish(op);
            }
        }
    }

    /// Nobody submits any more: everything accepted is answered.
    pub fn drain(&mut self) {
        for client in &mut self.clients {
            client.load.until = self.now;
        }
        let limit = self.now + 3600 * SECOND;
        while self.free.len() < self.requests.len() {
            assert!(self.now < limit, "not answered within an hour: {:?}", self.stuck());
            self.run(self.now + SECOND);
        }
        for client in &self.clients {
            assert_eq!(client.submitted, client.answered, "one answer per request: {:?}", client.load);
        }
        assert!(self.scheduler.is_empty() && self.order.held() == 0);
        assert_eq!(self.scheduler.latency().bulk(), 0, "what was issued is done");
    }

    fn stuck(&self) -> Vec<Request> {
        self.requests.iter().filter(|request| request.place != Place::Free).copied().take(3).collect()
    }

    /// Takes back any request that was not issued.
    pub fn cancel_any(&mut self) {
        let start = self.rng.usize(..self.requests.len());
        let count = self.requests.len();
        let waits = |record: &usize| matches!(self.requests[*record].place, Place::Waiting | Place::Held);
        let Some(record) = (0..count).map(|n| (start + n) % count).find(waits) else { return };
        let record = record as u32;
        if !self.order.withdraw(record) {
            self.scheduler.remove(record);
        }
        self.answer(record, false);
        self.let_go();
    }

    fn submit(&mut self) {
        for index in 0..self.clients.len() {
            loop {
                let client = &self.clients[index];
                let on = (client.load.from..client.load.until).contains(&self.now);
                if !on || client.outstanding >= client.load.depth || self.free.is_empty() {
                    break;
                }
                self.accept(index);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let Some(record) = self.free.pop() else { return };
        let rng = &mut self.rng;
        let client = &mut self.clients[index];
        let load = &client.load;
        let bytes = rng.u32(load.bytes.0 / 512..=load.bytes.1 / 512) * 512;
        let offset = if load.sequential { client.offset } else { rng.u64(..1 << 20) * 4096 };
        client.offset = offset + u64::from(bytes);
        let barrier = rng.u32(..100) < load.barriers;
        let after = client.chain.take();
        if rng.u32(..100) < load.links {
            client.chain = Some(record);
        }
        client.outstanding += 1;
        client.submitted += 1;
        self.sequence += 1;
        self.requests[record as usize] = Request {
            place: Place::Held,
            client: index,
            offset,
            bytes,
            issued: 0,
            barrier,
            sequence: self.sequence,
            after: after.map(|after| self.requests[after as usize].sequence),
            singly: false,
        };
        let (queue, volume) = (load.queue, load.volume);
        if self.ordered {
            self.alive[queue as usize].push_back((self.sequence, volume, barrier));
        }
        let (class, writes) = (load.class, load.writes);
        let arrival = Arrival { queue, volume: Some(volume), class, writes, bytes, limited: true };
        if !self.ordered {
            self.requests[record as usize].place = Place::Waiting;
            return self.scheduler.push_new(record, &arrival);
        }
        self.scheduler.arrive(record, &arrival);
        if self.order.admit(record, &Standing { queue, volume: Some(volume), barrier, after }) {
            self.start(record);
        }
    }

    fn start(&mut self, record: u32) {
        assert_eq!(self.requests[record as usize].place, Place::Held);
        self.requests[record as usize].place = Place::Waiting;
        self.scheduler.push_back(record);
    }

    fn let_go(&mut self) {
        loop {
            if let Some(record) = self.order.pop_broken() {
                self.answer(record, false);
            } else if let Some(record) = self.order.pop_ready() {
                self.start(record);
            } else {
                return;
            }
        }
    }

    // ---- a pass

    fn pass(&mut self) {
        if self.scheduler.is_idle() {
            return;
        }
        let now = self.now;
        self.scheduler.begin_pass(now);
        let mut plug: Vec<(Merge, Vec<u32>)> = Vec::new();
        while self.device.in_flight() + plug.len() < self.depth {
            let backlog = self.scheduler.backlog();
            let Some(pick) = self.scheduler.next(now) else { break };
            if self.rng.u32(..1000) < self.faults.full {
                self.scheduler.put_back(pick);
                break;
            }
            if self.rng.u32(..1000) < self.faults.share {
                self.scheduler.pass_over(pick);
                continue;
            }
            // A class whose requests limits have just refused does not wait for its turn.
            let after = self.scheduler.backlog();
            self.check_starvation(pick, std::array::from_fn(|class| backlog[class] && after[class]));
            self.scheduler.issued(pick, now);
            self.check_issue(pick.record);
            self.join(&mut plug, pick.record);
        }
        for (merge, parts) in plug {
            self.check_joined(&merge, &parts);
            let bytes = parts.iter().map(|part| u64::from(self.requests[*part as usize].bytes)).sum();
            self.merged += parts.len() as u64 - 1;
            let op = self.free_ops.pop().unwrap_or_else(|| {
                self.ops.push(Vec::new());
                self.ops.len() - 1
            });
            self.ops[op] = parts;
            self.device.submit(op, bytes, now, &mut self.rng);
        }
        self.scheduler.end_pass(now);
    }

    fn op(&self, record: u32) -> Op {
        let request = &self.requests[record as usize];
        let load = &self.clients[request.client].load;
        let kind = if load.writes { OpKind::Write } else { OpKind::Read };
        let (file, region) = (FileIndex(load.volume.into()), RegionIndex(0));
        Op { kind, file, region, region_offset: 0, length: request.bytes, offset: request.offset, fua: false }
    }

    /// It goes on where an operation of this pass and of its class ends, or begins one.
    fn join(&self, plug: &mut Vec<(Merge, Vec<u32>)>, record: u32) {
        let (op, class) = (self.op(record), self.class(record));
        let singly = |part: u32| self.requests[part as usize].singly;
        let open = plug.iter_mut().find(|(merge, parts)| {
            let fits = merge.end() == op.offset && self.class(parts[0]) == class;
            fits && !singly(record) && !singly(parts[0]) && merge.clone().join(&op)
        });
        match open {
            Some((merge, parts)) => {
                assert!(merge.join(&op));
                parts.push(record);
            }
            None => plug.push((Merge::new(op, self.merge), vec![record])),
        }
    }

    fn class(&self, record: u32) -> Class {
        self.clients[self.requests[record as usize].client].load.class
    }

    /// One operation is one stretch of one volume, of one direction and class, and within the limits if it is joined.
    fn check_joined(&self, merge: &Merge, parts: &[u32]) {
        let first = self.op(parts[0]);
        let mut end = first.offset;
        for part in parts {
            let op = self.op(*part);
            assert_eq!((op.offset, op.kind, op.file), (end, first.kind, first.file), "{parts:?}");
            assert_eq!(self.class(*part), self.class(parts[0]), "{parts:?}");
            end += u64::from(op.length);
        }
        assert_eq!(end, merge.end(), "{parts:?}");
        let MergeLimits { bytes_max, segments_max } = self.merge;
        let within = end - first.offset <= bytes_max.into() && parts.len() <= segments_max as usize;
        assert!(parts.len() == 1 || within, "{parts:?} beyond {:?}", self.merge);
    }

    fn check_issue(&mut self, record: u32) {
        let request = &mut self.requests[record as usize];
        assert_eq!(request.place, Place::Waiting, "issued once: {request:?}");
        (request.place, request.issued) = (Place::Device, self.now);
        let request = *request;
        let load = &self.clients[request.client].load;
        for (sequence, volume, barrier) in &self.alive[load.queue as usize] {
            let before = *sequence < request.sequence && *volume == load.volume;
            assert!(
                !before || !(*barrier || request.barrier),
                "a barrier between {sequence} and {request:?}"
            );
            assert_ne!(
                Some(*sequence),
                request.after,
                "its predecessor in the chain is not over: {request:?}"
            );
        }
    }

    /// See `ferrio_engine::scheduler::rounds` for the bound.
    fn check_starvation(&mut self, pick: Pick, backlog: [bool; 3]) {
        let (served, largest) = (pick.class.index(), 64);
        let cost = pick.cost;
        for (class, waits) in backlog.into_iter().enumerate() {
            if class == served {
                // Who was alone paid nothing, and owes what it owed.
                let owes = if cost > 0 { cost } else { self.last[class] };
                (self.passed[class], self.last[class]) = (0, owes);
            } else if !waits {
                self.passed[class] = 0;
            } else {
                self.passed[class] += u64::from(cost);
                let others = self.budgets.iter().sum::<u32>() - self.budgets[class];
                let rounds = self.last[class].div_ceil(self.budgets[class]) + 1;
                let bound = u64::from(rounds * others + 2 * largest);
                assert!(
                    self.passed[class] <= bound,
                    "class {class} starves: {} > {bound}; last {:?}, budgets {:?}, cost {cost}",
                    self.passed[class],
                    self.last,
                    self.budgets
                );
            }
        }
    }

    // ---- results

    fn finish(&mut self, op: usize) {
        let parts = std::mem::take(&mut self.ops[op]);
        self.free_ops.push(op);
        parts.iter().for_each(|part| self.scheduler.completed(*part, self.now));
        let bytes: u32 = parts.iter().map(|part| self.requests[*part as usize].bytes).sum();
        let fate = self.rng.u32(..1000);
        let result = match fate {
            _ if fate < self.faults.error => -5,
            _ if fate < self.faults.error + self.faults.short => bytes.cast_signed() / 2,
            _ => bytes.cast_signed(),
        };
        if outcome(result, bytes.into()) == Outcome::Whole {
            parts.into_iter().for_each(|part| self.answer(part, true));
        } else if parts.len() > 1 || result >= 0 {
            // A short transfer goes on, a joined one is issued singly.
            for part in parts.into_iter().rev() {
                let request = &mut self.requests[part as usize];
                (request.place, request.singly) = (Place::Waiting, true);
                self.scheduler.push_front(part);
            }
        } else {
            self.failed += 1;
            self.answer(parts[0], false);
        }
        self.let_go();
    }

    fn answer(&mut self, record: u32, succeeded: bool) {
        let request = &mut self.requests[record as usize];
        assert_ne!(request.place, Place::Free, "answered twice");
        request.place = Place::Free;
        let (request, now) = (*request, self.now);
        self.order.finish(record, succeeded);
        let client = &mut self.clients[request.client];
        client.answered += 1;
        client.outstanding -= 1;
        if client.chain == Some(record) {
            client.chain = None;
        }
        if succeeded {
            client.done.push((now, request.bytes, now - request.issued));
        }
        if self.ordered {
            let alive = &mut self.alive[client.load.queue as usize];
            alive.retain(|(sequence, _, _)| *sequence != request.sequence);
        }
        self.free.push(record);
    }

    // ---- what came of it

    /// Requests and bytes that a client was answered from one time to another.
    pub fn throughput(&self, client: usize, from: Nanos, until: Nanos) -> (u64, u64) {
        let done = self.clients[client].done.iter().filter(|(at, _, _)| (from..until).contains(at));
        done.fold((0, 0), |(count, bytes), (_, more, _)| (count + 1, bytes + u64::from(*more)))
    }

    /// Time in the device that 99 of 100 requests did not exceed.
    pub fn p99(&self, client: usize, from: Nanos, until: Nanos) -> Nanos {
        let done = self.clients[client].done.iter().filter(|(at, _, _)| (from..until).contains(at));
        let mut times: Vec<Nanos> = done.map(|(_, _, time)| *time).collect();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}
