//! How a simulated node gets addresses and gives them, makes networks, leaves, and removes others
//! as the issuer.

use vxmesh_proto::{ipam::AllocateError, object::Removal};

use super::*;

impl Life {
    pub(super) fn prefetch(&mut self, time: Time) {
        if self.waiting.values().any(|(_, _, w)| matches!(w, Waiting::Addresses { .. })) {
            return;
        }
        for network in self.set.active_networks() {
            for subnet in self.addresses.without_block(network) {
                self.fetch_block(time, network, subnet, false);
            }
        }
    }

    pub(super) fn fetch_block(
        &mut self,
        time: Time,
        network: NetworkId,
        subnet: IpNet,
        for_attach: bool,
    ) {
        let elsewhere = claimed_elsewhere(&self.directory, network, self.me);
        let holders = self.addresses.with_pool(network, subnet, |pool| pool.holders(&elsewhere));
        let up = holders.unwrap_or_default().into_iter().map(|holder| holder.node);
        let up = up.filter(|node| self.directory.is_up(*node)).collect();
        let need = if for_attach { Need::Now } else { Need::InAdvance };
        let request = Request::BlockRequest { network, subnet, want: need.wanted() };
        self.ask_holders(time, request, up, for_attach);
    }

    pub(super) fn ask_holders(
        &mut self,
        time: Time,
        request: Request,
        mut rest: Vec<NodeId>,
        attach: bool,
    ) {
        if rest.is_empty() {
            if attach {
                self.give_up();
            }
            return;
        }
        let node = rest.remove(0);
        let waiting =
            Waiting::Addresses { request: Box::new(request.clone()), rest, for_attach: attach };
        self.ask(time, node, &request, waiting);
    }

    pub(super) fn give_up(&mut self) {
        if let Some(attach) = self.attach.take() {
            for ip in attach.ips {
                self.addresses.put_back(attach.network, ip);
            }
        }
    }

    /// Begins to attach an endpoint; false if one is being attached.
    pub(crate) fn attach(&mut self, time: Time, network: NetworkId, wanted: Vec<IpAddr>) -> bool {
        self.begin_attach(time, network, wanted, false)
    }

    /// Begins to attach the node's own interface in a network, if it has none there.
    pub(crate) fn plug_router(&mut self, time: Time, network: NetworkId) -> bool {
        let mut own = self.disk.endpoints.values();
        let has_one = own.any(|claim| claim.router && claim.network == network);
        !has_one && self.begin_attach(time, network, Vec::new(), true)
    }

    fn begin_attach(
        &mut self,
        time: Time,
        network: NetworkId,
        wanted: Vec<IpAddr>,
        router: bool,
    ) -> bool {
        let removed = self.set.is_removed(self.me);
        if self.attach.is_some() || removed || !self.set.active_networks().contains(&network) {
            return false;
        }
        let id = EndpointId::from_random(self.rng.bytes());
        let mac = self.free_mac(network);
        let all = self.addresses.subnets(network);
        let v4: Vec<IpNet> = all.iter().filter(|net| net.addr().is_ipv4()).copied().collect();
        let named = v4.iter().find(|net| wanted.iter().any(|ip| net.contains(ip))).copied();
        let v4 = named.or_else(|| self.rng.pick(&v4).copied());
        let v6 = all.iter().find(|net| net.addr().is_ipv6()).copied();
        let subnets = v4.into_iter().chain(v6).collect();
        let ips = Vec::new();
        let (asked, service) = (false, None);
        self.attach =
            Some(Attach { network, id, mac, wanted, subnets, ips, asked, router, service });
        self.continue_attach(time);
        true
    }

    /// A MAC that none of its endpoints has.
    fn free_mac(&mut self, network: NetworkId) -> MacAddr {
        let begin = u16::from_be_bytes(self.rng.bytes());
        let mut all = (0..=u16::MAX).map(|n| MacAddr::of_node(self.me, begin.wrapping_add(n)));
        let own = self.disk.endpoints.values().filter(|claim| claim.network == network);
        all.find(|mac| own.clone().all(|claim| claim.mac != *mac)).unwrap()
    }

