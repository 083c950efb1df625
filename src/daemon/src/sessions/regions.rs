//! Memory that clients bring: checked, mapped, counted, and known to every engine of the session.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrio_engine::EngineError;
use ferrio_shm::abi::{errno, features, limits::REGIONS_MAX};
use ferrio_shm::mapping::{Mapping, Region, RegionError, check_memfd};

use super::saved::MemoryFile;
use super::{Session, Sessions, State, Table};
use crate::config::Limits;
use crate::dispose;

/// What one message about regions costs besides the bytes that are pinned or released for it. Bytes.
const MESSAGE_COST: u64 = 16 << 20;
/// How much may be pinned and released per second in the long run. Bytes: about a quarter of what the kernel manages.
const BYTES_PER_SECOND: u64 = 1 << 30;
/// No message waits longer.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The regions of a session, by index. The last owner of a mapping is here, so that no I/O thread has to unmap it.
pub type Regions = BTreeMap<u16, ClientRegion>;

/// Memory that a client has added.
#[derive(Debug, Clone)]
pub struct ClientRegion {
    /// Mapped.
    pub region: Region,
    /// What its file is known by.
    pub file: MemoryFile,
}

/// Why a region is not added or removed. The client gets the errno, the log all of it.
#[derive(Debug, thiserror::Error)]
pub enum RegionRefused {
    /// The feature.
    #[error("the session was not granted the feature client-regions; ask for it in Sessions.Open")]
    NotGranted,
    /// No descriptor, or too many.
    #[error("RegionAdd came with no descriptor; send the memfd with it")]
    NoDescriptor,
    /// Index out of range.
    #[error("region index {0} is not within 1 and {max}; choose one that is", max = REGIONS_MAX - 1)]
    Index(u16),
    /// Index in use.
    #[error("region {0} is in use; choose another index, or remove that region first")]
    InUse(u16),
    /// Nothing there.
    #[error("there is no region {0}")]
    None(u16),
    /// Length 0.
    #[error("the region has no bytes; give the length of the memfd")]
    Empty,
    /// Not memory that can be relied on.
    #[error("{}", crate::chain(.0))]
    Memfd(#[from] RegionError),
    /// A limit.
    #[error("{what}: {used} in use, {asked} more asked for, limit {limit} ({key})")]
    Limit {
        /// What there is no more of.
        what: &'static str,
        /// In use.
        used: u64,
        /// Asked for.
        asked: u64,
        /// Limit.
        limit: u64,
        /// Config key.
        key: &'static str,
    },
    /// It cannot be mapped.
    #[error("cannot map the region: {0}; ferriod may have no address space or vm.max_map_count left")]
    Map(std::io::Error),
    /// The next daemon would not know of it.
    #[error("cannot save the session: {0}; is the tmpfs of daemon.runtime_dir full?")]
    Save(std::io::Error),
    /// An engine does not take it, or not let go of it.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The session has ended.
    #[error("the session is over")]
    Over,
}

impl RegionRefused {
    /// What RegionReply carries (positive).
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotGranted => errno::EOPNOTSUPP,
            Self::NoDescriptor | Self::Index(_) | Self::Empty | Self::Memfd(_) => errno::EINVAL,
            Self::InUse(_) => errno::EBUSY,
            Self::None(_) => errno::ENXIO,
            Self::Limit { .. } => errno::ENOBUFS,
            Self::Map(_) | Self::Save(_) => errno::ENOMEM,
            Self::Engine(error) => error.errno(),
            Self::Over => errno::ESHUTDOWN,
        }
    }
}

impl Sessions {
    /// Adds a region to a session: the first of `fds` is its memory.
    pub fn add_region(
        &self,
        session_id: u64,
        index: u16,
        bytes: u64,
        fds: &[OwnedFd],
    ) -> Result<(), RegionRefused> {
        let mut table = self.table();
        let session = table.serving(session_id)?;
        if !(1..REGIONS_MAX).contains(&u32::from(index)) {
            return Err(RegionRefused::Index(index));
        }
        if session.regions.contains_key(&index) {
            return Err(RegionRefused::InUse(index));
        }
        if bytes == 0 {
            return Err(RegionRefused::Empty);
        }
        let regions_max = self.regions_max(&session.plan);
        table.check_region(&self.limits, regions_max, session_id, bytes)?;
        let memfd = fds.first().ok_or(RegionRefused::NoDescriptor)?;
        check_memfd(memfd, bytes)?;
        let region = map(memfd, bytes)?;
        let file = MemoryFile::of(memfd, bytes).map_err(RegionRefused::Map)?;
        let session = table.serving(session_id)?;
        for place in 0..session.plan.engines.len() {
            let engine = &self.engines[session.plan.engines[place]];
            if let Err(error) = engine.add_region(session_id, index, region.clone()) {
                self.take_away(session_id, index, &session.plan.engines[..place]);
                dispose::later(region);
                return Err(error.into());
            }
        }
        session.regions.insert(index, ClientRegion { region, file });
        // Before the client is told: what it may name, the next daemon must know.
        if let Err(error) = self.save(session_id, session) {
            self.take_away(session_id, index, &session.plan.engines);
            dispose::later(session.regions.remove(&index));
            return Err(RegionRefused::Save(error));
        }
        Ok(())
    }

    /// Nothing can be in flight on the region: the client was not told that it is there.
    fn take_away(&self, session_id: u64, index: u16, engines: &[usize]) {
        for engine in engines {
            let _ = self.engines[*engine].remove_region(session_id, index);
        }
    }

