//! The running member: what it holds together. `rounds` keeps it in step.
//!
//! ```text
//! push, gossip, own endpoints ─> directory ─┐
//!                                           ├─ reconcile ─> peers, one snapshot per hosted network
//! push, sync, own objects ─────> objects ───┘
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ring::signature::Ed25519KeyPair;
use tracing::{info, warn};
use vxmesh_gossip::membership::{Config as GossipConfig, Gossip};
use vxmesh_proto::{
    addr::NetworkId,
    object::{self, Content, Draft, NetworkState},
    record::{Claim, NodeClaim},
    session::{Config as SessionConfig, Psk},
};
use zeroize::Zeroizing;

use super::{gateway::Node, hosting::Hosted, local::LocalNetworks, rows::Rows, world::Outlook};
use crate::{
    api::{ApiError, ErrorCode},
    config::Config,
    control::{Control, ControlConfig, JoinLimits},
    datapath::{Dataplane, backend::Grants},
    host::Host,
    identity::{self, Credentials},
    lock::lock,
    member::{
        Member,
        peers::{Ca, reachable},
    },
    netlink,
    objects::{Objects, PublishError, unix_ms},
    sandbox::keepers::Keepers,
    services::{self, NodePlace, Services},
    store::{Store, StoreError, Table},
};

/// How long another agent may take to stop; it waits for peers that are dead.
const STOPS: Duration = Duration::from_secs(10);
const LOCK_LOOK: Duration = Duration::from_millis(100);

/// A running member of a mesh.
pub(crate) struct Mesh {
    pub(super) config: Config,
    pub(super) credentials: Arc<Credentials>,
    pub(super) incarnation: u64,
    pub(crate) store: Arc<Store>,
    pub(super) rows: Rows,
    pub(crate) services: Services,
    pub(super) local_networks: LocalNetworks,
    pub(crate) host: Host,
    pub(crate) member: Member,
    /// Serialises what changes the host: plugging in and out, sandboxes, leave. Free while an
    /// endpoint waits for other nodes.
    pub(super) hosted: tokio::sync::Mutex<Hosted>,
    pub(super) keepers: Keepers,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("me", &self.member.me).finish_non_exhaustive()
    }
}

pub(super) fn failed(what: impl std::fmt::Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Failed, what.to_string(), hint)
}

/// What is there keeps it from being done.
pub(super) fn conflict(message: String, hint: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message, hint)
}

impl Mesh {
    /// Starts everything: state, data path, control, gossip, endpoints of the last life.
    pub(super) async fn start(
        config: Config,
        credentials: Credentials,
    ) -> Result<Arc<Self>, ApiError> {
        let mesh = Arc::new(Self::build(config, credentials)?);
        if let Err(error) = mesh.start_parts().await {
            mesh.stop().await;
            return Err(error);
        }
        let (id, in_mesh) = (mesh.member.me.short(), mesh.credentials.membership.mesh_id.short());
        info!(node = %mesh.config.name, %id, mesh = %in_mesh, "ready");
        Ok(mesh)
    }

