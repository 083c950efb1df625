//! The ferrio daemon: control plane, attach socket and the process around the engines.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | reads and checks the configuration |
//! | [`start`], [`listen`] | directory, engines, volumes, sockets |
//! | [`daemon`] | serve, drain, stop |
//! | [`control`] | the gRPC services, one file per noun |
//! | [`attach`], [`lease`] | the attach socket: a token comes in, memory goes out; the connection stays as the lease |
//! | [`sessions`] | the life of a session: limits, memory, engines, end |
//! | [`uid_limit`], [`dispose`] | what one user may take of the sockets, and closing what it sent |
//! | [`volumes`], [`access`], [`acl`] | who may use which volume beside whom |
//! | [`scheduling`] | who gets how much: weights, groups, limits, latency goals |
//! | [`faults`] | fault rules as configuration and API write them |
//! | [`demo`] | `ferriod demo` |

#![forbid(unsafe_code)]

pub mod access;
pub mod acl;
pub mod attach;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod dispose;
pub mod faults;
pub mod lease;
pub mod listen;
pub mod pace;
pub mod runtime_dir;
pub mod scheduling;
pub mod sessions;
pub mod start;
pub mod uid_limit;
pub mod volumes;

mod cli;
mod dev;
mod log;
mod systemd;
mod watchdog;

pub use cli::main;

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors print their source themselves.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
