//! The two sockets: those that systemd holds for the daemon, or its own.
//!
//! A socket that systemd holds stays open while the daemon is restarted: who connects meanwhile waits, and is refused by
//! nobody.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use ferrio_shm::peer::{self, InheritedListener};
use tokio::net::UnixListener;

use crate::config::Config;
use crate::runtime_dir::RuntimeDir;
use crate::start::StartError;

/// Sockets that listen.
#[derive(Debug)]
pub struct Listeners {
    /// Control socket.
    pub control: UnixListener,
    /// Attach socket.
    pub attach: OwnedFd,
    /// Files of those that are not systemd's: to be removed at the end.
    pub own: Vec<PathBuf>,
}

/// Takes the sockets that systemd passes, and makes those that it does not.
pub fn listen(config: &Config, runtime_dir: &RuntimeDir) -> Result<Listeners, StartError> {
    let (control, attach) = (config.control_socket(), config.attach_socket());
    let (mut passed_control, mut passed_attach, mut own) = (None, None, Vec::new());
    for passed in peer::inherited_listeners().map_err(StartError::Inherited)? {
        let is = |path: &Path| passed.path.as_deref().is_some_and(|other| same_file(other, path));
        let place = match passed.seqpacket {
            false if is(&control) => &mut passed_control,
            true if is(&attach) => &mut passed_attach,
            _ => return Err(stranger(&passed, &control, &attach)),
        };
        tracing::info!("{}: systemd listens", passed.path.unwrap_or_default().display());
        // However many its unit asks for: who waits in line waits for all before it.
        peer::set_backlog(&passed.socket).map_err(StartError::Inherited)?;
        *place = Some(passed.socket);
    }
    let control = match passed_control {
        Some(socket) => UnixListener::from_std(StdListener::from(socket))
            .map_err(|source| listen_error(&control, source))?,
        None => {
            let listener = listen_control(config, runtime_dir, &control)?;
            own.push(control);
            listener
        }
    };
    let attach = match passed_attach {
        Some(socket) => socket,
        None => {
            let socket = listen_attach(config, runtime_dir, &attach)?;
            own.push(attach);
            socket
        }
    };
    Ok(Listeners { control, attach, own })
}

fn listen_control(
    config: &Config,
    runtime_dir: &RuntimeDir,
    path: &Path,
) -> Result<UnixListener, StartError> {
    runtime_dir.remove_stale_socket(path)?;
    let listener = UnixListener::bind(path).map_err(|source| listen_error(path, source))?;
    peer::set_backlog(&listener).map_err(|source| listen_error(path, source))?;
    runtime_dir.permit(path, config.daemon.socket_mode, config.daemon.group)?;
    Ok(listener)
}

fn listen_attach(config: &Config, runtime_dir: &RuntimeDir, path: &Path) -> Result<OwnedFd, StartError> {
    runtime_dir.remove_stale_socket(path)?;
    let mode = config.daemon.socket_mode;
    let listener = peer::listen(path, mode).map_err(|source| listen_error(path, source))?;
    runtime_dir.permit(path, mode, config.daemon.group)?;
    Ok(listener)
}

/// `/var/run` and `/run` are one directory.
fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

fn stranger(passed: &InheritedListener, control: &Path, attach: &Path) -> StartError {
    let path =
        passed.path.as_ref().map_or("an abstract or no address".to_owned(), |p| p.display().to_string());
    let kind = if passed.seqpacket { "a SEQPACKET" } else { "a stream" };
    StartError::Inherited(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{kind} socket at {path} was passed, which is neither of the daemon's: the socket unit must have \
             ListenStream={} and ListenSequentialPacket={} (see daemon.runtime_dir)",
            control.display(),
            attach.display()
        ),
    ))
}

fn listen_error(path: &Path, source: io::Error) -> StartError {
    StartError::Listen { path: path.display().to_string(), source }
}
