//! The client's buffers.
#![cfg(not(any(loom, miri)))]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use ferrio_shm::arena::{AllocError, Arena, Buffer};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::mapping::{Mapping, Region, create_memfd};

const BASE: u64 = 8192;

/// An arena of `pages` pages, and the region over the same bytes as the daemon sees it.
fn arena(pages: u64) -> (Arena, Region) {
    let bytes = pages * 4096;
    let memfd = create_memfd("arena", BASE + bytes).unwrap();
    let guard = ForkGuard::new().unwrap();
    let map = |bytes: u64| Mapping::new(memfd.as_fd(), bytes as usize).unwrap();
    let client = Mapping::new_client(memfd.as_fd(), (BASE + bytes) as usize, &guard).unwrap();
    let region = Region::new(Arc::new(client), BASE, bytes).unwrap();
    let daemon = Region::new(Arc::new(map(BASE + bytes)), BASE, bytes).unwrap();
    (Arena::new(0, region, guard).unwrap(), daemon)
}

fn send<T: Send + 'static>(_: &T) {}

#[test]
fn buffers_are_aligned_and_apart() {
    let (arena, _) = arena(4);
    let (mut one, mut two) = (arena.alloc(1).unwrap(), arena.alloc(4097).unwrap());
    assert_eq!((one.region(), one.len(), two.len()), (0, 1, 4097));
    assert!(one.offset() % 4096 == 0 && two.offset() % 4096 == 0);
    assert_eq!(one.as_ptr() as usize % 4096, 0);
    assert!(one.iter().chain(two.iter()).all(|&byte| byte == 0));
    one.fill(1);
    two.fill(2);
    assert!(one.iter().all(|&byte| byte == 1) && two.iter().all(|&byte| byte == 2));
    assert!(!one.is_empty());
    send(&one);
}

#[test]
fn the_other_side_finds_a_buffer_at_its_offset() {
    let (arena, daemon) = arena(4);
    let _first = arena.alloc(100).unwrap();
    let mut buffer = arena.alloc(5).unwrap();
    buffer.copy_from_slice(b"bytes");
    let seen = daemon.slice(buffer.offset(), 5).unwrap();
    let mut copy = [0; 5];
    // SAFETY: the slice lies in a live mapping, and nobody writes to it meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(seen.as_ptr(), copy.as_mut_ptr(), 5) };
    assert_eq!(&copy, b"bytes");
}

#[test]
fn dropping_frees_and_leaking_does_not() {
    let (arena, _) = arena(2);
    let whole = arena.alloc(8192).unwrap();
    let full = AllocError::Full { asked: 4096, free: 0, total: 8192 };
    assert_eq!(arena.alloc(1).unwrap_err(), full);
    assert!(full.to_string().contains("no 4096 bytes in one piece are free (0 of 8192 bytes are free)"));
    drop(whole);
    let (one, two) = (arena.alloc(4096).unwrap(), arena.alloc(4096).unwrap());
    one.leak();
    drop(two);
    assert_eq!(arena.alloc(8192).unwrap_err(), AllocError::Full { asked: 8192, free: 4096, total: 8192 });
    assert_eq!(arena.alloc(4096).unwrap().len(), 4096);
}

#[test]
fn fragments_are_told_from_space() {
    let (arena, _) = arena(4);
    let mut pages: Vec<Buffer> = (0..4).map(|_| arena.alloc(4096).unwrap()).collect();
    pages.sort_by_key(Buffer::offset);
    pages.remove(2);
    pages.remove(0);
    assert_eq!(arena.alloc(8192).unwrap_err(), AllocError::Full { asked: 8192, free: 8192, total: 16384 });
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let (arena, _) = arena(2);
    assert_eq!(arena.alloc(0).unwrap_err(), AllocError::ZeroLength);
    for length in [8193, usize::MAX, usize::MAX - 4095, 1 << 63] {
        assert!(matches!(arena.alloc(length), Err(AllocError::Full { .. })), "{length}");
    }
    let empty = Mapping::new(create_memfd("empty", 4096).unwrap().as_fd(), 4096).unwrap();
    let empty = Region::new(Arc::new(empty), 4096, 0).unwrap();
    let arena = Arena::new(0, empty, ForkGuard::new().unwrap()).unwrap();
    assert!(matches!(arena.alloc(1), Err(AllocError::Full { total: 0, .. })));
}

#[test]
fn memory_has_one_arena() {
    let memfd = create_memfd("one", 8192).unwrap();
    let region = Region::new(Arc::new(Mapping::new(memfd.as_fd(), 8192).unwrap()), 0, 8192).unwrap();
    let guard = ForkGuard::new().unwrap();
    let arena = Arena::new(0, region.clone(), guard.clone()).unwrap();
    assert_eq!(Arena::new(0, region, guard).unwrap_err(), AllocError::Taken);
    drop(arena);
}

#[test]
fn threads_share_an_arena_and_buffers_outlive_it() {
    let (arena, _) = arena(64);
    let threads: Vec<_> = (0..4u8)
        .map(|id| {
            let arena = arena.clone();
            thread::spawn(move || {
                for round in 0..500 {
                    let mut buffer = arena.alloc(1 + round * 7 % 20_000).unwrap();
                    buffer.fill(id);
                    assert!(buffer.iter().all(|&byte| byte == id));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut last = arena.alloc(64 * 4096).unwrap();
    drop(arena);
    last.fill(9);
    assert_eq!(last[64 * 4096 - 1], 9);
}
