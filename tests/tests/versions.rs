//! What another release or a damaged file left in the runtime directory is recognised, never misread: taken over, refused with
//! words that say what to do, or set aside at the cost of what it damaged.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ferrio_engine::journal::words::header_check;
use ferrio_tests::{Daemon, DaemonBuilder, Worker, mix::Restarts, worker::Failure};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const VOLUMES: [&str; 2] = ["one", "two"];

/// Where `src/engine/src/journal.rs` says that they stand.
const VERSION_AT: u64 = 8;
const CELLS_AT: u64 = 4096;
const CELL_BYTES: u64 = 128;
const RECORD_BYTES: u64 = 128;
/// Of the engine, so that the records in use are near the start.
const REQUESTS_MAX: u64 = 256;
const QUEUES: u64 = 4;

/// Its name, and how it is done.
type Damage = (&'static str, fn(&Path));

fn builder() -> DaemonBuilder {
    let more = format!("queue_depth = 64\nrequests_max = {REQUESTS_MAX}");
    let builder = DaemonBuilder::new().engine("main", "auto", &more);
    VOLUMES.iter().fold(builder, |builder, volume| builder.file(volume, MIB))
}

fn start(daemon: &Daemon, volume: &'static str) -> Worker {
    Worker::start(daemon, volume, Restarts::Damaged)
}

/// A daemon that was killed under the load of a client on each volume.
fn killed() -> (Daemon, Vec<Worker>) {
    let mut daemon = builder().start();
    let workers: Vec<Worker> = VOLUMES.into_iter().map(|volume| start(&daemon, volume)).collect();
    workers.iter().for_each(|worker| worker.wait_for_rounds(1));
    std::thread::sleep(Duration::from_millis(fastrand::u64(..20)));
    daemon.end(Signal::KILL);
    (daemon, workers)
}

fn journal(daemon: &Daemon) -> PathBuf {
    daemon.path("run/journal/main")
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn flip(path: &Path, bit: u64) {
    let mut byte = [0];
    fs::File::open(path).unwrap().read_exact_at(&mut byte, bit / 8).unwrap();
    patch(path, bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
}

fn cut(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// It went on as if nothing had been, or its session ended with words. Anything else is a failure.
#[track_caller]
fn went_on(worker: Worker, what: &str) -> bool {
    match worker.finish() {
        Ok(_) => true,
        Err(Failure::Ended(words)) => {
            println!("{what}: {words}");
            false
        }
        Err(Failure::Wrong(wrong)) => panic!("{what}: {wrong}"),
    }
}

/// The daemon serves new sessions.
#[track_caller]
fn serves(daemon: &Daemon, what: &str) {
    assert!(went_on(start(daemon, VOLUMES[0]), what), "{what}: a new session was not served");
}

fn set_aside(daemon: &Daemon, path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let directory = daemon.path("run/journal");
    let below = [directory.clone(), directory.join("sessions")];
    let mut entries = below.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    entries.any(|entry| {
        let found = entry.file_name().to_string_lossy().into_owned();
        found.starts_with(&name) && found.contains("damaged")
    })
}

#[test]
fn an_older_journal_is_replaced_and_its_sessions_end() {
    let (mut daemon, workers) = killed();
    patch(&journal(&daemon), VERSION_AT, &1u64.to_le_bytes());
    daemon.restart();
    for worker in workers {
        assert!(!went_on(worker, "version 1"), "resumed from a journal that cannot be read");
    }
    let log = daemon.log();
    assert!(log.contains("version 1"), "the log does not say what was found:\n{log}");
    serves(&daemon, "version 1");
}

#[test]
fn a_newer_journal_is_left_alone_for_the_release_that_wrote_it() {
    let (mut daemon, workers) = killed();
    let path = journal(&daemon);
    let whole = fs::read(&path).unwrap();
    let mut header: Vec<u64> = whole[..64].as_chunks().0.iter().copied().map(u64::from_le_bytes).collect();
    header[1] = 99;
    header[7] = header_check(&header[..7]);
    let newer: Vec<u8> = header.into_iter().flat_map(u64::to_le_bytes).collect();
    patch(&path, 0, &newer);
    daemon.spawn();
    let refused = daemon.ended();
    assert_ne!(refused.code(), 0);
    let words = &refused.stderr;
    assert!(
        words.contains("99") && words.contains(path.to_str().unwrap()),
        "it does not say what is wrong:\n{words}"
    );
    let left = fs::read(&path).unwrap();
    assert!(
        left[..64] == newer && left[64..] == whole[64..],
        "the journal of the newer release was written to"
    );
    patch(&path, 0, &whole[..64]);
    daemon.restart();
    for worker in workers {
        assert!(went_on(worker, "the journal of this release again"));
    }
}

#[test]
fn a_journal_without_its_header_is_set_aside() {
    let damages: [Damage; 4] = [
        ("another magic", |path| patch(path, 0, b"FERRIOX")),
        ("a header of zeroes", |path| patch(path, 0, &[0; 4096])),
        ("a flipped bit in the header", |path| flip(path, 8 * 24 + 1)),
        ("an empty file", |path| cut(path, 0)),
    ];
    for (what, damage) in damages {
        let (mut daemon, workers) = killed();
        let path = journal(&daemon);
        damage(&path);
        daemon.restart();
        for worker in workers {
            assert!(!went_on(worker, what), "{what}: resumed from a journal that cannot be read");
        }
        assert!(set_aside(&daemon, &path), "{what}: not kept for people; the log:\n{}", daemon.log());
        serves(&daemon, what);
    }
}

#[test]
fn a_journal_that_is_cut_off_costs_what_is_missing() {
    for (what, bytes) in [("the header alone", 100), ("some cells", CELLS_AT + 4096)] {
        let (mut daemon, workers) = killed();
        cut(&journal(&daemon), bytes);
        daemon.restart();
        for worker in workers {
            // One that was owed nothing goes on.
            went_on(worker, what);
        }
        serves(&daemon, what);
    }
}

#[test]
fn pages_of_zeroes_cost_what_they_hit() {
    let (mut daemon, mut workers) = killed();
    let cells_max = u64::from_le_bytes(fs::read(journal(&daemon)).unwrap()[24..32].try_into().unwrap());
    let records_at = CELLS_AT + CELL_BYTES * cells_max;
    for (what, at, bytes) in [
        ("records that nobody uses", records_at + RECORD_BYTES * (REQUESTS_MAX - 16), 16 * RECORD_BYTES),
        ("records", records_at, 16 * RECORD_BYTES),
        ("all cells", CELLS_AT, CELL_BYTES * cells_max),
    ] {
        patch(&journal(&daemon), at, &vec![0; bytes as usize]);
        daemon.restart();
        let went: Vec<bool> = workers.drain(..).map(|worker| went_on(worker, what)).collect();
        match what {
            "all cells" => assert_eq!(went, [false, false], "resumed without knowing where"),
            "records" => {}
            _ => assert_eq!(went, [true, true], "{what}"),
        }
        workers.extend(VOLUMES.map(|volume| start(&daemon, volume)));
        workers.iter().for_each(|worker| worker.wait_for_rounds(1));
        daemon.end(Signal::KILL);
    }
    daemon.restart();
    assert!(workers.into_iter().all(|worker| went_on(worker, "nothing damaged")));
}

#[test]
fn a_flipped_bit_costs_one_session_at_most() {
    let (mut daemon, mut workers) = killed();
    let cells_max = u64::from_le_bytes(fs::read(journal(&daemon)).unwrap()[24..32].try_into().unwrap());
    let records_at = CELLS_AT + CELL_BYTES * cells_max;
    let mut ended = 0;
    for round in 0..16 {
        // Half of them in the cells of the four queues, half in records.
        let (at, bytes) =
            if round % 2 == 0 { (CELLS_AT, QUEUES * CELL_BYTES) } else { (records_at, 128 * RECORD_BYTES) };
        let bit = 8 * at + fastrand::u64(..8 * bytes);
        let what = format!("bit {bit} of the journal, whose records start at byte {records_at}");
        flip(&journal(&daemon), bit);
        daemon.restart();
        let went: Vec<bool> = workers.drain(..).map(|worker| went_on(worker, &what)).collect();
        assert!(went.contains(&true), "{what}: it cost two sessions:\n{}", daemon.log());
        ended += went.iter().filter(|went| !**went).count();
        workers.extend(VOLUMES.map(|volume| start(&daemon, volume)));
        workers.iter().for_each(|worker| worker.wait_for_rounds(1));
        daemon.end(Signal::KILL);
    }
    println!("{ended} sessions ended");
    daemon.restart();
    assert!(workers.into_iter().all(|worker| went_on(worker, "nothing damaged")));
}

#[test]
fn a_damaged_session_file_costs_its_session_alone() {
    let damages: [Damage; 8] = [
        ("cut off", |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("empty", |path| fs::write(path, "").unwrap()),
        ("zeroes", |path| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap()),
        ("a flipped bit", |path| flip(path, fastrand::u64(..8 * fs::metadata(path).unwrap().len()))),
        ("version 99", |path| patch(path, 8, &99u32.to_le_bytes())),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a link", |path| {
            let elsewhere = path.with_extension("elsewhere");
            fs::rename(path, &elsewhere).unwrap();
            fs::rename(&elsewhere, path.parent().unwrap().parent().unwrap().join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("../elsewhere", path).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        let (mut daemon, workers) = killed();
        let files = fs::read_dir(daemon.path("run/journal/sessions")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2, "{files:?}");
        damage(&files[0]);
        daemon.restart();
        let went = workers.into_iter().map(|worker| went_on(worker, what)).filter(|went| *went);
        assert_eq!(went.count(), 1, "{what}: the log:\n{}", daemon.log());
        let (log, name) = (daemon.log(), files[0].file_name().unwrap().to_str().unwrap());
        assert!(
            log.contains(&format!("session {name} ")),
            "{what}: the log does not name session {name}:\n{log}"
        );
        serves(&daemon, what);
    }
}
