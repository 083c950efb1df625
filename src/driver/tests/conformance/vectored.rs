//! Requests over several pieces of memory.

use ferrio_driver::{Busy, Op, OpKind, Pin, RegionIndex, SEGMENTS_MAX, Segment, Shape, SubmitHalf, Target};

use crate::rig::{Memory, Rig, Subject, pattern};

fn segment(region: RegionIndex, offset: u64, length: u32) -> Segment {
    Segment { region, offset, length }
}

/// Scattered pieces of two regions, gathered into one stretch of the file, and back in another order.
pub fn segments_gather_and_scatter<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let other = Memory::new(1 << 20);
    let second = rig.submit.register_region(other.region.clone(), Pin::Yes).expect("region");
    let first = rig.region;
    rig.memory.fill(0, &pattern(1, 4096));
    other.fill(8192, &pattern(2, 8192));
    rig.memory.fill(65536, &pattern(3, 4096));
    let pieces = [segment(first, 0, 4096), segment(second, 8192, 8192), segment(first, 65536, 4096)];
    let write = rig.write(0, 16384, 16384);
    assert_eq!(rig.run_vectored(&Op { fua: true, ..write }, &pieces), 16384);

    // In one piece from another place: what the pieces are in their order.
    assert_eq!(rig.run_one(&rig.read(1 << 20, 16384, 16384)), 16384);
    let whole = [pattern(1, 4096), pattern(2, 8192), pattern(3, 4096)].concat();
    assert!(rig.memory.bytes(1 << 20, 16384) == whole);

    let places = [segment(second, 65536, 4096), segment(first, 128 << 10, 12288)];
    assert_eq!(rig.run_vectored(&rig.read(0, 16384, 16384), &places), 16384);
    let back = [other.bytes(65536, 4096), rig.memory.bytes(128 << 10, 12288)].concat();
    assert!(back == whole);
    rig.finish();
}

pub fn as_many_segments_as_allowed<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let length = 4096 * SEGMENTS_MAX as u32;
    rig.memory.fill(0, &pattern(9, length as usize));
    // Back to front.
    let pieces: Vec<_> =
        (0..SEGMENTS_MAX as u64).rev().map(|n| segment(rig.region, n * 4096, 4096)).collect();
    assert_eq!(rig.run_vectored(&rig.write(0, 0, length), &pieces), length.cast_signed());
    assert_eq!(rig.run_one(&rig.read(1 << 20, 0, 4096)), 4096);
    let last = (SEGMENTS_MAX - 1) * 4096;
    assert!(rig.memory.bytes(1 << 20, 4096) == pattern(9, length as usize)[last..]);
    rig.finish();
}

pub fn bad_segments_become_completions<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let good = segment(rig.region, 0, 4096);
    let read = rig.read(0, 0, 8192);
    let unknown = RegionIndex(7);
    let (inval, nxio, fault) = (-libc::EINVAL, -libc::ENXIO, -libc::EFAULT);
    let many = vec![segment(rig.region, 0, 0); SEGMENTS_MAX + 1];
    let cases: [(Op, &[Segment], i32); 9] = [
        (read, &[], inval),
        (read, &[good], inval),
        (read, &[good, good, good], inval),
        (Op { length: 0, ..read }, &many, inval),
        (Op { kind: OpKind::Flush, ..read }, &[good, good], inval),
        (Op { offset: u64::MAX, ..read }, &[good, good], inval),
        (read, &[good, segment(unknown, 0, 4096)], nxio),
        (read, &[good, segment(rig.region, u64::MAX, 4096)], fault),
        (Op { file: ferrio_driver::FileIndex(7), ..read }, &[good, good], -libc::EBADF),
    ];
    for (op, segments, wanted) in cases {
        assert_eq!(rig.run_vectored(&op, segments), wanted, "{op:?} {segments:?}");
    }
    assert_eq!(rig.run_vectored(&read, &[good, good]), 8192);
    rig.finish();
}

/// Each request has a block for its iovec, of which there is one per slot here; regions are pinned once per segment.
pub fn regions_of_segments_are_pinned<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    let other = Memory::new(8192);
    let second = rig.submit.register_region(other.region.clone(), Pin::No).expect("region");
    let pieces = [segment(second, 0, 4096), segment(rig.region, 0, 4096), segment(second, 4096, 4096)];
    let op = rig.read(0, 0, 12288);
    for _ in 0..3 {
        let tags = [rig.stage_vectored(1, &op, &pieces), rig.stage_vectored(2, &op, &pieces)];
        assert_eq!(rig.submit.unregister_region(second), Err(Busy { in_flight: 4 }));
        rig.commit();
        assert!(rig.wait(2).iter().all(|completion| completion.result == 12288));
        rig.submit.release(tags[0]);
        assert_eq!(rig.submit.unregister_region(second), Err(Busy { in_flight: 2 }));
        rig.submit.release(tags[1]);
    }
    assert_eq!(rig.submit.unregister_region(second), Ok(()));
    assert_eq!(rig.run_vectored(&op, &pieces), -libc::ENXIO);
    rig.finish();
}

pub fn null_targets_take_segments<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    rig.file = rig.submit.register_file(Target::null(1 << 20, 4096).into()).expect("file");
    let pieces = [segment(rig.region, 0, 4096), segment(rig.region, 65536, 8192)];
    for _ in 0..3 {
        assert_eq!(rig.run_vectored(&rig.read(0, 0, 12288), &pieces), 12288);
        assert_eq!(rig.run_vectored(&rig.write(0, 1 << 20, 12288), &pieces), -libc::ENOSPC);
    }
    rig.finish();
}
