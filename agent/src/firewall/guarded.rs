//! The guarded ports of one network, as they are in the kernel: [`GuardedPorts`]. It keeps the
//! table that steers the answers of services' backends, too ([`services`]), while there is to be
//! one.
//!
//! It keeps a socket of the network's namespace open, so that a port comes and goes with one
//! request, and what was dropped can be asked for at any time. The rules stay while the agent is
//! away, and the next one adopts them without a gap.

use std::collections::BTreeMap;

use super::{
    FirewallError, TABLE,
    counted::Counted,
    guard::{self, BLAMED, Port, Rules, blame, keys},
    services::{self, Macs},
    socket::{Batch, Socket},
    table::{TableId, add_keys, generation_by, key_counts, remove_keys},
};
use crate::netlink::netns::Netns;

/// The guarded ports of a network.
pub struct GuardedPorts {
    socket: Socket,
    rules: Rules,
    ports: BTreeMap<String, Port>,
    steering: Steering,
    /// The number of the kernel's ruleset when all was last as it should be.
    generation: Option<u32>,
    counted: Counted,
    /// What the counters of ports said last.
    blamed: BTreeMap<Vec<u8>, u64>,
}

/// Whether answers of backends are led to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steering {
    /// There is no table for it.
    No,
    /// There is one of which nobody has said whether it is to be: of the agent's last life, or one
    /// that could not be written or removed. It stays as it is.
    Unknown,
    /// With these MACs.
    With(Macs),
}

impl std::fmt::Debug for GuardedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedPorts").field("ports", &self.ports).finish_non_exhaustive()
    }
}

impl GuardedPorts {
    /// Guards these ports in a namespace; rules that are there already stay if they are the same.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel refuses the rules.
    pub fn open(
        netns: &Netns,
        rules: Rules,
        ports: BTreeMap<String, Port>,
    ) -> Result<Self, FirewallError> {
        let socket = netns.run(Socket::open);
        let socket = socket.map_err(|error| FirewallError::new("reach", TABLE, error))?;
        let is_steered = services::ID.has_rules_by(&socket)?;
        let mut guarded = Self {
            socket,
            rules,
            ports,
            steering: if is_steered { Steering::Unknown } else { Steering::No },
            generation: None,
            counted: Counted::default(),
            blamed: BTreeMap::new(),
        };
        guarded.mend()?;
        Ok(guarded)
    }

    /// Lets a port speak with these addresses and no others.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn admit(&mut self, name: String, port: Port) -> Result<(), FirewallError> {
        if self.ports.get(&name) == Some(&port) {
            return Ok(());
        }
        let mut batch = Batch::new();
        if let Some(before) = self.ports.get(&name) {
            change(&mut batch, &name, before, remove_keys);
        }
        change(&mut batch, &name, &port, add_keys);
        self.ports.insert(name, port);
        self.carry_out(batch)
    }

    /// Lets a port say nothing any more.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn forget(&mut self, name: &str) -> Result<(), FirewallError> {
        let Some(port) = self.ports.remove(name) else { return Ok(()) };
        let mut batch = Batch::new();
        change(&mut batch, name, &port, remove_keys);
        self.carry_out(batch)
    }

    /// Leads the answers of backends here to the agent from now on, or no more. Answers that were
    /// led before are led on without a gap; also those of the agent's last life.
    ///
    /// # Errors
    /// The kernel refuses it; the next call tries it again.
    pub fn steer(&mut self, macs: Option<Macs>) -> Result<(), FirewallError> {
        let wanted = macs.map_or(Steering::No, Steering::With);
        if self.steering == wanted {
            return Ok(());
        }
        self.steering = wanted;
        let done = match wanted {
            Steering::With(_macs) => self.mend().map(drop),
            Steering::No | Steering::Unknown => services::ID.remove_by(&self.socket),
        };
        if done.is_err() {
            self.steering = Steering::Unknown;
        }
        done
    }

    /// Whether answers of backends are led to the agent.
    #[must_use]
    pub fn is_steered(&self) -> bool {
        matches!(self.steering, Steering::With(_))
    }

    /// Somebody may have changed what a change builds upon: then all is written.
    fn carry_out(&mut self, batch: Batch) -> Result<(), FirewallError> {
        self.socket.change(batch).or_else(|_refused| self.mend().map(drop))
    }

    /// Whether anybody changed any rule in the namespace since all was last as it should be.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn is_stale(&self) -> Result<bool, FirewallError> {
        Ok(self.generation != Some(generation_by(&self.socket)?))
    }

    /// Puts back what is not as it should be. Whether something was not.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn mend(&mut self) -> Result<bool, FirewallError> {
        // A change in between raises the number once more, and all is looked at again.
        let generation = generation_by(&self.socket)?;
        let mut tables = vec![guard::table(self.rules, &self.ports)];
        if let Steering::With(macs) = self.steering {
            tables.push(services::table(macs));
        }
        let mut mended = false;
        for table in tables {
            if table.is_in_place_by(&self.socket)? {
                continue;
            }
            (self.generation, mended) = (None, true);
            if table.replace_by(&self.socket)? {
                self.count_anew(table.id);
            }
        }
        if !mended {
            self.generation = Some(generation);
        }
        Ok(mended)
    }

    /// The table is a new one, and so are its counters.
    pub fn count_anew(&mut self, id: TableId) {
        self.counted.anew(id);
    }

    /// What was dropped since the last time, by reason, in all tables of ours, and by port where
    /// one is to blame.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn dropped(&mut self) -> Result<BTreeMap<(String, Option<String>), u64>, FirewallError> {
        // The ports first: what is counted meanwhile is in the sum at least.
        let blamed = key_counts(&self.socket, guard::ID, BLAMED)?;
        let mut rest = self.counted.more_by(&self.socket)?;
        let mut dropped = BTreeMap::new();
        for (key, count) in &blamed {
            let before = self.blamed.get(key).copied().unwrap_or_default();
            // A smaller one is that of a new table, or of a port that was not heard of for long.
            let more = if *count < before { *count } else { *count - before };
            let Some((port, reason)) = blame(key) else { continue };
            let Some(left) = rest.get_mut(reason.as_str()) else { continue };
            let more = more.min(*left);
            *left -= more;
            if more > 0 {
                dropped.insert((reason.as_str().to_owned(), Some(port)), more);
            }
        }
        self.blamed = blamed;
        let rest = rest.into_iter().filter(|(_, count)| *count > 0);
        dropped.extend(rest.map(|(reason, count)| ((reason, None), count)));
        Ok(dropped)
    }
}

/// Adds or removes what lets a port speak.
fn change(
    batch: &mut Batch,
    name: &str,
    port: &Port,
    how: fn(&mut Batch, TableId, &str, &[&[u8]]),
) {
    for (set, key) in keys(name, port) {
        how(batch, guard::ID, set, &[&key]);
    }
}
