//! One path for errors: a completion with an errno.

use std::sync::Arc;

use ferrio_driver::{FileIndex, LENGTH_MAX, Op, OpenOptions, RegionIndex, Shape, SubmitHalf, Target};

use crate::rig::{MEMORY_BYTES, Rig, Subject, read, write};

pub fn bad_operations_become_completions<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 16);
    let good = rig.read(0, 0, 4096);
    let ops = [
        Op { file: FileIndex(7), ..good },
        Op { file: FileIndex(u32::MAX), ..good },
        Op { region: RegionIndex(7), ..good },
        Op { region: RegionIndex(u32::MAX), ..good },
        Op { region_offset: MEMORY_BYTES - 4095, ..good },
        Op { region_offset: MEMORY_BYTES + 1, length: 0, ..good },
        Op { region_offset: u64::MAX, ..good },
        Op { region_offset: u64::MAX - 4095, ..good },
        Op { length: LENGTH_MAX + 1, ..good },
        Op { length: u32::MAX, ..good },
        Op { offset: u64::MAX, ..good },
        Op { offset: 1 << 63, ..good },
        good,
    ];
    let (badf, nxio, fault, inval) = (-libc::EBADF, -libc::ENXIO, -libc::EFAULT, -libc::EINVAL);
    let wanted = [badf, badf, nxio, nxio, fault, fault, fault, fault, inval, inval, inval, inval, 4096];
    assert_eq!(rig.run(&ops), wanted);
    rig.finish();
}

pub fn read_only_target<D: Subject>(rig: &mut Rig<D>) -> FileIndex {
    let path = rig.directory.path().join("read-only");
    std::fs::write(&path, vec![0; 1 << 20]).expect("file");
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    rig.submit.register_file(Arc::new(Target::open(&path, &options).expect("target"))).expect("file")
}

pub fn refusals_of_the_kernel_become_completions<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    let read_only = read_only_target(&mut rig);
    assert_eq!(rig.run_one(&write(read_only, rig.region, 0, 0, 4096)), -libc::EBADF);
    assert_eq!(rig.run_one(&read(read_only, rig.region, 0, 0, 4096)), 4096);
    assert_eq!(rig.run_one(&rig.read(0, 0, 4096)), 4096);
    rig.finish();
}

pub fn bad_request_amid_a_batch_loses_no_other<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 64);
    let read_only = read_only_target(&mut rig);
    // At the front, in the middle, in a row, and at the end.
    let bad = [0, 7, 8, 9, 30, 63];
    let ops: Vec<Op> = (0..64)
        .map(|n| match bad.contains(&n) {
            true => write(read_only, rig.region, n * 4096, 0, 4096),
            false => rig.read(n * 4096, n * 4096, 4096),
        })
        .collect();
    for _ in 0..20 {
        for (n, result) in (0..).zip(rig.run(&ops)) {
            let wanted = if bad.contains(&n) { -libc::EBADF } else { 4096 };
            assert_eq!(result, wanted, "request {n}");
        }
    }
    rig.finish();
}
