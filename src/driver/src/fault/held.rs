//! Requests that wait: until a time, for others, or for ever.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Instant;

use super::plan::REORDER_HOLD;
use crate::driver::{Op, OpKind, Reserved, Segment};
use crate::tag::Tag;

/// A request on its way to the driver within.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) slot: Reserved,
    pub(super) user: u32,
    pub(super) op: Op,
    /// Of a vectored request.
    pub(super) segments: Option<Box<[Segment]>>,
    /// Counts up with each request held.
    pub(super) sequence: u64,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Until(Instant),
    /// [`Held::release_file`].
    Ever,
    /// `window` requests of this rule, or [`REORDER_HOLD`] from when the first of them was committed.
    Others {
        rule: usize,
        window: u32,
        key: u64,
    },
}

/// All of them, and what they keep busy.
#[derive(Debug)]
pub(super) struct Held {
    delayed: BinaryHeap<Delayed>,
    stuck: Vec<Parked>,
    windows: Vec<Window>,
    /// Due, in this order.
    ready: VecDeque<Parked>,
    /// Generation of the tag that is held in this slot; 0: none.
    slots: Vec<u32>,
    /// Requests held, by file and by region.
    files: Vec<u32>,
    regions: Vec<u32>,
    next_sequence: u64,
    count: u32,
}

#[derive(Debug)]
struct Delayed {
    until: Instant,
    parked: Parked,
}

#[derive(Debug)]
struct Window {
    file: u32,
    rule: usize,
    size: u32,
    /// Once committed.
    until: Option<Instant>,
    parked: Vec<(u64, Parked)>,
}

impl Held {
    pub(super) fn new(depth: u32, files_max: u32, regions_max: u32) -> Held {
        Held {
            delayed: BinaryHeap::new(),
            stuck: Vec::new(),
            windows: Vec::new(),
            ready: VecDeque::new(),
            slots: vec![0; depth as usize],
            files: vec![0; files_max as usize],
            regions: vec![0; regions_max as usize],
            next_sequence: 0,
            count: 0,
        }
    }

    /// Takes a request in.
    pub(super) fn hold(
        &mut self,
        slot: Reserved,
        user: u32,
        op: Op,
        segments: Option<Box<[Segment]>>,
        wait: Wait,
    ) {
        let tag = slot.tag();
        self.pin(&op, segments.as_deref(), tag, tag.generation(), 1);
        let parked = Parked { slot, user, op, segments, sequence: self.next_sequence };
        self.next_sequence += 1;
        match wait {
            Wait::Until(until) => self.delayed.push(Delayed { until, parked }),
            Wait::Ever => self.stuck.push(parked),
            Wait::Others { rule, window, key } => self.join_window(rule, window, key, parked),
        }
    }

    fn join_window(&mut self, rule: usize, size: u32, key: u64, parked: Parked) {
        let file = parked.op.file.0;
        let mine = |window: &Window| (window.file, window.rule) == (file, rule);
        let at = self.windows.iter().position(mine).unwrap_or_else(|| {
            self.windows.push(Window { file, rule, size, until: None, parked: Vec::new() });
            self.windows.len() - 1
        });
        self.windows[at].parked.push((key, parked));
        if self.windows[at].parked.len() >= self.windows[at].size as usize {
            self.shuffle(at);
        }
    }

    /// Lets the requests of a window go on, in the order of their keys.
    fn shuffle(&mut self, at: usize) {
        let mut parked = self.windows.swap_remove(at).parked;
        parked.sort_by_key(|&(key, _)| key);
        self.ready.extend(parked.into_iter().map(|(_, parked)| parked));
    }

    /// Finds what is due.
    pub(super) fn ripen(&mut self, now: Instant) {
        while self.delayed.peek().is_some_and(|delayed| delayed.until <= now) {
            self.ready.extend(self.delayed.pop().map(|delayed| delayed.parked));
        }
        while let Some(at) =
            self.windows.iter().position(|window| window.until.is_some_and(|until| until <= now))
        {
            self.shuffle(at);
        }
    }

