//! readv, writev, discard, write-zeroes: each over files by both backends, and over memory.

mod common;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use common::{ARENA_BYTES, BLOCK, Client, Rig, VOLUME_BYTES, region, request};
use ferrio_driver::{
    Driver, FaultEffect, FaultOps, FaultPlan, FaultRule, Target,
    aio::Aio,
    fault::{ALWAYS_PPM, Fault},
    null::Null,
    uring::Uring,
};
use ferrio_engine::{VolumeId, clock, inject::Command, session::FEATURES};
use ferrio_shm::{
    abi::{Opcode, errno, limits, sqe_flags},
    entry::{IovEntry, Sqe},
};

/// Where tests write their iovecs.
const IOVEC: u64 = ARENA_BYTES - 8192;

fn rig<D: Driver>(depth: u32, requests_max: u32) -> Rig<D> {
    let mut rig = Rig::new(depth, requests_max);
    rig.features = FEATURES;
    rig
}

fn entry(offset: u64, length: u64) -> IovEntry {
    IovEntry { region: 0, zero: 0, length: u32::try_from(length).unwrap(), offset }
}

/// Writes an iovec to the arena.
fn write_iovec(client: &Client, offset: u64, entries: &[IovEntry]) {
    for (words, entry) in client.arena(offset, 16 * entries.len() as u64).chunks(2).zip(entries) {
        words.iter().zip(entry.to_words()).for_each(|(word, value)| word.store(value, Relaxed));
    }
}

fn vectored(op: Opcode, offset: u64, iovec: u64, entries: &[IovEntry]) -> Sqe {
    let length = entries.iter().map(|entry| u64::from(entry.length)).sum();
    let iov_count = u32::try_from(entries.len()).unwrap();
    Sqe { length, iov_count, region_offset: iovec, ..request(op, 7, offset) }
}

fn fill(client: &Client, offset: u64, length: u64, value: u64) {
    client.arena(offset, length).iter().for_each(|word| word.store(value, Relaxed));
}

#[track_caller]
fn assert_filled(client: &Client, offset: u64, length: u64, value: u64) {
    let arena = client.arena(offset, length);
    let wrong = arena.iter().position(|word| word.load(Relaxed) != value);
    assert_eq!(wrong, None, "{length} bytes at {offset} are not all {value}");
}

/// Three blocks from different places of arena and region go to one range of the volume, and come back to others.
fn pieces_of_memory_go_both_ways<D: Driver>(target: fn(&Rig<D>) -> Arc<Target>) {
    let mut rig = rig::<D>(8, 64);
    let target = target(&rig);
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let (daemons, own) = region(4 * BLOCK);
    let session_id = client.id;
    rig.ask(|reply| Command::AddRegion { session_id, index: 3, region: daemons, reply }).unwrap();
    fill(&client, 5 * BLOCK, BLOCK, 1);
    own.u64s(4096, 512).unwrap().iter().for_each(|word| word.store(2, Relaxed));
    fill(&client, BLOCK, 2 * BLOCK, 3);
    let pieces =
        [entry(5 * BLOCK, BLOCK), IovEntry { region: 3, ..entry(BLOCK, BLOCK) }, entry(BLOCK, 2 * BLOCK)];
    write_iovec(&client, IOVEC, &pieces);
    let written = Sqe { flags: sqe_flags::FUA, ..vectored(Opcode::Writev, 8 * BLOCK, IOVEC, &pieces) };
    assert_eq!(rig.result(&mut client, written), 4 * 4096);
    let back = Sqe { length: 4 * BLOCK, region_offset: 16 * BLOCK, ..request(Opcode::Read, 1, 8 * BLOCK) };
    assert_eq!(rig.result(&mut client, back), 4 * 4096);
    assert_filled(&client, 16 * BLOCK, BLOCK, 1);
    assert_filled(&client, 17 * BLOCK, BLOCK, 2);
    assert_filled(&client, 18 * BLOCK, 2 * BLOCK, 3);
    let scattered = [entry(40 * BLOCK, 2 * BLOCK), entry(30 * BLOCK, BLOCK), entry(35 * BLOCK, BLOCK)];
    write_iovec(&client, IOVEC, &scattered);
    assert_eq!(rig.result(&mut client, vectored(Opcode::Readv, 8 * BLOCK, IOVEC, &scattered)), 4 * 4096);
    assert_filled(&client, 40 * BLOCK, BLOCK, 1);
    assert_filled(&client, 41 * BLOCK, BLOCK, 2);
    assert_filled(&client, 30 * BLOCK, BLOCK, 3);
    assert_filled(&client, 35 * BLOCK, BLOCK, 3);
    let alone = [entry(50 * BLOCK, BLOCK)];
    write_iovec(&client, IOVEC, &alone);
    assert_eq!(rig.result(&mut client, vectored(Opcode::Readv, 9 * BLOCK, IOVEC, &alone)), 4096);
    assert_filled(&client, 50 * BLOCK, BLOCK, 2);
}

