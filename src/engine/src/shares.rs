//! How many of the driver's slots one volume may hold: a device that does not answer keeps those it has for ever, and must not
//! come to have all.
//!
//! A volume may take a slot while it holds fewer than three times as many as are free. So of 128 a volume that is stuck ends up
//! with 96, the next with 24, the next with 6, and others still run. An engine with one volume gives it all, and counts nothing.

use ferrio_driver::{FileIndex, Op, OpKind};

/// What a volume may hold, in free slots.
const TIMES_FREE: u32 = 3;
/// Record that holds no slot of a volume.
const NONE: u32 = u32::MAX;

/// Slots by volume. Owned by the Submitter.
pub(crate) struct Shares {
    depth: u32,
    /// A second volume came: it counts from then on.
    counts: bool,
    any: bool,
    /// By file index.
    held: Vec<u32>,
    /// By record: the file whose slot it holds.
    holds: Box<[u32]>,
}

impl Shares {
    /// Of a driver with `depth` slots, for requests in records `0..records`.
    pub fn new(depth: u32, records: u32) -> Self {
        let holds = vec![NONE; records as usize].into();
        Self { depth, counts: false, any: false, held: Vec::new(), holds }
    }

    /// A volume came.
    pub fn add_volume(&mut self, file: FileIndex) {
        let index = file.0 as usize;
        if self.held.len() <= index {
            self.held.resize(index + 1, 0);
        }
        self.counts = self.any;
        self.any = true;
    }

    /// The volume of `op` has its share, with `in_flight` slots in use, one of them for this request.
    #[inline]
    pub fn is_used_up(&self, op: &Op, in_flight: u32) -> bool {
        if !self.counts || op.kind == OpKind::Nop {
            return false;
        }
        let free = self.depth.saturating_sub(in_flight) + 1;
        self.held.get(op.file.0 as usize).is_some_and(|held| *held >= TIMES_FREE * free)
    }

    /// A request took a slot.
    #[inline]
    pub fn take(&mut self, record: u32, op: &Op) {
        if self.counts
            && op.kind != OpKind::Nop
            && let Some(held) = self.held.get_mut(op.file.0 as usize)
        {
            *held += 1;
            self.holds[record as usize] = op.file.0;
        }
    }

    /// Its slot was released, if it had one.
    #[inline]
    pub fn give_back(&mut self, record: u32) {
        if !self.counts {
            return;
        }
        let file = std::mem::replace(&mut self.holds[record as usize], NONE);
        if let Some(held) = self.held.get_mut(file as usize) {
            *held -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use ferrio_driver::RegionIndex;

    use super::*;

    fn read(file: u32) -> Op {
        let (file, region) = (FileIndex(file), RegionIndex(0));
        Op { kind: OpKind::Read, file, region, region_offset: 0, length: 512, offset: 0, fua: false }
    }

    /// Fills a volume as far as it may be; returns how many slots it got.
    fn fill(
        shares: &mut Shares,
        records: &mut std::ops::RangeFrom<u32>,
        in_flight: &mut u32,
        file: u32,
    ) -> u32 {
        let before = *in_flight;
        while *in_flight < shares.depth && !shares.is_used_up(&read(file), *in_flight + 1) {
            let Some(record) = records.next() else { break };
            shares.take(record, &read(file));
            *in_flight += 1;
        }
        *in_flight - before
    }

    #[test]
    fn stuck_volumes_leave_slots_for_others() {
        let mut shares = Shares::new(128, 128);
        (0..4).for_each(|file| shares.add_volume(FileIndex(file)));
        let (mut records, mut in_flight) = (0.., 0);
        let got: Vec<u32> =
            (0..4).map(|file| fill(&mut shares, &mut records, &mut in_flight, file)).collect();
        assert_eq!(got, [96, 24, 6, 2]);
        assert!(!shares.is_used_up(&Op { kind: OpKind::Nop, ..read(0) }, 128));
        (0..96).for_each(|record| shares.give_back(record));
        assert_eq!(shares.held, [0, 24, 6, 2]);
        (0..128).for_each(|record| shares.give_back(record));
        assert_eq!(shares.held, [0; 4], "a slot is given back once");
    }

    #[test]
    fn a_volume_alone_has_all() {
        let mut shares = Shares::new(8, 8);
        shares.add_volume(FileIndex(0));
        let (mut records, mut in_flight) = (0.., 0);
        assert_eq!(fill(&mut shares, &mut records, &mut in_flight, 0), 8);
    }
}
