//! Who is at the other end of a Unix socket, and descriptors passed over it.

mod identity;
mod inherited;
mod seqpacket;

pub use identity::{PeerIdentity, peer_pidfd};
pub use inherited::{InheritedListener, inherited_listeners};
pub use seqpacket::{FDS_MAX, accept, connect, listen, recv_message, send_message, try_connect};
