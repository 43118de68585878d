//! A network as the whole mesh knows it, and which of its fields its id commits to.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use ring::digest;
use serde::{Deserialize, Serialize};

use super::{Hlc, Refused};
use crate::{
    addr::{Name, NetworkId, NodeId, Vni},
    limits::{
        DNS_FORWARDS_PER_SECOND, DNS_MOST, DNS_PER_SECOND, FLOOD_ENDPOINT_PER_SECOND, FLOOD_MOST,
        FLOOD_PER_SECOND, LEARNED_STATIONS, LEARNED_STATIONS_MOST, MAX_MTU, MIN_MTU, NAME_LEN,
        NETWORK_DNS, NETWORK_LABELS, NETWORK_SUBNETS, NETWORK_VTEPS, SUBNET_AUX,
    },
};

const DOMAIN: &[u8] = b"vxmesh network 1\0";
const ISOLATED_DOMAIN: &[u8] = b"vxmesh isolated network 1\0";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subnet {
    /// The prefix.
    #[serde(rename = "r")]
    pub cidr: IpNet,
    /// The anycast gateway address.
    #[serde(rename = "g")]
    pub gateway: IpAddr,
    /// The part of it from which addresses are chosen, where that is not all.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub range: Option<IpNet>,
    /// Addresses that no endpoint gets, and what has them.
    #[serde(rename = "a", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aux: BTreeMap<String, IpAddr>,
}

impl Subnet {
    /// A subnet of which every address may be chosen.
    #[must_use]
    pub const fn whole(cidr: IpNet, gateway: IpAddr) -> Self {
        Self { cidr, gateway, range: None, aux: BTreeMap::new() }
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        let is_stray = |ip: &IpAddr| !self.cidr.contains(ip);
        let fault = if self.cidr.trunc() != self.cidr {
            "a subnet has host bits"
        } else if is_stray(&self.gateway) {
            "a gateway is outside its subnet"
        } else if self
            .range
            .is_some_and(|range| range.trunc() != range || !self.cidr.contains(&range))
        {
            "a range is outside its subnet"
        } else if self.aux.values().any(is_stray) {
            "a reserved address is outside its subnet"
        } else if self.aux.len() > SUBNET_AUX || self.aux.keys().any(|name| name.len() > NAME_LEN) {
            "it has too many reserved addresses, or one with a long name"
        } else {
            return Ok(());
        };
        Err(Refused::Content(fault))
    }
}

/// An address block and the node that may give addresses out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Block {
    /// The block.
    #[serde(rename = "r")]
    pub cidr: IpNet,
    /// Its owner when the network was made.
    #[serde(rename = "o")]
    pub owner: NodeId,
}

/// How much of what costs others a network's endpoints may do, where it is not the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLimits {
    /// Packets for everybody (broadcast, multicast, in a plain network for unknown addresses) that
    /// one endpoint sends in a second.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub multicast: Option<u32>,
    /// Those of all endpoints of one host.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub multicast_host: Option<u32>,
    /// Questions about names that one client asks in a second.
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<u32>,
    /// Those of them that go to the name servers outside.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub dns_forward: Option<u32>,
    /// MAC addresses behind static VTEPs that are known at once.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub stations: Option<u32>,
}

impl NetworkLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Only those that every node knows make an object false: it must not be true on some nodes
    /// and false on others. The rest is cut to its range where it is used.
    fn are_in_range(self) -> bool {
        let limits = [self.multicast, self.multicast_host];
        limits.iter().flatten().all(|limit| (1..=FLOOD_MOST).contains(limit))
    }

    /// Packets for everybody that one endpoint may send in a second.
    #[must_use]
    pub fn multicast_of_endpoint(self) -> u32 {
        self.multicast.unwrap_or(FLOOD_ENDPOINT_PER_SECOND)
    }

    /// Those that all endpoints of one host may send in a second: no less than one of them.
    #[must_use]
    pub fn multicast_of_host(self) -> u32 {
        self.multicast_host.unwrap_or_else(|| FLOOD_PER_SECOND.max(self.multicast_of_endpoint()))
    }

    /// Questions that one client may ask in a second.
    #[must_use]
    pub fn dns(self) -> u32 {
        self.dns.unwrap_or(DNS_PER_SECOND).clamp(1, DNS_MOST)
    }

    /// Those of them that may go to the name servers outside.
    #[must_use]
    pub fn dns_forward(self) -> u32 {
        self.dns_forward.unwrap_or(DNS_FORWARDS_PER_SECOND).clamp(1, DNS_MOST)
    }

    /// MAC addresses behind static VTEPs that are known at once.
    #[must_use]
    pub fn stations(self) -> usize {
        let limit = self.stations.map(|limit| limit.clamp(1, LEARNED_STATIONS_MOST));
        limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(LEARNED_STATIONS)
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Who made it. Fixed.
    #[serde(rename = "by")]
    pub creator: NodeId,
    /// How it is carried. Fixed.
    #[serde(rename = "k")]
    pub driver: Name,
    /// Its number on the wire. Fixed.
    #[serde(rename = "v")]
    pub vni: Vni,
    /// Whether its frames are sealed. Fixed.
    #[serde(rename = "x")]
    pub encrypted: bool,
    /// Its MTU inside.
    #[serde(rename = "m")]
    pub mtu: u16,
    /// Its subnets. Fixed.
    #[serde(rename = "s")]
    pub subnets: Vec<Subnet>,
    /// Whether it has no way to the outside.
    #[serde(rename = "p", default)]
    pub internal: bool,
    /// Whether endpoints are kept from each other. Fixed.
    #[serde(rename = "z", default, skip_serializing_if = "is_false")]
    pub isolated: bool,
    /// Who answers for names that are not the mesh's; the hosts' own name servers otherwise.
    #[serde(rename = "q", default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// VTEPs without an agent that have a part in it, where it is plain.
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    pub vteps: Vec<IpAddr>,
    /// How much of what costs others its endpoints may do. A node that does not know the field
    /// keeps to the defaults.
    #[serde(rename = "l", default, skip_serializing_if = "NetworkLimits::is_default")]
    pub limits: NetworkLimits,
    /// Free-form labels.
    #[serde(rename = "t", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Who may give out which addresses at first. Fixed.
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
}

