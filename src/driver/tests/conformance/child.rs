//! Tests that need a process of their own: they run this binary again.

use std::process::Command;

const NAME: &str = "FERRIO_CONFORMANCE_CHILD";

/// Runs the test `name` in a new process in which [`is_child`] says so, and gives what it wrote.
/// It must succeed.
pub fn run(name: &str) -> String {
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(NAME, name)
        .output()
        .expect("this test runs");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed as a child:\n{text}");
    assert!(text.contains("1 passed"), "{name} did not run:\n{text}");
    text
}

pub fn is_child(name: &str) -> bool {
    std::env::var_os(NAME).is_some_and(|value| value == name)
}
