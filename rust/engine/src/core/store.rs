//! Entities of one kind in one shard: found by id in O(1), marked when changed, woken when due.
//!
//! An entity is kept as its state bytes, with its id in the same block of memory: a million of them
//! take little more room than in the changelog, and one that is touched is fetched in one piece.
//! Whoever works on an entity reads its state, and puts the new one back.

use super::dedupe::signal_id;
use super::index::Index;
use hashbrown::DefaultHashBuilder;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

/// An entity's id and state: two lengths, the id, the state, room to spare.
#[derive(Debug)]
struct Block(Box<[u8]>);

/// Bytes that the two lengths take.
const LENGTHS: usize = 8;

impl Block {
    fn new(id: &[u8], state: &[u8]) -> Self {
        // Allocators hand out 16 bytes at a time, 8 of them their own: what is spare costs nothing.
        let size = (LENGTHS + id.len() + state.len() + 8).next_multiple_of(16) - 8;
        let mut block = Self(vec![0; size].into());
        block.0[..4].copy_from_slice(&len(id).to_le_bytes());
        block.0[LENGTHS..LENGTHS + id.len()].copy_from_slice(id);
        block.set_state(id.len(), state);
        block
    }

    fn set_state(&mut self, id_len: usize, state: &[u8]) {
        self.0[4..LENGTHS].copy_from_slice(&len(state).to_le_bytes());
        let start = LENGTHS + id_len;
        self.0[start..start + state.len()].copy_from_slice(state);
    }

    fn len_at(&self, at: usize) -> usize {
        let bytes = self.0[at..].first_chunk::<4>().copied();
        u32::from_le_bytes(bytes.unwrap_or_default()) as usize
    }

    fn id(&self) -> &[u8] {
        &self.0[LENGTHS..LENGTHS + self.len_at(0)]
    }

    fn state(&self) -> &[u8] {
        let start = LENGTHS + self.len_at(0);
        &self.0[start..start + self.len_at(4)]
    }

    fn put(&mut self, state: &[u8]) {
        let id_len = self.len_at(0);
        if LENGTHS + id_len + state.len() <= self.0.len() {
            self.set_state(id_len, state);
        } else {
            *self = Self::new(self.id(), state);
        }
    }
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("an id or a state under 4 GiB")
}

#[derive(Debug)]
struct Slot {
    block: Block,
    /// The due time that stands in the queue for this slot, [`NEVER`] if none does.
    queued_ms: i64,
    dirty: bool,
    /// Whether something that its entity has begun is not over.
    is_open: bool,
}

const NEVER: i64 = i64::MAX;

/// How many entities are fetched at once: about as many as a core keeps under way.
pub const AHEAD: usize = 16;

/// Where an entity lies in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotIndex(u32);

impl SlotIndex {
    /// The same as a number: slots are numbered from 0 in the order in which entities came.
    #[must_use]
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

/// All entities of one kind in one shard.
#[derive(Debug, Default)]
pub struct Store {
    /// Slots by the hash of their ids, which stand in the blocks only.
    index: Index,
    hasher: DefaultHashBuilder,
    slots: Vec<Slot>,
    dirty: Vec<SlotIndex>,
    /// Due time, then a hash of the id: the order in which timers fire must not depend on the
    /// order in which entities were restored.
    queue: BinaryHeap<Reverse<(i64, u64, SlotIndex)>>,
    /// How many slots have a timer.
    armed: usize,
    /// How many slots are open.
    open: usize,
}

impl Store {
    /// The slot of the entity with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<SlotIndex> {
        self.find_hashed(self.hash(id.as_bytes()), id.as_bytes())
    }

    fn find_hashed(&self, hash: u32, id: &[u8]) -> Option<SlotIndex> {
        let is_it = |at: u32| self.slot(SlotIndex(at)).block.id() == id;
        self.index.find(hash, is_it).map(SlotIndex)
    }

    fn hash(&self, id: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(id);
        // The halves of a 64-bit hash are as good as the whole.
        #[allow(clippy::cast_possible_truncation)]
        let half = (hash >> 32) as u32;
        half
    }

