//! The engine by its turns: every stage of a request's way on real files, over each backend.

mod common;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{atomic::Ordering::Relaxed, mpsc},
};

use common::{
    BLOCK, Client, Rig, VOLUME_BYTES,
    puppet::{self, Puppet},
};
use ferrio_driver::{Driver, Target, aio::Aio, null::Null, uring::Uring};
use ferrio_engine::{Threads, clock, engine::Threaded, inject::Command, stats};
use ferrio_shm::{
    abi::{Class, Opcode, errno},
    entry::{Cqe, Sqe},
};

fn read(user_data: u64, offset: u64) -> Sqe {
    Sqe { op: Opcode::Read as u8, user_data, offset, length: BLOCK, region_offset: offset, ..Sqe::default() }
}

fn write(user_data: u64, offset: u64) -> Sqe {
    Sqe { op: Opcode::Write as u8, ..read(user_data, offset) }
}

fn collect<D: Driver>(rig: &mut Rig<D>, client: &mut Client, count: usize) -> Vec<Cqe> {
    let mut cqes = Vec::new();
    rig.turn_until("completions", |_| {
        client.reap(&mut cqes);
        cqes.len() >= count
    });
    assert_eq!(cqes.len(), count, "no completion twice");
    cqes
}

fn data_goes_both_ways<D: Driver>() {
    let mut rig = Rig::<D>::new(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 32);
    let blocks = 16;
    for block in 0..blocks {
        client.arena(block * BLOCK, BLOCK).iter().for_each(|word| word.store(block + 100, Relaxed));
    }
    let writes: Vec<Sqe> = (0..blocks).map(|block| write(block, block * BLOCK)).collect();
    client.submit(&writes);
    let mut answered: Vec<u64> = collect(&mut rig, &mut client, 16)
        .iter()
        .map(|cqe| {
            assert_eq!(cqe.result, 4096);
            cqe.user_data
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..blocks).collect::<Vec<_>>(), "exactly one CQE per SQE");
    client.submit(&[Sqe { op: Opcode::Flush as u8, user_data: 99, ..Sqe::default() }]);
    assert_eq!(collect(&mut rig, &mut client, 1), [Cqe { user_data: 99, result: 0, flags: 0 }]);
    for block in 0..blocks {
        client.arena(block * BLOCK, BLOCK).iter().for_each(|word| word.store(0, Relaxed));
    }
    let reads: Vec<Sqe> = (0..blocks).map(|block| read(block, block * BLOCK)).collect();
    client.submit(&reads);
    collect(&mut rig, &mut client, 16);
    for block in 0..blocks {
        assert!(
            client.arena(block * BLOCK, BLOCK).iter().all(|word| word.load(Relaxed) == block + 100),
            "block {block}"
        );
    }
    let snapshot = rig.snapshot();
    let total = snapshot.queues[0].total;
    assert_eq!((total.queued, total.in_flight, total.completed, total.errors), (0, 0, 33, 0));
    assert_eq!(total.bytes, 2 * blocks * BLOCK);
}

#[test]
fn data_goes_both_ways_over_io_uring() {
    data_goes_both_ways::<Uring>();
}

#[test]
fn data_goes_both_ways_over_aio() {
    data_goes_both_ways::<Aio>();
}

