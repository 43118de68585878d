//! The running member: what it holds together, and its single writer of tables.
//!
//! ```text
//! push, gossip, own endpoints ─> directory ─┐
//!                                           ├─ reconcile ─> peers, one snapshot per hosted network
//! push, sync, own objects ─────> objects ───┘
//! ```
//!
//! [`Mesh::reconcile`] is state-based: it looks at what is known and brings peers and tables in step. A lost or doubled event
//! costs a round, never the truth.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ring::signature::Ed25519KeyPair;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tracing::{info, warn};
use vxmesh_gossip::{
    directory::MeshEvent,
    membership::{Config as GossipConfig, Gossip},
};
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    control::{MemberInfo, Push},
    object::{self, Content, Draft, NetworkState},
    record::{Claim, EndpointClaim, Key, NodeClaim, SignedRecord},
    session::{Config as SessionConfig, Psk},
    tables::{Gateway, NetworkSpec, NetworkTable, Place, Row, RowKey, TableUpdate},
};
use zeroize::Zeroizing;

use super::{
    addresses::{Addresses, Elsewhere},
    endpoints::Hosted,
    peers::{Ca, Peers, left_members, members, reachable},
    world::Outlook,
};
use crate::{
    api::{ApiError, ErrorCode},
    config::Config,
    control::{Control, ControlConfig, JoinLimits},
    datapath::Dataplane,
    identity::{self, Credentials},
    netlink,
    objects::{Objects, PublishError, unix_ms},
    reconcile::admit::{Change, Claims, changes, foreign_address},
    store::{Store, Table},
};

/// Reconciliation runs at least this often, so that nothing that was missed stays missed.
const TICK: Duration = Duration::from_secs(1);

/// A network that has a TAP here.
pub(super) struct Local {
    pub(super) table: Arc<crate::datapath::port::Table>,
    pub(super) claims: Claims,
}

/// A running member of a mesh.
pub(super) struct Mesh {
    pub(super) config: Config,
    pub(super) credentials: Arc<Credentials>,
    pub(super) me: NodeId,
    pub(super) incarnation: u64,
    pub(super) store: Arc<Store>,
    pub(super) objects: Arc<Objects>,
    pub(super) ca: Arc<Ca>,
    pub(super) plane: Dataplane,
    pub(super) peers: Peers,
    pub(super) addresses: Addresses,
    pub(super) own_addrs: Vec<IpAddr>,
    pub(super) control: OnceLock<Control>,
    pub(super) gossip: OnceLock<Gossip>,
    /// Where nodes were reached before their own claims were known.
    addrs: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// Networks with a TAP here. Written by [`Self::reconcile`] and by attaching and detaching.
    pub(super) locals: Mutex<BTreeMap<NetworkId, Local>>,
    /// Serialises what changes the host: attach, detach, sandboxes, leave.
    pub(super) host: tokio::sync::Mutex<Hosted>,
    /// Serialises reconciliation, which has two callers.
    reconciling: tokio::sync::Mutex<()>,
    kick: Notify,
    pub(super) prefetching: AtomicBool,
    pub(super) syncing: Mutex<BTreeMap<NodeId, Instant>>,
    seed: u64,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("me", &self.me).finish_non_exhaustive()
    }
}

pub(super) fn failed(what: impl std::fmt::Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Failed, what.to_string(), hint)
}

