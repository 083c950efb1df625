//! Awaiting an event, on any executor.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Shared, answer::IoCompletion, event::Ticket, lane::Lane};

/// An event on its way: a future of its completion. It has its place until it has given the completion. Dropped before, the
/// event is carried out all the same, and its buffer is free again when the kernel is done with it.
#[must_use = "the event is on its way; this is how its completion is had"]
pub struct IoFuture<C> {
    shared: Arc<Shared<C>>,
    ticket: Ticket,
    place: Option<u32>,
}

impl<C> IoFuture<C> {
    pub(super) fn new(shared: Arc<Shared<C>>, ticket: Ticket) -> Self {
        Self { shared, ticket, place: Some(ticket.user_data as u32) }
    }

    /// Names the event for [`IoEvent::cancel`](super::IoEvent::cancel).
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl<C> Future for IoFuture<C> {
    type Output = IoCompletion;

    /// # Panics
    /// If it has given its completion before.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoCompletion> {
        let place = self.place.expect("an IoFuture was polled after it had given its completion");
        let polled = self.shared.lane(self.ticket.channel).poll(place, context.waker());
        if polled.is_ready() {
            self.place = None;
        }
        polled
    }
}

impl<C> Drop for IoFuture<C> {
    fn drop(&mut self) {
        // In a forked child the locks may be held for ever by threads that exist in the parent only.
        if let Some(place) = self.place.filter(|_| !self.shared.is_child()) {
            self.shared.lane(self.ticket.channel).forget(place);
        }
    }
}

impl<C> fmt::Debug for IoFuture<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoFuture").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// Waits for a free place, or for the end of the context.
pub(super) struct Room<'a, C> {
    lane: &'a Lane<C>,
    waiter: Option<u64>,
}

impl<'a, C> Room<'a, C> {
    pub fn of(lane: &'a Lane<C>) -> Self {
        Self { lane, waiter: None }
    }
}

impl<C> Future for Room<'_, C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { lane, waiter } = &mut *self;
        lane.poll_room(waiter, context.waker())
    }
}

impl<C> Drop for Room<'_, C> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.lane.leave_room(waiter);
        }
    }
}
