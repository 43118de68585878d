//! Whose turn it is where several have one name.
//!
//! Most programs sort the addresses that they get (RFC 6724 rule 9: the one nearest to their own
//! first), so a name that led to all of them would lead each program to the same one every time.
//! So each question is answered with one. Both types of address are counted apart: who asks for
//! both gets those of one endpoint as long as it does so each time, and who asks for both and takes
//! one is not led to every other endpoint only.

use std::collections::BTreeMap;

use super::RecordKind;

/// Names that are counted at a time.
const NAMES: usize = 1024;

/// How often each name was asked for at one server.
#[derive(Debug, Default)]
pub struct Turns {
    names: BTreeMap<String, [u64; 3]>,
}

impl Turns {
    /// The number of this question for a name. The first is `begin`: at random, so that servers
    /// that are asked once each do not all begin with the same endpoint.
    pub fn take(&mut self, name: String, kind: RecordKind, begin: u64) -> u64 {
        if self.names.len() >= NAMES && !self.names.contains_key(&name) {
            self.names.clear();
        }
        let [a, aaaa, others] = self.names.entry(name).or_insert([begin; 3]);
        let turn = match kind {
            RecordKind::A => a,
            RecordKind::Aaaa => aaaa,
            _ => others,
        };
        let taken = *turn;
        *turn = turn.wrapping_add(1);
        taken
    }

    /// How many names are counted.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}
