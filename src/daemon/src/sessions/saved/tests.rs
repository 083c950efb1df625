//! Files that are whole, and files that are not.

use std::os::unix::fs::PermissionsExt;

use super::*;
use ferrio_shm::layout::QueueSpec;

/// A session with two queues on two engines, a volume and two regions.
pub fn session(session_id: u64) -> SavedSession {
    let specs = [QueueSpec { sq_entries: 8, cq_entries: 16 }; 2];
    let layout = SessionLayout::new(&specs, 65536).expect("a layout");
    let queues = layout.queues.iter().enumerate().map(|(engine, queue)| SavedQueue {
        engine,
        sq_entries: queue.sq_entries,
        cq_entries: queue.cq_entries,
        control_offset: queue.control_offset,
        sqes_offset: queue.sqes_offset,
        cqes_offset: queue.cqes_offset,
    });
    let file = |ino| MemoryFile { dev: 1, ino, bytes: 8192 };
    SavedSession {
        session_id,
        secret: Secret::new(std::array::from_fn(|index| index as u8)),
        token: Secret::new([9; 32]),
        pid: 4711,
        birth: Birth::Pidfd(u64::MAX),
        uid: 1000,
        client_name: "backup \"nightly\" \u{e4}".to_owned(),
        opened_ms: 1_700_000_000_000,
        features: 0x7f,
        hugepages: Some(SavedHugePages { bytes: 2 << 20, reason: String::new() }),
        no_merge: true,
        memory: MemoryFile { dev: 1, ino: 7, bytes: layout.memory_bytes },
        arena_offset: layout.arena_offset,
        arena_bytes: layout.arena_bytes,
        engines: vec!["one".to_owned(), "two".to_owned()],
        queues: queues.collect(),
        volumes: vec![SavedVolume {
            name: "data".to_owned(),
            engine: "one".to_owned(),
            access: Access::ReadWriteShared,
            size_bytes: 1 << 30,
            block_bytes: 512,
            memory_align_bytes: 4,
            request_bytes_max: 1 << 30,
            discard: (1, "punches a hole".to_owned()),
            write_zeroes: (2, "writes".to_owned()),
        }],
        regions: vec![SavedRegion { index: 1, file: file(8) }, SavedRegion { index: 9, file: file(9) }],
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::new(&dir.path().join("sessions")).expect("made");
    (dir, store)
}

fn as_json(session: &SavedSession) -> serde_json::Value {
    serde_json::to_value(session).expect("JSON")
}

#[test]
fn what_is_saved_is_found_until_it_is_removed() {
    let (dir, store) = store();
    store.save(&session(10)).expect("saved");
    store.save(&session(9)).expect("saved");
    let changed = SavedSession { regions: Vec::new(), ..session(9) };
    store.save(&changed).expect("saved again");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&store.path(9)), mode(&dir.path().join("sessions"))), (0o600, 0o700));
    let found = Store::new(&dir.path().join("sessions")).and_then(|store| store.load()).expect("read");
    assert_eq!(
        found.sessions.iter().map(as_json).collect::<Vec<_>>(),
        [as_json(&changed), as_json(&session(10))]
    );
    assert!(found.damaged.is_empty());
    assert_eq!(found.last_id, 10);
    assert_eq!(found.sessions[0].volumes[0].grant().size_bytes, 1 << 30);
    store.remove(9);
    store.remove(10);
    store.remove(10);
    assert!(store.load().expect("read").sessions.is_empty());
}

#[test]
fn every_bit_counts_and_every_length() {
    let whole = format::encode(&session(3));
    assert!(format::decode(&whole).is_ok());
    for byte in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << bit;
            assert!(format::decode(&damaged).is_err(), "bit {bit} of byte {byte} does not matter");
        }
        assert!(format::decode(&whole[..byte]).is_err(), "the first {byte} bytes are enough");
    }
    assert!(format::decode(&[&whole[..], b" "].concat()).is_err());
    assert!(format::decode(&vec![0; whole.len()]).is_err());
}

#[test]
fn another_version_says_so() {
    let mut newer = format::encode(&session(3));
    newer[8] = 2;
    let error = format::decode(&newer).expect_err("of another release").to_string();
    assert!(error.contains("version 2") && error.contains("knows 1"), "{error}");
}

#[test]
fn what_cannot_be_believed_is_set_aside_and_the_others_are_found() {
    let (_dir, store) = store();
    store.save(&session(1)).expect("saved");
    fs::write(store.path(2), "something else").expect("written");
    fs::rename(store.path(1), store.path(5)).expect("renamed");
    store.save(&session(4)).expect("saved");
    fs::write(store.path(6).with_extension(UNFINISHED), "half").expect("written");
    std::os::unix::fs::symlink(store.path(4), store.path(7)).expect("linked");
    fs::create_dir(store.path(8)).expect("made");
    let found = store.load().expect("read");
    assert_eq!(found.sessions.iter().map(|session| session.session_id).collect::<Vec<_>>(), [4]);
    let damaged: Vec<_> = found.damaged.iter().map(|(id, why)| (*id, why.as_str())).collect();
    let wanted = [(2, "magic"), (5, "session 1"), (7, "cannot be read"), (8, "not a regular file")];
    assert_eq!(damaged.len(), wanted.len(), "{damaged:?}");
    for ((id, why), (wanted_id, wanted_why)) in damaged.into_iter().zip(wanted) {
        assert!(id == wanted_id && why.contains(wanted_why), "{id}: {why}");
    }
    assert_eq!(found.last_id, 8);
    assert!(!store.path(6).with_extension(UNFINISHED).exists());
    let again = store.load().expect("read");
    assert!(again.damaged.is_empty(), "they are told once: {:?}", again.damaged);
    assert_eq!(again.last_id, 8, "their ids are not used again");
}

#[test]
fn numbers_that_point_nowhere_are_no_session() {
    let queue = SavedQueue { engine: 2, ..session(3).queues[0].clone() };
    let dangling = SavedSession { queues: vec![queue], ..session(3) };
    assert!(matches!(format::decode(&format::encode(&dangling)), Err(FormatError::Dangling("queue"))));
    let mut twice = session(3);
    twice.regions[1].index = 1;
    assert!(matches!(format::decode(&format::encode(&twice)), Err(FormatError::Dangling("region index"))));
    let short = SavedSession { memory: MemoryFile { bytes: 4096, ..session(3).memory }, ..session(3) };
    assert!(matches!(format::decode(&format::encode(&short)), Err(FormatError::Layout(_))));
}

#[test]
fn a_secret_is_known_whole_or_not_at_all_and_stays_out_of_logs() {
    let own: [u8; 32] = std::array::from_fn(|index| index as u8);
    let secret = Secret::new(own);
    assert!(secret.is(&own));
    for byte in 0..32 {
        let mut other = own;
        other[byte] ^= 0x80;
        assert!(!secret.is(&other), "byte {byte}");
    }
    assert!(!format!("{:?}", session(3)).contains("1, 2, 3"), "{:?}", session(3));
}
