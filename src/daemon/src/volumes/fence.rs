//! The fence: a volume is not used before its lock is ours.
//!
//! A process that is killed is gone at once, while writes that it gave to the kernel land seconds later. Whoever wrote to the
//! same place meanwhile would be overwritten by them. But I/O in flight pins the open file description, and with it the lock
//! ([`ferrio_driver::Target`]): it comes free when the last of them has landed. Until then a volume is *fenced*: its engine
//! takes requests for it, and they wait; other volumes are served.
//!
//! A lock that a running process has is another matter: it may have it for ever, so that is an error, unless sessions of a
//! daemon before us wait for the volume.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_driver::{Holder, OpenOptions, Outline, Target, TargetError};
use ferrio_engine::{Engine, Scope, kill_point};

use super::error::VolumeError;
use super::{Fencing, Reservation, Served, Volume, Volumes, change, open};
use crate::config::VolumeSection;
use crate::dispose;

/// Pauses between tries grow from this.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// To this.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How often the log says that it still waits.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// A block device can be claimed a moment longer than it is locked, and a process that was killed this moment can look as if
/// it ran.
const ENDING_GRACE: Duration = Duration::from_secs(1);

/// What a path turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// Open, and its lock is ours.
    Ours(Target),
    /// Its lock is not, and this is who has it, for people.
    Fenced(Outline, String),
}

/// Opens what a volume is made of. `needed`: sessions wait for it, whoever has its lock. May block for as long as the file
/// system likes.
pub fn open(section: &VolumeSection, needed: bool) -> Result<Opened, TargetError> {
    let limit = Instant::now() + ENDING_GRACE;
    let error = loop {
        match open::open(section) {
            Ok(target) => return Ok(Opened::Ours(target)),
            Err(error) if !needed && is_in_use(&error) && Instant::now() < limit => {
                std::thread::sleep(PAUSE_MIN);
            }
            Err(error) => break error,
        }
    };
    let (Some(by), Some(path)) = (holder(&error, needed), section.source.path()) else { return Err(error) };
    let options = OpenOptions { read_only: section.read_only, ..OpenOptions::default() };
    Ok(Opened::Fenced(Target::outline(&path.value, &options)?, by))
}

/// By somebody who may have it for ever.
fn is_in_use(error: &TargetError) -> bool {
    match error {
        TargetError::Claimed { .. } => true,
        TargetError::Held { holder, .. } => holder.as_ref().is_some_and(Holder::lives),
        _ => false,
    }
}

/// Who has a lock that will come free, or that is waited for all the same.
fn holder(error: &TargetError, needed: bool) -> Option<String> {
    match error {
        TargetError::Held { holder: Some(holder), .. } if holder.lives() => {
            needed.then(|| format!("{holder}, which runs: stop it"))
        }
        TargetError::Held { holder: Some(holder), .. } => {
            Some(format!("{holder}, which has ended while its I/O was in flight"))
        }
        TargetError::Held { holder: None, .. } => {
            Some("a process that /proc/locks does not show, so it has ended or runs elsewhere".to_owned())
        }
        TargetError::Claimed { .. } => {
            needed.then(|| "a mount or another driver: unmount it, or stop what uses it".to_owned())
        }
        _ => None,
    }
}

/// Takes a fenced volume in, and goes on to take its lock. Must be called within a tokio runtime.
pub fn begin(
    engine: &Engine,
    reservation: Reservation,
    outline: Outline,
    by: String,
) -> Result<Volume, VolumeError> {
    let name = reservation.name();
    let limit = reservation.limit();
    let added = engine
        .add_volume_fenced(outline)
        .and_then(|id| engine.set_limit(Scope::Volume(id), limit).map(|()| id));
    let id = added.map_err(|source| VolumeError::Engine { name: name.clone(), source })?;
    tracing::warn!(
        "volume {name}: fenced: its lock is held by {by}; its requests wait until the lock is free, other volumes are served"
    );
    let fencing = Fencing { id, outline, by, since: Instant::now() };
    let (volumes, volume) = reservation
        .fence(fencing)
        .ok_or_else(|| VolumeError::System { name, what: "it is gone".to_owned() })?;
    tokio::spawn(end(engine.clone(), volumes, volume.clone()));
    Ok(volume)
}

/// Tries until the lock is ours, or the volume is removed.
async fn end(engine: Engine, volumes: Arc<Volumes>, volume: Volume) {
    kill_point!("fence-waiting");
    let Some(target) = take_lock(&volumes, &volume).await else { return };
    let target = Arc::new(target);
    kill_point!("fence-taken");
    // Nothing is awaited from here on: nobody removes it in between.
    let (Some(Fencing { id, since, .. }), name) = (volumes.fencing(volume.key), volume.name()) else {
        return dispose::later(target);
    };
    match engine.unfence_volume(id, Arc::clone(&target), volume.section.faults.clone()) {
        Ok(()) => {
            tracing::info!("volume {name}: its lock is ours after {:.1} s", since.elapsed().as_secs_f64());
            if let Some(volume) = volumes.unfence(volume.key, Served { target, id }) {
                open::log(&volume);
            }
        }
        Err(source) => {
            dispose::later(target);
            let error = VolumeError::Engine { name: name.to_owned(), source };
            tracing::error!("{error}; it is taken out of service: remedy that, then start ferriod again");
            if let Ok(removal) = volumes.start_removal(name) {
                change::tell_removal(&engine, &volumes, name, &removal);
            }
        }
    }
}

async fn take_lock(volumes: &Volumes, volume: &Volume) -> Option<Target> {
    let mut pause = PAUSE_MIN;
    let mut logged = Instant::now();
    loop {
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
        let Fencing { by, since, .. } = volumes.fencing(volume.key)?;
        let section = Arc::clone(&volume.section);
        let error = match tokio::task::spawn_blocking(move || open::open(&section)).await {
            Ok(Ok(target)) => return Some(target),
            Ok(Err(error)) => error,
            // The runtime ends, and we with it.
            Err(_) => return None,
        };
        let now = holder(&error, true).unwrap_or_else(|| crate::chain(&error));
        if now != by || logged.elapsed() >= LOG_INTERVAL {
            logged = Instant::now();
            let (name, waited) = (volume.name(), since.elapsed().as_secs());
            tracing::warn!("volume {name}: fenced for {waited} s: its lock is held by {now}");
            volumes.set_fenced_by(volume.key, now);
        }
    }
}
