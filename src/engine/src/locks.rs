//! What makes a compare-and-write atomic: range locks, per volume. Pure: no clock, no I/O.
//!
//! A compare-and-write takes a *place* of its volume, and with it the lock on its range. From then on writes that overlap
//! the range are *parked*. The writes that were issued before are waited for by counting: every write that is issued counts
//! in the volume's current era; who takes a place begins a new era and waits until the count of the old one is 0. There are
//! two counts, so a place taken while an old era drains waits for that one and for the next. Then the compare-and-write is
//! *ready*: nothing but it writes to its range until it is done.
//!
//! Nobody starves: compare-and-writes take their places in the order they came, and once a write is parked no further place
//! is taken until all are given back and the parked writes are let through.
//!
//! All of it is O(1) or bounded by the number of places; a volume without a compare-and-write costs a write two additions.

use std::ops::Range;

use crate::{
    links::{Links, List},
    session::VolumeId,
};

/// Compare-and-writes of a volume that are under way at once.
pub(crate) const PLACES: usize = 16;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not a write, or not admitted yet.
    None,
    /// A write that was let through, in this era's count.
    Counted(u8),
    /// A write that waits for the places.
    Parked,
    /// A compare-and-write that waits for a place.
    Waiting,
    /// A compare-and-write in this place.
    Placed(u8),
}

#[derive(Clone, Debug)]
struct Track {
    standing: Standing,
    volume: u32,
    /// Of a compare-and-write that waits: what it will lock.
    range: Range<u64>,
}

const UNTRACKED: Track = Track { standing: Standing::None, volume: 0, range: 0..0 };

/// What a place waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// The old era and the one after it.
    Next,
    /// The old era.
    Old,
    /// Nothing.
    Over,
}

#[derive(Clone, Debug)]
struct Place {
    record: u32,
    range: Range<u64>,
    drain: Drain,
    /// It has compared, and writes.
    equal: bool,
}

struct Volume {
    places: [Option<Place>; PLACES],
    taken: u32,
    /// Writes under way, by era modulo 2.
    counts: [u32; 2],
    era: u8,
    /// The count of the old era is waited for; else it is 0.
    draining: bool,
    parked: List,
    waiting: List,
}

/// The locks of an engine.
pub(crate) struct Locks {
    volumes: Vec<Volume>,
    tracks: Box<[Track]>,
    links: Links,
    /// Let go: to be scheduled again.
    ready: List,
    /// Requests that are kept back.
    held: u32,
}

/// What becomes of a request that wants to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may be issued.
    Granted,
    /// [`Locks::next_ready`] will give it back.
    Held,
}

impl Locks {
    /// For requests in records `0..records`.
    pub fn new(records: u32) -> Self {
        Self {
            volumes: Vec::new(),
            tracks: vec![UNTRACKED; records as usize].into(),
            links: Links::new(records),
            ready: List::EMPTY,
            held: 0,
        }
    }

    /// A volume came, under an id that nothing uses.
    pub fn add_volume(&mut self, id: VolumeId) {
        let index = id.0 as usize;
        if self.volumes.len() <= index {
            self.volumes.resize_with(index + 1, Volume::new);
        }
    }

    /// Somebody is kept back: answers that come in may let him go on.
    pub fn any_held(&self) -> bool {
        self.held > 0
    }

    /// The request stands here: [`Self::forget`] it when it is over.
    pub fn knows(&self, record: u32) -> bool {
        self.tracks[record as usize].standing != Standing::None
    }

    /// The request is kept back here, and not in a class queue.
    pub fn holds(&self, record: u32) -> bool {
        let Track { standing, volume, .. } = &self.tracks[record as usize];
        match standing {
            Standing::Parked | Standing::Waiting => true,
            Standing::Placed(place) => {
                let place = &self.volumes[*volume as usize].places[usize::from(*place)];
                place.as_ref().is_some_and(|place| place.drain != Drain::Over)
            }
            Standing::None | Standing::Counted(_) => false,
        }
    }

    /// A write wants to be issued. Granted for all it has to write, in however many steps.
    pub fn write(&mut self, id: VolumeId, record: u32, range: Range<u64>) -> Admission {
        if self.knows(record) {
            return Admission::Granted;
        }
        let volume = &mut self.volumes[id.0 as usize];
        if volume.taken > 0 && volume.overlaps(&range) {
            self.links.push_back(&mut volume.parked, record);
            return self.hold(id.0, record, Standing::Parked, 0..0);
        }
        self.count(id.0, record);
        Admission::Granted
    }

