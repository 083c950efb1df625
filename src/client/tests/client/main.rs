//! The client against the daemon's ends of real rings: a real attach, a real memfd, real doorbells, over gRPC.
//! What the daemon's side does is written out by each test, so that it can also do what a real daemon never does.

mod allocations;
mod asynchronous;
mod end;
mod fork;
mod open;
mod operations;
mod peer;
mod polling;
mod reattach;
mod refused;
mod regions;
mod sleeping;
