//! Data moves, whole and in the right place.

use std::fs::OpenOptions;

use ferrio_driver::{Op, Shape, SubmitHalf, Target};

use crate::rig::{FILE_BYTES, Rig, Subject, describe, flush, nop, pattern};

const BLOCK: u32 = 8192;
const WHOLE: [i32; 16] = [8192; 16];

pub fn patterns_round_trip<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 16);
    assert_eq!(rig.target.direct(), D::DIRECT, "{}", describe(&rig.target));
    // Written from the lower half of the memory, read back into the upper half, in another order.
    let blocks: Vec<u64> = (0..16).collect();
    for &block in &blocks {
        rig.memory.fill(block * u64::from(BLOCK), &pattern(block, BLOCK as usize));
    }
    let place = |block: u64| (block * 7 % 16) * 3 * u64::from(BLOCK);
    let upper = 1 << 20;
    let writes: Vec<Op> =
        blocks.iter().map(|&block| rig.write(block * u64::from(BLOCK), place(block), BLOCK)).collect();
    assert_eq!(rig.run(&writes), WHOLE);
    let reads: Vec<Op> = blocks
        .iter()
        .rev()
        .map(|&block| rig.read(upper + block * u64::from(BLOCK), place(block), BLOCK))
        .collect();
    assert_eq!(rig.run(&reads), WHOLE);
    for &block in &blocks {
        let back = rig.memory.bytes(upper + block * u64::from(BLOCK), BLOCK as usize);
        assert!(back == pattern(block, BLOCK as usize), "block {block} came back changed");
    }
    rig.finish();
}

pub fn fua_and_flush<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    rig.memory.fill(0, &pattern(99, 4096));
    let fua = Op { fua: true, ..rig.write(0, FILE_BYTES - 4096, 4096) };
    assert_eq!(rig.run_one(&fua), 4096);
    assert_eq!(rig.run_one(&flush(rig.file)), 0);
    assert_eq!(rig.run_one(&rig.read(4096, FILE_BYTES - 4096, 4096)), 4096);
    assert!(rig.memory.bytes(4096, 4096) == pattern(99, 4096));
    rig.finish();
}

pub fn short_read_at_the_end_of_the_file<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    let file = OpenOptions::new().write(true).open(rig.path()).expect("the same file");
    file.set_len(10_000).expect("truncate");
    assert_eq!(rig.run_one(&rig.read(0, 8192, 8192)), 10_000 - 8192, "reported as it is");
    assert_eq!(rig.run_one(&rig.read(0, 16384, 4096)), 0, "beyond the end");
    rig.finish();
}

pub fn nops_come_back_in_order<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 64);
    for user in 0..64 {
        rig.stage(1000 + user, &nop());
    }
    assert_eq!(rig.submit.in_flight(), 64);
    rig.commit();
    let completions = rig.wait(64);
    for (user, completion) in (1000..).zip(&completions) {
        assert_eq!((completion.user, completion.result), (user, 0));
        rig.submit.release(completion.tag);
    }
    rig.finish();
}

pub fn null_targets_complete_inline<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 8);
    rig.file = rig.submit.register_file(Target::null(1 << 20, 4096).into()).expect("file");
    let ops = [
        rig.read(0, 0, 4096),
        rig.write(0, (1 << 20) - 4096, 4096),
        flush(rig.file),
        rig.read(0, (1 << 20) - 4096, 8192),
        rig.read(0, 1 << 20, 4096),
        rig.write(0, 1 << 20, 4096),
    ];
    assert_eq!(rig.run(&ops), [4096, 4096, 0, 4096, 0, -libc::ENOSPC]);
    rig.finish();
}

/// A target that grows can be written beyond its old end, one that shrinks not be read beyond the new one.
pub fn another_size_is_another_end<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    rig.memory.fill(0, &pattern(8, 8192));
    rig.target.resize(FILE_BYTES + 8192).expect("grow");
    assert_eq!(rig.target.size_bytes(), FILE_BYTES + 8192);
    assert_eq!(rig.run_one(&rig.write(0, FILE_BYTES, 8192)), 8192);
    assert_eq!(rig.target.refresh_size().expect("size"), FILE_BYTES + 8192);
    assert_eq!(rig.run_one(&rig.read(65536, FILE_BYTES, 8192)), 8192);
    assert!(rig.memory.bytes(65536, 8192) == pattern(8, 8192));
    rig.target.resize(FILE_BYTES / 2).expect("shrink");
    assert_eq!(rig.run_one(&rig.read(0, FILE_BYTES / 2, 4096)), 0);
    assert_eq!(rig.run_one(&rig.read(0, FILE_BYTES / 2 - 4096, 8192)), 4096);
    for bad in [0, FILE_BYTES + 100] {
        let error = rig.target.resize(bad).expect_err("no size for a target");
        assert!(error.to_string().contains(&rig.target.name()), "{error}");
    }
    assert_eq!(rig.target.size_bytes(), FILE_BYTES / 2);
    rig.finish();
}
