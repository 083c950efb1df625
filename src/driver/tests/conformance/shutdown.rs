//! Dropping the halves with I/O in flight.

use std::time::Instant;

use ferrio_driver::{Shape, SubmitHalf};

use crate::rig::{PATIENCE, Rig, Subject, pattern};

const CHUNK: u32 = 64 << 10;
const WHOLE: [i32; 16] = [64 << 10; 16];

/// Writes a pattern and starts reading all of it back, with nothing reaped.
fn in_flight<D: Subject>(shape: Shape) -> Rig<D> {
    let mut rig = Rig::<D>::new(shape, 16);
    rig.memory.fill(0, &pattern(5, 1 << 20));
    let writes: Vec<_> =
        (0..16).map(|n| rig.write(n * u64::from(CHUNK), n * u64::from(CHUNK), CHUNK)).collect();
    assert_eq!(rig.run(&writes), WHOLE);
    for n in 0..16 {
        let op = rig.read((1 << 20) + n * u64::from(CHUNK), n * u64::from(CHUNK), CHUNK);
        rig.stage(n as u32, &op);
    }
    rig.commit();
    rig
}

pub fn drop_waits_for_what_is_in_flight<D: Subject>(shape: Shape) {
    let Rig { submit, reaper, memory, .. } = in_flight::<D>(shape);
    drop(submit);
    drop(reaper);
    assert!(
        memory.bytes(1 << 20, 1 << 20) == pattern(5, 1 << 20),
        "all landed before the last drop returned"
    );
}

pub fn drop_in_the_other_order<D: Subject>(shape: Shape) {
    let Rig { submit, reaper, memory, .. } = in_flight::<D>(shape);
    drop(reaper);
    drop(submit);
    assert!(
        memory.bytes(1 << 20, 1 << 20) == pattern(5, 1 << 20),
        "all landed before the last drop returned"
    );
}

pub fn staged_requests_are_forgotten<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 4);
    rig.memory.fill(0, &pattern(6, 4096));
    assert_eq!(rig.run_one(&rig.write(0, 0, 4096)), 4096);
    let overwrite = rig.write(8192, 0, 4096);
    rig.stage(1, &overwrite);
    assert_eq!(rig.submit.staged(), 1);
    let path = rig.path();
    let begun = Instant::now();
    let Rig { submit, reaper, directory, target, .. } = rig;
    drop((submit, reaper));
    assert!(begun.elapsed() < PATIENCE, "waited for a request that the kernel never saw");
    drop(target);
    assert!(std::fs::read(path).expect("file")[..4096] == pattern(6, 4096), "never committed, never written");
    drop(directory);
}
