//! `examples/copy.rs`, over each backend and with faults.

use std::path::PathBuf;
use std::time::Duration;

use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::uring::Uring;
use ferrio_driver::{Driver, FaultEffect, FaultOps, FaultPlan, FaultRule};
use tempfile::TempDir;

#[path = "../examples/copy.rs"]
#[allow(dead_code, reason = "its main is for the command line")]
mod example;

/// Not a multiple of a piece.
const BYTES: usize = (5 << 20) + 8192;

fn files() -> (TempDir, PathBuf, PathBuf, Vec<u8>) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let data: Vec<u8> = (0..BYTES).map(|n| (n / 512 + n % 251) as u8).collect();
    std::fs::write(&from, &data).expect("file");
    (directory, from, to, data)
}

fn copies<D: Driver>(faults: &FaultPlan) {
    let (_directory, from, to, data) = files();
    assert_eq!(example::copy::<D>(&from, &to, faults).expect("copied"), BYTES as u64);
    assert!(std::fs::read(&to).expect("the copy") == data);
    let other = example::copy::<D>(&to, &from, faults).map(drop);
    assert!(other.is_ok(), "and over what is there: {other:?}");
}

#[test]
fn over_io_uring() {
    copies::<Uring>(&FaultPlan::default());
}

#[test]
fn over_aio() {
    copies::<Aio>(&FaultPlan::default());
}

/// Short, slow and out of order: each byte is where it belongs all the same.
#[test]
fn over_a_bad_disk() {
    let some = |effect| FaultRule {
        probability_ppm: 300_000,
        ..FaultRule::new(FaultOps::READ | FaultOps::WRITE, effect)
    };
    let delay = FaultEffect::Delay { min: Duration::ZERO, max: Duration::from_millis(2) };
    let rules = vec![some(FaultEffect::Short), some(delay), some(FaultEffect::Reorder { window: 3 })];
    for seed in 0..4 {
        let faults = FaultPlan { seed, rules: rules.clone() };
        copies::<Fault<Uring>>(&faults);
        copies::<Fault<Aio>>(&faults);
    }
}

#[test]
fn an_error_ends_it() {
    let (_directory, from, to, _) = files();
    // In the midst of the pieces, with others in flight.
    let broken = FaultRule { after: 10, ..FaultRule::new(FaultOps::WRITE, FaultEffect::Error { errno: 5 }) };
    let faults = FaultPlan { seed: 1, rules: vec![broken] };
    let error = example::copy::<Fault<Uring>>(&from, &to, &faults).expect_err("EIO");
    assert!(error.to_string().contains("os error 5"), "{error}");
}
