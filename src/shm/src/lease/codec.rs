//! Messages to bytes and back.

use super::{
    LEASE_HEADER_BYTES, LEASE_MAGIC, LEASE_MESSAGE_MAX, LEASE_VERSION, LeaseError, LeaseEvent, LeaseMessage,
};

mod kind {
    pub(super) const ATTACH: u16 = 1;
    pub(super) const ATTACHED: u16 = 2;
    pub(super) const REFUSED: u16 = 3;
    pub(super) const CLOSE: u16 = 4;
    pub(super) const REGION_ADD: u16 = 5;
    pub(super) const REGION_REMOVE: u16 = 6;
    pub(super) const REGION_REPLY: u16 = 7;
    pub(super) const RESUME: u16 = 8;
    pub(super) const FAULT: u16 = 16;
    pub(super) const RESIZE: u16 = 17;
    pub(super) const EVICT: u16 = 18;
    pub(super) const DRAIN: u16 = 19;
}

impl LeaseMessage {
    /// The bytes of the message, [`LEASE_MESSAGE_MAX`] at most: a longer text is cut off.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer { bytes: vec![0; LEASE_HEADER_BYTES] };
        let kind = match self {
            LeaseMessage::Attach { token } => {
                out.put(token);
                kind::ATTACH
            }
            LeaseMessage::Attached { session_id, epoch, memory_bytes, doorbells, queues } => {
                out.put(&session_id.to_le_bytes());
                out.put(&epoch.to_le_bytes());
                out.put(&memory_bytes.to_le_bytes());
                out.put(&doorbells.to_le_bytes());
                out.put(&queues.to_le_bytes());
                kind::ATTACHED
            }
            LeaseMessage::Refused { errno, reason } => {
                out.put(&errno.to_le_bytes());
                out.text(reason);
                kind::REFUSED
            }
            LeaseMessage::Event(event) => out.event(event),
            LeaseMessage::Close => kind::CLOSE,
            LeaseMessage::RegionAdd { index, bytes } => {
                out.index(*index);
                out.put(&bytes.to_le_bytes());
                kind::REGION_ADD
            }
            LeaseMessage::RegionRemove { index } => {
                out.index(*index);
                kind::REGION_REMOVE
            }
            LeaseMessage::RegionReply { index, errno } => {
                out.index(*index);
                out.put(&errno.to_le_bytes());
                out.put(&[0; 4]);
                kind::REGION_REPLY
            }
            LeaseMessage::Resume { session_id, secret } => {
                out.put(&session_id.to_le_bytes());
                out.put(secret);
                kind::RESUME
            }
        };
        out.finish(kind)
    }

    /// The message that these bytes hold. Every byte counts: none may be missing, left over or non-zero where
    /// nothing is defined.
    pub fn decode(bytes: &[u8]) -> Result<LeaseMessage, LeaseError> {
        let (kind, mut payload) = Reader::open(bytes)?;
        let message = match kind {
            kind::ATTACH => LeaseMessage::Attach { token: payload.take()? },
            kind::ATTACHED => LeaseMessage::Attached {
                session_id: payload.u64()?,
                epoch: payload.u64()?,
                memory_bytes: payload.u64()?,
                doorbells: payload.u32()?,
                queues: payload.u32()?,
            },
            kind::REFUSED => LeaseMessage::Refused { errno: payload.i32()?, reason: payload.text()? },
            kind::CLOSE => LeaseMessage::Close,
            kind::REGION_ADD => LeaseMessage::RegionAdd { index: payload.index()?, bytes: payload.u64()? },
            kind::REGION_REMOVE => LeaseMessage::RegionRemove { index: payload.index()? },
            kind::REGION_REPLY => {
                let (index, errno) = (payload.index()?, payload.i32()?);
                payload.zero::<4>()?;
                LeaseMessage::RegionReply { index, errno }
            }
            kind::RESUME => LeaseMessage::Resume { session_id: payload.u64()?, secret: payload.take()? },
            kind::FAULT => LeaseMessage::Event(LeaseEvent::Fault { reason: payload.text()? }),
            kind::RESIZE => {
                let (volume, size_bytes) = (payload.index()?, payload.u64()?);
                LeaseMessage::Event(LeaseEvent::Resize { volume, size_bytes })
            }
            kind::EVICT => LeaseMessage::Event(LeaseEvent::Evict { reason: payload.text()? }),
            kind::DRAIN => {
                let deadline_ms = payload.u32()?;
                payload.zero::<4>()?;
                LeaseMessage::Event(LeaseEvent::Drain { deadline_ms })
            }
            found => return Err(LeaseError::Kind { found }),
        };
        payload.end()?;
        Ok(message)
    }
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A u16 and six zeros.
    fn index(&mut self, index: u16) {
        self.put(&index.to_le_bytes());
        self.put(&[0; 6]);
    }

    fn text(&mut self, text: &str) {
        let room = LEASE_MESSAGE_MAX - self.bytes.len();
        self.put(&text.as_bytes()[..text.floor_char_boundary(room)]);
    }

    fn event(&mut self, event: &LeaseEvent) -> u16 {
        match event {
            LeaseEvent::Fault { reason } => {
                self.text(reason);
                kind::FAULT
            }
            LeaseEvent::Resize { volume, size_bytes } => {
                self.index(*volume);
                self.put(&size_bytes.to_le_bytes());
                kind::RESIZE
            }
            LeaseEvent::Evict { reason } => {
                self.text(reason);
                kind::EVICT
            }
            LeaseEvent::Drain { deadline_ms } => {
                self.put(&deadline_ms.to_le_bytes());
                self.put(&[0; 4]);
                kind::DRAIN
            }
        }
    }

    fn finish(mut self, kind: u16) -> Vec<u8> {
        let length = (self.bytes.len() - LEASE_HEADER_BYTES) as u32;
        self.bytes[0..4].copy_from_slice(&LEASE_MAGIC.to_le_bytes());
        self.bytes[4..6].copy_from_slice(&LEASE_VERSION.to_le_bytes());
        self.bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&length.to_le_bytes());
        self.bytes
    }
}

