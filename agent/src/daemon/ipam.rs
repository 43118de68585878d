//! How an endpoint of this node gets its addresses, how this node gets blocks to take them from,
//! and what becomes of all addresses as people see it. Which address is free is
//! `vxmesh_proto::ipam`'s to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use vxmesh_proto::{
    addr::{EndpointId, Name, NetworkId, NodeId},
    control::{RefusalCode, Request, Response},
    ipam::{AllocateError, HandedBlock, Need, Usage},
    limits::ADDRESS_QUARANTINE,
    object::{self, NetworkState, ObjectSet},
};

use super::{
    mesh::{Mesh, conflict, failed},
    sync::refusal,
};
use crate::{
    admin::resolve,
    api::{self, ApiError, ErrorCode},
    control::ControlError,
    reconcile::admit::claimant,
};

/// How long nobody is asked for address blocks in advance after one could not be had.
const PREFETCH_PAUSE: Duration = Duration::from_secs(30);
/// How long an endpoint waits for an address that another node has and does not give yet: its word
/// of what this node uses is as old as the last records that it heard.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before the others are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A node that has free addresses, as far as is known, and gave none.
struct NotGiven {
    by: NodeId,
    why: String,
    /// Whether it may give some within [`PATIENCE`].
    passes: bool,
}

impl NotGiven {
    fn new(by: NodeId, error: &ControlError) -> Self {
        let (why, passes) = match error {
            ControlError::Refused(refusal) => {
                (refusal.message.clone(), refusal.code == RefusalCode::Conflict)
            }
            error => (error.to_string(), false),
        };
        Self { by, why, passes }
    }
}

fn gone() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the network is gone", "see `vxmesh network ls`")
}

/// As much as a number of the API says: IPv6 subnets have 2^64 addresses at most.
fn count(addresses: u128) -> u64 {
    u64::try_from(addresses).unwrap_or(api::MOST).min(api::MOST)
}

