//! Models of the rings and of the sleep handshake: loom runs each in every order of its atomic accesses that
//! `PREEMPTIONS` allows, with every value that the memory model lets a load see. A lost wake-up is a deadlock,
//! which loom reports.
//!
//! What loom cannot show: it lets a load see an old store, but no load sees a store of the future. So the releases
//! that keep a slot from being filled before it was read (sq-free, cq-free) stand on the C++ memory model alone;
//! the stress test in `stress.rs` exercises them on the machine.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ferrio-shm --profile loom --test loom`
#![cfg(loom)]

use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::ring::{CqConsumer, CqCredit, CqProducer, HeapQueue, SqConsumer, SqProducer};
use loom::model::Builder;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Unforced switches between threads in one execution. Known faults (a fence or a release left out) show with 2.
const PREEMPTIONS: usize = 3;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(body);
}

/// A pipe: keeps a ring until it is drained.
#[derive(Clone)]
struct Doorbell(Arc<(Mutex<bool>, Condvar)>);

impl Doorbell {
    fn new() -> Doorbell {
        Doorbell(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn ring(&self) {
        let (rung, changed) = &*self.0;
        *rung.lock().unwrap() = true;
        changed.notify_one();
    }

    /// Sleeps until it is rung, and drains it.
    fn wait(&self) {
        let (rung, changed) = &*self.0;
        let mut rung = rung.lock().unwrap();
        while !*rung {
            rung = changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn sqe(user_data: u64) -> Sqe {
    Sqe { op: 1, user_data, offset: user_data * 3, reserved: user_data, ..Sqe::default() }
}

fn cqe(user_data: u64) -> Cqe {
    Cqe { user_data, result: user_data as i32 + 1, flags: 7 }
}

/// A queue whose indices wrap after one entry, and the ends that go on there.
struct Ends {
    submit: SqProducer<HeapQueue>,
    reap: CqConsumer<HeapQueue>,
    daemon: Daemon,
}

struct Daemon {
    take: SqConsumer<HeapQueue>,
    credit: CqCredit<HeapQueue>,
    post: CqProducer<HeapQueue>,
}

fn ends(sq_entries: u32, cq_entries: u32, start: u32) -> Ends {
    let queue = HeapQueue::starting_at(sq_entries, cq_entries, start);
    let post = CqProducer::resume(queue.clone(), start);
    let daemon = Daemon {
        take: SqConsumer::resume(queue.clone(), start),
        credit: CqCredit::resume(queue.clone(), &post, start),
        post,
    };
    Ends { submit: SqProducer::new(queue.clone()), reap: CqConsumer::new(queue), daemon }
}

impl Daemon {
    /// Takes what is there, checks it, answers it. Returns how many.
    fn turn(&mut self, expected: u64, client_doorbell: &Doorbell) -> u64 {
        let mut served = 0;
        while self.take.available().unwrap() > 0 {
            let taken = self.take.take().unwrap();
            assert_eq!(taken, sqe(expected + served));
            self.credit.reserve().unwrap();
            self.post.push(&cqe(taken.user_data));
            served += 1;
        }
        self.take.publish();
        if self.post.publish().unwrap() {
            client_doorbell.ring();
        }
        served
    }

    /// Serves `count` SQEs, sleeping whenever there are none.
    fn serve(&mut self, count: u64, own_doorbell: &Doorbell, client_doorbell: &Doorbell) {
        let mut served = 0;
        while served < count {
            served += self.turn(served, client_doorbell);
            if served < count && self.take.prepare_sleep().unwrap() {
                own_doorbell.wait();
            }
        }
    }
}

/// Pops `count` CQEs in order, sleeping whenever there are none.
fn reap(end: &mut CqConsumer<HeapQueue>, first: u64, count: u64, doorbell: &Doorbell) {
    let mut popped = 0;
    while popped < count {
        while let Some(found) = end.pop().unwrap() {
            assert_eq!(found, cqe(first + popped));
            popped += 1;
        }
        end.release();
        if popped < count && end.prepare_sleep() {
            doorbell.wait();
        }
    }
}

/// The client laps the SQ ring: a slot is filled again only after it was read, and what is read is whole.
#[test]
fn sq_ring_push_take() {
    model(|| {
        let Ends { mut submit, mut daemon, .. } = ends(2, 4, u32::MAX);
        let client = thread::spawn(move || {
            for user_data in 0..3 {
                while submit.push(&sqe(user_data)).is_err() {
                    thread::yield_now();
                }
                let _ = submit.publish();
            }
        });
        let mut taken = 0;
        while taken < 3 {
            if daemon.take.available().unwrap() == 0 {
                thread::yield_now();
            }
            while let Some(found) = daemon.take.take() {
                assert_eq!(found, sqe(taken));
                taken += 1;
            }
            daemon.take.publish();
        }
        client.join().unwrap();
    });
}

/// Two SQEs published by one store are seen by one load: what a chain relies on.
#[test]
fn sq_batch_is_visible_as_a_whole() {
    model(|| {
        let Ends { mut submit, mut daemon, .. } = ends(2, 2, u32::MAX);
        let client = thread::spawn(move || {
            submit.push(&sqe(0)).unwrap();
            submit.push(&sqe(1)).unwrap();
            let _ = submit.publish();
        });
        let seen = daemon.take.available().unwrap();
        assert!(seen == 0 || seen == 2, "{seen} of 2");
        client.join().unwrap();
    });
}

/// The daemon laps the CQ ring: a slot is filled again only after it was read and released.
#[test]
fn cq_ring_push_pop() {
    model(|| {
        let Ends { reap: mut client, mut daemon, .. } = ends(1, 2, u32::MAX);
        let poller = thread::spawn(move || {
            for user_data in 0..3 {
                while daemon.credit.room().unwrap() == 0 {
                    thread::yield_now();
                }
                daemon.credit.reserve().unwrap();
                daemon.post.push(&cqe(user_data));
                let _ = daemon.post.publish().unwrap();
            }
        });
        let mut popped = 0;
        while popped < 3 {
            match client.pop().unwrap() {
                Some(found) => {
                    assert_eq!(found, cqe(popped));
                    popped += 1;
                    client.release();
                }
                None => thread::yield_now(),
            }
        }
        poller.join().unwrap();
    });
}

/// Client to daemon: the daemon sleeps between any two SQEs, and is always woken.
#[test]
fn daemon_is_woken() {
    model(|| {
        let Ends { mut submit, mut daemon, .. } = ends(4, 4, u32::MAX);
        let bell = Doorbell::new();
        let client = thread::spawn({
            let bell = bell.clone();
            move || {
                for user_data in 0..2 {
                    submit.push(&sqe(user_data)).unwrap();
                    if submit.publish() {
                        bell.ring();
                    }
                }
            }
        });
        daemon.serve(2, &bell, &Doorbell::new());
        client.join().unwrap();
    });
}

/// Daemon to client, the same.
#[test]
fn client_is_woken() {
    model(|| {
        let Ends { reap: mut client, mut daemon, .. } = ends(4, 4, u32::MAX);
        let bell = Doorbell::new();
        let poller = thread::spawn({
            let bell = bell.clone();
            move || {
                for user_data in 0..2 {
                    daemon.credit.reserve().unwrap();
                    daemon.post.push(&cqe(user_data));
                    if daemon.post.publish().unwrap() {
                        bell.ring();
                    }
                }
            }
        });
        reap(&mut client, 0, 2, &bell);
        poller.join().unwrap();
    });
}

/// Both directions at once: requests go round, and both sides sleep whenever they have nothing to do.
#[test]
fn round_trips_with_both_sides_asleep() {
    model(|| {
        let Ends { mut submit, reap: mut end, mut daemon } = ends(1, 1, u32::MAX);
        let (daemon_bell, client_bell) = (Doorbell::new(), Doorbell::new());
        let served = thread::spawn({
            let (daemon_bell, client_bell) = (daemon_bell.clone(), client_bell.clone());
            move || daemon.serve(2, &daemon_bell, &client_bell)
        });
        for user_data in 0..2 {
            submit.push(&sqe(user_data)).unwrap();
            if submit.publish() {
                daemon_bell.ring();
            }
            reap(&mut end, user_data, 1, &client_bell);
        }
        served.join().unwrap();
    });
}

/// Two queues behind one doorbell: the daemon drains it, then looks at both; the idle one stays asleep.
#[test]
fn two_queues_share_a_doorbell() {
    model(|| {
        let bell = Doorbell::new();
        let mut daemons = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..2 {
            let Ends { mut submit, daemon, .. } = ends(1, 1, u32::MAX);
            daemons.push(daemon);
            let bell = bell.clone();
            clients.push(thread::spawn(move || {
                submit.push(&sqe(0)).unwrap();
                if submit.publish() {
                    bell.ring();
                }
            }));
        }
        let mut served = [0, 0];
        while served != [1, 1] {
            let mut idle = true;
            for (daemon, served) in daemons.iter_mut().zip(&mut served) {
                *served += daemon.turn(*served, &bell);
                idle &= daemon.take.prepare_sleep().unwrap();
            }
            if idle && served != [1, 1] {
                bell.wait();
            }
        }
        for client in clients {
            client.join().unwrap();
        }
    });
}

/// Submitting and reaping on two client threads: a release reaches the daemon with the SQE that relies on it, so
/// an honest client is never found to overbook.
#[test]
fn split_client_never_overbooks() {
    model(|| {
        let Ends { mut submit, reap: mut end, mut daemon } = ends(1, 1, u32::MAX);
        let (daemon_bell, client_bell, room_bell) = (Doorbell::new(), Doorbell::new(), Doorbell::new());
        let submitter = thread::spawn({
            let (daemon_bell, room_bell) = (daemon_bell.clone(), room_bell.clone());
            move || {
                for user_data in 0..2 {
                    while submit.push(&sqe(user_data)).is_err() {
                        room_bell.wait();
                    }
                    if submit.publish() {
                        daemon_bell.ring();
                    }
                }
            }
        });
        let reaper = thread::spawn({
            let client_bell = client_bell.clone();
            move || {
                for user_data in 0..2 {
                    reap(&mut end, user_data, 1, &client_bell);
                    room_bell.ring();
                }
            }
        });
        daemon.serve(2, &daemon_bell, &client_bell);
        submitter.join().unwrap();
        reaper.join().unwrap();
    });
}

/// Submitter and Poller on two daemon threads: the Submitter knows of every CQE that the client released, so an
/// honest client is never found to release too much.
#[test]
fn split_daemon_never_faults() {
    model(|| {
        let Ends { mut submit, reap: mut end, daemon } = ends(1, 1, u32::MAX);
        let Daemon { mut take, mut credit, mut post } = daemon;
        let (daemon_bell, client_bell, poller_bell) = (Doorbell::new(), Doorbell::new(), Doorbell::new());
        let submitter = thread::spawn({
            let (daemon_bell, poller_bell) = (daemon_bell.clone(), poller_bell.clone());
            move || {
                for user_data in 0..2 {
                    while take.prepare_sleep().unwrap() {
                        daemon_bell.wait();
                    }
                    assert_eq!(take.take(), Some(sqe(user_data)));
                    credit.reserve().unwrap();
                    take.publish();
                    poller_bell.ring();
                }
            }
        });
        let poller = thread::spawn({
            let client_bell = client_bell.clone();
            move || {
                for user_data in 0..2 {
                    poller_bell.wait();
                    post.push(&cqe(user_data));
                    if post.publish().unwrap() {
                        client_bell.ring();
                    }
                }
            }
        });
        for user_data in 0..2 {
            submit.push(&sqe(user_data)).unwrap();
            if submit.publish() {
                daemon_bell.ring();
            }
            reap(&mut end, user_data, 1, &client_bell);
        }
        submitter.join().unwrap();
        poller.join().unwrap();
    });
}
