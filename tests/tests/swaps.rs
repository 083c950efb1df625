//! Compare-and-write between clients that do not know of each other: nothing is lost and nothing counted twice.

use std::thread;

use ferrio_client::{Access, Errno, Request, Session};
use ferrio_tests::{Daemon, DaemonBuilder};

const BLOCK: usize = 4096;
const CLIENTS: u64 = 3;
const SWAPS: u64 = 100;
/// Swaps that each client has in flight on the same block: at most one of them can succeed.
const RIVALS: u64 = 4;

fn counter(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    // The number stands in every word: half a write is seen.
    let (words, _) = bytes.as_chunks::<8>();
    assert!(words.iter().all(|word| u64::from_le_bytes(*word) == number), "a torn counter");
    number
}

fn set(bytes: &mut [u8], number: u64) {
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
}

/// Adds 1 to the counter [`SWAPS`] times, each time on top of what it has read.
fn count(session: &Session) {
    let (volume, mut queue) = (session.volume("data").unwrap(), session.take_queue(0).unwrap());
    let mut buffer = session.alloc(BLOCK).unwrap();
    let mut halves: Vec<_> = (0..RIVALS).map(|_| session.alloc(2 * BLOCK).unwrap()).collect();
    let mut done = 0;
    while done < SWAPS {
        buffer = queue.read(&volume, 0, buffer).unwrap();
        let number = counter(&buffer);
        for mut halves in halves.drain(..) {
            set(&mut halves[..BLOCK], number);
            set(&mut halves[BLOCK..], number + 1);
            let fua = done.is_multiple_of(4);
            queue.submit(Request::compare_and_write(&volume, 0, halves).fua(fua)).unwrap();
        }
        let mut swapped = 0;
        while let Some(completion) = queue.wait(None).unwrap() {
            match completion.result {
                Ok(_) => swapped += 1,
                Err(error) => assert_eq!(error.errno(), Errno::EILSEQ),
            }
            halves.extend(completion.buffer);
        }
        assert!(swapped <= 1, "{swapped} swaps replaced the same number");
        done += swapped;
    }
}

fn clients_count(daemon: &Daemon) {
    let open = || daemon.session("data", Access::ReadWriteShared).open().unwrap();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| count(&open()));
        }
    });
    let session = open();
    let (volume, mut queue) = (session.volume("data").unwrap(), session.take_queue(0).unwrap());
    let buffer = queue.read(&volume, 0, session.alloc(BLOCK).unwrap()).unwrap();
    assert_eq!(counter(&buffer), CLIENTS * SWAPS);
}

#[test]
fn clients_count_together_over_io_uring_with_one_thread() {
    clients_count(
        &DaemonBuilder::new().engine("main", "io_uring", "threads = \"1\"").file("data", 1 << 20).start(),
    );
}

#[test]
fn clients_count_together_over_io_uring_with_two_threads() {
    clients_count(
        &DaemonBuilder::new().engine("main", "io_uring", "threads = \"2\"").memory("data", 1 << 20).start(),
    );
}

#[test]
fn clients_count_together_over_aio() {
    clients_count(&DaemonBuilder::new().engine("main", "aio", "").file("data", 1 << 20).start());
}
