//! The volumes of one engine: they come, change their size and go while requests are on their way.
//!
//! What a session may do with a volume is copied into its [`crate::session::Rights`], so that a request finds it without
//! coming here; a volume that changes is changed in the rights of every session. Ids are used again once a removal is
//! done: until then all rights that name the volume say that it is gone.

use std::{io, os::fd::AsFd, sync::Arc};

use ferrio_driver::{
    DriverError, FaultPlan, FileIndex, Outline, Pin, RegionIndex, SubmitHalf, Target, TargetKind,
};
use ferrio_shm::{
    abi::{Opcode, limits},
    mapping::{Mapping, Region, create_memfd},
};
use slab::Slab;

use crate::{
    config::EngineError,
    inject::Done,
    locks::PLACES,
    session::{GrantedVolume, Standing, VolumeId},
};

struct Volume {
    grant: GrantedVolume,
    /// `None`: it is fenced, or was when it was removed. The driver knows nothing of it.
    target: Option<Arc<Target>>,
    /// Called once nothing of it is in flight; not empty while it is being removed.
    removals: Vec<Done>,
    shrink: Option<Shrink>,
    scratch: Option<Scratch>,
}

/// Memory of the daemon's own, for what compare-and-writes compare with: [`limits::CAW_BYTES_MAX`] for each place. It comes
/// into being page by page.
pub(crate) struct Scratch {
    pub(crate) index: RegionIndex,
    pub(crate) memory: Region,
}

/// Requests issued before reach beyond the new end.
struct Shrink {
    /// How many, each of them marked.
    left: u32,
    done: Vec<Done>,
}

/// No mark. Else it is the id of a volume, plus one.
const UNMARKED: u32 = 0;

/// See the module.
pub(crate) struct Volumes {
    volumes: Slab<Volume>,
    /// By record: a volume that shrank waits for this request.
    marks: Box<[u32]>,
    removing: Vec<VolumeId>,
    /// Removals and shrinks that wait for requests.
    waiting: u32,
}

impl Volumes {
    /// None yet, for requests in records `0..requests_max`.
    pub fn new(requests_max: u32) -> Self {
        Self {
            volumes: Slab::new(),
            marks: vec![UNMARKED; requests_max as usize].into(),
            removing: Vec::new(),
            waiting: 0,
        }
    }

    /// Registers a volume with the driver.
    pub fn add(
        &mut self,
        engine: &str,
        driver: &mut impl SubmitHalf,
        target: Arc<Target>,
    ) -> Result<VolumeId, EngineError> {
        let id = VolumeId(self.volumes.vacant_key() as u32);
        let volume = Volume::register(engine, driver, id, target)?;
        self.volumes.insert(volume);
        Ok(id)
    }

    /// Takes a volume in that is not to be used yet.
    pub fn add_fenced(&mut self, outline: Outline) -> VolumeId {
        let entry = self.volumes.vacant_entry();
        let id = VolumeId(entry.key() as u32);
        let grant = GrantedVolume::fenced(id, &outline);
        entry.insert(Volume { grant, target: None, removals: Vec::new(), shrink: None, scratch: None });
        id
    }

    /// Registers a fenced volume with the driver. Returns what it is.
    pub fn unfence(
        &mut self,
        engine: &str,
        driver: &mut impl SubmitHalf,
        id: VolumeId,
        target: Arc<Target>,
        faults: FaultPlan,
    ) -> Result<GrantedVolume, EngineError> {
        let volume = self.volumes.get_mut(id.0 as usize);
        let Some(volume) = volume.filter(|volume| volume.grant.standing == Standing::Fenced) else {
            return Err(EngineError::NoVolume { engine: engine.to_owned(), volume: id.0 });
        };
        let mut found = Volume::register(engine, driver, id, target)?;
        if !faults.rules.is_empty()
            && let Err(source) = driver.set_faults(found.grant.file, faults)
        {
            found.unregister(driver);
            return Err(EngineError::Faults { engine: engine.to_owned(), source });
        }
        // Nothing waits for it: it had nothing in flight.
        *volume = found;
        Ok(volume.grant)
    }

