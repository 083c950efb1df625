//! Volumes that go and change size while clients use them: everything is answered, and nobody else notices.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use ferrio_api::v1;
use ferrio_client::{
    Access, Errno, Error, Event, Queue, QueueOptions, Request, RequestError, Session, Volume,
};
use ferrio_tests::{Daemon, DaemonBuilder, Operator, Process, process::wait_until};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const DEPTH: usize = 64;

/// What became of the requests of a [`Load`].
#[derive(Debug, Default)]
struct Answers {
    done: u64,
    /// Errnos in the order in which they came, with the offset of their request.
    failed: Vec<(u64, Errno)>,
}

/// A daemon, a client process that verifies its data on a volume beside, and a session on the volume of the test.
struct Rig {
    daemon: Daemon,
    operator: Operator,
    beside: Process,
    session: Session,
    volume: Volume,
}

impl Rig {
    fn start(builder: DaemonBuilder) -> Self {
        let daemon = builder.file("data", 8 * MIB).file("beside", 4 * MIB).start();
        let stop = daemon.path("stop");
        let stop = stop.to_str().expect("a plain path");
        let mut beside = daemon.client(&["verify", "beside", "--until", stop]);
        beside.wait_for_line("started");
        let options = QueueOptions { entries: DEPTH as u32, ..QueueOptions::default() };
        let session = daemon.session("data", Access::ReadWriteShared);
        let session = session.queue(options.clone()).queue(options).open().expect("a session");
        let volume = session.volume("data").expect("it is open");
        Self { operator: Operator::new(daemon.control()), daemon, beside, session, volume }
    }

    /// The client beside has verified on, and the daemon is well.
    #[track_caller]
    fn finish(mut self) {
        assert!(!self.daemon.process().has_ended(), "{}", self.daemon.log());
        assert!(!self.beside.has_ended(), "the client beside ended: {}", self.beside.stderr());
        std::fs::write(self.daemon.path("stop"), []).expect("own directory");
        let beside = self.beside.finish().expect(0);
        assert!(beside.stdout.contains("verified"), "{}", beside.stdout);
        drop(self.session);
        self.daemon.end(rustix::process::Signal::TERM).expect(0);
    }
}

