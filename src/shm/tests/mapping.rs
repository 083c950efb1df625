//! Memfds, mappings, queues and headers in them, regions.
#![cfg(not(any(loom, miri)))]

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrio_shm::abi::{MAGIC, SessionState};
use ferrio_shm::arena::Arena;
use ferrio_shm::entry::{Cqe, Sqe};
use ferrio_shm::fork::ForkGuard;
use ferrio_shm::layout::{QueueLayout, QueueSpec, SessionLayout};
use ferrio_shm::mapping::{
    HeaderError, MappedQueue, Mapping, Region, RegionError, SessionHeader, check_memfd, create_memfd,
};
use ferrio_shm::ring::{CqConsumer, CqProducer, QueueMemory, SqConsumer, SqProducer};
use ferrio_shm::sync::Ordering;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;

fn map(fd: &OwnedFd, bytes: u64) -> Arc<Mapping> {
    Arc::new(Mapping::new(fd.as_fd(), bytes as usize).unwrap())
}

fn unsealed(bytes: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

#[test]
fn a_sealed_memfd_keeps_its_length() {
    let fd = create_memfd("sealed", MIB).unwrap();
    assert_eq!(ftruncate(&fd, 4096), Err(Errno::PERM), "shrink");
    assert_eq!(ftruncate(&fd, 2 * MIB), Err(Errno::PERM), "grow");
    assert_eq!(fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM), "further seals");
    check_memfd(&fd, MIB).unwrap();
}

#[test]
fn a_descriptor_that_could_fail_later_is_refused() {
    let fd = unsealed(MIB);
    assert!(matches!(check_memfd(&fd, MIB), Err(RegionError::NotSealed)));
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    check_memfd(&fd, MIB).unwrap();
    let short = check_memfd(&fd, MIB + 1);
    assert!(matches!(short, Err(RegionError::TooShort { file_bytes: MIB, bytes }) if bytes == MIB + 1));
    fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).unwrap();
    assert!(matches!(check_memfd(&fd, MIB), Err(RegionError::WriteSealed)));

    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    assert!(matches!(check_memfd(&file, MIB), Err(RegionError::NotMemfd | RegionError::NotSealed)));
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert!(matches!(check_memfd(&pipe, MIB), Err(RegionError::NotMemfd)));
    let directory = std::fs::File::open("/").unwrap();
    assert!(check_memfd(&directory, 0).is_err());
    let huge = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    // Kernels without huge pages cannot make one.
    if let Ok(huge) = memfd_create("huge", huge) {
        fcntl_add_seals(&huge, SealFlags::SHRINK).unwrap();
        assert!(matches!(check_memfd(&huge, 0), Err(RegionError::NotMemfd)));
    }
}

#[test]
fn a_mapping_does_not_exceed_its_file() {
    let fd = create_memfd("short", 4096).unwrap();
    let error = Mapping::new(fd.as_fd(), 4097).unwrap_err();
    assert_eq!(error.to_string(), "cannot map 4097 bytes of a file of 4096");
    assert!(Mapping::new(fd.as_fd(), 0).is_err());
    assert_eq!(Mapping::new(fd.as_fd(), 4096).unwrap().len(), 4096);
}

#[test]
fn words_are_bounded_and_aligned() {
    let fd = create_memfd("words", 4096).unwrap();
    let mapping = map(&fd, 4096);
    assert!(!mapping.is_empty());
    assert!(mapping.u32(4092).is_some());
    assert!(mapping.u64s(0, 512).is_some());
    assert!(mapping.u32s(4096, 0).is_some());
    for (offset, count) in
        [(0, 513), (8, 512), (4096, 1), (4, 1), (usize::MAX, 1), (0, usize::MAX), (8, 1 << 61)]
    {
        assert!(mapping.u64s(offset, count).is_none(), "{offset} {count}");
    }
    for offset in [1, 2, 4093, 4096, usize::MAX - 3] {
        assert!(mapping.u32(offset).is_none(), "{offset}");
    }
}

