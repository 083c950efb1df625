//! Shutdown and drop: everything is answered, nothing is left behind.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use ferrio_driver::{FaultEffect, FaultOps, Target, select::BackendChoice};
use ferrio_engine::{
    Limit, Rate, Scope, Split,
    context::{Cause, Channel, IoCompletion, IoContextBuilder, IoEvent, ShutdownReport},
};

use crate::{
    BLOCK, Callback, LIMIT, TestEngine, VOLUME_BYTES, backends, block_on, sending, wait_until, workers,
};

#[test]
fn a_shutdown_drains_and_every_event_is_answered() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let delay = FaultEffect::Delay { min: Duration::from_millis(1), max: Duration::from_millis(20) };
    engine.faults(known, FaultOps::WRITE, delay);
    let workers = workers::<Callback>(2);
    let (context, volume) = engine.context(known, 64, &workers);
    let (sender, receiver) = mpsc::channel();
    for n in 0..64 {
        let event = IoEvent::write(volume, n * BLOCK as u64, context.buffer(BLOCK).unwrap());
        context.submit(event.callback(sending(&sender)), Channel::Write).unwrap();
    }
    let future = context.request(IoEvent::flush(volume), Channel::Prio).unwrap();
    let report = context.shutdown(LIMIT);
    assert_eq!(report, ShutdownReport { answered: 65, ..ShutdownReport::default() });
    // All of them had been called when it returned.
    let completions: Vec<IoCompletion> = receiver.try_iter().collect();
    assert_eq!(completions.len(), 64);
    assert!(completions.iter().all(|completion| completion.result == Ok(BLOCK as u32)));
    assert_eq!(block_on(future).result, Ok(0), "a future outlives its context");
    assert_eq!(context.shutdown(LIMIT), ShutdownReport { answered: 65, ..ShutdownReport::default() });
}

/// What a limit of the engine holds back was not issued, and never will be; what the device has comes back when it answers.
#[test]
fn what_a_shutdown_does_not_wait_for_is_told_so() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 8, &workers);
    let slow = Split { total: Some(Rate { per_second: 1, burst: Some(1) }), ..Split::default() };
    engine.engine.set_limit(Scope::Volume(known), Limit { iops: slow, ..Limit::default() }).unwrap();
    let (sender, receiver) = mpsc::channel();
    for n in 0..8 {
        let mut buffer = context.buffer(BLOCK).unwrap();
        buffer.fill(1);
        let event = IoEvent::write(volume, n * BLOCK as u64, buffer).callback(sending(&sender));
        context.submit(event, Channel::Write).unwrap();
    }
    wait_until("the first answer", || context.counts().pending < 8);
    let report = context.shutdown(Duration::from_millis(10));
    assert_eq!(report.answered + report.unanswered, 8, "{report:?}");
    assert!(report.unanswered > 0 && !report.leaked && !report.calling, "{report:?}");
    let completions: Vec<IoCompletion> = receiver.try_iter().collect();
    let told = completions.iter().filter_map(|completion| completion.result.err());
    assert_eq!(told.filter(|error| error.cause == Cause::Unanswered).count() as u64, report.unanswered);
    assert_eq!(completions.len(), 8);
    assert!(completions.iter().all(|completion| completion.buffer.is_some()), "every buffer came back");
}

/// A device that does not answer may still write to memory: that is not handed out again.
#[test]
fn a_device_that_never_answers_costs_its_buffers_and_nothing_else() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    engine.faults(known, FaultOps::READ, FaultEffect::Stuck);
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 8, &workers);
    let (sender, receiver) = mpsc::channel();
    let event = IoEvent::read(volume, 0, context.buffer(BLOCK).unwrap()).callback(sending(&sender));
    context.submit(event, Channel::Read).unwrap();
    let future =
        context.request(IoEvent::read(volume, 0, context.buffer(BLOCK).unwrap()), Channel::Read).unwrap();
    wait_until("the reads to be with the device", || context.running() == 2);
    let report = context.shutdown(Duration::from_millis(10));
    let expected = ShutdownReport { unanswered: 2, leaked: true, ..ShutdownReport::default() };
    assert_eq!(report, expected);
    for completion in [receiver.try_recv().unwrap(), block_on(future)] {
        assert_eq!(completion.result.unwrap_err().cause, Cause::Unanswered);
        assert!(completion.buffer.is_none());
    }
}

