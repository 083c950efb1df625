//! What is not taken comes back, errors come with the buffer, and the counts are right.

use std::{sync::mpsc, thread, time::Duration};

use ferrio_driver::{FaultEffect, FaultOps, FaultPlan, select::BackendChoice};
use ferrio_engine::{
    Limit, Rate, Scope, Split, VolumeId,
    context::{
        Cause, Channel, ContextError, IoCompletion, IoContextBuilder, IoCounts, IoEvent, Refusal,
        ShutdownReport, Ticket,
    },
};
use ferrio_shm::abi::{Opcode, errno};

use crate::{BLOCK, Callback, LIMIT, TestEngine, block_on, context, sending, wait_until, workers};

fn errno_of(completion: &IoCompletion) -> i32 {
    completion.result.unwrap_err().errno()
}

#[test]
fn a_full_channel_gives_the_event_back_and_the_others_go_on() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    engine.faults(known, FaultOps::READ, FaultEffect::Stuck);
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 4, &workers);
    let (sender, receiver) = mpsc::channel();
    let read = |byte: u8| {
        let mut buffer = context.buffer(BLOCK).unwrap();
        buffer.fill(byte);
        IoEvent::read(volume, 0, buffer).callback(sending(&sender))
    };
    for n in 0..4 {
        context.submit(read(n), Channel::Read).unwrap();
    }
    let refused = context.submit(read(77), Channel::Read).unwrap_err();
    assert_eq!(refused.why, Refusal::Full { channel: Channel::Read, depth: 4 });
    assert!(refused.to_string().starts_with("all 4 places of channel read are in use"), "{refused}");
    assert_eq!(refused.event.into_buffer().unwrap()[..], [77; BLOCK]);
    // Its driver counts what the device has not answered.
    wait_until("the reads to be with the device", || context.channel_counts(Channel::Read).running == 4);
    let full = IoCounts { pending: 0, running: 4, finished: 0, free_slots: 0 };
    assert_eq!(context.channel_counts(Channel::Read), full);
    let free = IoCounts { free_slots: 4, ..IoCounts::default() };
    assert_eq!(context.channel_counts(Channel::Prio), free);
    assert_eq!((context.pending(), context.running(), context.free_slots()), (0, 4, 8));
    assert!(receiver.try_recv().is_err());

    let flush = IoEvent::flush(volume).callback(sending(&sender));
    context.submit(flush, Channel::Write).unwrap();
    assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(0));

    engine.engine.set_faults(known, FaultPlan::default()).unwrap();
    for _ in 0..4 {
        assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(BLOCK as u32));
    }
    wait_until("the last callback to return", || context.counts().finished == 0);
    assert_eq!(context.counts(), IoCounts { free_slots: 12, ..IoCounts::default() });
}

#[test]
fn what_was_staged_goes_with_one_notification() {
    let workers = workers::<Callback>(0);
    let (context, volume) = context(8, &workers);
    let (sender, receiver) = mpsc::channel();
    let flush = || IoEvent::flush(volume).callback(sending(&sender));
    for channel in [Channel::Prio, Channel::Write] {
        for _ in 0..3 {
            context.stage(flush(), channel).unwrap();
        }
    }
    // Longer than any spin of the engine.
    thread::sleep(Duration::from_millis(20));
    assert_eq!(context.pending(), 6);
    assert!(receiver.try_recv().is_err());
    context.notify();
    (0..6).for_each(|_| assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(0)));

    // Who stages more than there is room for need not notify to get room.
    wait_until("places", || context.free_slots() == 24);
    for _ in 0..8 {
        context.stage(flush(), Channel::Write).unwrap();
    }
    let refused = context.stage(flush(), Channel::Write).unwrap_err();
    assert_eq!(refused.why, Refusal::Full { channel: Channel::Write, depth: 8 });
    (0..8).for_each(|_| assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(0)));
    // And a shutdown forgets none.
    context.stage(flush(), Channel::Prio).unwrap();
    assert_eq!(context.shutdown(LIMIT), ShutdownReport { answered: 15, ..ShutdownReport::default() });
}

#[test]
fn what_cannot_be_is_refused_with_words() {
    let workers = workers::<()>(0);
    let (first, volume) = context(4, &workers);
    let (second, other_volume) = context(4, &workers);
    let why = |event: IoEvent, channel| first.submit(event, channel).unwrap_err().why;
    let buffer = || first.buffer(BLOCK).unwrap();
    let (read, write) = (Channel::Read, Channel::Write);
    assert_eq!(
        why(IoEvent::read(volume, 0, buffer()), write),
        Refusal::Channel { channel: write, fits: read }
    );
    assert_eq!(why(IoEvent::flush(volume), read), Refusal::Channel { channel: read, fits: write });
    assert_eq!(why(IoEvent::read(other_volume, 0, buffer()), read), Refusal::Foreign);
    assert_eq!(why(IoEvent::read(volume, 0, second.buffer(BLOCK).unwrap()), read), Refusal::Foreign);
    let mixed = first.list(vec![buffer(), second.buffer(BLOCK).unwrap()]).unwrap();
    assert_eq!(why(IoEvent::readv(volume, 0, mixed), read), Refusal::Foreign);
    first.shutdown(LIMIT);
    let refused = first.submit(IoEvent::read(volume, 0, buffer()), read).unwrap_err();
    assert_eq!(
        (refused.why, refused.event.into_buffer().map(|buffer| buffer.len())),
        (Refusal::Closed, Some(BLOCK))
    );
    assert_eq!(block_on(first.execute(IoEvent::flush(volume), write)).unwrap_err().why, Refusal::Closed);

    for depth in [0, 4097] {
        let error = IoContextBuilder::new().depth(depth).start(&workers).unwrap_err();
        assert!(matches!(error, ContextError::Depth { depth: named } if named == depth), "{error}");
    }
    let mut builder = IoContextBuilder::new();
    for _ in 0..=1 << 16 {
        builder.known_volume(VolumeId(0), true);
    }
    let error = builder.start(&workers).unwrap_err();
    assert!(matches!(error, ContextError::Volumes { count: 65537 }), "{error}");
    let mut builder = IoContextBuilder::new().name("with\0zero").on(second.engine());
    builder.known_volume(VolumeId(99), true);
    let error = builder.start(&workers).unwrap_err().to_string();
    assert!(error.ends_with("grant of an unknown volume"), "{error}");
    assert!(second.buffer(1 << 40).unwrap_err().to_string().contains("no 1099511627776 bytes in one piece"));
}

