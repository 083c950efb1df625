//! Weight, group and limit of sessions, and limits of groups, while they do I/O.
//!
//! An engine limits what its own queues do. So a limit of a session with queues at several engines, or of a group with such
//! sessions, is divided evenly among these engines: together they never let more through than the limit. Every engine has
//! the limit of every group, also those that the group does not use now: who comes to one of them does not find a full bucket.

use std::collections::BTreeSet;

use ferrio_engine::{EngineError, Limit, Scope as EngineScope, WEIGHT_MAX};

use super::{EngineState, Session, Sessions, State, Table};
use crate::scheduling::error::ScheduleError;
use crate::scheduling::limit::part;
use crate::scheduling::{Scope, Share};

/// A limit of a group that is set.
pub(super) struct GroupLimit {
    limit: Limit,
    /// Among so many engines it is divided.
    parts: u64,
}

impl Sessions {
    /// Sets the limits of the groups that are configured. Once, before any session is opened.
    ///
    /// # Errors
    /// An engine has stopped.
    pub fn set_group_limits(&self) -> Result<(), EngineError> {
        let mut table = self.table();
        for group in self.shares.groups() {
            self.limit_group(&mut table, &group.name.value, group.limit)?;
        }
        Ok(())
    }

    /// Changes weight and group of a session; `Some(None)`: it is in no group.
    ///
    /// # Errors
    /// A value out of range, no such session or group, or a session that is not served.
    pub fn set_share(
        &self,
        session_id: u64,
        weight: Option<u32>,
        group: Option<Option<String>>,
    ) -> Result<(), ScheduleError> {
        if let Some(weight) = weight.filter(|weight| !(1..=WEIGHT_MAX).contains(weight)) {
            let (value, max) = (weight.into(), WEIGHT_MAX.into());
            return Err(ScheduleError::Range { field: "weight", value, min: 1, max });
        }
        let mut table = self.table();
        if let Some(Some(name)) = &group {
            self.check_group(&table, name)?;
        }
        let session = table.by_id.get_mut(&session_id).ok_or(ScheduleError::NoSession(session_id))?;
        session.check_served(session_id)?;
        for engine in self.engines_of(session) {
            if let Some(weight) = weight {
                engine.set_weight(session_id, weight)?;
            }
            if let Some(group) = &group {
                engine.set_group(session_id, group.clone())?;
            }
        }
        session.share.weight = weight.unwrap_or(session.share.weight);
        if let Some(group) = group {
            session.share.group = group;
            self.divide_group_limits(&mut table);
        }
        Ok(())
    }

    /// Sets, changes or, by [`Limit::default`], takes away the limit of a session.
    ///
    /// # Errors
    /// No such session, or it is not served.
    pub fn set_limit(&self, session_id: u64, limit: Limit) -> Result<(), ScheduleError> {
        let mut table = self.table();
        let session = table.by_id.get_mut(&session_id).ok_or(ScheduleError::NoSession(session_id))?;
        session.check_served(session_id)?;
        session.share.limit = limit;
        Ok(self.apply_limit(session_id, session)?)
    }

    /// Sets, changes or takes away the limit of a group. A limit makes a group that there was not.
    ///
    /// # Errors
    /// There is no such group, and it is not to be made.
    pub fn set_group_limit(&self, name: &str, limit: Limit) -> Result<(), ScheduleError> {
        let mut table = self.table();
        if limit.is_unlimited() {
            self.check_group(&table, name)?;
        }
        Ok(self.limit_group(&mut table, name, limit)?)
    }

    /// Limits in force of sessions and groups, in this order.
    pub fn limits(&self) -> Vec<(Scope, Limit)> {
        let table = self.table();
        let sessions = table.by_id.iter().filter(|(_, session)| !session.share.limit.is_unlimited());
        let sessions = sessions.map(|(id, session)| (Scope::Session(*id), session.share.limit));
        let groups = table.groups.iter().map(|(name, group)| (Scope::Group(name.clone()), group.limit));
        sessions.chain(groups).collect()
    }

    /// Groups, and how many sessions are in each: those of the configuration in its order, then the others by name.
    pub fn groups(&self) -> Vec<(String, u32)> {
        let table = self.table();
        let mut names: Vec<String> =
            self.shares.groups().iter().map(|group| group.name.value.clone()).collect();
        let others: BTreeSet<&String> = table.groups.keys().chain(table.groups_of_sessions()).collect();
        let others: Vec<String> = others.into_iter().filter(|name| !names.contains(name)).cloned().collect();
        names.extend(others);
        let sessions = |name: &String| table.groups_of_sessions().filter(|group| *group == name).count();
        names
            .into_iter()
            .map(|name| {
                let sessions = u32::try_from(sessions(&name)).unwrap_or(u32::MAX);
                (name, sessions)
            })
            .collect()
    }

