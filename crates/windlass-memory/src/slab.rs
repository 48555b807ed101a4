//! Stable places for values: a vector whose holes are used again. Nothing but that.

/// A place in a [`Slab`].
pub(crate) type Slot = usize;

/// Values at places that do not move while a value is there.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    holes: Vec<Slot>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), holes: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts a value into a free place.
    pub(crate) fn insert(&mut self, value: T) -> Slot {
        if let Some(slot) = self.holes.pop() {
            self.places[slot] = Some(value);
            return slot;
        }
        self.places.push(Some(value));
        self.places.len() - 1
    }

    /// Takes the value away; its place is free again.
    pub(crate) fn remove(&mut self, slot: Slot) -> T {
        let value = self.places[slot].take().expect("a slot is removed once");
        self.holes.push(slot);
        value
    }

    /// The value at a place that may be free, or may not exist.
    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        self.places.get(slot)?.as_ref()
    }
}

impl<T> std::ops::Index<Slot> for Slab<T> {
    type Output = T;
    fn index(&self, slot: Slot) -> &T {
        self.places[slot].as_ref().expect("an index names a task that is there")
    }
}

impl<T> std::ops::IndexMut<Slot> for Slab<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        self.places[slot].as_mut().expect("an index names a task that is there")
    }
}