    /// A compare-and-write wants to be issued. Granted until it is over.
    pub fn compare_and_write(&mut self, id: VolumeId, record: u32, range: Range<u64>) -> Admission {
        if self.knows(record) {
            return Admission::Granted;
        }
        let volume = &mut self.volumes[id.0 as usize];
        if !volume.waiting.is_empty() || !volume.admits(&range) {
            self.links.push_back(&mut volume.waiting, record);
            return self.hold(id.0, record, Standing::Waiting, range);
        }
        self.take_place(id.0, record, range)
    }

    /// Index of the place that a granted compare-and-write has, and whether it has compared.
    pub fn place(&self, record: u32) -> Option<(usize, bool)> {
        let track = &self.tracks[record as usize];
        let Standing::Placed(index) = track.standing else { return None };
        let place = self.volumes[track.volume as usize].places[usize::from(index)].as_ref()?;
        Some((usize::from(index), place.equal))
    }

    /// A compare-and-write found what it looked for.
    pub fn set_equal(&mut self, record: u32) {
        let track = &self.tracks[record as usize];
        let Standing::Placed(index) = track.standing else { return };
        if let Some(place) = &mut self.volumes[track.volume as usize].places[usize::from(index)] {
            place.equal = true;
        }
    }

    /// The request is over, wherever it stood. Those that it held up are given by [`Self::next_ready`].
    pub fn forget(&mut self, record: u32) {
        self.held -= u32::from(self.holds(record));
        let Track { standing, volume: id, .. } =
            std::mem::replace(&mut self.tracks[record as usize], UNTRACKED);
        let volume = &mut self.volumes[id as usize];
        match standing {
            Standing::None => {}
            Standing::Counted(era) => {
                volume.counts[usize::from(era)] -= 1;
                self.drain(id);
            }
            Standing::Parked => {
                self.links.remove(&mut volume.parked, record);
                self.fill_places(id);
            }
            Standing::Waiting => {
                self.links.remove(&mut volume.waiting, record);
                self.fill_places(id);
            }
            Standing::Placed(place) => {
                volume.places[usize::from(place)] = None;
                volume.taken -= 1;
                self.release_parked(id);
                self.fill_places(id);
            }
        }
    }

    /// The next request that may go on: to the front of its class queue. Those that waited longest come last.
    pub fn next_ready(&mut self) -> Option<u32> {
        self.links.pop_back(&mut self.ready)
    }

    fn hold(&mut self, id: u32, record: u32, standing: Standing, range: Range<u64>) -> Admission {
        self.tracks[record as usize] = Track { standing, volume: id, range };
        self.held += 1;
        Admission::Held
    }

    fn count(&mut self, id: u32, record: u32) {
        let volume = &mut self.volumes[id as usize];
        let era = volume.era;
        volume.counts[usize::from(era)] += 1;
        self.tracks[record as usize] = Track { standing: Standing::Counted(era), volume: id, range: 0..0 };
    }

    fn take_place(&mut self, id: u32, record: u32, range: Range<u64>) -> Admission {
        let volume = &mut self.volumes[id as usize];
        let Some(index) = volume.places.iter().position(Option::is_none) else {
            unreachable!("admits() saw a free place")
        };
        let drain = match (volume.draining, volume.counts) {
            (_, [0, 0]) => Drain::Over,
            (true, _) => Drain::Next,
            (false, _) => {
                volume.begin_era();
                Drain::Old
            }
        };
        volume.places[index] = Some(Place { record, range, drain, equal: false });
        volume.taken += 1;
        let standing = Standing::Placed(index as u8);
        if drain == Drain::Over {
            self.tracks[record as usize] = Track { standing, volume: id, range: 0..0 };
            return Admission::Granted;
        }
        self.hold(id, record, standing, 0..0)
    }

    /// The count of the old era may have become 0.
    fn drain(&mut self, id: u32) {
        let volume = &mut self.volumes[id as usize];
        if !volume.draining || volume.counts[usize::from(volume.era ^ 1)] > 0 {
            return;
        }
        volume.draining = false;
        let idle = volume.counts == [0, 0];
        let mut again = false;
        for place in volume.places.iter_mut().flatten() {
            place.drain = match place.drain {
                Drain::Next if !idle => {
                    again = true;
                    Drain::Old
                }
                Drain::Over => continue,
                Drain::Old | Drain::Next => {
                    self.held -= 1;
                    self.links.push_back(&mut self.ready, place.record);
                    Drain::Over
                }
            };
        }
        if again {
            volume.begin_era();
        }
    }

