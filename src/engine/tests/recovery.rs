//! An engine ends at some step, another one takes its journal over, and the client goes on: every request is answered once.
//!
//! The engines are driven by their turns and dropped where they stand, which writes nothing: journal and rings are as a kill
//! would leave them.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{
    BLOCK, Client, Rig, VOLUME_BYTES, done,
    puppet::{self, Puppet},
    request,
};
use ferrio_driver::Target;
use ferrio_engine::{Resumed, inject::Command};
use ferrio_shm::{
    abi::{Opcode, cqe_flags, errno, sqe_flags},
    entry::{Cqe, Sqe},
};

fn rig() -> (Rig<Puppet>, Client) {
    let mut rig = Rig::<Puppet>::new(4, 64);
    rig.features = ferrio_engine::FEATURES;
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let client = rig.open(volume, 16);
    (rig, client)
}

/// As [`Rig::restart`], with the volume again.
fn restart(rig: Rig<Puppet>, client: &mut Client) -> (Rig<Puppet>, Resumed) {
    let mut rig = rig.restart(|config| config.epoch += 1).unwrap();
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let resumed = rig.resume(client, &[volume]).unwrap();
    (rig, resumed)
}

/// Lets the driver answer what it has, and reaps until nothing comes any more.
fn finish(rig: &mut Rig<Puppet>, client: &mut Client, into: &mut Vec<Cqe>) {
    for _ in 0..100 {
        rig.turn();
        while !puppet::in_flight().is_empty() {
            puppet::answer(0, None);
        }
        client.reap(into);
    }
}

fn by_user_data(cqes: &[Cqe]) -> BTreeMap<u64, (i32, u32)> {
    let map: BTreeMap<_, _> = cqes.iter().map(|cqe| (cqe.user_data, (cqe.result, cqe.flags))).collect();
    assert_eq!(map.len(), cqes.len(), "one answer each: {cqes:?}");
    map
}

#[test]
fn every_request_is_answered_once() {
    let (mut rig, mut client) = rig();
    let mut cqes = Vec::new();
    let reads: Vec<Sqe> = (0..8).map(|block| request(Opcode::Read, block, block * BLOCK)).collect();
    client.submit(&reads);
    rig.turn_until("the driver to have four", |_| puppet::in_flight().len() == 4);
    puppet::answer(2, None);
    puppet::answer(0, Some(errno::EIO));
    rig.turn();
    client.reap(&mut cqes);
    assert_eq!(by_user_data(&cqes), [(0, (-errno::EIO, 0)), (2, (BLOCK as i32, 0))].into());
    client.submit(&[request(Opcode::Write, 8, 0)]); // stays in the ring
    let (mut rig, resumed) = restart(rig, &mut client);
    assert_eq!(resumed, Resumed { replayed: 6, ..Resumed::default() });
    finish(&mut rig, &mut client, &mut cqes);
    let answers = by_user_data(&cqes);
    assert_eq!(answers.len(), 9);
    for replayed in [1, 3, 4, 5, 6, 7] {
        assert_eq!(answers[&replayed], (BLOCK as i32, cqe_flags::REPLAYED), "{replayed}");
    }
    assert_eq!(answers[&8], (BLOCK as i32, 0), "not taken before");
    assert!(rig.snapshot().counters.replayed == 6 && client.fault.lock().unwrap().is_none());
}

#[test]
fn what_cannot_be_done_twice_is_answered_so() {
    let mut rig = Rig::<Puppet>::new(4, 64);
    rig.features = ferrio_engine::FEATURES;
    // The null driver carries out nothing on a file, and a null target has nothing to compare: one of each.
    let volumes = |rig: &mut Rig<Puppet>| {
        let file = rig.file_target("volume");
        [Arc::new(Target::null(VOLUME_BYTES, 512)), file].map(|target| rig.add_volume(target))
    };
    let granted = volumes(&mut rig);
    let mut client = rig.open_on(&granted, 16).unwrap();
    let linked = Sqe { flags: sqe_flags::LINK, volume: 1, ..request(Opcode::CompareAndWrite, 1, 0) };
    let cancel = Sqe { op: Opcode::Cancel as u8, user_data: 3, arg: 99, ..Sqe::default() };
    let waits = Sqe { flags: sqe_flags::LINK, ..request(Opcode::Read, 4, 0) };
    client.submit(&[linked, request(Opcode::Write, 2, BLOCK), waits, cancel, request(Opcode::Read, 5, 0)]);
    rig.turn_until("the requests", |_| puppet::in_flight().len() == 3);
    let mut rig = rig.restart(|_| ()).unwrap();
    let granted = volumes(&mut rig);
    let resumed = rig.resume(&mut client, &granted).unwrap();
    assert_eq!(resumed, Resumed { replayed: 3, owner_dead: 2, ..Resumed::default() });
    let mut cqes = Vec::new();
    finish(&mut rig, &mut client, &mut cqes);
    let replayed = (BLOCK as i32, cqe_flags::REPLAYED);
    let dead = (-errno::EOWNERDEAD, 0);
    let broken = (-errno::ECANCELED, cqe_flags::REPLAYED);
    assert_eq!(by_user_data(&cqes), [(1, dead), (2, broken), (3, dead), (4, replayed), (5, replayed)].into());
}

#[test]
fn a_session_that_was_ending_is_not_waited_for() {
    let (mut rig, mut client) = rig();
    client.submit(&[1, 2, 3, 4, 5, 6].map(|id| request(Opcode::Read, id, id * BLOCK)));
    rig.turn_until("the driver to have four", |_| puppet::in_flight().len() == 4);
    let (done, _) = done();
    rig.send(Command::CloseSession { session_id: client.id, done });
    let rig = rig.restart(|_| ()).unwrap();
    assert_eq!(rig.parts.dormant, []);
    assert_eq!(rig.parts.submitter.free_records(), 64);
}

#[test]
fn a_session_that_nobody_comes_for_is_dropped() {
    let (mut rig, mut client) = rig();
    client.submit(&[request(Opcode::Read, 1, 0), request(Opcode::Read, 2, 0)]);
    rig.turn_until("the requests", |_| puppet::in_flight().len() == 2);
    let mut rig = rig.restart(|_| ()).unwrap();
    let dormant = &rig.parts.dormant;
    assert_eq!((dormant[0].session_id, &dormant[0].queues, dormant[0].owed), (client.id, &vec![0], 2));
    let free = rig.parts.submitter.free_records();
    let forgotten = rig.ask(|reply| Command::ForgetSession { session_id: client.id, reply });
    assert_eq!(forgotten.unwrap(), 2);
    assert_eq!(rig.parts.submitter.free_records(), free + 2);
    let refused = rig.resume(&mut client, &[]).unwrap_err();
    assert_eq!(refused.errno(), errno::ESTALE, "{refused}");
    let rig = rig.restart(|_| ()).unwrap();
    assert!(rig.parts.dormant.is_empty());
}