fn on_file<D: Driver>(rig: &Rig<D>) -> Arc<Target> {
    rig.file_target("volume")
}

fn in_memory<D: Driver>(_: &Rig<D>) -> Arc<Target> {
    Arc::new(Target::memory(VOLUME_BYTES).unwrap())
}

#[test]
fn pieces_of_memory_go_both_ways_over_io_uring() {
    pieces_of_memory_go_both_ways::<Uring>(on_file);
    pieces_of_memory_go_both_ways::<Uring>(in_memory);
}

#[test]
fn pieces_of_memory_go_both_ways_over_aio() {
    pieces_of_memory_go_both_ways::<Aio>(on_file);
    pieces_of_memory_go_both_ways::<Aio>(in_memory);
}

#[test]
fn bad_iovecs_get_the_errno_of_the_abi() {
    let mut rig = rig::<Null>(8, 64);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 16);
    let good = [entry(0, 512), entry(512, 1024)];
    let too_many = [entry(0, 512); 257];
    let with = |second: IovEntry| [good[0], second];
    type Case<'a> = (&'a str, &'a [IovEntry], fn(Sqe) -> Sqe, i32);
    let cases: [Case; 18] = [
        ("a good one", &good, |sqe| sqe, 1536),
        ("as many as can be", &too_many[1..], |sqe| sqe, 256 * 512),
        ("no entries", &good, |sqe| Sqe { iov_count: 0, ..sqe }, -errno::EINVAL),
        ("too many entries", &too_many, |sqe| sqe, -errno::EINVAL),
        ("misaligned", &good, |sqe| Sqe { region_offset: IOVEC + 8, ..sqe }, -errno::EINVAL),
        ("region of the iovec", &good, |sqe| Sqe { region: 1, ..sqe }, -errno::ENXIO),
        ("beyond the region", &good, |sqe| Sqe { region_offset: ARENA_BYTES - 16, ..sqe }, -errno::EFAULT),
        ("far beyond it", &good, |sqe| Sqe { region_offset: u64::MAX - 15, ..sqe }, -errno::EFAULT),
        ("sum below length", &good, |sqe| Sqe { length: 2048, ..sqe }, -errno::EINVAL),
        ("sum above length", &good, |sqe| Sqe { length: 1024, ..sqe }, -errno::EINVAL),
        ("not 0", &with(IovEntry { zero: 1, ..good[1] }), |sqe| sqe, -errno::EINVAL),
        ("empty entry", &with(entry(0, 0)), |sqe| sqe, -errno::EINVAL),
        (
            "entries of parts of blocks",
            &with(entry(0, 100)),
            |sqe| Sqe { length: 1024, ..sqe },
            -errno::EINVAL,
        ),
        ("region of an entry", &with(IovEntry { region: 2, ..good[1] }), |sqe| sqe, -errno::ENXIO),
        ("entry beyond its region", &with(entry(ARENA_BYTES - 512, 1024)), |sqe| sqe, -errno::EFAULT),
        ("entry far beyond it", &with(entry(u64::MAX - 511, 1024)), |sqe| sqe, -errno::EFAULT),
        (
            "EINVAL before ENXIO",
            &[IovEntry { region: 2, ..good[0] }, IovEntry { zero: 1, ..good[1] }],
            |sqe| sqe,
            -errno::EINVAL,
        ),
        (
            "ENXIO before EFAULT",
            &[entry(ARENA_BYTES, 512), IovEntry { region: 2, ..good[1] }],
            |sqe| sqe,
            -errno::ENXIO,
        ),
    ];
    for (what, entries, change, result) in cases {
        write_iovec(&client, IOVEC, entries);
        let sqe = change(vectored(Opcode::Readv, 0, IOVEC, entries));
        assert_eq!(rig.result(&mut client, sqe), result, "{what}");
    }
}

