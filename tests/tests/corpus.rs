//! Replays what the fuzzers have kept (`fuzz/corpus`), without a fuzzer: every input that once was interesting still
//! gets the right answer.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::{fs, path::Path};

fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        let bytes = fs::read(&path).expect("a corpus file can be read");
        // Shown only if the body panics.
        println!("{}", path.display());
        body(&bytes);
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", dir.display());
}

#[test]
fn sqe_validation() {
    replay("sqe_validation", fuzz::sqe_validation);
}

#[test]
fn ring_ends() {
    replay("ring_ends", fuzz::ring_ends);
}

#[test]
fn lease() {
    replay("lease", fuzz::lease);
}

#[test]
fn config() {
    replay("config", fuzz::config);
    fuzz::config(include_bytes!("../../config/ferriod.toml"));
}
