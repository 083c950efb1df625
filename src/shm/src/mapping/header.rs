//! The header page of a session.

use super::Mapping;
use crate::abi::{ABI_VERSION, MAGIC, SessionState};
use crate::layout::{HEADER_BYTES, SessionLayout, header};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};

/// Typed view of the header. The daemon writes it and never reads it back.
#[derive(Clone, Debug)]
pub struct SessionHeader {
    memory: Arc<Mapping>,
}

/// The header is not that of the session that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a ferrio session at all.
    #[error("session memory begins with {found:#018x} instead of {MAGIC:#018x}")]
    Magic {
        /// Value found.
        found: u64,
    },
    /// Another ABI.
    #[error("session memory has ABI {found}, this library speaks {ABI_VERSION}")]
    Abi {
        /// Value found.
        found: u32,
    },
    /// Another session.
    #[error("session memory belongs to session {found}, not {expected}")]
    Session {
        /// Value found.
        found: u64,
        /// Value expected.
        expected: u64,
    },
}

impl SessionHeader {
    /// None if the mapping is shorter than a header.
    #[must_use]
    pub fn new(memory: Arc<Mapping>) -> Option<SessionHeader> {
        (memory.len() as u64 >= HEADER_BYTES).then_some(SessionHeader { memory })
    }

    /// Daemon: writes the header of a fresh session, in state active. The magic comes last.
    pub fn init(&self, session_id: u64, epoch: u64, layout: &SessionLayout) {
        self.word32(header::ABI).store(ABI_VERSION, Ordering::Relaxed);
        self.word64(header::SESSION_ID).store(session_id, Ordering::Relaxed);
        self.word32(header::QUEUE_COUNT).store(layout.queues.len() as u32, Ordering::Relaxed);
        self.word64(header::ARENA_OFFSET).store(layout.arena_offset, Ordering::Relaxed);
        self.word64(header::ARENA_BYTES).store(layout.arena_bytes, Ordering::Relaxed);
        self.set_epoch(epoch);
        self.set_state(SessionState::Active);
        self.word64(header::MAGIC).store(MAGIC, Ordering::Release);
    }

    /// Daemon: tells the client where the session stands.
    pub fn set_state(&self, state: SessionState) {
        self.word32(header::STATE).store(state as u32, Ordering::Release);
    }

    /// Daemon: its own epoch, which tells a client that a new daemon took over.
    pub fn set_epoch(&self, epoch: u64) {
        self.word64(header::EPOCH).store(epoch, Ordering::Release);
    }

    /// Client: where the session stands; none if the value is not defined.
    #[must_use]
    pub fn state(&self) -> Option<SessionState> {
        SessionState::try_from(self.word32(header::STATE).load(Ordering::Acquire)).ok()
    }

    /// Client: the daemon's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.word64(header::EPOCH).load(Ordering::Acquire)
    }

    /// Client: whether this is the memory of the session it opened.
    pub fn check(&self, session_id: u64) -> Result<(), HeaderError> {
        let found = self.word64(header::MAGIC).load(Ordering::Acquire);
        if found != MAGIC {
            return Err(HeaderError::Magic { found });
        }
        let found = self.word32(header::ABI).load(Ordering::Relaxed);
        if found != ABI_VERSION {
            return Err(HeaderError::Abi { found });
        }
        let found = self.word64(header::SESSION_ID).load(Ordering::Relaxed);
        if found != session_id {
            return Err(HeaderError::Session { found, expected: session_id });
        }
        Ok(())
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        self.memory.u32(offset).expect("header words lie in the header page")
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.memory.u64s(offset, 1).expect("header words lie in the header page")[0]
    }
}
