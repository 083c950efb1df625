//! The examples of ferrio-client, against a real daemon: they assert what they claim.

use ferrio_tests::{Daemon, DaemonBuilder};

const MIB: u64 = 1 << 20;

#[allow(dead_code)]
#[path = "../../src/client/examples/async.rs"]
mod async_copy;
#[allow(dead_code)]
#[path = "../../src/client/examples/blocking.rs"]
mod blocking;
#[allow(dead_code)]
#[path = "../../src/client/examples/operations.rs"]
mod operations;
#[allow(dead_code)]
#[path = "../../src/client/examples/regions.rs"]
mod regions;
#[allow(dead_code)]
#[path = "../../src/client/examples/threads.rs"]
mod threads;

fn socket(daemon: &Daemon) -> String {
    daemon.control().into_os_string().into_string().expect("a plain path")
}

fn daemon() -> Daemon {
    DaemonBuilder::new().file("data", 8 * MIB).start()
}

#[test]
fn blocking_reads() {
    blocking::run(&socket(&daemon()), "data").unwrap();
}

#[test]
fn async_copies() {
    let daemon = daemon();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async_copy::run(&socket(&daemon), "data")).unwrap();
}

#[test]
fn threads_fill_volumes_of_two_engines() {
    let builder = DaemonBuilder::new().engine("one", "io_uring", "").engine("two", "aio", "");
    let (first, second) = (builder.path("a"), builder.path("b"));
    let more = |engine: &str| format!("size = {}\nallow_any = true\nengine = {engine:?}", 4 * MIB);
    let daemon = builder
        .volume("a", &first, &more("one"))
        .volume("b", &second, &more("two"))
        .memory("c", 2 * MIB)
        .start();
    threads::run(&socket(&daemon), &["a".into(), "b".into(), "c".into()]).unwrap();
    threads::run(&socket(&daemon), &["b".into()]).unwrap();
}

#[test]
fn operations_of_a_store() {
    operations::run(&socket(&daemon()), "data").unwrap();
}

#[test]
fn regions_of_a_pool() {
    regions::run(&socket(&daemon()), "data").unwrap();
}