fn bad_sqes_are_answered_and_the_rest_goes_on<D: Driver>() {
    let mut rig = Rig::<D>::new(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    client.submit(&[
        Sqe { op: 77, user_data: 1, ..Sqe::default() },
        read(2, 0),
        Sqe { volume: 9, ..read(3, 0) },
        read(4, VOLUME_BYTES),
        write(5, 4096),
    ]);
    let mut cqes = collect(&mut rig, &mut client, 5);
    cqes.sort_unstable_by_key(|cqe| cqe.user_data);
    let results: Vec<i32> = cqes.iter().map(|cqe| cqe.result).collect();
    assert_eq!(results, [-errno::EINVAL, 4096, -errno::EBADF, -errno::ERANGE, 4096]);
    assert_eq!(rig.snapshot().counters.refused, 3);
}

#[test]
fn bad_sqes_are_answered_over_io_uring() {
    bad_sqes_are_answered_and_the_rest_goes_on::<Uring>();
}

#[test]
fn bad_sqes_are_answered_over_aio() {
    bad_sqes_are_answered_and_the_rest_goes_on::<Aio>();
}

fn a_truncated_file_is_an_error_not_a_hang<D: Driver>() {
    let mut rig = Rig::<D>::new(8, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 16);
    let file = std::fs::OpenOptions::new().write(true).open(rig.file("volume")).unwrap();
    file.set_len(BLOCK).unwrap();
    let two = Sqe { length: 2 * BLOCK, ..read(1, 0) };
    client.submit(&[two, read(2, 8 * BLOCK), read(3, 0)]);
    let mut cqes = collect(&mut rig, &mut client, 3);
    cqes.sort_unstable_by_key(|cqe| cqe.user_data);
    let results: Vec<i32> = cqes.iter().map(|cqe| cqe.result).collect();
    assert_eq!(results, [-errno::EIO, -errno::EIO, 4096], "a transfer is whole or fails");
    assert_eq!(rig.snapshot().counters.resubmitted, 1, "the short half was continued before it failed");
}

#[test]
fn a_truncated_file_over_io_uring() {
    a_truncated_file_is_an_error_not_a_hang::<Uring>();
}

#[test]
fn a_truncated_file_over_aio() {
    a_truncated_file_is_an_error_not_a_hang::<Aio>();
}

fn steady_state_allocates_nothing<D: Driver>() {
    let mut rig = Rig::<D>::new(16, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    let mut client = rig.open(volume, 32);
    let batch: Vec<Sqe> = (0..32)
        .map(|n| match n % 4 {
            0 => write(n, n * BLOCK),
            1 => Sqe { class: Class::Prio as u8, ..read(n, n * BLOCK) },
            2 => Sqe { op: Opcode::Nop as u8, user_data: n, ..Sqe::default() },
            _ if n == 31 => Sqe { op: 99, user_data: n, ..Sqe::default() },
            _ => read(n, n * BLOCK),
        })
        .collect();
    let mut cqes = Vec::with_capacity(64);
    let mut round = |rig: &mut Rig<D>, client: &mut Client| {
        cqes.clear();
        client.submit(&batch);
        while cqes.len() < batch.len() {
            rig.turn();
            client.reap(&mut cqes);
        }
    };
    (0..4).for_each(|_| round(&mut rig, &mut client));
    let allocations = allocation_counter::measure(|| (0..200).for_each(|_| round(&mut rig, &mut client)));
    assert_eq!(allocations.count_total, 0, "allocations in 6400 requests: {allocations:?}");
}

#[test]
fn steady_state_allocates_nothing_over_io_uring() {
    steady_state_allocates_nothing::<Uring>();
}

#[test]
fn steady_state_allocates_nothing_over_aio() {
    steady_state_allocates_nothing::<Aio>();
}

#[test]
fn more_requests_than_records_wait_in_the_ring() {
    let mut rig = Rig::<Null>::new(4, 8);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut a = rig.open(volume, 32);
    let mut b = rig.open(volume, 32);
    a.submit(&(0..32).map(|n| read(n, n * BLOCK)).collect::<Vec<_>>());
    b.submit(&(0..32).map(|n| read(n, n * BLOCK)).collect::<Vec<_>>());
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    rig.turn_until("all 64", |rig| {
        let snapshot = rig.snapshot();
        let accepted: u64 =
            snapshot.classes.iter().map(|class| class.counters.queued + class.counters.in_flight).sum();
        assert!(accepted <= 8, "more accepted than there are records: {accepted}");
        a.reap(&mut from_a);
        b.reap(&mut from_b);
        from_a.len() == 32 && from_b.len() == 32
    });
}

#[test]
fn nobody_holds_all_records() {
    let mut rig = Rig::<Null>::new(4, 64);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut clients: Vec<Client> = (0..5).map(|_| rig.open(volume, 64)).collect();
    let held = |rig: &Rig<Null>| -> Vec<u64> {
        let queues = rig.snapshot().queues;
        queues.iter().map(|queue| queue.total.queued + queue.total.in_flight).collect()
    };
    let all: Vec<Sqe> = (0..64).map(|n| read(n, 0)).collect();
    for client in &mut clients {
        client.submit(&all);
        // Nothing is reaped: what a session holds, it keeps.
        let end = std::time::Instant::now() + std::time::Duration::from_millis(5);
        while std::time::Instant::now() < end {
            rig.parts.submitter.turn(clock::now());
        }
    }
    assert_eq!(held(&rig), [32, 16, 8, 4, 2], "as many as were free for all");
    let mut cqes = vec![Vec::new(); 5];
    rig.turn_until("every answer", |_| {
        clients.iter_mut().zip(&mut cqes).for_each(|(client, cqes)| client.reap(cqes));
        cqes.iter().all(|cqes| cqes.len() == 64)
    });
}

#[test]
fn prio_passes_bulk_but_bulk_goes_on() {
    let mut rig = Rig::<Null>::new(1, 128);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 64);
    let bulk = (0..32).map(|n| write(n, n * BLOCK));
    let prio = (100..132).map(|n| Sqe { class: Class::Prio as u8, ..read(n, 0) });
    client.submit(&bulk.chain(prio).collect::<Vec<_>>());
    let order: Vec<u64> = collect(&mut rig, &mut client, 64).iter().map(|cqe| cqe.user_data).collect();
    assert!(order[..4].iter().all(|n| *n >= 100), "prio first, though it came last: {order:?}");
    let bulk_places: Vec<usize> =
        order.iter().enumerate().filter(|(_, n)| **n < 100).map(|(place, _)| place).collect();
    assert!(
        bulk_places[0] <= 4 && bulk_places.windows(2).all(|pair| pair[1] - pair[0] <= 5),
        "bulk is never starved: {order:?}"
    );
}

#[test]
fn a_broken_ring_faults_its_session_alone() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut bad = rig.open(volume, 8);
    let mut good = rig.open(volume, 8);
    bad.submit(&[read(1, 0)]);
    collect(&mut rig, &mut bad, 1);
    let tail = usize::try_from(bad.layout.queues[0].control_offset).unwrap();
    bad.memory.u32(tail).unwrap().store(1000, Relaxed);
    bad.to_daemon.as_ref().unwrap().ring().unwrap();
    rig.turn_until("the fault", |_| bad.fault.lock().unwrap().is_some());
    let reason = bad.fault.lock().unwrap().clone().unwrap();
    assert!(reason.contains("queue 0") && reason.contains("1000"), "{reason}");
    good.submit(&[read(5, 0)]);
    collect(&mut rig, &mut good, 1);
    assert_eq!(rig.snapshot().counters.sessions_faulted, 1);
    close(&mut rig, &bad);
    good.submit(&[read(6, 0)]);
    collect(&mut rig, &mut good, 1);
}

