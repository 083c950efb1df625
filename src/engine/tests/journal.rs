//! Journals that are damaged, of another version or too big: what they hit is told, and nothing is misread.

mod common;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use common::{
    BLOCK, Rig, VOLUME_BYTES,
    puppet::{self, Puppet},
    request,
};
use ferrio_driver::Target;
use ferrio_engine::{
    EngineError,
    journal::{
        Journal, MAGIC, Origin, VERSION,
        found::{self, Answer, Found, FoundQueue, Owed, Unreadable},
        words::header_check,
    },
};
use ferrio_shm::{
    abi::{Opcode, errno, sqe_flags},
    entry::Sqe,
};
use proptest::prelude::*;

const RECORDS: u32 = 16;
/// Bytes of the header that mean something.
const HEADER: usize = 64;
/// Where the first cell, and the first record, stand in the file.
const CELLS_AT: usize = 4096;
const RECORDS_AT: usize = CELLS_AT + 4 * 128;

/// Indices of queue 1 go round while requests are owed.
const LATE: u32 = u32::MAX - 2;

/// A session with two queues, and records in every state.
fn journal() -> Vec<u8> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("journal");
    let journal = Journal::create(&path, 4, RECORDS, 7).unwrap();
    journal.open_cell(1, 5, 0, 6, 2);
    journal.open_cell(2, 5, 1, LATE.wrapping_add(6), LATE);
    let accept = |record: u32, cell, sq_index, flags| {
        let sqe = Sqe { flags, user_data: u64::from(record), ..request(Opcode::Write, 0, BLOCK) };
        let origin = Origin { session: 5, cell, sq_index, sequence: u64::from(record) };
        journal.accept(record, &sqe, &origin);
    };
    accept(0, 1, 1, 0);
    journal.done(0, 4096, 0, 1); // visible, and not freed yet
    accept(1, 1, 2, 0);
    journal.done(1, -5, 1, 2);
    accept(2, 1, 3, sqe_flags::LINK);
    accept(3, 1, 4, 0);
    accept(4, 1, 5, 0);
    journal.decide(4, -125);
    accept(5, 1, 6, 0); // beyond the acceptance line
    (0..6).for_each(|n| accept(6 + n, 2, LATE.wrapping_add(n), if n == 4 { sqe_flags::LINK } else { 0 }));
    journal.done(8, 4096, 0, LATE);
    journal.done(9, 0, 0, LATE.wrapping_add(1));
    journal.decide(10, -22);
    accept(12, 1, 0, 0);
    journal.done(12, 4096, 0, 0);
    journal.free(12);
    std::fs::read(&path).unwrap()
}

fn owed(queue: &FoundQueue) -> BTreeMap<u64, Answer> {
    queue.owed.iter().map(|owed| (owed.sqe.user_data, owed.answer)).collect()
}

#[test]
fn what_is_owed_is_found() {
    let found = found::read(&journal()).unwrap();
    assert_eq!((found.epoch, found.sequence, found.damaged, found.sessions.len()), (7, 11, 0, 1));
    let session = &found.sessions[&5];
    assert_eq!((&session.unfit, session.owed()), (&None, 10));
    let done = |result, flags, cq_index| Answer::Done { result, flags, cq_index };
    let [first, second] = &session.queues[..] else { panic!("{found:?}") };
    assert_eq!((first.queue, first.sq_head, first.cq_tail), (0, 6, 2));
    let expected = [(1, done(-5, 1, 2)), (2, Answer::None), (3, Answer::None), (4, Answer::Decided(-125))];
    assert_eq!(owed(first), expected.into());
    assert_eq!(
        owed(second),
        [
            (6, Answer::None),
            (7, Answer::None),
            (8, done(4096, 0, LATE)),
            (9, done(0, 0, LATE.wrapping_add(1))),
            (10, Answer::Decided(-22)),
            (11, Answer::Decided(-errno::ECANCELED)), // linked to a failed one
        ]
        .into()
    );
}

/// Whether `after` says nothing wrong where the journal of `before` was damaged: what it would go on with is what was there,
/// but for answers that are not known any more.
fn is_true(before: &Found, after: &Result<Found, Unreadable>) -> Result<(), String> {
    let after = match after {
        Ok(after) => after,
        Err(Unreadable::Damaged(_)) => return Ok(()),
        Err(other) => return Err(format!("{other:?}")),
    };
    for (id, session) in after.sessions.iter().filter(|(_, session)| session.unfit.is_none()) {
        let Some(real) = before.sessions.get(id) else { return Err(format!("session {id}")) };
        for queue in &session.queues {
            let Some(was) = real.queues.iter().find(|real| real.queue == queue.queue) else {
                return Err(format!("queue {}", queue.queue));
            };
            let same = (was.sq_head, was.cq_tail, was.owed.len());
            if same != (queue.sq_head, queue.cq_tail, queue.owed.len()) {
                return Err(format!("{queue:?} was {was:?}"));
            }
            if let Some((was, owed)) =
                was.owed.iter().zip(&queue.owed).find(|(was, owed)| !follows(was, owed))
            {
                return Err(format!("{owed:?} was {was:?}"));
            }
        }
    }
    Ok(())
}

