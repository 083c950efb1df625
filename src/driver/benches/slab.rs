//! The slab that every request passes, nearly empty and nearly full, and the whole null backend around it.

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrio_driver::{
    Driver, DriverConfig, Op, OpKind, ReapHalf, RegionIndex, SubmitHalf, Target, null::Null, slab::StableSlab,
};

const SLOTS: u32 = 4096;

fn slab(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slab/insert_get_remove");
    for occupied in [0, SLOTS - 1] {
        group.bench_with_input(BenchmarkId::from_parameter(occupied), &occupied, |bencher, occupied| {
            let mut slab = StableSlab::new(SLOTS);
            for n in 0..u64::from(*occupied) {
                slab.insert(n).expect("room");
            }
            bencher.iter(|| {
                let tag = slab.insert(7).expect("room");
                *black_box(slab.get(tag)).expect("occupied") += 1;
                slab.remove(tag)
            });
        });
    }
    group.finish();
}

fn null_backend(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slab/null_backend");
    for batch in [1, 32] {
        let (mut submit, mut reap) = Null::open(&DriverConfig::default()).expect("no kernel needed");
        let file = submit.register_file(Arc::new(Target::null(1 << 20, 512))).expect("a free place");
        let flush = Op {
            kind: OpKind::Flush,
            file,
            region: RegionIndex(0),
            region_offset: 0,
            length: 0,
            offset: 0,
            fua: false,
        };
        let mut completions = Vec::with_capacity(batch);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| {
                for user in 0..batch {
                    let slot = submit.reserve().expect("a free slot");
                    submit.submit(slot, user as u32, &flush).expect("room in the batch");
                }
                submit.commit().expect("nothing to go wrong");
                assert_eq!(reap.reap(&mut completions), batch);
                completions.drain(..).for_each(|done| submit.release(done.tag));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, slab, null_backend);
criterion_main!(benches);
