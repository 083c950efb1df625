//! A volume as the session may use it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrio_api::v1;

use crate::Error;

/// How a session may use a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; lives beside every other access.
    ReadOnly,
    /// Reads and writes, and no other writer beside it.
    ReadWrite,
    /// Reads and writes beside others that ask for the same.
    ReadWriteShared,
}

/// What becomes of an operation on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// The device or the file system does it: by what means.
    Native(String),
    /// ferriod does it by other means: which.
    Emulated(String),
    /// Requests answer [`Errno::EOPNOTSUPP`](crate::Errno::EOPNOTSUPP): why.
    Unsupported(String),
}

impl Support {
    /// A daemon that says nothing does not serve it.
    fn granted(support: Option<v1::Support>) -> Self {
        let Some(support) = support else {
            return Support::Unsupported("this ferriod does not serve it".into());
        };
        match support.level() {
            v1::SupportLevel::Native => Support::Native(support.how),
            v1::SupportLevel::Emulated => Support::Emulated(support.how),
            v1::SupportLevel::Unsupported | v1::SupportLevel::Unspecified => {
                Support::Unsupported(support.how)
            }
        }
    }
}

impl From<Access> for v1::Access {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadOnly => v1::Access::ReadOnly,
            Access::ReadWrite => v1::Access::ReadWrite,
            Access::ReadWriteShared => v1::Access::ReadWriteShared,
        }
    }
}

/// A volume of a session. Cheap to clone; usable with every queue of its session.
#[derive(Clone)]
pub struct Volume(Arc<Granted>);

struct Granted {
    session_id: u64,
    index: u16,
    name: String,
    access: Access,
    size_bytes: AtomicU64,
    block_bytes: u32,
    memory_align_bytes: u32,
    request_bytes_max: u32,
    engine: String,
    discard: Support,
    write_zeroes: Support,
}

impl Volume {
    pub(crate) fn new(session_id: u64, index: usize, grant: v1::VolumeGrant) -> Result<Self, Error> {
        let unfit = |what: String| Error::Incompatible { what };
        let access = match grant.access() {
            v1::Access::ReadOnly => Access::ReadOnly,
            v1::Access::ReadWrite => Access::ReadWrite,
            v1::Access::ReadWriteShared => Access::ReadWriteShared,
            v1::Access::Unspecified => {
                return Err(unfit(format!(
                    "access {} granted to volume {:?} is unknown",
                    grant.access, grant.name
                )));
            }
        };
        let index = u16::try_from(index).map_err(|_| unfit(format!("volume index {index} exceeds 65535")))?;
        Ok(Volume(Arc::new(Granted {
            session_id,
            index,
            name: grant.name,
            access,
            size_bytes: AtomicU64::new(grant.size_bytes),
            block_bytes: grant.block_bytes,
            memory_align_bytes: grant.memory_align_bytes,
            request_bytes_max: grant.request_bytes_max,
            engine: grant.engine,
            discard: Support::granted(grant.discard),
            write_zeroes: Support::granted(grant.write_zeroes),
        })))
    }

    /// Name in the daemon's configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Index in the session: the `volume` field of an SQE.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.0.index
    }

    /// Access granted.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// Size now. Bytes, a multiple of [`block_bytes`](Self::block_bytes). It follows a resize of the volume.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.load(Ordering::Relaxed)
    }

    /// Offsets and lengths must be multiples of it. Bytes, a power of two.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.0.block_bytes
    }

    /// Buffers must be aligned to it; a [`Buffer`](crate::Buffer) always is at its start. Bytes, a power of two.
    #[must_use]
    pub fn memory_align_bytes(&self) -> u32 {
        self.0.memory_align_bytes
    }

    /// Longest read or write. Bytes.
    #[must_use]
    pub fn request_bytes_max(&self) -> u32 {
        self.0.request_bytes_max
    }

    /// Engine that serves it: only queues of this engine reach it.
    #[must_use]
    pub fn engine(&self) -> &str {
        &self.0.engine
    }

    /// What [`Request::discard`](crate::Request::discard) does there.
    #[must_use]
    pub fn discard(&self) -> &Support {
        &self.0.discard
    }

    /// What [`Request::write_zeroes`](crate::Request::write_zeroes) does there.
    #[must_use]
    pub fn write_zeroes(&self) -> &Support {
        &self.0.write_zeroes
    }

    pub(crate) fn session_id(&self) -> u64 {
        self.0.session_id
    }

    pub(crate) fn resized(&self, size_bytes: u64) {
        self.0.size_bytes.store(size_bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.0.name)
            .field("index", &self.0.index)
            .field("access", &self.0.access)
            .field("size_bytes", &self.size_bytes())
            .field("block_bytes", &self.0.block_bytes)
            .finish_non_exhaustive()
    }
}
