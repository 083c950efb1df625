//! The volumes: which there are, where each stands, and which session uses which.
//!
//! ```text
//!  create            opened               remove                 nothing in flight
//! --------> Opening --------> Serving ---------------> Removing -----------------> gone, its name is free
//!              |  |              ^                        ^
//!              |  | is locked    | the lock is ours       | remove
//!              |  +----------> Fencing -------------------+
//!              | cannot be opened
//!              v
//!          gone, its name is free
//! ```
//!
//! [`fence`] says why a volume is fenced.
//!
//! This is bookkeeping alone: nothing here waits, or touches a file. [`change`] does both.

pub mod change;
pub mod error;
pub mod fence;
pub mod open;
pub mod request;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ferrio_api::v1;
use ferrio_driver::{FaultPlan, Outline, Support, Target};
use ferrio_engine::{Limit, VolumeId};
use tokio::sync::watch;

use crate::access::Access;
use crate::config::VolumeSection;
use crate::dispose;
use error::VolumeError;

/// Volumes that may be in state opening at once: each has a thread that may hang.
const OPENING_MAX: usize = 8;

/// Names a volume for as long as the daemon lives: unlike its name it is not used again, nor is it an engine's id, which
/// is used again as soon as the volume is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeKey(u64);

impl VolumeKey {
    /// That of no volume.
    pub const NONE: Self = Self(0);
}

/// A volume as it stands.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its key.
    pub key: VolumeKey,
    /// What it was made from.
    pub section: Arc<VolumeSection>,
    /// It stands in the configuration.
    pub configured: bool,
    /// Index of its home engine.
    pub engine: usize,
    /// How far it is.
    pub stage: Stage,
    /// Size as sessions see it. Bytes; 0 while it is being opened.
    pub size_bytes: u64,
    /// Who uses it, by session and grant.
    pub holders: Vec<Holder>,
    /// Fault rules set.
    pub fault_rules: usize,
    /// What all its sessions together may do per second.
    pub limit: Limit,
    resizing: bool,
}

/// How far a volume is.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Its path is being opened.
    Opening,
    /// Takes requests, and they wait: its lock is not ours yet.
    Fencing(Fencing),
    /// Takes requests.
    Serving(Served),
    /// Takes none; its last requests are in flight.
    Removing {
        /// Its id in the engine.
        id: VolumeId,
        /// What it was made of, unless it was fenced.
        served: Option<Served>,
    },
}

/// A volume whose lock is not ours yet.
#[derive(Debug, Clone)]
pub struct Fencing {
    /// Its id in the engine.
    pub id: VolumeId,
    /// What is known of it.
    pub outline: Outline,
    /// Who has the lock, for people.
    pub by: String,
    /// Since when it waits.
    pub since: Instant,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "being opened",
            Self::Fencing(_) => "fenced",
            Self::Serving(_) => "in service",
            Self::Removing { .. } => "being removed",
        })
    }
}

/// An open volume in its engine.
#[derive(Debug, Clone)]
pub struct Served {
    /// The open file or device.
    pub target: Arc<Target>,
    /// Its id in the engine.
    pub id: VolumeId,
}

impl Served {
    /// What discard does here.
    pub fn discard(&self) -> v1::Support {
        to_wire(self.target.capabilities().discard)
    }

    /// What write-zeroes does here.
    pub fn write_zeroes(&self) -> v1::Support {
        to_wire(self.target.capabilities().write_zeroes)
    }
}

fn to_wire(support: Support) -> v1::Support {
    let (level, how) = match support {
        Support::Native(how) => (v1::SupportLevel::Native, how),
        Support::Emulated(how) => (v1::SupportLevel::Emulated, how),
        Support::Unsupported(how) => (v1::SupportLevel::Unsupported, how),
    };
    v1::Support { level: level.into(), how: how.to_owned() }
}

impl Volume {
    /// Name.
    pub fn name(&self) -> &str {
        &self.section.name.value
    }

    /// The open volume, if it is open.
    pub fn served(&self) -> Option<&Served> {
        match &self.stage {
            Stage::Opening | Stage::Fencing(_) => None,
            Stage::Serving(served) => Some(served),
            Stage::Removing { served, .. } => served.as_ref(),
        }
    }