    async fn start_parts(self: &Arc<Self>) -> Result<(), ApiError> {
        self.member.objects.read(|set| self.member.addresses.follow(set, Instant::now()));
        self.look_for_rollback()?;
        self.load_local_networks()?;
        self.sweep_parents().await;
        // Before anybody can ask for space: an address in use is not to be given away (I12).
        self.adopt_addresses()?;
        for info in &self.credentials.membership.peers {
            if let Some(addr) = reachable(&info.addrs, &self.member.location.own()) {
                self.member.remember_addr(info.node, addr);
            }
        }
        for (node, addr) in self.store.list::<SocketAddr>(Table::Peers).map_err(store_failed)? {
            if let Ok(node) = node.parse() {
                self.member.remember_addr(node, addr);
            }
        }
        let claims = self.first_claims()?;
        let outlook = Arc::new(Outlook { mesh: Arc::downgrade(self) });
        let control = Control::start(self.control_config(), Arc::clone(&outlook) as _)
            .map_err(|error| failed(error, "see the agent's log"))?;
        // Set once, here.
        let _first = self.member.control.set(control);
        // Not before both ports are open: a mesh that could not be made must leave no member in the
        // state.
        self.publish_member(&self.credentials.membership.certificate);
        let gossip = Gossip::start(self.gossip_config(claims)?, Arc::clone(&outlook) as _, outlook)
            .await
            .map_err(|error| failed(error, "see the agent's log"))?;
        let _first = self.member.gossip.set(gossip);
        self.repin_sandboxes().await?;
        // Who takes something away that was just taken over is heard: at which end a cable was cut
        // is seen of nothing else.
        self.hear_on();
        self.adopt().await?;
        self.reconcile().await;
        self.name_sandboxes();
        tokio::spawn(Arc::clone(self).look_on());
        tokio::spawn(services::watch(Arc::clone(self), self.member.keeper.stops()));
        tokio::spawn(services::check(Arc::clone(self), self.member.keeper.stops()));
        tokio::spawn(services::publish(Arc::clone(self), self.member.keeper.stops()));
        let task = tokio::spawn(Arc::clone(self).keep());
        self.member.keeper.started(task);
        Ok(())
    }

    fn build(config: Config, credentials: Credentials) -> Result<Self, ApiError> {
        let me = credentials.identity.node_id();
        let path = config.data_dir.join("state.redb");
        let store = Arc::new(open_store(&path).map_err(store_failed)?);
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
        let grants = probe(&config, &plane);
        let own_addrs = own_addresses(&config);
        if own_addrs.is_empty() {
            warn!("this host has no address that others can reach; give one with --advertise");
        }
        let services = Services::new(&config.run_dir, &store).map_err(store_failed)?;
        Ok(Self {
            incarnation,
            store,
            rows: Rows::default(),
            services,
            local_networks: LocalNetworks::default(),
            member: Member::new(me, objects, ca, own_addrs),
            host: Host::new(plane, grants),
            hosted: tokio::sync::Mutex::default(),
            keepers: Keepers::default(),
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
            seeds: lock(&self.member.location.known).keys().copied().collect(),
            claims,
        })
    }

    fn first_claims(&self) -> Result<Vec<Claim>, ApiError> {
        let mut claims = vec![Claim::Node(self.node_claim())];
        let endpoints = self.stored_endpoints()?;
        let told = endpoints.iter().filter(|endpoint| !self.is_local(endpoint.network));
        let told = told.map(|it| self.with_health(&Claim::Endpoint(it.claim())));
        claims.extend(told.filter_map(|ways| ways.into_iter().next()));
        let nodes = self.stored_nodes()?;
        // One without an endpoint beside it is there for clients from outside.
        let is_told = |node: &&Node| {
            !node.ips.is_empty() || endpoints.iter().all(|it| it.network != node.network)
        };
        for node in nodes.iter().filter(is_told).filter(|node| !self.is_local(node.network)) {
            claims.push(Claim::Endpoint(node.claim()?));
        }
        Ok(claims)
    }

    pub(super) fn node_claim(&self) -> NodeClaim {
        let at = |port: u16| {
            self.member.location.own().iter().map(|ip| SocketAddr::new(*ip, port)).collect()
        };
        let NodePlace { drained, zone } = self.services.place();
        NodeClaim {
            name: self.config.name.clone(),
            control: at(self.config.control_port),
            vteps: at(self.config.data_port),
            aes: identity::has_aes(),
            drained,
            zone,
            unpublished: self.services.unpublished(),
        }
    }