struct Reader<'a> {
    kind: u16,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the header; the reader stands at the payload.
    fn open(bytes: &'a [u8]) -> Result<(u16, Reader<'a>), LeaseError> {
        let mut header = Reader { kind: 0, whole: bytes.len(), rest: bytes };
        let magic = header.u32()?;
        if magic != LEASE_MAGIC {
            return Err(LeaseError::Magic { found: magic });
        }
        let version = header.u16()?;
        if version != LEASE_VERSION {
            return Err(LeaseError::Version { found: version });
        }
        let kind = header.u16()?;
        header.kind = kind;
        let length = header.u32()? as usize;
        header.zero::<4>()?;
        if header.rest.len() != length || bytes.len() > LEASE_MESSAGE_MAX {
            let expected = LEASE_HEADER_BYTES.saturating_add(length).min(LEASE_MESSAGE_MAX);
            return Err(LeaseError::Length { bytes: bytes.len(), expected });
        }
        Ok((kind, header))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], LeaseError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            let expected = self.whole - self.rest.len() + N;
            return Err(LeaseError::Length { bytes: self.whole, expected });
        };
        self.rest = rest;
        Ok(*taken)
    }

    fn zero<const N: usize>(&mut self) -> Result<(), LeaseError> {
        if self.take::<N>()? == [0; N] { Ok(()) } else { Err(LeaseError::Reserved { kind: self.kind }) }
    }

    fn u16(&mut self) -> Result<u16, LeaseError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, LeaseError> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, LeaseError> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LeaseError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A u16 and six zeros.
    fn index(&mut self) -> Result<u16, LeaseError> {
        let index = self.u16()?;
        self.zero::<6>()?;
        Ok(index)
    }

    fn text(&mut self) -> Result<String, LeaseError> {
        let text = std::str::from_utf8(self.rest).map_err(|_| LeaseError::Text { kind: self.kind })?;
        self.rest = &[];
        Ok(text.to_owned())
    }

    fn end(&self) -> Result<(), LeaseError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(LeaseError::Length { bytes: self.whole, expected: self.whole - self.rest.len() })
    }
}