    /// Takes a region away from a session; its length.
    pub fn remove_region(&self, session_id: u64, index: u16) -> Result<u64, RegionRefused> {
        let mut table = self.table();
        let session = table.serving(session_id)?;
        let region = session.regions.get(&index).ok_or(RegionRefused::None(index))?.region.clone();
        let engines = &session.plan.engines;
        for place in 0..engines.len() {
            match self.engines[engines[place]].remove_region(session_id, index) {
                // One engine let go of it when another did not, and could not take it back.
                Ok(()) | Err(EngineError::NoRegion { .. }) => {}
                Err(error) => {
                    for before in &engines[..place] {
                        if let Err(error) =
                            self.engines[*before].add_region(session_id, index, region.clone())
                        {
                            tracing::warn!(
                                "session {session_id}: region {index} is lost to an engine: {error}"
                            );
                        }
                    }
                    return Err(error.into());
                }
            }
        }
        let removed = session.regions.remove(&index);
        if let Err(error) = self.save(session_id, session) {
            // No harm: the client does not offer it to the next daemon.
            tracing::warn!("session {session_id}: its file still has region {index}: {error}");
        }
        let bytes = region.len();
        drop(removed);
        // Unmapping takes its time.
        dispose::later(region);
        Ok(bytes)
    }

    /// How fast a client may add and remove regions: all it may have at once, and then so many bytes a second.
    pub fn region_pace(&self) -> Pace {
        let Limits { regions_per_session_max, region_bytes_max, .. } = self.limits;
        let full = region_bytes_max.saturating_add(u64::from(regions_per_session_max) * MESSAGE_COST);
        Pace { full, left: full, at: Instant::now() }
    }
}

impl Session {
    /// Length of all its regions. Bytes.
    pub fn region_bytes(&self) -> u64 {
        let saved = if let State::Waiting(waiting) = &self.state { waiting.region_bytes() } else { 0 };
        saved + self.regions.values().map(|region| region.file.bytes).sum::<u64>()
    }
}

impl Table {
    /// A session that may have regions, now.
    fn serving(&mut self, session_id: u64) -> Result<&mut Session, RegionRefused> {
        let session = self.by_id.get_mut(&session_id).ok_or(RegionRefused::Over)?;
        if session.plan.features & features::CLIENT_REGIONS == 0 {
            return Err(RegionRefused::NotGranted);
        }
        if matches!(session.state, State::Active) { Ok(session) } else { Err(RegionRefused::Over) }
    }

    fn check_region(
        &self,
        limits: &Limits,
        regions_max: u32,
        session_id: u64,
        bytes: u64,
    ) -> Result<(), RegionRefused> {
        let Some(session) = self.by_id.get(&session_id) else { return Err(RegionRefused::Over) };
        let (total, own) = self.memory(session.uid);
        let regions = session.regions.len() as u64;
        let rows = [
            ("regions of the session", regions, 1, regions_max.into(), "limits.regions_per_session_max"),
            (
                "bytes of its regions",
                session.region_bytes(),
                bytes,
                limits.region_bytes_max,
                "limits.region_bytes_max",
            ),
            (
                "bytes of this user",
                own,
                bytes,
                limits.memory_bytes_per_uid_max,
                "limits.memory_bytes_per_uid_max",
            ),
            ("bytes of session memory", total, bytes, limits.memory_bytes_max, "limits.memory_bytes_max"),
        ];
        for (what, used, asked, limit, key) in rows {
            if used.saturating_add(asked) > limit {
                return Err(RegionRefused::Limit { what, used, asked, limit, key });
            }
        }
        Ok(())
    }
}

/// Maps memory that was checked.
pub(super) fn map(memfd: &OwnedFd, bytes: u64) -> Result<Region, RegionRefused> {
    let too_large = || RegionRefused::Map(std::io::ErrorKind::InvalidInput.into());
    let length = usize::try_from(bytes).map_err(|_| too_large())?;
    let mapping = Mapping::new(memfd.as_fd(), length).map_err(RegionRefused::Map)?;
    Region::new(Arc::new(mapping), 0, bytes).ok_or_else(too_large)
}

/// Pinning and releasing pages costs an I/O thread time that other clients want. See [`Sessions::region_pace`].
#[derive(Debug)]
pub struct Pace {
    full: u64,
    left: u64,
    at: Instant,
}

impl Pace {
    /// A message about a region of `bytes` was carried out: how long the next one has to wait.
    pub fn charge(&mut self, bytes: u64, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let earned =
            u64::try_from(elapsed * u128::from(BYTES_PER_SECOND) / 1_000_000_000).unwrap_or(u64::MAX);
        self.at = now;
        self.left = self.left.saturating_add(earned).min(self.full);
        let cost = bytes.saturating_add(MESSAGE_COST);
        let missing = cost.saturating_sub(self.left);
        self.left = self.left.saturating_sub(cost);
        Duration::from_secs_f64(missing as f64 / BYTES_PER_SECOND as f64).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_at_once_is_free_and_more_is_paced() {
        let start = Instant::now();
        let full = (1 << 30) + 4 * MESSAGE_COST;
        let mut pace = Pace { full, left: full, at: start };
        for _ in 0..4 {
            assert_eq!(pace.charge(256 << 20, start), Duration::ZERO);
        }
        let pause = pace.charge(256 << 20, start);
        assert!(pause > Duration::from_millis(250) && pause < Duration::from_millis(300), "{pause:?}");
        assert_eq!(pace.charge(1 << 40, start), PAUSE_MAX);
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.charge(1 << 30, later), Duration::ZERO, "it has earned all of it again");
    }
}
