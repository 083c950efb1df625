//! What a client asks for, checked against limits, allow lists and names. Takes nothing and changes nothing.

use ferrio_api::v1::{OpenSessionRequest, VolumeGrant};
use ferrio_engine::VolumeId;
use ferrio_shm::abi::{ABI_VERSION, features, limits::DATA_BYTES_MAX, limits::QUEUES_MAX};
use ferrio_shm::layout::{QueueSpec, SessionLayout};
use ferrio_shm::mapping::HUGE_PAGE_BYTES;
use ferrio_shm::peer::PeerIdentity;

use super::error::OpenError;
use super::saved::SavedSession;
use crate::access::Access;
use crate::config::Limits;
use crate::volumes::{Served, Volume, VolumeKey, Volumes};

/// Volumes of one session.
pub const VOLUMES_PER_SESSION_MAX: usize = 64;
/// What a client may be granted beyond what is always there: what the engines serve, and what the daemon itself does.
pub const FEATURES: u64 = ferrio_engine::FEATURES | features::CLIENT_REGIONS | features::RESUME;
/// Bytes of a client's name.
const CLIENT_NAME_BYTES_MAX: usize = 64;

/// A session that may be made.
#[derive(Debug)]
pub struct Plan {
    /// Name of the client.
    pub client_name: String,
    /// Engines that serve a queue, each once; the index here is the index of its doorbell.
    pub engines: Vec<usize>,
    /// By queue index: index into `engines`.
    pub queue_engines: Vec<usize>,
    /// Where things lie.
    pub layout: SessionLayout,
    /// By SQE volume index.
    pub volumes: Vec<PlannedVolume>,
    /// Feature bits granted.
    pub features: u64,
    /// Huge pages were asked for.
    pub hugepages: bool,
    /// Its requests may be joined with adjacent ones.
    pub merge: bool,
}

/// A volume that a session may use.
#[derive(Debug)]
pub struct PlannedVolume {
    /// Which.
    pub key: VolumeKey,
    /// Index of its home engine.
    pub engine: usize,
    /// Its id there.
    pub id: VolumeId,
    /// Access.
    pub access: Access,
    /// What the client is told of it, and was told last of its size.
    pub grant: VolumeGrant,
}

impl Plan {
    /// The plan of a session of the daemon before, with the engines and volumes of this one. Volumes that are not there are
    /// [`VolumeKey::NONE`]; ids are for who resumes it to fill in.
    pub fn of_saved(saved: &SavedSession, engines: &[String], volumes: &Volumes) -> Result<Self, String> {
        let position = |name: &String| {
            engines.iter().position(|known| known == name).ok_or_else(|| {
                format!(
                    "engine {name} is not configured any more; engines of this daemon: {}",
                    engines.join(", ")
                )
            })
        };
        let known = volumes.list();
        let volumes = saved.volumes.iter().map(|saved| {
            let volume = known.iter().find(|volume| volume.name() == saved.name);
            PlannedVolume {
                key: volume.map_or(VolumeKey::NONE, |volume| volume.key),
                // What was removed answers at the engine where it was.
                engine: volume.map_or_else(|| position(&saved.engine).unwrap_or(0), |volume| volume.engine),
                id: VolumeId(u32::MAX),
                access: saved.access,
                grant: saved.grant(),
            }
        });
        Ok(Self {
            client_name: saved.client_name.clone(),
            engines: saved.engines.iter().map(position).collect::<Result<_, _>>()?,
            queue_engines: saved.queues.iter().map(|queue| queue.engine).collect(),
            layout: saved.layout(),
            volumes: volumes.collect(),
            features: saved.features & FEATURES,
            hugepages: saved.hugepages.is_some(),
            merge: !saved.no_merge,
        })
    }
}

/// What requests are checked against.
pub struct Rules<'a> {
    /// Limits of the configuration.
    pub limits: &'a Limits,
    /// Volumes there are.
    pub volumes: &'a Volumes,
    /// Engines there are.
    pub engines: &'a [String],
    /// User the daemon runs as.
    pub own_uid: u32,
}

