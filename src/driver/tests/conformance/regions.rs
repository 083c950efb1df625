//! Memory of several regions, registered and not.

use std::sync::Arc;

use ferrio_driver::{Pin, Shape, SubmitHalf};

use crate::rig::{Memory, Rig, Subject, pattern, read, write};

pub fn many_regions_at_once<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 16);
    let memories: Vec<Memory> = (0..5).map(|_| Memory::new(64 << 10)).collect();
    let regions: Vec<_> = memories
        .iter()
        .map(|memory| rig.submit.register_region(memory.region.clone(), Pin::Yes).expect("region"))
        .collect();
    for (n, memory) in (0..).zip(&memories) {
        memory.fill(0, &pattern(n, 32 << 10));
    }
    let writes: Vec<_> = (0..)
        .zip(&regions)
        .map(|(n, &region)| write(rig.file, region, 0, n * (32 << 10), 32 << 10))
        .collect();
    assert_eq!(rig.run(&writes), [32 << 10; 5]);
    // Each region reads what its neighbour wrote.
    let reads: Vec<_> = (0..)
        .zip(&regions)
        .map(|(n, &region)| read(rig.file, region, 32 << 10, (n + 1) % 5 * (32 << 10), 32 << 10))
        .collect();
    assert_eq!(rig.run(&reads), [32 << 10; 5]);
    for (n, memory) in (0..).zip(&memories) {
        assert!(memory.bytes(32 << 10, 32 << 10) == pattern((n + 1) % 5, 32 << 10), "region {n}");
    }
    // An index that is used again names the new memory.
    rig.submit.unregister_region(regions[2]).expect("idle");
    let fresh = Memory::new(64 << 10);
    assert_eq!(rig.submit.register_region(fresh.region.clone(), Pin::Yes).expect("region"), regions[2]);
    assert_eq!(rig.run_one(&read(rig.file, regions[2], 0, 32 << 10, 32 << 10)), 32 << 10);
    assert!(fresh.bytes(0, 32 << 10) == pattern(1, 32 << 10));
    rig.finish();
}

pub fn memory_is_let_go_with_its_region<D: Subject>(shape: Shape) {
    let mut rig = Rig::<D>::new(shape, 2);
    let Memory { mapping, region, .. } = Memory::new(64 << 10);
    let index = rig.submit.register_region(region, Pin::Yes).expect("region");
    assert_eq!(rig.run_one(&read(rig.file, index, 0, 0, 4096)), 4096);
    assert_eq!(Arc::strong_count(&mapping), 2);
    rig.submit.unregister_region(index).expect("idle");
    assert_eq!(Arc::strong_count(&mapping), 1);
    rig.finish();
}
