//! The addresses that this node gives out, and how it gets more: [`Addresses`].
//!
//! Decisions are `vxmesh_proto::ipam`'s. This keeps one pool per subnet of every network, in step
//! with the transfers among the mesh objects, and knows which addresses other nodes' endpoints
//! claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::error;
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    ipam::{AllocateError, Block, Ownership, Pool, Subnet, Transfer},
    limits::{ADDRESS_QUARANTINE, HLC_AHEAD},
    object::{self, ObjectId, ObjectSet, SubnetOf, SubnetState},
};

use crate::objects::unix_ms;

/// Addresses of a network that endpoints of other nodes claim.
pub type Elsewhere = BTreeSet<IpAddr>;

/// The pools of all networks.
#[derive(Debug)]
pub struct Addresses {
    me: NodeId,
    pools: Mutex<Pools>,
    /// The holders of open services' addresses, which give them back when these are closed.
    open: Mutex<BTreeMap<NetworkId, Vec<NodeId>>>,
    /// Networks of this host alone.
    hosted: Mutex<BTreeSet<NetworkId>>,
    /// The blocks that this node got of others.
    handed: Mutex<BTreeMap<NetworkId, Handed>>,
    /// The hash of the objects that the pools are in step with.
    followed: Mutex<Option<String>>,
}

type Pools = BTreeMap<NetworkId, Vec<Pool>>;
/// By epoch and address, each with until when it is to rest once its giver has left; nothing of
/// those that rest already, or need not.
type Handed = BTreeMap<(u64, IpAddr), (IpNet, Option<Instant>)>;

