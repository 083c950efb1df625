//! Without a system call, so that Miri can run them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use super::*;

/// Callbacks write into it.
type Registry<R> = OpRegistry<Vec<i32>, R>;

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Mailbox(Mutex<Vec<(OpId, i32)>>);

impl<R> RemoteCompleter<R> for Mailbox {
    fn complete(&self, op: OpId, outcome: Outcome<R>) {
        self.0.lock().expect("no panic").push((op, outcome.result));
    }
}

fn started<R>(registry: &mut Registry<R>, resources: R) -> OpId {
    let op = registry.reserve().expect("room");
    assert!(registry.start(op, resources).is_ok());
    op
}

/// Completes `op` and hands its answer over; gives what callbacks wrote.
fn complete<R>(registry: &mut Registry<R>, op: OpId, result: i32) -> Vec<i32> {
    let mut driver = Vec::new();
    if let Some(delivery) = registry.complete(op.index(), result) {
        delivery.hand_over(&mut driver);
    }
    driver
}

fn poll<R>(registry: &mut Registry<R>, op: OpId) -> Poll<Option<Outcome<R>>> {
    registry.poll(op, &mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_waker_is_woken_once_and_finds_the_answer() {
    let mut registry = Registry::new(4);
    let op = started(&mut registry, "buffer".to_owned());
    let (first, second) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
    for wakes in [&first, &second] {
        let waker = Waker::from(Arc::clone(wakes));
        assert!(registry.poll(op, &mut Context::from_waker(&waker)).is_pending());
    }
    complete(&mut registry, op, -5);
    assert_eq!((first.take(), second.take()), (0, 1), "the last one that asked");
    let answer = Outcome { result: -5, resources: "buffer".to_owned() };
    assert_eq!(poll(&mut registry, op), Poll::Ready(Some(answer)));
    assert_eq!(poll(&mut registry, op), Poll::Ready(None), "taken");
    assert_eq!(complete(&mut registry, op, 7), [], "a second answer finds nothing");
    assert!(registry.is_empty());
}

#[test]
fn an_answer_waits_for_who_comes_late() {
    let mut registry = Registry::new(4);
    let [polled, mailed, called, dropped] = [1, 2, 3, 4].map(|resources| started(&mut registry, resources));
    for op in [polled, mailed, called, dropped] {
        complete(&mut registry, op, 40);
    }
    assert_eq!((registry.in_flight(), registry.len()), (0, 4));
    let mailbox = Arc::new(Mailbox::default());
    let mut driver = Vec::new();
    let completer = Arc::clone(&mailbox);
    let late = [
        registry.attach_remote(mailed, completer),
        registry.attach_callback(called, Box::new(|driver, outcome| driver.push(outcome.result))),
        registry.detach(dropped),
    ];
    late.into_iter().for_each(|delivery| delivery.expect("at once").hand_over(&mut driver));
    assert_eq!(*mailbox.0.lock().expect("no panic"), [(mailed, 40)]);
    assert_eq!(driver, [40]);
    assert_eq!(poll(&mut registry, polled), Poll::Ready(Some(Outcome { result: 40, resources: 1 })));
    assert!(registry.is_empty());
}

#[test]
fn an_answer_goes_where_it_was_sent() {
    let mut registry = Registry::new(4);
    let [mailed, called, dropped] = [1, 2, 3].map(|resources| started(&mut registry, resources));
    let mailbox = Arc::new(Mailbox::default());
    let completer = Arc::clone(&mailbox);
    assert!(registry.attach_remote(mailed, completer).is_none());
    let callback = Box::new(|driver: &mut Vec<i32>, outcome: Outcome<i32>| {
        driver.extend([outcome.result, outcome.resources]);
    });
    assert!(registry.attach_callback(called, callback).is_none());
    assert!(registry.detach(dropped).is_none());
    assert_eq!(registry.in_flight(), 3);
    assert_eq!(complete(&mut registry, called, 10), [10, 2]);
    assert_eq!(complete(&mut registry, mailed, 11), []);
    assert_eq!(complete(&mut registry, dropped, 12), []);
    assert_eq!(*mailbox.0.lock().expect("no panic"), [(mailed, 11)]);
    assert!(registry.is_empty());
}

#[test]
fn resources_stay_until_the_answer_whoever_has_left() {
    let buffer = Arc::new(());
    let owned = || Arc::strong_count(&buffer) - 1;
    let mut registry = Registry::new(4);
    let [unpolled, detached] = [(), ()].map(|()| started(&mut registry, Arc::clone(&buffer)));
    // A future that was polled, and then dropped.
    {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes);
        assert!(registry.poll(detached, &mut Context::from_waker(&waker)).is_pending());
    }
    assert!(registry.detach(detached).is_none());
    assert_eq!(owned(), 2);
    complete(&mut registry, detached, 0);
    assert_eq!(owned(), 1, "with its answer");
    complete(&mut registry, unpolled, 0);
    assert_eq!(owned(), 1, "somebody may still ask");
    drop(registry);
    assert_eq!(owned(), 0);
}

#[test]
fn what_the_kernel_may_use_is_leaked_and_nothing_else() {
    let (in_kernel, done, timer) = (Arc::new(()), Arc::new(()), Arc::new(()));
    let mut registry = Registry::new(4);
    started(&mut registry, Arc::clone(&in_kernel));
    let op = started(&mut registry, Arc::clone(&done));
    complete(&mut registry, op, 0);
    let op = registry.reserve().expect("room");
    registry.start_timer(op, Arc::clone(&timer)).expect("reserved");
    assert_eq!(registry.leak_in_flight(), 1);
    drop(registry);
    assert_eq!([&in_kernel, &done, &timer].map(Arc::strong_count), [2, 1, 1]);
    // For Miri, which minds leaks.
    // SAFETY: the count that was forgotten above is still there.
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(&in_kernel)) };
}

