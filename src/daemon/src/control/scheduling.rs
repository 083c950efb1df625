//! `ferrio.v1.Scheduling`.

use std::collections::HashMap;

use ferrio_api::v1::{self, scheduling_server::Scheduling};
use ferrio_api::v1::{
    Class, ClassSchedule, ClearLimitRequest, ClearLimitResponse, EngineSchedule, GetSchedulingRequest,
    GetSchedulingResponse, Group, ScopedLimit, SessionSchedule, SetEngineRequest, SetEngineResponse,
    SetLimitRequest, SetLimitResponse, SetSessionRequest, SetSessionResponse,
};
use ferrio_engine::{Engine, EngineSnapshot, Limit, MergeLimits, ScheduleSnapshot, Scope as EngineScope};
use tonic::{Request, Response, Status};

use super::{Daemon, incoming};
use crate::config::keys;
use crate::scheduling::error::ScheduleError;
use crate::scheduling::{Scope, latency_goal, limit};

/// By class index.
const CLASSES: [Class; 3] = [Class::Prio, Class::Read, Class::Write];

#[tonic::async_trait]
impl Scheduling for Daemon {
    async fn get(&self, _: Request<GetSchedulingRequest>) -> Result<Response<GetSchedulingResponse>, Status> {
        Ok(Response::new(self.schedule()?))
    }

    async fn set_limit(
        &self,
        request: Request<SetLimitRequest>,
    ) -> Result<Response<SetLimitResponse>, Status> {
        let peer = incoming::admin(&request, "set limits")?;
        self.check_running()?;
        let SetLimitRequest { scope, limit } = request.into_inner();
        let scope = Scope::from_wire(scope)?;
        let limit = limit::from_wire(&limit.unwrap_or_default()).map_err(ScheduleError::Limit)?;
        if limit.is_unlimited() {
            return Err(ScheduleError::NoRate.into());
        }
        self.limit(&scope, limit)?;
        tracing::info!("{scope}: limited to {} by uid {}", limit::words(&limit), peer.uid);
        Ok(Response::new(SetLimitResponse {}))
    }

    async fn clear_limit(
        &self,
        request: Request<ClearLimitRequest>,
    ) -> Result<Response<ClearLimitResponse>, Status> {
        let peer = incoming::admin(&request, "clear limits")?;
        self.check_running()?;
        let scope = Scope::from_wire(request.into_inner().scope)?;
        self.limit(&scope, Limit::default())?;
        tracing::info!("{scope}: not limited any more, by uid {}", peer.uid);
        Ok(Response::new(ClearLimitResponse {}))
    }

    async fn set_session(
        &self,
        request: Request<SetSessionRequest>,
    ) -> Result<Response<SetSessionResponse>, Status> {
        let peer = incoming::admin(&request, "set weights and groups of sessions")?;
        self.check_running()?;
        let SetSessionRequest { session_id, weight, group } = request.into_inner();
        if weight.is_none() && group.is_none() {
            return Err(ScheduleError::Nothing("weight or group").into());
        }
        let group = group.map(|name| Some(name).filter(|name| !name.is_empty()));
        self.sessions.set_share(session_id, weight, group.clone())?;
        if let Some(weight) = weight {
            tracing::info!("session {session_id}: weight {weight}, set by uid {}", peer.uid);
        }
        if let Some(group) = group {
            let group = group.map_or("no group".to_owned(), |group| format!("group {group}"));
            tracing::info!("session {session_id}: {group}, set by uid {}", peer.uid);
        }
        Ok(Response::new(SetSessionResponse {}))
    }