impl Addresses {
    /// No network yet.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            pools: Mutex::default(),
            open: Mutex::default(),
            hosted: Mutex::default(),
            handed: Mutex::default(),
            followed: Mutex::default(),
        }
    }

    /// Takes on a network of this host alone: all its addresses are this node's.
    pub fn host(&self, network: NetworkId, subnets: &[object::Subnet]) {
        let pool = |subnet: &object::Subnet| {
            let usable = Subnet::try_from(subnet);
            let usable =
                usable.inspect_err(|error| error!(%network, %error, "unusable subnet")).ok()?;
            let ownership = Ownership::new(&usable, self.me, []);
            Some(Pool::new(usable, ownership, self.me))
        };
        self.hosted().insert(network);
        self.lock().entry(network).or_insert_with(|| subnets.iter().filter_map(pool).collect());
    }

    /// Forgets a network of this host alone.
    pub fn unhost(&self, network: NetworkId) {
        self.hosted().remove(&network);
        self.lock().remove(&network);
    }

    /// Whether a network is of this host alone: nobody else gets an address of it.
    #[must_use]
    pub fn is_hosted(&self, network: NetworkId) -> bool {
        self.hosted().contains(&network)
    }

    fn hosted(&self) -> MutexGuard<'_, BTreeSet<NetworkId>> {
        self.hosted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the pools in step with the objects: new networks, transfers, deleted networks. Does
    /// nothing while the objects are the same, as in most rounds. What services gave back since
    /// rests from `now` on, whoever owns it: others still remember them. So do the blocks that this
    /// node has of one that left since: it may have released some of their addresses just before.
    pub fn follow(&self, objects: &ObjectSet, now: Instant) {
        // Held to the end: who comes second finds the pools in step.
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = objects.content_hash();
        if followed.as_ref() == Some(&hash) {
            return;
        }
        let is_first = followed.replace(hash).is_none();
        let mut pools = self.lock();
        let networks = objects.networks();
        let ids: BTreeSet<NetworkId> = networks.iter().map(|(network, ..)| *network).collect();
        pools.retain(|id, _pools| ids.contains(id) || self.is_hosted(*id));
        let mut transfers: BTreeMap<NetworkId, Vec<Transfer>> = BTreeMap::new();
        for transfer in objects.all_transfers() {
            transfers.entry(transfer.network).or_default().push(Transfer::from(transfer));
        }
        let mut reclaims: BTreeMap<NetworkId, Vec<Transfer>> = BTreeMap::new();
        for reclaim in objects.all_reclaims() {
            reclaims.entry(reclaim.network).or_default().push(Transfer::from(reclaim));
        }
        let mut closed: BTreeMap<NetworkId, Vec<NodeId>> = BTreeMap::new();
        let mut open: BTreeMap<NetworkId, Vec<NodeId>> = BTreeMap::new();
        for (service, object, of) in objects.all_services() {
            let holders = if object.closed() { &mut closed } else { &mut open };
            holders.entry(of.network).or_default().push(object::holder(service));
        }
        *self.open() = open;
        for id in ids {
            let subnets = objects.subnets(id);
            let counts = subnets.iter().filter(|subnet| subnet.state == SubnetState::Active);
            let pools = pools.entry(id).or_default();
            let mut before = mem::take(pools);
            pools.extend(counts.filter_map(|subnet| self.follow_pool(id, subnet, &mut before)));
            // Endpoints outlive the subnet that another, older one put aside.
            let in_use: Vec<IpAddr> = before.iter().flat_map(Pool::in_use).collect();
            for pool in pools {
                let cidr = pool.subnet().cidr();
                in_use.iter().filter(|ip| cidr.contains(*ip)).for_each(|ip| pool.adopt(*ip));
                let before = given_back(pool);
                pool.extend(transfers.get(&id).into_iter().flatten().copied());
                pool.reclaim(reclaims.get(&id).into_iter().flatten().copied());
                pool.give_back(closed.get(&id).into_iter().flatten().copied());
                for (ip, _epoch) in given_back(pool).difference(&before) {
                    pool.rest(*ip, now + ADDRESS_QUARANTINE);
                }
            }
        }
        self.rest_handed(&mut pools, objects, (now, is_first));
    }

    /// Lets the blocks rest that this node got a moment ago of nodes that left. That a node left
    /// may be heard after what it gave.
    fn rest_handed(
        &self,
        pools: &mut Pools,
        objects: &ObjectSet,
        (now, is_first): (Instant, bool),
    ) {
        let left_at = |node: NodeId| {
            let member = objects.get(&ObjectId::Member(node)).filter(|member| member.closed())?;
            Some(member.hlc().unix_ms())
        };
        let unix_ms = unix_ms();
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mem::take(&mut *handed);
        for (id, pools) in pools {
            let (before, known) = (before.get(id), handed.entry(*id).or_default());
            for pool in pools {
                let got = pool.ownership().handed().filter(|(it, _)| it.owner == self.me);
                for (block, from) in got.collect::<Vec<_>>() {
                    let (at, left) = ((block.epoch, block.cidr.addr()), left_at(from));
                    let of = before.and_then(|before| known_as(before, at, block.cidr));
                    let mut until = match of {
                        Some(until) => until,
                        None if is_first => left.and_then(|at| still_rests(at, unix_ms, now)),
                        None => Some(now + ADDRESS_QUARANTINE),
                    };
                    if let Some(until) = until.take_if(|_| left.is_some()) {
                        pool.rest_block(block.cidr, until);
                    }
                    known.insert(at, (block.cidr, until));
                }
            }
        }
    }

    /// The pool of a subnet: taken from those before, if it was there.
    fn follow_pool(
        &self,
        network: NetworkId,
        SubnetOf { subnet, creator, blocks, own, .. }: &SubnetOf<'_>,
        before: &mut Vec<Pool>,
    ) -> Option<Pool> {
        let same = before.iter().position(|old| old.subnet().cidr() == subnet.cidr);
        if let Some(same) = same.filter(|_| *own) {
            // The network's id commits to it.
            return Some(before.swap_remove(same));
        }
        let usable = Subnet::try_from(*subnet);
        let usable =
            usable.inspect_err(|error| error!(%network, %error, "unusable subnet")).ok()?;
        let blocks = blocks.iter().map(|block| (block.cidr, block.owner));
        let pool = Pool::new(usable.clone(), Ownership::new(&usable, *creator, blocks), self.me);
        match same.filter(|at| before.get(*at).is_some_and(|old| pool.follows(old))) {
            Some(same) => Some(before.swap_remove(same)),
            None => Some(pool),
        }
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

    /// Gives an address that this node took for a service to who holds it for that. The transfer is
    /// to be signed.
    #[must_use]
    pub fn give_to_service(
        &self,
        network: NetworkId,
        ip: IpNet,
        holder: NodeId,
        now: Instant,
    ) -> Option<Transfer> {
        self.with_pool(network, ip.trunc(), |pool| {
            pool.put_back(ip.addr());
            pool.give_address(ip.addr(), holder, &Elsewhere::new(), now).ok()
        })?
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
            Some(ip) => pool.allocate_static(ip, elsewhere, now).map(|()| ip),
            None => pool.allocate(elsewhere, now),
        })
    }

    /// This address, also while it rests: for who had it last.
    pub fn allocate_again(
        &self,
        network: NetworkId,
        subnet: IpNet,
        ip: IpAddr,
        elsewhere: &Elsewhere,
        now: Instant,
    ) -> Option<Result<IpAddr, AllocateError>> {
        self.with_pool(network, subnet, |pool| {
            let rested = pool.end_rest(ip);
            let got = pool.allocate_static(ip, elsewhere, now).map(|()| ip);
            if let (Err(_), Some(until)) = (&got, rested) {
                pool.rest(ip, until);
            }
            got
        })
    }

    /// Takes an address over from an earlier life of the agent.
    pub fn adopt(&self, network: NetworkId, ip: IpNet) {
        let mut pools = self.lock();
        let mut pools = pools.get_mut(&network).into_iter().flatten();
        // Of its own subnet, or of an older one that put that aside.
        match pools.find(|pool| pool.subnet().cidr().contains(&ip.addr())) {
            Some(pool) => pool.adopt(ip.addr()),
            None => {
                error!(%network, %ip, "an address of this node lies in no subnet of its network");
            }
        }
    }

    /// Lets an address rest before it is given again.
    pub fn release(&self, network: NetworkId, ip: IpNet, now: Instant) {
        // Without a pool the network is gone, and the address with it.
        let _gone = self.with_pool(network, ip.trunc(), |pool| pool.release(ip.addr(), now));
    }

    /// Takes back an address that nobody has seen yet.
    pub fn put_back(&self, network: NetworkId, ip: IpNet) {
        // Without a pool the network is gone, and the address with it.
        let _gone = self.with_pool(network, ip.trunc(), |pool| pool.put_back(ip.addr()));
    }

    /// Lets an address rest that an earlier life of the agent released.
    pub fn rest(&self, network: NetworkId, ip: IpAddr, until: Instant) {
        let mut pools = self.lock();
        let pools = pools.get_mut(&network).into_iter().flatten();
        for pool in pools.filter(|pool| pool.subnet().cidr().contains(&ip)) {
            pool.rest(ip, until);
        }
    }

    /// Lets those of these addresses rest that are this node's to give, since when they were
    /// released.
    pub fn rest_own(
        &self,
        network: NetworkId,
        released: impl Iterator<Item = (IpAddr, Instant)>,
        now: Instant,
    ) {
        let mut pools = self.lock();
        let Some(pools) = pools.get_mut(&network) else { return };
        for (ip, until) in released.map(|(ip, since)| (ip, since + ADDRESS_QUARANTINE)) {
            let own = |pool: &&mut Pool| {
                pool.ownership().block_at(ip).is_some_and(|block| block.owner == self.me)
            };
            if let Some(pool) = pools.iter_mut().find(own).filter(|_| until > now) {
                pool.rest(ip, until);
            }
        }
    }

    /// All blocks of this node as transfers to another one, for `leave`, and what it gave to
    /// services: that counts when it comes back. They are given up here and now: a node that asks
    /// for space meanwhile must not get a part of them, too.
    #[must_use]
    pub fn give_all(&self, to: NodeId) -> Vec<(NetworkId, Transfer)> {
        let (mut pools, open) = (self.lock(), self.open());
        let mut given = Vec::new();
        for (network, pools) in pools.iter_mut().filter(|(id, _)| !self.is_hosted(**id)) {
            for pool in pools {
                let later = coming(pool, open.get(network));
                let own = pool.ownership().blocks().chain(later);
                let own = own.filter(|block| block.owner == self.me);
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

    /// Takes back what [`Self::give_all`] gave and nobody was told of.
    pub fn take_back(&self, given: &[(NetworkId, Transfer)]) {
        let mut pools = self.lock();
        for (network, transfer) in given {
            for pool in pools.get_mut(network).into_iter().flatten() {
                if pool.subnet().cidr().contains(&transfer.block) {
                    pool.retract(transfer);
                }
            }
        }
    }

    /// All blocks of nodes that were removed, as transfers to this one, and what they gave to
    /// services.
    #[must_use]
    pub fn reclaimable(&self, is_removed: impl Fn(NodeId) -> bool) -> Vec<(NetworkId, Transfer)> {
        let (pools, open) = (self.lock(), self.open());
        let pools =
            pools.iter().flat_map(|(network, pools)| pools.iter().map(|pool| (*network, pool)));
        let of = |(network, pool): (NetworkId, &Pool)| {
            let later = coming(pool, open.get(&network)).into_iter();
            let later = later.filter(|block| is_removed(block.owner)).filter_map(|block| {
                let (from, to, epoch) = (block.owner, self.me, block.epoch.checked_add(1)?);
                Some(Transfer { block: block.cidr, from, to, epoch })
            });
            let taken = pool.reclaimable(&is_removed).into_iter().chain(later);
            taken.map(move |transfer| (network, transfer)).collect::<Vec<_>>()
        };
        pools.flat_map(of).collect()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Vec<NodeId>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Vec<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that came back from services, each as often as it did.
fn given_back(pool: &Pool) -> BTreeSet<(IpAddr, u64)> {
    pool.ownership().returned().map(|block| (block.cidr.addr(), block.epoch)).collect()
}

/// What is known of a block, or of one that it was a part of: others may have got parts since.
fn known_as(known: &Handed, at: (u64, IpAddr), block: IpNet) -> Option<Option<Instant>> {
    let ((epoch, _), (cidr, until)) = known.range(..=at).next_back()?;
    (*epoch == at.0 && cidr.contains(&block)).then_some(*until)
}

/// Until when a block rests that is there at the start, if it does: its giver's clock says when it
/// left. One that is too far ahead says nothing.
fn still_rests(left_ms: u64, unix_ms: u64, now: Instant) -> Option<Instant> {
    if Duration::from_millis(left_ms.saturating_sub(unix_ms)) > HLC_AHEAD {
        return None;
    }
    let passed = Duration::from_millis(unix_ms.saturating_sub(left_ms));
    ADDRESS_QUARANTINE.checked_sub(passed).map(|left| now + left)
}

/// The blocks that services have now, as they will be when these give them back.
fn coming(pool: &Pool, holders: Option<&Vec<NodeId>>) -> Vec<Block> {
    let Some(holders) = holders else { return Vec::new() };
    let now = pool.ownership();
    let mut later = now.clone();
    later.give_back(holders.iter().copied());
    let is_new =
        |block: &Block| now.block_at(block.cidr.addr()).map(|it| it.owner) != Some(block.owner);
    later.blocks().filter(is_new).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ring::signature::{Ed25519KeyPair, KeyPair};
    use vxmesh_proto::{
        addr::Vni,
        ipam::{Need, Withheld},
        object::{Content, Draft, Extension, Hlc, Member, Merge},
    };

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

    #[test]
    fn who_had_an_address_last_may_have_it_again_at_once() {
        let network = NetworkId::from_random([1; 16]);
        let (subnet, ip): (IpNet, IpAddr) =
            ("10.1.0.0/24".parse().unwrap(), "10.1.0.50".parse().unwrap());
        let (all, nobody, now) =
            (addresses(network, "10.1.0.0/24"), BTreeSet::new(), Instant::now());
        let take = || all.allocate(network, subnet, Some(ip), &nobody, now).unwrap();
        assert_eq!(take(), Ok(ip));
        all.release(network, IpNet::new(ip, 24).unwrap(), now);
        assert!(matches!(take(), Err(AllocateError::Resting { .. })));
        assert_eq!(all.allocate_again(network, subnet, ip, &nobody, now), Some(Ok(ip)));
    }

    struct AnyCa;

    impl object::Certifier for AnyCa {
        fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
            certificate.try_into().ok()
        }

        fn ca_key(&self) -> Option<[u8; 32]> {
            None
        }
    }

    /// The only member of a mesh, what it said, and its network 10.1.0.0/24.
    struct Said {
        pair: Ed25519KeyPair,
        mesh: NodeId,
        me: NodeId,
        set: ObjectSet,
        network: NetworkId,
    }

    impl Said {
        fn new() -> Self {
            let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
            let certificate = pair.public_key().as_ref().to_vec();
            let (me, mesh) = (NodeId::of_public_key(&certificate), NodeId::of_public_key(b"mesh"));
            let (set, network) = (ObjectSet::new(mesh), NetworkId::from_random([0; 16]));
            let mut said = Self { pair, mesh, me, set, network };
            said.say(1, Content::Member(Member { certificate, name: None }));
            let network = object::Network {
                name: "blue".parse().unwrap(),
                creator: me,
                driver: "overlay".parse().unwrap(),
                vni: Vni::new(7).unwrap(),
                encrypted: true,
                vteps: Vec::new(),
                mtu: 1390,
                subnets: vec![subnet("10.1.0.0/24", "10.1.0.1")],
                internal: false,
                isolated: false,
                limits: Default::default(),
                dns: Vec::new(),
                labels: BTreeMap::new(),
                blocks: Vec::new(),
            };
            let ObjectId::Network(id) = said.say(1, Content::Network(network)) else { panic!() };
            Self { network: id, ..said }
        }

        fn say(&mut self, at: u64, content: Content) -> ObjectId {
            self.sign(&Draft::new(Hlc::at(at), content))
        }

        fn sign(&mut self, draft: &Draft) -> ObjectId {
            let text = draft.sign(&self.pair, self.mesh).unwrap();
            match self.set.merge(&text, &AnyCa, draft.hlc.unix_ms()) {
                Merge::New(object) | Merge::Updated { new: object, .. } => object.id().clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn subnet(cidr: &str, gateway: &str) -> object::Subnet {
        object::Subnet::whole(cidr.parse().unwrap(), gateway.parse().unwrap())
    }

    /// I12: a subnet that an older one puts aside takes its addresses along: nobody gets them
    /// again.
    #[test]
    fn what_is_in_use_of_a_subnet_that_was_put_aside_is_given_to_nobody() {
        let mut said = Said::new();
        let (me, id) = (said.me, said.network);
        let addresses = Addresses::new(me);
        let extend = |said: &mut Said, at: u64, cidr: &str, gateway: &str| {
            let subnet = subnet(cidr, gateway);
            let extension = Extension { network: id, from: me, subnet, blocks: Vec::new() };
            said.say(at, Content::Extension(extension));
            addresses.follow(&said.set, Instant::now());
        };
        extend(&mut said, 9, "10.2.0.0/30", "10.2.0.1");
        let take = |cidr: &str| {
            let (cidr, elsewhere) = (cidr.parse().unwrap(), Elsewhere::new());
            addresses.allocate(id, cidr, None, &elsewhere, Instant::now()).map(|got| got.unwrap())
        };
        assert_eq!(take("10.2.0.0/30"), Some("10.2.0.2".parse().unwrap()));
        addresses.follow(&said.set, Instant::now());
        assert!(addresses.holds(id, me, "10.2.0.2".parse().unwrap()), "nothing new, nothing lost");
        // It was made before the other, and is heard of later.
        extend(&mut said, 5, "10.2.0.0/28", "10.2.0.14");
        assert_eq!(take("10.2.0.0/30"), None);
        let next: Vec<_> = (0..2).filter_map(|_| take("10.2.0.0/28")).collect();
        assert_eq!(next, ["10.2.0.1".parse::<IpAddr>().unwrap(), "10.2.0.3".parse().unwrap()]);
        assert_eq!(take("10.1.0.0/24"), Some("10.1.0.2".parse().unwrap()));
    }

    /// A VIP is nobody's to give while its service is there, and rests when that was removed.
    #[test]
    fn the_address_of_a_service_comes_back_with_its_end() {
        let mut said = Said::new();
        let (me, id) = (said.me, said.network);
        let addresses = Addresses::new(me);
        addresses.follow(&said.set, Instant::now());
        let vip: IpNet = "10.1.0.9/24".parse().unwrap();
        let (cidr, elsewhere) = (vip.trunc(), Elsewhere::new());
        let take = || {
            let ip = Some(vip.addr());
            addresses.allocate(id, cidr, ip, &elsewhere, Instant::now()).unwrap()
        };
        take().unwrap();
        let service = object::Service {
            name: "web".parse().unwrap(),
            network: id,
            creator: me,
            vips: vec![vip.addr()],
            ports: Vec::new(),
            backends: BTreeSet::new(),
            selector: BTreeMap::new(),
            weights: BTreeMap::new(),
            choice: None,
            check: None,
            draining: BTreeMap::new(),
            drain_ms: None,
            prefer: None,
            published: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            sticky: None,
        };
        let made = said.say(2, Content::Service(service));
        let ObjectId::Service(service) = made else { panic!() };
        let holder = object::holder(service);
        let given = addresses.give_to_service(id, vip, holder, Instant::now()).unwrap();
        let Transfer { block: cidr, from, to, epoch } = given;
        said.say(3, Content::Transfer(object::Transfer { network: id, cidr, from, to, epoch }));
        addresses.follow(&said.set, Instant::now());
        assert!(addresses.holds(id, holder, vip.addr()) && !addresses.holds(id, me, vip.addr()));
        assert!(matches!(take(), Err(AllocateError::NotOurs { owner, .. }) if owner == holder));
        // Who gave it leaves: its heir gets this address, too, when it comes back.
        let heir = NodeId::of_public_key(b"heir");
        let left = addresses.give_all(heir);
        let last = left.iter().find(|(_, it)| it.block == given.block).map(|(_, it)| *it).unwrap();
        assert_eq!((last.to, last.epoch), (heir, given.epoch + 2));
        assert!(addresses.holds(id, holder, vip.addr()), "not before");
        let removed = addresses.reclaimable(|node| node == me);
        assert!(removed.is_empty(), "nothing is left of who gave all: {removed:?}");
        addresses.take_back(&left);
        let removed = addresses.reclaimable(|node| node == me);
        assert!(removed.iter().any(|(_, it)| it.block == given.block), "{removed:?}");

        let held = Arc::clone(said.set.get(&made).unwrap());
        said.sign(&Draft { closed: true, ..held.edit(Hlc::at(9)) });
        let addresses = Addresses::new(me);
        addresses.follow(&said.set, Instant::now());
        assert!(addresses.holds(id, me, vip.addr()));
        let taken =
            addresses.allocate(id, vip.trunc(), Some(vip.addr()), &elsewhere, Instant::now());
        assert!(matches!(taken, Some(Err(AllocateError::Resting { .. }))), "{taken:?}");

        // Who left it an heir who heard of the service's end before.
        let heirs = Addresses::new(heir);
        heirs.follow(&said.set, Instant::now());
        let Transfer { block: cidr, from, to, epoch } = last;
        said.say(10, Content::Transfer(object::Transfer { network: id, cidr, from, to, epoch }));
        addresses.follow(&said.set, Instant::now());
        assert!(addresses.holds(id, heir, vip.addr()));
        heirs.follow(&said.set, Instant::now());
        let taken = heirs.allocate(id, vip.trunc(), Some(vip.addr()), &elsewhere, Instant::now());
        assert!(matches!(taken, Some(Err(AllocateError::Resting { .. }))), "{taken:?}");
    }

    /// What a node released just before it left, others remember: its heir lets it rest, but not
    /// what it has of its own.
    #[test]
    fn what_a_node_that_leaves_released_rests_with_its_heir() {
        let mut said = Said::new();
        let (me, id) = (said.me, said.network);
        let (leaver, heir) = (Addresses::new(me), NodeId::of_public_key(b"heir"));
        let (elsewhere, now) = (Elsewhere::new(), Instant::now());
        let cidr: IpNet = "10.1.0.0/24".parse().unwrap();
        leaver.follow(&said.set, now);
        let heirs = Addresses::new(heir);
        let say = |said: &mut Said, at: u64, given: Transfer| {
            let Transfer { block: cidr, from, to, epoch } = given;
            said.say(
                at,
                Content::Transfer(object::Transfer { network: id, cidr, from, to, epoch }),
            );
        };
        // While nobody leaves, what one is given is free.
        let gift = leaver.with_pool(id, cidr, |pool| pool.give(heir, Need::Now, &elsewhere, now));
        gift.unwrap().unwrap().into_iter().for_each(|given| say(&mut said, 2, given));
        heirs.follow(&said.set, now);
        let take = |ip: Option<IpAddr>, seconds: u64| {
            let at = now + Duration::from_secs(seconds);
            heirs.allocate(id, cidr, ip, &elsewhere, at).unwrap()
        };
        let own = take(None, 0).unwrap();
        let released = leaver.allocate(id, cidr, None, &elsewhere, now).unwrap().unwrap();
        leaver.release(id, IpNet::new(released, 24).unwrap(), now);
        leaver.give_all(heir).into_iter().for_each(|(_, given)| say(&mut said, 3, given));
        let held = Arc::clone(said.set.get(&ObjectId::Member(me)).unwrap());
        said.sign(&Draft { closed: true, ..held.edit(Hlc::at(4)) });
        heirs.follow(&said.set, now);
        assert!(heirs.holds(id, heir, released));
        let resting = take(Some(released), 59);
        assert!(matches!(resting, Err(AllocateError::Resting { .. })), "{resting:?}");
        let next = take(None, 59).unwrap();
        assert!(next != own && next != released, "{next}");
        // Once: not with each of the next rounds, nor in another life.
        *heirs.followed.lock().unwrap() = Some("other objects".to_owned());
        heirs.follow(&said.set, now + Duration::from_secs(30));
        assert_eq!(take(Some(released), 61), Ok(released));
        let anew = Addresses::new(heir);
        anew.follow(&said.set, now);
        let taken = anew.allocate(id, cidr, Some(released), &elsewhere, now).unwrap();
        assert_eq!(taken, Ok(released));
    }

    /// The giver left a moment ago, and the heir's agent was started since.
    #[test]
    fn what_a_node_that_left_handed_over_rests_over_a_restart_of_its_heir() {
        let cidr: IpNet = "10.1.0.0/24".parse().unwrap();
        for (left_ago, rests) in [(20_i64, 40_u64), (-5, 60), (60, 0), (-7200, 0)] {
            let mut said = Said::new();
            let (me, id, heir) = (said.me, said.network, NodeId::of_public_key(b"heir"));
            let (elsewhere, now) = (Elsewhere::new(), Instant::now());
            let leaver = Addresses::new(me);
            leaver.follow(&said.set, now);
            for (_, Transfer { block: cidr, from, to, epoch }) in leaver.give_all(heir) {
                let given = object::Transfer { network: id, cidr, from, to, epoch };
                said.say(3, Content::Transfer(given));
            }
            let held = Arc::clone(said.set.get(&ObjectId::Member(me)).unwrap());
            let left = unix_ms().checked_add_signed(-1000 * left_ago).unwrap();
            said.sign(&Draft { closed: true, ..held.edit(Hlc::at(left)) });
            let heirs = Addresses::new(heir);
            heirs.follow(&said.set, now);
            let usage = |seconds: u64| {
                let at = now + Duration::from_secs(seconds);
                heirs.with_pool(id, cidr, |pool| pool.usage(&elsewhere, at)).unwrap()
            };
            let free =
                |seconds: u64| usage(seconds).blocks.iter().map(|row| row.free).sum::<u128>();
            if let Some(almost) = rests.checked_sub(2) {
                let resting: u128 = usage(almost).handed.iter().map(|row| row.resting).sum();
                assert_eq!((free(almost), resting), (0, 253), "left {left_ago}s ago");
                let at = now + Duration::from_secs(almost);
                let taken = heirs.allocate(id, cidr, None, &elsewhere, at).unwrap();
                assert!(taken.is_err(), "{taken:?}");
            }
            assert_eq!(free(rests), 253, "left {left_ago}s ago");
            assert_eq!(usage(rests).handed, []);
        }
    }

    /// I12: two transfers of one block contradict each other, and the void one's receiver has given
    /// addresses out.
    #[test]
    fn what_is_given_at_leaving_is_given_to_nobody_else() {
        let network = NetworkId::from_random([1; 16]);
        let cidr: IpNet = "10.1.0.0/24".parse().unwrap();
        let addresses = addresses(network, "10.1.0.0/24");
        let (heir, other) = (NodeId::of_public_key(b"heir"), NodeId::of_public_key(b"other"));
        assert_eq!(addresses.give_all(heir).len(), 1);
        assert!(addresses.holds(network, heir, "10.1.0.9".parse().unwrap()));
        let elsewhere = Elsewhere::new();
        let given = addresses.with_pool(network, cidr, |pool| {
            pool.give(other, Need::Now, &elsewhere, Instant::now())
        });
        assert_eq!(given, Some(Err(Withheld::None)));
        let allocated =
            addresses.allocate(network, cidr, None, &elsewhere, Instant::now()).unwrap();
        assert!(matches!(allocated, Err(AllocateError::Exhausted { .. })));
    }

    #[test]
    fn what_was_given_by_who_does_not_leave_is_its_own_again() {
        let network = NetworkId::from_random([1; 16]);
        let cidr: IpNet = "10.1.0.0/24".parse().unwrap();
        let addresses = addresses(network, "10.1.0.0/24");
        let (me, heir) = (NodeId::of_public_key(ME), NodeId::of_public_key(b"heir"));
        let (elsewhere, now) = (Elsewhere::new(), Instant::now());
        let take = || addresses.allocate(network, cidr, None, &elsewhere, now).unwrap();
        let before = take().unwrap();
        let given = addresses.give_all(heir);
        assert!(take().is_err());
        addresses.take_back(&given);
        assert!(addresses.holds(network, me, before));
        assert_ne!(take().unwrap(), before, "it is in use still");
    }
}
