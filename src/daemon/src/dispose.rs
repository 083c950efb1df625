//! Closes what clients sent, or may have sent, on a thread that may block.
//!
//! The last close of a descriptor takes as long as its maker likes: a socket with SO_LINGER, a file of a FUSE server. A client
//! can put such a descriptor into any message, and what nobody received is closed with the socket that it waits in. So
//! neither descriptors of clients nor sockets to them are closed on the control thread. A user whose descriptors do not
//! close keeps the places that go with them, see [`crate::uid_limit`].

use tokio::sync::oneshot;

/// Closes it, in due time.
pub fn later(things: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("close".to_owned());
    if let Err(error) = thread.spawn(move || drop(things)) {
        tracing::error!("a client's descriptors were closed on the control thread: no thread: {error}");
    }
}

/// Closes it, in due time: then the receiver ends.
pub fn begin(things: impl Send + 'static) -> oneshot::Receiver<()> {
    let (done, closed) = oneshot::channel();
    // The sender is dropped last, which is what it is for.
    later((things, done));
    closed
}

/// Closes it, and waits for it without blocking.
pub async fn wait(things: impl Send + 'static) {
    let _ = begin(things).await;
}