    async fn set_engine(
        &self,
        request: Request<SetEngineRequest>,
    ) -> Result<Response<SetEngineResponse>, Status> {
        let peer = incoming::admin(&request, "set how engines schedule")?;
        self.check_running()?;
        let SetEngineRequest { engine, latency_goal, budgets, merge_bytes_max, merge_requests_max } =
            request.into_inner();
        let goal = latency_goal.map(check_goal).transpose()?;
        let budgets = if budgets.is_empty() { None } else { Some(check_budgets(&budgets)?) };
        let merges = merge_bytes_max.is_some() || merge_requests_max.is_some();
        if goal.is_none() && budgets.is_none() && !merges {
            return Err(ScheduleError::Nothing("latency_goal, budgets or merge limits").into());
        }
        check_merge(merge_bytes_max, merge_requests_max)?;
        for engine in self.engines_called(&engine)? {
            if let Some(goal) = goal {
                engine.set_latency_goal(goal).map_err(ScheduleError::Engine)?;
                let (name, uid) = (&engine.info().name, peer.uid);
                tracing::info!("engine {name}: latency goal {}, set by uid {uid}", latency_goal::words(goal));
            }
            if let Some(budgets) = budgets {
                engine.set_budgets(budgets).map_err(ScheduleError::Engine)?;
                let (name, uid) = (&engine.info().name, peer.uid);
                tracing::info!("engine {name}: budgets {budgets:?} (prio, read, write), set by uid {uid}");
            }
            if merges {
                let merge = set_merge(engine, merge_bytes_max, merge_requests_max)?;
                let (name, uid) = (&engine.info().name, peer.uid);
                let MergeLimits { bytes_max, segments_max } = merge;
                tracing::info!(
                    "engine {name}: joins up to {segments_max} requests of {bytes_max} bytes, set by uid {uid}"
                );
            }
        }
        Ok(Response::new(SetEngineResponse {}))
    }
}

fn check_goal(goal: v1::LatencyGoal) -> Result<ferrio_engine::LatencyGoal, ScheduleError> {
    latency_goal::from_wire(goal).map_err(|(field, value, min, max)| ScheduleError::Range {
        field,
        value,
        min,
        max,
    })
}

fn check_budgets(budgets: &[u32]) -> Result<ferrio_engine::Budgets, ScheduleError> {
    let three = budgets.try_into().map_err(|_| ScheduleError::Budgets(budgets.len()))?;
    let keys::Number { min, max, .. } = keys::BUDGET_PRIO;
    match budgets.iter().find(|budget| !(min..=max).contains(&u64::from(**budget))) {
        None => Ok(three),
        Some(budget) => Err(ScheduleError::Range { field: "budgets", value: u64::from(*budget), min, max }),
    }
}

fn check_merge(bytes: Option<u32>, requests: Option<u32>) -> Result<(), ScheduleError> {
    let keys::Size { min, max, .. } = keys::MERGE_BYTES_MAX;
    let keys::Number { min: requests_min, max: requests_max, .. } = keys::MERGE_REQUESTS_MAX;
    let rows =
        [("merge_bytes_max", bytes, min, max), ("merge_requests_max", requests, requests_min, requests_max)];
    for (field, value, min, max) in rows {
        let value = value.map_or(min, u64::from);
        if !(min..=max).contains(&value) {
            return Err(ScheduleError::Range { field, value, min, max });
        }
    }
    Ok(())
}

/// What is not given stays as it is; an engine that joins nothing has no limit in bytes to keep.
fn set_merge(
    engine: &Engine,
    bytes: Option<u32>,
    requests: Option<u32>,
) -> Result<MergeLimits, ScheduleError> {
    let now = engine.schedule()?.merge;
    let usual = if now == MergeLimits::OFF { MergeLimits::default().bytes_max } else { now.bytes_max };
    let merge =
        MergeLimits { bytes_max: bytes.unwrap_or(usual), segments_max: requests.unwrap_or(now.segments_max) };
    engine.set_merge(merge)?;
    Ok(merge)
}

impl Daemon {
    fn limit(&self, scope: &Scope, limit: Limit) -> Result<(), ScheduleError> {
        match scope {
            Scope::Volume(name) => Ok(self.changes.set_limit(name, limit)?),
            Scope::Session(session_id) => self.sessions.set_limit(*session_id, limit),
            Scope::Group(name) => self.sessions.set_group_limit(name, limit),
        }
    }

    fn engines_called(&self, name: &str) -> Result<Vec<&Engine>, ScheduleError> {
        let called = |engine: &&Engine| name.is_empty() || engine.info().name == name;
        let found: Vec<&Engine> = self.engines.iter().filter(called).collect();
        if found.is_empty() {
            let name = name.to_owned();
            return Err(ScheduleError::NoEngine { name, known: self.changes.engine_names().join(", ") });
        }
        Ok(found)
    }