    /// Begins to make a service with an address of each IP version of its network.
    pub(crate) fn create_service(&mut self, time: Time, service: object::Service) -> bool {
        let network = service.network;
        let active = self.set.active_networks().contains(&network);
        let taken = self.set.services(network).iter().any(|of| of.service.name == service.name);
        if self.attach.is_some() || taken || !active || self.set.is_removed(self.me) {
            return false;
        }
        // Not of a subnet that an older one may put aside.
        let Some(object) = self.set.get(&ObjectId::Network(network)) else { return false };
        let Content::Network(object) = object.content() else { return false };
        let subnets = object.subnets.iter().map(|subnet| subnet.cidr).collect();
        let (id, mac) = (EndpointId::from_random([0; 16]), MacAddr([0; 6]));
        let (wanted, ips, service) = (Vec::new(), Vec::new(), Some(service));
        let (asked, router) = (false, false);
        self.attach =
            Some(Attach { network, id, mac, wanted, subnets, ips, asked, router, service });
        self.continue_attach(time);
        true
    }

    pub(super) fn continue_attach(&mut self, time: Time) {
        let Some(mut attach) = self.attach.take() else { return };
        let network = attach.network;
        let subnets = attach.subnets.clone();
        while let Some(subnet) = subnets.get(attach.ips.len()).copied() {
            let wanted = attach.wanted.iter().copied().find(|ip| subnet.contains(ip));
            let elsewhere = claimed_elsewhere(&self.directory, network, self.me);
            match self.addresses.allocate(network, subnet, wanted, &elsewhere, time.now) {
                Some(Ok(ip)) => {
                    attach.ips.push(IpNet::new_assert(ip, subnet.prefix_len()));
                    attach.asked = false;
                }
                Some(Err(AllocateError::NotOurs { ip, owner })) if !attach.asked => {
                    let endpoint = attach.id;
                    self.attach = Some(Attach { asked: true, ..attach });
                    let request = Request::AddressClaim { network, ip, endpoint };
                    return self.ask_holders(time, request, vec![owner], true);
                }
                Some(Err(AllocateError::Exhausted { .. })) if !attach.asked => {
                    self.attach = Some(Attach { asked: true, ..attach });
                    return self.fetch_block(time, network, subnet, true);
                }
                _ => {
                    self.attach = Some(attach);
                    return self.give_up();
                }
            }
        }
        if subnets.is_empty() {
            return;
        }
        if let Some(service) = attach.service {
            return self.publish_service(time, service, &attach.ips);
        }
        self.disk.incarnation += 1;
        // No service names a node.
        let name = format!("e{}", self.rng.below(6)).parse().unwrap();
        let app = self.rng.pick(&["web", "db"]).unwrap();
        let (name, app) =
            if attach.router { ("node".parse().unwrap(), &"none") } else { (name, app) };
        let claim = EndpointClaim {
            id: attach.id,
            network,
            name,
            aliases: Vec::new(),
            mac: attach.mac,
            ips: attach.ips.iter().map(IpNet::addr).collect(),
            incarnation: self.disk.incarnation.max(time.wall_ms),
            labels: BTreeMap::from([("app".to_owned(), (*app).to_owned())]),
            router: attach.router,
            health: BTreeMap::new(),
        };
        self.disk.endpoints.insert(claim.id, claim.clone());
        self.host(time, network);
        self.say(time, Key::Endpoint(claim.id), &Claim::Endpoint(claim.clone()));
        self.attached.push(claim);
        self.reconcile(time);
    }

    pub(crate) fn detach(&mut self, time: Time, id: EndpointId) {
        let Some(claim) = self.disk.endpoints.remove(&id) else { return };
        self.say(time, Key::Endpoint(id), &Claim::Gone);
        for ip in self.with_prefix(&claim) {
            self.addresses.release(claim.network, ip, time.now);
        }
        if !self.disk.endpoints.values().any(|other| other.network == claim.network) {
            self.locals.remove(&claim.network);
        }
        self.reconcile(time);
    }