    /// Makes this node's certificate and name known, unless the mesh knows these.
    pub(super) fn publish_member(&self, certificate: &[u8]) {
        let name = Some(self.config.name.clone());
        let member = object::Member { certificate: certificate.to_vec(), name };
        let known = self.member.objects.read(|set| {
            let object = set.get(&object::ObjectId::Member(self.member.me))?;
            Some(matches!(object.content(), Content::Member(known) if *known == member))
        });
        if known == Some(true) {
            return;
        }
        let content = Content::Member(member);
        let id = object::ObjectId::Member(self.member.me);
        let published = self.member.objects.publish::<PublishError>(|set, hlc| {
            // A version that this node signed while its clock was ahead is to be replaced, too.
            let held = set.get(&id).filter(|held| !held.closed());
            let hlc = held.map_or(hlc, |held| held.edit(hlc).hlc);
            Ok(Draft::new(hlc, content))
        });
        match published {
            Ok(object) => self.member.push_objects([object.text().to_string()]),
            Err(error) => warn!(%error, "this node's certificate cannot be published"),
        }
    }

    /// A network with the subnets that were added to it.
    pub(super) fn network_object(&self, id: NetworkId) -> Option<(object::Network, NetworkState)> {
        if let Some(local) = self.local_networks.get(id) {
            return Some((local.network, NetworkState::Active));
        }
        self.member.objects.read(|set| {
            let (_, _, state) = set.networks().into_iter().find(|(network, ..)| *network == id)?;
            Some((set.extended(id)?, state))
        })
    }

    /// The same without a word on whether another one has its name.
    pub(crate) fn network_of(&self, id: NetworkId) -> Option<object::Network> {
        let local = self.local_networks.get(id).map(|local| local.network);
        local.or_else(|| self.member.objects.read(|set| set.extended(id)))
    }

    /// A network's name, or its number while it has none.
    pub(super) fn network_name(&self, id: NetworkId) -> String {
        self.network_of(id).map_or_else(|| id.short(), |network| network.name.to_string())
    }

    /// Stops everything and leaves the host's interfaces as they are: the next start adopts them.
    pub(super) async fn stop(&self) {
        self.member.keeper.stop().await;
        if let Some(control) = self.member.control.get() {
            control.stop().await;
        }
    }

    /// The right to change the host; refused once this node has left or stops.
    pub(super) async fn lock_host(&self) -> Result<tokio::sync::MutexGuard<'_, Hosted>, ApiError> {
        let hosted = self.hosted.lock().await;
        if self.is_stopping() {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "the agent stops, or this node has left the mesh",
                "see `vxmesh status`",
            ));
        }
        Ok(hosted)
    }

    /// Where things of this boot live.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.config.run_dir.clone()
    }

    /// Whether this node has left or stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.member.keeper.is_stopping()
    }
}

pub(super) fn store_failed(error: impl std::fmt::Display) -> ApiError {
    failed(error, "see the agent's log")
}

/// Opens the state; an agent that is stopping may have it for some seconds yet.
fn open_store(path: &std::path::Path) -> Result<Store, StoreError> {
    let end = Instant::now() + STOPS;
    loop {
        match Store::open(path) {
            Err(StoreError::Locked(_)) if Instant::now() < end => std::thread::sleep(LOCK_LOOK),
            opened => return opened,
        }
    }
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

/// The addresses that others reach this host at: the configured ones, else the first of each IP
/// version.
pub(super) fn own_addresses(config: &Config) -> Vec<IpAddr> {
    if config.advertise.is_empty() { netlink::host_addresses() } else { config.advertise.clone() }
}

/// What the TAPs of this host can do; a host without is noticed when the first network comes.
fn probe(config: &Config, plane: &Dataplane) -> Option<Grants> {
    match config.tap.probe() {
        Ok(mut grants) => {
            grants.offloads.extend(plane.underlay_offloads());
            let backend = grants.backend.as_str();
            info!(backend, offloads = grants.offloads.join(" "), "data path");
            Some(grants)
        }
        Err(error) => {
            warn!(%error, "no TAP can be made; networks cannot be hosted here");
            None
        }
    }
}
