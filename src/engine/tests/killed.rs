//! An engine is killed at every kill point of its way, one after the other, and again while it recovers: every request of its
//! client is answered exactly once, and chains keep their order. With the feature `kill-points` alone.
//!
//! A kill is a panic here, in one thread that turns both halves: what unwinds writes neither to the journal nor to the rings.

#![cfg(feature = "kill-points")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use common::{
    BLOCK, Client, Rig, VOLUME_BYTES,
    puppet::{self, Puppet},
    request,
};
use ferrio_driver::Target;
use ferrio_engine::kill_point::panic_at;
use ferrio_shm::{
    abi::{Opcode, errno, sqe_flags},
    entry::{Cqe, Sqe},
};

/// The first request of [`stream`].
const STREAM: u64 = 100;
/// Fails in the driver.
const FAILS: u64 = 14;
/// Who waits for whose success.
const CHAINS: [(u64, u64); 11] =
    [(26, 27), (27, 28), (1, 2), (2, 3), (9, 10), (10, 11), (12, 13), (14, 15), (15, 16), (20, 21), (21, 22)];

fn of(op: Opcode, id: u64) -> Sqe {
    request(op, id, id * BLOCK)
}

fn linked(sqe: Sqe) -> Sqe {
    Sqe { flags: sqe_flags::LINK, ..sqe }
}

fn cancel(id: u64, target: u64) -> Sqe {
    Sqe { op: Opcode::Cancel as u8, user_data: id, arg: target, ..Sqe::default() }
}

/// What the client publishes at once.
fn batches() -> Vec<Vec<Sqe>> {
    let bad = |id| Sqe { op: 99, user_data: id, ..Sqe::default() };
    let nop = |id| Sqe { user_data: id, ..Sqe::default() };
    vec![
        vec![
            of(Opcode::Read, 0),
            linked(of(Opcode::Write, 1)),
            linked(of(Opcode::Write, 2)),
            of(Opcode::Read, 3),
            bad(4),
            nop(5),
        ],
        vec![
            Sqe { flags: sqe_flags::BARRIER, ..of(Opcode::Write, 6) },
            of(Opcode::Read, 7),
            cancel(8, 7),
            linked(of(Opcode::Write, 9)),
            linked(bad(10)),
            of(Opcode::Write, 11),
        ],
        vec![linked(of(Opcode::Write, 12))], // a chain that is not visible at once
        vec![
            of(Opcode::Write, 13),
            linked(of(Opcode::Write, FAILS)),
            linked(of(Opcode::Write, 15)),
            of(Opcode::Read, 16),
            linked(of(Opcode::Write, 26)),
            linked(of(Opcode::Write, 27)),
            of(Opcode::Read, 28),
        ],
        vec![cancel(29, 27), cancel(17, 15), of(Opcode::Write, 18), cancel(19, 18)],
        vec![
            linked(of(Opcode::Read, 20)),
            linked(cancel(21, 20)),
            of(Opcode::Read, 22),
            Sqe { timeout_us: 100_000_000, ..of(Opcode::Read, 23) },
        ],
    ]
}

/// Requests that follow each other, in operations of several; some of the operations fail, and none of the requests.
fn stream() -> Vec<Vec<Sqe>> {
    let run = |op, ids: Range<u64>| ids.map(|id| of(op, id)).collect();
    vec![
        run(Opcode::Write, STREAM..STREAM + 8),
        run(Opcode::Read, STREAM + 20..STREAM + 25),
        run(Opcode::Write, STREAM + 8..STREAM + 12),
        vec![of(Opcode::Read, STREAM + 40)],
        run(Opcode::Read, STREAM + 60..STREAM + 68),
    ]
}

/// The client, and what was seen.
struct Life {
    /// It is that of [`stream`].
    streams: bool,
    /// Operations of several that were answered.
    joined: u32,
    client: Client,
    batches: Vec<Vec<Sqe>>,
    next: usize,
    cqes: Vec<Cqe>,
    /// The driver carried these out.
    carried_out: HashSet<u64>,
}

impl Life {
    fn step(&mut self, rig: &mut Rig<Puppet>, step: usize) {
        if let Some(batch) = self.batches.get(self.next)
            && self.client.sq.room() as usize >= batch.len()
        {
            self.next += 1;
            self.client.submit(batch);
        }
        rig.turn();
        for offset in puppet::take_submitted() {
            let id = offset / BLOCK;
            for (before, _) in CHAINS.iter().filter(|(_, then)| *then == id) {
                assert!(self.carried_out.contains(before), "{id} was issued before {before} succeeded");
            }
        }
        let in_flight = puppet::in_flight();
        if !in_flight.is_empty() && !step.is_multiple_of(3) {
            let place = step % in_flight.len();
            let id = in_flight[place] / BLOCK;
            let joined = puppet::length(place) > BLOCK;
            assert!(self.streams || !joined);
            self.joined += u32::from(joined);
            let fails = id == FAILS || joined && self.joined % 2 == 1;
            puppet::answer(place, fails.then_some(errno::EIO));
            if id != FAILS {
                self.carried_out.insert(id);
            }
        }
        if step % 2 == 1 {
            self.client.reap(&mut self.cqes);
        }
    }

    fn is_over(&self) -> bool {
        let sent: usize = self.batches.iter().map(Vec::len).sum();
        self.next == self.batches.len() && self.cqes.len() >= sent
    }

