//! What the demo says in the end: a table, or one JSON object.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::message::{Failure, Report};
use super::watch::QueuesSeen;

/// The outcome of the demo.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Every block was right, no completion was lost or came twice, and everything was removed.
    pub verified: bool,
    /// Backend of the engine.
    pub backend: String,
    /// Why this backend was chosen.
    pub backend_reason: String,
    /// Whether the volume's I/O went past the page cache.
    pub direct: bool,
    /// How long the clients worked. Seconds.
    pub seconds: u64,
    /// Seed of the patterns.
    pub seed: u64,
    /// The clients that finished.
    pub clients: Vec<Report>,
    /// What was seen of the queues over gRPC.
    pub queues_seen: QueuesSeen,
    /// What went wrong.
    pub failures: Vec<Failure>,
}

impl Outcome {
    /// The table for people, and what went wrong.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.clients.is_empty() {
            text = format!("{}\n", self.table());
        }
        for failure in &self.failures {
            text.push_str(&format!("FAILED  {failure}\n"));
        }
        let path = if self.direct { "O_DIRECT" } else { "through the page cache" };
        text.push_str(&match (self.verified, self.clients.len()) {
            (true, clients) => format!(
                "verified: {} blocks of 4 KiB by {clients} client processes over {}, {path}; no completion lost or doubled",
                self.clients.iter().map(|client| client.blocks_verified).sum::<u64>(),
                self.backend,
            ),
            (false, _) => "NOT verified".to_owned(),
        });
        text
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "client",
            "request",
            "IOPS",
            "MiB/s",
            "p50",
            "p99",
            "reads",
            "writes",
            "blocks verified",
        ]);
        for client in &self.clients {
            table.add_row([
                client.name.clone(),
                format!("{} KiB x{}", client.request_bytes / 1024, client.depth),
                format!("{:.0}", client.iops),
                format!("{:.1}", client.mib_s),
                format!("{:.0} us", client.p50_us),
                format!("{:.0} us", client.p99_us),
                client.reads.to_string(),
                client.writes.to_string(),
                client.blocks_verified.to_string(),
            ]);
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if index > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }
}
