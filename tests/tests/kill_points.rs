//! The daemon is killed at each labelled step of a request's way, of recovery, of a session's life and of the fence
//! (`ferrio_engine::kill_point`), under the load of a `Mix`, which finds every answer that is missing, doubled or wrong.
//!
//! A label that is never passed fails its test: the daemon does not die.

use std::{fs::File, path::Path, process::Command};

use ferrio_engine::kill_point::LABELS;
use ferrio_tests::{
    Daemon, DaemonBuilder, Worker,
    mix::{Restarts, Tally},
    process::wait_until,
};
use rustix::fs::{FlockOperation, flock};

const MIB: u64 = 1 << 20;
const VARIABLE: &str = "FERRIO_KILL_POINT";
/// How a label comes to be passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Requests.
    Requests,
    /// A start after a kill.
    Recovery,
    /// Sessions that come back.
    Reattach,
    /// A session that is opened.
    Opening,
    /// A session that is closed.
    Closing,
    /// A volume that somebody else still holds.
    Fencing,
}

fn scene(label: &str) -> Scene {
    match label {
        "after-copy" | "before-record" | "after-record" | "after-accept-line" | "before-submit"
        | "after-submit" | "after-reap" | "after-done" | "after-cqe" | "after-cq-tail"
        | "after-answer-line" | "before-free" | "after-free" => Scene::Requests,
        "recover-read" | "recover-written" | "recover-renamed" => Scene::Recovery,
        "resume-opened" | "resume-reposted" | "resume-replayed" | "resume-checked" | "resume-served"
        | "resume-sent" => Scene::Reattach,
        "session-saved" | "session-served" | "attach-sent" => Scene::Opening,
        "session-removed" => Scene::Closing,
        "fence-waiting" | "fence-taken" => Scene::Fencing,
        other => panic!("label {other} has no scene: say here how it comes to be passed"),
    }
}

fn labels(wanted: Scene) -> impl Iterator<Item = &'static str> {
    LABELS.into_iter().filter(move |label| scene(label) == wanted)
}

fn start(daemon: &Daemon) -> Worker {
    Worker::start(daemon, "data", Restarts::Killed)
}

#[track_caller]
fn finish(worker: Worker, daemon: &Daemon, label: &str) -> Tally {
    worker.finish().unwrap_or_else(|failure| {
        panic!("killed at {label}: {failure:?}\nthe daemon after it:\n{}", daemon.log())
    })
}

fn engine(backend: &str, threads: &str) -> DaemonBuilder {
    let builder = DaemonBuilder::new().config("resume_timeout_s = 2");
    builder.engine("main", backend, &format!("threads = {threads:?}")).file("data", MIB)
}

/// The daemon ends by itself, at the label.
#[track_caller]
fn dies(daemon: &mut Daemon, label: &str) {
    println!("to be killed at {label}");
    let finished = daemon.ended();
    assert_eq!(finished.code(), 128 + 9, "{label}: it was not killed:\n{}", finished.stderr);
    daemon.set_env(VARIABLE, None);
}

fn killed_at_requests(backend: &str, threads: &str) {
    let mut met = Tally::default();
    // The first of all requests, and somewhere in the middle.
    for passes in [1..2, 2..400] {
        for label in labels(Scene::Requests) {
            let pass = fastrand::u32(passes.clone());
            let point = format!("{label}:{pass}");
            let mut daemon = engine(backend, threads).env(VARIABLE, &point).start();
            let worker = start(&daemon);
            dies(&mut daemon, &point);
            daemon.restart();
            let tally = finish(worker, &daemon, &point);
            met.replayed += tally.replayed;
            met.owner_dead += tally.owner_dead;
        }
    }
    println!("{} replayed, {} of unknown outcome", met.replayed, met.owner_dead);
    assert!(met.replayed > 0, "no kill met a request in flight");
}

#[test]
fn on_the_way_of_a_request_over_io_uring_with_one_thread() {
    killed_at_requests("io_uring", "1");
}

#[test]
fn on_the_way_of_a_request_over_io_uring_with_two_threads() {
    killed_at_requests("io_uring", "2");
}

#[test]
fn on_the_way_of_a_request_over_aio() {
    killed_at_requests("aio", "auto");
}

/// A daemon under load that was killed, and its client.
fn killed_under_load() -> (Daemon, Worker) {
    // Not just anywhere: there is something to be done again.
    let point = format!("after-submit:{}", fastrand::u32(200..400));
    let mut daemon = engine("auto", "auto").env(VARIABLE, &point).start();
    let worker = start(&daemon);
    dies(&mut daemon, &point);
    (daemon, worker)
}

fn killed_once_more(labels: &[&str]) {
    let (mut daemon, worker) = killed_under_load();
    for label in labels {
        daemon.set_env(VARIABLE, Some(label));
        daemon.spawn();
        dies(&mut daemon, label);
    }
    daemon.restart();
    finish(worker, &daemon, &labels.join(", then "));
}

#[test]
fn during_recovery() {
    labels(Scene::Recovery).for_each(|label| killed_once_more(&[label]));
    killed_once_more(&labels(Scene::Recovery).collect::<Vec<_>>());
}

#[test]
fn while_sessions_come_back() {
    labels(Scene::Reattach).for_each(|label| killed_once_more(&[label]));
    killed_once_more(&labels(Scene::Reattach).collect::<Vec<_>>());
}

#[test]
fn while_a_session_is_opened() {
    for label in labels(Scene::Opening) {
        let mut daemon = engine("auto", "auto").env(VARIABLE, label).start();
        let worker = start(&daemon);
        dies(&mut daemon, label);
        daemon.restart();
        finish(worker, &daemon, label);
    }
}

#[test]
fn while_a_session_is_closed() {
    for label in labels(Scene::Closing) {
        let mut daemon = engine("auto", "auto").env(VARIABLE, label).start();
        let worker = start(&daemon);
        worker.wait_for_rounds(1);
        finish(worker, &daemon, label);
        dies(&mut daemon, label);
        daemon.restart();
        let nothing_left =
            || daemon.ctl_json(&["session", "list"])["sessions"].as_array().is_some_and(Vec::is_empty);
        wait_until("the session to be forgotten", nothing_left);
        finish(start(&daemon), &daemon, label);
    }
}

/// A lock as I/O in flight has it: the process that took it is gone, what it took it on is not.
fn lock_of_the_dead(path: &Path) -> File {
    let file = File::options().write(true).open(path).unwrap();
    let mut flock = Command::new("flock");
    // Waits for the writes of the daemon that was killed.
    let taken = flock.args(["--exclusive", "0"]).stdin(file.try_clone().unwrap()).status().expect("flock(1)");
    assert!(taken.success());
    file
}

#[test]
fn while_a_volume_is_fenced() {
    for label in labels(Scene::Fencing) {
        let (mut daemon, worker) = killed_under_load();
        let holder = lock_of_the_dead(&daemon.path("data"));
        daemon.set_env(VARIABLE, Some(label));
        daemon.spawn();
        if label == "fence-taken" {
            daemon.wait_until_it_serves();
            flock(&holder, FlockOperation::Unlock).unwrap();
        }
        dies(&mut daemon, label);
        daemon.restart();
        flock(&holder, FlockOperation::Unlock).unwrap();
        finish(worker, &daemon, label);
    }
}
