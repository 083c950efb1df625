//! Lease messages: round trips, and bytes that are none.
#![cfg(not(loom))]

use ferrio_shm::lease::{LEASE_MESSAGE_MAX, LeaseError, LeaseEvent, LeaseMessage};
use proptest::prelude::*;

fn examples() -> Vec<LeaseMessage> {
    vec![
        LeaseMessage::Attach { token: [7; 32] },
        LeaseMessage::Attached { session_id: 1, epoch: 2, memory_bytes: 3, doorbells: 4, queues: 5 },
        LeaseMessage::Refused { errno: 13, reason: "token expired".into() },
        LeaseMessage::Close,
        LeaseMessage::RegionAdd { index: 9, bytes: 1 << 40 },
        LeaseMessage::RegionRemove { index: u16::MAX },
        LeaseMessage::RegionReply { index: 9, errno: 95 },
        LeaseMessage::Resume { session_id: u64::MAX, secret: [8; 32] },
        LeaseMessage::Event(LeaseEvent::Fault { reason: String::new() }),
        LeaseMessage::Event(LeaseEvent::Resize { volume: 3, size_bytes: 1 << 30 }),
        LeaseMessage::Event(LeaseEvent::Evict { reason: "Überlast".into() }),
        LeaseMessage::Event(LeaseEvent::Drain { deadline_ms: 5000 }),
    ]
}

#[test]
fn every_message_survives_the_round_trip() {
    for message in examples() {
        assert_eq!(LeaseMessage::decode(&message.encode()).as_ref(), Ok(&message));
    }
}

#[test]
fn no_message_survives_a_lost_or_an_added_byte() {
    for message in examples() {
        let bytes = message.encode();
        for length in 0..bytes.len() {
            let error = LeaseMessage::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, LeaseError::Length { .. }), "{message:?}: {error}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(LeaseMessage::decode(&longer), Err(LeaseError::Length { .. })), "{message:?}");
    }
}

#[test]
fn a_payload_of_another_length_is_refused_although_the_header_agrees() {
    for message in examples() {
        let mut bytes = message.encode();
        bytes.push(0xff);
        let length = bytes.len() as u32 - 16;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        assert!(LeaseMessage::decode(&bytes).is_err(), "{message:?}");
    }
}

#[test]
fn the_header_is_checked() {
    let good = LeaseMessage::Close.encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        LeaseMessage::decode(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, 0), LeaseError::Magic { .. }));
    assert_eq!(with(4, 2), LeaseError::Version { found: 2 });
    assert_eq!(with(6, 99), LeaseError::Kind { found: 99 });
    assert_eq!(with(15, 1), LeaseError::Reserved { kind: 4 });
    assert!(matches!(with(11, 0xff), LeaseError::Length { .. }));
}

#[test]
fn reserved_bytes_must_be_zero() {
    for (message, reserved) in [
        (LeaseMessage::RegionAdd { index: 1, bytes: 2 }, 16 + 2),
        (LeaseMessage::RegionRemove { index: 1 }, 16 + 7),
        (LeaseMessage::RegionReply { index: 1, errno: 0 }, 16 + 12),
        (LeaseMessage::Event(LeaseEvent::Drain { deadline_ms: 1 }), 16 + 4),
    ] {
        let mut bytes = message.encode();
        bytes[reserved] = 1;
        assert!(matches!(LeaseMessage::decode(&bytes), Err(LeaseError::Reserved { .. })), "{message:?}");
    }
}

#[test]
fn texts_are_cut_off_between_characters() {
    let reason = "ä".repeat(LEASE_MESSAGE_MAX);
    let bytes = LeaseMessage::Refused { errno: 1, reason: reason.clone() }.encode();
    assert_eq!(bytes.len(), LEASE_MESSAGE_MAX);
    let Ok(LeaseMessage::Refused { reason: cut, .. }) = LeaseMessage::decode(&bytes) else {
        panic!("not what was sent");
    };
    assert!(reason.starts_with(&cut) && cut.len() == LEASE_MESSAGE_MAX - 20);
    let odd = LeaseMessage::Event(LeaseEvent::Fault { reason: format!("a{reason}") }).encode();
    assert_eq!(odd.len(), LEASE_MESSAGE_MAX - 1);
    LeaseMessage::decode(&odd).unwrap();
}

#[test]
fn texts_must_be_utf8() {
    let mut bytes = LeaseMessage::Event(LeaseEvent::Evict { reason: "ab".into() }).encode();
    *bytes.last_mut().unwrap() = 0xff;
    assert_eq!(LeaseMessage::decode(&bytes), Err(LeaseError::Text { kind: 18 }));
}

#[test]
fn tokens_stay_out_of_logs() {
    assert_eq!(format!("{:?}", LeaseMessage::Attach { token: [7; 32] }), "Attach { .. }");
    let resume = LeaseMessage::Resume { session_id: 4, secret: [7; 32] };
    assert_eq!(format!("{resume:?}"), "Resume { session_id: 4, .. }");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 2048 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
        let _ = LeaseMessage::decode(&bytes);
    }

    /// With a header that is right, so that the payload is reached. What decodes encodes to the same bytes.
    #[test]
    fn any_payload_is_survived(kind in 0u16..24, payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = LeaseMessage::Close.encode();
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&payload);
        if let Ok(message) = LeaseMessage::decode(&bytes) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }
}
