//! Futures on any executor, also those that nobody waits for.

use std::{sync::atomic::Ordering::SeqCst, thread};

use ferrio_driver::{FaultEffect, FaultOps, FaultPlan, select::BackendChoice};
use ferrio_engine::context::{Channel, IoContextBuilder, IoEvent, IoFuture};

use crate::{BLOCK, LIMIT, TestEngine, block_on, context, poll_once, wait_until, workers};

#[test]
fn futures_of_many_threads_wait_for_places_and_complete() {
    let workers = workers::<()>(0);
    let (context, volume) = context(2, &workers);
    thread::scope(|scope| {
        for who in 0..6_u64 {
            let context = &context;
            scope.spawn(move || {
                for n in 0..200 {
                    let offset = (who * 8 + n % 8) * BLOCK as u64;
                    let mut buffer = context.buffer(BLOCK).unwrap();
                    buffer.fill((who + n) as u8);
                    let write = context.execute(IoEvent::write(volume, offset, buffer), Channel::Write);
                    let buffer = block_on(write).unwrap().into_buffer().unwrap().unwrap();
                    let read = context.execute(IoEvent::read(volume, offset, buffer), Channel::Read);
                    let buffer = block_on(read).unwrap().into_buffer().unwrap().unwrap();
                    assert!(buffer.iter().all(|byte| *byte == (who + n) as u8));
                }
            });
        }
    });
    assert_eq!(context.shutdown(LIMIT).answered, 2400);
    assert_eq!(context.free_slots(), 6);
}

#[test]
fn a_future_that_waits_for_a_place_hands_its_turn_on_when_it_goes() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    engine.faults(known, FaultOps::FLUSH, FaultEffect::Stuck);
    let workers = workers::<()>(0);
    let (context, volume) = engine.context(known, 1, &workers);
    let first = context.request(IoEvent::flush(volume), Channel::Write).unwrap();
    let waiting = || Box::pin(context.execute(IoEvent::flush(volume), Channel::Write));
    let (mut second, mut third) = (waiting(), waiting());
    let (polled, woken) = poll_once(&mut second);
    assert!(polled.is_pending());
    let (polled, next_woken) = poll_once(&mut third);
    assert!(polled.is_pending());
    engine.engine.set_faults(known, FaultPlan::default()).unwrap();
    assert_eq!(block_on(first).result, Ok(0));
    assert_eq!((woken.1.load(SeqCst), next_woken.1.load(SeqCst)), (1, 0), "one place, one wake-up");
    drop(second);
    assert_eq!(next_woken.1.load(SeqCst), 1);
    assert_eq!(block_on(third).unwrap().result, Ok(0));
}

#[test]
fn a_future_that_is_dropped_leaves_its_buffer_to_the_kernel() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let workers = workers::<()>(0);
    let mut builder = IoContextBuilder::new().on(&engine.engine).depth(4).arena_bytes(BLOCK as u64);
    let volume = builder.known_volume(known, true);
    let context = builder.start(&workers).unwrap();
    let write = |byte: u8| -> IoFuture<()> {
        let mut buffer = context.buffer(BLOCK).unwrap();
        buffer.fill(byte);
        context.request(IoEvent::write(volume, 0, buffer), Channel::Write).unwrap()
    };
    engine.faults(known, FaultOps::WRITE, FaultEffect::Stuck);
    let mut future = write(8);
    assert!(poll_once(&mut future).0.is_pending());
    drop(future);
    // The arena holds one buffer: it is still taken.
    assert!(context.buffer(BLOCK).is_err());
    assert_eq!(context.channel_counts(Channel::Write).free_slots, 3);
    engine.engine.set_faults(known, FaultPlan::default()).unwrap();
    wait_until("the buffer", || context.buffer(BLOCK).is_ok());
    wait_until("the place", || context.channel_counts(Channel::Write).free_slots == 4);
    // It was carried out.
    let buffer = context.buffer(BLOCK).unwrap();
    let completion = block_on(context.execute(IoEvent::read(volume, 0, buffer), Channel::Read)).unwrap();
    assert_eq!(completion.buffer.unwrap()[0], 8);
    // Answered, and dropped without a look.
    let future = write(9);
    wait_until("the answer", || context.counts().running + context.counts().pending == 0);
    assert_eq!(context.channel_counts(Channel::Write).free_slots, 3);
    drop(future);
    assert_eq!(context.channel_counts(Channel::Write).free_slots, 4);
    assert!(context.buffer(BLOCK).is_ok());
}
