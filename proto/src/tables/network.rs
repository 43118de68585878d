//! The snapshot of one network: [`NetworkTable`].

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;

use super::{
    Seeded, Sharded, TokenBucket,
    index::{Address, Index},
    slab::Slab,
};
use crate::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId, Vni},
    lb::{Service, Services, is_service_mac},
    limits::{FLOOD_BURST_PART, FLOOD_ENDPOINT_BURST_PART, ICMP_BURST, ICMP_PER_SECOND},
    object::NetworkLimits,
    wire::{
        Ethernet,
        ipv6::{is_link_local, link_local_of, mac_of_link_local},
    },
};

/// What is the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The stable id.
    pub id: NetworkId,
    /// The number on the wire.
    pub vni: Vni,
    /// Largest IP packet.
    pub mtu: u16,
    /// The address that every node answers for itself.
    pub gateway: Gateway,
    /// Where endpoints have their addresses.
    pub subnets: Vec<IpNet>,
    /// Whether endpoints are kept from each other.
    pub isolated: bool,
    /// How much of what costs others endpoints may do.
    pub limits: NetworkLimits,
}

/// The anycast gateway: the same on every host, so nothing of it crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// Who made a claim, and for which of its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The node that hosts the endpoint and signed the claim.
    pub node: NodeId,
    /// The endpoint.
    pub endpoint: EndpointId,
}

/// Where an endpoint is, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place<P> {
    /// Behind the local bridge.
    Local,
    /// Behind this peer.
    Remote(P),
}

/// One claim: an endpoint, its MAC and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<P> {
    /// Who says so.
    pub key: RowKey,
    /// The endpoint's MAC.
    pub mac: MacAddr,
    /// The endpoint's addresses.
    pub ips: Vec<IpAddr>,
    /// Of two claims of one node to one address the smaller rank has it.
    pub rank: u64,
    /// Whether it is the node itself, which carries packets of its endpoints from one subnet to
    /// another.
    pub router: bool,
    /// Where it is.
    pub place: Place<P>,
}

impl<P> Row<P> {
    fn order(&self, other: &Self, lot: impl Fn(NodeId) -> u64) -> Ordering {
        let (one, two) = (self.key.node, other.key.node);
        // Claims of two nodes are rare: no lot is drawn for all the others.
        let by_node = if one == two { Ordering::Equal } else { lot(one).cmp(&lot(two)) };
        let rest = |row: &Self| (row.key.node, row.rank, row.key.endpoint);
        by_node.then_with(|| rest(self).cmp(&rest(other)))
    }
}

/// One change of a table. Changes of different rows and members commute.
#[derive(Clone, Debug)]
pub enum TableUpdate<P> {
    /// A claim that is new or replaces the one with the same key.
    Put(Row<P>),
    /// A claim that is gone.
    Remove(RowKey),
    /// A node that gets broadcast and may send here; replaces its handle. Its rows keep theirs.
    PutMember(NodeId, P),
    /// A node that has no part in the network any more.
    RemoveMember(NodeId),
    /// The nodes that may send here and get no broadcast: they only bring clients in.
    IngressNodes(BTreeSet<NodeId>),
    /// Other subnets, gateway or MTU.
    Spec(NetworkSpec),
    /// Other services, or none.
    Services(Option<Arc<Services>>),
    /// The addresses of services that are gone.
    GoneVips(BTreeSet<IpAddr>),
}

/// What is known about one network.
#[derive(Clone, Debug)]
pub struct NetworkTable<P> {
    spec: Arc<NetworkSpec>,
    rows: Slab<Known<P>>,
    /// Where the row of a key is.
    keys: Sharded<u32>,
    fdb: Index<MacAddr>,
    neighbors: Index<IpAddr>,
    members: Arc<[(NodeId, P)]>,
    ingress_nodes: Arc<BTreeSet<NodeId>>,
    flood: Arc<TokenBucket>,
    services: Option<Arc<Services>>,
    gone_vips: Arc<BTreeSet<IpAddr>>,
    epoch: Instant,
}

/// A row with what this node keeps about it.
#[derive(Clone, Debug)]
struct Known<P> {
    row: Row<P>,
    /// Of a row that is or was local. Outlives the row's replacement, so that a change of it is no
    /// way around the limits.
    shares: Option<Arc<Shares>>,
}

