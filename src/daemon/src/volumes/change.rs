//! Changes of volumes while sessions use them: created, resized, removed.
//!
//! Nothing here waits on the control thread for a file system or a device: what may block runs on a thread of its own, and
//! who asked for it waits for a bounded time.

use std::sync::Arc;
use std::time::Duration;

use ferrio_driver::{FaultPlan, FaultStatus, Target, TargetError, TargetKind};
use ferrio_engine::{Engine, EngineError, Limit, Scope, VolumeId};
use tokio::sync::oneshot;

use super::error::VolumeError;
use super::fence::{self, Opened};
use super::{Removal, Reservation, Served, Volume, Volumes, open};
use crate::config::{VolumeSection, keys, size};
use crate::dispose;
use crate::sessions::Sessions;

/// How long a path may take to be opened, and a volume to be resized, before who asked for it is told.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// Who changes volumes. Clones are one.
#[derive(Clone)]
pub struct Changes {
    volumes: Arc<Volumes>,
    engines: Vec<Engine>,
    sessions: Arc<Sessions>,
}

impl Changes {
    /// Changes these volumes of these engines, and tells these sessions.
    pub fn new(volumes: Arc<Volumes>, engines: Vec<Engine>, sessions: Arc<Sessions>) -> Self {
        Self { volumes, engines, sessions }
    }

    /// Names of the engines, the first is the default.
    pub fn engine_names(&self) -> Vec<String> {
        self.engines.iter().map(|engine| engine.info().name.clone()).collect()
    }

