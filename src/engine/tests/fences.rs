//! A volume whose lock is not ours yet: its requests wait, those for other volumes do not.

mod common;

use std::sync::mpsc::Receiver;

use common::{BLOCK, Client, Rig, VOLUME_BYTES, done, puppet, puppet::Puppet};
use ferrio_driver::{
    Driver, FaultPlan, OpenOptions, Outline, Target, TargetKind, aio::Aio, null::Null, uring::Uring,
};
use ferrio_engine::{EngineError, FEATURES, Threads, VolumeId, clock, inject::Command};
use ferrio_shm::{
    abi::{Opcode, errno, features, sqe_flags},
    entry::{Cqe, Sqe},
};

const DONE: i32 = BLOCK as i32;

const OUTLINE: Outline = Outline {
    kind: TargetKind::File,
    size_bytes: VOLUME_BYTES,
    block_bytes: 512,
    memory_align_bytes: 512,
    direct: true,
    read_only: false,
};

fn write(volume: u16, id: u64) -> Sqe {
    let (op, offset) = (Opcode::Write as u8, id * BLOCK);
    Sqe { op, volume, user_data: id, offset, region_offset: offset, length: BLOCK, ..Sqe::default() }
}

fn cancel(id: u64, target: u64) -> Sqe {
    Sqe { op: Opcode::Cancel as u8, user_data: id, arg: target, ..Sqe::default() }
}

fn add_fenced<D: Driver>(rig: &mut Rig<D>, outline: Outline) -> VolumeId {
    rig.ask(|reply| Command::AddFencedVolume { outline, reply }).unwrap()
}

fn unfence<D: Driver>(rig: &mut Rig<D>, volume: VolumeId, target: Target) -> Result<(), EngineError> {
    let (target, faults) = (target.into(), FaultPlan::default());
    rig.ask(|reply| Command::UnfenceVolume { volume, target, faults, reply })
}

/// Volume 0 is fenced, volume 1 is not. The driver answers as told.
struct World {
    rig: Rig<Puppet>,
    fenced: VolumeId,
    client: Client,
    /// Made-up time.
    now: u64,
}

impl World {
    fn new() -> Self {
        Self::with_features(FEATURES)
    }

    fn with_features(features: u64) -> Self {
        let mut rig = Rig::<Puppet>::with_threads(8, 64, Threads::Two);
        rig.features = features;
        let fenced = add_fenced(&mut rig, OUTLINE);
        let other = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
        let client = rig.open_on(&[fenced, other], 32).unwrap();
        Self { rig, fenced, client, now: clock::now() }
    }

    fn settle(&mut self) -> Vec<(u64, i32)> {
        let mut cqes = Vec::new();
        for _ in 0..20 {
            // So late that each turn looks for doorbells.
            self.now = self.now.max(clock::now()) + 30_000;
            self.rig.parts.submitter.turn(self.now);
            self.rig.parts.reaper.turn(self.now);
            self.client.reap(&mut cqes);
        }
        cqes.iter().map(|cqe: &Cqe| (cqe.user_data, cqe.result)).collect()
    }

    fn submit(&mut self, sqes: &[Sqe]) -> Vec<(u64, i32)> {
        self.client.submit(sqes);
        self.settle()
    }

    /// Numbers of the requests that the driver has.
    fn issued(&self) -> Vec<u64> {
        puppet::in_flight().iter().map(|offset| offset / BLOCK).collect()
    }

    fn take_lock(&mut self) {
        unfence(&mut self.rig, self.fenced, Target::null(VOLUME_BYTES, 512)).unwrap();
    }

    /// Answers what the driver has, until everything is over.
    fn finish(&mut self) -> Vec<(u64, i32)> {
        let mut all = self.settle();
        while !puppet::in_flight().is_empty() {
            puppet::answer(0, None);
            all.extend(self.settle());
        }
        assert_eq!(self.rig.parts.submitter.free_records(), 64, "a record is lost");
        all
    }
}

