//! `[volume.limit]`, `[session.limit]`, `[group.limit]` and `[group.session_limit]`: the same keys in each.

use ferrio_engine::Limit;

use super::keys;
use super::reader::{At, Section};
use crate::scheduling::limit::Fields;

/// Reads such a table; not there, or wrong: nothing is limited.
pub fn read_limit(mut section: Section<'_, '_>) -> Limit {
    let bytes = |section: &mut Section<'_, '_>, key| section.size(key).map_or(0, |bytes| bytes.value);
    let fields = Fields {
        rates: [
            section.number(&keys::LIMIT_IOPS).value,
            section.number(&keys::LIMIT_READ_IOPS).value,
            section.number(&keys::LIMIT_WRITE_IOPS).value,
            bytes(&mut section, &keys::LIMIT_BYTES_PER_S),
            bytes(&mut section, &keys::LIMIT_READ_BYTES_PER_S),
            bytes(&mut section, &keys::LIMIT_WRITE_BYTES_PER_S),
        ],
        bursts: [
            section.number(&keys::LIMIT_BURST_IOPS).value,
            section.number(&keys::LIMIT_BURST_READ_IOPS).value,
            section.number(&keys::LIMIT_BURST_WRITE_IOPS).value,
            bytes(&mut section, &keys::LIMIT_BURST_BYTES),
            bytes(&mut section, &keys::LIMIT_BURST_READ_BYTES),
            bytes(&mut section, &keys::LIMIT_BURST_WRITE_BYTES),
        ],
    };
    let limit = fields.limit().unwrap_or_else(|wrong| {
        let at = At { value: (), line: section.line() };
        section.refuse(wrong.field, &at, &wrong.value.to_string(), &wrong.what, "", &wrong.fix);
        Limit::default()
    });
    section.finish();
    limit
}