    /// Opens a volume and serves it.
    pub async fn create(&self, section: VolumeSection) -> Result<Volume, VolumeError> {
        let name = section.name.value.clone();
        let names = self.engine_names();
        let found = names.iter().position(|engine| *engine == section.engine.value);
        let engine = found.ok_or_else(|| VolumeError::NoEngine {
            name: section.engine.value.clone(),
            known: names.join(", "),
        })?;
        let reservation = self.volumes.reserve(section.clone(), engine, false)?;
        let (answer, mut answered) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // When nobody waits any more it is closed here, and the name is free.
            let _ = answer.send((fence::open(&section, false), reservation));
        });
        match tokio::time::timeout(ANSWER_LIMIT, &mut answered).await {
            Ok(Ok((opened, reservation))) => {
                let opened = opened.map_err(|source| VolumeError::Target { name, what: "opened", source })?;
                take_in(&self.engines[engine], reservation, opened)
            }
            Ok(Err(_)) => Err(VolumeError::System { name, what: "the thread that opens it died".to_owned() }),
            Err(_elapsed) => {
                answered.close();
                // It may have been answered just now.
                dispose::later(answered.try_recv().ok());
                Err(VolumeError::Slow {
                    name,
                    what: "opening its path".to_owned(),
                    limit: ANSWER_LIMIT,
                    then: "does the disk or file server answer? The name stays taken until the kernel gives up, the \
                           volume is not created",
                })
            }
        }
    }

    /// Takes a volume out of service and waits for its end, for `wait` at most: whether it is gone, and how many of its
    /// requests are in flight.
    pub async fn remove(&self, name: &str, wait: Duration) -> Result<(bool, u32), VolumeError> {
        let mut removal = self.volumes.start_removal(name)?;
        let engine = &self.engines[removal.engine];
        if removal.first {
            tracing::info!("volume {name}: is being removed");
            tell_removal(engine, &self.volumes, name, &removal);
        }
        // Ends when the sender is dropped, with the volume.
        let removed = tokio::time::timeout(wait, removal.gone.changed()).await.is_ok();
        // An engine that knows it no longer has nothing of it.
        let in_flight = if removed { 0 } else { engine.requests_of(removal.id).unwrap_or(0) };
        Ok((removed, in_flight))
    }

    /// Changes the size of a volume; 0: looks at its device again.
    pub async fn resize(&self, name: &str, bytes: u64) -> Result<Volume, VolumeError> {
        let (volume, served, resizing) = self.volumes.start_resize(name)?;
        check_size(&volume, &served, bytes)?;
        let (changes, key) = (self.clone(), volume.key);
        let (answer, answered) = oneshot::channel();
        // By itself: it must be brought to its end, whoever still waits for it.
        tokio::spawn(async move {
            let outcome = changes.resize_to(volume, served, bytes).await;
            drop(resizing);
            if let Err(Err(error)) = answer.send(outcome) {
                tracing::error!("{error}");
            }
        });
        let slow = || VolumeError::Slow {
            name: name.to_owned(),
            what: "the change of its size".to_owned(),
            limit: ANSWER_LIMIT,
            then: "does its device answer? It goes on by itself, `ferrioctl volume list` shows the size that holds now",
        };
        match tokio::time::timeout(ANSWER_LIMIT, answered).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(slow()))?,
            Err(_elapsed) => return Err(slow()),
        }
        let gone = || VolumeError::NotServing { name: name.to_owned(), stage: "being removed".to_owned() };
        self.volumes.get(key).ok_or_else(gone)
    }

    /// Sets the fault rules of a volume, in place of those it had. Also of one that is being removed: what is stuck on it is
    /// let go by this.
    pub fn set_faults(&self, name: &str, plan: FaultPlan) -> Result<(), VolumeError> {
        let (volume, id) = self.volumes.open(name)?;
        let rules = plan.rules.len();
        self.engines[volume.engine].set_faults(id, plan).map_err(|error| faults_error(name, error))?;
        self.volumes.set_fault_rules(volume.key, rules);
        tracing::info!("volume {name}: {rules} fault rules");
        Ok(())
    }

    /// The fault rules of a volume, and what they did; `None`: it has none.
    pub fn faults(&self, name: &str) -> Result<Option<FaultStatus>, VolumeError> {
        let (volume, id) = self.volumes.open(name)?;
        self.engines[volume.engine].faults(id).map_err(|error| faults_error(name, error))
    }

    /// Sets, changes or, by [`Limit::default`], takes away the limit of a volume.
    pub fn set_limit(&self, name: &str, limit: Limit) -> Result<(), VolumeError> {
        let (volume, id) = self.volumes.taking(name)?;
        let set = self.engines[volume.engine].set_limit(Scope::Volume(id), limit);
        set.map_err(|source| VolumeError::Engine { name: name.to_owned(), source })?;
        self.volumes.set_limit(volume.key, limit);
        Ok(())
    }

    async fn resize_to(&self, volume: Volume, served: Served, bytes: u64) -> Result<(), VolumeError> {
        let (key, before, name) = (volume.key, volume.size_bytes, volume.name().to_owned());
        let id = served.id;
        let target = served.target;
        let shrinks = bytes != 0 && bytes < before;
        if shrinks {
            // Nothing may be in flight beyond the end when it is cut.
            self.tell(&volume, id, bytes).await;
            if !self.volumes.get(key).is_some_and(|volume| volume.serves()) {
                return Err(VolumeError::NotServing { name, stage: "being removed".to_owned() });
            }
        }
        match blocking(target, move |target| resize_target(target, bytes)).await {
            Ok(now) if !shrinks => self.tell(&volume, id, now).await,
            Ok(_) => {}
            Err(error) => {
                if shrinks {
                    self.tell(&volume, id, before).await;
                }
                return Err(match error {
                    Some(source) => VolumeError::Target { name, what: "resized", source },
                    None => VolumeError::System { name, what: "the thread that resizes it died".to_owned() },
                });
            }
        }
        let now = self.volumes.get(key).map_or(bytes, |volume| volume.size_bytes);
        tracing::info!("volume {name}: {} instead of {}", size::format(now), size::format(before));
        Ok(())
    }

    /// Engine and sessions get to know a size; ends when nothing is in flight beyond it.
    async fn tell(&self, volume: &Volume, id: VolumeId, bytes: u64) {
        let (done, ended) = oneshot::channel();
        self.engines[volume.engine].resize_volume(id, bytes, Box::new(move || done.send(()).unwrap_or(())));
        self.volumes.set_size(volume.key, bytes);
        self.sessions.resized(volume.key, bytes);
        // An engine that has stopped does not answer, and has nothing in flight.
        let _ = ended.await;
    }
}