/// A request that passed the check finds another iovec when it is issued.
#[test]
fn an_iovec_that_changes_is_checked_again() {
    let mut rig = rig::<Uring>(1, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let (daemons, _own) = region(4 * BLOCK);
    let session_id = client.id;
    rig.ask(|reply| Command::AddRegion { session_id, index: 1, region: daemons, reply }).unwrap();
    let good = [entry(0, BLOCK), IovEntry { region: 1, ..entry(0, BLOCK) }];
    let changes: [(&str, [IovEntry; 2], i32); 5] = [
        ("unchanged", good, 8192),
        ("another place of the same length", [entry(3 * BLOCK, BLOCK), good[1]], 8192),
        ("longer", [entry(0, 2 * BLOCK), good[1]], -errno::EINVAL),
        ("another region", [good[0], IovEntry { region: 9, ..good[1] }], -errno::ENXIO),
        ("beyond the region", [good[0], IovEntry { offset: 4 * BLOCK, ..good[1] }], -errno::EFAULT),
    ];
    for (what, entries, result) in changes {
        write_iovec(&client, IOVEC, &good);
        // The depth is one: the second request waits for the first, accepted.
        let second = Sqe { user_data: 2, ..vectored(Opcode::Readv, 0, IOVEC, &good) };
        client.submit(&[request(Opcode::Read, 1, 16 * BLOCK), second]);
        rig.take(2);
        write_iovec(&client, IOVEC, &entries);
        assert_eq!(rig.results(&mut client, 2)[&2], result, "{what}");
    }
    write_iovec(&client, IOVEC, &good);
    client.submit(&[
        request(Opcode::Read, 1, 16 * BLOCK),
        Sqe { user_data: 2, ..vectored(Opcode::Readv, 0, IOVEC, &good) },
    ]);
    rig.take(2);
    rig.ask(|reply| Command::RemoveRegion { session_id, index: 1, reply }).unwrap();
    assert_eq!(rig.results(&mut client, 2)[&2], -errno::ENXIO, "the region went");
}

fn set_faults<D: Driver>(rig: &mut Rig<D>, volume: VolumeId, ops: FaultOps, effect: FaultEffect) {
    let rule =
        FaultRule { ops, range: 0..u64::MAX, probability_ppm: ALWAYS_PPM, after: 0, count: None, effect };
    let plan = FaultPlan { seed: 5, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
}

fn short_transfers_go_on_at_the_right_piece<D: Driver>() {
    let mut rig = rig::<Fault<D>>(4, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    set_faults(&mut rig, volume, FaultOps::READ | FaultOps::WRITE, FaultEffect::Short);
    let pieces: Vec<IovEntry> = (0..16).map(|n| entry((15 - n) * 2 * BLOCK, (1 + n % 2) * BLOCK)).collect();
    for (n, piece) in pieces.iter().enumerate() {
        fill(&client, piece.offset, piece.length.into(), n as u64 + 1);
    }
    write_iovec(&client, IOVEC, &pieces);
    let whole = 24 * 4096;
    assert_eq!(rig.result(&mut client, vectored(Opcode::Writev, 4 * BLOCK, IOVEC, &pieces)), whole);
    for piece in &pieces {
        fill(&client, piece.offset, piece.length.into(), 0);
    }
    assert_eq!(rig.result(&mut client, vectored(Opcode::Readv, 4 * BLOCK, IOVEC, &pieces)), whole);
    for (n, piece) in pieces.iter().enumerate() {
        assert_filled(&client, piece.offset, piece.length.into(), n as u64 + 1);
    }
    assert!(rig.snapshot().counters.resubmitted >= 2, "nothing was short");
}

#[test]
fn short_transfers_go_on_at_the_right_piece_over_io_uring() {
    short_transfers_go_on_at_the_right_piece::<Uring>();
}

#[test]
fn short_transfers_go_on_at_the_right_piece_over_aio() {
    short_transfers_go_on_at_the_right_piece::<Aio>();
}

/// More vectored requests than the driver has room for, beside plain ones.
#[test]
fn vectored_requests_hold_up_nobody() {
    let mut rig = rig::<Uring>(512, 2048);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut clients: Vec<Client> = (0..3).map(|_| rig.open(volume, 256)).collect();
    let pieces = [entry(0, BLOCK), entry(BLOCK, BLOCK)];
    for client in &mut clients {
        write_iovec(client, IOVEC, &pieces);
        let sqe = |n| Sqe { user_data: n, ..vectored(Opcode::Readv, 0, IOVEC, &pieces) };
        client.submit(&(0..256).map(sqe).collect::<Vec<_>>());
    }
    rig.take(512);
    let issued: u64 = rig.snapshot().classes.iter().map(|class| class.counters.in_flight).sum();
    assert!(issued > 400, "only {issued} are in flight: some wait for the others");
    for client in &mut clients {
        assert!(rig.results(client, 256).values().all(|result| *result == 8192));
    }
}

fn ranges_are_zeroed_and_discarded<D: Driver>(target: fn(&Rig<D>) -> Arc<Target>) {
    let mut rig = rig::<D>(8, 64);
    let target = target(&rig);
    let (zeroes, discards) =
        (target.capabilities().write_zeroes.is_supported(), target.capabilities().discard.is_supported());
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    fill(&client, 0, 32 * BLOCK, 0x5a);
    let all = |op| Sqe { length: 32 * BLOCK, ..request(op, 1, 0) };
    assert_eq!(rig.result(&mut client, all(Opcode::Write)), 32 * 4096);
    let range = |op, flags| Sqe {
        op: op as u8,
        flags,
        user_data: 2,
        offset: 3 * BLOCK,
        length: 7 * BLOCK,
        ..Sqe::default()
    };
    let expected = |able| if able { 0 } else { -errno::EOPNOTSUPP };
    assert_eq!(rig.result(&mut client, range(Opcode::WriteZeroes, sqe_flags::FUA)), expected(zeroes));
    assert_eq!(rig.result(&mut client, all(Opcode::Read)), 32 * 4096);
    assert_filled(&client, 0, 3 * BLOCK, 0x5a);
    assert_filled(&client, 3 * BLOCK, 7 * BLOCK, if zeroes { 0 } else { 0x5a });
    assert_filled(&client, 10 * BLOCK, 22 * BLOCK, 0x5a);
    assert_eq!(rig.result(&mut client, range(Opcode::Discard, 0)), expected(discards));
    assert_eq!(rig.result(&mut client, range(Opcode::Discard, sqe_flags::FUA)), -errno::EINVAL);
    assert!(zeroes && discards, "files and memory can do both here");
}

#[test]
fn ranges_are_zeroed_and_discarded_over_io_uring() {
    ranges_are_zeroed_and_discarded::<Uring>(on_file);
    ranges_are_zeroed_and_discarded::<Uring>(in_memory);
}

#[test]
fn ranges_are_zeroed_and_discarded_over_aio() {
    ranges_are_zeroed_and_discarded::<Aio>(on_file);
    ranges_are_zeroed_and_discarded::<Aio>(in_memory);
}

/// Longer than the data limit, and by far longer than what the driver takes at once.
#[test]
fn a_whole_volume_is_one_request() {
    const GIB: u64 = 1 << 30;
    let mut rig = rig::<Uring>(8, 64);
    let size = 6 * GIB + 512;
    let volume = rig.add_volume(Target::memory(size).unwrap().into());
    let mut client = rig.open(volume, 16);
    fill(&client, 0, BLOCK, 9);
    for offset in [0, 3 * GIB, size - BLOCK] {
        let sqe = Sqe { region_offset: 0, ..request(Opcode::Write, 1, offset) };
        assert_eq!(rig.result(&mut client, sqe), 4096);
    }
    let whole = |op: Opcode, flags| Sqe { op: op as u8, flags, length: size, ..Sqe::default() };
    assert_eq!(rig.result(&mut client, whole(Opcode::WriteZeroes, sqe_flags::FUA)), 0);
    for offset in [0, 3 * GIB, size - BLOCK] {
        let sqe = Sqe { region_offset: 0, ..request(Opcode::Read, 1, offset) };
        assert_eq!(rig.result(&mut client, sqe), 4096);
        assert_filled(&client, 0, BLOCK, 0);
    }
    assert_eq!(rig.result(&mut client, whole(Opcode::Discard, 0)), 0);
    let beyond = Sqe { length: size + 512, ..whole(Opcode::Discard, 0) };
    assert_eq!(rig.result(&mut client, beyond), -errno::ERANGE);
    let read = Sqe { op: Opcode::Read as u8, length: limits::DATA_BYTES_MAX + 512, ..Sqe::default() };
    assert_eq!(rig.result(&mut client, read), -errno::EMSGSIZE);
}

#[test]
fn a_piece_that_fails_ends_the_request() {
    let mut rig = rig::<Fault<Uring>>(8, 64);
    let volume = rig.add_volume(Target::memory(1 << 30).unwrap().into());
    let mut client = rig.open(volume, 16);
    let rule = FaultRule {
        ops: FaultOps::WRITE_ZEROES,
        range: 256 << 20..512 << 20,
        probability_ppm: ALWAYS_PPM,
        after: 0,
        count: None,
        effect: FaultEffect::Error { errno: errno::EIO },
    };
    let plan = FaultPlan { seed: 1, rules: vec![rule] };
    rig.ask(|reply| Command::SetFaults { volume, plan, reply }).unwrap();
    let zeroes = |length| Sqe { op: Opcode::WriteZeroes as u8, length, ..Sqe::default() };
    assert_eq!(rig.result(&mut client, zeroes(1 << 30)), -errno::EIO);
    assert_eq!(rig.result(&mut client, zeroes(256 << 20)), 0);
    let status = rig.ask(|reply| Command::GetFaults { volume, reply }).unwrap().expect("faults are set");
    assert_eq!(status.counters[0].applied, 1, "nothing is issued after a piece that failed");
    rig.ask(|reply| Command::SetFaults { volume, plan: FaultPlan::default(), reply }).unwrap();
    assert_eq!(rig.result(&mut client, zeroes(1 << 30)), 0);
}

/// What a removed volume, or a session that ends, does to a request between its pieces.
#[test]
fn requests_end_between_their_pieces() {
    let mut rig = rig::<Uring>(8, 64);
    let volume = rig.add_volume(Target::memory(1 << 30).unwrap().into());
    let mut client = rig.open(volume, 16);
    let mut leaving = rig.open(volume, 16);
    let zeroes = Sqe { op: Opcode::WriteZeroes as u8, user_data: 1, length: 1 << 30, ..Sqe::default() };
    client.submit(&[zeroes]);
    leaving.submit(&[zeroes]);
    rig.take(2);
    let (done, closed) = common::done();
    rig.send(Command::CloseSession { session_id: leaving.id, done });
    let (done, removed) = common::done();
    rig.send(Command::RemoveVolume { volume, done });
    assert_eq!(rig.results(&mut client, 1)[&1], -errno::ENODEV);
    rig.turn_until("both ends", |_| closed.try_recv().is_ok());
    removed.try_recv().expect("the volume is gone");
    assert_eq!(rig.pending(), 0);
}

fn steady_state_allocates_nothing<D: Driver>() {
    let mut rig = rig::<D>(16, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 32);
    let pieces = [entry(0, BLOCK), entry(4 * BLOCK, BLOCK), entry(2 * BLOCK, BLOCK)];
    write_iovec(&client, IOVEC, &pieces);
    let batch: Vec<Sqe> = (0..24)
        .map(|n| match n % 6 {
            0 => vectored(Opcode::Readv, n * BLOCK, IOVEC, &pieces),
            1 => vectored(Opcode::Writev, n * BLOCK, IOVEC, &pieces),
            2 => Sqe { op: Opcode::Discard as u8, offset: n * BLOCK, length: BLOCK, ..Sqe::default() },
            3 => Sqe {
                op: Opcode::WriteZeroes as u8,
                flags: sqe_flags::FUA,
                offset: n * BLOCK,
                length: BLOCK,
                ..Sqe::default()
            },
            4 => Sqe { length: 8192, region_offset: 0, ..request(Opcode::CompareAndWrite, n, 200 * BLOCK) },
            _ => request(Opcode::Write, n, 200 * BLOCK),
        })
        .collect();
    let mut cqes = Vec::with_capacity(64);
    let mut round = |rig: &mut Rig<D>, client: &mut Client| {
        cqes.clear();
        client.submit(&batch);
        while cqes.len() < batch.len() {
            rig.parts.submitter.turn(clock::now());
            rig.turn();
            client.reap(&mut cqes);
        }
    };
    (0..8).for_each(|_| round(&mut rig, &mut client));
    let allocations = allocation_counter::measure(|| (0..50).for_each(|_| round(&mut rig, &mut client)));
    assert_eq!(allocations.count_total, 0, "allocations in 1200 requests: {allocations:?}");
}

#[test]
fn steady_state_allocates_nothing_over_io_uring() {
    steady_state_allocates_nothing::<Uring>();
}

#[test]
fn steady_state_allocates_nothing_over_aio() {
    steady_state_allocates_nothing::<Aio>();
}
