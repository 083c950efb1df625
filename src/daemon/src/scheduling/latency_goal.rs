//! Latency goals as people write them, as the API does, and as the engine takes them.

use ferrio_api::v1;
use ferrio_engine::LatencyGoal;

/// What [`parse`] accepts, for messages.
pub const SYNTAX: &str = "\"off\", a time of 1 us to 60 s such as \"500 us\" or \"2 ms\", or 100 % to 10000 % of what prio takes alone, such as \"200%\"";

/// Longest time that may be promised. Microseconds.
const WITHIN_US_MAX: u64 = 60_000_000;
/// Parts of the latency without others that may be promised.
const PERCENT: std::ops::RangeInclusive<u32> = 100..=10_000;
const UNITS: [(&str, u64); 4] = [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("%", 0)];

/// Reads a goal.
pub fn parse(text: &str) -> Option<LatencyGoal> {
    let text = text.trim();
    if text == "off" {
        return Some(LatencyGoal::Off);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim();
    let (_, us) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let goal = if us == 0 {
        v1::LatencyGoal { percent: u32::try_from(number).ok()?, within_us: 0 }
    } else {
        v1::LatencyGoal { within_us: number.checked_mul(us)?, percent: 0 }
    };
    from_wire(goal).ok().filter(|goal| *goal != LatencyGoal::Off)
}

/// For the log, as [`parse`] reads it.
pub fn words(goal: LatencyGoal) -> String {
    match goal {
        LatencyGoal::Off => "off".to_owned(),
        LatencyGoal::Relative(percent) => format!("{percent}%"),
        LatencyGoal::Within(nanos) => format!("{} us", nanos.div_ceil(1_000)),
    }
}

/// From the wire.
///
/// # Errors
/// The field that does not do, its value, the least and the greatest that it may have.
pub fn from_wire(goal: v1::LatencyGoal) -> Result<LatencyGoal, (&'static str, u64, u64, u64)> {
    let v1::LatencyGoal { within_us, percent } = goal;
    match (within_us, percent) {
        (0, 0) => Ok(LatencyGoal::Off),
        (1..=WITHIN_US_MAX, 0) => Ok(LatencyGoal::Within(within_us * 1_000)),
        (0, percent) if PERCENT.contains(&percent) => Ok(LatencyGoal::Relative(percent)),
        (0, percent) => {
            Err(("latency_goal.percent", percent.into(), (*PERCENT.start()).into(), (*PERCENT.end()).into()))
        }
        (within_us, 0) => Err(("latency_goal.within_us", within_us, 1, WITHIN_US_MAX)),
        // One of the two.
        (_, percent) => Err(("latency_goal.percent beside within_us", percent.into(), 0, 0)),
    }
}

/// To the wire.
pub fn to_wire(goal: LatencyGoal) -> v1::LatencyGoal {
    match goal {
        LatencyGoal::Off => v1::LatencyGoal::default(),
        LatencyGoal::Within(nanos) => v1::LatencyGoal { within_us: nanos.div_ceil(1_000), percent: 0 },
        LatencyGoal::Relative(percent) => v1::LatencyGoal { within_us: 0, percent },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read() {
        for (text, goal) in [
            ("off", LatencyGoal::Off),
            ("200%", LatencyGoal::Relative(200)),
            (" 100 % ", LatencyGoal::Relative(100)),
            ("500us", LatencyGoal::Within(500_000)),
            ("2 ms", LatencyGoal::Within(2_000_000)),
            ("60 s", LatencyGoal::Within(60_000_000_000)),
        ] {
            assert_eq!(parse(text), Some(goal), "{text}");
            assert_eq!(from_wire(to_wire(goal)), Ok(goal));
            assert_eq!(parse(&words(goal)), Some(goal));
        }
        for text in ["", "on", "99%", "10001%", "0 us", "61 s", "2", "2 m", "-1 ms", "1.5 ms", "2 ms x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn goals_out_of_range_are_named() {
        let wrong = |within_us, percent| from_wire(v1::LatencyGoal { within_us, percent }).unwrap_err();
        assert_eq!(wrong(0, 99), ("latency_goal.percent", 99, 100, 10_000));
        assert_eq!(wrong(WITHIN_US_MAX + 1, 0).0, "latency_goal.within_us");
        assert_eq!(wrong(1, 100), ("latency_goal.percent beside within_us", 100, 0, 0));
    }
}
