//! Rows under small numbers that they keep: a vector whose clone is cheap and whose change copies a
//! small part of it.
//!
//! Two levels of pointers stand above the rows. Both fit into the processor's caches, so that a row
//! costs one fetch from memory, and the rows themselves lie side by side. The numbers of rows that
//! are gone are used again.

use std::sync::Arc;

/// Rows that are copied when one of them changes.
const LEAF: usize = 16;
/// Leaves of a branch, whose pointers are copied then; and those of all branches.
const BRANCH: usize = 128;

type Leaf<T> = [Slot<T>; LEAF];
type Branch<T> = [Option<Arc<Leaf<T>>>; BRANCH];

#[derive(Clone, Debug)]
enum Slot<T> {
    Taken(T),
    /// The next one that is free.
    Free(Option<u32>),
}

/// The rows.
#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    branches: Arc<[Arc<Branch<T>>]>,
    /// How many slots were ever taken.
    used: u32,
    free: Option<u32>,
}

impl<T> Slab<T> {
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        let (branch, leaf, slot) = place(number);
        match self.branches.get(branch)?.get(leaf)?.as_deref()?.get(slot)? {
            Slot::Taken(row) => Some(row),
            Slot::Free(_) => None,
        }
    }

    /// All rows with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.used).filter_map(|number| Some((number, self.get(number)?)))
    }

    /// How many leaves are not those of another slab.
    #[cfg(test)]
    pub(super) fn copied_since(&self, before: &Self) -> usize {
        let leaves = |slab: &Self| -> Vec<_> {
            let branches = slab.branches.iter();
            branches.flat_map(|branch| branch.iter().flatten().map(Arc::as_ptr)).collect()
        };
        let before = leaves(before);
        leaves(self).iter().filter(|leaf| !before.contains(leaf)).count()
    }
}

impl<T: Clone> Slab<T> {
    pub(super) fn new() -> Self {
        Self { branches: Arc::new([]), used: 0, free: None }
    }

    /// Keeps a row under a number that is free.
    pub(super) fn insert(&mut self, row: T) -> u32 {
        let number = self.free.unwrap_or(self.used);
        self.used = self.used.max(number + 1);
        match std::mem::replace(self.slot(number), Slot::Taken(row)) {
            Slot::Free(next) => self.free = next,
            // INVARIANT: no taken slot is in the list of the free ones.
            Slot::Taken(_) => {}
        }
        number
    }

    /// The row under this number, to be changed.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.get(number)?;
        match self.slot(number) {
            Slot::Taken(row) => Some(row),
            Slot::Free(_) => None,
        }
    }

    /// Takes a row out; its number becomes free.
    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        self.get(number)?;
        let next = Slot::Free(self.free);
        match std::mem::replace(self.slot(number), next) {
            Slot::Taken(row) => {
                self.free = Some(number);
                Some(row)
            }
            Slot::Free(_) => None,
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "`place` gives remainders, and there are as many branches as it says"
    )]
    fn slot(&mut self, number: u32) -> &mut Slot<T> {
        let (branch, leaf, slot) = place(number);
        if branch >= self.branches.len() {
            let more = Arc::new([const { None }; BRANCH]);
            self.branches = self.branches.iter().cloned().chain([more]).collect();
        }
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.branches)[branch]);
        let leaf = branch[leaf].get_or_insert_with(|| Arc::new([const { Slot::Free(None) }; LEAF]));
        &mut Arc::make_mut(leaf)[slot]
    }
}

/// Which branch, which leaf of it, which slot of that.
const fn place(number: u32) -> (usize, usize, usize) {
    let number = number as usize;
    (number / (LEAF * BRANCH), number / LEAF % BRANCH, number % LEAF)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_map_of_numbers(ops: Vec<Option<u16>>, snapshot in 0usize..50) {
            let mut model = BTreeMap::new();
            let mut slab = Slab::new();
            let mut kept = None;
            for (at, op) in ops.into_iter().enumerate() {
                if at == snapshot {
                    kept = Some((slab.clone(), model.clone()));
                }
                let taken = model.keys().nth(at / 3).copied();
                match (op, taken) {
                    (Some(value), Some(number)) if value % 4 == 0 => {
                        *slab.get_mut(number).unwrap() = value;
                        model.insert(number, value);
                    }
                    (None, Some(number)) => prop_assert_eq!(slab.remove(number), model.remove(&number)),
                    (value, _) => {
                        let value = value.unwrap_or(0);
                        prop_assert_eq!(model.insert(slab.insert(value), value), None, "a number that was free");
                    }
                }
            }
            for (slab, model) in kept.into_iter().chain([(slab, model)]) {
                prop_assert!(slab.iter().eq(model.iter().map(|(number, value)| (*number, value))));
                prop_assert_eq!(slab.get(1 << 20), None);
            }
        }
    }

    #[test]
    fn numbers_of_rows_that_are_gone_are_used_again() {
        let mut slab = Slab::new();
        for n in 0..5000 {
            assert_eq!(slab.insert(n), n);
        }
        let before = slab.clone();
        assert_eq!(
            (slab.remove(7), slab.remove(4000), slab.remove(7)),
            (Some(7), Some(4000), None)
        );
        assert_eq!(slab.copied_since(&before), 2);
        assert_eq!((slab.insert(1), slab.insert(2), slab.insert(3)), (4000, 7, 5000));
        assert_eq!((before.get(7), slab.get(7), before.get(5000)), (Some(&7), Some(&2), None));
    }
}