#[test]
fn an_error_comes_with_the_buffer_and_says_what_failed() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    engine.faults(known, FaultOps::READ | FaultOps::WRITE, FaultEffect::Error { errno: errno::EIO });
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 4, &workers);
    let (sender, receiver) = mpsc::channel();
    let buffer = |byte: u8| {
        let mut buffer = context.buffer(2 * BLOCK).unwrap();
        buffer.fill(byte);
        buffer
    };
    let event = IoEvent::write(volume, 8192, buffer(5)).callback(sending(&sender));
    context.submit(event, Channel::Write).unwrap();
    let completion = receiver.recv_timeout(LIMIT).unwrap();
    let error = completion.result.unwrap_err();
    assert_eq!((error.op, error.cause, error.errno()), (Opcode::Write, Cause::Errno(errno::EIO), errno::EIO));
    assert_eq!(
        error.to_string(),
        "write of 8192 bytes at byte 8192 of volume 0: Input/output error (os error 5)"
    );
    assert_eq!(completion.buffer.unwrap()[..], [5; 2 * BLOCK]);

    let list = context.list(vec![buffer(6), buffer(7)]).unwrap();
    let event = IoEvent::writev(volume, 0, list);
    let completion = block_on(context.execute(event, Channel::Prio)).unwrap();
    assert_eq!(errno_of(&completion), errno::EIO);
    let buffers = completion.list.unwrap().into_buffers();
    assert_eq!((buffers[0][0], buffers[1][0]), (6, 7));
    // What needs a feature that the context was not made with.
    let event = IoEvent::read(volume, 0, buffer(1)).timeout(LIMIT);
    let completion = block_on(context.execute(event, Channel::Read)).unwrap();
    assert_eq!(errno_of(&completion), errno::EOPNOTSUPP);
    assert!(completion.buffer.is_some());
}

/// What a limit holds back can be taken back, what the device has cannot.
#[test]
fn an_event_that_waits_is_cancelled_or_times_out() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    engine.faults(known, FaultOps::WRITE, FaultEffect::Stuck);
    let slow = Split { total: Some(Rate { per_second: 1, burst: Some(1) }), ..Split::default() };
    let workers = workers::<()>(0);
    let mut builder = IoContextBuilder::new().on(&engine.engine).depth(8).cancellable(true);
    let volume = builder.known_volume(known, true);
    let context = builder.start(&workers).unwrap();
    let write = |timeout: Duration| {
        let event = IoEvent::write(volume, 0, context.buffer(BLOCK).unwrap()).timeout(timeout);
        context.request(event, Channel::Prio).unwrap()
    };
    let cancel = |ticket: Ticket| {
        let cancel = context.request(IoEvent::cancel(ticket), ticket.channel()).unwrap();
        block_on(cancel).result.map_err(|error| error.errno())
    };
    let issued = write(Duration::from_secs(3600));
    wait_until("the write to be with the device", || context.running() == 1);
    engine.engine.set_limit(Scope::Volume(known), Limit { iops: slow, ..Limit::default() }).unwrap();
    // The limit lets one through.
    let _through = write(Duration::from_secs(3600));
    wait_until("the write to be with the device", || context.running() == 2);
    let (late, waiting) = (write(Duration::from_millis(1)), write(Duration::from_secs(3600)));
    let ticket = waiting.ticket();
    assert_eq!(cancel(ticket), Ok(0));
    let completion = block_on(waiting);
    assert_eq!(errno_of(&completion), errno::ECANCELED);
    assert!(completion.buffer.is_some());
    assert_eq!(cancel(ticket), Err(errno::ENOENT));
    assert_eq!(cancel(issued.ticket()), Err(errno::EALREADY));
    assert_eq!(errno_of(&block_on(late)), errno::ETIMEDOUT);
    let refused = context.request(IoEvent::cancel(ticket), Channel::Read).unwrap_err();
    assert_eq!(refused.why, Refusal::Channel { channel: Channel::Read, fits: Channel::Prio });
    engine.engine.set_faults(known, FaultPlan::default()).unwrap();
    assert_eq!(block_on(issued).result, Ok(BLOCK as u32));
}

#[test]
fn a_submission_allocates_nothing() {
    let workers = workers::<fn(IoCompletion)>(1);
    let (context, volume) = context(8, &workers);
    let submit = || {
        let buffer = context.buffer(BLOCK).unwrap();
        let measured = allocation_counter::measure(|| {
            let event = IoEvent::read(volume, 0, buffer).callback((|_| ()) as fn(IoCompletion));
            context.submit(event, Channel::Read).unwrap();
        });
        wait_until("the answer", || context.counts() == IoCounts { free_slots: 24, ..IoCounts::default() });
        measured.count_total
    };
    submit();
    assert_eq!((0..100).map(|_| submit()).sum::<u64>(), 0);
}
