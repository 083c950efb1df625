//! The bytes of a saved session: magic, version, length, CRC-32, then JSON.

use std::io;

use super::SavedSession;
use ferrio_shm::layout::LayoutError;

/// "FERRIOS" and a zero byte.
const MAGIC: [u8; 8] = *b"FERRIOS\0";
/// Version of this format. What another one means is for the release that wrote it to know.
const VERSION: u32 = 1;
/// Magic, version u32, length of the body u32, CRC-32 of both and the body u32, 0 u32; little-endian.
const HEADER_BYTES: usize = 24;

/// Why a file is not a saved session of this release.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A directory, a link, a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// Something else.
    #[error("it is not a saved session: it does not begin with the magic")]
    Magic,
    /// Of another release.
    #[error(
        "it has version {found}, this release knows {VERSION}; the release that wrote it can go on with it"
    )]
    Version {
        /// Version found.
        found: u32,
    },
    /// Cut off, or added to.
    #[error("it has {found} bytes where {expected} were written")]
    Length {
        /// Bytes there.
        found: usize,
        /// Bytes that its header tells.
        expected: usize,
    },
    /// Changed.
    #[error("its checksum is {found:#010x}, its content makes {expected:#010x}")]
    Checksum {
        /// Checksum in the file.
        found: u32,
        /// Checksum of what is there.
        expected: u32,
    },
    /// Whole, but not what this release writes.
    #[error("its body cannot be understood: {0}")]
    Body(#[from] serde_json::Error),
    /// A layout that no session has.
    #[error("its layout is impossible: {0}")]
    Layout(#[from] LayoutError),
    /// A number in it that points nowhere.
    #[error("its {0} points nowhere")]
    Dangling(&'static str),
    /// Named after another session.
    #[error("it is that of session {found}")]
    Name {
        /// Session in the file.
        found: u64,
    },
    /// The kernel refused.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The bytes of a session.
pub fn encode(session: &SavedSession) -> Vec<u8> {
    let body = serde_json::to_vec(session)
        .unwrap_or_else(|error| unreachable!("strings, numbers and lists of them are JSON: {error}"));
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(checksum(&bytes[8..16], &body).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// The session of these bytes. Every one of them counts.
pub fn decode(bytes: &[u8]) -> Result<SavedSession, FormatError> {
    let word =
        |offset| bytes.get(offset..offset + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err(FormatError::Magic);
    }
    let cut_off = || FormatError::Length { found: bytes.len(), expected: HEADER_BYTES };
    let found = word(8).ok_or_else(cut_off)?;
    if found != VERSION {
        return Err(FormatError::Version { found });
    }
    let length = word(12).ok_or_else(cut_off)? as usize;
    let (found, zero) = (word(16).ok_or_else(cut_off)?, word(20).ok_or_else(cut_off)?);
    let body = &bytes[HEADER_BYTES..];
    if body.len() != length {
        return Err(FormatError::Length {
            found: bytes.len(),
            expected: HEADER_BYTES.saturating_add(length),
        });
    }
    let expected = checksum(&bytes[8..16], body);
    // The last word is no part of the sum, and must be what was written all the same.
    if found != expected || zero != 0 {
        return Err(FormatError::Checksum { found, expected });
    }
    let session: SavedSession = serde_json::from_slice(body)?;
    check(&session)?;
    Ok(session)
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(header);
    sum.update(body);
    sum.finalize()
}

/// What the rest of the daemon relies on.
fn check(session: &SavedSession) -> Result<(), FormatError> {
    session.layout().check()?;
    let engines = session.engines.len();
    if session.queues.iter().any(|queue| queue.engine >= engines) {
        return Err(FormatError::Dangling("queue"));
    }
    if !session.regions.is_sorted_by(|one, next| one.index < next.index) {
        return Err(FormatError::Dangling("region index"));
    }
    Ok(())
}

/// Secrets in JSON.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As 64 digits.
    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// From 64 digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let digits = text.as_bytes().chunks_exact(2);
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(D::Error::custom("a secret of something else than 64 hexadecimal digits"));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        Ok(bytes)
    }
}
