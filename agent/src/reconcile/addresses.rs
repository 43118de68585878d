//! The addresses that this node gives out, and how it gets more: [`Addresses`].
//!
//! Decisions are `vxmesh_proto::ipam`'s. This keeps one pool per subnet of every network, in step with the transfers
//! among the mesh objects, and knows which addresses other nodes' endpoints claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ipnet::IpNet;
use tracing::error;
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    ipam::{AllocateError, Ownership, Pool, Subnet, Transfer},
    object::{Network, ObjectSet},
};

/// Addresses of a network that endpoints of other nodes claim.
pub type Elsewhere = BTreeSet<IpAddr>;

/// The pools of all networks.
#[derive(Debug)]
pub struct Addresses {
    me: NodeId,
    pools: Mutex<BTreeMap<NetworkId, Vec<Pool>>>,
}

impl Addresses {
    /// No network yet.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self { me, pools: Mutex::default() }
    }

    /// Brings the pools in step with the objects: new networks, transfers, deleted networks.
    pub fn follow(&self, objects: &ObjectSet) {
        let mut pools = self.lock();
        let networks = objects.networks();
        pools.retain(|id, _pools| networks.iter().any(|(network, ..)| network == id));
        for (id, object, _state) in networks {
            let vxmesh_proto::object::Content::Network(network) = object.content() else {
                continue;
            };
            let pools = pools.entry(id).or_insert_with(|| self.pools_of(network));
            for pool in pools {
                pool.extend(objects.transfers(id).map(Transfer::from));
            }
        }
    }

    fn pools_of(&self, network: &Network) -> Vec<Pool> {
        let pool = |subnet: &vxmesh_proto::object::Subnet| {
            let usable = Subnet::try_from(subnet);
            let usable = usable
                .inspect_err(|error| error!(network = %network.name, %error, "unusable subnet"));
            let usable = usable.ok()?;
            let blocks = network.blocks.iter().map(|block| (block.cidr, block.owner));
            let ownership = Ownership::new(&usable, network.creator, blocks);
            Some(Pool::new(usable, ownership, self.me))
        };
        network.subnets.iter().filter_map(pool).collect()
    }

    /// Whether the node holds the block of an address.
    #[must_use]
    pub fn holds(&self, network: NetworkId, node: NodeId, ip: IpAddr) -> bool {
        let pools = self.lock();
        let block = pools
            .get(&network)
            .into_iter()
            .flatten()
            .find_map(|pool| pool.ownership().block_at(ip));
        block.is_some_and(|block| block.owner == node)
    }

    /// The subnets of a network.
    #[must_use]
    pub fn subnets(&self, network: NetworkId) -> Vec<IpNet> {
        self.lock().get(&network).into_iter().flatten().map(|pool| pool.subnet().cidr()).collect()
    }

    /// Subnets of a network of which this node has no block to choose addresses from.
    #[must_use]
    pub fn without_block(&self, network: NetworkId) -> Vec<IpNet> {
        let pools = self.lock();
        let pools = pools.get(&network).into_iter().flatten();
        let bare = pools.filter(|pool| !pool.has_block());
        bare.map(|pool| pool.subnet().cidr()).collect()
    }

    /// Runs `edit` on the pool of a subnet, if there is one.
    pub fn with_pool<R>(
        &self,
        network: NetworkId,
        subnet: IpNet,
        edit: impl FnOnce(&mut Pool) -> R,
    ) -> Option<R> {
        let mut pools = self.lock();
        let pool =
            pools.get_mut(&network)?.iter_mut().find(|pool| pool.subnet().cidr() == subnet)?;
        Some(edit(pool))
    }

    /// Any free address of a subnet, or this one.
    pub fn allocate(
        &self,
        network: NetworkId,
        subnet: IpNet,
        wanted: Option<IpAddr>,
        elsewhere: &Elsewhere,
        now: Instant,
    ) -> Option<Result<IpAddr, AllocateError>> {
        self.with_pool(network, subnet, |pool| match wanted {
            Some(ip) => pool.allocate_static(ip, elsewhere).map(|()| ip),
            None => pool.allocate(elsewhere, now),
        })
    }

    /// Takes an address over from an earlier life of the agent.
    pub fn adopt(&self, network: NetworkId, ip: IpNet) {
        let adopted = self.with_pool(network, ip.trunc(), |pool| pool.adopt(ip.addr()));
        if adopted.is_none() {
            error!(%network, %ip, "an address of this node lies in no subnet of its network");
        }
    }

    /// Lets an address rest before it is given again.
    pub fn release(&self, network: NetworkId, ip: IpNet, now: Instant) {
        // Without a pool the network is gone, and the address with it.
        let _gone = self.with_pool(network, ip.trunc(), |pool| pool.release(ip.addr(), now));
    }

    /// All blocks of this node as transfers to another one, for `leave`. They are given up here and now: a node that asks
    /// for space meanwhile must not get a part of them, too.
    #[must_use]
    pub fn give_all(&self, to: NodeId) -> Vec<(NetworkId, Transfer)> {
        let mut pools = self.lock();
        let mut given = Vec::new();
        for (network, pools) in pools.iter_mut() {
            for pool in pools {
                let own = pool.ownership().blocks().filter(|block| block.owner == self.me);
                let transfers: Vec<Transfer> = own
                    .filter_map(|block| {
                        let epoch = block.epoch.checked_add(1)?;
                        Some(Transfer { block: block.cidr, from: self.me, to, epoch })
                    })
                    .collect();
                pool.extend(transfers.iter().copied());
                given.extend(transfers.into_iter().map(|transfer| (*network, transfer)));
            }
        }
        given
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Vec<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vxmesh_proto::ipam::Withheld;

    use super::*;

    const ME: &[u8] = b"me";

    fn addresses(network: NetworkId, cidr: &str) -> Addresses {
        let me = NodeId::of_public_key(ME);
        let subnet = Subnet::new(cidr.parse().unwrap(), None, []).unwrap();
        let ownership = Ownership::new(&subnet, me, []);
        let addresses = Addresses::new(me);
        addresses.lock().insert(network, vec![Pool::new(subnet, ownership, me)]);
        addresses
    }

    /// I12: two transfers of one block contradict each other, and the void one's receiver has given addresses out.
    #[test]
    fn what_is_given_at_leaving_is_given_to_nobody_else() {
        let network = NetworkId::from_random([1; 16]);
        let cidr: IpNet = "10.1.0.0/24".parse().unwrap();
        let addresses = addresses(network, "10.1.0.0/24");
        let (heir, other) = (NodeId::of_public_key(b"heir"), NodeId::of_public_key(b"other"));
        assert_eq!(addresses.give_all(heir).len(), 1);
        assert!(addresses.holds(network, heir, "10.1.0.9".parse().unwrap()));
        let elsewhere = Elsewhere::new();
        let given =
            addresses.with_pool(network, cidr, |pool| pool.give(other, &elsewhere, Instant::now()));
        assert_eq!(given, Some(Err(Withheld::None)));
        let allocated =
            addresses.allocate(network, cidr, None, &elsewhere, Instant::now()).unwrap();
        assert!(matches!(allocated, Err(AllocateError::Exhausted { .. })));
    }
}
