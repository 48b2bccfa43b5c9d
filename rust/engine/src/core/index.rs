//! Where the entity with an id lies: an open-addressed table of hashes and slots.
//!
//! It keeps no ids: whoever asks compares. Entities are never taken out, so a search ends at the
//! first free place.

/// One place of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    hash: u32,
    slot: u32,
}

const FREE: Place = Place {
    hash: 0,
    slot: u32::MAX,
};

/// Slots by the hashes of their ids.
#[derive(Debug, Default)]
pub struct Index {
    /// None, or a power of two of them with at most three in four taken.
    places: Vec<Place>,
    taken: usize,
}

impl Index {
    /// The first slot with this hash that `is_it` accepts.
    pub fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let last = self.places.len().checked_sub(1)?;
        let mut at = hash as usize & last;
        loop {
            let place = self.places[at];
            if place == FREE {
                return None;
            }
            if place.hash == hash && is_it(place.slot) {
                return Some(place.slot);
            }
            at = (at + 1) & last;
        }
    }

    /// Something out of the memory in which a search for this hash begins.
    #[must_use]
    pub fn touch(&self, hash: u32) -> u32 {
        let last = self.places.len().wrapping_sub(1);
        self.places
            .get(hash as usize & last)
            .map_or(0, |place| place.slot)
    }

    /// Adds a slot below `u32::MAX`.
    pub fn insert(&mut self, hash: u32, slot: u32) {
        if 3 * self.places.len() <= 4 * self.taken {
            let size = (2 * self.places.len()).max(16);
            let places = std::mem::replace(&mut self.places, vec![FREE; size]);
            for place in places.into_iter().filter(|place| *place != FREE) {
                self.take(place);
            }
        }
        self.take(Place { hash, slot });
        self.taken += 1;
    }

    fn take(&mut self, place: Place) {
        let last = self.places.len() - 1;
        let mut at = place.hash as usize & last;
        while self.places[at] != FREE {
            at = (at + 1) & last;
        }
        self.places[at] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_slot_is_found_and_no_other(hashes in prop::collection::vec(0..64u32, 0..200)) {
            let mut index = Index::default();
            for (slot, hash) in (0..).zip(&hashes) {
                index.insert(*hash, slot);
            }
            for (slot, hash) in (0..).zip(&hashes) {
                prop_assert_eq!(index.find(*hash, |at| at == slot), Some(slot));
            }
            for hash in 0..64 {
                let first = hashes.iter().position(|known| *known == hash);
                let found = index.find(hash, |_| true).map(|slot| slot as usize);
                prop_assert_eq!(found.is_some(), first.is_some());
                prop_assert_eq!(index.find(hash, |_| false), None);
            }
        }
    }
}