/// How often an endpoint may do what costs others.
#[derive(Debug)]
struct Shares {
    flood: TokenBucket,
    errors: TokenBucket,
}

impl Shares {
    fn full(limits: NetworkLimits, now: Instant) -> Self {
        let rate = limits.multicast_of_endpoint();
        Self {
            flood: TokenBucket::new(rate, rate / FLOOD_ENDPOINT_BURST_PART, now),
            errors: TokenBucket::new(ICMP_PER_SECOND, ICMP_BURST, now),
        }
    }
}

impl<P: Clone> NetworkTable<P> {
    /// A network without endpoints and members. `seed` is random and the same for all tables of a
    /// process.
    #[must_use]
    pub fn new(spec: NetworkSpec, seed: u64, now: Instant) -> Self {
        let seed = Seeded(seed);
        Self {
            flood: flood_of(&spec, now),
            spec: Arc::new(spec),
            rows: Slab::new(),
            keys: Sharded::new(seed),
            fdb: Index::new(seed),
            neighbors: Index::new(seed),
            members: Arc::new([]),
            ingress_nodes: Arc::default(),
            services: None,
            gone_vips: Arc::default(),
            epoch: now,
        }
    }

    /// The snapshot after these changes.
    #[must_use]
    pub fn apply(&self, updates: impl IntoIterator<Item = TableUpdate<P>>) -> Self {
        let mut next = self.clone();
        for update in updates {
            match update {
                TableUpdate::Put(row) => next.put(row),
                TableUpdate::Remove(key) => next.remove(&key),
                TableUpdate::PutMember(node, peer) => next.put_member(node, peer),
                TableUpdate::RemoveMember(node) => next.remove_member(node),
                TableUpdate::IngressNodes(nodes) => next.ingress_nodes = Arc::new(nodes),
                TableUpdate::Spec(spec) => next.replace_spec(spec),
                TableUpdate::Services(services) => next.services = services,
                TableUpdate::GoneVips(vips) => next.gone_vips = Arc::new(vips),
            }
        }
        next
    }

    fn put(&mut self, row: Row<P>) {
        let key = row.key;
        let shares = || Arc::new(Shares::full(self.spec.limits, self.epoch));
        let full = matches!(row.place, Place::Local).then(shares);
        if let Some(number) = self.number(&key) {
            self.withdraw(number);
            if let Some(known) = self.rows.get_mut(number) {
                let shares = known.shares.take().or(full);
                *known = Known { row, shares };
            }
            self.claim(number);
        } else {
            let number = self.rows.insert(Known { row, shares: full });
            self.keys.put(&key, number, |_| false);
            self.claim(number);
        }
    }

    fn remove(&mut self, key: &RowKey) {
        let Some(number) = self.number(key) else { return };
        self.withdraw(number);
        self.keys.take(key, |other| *other == number);
        self.rows.remove(number);
    }

    /// Puts the row into the indices, as far as it may have what it claims.
    fn claim(&mut self, number: u32) {
        let Some(Known { row, .. }) = self.rows.get(number) else { return };
        if self.spec.admits_mac(row.mac) && row.mac.may_be_of(row.key.node) {
            self.fdb.add(&row.mac, number, |other| self.rows.precedes(other, row, &row.mac));
        }
        for ip in &row.ips {
            if self.spec.admits_ip(*ip) {
                self.neighbors.add(ip, number, |other| self.rows.precedes(other, row, ip));
            }
        }
    }

    fn withdraw(&mut self, number: u32) {
        let Some(Known { row, .. }) = self.rows.get(number) else { return };
        self.fdb.remove(&row.mac, number);
        for ip in &row.ips {
            self.neighbors.remove(ip, number);
        }
    }

    fn put_member(&mut self, node: NodeId, peer: P) {
        let mut members = self.members.to_vec();
        match members.binary_search_by(|(id, _)| id.cmp(&node)) {
            Ok(at) => {
                if let Some(member) = members.get_mut(at) {
                    member.1 = peer;
                }
            }
            Err(at) => members.insert(at, (node, peer)),
        }
        self.members = members.into();
    }

    fn remove_member(&mut self, node: NodeId) {
        if self.is_flooded(&node) {
            self.members = self.members.iter().filter(|(id, _)| *id != node).cloned().collect();
        }
    }

