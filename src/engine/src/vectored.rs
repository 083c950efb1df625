//! The iovec of a readv or writev: read from client memory once per look, and the copy checked.
//!
//! It is looked at twice, when the request is accepted and when it is issued: between the two the client may have changed
//! it, or taken a region away. What the driver gets passed the second look whole.

use ferrio_driver::Segment;
use ferrio_shm::{
    abi::{IOV_ENTRY_BYTES, errno, limits},
    entry::{IovEntry, Sqe},
    sync::Ordering::Relaxed,
};

use crate::session::{GrantedVolume, Rights};

/// Reads and checks the iovec of an SQE, and gives its entries in order; those given before an error count for nothing.
///
/// # Errors
/// The errno (positive) that ABI.md has for the first check that fails, of all entries together.
pub(crate) fn gather(
    rights: &Rights,
    sqe: &Sqe,
    volume: &GrantedVolume,
    mut each: impl FnMut(Segment),
) -> Result<(), i32> {
    let entry_bytes = u64::from(IOV_ENTRY_BYTES);
    if !(1..=limits::IOV_MAX).contains(&sqe.iov_count) || !sqe.region_offset.is_multiple_of(entry_bytes) {
        return Err(errno::EINVAL);
    }
    let memory = rights.region(sqe.region)?.memory.as_ref().ok_or(errno::EFAULT)?;
    let (words, _) =
        memory.u64s(sqe.region_offset, 2 * sqe.iov_count as usize).ok_or(errno::EFAULT)?.as_chunks::<2>();
    let (mut sum, mut malformed, mut outcome) = (0, false, Ok(()));
    for entry in words {
        let entry = IovEntry::from_words(entry.each_ref().map(|word| word.load(Relaxed)));
        sum += u64::from(entry.length);
        malformed |= entry.zero != 0 || entry.length == 0 || !entry.length.is_multiple_of(volume.block);
        match segment(rights, &entry, volume.memory_align) {
            Ok(segment) => each(segment),
            // Of the checks of an entry, that of its region comes first.
            Err(errno) if outcome != Err(errno::ENXIO) => outcome = Err(errno),
            Err(_) => {}
        }
    }
    if malformed || sum != sqe.length { Err(errno::EINVAL) } else { outcome }
}

fn segment(rights: &Rights, entry: &IovEntry, memory_align: u32) -> Result<Segment, i32> {
    let region = rights.region(entry.region)?;
    let end = entry.offset.checked_add(entry.length.into()).ok_or(errno::EFAULT)?;
    if end > region.bytes || !entry.offset.is_multiple_of(memory_align.into()) {
        return Err(errno::EFAULT);
    }
    Ok(Segment { region: region.index, offset: entry.offset, length: entry.length })
}

/// Drops the first `done` bytes, which a short transfer has moved.
pub(crate) fn skip(segments: &mut Vec<Segment>, mut done: u64) {
    let moved = segments.iter().take_while(|segment| {
        let whole = u64::from(segment.length) <= done;
        if whole {
            done -= u64::from(segment.length);
        }
        whole
    });
    let moved = moved.count();
    segments.drain(..moved);
    if let Some(first) = segments.first_mut() {
        first.offset += done;
        // Less than its length, by the above.
        first.length -= done as u32;
    }
}