impl Network {
    /// The id of a network that was made then: the hash of its fixed fields.
    #[must_use]
    pub fn id(&self, created: Hlc) -> NetworkId {
        let fixed = (
            self.creator,
            created,
            &self.driver,
            self.vni,
            self.encrypted,
            &self.subnets,
            &self.blocks,
        );
        // INVARIANT: these types have no map with keys other than strings, so JSON can hold them.
        let json = serde_json::to_vec(&fixed).unwrap_or_default();
        // Other networks keep the ids that they had before there were such, and a node that does
        // not know the field refuses the network rather than let its endpoints talk.
        let domain = if self.isolated { ISOLATED_DOMAIN } else { DOMAIN };
        let hash = digest::digest(&digest::SHA256, &[domain, json.as_slice()].concat());
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        NetworkId::from_random(id)
    }

    /// The first fixed field in which the other differs.
    pub(super) fn changed_field(&self, other: &Self) -> &'static str {
        if self.encrypted != other.encrypted {
            "encrypted"
        } else if self.vni != other.vni {
            "vni"
        } else if self.driver != other.driver {
            "driver"
        } else if self.subnets != other.subnets {
            "subnets"
        } else if self.blocks != other.blocks {
            "blocks"
        } else if self.isolated != other.isolated {
            "isolated"
        } else if self.creator != other.creator {
            "creator"
        } else {
            "created"
        }
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        self.subnets.iter().try_for_each(Subnet::check)?;
        let fault = if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            "its mtu is out of range"
        } else if self.subnets.is_empty() || self.subnets.len() > NETWORK_SUBNETS {
            "it has no subnet or too many"
        } else if overlap(self.subnets.iter().map(|subnet| subnet.cidr)) {
            "two subnets overlap"
        } else if self.dns.len() > NETWORK_DNS {
            "it has too many name servers"
        } else if !self.limits.are_in_range() {
            "one of its limits is out of range"
        } else if self.labels.len() > NETWORK_LABELS {
            "it has too many labels"
        } else if self.encrypted && !self.vteps.is_empty() {
            "it is encrypted and names static VTEPs"
        } else if self.isolated && !self.vteps.is_empty() {
            // What is behind them is no endpoint of a node, and nobody there keeps it apart.
            "it is isolated and names static VTEPs"
        } else if self.vteps.len() > NETWORK_VTEPS || !self.vteps.iter().all(may_be_vtep) {
            "it has too many static VTEPs, or one that is no host's address"
        } else {
            return check_blocks(&self.blocks, &self.subnets);
        };
        Err(Refused::Content(fault))
    }
}

/// Whether the address can be that of one host on any underlay. A link-local one says nothing
/// without an interface.
#[must_use]
pub fn may_be_vtep(ip: &IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !local && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

pub(super) fn check_blocks(blocks: &[Block], subnets: &[Subnet]) -> Result<(), Refused> {
    let is_inside = |net: &IpNet| subnets.iter().any(|subnet| subnet.cidr.contains(net));
    if blocks.iter().any(|block| block.cidr.trunc() != block.cidr || !is_inside(&block.cidr)) {
        return Err(Refused::Content("an address block is outside the subnets"));
    }
    if overlap(blocks.iter().map(|block| block.cidr)) {
        return Err(Refused::Content("two address blocks overlap"));
    }
    Ok(())
}

pub(super) fn overlap(nets: impl Iterator<Item = IpNet>) -> bool {
    let mut nets: Vec<IpNet> = nets.collect();
    // In this order a prefix stands right before the first prefix inside it.
    nets.sort_by_key(|net| (net.network(), net.prefix_len()));
    nets.iter().zip(nets.iter().skip(1)).any(|(a, b)| a.contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nobody_changed_are_not_said() {
        let text = |limits: NetworkLimits| serde_json::to_string(&limits).unwrap();
        let default = NetworkLimits::default();
        assert!(default.is_default() && text(default) == "{}");
        let more = NetworkLimits { multicast: Some(5000), ..default };
        assert_eq!(text(more), r#"{"e":5000}"#);
        assert_eq!(serde_json::from_str::<NetworkLimits>(r#"{"e":5000,"new":1}"#).unwrap(), more);
    }

    #[test]
    fn limits_are_at_least_one_and_not_without_end() {
        let default = NetworkLimits::default();
        assert!(default.are_in_range());
        assert!(!NetworkLimits { multicast: Some(0), ..default }.are_in_range());
        assert!(!NetworkLimits { multicast_host: Some(FLOOD_MOST + 1), ..default }.are_in_range());
        let least =
            NetworkLimits { dns: Some(0), dns_forward: Some(0), stations: Some(0), ..default };
        assert!(least.are_in_range());
        assert_eq!((least.dns(), least.dns_forward(), least.stations()), (1, 1, 1));
        let most = NetworkLimits { dns: Some(u32::MAX), stations: Some(u32::MAX), ..default };
        assert_eq!((most.dns(), most.stations()), (DNS_MOST, LEARNED_STATIONS_MOST as usize));
    }
}