#[test]
fn a_file_can_be_mapped_and_is_seen_by_others() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
    let (one, other) = (Mapping::of_file(&file, 8).unwrap(), Mapping::of_file(&file, 8).unwrap());
    assert_eq!(one.u64s(0, 1).unwrap()[0].load(Ordering::Relaxed), 2 << 32 | 1);
    one.u32(4).unwrap().store(3, Ordering::Relaxed);
    assert_eq!(other.u32(4).unwrap().load(Ordering::Relaxed), 3);
}

#[test]
fn a_queue_is_found_where_the_layout_says() {
    let specs = [QueueSpec { sq_entries: 2, cq_entries: 4 }, QueueSpec { sq_entries: 4, cq_entries: 4 }];
    let layout = SessionLayout::new(&specs, 4096).unwrap();
    let fd = create_memfd("queues", layout.memory_bytes).unwrap();
    let (client, daemon) = (map(&fd, layout.memory_bytes), map(&fd, layout.memory_bytes));
    let at = |offset: u64| client.u32(offset as usize).unwrap().load(Ordering::Relaxed);
    for queue in &layout.queues {
        let end = |side: &Arc<Mapping>| MappedQueue::new(Arc::clone(side), queue).unwrap();
        let mut submit = SqProducer::new(end(&client));
        let mut take = SqConsumer::new(end(&daemon));
        let mut post = CqProducer::new(end(&daemon));
        let mut reap = CqConsumer::new(end(&client));
        assert!(take.prepare_sleep().unwrap() && reap.prepare_sleep());
        let sqe = Sqe { op: 9, arg: 3, ..Sqe::default() };
        submit.push(&sqe).unwrap();
        assert!(submit.publish());
        assert_eq!(take.available(), Ok(1));
        assert_eq!(take.take(), Some(sqe));
        take.publish();
        let cqe = Cqe { user_data: 1, result: -2, flags: 3 };
        post.push(&cqe);
        assert_eq!(post.publish(), Ok(true));
        assert_eq!(reap.pop(), Ok(Some(cqe)));
        reap.release();

        let control = queue.control_offset;
        assert_eq!(at(control), 1, "sq_tail");
        assert_eq!(at(control + 128), 1, "cq_head");
        assert_eq!(at(control + 132), 2, "client_sleep");
        assert_eq!(at(control + 256), 1, "sq_head");
        assert_eq!(at(control + 260), 2, "daemon_sleep");
        assert_eq!(at(control + 384), 1, "cq_tail");
        assert_eq!(at(queue.sqes_offset), 9);
        assert_eq!(at(queue.cqes_offset + 8).cast_signed(), -2);
    }
    assert_eq!(MappedQueue::new(client, &layout.queues[0]).unwrap().sq_entries(), 2);
}

#[test]
fn a_queue_that_does_not_fit_is_refused() {
    let layout = SessionLayout::new(&[QueueSpec { sq_entries: 2, cq_entries: 4 }], 0).unwrap();
    let fd = create_memfd("queue", layout.memory_bytes).unwrap();
    let memory = map(&fd, layout.memory_bytes);
    let good = &layout.queues[0];
    assert!(MappedQueue::new(Arc::clone(&memory), good).is_some());
    let changes: [fn(&mut QueueLayout); 10] = [
        |queue| queue.sq_entries = 3,
        |queue| queue.sq_entries = 0,
        |queue| queue.sq_entries = 1 << 31,
        |queue| queue.cq_entries = 1 << 31,
        |queue| queue.control_offset = 8192,
        |queue| queue.control_offset = u64::MAX - 3,
        |queue| queue.control_offset += 2,
        |queue| queue.sqes_offset = u64::MAX - 7,
        |queue| queue.sqes_offset += 4,
        |queue| queue.cqes_offset = 8192 - 16,
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(MappedQueue::new(Arc::clone(&memory), &bad).is_none(), "{bad:?}");
    }
}