    fn schedule(&self) -> Result<GetSchedulingResponse, ScheduleError> {
        let engines = self.engines.iter().map(Engine::schedule);
        let snapshots = engines.collect::<Result<Vec<ScheduleSnapshot>, _>>()?;
        let counted = self.sessions.snapshots();
        let names: HashMap<u64, String> = self.sessions.client_names().into_iter().collect();
        let engines = self.engines.iter().zip(snapshots.iter().zip(&counted));
        let configured = |name: &str| self.config.groups.iter().any(|group| group.name.value == name);
        let groups = self.sessions.groups().into_iter().map(|(name, sessions)| Group {
            configured: configured(&name),
            name,
            sessions,
        });
        Ok(GetSchedulingResponse {
            engines: engines
                .map(|(engine, (snapshot, counted))| show(&engine.info().name, snapshot, counted, &names))
                .collect(),
            limits: self.limits(&snapshots),
            groups: groups.collect(),
        })
    }

    /// Limits in force, with what the engines made of them.
    fn limits(&self, snapshots: &[ScheduleSnapshot]) -> Vec<ScopedLimit> {
        let throttled = |engines: &[ScheduleSnapshot], scope: &EngineScope| -> u64 {
            let limits = engines.iter().flat_map(|snapshot| &snapshot.limits);
            limits.filter(|limit| limit.scope == *scope).map(|limit| limit.throttles).sum()
        };
        let shown = |scope: Scope, limit: &Limit, throttled| ScopedLimit {
            scope: Some(scope.to_wire()),
            limit: Some(limit::to_wire(limit)),
            throttled,
        };
        let volumes = self.volumes.list();
        let volumes = volumes.iter().filter(|volume| !volume.limit.is_unlimited()).map(|volume| {
            let own = snapshots.get(volume.engine).map_or(&[][..], std::slice::from_ref);
            let throttled = volume.id().map_or(0, |id| throttled(own, &EngineScope::Volume(id)));
            shown(Scope::Volume(volume.name().to_owned()), &volume.limit, throttled)
        });
        let others = self.sessions.limits().into_iter().map(|(scope, limit)| {
            let known = match &scope {
                Scope::Group(name) => EngineScope::Group(name.clone()),
                Scope::Session(session_id) => EngineScope::Session(*session_id),
                Scope::Volume(_) => unreachable!("sessions have no limits of volumes"),
            };
            let throttled = throttled(snapshots, &known);
            shown(scope, &limit, throttled)
        });
        volumes.chain(others).collect()
    }
}

fn show(
    name: &str,
    snapshot: &ScheduleSnapshot,
    counted: &EngineSnapshot,
    client_names: &HashMap<u64, String>,
) -> EngineSchedule {
    let classes = snapshot.classes.iter().zip(&counted.classes);
    let classes = CLASSES.iter().zip(classes).map(|(class, (shot, counted))| ClassSchedule {
        class: (*class).into(),
        budget: shot.budget,
        waiting: shot.waiting,
        starved_us: shot.starved / 1_000,
        merged: counted.counters.merged,
    });
    let sessions = snapshot.sessions.iter().map(|session| SessionSchedule {
        session_id: session.session_id,
        client_name: client_names.get(&session.session_id).cloned().unwrap_or_default(),
        weight: session.weight,
        group: session.group.clone().unwrap_or_default(),
    });
    let latency = &snapshot.latency;
    EngineSchedule {
        engine: name.to_owned(),
        classes: classes.collect(),
        latency_goal: Some(latency_goal::to_wire(latency.goal)),
        bulk_cap: latency.cap.unwrap_or(0),
        bulk_capped: latency.cap.is_some(),
        bulk_in_device: latency.bulk,
        cap_cuts: latency.cuts,
        prio_alone_us: latency.alone.unwrap_or(0).div_ceil(1_000),
        throttled: snapshot.throttles,
        sessions: sessions.collect(),
        merge: Some(v1::MergeLimits {
            bytes_max: snapshot.merge.bytes_max,
            requests_max: snapshot.merge.segments_max,
        }),
    }
}