    /// There is such a volume, if only for its last requests.
    pub fn check(&self, engine: &str, id: VolumeId) -> Result<(), EngineError> {
        let known = self.volumes.contains(id.0 as usize);
        if known { Ok(()) } else { Err(EngineError::NoVolume { engine: engine.to_owned(), volume: id.0 }) }
    }

    /// What a session that is granted the volume may do with it, writing included. `None`: there is no such volume, or it
    /// is being removed.
    pub fn grant(&self, id: VolumeId) -> Option<GrantedVolume> {
        let volume = self.volumes.get(id.0 as usize)?;
        (volume.grant.standing != Standing::Gone).then_some(volume.grant)
    }

    /// The volume in the driver. Also of one that is being removed: what faults hold there can still be let go.
    pub fn file(&self, engine: &str, id: VolumeId) -> Result<FileIndex, EngineError> {
        let missing = || EngineError::NoVolume { engine: engine.to_owned(), volume: id.0 };
        self.volumes.get(id.0 as usize).and_then(Volume::file).ok_or_else(missing)
    }

    /// The files of all volumes.
    pub fn files(&self) -> impl Iterator<Item = FileIndex> {
        self.volumes.iter().filter_map(|(_, volume)| volume.file())
    }

    /// Where compare-and-writes of a volume read to.
    pub fn scratch(&self, id: VolumeId) -> Option<&Scratch> {
        self.volumes.get(id.0 as usize)?.scratch.as_ref()
    }

    /// Somebody waits for requests: [`Self::settle`] them.
    pub fn waits_for_requests(&self) -> bool {
        self.waiting > 0
    }

    /// The volume takes nothing more and goes when nothing of it is in flight.
    pub fn remove(&mut self, driver: &mut impl SubmitHalf, id: VolumeId, done: Done) {
        let Some(volume) = self.volumes.get_mut(id.0 as usize) else { return done() };
        volume.grant.standing = Standing::Gone;
        volume.removals.push(done);
        self.removing.push(id);
        self.waiting += 1;
        self.finish_removals(driver);
    }

    /// The volume ends at `size` from now on; `beyond` are the records of its issued requests that reach beyond that.
    /// While a shrink waits, a further one joins it.
    pub fn resize(&mut self, id: VolumeId, size: u64, beyond: impl Iterator<Item = u32>, done: Done) {
        let Some(volume) = self.volumes.get_mut(id.0 as usize) else { return done() };
        let grows = size >= volume.grant.size;
        volume.grant.size = size;
        let mut left = 0;
        for record in beyond {
            let mark = &mut self.marks[record as usize];
            left += u32::from(*mark == UNMARKED);
            *mark = id.0 + 1;
        }
        match &mut volume.shrink {
            Some(shrink) if !grows => {
                shrink.left += left;
                shrink.done.push(done);
            }
            None if left > 0 => {
                volume.shrink = Some(Shrink { left, done: vec![done] });
                self.waiting += 1;
            }
            _ => done(),
        }
    }

    /// A request was answered or dropped, and its slot released. Call while [`Self::waits_for_requests`].
    #[cold]
    pub fn settle(&mut self, driver: &mut impl SubmitHalf, record: u32) {
        let mark = std::mem::replace(&mut self.marks[record as usize], UNMARKED);
        if let Some(id) = mark.checked_sub(1)
            && let Some(volume) = self.volumes.get_mut(id as usize)
            && let Some(shrink) = &mut volume.shrink
        {
            shrink.left -= 1;
            if shrink.left == 0 {
                self.waiting -= 1;
                volume.shrink.take().into_iter().flat_map(|shrink| shrink.done).for_each(|done| done());
            }
        }
        self.finish_removals(driver);
    }

    fn finish_removals(&mut self, driver: &mut impl SubmitHalf) {
        for position in (0..self.removing.len()).rev() {
            let id = self.removing[position];
            let file = self.volumes.get(id.0 as usize).and_then(Volume::file);
            // Without one it was fenced, or its removal was asked for twice.
            let gone = file.is_none_or(|file| driver.unregister_file(file).is_ok());
            if gone {
                self.removing.swap_remove(position);
                self.forget(driver, id);
            }
        }
    }

