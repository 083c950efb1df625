//! Contexts and ring sessions on one engine.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ferrio_driver::{Target, select::BackendChoice};
use ferrio_engine::{
    DEFAULT_WEIGHT, Engine, Grant, Limit, QueueAttach, Rate, Scope, SessionSpec, Split, VolumeId,
    context::{Channel, IoBuffer, IoContext, IoContextBuilder, IoEvent, IoVolume},
};
use ferrio_shm::{
    abi::Opcode,
    doorbell::{DoorbellTx, doorbell_to_client, doorbell_to_daemon},
    entry::Sqe,
    layout::{QueueSpec, SessionLayout},
    mapping::{MappedQueue, Mapping, SessionHeader, create_memfd},
    ring::{CqConsumer, SqProducer},
};

use crate::{BLOCK, Callback, LIMIT, TestEngine, VOLUME_BYTES, block_on, context, sending, workers};

/// A session as a client process has it, served by the same engine: it reads one block again and again.
struct RingSession {
    sq: SqProducer<MappedQueue>,
    cq: CqConsumer<MappedQueue>,
    doorbell: DoorbellTx,
}

impl RingSession {
    const ID: u64 = 7;

    fn open(engine: &Engine, volume: VolumeId) -> Self {
        let layout =
            SessionLayout::new(&[QueueSpec { sq_entries: 64, cq_entries: 64 }], BLOCK as u64).unwrap();
        let memfd = create_memfd("session", layout.memory_bytes).unwrap();
        let map =
            || Arc::new(Mapping::new(memfd.as_fd(), usize::try_from(layout.memory_bytes).unwrap()).unwrap());
        let memory = map();
        SessionHeader::new(Arc::clone(&memory)).unwrap().init(Self::ID, 1, &layout);
        let (to_engine, doorbell) = doorbell_to_daemon().unwrap();
        let (cq_doorbell, _) = doorbell_to_client().unwrap();
        let queue = MappedQueue::new(map(), &layout.queues[0]).unwrap();
        engine
            .open_session(SessionSpec {
                session_id: Self::ID,
                memory,
                layout,
                queues: vec![QueueAttach { index: 0, cq_doorbell }],
                doorbell,
                regions: Vec::new(),
                grants: vec![Some(Grant { volume, writable: false })],
                features: 0,
                weight: DEFAULT_WEIGHT,
                group: None,
                merge: true,
                on_fault: Box::new(|reason| panic!("{reason}")),
            })
            .unwrap();
        Self { sq: SqProducer::new(queue.clone()), cq: CqConsumer::new(queue), doorbell: to_engine }
    }

    /// Keeps the ring full until `end`; says how many reads were answered.
    fn read_until(&mut self, end: Instant) -> u64 {
        let mut answered = 0;
        while Instant::now() < end {
            let read = Sqe { op: Opcode::Read as u8, length: BLOCK as u64, ..Sqe::default() };
            while self.sq.push(&read).is_ok() {}
            if self.sq.publish() {
                self.doorbell.ring().unwrap();
            }
            while let Some(cqe) = self.cq.pop().unwrap() {
                assert_eq!(u32::try_from(cqe.result), Ok(BLOCK as u32));
                answered += 1;
            }
            self.cq.release();
            thread::sleep(Duration::from_micros(200));
        }
        answered
    }
}

/// Keeps a context full of reads until `end`; says how many were answered.
fn read_until(
    context: &Arc<IoContext<Callback>>,
    volume: IoVolume,
    depth: u32,
    end: Instant,
) -> Arc<AtomicU64> {
    fn go_on(
        context: &Arc<IoContext<Callback>>,
        volume: IoVolume,
        buffer: IoBuffer,
        end: Instant,
        answered: &Arc<AtomicU64>,
    ) {
        let (again, counted) = (Arc::clone(context), Arc::clone(answered));
        let callback: Callback = Box::new(move |completion| {
            let buffer = completion.into_buffer().unwrap().unwrap();
            if Instant::now() < end {
                counted.fetch_add(1, SeqCst);
                go_on(&again, volume, buffer, end, &counted);
            }
        });
        let event = IoEvent::read(volume, 0, buffer).callback(callback);
        context.submit(event, Channel::Read).unwrap();
    }
    let answered = Arc::new(AtomicU64::new(0));
    for _ in 0..depth {
        go_on(context, volume, context.buffer(BLOCK).unwrap(), end, &answered);
    }
    answered
}

