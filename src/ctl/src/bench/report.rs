//! What is said in the end: a table, or one JSON object.

use serde_json::{Value, json};

use super::args::{self, Peer};
use super::plan::Plan;
use super::results::{METRICS, Metric, OTHER_LOAD_MAX, Quotient, Ratio, Results, Round};
use super::statistics::Spread;
use crate::output::{Column, bytes, facts, table};

const INTERVAL: &str = "order statistics of the median";

/// Adds what the reader has to know before believing a number.
pub fn warn(plan: &Plan, results: &mut Results) {
    let volume = &plan.scene.volume;
    if cfg!(debug_assertions) {
        results.warn("this ferrioctl is a debug build: its numbers mean nothing".to_owned());
    }
    if let Some(noise) = results.noise().filter(|noise| noise.too_noisy) {
        results.warn(format!(
            "too noisy to judge: in {} of {} rounds other processes used more than {:.0} % of the machine (median {:.0} %, \
             at most {:.0} %); repeat when it is quiet",
            noise.rounds_above,
            noise.rounds,
            OTHER_LOAD_MAX * 100.0,
            noise.spread.median * 100.0,
            noise.spread.max * 100.0
        ));
    }
    let quotients = results.ratios().into_iter().map(|ratio| ratio.quotient).chain(results.beside_idle());
    if let Some(ratio) = quotients.into_iter().find(|quotient| quotient.throughput_ci.coverage < 0.95) {
        results.warn(format!(
            "{} pairs of rounds are too few for a 95 % interval: those given cover the median with {:.0} %",
            ratio.pairs,
            ratio.throughput_ci.coverage * 100.0
        ));
    }
    if !plan.scene.is_null() && !volume.direct {
        results.warn(format!("volume {} goes through the page cache: {}", volume.name, volume.direct_reason));
    }
    for degraded in &plan.scene.engine.degraded {
        results.warn(format!("engine {}: {degraded}", plan.scene.engine.name));
    }
    if results.of(None).any(|round| round.daemon_cpu_us.is_none()) {
        let pid = plan.scene.daemon.pid;
        results
            .warn(format!("the daemon's CPU time is not to be seen from here: /proc/{pid} is not its own"));
    }
}

/// The name of an engine in the report.
fn name(who: Option<Peer>) -> &'static str {
    who.map_or("ferrio", Peer::name)
}

/// For programs.
pub fn to_json(plan: &Plan, results: &Results) -> Value {
    let mut value = json!({
        "volume": volume_json(plan),
        "workload": workload_json(plan),
        "machine": machine_json(plan, results),
        "cases": results.engines().into_iter().map(|who| case_json(who, results)).collect::<Vec<_>>(),
        "ratios": results.ratios().iter().map(ratio_json).collect::<Vec<_>>(),
        "samples": results.rounds.iter().map(|(who, round)| sample_json(*who, round)).collect::<Vec<_>>(),
        "warnings": results.warnings,
    });
    if let Some(blocks) = results.verified_blocks {
        value["verified_blocks"] = blocks.into();
    }
    if let (Some(sessions), Some(quotient)) = (plan.args.idle_sessions, results.beside_idle()) {
        value["beside_idle_sessions"] = quotient_json(&quotient);
        value["beside_idle_sessions"]["sessions"] = sessions.into();
    }
    if let Some((trips, ratio)) = results.ping_pong() {
        value["ping_pong"] = json!({
            "round_trip_ns": trips, "cpus": results.ping_pong_cpus, "ferrio_p50_per_round_trip": ratio,
        });
    }
    value
}

fn volume_json(plan: &Plan) -> Value {
    let (volume, engine) = (&plan.scene.volume, &plan.scene.engine);
    json!({
        "name": volume.name,
        "path": volume.path,
        "null": plan.scene.is_null(),
        "size_bytes": volume.size_bytes,
        "used_bytes": plan.bytes,
        "direct": volume.direct,
        "engine": engine.name,
        "backend": engine.backend,
        "threads": engine.threads,
    })
}

fn workload_json(plan: &Plan) -> Value {
    let args = &plan.args;
    json!({
        "rw": args.rw,
        "bs_bytes": args.bs,
        "iodepth": args.iodepth,
        "clients": args.clients,
        "wait": args.wait,
        "runtime_s": args.runtime,
        "rounds": args.rounds,
        "verify": args.verify,
    })
}

fn machine_json(plan: &Plan, results: &Results) -> Value {
    let noise = results.noise().map(|noise| {
        json!({
            "other_load": noise.spread,
            "limit": OTHER_LOAD_MAX,
            "rounds_above": noise.rounds_above,
            "rounds": noise.rounds,
            "too_noisy": noise.too_noisy,
        })
    });
    json!({ "kernel": plan.scene.daemon.kernel, "cpus": results.cpus, "noise": noise })
}

fn case_json(who: Option<Peer>, results: &Results) -> Value {
    let mut case = json!({ "engine": name(who), "rounds": results.of(who).count() });
    for metric in &METRICS {
        case[metric.key] = json!(spread(metric, who, results));
    }
    case
}

/// A round, for those who judge for themselves.
fn sample_json(who: Option<Peer>, round: &Round) -> Value {
    let mut sample = json!({ "engine": name(who), "other_load": round.other_load });
    for metric in &METRICS {
        sample[metric.key] = json!((metric.of)(round));
    }
    sample
}

fn ratio_json(ratio: &Ratio) -> Value {
    let mut value = quotient_json(&ratio.quotient);
    value["against"] = json!(ratio.against);
    value
}