    /// Once the last place is given back, parked writes go on.
    fn release_parked(&mut self, id: u32) {
        if self.volumes[id as usize].taken > 0 {
            return;
        }
        while let Some(record) = self.links.pop_front(&mut self.volumes[id as usize].parked) {
            self.held -= 1;
            self.count(id, record);
            self.links.push_back(&mut self.ready, record);
        }
    }

    /// Places for those who wait, in their order.
    fn fill_places(&mut self, id: u32) {
        loop {
            let volume = &mut self.volumes[id as usize];
            let Some(record) = volume.waiting.first() else { return };
            let range = self.tracks[record as usize].range.clone();
            if !volume.admits(&range) {
                return;
            }
            self.links.remove(&mut volume.waiting, record);
            self.held -= 1;
            if self.take_place(id, record, range) == Admission::Granted {
                self.links.push_back(&mut self.ready, record);
            }
        }
    }
}

impl Volume {
    fn new() -> Self {
        Self {
            places: Default::default(),
            taken: 0,
            counts: [0; 2],
            era: 0,
            draining: false,
            parked: List::EMPTY,
            waiting: List::EMPTY,
        }
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.places
            .iter()
            .flatten()
            .any(|place| place.range.start < range.end && range.start < place.range.end)
    }

    /// A compare-and-write may take a place.
    fn admits(&self, range: &Range<u64>) -> bool {
        (self.taken as usize) < PLACES && self.parked.is_empty() && !self.overlaps(range)
    }

    /// Writes count in the other era from now on, and those of this one are waited for.
    fn begin_era(&mut self) {
        debug_assert_eq!(self.counts[usize::from(self.era ^ 1)], 0);
        self.era ^= 1;
        self.draining = true;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const RECORDS: u32 = 64;
    const VOLUME: VolumeId = VolumeId(1);

    fn locks() -> Locks {
        let mut locks = Locks::new(RECORDS);
        locks.add_volume(VOLUME);
        locks
    }

    #[test]
    fn a_compare_and_write_waits_for_writes_issued_before() {
        let mut locks = locks();
        assert_eq!(locks.write(VOLUME, 0, 0..8), Admission::Granted);
        assert_eq!(locks.compare_and_write(VOLUME, 1, 0..8), Admission::Held);
        assert_eq!(locks.write(VOLUME, 2, 4..6), Admission::Held, "the lock is on");
        assert_eq!(locks.write(VOLUME, 3, 8..16), Admission::Granted, "it is on that range alone");
        assert_eq!(locks.write(VOLUME, 0, 0..8), Admission::Granted, "the next step of a write");
        assert_eq!(locks.next_ready(), None);
        locks.forget(0);
        assert_eq!(locks.next_ready(), Some(1));
        assert_eq!(locks.place(1), Some((0, false)));
        locks.set_equal(1);
        assert_eq!(locks.place(1), Some((0, true)));
        locks.forget(1);
        assert_eq!(locks.next_ready(), Some(2));
        assert_eq!((locks.next_ready(), locks.any_held()), (None, false));
    }

    #[test]
    fn a_place_taken_during_a_drain_waits_for_the_next_one_too() {
        let mut locks = locks();
        assert_eq!(locks.write(VOLUME, 0, 0..8), Admission::Granted);
        assert_eq!(locks.compare_and_write(VOLUME, 1, 64..65), Admission::Held);
        assert_eq!(locks.write(VOLUME, 2, 0..8), Admission::Granted);
        assert_eq!(locks.compare_and_write(VOLUME, 3, 0..8), Admission::Held);
        locks.forget(0);
        assert_eq!(
            (locks.next_ready(), locks.next_ready()),
            (Some(1), None),
            "2 overlaps 3 and is under way"
        );
        locks.forget(2);
        assert_eq!(locks.next_ready(), Some(3));
    }

    #[test]
    fn no_place_is_taken_before_parked_writes_were_let_through() {
        let mut locks = locks();
        assert_eq!(locks.compare_and_write(VOLUME, 0, 0..8), Admission::Granted);
        assert_eq!(locks.compare_and_write(VOLUME, 1, 8..16), Admission::Granted);
        assert_eq!(locks.write(VOLUME, 2, 0..1), Admission::Held);
        assert_eq!(locks.compare_and_write(VOLUME, 3, 32..33), Admission::Held);
        locks.forget(0);
        assert_eq!(locks.next_ready(), None);
        locks.forget(1);
        assert_eq!(locks.next_ready(), Some(2));
        assert_eq!((locks.next_ready(), locks.any_held()), (None, true), "3 has its place, and waits for 2");
        locks.forget(2);
        assert_eq!(locks.next_ready(), Some(3));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Range<u64>),
        CompareAndWrite(Range<u64>),
        Finish(usize),
        Withdraw(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0..24u64, 1..6u64).prop_map(|(start, length)| start..start + length);
        let step = prop_oneof![
            3 => range().prop_map(Step::Write),
            3 => range().prop_map(Step::CompareAndWrite),
            4 => any::<usize>().prop_map(Step::Finish),
            1 => any::<usize>().prop_map(Step::Withdraw),
        ];
        prop::collection::vec(step, 0..400)
    }