    /// Has the entities with the first [`AHEAD`] of these ids, as far as there are any, fetched from
    /// memory, all at once: one after the other, each would be waited for. What has to be known
    /// before the next address is known is fetched for all of them first.
    pub fn fetch<'k>(&self, ids: impl Iterator<Item = &'k [u8]>) {
        let (mut hashes, mut blocks) = ([0; AHEAD], [&[] as &[u8]; AHEAD]);
        let (mut touched, mut count) = (0, 0);
        for (hash, id) in hashes.iter_mut().zip(ids) {
            *hash = self.hash(id);
            touched ^= self.index.touch(*hash);
            count += 1;
        }
        for (block, hash) in blocks.iter_mut().zip(&hashes[..count]) {
            if let Some(at) = self.index.find(*hash, |_| true) {
                *block = &self.slot(SlotIndex(at)).block.0;
            }
        }
        for block in &blocks[..count] {
            // One byte of each line of the cache.
            touched ^= block
                .iter()
                .step_by(64)
                .fold(0, |all, byte| all ^ u32::from(*byte));
        }
        std::hint::black_box(touched);
    }

    /// Adds an entity with the time of its next timer, or replaces the one with the same id,
    /// without marking it.
    ///
    /// # Panics
    /// Beyond 2^32 entities in one shard: memory is full long before.
    pub fn insert(&mut self, id: &str, state: &[u8], due_ms: Option<i64>) -> SlotIndex {
        let id = id.as_bytes();
        let hash = self.hash(id);
        let at = match self.find_hashed(hash, id) {
            Some(at) => {
                self.slot_mut(at).block.put(state);
                at
            }
            None => {
                let at = u32::try_from(self.slots.len())
                    .ok()
                    .filter(|at| *at < u32::MAX)
                    .expect("fewer than 2^32 entities a shard");
                self.slots.push(Slot {
                    block: Block::new(id, state),
                    queued_ms: NEVER,
                    dirty: false,
                    is_open: false,
                });
                self.index.insert(hash, at);
                SlotIndex(at)
            }
        };
        self.schedule(at, due_ms);
        at
    }

    fn slot(&self, at: SlotIndex) -> &Slot {
        &self.slots[at.0 as usize]
    }

    fn slot_mut(&mut self, at: SlotIndex) -> &mut Slot {
        &mut self.slots[at.0 as usize]
    }

    /// The id of the entity in a slot.
    ///
    /// # Panics
    /// Never: every id came in as a text.
    #[must_use]
    pub fn id(&self, at: SlotIndex) -> &str {
        std::str::from_utf8(self.slot(at).block.id()).expect("an id is a text")
    }

    /// The state of the entity in a slot.
    #[must_use]
    pub fn state(&self, at: SlotIndex) -> &[u8] {
        self.slot(at).block.state()
    }

    /// Puts a changed entity back: marks it and queues its next timer.
    pub fn put(&mut self, at: SlotIndex, state: &[u8], due_ms: Option<i64>) {
        self.slot_mut(at).block.put(state);
        self.mark(at);
        self.schedule(at, due_ms);
    }

    /// Marks an entity that is changed elsewhere; put it back before the changed are drained.
    pub fn mark(&mut self, at: SlotIndex) {
        let slot = self.slot_mut(at);
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(at);
        }
    }

    /// The changed entities, in the order of first change.
    #[must_use]
    pub fn changed(&self) -> &[SlotIndex] {
        &self.dirty
    }

    fn schedule(&mut self, at: SlotIndex, due_ms: Option<i64>) {
        let due_ms = due_ms.unwrap_or(NEVER);
        let slot = self.slot_mut(at);
        let was_ms = slot.queued_ms;
        if due_ms == was_ms {
            return;
        }
        slot.queued_ms = due_ms;
        self.armed += usize::from(due_ms != NEVER);
        self.armed -= usize::from(was_ms != NEVER);
        if due_ms != NEVER {
            let order = signal_id(&[self.id(at)]);
            self.queue.push(Reverse((due_ms, order, at)));
        }
    }

    /// The earliest timer, in epoch milliseconds.
    pub fn next_due_ms(&mut self) -> Option<i64> {
        loop {
            let &Reverse((due_ms, _, at)) = self.queue.peek()?;
            if self.slot(at).queued_ms == due_ms {
                return Some(due_ms);
            }
            // The entity has moved its timer since.
            self.queue.pop();
        }
    }

    /// Takes the earliest timer that is due; fire it, then [`Self::put`] the entity back.
    pub fn pop_due(&mut self, now_ms: i64) -> Option<SlotIndex> {
        if self.next_due_ms()? > now_ms {
            return None;
        }
        let Reverse((_, _, at)) = self.queue.pop()?;
        self.slot_mut(at).queued_ms = NEVER;
        self.armed -= 1;
        Some(at)
    }

    /// Notes whether something that an entity has begun is not over.
    pub fn set_open(&mut self, at: SlotIndex, is_open: bool) {
        let was_open = std::mem::replace(&mut self.slot_mut(at).is_open, is_open);
        self.open += usize::from(is_open);
        self.open -= usize::from(was_open);
    }

    /// How many entities have something under way.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// How many timers are set.
    #[must_use]
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Hands out each changed entity's id and state once, in the order of first change.
    pub fn drain_changed(&mut self, mut each: impl FnMut(&[u8], &[u8])) {
        for at in std::mem::take(&mut self.dirty) {
            let slot = self.slot_mut(at);
            slot.dirty = false;
            each(slot.block.id(), slot.block.state());
        }
    }

    /// Every entity's id and state.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        (0..self.slots.len()).map(|at| {
            let at = SlotIndex(u32::try_from(at).unwrap_or(u32::MAX));
            (self.id(at), self.state(at))
        })
    }

    /// Hands out ids and states from the slot `first` on, until they come to `bytes_max`; returns
    /// the slot to go on with, none behind the last.
    ///
    /// Entities never leave their slots, so pages taken one after the other have each entity that
    /// was there at the first, in the state of some later moment.
    pub fn page(
        &self,
        first: usize,
        bytes_max: usize,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Option<usize> {
        let mut size = 0;
        for (at, slot) in self.slots.iter().enumerate().skip(first) {
            if size >= bytes_max {
                return Some(at);
            }
            let (id, state) = (slot.block.id(), slot.block.state());
            size += id.len() + state.len();
            each(id, state);
        }
        None
    }

    /// How many entities there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn timers_fire_in_order_and_only_as_last_set() {
        let mut store = Store::default();
        let a = store.insert("a", b"", Some(30));
        let b = store.insert("b", b"", Some(20));
        store.put(a, b"", Some(10));
        store.put(b, b"", None);
        assert_eq!(store.pop_due(9), None);
        assert_eq!(store.pop_due(30), Some(a));
        assert_eq!(store.armed(), 0);
        store.put(a, b"", None);
        assert_eq!(store.pop_due(NEVER), None);
    }

    #[test]
    fn what_is_open_and_what_is_armed_is_counted_once() {
        let mut store = Store::default();
        let a = store.insert("a", b"", Some(30));
        let b = store.insert("b", b"", None);
        for is_open in [true, true, false, true] {
            store.set_open(a, is_open);
        }
        store.set_open(b, false);
        store.put(a, b"", Some(40));
        store.insert("a", b"", Some(50));
        assert_eq!((store.open(), store.armed()), (1, 1));
        store.put(b, b"", Some(10));
        assert_eq!(store.armed(), 2);
        assert_eq!(store.pop_due(10), Some(b));
        store.put(a, b"", None);
        assert_eq!(store.armed(), 0);
    }

    #[test]
    fn a_timer_set_back_to_an_earlier_value_fires_once() {
        let mut store = Store::default();
        let a = store.insert("a", b"", Some(30));
        for due_ms in [40, 30] {
            store.put(a, b"", Some(due_ms));
        }
        assert_eq!(store.pop_due(100), Some(a));
        store.put(a, b"", None);
        assert_eq!(store.pop_due(100), None);
    }

    #[test]
    fn changed_entities_are_handed_out_once() {
        let mut store = Store::default();
        let a = store.insert("a", b"1", None);
        store.put(a, b"2", None);
        store.put(a, b"3", None);
        let mut seen = Vec::new();
        store.drain_changed(|id, state| seen.push((id.to_vec(), state.to_vec())));
        store.drain_changed(|id, state| seen.push((id.to_vec(), state.to_vec())));
        assert_eq!(seen, [(b"a".to_vec(), b"3".to_vec())]);
    }

    #[test]
    fn pages_hold_every_entity_once() {
        let mut store = Store::default();
        for n in 0..10u8 {
            store.insert(&format!("entity-{n}"), &[n; 5], None);
        }
        let (mut seen, mut pages, mut first) = (Vec::new(), 0, Some(0));
        while let Some(at) = first {
            first = store.page(at, 30, |id, state| seen.push((id.to_vec(), state.to_vec())));
            pages += 1;
        }
        let want: Vec<_> = store
            .iter()
            .map(|(id, state)| (id.as_bytes().to_vec(), state.to_vec()))
            .collect();
        assert_eq!((seen, pages), (want, 4));
    }

    proptest! {
        #[test]
        fn each_id_has_the_state_last_put(
            changes in prop::collection::vec((0..20u8, prop::collection::vec(any::<u8>(), 0..70)), 0..200)
        ) {
            let (mut store, mut want) = (Store::default(), HashMap::new());
            for (id, state) in changes {
                let id = format!("entity-{id}");
                match store.find(&id) {
                    Some(at) => store.put(at, &state, None),
                    None => _ = store.insert(&id, &state, None),
                }
                want.insert(id, state);
            }
            prop_assert_eq!(store.len(), want.len());
            for (id, state) in store.iter() {
                prop_assert_eq!(want.get(id).map(Vec::as_slice), Some(state));
                prop_assert_eq!(store.find(id).map(|at| store.id(at)), Some(id));
            }
            prop_assert_eq!(store.find("nobody"), None);
        }
    }
}