/// Has the engine of a volume that is being removed let go of it, and forgets it then.
pub fn tell_removal(engine: &Engine, volumes: &Arc<Volumes>, name: &str, removal: &Removal) {
    let (done, ended) = oneshot::channel();
    engine.remove_volume(removal.id, Box::new(move || done.send(()).unwrap_or(())));
    let (volumes, name, key) = (Arc::clone(volumes), name.to_owned(), removal.key);
    tokio::spawn(async move {
        // An engine that has stopped does not answer, and has nothing of it.
        let _ = ended.await;
        volumes.forget(key);
        tracing::info!("volume {name}: removed");
    });
}

/// Serves a volume, at once or when its lock is ours. Must be called within a tokio runtime.
pub fn take_in(engine: &Engine, reservation: Reservation, opened: Opened) -> Result<Volume, VolumeError> {
    match opened {
        Opened::Ours(target) => serve(engine, reservation, Arc::new(target)),
        Opened::Fenced(outline, by) => fence::begin(engine, reservation, outline, by),
    }
}

/// Brings an open volume into its engine, with the faults and the limit that its section asks for.
fn serve(engine: &Engine, reservation: Reservation, target: Arc<Target>) -> Result<Volume, VolumeError> {
    let name = reservation.name();
    let (faults, limit) = (reservation.faults(), reservation.limit());
    let added = engine.add_volume(Arc::clone(&target)).and_then(|id| {
        // Before anyone can use it.
        let set = if faults.rules.is_empty() { Ok(()) } else { engine.set_faults(id, faults) };
        set.and_then(|()| engine.set_limit(Scope::Volume(id), limit)).map(|()| id)
    });
    match added {
        Ok(id) => {
            let served = reservation.serve(Served { target, id });
            let volume = served.ok_or_else(|| VolumeError::System { name, what: "it is gone".to_owned() })?;
            open::log(&volume);
            Ok(volume)
        }
        Err(source) => {
            dispose::later(target);
            Err(VolumeError::Engine { name, source })
        }
    }
}

fn faults_error(name: &str, error: EngineError) -> VolumeError {
    let name = name.to_owned();
    match error {
        EngineError::Faults { source, .. } => VolumeError::Faults { name, source },
        source => VolumeError::Engine { name, source },
    }
}

/// Runs `work` where it may block, and lets go of the target there. `Err(None)`: it panicked.
async fn blocking<T: Send + 'static>(
    target: Arc<Target>,
    work: impl FnOnce(&Target) -> Result<T, TargetError> + Send + 'static,
) -> Result<T, Option<TargetError>> {
    let done = tokio::task::spawn_blocking(move || work(&target)).await;
    done.map_err(|_| None)?.map_err(Some)
}

fn resize_target(target: &Target, bytes: u64) -> Result<u64, TargetError> {
    if bytes == 0 {
        return target.refresh_size();
    }
    target.resize(bytes).map(|()| bytes)
}

fn check_size(volume: &Volume, served: &Served, bytes: u64) -> Result<(), VolumeError> {
    let invalid = |what: String, fix: &str| {
        Err(VolumeError::Invalid { field: "size_bytes", value: bytes.to_string(), what, fix: fix.to_owned() })
    };
    if served.target.kind() == TargetKind::Block {
        return if bytes == 0 {
            Ok(())
        } else {
            invalid(
                "a block device has a size of its own".to_owned(),
                "change the device, then give 0 (leave --size out) to take the size that it has",
            )
        };
    }
    if volume.section.read_only {
        return Err(VolumeError::ReadOnly(volume.name().to_owned()));
    }
    let keys::Size { min, max, multiple_of, .. } = keys::VOLUME_SIZE;
    if bytes < min || bytes > max || !bytes.is_multiple_of(multiple_of) {
        let what =
            format!("{} to {} allowed, a multiple of {multiple_of}", size::format(min), size::format(max));
        return invalid(what, "choose a value within the limit");
    }
    Ok(())
}
