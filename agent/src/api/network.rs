//! Networks as `vxmesh network` shows them, and what it asks for.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::addr::{Name, NetworkId, Vni};

use super::{Driver, Endpoint};

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The prefix.
    pub cidr: IpNet,
    /// The anycast gateway address.
    pub gateway: IpAddr,
    /// The part of it from which addresses are chosen, where that is not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<IpNet>,
    /// Addresses that no endpoint gets, and what has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aux_addresses: BTreeMap<String, IpAddr>,
}

/// `vxmesh network ls|inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Stable id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// As [`Driver`].
    pub driver: String,
    /// `mesh`: all hosts have it; `local`: the host that answers.
    #[serde(default)]
    pub scope: String,
    /// Number on the wire, of networks that are in the whole mesh.
    pub vni: Option<Vni>,
    /// Whether frames are sealed.
    pub encrypted: bool,
    /// VTEPs without an agent, where frames are not sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vteps: Vec<IpAddr>,
    /// MTU inside.
    pub mtu: u16,
    /// `active`; or `conflict`: an older network has the name or the VNI, and this one forwards
    /// nothing; or, only for one network at a time, `degraded`: the host that answers does not get
    /// its plain port.
    pub state: String,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Who answers for names that are not the mesh's; with none given, the hosts' own name servers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Whether it has no way out.
    #[serde(default)]
    pub internal: bool,
    /// What its driver was told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether endpoints are kept from each other.
    #[serde(default)]
    pub isolated: bool,
    /// Its way out of the host that answers; nothing in lists, and where the network is internal or
    /// has no endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// The endpoints in it that this node knows. Only for one network at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Its plain frames on the host that answers; nothing in lists, and where it has no endpoint or
    /// is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<Plain>,
    /// What works, but not as it may be thought. Only for one network at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A plain network on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plain {
    /// UDP port.
    pub port: u16,
    /// Why the port is not open, if it is not.
    pub fault: Option<String>,
    /// MAC addresses that were learned from static VTEPs.
    pub learned: usize,
    /// How often one was not learned because there was no room.
    pub learn_refused: u64,
}

/// A network's way out of one host and in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The host's end of the cable, once there is one.
    pub uplink: Option<String>,
    /// The host's own addresses in the network.
    pub node_ips: Vec<IpNet>,
    /// Subnets that the host itself does not reach.
    pub unreached: Vec<Overlap>,
    /// What is wrong, if anything.
    pub fault: Option<String>,
}

/// A subnet that a route of the host overlaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The subnet.
    pub subnet: IpNet,
    /// The route that was there before.
    pub route: IpNet,
}

/// `vxmesh network create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name.
    pub name: Name,
    /// What carries it.
    #[serde(default)]
    pub driver: Driver,
    /// What its driver is told.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Subnets; with none given a free private IPv4 and a free unique-local IPv6 subnet are chosen.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// Whether it has IPv4; without a word, if one of its subnets is of it or none is given.
    #[serde(default)]
    pub ipv4: Option<bool>,
    /// The same of IPv6.
    #[serde(default)]
    pub ipv6: Option<bool>,
    /// Gateways, each inside one of the subnets; the first address of a subnet otherwise.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Parts of subnets, one of each at most, from which addresses are chosen; all others are given
    /// to who names them.
    #[serde(default)]
    pub ip_ranges: Vec<IpNet>,
    /// Addresses that no endpoint gets, and what has them.
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, IpAddr>,
    /// Whether frames are sealed; never changes.
    #[serde(default = "yes")]
    pub encrypted: bool,
    /// VTEPs without an agent, where frames are not sealed.
    #[serde(default)]
    pub vteps: Vec<IpAddr>,
    /// MTU inside.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Number on the wire; a free random one otherwise.
    #[serde(default)]
    pub vni: Option<Vni>,
    /// Name servers for names that are not the mesh's; the hosts' own otherwise.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Without a way out.
    #[serde(default)]
    pub internal: bool,
    /// With endpoints kept from each other.
    #[serde(default)]
    pub isolated: bool,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

const fn yes() -> bool {
    true
}

/// `vxmesh network update`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// As in [`NetworkSpec::options`]; what is empty is the default again.
    pub options: BTreeMap<String, String>,
}

/// `vxmesh network extend`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendSpec {
    /// Subnets to add.
    pub subnets: Vec<IpNet>,
    /// As in [`NetworkSpec::gateways`].
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// As in [`NetworkSpec::ip_ranges`].
    #[serde(default)]
    pub ip_ranges: Vec<IpNet>,
    /// As in [`NetworkSpec::aux_addresses`].
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, IpAddr>,
}
