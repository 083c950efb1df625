//! Arenas in huge pages, for those who ask for it.
//!
//! They are transparent huge pages, made at once by MADV_COLLAPSE, which needs no reservation and heeds no sysfs switch but
//! "deny". Pages of hugetlbfs would not do: a client can punch holes into its memory, and the daemon would die of the touch
//! of a page that cannot be had again.

use std::sync::Arc;

use ferrio_api::v1;
use ferrio_shm::mapping::{HUGE_PAGE_BYTES, Mapping};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::Sessions;

/// Sessions whose pages are made at once: each takes a thread, and the memory's bandwidth.
const MAKERS: usize = 2;

/// What became of the wish.
#[derive(Debug, Clone, Default)]
pub struct HugePages {
    /// Part of the arena that is in huge pages. Bytes.
    pub bytes: u64,
    /// Why not all of it; empty: all of it is.
    pub reason: String,
}

/// Lets few at a time.
#[derive(Debug)]
pub struct Makers(Semaphore);

impl Default for Makers {
    fn default() -> Self {
        Self(Semaphore::new(MAKERS))
    }
}

impl Sessions {
    /// Makes the huge pages that a session asked for when it was opened, and adds to the answer what became of it.
    pub async fn make_huge(&self, answer: &mut v1::OpenSessionResponse) {
        let session_id = answer.session_id;
        let mapping = {
            let table = self.table();
            let session = table.by_id.get(&session_id);
            let asked = session.filter(|session| session.plan.hugepages);
            asked.and_then(|session| session.memory.as_ref()).map(|memory| Arc::clone(&memory.mapping))
        };
        let Some(mapping) = mapping else { return };
        let (offset, bytes) = (answer.arena_offset, answer.arena_bytes);
        let made = {
            let _place = self.makers.0.acquire().await;
            // Zeroing takes its time, and may wait for memory.
            tokio::task::spawn_blocking(move || make(&mapping, offset, bytes)).await
        };
        let made = made.unwrap_or_else(|_| HugePages { bytes: 0, reason: "the thread died".to_owned() });
        answer.hugepages_bytes = made.bytes;
        answer.hugepages_reason.clone_from(&made.reason);
        if !made.reason.is_empty() {
            tracing::warn!("session {session_id}: not all of its arena is in huge pages: {}", made.reason);
        }
        if let Some(session) = self.table().by_id.get_mut(&session_id) {
            session.hugepages = made;
        }
    }
}

fn make(mapping: &Mapping, offset: u64, bytes: u64) -> HugePages {
    let (Ok(from), Ok(length)) = (usize::try_from(offset), usize::try_from(bytes)) else {
        return HugePages { bytes: 0, reason: "the arena is longer than the address space".to_owned() };
    };
    match mapping.make_huge(from, length) {
        Ok(made) if made == bytes => HugePages { bytes: made, reason: String::new() },
        Ok(made) => {
            let rest = bytes - made;
            let reason = format!(
                "{rest} of its {bytes} bytes are less than a huge page of {HUGE_PAGE_BYTES}; ask for a multiple of that"
            );
            HugePages { bytes: made, reason }
        }
        Err((made, error)) => {
            let hint = match Errno::from_io_error(&error) {
                Some(Errno::INVAL) => {
                    "the kernel cannot (it needs Linux 6.1 with CONFIG_TRANSPARENT_HUGEPAGE and CONFIG_SHMEM, and not \
                     shmem_enabled=deny)"
                }
                Some(Errno::NOMEM) => {
                    "no memory in one piece is free, or the cgroup has its share; free some"
                }
                _ => "try again",
            };
            HugePages {
                bytes: made,
                reason: format!("{made} of {bytes} bytes are: MADV_COLLAPSE: {error}: {hint}"),
            }
        }
    }
}