#[test]
fn the_header_tells_who_it_belongs_to() {
    let layout = SessionLayout::new(&[QueueSpec { sq_entries: 1, cq_entries: 1 }], 4096).unwrap();
    let fd = create_memfd("header", layout.memory_bytes).unwrap();
    let daemon = SessionHeader::new(map(&fd, layout.memory_bytes)).unwrap();
    let memory = map(&fd, layout.memory_bytes);
    let client = SessionHeader::new(Arc::clone(&memory)).unwrap();
    assert_eq!(client.check(7), Err(HeaderError::Magic { found: 0 }));
    assert_eq!(client.state(), None);

    daemon.init(7, 3, &layout);
    assert_eq!(client.check(7), Ok(()));
    assert_eq!(client.check(8), Err(HeaderError::Session { found: 7, expected: 8 }));
    assert_eq!((client.state(), client.epoch()), (Some(SessionState::Active), 3));
    daemon.set_state(SessionState::Draining);
    daemon.set_epoch(4);
    assert_eq!((client.state(), client.epoch()), (Some(SessionState::Draining), 4));

    let words = memory.u64s(0, 7).unwrap();
    let words: Vec<u64> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
    assert_eq!(words, [MAGIC, 2 << 32 | 1, 7, 4, 1, layout.arena_offset, 4096]);
    memory.u32(8).unwrap().store(2, Ordering::Relaxed);
    assert_eq!(client.check(7), Err(HeaderError::Abi { found: 2 }));
    assert!(SessionHeader::new(map(&fd, 4095)).is_none());
}