    /// Its id in its engine, if that has it, if only for its last requests.
    pub fn id(&self) -> Option<VolumeId> {
        match &self.stage {
            Stage::Opening => None,
            Stage::Fencing(fencing) => Some(fencing.id),
            Stage::Serving(served) => Some(served.id),
            Stage::Removing { id, .. } => Some(*id),
        }
    }

    fn serve(&mut self, served: Served) {
        self.size_bytes = served.target.size_bytes();
        self.fault_rules = self.section.faults.rules.len();
        self.stage = Stage::Serving(served);
    }

    /// Why it cannot be used or changed now.
    pub fn not_serving(&self) -> VolumeError {
        let name = self.name().to_owned();
        match &self.stage {
            Stage::Fencing(fencing) => VolumeError::Fencing { name, by: fencing.by.clone() },
            stage => VolumeError::NotServing { name, stage: stage.to_string() },
        }
    }

    /// It takes requests.
    pub fn serves(&self) -> bool {
        matches!(self.stage, Stage::Serving(_))
    }
}

/// A session that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Session.
    pub session_id: u64,
    /// Name of its client.
    pub client_name: String,
    /// Process that opened it.
    pub pid: u32,
    /// User of that process.
    pub uid: u32,
    /// Access it holds.
    pub access: Access,
}

/// All volumes: those of the configuration in its order, then those created since.
#[derive(Debug, Default)]
pub struct Volumes {
    table: Mutex<Table>,
    /// A fence has ended.
    unfenced: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Table {
    last_key: u64,
    by_key: BTreeMap<VolumeKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    volume: Volume,
    /// Closed when the volume is gone.
    gone: watch::Sender<()>,
}

/// A name that is taken for a volume that does not serve yet; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    volumes: Arc<Volumes>,
    /// `None` once the volume serves.
    key: Option<VolumeKey>,
}

/// A removal that was asked for. It does not hold the target, which is to be closed.
#[derive(Debug)]
pub struct Removal {
    /// The volume.
    pub key: VolumeKey,
    /// Index of its home engine.
    pub engine: usize,
    /// Its id there.
    pub id: VolumeId,
    /// It was in service until now: the caller tells the engine.
    pub first: bool,
    /// Closed when the volume is gone, and its file closed.
    pub gone: watch::Receiver<()>,
}

/// The one change of size that a volume undergoes; over on drop.
#[derive(Debug)]
pub struct Resizing {
    volumes: Arc<Volumes>,
    key: VolumeKey,
}

/// The volumes a session holds; given back on drop.
#[derive(Debug)]
pub struct Hold {
    volumes: Arc<Volumes>,
    session_id: u64,
}

/// Why a volume could not be taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// Index of the volume in what was wanted.
    pub wanted: usize,
    /// Who has it.
    pub by: Holder,
}

