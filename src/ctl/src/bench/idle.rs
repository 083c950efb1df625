//! Sessions that do nothing.

use std::io::stdin;
use std::time::Duration;

use ferrio_client::{Access, Error, Session};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::message::{Failure, IdleOrder};

/// Opens the sessions, calls `ready`, and closes them when the coordinator closes the standard input.
pub fn run(order: &IdleOrder, ready: impl FnOnce()) -> Result<(), Failure> {
    let IdleOrder { socket, volume, sessions } = order;
    // Each session takes some descriptors.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(Failure::of("cannot raise the number of descriptors"))?;
    let open = |index: u32| {
        let builder = Session::builder(socket).name("bench-idle").volume(volume, Access::ReadOnly);
        let failed = |error: Error| Failure(format!("idle session {} of {sessions}: {error}", index + 1));
        // Patience would take a thread for each of them.
        builder.arena_bytes(4096).patience(Duration::ZERO).open().map_err(failed)
    };
    let sessions: Vec<Session> = (0..*sessions).map(open).collect::<Result<_, _>>()?;
    ready();
    // Nothing is ever said to it.
    let ended = stdin().read_line(&mut String::new());
    ended.map_err(Failure::of("cannot wait for the end of the round"))?;
    drop(sessions);
    Ok(())
}