    /// Name of a client, for lists.
    pub fn client_names(&self) -> Vec<(u64, String)> {
        let table = self.table();
        table.by_id.iter().map(|(id, session)| (*id, session.client_name.clone())).collect()
    }

    /// An engine has taken a session in, or gone on with it: its limit holds before the client hears of that.
    pub(super) fn apply_limit(&self, session_id: u64, session: &Session) -> Result<(), EngineError> {
        let part = part(&session.share.limit, session.engines.len() as u64);
        for engine in self.engines_of(session) {
            engine.set_limit(EngineScope::Session(session_id), part)?;
        }
        Ok(())
    }

    /// Sessions came or went, or changed their group.
    pub(super) fn divide_group_limits(&self, table: &mut Table) {
        if self.engines.len() == 1 {
            return;
        }
        let names: Vec<(String, Limit)> =
            table.groups.iter().map(|(name, group)| (name.clone(), group.limit)).collect();
        for (name, limit) in names {
            if table.groups[&name].parts != table.engines_of_group(&name)
                && let Err(error) = self.limit_group(table, &name, limit)
            {
                tracing::error!("group {name}: its limit is not divided anew: {error}");
            }
        }
    }

    fn limit_group(&self, table: &mut Table, name: &str, limit: Limit) -> Result<(), EngineError> {
        let parts = table.engines_of_group(name);
        for engine in &self.engines {
            engine.set_limit(EngineScope::Group(name.to_owned()), part(&limit, parts))?;
        }
        if limit.is_unlimited() {
            table.groups.remove(name);
        } else {
            table.groups.insert(name.to_owned(), GroupLimit { limit, parts });
        }
        Ok(())
    }

    fn check_group(&self, table: &Table, name: &str) -> Result<(), ScheduleError> {
        let configured = self.shares.groups().iter().map(|group| &group.name.value);
        let known: BTreeSet<&String> =
            configured.chain(table.groups.keys()).chain(table.groups_of_sessions()).collect();
        if known.contains(&name.to_owned()) {
            return Ok(());
        }
        let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(ScheduleError::NoGroup { name: name.to_owned(), known })
    }

    /// The engines that serve a session now.
    fn engines_of<'a>(&'a self, session: &'a Session) -> impl Iterator<Item = &'a ferrio_engine::Engine> {
        let places = session.plan.engines.iter().zip(&session.engines);
        let serving = places.filter(|(_, state)| **state == EngineState::Serving);
        serving.map(|(index, _)| &self.engines[*index])
    }
}

impl Session {
    /// What it is can be changed.
    fn check_served(&self, session_id: u64) -> Result<(), ScheduleError> {
        let (state, fix) = match self.state {
            State::Opened { .. } | State::Active => return Ok(()),
            State::Waiting(_) => {
                ("waiting for its client after a restart", "try again when it has come back")
            }
            State::Faulted { .. } => ("faulted", "nothing is taken from it any more"),
            State::Draining { .. } => ("ending", "nothing is taken from it any more"),
        };
        Err(ScheduleError::NotServed { session_id, state, fix })
    }
}

impl Table {
    /// The group of each session that has one.
    fn groups_of_sessions(&self) -> impl Iterator<Item = &String> {
        self.by_id.values().filter_map(|session| session.share.group.as_ref())
    }

    /// At how many engines a group has queues; 1 at least.
    fn engines_of_group(&self, name: &str) -> u64 {
        let of_group = |session: &&Session| session.share.group.as_deref() == Some(name);
        let places = self.by_id.values().filter(of_group).flat_map(|session| {
            let places = session.plan.engines.iter().zip(&session.engines);
            places.filter(|(_, state)| **state == EngineState::Serving).map(|(engine, _)| *engine)
        });
        (places.collect::<BTreeSet<usize>>().len() as u64).max(1)
    }
}

impl Share {
    /// What nobody has set: for a session whose client has not come back yet.
    pub(super) fn unknown() -> Self {
        Self { weight: ferrio_engine::DEFAULT_WEIGHT, group: None, limit: Limit::default() }
    }
}
