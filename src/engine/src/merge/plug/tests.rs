use ferrio_driver::{FileIndex, OpKind, RegionIndex};
use proptest::prelude::*;

use super::*;

const BLOCK: u32 = 512;

/// A request as a test names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    kind: OpKind,
    class: Class,
    file: u32,
    fua: bool,
    /// Blocks.
    offset: u64,
    length: u32,
    region: u32,
    region_offset: u64,
    /// May be joined with others.
    merges: bool,
}

impl Asked {
    fn op(&self) -> Op {
        Op {
            kind: self.kind,
            file: FileIndex(self.file),
            region: RegionIndex(self.region),
            region_offset: self.region_offset * u64::from(BLOCK),
            length: self.length * BLOCK,
            offset: self.offset * u64::from(BLOCK),
            fua: self.fua,
        }
    }
}

const READ: Asked = Asked {
    kind: OpKind::Read,
    class: Class::Read,
    file: 0,
    fua: false,
    offset: 0,
    length: 8,
    region: 0,
    region_offset: 0,
    merges: true,
};

/// An operation that was submitted: which requests are in it, in their order.
#[derive(Debug)]
struct Submitted {
    op: Op,
    requests: Vec<u32>,
    segments: Vec<Segment>,
    in_a_row: bool,
}

/// What a pass does with requests of one flow, without driver and scheduler.
fn pass(limits: MergeLimits, asked: &[Asked]) -> Vec<Submitted> {
    let mut plug = Plug::new(limits);
    let mut submitted = Vec::new();
    for (record, request) in (0..).zip(asked) {
        let (pick, op) = (Pick { record, class: request.class, cost: 1 }, request.op());
        if request.merges && plug.join(&op, pick) {
            continue;
        }
        let end = op.offset + u64::from(op.length);
        let next = asked.get(record as usize + 1).map(|next| next.op().offset);
        let opens = (plug.continues(op.offset) || next == Some(end)) && plug.may_open(&op);
        let opens = request.merges && plug.watches(op.offset, end) && opens;
        if !opens {
            plug.pass_by(end);
            submitted.push(Submitted { op, requests: vec![record], segments: vec![], in_a_row: false });
            continue;
        }
        if plug.is_full() {
            submit(&mut plug, &mut submitted);
        }
        plug.open(record, &op, pick);
    }
    while !plug.is_empty() {
        submit(&mut plug, &mut submitted);
    }
    submitted
}

fn submit(plug: &mut Plug<u32>, submitted: &mut Vec<Submitted>) {
    let mut place = plug.take_oldest().expect("something is open");
    let requests: Vec<u32> = place.picks().iter().map(|pick| pick.record).collect();
    assert_eq!(*place.slot(), requests.first().copied(), "the slot of its first request");
    let (op, segments, in_a_row) = (*place.op(), place.segments().to_vec(), place.is_in_a_row());
    submitted.push(Submitted { op, requests, segments, in_a_row });
    plug.close_oldest(place);
}

fn requests(submitted: &[Submitted]) -> Vec<Vec<u32>> {
    submitted.iter().map(|one| one.requests.clone()).collect()
}

/// Sorted by their first requests.
fn sorted(limits: MergeLimits, asked: &[Asked]) -> Vec<Vec<u32>> {
    let mut requests = requests(&pass(limits, asked));
    requests.sort_unstable();
    requests
}

#[test]
fn streams_meet_whatever_comes_between_them() {
    let at = |offset| Asked { offset, ..READ };
    let limits = MergeLimits::default();
    let in_order: Vec<Asked> = (0..8).map(|n| at(8 * n)).collect();
    assert_eq!(requests(&pass(limits, &in_order)), [(0..8).collect::<Vec<_>>()]);
    // The first of each says nothing yet.
    let three: Vec<Asked> = (0..12).map(|n| at(1000 * (n % 3) + n / 3 * 8)).collect();
    let streams = [vec![0], vec![1], vec![2], vec![3, 6, 9], vec![4, 7, 10], vec![5, 8, 11]];
    assert_eq!(sorted(limits, &three), streams);
    // A run stays open while others come.
    let run = [at(0), at(8), at(500), at(700), at(900), at(1100), at(16)];
    assert_eq!(sorted(limits, &run), [vec![0, 1, 6], vec![2], vec![3], vec![4], vec![5]]);
    // As many are open as there are places; then the oldest goes.
    let starts = [0, 1000, 2000, 3000, 4000].into_iter().flat_map(|start| [at(start), at(start + 8)]);
    let many: Vec<Asked> = starts.chain([at(1016), at(16)]).collect();
    let expected = [vec![0, 1], vec![2, 3, 10], vec![4, 5], vec![6, 7], vec![8, 9], vec![11]];
    assert_eq!(sorted(limits, &many), expected);
}