impl Mesh {
    /// Starts everything: state, data path, control, gossip, endpoints of the last life.
    pub(super) async fn start(
        config: Config,
        credentials: Credentials,
    ) -> Result<Arc<Self>, ApiError> {
        let mesh = Arc::new(Self::build(config, credentials)?);
        mesh.publish_member(&mesh.credentials.membership.certificate);
        mesh.objects.read(|set| mesh.addresses.follow(set));
        for info in &mesh.credentials.membership.peers {
            if let Some(addr) = reachable(&info.addrs, &mesh.own_addrs) {
                mesh.remember_addr(info.node, addr);
            }
        }
        for (node, addr) in mesh.store.list::<SocketAddr>(Table::Peers).map_err(store_failed)? {
            if let Ok(node) = node.parse() {
                mesh.remember_addr(node, addr);
            }
        }
        let claims = mesh.first_claims()?;
        let outlook = Arc::new(Outlook { mesh: Arc::downgrade(&mesh) });
        let control = Control::start(mesh.control_config(), Arc::clone(&outlook) as _)
            .map_err(|error| failed(error, "see the agent's log"))?;
        // Set once, here.
        let _first = mesh.control.set(control);
        let gossip = Gossip::start(mesh.gossip_config(claims)?, Arc::clone(&outlook) as _, outlook)
            .await
            .map_err(|error| failed(error, "see the agent's log"))?;
        let _first = mesh.gossip.set(gossip);
        mesh.adopt().await?;
        mesh.reconcile().await;
        mesh.wake_peers().await;
        let task = tokio::spawn(Arc::clone(&mesh).keep());
        *lock(&mesh.task) = Some(task);
        info!(node = %mesh.me, mesh = %mesh.credentials.membership.mesh_id, "ready");
        Ok(mesh)
    }

    fn build(config: Config, credentials: Credentials) -> Result<Self, ApiError> {
        let me = credentials.identity.node_id();
        let path = config.data_dir.join("state.redb");
        let store = Arc::new(Store::open(&path).map_err(store_failed)?);
        let incarnation = store.next_incarnation(unix_ms()).map_err(store_failed)?;
        let ca = Arc::new(Ca(credentials.membership.ca.clone()));
        let objects = Objects::load(
            credentials.membership.mesh_id,
            key_pair(&credentials)?,
            Arc::clone(&ca) as _,
            Arc::clone(&store),
        )
        .map_err(store_failed)?;
        let plane = Dataplane::start(config.data_port, session_config(&credentials)?)
            .map_err(|error| failed(error, "see the agent's log"))?;
        let own_addrs = own_addresses(&config);
        if own_addrs.is_empty() {
            warn!("this host has no address that others can reach; give one with --advertise");
        }
        Ok(Self {
            me,
            incarnation,
            store,
            objects: Arc::new(objects),
            ca,
            plane,
            peers: Peers::default(),
            addresses: Addresses::new(me),
            own_addrs,
            control: OnceLock::new(),
            gossip: OnceLock::new(),
            addrs: Mutex::default(),
            locals: Mutex::default(),
            host: tokio::sync::Mutex::default(),
            reconciling: tokio::sync::Mutex::default(),
            kick: Notify::new(),
            prefetching: AtomicBool::new(false),
            syncing: Mutex::default(),
            seed: rand::random(),
            stop: watch::Sender::new(false),
            task: Mutex::default(),
            config,
            credentials: Arc::new(credentials),
        })
    }

    fn control_config(&self) -> ControlConfig {
        ControlConfig {
            credentials: Arc::clone(&self.credentials),
            data_dir: self.config.data_dir.clone(),
            store: Arc::clone(&self.store),
            bind: (std::net::Ipv6Addr::UNSPECIFIED, self.config.control_port).into(),
            advertise: self.config.advertise.first().copied(),
            join_limits: JoinLimits::default(),
        }
    }

    fn gossip_config(&self, claims: Vec<Claim>) -> Result<GossipConfig, ApiError> {
        Ok(GossipConfig {
            mesh: self.credentials.membership.mesh_id,
            pair: key_pair(&self.credentials)?,
            incarnation: self.incarnation,
            interval: self.config.gossip_interval,
            seeds: lock(&self.addrs).keys().copied().collect(),
            claims,
        })
    }

    fn first_claims(&self) -> Result<Vec<Claim>, ApiError> {
        let mut claims = vec![Claim::Node(self.node_claim())];
        claims.extend(
            self.stored_endpoints()?.iter().map(|endpoint| Claim::Endpoint(endpoint.claim())),
        );
        Ok(claims)
    }

    fn node_claim(&self) -> NodeClaim {
        let at = |port: u16| self.own_addrs.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        NodeClaim {
            name: self.config.name.clone(),
            control: at(self.config.control_port),
            vteps: at(self.config.data_port),
            aes: identity::has_aes(),
        }
    }

