//! `[session]` and `[[group]]`: what the sessions of which users have.

use ferrio_engine::Limit;

use super::limit::read_limit;
use super::read::{narrow, read_ids, read_name};
use super::reader::{At, Section};
use super::{GroupSection, SessionSection, keys, users};

/// `[session]`.
pub fn read_session(mut section: Section<'_, '_>) -> SessionSection {
    let read = SessionSection {
        weight: narrow(section.number(&keys::WEIGHT)),
        limit: read_limit(section.section_of("limit", "session.limit")),
    };
    section.finish();
    read
}

/// All `[[group]]`s. What they do not say is as in `[session]`.
pub fn read_groups(sections: Vec<Section<'_, '_>>, default: &SessionSection) -> Vec<GroupSection> {
    let mut names = Vec::new();
    let mut groups = Vec::new();
    for mut section in sections {
        let name = read_name(&mut section, "\"batch\"", &names);
        names.push(name.clone());
        let weight = section.number(&keys::WEIGHT);
        let limit = read_limit(section.section_of("limit", "group.limit"));
        groups.push(GroupSection {
            name,
            uids: read_ids(&mut section, "users", "user", "[\"backup\", 1001]", users::uid),
            gids: read_ids(&mut section, "groups", "group", "[\"batch\", 1002]", users::gid),
            session: SessionSection {
                weight: if weight.line > 0 { narrow(weight) } else { default.weight },
                limit: read_session_limit(&mut section, default),
            },
            limit,
        });
        section.finish();
    }
    groups
}

fn read_session_limit(section: &mut Section<'_, '_>, default: &SessionSection) -> Limit {
    let limit = section.section_of("session_limit", "group.session_limit");
    let is_there = limit.line() > 0;
    let read = read_limit(limit);
    if is_there { read } else { default.limit }
}

/// The latency goal of an engine: `"off"`, `"200%"` or `"2 ms"`.
pub fn read_latency_goal(section: &mut Section<'_, '_>) -> ferrio_engine::LatencyGoal {
    use crate::scheduling::latency_goal::{SYNTAX, parse};
    let key = "latency_goal";
    let Some(text) = section.text(key, "\"200%\"") else { return ferrio_engine::LatencyGoal::Off };
    parse(&text.value).unwrap_or_else(|| {
        let written = format!("{:?}", text.value);
        let fix = "write latency_goal = \"200%\", or \"off\"";
        section.refuse(key, &At { value: (), line: text.line }, &written, "is not a goal", SYNTAX, fix);
        ferrio_engine::LatencyGoal::Off
    })
}
