//! `ferrioctl limit`.

use ferrio_api::v1::scheduling_client::SchedulingClient;
use ferrio_api::v1::{
    ClearLimitRequest, GetSchedulingRequest, Limit, LimitScope, ScopedLimit, SetLimitRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::{LimitArgs, ScopeArgs};
use crate::connect::ANSWER_BYTES_MAX;
use crate::error::CtlError;
use crate::output::{self, Column, bytes, print, print_json};

/// `limit list`.
pub async fn list(channel: Channel, json: bool) -> Result<(), CtlError> {
    let mut client = SchedulingClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let limits = client.get(GetSchedulingRequest {}).await?.into_inner().limits;
    if json { print_json(&to_json(&limits), false) } else { print(&to_table(&limits)) }
}

/// `limit set`.
pub async fn set(channel: Channel, json: bool, args: LimitArgs) -> Result<(), CtlError> {
    let scope = scope(args.scope);
    let (rates, bursts) = (args.rates, args.bursts);
    let limit = Limit {
        iops: rates.iops.unwrap_or(0),
        read_iops: rates.read_iops.unwrap_or(0),
        write_iops: rates.write_iops.unwrap_or(0),
        bytes_per_s: rates.bytes.unwrap_or(0),
        read_bytes_per_s: rates.read_bytes.unwrap_or(0),
        write_bytes_per_s: rates.write_bytes.unwrap_or(0),
        burst_iops: bursts.burst_iops.unwrap_or(0),
        burst_read_iops: bursts.burst_read_iops.unwrap_or(0),
        burst_write_iops: bursts.burst_write_iops.unwrap_or(0),
        burst_bytes: bursts.burst_bytes.unwrap_or(0),
        burst_read_bytes: bursts.burst_read_bytes.unwrap_or(0),
        burst_write_bytes: bursts.burst_write_bytes.unwrap_or(0),
    };
    let request = SetLimitRequest { scope: Some(scope.clone()), limit: Some(limit) };
    SchedulingClient::new(channel).set_limit(request).await?;
    let set = [ScopedLimit { scope: Some(scope), limit: Some(limit), throttled: 0 }];
    if json { print_json(&json!({}), false) } else { print(&to_table(&set)) }
}

/// `limit clear`.
pub async fn clear(channel: Channel, json: bool, args: ScopeArgs) -> Result<(), CtlError> {
    let scope = scope(args);
    let (kind, name) = words(&scope);
    SchedulingClient::new(channel).clear_limit(ClearLimitRequest { scope: Some(scope) }).await?;
    if json { print_json(&json!({}), false) } else { print(&format!("{kind} {name}: not limited any more")) }
}

fn scope(args: ScopeArgs) -> LimitScope {
    LimitScope {
        volume: args.volume.unwrap_or_default(),
        session_id: args.session.unwrap_or(0),
        group: args.group.unwrap_or_default(),
    }
}

fn words(scope: &LimitScope) -> (&'static str, String) {
    if !scope.volume.is_empty() {
        ("volume", scope.volume.clone())
    } else if !scope.group.is_empty() {
        ("group", scope.group.clone())
    } else {
        ("session", scope.session_id.to_string())
    }
}

/// One line per rate.
fn to_table(limits: &[ScopedLimit]) -> String {
    let columns = [
        Column::Left("SCOPE"),
        Column::Left("NAME"),
        Column::Left("WHAT"),
        Column::Right("PER-SECOND"),
        Column::Right("BURST"),
        Column::Right("THROTTLED"),
    ];
    let rows = limits.iter().flat_map(|limited| {
        let (kind, name) = words(&limited.scope.clone().unwrap_or_default());
        let rates = rates(&limited.limit.unwrap_or_default());
        rates.into_iter().enumerate().map(move |(index, (what, rate, burst))| {
            let throttled = if index == 0 { limited.throttled.to_string() } else { String::new() };
            vec![kind.to_owned(), name.clone(), what.to_owned(), rate, burst, throttled]
        })
    });
    output::table(&columns, rows.collect(), "no limits")
}

/// What is limited: its rate and its burst.
fn rates(limit: &Limit) -> Vec<(&'static str, String, String)> {
    let rows = [
        ("requests", limit.iops, limit.burst_iops, false),
        ("reads", limit.read_iops, limit.burst_read_iops, false),
        ("writes", limit.write_iops, limit.burst_write_iops, false),
        ("data", limit.bytes_per_s, limit.burst_bytes, true),
        ("data read", limit.read_bytes_per_s, limit.burst_read_bytes, true),
        ("data written", limit.write_bytes_per_s, limit.burst_write_bytes, true),
    ];
    let shown = |value: u64, is_bytes: bool| if is_bytes { bytes(value) } else { value.to_string() };
    let given = rows.into_iter().filter(|(_, rate, ..)| *rate > 0);
    let given = given.map(|(what, rate, burst, is_bytes)| {
        let burst = if burst == 0 { "-".to_owned() } else { shown(burst, is_bytes) };
        (what, shown(rate, is_bytes), burst)
    });
    given.collect()
}

fn to_json(limits: &[ScopedLimit]) -> Value {
    json!({ "limits": limits.iter().map(limited_json).collect::<Vec<_>>() })
}

/// JSON of a limit in force.
pub fn limited_json(limited: &ScopedLimit) -> Value {
    let scope = limited.scope.clone().unwrap_or_default();
    let limit = limited.limit.unwrap_or_default();
    json!({
        "scope": { "volume": scope.volume, "session_id": scope.session_id, "group": scope.group },
        "limit": {
            "iops": limit.iops,
            "read_iops": limit.read_iops,
            "write_iops": limit.write_iops,
            "bytes_per_s": limit.bytes_per_s,
            "read_bytes_per_s": limit.read_bytes_per_s,
            "write_bytes_per_s": limit.write_bytes_per_s,
            "burst_iops": limit.burst_iops,
            "burst_read_iops": limit.burst_read_iops,
            "burst_write_iops": limit.burst_write_iops,
            "burst_bytes": limit.burst_bytes,
            "burst_read_bytes": limit.burst_read_bytes,
            "burst_write_bytes": limit.burst_write_bytes,
        },
        "throttled": limited.throttled,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;

    fn limits() -> Vec<ScopedLimit> {
        let volume = LimitScope { volume: "data".into(), ..LimitScope::default() };
        let session = LimitScope { session_id: 12, ..LimitScope::default() };
        let group = LimitScope { group: "batch".into(), ..LimitScope::default() };
        let both = Limit { iops: 1000, burst_iops: 2000, write_bytes_per_s: 50 << 20, ..Limit::default() };
        let reads = Limit { read_iops: 500, ..Limit::default() };
        let data = Limit { bytes_per_s: 200 << 20, burst_bytes: 1 << 30, ..Limit::default() };
        [(volume, both, 17), (session, reads, 0), (group, data, 1_000_000)]
            .map(|(scope, limit, throttled)| ScopedLimit {
                scope: Some(scope),
                limit: Some(limit),
                throttled,
            })
            .to_vec()
    }

    #[test]
    fn as_a_table() {
        let wanted = "\
SCOPE    NAME   WHAT          PER-SECOND  BURST  THROTTLED
volume   data   requests            1000   2000         17
volume   data   data written      50 MiB      -
session  12     reads                500      -          0
group    batch  data             200 MiB  1 GiB    1000000";
        assert_eq!(to_table(&limits()), wanted);
        assert_eq!(to_table(&[]), "no limits");
    }

    #[test]
    fn as_json() {
        limits().iter().for_each(|limited| assert_keys(&limited_json(limited), "ScopedLimit"));
        assert_eq!(to_json(&limits())["limits"][1]["scope"]["session_id"], 12);
    }
}