    fn replace_spec(&mut self, spec: NetworkSpec) {
        let seed = self.keys.seed();
        let before = std::mem::replace(&mut self.spec, Arc::new(spec));
        let (limits, epoch) = (self.spec.limits, self.epoch);
        let rates = |it: NetworkLimits| (it.multicast_of_endpoint(), it.multicast_of_host());
        if rates(before.limits) != rates(limits) {
            self.flood = flood_of(&self.spec, epoch);
            for (number, _row) in self.rows.clone().iter() {
                if let Some(shares) = self.rows.get_mut(number).and_then(|it| it.shares.as_mut()) {
                    *shares = Arc::new(Shares::full(limits, epoch));
                }
            }
        }
        self.fdb = Index::new(seed);
        self.neighbors = Index::new(seed);
        for (number, _row) in self.rows.clone().iter() {
            self.claim(number);
        }
    }
}

/// What limits the frames for everybody of all endpoints of this host.
fn flood_of(spec: &NetworkSpec, now: Instant) -> Arc<TokenBucket> {
    let rate = spec.limits.multicast_of_host();
    Arc::new(TokenBucket::new(rate, rate / FLOOD_BURST_PART, now))
}

impl<P> NetworkTable<P> {
    /// What is the same on every node.
    #[must_use]
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// The services of the network, if it has some. None where endpoints are kept from each other:
    /// their frames would be dropped there.
    #[must_use]
    pub fn services(&self) -> Option<&Services> {
        self.services.as_deref().filter(|_| !self.spec.isolated)
    }

    /// The service that has this address. What an endpoint has is the endpoint's.
    #[must_use]
    pub fn service_at(&self, ip: IpAddr) -> Option<&Service> {
        self.services()?.at(ip).filter(|_| self.neighbor(ip).is_none())
    }

    /// The addresses of services that are gone, whoever has them now.
    #[must_use]
    pub fn gone_vips(&self) -> &BTreeSet<IpAddr> {
        &self.gone_vips
    }

    /// Whether a service had this address, and nobody has it now.
    #[must_use]
    pub fn is_gone_vip(&self, ip: IpAddr) -> bool {
        self.gone_vips.contains(&ip) && self.neighbor(ip).is_none() && self.service_at(ip).is_none()
    }

    /// The Fdb: who has this MAC.
    #[must_use]
    pub fn fdb(&self, mac: MacAddr) -> Option<&Row<P>> {
        self.numbered(self.fdb.winner(&mac)?)
    }

    /// The endpoint of this host that a frame is from, if it is one's.
    #[must_use]
    pub fn sender_of(&self, frame: &[u8]) -> Option<EndpointId> {
        let row = self.fdb(Ethernet::parse(frame)?.source)?;
        matches!(row.place, Place::Local).then_some(row.key.endpoint)
    }

    /// The NeighborTable: who has this address. Link-local addresses made from a MAC belong to it.
    #[must_use]
    pub fn neighbor(&self, ip: IpAddr) -> Option<&Row<P>> {
        if let IpAddr::V6(v6) = ip
            && let Some(mac) = mac_of_link_local(v6)
        {
            return self.fdb(mac);
        }
        self.numbered(self.neighbors.winner(&ip)?)
    }

    /// Whether the row has this address; a claim that lost does not.
    #[must_use]
    pub fn owns(&self, row: &Row<P>, ip: IpAddr) -> bool {
        self.neighbor(ip).is_some_and(|owner| owner.key == row.key)
    }

    /// All rows that claim a MAC and may, the one that has it first.
    pub fn claims_to(&self, mac: MacAddr) -> impl Iterator<Item = &Row<P>> {
        self.fdb.claims(&mac).filter_map(|number| self.numbered(number))
    }

    /// The row of another node that has the MAC which this one claims, too.
    #[must_use]
    pub fn mac_rival(&self, key: &RowKey) -> Option<&Row<P>> {
        self.fdb(self.row(key)?.mac).filter(|winner| winner.key.node != key.node)
    }

    /// Whether packets from this address may come from the row's MAC: its own, and for a router
    /// those of its node's endpoints.
    #[must_use]
    pub fn carries(&self, row: &Row<P>, ip: IpAddr) -> bool {
        self.neighbor(ip).is_some_and(|owner| {
            owner.key == row.key || (row.router && owner.key.node == row.key.node)
        })
    }

