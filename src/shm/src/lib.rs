//! Memory shared between ferriod and its clients.
//!
//! `ABI.md` beside this crate is normative; the modules follow it from the bytes outwards:
//!
//! | module | what it holds |
//! |---|---|
//! | [`abi`] | numbers: versions, limits, opcodes, flags, errnos |
//! | [`entry`] | SQE, CQE and iov entry, and their bytes |
//! | [`layout`] | where header, queues and arena lie in the session memory |
//! | [`lease`] | messages of the attach socket, bytes only |
//! | [`ring`] | the four typed ring ends and the sleep handshake, over borrowed atomics |
//! | [`sync`] | the atomics of the ring: std's, or loom's under `cfg(loom)` |
//! | [`mapping`] | memfds, mappings, the queue and the header in a mapping, regions |
//! | [`arena`] | data buffers of a client in its arena region |
//! | [`doorbell`], [`wake`] | eventfds and sockets between processes, an eventfd between threads |
//! | [`peer`] | who is at the other end of a socket, and descriptors passed over it |
//! | [`fork`] | tells a forked child that the session is not its own |
//!
//! Under `cfg(loom)` only the modules without system calls are compiled.

#[cfg(not(target_endian = "little"))]
compile_error!("ferrio's ABI is little-endian and its entries are stored in native order");

pub mod abi;
pub mod entry;
pub mod layout;
pub mod lease;
pub mod ring;
pub mod sync;

#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod doorbell;
#[cfg(not(loom))]
pub mod fork;
#[cfg(not(loom))]
pub mod mapping;
#[cfg(not(loom))]
pub mod peer;
#[cfg(not(loom))]
pub mod wake;
