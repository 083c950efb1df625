//! `[[volume.fault]]`: one rule each.

use ferrio_driver::{FaultOps, FaultPlan};
use rustix::io::Errno;

use super::keys;
use super::reader::{At, Section};
use crate::faults::{Effect, Fields};

/// Errors that disks, and what stands between, are known for.
const ERRNOS: [(&str, Errno); 14] = [
    ("EIO", Errno::IO),
    ("ENOSPC", Errno::NOSPC),
    ("EDQUOT", Errno::DQUOT),
    ("EROFS", Errno::ROFS),
    ("ENODEV", Errno::NODEV),
    ("ENXIO", Errno::NXIO),
    ("ETIMEDOUT", Errno::TIMEDOUT),
    ("EREMOTEIO", Errno::REMOTEIO),
    ("ENOLINK", Errno::NOLINK),
    ("ENODATA", Errno::NODATA),
    ("EILSEQ", Errno::ILSEQ),
    ("ENOMEM", Errno::NOMEM),
    ("EAGAIN", Errno::AGAIN),
    ("EOPNOTSUPP", Errno::OPNOTSUPP),
];

/// All rules of a volume.
pub fn read_plan(volume: &mut Section<'_, '_>) -> FaultPlan {
    let seed = volume.number(&keys::FAULT_SEED);
    let sections = volume.sections_of("fault", "volume.fault");
    if seed.line > 0 && sections.is_empty() {
        let fix = "remove it, or add a [[volume.fault]]";
        volume.warn(seed.line, "fault_seed", &seed.value.to_string(), "has no effect without rules", fix);
    }
    let plan = FaultPlan { seed: seed.value, rules: sections.into_iter().filter_map(read_rule).collect() };
    if let Err(error) = plan.check() {
        let at = At { value: (), line: volume.line() };
        volume.refuse("fault", &at, "", &error.to_string(), "", "leave rules out");
    }
    plan
}

fn read_rule(mut section: Section<'_, '_>) -> Option<ferrio_driver::FaultRule> {
    let before = section.problem_count();
    let ops = read_ops(&mut section);
    let effect = section.choice("effect", &Effect::NAMED, Effect::Error);
    if effect.line == 0 {
        section.missing("effect", "add a line effect = \"error\", or another effect");
    }
    let errno = section.choice("errno", &ERRNOS, Errno::IO);
    let fields = Fields {
        ops,
        offset: section.size(&keys::FAULT_OFFSET).map_or(0, |bytes| bytes.value),
        length: section.size(&keys::FAULT_LENGTH).map_or(0, |bytes| bytes.value),
        probability_ppm: narrow(section.number(&keys::FAULT_PROBABILITY_PPM)),
        after: section.number(&keys::FAULT_AFTER).value,
        count: section.number(&keys::FAULT_COUNT).value,
        effect: effect.value,
        errno: if errno.line > 0 { errno.value.raw_os_error().unsigned_abs() } else { 0 },
        delay_min_us: section.number(&keys::FAULT_DELAY_MIN_US).value,
        delay_max_us: section.number(&keys::FAULT_DELAY_MAX_US).value,
        window: narrow(section.number(&keys::FAULT_WINDOW)),
    };
    let rule = match fields.rule() {
        _ if section.problem_count() > before => None,
        Ok(rule) => Some(rule),
        Err(wrong) => {
            let at = At { value: (), line: section.line() };
            section.refuse(wrong.field, &at, &wrong.value, &wrong.what, "", &wrong.fix);
            None
        }
    };
    section.finish();
    rule
}

fn read_ops(section: &mut Section<'_, '_>) -> FaultOps {
    let mut ops = FaultOps::NONE;
    for name in section.names("ops", "[\"read\", \"write\"]") {
        match FaultOps::named(&name.value) {
            Some(op) => ops = ops | op,
            None => {
                let known = FaultOps::NAMED.map(|(name, _)| name).join(", ");
                let written = format!("{:?}", name.value);
                section.refuse("ops", &name, &written, "is no operation", &known, "name one of them");
            }
        }
    }
    ops
}

fn narrow(value: At<u64>) -> u32 {
    u32::try_from(value.value).unwrap_or(u32::MAX)
}