fn follows(was: &Owed, is: &Owed) -> bool {
    let unknown = match (was.answer, is.answer) {
        (Answer::None | Answer::Decided(_), Answer::Decided(result)) => result == -errno::EOWNERDEAD,
        // Of those behind one whose answer is not known any more.
        (Answer::Done { cq_index, .. }, Answer::Done { cq_index: now, result, .. }) => {
            cq_index == now && result == -errno::EOWNERDEAD
        }
        _ => false,
    };
    // Who is linked to one whose answer is lost is not carried out.
    let broken = was.answer == Answer::None && is.answer == Answer::Decided(-errno::ECANCELED);
    (was.sqe, was.sq_index, was.sequence) == (is.sqe, is.sq_index, is.sequence)
        && (was.answer == is.answer || unknown || broken)
}

#[test]
fn a_flipped_bit_is_never_misread() {
    let file = journal();
    let before = found::read(&file).unwrap();
    let (mut same, mut salvaged, mut unfit) = (0, 0, 0);
    for bit in (0..8 * HEADER).chain(8 * CELLS_AT..8 * file.len()) {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let after = found::read(&flipped);
        is_true(&before, &after).unwrap_or_else(|what| panic!("byte {} bit {}: {what}", bit / 8, bit % 8));
        match after {
            Ok(after) if after.sessions == before.sessions => same += 1,
            Ok(after) if after.sessions.values().all(|session| session.unfit.is_none()) => salvaged += 1,
            _ => unfit += 1,
        }
    }
    // The state words of nine owed records are salvaged but for the bits of those that cannot be told from free ones.
    assert!(salvaged > 9 * 32, "{same} {salvaged} {unfit}");
    assert!(unfit > 9 * 12 * 64, "{same} {salvaged} {unfit}");
}

#[test]
fn zeroes_and_a_missing_end_are_never_misread() {
    let file = journal();
    let before = found::read(&file).unwrap();
    for start in (0..HEADER).chain(CELLS_AT..file.len()).step_by(8) {
        for bytes in [8, 64, 128, 512, 4096] {
            let mut zeroed = file.clone();
            let end = (start + bytes).min(file.len());
            zeroed[start..end].fill(0);
            is_true(&before, &found::read(&zeroed))
                .unwrap_or_else(|what| panic!("{bytes} at {start}: {what}"));
        }
        let cut = found::read(&file[..start]);
        is_true(&before, &cut).unwrap_or_else(|what| panic!("cut at {start}: {what}"));
        assert!(
            start > RECORDS_AT || cut.is_err() || cut.unwrap().sessions.values().all(|s| s.unfit.is_some())
        );
    }
}

