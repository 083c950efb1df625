//! ABI.md is normative: its dumps are what the code writes, its tables are what the code defines.
#![cfg(not(loom))]

use ferrio_shm::abi::{self, Class, Opcode, SessionState, cqe_flags, errno, features, limits, sqe_flags};
use ferrio_shm::entry::{Cqe, IovEntry, Sqe};
use ferrio_shm::lease::{LEASE_MAGIC, LEASE_MESSAGE_MAX, LEASE_VERSION, LeaseEvent, LeaseMessage};

const ABI: &str = include_str!("../ABI.md");

/// The bytes of the block that begins with "```hex NAME".
fn golden(name: &str) -> Vec<u8> {
    let start =
        ABI.find(&format!("```hex {name}\n")).unwrap_or_else(|| panic!("ABI.md has no block hex {name}"));
    let lines = ABI[start..].lines().skip(1).take_while(|line| *line != "```");
    let bytes = lines.flat_map(|line| line.split_whitespace().skip(1));
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn dump(bytes: &[u8]) -> String {
    let line = |(index, chunk): (usize, &[u8])| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", index * 16, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[track_caller]
fn assert_golden(name: &str, bytes: &[u8]) {
    assert!(bytes == golden(name), "the code writes\n```hex {name}\n{}```", dump(bytes));
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn token() -> [u8; 32] {
    std::array::from_fn(|index| index as u8)
}

#[test]
fn entries() {
    let write = Sqe {
        op: Opcode::Write as u8,
        class: Class::Prio as u8,
        flags: sqe_flags::FUA,
        volume: 1,
        region: 0,
        user_data: 0x1122_3344_5566_7788,
        offset: 0x10_0000,
        length: 4096,
        region_offset: 0x2000,
        ..Sqe::default()
    };
    assert_golden("sqe", &bytes(&write.to_words()));
    let every_field = Sqe {
        op: 0x01,
        class: 0x02,
        flags: 0x0403,
        volume: 0x0605,
        region: 0x0807,
        user_data: 0x100f_0e0d_0c0b_0a09,
        offset: 0x1817_1615_1413_1211,
        length: 0x201f_1e1d_1c1b_1a19,
        region_offset: 0x2827_2625_2423_2221,
        iov_count: 0x2c2b_2a29,
        timeout_us: 0x302f_2e2d,
        arg: 0x3837_3635_3433_3231,
        reserved: 0x403f_3e3d_3c3b_3a39,
    };
    assert_golden("sqe-fields", &bytes(&every_field.to_words()));
    let done = Cqe { user_data: write.user_data, result: 4096, flags: cqe_flags::MERGED };
    assert_golden("cqe", &bytes(&done.to_words()));
    let failed = Cqe { user_data: write.user_data, result: -errno::EROFS, flags: 0 };
    assert_golden("cqe-failed", &bytes(&failed.to_words()));
    let iov = IovEntry { region: 3, zero: 0, length: 0x2000, offset: 0x1_0000_0000 };
    assert_golden("iov", &bytes(&iov.to_words()));
}

#[test]
fn lease_messages() {
    let text = "volume data: device gone".to_owned();
    for (name, message) in [
        ("attach", LeaseMessage::Attach { token: token() }),
        (
            "attached",
            LeaseMessage::Attached {
                session_id: 0x0102_0304_0506_0708,
                epoch: 2,
                memory_bytes: 0x11_4000,
                doorbells: 1,
                queues: 2,
            },
        ),
        ("refused", LeaseMessage::Refused { errno: errno::ENOENT, reason: "token expired".into() }),
        ("close", LeaseMessage::Close),
        ("region-add", LeaseMessage::RegionAdd { index: 1, bytes: 1 << 30 }),
        ("region-remove", LeaseMessage::RegionRemove { index: 1 }),
        ("region-reply", LeaseMessage::RegionReply { index: 1, errno: errno::EOPNOTSUPP }),
        ("resume", LeaseMessage::Resume { session_id: 0x0102_0304_0506_0708, secret: token() }),
        ("fault", LeaseMessage::Event(LeaseEvent::Fault { reason: "sq_tail".into() })),
        ("resize", LeaseMessage::Event(LeaseEvent::Resize { volume: 1, size_bytes: 1 << 40 })),
        ("evict", LeaseMessage::Event(LeaseEvent::Evict { reason: text })),
        ("drain", LeaseMessage::Event(LeaseEvent::Drain { deadline_ms: 5000 })),
    ] {
        assert_golden(name, &message.encode());
        assert_eq!(LeaseMessage::decode(&golden(name)), Ok(message));
    }
}

#[cfg(not(miri))]
#[test]
fn header_and_control_block() {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use ferrio_shm::layout::{QueueSpec, SessionLayout};
    use ferrio_shm::mapping::{MappedQueue, Mapping, SessionHeader, create_memfd};
    use ferrio_shm::ring::QueueMemory;
    use ferrio_shm::sync::Ordering;

    let specs = [QueueSpec { sq_entries: 64, cq_entries: 128 }, QueueSpec { sq_entries: 1, cq_entries: 2 }];
    let layout = SessionLayout::new(&specs, 1 << 20).unwrap();
    let memfd = create_memfd("golden", layout.memory_bytes).unwrap();
    let memory = Arc::new(Mapping::new(memfd.as_fd(), layout.memory_bytes as usize).unwrap());
    let read = |offset: usize, words: usize| {
        let words = memory.u64s(offset, words).unwrap().iter().map(|word| word.load(Ordering::Relaxed));
        bytes(&words.collect::<Vec<_>>())
    };
    SessionHeader::new(Arc::clone(&memory)).unwrap().init(0x0102_0304_0506_0708, 2, &layout);
    assert_golden("header", &read(0, 8));
    assert!(read(64, 504).iter().all(|&byte| byte == 0));

    let queue = MappedQueue::new(Arc::clone(&memory), &layout.queues[0]).unwrap();
    let words = [
        queue.sq_tail(),
        queue.cq_head(),
        queue.client_sleep(),
        queue.sq_head(),
        queue.daemon_sleep(),
        queue.cq_tail(),
    ];
    for (index, word) in words.into_iter().enumerate() {
        word.store(0xa0a0_a0a0 + index as u32, Ordering::Relaxed);
    }
    let block = read(layout.queues[0].control_offset as usize, 64);
    let lines: Vec<u8> = block.chunks(128).flat_map(|line| line[..16].to_vec()).collect();
    assert_golden("control-lines", &lines);
}

/// Rows of the form `| value | name | ...` or `| name | value | ...`.
#[track_caller]
fn assert_row(name: &str, value: impl std::fmt::Display) {
    let (name, value) = (format!("`{name}`"), value.to_string());
    let found = ABI.lines().any(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        cells.contains(&name.as_str()) && cells.contains(&value.as_str())
    });
    assert!(found, "ABI.md has no row with {name} and {value}");
}

#[test]
fn numbers() {
    for (op, name) in [
        (Opcode::Nop, "nop"),
        (Opcode::Read, "read"),
        (Opcode::Write, "write"),
        (Opcode::Readv, "readv"),
        (Opcode::Writev, "writev"),
        (Opcode::Flush, "flush"),
        (Opcode::Discard, "discard"),
        (Opcode::WriteZeroes, "write-zeroes"),
        (Opcode::CompareAndWrite, "compare-and-write"),
        (Opcode::Cancel, "cancel"),
    ] {
        assert_row(name, op as u8);
        assert_eq!(Opcode::try_from(op as u8), Ok(op));
    }
    assert!((10..=255).all(|op| Opcode::try_from(op).is_err()));
    assert_row("default", Class::Default as u8);
    assert_row("prio", Class::Prio as u8);
    assert!((2..=255).all(|class| Class::try_from(class).is_err()));
    for (name, state) in [
        ("active", SessionState::Active),
        ("draining", SessionState::Draining),
        ("faulted", SessionState::Faulted),
        ("closed", SessionState::Closed),
    ] {
        assert_row(name, state as u32);
        assert_eq!(SessionState::try_from(state as u32), Ok(state));
    }
    assert!(SessionState::try_from(0).is_err() && SessionState::try_from(5).is_err());
    for (name, bit) in [("fua", sqe_flags::FUA), ("link", sqe_flags::LINK), ("barrier", sqe_flags::BARRIER)] {
        assert_row(name, format!("{bit:#x}"));
    }
    for (name, bit) in
        [("replayed", cqe_flags::REPLAYED), ("merged", cqe_flags::MERGED), ("overdue", cqe_flags::OVERDUE)]
    {
        assert_row(name, format!("{bit:#x}"));
    }
    for (name, bit) in [
        ("vectored", features::VECTORED),
        ("discard", features::DISCARD),
        ("compare-and-write", features::COMPARE_AND_WRITE),
        ("cancel", features::CANCEL),
        ("order", features::ORDER),
        ("client-regions", features::CLIENT_REGIONS),
        ("resume", features::RESUME),
    ] {
        assert_row(name, format!("{bit:#x}"));
    }
}

#[test]
fn limits_and_errnos() {
    for (name, value) in [
        ("SQ_ENTRIES_MAX", u64::from(limits::SQ_ENTRIES_MAX)),
        ("CQ_ENTRIES_MAX", u64::from(limits::CQ_ENTRIES_MAX)),
        ("IOV_MAX", u64::from(limits::IOV_MAX)),
        ("CHAIN_MAX", u64::from(limits::CHAIN_MAX)),
        ("DATA_BYTES_MAX", limits::DATA_BYTES_MAX),
        ("CAW_BYTES_MAX", limits::CAW_BYTES_MAX),
        ("QUEUES_MAX", u64::from(limits::QUEUES_MAX)),
        ("DOORBELLS_MAX", u64::from(limits::DOORBELLS_MAX)),
        ("REGIONS_MAX", u64::from(limits::REGIONS_MAX)),
        ("LEASE_MESSAGE_MAX", LEASE_MESSAGE_MAX as u64),
    ] {
        assert_row(name, value);
    }
    assert_eq!(limits::REGION_FIXED_MAX, 1 << 30);
    assert_eq!((abi::ABI_VERSION, LEASE_VERSION), (1, 1));
    assert!(ABI.contains(&format!("`{:#018x}`", abi::MAGIC)), "{:#018x}", abi::MAGIC);
    assert!(ABI.contains(&format!("`{LEASE_MAGIC:#010x}`")), "{LEASE_MAGIC:#010x}");
    for (name, value) in [
        ("ENOENT", errno::ENOENT),
        ("ESRCH", errno::ESRCH),
        ("EIO", errno::EIO),
        ("ENXIO", errno::ENXIO),
        ("EBADF", errno::EBADF),
        ("ENOMEM", errno::ENOMEM),
        ("EACCES", errno::EACCES),
        ("EFAULT", errno::EFAULT),
        ("EBUSY", errno::EBUSY),
        ("EXDEV", errno::EXDEV),
        ("ENODEV", errno::ENODEV),
        ("EINVAL", errno::EINVAL),
        ("ENOSPC", errno::ENOSPC),
        ("EROFS", errno::EROFS),
        ("ERANGE", errno::ERANGE),
        ("EPROTO", errno::EPROTO),
        ("EILSEQ", errno::EILSEQ),
        ("EMSGSIZE", errno::EMSGSIZE),
        ("EOPNOTSUPP", errno::EOPNOTSUPP),
        ("ENOBUFS", errno::ENOBUFS),
        ("ESHUTDOWN", errno::ESHUTDOWN),
        ("ETIMEDOUT", errno::ETIMEDOUT),
        ("EALREADY", errno::EALREADY),
        ("ESTALE", errno::ESTALE),
        ("ECANCELED", errno::ECANCELED),
        ("EOWNERDEAD", errno::EOWNERDEAD),
    ] {
        assert_row(name, value);
    }
}
