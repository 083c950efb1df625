//! Tables for people, JSON for programs, and the words and units of both.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use ferrio_api::v1::{Access, Class, Counters, Support, SupportLevel, Waits};
use serde_json::{Value, json};

use crate::error::CtlError;

/// Prints one answer.
pub fn print(text: &str) -> Result<(), CtlError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints JSON: one line when it is one of many, indented otherwise.
pub fn print_json(value: &Value, one_of_many: bool) -> Result<(), CtlError> {
    print(&if one_of_many { value.to_string() } else { format!("{value:#}") })
}

/// Alignment of a column.
#[derive(Clone, Copy)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// A table without lines; `empty` stands in for it when there are no rows.
pub fn table(columns: &[Column], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(name) | Column::Right(name) => *name,
    }));
    table.add_rows(rows);
    for (index, column) in columns.iter().enumerate() {
        if let Some(made) = table.column_mut(index) {
            made.set_padding((0, 2));
            if let Column::Right(_) = column {
                made.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

/// Lines of `name  value`; what is empty is left out.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

/// Bytes with a binary unit.
pub fn bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut scale = 1_u64;
    while unit < 5 && bytes / scale >= 1024 {
        scale <<= 10;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    if tenths % 10 == 0 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// A duration in the unit that suits it.
pub fn micros(us: u64) -> String {
    match us {
        0..=999 => format!("{us} us"),
        1_000..=999_999 => format!("{}.{} ms", us / 1_000, us / 100 % 10),
        _ => millis(us / 1_000),
    }
}

/// A duration in the unit that suits it.
pub fn millis(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms} ms"),
        1..=59 => format!("{s}.{} s", ms / 100 % 10),
        60..=3_599 => format!("{} m {} s", s / 60, s % 60),
        3_600..=86_399 => format!("{} h {} m", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

/// Age of the oldest request; a dash when there is none.
pub fn age(oldest_us: u64) -> String {
    if oldest_us == 0 { "-".to_owned() } else { micros(oldest_us) }
}

/// A client's name, short enough for a column.
pub fn short(name: &str) -> String {
    match name.char_indices().nth(20) {
        Some((end, _)) if name.chars().count() > 21 => format!("{}…", &name[..end]),
        _ => name.to_owned(),
    }
}

/// The word for an access.
pub fn access(access: i32) -> &'static str {
    match Access::try_from(access) {
        Ok(Access::ReadOnly) => "ro",
        Ok(Access::ReadWrite) => "rw",
        Ok(Access::ReadWriteShared) => "rw-shared",
        Ok(Access::Unspecified) | Err(_) => "unknown",
    }
}

/// The names of feature bits, as ABI.md has them.
pub fn features(bits: u64) -> String {
    const NAMES: [&str; 7] =
        ["vectored", "discard", "compare-and-write", "cancel", "order", "client-regions", "resume"];
    let name = |bit: usize| NAMES.get(bit).map_or_else(|| format!("bit {bit}"), |name| (*name).to_owned());
    let names = (0..64).filter(|bit| bits >> bit & 1 == 1).map(name).collect::<Vec<_>>();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What becomes of an operation, in one word.
pub fn support(support: Option<&Support>) -> &'static str {
    match SupportLevel::try_from(support.map_or(0, |support| support.level)) {
        Ok(SupportLevel::Native) => "native",
        Ok(SupportLevel::Emulated) => "emulated",
        Ok(SupportLevel::Unsupported) => "unsupported",
        Ok(SupportLevel::Unspecified) | Err(_) => "unknown",
    }
}

/// JSON of the same.
pub fn support_json(value: Option<&Support>) -> Value {
    json!({ "level": support(value), "how": value.map_or("", |value| value.how.as_str()) })
}

/// The word for a class.
pub fn class(class: i32) -> &'static str {
    match Class::try_from(class) {
        Ok(Class::Prio) => "prio",
        Ok(Class::Read) => "read",
        Ok(Class::Write) => "write",
        Ok(Class::Unspecified) | Err(_) => "unknown",
    }
}

/// The words for the classes of a list in the order prio, read, write.
pub const CLASSES: [&str; 3] = ["prio", "read", "write"];

/// JSON of counters.
pub fn counters_json(counters: &Counters) -> Value {
    let Counters { queued, in_flight, oldest_us, completed, errors, bytes, merged } = counters;
    json!({
        "queued": queued, "in_flight": in_flight, "oldest_us": oldest_us, "completed": completed, "errors": errors,
        "bytes": bytes, "merged": merged,
    })
}

/// Requests that waited or were taken back.
pub fn waits_json(waits: &Waits) -> Value {
    let Waits { held, cancelled, broken, timed_out, overdue } = waits;
    json!({
        "held": held, "cancelled": cancelled, "broken": broken, "timed_out": timed_out, "overdue": overdue,
    })
}

/// Columns of counters.
pub const COUNTER_COLUMNS: [Column; 7] = [
    Column::Right("QUEUED"),
    Column::Right("IN-FLIGHT"),
    Column::Right("COMPLETED"),
    Column::Right("ERRORS"),
    Column::Right("MERGED"),
    Column::Right("BYTES"),
    Column::Right("OLDEST"),
];

/// Cells of counters.
pub fn counter_cells(counters: Option<&Counters>) -> Vec<String> {
    let counters = counters.copied().unwrap_or_default();
    vec![
        counters.queued.to_string(),
        counters.in_flight.to_string(),
        counters.completed.to_string(),
        counters.errors.to_string(),
        counters.merged.to_string(),
        bytes(counters.bytes),
        age(counters.oldest_us),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (value, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (u64::MAX, "16383.9 PiB")]
        {
            assert_eq!(bytes(value), text);
        }
        for (us, text) in [
            (0, "0 us"),
            (999, "999 us"),
            (1_250, "1.2 ms"),
            (2_500_000, "2.5 s"),
            (61_000_000, "1 m 1 s"),
            (3_660_000_000, "1 h 1 m"),
            (90_000_000_000, "1 d 1 h"),
        ] {
            assert_eq!(micros(us), text);
        }
        assert_eq!(age(0), "-");
    }

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(short("reader"), "reader");
        assert_eq!(short(&"é".repeat(21)), "é".repeat(21));
        assert_eq!(short(&"é".repeat(64)), format!("{}…", "é".repeat(20)));
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "2345".to_owned()]];
        let text = table(&[Column::Left("NAME"), Column::Right("N")], rows, "none");
        assert_eq!(text, "NAME     N\na        1\nbcd   2345");
        assert_eq!(table(&[Column::Left("NAME")], Vec::new(), "none"), "none");
    }
}