    /// Makes this node's certificate known, unless the mesh knows this one.
    pub(super) fn publish_member(&self, certificate: &[u8]) {
        let known = self.objects.read(|set| {
            set.get(&object::ObjectId::Member(self.me)).is_some_and(
                |object| matches!(object.content(), Content::Member(member) if member.certificate == certificate),
            )
        });
        if known {
            return;
        }
        let content = Content::Member(object::Member { certificate: certificate.to_vec() });
        match self.objects.publish::<PublishError>(|_set, hlc| Ok(Draft::new(hlc, content))) {
            Ok(object) => self.push_objects([object.text().to_string()]),
            Err(error) => warn!(%error, "this node's certificate cannot be published"),
        }
    }

    /// The loop that keeps tables in step until the agent stops.
    async fn keep(self: Arc<Self>) {
        let mut objects = self.objects.changes();
        let mut stop = self.stop.subscribe();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let Some(gossip) = self.gossip.get() else { return };
        loop {
            tokio::select! {
                () = gossip.changed() => {}
                changed = objects.changed() => if changed.is_err() { return },
                () = self.kick.notified() => {}
                _ = tick.tick() => self.prefetch(),
                _ = stop.changed() => return,
            }
            self.reconcile().await;
        }
    }

    /// Has the keeper look at everything soon.
    pub(super) fn kick(&self) {
        self.kick.notify_one();
    }

    /// Brings peers and tables in step with what is known.
    pub(super) async fn reconcile(self: &Arc<Self>) {
        let _one_at_a_time = self.reconciling.lock().await;
        let Some(gossip) = self.gossip.get() else { return };
        let hash = self.objects.read(object::ObjectSet::content_hash);
        gossip.set_objects_hash(&hash);
        for event in gossip.poll_events() {
            if let MeshEvent::Objects { node, hash: theirs } = event
                && *theirs != *hash
            {
                self.sync_soon(node);
            }
        }
        self.objects.read(|set| self.addresses.follow(set));
        self.follow_peers(gossip).await;
        self.follow_tables(gossip);
    }

    async fn follow_peers(&self, gossip: &Gossip) {
        let members = self.objects.read(|set| members(set, &self.ca, self.me));
        let claims: BTreeMap<NodeId, NodeClaim> = gossip.with_directory(|directory| {
            let claim = |node: &NodeId| match directory.get(*node, Key::Node)?.record.claim() {
                Claim::Node(claim) => Some((*node, claim.clone())),
                Claim::Endpoint(_) | Claim::Gone => None,
            };
            members.keys().filter_map(claim).collect()
        });
        self.peers.follow(&self.plane, &members, &claims, &self.own_addrs).await;
        let mut addrs = lock(&self.addrs);
        for (node, claim) in &claims {
            if let Some(addr) = reachable(&claim.control, &self.own_addrs)
                && addrs.insert(*node, addr) != Some(addr)
                && let Err(error) = self.store.put(Table::Peers, node.as_str(), &addr)
            {
                warn!(%error, "a peer's address is not kept");
            }
        }
        // Also nodes whose certificate is not known yet: meeting them is how it becomes known.
        let left = self.objects.read(left_members);
        addrs.retain(|node, _addr| !left.contains(node));
        let wanted: Vec<_> = addrs.iter().map(|(node, addr)| (*node, *addr)).collect();
        drop(addrs);
        if let Some(control) = self.control.get() {
            control.set_peers(wanted);
        }
    }

    fn follow_tables(&self, gossip: &Gossip) {
        let active = self.objects.read(object::ObjectSet::active_networks);
        for (id, local) in lock(&self.locals).iter_mut() {
            let claims =
                if active.contains(id) { self.believed(gossip, *id) } else { Claims::new() };
            let updates = self.updates(local, &claims);
            if !updates.is_empty() {
                local.table = Arc::new(local.table.apply(updates));
                self.plane.publish(Arc::clone(&local.table));
            }
            local.claims = claims;
        }
    }