    pub(super) fn with_prefix(&self, claim: &EndpointClaim) -> Vec<IpNet> {
        let subnets = self.addresses.subnets(claim.network);
        let net = |ip: &IpAddr| {
            let subnet = subnets.iter().find(|subnet| subnet.contains(ip))?;
            Some(IpNet::new_assert(*ip, subnet.prefix_len()))
        };
        claim.ips.iter().filter_map(net).collect()
    }

    /// Makes a network.
    pub(crate) fn create_network(&mut self, time: Time, network: object::Network) {
        self.publish(time, |_| Content::Network(network));
        self.addresses.follow(&self.set, time.now);
        self.reconcile(time);
    }

    /// Adds a subnet to a network.
    pub(crate) fn extend_network(&mut self, time: Time, network: NetworkId, subnet: &Subnet) {
        let split = first_split(subnet, self.me, self.directory.up());
        let extension = object::Extension {
            network,
            from: self.me,
            subnet: object::Subnet::whole(subnet.cidr(), subnet.gateway()),
            blocks: split.into_iter().map(|(cidr, owner)| object::Block { cidr, owner }).collect(),
        };
        self.publish(time, |_| Content::Extension(extension));
        self.addresses.follow(&self.set, time.now);
        self.reconcile(time);
    }

    pub(crate) fn remove_network(&mut self, time: Time, network: NetworkId) {
        let stamp = self.set.stamp(time.wall_ms);
        let Some(object) = self.set.get(&ObjectId::Network(network)) else { return };
        let draft = Draft { closed: true, ..object.edit(stamp) };
        self.publish_draft(time, draft);
        self.reconcile(time);
    }

    /// Leaves for good: endpoints, blocks, membership; the last words are asked for, as the agent
    /// does it.
    pub(crate) fn leave(&mut self, time: Time) {
        let endpoints: Vec<EndpointId> = self.disk.endpoints.keys().copied().collect();
        for id in endpoints {
            self.detach(time, id);
        }
        let mut words = Vec::new();
        let heir = self.directory.up().find(|node| *node != self.me);
        if let Some(heir) = heir {
            for (network, transfer) in self.addresses.give_all(heir) {
                let Response::Objects { objects } =
                    self.sign_transfers(time, network, vec![transfer])
                else {
                    continue;
                };
                words.extend(objects);
            }
        }
        let stamp = self.set.stamp(time.wall_ms);
        let member = self.set.get(&ObjectId::Member(self.me)).unwrap();
        let draft = Draft { closed: true, ..member.edit(stamp) };
        words.push(self.publish_draft(time, draft));
        let request = Request::ObjectsPush { objects: words };
        for node in self.others() {
            self.ask(time, node, &request, Waiting::Sync);
        }
    }

    /// Removes a node with the CA's key, as the issuer.
    pub(crate) fn remove_node(&mut self, time: Time, node: NodeId) {
        let removal = Removal { node, name: "n".parse().unwrap() };
        self.publish_issued(time, Content::Removed(removal));
        self.reconcile(time);
    }

    pub(super) fn publish_issued(&mut self, time: Time, content: Content) {
        let ca = Arc::clone(&self.ca);
        let draft = Draft::new(self.set.stamp(time.wall_ms), content);
        let text = draft.sign_as(self.me, ca.key(), ca.mesh()).unwrap();
        self.keep_own(time, text);
    }

    /// Takes what removed nodes own, if nobody who is left may know better.
    pub(super) fn reclaim(&mut self, time: Time) {
        let set = &self.set;
        let taken = self.addresses.reclaimable(|node| set.is_removed(node));
        if !self.issuer || taken.is_empty() {
            return;
        }
        let missing = self.roll.missing(&self.set, self.me);
        for node in missing.iter().copied() {
            self.sync_soon(time, node);
        }
        if missing.is_empty() {
            for (network, Transfer { block: cidr, from, to, epoch }) in taken {
                let content = object::Transfer { network, cidr, from, to, epoch };
                self.publish_issued(time, Content::Reclaim(content));
            }
            self.addresses.follow(&self.set, time.now);
        }
    }
}