#[test]
fn full_gives_back() {
    let mut registry = Registry::new(2);
    let first = started(&mut registry, 1);
    let second = registry.reserve().expect("room");
    assert_eq!(registry.reserve(), None);
    registry.cancel_reserved(first);
    assert_eq!(registry.reserve(), None, "under way is not reserved");
    registry.cancel_reserved(second);
    let again = registry.reserve().expect("room");
    assert_eq!((again.index(), again == second), (second.index(), false));
    assert_eq!(registry.start(second, 2), Err(2), "an id that outlived its reservation");
    complete(&mut registry, first, 0);
    assert_eq!(registry.reserve(), None, "an answer that nobody took keeps its place");
    assert_eq!(poll(&mut registry, first), Poll::Ready(Some(Outcome { result: 0, resources: 1 })));
    assert!(registry.reserve().is_some());
}

#[test]
fn timers_alone_are_cancelled() {
    let mut registry = Registry::<()>::new(4);
    let timer = registry.reserve().expect("room");
    registry.start_timer(timer, ()).expect("reserved");
    let op = started(&mut registry, ());
    assert!(registry.is_timer(timer) && !registry.is_timer(op));
    assert_eq!([timer, op].map(|op| registry.cancellable(op)), [Cancel::Cancelled, Cancel::TooLate]);
    assert!(
        registry.complete_timer(op, 0).is_none() && registry.in_flight() == 1,
        "that one is the kernel's"
    );
    assert_eq!(complete(&mut registry, timer, 0), [], "and this is not");
    assert!(registry.complete_timer(timer, -libc::ECANCELED).is_none(), "nobody asked");
    assert_eq!(registry.cancellable(timer), Cancel::TooLate, "done");
    let answer = Outcome { result: -libc::ECANCELED, resources: () };
    assert_eq!(poll(&mut registry, timer), Poll::Ready(Some(answer)));
    assert_eq!(registry.cancellable(timer), Cancel::Unknown);
}

#[test]
fn ids_travel_as_words() {
    let mut registry = Registry::<()>::new(1);
    let op = registry.reserve().expect("room");
    assert_eq!(OpId::from_word(op.word()), op);
    assert_eq!(format!("{op:?}"), "OpId(0@1)");
}
