//! Entities of one kind in one shard: found by id in O(1), marked when changed, woken when due.

use super::dedupe::signal_id;
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a store must know of its entities.
pub trait Entity {
    /// When its next timer is due, in epoch milliseconds.
    fn due_ms(&self) -> Option<i64>;
}

#[derive(Debug)]
struct Slot<E> {
    id: Box<str>,
    entity: E,
    dirty: bool,
    /// The due time that stands in the queue for this slot, if any.
    queued_ms: Option<i64>,
}

/// Where an entity lies in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotIndex(u32);

/// All entities of one kind in one shard.
#[derive(Debug)]
pub struct Store<E> {
    index: HashMap<Box<str>, SlotIndex>,
    slots: Vec<Slot<E>>,
    dirty: Vec<SlotIndex>,
    /// Due time, then a hash of the id: the order in which timers fire must not depend on the
    /// order in which entities were restored.
    queue: BinaryHeap<Reverse<(i64, u64, SlotIndex)>>,
}

impl<E> Default for Store<E> {
    fn default() -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            dirty: Vec::new(),
            queue: BinaryHeap::new(),
        }
    }
}

impl<E: Entity> Store<E> {
    /// The slot of the entity with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<SlotIndex> {
        self.index.get(id).copied()
    }

    /// Adds an entity, or replaces the one with the same id, without marking it.
    ///
    /// # Panics
    /// Beyond 2^32 entities in one shard: memory is full long before.
    pub fn insert(&mut self, id: &str, entity: E) -> SlotIndex {
        let at = if let Some(at) = self.find(id) {
            self.slot_mut(at).entity = entity;
            at
        } else {
            let at = u32::try_from(self.slots.len()).expect("at most 2^32 entities a shard");
            self.slots.push(Slot {
                id: id.into(),
                entity,
                dirty: false,
                queued_ms: None,
            });
            self.index.insert(id.into(), SlotIndex(at));
            SlotIndex(at)
        };
        self.schedule(at);
        at
    }

    fn slot(&self, at: SlotIndex) -> &Slot<E> {
        &self.slots[at.0 as usize]
    }

    fn slot_mut(&mut self, at: SlotIndex) -> &mut Slot<E> {
        &mut self.slots[at.0 as usize]
    }

    /// The id and the entity in a slot.
    #[must_use]
    pub fn get(&self, at: SlotIndex) -> (&str, &E) {
        let slot = self.slot(at);
        (&slot.id, &slot.entity)
    }

    /// The entity in a slot, to change it; call [`Self::changed`] afterwards.
    pub fn get_mut(&mut self, at: SlotIndex) -> (&str, &mut E) {
        let slot = self.slot_mut(at);
        (&slot.id, &mut slot.entity)
    }

    /// Marks an entity as changed and queues its next timer.
    pub fn changed(&mut self, at: SlotIndex) {
        self.schedule(at);
        let slot = self.slot_mut(at);
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(at);
        }
    }

    fn schedule(&mut self, at: SlotIndex) {
        let slot = self.slot_mut(at);
        let due_ms = slot.entity.due_ms();
        if due_ms == slot.queued_ms {
            return;
        }
        slot.queued_ms = due_ms;
        if let Some(due_ms) = due_ms {
            let order = signal_id(&[&slot.id]);
            self.queue.push(Reverse((due_ms, order, at)));
        }
    }

    /// The earliest timer, in epoch milliseconds.
    pub fn next_due_ms(&mut self) -> Option<i64> {
        loop {
            let &Reverse((due_ms, _, at)) = self.queue.peek()?;
            if self.slot(at).queued_ms == Some(due_ms) {
                return Some(due_ms);
            }
            // The entity has moved its timer since.
            self.queue.pop();
        }
    }

    /// Takes the earliest timer that is due; fire it, then call [`Self::changed`].
    pub fn pop_due(&mut self, now_ms: i64) -> Option<SlotIndex> {
        if self.next_due_ms()? > now_ms {
            return None;
        }
        let Reverse((_, _, at)) = self.queue.pop()?;
        self.slot_mut(at).queued_ms = None;
        Some(at)
    }

    /// Hands out each changed entity once, in the order of first change.
    pub fn drain_changed(&mut self, mut each: impl FnMut(&str, &E)) {
        for at in std::mem::take(&mut self.dirty) {
            let slot = self.slot_mut(at);
            slot.dirty = false;
            each(&slot.id, &slot.entity);
        }
    }

    /// Every entity with its id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &E)> {
        self.slots.iter().map(|slot| (&*slot.id, &slot.entity))
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

    #[derive(Debug)]
    struct Alarm(Option<i64>);

    impl Entity for Alarm {
        fn due_ms(&self) -> Option<i64> {
            self.0
        }
    }

    #[test]
    fn timers_fire_in_order_and_only_as_last_set() {
        let mut store = Store::default();
        let a = store.insert("a", Alarm(Some(30)));
        let b = store.insert("b", Alarm(Some(20)));
        store.get_mut(a).1.0 = Some(10);
        store.changed(a);
        store.get_mut(b).1.0 = None;
        store.changed(b);
        assert_eq!(store.pop_due(9), None);
        assert_eq!(store.pop_due(30), Some(a));
        store.get_mut(a).1.0 = None;
        store.changed(a);
        assert_eq!(store.pop_due(i64::MAX), None);
    }

    #[test]
    fn a_timer_set_back_to_an_earlier_value_fires_once() {
        let mut store = Store::default();
        let a = store.insert("a", Alarm(Some(30)));
        for due in [40, 30] {
            store.get_mut(a).1.0 = Some(due);
            store.changed(a);
        }
        assert_eq!(store.pop_due(100), Some(a));
        store.get_mut(a).1.0 = None;
        store.changed(a);
        assert_eq!(store.pop_due(100), None);
    }

    #[test]
    fn changed_entities_are_handed_out_once() {
        let mut store = Store::default();
        let a = store.insert("a", Alarm(None));
        store.changed(a);
        store.changed(a);
        let mut seen = Vec::new();
        store.drain_changed(|id, _| seen.push(id.to_owned()));
        store.drain_changed(|id, _| seen.push(id.to_owned()));
        assert_eq!(seen, ["a"]);
    }
}