impl Volumes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn list(&self) -> Vec<Volume> {
        self.lock().by_key.values().map(|entry| entry.volume.clone()).collect()
    }

    /// One of them.
    pub fn get(&self, key: VolumeKey) -> Option<Volume> {
        self.lock().by_key.get(&key).map(|entry| entry.volume.clone())
    }

    /// The volume of a name, which takes requests.
    pub fn serving(&self, name: &str) -> Result<Volume, VolumeError> {
        let table = self.lock();
        let volume = &table.find(name)?.volume;
        match volume.stage {
            Stage::Serving(_) => Ok(volume.clone()),
            _ => Err(volume.not_serving()),
        }
    }

    /// The volume of a name, which is in its engine, if only for its last requests.
    pub fn open(&self, name: &str) -> Result<(Volume, VolumeId), VolumeError> {
        let table = self.lock();
        let volume = &table.find(name)?.volume;
        match volume.served() {
            Some(served) => Ok((volume.clone(), served.id)),
            None => Err(volume.not_serving()),
        }
    }

    /// The volume of a name, which takes requests, if only to let them wait at its fence.
    pub fn taking(&self, name: &str) -> Result<(Volume, VolumeId), VolumeError> {
        let table = self.lock();
        let volume = &table.find(name)?.volume;
        match &volume.stage {
            Stage::Fencing(Fencing { id, .. }) | Stage::Serving(Served { id, .. }) => {
                Ok((volume.clone(), *id))
            }
            Stage::Opening | Stage::Removing { .. } => Err(volume.not_serving()),
        }
    }

    /// The limit of the section that a volume is opened from.
    fn limit_of(&self, key: Option<VolumeKey>) -> Limit {
        let table = self.lock();
        key.and_then(|key| table.by_key.get(&key)).map_or_else(Limit::default, |entry| entry.volume.limit)
    }

    /// Takes a name for a volume that is about to be opened.
    pub fn reserve(
        self: &Arc<Self>,
        section: VolumeSection,
        engine: usize,
        configured: bool,
    ) -> Result<Reservation, VolumeError> {
        let mut table = self.lock();
        let name = &section.name.value;
        if let Ok(Entry { volume, .. }) = table.find(name) {
            return Err(VolumeError::NameTaken { name: name.clone(), stage: volume.stage.to_string() });
        }
        if let Some(path) = section.source.path() {
            let same = |entry: &&Entry| {
                entry.volume.section.source.path().is_some_and(|other| other.value == path.value)
            };
            if let Some(Entry { volume, .. }) = table.by_key.values().find(same) {
                return Err(VolumeError::PathTaken {
                    path: path.value.clone(),
                    by: volume.name().to_owned(),
                });
            }
        }
        let opening =
            table.by_key.values().filter(|entry| matches!(entry.volume.stage, Stage::Opening)).count();
        if opening >= OPENING_MAX && !configured {
            return Err(VolumeError::TooManyOpening(OPENING_MAX));
        }
        table.last_key += 1;
        let key = VolumeKey(table.last_key);
        let volume = Volume {
            key,
            limit: section.limit,
            section: Arc::new(section),
            configured,
            engine,
            stage: Stage::Opening,
            size_bytes: 0,
            holders: Vec::new(),
            fault_rules: 0,
            resizing: false,
        };
        table.by_key.insert(key, Entry { volume, gone: watch::channel(()).0 });
        Ok(Reservation { volumes: Arc::clone(self), key: Some(key) })
    }

    /// Takes a volume out of service, for good. Whoever is the first tells its engine, and calls [`Volumes::forget`].
    pub fn start_removal(&self, name: &str) -> Result<Removal, VolumeError> {
        let mut table = self.lock();
        let key = table.find(name)?.volume.key;
        let Some(Entry { volume, gone }) = table.by_key.get_mut(&key) else { unreachable!("found above") };
        let Some(id) = volume.id() else { return Err(volume.not_serving()) };
        let first = !matches!(volume.stage, Stage::Removing { .. });
        volume.stage = Stage::Removing { id, served: volume.served().cloned() };
        Ok(Removal { key, engine: volume.engine, id, first, gone: gone.subscribe() })
    }

    /// Nothing of it is left in its engine.
    pub fn forget(&self, key: VolumeKey) {
        let entry = self.lock().by_key.remove(&key);
        if let Some(Entry { volume, gone }) = entry {
            // Closing a file may block. Those who wait for its end are told after that.
            dispose::later((volume, gone));
        }
    }

    /// Begins to change the size of a volume.
    pub fn start_resize(self: &Arc<Self>, name: &str) -> Result<(Volume, Served, Resizing), VolumeError> {
        let mut table = self.lock();
        let key = table.find(name)?.volume.key;
        let Some(Entry { volume, .. }) = table.by_key.get_mut(&key) else { unreachable!("found above") };
        let Stage::Serving(served) = volume.stage.clone() else { return Err(volume.not_serving()) };
        if volume.resizing {
            let (name, stage) = (name.to_owned(), "being resized".to_owned());
            return Err(VolumeError::NotServing { name, stage });
        }
        volume.resizing = true;
        Ok((volume.clone(), served, Resizing { volumes: Arc::clone(self), key }))
    }

    /// How it is fenced, while it is.
    pub fn fencing(&self, key: VolumeKey) -> Option<Fencing> {
        match &self.lock().by_key.get(&key)?.volume.stage {
            Stage::Fencing(fencing) => Some(fencing.clone()),
            _ => None,
        }
    }

    /// Somebody else has the lock of a fenced volume than was thought.
    pub fn set_fenced_by(&self, key: VolumeKey, holder: String) {
        if let Some(entry) = self.lock().by_key.get_mut(&key)
            && let Stage::Fencing(fencing) = &mut entry.volume.stage
        {
            fencing.by = holder;
        }
    }

    /// The lock of a fenced volume is ours, and its engine has it.
    pub fn unfence(&self, key: VolumeKey, served: Served) -> Option<Volume> {
        let mut table = self.lock();
        let volume = &mut table.by_key.get_mut(&key)?.volume;
        volume.serve(served);
        let volume = volume.clone();
        drop(table);
        self.unfenced.send_replace(());
        Some(volume)
    }

    /// Changes when the lock of a fenced volume was taken: it may have another size than it seemed to have.
    pub fn unfenced(&self) -> watch::Receiver<()> {
        self.unfenced.subscribe()
    }

    /// Its size is another one from now on.
    pub fn set_size(&self, key: VolumeKey, bytes: u64) {
        if let Some(entry) = self.lock().by_key.get_mut(&key) {
            entry.volume.size_bytes = bytes;
        }
    }

    /// It has so many fault rules from now on.
    pub fn set_fault_rules(&self, key: VolumeKey, rules: usize) {
        if let Some(entry) = self.lock().by_key.get_mut(&key) {
            entry.volume.fault_rules = rules;
        }
    }

    /// Its limit is another one from now on.
    pub fn set_limit(&self, key: VolumeKey, limit: Limit) {
        if let Some(entry) = self.lock().by_key.get_mut(&key) {
            entry.volume.limit = limit;
        }
    }

    /// Takes all of `wanted` for one session, or none.
    pub fn take(
        self: &Arc<Self>,
        session_id: u64,
        wanted: Vec<(VolumeKey, Holder)>,
    ) -> Result<Hold, Box<Held>> {
        let mut table = self.lock();
        for (index, (key, holder)) in wanted.iter().enumerate() {
            let holders = table.by_key.get(key).map_or(&[] as &[_], |entry| &entry.volume.holders);
            if let Some(other) = holders.iter().find(|other| !holder.access.lives_beside(other.access)) {
                return Err(Box::new(Held { wanted: index, by: other.clone() }));
            }
        }
        for (key, holder) in wanted {
            if let Some(entry) = table.by_key.get_mut(&key) {
                entry.volume.holders.push(holder);
            }
        }
        Ok(Hold { volumes: Arc::clone(self), session_id })
    }
}