/// The limit of a volume holds for a context and a ring session together, and each has its share by weight.
#[test]
fn a_context_and_a_ring_session_share_limit_and_weights() {
    let engine = TestEngine::new(BackendChoice::Null);
    let known = engine.engine.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512))).unwrap();
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 64, &workers);
    let mut session = RingSession::open(&engine.engine, known);
    const PER_SECOND: u64 = 4000;
    let iops = Split { total: Some(Rate { per_second: PER_SECOND, burst: Some(40) }), ..Split::default() };
    engine.engine.set_limit(Scope::Volume(known), Limit { iops, ..Limit::default() }).unwrap();
    engine.engine.set_weight(context.id(), 300).unwrap();
    engine.engine.set_weight(RingSession::ID, 100).unwrap();

    let context = Arc::new(context);
    let start = Instant::now();
    let end = start + Duration::from_secs(2);
    let answered = read_until(&context, volume, 64, end);
    let of_session = session.read_until(end);
    let seconds = start.elapsed().as_secs_f64();
    let of_context = answered.load(SeqCst);
    // More than the limit lets through is wrong however slow the machine is.
    let most = PER_SECOND as f64 * seconds * 1.05 + 40.0;
    let all = of_session + of_context;
    assert!((all as f64) <= most, "{of_context} + {of_session} in {seconds} s");
    assert!(all as f64 >= 0.5 * PER_SECOND as f64 * seconds, "{of_context} + {of_session} in {seconds} s");
    let share = of_context as f64 / all as f64;
    assert!((0.65..0.85).contains(&share), "weights 3 and 1 gave {of_context} and {of_session}");
    let queues = engine.engine.snapshot().queues;
    assert_eq!(queues.len(), 4, "three channels and a ring");
}

/// A channel is a queue of the session, and its events are of its class, whatever they do.
#[test]
fn each_channel_has_its_class() {
    let workers = workers::<()>(0);
    let (context, volume) = context(8, &workers);
    let read = || IoEvent::read(volume, 0, context.buffer(BLOCK).unwrap());
    let events = [
        (Channel::Prio, vec![read(), read(), IoEvent::flush(volume)]),
        (Channel::Read, vec![read(), read()]),
        (Channel::Write, vec![IoEvent::flush(volume)]),
    ];
    let mut expected = Vec::new();
    for (channel, events) in events {
        let mut completed = [0; 3];
        completed[channel as usize] = events.len() as u64;
        expected.push(completed);
        for event in events {
            assert!(block_on(context.execute(event, channel)).unwrap().result.is_ok());
        }
    }
    let queues = context.engine().snapshot().queues;
    let seen: Vec<[u64; 3]> =
        queues.iter().map(|queue| queue.classes.each_ref().map(|class| class.completed)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn contexts_share_an_engine_that_ends_with_the_last_of_them() {
    let workers = workers::<()>(0);
    let (first, volume) = context(8, &workers);
    let mut builder = IoContextBuilder::new().beside(&first).depth(4);
    let second_volume = builder.volume(Arc::new(Target::memory(VOLUME_BYTES).unwrap()));
    let second = builder.start(&workers).unwrap();
    assert_eq!(first.engine().snapshot().queues.len(), 6);
    let limit =
        Limit { iops: Split { total: Some(Rate::new(100_000)), ..Split::default() }, ..Limit::default() };
    first.engine().set_limit(Scope::Session(second.id()), limit).unwrap();
    assert_eq!(block_on(first.execute(IoEvent::flush(volume), Channel::Prio)).unwrap().result, Ok(0));
    drop(first);
    let flush = IoEvent::flush(second_volume);
    assert_eq!(block_on(second.execute(flush, Channel::Write)).unwrap().result, Ok(0));
    assert_eq!(second.engine().snapshot().queues.len(), 3);
    let engine = second.engine().clone();
    second.shutdown(LIMIT);
    assert!(engine.run(|_| ()).is_err(), "the engine has ended");
}

/// Events are merged as those of ring sessions are, and each has its own answer.
#[test]
fn adjacent_events_go_to_the_device_in_one_operation() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let workers = workers::<Callback>(0);
    let (context, volume) = engine.context(known, 64, &workers);
    let (sender, receiver) = mpsc::channel();
    for n in 0..64_u8 {
        let mut buffer = context.buffer(BLOCK).unwrap();
        buffer.fill(n);
        let event = IoEvent::write(volume, u64::from(n) * BLOCK as u64, buffer);
        context.stage(event.callback(sending(&sender)), Channel::Write).unwrap();
    }
    context.notify();
    for _ in 0..64 {
        let completion = receiver.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (completion.result, completion.buffer.map(|buffer| buffer.len())),
            (Ok(BLOCK as u32), Some(BLOCK))
        );
    }
    let merged: u64 = engine.engine.snapshot().classes.iter().map(|class| class.counters.merged).sum();
    assert!(merged > 0);
    let buffer = context.buffer(64 * BLOCK).unwrap();
    let completion = block_on(context.execute(IoEvent::read(volume, 0, buffer), Channel::Read)).unwrap();
    let buffer = completion.into_buffer().unwrap().unwrap();
    assert!(buffer.chunks(BLOCK).zip(0_u8..).all(|(block, n)| block.iter().all(|byte| *byte == n)));
}
