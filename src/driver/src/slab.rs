//! Paged slots whose addresses never move.

use crate::tag::Tag;

const PAGE_SLOTS: u32 = 128;
const NO_SLOT: u32 = u32::MAX;

/// A bounded pool of slots in pages of 128: O(1) insert, lookup and removal, the last slot freed is the
/// first reused, and a value stays at its address from [`insert`](StableSlab::insert) to
/// [`remove`](StableSlab::remove), because the kernel may hold that address meanwhile.
///
/// Each slot counts its generations; a [`Tag`] names slot and generation, so a tag that outlived its
/// request finds nothing.
#[derive(Debug)]
pub struct StableSlab<T> {
    pages: Vec<Page<T>>,
    capacity: u32,
    occupied: u32,
    free: u32,
}

/// Of the last page, slots beyond the capacity are never free.
type Page<T> = Box<[Entry<T>; PAGE_SLOTS as usize]>;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

impl<T> StableSlab<T> {
    /// A pool of `capacity` slots. All pages are allocated here: nothing allocates later.
    ///
    /// # Panics
    ///
    /// If `capacity` reaches into the indices of control tags.
    pub fn new(capacity: u32) -> StableSlab<T> {
        let mut slab = StableSlab::growing(capacity);
        (0..capacity.div_ceil(PAGE_SLOTS)).rev().for_each(|page| {
            let page = slab.page(page);
            slab.pages.push(page);
        });
        slab.pages.reverse();
        slab
    }

    /// A pool of at most `capacity` slots that allocates a page when one is needed. No slot moves for that.
    ///
    /// # Panics
    ///
    /// As [`new`](StableSlab::new).
    pub fn growing(capacity: u32) -> StableSlab<T> {
        assert!(capacity < Tag::CONTROL_BASE, "{capacity} slots reach the control tags");
        StableSlab { pages: Vec::new(), capacity, occupied: 0, free: NO_SLOT }
    }

    /// A page of free slots, in front of those that are free already.
    fn page(&mut self, page: u32) -> Page<T> {
        let (first, end) = (page * PAGE_SLOTS, self.capacity.min((page + 1) * PAGE_SLOTS));
        let behind = std::mem::replace(&mut self.free, first);
        let next_free = |index| if index + 1 < end { index + 1 } else { behind };
        let entry = |place| Entry { generation: 0, next_free: next_free(first + place as u32), value: None };
        Box::new(std::array::from_fn(entry))
    }

    /// `false`: it has all its slots.
    #[cold]
    fn grow(&mut self) -> bool {
        let page = self.pages.len() as u32;
        let grows = page < self.capacity.div_ceil(PAGE_SLOTS);
        if grows {
            let page = self.page(page);
            self.pages.push(page);
        }
        grows
    }

    /// Puts `value` into a free slot, or hands it back when all are occupied.
    pub fn insert(&mut self, value: T) -> Result<Tag, T> {
        if self.free == NO_SLOT && !self.grow() {
            return Err(value);
        }
        let index = self.free;
        let entry = &mut self.pages[(index / PAGE_SLOTS) as usize][(index % PAGE_SLOTS) as usize];
        entry.generation = (entry.generation + 1) & Tag::GENERATION;
        entry.value = Some(value);
        self.free = entry.next_free;
        self.occupied += 1;
        Ok(Tag::new(entry.generation, index))
    }

    /// The value behind `tag`, unless the slot has moved on.
    pub fn get(&mut self, tag: Tag) -> Option<&mut T> {
        self.entry(tag)?.value.as_mut()
    }

    /// Takes the value out and frees its slot.
    pub fn remove(&mut self, tag: Tag) -> Option<T> {
        let free = self.free;
        let entry = self.entry(tag)?;
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) & Tag::GENERATION;
        entry.next_free = free;
        self.free = tag.index();
        self.occupied -= 1;
        Some(value)
    }

    /// The tag of what is in the slot at `index`.
    pub fn tag_at(&self, index: u32) -> Option<Tag> {
        let page = self.pages.get((index / PAGE_SLOTS) as usize)?;
        let entry = page.get((index % PAGE_SLOTS) as usize)?;
        entry.value.as_ref().map(|_| Tag::new(entry.generation, index))
    }

    /// Slots in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots occupied.
    pub fn len(&self) -> u32 {
        self.occupied
    }

    /// No slot is occupied.
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    fn entry(&mut self, tag: Tag) -> Option<&mut Entry<T>> {
        let index = tag.index();
        let entry =
            self.pages.get_mut((index / PAGE_SLOTS) as usize)?.get_mut((index % PAGE_SLOTS) as usize)?;
        (entry.generation == tag.generation()).then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_and_the_last_freed_slot_comes_first() {
        let mut slab = StableSlab::new(300);
        let tags: Vec<Tag> = (0..300u32).map(|n| slab.insert(n).expect("room")).collect();
        assert_eq!(slab.insert(300), Err(300));
        let addresses: Vec<*const u32> =
            tags.iter().map(|&tag| std::ptr::from_ref(slab.get(tag).expect("live"))).collect();
        assert_eq!(slab.remove(tags[7]), Some(7));
        assert_eq!(slab.remove(tags[200]), Some(200));
        assert_eq!(slab.len(), 298);
        let reused = slab.insert(1000).expect("room");
        assert_eq!(reused.index(), 200);
        for (n, (&tag, &address)) in tags.iter().zip(&addresses).enumerate() {
            if n != 7 && n != 200 {
                assert_eq!(std::ptr::from_ref(slab.get(tag).expect("live")), address);
            }
        }
    }

    #[test]
    fn addresses_stay_while_it_grows() {
        let mut slab = StableSlab::growing(300);
        assert!(slab.pages.is_empty());
        let first = slab.insert(0_u32).expect("room");
        let address = std::ptr::from_ref(slab.get(first).expect("live"));
        let tags: Vec<Tag> = (1..300).map(|n| slab.insert(n).expect("room")).collect();
        assert_eq!(slab.pages.len(), 3);
        assert_eq!(slab.insert(300), Err(300));
        assert_eq!(std::ptr::from_ref(slab.get(first).expect("live")), address);
        for (n, &tag) in (1..).zip(&tags) {
            assert_eq!((tag.index(), slab.get(tag).copied()), (n, Some(n)));
        }
        // Freed slots come before a new page.
        let mut slab = StableSlab::growing(300);
        for _ in 0..1000 {
            let tag = slab.insert(()).expect("room");
            assert_eq!(slab.remove(tag), Some(()));
        }
        assert_eq!(slab.pages.len(), 1);
    }

    #[test]
    fn a_tag_that_outlived_its_request_finds_nothing() {
        let mut slab = StableSlab::new(1);
        let old = slab.insert('a').expect("room");
        assert_eq!(slab.remove(old), Some('a'));
        assert_eq!(slab.remove(old), None);
        let new = slab.insert('b').expect("room");
        assert_eq!(new.index(), old.index());
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.get(new), Some(&mut 'b'));
        assert_eq!(slab.get(Tag::new(new.generation(), 5)), None);
        assert_eq!((slab.tag_at(new.index()), slab.tag_at(5)), (Some(new), None));
        assert_eq!(new.generation() % 2, 1);
    }

    #[test]
    fn an_empty_pool_is_full() {
        let mut slab = StableSlab::new(0);
        assert_eq!(slab.insert(()), Err(()));
        assert!(slab.is_empty());
    }
}