    /// When something else will be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|delayed| delayed.until);
        let windows = self.windows.iter().filter_map(|window| window.until).min();
        delayed.into_iter().chain(windows).min()
    }

    /// What a file holds is due now, in the order it came.
    pub(super) fn release_file(&mut self, file: u32) {
        self.release(|op| op.file.0 == file);
    }

    /// All that came before `sequence` is due now; what came later is forgotten.
    pub(super) fn release_before(&mut self, sequence: u64) {
        self.release(|_| true);
        self.ready.retain(|parked| parked.sequence < sequence);
    }

    fn release(&mut self, chosen: impl Fn(&Op) -> bool) {
        let mut due: Vec<Parked> = self.stuck.extract_if(.., |parked| chosen(&parked.op)).collect();
        let (now, later): (Vec<_>, Vec<_>) =
            self.delayed.drain().partition(|delayed| chosen(&delayed.parked.op));
        self.delayed.extend(later);
        due.extend(now.into_iter().map(|delayed| delayed.parked));
        // All requests of a window are of one file.
        let whole = |window: &mut Window| window.parked.first().is_some_and(|(_, parked)| chosen(&parked.op));
        let windows = self.windows.extract_if(.., whole);
        due.extend(windows.flat_map(|window| window.parked).map(|(_, parked)| parked));
        due.sort_by_key(|parked| parked.sequence);
        self.ready.extend(due);
    }

    /// The next request that is due. It still counts: [`gone`](Self::gone) or [`put_back`](Self::put_back) follows.
    pub(super) fn take_ready(&mut self) -> Option<Parked> {
        self.ready.pop_front()
    }

    pub(super) fn put_back(&mut self, parked: Parked) {
        self.ready.push_front(parked);
    }

    /// The driver within has it.
    pub(super) fn gone(&mut self, tag: Tag, op: &Op, segments: Option<&[Segment]>) {
        self.pin(op, segments, tag, 0, -1);
    }

    /// Counts a request, `change` = 1, or no longer, -1.
    fn pin(&mut self, op: &Op, segments: Option<&[Segment]>, tag: Tag, generation: u32, change: i32) {
        let count = |counters: &mut [u32], index: u32| {
            if let Some(counter) = counters.get_mut(index as usize) {
                *counter = counter.wrapping_add_signed(change);
            }
        };
        count(&mut self.files, op.file.0);
        match segments {
            Some(segments) => {
                segments.iter().for_each(|segment| count(&mut self.regions, segment.region.0));
            }
            None if matches!(op.kind, OpKind::Read | OpKind::Write) => {
                count(&mut self.regions, op.region.0);
            }
            None => {}
        }
        if let Some(held) = self.slots.get_mut(tag.index() as usize) {
            *held = generation;
        }
        self.count = self.count.wrapping_add_signed(change);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Requests of this file.
    pub(super) fn of_file(&self, file: u32) -> u32 {
        self.files.get(file as usize).copied().unwrap_or(0)
    }

    /// Requests that use this region.
    pub(super) fn of_region(&self, region: u32) -> u32 {
        self.regions.get(region as usize).copied().unwrap_or(0)
    }

    pub(super) fn holds(&self, tag: Tag) -> bool {
        self.slots.get(tag.index() as usize) == Some(&tag.generation())
    }

    /// All that is held was committed: says what the next one will have as its sequence.
    pub(super) fn commit(&mut self) -> u64 {
        for window in &mut self.windows {
            window.until.get_or_insert_with(|| Instant::now() + REORDER_HOLD);
        }
        self.next_sequence
    }
}

/// The heap gives the greatest first: the earliest, and of these the one that came first.
impl Ord for Delayed {
    fn cmp(&self, other: &Delayed) -> Ordering {
        (other.until, other.parked.sequence).cmp(&(self.until, self.parked.sequence))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Delayed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Delayed) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Delayed {}
