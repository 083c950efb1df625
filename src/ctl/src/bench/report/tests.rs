use clap::Parser;
use ferrio_api::v1;

use super::*;
use crate::bench::args::Args;
use crate::bench::plan::Scene;
use crate::bench::results::Round;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn plan() -> Plan {
    let volume = v1::Volume {
        name: "data".into(),
        kind: v1::VolumeKind::File.into(),
        path: "/data.img".into(),
        size_bytes: 1 << 30,
        block_bytes: 512,
        direct: true,
        ..v1::Volume::default()
    };
    let engine = v1::Engine {
        name: "main".into(),
        backend: "io_uring".into(),
        threads: 1,
        degraded: vec!["not pinned: raise LimitMEMLOCK=".into()],
        ..v1::Engine::default()
    };
    let daemon = v1::InfoResponse { kernel: "6.18".into(), pid: 77, ..v1::InfoResponse::default() };
    Plan {
        args: Line::parse_from(["bench", "--volume", "data", "--iodepth", "32", "--clients", "4"]).args,
        scene: Scene { daemon, engine, volume },
        socket: "/s".into(),
        peers: vec![Peer::IoUring],
        target: "/data.img".into(),
        bytes: 1 << 30,
    }
}

fn results() -> Results {
    let round = |iops: f64, daemon_cpu_us| Round {
        iops,
        mib_s: iops / 256.0,
        p50_us: 250.0,
        p99_us: 500.0,
        p999_us: 1000.0,
        max_us: 20_000.0,
        client_cpu_us: 2.0,
        daemon_cpu_us,
        switches: 0.03,
        other_load: 0.02,
    };
    let mut results = Results { cpus: 2, ..Results::default() };
    for iops in [100_000.0, 110_000.0, 120_000.0] {
        results.rounds.push((None, round(iops, Some(1.0))));
        results.rounds.push((Some(Peer::IoUring), round(iops / 2.0, Some(0.0))));
    }
    results
}

#[test]
fn as_a_table() {
    let (plan, mut results) = (plan(), results());
    results.ping_pong = vec![100.0];
    results.ping_pong_cpus = Some([0, 1]);
    results.verified_blocks = Some(8);
    results.warn("mind this".into());
    let wanted = "\
workload  randread 4 KiB, 32 in flight, 4 clients, 3 rounds of 2 s each
ferrio    volume data (1 GiB, O_DIRECT), engine main (io_uring, 1 thread), clients wait: adaptive
machine   Linux 6.18, 2 CPUs, other load 2.0 % (at most 2.0 %)

MEDIAN [MIN - MAX]                ferrio            io_uring
IOPS                 110k [100k - 120k]  55.0k [50.0k - 60.0k]
MiB/s                   430 [391 - 469]        215 [195 - 234]
p50, us                 250 [250 - 250]        250 [250 - 250]
p99, us                 500 [500 - 500]        500 [500 - 500]
p99.9, us            1000 [1000 - 1000]     1000 [1000 - 1000]
max, us           20.0k [20.0k - 20.0k]  20.0k [20.0k - 20.0k]
CPU of clients, us/IO  2.00 [2.00 - 2.00]  2.00 [2.00 - 2.00]
CPU of ferriod, us/IO  1.00 [1.00 - 1.00]                   -
CPU in all, us/IO    3.00 [3.00 - 3.00]    2.00 [2.00 - 2.00]
context switches/IO  0.030 [0.030 - 0.030]  0.030 [0.030 - 0.030]

FERRIO / PEER  THROUGHPUT  95 % INTERVAL   P50   P99  P99.9  CPU/IO
io_uring            2.000  2.000 - 2.000  1.00  1.00   1.00    1.50
";
    let text = to_text(&plan, &results);
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeeze(&text).starts_with(&squeeze(wanted)), "{text}");
    for line in [
        "cache line 100 ns (CPU 0 to 1 and back); ferrio's p50 is 2500.0 of it",
        "verified every read, and all 8 blocks of 4 KiB in the end",
        "warning mind this",
    ] {
        assert!(squeeze(&text).contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn as_json() {
    let value = to_json(&plan(), &results());
    let ferrio = &value["cases"][0];
    assert_eq!(ferrio["engine"], "ferrio");
    assert_eq!(ferrio["iops"], json!({ "median": 110_000.0, "min": 100_000.0, "max": 120_000.0 }));
    assert_eq!(ferrio["cpu_us_per_io"]["median"], 3.0);
    assert_eq!(value["cases"][1]["engine"], "io_uring");
    assert_eq!(value["samples"].as_array().map(Vec::len), Some(6));
    assert_eq!(
        (&value["samples"][1]["iops"], &value["samples"][1]["other_load"]),
        (&json!(50_000.0), &json!(0.02))
    );
    let ratio = &value["ratios"][0];
    assert_eq!((&ratio["against"], &ratio["throughput"]), (&json!("io_uring"), &json!(2.0)));
    assert_eq!((&ratio["cpu_per_io"], &ratio["throughput_ci"]), (&json!(1.5), &json!([2.0, 2.0])));
    assert_eq!(value["machine"]["noise"]["too_noisy"], false);
    assert_eq!(
        (&value["workload"]["rw"], &value["workload"]["wait"]),
        (&json!("randread"), &json!("adaptive"))
    );
    assert!(value.get("ping_pong").is_none() && value.get("verified_blocks").is_none());
}

#[test]
fn the_reader_is_warned() {
    let (mut plan, mut results) = (plan(), results());
    plan.scene.volume.direct = false;
    plan.scene.volume.direct_reason = "tmpfs".into();
    results.rounds.iter_mut().for_each(|(_, round)| {
        round.other_load = 0.2;
        round.daemon_cpu_us = None;
    });
    warn(&plan, &mut results);
    let told = results.warnings.join("\n");
    let words =
        ["too noisy", "more than 12 %", "3 pairs", "75 %", "page cache: tmpfs", "LimitMEMLOCK=", "/proc/77"];
    for words in words {
        assert!(told.contains(words), "{words} is not in\n{told}");
    }
    assert_eq!(to_json(&plan, &results)["ratios"][0]["cpu_per_io"], Value::Null);
}

#[test]
fn numbers_have_three_digits() {
    for (value, text) in [
        (26_123_456.0, "26.1M"),
        (17_654.0, "17.7k"),
        (9_876.0, "9876"),
        (123.4, "123"),
        (48.51, "48.5"),
        (3.412, "3.41"),
        (0.03, "0.030"),
    ] {
        assert_eq!(number(value), text);
    }
}
