//! The addresses of networks as `vxmesh ipam` shows them: pools, their owners, blocks, what rests.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{Name, NetworkId, NodeId};

/// `vxmesh ipam ls`: the addresses of one subnet, as the node that answers knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// The network.
    pub network: NetworkId,
    /// The subnet.
    pub cidr: IpNet,
    /// The anycast gateway address.
    pub gateway: IpAddr,
    /// The part of it from which addresses are chosen.
    pub ip_range: IpNet,
    /// `active`, or `conflict`: nothing is given out of it.
    pub state: String,
    /// Addresses that endpoints have.
    pub used: u64,
    /// Addresses that nodes can give out unasked.
    pub free: u64,
    /// Addresses that the node that answers released a moment ago, and those of blocks that rest as
    /// a whole; others do not tell theirs.
    pub resting: u64,
    /// Who holds how much, who has most first.
    pub owners: Vec<AddressOwner>,
}

/// What one node holds of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressOwner {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// As in [`super::Node::state`], or `unknown`.
    pub state: String,
    /// Number of its blocks.
    pub blocks: usize,
    /// Addresses of them that endpoints have.
    pub used: u64,
    /// Addresses of them that it can give out unasked.
    pub free: u64,
}

/// `vxmesh ipam inspect`: the addresses of one network, block by block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPools {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// One for each subnet.
    pub pools: Vec<PoolDetail>,
}

/// The addresses of one subnet, block by block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDetail {
    /// All of them together.
    #[serde(flatten)]
    pub pool: AddressPool,
    /// Every block, by address.
    pub blocks: Vec<AddressBlock>,
    /// What the node that answers released a moment ago.
    pub resting_addresses: Vec<RestingAddress>,
    /// Blocks that a node which left handed over to the node that answers a moment ago.
    pub resting_blocks: Vec<RestingBlock>,
}

/// A block of addresses: only its owner gives any of them out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBlock {
    /// The block.
    pub cidr: IpNet,
    /// Who owns it.
    pub owner: NodeId,
    /// How often it changed hands.
    pub epoch: u64,
    /// Addresses of it that endpoints have.
    pub used: u64,
    /// Addresses of it that can be given out unasked.
    pub free: u64,
}

/// An address that was released and is not given again yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingAddress {
    /// The address.
    pub ip: IpAddr,
    /// Seconds until it may be given again.
    pub rest_s: u64,
}

/// A block of which no address is given yet: who had it before may have released some just before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingBlock {
    /// The block.
    pub cidr: IpNet,
    /// Addresses of it that can be given out unasked after that.
    pub resting: u64,
    /// Seconds until they may be given.
    pub rest_s: u64,
}
