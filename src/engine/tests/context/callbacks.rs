//! Callbacks are called exactly once, and hold up nobody.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use ferrio_driver::Target;
use ferrio_engine::context::{
    Channel, IoBuffer, IoCallback, IoCompletion, IoContext, IoContextBuilder, IoEvent, IoVolume, Refusal,
    ShutdownReport,
};
use ferrio_shm::abi::errno;

use crate::{
    BLOCK, Callback, LIMIT, VOLUME_BYTES, backends, block_on, context, sending, wait_until, workers,
};

#[test]
fn callbacks_are_called_exactly_once_beside_many_submitters() {
    const THREADS: u64 = 4;
    const EACH: u64 = 3000;
    for threads in [0, 3] {
        let workers = workers::<Callback>(threads);
        let (context, volume) = context(16, &workers);
        let called: Vec<AtomicUsize> = (0..THREADS * EACH).map(|_| AtomicUsize::new(0)).collect();
        let called = Arc::new(called);
        thread::scope(|scope| {
            for who in 0..THREADS {
                let (context, called) = (&context, &called);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let id = (who * EACH + n) as usize;
                        let called = Arc::clone(called);
                        let callback: Callback = Box::new(move |completion| {
                            assert_eq!(completion.result, Ok(BLOCK as u32));
                            assert_eq!(completion.buffer.unwrap().len(), BLOCK);
                            called[id].fetch_add(1, SeqCst);
                        });
                        let offset = n % (VOLUME_BYTES / BLOCK as u64) * BLOCK as u64;
                        let buffer = loop {
                            match context.buffer(BLOCK) {
                                Ok(buffer) => break buffer,
                                Err(_) => thread::yield_now(),
                            }
                        };
                        let mut event = match n % 2 {
                            0 => IoEvent::read(volume, offset, buffer),
                            _ => IoEvent::write(volume, offset, buffer),
                        }
                        .callback(callback);
                        let channel = if n % 3 == 0 { Channel::Prio } else { event.channel() };
                        while let Err(refused) = context.submit(event, channel) {
                            assert_eq!(refused.why, Refusal::Full { channel, depth: 16 });
                            event = refused.event;
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        let report = context.shutdown(LIMIT);
        let expected = ShutdownReport { answered: THREADS * EACH, ..ShutdownReport::default() };
        assert_eq!(report, expected);
        assert!(called.iter().all(|called| called.load(SeqCst) == 1), "with {threads} workers");
    }
}

/// The answer to an event that is refused may be there before the engine has given the place of its SQE back.
#[test]
fn events_that_are_refused_are_answered_like_others() {
    for backend in backends() {
        let workers = workers::<()>(0);
        let mut builder = IoContextBuilder::new().backend(backend).depth(4);
        let volume = builder.volume(Arc::new(Target::memory(VOLUME_BYTES).unwrap()));
        let context = builder.start(&workers).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..4000 {
                        let misaligned = IoEvent::write_zeroes(volume, 1, 512);
                        let completion = block_on(context.execute(misaligned, Channel::Write)).unwrap();
                        assert_eq!(completion.result.unwrap_err().errno(), errno::EINVAL);
                    }
                });
            }
        });
        assert_eq!(context.shutdown(LIMIT).answered, 12000);
    }
}

#[test]
fn a_callback_goes_on_with_the_next_event_in_a_context_of_depth_one() {
    struct Chain {
        context: IoContext<Callback>,
        volume: IoVolume,
        ended: mpsc::Sender<IoBuffer>,
    }
    fn go_on(chain: Arc<Chain>, mut buffer: IoBuffer, left: u8) {
        buffer.fill(left);
        let next = Arc::clone(&chain);
        let callback: Callback = Box::new(move |completion| {
            let buffer = completion.into_buffer().unwrap().unwrap();
            match left {
                0 => next.ended.send(buffer).unwrap(),
                _ => go_on(next, buffer, left - 1),
            }
        });
        let event = IoEvent::write(chain.volume, 0, buffer).callback(callback);
        chain.context.submit(event, Channel::Write).unwrap();
    }
    for threads in [0, 1] {
        let (context, volume) = context(1, &workers(threads));
        let (ended, end) = mpsc::channel();
        let chain = Arc::new(Chain { context, volume, ended });
        let buffer = chain.context.buffer(BLOCK).unwrap();
        go_on(Arc::clone(&chain), buffer, 200);
        assert_eq!(end.recv_timeout(LIMIT).unwrap()[0], 0);
        // Its last owner may be the last callback, which cannot wait for itself.
        drop(chain);
    }
}

#[test]
fn a_slow_callback_holds_up_nobody_while_there_is_another_worker() {
    let workers = workers::<Callback>(2);
    let (context, volume) = context(8, &workers);
    let (release, held) = mpsc::channel::<()>();
    let slow: Callback = Box::new(move |_| held.recv().unwrap());
    context.submit(IoEvent::flush(volume).callback(slow), Channel::Write).unwrap();
    wait_until("the slow callback", || context.counts().finished == 1);
    let (sender, receiver) = mpsc::channel();
    for _ in 0..100 {
        context.submit(IoEvent::flush(volume).callback(sending(&sender)), Channel::Write).unwrap();
        receiver.recv_timeout(LIMIT).unwrap();
    }
    release.send(()).unwrap();
    assert_eq!(context.shutdown(LIMIT).answered, 101);
}

#[test]
fn a_callback_that_panics_ends_nothing_else() {
    for threads in [0, 1] {
        let workers = workers::<Callback>(threads);
        let (context, volume) = context(4, &workers);
        let panics: Callback = Box::new(|_| panic!("on purpose"));
        context.submit(IoEvent::flush(volume).callback(panics), Channel::Write).unwrap();
        let (sender, receiver) = mpsc::channel();
        context.submit(IoEvent::flush(volume).callback(sending(&sender)), Channel::Write).unwrap();
        assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(0));
        assert_eq!(context.shutdown(LIMIT).answered, 2);
    }
}

#[test]
fn workers_are_shared_by_contexts() {
    let workers = workers::<Callback>(1);
    let contexts: Vec<_> = (0..3).map(|_| context(4, &workers)).collect();
    let (sender, receiver) = mpsc::channel();
    for (context, volume) in &contexts {
        let names = sender.clone();
        let callback: Callback =
            Box::new(move |_| names.send(thread::current().name().map(str::to_owned)).unwrap());
        context.submit(IoEvent::flush(*volume).callback(callback), Channel::Write).unwrap();
    }
    drop(workers);
    for _ in &contexts {
        assert_eq!(receiver.recv_timeout(LIMIT).unwrap().as_deref(), Some("ferrio-cb-0"));
    }
}

#[test]
fn a_callback_may_be_a_type_of_its_own() {
    struct Count(Arc<Mutex<HashMap<u64, u32>>>, u64);
    impl IoCallback for Count {
        fn call(self, completion: IoCompletion) {
            *self.0.lock().unwrap().entry(self.1).or_default() += completion.result.unwrap();
        }
    }
    let workers = workers::<Count>(2);
    let (context, volume) = context(8, &workers);
    let counts = Arc::new(Mutex::new(HashMap::new()));
    for n in 0..8 {
        let buffer = context.buffer(BLOCK).unwrap();
        let event = IoEvent::read(volume, 0, buffer).callback(Count(Arc::clone(&counts), n % 2));
        context.submit(event, Channel::Read).unwrap();
    }
    context.shutdown(LIMIT);
    assert_eq!(*counts.lock().unwrap(), HashMap::from([(0, 4 * BLOCK as u32), (1, 4 * BLOCK as u32)]));
}