#[test]
fn requests_wait_and_then_go_on_in_order() {
    let mut world = World::new();
    assert_eq!(world.submit(&[write(0, 1), write(0, 2), write(1, 3), write(0, 4)]), []);
    assert_eq!(world.issued(), [3], "another volume of the same queue goes on");
    // More than the driver takes at once: those that came first are first.
    let more: Vec<Sqe> = (5..17).map(|id| write(0, id)).collect();
    assert_eq!(world.submit(&more), []);
    assert_eq!(world.issued(), [3]);
    world.take_lock();
    world.settle();
    assert!(world.issued().starts_with(&[3, 1, 2, 4, 5]), "{:?}", world.issued());
    let order: Vec<u64> = world.finish().iter().map(|(id, _)| *id).collect();
    assert_eq!(order, [3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(world.submit(&[write(0, 17)]), []);
    assert_eq!(world.issued(), [17], "nothing waits any more");
    assert_eq!(world.finish(), [(17, DONE)]);
}

#[test]
fn what_waits_can_be_cancelled_and_times_out() {
    let mut world = World::new();
    let timed = Sqe { timeout_us: 60_000_000, ..write(0, 2) };
    let chain = [Sqe { flags: sqe_flags::LINK, ..write(0, 3) }, write(1, 4)];
    world.submit(&[write(0, 1), timed]);
    world.submit(&chain);
    assert_eq!(world.issued(), [0_u64; 0]);
    assert_eq!(world.submit(&[cancel(10, 1)]), [(1, -errno::ECANCELED), (10, 0)]);
    assert_eq!(world.submit(&[cancel(11, 3)]), [(3, -errno::ECANCELED), (11, 0), (4, -errno::ECANCELED)]);
    world.now += 61_000_000_000;
    assert_eq!(world.settle(), [(2, -errno::ETIMEDOUT)]);
    world.take_lock();
    assert_eq!(world.finish(), []);
    assert_eq!(puppet::take_submitted(), [0_u64; 0], "none of them was issued");
}

#[test]
fn a_barrier_waits_for_what_waits() {
    let mut world = World::new();
    let barrier = Sqe { flags: sqe_flags::BARRIER, ..write(0, 2) };
    world.submit(&[write(0, 1), barrier, write(0, 3), write(1, 4)]);
    assert_eq!(world.issued(), [4]);
    world.take_lock();
    world.settle();
    assert_eq!(world.issued(), [4, 1]);
    assert_eq!(world.finish(), [(4, DONE), (1, DONE), (2, DONE), (3, DONE)]);
}

#[test]
fn a_session_can_end_while_its_requests_wait() {
    let mut world = World::new();
    world.submit(&[write(0, 1), write(0, 2)]);
    let (done, closed) = done();
    world.rig.command(Command::CloseSession { session_id: world.client.id, done });
    closed.try_recv().expect("nothing of it is in flight");
    assert_eq!(world.rig.parts.submitter.free_records(), 64);
    world.take_lock();
    world.settle();
    assert_eq!(world.issued(), [0_u64; 0]);
}

#[test]
fn a_fenced_volume_can_be_removed() {
    let mut world = World::new();
    world.submit(&[write(0, 1), write(1, 2)]);
    let (sender, count) = std::sync::mpsc::channel();
    let volume = world.fenced;
    world.rig.send(Command::Run(Box::new(move |thread| sender.send(thread.requests_of(volume)).unwrap())));
    assert_eq!(count.try_recv().unwrap().unwrap(), 1);
    let (done, removed) = done();
    world.rig.command(Command::RemoveVolume { volume: world.fenced, done });
    removed.try_recv().expect("the driver has nothing of it");
    assert_eq!(world.settle(), [(1, -errno::ENODEV)]);
    assert_eq!(world.submit(&[write(0, 3)]), [(3, -errno::ENODEV)]);
    let late = unfence(&mut world.rig, world.fenced, Target::null(VOLUME_BYTES, 512));
    assert!(matches!(late, Err(EngineError::NoVolume { .. })), "{late:?}");
    assert_eq!(world.finish(), [(2, DONE)]);
}

fn compare_and_write(volume: u16, id: u64) -> Sqe {
    Sqe { op: Opcode::CompareAndWrite as u8, ..write(volume, id) }
}

/// Drains while the driver has one of `sqes`, which is answered. What tells that the drain is over.
fn drain(world: &mut World, sqes: &[Sqe]) -> Receiver<()> {
    world.submit(sqes);
    let (done, drained) = done();
    assert!(world.rig.parts.injector.send(Command::Drain { done }).is_ok());
    world.settle();
    drained.try_recv().expect_err("the driver has one");
    puppet::answer(0, None);
    world.settle();
    drained
}

#[test]
fn a_drain_leaves_what_waits_to_the_next_daemon() {
    let mut world = World::with_features(FEATURES | features::RESUME);
    let chain = [Sqe { flags: sqe_flags::LINK, ..write(0, 1) }, write(1, 2)];
    let barrier = Sqe { flags: sqe_flags::BARRIER, ..write(0, 3) };
    let waiting = [chain[0], chain[1], barrier, write(0, 4), write(1, 5)];
    drain(&mut world, &waiting).try_recv().expect("nothing but what waits is left");
    assert_eq!(world.rig.pending(), 4);
    // Too late: the daemon may end at any moment now.
    world.take_lock();
    assert_eq!((world.settle(), world.issued()), (vec![], vec![]));

    let World { rig, mut client, .. } = world;
    let mut rig = rig.restart(|_| ()).unwrap();
    let volumes = [(); 2].map(|()| rig.add_volume(Target::null(VOLUME_BYTES, 512).into()));
    let resumed = rig.resume(&mut client, &volumes).unwrap();
    assert_eq!((resumed.replayed, resumed.decided, resumed.owner_dead), (4, 0, 0));
    let mut world = World { rig, fenced: volumes[0], client, now: clock::now() };
    let answered: Vec<(u64, i32)> = world.finish();
    assert_eq!(answered, [1, 2, 3, 4].map(|id| (id, DONE)), "in their order, each once");
}

#[test]
fn a_drain_waits_for_what_the_next_daemon_could_not_do() {
    let cases = [
        // Nobody comes back for it.
        (FEATURES, write(0, 1)),
        // The next daemon could not know that it was not issued.
        (FEATURES | features::RESUME, compare_and_write(0, 1)),
    ];
    for (features, sqe) in cases {
        let mut world = World::with_features(features);
        let drained = drain(&mut world, &[write(0, 2), sqe, write(1, 3)]);
        drained.try_recv().expect_err("one cannot be left");
        world.take_lock();
        assert_eq!(world.finish().len(), 2, "{sqe:?}");
        drained.try_recv().expect("all is answered");
    }
}

#[test]
fn a_drain_is_over_when_the_last_request_comes_to_the_fence() {
    let mut world = World::with_features(FEATURES | features::RESUME);
    let free = Sqe { op: Opcode::Nop as u8, user_data: 1, flags: sqe_flags::LINK, ..Sqe::default() };
    let drained = drain(&mut world, &[free, write(0, 2)]);
    drained.try_recv().expect("it had waited for the first one, and waits for the lock now");
}

/// What was accepted under the outline is judged by what the volume turns out to be.
fn a_volume_is_not_what_it_looked_like<D: Driver>() {
    let mut rig = Rig::<D>::new(8, 64);
    rig.features = FEATURES;
    let path = rig.file("volume");
    std::fs::write(&path, vec![0xa5; VOLUME_BYTES as usize]).unwrap();
    let outline = Target::outline(&path, &OpenOptions::default()).unwrap();
    assert_eq!((outline.kind, outline.size_bytes), (TargetKind::File, VOLUME_BYTES));
    let fenced = add_fenced(&mut rig, outline);
    let mut client = rig.open(fenced, 32);
    let last = VOLUME_BYTES / BLOCK - 1;
    let whole = |op| Sqe { op: op as u8, user_data: 50, length: VOLUME_BYTES, ..Sqe::default() };
    client.submit(&[write(0, 1), write(0, last), whole(Opcode::WriteZeroes)]);
    let compare = Sqe { op: Opcode::CompareAndWrite as u8, ..write(0, 3) };
    client.submit(&[compare]);
    rig.take(4);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(VOLUME_BYTES / 2).unwrap();
    unfence(&mut rig, fenced, Target::open(&path, &OpenOptions::default()).unwrap()).unwrap();
    let results = rig.results(&mut client, 4);
    assert_eq!(results[&1], DONE);
    assert_eq!((results[&last], results[&50]), (-errno::ERANGE, -errno::ERANGE));
    assert_eq!(results[&3], -errno::EILSEQ, "it compares: the arena holds zeros");
    assert_eq!(rig.result(&mut client, write(0, last)), -errno::ERANGE);
}

#[test]
fn a_volume_is_not_what_it_looked_like_over_io_uring() {
    a_volume_is_not_what_it_looked_like::<Uring>();
}

#[test]
fn a_volume_is_not_what_it_looked_like_over_aio() {
    a_volume_is_not_what_it_looked_like::<Aio>();
}

#[test]
fn a_grant_keeps_what_the_session_may_do() {
    let mut rig = Rig::<Null>::new(8, 64);
    let fenced = add_fenced(&mut rig, Outline { read_only: true, ..OUTLINE });
    let mut client = rig.open(fenced, 8);
    assert_eq!(rig.result(&mut client, write(0, 1)), -errno::EROFS);
    unfence(&mut rig, fenced, Target::null(VOLUME_BYTES, 512)).unwrap();
    assert_eq!(rig.result(&mut client, write(0, 1)), -errno::EROFS);
}