#[test]
fn a_context_is_dropped_with_events_in_flight() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let delay = FaultEffect::Delay { min: Duration::from_millis(10), max: Duration::from_millis(30) };
    engine.faults(known, FaultOps::WRITE, delay);
    for threads in [0, 2] {
        let workers = workers::<Callback>(threads);
        let (context, volume) = engine.context(known, 16, &workers);
        let (sender, receiver) = mpsc::channel();
        for _ in 0..16 {
            let event = IoEvent::write(volume, 0, context.buffer(BLOCK).unwrap());
            context.submit(event.callback(sending(&sender)), Channel::Write).unwrap();
        }
        drop(context);
        assert_eq!(receiver.try_iter().filter(|completion| completion.result.is_ok()).count(), 16);
    }
    assert_eq!(engine.engine.snapshot().queues.len(), 0, "its session is gone");
}

#[test]
fn an_engine_that_stops_first_leaves_nobody_waiting() {
    let engine = TestEngine::new(BackendChoice::Auto);
    let known = engine.volume();
    let workers = workers::<Callback>(1);
    let (context, volume) = engine.context(known, 4, &workers);
    engine.engine.stop();
    let (sender, receiver) = mpsc::channel();
    let event = IoEvent::write(volume, 0, context.buffer(BLOCK).unwrap()).callback(sending(&sender));
    context.submit(event, Channel::Write).unwrap();
    assert_eq!(context.shutdown(Duration::from_millis(10)).unanswered, 1);
    assert_eq!(receiver.try_recv().unwrap().result.unwrap_err().cause, Cause::Unanswered);
    let error = IoContextBuilder::new().beside(&context).start(&workers).unwrap_err().to_string();
    assert_eq!(error, "engine test has stopped");
}

/// Threads, descriptors and mappings of this process.
fn footprint() -> [usize; 3] {
    let entries = |path| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours = |line: &&str| line.contains("ferrio") || line.contains("io_uring") || line.contains("[aio]");
    [entries("/proc/self/task"), entries("/proc/self/fd"), maps.lines().filter(ours).count()]
}

/// By itself in a process: the other tests have threads and descriptors, too.
#[test]
fn a_hundred_contexts_leave_nothing_behind() {
    const ALONE: &str = "FERRIO_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "end::a_hundred_contexts_leave_nothing_behind";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stdout).contains("1 passed"));
        return;
    }
    let round = |backend| {
        let workers = workers::<Callback>(2);
        let mut builder = IoContextBuilder::new().backend(backend).depth(16);
        let volume = builder.volume(Arc::new(Target::memory(VOLUME_BYTES).unwrap()));
        let context = builder.start(&workers).unwrap();
        let (sender, receiver) = mpsc::channel();
        for _ in 0..16 {
            let event = IoEvent::write(volume, 0, context.buffer(BLOCK).unwrap());
            context.submit(event.callback(sending(&sender)), Channel::Write).unwrap();
        }
        drop(context.request(IoEvent::flush(volume), Channel::Prio).unwrap());
        drop(context);
        assert_eq!(receiver.try_iter().count(), 16);
    };
    let backends = backends();
    backends.iter().for_each(|backend| round(*backend));
    let before = footprint();
    for n in 0..100 {
        round(backends[n % backends.len()]);
    }
    // A joined thread may stay in the list for an instant.
    let until = Instant::now() + LIMIT;
    while footprint() != before && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(footprint(), before, "threads, descriptors, mappings");
    let names = std::fs::read_dir("/dev/shm")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let prefix = format!("ferrio-context-{}-", std::process::id());
    let left: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
    assert_eq!(left, Vec::<String>::new());
}