/// What is left of a second counts as one: what is shown rests.
fn begun_seconds(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

/// The addresses of blocks that rest as a whole.
fn resting_in(handed: &[HandedBlock]) -> u128 {
    handed.iter().map(|block| block.resting).sum()
}

impl Mesh {
    /// One address of each IP version that the network has: the wanted one, or any.
    pub(crate) async fn allocate(
        &self,
        network: &object::Network,
        id: NetworkId,
        wanted: &[IpAddr],
    ) -> Result<Vec<IpNet>, ApiError> {
        self.allocate_again(network, id, wanted, &[]).await
    }

    /// The same where the caller had some of the wanted addresses last: they need not rest.
    pub(super) async fn allocate_again(
        &self,
        network: &object::Network,
        id: NetworkId,
        wanted: &[IpAddr],
        again: &[IpAddr],
    ) -> Result<Vec<IpNet>, ApiError> {
        let subnets: Vec<IpNet> = network.subnets.iter().map(|subnet| subnet.cidr).collect();
        check_wanted(&network.subnets, wanted)?;
        let mut ips: Vec<IpNet> = Vec::new();
        let mut seen = BTreeSet::new();
        for first in &subnets {
            let version = first.addr().is_ipv4();
            if !seen.insert(version) {
                continue;
            }
            let got = match wanted.iter().find(|ip| ip.is_ipv4() == version) {
                Some(ip) => {
                    let had = subnets.iter().find(|subnet| subnet.contains(ip));
                    match had.filter(|_| again.contains(ip)) {
                        Some(subnet) => self.lease_again(network, id, (*subnet, *ip)).await,
                        None => self.allocate_static(network, id, *ip).await,
                    }
                }
                None => {
                    let same = subnets.iter().filter(|s| s.addr().is_ipv4() == version);
                    self.allocate_any(network, id, &same.copied().collect::<Vec<_>>()).await
                }
            };
            match got {
                Ok(ip) => ips.push(ip),
                Err(error) => {
                    ips.iter().for_each(|ip| self.member.addresses.put_back(id, *ip));
                    return Err(error);
                }
            }
        }
        Ok(ips)
    }

    /// Any free address of these subnets: of what this node holds, else of what another can spare.
    pub(super) async fn allocate_any(
        &self,
        network: &object::Network,
        id: NetworkId,
        subnets: &[IpNet],
    ) -> Result<IpNet, ApiError> {
        if !self.is_local(id) {
            self.await_proof().await?;
        }
        let local = |subnet: &IpNet| -> Result<Option<IpNet>, ApiError> {
            let elsewhere = self.member.elsewhere(id);
            match self.member.addresses.allocate(id, *subnet, None, &elsewhere, Instant::now()) {
                None => Err(gone()),
                Some(Ok(ip)) => Ok(Some(IpNet::new_assert(ip, subnet.prefix_len()))),
                Some(Err(_exhausted)) => Ok(None),
            }
        };
        for subnet in subnets {
            if let Some(ip) = local(subnet)? {
                return Ok(ip);
            }
        }
        // One gift is enough for many who find none at once.
        let _one_at_a_time = self.member.allocation.fetching.lock().await;
        let patient_until = Instant::now() + PATIENCE;
        loop {
            let (mut refused, mut got) = (Vec::new(), false);
            let is_settling = self.is_settling();
            for subnet in subnets {
                if let Some(ip) = local(subnet)? {
                    return Ok(ip);
                }
                let fetched = self.fetch_block(id, *subnet, Need::Now).await;
                got |= fetched.is_ok();
                if let Some(ip) = local(subnet)? {
                    return Ok(ip);
                }
                refused.extend(fetched.err().into_iter().flatten());
            }
            // What came went to somebody else, or what others know of this node's addresses is a
            // moment old; or those who have some were not heard yet.
            let passes = got || refused.iter().any(|refusal| refusal.passes);
            if !is_settling && (!passes || Instant::now() > patient_until) {
                return Err(self.exhausted(network, id, subnets, &refused));
            }
            if !got {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    /// Who holds the addresses that are not to be had, and whether they may be had in a moment.
    fn exhausted(
        &self,
        network: &object::Network,
        id: NetworkId,
        subnets: &[IpNet],
        refused: &[NotGiven],
    ) -> ApiError {
        let nodes = self.node_list();
        let (mut holders, mut dead, mut removed) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut soonest = None;
        let mut waits: Vec<String> = refused.iter().map(|it| self.why_not_given(it)).collect();
        for subnet in subnets {
            let Some(usage) = self.usage(id, *subnet) else { continue };
            if let Some(first) = usage.resting.iter().map(|(_ip, left)| *left).min() {
                let count = usage.resting.len();
                let left = first.as_secs() + 1;
                soonest = Some(soonest.unwrap_or(left).min(left));
                waits.push(format!("{count} of {subnet} rest here, the first for {left}s more"));
            }
            let resting = usage.handed.iter().filter(|handed| handed.resting > 0);
            if let Some(first) = resting.map(|handed| handed.left).min() {
                let (count, left) = (resting_in(&usage.handed), begun_seconds(first));
                soonest = Some(soonest.unwrap_or(left).min(left));
                waits.push(format!(
                    "{count} of {subnet}, which a node that left handed over, rest here, the first for {left}s more"
                ));
            }
            for owner in self.owners(&usage, &nodes) {
                match owner.state.as_str() {
                    "dead" | "left" => drop(dead.insert(owner.name.clone())),
                    "removed" => drop(removed.insert(owner.name.clone())),
                    _ => {}
                }
                holders.push(format!(
                    "{} ({}) holds {} of {subnet}, {} in use",
                    owner.name,
                    owner.state,
                    owner.used.saturating_add(owner.free),
                    // Whether the others rest or are spared, the owner says itself.
                    owner.used
                ));
            }
        }
        let names: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let mut message = format!(
            "network `{}` has no free address of {} left for this node: {}",
            network.name,
            names.join(" and "),
            holders.join("; ")
        );
        let mut hint = way_out(network.name.as_str(), dead, removed, &nodes);
        if !waits.is_empty() {
            message.push_str(&format!(". This may pass: {}", waits.join("; ")));
            // What was released elsewhere rests as long.
            let left = soonest.unwrap_or(ADDRESS_QUARANTINE.as_secs());
            hint = format!("try again in {left} seconds, or {hint}");
        }
        conflict(message, hint)
    }

    fn why_not_given(&self, NotGiven { by, why, .. }: &NotGiven) -> String {
        format!("{} gave none: {why}", self.node_name(*by))
    }

    /// Exactly this address: of this node's blocks, or handed over by its owner.
    pub(super) async fn allocate_static(
        &self,
        network: &object::Network,
        id: NetworkId,
        ip: IpAddr,
    ) -> Result<IpNet, ApiError> {
        if !self.is_local(id) {
            self.await_proof().await?;
        }
        let subnet = network.subnets.iter().map(|subnet| subnet.cidr).find(|s| s.contains(&ip));
        let subnet = subnet.ok_or_else(gone)?;
        for second in [false, true] {
            let elsewhere = self.member.elsewhere(id);
            let got =
                self.member.addresses.allocate(id, subnet, Some(ip), &elsewhere, Instant::now());
            match got.ok_or_else(gone)? {
                Ok(ip) => return Ok(IpNet::new_assert(ip, subnet.prefix_len())),
                Err(AllocateError::NotOurs { ip, owner })
                    if !second && !self.service_holders().contains_key(&owner) =>
                {
                    if !self.is_up_soon(owner).await {
                        return Err(self.out_of_reach(ip, owner));
                    }
                    self.claim_address(owner, id, ip).await?;
                }
                Err(error @ (AllocateError::Outside { .. } | AllocateError::Reserved { .. })) => {
                    return Err(ApiError::new(
                        ErrorCode::Usage,
                        error.to_string(),
                        "choose another address",
                    ));
                }
                Err(error) => {
                    let message = self.name_holder(id, &error);
                    return Err(conflict(
                        message,
                        "choose another address; see `vxmesh endpoint ls`",
                    ));
                }
            }
        }
        Err(failed("the address went to somebody else meanwhile", "try again"))
    }

    /// Why an address cannot be had, with the endpoint that has it.
    pub(super) fn name_holder(&self, network: NetworkId, error: &AllocateError) -> String {
        if let AllocateError::NotOurs { ip, owner } = error
            && let Some(service) = self.service_holders().get(owner)
        {
            return format!("{ip} is the address of service `{service}`");
        }
        let AllocateError::InUse(ip) = error else { return error.to_string() };
        let Some(gossip) = self.member.gossip.get() else { return error.to_string() };
        match gossip.with_directory(|directory| claimant(directory, network, *ip)) {
            Some((node, name)) => {
                format!("{ip} is in use by endpoint `{name}` on node {}", self.node_name(node))
            }
            None => error.to_string(),
        }
    }

    /// Only its owner can give an address away: nobody else knows whether it is in use.
    fn out_of_reach(&self, ip: IpAddr, owner: NodeId) -> ApiError {
        let owner = self.node_name(owner);
        conflict(
            format!("{ip} is in a block of node {owner}, which is not reachable"),
            "bring that node back, or choose another address",
        )
    }

    /// Asks for an address block in every network of which this node has none, so that it can give
    /// addresses out when it is cut off later. Whether there is such a network.
    pub(super) fn prefetch(self: &Arc<Self>) -> bool {
        let networks = self.member.objects.read(ObjectSet::active_networks);
        let bare: Vec<_> = networks
            .into_iter()
            .flat_map(|id| {
                self.member.addresses.without_block(id).into_iter().map(move |subnet| (id, subnet))
            })
            .collect();
        if bare.is_empty() || self.member.allocation.is_prefetching() {
            return !bare.is_empty();
        }
        self.member.allocation.set_prefetching(true);
        let mesh = Arc::clone(self);
        tokio::spawn(async move {
            let mut failed = false;
            for (network, subnet) in bare {
                if let Err(refused) = mesh.fetch_block(network, subnet, Need::InAdvance).await {
                    let why: Vec<_> = refused.iter().map(|it| mesh.why_not_given(it)).collect();
                    tracing::debug!(%network, %subnet, ?why, "no address block yet");
                    failed = true;
                }
            }
            if failed {
                // Who has nothing to spare is not asked every second; an attachment asks at once
                // all the same. A mesh that was left in between ends without waiting for this.
                let waiting = Arc::downgrade(&mesh);
                drop(mesh);
                tokio::time::sleep(PREFETCH_PAUSE).await;
                if let Some(mesh) = waiting.upgrade() {
                    mesh.member.allocation.set_prefetching(false);
                }
                return;
            }
            mesh.member.allocation.set_prefetching(false);
        });
        true
    }

    /// Gets addresses of a subnet from the nodes that are up and have most to spare; else says why
    /// each gave none.
    async fn fetch_block(
        &self,
        network: NetworkId,
        subnet: IpNet,
        need: Need,
    ) -> Result<(), Vec<NotGiven>> {
        let mut refused = Vec::new();
        if self.member.allocation.is_leaving() {
            return Err(refused);
        }
        let elsewhere = self.member.elsewhere(network);
        let holders = self
            .member
            .addresses
            .with_pool(network, subnet, |pool| pool.holders(&elsewhere))
            .unwrap_or_default();
        let live = self.member.live_nodes();
        for holder in holders.into_iter().filter(|holder| live.contains(&holder.node)) {
            let request = Request::BlockRequest { network, subnet, want: need.wanted() };
            match self.request_transfer(holder.node, &request).await {
                Ok(()) => return Ok(()),
                Err(why) => refused.push(NotGiven::new(holder.node, &why)),
            }
        }
        Err(refused)
    }

    /// Asks the owner of an address for exactly this one. An owner whose connection broke may be
    /// back in a moment: it is asked again for as long as an answer may take.
    async fn claim_address(
        &self,
        owner: NodeId,
        network: NetworkId,
        ip: IpAddr,
    ) -> Result<(), ApiError> {
        let endpoint = EndpointId::from_random([0; 16]);
        let request = Request::AddressClaim { network, ip, endpoint };
        let until = Instant::now() + super::sync::ANSWER;
        let mut broke = false;
        loop {
            let Err(error) = self.request_transfer(owner, &request).await else { return Ok(()) };
            // The answer to a question before may have come another way; then the owner has nothing
            // to give any more.
            if broke && self.member.addresses.holds(network, self.member.me, ip) {
                return Ok(());
            }
            broke |= !matches!(error, ControlError::Refused(_));
            if !broke || Instant::now() > until {
                let name = self.node_name(owner);
                let hint = if broke {
                    format!("node {name} owns it and may be back in a moment: try again")
                } else {
                    format!("node {name} owns it; see `vxmesh node ls`")
                };
                return Err(conflict(error.to_string(), hint));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Sends a request whose answer is a signed transfer to this node, and takes it over.
    async fn request_transfer(&self, node: NodeId, request: &Request) -> Result<(), ControlError> {
        let control = self.member.control.get().ok_or(ControlError::NotConnected(node))?;
        match control.request(node, request, super::sync::ANSWER).await? {
            Response::Objects { objects } => {
                tokio::task::block_in_place(|| self.member.take_objects(node, &objects));
                self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
                Ok(())
            }
            _ => Err(ControlError::Refused(refusal(
                RefusalCode::Malformed,
                "it answers something else than addresses: upgrade the older agent",
            ))),
        }
    }

    fn usage(&self, network: NetworkId, subnet: IpNet) -> Option<Usage> {
        let elsewhere = self.member.elsewhere(network);
        self.member
            .addresses
            .with_pool(network, subnet, |pool| pool.usage(&elsewhere, Instant::now()))
    }

    /// The services that have addresses, by who holds these for them.
    fn service_holders(&self) -> BTreeMap<NodeId, Name> {
        let of = |set: &ObjectSet| {
            let services = set.all_services();
            services.map(|(id, _, service)| (object::holder(id), service.name.clone())).collect()
        };
        self.member.objects.read(of)
    }

    /// What each node holds, who has most first.
    fn owners(&self, usage: &Usage, nodes: &[api::Node]) -> Vec<api::AddressOwner> {
        let mut owners: BTreeMap<NodeId, (usize, u128, u128)> = BTreeMap::new();
        for row in &usage.blocks {
            let (blocks, used, free) = owners.entry(row.block.owner).or_default();
            *blocks += 1;
            *used += row.used;
            *free += row.free;
        }
        let services = self.service_holders();
        let owner = |(node, (blocks, used, free)): (NodeId, (usize, u128, u128))| {
            let known = nodes.iter().find(|row| row.id == node);
            let (name, state) = match (known, services.get(&node)) {
                (Some(row), _) => (row.name.to_string(), row.state.clone()),
                (None, Some(service)) => (service.to_string(), "service".to_owned()),
                (None, None) => (node.to_string(), "unknown".to_owned()),
            };
            // An address that is a service's is not for anybody to take.
            let (used, free) = if state == "service" { (used + free, 0) } else { (used, free) };
            api::AddressOwner { node, name, state, blocks, used: count(used), free: count(free) }
        };
        let mut owners: Vec<_> = owners.into_iter().map(owner).collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.used.saturating_add(owner.free)));
        owners
    }

    /// The address pools of all networks.
    pub(super) fn pool_list(&self) -> Vec<api::AddressPool> {
        let nodes = self.node_list();
        let networks = self.member.objects.read(ObjectSet::networks);
        let ids = networks.into_iter().map(|(id, ..)| id).chain(self.local_networks.ids());
        ids.flat_map(|id| self.pools_of(id, &nodes)).map(|detail| detail.pool).collect()
    }

    /// The address pools of one network, block by block.
    pub(super) fn network_pools(&self, reference: &str) -> Result<api::NetworkPools, ApiError> {
        let network = resolve::one(&self.network_list(), reference).cloned()?;
        let pools = self.pools_of(network.id, &self.node_list());
        Ok(api::NetworkPools { id: network.id, name: network.name, pools })
    }

    fn pools_of(&self, id: NetworkId, nodes: &[api::Node]) -> Vec<api::PoolDetail> {
        let Some((network, state)) = self.network_object(id) else { return Vec::new() };
        let state = if state == NetworkState::Active { "active" } else { "conflict" };
        let detail = |subnet: &object::Subnet| {
            let usage = self.usage(id, subnet.cidr)?;
            let owners = self.owners(&usage, nodes);
            let sum = |part: fn(&api::AddressOwner) -> u64| {
                owners.iter().map(part).fold(0, u64::saturating_add).min(api::MOST)
            };
            let pool = api::AddressPool {
                network: id,
                cidr: subnet.cidr,
                gateway: subnet.gateway,
                ip_range: subnet.range.unwrap_or(subnet.cidr),
                state: state.to_owned(),
                used: sum(|owner| owner.used),
                free: sum(|owner| owner.free),
                resting: count(usage.resting.len() as u128 + resting_in(&usage.handed)),
                owners,
            };
            let block = |row: &vxmesh_proto::ipam::BlockUsage| api::AddressBlock {
                cidr: row.block.cidr,
                owner: row.block.owner,
                epoch: row.block.epoch,
                used: count(row.used),
                free: count(row.free),
            };
            let rest = |(ip, left): &(IpAddr, Duration)| api::RestingAddress {
                ip: *ip,
                rest_s: begun_seconds(*left),
            };
            let rest_of_block = |it: &HandedBlock| api::RestingBlock {
                cidr: it.cidr,
                resting: count(it.resting),
                rest_s: begun_seconds(it.left),
            };
            Some(api::PoolDetail {
                pool,
                blocks: usage.blocks.iter().map(block).collect(),
                resting_addresses: usage.resting.iter().map(rest).collect(),
                resting_blocks: usage.handed.iter().map(rest_of_block).collect(),
            })
        };
        let mut pools: Vec<_> = network.subnets.iter().filter_map(detail).collect();
        pools.extend(self.put_aside(id));
        pools
    }

    /// Subnets that were added and do not count: another, older one has their addresses.
    fn put_aside(&self, id: NetworkId) -> Vec<api::PoolDetail> {
        let row = |subnet: &object::SubnetOf<'_>| api::PoolDetail {
            pool: api::AddressPool {
                network: id,
                cidr: subnet.subnet.cidr,
                gateway: subnet.subnet.gateway,
                ip_range: subnet.subnet.range.unwrap_or(subnet.subnet.cidr),
                state: "conflict".to_owned(),
                used: 0,
                free: 0,
                resting: 0,
                owners: Vec::new(),
            },
            blocks: Vec::new(),
            resting_addresses: Vec::new(),
            resting_blocks: Vec::new(),
        };
        self.member.objects.read(|set| {
            let subnets = set.subnets(id);
            let aside = subnets.iter().filter(|s| s.state != object::SubnetState::Active);
            aside.map(row).collect()
        })
    }
}

/// What to do when there are no addresses: who is dead and holds some is brought back or removed.
fn way_out(
    network: &str,
    dead: BTreeSet<String>,
    removed: BTreeSet<String>,
    nodes: &[api::Node],
) -> String {
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    let mut ways = format!(
        "add addresses with `vxmesh network extend {network} --subnet CIDR`, or detach endpoints"
    );
    if let Some(first) = dead.first().cloned() {
        let names = list(dead);
        ways.push_str(&format!(
            ", or bring {names} back, or remove what is gone for good with `vxmesh node rm {first}`"
        ));
    }
    if !removed.is_empty() {
        let away = nodes.iter().filter(|node| node.state == "dead");
        let away = list(away.map(|node| node.name.to_string()).collect());
        let away = if away.is_empty() { "every member".to_owned() } else { away };
        let names = list(removed);
        ways.push_str(&format!(
            "; the addresses of {names} come back once {away} has heard of the removal or is removed, too"
        ));
    }
    ways + &format!("; see `vxmesh ipam inspect {network}`")
}

fn check_wanted(subnets: &[object::Subnet], wanted: &[IpAddr]) -> Result<(), ApiError> {
    let usage = |message: String, hint: String| ApiError::new(ErrorCode::Usage, message, hint);
    let aux = subnets.iter().flat_map(|subnet| &subnet.aux);
    if let Some((name, ip)) = aux.into_iter().find(|(_, ip)| wanted.contains(ip)) {
        return Err(usage(
            format!("{ip} is reserved for `{name}`"),
            "choose another address".to_owned(),
        ));
    }
    if let Some(stray) = wanted.iter().find(|ip| !subnets.iter().any(|s| s.cidr.contains(*ip))) {
        let subnets: Vec<String> = subnets.iter().map(|subnet| subnet.cidr.to_string()).collect();
        return Err(usage(
            format!("{stray} is in no subnet of the network"),
            format!("choose one in {}", subnets.join(" or ")),
        ));
    }
    let of_v4 = wanted.iter().filter(|ip| ip.is_ipv4()).count();
    if of_v4 > 1 || wanted.len() - of_v4 > 1 {
        return Err(usage(
            "two addresses of one IP version were asked for".to_owned(),
            "give one --ip per IP version".to_owned(),
        ));
    }
    Ok(())
}
