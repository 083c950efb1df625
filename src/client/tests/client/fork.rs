//! A forked child must not touch its parent's session, and can have its own.

use std::thread;
use std::time::Duration;

use ferrio_client::{Error, Request, WaitPolicy};

use crate::peer::{Daemon, Opened, eventually};

/// Runs `child` in a forked process; its result is the exit status.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child uses what fork leaves intact (glibc's allocator included) and ends with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(!passed)) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status of a child that nobody else waits for.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn is_forked<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked))
}

#[test]
fn child_gets_errors_and_the_parent_goes_on() {
    let daemon = Daemon::start();
    let Opened { session, mut queue, volume, served } = daemon.queue(4, 4, WaitPolicy::Sleep);
    let buffer = session.alloc(512).unwrap();
    queue.submit(Request::read(&volume, 0, buffer)).unwrap();
    let spare = session.alloc(512).unwrap();
    let mut parts = Some((session, queue, spare));
    assert!(in_child(|| {
        let (session, mut queue, spare) = parts.take().unwrap();
        let refused = is_forked(session.alloc(512))
            && is_forked(session.take_queue(0))
            && is_forked(session.next_event())
            && is_forked(queue.commit())
            && is_forked(queue.poll())
            && is_forked(queue.wait(None))
            && is_forked(queue.nop())
            && queue.submit(Request::nop()).is_err_and(|error| !error.is_full())
            && is_forked(queue.into_async());
        // The drops must neither crash nor speak to the daemon.
        drop((spare, session));
        refused
    }));
    let (session, mut queue, _spare) = parts.take().unwrap();
    let server = thread::spawn(move || served.run());
    assert!(queue.wait(None).unwrap().unwrap().result.is_ok(), "the parent's request is still there");
    queue.nop().unwrap();
    drop((session, queue));
    server.join().unwrap();
}

#[test]
fn buffer_in_a_child_panics_with_a_clear_text() {
    let daemon = Daemon::start();
    let Opened { session, .. } = daemon.queue(4, 4, WaitPolicy::Sleep);
    let buffer = session.alloc(512).unwrap();
    assert!(in_child(|| {
        std::panic::set_hook(Box::new(|_| {}));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buffer[0])).unwrap_err();
        panic.downcast_ref::<&str>().is_some_and(|text| text.contains("forked process"))
    }));
}

/// The thread that re-attaches is the parent's.
#[test]
fn child_of_a_session_without_a_daemon_does_not_ask_for_it() {
    let daemon = Daemon::start();
    let builder = daemon.builder().patience(Duration::from_secs(30));
    let Opened { session, mut queue, served, .. } = daemon.open_queue(builder);
    queue.submit(Request::nop()).unwrap();
    queue.commit().unwrap();
    let remains = served.die();
    eventually(|| daemon.resumes.asked() > 0);
    let mut parts = Some((session, queue));
    assert!(in_child(|| {
        let (session, mut queue) = parts.take().unwrap();
        let refused =
            is_forked(session.next_event()) && is_forked(queue.wait(None)) && is_forked(queue.nop());
        drop((session, queue));
        refused
    }));
    daemon.resumes.serve(remains);
    let mut served = daemon.next_served();
    assert_eq!(served.answer_all(), 1);
    let (session, mut queue) = parts.take().unwrap();
    assert!(queue.wait(None).unwrap().unwrap().result.is_ok(), "the parent's session goes on");
    drop((served, session));
}
