//! Packets on the attach socket: bytes as they are, and the same bytes behind a header that fits them.

use ferrio_shm::lease::{
    LEASE_HEADER_BYTES, LEASE_MAGIC, LEASE_MESSAGE_MAX, LEASE_VERSION, LeaseEvent, LeaseMessage,
};

/// Decoding never panics; what is decoded has one encoding, which is what came in; texts are cut, not refused.
pub fn lease(data: &[u8]) {
    decode(data);
    if let Some((kind, payload)) = data.split_first_chunk::<2>() {
        decode(&packet(u16::from_le_bytes(*kind) % 32, payload));
    }
    let text = String::from_utf8_lossy(data).into_owned();
    for message in [
        LeaseMessage::Refused { errno: 13, reason: text.clone() },
        LeaseMessage::Event(LeaseEvent::Fault { reason: text.clone() }),
        LeaseMessage::Event(LeaseEvent::Evict { reason: text }),
    ] {
        let bytes = message.encode();
        assert!(bytes.len() <= LEASE_MESSAGE_MAX);
        let read = LeaseMessage::decode(&bytes).expect("every message can be read");
        assert!(text_of(&message).starts_with(text_of(&read)), "a text is cut off, not changed");
    }
}

fn decode(bytes: &[u8]) {
    match LeaseMessage::decode(bytes) {
        Ok(message) => {
            assert!(bytes.len() <= LEASE_MESSAGE_MAX);
            assert_eq!(message.encode(), bytes, "{message:?} has one encoding");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn packet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("libFuzzer's inputs are short");
    let mut bytes = Vec::with_capacity(LEASE_HEADER_BYTES + payload.len());
    bytes.extend(LEASE_MAGIC.to_le_bytes());
    bytes.extend(LEASE_VERSION.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

fn text_of(message: &LeaseMessage) -> &str {
    match message {
        LeaseMessage::Refused { reason, .. }
        | LeaseMessage::Event(LeaseEvent::Fault { reason } | LeaseEvent::Evict { reason }) => reason,
        _ => "",
    }
}
