//! Who gets how much: weights, groups and limits of sessions, limits of volumes, goals of engines.
//!
//! The engines do it ([`ferrio_engine::scheduler`]), each for itself. Here is what the operator says, for all of them:
//!
//! | what | where it comes from | where it is kept |
//! |---|---|---|
//! | weight, group and limit of a session | `[[group]]`, `[session]`; `Scheduling.SetSession`, `SetLimit` | [`crate::sessions`] |
//! | limit of a group | `[group.limit]`; `SetLimit` | [`crate::sessions`] |
//! | limit of a volume | `[volume.limit]`; `SetLimit` | [`crate::volumes`] |
//! | latency goal and budgets of an engine | `[[engine]]`; `SetEngine` | the engine |
//!
//! What comes from calls is gone with the daemon: sessions that the next one resumes are what its configuration says.

pub mod error;
pub mod latency_goal;
pub mod limit;

use std::fmt;

use ferrio_api::v1;
use ferrio_engine::Limit;
use ferrio_shm::peer::PeerIdentity;

use crate::config::{GroupSection, SessionSection, is_name};
use error::ScheduleError;

/// What a session has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its share of each class beside others.
    pub weight: u32,
    /// Group whose limit holds for it.
    pub group: Option<String>,
    /// Its own limit, over all engines.
    pub limit: Limit,
}

/// What the configuration says of sessions.
#[derive(Debug)]
pub struct Shares {
    session: SessionSection,
    groups: Vec<GroupSection>,
}

impl Shares {
    /// From its sections.
    pub fn new(session: SessionSection, groups: Vec<GroupSection>) -> Self {
        Self { session, groups }
    }

    /// What sessions of `peer` have: the first group that names its user or one of its groups decides.
    pub fn share_of(&self, peer: &PeerIdentity) -> Share {
        let names = |group: &&GroupSection| {
            group.uids.contains(&peer.uid) || group.gids.iter().any(|gid| peer.in_group(*gid))
        };
        let (session, group) = match self.groups.iter().find(names) {
            Some(group) => (&group.session, Some(group.name.value.clone())),
            None => (&self.session, None),
        };
        Share { weight: session.weight, group, limit: session.limit }
    }

    /// The groups there are, whether anybody is in them or not.
    pub fn groups(&self) -> &[GroupSection] {
        &self.groups
    }
}

/// What a limit is set on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A volume, by its name.
    Volume(String),
    /// A session, by its id.
    Session(u64),
    /// A group, by its name.
    Group(String),
}

impl Scope {
    /// From the wire.
    ///
    /// # Errors
    /// It is none or several, or a group that cannot be called so.
    pub fn from_wire(scope: Option<v1::LimitScope>) -> Result<Self, ScheduleError> {
        let v1::LimitScope { volume, session_id, group } = scope.unwrap_or_default();
        match (volume.is_empty(), session_id, group.is_empty()) {
            (false, 0, true) => Ok(Self::Volume(volume)),
            (true, 1.., true) => Ok(Self::Session(session_id)),
            (true, 0, false) if is_name(&group) => Ok(Self::Group(group)),
            (true, 0, false) => Err(ScheduleError::GroupName(group.chars().take(64).collect())),
            _ => Err(ScheduleError::Scope),
        }
    }

    /// To the wire.
    pub fn to_wire(&self) -> v1::LimitScope {
        let mut wire = v1::LimitScope::default();
        match self {
            Self::Volume(name) => wire.volume.clone_from(name),
            Self::Session(session_id) => wire.session_id = *session_id,
            Self::Group(name) => wire.group.clone_from(name),
        }
        wire
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Session(session_id) => write!(f, "session {session_id}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::At;
    use ferrio_engine::{Rate, Split};

    fn limit(per_second: u64) -> Limit {
        let total = Some(Rate::new(per_second));
        Limit { iops: Split { total, ..Split::default() }, ..Limit::default() }
    }

    fn group(name: &str, uids: &[u32], gids: &[u32], weight: u32) -> GroupSection {
        GroupSection {
            name: At::default_value(name.to_owned()),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
            session: SessionSection { weight, limit: limit(weight.into()) },
            limit: Limit::default(),
        }
    }

    #[test]
    fn the_first_group_that_names_user_or_group_decides() {
        let default = SessionSection { weight: 100, limit: Limit::default() };
        let groups = vec![group("db", &[1000], &[50], 300), group("batch", &[1000, 1001], &[60], 10)];
        let shares = Shares::new(default, groups);
        // Uid, gid, supplementary groups; group and weight.
        type Case = (u32, u32, &'static [u32], Option<&'static str>, u32);
        let cases: [Case; 6] = [
            (1000, 60, &[60], Some("db"), 300),
            (1001, 1001, &[], Some("batch"), 10),
            (1002, 50, &[], Some("db"), 300),
            (1002, 1002, &[4, 60], Some("batch"), 10),
            (1002, 1002, &[4], None, 100),
            (0, 0, &[0], None, 100),
        ];
        for (uid, gid, supplementary, wanted, weight) in cases {
            let peer = PeerIdentity { pid: 1, uid, gid, groups: supplementary.to_vec() };
            let share = shares.share_of(&peer);
            assert_eq!((share.group.as_deref(), share.weight), (wanted, weight), "{peer:?}");
            let own = if wanted.is_some() { limit(weight.into()) } else { Limit::default() };
            assert_eq!(share.limit, own, "{peer:?}");
        }
    }

    #[test]
    fn a_scope_is_exactly_one() {
        for scope in [Scope::Volume("v".into()), Scope::Session(7), Scope::Group("g".into())] {
            assert_eq!(Scope::from_wire(Some(scope.to_wire())).expect("one"), scope);
        }
        let both = v1::LimitScope { volume: "v".into(), session_id: 1, group: String::new() };
        for wrong in [None, Some(v1::LimitScope::default()), Some(both)] {
            assert!(matches!(Scope::from_wire(wrong), Err(ScheduleError::Scope)));
        }
        let odd = v1::LimitScope { group: "a b".into(), ..v1::LimitScope::default() };
        assert!(Scope::from_wire(Some(odd)).expect_err("no name").to_string().contains("\"a b\""));
    }
}
