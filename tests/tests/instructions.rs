//! What a request costs where the disk costs nothing, in instructions: unlike time, the same on a busy machine.
//!
//! `src/engine/examples/null_path.rs` runs under callgrind twice, 10000 rounds apart, so that start and end cancel out.
//! `turn` is what the engine's thread does in a round, `path` is the whole of it, with the client's ring ends. The counts
//! hold for one compiler (`rust-toolchain.toml`) and are recorded in `tests/instructions.toml`: more than a tenth above is a
//! failure, more than a tenth below is to be recorded.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use ferrio_tests::skip;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
const ROUNDS: [u64; 2] = [1_000, 11_000];
/// Requests in flight at once.
const DEPTHS: [u64; 2] = [1, 32];

/// Instructions per request, by what is counted.
type Counts = BTreeMap<String, f64>;

#[test]
fn a_request_costs_what_was_recorded() {
    if !cfg!(target_arch = "x86_64") {
        return skip::skip("instructions are recorded for x86-64", true);
    }
    if !skip::has_program("valgrind") {
        return skip::skip("valgrind is not installed", false);
    }
    let text = fs::read_to_string(RECORD).expect("the record can be read");
    let record: toml::Table = text.parse().expect("the record is TOML");
    let compiler = compiler();
    let recording = env::var_os("RECORD").is_some();
    let recorded_for = record.get("compiler").and_then(toml::Value::as_str).unwrap_or("nothing");
    if !recording && recorded_for != compiler {
        let reason = format!(
            "instructions were recorded for {recorded_for}, this is {compiler}; record them anew with RECORD=1"
        );
        return skip::skip(&reason, true);
    }
    let counts = measure(&build());
    if recording {
        return write(&text, &compiler, &counts);
    }
    let mut grown = Vec::new();
    for (what, count) in &counts {
        let was = record.get(what).and_then(toml::Value::as_float).expect("every count is recorded");
        println!("{what}: {count:.1} instructions per request, {was:.1} recorded");
        if *count > was * 1.1 {
            grown.push(format!("{what}: {count:.1}, {was:.1} recorded"));
        }
        if *count < was * 0.9 {
            eprintln!("{what} shrank from {was:.1} to {count:.1}: keep it, record it with RECORD=1");
        }
    }
    assert!(
        grown.is_empty(),
        "instructions per request grew by more than a tenth: {grown:?}; make it cheaper, or record it with RECORD=1 and say \
         in the commit what it buys"
    );
}

/// As `rustc --version` says it, under this tree's pin.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("rustc runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The release build of the example, into the target directory that this test was built into.
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp is in target");
    let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--release", "--locked", "--quiet", "-p", "ferrio-engine", "--example", "null_path"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the example does not build");
    target.join("release/examples/null_path")
}

fn measure(program: &Path) -> Counts {
    let mut counts = Counts::new();
    for depth in DEPTHS {
        for (what, only) in [("turn", Some("null_path::turn")), ("path", None)] {
            let [less, more] = ROUNDS.map(|rounds| collected(program, depth, rounds, only));
            let requests = (ROUNDS[1] - ROUNDS[0]) * depth;
            let count = (more - less) as f64 / requests as f64;
            assert!(
                count > 100.0,
                "{what} at depth {depth}: {count} instructions per request: was it counted at all?"
            );
            counts.insert(format!("{what}_qd{depth}"), (count * 10.0).round() / 10.0);
        }
    }
    counts
}

/// Instructions of a run, or of one function and what it calls.
fn collected(program: &Path, depth: u64, rounds: u64, only: Option<&str>) -> u64 {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .args(only.map(|function| format!("--toggle-collect={function}")))
        .arg(program)
        .args([depth.to_string(), rounds.to_string()])
        .output()
        .expect("valgrind runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let profile = fs::read_to_string(&out).expect("callgrind wrote its profile");
    let total =
        profile.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).expect("the profile has a total")
}

/// Keeps the comment at the head of the file.
fn write(text: &str, compiler: &str, counts: &Counts) {
    let comment = text.lines().take_while(|line| line.starts_with('#'));
    let counts = counts.iter().map(|(what, count)| format!("{what} = {count:.1}"));
    let lines: Vec<String> =
        comment.map(str::to_owned).chain([format!("compiler = \"{compiler}\"")]).chain(counts).collect();
    fs::write(RECORD, lines.join("\n") + "\n").expect("the record can be written");
}
