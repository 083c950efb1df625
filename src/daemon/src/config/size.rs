//! Sizes as people write them: `"64 MiB"`.

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// What [`parse`] accepts, for messages.
pub const SYNTAX: &str = "bytes, or a whole number with KiB, MiB, GiB or TiB, such as \"64 MiB\"";

/// Reads `"64 MiB"`, `"64MiB"` or `"67108864"`. Decimal units (MB) are refused: they are mistaken for binary ones.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number: u64 = text[..digits].replace('_', "").parse().ok()?;
    let unit = text[digits..].trim();
    let shift = match unit {
        "" => 0,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.checked_mul(1 << shift)
}

/// Writes a size so that [`parse`] reads it back exactly.
pub fn format(bytes: u64) -> String {
    let (unit, shift) = UNITS
        .into_iter()
        .find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .unwrap_or(("B", 0));
    format!("{} {unit}", bytes >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_binary_units_and_plain_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("67_108_864", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            (" 3 GiB ", 3 << 30),
            ("2 TiB", 2 << 40),
            ("9 B", 9),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_could_be_misread() {
        for text in ["", "MiB", "64 MB", "64m", "1.5 GiB", "-1", "64 MiB x", "99999999999 TiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn formats_exactly() {
        for bytes in [0, 1, 511, 4096, 64 << 20, (1 << 40) + 1, u64::MAX] {
            assert_eq!(parse(&format(bytes)), Some(bytes), "{}", format(bytes));
        }
        assert_eq!(format(64 << 20), "64 MiB");
    }
}
