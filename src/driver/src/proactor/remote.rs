//! Operations of other threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Full, Proactor};
use crate::driver::{Driver, Op};
use crate::injector::Injector;
use crate::op_registry::{OpId, Outcome, RemoteCompleter};

/// A request that another thread submits through an [`Injector`], as a future of any executor.
///
/// Dropping it changes nothing for the request: it runs, and its resources are dropped on the driver's thread once it is
/// answered. It costs three allocations.
#[derive(Debug)]
#[must_use = "the request runs without it, but its result is lost"]
pub struct RemoteOp<R>(Arc<Mutex<State<R>>>);

/// The proactor ended before the request did; the resources went with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver ended before it answered the request")]
pub struct Lost;

#[derive(Debug)]
enum State<R> {
    /// The resources are here until the driver's thread takes them.
    Waiting {
        resources: Option<R>,
        waker: Option<Waker>,
    },
    Ended(Result<Outcome<R>, Lost>),
    Taken,
}

/// The other end. That it is dropped without an answer is an answer.
struct Completer<R>(Arc<Mutex<State<R>>>);

fn lock<R>(state: &Mutex<State<R>>) -> MutexGuard<'_, State<R>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_resources<R>(state: &Mutex<State<R>>) -> Option<R> {
    match &mut *lock(state) {
        State::Waiting { resources, .. } => resources.take(),
        State::Ended(_) | State::Taken => None,
    }
}

impl<R> Completer<R> {
    fn end(&self, with: Result<Outcome<R>, Lost>) {
        let mut state = lock(&self.0);
        if !matches!(*state, State::Waiting { .. }) {
            return;
        }
        let before = std::mem::replace(&mut *state, State::Ended(with));
        drop(state);
        if let State::Waiting { waker: Some(waker), .. } = before {
            waker.wake();
        }
    }
}

impl<R: Send> RemoteCompleter<R> for Completer<R> {
    fn complete(&self, _: OpId, outcome: Outcome<R>) {
        self.end(Ok(outcome));
    }
}

impl<R> Drop for Completer<R> {
    fn drop(&mut self) {
        self.end(Err(Lost));
    }
}

impl<D: Driver, R: Send + 'static> Injector<Proactor<D, R>> {
    /// Has the driver's thread submit `request`, which owns `resources` until it is answered. If driver or registry are full
    /// when it gets there, the answer is `-EAGAIN`, with the resources. `Err`: the injector is full or the proactor has ended.
    pub fn run(&self, request: Op, resources: R) -> Result<RemoteOp<R>, R> {
        let state = Arc::new(Mutex::new(State::Waiting { resources: Some(resources), waker: None }));
        let completer = Completer(Arc::clone(&state));
        let sent = self.inject(Box::new(move |proactor| start(proactor, &request, completer)));
        match sent {
            Ok(()) => Ok(RemoteOp(state)),
            Err(_refused) => match take_resources(&state) {
                Some(resources) => Err(resources),
                None => unreachable!("a closure that did not run took nothing"),
            },
        }
    }
}

fn start<D: Driver, R: Send + 'static>(proactor: &mut Proactor<D, R>, request: &Op, completer: Completer<R>) {
    let Some(resources) = take_resources(&completer.0) else { return };
    let again = |resources| Ok(Outcome { result: -libc::EAGAIN, resources });
    let Some(reserved) = proactor.reserve() else { return completer.end(again(resources)) };
    match proactor.submit(reserved, request, resources) {
        Ok(op) => proactor.attach_remote_completer(op, Arc::new(completer)),
        Err(Full { reserved, resources }) => {
            proactor.cancel_reserved(reserved);
            completer.end(again(resources));
        }
    }
}

impl<R> Future for RemoteOp<R> {
    type Output = Result<Outcome<R>, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ended(outcome) => Poll::Ready(outcome),
            State::Waiting { resources, .. } => {
                *state = State::Waiting { resources, waker: Some(cx.waker().clone()) };
                Poll::Pending
            }
            State::Taken => panic!("a RemoteOp was polled after it had ended"),
        }
    }
}
