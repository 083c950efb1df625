//! The ring ends on two threads, over a memfd that each side maps for itself as two processes would; on the heap
//! under Miri. Both sides sleep on real doorbells.
#![cfg(not(loom))]

use std::thread;

use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::ring::{CqConsumer, CqCredit, CqProducer, QueueMemory, SqConsumer, SqProducer};

/// What one side does when it has nothing to do.
trait Doorbell: Send {
    fn ring(&self);
    fn wait(&self);
}

struct Side<M, D> {
    memory: M,
    own: D,
    peer: D,
}

/// Echoes every SQE's user_data in a CQE.
fn daemon<M: QueueMemory + Clone, D: Doorbell>(side: Side<M, D>, requests: u64) {
    let mut take = SqConsumer::new(side.memory.clone());
    let mut post = CqProducer::new(side.memory.clone());
    let mut credit = CqCredit::new(side.memory, &post);
    let mut served = 0;
    while served < requests {
        let mut batch = take.available().unwrap();
        while batch > 0 {
            let sqe = take.take().unwrap();
            assert_eq!(sqe.user_data, served);
            assert_eq!((sqe.offset, sqe.reserved), (served ^ 0x5555, !served), "a torn SQE");
            credit.reserve().unwrap();
            post.push(&Cqe { user_data: sqe.user_data, result: served as i32 & 0xffff, flags: 0 });
            served += 1;
            batch -= 1;
        }
        take.publish();
        if post.publish().unwrap() {
            side.peer.ring();
        }
        if served < requests && take.prepare_sleep().unwrap() {
            side.own.wait();
        }
    }
}

fn client<M: QueueMemory + Clone, D: Doorbell>(side: Side<M, D>, requests: u64) {
    let mut submit = SqProducer::new(side.memory.clone());
    let mut reap = CqConsumer::new(side.memory);
    let (mut submitted, mut reaped) = (0, 0);
    while reaped < requests {
        while submitted < requests {
            let sqe = Sqe {
                user_data: submitted,
                offset: submitted ^ 0x5555,
                reserved: !submitted,
                ..Sqe::default()
            };
            if submit.push(&sqe).is_err() {
                break;
            }
            submitted += 1;
            if submitted % 7 == 0 && submit.publish() {
                side.peer.ring();
            }
        }
        if submit.publish() {
            side.peer.ring();
        }
        while let Some(cqe) = reap.pop().unwrap() {
            assert_eq!(cqe, Cqe { user_data: reaped, result: reaped as i32 & 0xffff, flags: 0 });
            reaped += 1;
        }
        reap.release();
        if reaped < requests && submitted > reaped && reap.prepare_sleep() {
            side.own.wait();
        }
    }
}

fn run<M: QueueMemory + Clone + Send, D: Doorbell>(
    client_side: Side<M, D>,
    daemon_side: Side<M, D>,
    requests: u64,
) {
    thread::scope(|scope| {
        scope.spawn(move || daemon(daemon_side, requests));
        client(client_side, requests);
    });
}

#[cfg(miri)]
mod heap {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use ferrio_shm::ring::HeapQueue;

    use super::*;

    struct Channel(SyncSender<()>, Option<Receiver<()>>);

    impl Doorbell for Channel {
        fn ring(&self) {
            let _ = self.0.try_send(());
        }

        fn wait(&self) {
            let _ = self.1.as_ref().unwrap().recv();
        }
    }

    #[test]
    fn ring_ends_on_two_threads() {
        let queue = HeapQueue::new(2, 4);
        let (to_daemon, at_daemon) = sync_channel(1);
        let (to_client, at_client) = sync_channel(1);
        let side = |peer: &SyncSender<()>, own: &SyncSender<()>, at| Side {
            memory: queue.clone(),
            own: Channel(own.clone(), Some(at)),
            peer: Channel(peer.clone(), None),
        };
        run(side(&to_daemon, &to_client, at_client), side(&to_client, &to_daemon, at_daemon), 100);
    }
}

#[cfg(not(miri))]
mod mapped {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;

    use ferrio_shm::doorbell::{DoorbellRx, DoorbellTx, Drained, doorbell_to_client, doorbell_to_daemon};
    use ferrio_shm::layout::{QueueSpec, SessionLayout};
    use ferrio_shm::mapping::{MappedQueue, Mapping, create_memfd};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    enum End {
        Own(DoorbellRx),
        Peer(DoorbellTx),
    }

    impl Doorbell for End {
        fn ring(&self) {
            let End::Peer(tx) = self else { unreachable!("only the peer's doorbell is rung") };
            tx.ring().unwrap();
        }

        fn wait(&self) {
            let End::Own(rx) = self else { unreachable!("only the own doorbell is waited for") };
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(rx, PollFlags::IN)], Some(&limit)).unwrap();
            assert_eq!(ready, 1, "a wake-up was lost");
            assert_ne!(rx.drain().unwrap(), Drained::Closed);
        }
    }

    fn map(memfd: &OwnedFd, layout: &SessionLayout) -> MappedQueue {
        let mapping = Mapping::new(memfd.as_fd(), layout.memory_bytes as usize).unwrap();
        MappedQueue::new(Arc::new(mapping), &layout.queues[0]).unwrap()
    }

    fn stress(sq_entries: u32, cq_entries: u32, requests: u64) {
        let layout = SessionLayout::new(&[QueueSpec { sq_entries, cq_entries }], 0).unwrap();
        let memfd = create_memfd("stress", layout.memory_bytes).unwrap();
        let (to_daemon, at_daemon) = doorbell_to_daemon().unwrap();
        let (to_client, at_client) = doorbell_to_client().unwrap();
        let client =
            Side { memory: map(&memfd, &layout), own: End::Own(at_client), peer: End::Peer(to_daemon) };
        let daemon =
            Side { memory: map(&memfd, &layout), own: End::Own(at_daemon), peer: End::Peer(to_client) };
        run(client, daemon, requests);
    }

    #[test]
    fn depth_1_sleeps_at_every_request() {
        stress(1, 1, 20_000);
    }

    #[test]
    fn depth_2_with_a_wider_cq() {
        stress(2, 4, 100_000);
    }

    #[test]
    fn depth_64() {
        stress(64, 128, 1_000_000);
    }
}
