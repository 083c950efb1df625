//! Layouts that are made, and layouts that are not believed.
#![cfg(not(loom))]

use ferrio_shm::layout::{LayoutError, QueueSpec, SessionLayout};

const SMALL: QueueSpec = QueueSpec { sq_entries: 64, cq_entries: 128 };

fn layout() -> SessionLayout {
    SessionLayout::new(&[SMALL, QueueSpec { sq_entries: 1, cq_entries: 1 }], 1 << 20).unwrap()
}

#[test]
fn parts_follow_each_other() {
    let layout = layout();
    let [first, second] = &layout.queues[..] else { panic!("two queues") };
    assert_eq!((first.control_offset, first.sqes_offset, first.cqes_offset), (4096, 4608, 4608 + 4096));
    assert_eq!((second.control_offset, second.sqes_offset, second.cqes_offset), (12288, 12800, 12864));
    assert_eq!((layout.arena_offset, layout.arena_bytes), (16384, 1 << 20));
    assert_eq!(layout.memory_bytes, 16384 + (1 << 20));
    layout.check().unwrap();
}

#[test]
fn the_largest_session_fits() {
    let largest = QueueSpec { sq_entries: 32768, cq_entries: 65536 };
    SessionLayout::new(&[largest; 64], 1 << 40).unwrap().check().unwrap();
    SessionLayout::new(&[SMALL], 0).unwrap().check().unwrap();
}

#[test]
fn entries_must_be_powers_of_two_in_range() {
    for (sq_entries, cq_entries, name) in [
        (0, 1, "sq_entries"),
        (3, 4, "sq_entries"),
        (65536, 65536, "sq_entries"),
        (4, 0, "cq_entries"),
        (4, 2, "cq_entries"),
        (4, 6, "cq_entries"),
        (4, 131072, "cq_entries"),
        (u32::MAX, u32::MAX, "sq_entries"),
    ] {
        let error = SessionLayout::new(&[SMALL, QueueSpec { sq_entries, cq_entries }], 0).unwrap_err();
        assert!(error.to_string().starts_with(&format!("queue 1: {name} is ")), "{error}");
    }
}

#[test]
fn counts_and_sizes_have_limits() {
    assert_eq!(SessionLayout::new(&[], 0), Err(LayoutError::QueueCount { count: 0 }));
    assert_eq!(SessionLayout::new(&[SMALL; 65], 0), Err(LayoutError::QueueCount { count: 65 }));
    let error = SessionLayout::new(&[SMALL], 4097).unwrap_err();
    assert_eq!(error.to_string(), "arena_bytes is 4097; it must be a multiple of 4096");
    let huge = u64::MAX / 4096 * 4096;
    assert_eq!(SessionLayout::new(&[SMALL], huge), Err(LayoutError::TooLarge { arena_bytes: huge }));
}

/// Every change that a broken or hostile daemon could make to a layout.
#[test]
fn a_received_layout_is_checked() {
    type Change = fn(&mut SessionLayout);
    let changes: &[(&str, Change)] = &[
        ("memory too short", |l| l.memory_bytes -= 4096),
        ("memory ragged", |l| l.memory_bytes += 1),
        ("memory beyond the address space", |l| l.memory_bytes = !4095),
        ("arena misaligned", |l| l.arena_offset += 1),
        ("arena over the queues", |l| l.arena_offset -= 4096),
        ("arena over the header", |l| l.arena_offset = 0),
        ("arena overflows", |l| l.arena_offset = !4095),
        ("arena ragged", |l| l.arena_bytes -= 1),
        ("queue over the header", |l| l.queues[0].control_offset = 0),
        ("queue misaligned", |l| l.queues[0].control_offset += 128),
        ("queues overlap", |l| l.queues[1].control_offset = l.queues[0].control_offset),
        ("SQEs over the control block", |l| l.queues[0].sqes_offset = l.queues[0].control_offset),
        ("SQEs misaligned", |l| l.queues[0].sqes_offset += 8),
        ("SQEs beyond the end", |l| l.queues[0].sqes_offset = l.memory_bytes - 64),
        ("CQEs over the SQEs", |l| l.queues[0].cqes_offset = l.queues[0].sqes_offset),
        ("CQEs misaligned", |l| l.queues[0].cqes_offset += 8),
        ("CQEs overflow", |l| l.queues[0].cqes_offset = !15),
        ("more entries than memory", |l| l.queues[1].sq_entries = 32768),
        ("no power of two", |l| l.queues[1].cq_entries = 3),
        ("no queues", |l| l.queues.clear()),
    ];
    for (what, change) in changes {
        let mut layout = layout();
        change(&mut layout);
        assert!(layout.check().is_err(), "{what} passed");
    }
}