impl Rules<'_> {
    /// Checks a request of `peer`.
    pub fn plan(&self, request: &OpenSessionRequest, peer: &PeerIdentity) -> Result<Plan, OpenError> {
        let (min, max) = (request.abi_min, request.abi_max);
        if min > ABI_VERSION || max < ABI_VERSION {
            return Err(OpenError::Abi { min, max });
        }
        check_name(&request.client_name)?;
        let volumes = self.plan_volumes(request, peer)?;
        let (engines, queue_engines) = self.plan_engines(request, &volumes)?;
        let layout = self.plan_layout(request)?;
        Ok(Plan {
            client_name: request.client_name.clone(),
            engines,
            queue_engines,
            layout,
            volumes,
            features: request.features & FEATURES,
            hugepages: request.hugepages,
            merge: !request.no_merge,
        })
    }

    fn plan_volumes(
        &self,
        request: &OpenSessionRequest,
        peer: &PeerIdentity,
    ) -> Result<Vec<PlannedVolume>, OpenError> {
        check_count("volumes", request.volumes.len(), 1, VOLUMES_PER_SESSION_MAX, "fixed")?;
        let mut planned = Vec::new();
        for asked in &request.volumes {
            let name = || asked.name.clone();
            let volume = self.volumes.serving(&asked.name)?;
            let Some(served) = volume.served() else { return Err(volume.not_serving().into()) };
            let access = Access::from_wire(asked.access).ok_or_else(|| OpenError::NoAccess(name()))?;
            if !volume.section.allow.admits(peer, self.own_uid) {
                let supplementary = peer.groups.iter().filter(|group| **group != peer.gid);
                let groups = std::iter::once(&peer.gid).chain(supplementary).map(u32::to_string);
                let groups = groups.collect::<Vec<_>>().join(", ");
                return Err(OpenError::NotAllowed { volume: name(), uid: peer.uid, groups });
            }
            if access.writes() && volume.section.read_only {
                return Err(OpenError::ReadOnly(name()));
            }
            planned.push(PlannedVolume {
                key: volume.key,
                engine: volume.engine,
                id: served.id,
                access,
                grant: self.grant(&volume, served, access),
            });
        }
        Ok(planned)
    }

    fn grant(&self, volume: &Volume, served: &Served, access: Access) -> VolumeGrant {
        VolumeGrant {
            name: volume.name().to_owned(),
            access: access.to_wire(),
            size_bytes: volume.size_bytes,
            block_bytes: served.target.block_bytes(),
            memory_align_bytes: served.target.memory_align_bytes(),
            request_bytes_max: u32::try_from(DATA_BYTES_MAX).unwrap_or(u32::MAX),
            engine: self.engines[volume.engine].clone(),
            discard: Some(served.discard()),
            write_zeroes: Some(served.write_zeroes()),
        }
    }

    fn plan_engines(
        &self,
        request: &OpenSessionRequest,
        volumes: &[PlannedVolume],
    ) -> Result<(Vec<usize>, Vec<usize>), OpenError> {
        let max = self.limits.queues_per_session_max.min(QUEUES_MAX) as usize;
        check_count("queues", request.queues.len(), 1, max, "limits.queues_per_session_max")?;
        let home = volumes[0].engine;
        let mut engines = Vec::new();
        let mut queue_engines = Vec::new();
        for queue in &request.queues {
            let engine = if queue.engine.is_empty() {
                home
            } else {
                let found = self.engines.iter().position(|name| *name == queue.engine);
                found.ok_or_else(|| OpenError::NoEngine {
                    name: queue.engine.clone(),
                    known: self.engines.join(", "),
                })?
            };
            let place = engines.iter().position(|known| *known == engine).unwrap_or_else(|| {
                engines.push(engine);
                engines.len() - 1
            });
            queue_engines.push(place);
        }
        Ok((engines, queue_engines))
    }

    fn plan_layout(&self, request: &OpenSessionRequest) -> Result<SessionLayout, OpenError> {
        let entries_max = self.limits.queue_entries_max;
        let mut specs = Vec::new();
        for queue in &request.queues {
            let key = "limits.queue_entries_max";
            check_count("sq_entries", queue.sq_entries as usize, 1, entries_max as usize, key)?;
            let cq_entries = if queue.cq_entries == 0 { queue.sq_entries * 2 } else { queue.cq_entries };
            check_count(
                "cq_entries",
                cq_entries as usize,
                1,
                2 * entries_max as usize,
                "2 * limits.queue_entries_max",
            )?;
            specs.push(QueueSpec { sq_entries: queue.sq_entries, cq_entries });
        }
        let (asked, max) = (request.arena_bytes, self.limits.arena_bytes_max);
        if asked > max {
            let key = "limits.arena_bytes_max";
            return Err(OpenError::Count { what: "arena_bytes", value: asked, min: 0, max, key });
        }
        let mut layout = SessionLayout::new(&specs, asked)?;
        if request.hugepages {
            // A huge page begins at a multiple of its length.
            let padding = layout.arena_offset.next_multiple_of(HUGE_PAGE_BYTES as u64) - layout.arena_offset;
            layout.arena_offset += padding;
            layout.memory_bytes += padding;
        }
        Ok(layout)
    }
}

fn check_count(
    what: &'static str,
    value: usize,
    min: usize,
    max: usize,
    key: &'static str,
) -> Result<(), OpenError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let (value, min, max) = (value as u64, min as u64, max as u64);
    Err(OpenError::Count { what, value, min, max, key })
}

/// Names are shown in terminals and logs: nothing in them may act on either.
fn check_name(name: &str) -> Result<(), OpenError> {
    let good = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX || !name.chars().all(good) {
        let shown = name.chars().take(CLIENT_NAME_BYTES_MAX).collect();
        return Err(OpenError::ClientName(shown));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
