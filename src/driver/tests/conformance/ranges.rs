//! Discard and write-zeroes.

use ferrio_driver::{LENGTH_MAX, Op, OpKind, Shape, SubmitHalf, Support, Target};

use crate::rig::{Rig, Subject, describe, pattern};

fn range<D: Subject>(rig: &Rig<D>, kind: OpKind, offset: u64, length: u32) -> Op {
    Op { kind, ..rig.read(0, offset, length) }
}

/// The range reads as zeros, its neighbours as before, and the file has its size.
pub fn zeroed_ranges_read_as_zeros<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let capability = rig.target.capabilities().write_zeroes;
    assert!(capability.is_supported(), "{capability:?} on {}", describe(&rig.target));
    let size = rig.target.size_bytes();
    let data = pattern(4, 1 << 20);
    rig.memory.fill(0, &data);
    assert_eq!(rig.run_one(&rig.write(0, 0, 1 << 20)), 1 << 20);
    let zero = [
        range(&rig, OpKind::WriteZeroes, 4096, 8192),
        range(&rig, OpKind::WriteZeroes, 512 << 10, 256 << 10),
    ];
    assert_eq!(rig.run(&zero), [0, 0]);
    assert_eq!(rig.run_one(&range(&rig, OpKind::WriteZeroes, size - 4096, 4096)), 0);
    assert_eq!(rig.run_one(&rig.read(1 << 20, 0, 1 << 20)), 1 << 20);
    let mut wanted = data;
    wanted[4096..12288].fill(0);
    wanted[512 << 10..768 << 10].fill(0);
    assert!(rig.memory.bytes(1 << 20, 1 << 20) == wanted);
    assert_eq!(rig.target.refresh_size().expect("size"), size);
    rig.finish();
}

/// Whatever was discarded, its neighbours are as before; where it is refused, it is said at open as well.
pub fn discarded_ranges_leave_their_neighbours<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let data = pattern(5, 64 << 10);
    rig.memory.fill(0, &data);
    assert_eq!(rig.run_one(&rig.write(0, 0, 64 << 10)), 64 << 10);
    let result = rig.run_one(&range(&rig, OpKind::Discard, 16384, 32768));
    match rig.target.capabilities().discard {
        Support::Unsupported(_) => assert_eq!(result, -libc::EOPNOTSUPP),
        Support::Native(_) | Support::Emulated(_) => assert_eq!(result, 0),
    }
    assert_eq!(rig.run_one(&rig.read(1 << 20, 0, 64 << 10)), 64 << 10);
    let back = rig.memory.bytes(1 << 20, 64 << 10);
    assert!(back[..16384] == data[..16384] && back[49152..] == data[49152..]);
    rig.finish();
}

pub fn bad_ranges_become_completions<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    for kind in [OpKind::Discard, OpKind::WriteZeroes] {
        let good = range(&rig, kind, 0, 4096);
        let ops = [
            Op { file: ferrio_driver::FileIndex(7), ..good },
            Op { length: LENGTH_MAX + 1, ..good },
            Op { offset: u64::MAX, ..good },
        ];
        assert_eq!(rig.run(&ops), [-libc::EBADF, -libc::EINVAL, -libc::EINVAL]);
    }
    rig.finish();
}

pub fn null_targets_have_nothing_to_discard<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    let target = Target::null(1 << 20, 4096);
    assert!(matches!(target.capabilities().discard, Support::Native(_)));
    rig.file = rig.submit.register_file(target.into()).expect("file");
    for kind in [OpKind::Discard, OpKind::WriteZeroes] {
        assert_eq!(rig.run_one(&range(&rig, kind, 0, 1 << 20)), 0);
    }
    rig.finish();
}
