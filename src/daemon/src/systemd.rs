//! What systemd is told. Without systemd all of this does nothing.

use sd_notify::NotifyState;

use crate::control::Daemon;

/// The sockets answer.
pub fn ready(daemon: &Daemon) {
    let (engines, volumes) = (daemon.engines.len(), daemon.volumes.list().len());
    let status = format!("serving {volumes} volumes on {engines} engines");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Requests in flight are being answered.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells systemd; what it does not hear is logged.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd was not notified: {error}");
    }
}