    /// The claims to a network that are believed: their owner is up and holds the addresses.
    pub(super) fn believed(&self, gossip: &Gossip, network: NetworkId) -> Claims {
        let claims: Vec<(NodeId, EndpointClaim)> = gossip.with_directory(|directory| {
            let of_network = directory.records().filter_map(|entry| match entry.record.claim() {
                Claim::Endpoint(claim) if claim.network == network => {
                    Some((entry.record.owner(), claim.clone()))
                }
                Claim::Endpoint(_) | Claim::Node(_) | Claim::Gone => None,
            });
            of_network.filter(|(owner, _)| directory.is_up(*owner)).collect()
        });
        let holds = |node, ip| self.addresses.holds(network, node, ip);
        claims
            .into_iter()
            .filter(|(owner, claim)| match foreign_address(*owner, claim, holds) {
                Some(ip) => {
                    warn!(%owner, endpoint = %claim.id, %ip, "claim refused: its owner does not hold the address");
                    false
                }
                None => true,
            })
            .map(|(node, claim)| (RowKey { node, endpoint: claim.id }, claim))
            .collect()
    }

    fn updates(
        &self,
        local: &Local,
        claims: &Claims,
    ) -> Vec<TableUpdate<Arc<vxmesh_proto::session::Peer>>> {
        let mut updates = Vec::new();
        for change in changes(&local.claims, claims) {
            match change {
                Change::Down(key) => updates.push(TableUpdate::Remove(key)),
                Change::Up(key, claim) => {
                    let place = if key.node == self.me {
                        Some(Place::Local)
                    } else {
                        self.peers.get(key.node).map(Place::Remote)
                    };
                    let Some(place) = place else { continue };
                    let (mac, ips, rank) = (claim.mac, claim.ips, claim.incarnation);
                    updates.push(TableUpdate::Put(Row { key, mac, ips, rank, place }));
                }
            }
        }
        let wanted: BTreeMap<NodeId, _> = claims
            .keys()
            .filter(|key| key.node != self.me)
            .filter_map(|key| Some((key.node, self.peers.get(key.node)?)))
            .collect();
        for (node, _peer) in local.table.members() {
            if !wanted.contains_key(node) {
                updates.push(TableUpdate::RemoveMember(*node));
            }
        }
        for (node, peer) in wanted {
            if !local.table.is_member(&node) {
                updates.push(TableUpdate::PutMember(node, peer));
            }
        }
        updates
    }

    /// The first snapshot of a network: nobody in it.
    pub(super) fn empty_table(
        &self,
        id: NetworkId,
        network: &object::Network,
    ) -> crate::datapath::port::Table {
        let spec = NetworkSpec {
            id,
            vni: network.vni,
            mtu: network.mtu,
            gateway: Gateway {
                mac: gateway_mac(id),
                ips: network.subnets.iter().map(|subnet| subnet.gateway).collect(),
            },
            subnets: network.subnets.iter().map(|subnet| subnet.cidr).collect(),
        };
        NetworkTable::new(spec, self.seed, Instant::now())
    }

    /// Handshakes with everybody who shares a network: they may still seal for this node's last life.
    async fn wake_peers(&self) {
        let nodes: Vec<NodeId> = lock(&self.locals)
            .values()
            .flat_map(|local| local.table.members().iter().map(|(node, _)| *node))
            .collect();
        for node in nodes {
            self.plane.want(node).await;
        }
    }

    /// Addresses that other nodes claim in a network, whether they are up or not.
    pub(super) fn elsewhere(&self, network: NetworkId) -> Elsewhere {
        let Some(gossip) = self.gossip.get() else { return Elsewhere::new() };
        gossip.with_directory(|directory| {
            let claims = directory.records().filter(|entry| entry.record.owner() != self.me);
            let ips = claims.filter_map(|entry| match entry.record.claim() {
                Claim::Endpoint(claim) if claim.network == network => Some(claim.ips.clone()),
                Claim::Endpoint(_) | Claim::Node(_) | Claim::Gone => None,
            });
            ips.flatten().collect()
        })
    }

