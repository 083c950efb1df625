use std::path::PathBuf;

use super::*;

const BYTES: usize = 4096;
const DEPTH: u32 = 8;
const BLOCKS: u64 = 64;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("file");
    std::fs::write(&path, vec![0; BLOCKS as usize * BYTES]).expect("write");
    Place { _directory: directory, path }
}

impl Place {
    /// Past the page cache where the file system can.
    fn open(&self) -> DirectFile {
        let direct = DirectFile::open(&self.path, true, true);
        direct.or_else(|_| DirectFile::open(&self.path, true, false)).expect("open")
    }
}

/// Writes all blocks, `depth` at once, each with its number; then reads them back.
fn write_and_read(queue: &mut impl DirectQueue, depth: u32) {
    for write in [true, false] {
        let mut free: Vec<u32> = (0..depth).collect();
        let mut at = vec![0; depth as usize];
        let (mut next, mut finished) = (0, 0);
        let mut done = Vec::with_capacity(depth as usize);
        while finished < BLOCKS {
            while next < BLOCKS
                && let Some(slot) = free.pop()
            {
                queue.buffer(slot).fill(if write { next as u8 + 1 } else { 0xff });
                at[slot as usize] = next;
                queue.stage(Transfer { slot, write, offset: next * BYTES as u64 });
                next += 1;
            }
            queue.wait(&mut done).expect("wait");
            assert!(!done.is_empty(), "a wait with requests in flight finds one");
            for Done { slot, result } in done.drain(..) {
                assert_eq!(usize::try_from(result), Ok(BYTES));
                let wanted = at[slot as usize] as u8 + 1;
                assert!(queue.buffer(slot).iter().all(|&byte| byte == wanted), "block {}", wanted - 1);
                free.push(slot);
                finished += 1;
            }
        }
        queue.wait(&mut done).expect("nothing in flight, nothing to wait for");
        assert!(done.is_empty());
    }
}

#[test]
fn io_uring_moves_every_block() {
    let place = place();
    for wait in [UringWait::Sleep, UringWait::Spin] {
        match UringQueue::new(&place.open(), DEPTH, BYTES, wait) {
            Ok(mut queue) => write_and_read(&mut queue, DEPTH),
            Err(error) => println!("SKIPPED: no io_uring here: {error}"),
        }
    }
}

#[test]
fn aio_moves_every_block() {
    match AioQueue::new(&place().open(), DEPTH, BYTES) {
        Ok(mut queue) => write_and_read(&mut queue, DEPTH),
        Err(error) => println!("SKIPPED: no AIO here: {error}"),
    }
}

#[test]
fn plain_calls_move_every_block() {
    write_and_read(&mut SyncQueue::new(&place().open(), BYTES).expect("memory"), 1);
}

#[test]
fn errors_are_answers() {
    let place = place();
    // Read-only, so that every write fails.
    let file = DirectFile::open(&place.path, false, false).expect("open");
    let write = Transfer { slot: 0, write: true, offset: 0 };
    let mut done = Vec::new();
    let mut sync = SyncQueue::new(&file, BYTES).expect("memory");
    sync.stage(write);
    sync.wait(&mut done).expect("wait");
    if let Ok(mut queue) = UringQueue::new(&file, 1, BYTES, UringWait::Spin) {
        queue.stage(write);
        queue.wait(&mut done).expect("wait");
    }
    assert!(done.iter().all(|done| done.result == -libc::EBADF), "{done:?}");
}

#[test]
fn dropped_in_flight_it_waits() {
    let place = place();
    let read = |slot| Transfer { slot, write: false, offset: u64::from(slot) * BYTES as u64 };
    let mut done = Vec::new();
    if let Ok(mut queue) = UringQueue::new(&place.open(), DEPTH, BYTES, UringWait::Spin) {
        (0..DEPTH).for_each(|slot| queue.stage(read(slot)));
        queue.wait(&mut done).expect("wait");
        queue.stage(read(done[0].slot));
    }
    if let Ok(mut queue) = AioQueue::new(&place.open(), DEPTH, BYTES) {
        (0..DEPTH).for_each(|slot| queue.stage(read(slot)));
        done.clear();
        queue.wait(&mut done).expect("wait");
        queue.stage(read(done[0].slot));
    }
}

#[test]
fn too_much_memory_is_refused() {
    let file = place().open();
    let error = SyncQueue::new(&file, BUFFER_BYTES_MAX + 1).expect_err("too large").to_string();
    assert!(error.contains(&BUFFER_BYTES_MAX.to_string()), "{error}");
    assert!(SyncQueue::new(&file, 0).is_err());
}

#[test]
#[should_panic(expected = "slot 0 is in flight")]
fn a_buffer_in_flight_is_nobodys() {
    let mut queue =
        AioQueue::new(&place().open(), 1, BYTES).unwrap_or_else(|_| panic!("slot 0 is in flight"));
    queue.stage(Transfer { slot: 0, write: false, offset: 0 });
    queue.buffer(0);
}
