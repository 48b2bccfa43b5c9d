//! How often each place of some tables has been passed: plain counts, kept by each shard.

/// A cell of one of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which table.
    pub table: u32,
    /// Which of its cells.
    pub cell: u32,
}

/// Counts by table and cell; a cell that was never passed takes no room behind the last that was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<Vec<u64>>);

impl Counts {
    /// Counts one more.
    pub fn pass(&mut self, place: Place) {
        let table = at(&mut self.0, place.table);
        *at(table, place.cell) += 1;
    }

    /// How often a place has been passed.
    #[must_use]
    pub fn of(&self, place: Place) -> u64 {
        let table = self.0.get(place.table as usize);
        let count = table.and_then(|cells| cells.get(place.cell as usize));
        count.copied().unwrap_or(0)
    }
}

fn at<T: Clone + Default>(list: &mut Vec<T>, index: u32) -> &mut T {
    let index = index as usize;
    if index >= list.len() {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}

#[cfg(test)]
mod tests {
    use super::{Counts, Place};

    #[test]
    fn every_place_has_a_count_of_its_own() {
        let place = |table, cell| Place { table, cell };
        let mut counts = Counts::default();
        counts.pass(place(2, 5));
        counts.pass(place(0, 1));
        counts.pass(place(2, 5));
        assert_eq!(counts.of(place(2, 5)), 2);
        assert_eq!(counts.of(place(0, 1)), 1);
        for never in [place(2, 4), place(2, 6), place(1, 0), place(9, 9)] {
            assert_eq!(counts.of(never), 0);
        }
    }
}