    #[derive(Clone, Debug)]
    struct Wanted {
        range: Range<u64>,
        locks: bool,
        /// Compare-and-writes that ended since it was held.
        passed: usize,
    }

    #[derive(Default)]
    struct Model {
        active: BTreeMap<u32, Wanted>,
        held: BTreeMap<u32, Wanted>,
    }

    impl Model {
        fn grant(&mut self, record: u32, wanted: Wanted) {
            for (other, active) in &self.active {
                let overlap = active.range.start < wanted.range.end && wanted.range.start < active.range.end;
                assert!(
                    !(overlap && (active.locks || wanted.locks)),
                    "{record} {wanted:?} beside {other} {active:?}"
                );
            }
            self.active.insert(record, wanted);
        }

        fn take_ready(&mut self, locks: &mut Locks) {
            while let Some(record) = locks.next_ready() {
                let wanted = self.held.remove(&record).expect("only who is held becomes ready");
                assert!(locks.knows(record) && !locks.holds(record));
                self.grant(record, wanted);
            }
            assert_eq!(locks.any_held(), !self.held.is_empty());
        }

        fn finish(&mut self, locks: &mut Locks, record: u32) {
            let ended = self.active.remove(&record).expect("active");
            locks.forget(record);
            if ended.locks {
                for held in self.held.values_mut().filter(|held| !held.locks) {
                    held.passed += 1;
                    assert!(held.passed <= PLACES, "a write was passed by more than all places: {held:?}");
                }
            }
            self.take_ready(locks);
        }
    }

    proptest! {
        /// Whatever comes: nothing is granted beside what it overlaps if one of the two locks, no write is passed by more
        /// than all places, and when the others end, everybody is granted.
        #[test]
        fn locks_exclude_and_let_everybody_through(steps in steps()) {
            let mut locks = locks();
            let mut model = Model::default();
            let mut free: Vec<u32> = (0..RECORDS).collect();
            for step in steps {
                match step {
                    Step::Write(_) | Step::CompareAndWrite(_) if free.is_empty() => {}
                    Step::Write(ref range) | Step::CompareAndWrite(ref range) => {
                        let record = free.pop().unwrap();
                        let locking = matches!(step, Step::CompareAndWrite(_));
                        let admission = if locking {
                            locks.compare_and_write(VOLUME, record, range.clone())
                        } else {
                            locks.write(VOLUME, record, range.clone())
                        };
                        let wanted = Wanted { range: range.clone(), locks: locking, passed: 0 };
                        match admission {
                            Admission::Granted => model.grant(record, wanted),
                            Admission::Held => {
                                prop_assert!(locks.holds(record));
                                model.held.insert(record, wanted);
                            }
                        }
                        model.take_ready(&mut locks);
                    }
                    Step::Finish(n) if !model.active.is_empty() => {
                        let record = *model.active.keys().nth(n % model.active.len()).unwrap();
                        model.finish(&mut locks, record);
                        free.push(record);
                    }
                    Step::Withdraw(n) if !model.held.is_empty() => {
                        let record = *model.held.keys().nth(n % model.held.len()).unwrap();
                        model.held.remove(&record);
                        locks.forget(record);
                        free.push(record);
                        model.take_ready(&mut locks);
                    }
                    Step::Finish(_) | Step::Withdraw(_) => {}
                }
            }
            while let Some(record) = model.active.keys().next().copied() {
                model.finish(&mut locks, record);
            }
            prop_assert!(model.held.is_empty(), "nobody is under way, and these are held: {:?}", model.held);
        }
    }
}