/// Requests that go to anywhere are not looked at for ever, and a stream that comes then misses one.
#[test]
fn patience_ends_and_comes_back() {
    let mut plug = Plug::<u32>::new(MergeLimits::default());
    for n in 0..u64::from(PATIENCE) {
        assert!(plug.watches(100 * n, 100 * n + 8), "{n}");
        plug.pass_by(100 * n + 8);
    }
    assert!(!plug.watches(50, 58));
    assert!(plug.watches(58, 66), "it goes on where the last one ended");
    let op = Asked { offset: 58, ..READ }.op();
    plug.open(0, &op, Pick { record: 0, class: Class::Read, cost: 1 });
    assert!(plug.watches(7777, 7785), "something was part of a stream");
}

#[test]
fn what_differs_stays_apart() {
    let next = Asked { offset: 8, ..READ };
    for (what, second) in [
        ("another volume", Asked { file: 1, ..next }),
        ("another direction", Asked { kind: OpKind::Write, ..next }),
        ("another class", Asked { class: Class::Prio, ..next }),
        ("FUA", Asked { fua: true, ..next }),
        ("a gap", Asked { offset: 9, ..next }),
        ("an overlap", Asked { offset: 7, ..next }),
        ("a session that does not merge", Asked { merges: false, ..next }),
    ] {
        assert_eq!(pass(MergeLimits::default(), &[READ, second]).len(), 2, "{what}");
    }
    assert_eq!(pass(MergeLimits::default(), &[READ, next]).len(), 1);
    for off in [MergeLimits::OFF, MergeLimits { segments_max: 1, ..MergeLimits::default() }] {
        assert_eq!(pass(off, &[READ, next]).len(), 2, "{off:?}");
    }
}

/// Two operations may end at one place, of different volumes: each is asked.
#[test]
fn two_that_end_alike_are_told_apart() {
    let (mut plug, mut submitted) = (Plug::new(MergeLimits::default()), Vec::new());
    for (record, file) in [(0, 0), (1, 1)] {
        plug.open(record, &Asked { file, ..READ }.op(), Pick { record, class: Class::Read, cost: 1 });
    }
    for (record, file) in [(2, 1), (3, 0)] {
        let op = Asked { file, offset: 8, ..READ }.op();
        assert!(plug.join(&op, Pick { record, class: Class::Read, cost: 1 }));
    }
    while !plug.is_empty() {
        submit(&mut plug, &mut submitted);
    }
    assert_eq!(requests(&submitted), [vec![0, 3], vec![1, 2]]);
}

#[test]
fn limits_are_hit_exactly() {
    let asked: Vec<Asked> = (0..20).map(|n| Asked { offset: 8 * n, ..READ }).collect();
    let sizes = |bytes_max, segments_max| -> Vec<usize> {
        let submitted = pass(MergeLimits { bytes_max, segments_max }, &asked);
        submitted.iter().map(|one| one.requests.len()).collect()
    };
    assert_eq!(sizes(1 << 20, 8), [8, 8, 4]);
    assert_eq!(sizes(8 * 4096, 256), [8, 8, 4]);
    assert_eq!(sizes(8 * 4096 - 1, 256), [7, 7, 6], "one byte less");
    assert_eq!(sizes(4096, 256), [1; 20], "what has no room to grow");
}

#[test]
fn memory_in_a_row_is_seen() {
    let part = |offset, region, region_offset| Asked { offset, region, region_offset, ..READ };
    let in_a_row = |asked: &[Asked]| {
        let submitted = pass(MergeLimits::default(), asked);
        assert_eq!(submitted.len(), 1, "{submitted:?}");
        submitted[0].in_a_row
    };
    assert!(in_a_row(&[part(0, 3, 100), part(8, 3, 108), part(16, 3, 116)]));
    assert!(!in_a_row(&[part(0, 3, 100), part(8, 4, 108)]), "another region");
    assert!(!in_a_row(&[part(0, 3, 100), part(8, 3, 107)]));
    assert!(!in_a_row(&[part(0, 3, 100), part(8, 3, 116), part(16, 3, 124)]), "a gap before");
}

