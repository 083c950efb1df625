//! Who is at the other end of a Unix socket, and descriptors passed over it.

mod connect;
mod identity;
mod inherited;
mod seqpacket;

pub use connect::{connect, connect_stream_within, connect_within};
pub use identity::{PeerIdentity, peer_pidfd};
pub use inherited::{InheritedListener, inherited_listeners};
pub use seqpacket::{FDS_MAX, accept, listen, recv_message, send_message, set_backlog};
