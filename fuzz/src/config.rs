//! Configuration files: text as it comes, or, after a byte that no UTF-8 text begins with, lines of known keys with
//! values of any kind.

use std::fmt::Write as _;

use arbitrary::{Result, Unstructured};
use ferriod::config::{self, keys};

const FILE: &str = "fuzz.toml";
/// First byte of input that is not text but the seed of one.
const GENERATED: u8 = 0xff;

/// Reading never panics; what is refused is said with file, line and key, and what to do.
pub fn config(data: &[u8]) {
    match data.split_first() {
        Some((&GENERATED, seed)) => {
            let mut text = String::new();
            // Bytes that end early end the file.
            let _ = generate(&mut Unstructured::new(seed), &mut text);
            check(&text);
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(data) {
                check(text);
            }
        }
    }
}

fn check(text: &str) {
    let (config, problems) = config::read(FILE, text);
    assert_eq!(config.is_none(), problems.has_errors(), "{problems}");
    let lines = text.split('\n').count();
    let mut last = 0;
    for problem in &problems.0 {
        assert_eq!(problem.file, FILE, "{problem}");
        assert!((1..=lines).contains(&(problem.line as usize)), "line of {lines}: {problem}\n{text}");
        assert!(last <= problem.line, "in the order of the lines: {problems}");
        assert!(!problem.what.is_empty(), "{problem}");
        assert!(!problem.fix.is_empty(), "{problem}\n{text}");
        last = problem.line;
    }
    if toml_is_good(text) {
        assert!(problems.0.iter().all(|problem| !problem.key.is_empty()), "{problems}");
    }
    let Some(config) = config else { return };
    assert!(!config.engines.is_empty());
    for volume in &config.volumes {
        assert!(config.engines.iter().any(|engine| engine.name.value == volume.engine.value), "{volume:?}");
    }
    for engine in &config.engines {
        assert!(engine.queue_depth <= engine.requests_max, "{engine:?}");
        assert!(engine.budgets.iter().all(|budget| *budget > 0), "{engine:?}");
    }
    assert!(config.limits.queue_entries_max.is_power_of_two());
    let sessions = config.groups.iter().map(|group| &group.session).chain([&config.session]);
    for session in sessions {
        assert!((1..=1000).contains(&session.weight), "{session:?}");
    }
}

/// Only a syntax error may have no key.
fn toml_is_good(text: &str) -> bool {
    toml::de::DeTable::parse(text).is_ok()
}

fn generate(input: &mut Unstructured<'_>, text: &mut String) -> Result<()> {
    let sections = [
        "[daemon]",
        "[limits]",
        "[[engine]]",
        "[[volume]]",
        "[unknown]",
        "[engine]",
        "[[daemon]]",
        "[session]",
        "[session.limit]",
        "[[group]]",
        "[group.limit]",
        "[group.session_limit]",
        "[volume.limit]",
    ];
    while !input.is_empty() {
        if input.ratio(1, 4)? {
            text.push_str(input.choose(&sections)?);
        } else {
            let (key, value) = (key(input)?, value(input, 0)?);
            let _ = write!(text, "{key} = {value}");
        }
        text.push('\n');
    }
    Ok(())
}

fn key(input: &mut Unstructured<'_>) -> Result<&'static str> {
    let numbers = keys::NUMBERS.iter().map(|number| number.key);
    let sizes = keys::SIZES.iter().map(|size| size.key);
    let others = keys::OTHERS.iter().flat_map(|(_, keys)| *keys).copied();
    let all: Vec<&str> = numbers
        .chain(sizes)
        .chain(others)
        .chain(["engine", "volume", "unknown", "limit", "session_limit"])
        .collect();
    Ok(*input.choose(&all)?)
}

fn value(input: &mut Unstructured<'_>, depth: u32) -> Result<String> {
    const WORDS: &[&str] = &[
        "true",
        "false",
        "\"\"",
        "\"null\"",
        "\"file\"",
        "\"block\"",
        "\"aio\"",
        "\"main\"",
        "\"data\"",
        "\"info\"",
        "\"/dev/null\"",
        "\"relative\"",
        "\"1 GiB\"",
        "\"4 KiB\"",
        "\"root\"",
        "\"0660\"",
        "0o660",
        "1e9",
        "nan",
        "-1",
        "0",
        "1",
        "2",
        "512",
        "4096",
        "65536",
        "0xffff_ffff_ffff_ffff",
        "1979-05-27T07:32:00Z",
    ];
    Ok(match input.int_in_range(0..=7)? {
        0 => input.arbitrary::<i64>()?.to_string(),
        1 => input.int_in_range(0..=100_000)?.to_string(),
        2 => format!("{:?}", input.arbitrary::<&str>()?),
        3 => format!("\"{} {}\"", input.arbitrary::<u64>()?, input.choose(&["B", "KiB", "TiB", "GB", ""])?),
        4 if depth < 3 => format!("[{}, {}]", value(input, depth + 1)?, value(input, depth + 1)?),
        5 if depth < 3 => format!("{{ {} = {} }}", key(input)?, value(input, depth + 1)?),
        _ => (*input.choose(WORDS)?).to_owned(),
    })
}