    fn check(&mut self) {
        let ids: BTreeSet<u64> = self.batches.iter().flatten().map(|sqe| sqe.user_data).collect();
        let mut results = BTreeMap::new();
        for cqe in &self.cqes {
            assert!(results.insert(cqe.user_data, cqe.result).is_none(), "twice: {cqe:?}");
        }
        assert_eq!(results.keys().copied().collect::<BTreeSet<_>>(), ids);
        if self.streams {
            let done = results.values().all(|result| *result == BLOCK as i32);
            return assert!(done && self.joined > 0, "{} operations: {results:?}", self.joined);
        }
        for (before, then) in CHAINS {
            assert!(results[&before] >= 0 || results[&then] < 0, "{then} after {before}: {results:?}");
        }
        for (cancel, target) in [(8, 7), (19, 18), (29, 27)] {
            let knows = [0, -errno::EOWNERDEAD].contains(&results[&cancel]);
            assert!(
                results[&target] != -errno::ECANCELED || knows,
                "{cancel} cancelled {target}: {results:?}"
            );
        }
        for (id, result) in &results {
            let expected: &[i32] = match *id {
                4 => &[-errno::EINVAL],
                8 | 17 | 19 | 29 => &[0, -errno::ENOENT, -errno::EALREADY, -errno::EOWNERDEAD],
                10 => &[-errno::EINVAL],
                11 => &[-errno::ECANCELED],
                12 | 13 => &[-errno::EINVAL, BLOCK as i32],
                FAILS => &[-errno::EIO],
                15 | 16 => &[-errno::ECANCELED],
                7 | 18 | 27 | 28 => &[BLOCK as i32, -errno::ECANCELED],
                21 => &[-errno::ENOENT, -errno::EALREADY, -errno::EOWNERDEAD],
                5 => &[0],
                22 => &[-errno::ECANCELED],
                _ => &[BLOCK as i32],
            };
            assert!(expected.contains(result), "request {id}: {result}");
        }
    }
}

fn start(streams: bool) -> (Rig<Puppet>, Life) {
    let mut rig = Rig::<Puppet>::new(4, 64);
    rig.merge = streams;
    rig.features = ferrio_engine::FEATURES;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let client = rig.open(volume, 16);
    let batches = if streams { stream() } else { batches() };
    let carried_out = HashSet::new();
    let life = Life { streams, joined: 0, client, batches, next: 0, cqes: Vec::new(), carried_out };
    (rig, life)
}

/// Goes on until all is answered.
fn live(rig: &mut Rig<Puppet>, life: &mut Life) {
    let mut step = 0;
    while !life.is_over() {
        life.step(rig, step);
        step += 1;
        assert!(step < 1000, "answered: {:?}", life.cqes);
    }
    (0..5).for_each(|step| life.step(rig, step));
}

fn come_back(rig: Rig<Puppet>, life: &mut Life) -> Rig<Puppet> {
    let mut rig = rig.restart(|config| config.epoch += 1).unwrap();
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    rig.resume(&mut life.client, &[volume]).unwrap();
    rig
}

/// Kills at the passes in `at`, one after the other, and returns whether it came to all of them.
fn killed_at(at: &[u64], reaps_between: bool, streams: bool) -> bool {
    let (rig, mut life) = start(streams);
    let mut seed = rig.seed();
    let mut rig = Some(rig); // None: the next one begins with recovery
    let mut reached = true;
    for pass in at.iter().copied().chain([0]) {
        panic_at(pass);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut alive = match rig.take() {
                Some(alive) => alive,
                None => {
                    let mut alive = Rig::<Puppet>::again(seed.clone()).unwrap();
                    let volume = alive.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
                    alive.resume(&mut life.client, &[volume]).unwrap();
                    alive
                }
            };
            live(&mut alive, &mut life);
            alive
        }));
        let left = panic_at(0);
        match outcome {
            Ok(alive) => {
                reached &= pass == 0;
                rig = Some(alive);
                break;
            }
            Err(cause) => {
                let text = cause.downcast_ref::<String>().cloned().unwrap_or_default();
                assert!(text.starts_with("killed at ") && left == 0, "{text} after kills at {at:?}");
            }
        }
        seed.config.epoch += 1;
        if reaps_between {
            life.client.reap(&mut life.cqes);
        }
    }
    life.check();
    // Nothing is owed.
    let rig = come_back(rig.unwrap(), &mut life);
    drop(rig);
    reached
}

#[test]
fn at_every_step() {
    // A kill is no failure of the test: do not report thousands.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let killed =
            info.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with("killed at "));
        if !killed {
            report(info);
        }
    }));
    for (reaps_between, streams) in [(false, false), (true, false), (false, true), (true, true)] {
        let passes = (1..).take_while(|pass| killed_at(&[*pass], reaps_between, streams)).count() as u64;
        assert!(passes > 100, "{passes} kill points passed");
        // Once more, soon after: in the recovery, or in what it leads to.
        for pass in (1..=passes).filter(|pass| (pass % 2 == 0) == reaps_between) {
            for again in [1 + pass / 2 % 12, 1 + pass * 7 % 60, 1 + pass * 31 % 120] {
                killed_at(&[pass, again, 1 + (pass + again) % 40], reaps_between, streams);
            }
        }
    }
}
