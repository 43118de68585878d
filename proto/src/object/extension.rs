//! Subnets that were added to a network after it was made: [`Extension`], and which of all its
//! subnets count.
//!
//! A network's id commits to its own subnets, so growth comes as objects beside it that only add.
//! The rule, a function of the set of objects alone: a network's own subnets count; then its
//! extensions in the order of (created, author), each unless it overlaps one that counts, as long
//! as there are fewer than [`NETWORK_SUBNETS_ALL`].

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Block, Content, Network, ObjectId, ObjectSet, Refused, Subnet,
    network::{check_blocks, overlap},
};
use crate::{
    addr::{NetworkId, NodeId},
    limits::NETWORK_SUBNETS_ALL,
};

/// A subnet that a member added to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The network.
    #[serde(rename = "w")]
    pub network: NetworkId,
    /// Who added it, signs, and owns what the blocks do not give to others.
    #[serde(rename = "f")]
    pub from: NodeId,
    /// The subnet.
    #[serde(rename = "s")]
    pub subnet: Subnet,
    /// Who may give out which addresses at first.
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
}

impl Extension {
    /// The id under which it belongs.
    #[must_use]
    pub const fn id(&self) -> ObjectId {
        ObjectId::Extension { network: self.network, from: self.from, cidr: self.subnet.cidr }
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        self.subnet.check()?;
        check_blocks(&self.blocks, std::slice::from_ref(&self.subnet))
    }
}

/// Whether addresses of a subnet are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubnetState {
    /// They are.
    Active,
    /// It overlaps a subnet that was there before.
    Conflict {
        /// That subnet.
        with: IpNet,
    },
    /// The network has as many as it may.
    Full,
}

/// One subnet of a network, its own or added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetOf<'a> {
    /// The subnet.
    pub subnet: &'a Subnet,
    /// Who owns what the blocks do not give to others.
    pub creator: NodeId,
    /// The initial blocks of the whole network, or of the extension.
    pub blocks: &'a [Block],
    /// Whether it came with the network.
    pub own: bool,
    /// Whether it counts.
    pub state: SubnetState,
}

impl ObjectSet {
    /// All subnets of a network in the order in which they count; nothing if the network is not
    /// known.
    #[must_use]
    pub fn subnets(&self, id: NetworkId) -> Vec<SubnetOf<'_>> {
        let Some(Content::Network(network)) =
            self.get(&ObjectId::Network(id)).map(|object| object.content())
        else {
            return Vec::new();
        };
        let own = |subnet| SubnetOf {
            subnet,
            creator: network.creator,
            blocks: &network.blocks,
            own: true,
            state: SubnetState::Active,
        };
        let mut subnets: Vec<SubnetOf<'_>> = network.subnets.iter().map(own).collect();
        let mut added: Vec<_> = self.extensions(id).collect();
        added.sort_by_key(|(object, _)| (object.created(), object.author(), object.id()));
        for (_, extension) in added {
            let cidr = extension.subnet.cidr;
            let mut active = subnets.iter().filter(|s| s.state == SubnetState::Active);
            let state = if active.clone().count() >= NETWORK_SUBNETS_ALL {
                SubnetState::Full
            } else {
                let other = active.find(|s| overlap([s.subnet.cidr, cidr].into_iter()));
                other.map_or(SubnetState::Active, |s| SubnetState::Conflict { with: s.subnet.cidr })
            };
            let (subnet, blocks) = (&extension.subnet, extension.blocks.as_slice());
            let creator = extension.from;
            subnets.push(SubnetOf { subnet, creator, blocks, own: false, state });
        }
        subnets
    }

    /// A network that was not deleted, as it stands: with the subnets that were added to it.
    #[must_use]
    pub fn extended(&self, id: NetworkId) -> Option<Network> {
        let object = self.get(&ObjectId::Network(id)).filter(|object| !object.closed())?;
        let Content::Network(network) = object.content() else { return None };
        let subnets = self.subnets(id);
        let active = subnets.iter().filter(|subnet| subnet.state == SubnetState::Active);
        Some(Network { subnets: active.map(|s| s.subnet.clone()).collect(), ..network.clone() })
    }
}