#[test]
fn region_slices_stay_inside() {
    let fd = create_memfd("region", 16384).unwrap();
    let memory = map(&fd, 16384);
    assert!(Region::new(Arc::clone(&memory), 4096, 12288).is_some());
    for (base, bytes) in [(4096, 12289), (16385, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        assert!(Region::new(Arc::clone(&memory), base, bytes).is_none(), "{base} {bytes}");
    }
    let region = Region::new(memory, 4096, 8192).unwrap();
    assert_eq!((region.len(), region.is_empty()), (8192, false));
    let whole = region.slice(0, 8192).unwrap();
    let last = region.slice(8191, 1).unwrap();
    assert_eq!((whole.len(), last.len()), (8192, 1));
    assert_eq!(last.as_ptr() as usize, whole.as_ptr() as usize + 8191);
    assert!(region.slice(8192, 0).unwrap().is_empty());
    for (offset, length) in
        [(8192, 1), (0, 8193), (8193, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)]
    {
        assert!(region.slice(offset, length).is_none(), "{offset} {length}");
    }
}

#[test]
fn words_of_a_region_are_bounded_by_it() {
    let fd = create_memfd("region", 3 * 4096).unwrap();
    let region = Region::new(map(&fd, 3 * 4096), 4096, 4096).unwrap();
    region.u64s(16, 1).unwrap()[0].store(7, Ordering::Relaxed);
    assert_eq!(map(&fd, 3 * 4096).u64s(4096 + 16, 1).unwrap()[0].load(Ordering::Relaxed), 7);
    assert!(region.u64s(4088, 1).is_some());
    assert!(region.u64s(4088, 2).is_none(), "beyond the region, within the mapping");
    assert!(region.u64s(4, 1).is_none(), "misaligned");
    assert!(region.u64s(u64::MAX - 7, 1).is_none());
    assert!(region.u64s(0, usize::MAX).is_none());
}

#[test]
fn regions_are_compared_byte_by_byte() {
    let (a, b) = (create_memfd("a", 8192).unwrap(), create_memfd("b", 8192).unwrap());
    let (a, b) = (map(&a, 8192), map(&b, 8192));
    for (index, byte) in a.u8s(0, 8192).unwrap().iter().enumerate() {
        byte.store(index as u8, Ordering::Relaxed);
    }
    // The same bytes, one further on.
    for (index, byte) in b.u8s(1, 8191).unwrap().iter().enumerate() {
        byte.store(index as u8, Ordering::Relaxed);
    }
    let words = Arc::clone(&a);
    let (a, b) = (Region::new(a, 0, 8192).unwrap(), Region::new(b, 0, 4096).unwrap());
    assert_eq!(a.equals(0, &b, 1, 4095), Some(true), "misaligned to each other");
    assert_eq!(a.equals(0, &b, 0, 4096), Some(false));
    assert_eq!(a.equals(0, &a, 256, 1024), Some(true), "aligned");
    assert_eq!(a.equals(8, &a, 264, 13), Some(true), "part of a word");
    assert_eq!(a.equals(0, &b, 4096, 0), Some(true), "nothing is equal to nothing");
    assert_eq!(a.equals(0, &b, 1, 4096), None, "beyond the region");
    assert_eq!(a.equals(u64::MAX, &b, 0, 1), None);
    for (place, length) in [(0, 1024), (1023, 1024), (512, 1024), (1002, 1003)] {
        words.u8s(place, 1).unwrap()[0].store(place as u8 ^ 1, Ordering::Relaxed);
        assert_eq!(a.equals(0, &a, 2048, length), Some(false), "byte {place} of {length}");
        words.u8s(place, 1).unwrap()[0].store(place as u8, Ordering::Relaxed);
    }
}

#[test]
fn memory_that_is_lent_as_buffers_is_not_looked_at() {
    let fd = create_memfd("arena", 8192).unwrap();
    let region = Region::new(map(&fd, 8192), 0, 8192).unwrap();
    assert!(region.u64s(0, 1).is_some());
    let _arena = Arena::new(0, region.clone(), ForkGuard::new().unwrap()).unwrap();
    assert!(region.u64s(0, 1).is_none() && region.equals(0, &region, 0, 8).is_none());
}

/// Bytes of a mapping that are mapped by huge pages, as the kernel counts them.
fn huge_bytes(mapping: &Mapping) -> u64 {
    let start = mapping.u64s(0, 1).unwrap().as_ptr() as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let address = line.split('-').next().and_then(|first| u64::from_str_radix(first, 16).ok());
        if line.contains(" rw-s ") || line.contains("---p") {
            inside = address == Some(start);
        }
        if let (true, Some(kib)) = (inside, line.strip_prefix("ShmemPmdMapped:")) {
            return kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        }
    }
    0
}

#[test]
fn huge_pages_are_what_the_kernel_says_they_are() {
    const HUGE: usize = 2 << 20;
    let fd = create_memfd("huge", 5 * HUGE as u64).unwrap();
    let mapping = Mapping::new(fd.as_fd(), 5 * HUGE).unwrap();
    assert!(mapping.u64s(0, 1).unwrap().as_ptr().addr().is_multiple_of(HUGE), "long mappings are aligned");
    mapping.u64s(HUGE, 1).unwrap()[0].store(0x1234, Ordering::Relaxed);
    match mapping.make_huge(4096, 4 * HUGE) {
        Ok(made) => {
            assert_eq!(made, 3 * HUGE as u64, "those that lie within the part that was asked for");
            assert_eq!(huge_bytes(&mapping), 3 * HUGE as u64);
        }
        Err((made, error)) => println!("SKIPPED: only {made} bytes in huge pages: {error}"),
    }
    assert_eq!(mapping.u64s(HUGE, 1).unwrap()[0].load(Ordering::Relaxed), 0x1234, "nothing is lost");
    // The owner of the memfd takes the pages away: they are zeros then, and nobody dies.
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&fd, punch, 0, 5 * HUGE as u64).unwrap();
    assert_eq!(mapping.u64s(HUGE, 1).unwrap()[0].load(Ordering::Relaxed), 0);
}
