//! A process with an `IoContext` forks.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use ferrio_driver::Target;
use ferrio_engine::context::{
    Channel, IoCompletion, IoContextBuilder, IoEvent, IoWorkers, Refusal, ShutdownReport,
};

type Callback = Box<dyn FnOnce(IoCompletion) + Send>;

const LIMIT: Duration = Duration::from_secs(10);

/// The child has neither the threads nor the memory: every way to them says so, and none waits.
#[test]
fn a_forked_child_is_refused_and_the_parent_goes_on() {
    let workers = IoWorkers::<Callback>::new(1).unwrap();
    let mut builder = IoContextBuilder::new().depth(4);
    let volume = builder.volume(Arc::new(Target::memory(1 << 20).unwrap()));
    let context = builder.start(&workers).unwrap();
    let (sender, receiver) = mpsc::channel();
    let write = || {
        let sender = sender.clone();
        let callback: Callback = Box::new(move |completion| sender.send(completion).unwrap());
        IoEvent::write(volume, 0, context.buffer(4096).unwrap()).callback(callback)
    };
    context.submit(write(), Channel::Write).unwrap();
    let (event, future) = (write(), context.request(IoEvent::flush(volume), Channel::Prio).unwrap());
    // SAFETY: the child calls no more than what is under test, and leaves with _exit; the alarm ends one that waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: alarm has no requirements.
        unsafe { libc::alarm(10) };
        let refused = context.submit(event, Channel::Write);
        let refused = refused.is_err_and(|refused| refused.why == Refusal::Forked);
        let no_buffer = context.buffer(4096).is_err();
        context.notify();
        drop(future);
        let ended = context.shutdown(LIMIT).unanswered == 0;
        drop(context);
        // SAFETY: _exit has no requirements.
        unsafe { libc::_exit(if refused && no_buffer && ended { 0 } else { 1 }) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: a child of this process and a valid place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child's exit status, or the signal that ended it");

    context.submit(event, Channel::Write).unwrap();
    for _ in 0..2 {
        assert_eq!(receiver.recv_timeout(LIMIT).unwrap().result, Ok(4096));
    }
    drop(future);
    assert_eq!(context.shutdown(LIMIT), ShutdownReport { answered: 3, ..ShutdownReport::default() });
}