impl Table {
    fn find(&self, name: &str) -> Result<&Entry, VolumeError> {
        let found = self.by_key.values().find(|entry| entry.volume.name() == name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.by_key.values().map(|entry| entry.volume.name()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            VolumeError::NoVolume { name: name.to_owned(), known }
        })
    }
}

impl Reservation {
    /// The name that is taken.
    pub fn name(&self) -> String {
        let table = self.volumes.lock();
        self.key
            .and_then(|key| table.by_key.get(&key))
            .map_or(String::new(), |entry| entry.volume.name().to_owned())
    }

    /// The faults that its section asks for.
    pub fn faults(&self) -> FaultPlan {
        let table = self.volumes.lock();
        let entry = self.key.and_then(|key| table.by_key.get(&key));
        entry.map(|entry| entry.volume.section.faults.clone()).unwrap_or_default()
    }

    /// The limit that its section asks for.
    pub fn limit(&self) -> Limit {
        self.volumes.limit_of(self.key)
    }

    /// The volume is open and in its engine.
    pub fn serve(mut self, served: Served) -> Option<Volume> {
        let key = self.key.take()?;
        let mut table = self.volumes.lock();
        let volume = &mut table.by_key.get_mut(&key)?.volume;
        volume.serve(served);
        Some(volume.clone())
    }

    /// The volume is in its engine, and its lock is not ours yet.
    pub fn fence(mut self, fencing: Fencing) -> Option<(Arc<Volumes>, Volume)> {
        let key = self.key.take()?;
        let mut table = self.volumes.lock();
        let volume = &mut table.by_key.get_mut(&key)?.volume;
        volume.size_bytes = fencing.outline.size_bytes;
        volume.stage = Stage::Fencing(fencing);
        let volume = volume.clone();
        drop(table);
        Some((Arc::clone(&self.volumes), volume))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.volumes.lock().by_key.remove(&key);
        }
    }
}

impl Drop for Resizing {
    fn drop(&mut self) {
        if let Some(entry) = self.volumes.lock().by_key.get_mut(&self.key) {
            entry.volume.resizing = false;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for entry in self.volumes.lock().by_key.values_mut() {
            entry.volume.holders.retain(|holder| holder.session_id != self.session_id);
        }
    }
}

#[cfg(test)]
pub mod tests;
