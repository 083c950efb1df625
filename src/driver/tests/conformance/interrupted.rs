//! System calls that are interrupted or refused at any point, where strace can do that to us.

use std::process::Command;

/// Requests in many shapes, over all backends.
const TESTS: [&str; 4] = ["patterns_round_trip", "many_requests", "mix", "bad_request_amid"];

fn inject(fault: &str) {
    let strace = |arguments: &[&str]| {
        Command::new("strace").args(["-f", "-qq", "-o", "/dev/null"]).args(arguments).output()
    };
    match strace(&["true"]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return eprintln!("SKIPPED: strace: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(error) => return eprintln!("SKIPPED: strace: {error}"),
    }
    let exe = std::env::current_exe().expect("this test");
    let exe = exe.to_str().expect("a path in UTF-8");
    let fault = format!("inject={fault}");
    let arguments =
        [&["-e", "trace=io_uring_enter,io_submit,ppoll,poll", "-e", &fault, exe], &TESTS[..]].concat();
    let output = strace(&arguments).expect("it ran before");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains(" 0 passed"), "under {fault}:\n{text}");
}

#[test]
fn eintr_from_io_uring_enter() {
    inject("io_uring_enter:error=EINTR:when=2+3");
}

#[test]
fn ebusy_from_io_uring_enter() {
    inject("io_uring_enter:error=EBUSY:when=2+3");
}

#[test]
fn eintr_from_io_submit() {
    inject("io_submit:error=EINTR:when=2+3");
}

#[test]
fn eagain_from_io_submit() {
    inject("io_submit:error=EAGAIN:when=2+3");
}

#[test]
fn eintr_from_poll() {
    inject("ppoll,poll:error=EINTR:when=1+2");
}