    /// The FloodList: every other node with an endpoint in the network.
    #[must_use]
    pub fn members(&self) -> &[(NodeId, P)] {
        &self.members
    }

    /// The nodes that only bring clients of published ports in: they are in no FloodList.
    #[must_use]
    pub fn ingress_nodes(&self) -> &BTreeSet<NodeId> {
        &self.ingress_nodes
    }

    /// Whether this node is in the FloodList.
    #[must_use]
    pub fn is_flooded(&self, node: &NodeId) -> bool {
        self.members.binary_search_by(|(id, _)| id.cmp(node)).is_ok()
    }

    /// Whether this node may send frames of the network.
    #[must_use]
    pub fn is_member(&self, node: &NodeId) -> bool {
        self.is_flooded(node) || self.ingress_nodes.contains(node)
    }

    /// The claim of this key.
    #[must_use]
    pub fn row(&self, key: &RowKey) -> Option<&Row<P>> {
        self.numbered(self.number(key)?)
    }

    /// All claims, those that have nothing too, in no order.
    pub fn rows(&self) -> impl Iterator<Item = &Row<P>> {
        self.rows.iter().map(|(_number, known)| &known.row)
    }

    /// How many shards of rows, Fdb and NeighborTable are not those of another snapshot.
    #[cfg(test)]
    pub(crate) fn copied_since(&self, before: &Self) -> [usize; 3]
    where
        P: Clone,
    {
        [
            self.rows.copied_since(&before.rows),
            self.fdb.copied_since(&before.fdb),
            self.neighbors.copied_since(&before.neighbors),
        ]
    }

    /// Whether the endpoint, a local one, may be told of one more error.
    pub(crate) fn admit_error(&self, row: &Row<P>, now: Instant) -> bool {
        self.shares(row).is_some_and(|shares| shares.errors.take(now))
    }

    /// Whether the endpoint, a local one, and the network may send this many more packets to
    /// everybody. Asks the endpoint first, so that one that floods does not use up what belongs to
    /// the others.
    pub(crate) fn admit_flood(&self, row: &Row<P>, packets: usize, now: Instant) -> bool {
        self.shares(row).is_some_and(|shares| shares.flood.take_many(packets, now))
            && self.flood.take_many(packets, now)
    }

    fn shares(&self, row: &Row<P>) -> Option<&Shares> {
        self.rows.get(self.number(&row.key)?)?.shares.as_deref()
    }

    fn number(&self, key: &RowKey) -> Option<u32> {
        let is = |number: &u32| self.numbered(*number).is_some_and(|row| row.key == *key);
        self.keys.find(key, is).copied()
    }

    fn numbered(&self, number: u32) -> Option<&Row<P>> {
        self.rows.get(number).map(|known| &known.row)
    }
}

impl<P> Slab<Known<P>> {
    /// Whether a row has an address rather than another row.
    fn precedes(&self, number: u32, other: &Row<P>, address: &impl Address) -> bool {
        self.get(number)
            .is_some_and(|known| known.row.order(other, |node| address.lot(node)) == Ordering::Less)
    }
}

impl NetworkSpec {
    /// Whether the gateway has this address: one of its own, or the link-local one of its MAC.
    #[must_use]
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.gateway.ips.contains(&ip) || ip == IpAddr::V6(link_local_of(self.gateway.mac))
    }

    fn admits_mac(&self, mac: MacAddr) -> bool {
        mac.is_unicast() && mac != self.gateway.mac && !is_service_mac(self.id, mac)
    }

    fn admits_ip(&self, ip: IpAddr) -> bool {
        let in_place = match ip {
            IpAddr::V6(v6) if is_link_local(v6) => mac_of_link_local(v6).is_none(),
            _ => self.subnets.iter().any(|subnet| is_host_of(subnet, ip)),
        };
        in_place && !self.gateway.ips.contains(&ip)
    }
}

/// Whether one interface can have this address: not the network's or its broadcast address in IPv4,
/// not the anycast address of routers in IPv6 (RFC 4291 section 2.6.1).
fn is_host_of(subnet: &IpNet, ip: IpAddr) -> bool {
    subnet.contains(&ip)
        && ip != subnet.network()
        && (ip.is_ipv6() || ip != subnet.broadcast())
        && ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}
