//! `ferrioctl info`.

use ferrio_api::v1::admin_client::AdminClient;
use ferrio_api::v1::engines_client::EnginesClient;
use ferrio_api::v1::{DaemonState, Engine, InfoRequest, InfoResponse, ListEnginesRequest};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::error::CtlError;
use crate::output::{facts, features, millis, print, print_json};

/// `info`.
pub async fn run(channel: Channel, json: bool) -> Result<(), CtlError> {
    let info = AdminClient::new(channel.clone()).info(InfoRequest {}).await?.into_inner();
    let engines = EnginesClient::new(channel).list(ListEnginesRequest {}).await?.into_inner().engines;
    if json { print_json(&to_json(&info, &engines), false) } else { print(&to_table(&info, &engines)) }
}

fn state(state: i32) -> &'static str {
    match DaemonState::try_from(state) {
        Ok(DaemonState::Running) => "running",
        Ok(DaemonState::Draining) => "draining",
        Ok(DaemonState::Unspecified) | Err(_) => "unknown",
    }
}

fn to_table(info: &InfoResponse, engines: &[Engine]) -> String {
    let config = if info.config_file.is_empty() { "none: development default" } else { &info.config_file };
    let mut parts = vec![facts(&[
        ("version", format!("ferriod {}", info.version)),
        ("state", format!("{}, pid {}, up {}", state(info.state), info.pid, millis(info.uptime_ms))),
        ("kernel", info.kernel.clone()),
        (
            "ABI",
            if info.abi_min == info.abi_max {
                format!("{}", info.abi_max)
            } else {
                format!("{} to {}", info.abi_min, info.abi_max)
            },
        ),
        ("configuration", config.to_owned()),
        ("control socket", info.control_socket.clone()),
        ("attach socket", info.attach_socket.clone()),
        ("journal", info.journal_dir.clone()),
        ("epoch", format!("{:016x}", info.epoch)),
        ("features", features(info.features)),
    ])];
    for degraded in &info.degraded {
        parts[0].push_str(&format!("\ndegraded: {degraded}"));
    }
    parts.extend(engines.iter().map(engine_table));
    parts.join("\n\n")
}

fn engine_table(engine: &Engine) -> String {
    let budgets = engine.budgets.iter().map(u32::to_string).collect::<Vec<_>>().join(" / ");
    let mut text = facts(&[
        ("engine", engine.name.clone()),
        ("  backend", format!("{}: {}", engine.backend, engine.backend_reason)),
        ("  threads", engine.threads.to_string()),
        ("  queue depth", format!("{} in the kernel, {} accepted", engine.queue_depth, engine.requests_max)),
        ("  budgets", format!("{budgets} per round (prio / read / write)")),
        ("  spin", format!("{} us", engine.spin_us)),
        ("  modes", engine.modes.join(", ")),
        ("  helpers", format!("{} threads", engine.helpers)),
        ("  faults", if engine.faults { "can be set on its volumes".to_owned() } else { String::new() }),
    ]);
    for degraded in &engine.degraded {
        text.push_str(&format!("\n  degraded: {degraded}"));
    }
    text
}

fn to_json(info: &InfoResponse, engines: &[Engine]) -> Value {
    let mut value = info_json(info);
    value["engines"] = engines.iter().map(engine_json).collect();
    value
}

fn info_json(info: &InfoResponse) -> Value {
    json!({
        "version": info.version,
        "pid": info.pid,
        "state": state(info.state),
        "uptime_ms": info.uptime_ms,
        "abi_min": info.abi_min,
        "abi_max": info.abi_max,
        "config_file": info.config_file,
        "control_socket": info.control_socket,
        "attach_socket": info.attach_socket,
        "journal_dir": info.journal_dir,
        "epoch": info.epoch,
        "kernel": info.kernel,
        "features": info.features,
        "degraded": info.degraded,
    })
}

fn engine_json(engine: &Engine) -> Value {
    json!({
        "name": engine.name,
        "backend": engine.backend,
        "backend_reason": engine.backend_reason,
        "threads": engine.threads,
        "queue_depth": engine.queue_depth,
        "requests_max": engine.requests_max,
        "modes": engine.modes,
        "degraded": engine.degraded,
        "spin_us": engine.spin_us,
        "budgets": engine.budgets,
        "faults": engine.faults,
        "helpers": engine.helpers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_keys;

    fn answer() -> (InfoResponse, Engine) {
        let info = InfoResponse {
            version: "0.1.0".into(),
            pid: 77,
            state: DaemonState::Running.into(),
            uptime_ms: 2_300,
            abi_min: 1,
            abi_max: 1,
            config_file: String::new(),
            control_socket: "/run/ferrio/control.sock".into(),
            attach_socket: "/run/ferrio/attach.sock".into(),
            journal_dir: "/run/ferrio/journal".into(),
            epoch: 0x1234,
            kernel: "6.18.0".into(),
            features: 0x3f,
            degraded: vec!["volume slow: through the page cache: the file system refuses O_DIRECT".into()],
        };
        let engine = Engine {
            name: "main".into(),
            backend: "aio".into(),
            backend_reason: "io_uring_setup: EPERM".into(),
            threads: 2,
            queue_depth: 256,
            requests_max: 16384,
            modes: vec!["resfd".into()],
            degraded: vec!["io_uring: blocked by seccomp; allow io_uring_setup".into()],
            spin_us: 50,
            budgets: vec![64, 32, 32],
            faults: true,
            helpers: 4,
        };
        (info, engine)
    }

    #[test]
    fn as_a_table() {
        let (info, engine) = answer();
        let wanted = "\
version         ferriod 0.1.0
state           running, pid 77, up 2.3 s
kernel          6.18.0
ABI             1
configuration   none: development default
control socket  /run/ferrio/control.sock
attach socket   /run/ferrio/attach.sock
journal         /run/ferrio/journal
epoch           0000000000001234
features        vectored, discard, compare-and-write, cancel, order, client-regions
degraded: volume slow: through the page cache: the file system refuses O_DIRECT

engine         main
  backend      aio: io_uring_setup: EPERM
  threads      2
  queue depth  256 in the kernel, 16384 accepted
  budgets      64 / 32 / 32 per round (prio / read / write)
  spin         50 us
  modes        resfd
  helpers      4 threads
  faults       can be set on its volumes
  degraded: io_uring: blocked by seccomp; allow io_uring_setup";
        assert_eq!(to_table(&info, &[engine]), wanted);
    }

    #[test]
    fn as_json() {
        let (info, engine) = answer();
        assert_keys(&info_json(&info), "InfoResponse");
        assert_keys(&engine_json(&engine), "Engine");
        let all = to_json(&info, &[engine]);
        assert_eq!((&all["state"], &all["engines"][0]["name"]), (&json!("running"), &json!("main")));
    }
}