fn quotient_json(ratio: &Quotient) -> Value {
    let interval = ratio.throughput_ci;
    json!({
        "pairs": ratio.pairs,
        "throughput": ratio.throughput,
        "throughput_ci": [interval.low, interval.high],
        "throughput_ci_coverage": interval.coverage,
        "throughput_ci_method": INTERVAL,
        "p50": ratio.p50,
        "p99": ratio.p99,
        "p999": ratio.p999,
        "cpu_per_io": ratio.cpu_per_io,
    })
}

fn spread(metric: &Metric, who: Option<Peer>, results: &Results) -> Option<Spread> {
    Spread::of(results.of(who).map(metric.of).collect::<Option<Vec<_>>>()?)
}

/// For people.
pub fn to_text(plan: &Plan, results: &Results) -> String {
    let mut parts = vec![headline(plan, results), cases_table(results)];
    let ratios = results.ratios();
    let rows = ratios.iter().map(|ratio| (ratio.against.name().to_owned(), ratio.quotient));
    if !ratios.is_empty() {
        parts.push(ratios_table("FERRIO / PEER", rows));
    }
    if let (Some(sessions), Some(quotient)) = (plan.args.idle_sessions, results.beside_idle()) {
        parts.push(ratios_table("BESIDE / WITHOUT", [(format!("{sessions} idle sessions"), quotient)]));
    }
    let mut last = Vec::new();
    if let Some((trips, ratio)) = results.ping_pong() {
        let cpus = results.ping_pong_cpus;
        let where_to =
            cpus.map_or("not bound to CPUs".to_owned(), |[a, b]| format!("CPU {a} to {b} and back"));
        last.push((
            "cache line".to_owned(),
            format!("{:.0} ns ({where_to}); ferrio's p50 is {ratio:.1} of it", trips.median),
        ));
    }
    if let Some(blocks) = results.verified_blocks {
        let each = bytes(super::pattern::block_bytes(plan.args.bs));
        last.push((
            "verified".to_owned(),
            format!("every read, and all {blocks} blocks of {each} in the end"),
        ));
    }
    last.extend(results.warnings.iter().map(|warning| ("warning".to_owned(), warning.clone())));
    if !last.is_empty() {
        let last: Vec<_> = last.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        parts.push(facts(&last));
    }
    parts.join("\n\n")
}

fn headline(plan: &Plan, results: &Results) -> String {
    let (args, volume, engine) = (&plan.args, &plan.scene.volume, &plan.scene.engine);
    let rounds = format!("{} rounds of {} s", results.of(None).count(), args.runtime);
    let threads =
        if engine.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", engine.threads) };
    let path = match (plan.scene.is_null(), volume.direct) {
        (true, _) => "null",
        (false, true) => "O_DIRECT",
        (false, false) => "page cache",
    };
    facts(&[
        (
            "workload",
            format!(
                "{} {}, {} in flight, {} {}, {} each",
                args::name(args.rw),
                bytes(args.bs),
                args.iodepth,
                args.clients,
                if args.clients == 1 { "client" } else { "clients" },
                rounds
            ),
        ),
        (
            "ferrio",
            format!(
                "volume {} ({}, {path}), engine {} ({}, {threads}), clients wait: {}",
                volume.name,
                bytes(plan.bytes),
                engine.name,
                engine.backend,
                args::name(args.wait)
            ),
        ),
        ("machine", machine(plan, results)),
    ])
}

fn machine(plan: &Plan, results: &Results) -> String {
    let cpus = if results.cpus == 1 { "CPU" } else { "CPUs" };
    let noise = results.noise().map_or_else(String::new, |noise| {
        let Spread { median, max, .. } = noise.spread;
        format!(", other load {:.1} % (at most {:.1} %)", median * 100.0, max * 100.0)
    });
    format!("Linux {}, {} {cpus}{noise}", plan.scene.daemon.kernel, results.cpus)
}

fn cases_table(results: &Results) -> String {
    let engines = results.engines();
    let mut columns = vec![Column::Left("MEDIAN [MIN - MAX]")];
    columns.extend(engines.iter().map(|&who| Column::Right(name(who))));
    let cell = |metric: &Metric, who| match spread(metric, who, results) {
        Some(Spread { max: 0.0, .. }) => "-".to_owned(),
        Some(Spread { median, min, max }) => {
            format!("{} [{} - {}]", number(median), number(min), number(max))
        }
        None => "unknown".to_owned(),
    };
    let row = |metric: &Metric| {
        let cells = engines.iter().map(|&who| cell(metric, who));
        [metric.label.to_owned()].into_iter().chain(cells).collect()
    };
    table(&columns, METRICS.iter().map(row).collect(), "nothing was measured")
}

fn ratios_table(head: &'static str, rows: impl IntoIterator<Item = (String, Quotient)>) -> String {
    let columns = [
        Column::Left(head),
        Column::Right("THROUGHPUT"),
        Column::Right("95 % INTERVAL"),
        Column::Right("P50"),
        Column::Right("P99"),
        Column::Right("P99.9"),
        Column::Right("CPU/IO"),
    ];
    let rows = rows.into_iter().map(|(name, ratio)| {
        vec![
            name,
            format!("{:.3}", ratio.throughput),
            format!("{:.3} - {:.3}", ratio.throughput_ci.low, ratio.throughput_ci.high),
            format!("{:.2}", ratio.p50),
            format!("{:.2}", ratio.p99),
            format!("{:.2}", ratio.p999),
            ratio.cpu_per_io.map_or("unknown".to_owned(), |cpu| format!("{cpu:.2}")),
        ]
    });
    table(&columns, rows.collect(), "")
}

/// Three digits that matter, with k or M.
fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", number(value / 1e6)),
        value if value >= 1e4 => format!("{}k", number(value / 1e3)),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests;