/// Reads and writes all over the first `bytes` of the volume, [`DEPTH`] at once, until told to stop.
fn load(rig: &Rig, mut queue: Queue, bytes: u64, stop: &AtomicBool, failed: &AtomicU64) -> Answers {
    let (session, volume) = (&rig.session, &rig.volume);
    let mut rng = fastrand::Rng::with_seed(queue.index().into());
    let mut spare: Vec<_> = (0..DEPTH / 2).map(|_| session.alloc(BLOCK as usize).expect("room")).collect();
    let mut answers = Answers::default();
    loop {
        while !stop.load(Ordering::Relaxed)
            && let Some(buffer) = spare.pop()
        {
            let offset = rng.u64(..bytes / BLOCK) * BLOCK;
            let make = if rng.bool() { Request::write } else { Request::read };
            queue.submit(make(volume, offset, buffer).tag(offset)).expect("it is not full");
        }
        let Some(completion) = queue.wait(Some(Duration::from_secs(20))).expect("the session lives") else {
            assert_eq!(queue.in_flight(), 0, "unanswered for 20 s");
            return answers;
        };
        match completion.result {
            Ok(_) => answers.done += 1,
            Err(RequestError::Errno(errno)) => {
                answers.failed.push((completion.tag, errno));
                failed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
        spare.extend(completion.buffer);
    }
}

/// Loads the volume from both queues while `change` is under way. It is given what waits until either has failed again.
fn under_load(rig: &Rig, bytes: u64, change: impl FnOnce(&dyn Fn())) -> Vec<Answers> {
    let stop = AtomicBool::new(false);
    let failed = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        let workers: Vec<_> = failed
            .iter()
            .enumerate()
            .map(|(index, failed)| {
                let queue = rig.session.take_queue(index).expect("a queue");
                let stop = &stop;
                scope.spawn(move || load(rig, queue, bytes, stop, failed))
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        change(&|| {
            let counts = || failed.each_ref().map(|count| count.load(Ordering::Relaxed));
            let before = counts();
            wait_until("both to fail", || counts().iter().zip(before).all(|(now, before)| *now > before));
        });
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("the worker")).collect()
    })
}

fn a_volume_goes(builder: DaemonBuilder) {
    let rig = Rig::start(builder);
    let answers = under_load(&rig, 8 * MIB, |both_fail| {
        let removed = rig.operator.remove("data", 20_000).expect("removed");
        assert!(removed.removed, "{removed:?}");
        both_fail();
    });
    for answers in &answers {
        assert!(answers.done > 0 && !answers.failed.is_empty(), "{} done", answers.done);
        assert!(
            answers.failed.iter().all(|(_, errno)| *errno == Errno::ENODEV),
            "{:?}",
            answers.failed.last()
        );
    }
    assert_eq!(rig.operator.volume("data").unwrap(), None, "it is gone");
    // Its file is closed and its name free; the session that had it does not get the new one.
    let path = rig.daemon.path("data").into_os_string().into_string().unwrap();
    let request =
        v1::CreateVolumeRequest { name: "data".into(), path, allow_any: true, ..Default::default() };
    rig.operator.create(request).expect("made again");
    rig.daemon.client(&["verify", "data"]).finish().expect(0);
    rig.finish();
}

#[test]
fn a_volume_goes_while_it_is_used_over_io_uring() {
    a_volume_goes(DaemonBuilder::new().engine("main", "io_uring", ""));
}

#[test]
fn a_volume_goes_while_it_is_used_over_aio() {
    a_volume_goes(DaemonBuilder::new().engine("main", "aio", ""));
}

fn a_volume_changes_size(builder: DaemonBuilder) {
    let rig = Rig::start(builder);
    let answers = under_load(&rig, 8 * MIB, |both_fail| {
        for size in [2, 16, 4, 8] {
            rig.operator.resize("data", size * MIB).expect("resized");
            if size < 8 {
                both_fail();
            }
        }
    });
    for answers in &answers {
        assert!(answers.done > 0 && !answers.failed.is_empty(), "{} done", answers.done);
        for (offset, errno) in &answers.failed {
            assert_eq!(*errno, Errno::ERANGE);
            assert!(*offset + BLOCK > 2 * MIB, "{offset} was never beyond the end");
        }
    }
    let mut seen = Vec::new();
    while let Some(Event::Resized { volume: 0, size_bytes }) = rig.session.next_event().unwrap() {
        seen.push(size_bytes / MIB);
    }
    assert_eq!(seen, [2, 16, 4, 8]);
    assert_eq!(rig.volume.size_bytes(), 8 * MIB);
    rig.finish();
}

#[test]
fn a_volume_changes_size_while_it_is_used_over_io_uring() {
    a_volume_changes_size(DaemonBuilder::new().engine("main", "io_uring", ""));
}

#[test]
fn a_volume_changes_size_while_it_is_used_over_aio() {
    a_volume_changes_size(DaemonBuilder::new().engine("main", "aio", ""));
}

#[test]
fn a_volume_that_grew_is_used_to_its_end_and_what_was_cut_is_gone() {
    for builder in [DaemonBuilder::new().file("data", MIB), DaemonBuilder::new().memory("data", MIB)] {
        let daemon = builder.start();
        let operator = Operator::new(daemon.control());
        let session = daemon.session("data", Access::ReadWrite).open().unwrap();
        let (volume, mut queue) = (session.volume("data").unwrap(), session.take_queue(0).unwrap());
        let mut buffer = session.alloc(BLOCK as usize).unwrap();
        buffer.fill(7);
        buffer = queue.write(&volume, MIB - BLOCK, buffer).unwrap();
        let failure = queue.write(&volume, MIB, buffer).unwrap_err();
        assert_eq!(failure.error.errno(), Some(Errno::ERANGE));
        operator.resize("data", 2 * MIB).unwrap();
        buffer = queue.write(&volume, 2 * MIB - BLOCK, failure.buffer.unwrap()).unwrap();
        operator.resize("data", MIB / 2).unwrap();
        let failure = queue.read(&volume, MIB / 2, buffer).unwrap_err();
        assert_eq!(failure.error.errno(), Some(Errno::ERANGE));
        operator.resize("data", 2 * MIB).unwrap();
        buffer = queue.read(&volume, MIB - BLOCK, failure.buffer.unwrap()).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0), "what was cut off comes back");
    }
}

#[test]
fn an_evicted_session_ends_with_the_operators_words() {
    let rig = Rig::start(DaemonBuilder::new());
    let mut queue = rig.session.take_queue(0).unwrap();
    queue.nop().unwrap();
    rig.operator.evict(rig.session.id(), "the disk is needed elsewhere").expect("evicted");
    let start = Instant::now();
    let error = loop {
        match queue.nop() {
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(20), "it goes on"),
            Err(error) => break error,
        }
    };
    let told =
        |error: &Error| matches!(error, Error::Disconnected(reason) if reason.as_str().contains("elsewhere"));
    let unanswered = matches!(&error, Error::Request(RequestError::Unanswered(_)));
    assert!(unanswered || told(&error), "{error}");
    wait_until("the reason", || rig.session.next_event().is_err_and(|error| told(&error)));
    rig.finish();
}