/// Words that are damaged, each by these bits or by becoming 0: the words of the header, the cells and the records.
fn damage() -> impl Strategy<Value = Vec<(usize, Option<u64>)>> {
    let words = (RECORDS_AT + 14 * 128) / 8;
    let anywhere = prop_oneof![0..HEADER / 8, CELLS_AT / 8..words];
    // Those that say how far a request came are the ones to be confused about.
    let telling = (0..12usize, 11..14usize).prop_map(|(record, word)| RECORDS_AT / 8 + record * 16 + word);
    let how = prop_oneof![Just(None), (0..64u32).prop_map(|bit| Some(1 << bit)), any::<u64>().prop_map(Some)];
    prop::collection::vec((prop_oneof![1 => anywhere, 3 => telling], how), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn damage_in_several_places_is_never_misread(damage in damage()) {
        let mut file = journal();
        let before = found::read(&file).unwrap();
        for (word, how) in damage {
            let bytes = &mut file[8 * word..8 * word + 8];
            let was = u64::from_le_bytes(bytes.try_into().unwrap());
            bytes.copy_from_slice(&how.map_or(0, |bits| was ^ bits).to_le_bytes());
        }
        let told = is_true(&before, &found::read(&file));
        prop_assert!(told.is_ok(), "{told:?}");
    }
}

/// One that was answered long ago does not stand in for one that is lost.
#[test]
fn nobody_is_answered_for_somebody_else() {
    let mut file = journal();
    let before = found::read(&file).unwrap();
    for (record, word) in [(0, 13), (2, 12), (2, 13)] {
        file[RECORDS_AT + 128 * record + 8 * word] ^= 1;
    }
    let after = found::read(&file);
    assert_eq!(is_true(&before, &after), Ok(()));
    assert!(after.unwrap().sessions[&5].unfit.is_some());
}

fn with_header(version: u64) -> Vec<u8> {
    let mut file = journal();
    let mut words = [MAGIC, version, 7, 4, RECORDS.into(), 0, 0, 0];
    words[7] = header_check(&words[..7]);
    for (bytes, word) in file.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    file
}

#[test]
fn versions_are_told_apart() {
    assert!(found::read(&with_header(VERSION)).is_ok());
    assert_eq!(found::read(&with_header(VERSION + 1)), Err(Unreadable::Newer(VERSION + 1)));
    let mut first = with_header(1);
    first[40..64].fill(0); // version 1 had no check
    assert_eq!(found::read(&first), Err(Unreadable::Older(1)));
    assert!(matches!(found::read(b"something else"), Err(Unreadable::Damaged(_))));
    assert!(matches!(found::read(b""), Err(Unreadable::Damaged(_))));
}

/// An engine with three requests in flight, and its journal.
fn busy() -> (Rig<Puppet>, common::Client, PathBuf) {
    let mut rig = Rig::<Puppet>::new(4, 64);
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut client = rig.open(volume, 16);
    client.submit(&[1, 2, 3].map(|id| request(Opcode::Read, id, id * BLOCK)));
    rig.turn_until("the requests", |_| puppet::in_flight().len() == 3);
    let path = rig.seed().config.journal;
    (rig, client, path)
}

#[test]
fn an_engine_starts_with_what_it_can_read() {
    for (file, aside) in [(b"garbage".to_vec(), true), (vec![0; 8192], true), (with_header(1), false)] {
        let (rig, mut client, path) = busy();
        let seed = rig.seed();
        drop(rig);
        std::fs::write(&path, &file).unwrap();
        let mut rig = Rig::<Puppet>::again(seed).unwrap();
        assert!(rig.parts.dormant.is_empty());
        let damaged = PathBuf::from(format!("{}.damaged", path.display()));
        assert_eq!(std::fs::read(&damaged).ok(), aside.then_some(file));
        let error = rig.resume(&mut client, &[]).unwrap_err();
        assert_eq!(
            (error.errno(), error.to_string().contains("session 1")),
            (errno::ESTALE, true),
            "{error}"
        );
    }
}

#[test]
fn an_engine_does_not_start_over_what_it_would_lose() {
    let (rig, _client, path) = busy();
    let seed = rig.seed();
    drop(rig);
    let file = std::fs::read(&path).unwrap();
    std::fs::write(&path, with_header(VERSION + 1)).unwrap();
    let newer = Rig::<Puppet>::again(seed.clone()).map(|_| ()).unwrap_err();
    assert!(
        matches!(newer, EngineError::JournalVersion { version, .. } if version == VERSION + 1),
        "{newer}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), with_header(VERSION + 1), "and it is left as it was");

    std::fs::write(&path, &file).unwrap();
    let mut small = seed.clone();
    small.config.requests_max = 2;
    small.config.depth = 2;
    let full = Rig::<Puppet>::again(small).map(|_| ()).unwrap_err();
    assert!(full.to_string().contains("requests_max") && full.to_string().contains('3'), "{full}");
    let dormant = Rig::<Puppet>::again(seed).unwrap().parts.dormant;
    assert_eq!(dormant[0].owed, 3);
}

#[test]
fn a_damaged_session_is_refused_and_another_one_goes_on() {
    let (mut rig, mut client, path) = busy();
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let mut other = rig.open(volume, 16);
    let seed = rig.seed();
    drop(rig);
    let mut file = std::fs::read(&path).unwrap();
    file[4096 + 16] ^= 1; // sq_head of the first queue
    std::fs::write(&path, &file).unwrap();
    let mut rig = Rig::<Puppet>::again(seed).unwrap();
    let unfit: Vec<bool> = rig.parts.dormant.iter().map(|dormant| dormant.unfit.is_some()).collect();
    assert_eq!(unfit, [true, false]);
    let volume = rig.add_volume(Arc::new(Target::null(VOLUME_BYTES, 512)));
    let refused = rig.resume(&mut client, &[volume]).unwrap_err();
    assert!(matches!(refused, EngineError::Unfit { .. }) && refused.errno() == errno::ESTALE, "{refused}");
    rig.resume(&mut other, &[volume]).unwrap();
    other.submit(&[request(Opcode::Read, 9, 0)]);
    rig.turn_until("the request", |_| puppet::in_flight().len() == 1);
}