/// The driver takes nothing more: the requests come out last first, each with the slots of their operations.
#[test]
fn what_is_open_is_undone_last_first() {
    let mut plug = Plug::new(MergeLimits::default());
    for (record, offset) in [(0, 0), (1, 1000), (2, 8), (3, 2000), (4, 3000)] {
        let op = Asked { offset, ..READ }.op();
        let pick = Pick { record, class: Class::Read, cost: 1 };
        if !plug.join(&op, pick) {
            plug.open(record, &op, pick);
        }
    }
    assert!(plug.is_full());
    let mut undone = Vec::new();
    let mut slots = Vec::new();
    while let Some(slot) = plug.undo_newest(|pick| undone.push(pick.record)) {
        slots.push(slot);
    }
    assert_eq!((undone, slots), (vec![4, 3, 1, 2, 0], vec![4, 3, 1, 0]));
    assert!(plug.is_empty());
    let next = Asked { offset: 16, ..READ }.op();
    assert!(!plug.join(&next, Pick { record: 5, class: Class::Read, cost: 1 }), "nothing is left open");
}

fn asked() -> impl Strategy<Value = Asked> {
    let class = prop_oneof![Just(Class::Prio), Just(Class::Read)];
    let kind = prop_oneof![Just(OpKind::Read), Just(OpKind::Read), Just(OpKind::Write)];
    let place = (0..24u64, 1..4u32, 0..2u32, 0..40u64);
    let rare = prop::bool::weighted(0.1);
    (kind, class, prop::bool::weighted(0.2), rare, prop::bool::weighted(0.9), place).prop_map(
        |(kind, class, other_file, fua, merges, (offset, length, region, region_offset))| Asked {
            kind,
            class,
            file: other_file.into(),
            fua,
            offset,
            length,
            region,
            region_offset,
            merges,
        },
    )
}

proptest! {
    /// Requests in any order: each goes once, and an operation is one stretch of alike requests within the limits, whose
    /// memory is that of its requests.
    #[test]
    fn each_goes_once_and_joined_ones_are_alike(
        asked in prop::collection::vec(asked(), 0..60),
        blocks_max in 0..16u32,
        segments_max in 1..8u32,
    ) {
        let limits = MergeLimits { bytes_max: blocks_max * BLOCK, segments_max };
        let submitted = pass(limits, &asked);
        let mut all: Vec<u32> = submitted.iter().flat_map(|one| one.requests.iter().copied()).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..asked.len() as u32).collect::<Vec<_>>());
        for one in &submitted {
            let parts: Vec<&Asked> = one.requests.iter().map(|record| &asked[*record as usize]).collect();
            let first = parts[0];
            prop_assert_eq!(one.op.offset, first.op().offset);
            let bytes: u32 = parts.iter().map(|part| part.op().length).sum();
            prop_assert_eq!(one.op.length, bytes);
            let mut end = first.op().offset;
            for part in &parts {
                let alike = |asked: &Asked| (asked.kind, asked.class, asked.file, asked.fua);
                prop_assert_eq!(alike(part), alike(first));
                prop_assert_eq!(part.op().offset, end);
                end += u64::from(part.op().length);
            }
            if parts.len() == 1 {
                prop_assert!(one.segments.is_empty());
                continue;
            }
            prop_assert!(bytes <= limits.bytes_max && parts.len() <= segments_max as usize);
            prop_assert!(parts.iter().all(|part| part.merges));
            prop_assert!(one.requests.is_sorted(), "in the order in which they came");
            let memory: Vec<Segment> = parts.iter().map(|part| segment(&part.op())).collect();
            let in_a_row = memory.windows(2).all(|pair| {
                pair[0].region == pair[1].region && pair[0].offset + u64::from(pair[0].length) == pair[1].offset
            });
            prop_assert_eq!((&one.segments, one.in_a_row), (&memory, in_a_row));
        }
    }
}
