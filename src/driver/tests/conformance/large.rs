//! A gigabyte at once, and regions beyond it.

use std::fs::OpenOptions;

use ferrio_driver::{DriverConfig, LENGTH_MAX, Shape};

use crate::rig::{Rig, Subject, directory, pattern};

const GIB: u64 = 1 << 30;

/// The memory is real: pages of a memfd come into being when they are pinned or written.
fn enough_memory() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let kib: u64 = available.and_then(|word| word.parse().ok()).unwrap_or(0);
    if kib < 4 << 20 {
        eprintln!("SKIPPED: {kib} KiB of memory are available, 4 GiB are needed");
    }
    kib >= 4 << 20
}

fn rig<D: Subject>(shape: Shape, memory: u64) -> Rig<D> {
    let directory = directory();
    let path = directory.path().join("sparse");
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&path)
        .expect("file")
        .set_len(2 * GIB)
        .expect("sparse");
    let target = D::target(&path, 0);
    Rig::on(&DriverConfig { depth: 4, shape, ..DriverConfig::default() }, directory, target, memory)
}

pub fn gigabyte_is_not_confused_with_an_errno<D: Subject>(shape: Shape) {
    if !enough_memory() {
        return;
    }
    let mut rig = rig::<D>(shape, GIB);
    rig.memory.fill(GIB - 4096, &pattern(1, 4096));
    assert_eq!(rig.run_one(&rig.read(0, 4096, LENGTH_MAX)), 1 << 30);
    assert!(rig.memory.bytes(GIB - 4096, 4096) == [0; 4096], "a hole was read to its end");
    assert_eq!(rig.run_one(&rig.read(0, 0, LENGTH_MAX - 4096)), (1 << 30) - 4096);
    rig.finish();
}

pub fn region_beyond_a_gigabyte_works_across_the_seam<D: Subject>(shape: Shape) {
    if !enough_memory() {
        return;
    }
    let mut rig = rig::<D>(shape, GIB + (1 << 20));
    eprintln!("{}\n{}", rig.modes(), rig.degraded());
    // Below, across and above the seam between two registered buffers.
    for (n, place) in (0..).zip([GIB - 65536, GIB - 32768, GIB]) {
        rig.memory.fill(place, &pattern(n, 65536));
        assert_eq!(rig.run_one(&rig.write(place, n * 65536, 65536)), 65536);
        rig.memory.fill(place, &[0; 65536]);
        assert_eq!(rig.run_one(&rig.read(place, n * 65536, 65536)), 65536);
        assert!(rig.memory.bytes(place, 65536) == pattern(n, 65536), "at {place:#x}");
    }
    rig.finish();
}
