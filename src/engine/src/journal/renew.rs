//! The start of an engine: a new journal, with what the one before it says is owed.
//!
//! The new file is written beside the old one and renamed over it, so that a kill leaves one of the two whole.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{
    Journal, Origin,
    found::{self, Answer, Found, FoundSession, Unreadable},
};
use crate::{
    config::{EngineConfig, EngineError},
    dormant::{Dormant, Place, Waiting},
    kill_point,
};

/// A journal to go on with.
pub struct Renewed {
    pub(crate) journal: Journal,
    /// Sessions that wait for their clients.
    pub(crate) dormant: Dormant,
    /// The highest order of acceptance so far.
    pub(crate) sequence: u64,
}

/// Takes over what the file at `config.journal` says, or begins anew where there is none, or none that can be read.
///
/// # Errors
/// The file cannot be read or written, belongs to a newer ferriod, or says that more is owed than the limits of `config` hold.
pub fn renew(config: &EngineConfig) -> Result<Renewed, EngineError> {
    let path = &config.journal;
    let failed = |source| EngineError::Journal {
        engine: config.name.clone(),
        path: path.clone(),
        bytes: Journal::bytes(config.queues_max, config.requests_max),
        source,
    };
    let found = find(config, path, failed)?;
    kill_point!("recover-read");
    check_limits(config, &found)?;
    let beside = with_suffix(path, ".new");
    let journal =
        Journal::create(&beside, config.queues_max, config.requests_max, config.epoch).map_err(failed)?;
    let sequence = found.sequence;
    let dormant = write(&journal, found);
    kill_point!("recover-written");
    fs::rename(&beside, path).map_err(failed)?;
    kill_point!("recover-renamed");
    Ok(Renewed { journal, dormant, sequence })
}

fn find(
    config: &EngineConfig,
    path: &Path,
    failed: impl Fn(io::Error) -> EngineError,
) -> Result<Found, EngineError> {
    let engine = &config.name;
    let file = match fs::read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::default()),
        Err(error) => return Err(failed(error)),
    };
    match found::read(&file) {
        Ok(found) => {
            report(engine, path, &found);
            Ok(found)
        }
        Err(Unreadable::Newer(version)) => Err(EngineError::JournalVersion {
            engine: engine.clone(),
            path: path.to_owned(),
            version,
            known: super::VERSION,
        }),
        Err(older @ Unreadable::Older(_)) => {
            tracing::warn!(
                engine,
                path = %path.display(),
                "the journal is of an older ferriod ({older}) and is replaced: sessions that it names end, and requests that \
                 were in flight are not answered"
            );
            Ok(Found::default())
        }
        Err(damaged) => {
            let aside = with_suffix(path, ".damaged");
            fs::rename(path, &aside).map_err(failed)?;
            tracing::error!(
                engine,
                path = %path.display(),
                "the journal cannot be read: {damaged}; it was set aside as {}. Sessions that it names end, and requests that \
                 were in flight are not answered; their clients are told so when they come back",
                aside.display()
            );
            Ok(Found::default())
        }
    }
}

fn report(engine: &str, path: &Path, found: &Found) {
    if found.damaged > 0 {
        tracing::error!(
            engine,
            path = %path.display(),
            records = found.damaged,
            "the journal is damaged: what these records held is lost; memory or the tmpfs went bad, or something else wrote \
             to the file"
        );
    }
    for (session, FoundSession { queues, unfit }) in &found.sessions {
        let owed: usize = queues.iter().map(|queue| queue.owed.len()).sum();
        match unfit {
            Some(why) => {
                tracing::error!(engine, session, owed, "the session cannot be resumed: {why}");
            }
            None => tracing::debug!(engine, session, owed, "the session waits for its client"),
        }
    }
}

fn check_limits(config: &EngineConfig, found: &Found) -> Result<(), EngineError> {
    let fit = || found.sessions.values().filter(|session| session.unfit.is_none());
    let queues: usize = fit().map(|session| session.queues.len()).sum();
    let owed: u64 = fit().map(FoundSession::owed).sum();
    let limits = [
        ("sessions", fit().count() as u64, config.sessions_max, "limits.sessions_max"),
        ("queues", queues as u64, config.queues_max, "limits.queues_max"),
        ("requests", owed, config.requests_max, "requests_max of the engine"),
    ];
    match limits.into_iter().find(|(_, needed, limit, _)| *needed > u64::from(*limit)) {
        None => Ok(()),
        Some((what, needed, limit, key)) => Err(EngineError::JournalHolds {
            engine: config.name.clone(),
            path: config.journal.clone(),
            what,
            needed,
            limit,
            key,
        }),
    }
}

/// Fills a fresh journal with what is owed.
fn write(journal: &Journal, found: Found) -> Dormant {
    let mut dormant = Dormant::default();
    let (mut cell, mut record) = (0, 0);
    for (session, FoundSession { queues, unfit }) in found.sessions {
        let queues_of = queues.iter().map(|found| found.queue).collect();
        let mut waiting = Waiting { queues: queues_of, places: Vec::new(), unfit, lost: 0 };
        for found in queues {
            if waiting.unfit.is_some() {
                waiting.lost += found.owed.len() as u64;
                continue;
            }
            journal.open_cell(cell, session, found.queue, found.sq_head, found.cq_tail);
            if found.refuses_chain {
                journal.refuse_chain(cell, found.sq_head);
            }
            let first = record;
            for owed in &found.owed {
                let origin = Origin { session, cell, sq_index: owed.sq_index, sequence: owed.sequence };
                journal.accept(record, &owed.sqe, &origin);
                match owed.answer {
                    Answer::None => {}
                    Answer::Decided(result) => journal.decide(record, result),
                    Answer::Done { result, flags, cq_index } => journal.done(record, result, flags, cq_index),
                }
                record += 1;
            }
            waiting.places.push(Place {
                cell,
                sq_head: found.sq_head,
                cq_tail: found.cq_tail,
                refuses_chain: found.refuses_chain,
                records: (first..record).collect(),
            });
            cell += 1;
        }
        dormant.insert(session, waiting);
    }
    dormant
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