    fn forget(&mut self, driver: &mut impl SubmitHalf, id: VolumeId) {
        let Some(volume) = self.volumes.try_remove(id.0 as usize) else { return };
        volume.forget_scratch(driver);
        // Let go before anyone is told: whoever waits for it may want to open it anew.
        drop(volume.target);
        self.waiting -= volume.removals.len() as u32 + u32::from(volume.shrink.is_some());
        // Requests that wait to go on, which they will not: they must not count for the next volume of this id.
        self.marks.iter_mut().filter(|mark| **mark == id.0 + 1).for_each(|mark| *mark = UNMARKED);
        volume.removals.into_iter().for_each(|done| done());
        volume.shrink.into_iter().flat_map(|shrink| shrink.done).for_each(|done| done());
    }
}

impl Volume {
    fn register(
        engine: &str,
        driver: &mut impl SubmitHalf,
        id: VolumeId,
        target: Arc<Target>,
    ) -> Result<Self, EngineError> {
        let file = driver
            .register_file(Arc::clone(&target))
            .map_err(|source| EngineError::Driver { engine: engine.to_owned(), source })?;
        let mut grant = GrantedVolume::of(id, file, &target);
        let able = target.capabilities();
        if !able.discard.is_supported() {
            grant = grant.lacking(Opcode::Discard);
        }
        if !able.write_zeroes.is_supported() {
            grant = grant.lacking(Opcode::WriteZeroes);
        }
        // A null target holds nothing that could be compared.
        let comparable = grant.writable && target.kind() != TargetKind::Null;
        let scratch = comparable.then(|| Scratch::new(driver)).transpose().unwrap_or_else(|error| {
            tracing::warn!(volume = target.name(), %error, "no memory for compare-and-write: it is refused there");
            None
        });
        if scratch.is_none() {
            grant = grant.lacking(Opcode::CompareAndWrite);
        }
        Ok(Self { grant, target: Some(target), removals: Vec::new(), shrink: None, scratch })
    }

    /// Its index in the driver, if the driver knows it.
    fn file(&self) -> Option<FileIndex> {
        self.target.as_ref().map(|_| self.grant.file)
    }

    /// Takes a volume that nothing has used back from the driver.
    fn unregister(&mut self, driver: &mut impl SubmitHalf) {
        if let Err(busy) = driver.unregister_file(self.grant.file) {
            tracing::error!(?busy, "a volume that nobody used is in use: a bug");
        }
        self.forget_scratch(driver);
    }

    fn forget_scratch(&self, driver: &mut impl SubmitHalf) {
        if let Some(scratch) = &self.scratch
            && let Err(busy) = driver.unregister_region(scratch.index)
        {
            // Its users are requests of this volume, and the driver has none: so it said.
            tracing::error!(?busy, "the scratch memory of a volume is in use: a bug");
        }
    }
}

impl Scratch {
    fn new(driver: &mut impl SubmitHalf) -> Result<Self, ScratchError> {
        let bytes = PLACES as u64 * limits::CAW_BYTES_MAX;
        let memfd = create_memfd("ferrio-scratch", bytes)?;
        let mapping = Arc::new(Mapping::new(memfd.as_fd(), bytes as usize)?);
        let Some(memory) = Region::new(mapping, 0, bytes) else { unreachable!("it is the whole mapping") };
        Ok(Self { index: driver.register_region(memory.clone(), Pin::No)?, memory })
    }

    /// Where the part of a place begins, in bytes.
    pub fn offset(place: usize) -> u64 {
        place as u64 * limits::CAW_BYTES_MAX
    }
}

#[derive(Debug, thiserror::Error)]
enum ScratchError {
    #[error("{0}")]
    Memory(#[from] io::Error),
    #[error("{0}")]
    Driver(#[from] DriverError),
}