#[test]
fn a_ring_that_breaks_during_a_drain_is_a_fault_too() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let bad = rig.open(volume, 8);
    rig.command(Command::Drain { done: Box::new(|| ()) });
    let tail = usize::try_from(bad.layout.queues[0].control_offset).unwrap();
    bad.memory.u32(tail).unwrap().store(1000, Relaxed);
    bad.to_daemon.as_ref().unwrap().ring().unwrap();
    rig.turn_until("the fault", |_| bad.fault.lock().unwrap().is_some());
}

#[test]
fn an_overbooked_cq_faults_its_session() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 8);
    client.submit(&(0..8).map(|n| read(n, 0)).collect::<Vec<_>>());
    rig.turn_until("8 completions", |rig| rig.snapshot().queues[0].total.completed == 8);
    // The CQ is full and nothing was released: a ninth SQE has no place for its answer.
    let tail = usize::try_from(client.layout.queues[0].control_offset).unwrap();
    client.memory.u32(tail).unwrap().store(9, Relaxed);
    client.to_daemon.as_ref().unwrap().ring().unwrap();
    rig.turn_until("the fault", |_| client.fault.lock().unwrap().is_some());
}

#[test]
fn what_has_its_cq_entry_is_answered_before_the_fault() {
    let mut rig = Rig::<Null>::new(4, 32);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 8);
    client.submit(&(0..5).map(|n| read(n, 0)).collect::<Vec<_>>());
    rig.turn_until("5 completions", |rig| rig.snapshot().queues[0].total.completed == 5);
    // Nothing was released, so that three of these have a place for their answer: nops, as the slots are still zero.
    let tail = usize::try_from(client.layout.queues[0].control_offset).unwrap();
    client.memory.u32(tail).unwrap().store(5 + 6, Relaxed);
    client.to_daemon.as_ref().unwrap().ring().unwrap();
    rig.turn_until("the fault", |_| client.fault.lock().unwrap().is_some());
    let fault = client.fault.lock().unwrap().clone().unwrap();
    assert!(fault.contains("without a free CQ entry"), "{fault}");
    rig.turn_until("8 completions", |rig| rig.snapshot().queues[0].total.completed == 8);
    (0..10).for_each(|_| {
        rig.turn();
    });
    let counters = rig.snapshot().queues[0].total;
    assert_eq!((counters.completed, counters.queued, counters.in_flight), (8, 0, 0));
    close(&mut rig, &client);
}

