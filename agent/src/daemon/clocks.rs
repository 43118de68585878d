//! Whether this host's clock and those of the other nodes show the same time. It is only said:
//! everything works with any clock as long as certificates are valid by it, and those decide for
//! themselves.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::NodeId,
    clock::Offset,
    control::{Request, Response},
};

use super::{doctor::check, mesh::Mesh};
use crate::{
    api::{Diagnosis, Health},
    lock::lock,
    objects::unix_ms,
};

/// A node that answers later than this says too little about its clock.
const CLOCK: Duration = Duration::from_secs(1);

const HINT: &str =
    "set the clock that is wrong (`timedatectl`, chrony); certificates and join tokens go by it";

impl Mesh {
    /// This host's clock less a node's, if that one answers.
    async fn clock_offset(&self, node: NodeId) -> Option<Offset> {
        let (began, own) = (Instant::now(), unix_ms());
        let answer = self.member.control.get()?.request(node, &Request::Clock, CLOCK).await;
        let Ok(Response::Clock { unix_ms: theirs }) = answer else { return None };
        // It looked at its clock in the middle of the exchange.
        let half = u64::try_from(began.elapsed().as_millis() / 2).unwrap_or(0);
        Some(Offset::between(own.saturating_add(half), theirs))
    }

    /// Compares clocks with a node that was met, and tells of a difference once.
    pub(super) async fn compare_clocks(&self, node: NodeId) {
        let Some(offset) = self.clock_offset(node).await else { return };
        let differs = offset.is_worth_telling();
        let differed = if differs {
            !lock(&self.member.logged.clocks).insert(node)
        } else {
            lock(&self.member.logged.clocks).remove(&node)
        };
        let name = self.node_name(node);
        match (differs, differed) {
            (true, false) => warn!("this host's clock is {offset} that of {name}; {HINT}"),
            (false, true) => info!("the clocks of this host and {name} agree again"),
            _ => {}
        }
    }

    /// What `doctor` says of clocks: asks every connected node.
    pub(super) async fn clock_diagnoses(&self) -> Vec<Diagnosis> {
        let Some(control) = self.member.control.get() else { return Vec::new() };
        let connected = control.peers().into_iter().filter(|peer| peer.connected);
        let asked =
            connected.map(|peer| async move { (peer.node, self.clock_offset(peer.node).await) });
        let answers = futures_util::future::join_all(asked).await;
        let offsets: BTreeMap<String, Offset> = answers
            .into_iter()
            .filter_map(|(node, offset)| Some((self.node_name(node), offset?)))
            .collect();
        diagnose(&offsets)
    }
}

/// `offsets`: this host's clock less that of each node.
fn diagnose(offsets: &BTreeMap<String, Offset>) -> Vec<Diagnosis> {
    if offsets.is_empty() {
        return Vec::new();
    }
    let off: Vec<(&String, &Offset)> =
        offsets.iter().filter(|(_node, offset)| offset.is_worth_telling()).collect();
    let health = |offset: &Offset| if offset.is_too_large() { Health::Fail } else { Health::Warn };
    if off.is_empty() {
        let found = format!("as those of {} other nodes", offsets.len());
        return vec![check("clock", Health::Ok, found, "")];
    }
    if off.len() * 2 > offsets.len() {
        let mut sorted = off.clone();
        sorted.sort_by_key(|(_node, offset)| **offset);
        let Some((node, offset)) = sorted.get(sorted.len() / 2) else { return Vec::new() };
        let found = format!(
            "this host's clock is {offset} that of {node}, and {} of {} nodes differ",
            off.len(),
            offsets.len()
        );
        return vec![check("clock", health(offset), found, HINT)];
    }
    let row = |(node, offset): (&String, &Offset)| {
        let found = format!("the clock of {node} is {} this host's", offset.reversed());
        check("clock", health(offset), found, HINT)
    };
    off.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(offsets: &[(&str, u64, u64)]) -> Vec<(Health, String)> {
        let offsets = offsets
            .iter()
            .map(|(node, this, that)| ((*node).to_owned(), Offset::between(*this, *that)));
        let rows = diagnose(&offsets.collect());
        rows.into_iter().map(|row| (row.health, row.found)).collect()
    }

    #[test]
    fn the_clock_that_differs_from_most_is_named() {
        assert_eq!(said(&[]), []);
        let found = "as those of 2 other nodes".to_owned();
        assert_eq!(said(&[("a", 900, 0), ("b", 0, 900)]), [(Health::Ok, found)]);
        let found =
            "this host's clock is 2h ahead of that of b, and 2 of 3 nodes differ".to_owned();
        let rows = said(&[("a", 7_200_000, 0), ("b", 7_200_500, 0), ("c", 0, 0)]);
        assert_eq!(rows, [(Health::Fail, found)]);
        let found = "the clock of c is 1m ahead of this host's".to_owned();
        let rows = said(&[("a", 0, 0), ("b", 0, 0), ("c", 0, 60_000)]);
        assert_eq!(rows, [(Health::Warn, found)]);
    }
}
