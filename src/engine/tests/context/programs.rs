//! The same program gives the same results on each backend.

use std::{path::PathBuf, sync::Arc};

use ferrio_driver::{OpenOptions, Target, select::BackendChoice};
use ferrio_engine::context::{Channel, IoContextBuilder, IoEvent};
use ferrio_shm::abi::errno;
use tempfile::TempDir;

use crate::{BLOCK, LIMIT, VOLUME_BYTES, backends, block_on, workers};

#[path = "../../examples/context.rs"]
#[allow(dead_code, reason = "its main is for the command line")]
mod example;

/// On a disk, so that O_DIRECT works as in life.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn data(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 512 + n % 251) as u8).collect()
}

#[test]
fn the_example_does_the_same_on_each_backend() {
    let directory = directory();
    let from = directory.path().join("from");
    // The last piece is short.
    let data = data((5 << 20) + 8192);
    std::fs::write(&from, &data).unwrap();
    let mut results = Vec::new();
    for backend in backends() {
        for depth in [1, 16] {
            let to = directory.path().join(format!("{backend}-{depth}"));
            let options = example::Options { backend, depth, from: from.clone(), to: to.clone() };
            let done = example::run(&options).unwrap();
            assert_eq!(done.backend, backend.name());
            assert!(std::fs::read(&to).unwrap() == data, "over {backend}");
            assert_eq!(example::run(&options).unwrap(), done, "over what is there");
            results.push((done.bytes, done.checksum));
        }
    }
    results.dedup();
    assert_eq!(results, [(data.len() as u64, crc32fast::hash(&data))]);
}

#[test]
fn the_example_says_what_is_wrong() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let run = |from: PathBuf, to: PathBuf| {
        let options = example::Options { backend: BackendChoice::Auto, depth: 4, from, to };
        example::run(&options).unwrap_err().to_string()
    };
    assert!(run(path("nothing"), path("to")).contains("does not exist"));
    std::fs::write(path("from"), vec![1; 8192]).unwrap();
    std::fs::write(path("other"), vec![1; 4096]).unwrap();
    let error = run(path("from"), path("other"));
    assert!(error.ends_with("is there, and has 4096 bytes instead of 8192: remove it"), "{error}");
    std::fs::write(path("odd"), vec![1; 777]).unwrap();
    let error = run(path("odd"), path("to"));
    assert!(error.contains("has 777 bytes, which is not a multiple of its block"), "{error}");
}

/// One program of all operations; what it sees, step by step.
fn operations(target: Target, backend: BackendChoice) -> Vec<(String, Result<u32, i32>, u32)> {
    let workers = workers::<()>(0);
    let mut builder = IoContextBuilder::new().backend(backend).depth(8).cancellable(true);
    let volume = builder.volume(Arc::new(target));
    let context = builder.start(&workers).unwrap();
    let filled = |byte: u8, blocks: usize| {
        let mut buffer = context.buffer(blocks * BLOCK).unwrap();
        buffer.fill(byte);
        buffer
    };
    let list = |bytes: [u8; 2]| context.list(vec![filled(bytes[0], 1), filled(bytes[1], 2)]).unwrap();
    let mut halves = filled(3, 2);
    halves[BLOCK..].fill(9);
    let second = BLOCK as u64;
    let events = [
        ("write", IoEvent::write(volume, 0, filled(1, 4)).fua(), Channel::Write),
        ("writev", IoEvent::writev(volume, second, list([3, 4])), Channel::Write),
        ("flush", IoEvent::flush(volume), Channel::Write),
        ("read", IoEvent::read(volume, 0, filled(0, 4)), Channel::Prio),
        ("compare-and-write", IoEvent::compare_and_write(volume, second, halves), Channel::Write),
        ("compared again", IoEvent::compare_and_write(volume, second, filled(3, 2)), Channel::Prio),
        ("write-zeroes", IoEvent::write_zeroes(volume, 2 * second, second), Channel::Write),
        ("readv", IoEvent::readv(volume, 0, list([0, 0])), Channel::Read),
        ("in time", IoEvent::read(volume, 0, filled(0, 1)).timeout(LIMIT), Channel::Read),
        ("beyond the end", IoEvent::read(volume, VOLUME_BYTES, filled(0, 1)), Channel::Read),
        ("misaligned", IoEvent::write(volume, 1, filled(0, 1)), Channel::Write),
    ];
    let mut seen = Vec::new();
    for (what, event, channel) in events {
        let completion = block_on(context.execute(event, channel)).unwrap();
        let result = completion.result.map_err(|error| error.errno());
        let mut hasher = crc32fast::Hasher::new();
        let listed = completion.list.into_iter().flat_map(|list| list.into_buffers());
        completion.buffer.into_iter().chain(listed).for_each(|buffer| hasher.update(&buffer));
        seen.push((what.to_owned(), result, hasher.finalize()));
    }
    assert_eq!(context.shutdown(LIMIT).answered, seen.len() as u64);
    seen
}

#[test]
fn all_operations_are_the_same_on_each_backend() {
    let directory = directory();
    let mut programs = Vec::new();
    for backend in backends() {
        let path = directory.path().join(backend.name());
        let options = OpenOptions { create_bytes: Some(VOLUME_BYTES), ..OpenOptions::default() };
        programs.push((backend.name(), operations(Target::open(&path, &options).unwrap(), backend)));
        programs.push(("memory", operations(Target::memory(VOLUME_BYTES).unwrap(), backend)));
    }
    let (_, first) = programs[0].clone();
    let of = |what: &str| first.iter().find(|(name, ..)| name == what).unwrap().1;
    assert_eq!(of("readv"), Ok(3 * BLOCK as u32));
    assert_eq!(of("compare-and-write"), Ok(BLOCK as u32));
    assert_eq!(of("compared again"), Err(errno::EILSEQ));
    assert_eq!(of("beyond the end"), Err(errno::ERANGE));
    assert_eq!(of("misaligned"), Err(errno::EINVAL));
    let mut expected = crc32fast::Hasher::new();
    for byte in [1, 9, 0] {
        expected.update(&[byte; BLOCK]);
    }
    assert_eq!(first.iter().find(|(name, ..)| name == "readv").unwrap().2, expected.finalize());
    for (name, program) in programs {
        assert_eq!(program, first, "on {name}");
    }
}