/// Turns the Submitter alone, until it has taken something.
fn take<D: Driver>(rig: &mut Rig<D>) {
    while rig.snapshot().classes.iter().all(|class| class.counters.queued + class.counters.in_flight == 0) {
        rig.parts.submitter.turn(clock::now());
    }
}

fn close<D: Driver>(rig: &mut Rig<D>, client: &Client) {
    let (sender, receiver) = mpsc::channel();
    rig.command(Command::CloseSession {
        session_id: client.id,
        done: Box::new(move || sender.send(()).unwrap()),
    });
    rig.turn_until("the session to end", |_| receiver.try_recv().is_ok());
}

fn a_session_ends_with_requests_in_flight<D: Driver>() {
    let mut rig = Rig::<D>::new(4, 64);
    let target = rig.file_target("volume");
    let volume = rig.add_volume(target);
    for _ in 0..20 {
        let mut client = rig.open(volume, 32);
        client.submit(&(0..32).map(|n| write(n, n * BLOCK)).collect::<Vec<_>>());
        take(&mut rig); // some are in the kernel, some queued, some in the ring
        close(&mut rig, &client);
        assert_eq!(
            std::sync::Arc::strong_count(&client.memory),
            3,
            "only the client's own ends and mapping are left"
        );
    }
    let left: u64 =
        rig.snapshot().classes.iter().map(|class| class.counters.queued + class.counters.in_flight).sum();
    assert_eq!(left, 0);
}

#[test]
fn a_session_ends_with_requests_in_flight_over_io_uring() {
    a_session_ends_with_requests_in_flight::<Uring>();
}

#[test]
fn a_session_ends_with_requests_in_flight_over_aio() {
    a_session_ends_with_requests_in_flight::<Aio>();
}

#[test]
fn a_drain_answers_what_was_accepted_and_takes_nothing_more() {
    let mut rig = Rig::<Null>::new(4, 64);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 32);
    client.submit(&(0..8).map(|n| read(n, 0)).collect::<Vec<_>>());
    take(&mut rig);
    let (sender, receiver) = mpsc::channel();
    rig.command(Command::Drain { done: Box::new(move || sender.send(()).unwrap()) });
    rig.turn_until("the drain", |_| receiver.try_recv().is_ok());
    collect(&mut rig, &mut client, 8);
    client.submit(&[read(9, 0)]);
    (0..100).for_each(|_| {
        rig.turn();
    });
    let mut late = Vec::new();
    client.reap(&mut late);
    assert!(late.is_empty(), "taken after the drain: {late:?}");
}

#[test]
fn a_poller_may_answer_before_the_submitter_goes_on() {
    let mut rig = Rig::<Puppet>::with_threads(8, 64, Threads::Two);
    let volume = rig.add_volume(Target::null(VOLUME_BYTES, 512).into());
    let mut client = rig.open(volume, 32);
    // One alone, a few that go anywhere, and two of a stream.
    for blocks in [vec![3], vec![1, 9, 5, 30], vec![40, 41]] {
        client.submit(&blocks.iter().map(|block| read(*block, block * BLOCK)).collect::<Vec<_>>());
    }
    let queues = rig.queues.clone();
    let Threaded { mut submitter, reaper, shared, .. } = rig.parts;
    let reaper = Rc::new(RefCell::new(reaper));
    let poller = Rc::clone(&reaper);
    puppet::on_submit(move || {
        let mut poller = poller.borrow_mut();
        poller.turn(clock::now());
        puppet::answer(0, None);
        poller.turn(clock::now());
    });
    let mut cqes = Vec::new();
    while cqes.len() < 7 {
        submitter.turn(clock::now());
        reaper.borrow_mut().turn(clock::now());
        client.reap(&mut cqes);
    }
    (0..8).for_each(|_| _ = submitter.turn(clock::now()));
    let snapshot = stats::snapshot(&shared, &queues, u64::MAX);
    assert!(cqes.iter().all(|cqe| cqe.result == 4096), "{cqes:?}");
    let oldest = snapshot.classes.map(|class| class.counters.oldest_us);
    assert_eq!(oldest, [0; 3], "all are answered, and none looks as if it were in flight");
}