    /// The network that a reference means, as an object.
    pub(super) fn network_object(&self, id: NetworkId) -> Option<(object::Network, NetworkState)> {
        self.objects.read(|set| {
            let (_, object, state) =
                set.networks().into_iter().find(|(network, ..)| *network == id)?;
            match object.content() {
                Content::Network(network) => Some((network.clone(), state)),
                Content::Member(_) | Content::Transfer(_) | Content::Other => None,
            }
        })
    }

    /// Keeps where a node was reached, until its own claim says better.
    pub(super) fn remember_addr(&self, node: NodeId, addr: SocketAddr) {
        if node != self.me {
            lock(&self.addrs).entry(node).or_insert(addr);
            self.kick();
        }
    }

    /// What a newcomer is told of the others.
    pub(super) fn member_infos(&self) -> Vec<MemberInfo> {
        let addrs = lock(&self.addrs);
        let info = |(node, addr): (&NodeId, &SocketAddr)| MemberInfo {
            node: *node,
            certificate: Default::default(),
            addrs: vec![*addr],
        };
        addrs.iter().map(info).collect()
    }

    /// Sends records of this node to everybody who is connected.
    pub(super) fn push_records(&self, records: &[SignedRecord]) {
        let records =
            records.iter().map(|r| (r.owner, r.key.to_string(), r.text.to_string())).collect();
        self.push(&Push { records, objects: Vec::new() });
    }

    /// Sends objects to everybody who is connected.
    pub(super) fn push_objects(&self, objects: impl IntoIterator<Item = String>) {
        self.push(&Push { records: Vec::new(), objects: objects.into_iter().collect() });
    }

    fn push(&self, push: &Push) {
        let Some(control) = self.control.get() else { return };
        for peer in control.peers().into_iter().filter(|peer| peer.connected) {
            if let Err(error) = control.push(peer.node, push) {
                warn!(node = %peer.node, %error, "push not sent; gossip will bring it");
            }
        }
    }

    /// Stops everything and leaves the host's interfaces as they are: the next start adopts them.
    pub(super) async fn stop(&self) {
        self.stop.send_replace(true);
        let task = lock(&self.task).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            warn!(%error, "the reconcile task failed");
        }
        if let Some(control) = self.control.get() {
            control.stop().await;
        }
    }

    /// Where things of this boot live.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.config.run_dir.clone()
    }

    pub(super) fn is_prefetching(&self) -> bool {
        self.prefetching.load(Ordering::Acquire)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn store_failed(error: impl std::fmt::Display) -> ApiError {
    failed(error, "see the agent's log")
}

/// The anycast gateway's MAC: the same on every host, and no endpoint's, whose MACs have another second byte at random.
pub(super) fn gateway_mac(network: NetworkId) -> vxmesh_proto::addr::MacAddr {
    let [a, b, c, d, ..] = *network.bytes();
    vxmesh_proto::addr::MacAddr([0x02, 0xfe, a, b, c, d])
}

fn key_pair(credentials: &Credentials) -> Result<Arc<Ed25519KeyPair>, ApiError> {
    Ed25519KeyPair::from_pkcs8(credentials.identity.pkcs8())
        .map(Arc::new)
        .map_err(|error| failed(error, "restore the identity directory"))
}

fn session_config(credentials: &Credentials) -> Result<SessionConfig, ApiError> {
    let psk = &credentials.membership.psk;
    let certified =
        Ca(credentials.membership.ca.clone()).member(&credentials.membership.certificate);
    Ok(SessionConfig {
        static_private: Zeroizing::new(*credentials.identity.noise_private()),
        aes: certified.is_some_and(|member| member.aes),
        mesh: credentials.membership.mesh_id,
        psk: Psk { epoch: psk.epoch, key: *psk.key() },
        previous_psk: None,
        boot_id: identity::random().map_err(|error| failed(error, "see the agent's log"))?,
        wall_at_start: Duration::from_millis(unix_ms()),
        key_limits: None,
    })
}

/// The addresses that others reach this host at: the configured ones, else the first of each IP version.
fn own_addresses(config: &Config) -> Vec<IpAddr> {
    if config.advertise.is_empty() { netlink::host_addresses() } else { config.advertise.clone() }
}
