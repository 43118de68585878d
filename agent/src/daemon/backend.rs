//! The agent as its admin API sees it: with or without a mesh.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::{Mutex, RwLock};
use tracing::{info, warn};
use vxmesh_proto::object::{self, Content, Draft};

use super::doctor;
use super::hosting::Hosted;
use super::mesh::{Mesh, failed, store_failed};
use super::rollback;
use crate::{
    admin::{Backend, resolve},
    api::{
        Address, AddressPool, ApiError, AttachSpec, Attachment, AttachmentKey, AttachmentSpec,
        AttachmentsKept, Connection, Diagnosis, DnsQuery, DnsRecord, DropRow, Endpoint,
        EndpointSpec, ErrorCode, ExtendSpec, FlowQuery, Flows, HealthWord, InitSpec, JoinSpec,
        LeaveSpec, Location, MapDiffRow, MapRow, Membership, Network, NetworkPools, NetworkSpec,
        NetworkUpdate, Node, NodeSpec, Peer, Sandbox, SandboxEnded, SandboxSpec, SandboxStarted,
        Service, ServiceSpec, ServiceUpdate, Status, Token, TokenCreated, TokenSpec,
    },
    config::Config,
    control::join::{JoinOptions, join},
    docker,
    identity::{
        self, Credentials,
        backup::{Backup, note_left},
        token::{self, StoredToken, TokenError, TokenParseError},
        unix_now,
    },
    services::Services,
    store::Table,
};

/// How long `leave` waits for calls that began before it.
const RELEASE: Duration = Duration::from_secs(10);
/// How often it looks.
const RELEASE_LOOK: Duration = Duration::from_millis(5);
/// How long a token that `agent --init --token-file` writes is good for.
const FILE_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// The agent.
pub(super) struct Agent {
    config: Config,
    started: Instant,
    mesh: RwLock<Option<Arc<Mesh>>>,
    /// Held while the membership changes.
    membership: Mutex<()>,
}

impl Agent {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            started: Instant::now(),
            mesh: RwLock::default(),
            membership: Mutex::default(),
        }
    }

    pub(super) async fn mesh(&self) -> Result<Arc<Mesh>, ApiError> {
        self.mesh.read().await.clone().ok_or_else(|| {
            ApiError::new(
                ErrorCode::Conflict,
                "this node belongs to no mesh",
                "run `vxmesh init` to make one, or `vxmesh join` with a token",
            )
        })
    }

    /// Starts the mesh with these credentials.
    /// The mesh, with this network if others are about to tell of it.
    async fn mesh_with(&self, network: &str) -> Result<Arc<Mesh>, ApiError> {
        let mesh = self.mesh().await?;
        // If there is none, whoever needs it says so.
        drop(mesh.once_known(|| mesh.find_network(network)).await);
        Ok(mesh)
    }

    /// The same with a service.
    async fn mesh_serving(&self, service: &str) -> Result<Arc<Mesh>, ApiError> {
        let mesh = self.mesh().await?;
        drop(mesh.once_known(|| Ok(mesh.services.find(&mesh, service)?)).await);
        Ok(mesh)
    }

    /// The same with a node.
    async fn mesh_among(&self, node: &str) -> Result<Arc<Mesh>, ApiError> {
        let mesh = self.mesh().await?;
        drop(mesh.once_known(|| resolve::one(&mesh.node_list(), node).cloned()).await);
        Ok(mesh)
    }

    pub(super) async fn become_member(&self, credentials: Credentials) -> Result<(), ApiError> {
        let mesh = Mesh::start(self.config.clone(), credentials).await?;
        if let Err(error) = mesh.collect_sandboxes().await.and_then(|()| mesh.watch_keepers()) {
            mesh.stop().await;
            return Err(error);
        }
        *self.mesh.write().await = Some(mesh);
        Ok(())
    }

    /// Makes a mesh with this node as its first member.
    pub(super) async fn make_mesh(&self) -> Result<(), ApiError> {
        let _one_at_a_time = self.membership.lock().await;
        let data_dir = self.config.data_dir.clone();
        let made =
            blocking(move || Credentials::init(&data_dir, unix_now()).map_err(ApiError::from))
                .await?;
        let started = self.become_member(made).await;
        if started.is_err() {
            // Nobody else knows of the mesh: nothing is lost with it.
            rollback::forget(&self.config.run_dir);
            identity::forget(&self.config.data_dir).map_err(ApiError::from)?;
        }
        started
    }

    /// What the user should know comes back.
    async fn join_mesh(&self, text: &str, servers: &[String]) -> Result<Vec<String>, ApiError> {
        let _one_at_a_time = self.membership.lock().await;
        let options = JoinOptions {
            token: text.trim().parse().map_err(|why: TokenParseError| ApiError::from(why))?,
            servers: servers.to_vec(),
            name: self.config.name.clone(),
            control_port: self.config.control_port,
            advertise: self.config.advertise.first().copied(),
        };
        let joined = join(&self.config.data_dir, &options).await.map_err(ApiError::from)?;
        self.become_member(joined.credentials).await.map_err(|error| ApiError {
            hint: "this node is a member; mend this and restart the agent".to_owned(),
            ..error
        })?;
        for warning in &joined.warnings {
            info!("{warning}");
        }
        Ok(joined.warnings)
    }

    pub(super) async fn join_from_file(
        &self,
        servers: &[String],
        file: &Path,
    ) -> Result<(), ApiError> {
        let text = fs::read_to_string(file).map_err(|error| {
            ApiError::new(
                ErrorCode::Failed,
                format!("cannot read the token from {}: {error}", file.display()),
                "put a token there",
            )
        })?;
        self.join_mesh(&text, servers).await.map(drop)
    }

    /// Leaves a join token in a file that only root reads.
    pub(super) fn write_token(self: &Arc<Self>, file: &Path) -> Result<(), ApiError> {
        let agent = Arc::clone(self);
        let token = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                agent.token_create(TokenSpec { ttl_s: FILE_TOKEN_TTL.as_secs(), uses: None }).await
            })
        })?;
        identity::write_private(file, token.token.as_bytes()).map_err(|error| {
            failed(
                format!("cannot write the token to {}: {error}", file.display()),
                "name another file",
            )
        })
    }

    pub(super) async fn stop(&self) {
        let mesh = self.mesh.write().await.take();
        if let Some(mesh) = mesh {
            mesh.stop().await;
        }
    }

    async fn membership(&self) -> Result<Membership, ApiError> {
        let mesh = self.mesh().await?;
        let mesh_id = mesh.credentials.membership.mesh_id;
        Ok(Membership { mesh_id, node_id: mesh.member.me, warnings: Vec::new() })
    }
}

/// Lets a mesh go that was left, and waits until nobody uses it or its state any more: its ports
/// and its state file are free then.
async fn release(mesh: Arc<Mesh>) {
    let state = Arc::downgrade(&mesh.store);
    let mesh_idle = || Arc::strong_count(&mesh) == 1;
    if !within_release(mesh_idle).await {
        warn!("the mesh that was left is still in use; its ports will be free a little later");
    }
    // Its threads are joined, which is not for the runtime's.
    if let Err(error) = tokio::task::spawn_blocking(move || drop(mesh)).await {
        warn!(%error, "the mesh that was left did not end well");
    }
    if !within_release(|| state.strong_count() == 0).await {
        warn!("the state of the mesh that was left is still in use; try again a little later");
    }
}

async fn within_release(done: impl Fn() -> bool) -> bool {
    let waited = async {
        while !done() {
            tokio::time::sleep(RELEASE_LOOK).await;
        }
    };
    tokio::time::timeout(RELEASE, waited).await.is_ok()
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(failed(error, "see the agent's log")))
}

impl Mesh {
    /// Leaves the mesh for good: nothing of it stays on this host, and other nodes get this one's
    /// addresses. What the user should know comes back.
    async fn leave(self: &Arc<Self>, spec: LeaveSpec) -> Result<Vec<String>, ApiError> {
        let ended = self.check_leave(spec)?;
        let _going = if spec.force { None } else { self.find_successor().await? };
        let endpoints = self.stored_endpoints()?;
        self.take_names_if_possible(&endpoints).await;
        let mut hosted = self.hosted.lock().await;
        let cleared = self.clear_host(&mut hosted).await;
        let settled = self.settle_names(&endpoints).await;
        cleared.and(settled)?;
        self.await_first_meeting().await;
        let departed = self.member.departed().is_some();
        let last_words = self.last_words()?;
        // Not before it is certain: whoever stays a member has published ports.
        self.give_up_ports(&mut hosted).await?;
        self.release_parents().await;
        // Asked for, so that all of it is known before the connection closes: no copy stays here.
        let heard = self.say_goodbye(&last_words).await;
        // Who is no member any more has nothing to say that others do not know.
        let mut warnings = if departed { Vec::new() } else { self.unheard(heard) };
        warnings.extend(ended.map(|ended| format!("{ended} of this node were ended")));
        self.stop().await;
        for table in Table::ALL {
            for (key, _value) in
                self.store.list::<serde_json::Value>(table).map_err(store_failed)?
            {
                // The incarnation outlives the membership: it must never repeat.
                if table != Table::Meta {
                    self.store.delete(table, &key).map_err(store_failed)?;
                }
            }
        }
        note_left(&self.store, self.member.me).map_err(store_failed)?;
        rollback::forget(&self.config.run_dir);
        self.services.forget();
        Services::forget_place(&self.store).map_err(store_failed)?;
        Services::forget_health(&self.store).map_err(store_failed)?;
        identity::forget(&self.config.data_dir).map_err(ApiError::from)?;
        Ok(warnings)
    }

    async fn clear_host(self: &Arc<Self>, hosted: &mut Hosted) -> Result<(), ApiError> {
        self.clear_sandboxes(hosted).await?;
        self.detach_all(hosted).await
    }

    /// Hands all addresses over and signs that this node has left. If that fails, it is a member as
    /// before, and ports of services lead on.
    fn last_words(&self) -> Result<Vec<String>, ApiError> {
        let (mut last_words, mut kept) = (Vec::new(), Vec::new());
        let departed = self.member.departed().is_some();
        self.member.allocation.set_leaving(true);
        // Who is no member has nothing to hand over any more, and nobody would take it.
        let heirs = if departed { Vec::new() } else { self.member.live_nodes() };
        if let Some(heir) = heirs.into_iter().find(|node| *node != self.member.me) {
            for (network, transfer) in self.member.addresses.give_all(heir) {
                match self.sign_transfer(network, transfer) {
                    Ok(text) => last_words.push(text),
                    Err(refusal) => {
                        let name = self.network_name(network);
                        warn!(network = %name, reason = refusal.message, "addresses are not handed over");
                        kept.push((network, transfer));
                    }
                }
            }
        }
        let left = self.sign_departure().inspect_err(|_| {
            self.member.addresses.take_back(&kept);
            self.member.allocation.set_leaving(false);
        })?;
        last_words.push(left);
        Ok(last_words)
    }

    fn sign_departure(&self) -> Result<String, ApiError> {
        let id = object::ObjectId::Member(self.member.me);
        let left = self.member.objects.publish::<ApiError>(|set, hlc| match set.get(&id) {
            Some(member) => Ok(Draft { closed: true, ..member.edit(hlc) }),
            None => {
                let certificate = self.credentials.membership.certificate.clone();
                let member = object::Member { certificate, name: Some(self.config.name.clone()) };
                Ok(Draft { closed: true, ..Draft::new(hlc, Content::Member(member)) })
            }
        })?;
        Ok(left.text().to_string())
    }
}

fn token_failed(error: TokenError) -> ApiError {
    let code = match error {
        TokenError::Ttl | TokenError::Uses => ErrorCode::Usage,
        TokenError::Full => ErrorCode::Conflict,
        TokenError::Random(_) | TokenError::Store(_) => ErrorCode::Failed,
    };
    ApiError::new(code, error.to_string(), "see `vxmesh token create --help`")
}

fn token_row(token: &StoredToken) -> Token {
    Token {
        id: token.id.clone(),
        created_at: token.created_at,
        expires_at: token.expires_at,
        uses_left: token.uses_left,
        state: token.state(unix_now()).to_owned(),
    }
}

#[async_trait]
impl Backend for Agent {
    async fn status(&self) -> Result<Status, ApiError> {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: "uninitialised".to_owned(),
            mesh_id: None,
            node_id: None,
            name: self.config.name.clone(),
            control_addr: None,
            vtep: None,
            uptime_s: self.started.elapsed().as_secs(),
            nodes: 0,
            nodes_alive: 0,
            networks: 0,
            endpoints: 0,
            issuer: false,
            conflicts: 0,
            certificate_left_s: None,
            issuers: Vec::new(),
            datapath: None,
        };
        if let Some(mesh) = self.mesh.read().await.as_ref() {
            mesh.fill_status(&mut status);
        }
        Ok(status)
    }

    async fn init(&self, _spec: InitSpec) -> Result<Membership, ApiError> {
        self.make_mesh().await?;
        self.membership().await
    }

    async fn join(&self, spec: JoinSpec) -> Result<Membership, ApiError> {
        let warnings = match &spec.token {
            Some(token) => self.join_mesh(token, &spec.servers).await?,
            None => {
                self.mesh().await?.meet(&spec.servers).await?;
                Vec::new()
            }
        };
        Ok(Membership { warnings, ..self.membership().await? })
    }

    async fn leave(&self, spec: LeaveSpec) -> Result<Membership, ApiError> {
        let _one_at_a_time = self.membership.lock().await;
        let mut membership = self.membership().await?;
        membership.warnings = self.mesh().await?.leave(spec).await?;
        let left = self.mesh.write().await.take();
        if let Some(mesh) = left {
            release(mesh).await;
        }
        Ok(membership)
    }

    async fn backup(&self) -> Result<Backup, ApiError> {
        let mesh = self.mesh().await?;
        blocking(move || Backup::take(&mesh.config.data_dir, &mesh.store).map_err(ApiError::from))
            .await
    }

    async fn token_create(&self, spec: TokenSpec) -> Result<TokenCreated, ApiError> {
        let mesh = self.mesh().await?;
        mesh.check_member()?;
        mesh.check_issuer()?;
        blocking(move || {
            let ca = &mesh.credentials.membership.ca;
            let made = token::create(&mesh.store, ca, unix_now(), spec.ttl_s, spec.uses);
            let (token, stored) = made.map_err(token_failed)?;
            info!(token = %stored.id, ttl_s = spec.ttl_s, uses = ?spec.uses, "a join token was made");
            let StoredToken { id, expires_at, .. } = stored;
            Ok(TokenCreated {
                id,
                token: token.reveal(),
                expires_at,
                servers: mesh.servers(),
                issuers: mesh.issuer_rows(&mesh.issuers()),
                member_until: mesh.certificate_end(),
            })
        })
        .await
    }

    async fn tokens(&self) -> Result<Vec<Token>, ApiError> {
        let tokens = token::list(&self.mesh().await?.store).map_err(store_failed)?;
        Ok(tokens.iter().map(token_row).collect())
    }

    async fn token_revoke(&self, reference: &str) -> Result<Token, ApiError> {
        let row = resolve::one(&self.tokens().await?, reference).cloned()?;
        let mesh = self.mesh().await?;
        blocking(move || {
            token::revoke(&mesh.store, &row.id).map_err(store_failed)?;
            info!(token = %row.id, "a join token was revoked");
            Ok(row)
        })
        .await
    }

    async fn nodes(&self) -> Result<Vec<Node>, ApiError> {
        Ok(self.mesh().await?.node_list())
    }

    async fn node_rm(&self, reference: &str, force: bool) -> Result<Node, ApiError> {
        self.mesh_among(reference).await?.remove_node(reference, force).await
    }

    async fn node_update(&self, reference: &str, spec: NodeSpec) -> Result<Node, ApiError> {
        let mesh = self.mesh_among(reference).await?;
        if let Some(issuer) = spec.issuer {
            mesh.set_issuer(reference, issuer).await?;
        }
        if spec.drain.is_some() || spec.zone.is_some() {
            mesh.services.update_node(&mesh, reference, (spec.drain, spec.zone)).await?;
        }
        self.node(reference).await
    }

    async fn peers(&self) -> Result<Vec<Peer>, ApiError> {
        Ok(self.mesh().await?.peer_rows())
    }

    async fn networks(&self) -> Result<Vec<Network>, ApiError> {
        Ok(self.mesh().await?.network_list())
    }

    async fn network(&self, reference: &str) -> Result<Network, ApiError> {
        let mesh = self.mesh().await?;
        let network = mesh.with_plain(mesh.inspect_network(reference)?);
        let way = mesh.way_row(network.id).await;
        let mut endpoints = mesh.endpoint_list();
        endpoints.retain(|endpoint| endpoint.network == network.id);
        Ok(Network { way, endpoints, ..network })
    }

    async fn network_create(&self, spec: NetworkSpec) -> Result<Network, ApiError> {
        let mesh = self.mesh().await?;
        mesh.once_met().await;
        blocking(move || mesh.create_network(&spec)).await
    }

    async fn network_extend(&self, reference: &str, spec: ExtendSpec) -> Result<Network, ApiError> {
        let (mesh, reference) = (self.mesh_with(reference).await?, reference.to_owned());
        blocking(move || mesh.extend_network(&reference, &spec)).await
    }

    async fn network_update(
        &self,
        reference: &str,
        update: NetworkUpdate,
    ) -> Result<Network, ApiError> {
        let (mesh, reference) = (self.mesh_with(reference).await?, reference.to_owned());
        blocking(move || mesh.update_network(&reference, &update)).await
    }

    async fn network_rm(&self, reference: &str, force: bool) -> Result<Network, ApiError> {
        let (mesh, reference) = (self.mesh_with(reference).await?, reference.to_owned());
        blocking(move || mesh.remove_network(&reference, force)).await
    }

    async fn services(&self) -> Result<Vec<Service>, ApiError> {
        let mesh = self.mesh().await?;
        Ok(mesh.services.list(&mesh))
    }

    async fn service(&self, reference: &str) -> Result<Service, ApiError> {
        let mesh = self.mesh().await?;
        Ok(mesh.services.inspect(&mesh, reference)?)
    }

    async fn service_create(&self, spec: ServiceSpec) -> Result<Service, ApiError> {
        let mesh = self.mesh_with(&spec.network).await?;
        mesh.once_met().await;
        Ok(mesh.services.create(&mesh, spec).await?)
    }

    async fn service_update(
        &self,
        reference: &str,
        update: ServiceUpdate,
    ) -> Result<Service, ApiError> {
        let mesh = self.mesh_serving(reference).await?;
        Ok(mesh.services.update(&mesh, reference, &update).await?)
    }

    async fn service_health(&self, reference: &str, word: HealthWord) -> Result<Service, ApiError> {
        let mesh = self.mesh_serving(reference).await?;
        Ok(mesh.services.word(&mesh, reference, &word)?)
    }

    async fn service_rm(&self, reference: &str) -> Result<Service, ApiError> {
        let mesh = self.mesh_serving(reference).await?;
        Ok(mesh.services.remove(&mesh, reference).await?)
    }

    async fn pools(&self) -> Result<Vec<AddressPool>, ApiError> {
        Ok(self.mesh().await?.pool_list())
    }

    async fn trust_pools(&self) -> Result<Vec<AddressPool>, ApiError> {
        let mesh = self.mesh().await?;
        mesh.trust();
        Ok(mesh.pool_list())
    }

    async fn network_pools(&self, reference: &str) -> Result<NetworkPools, ApiError> {
        self.mesh().await?.network_pools(reference)
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, ApiError> {
        Ok(self.mesh().await?.endpoint_list())
    }

    async fn endpoint_attach(&self, spec: AttachSpec) -> Result<Endpoint, ApiError> {
        self.mesh_with(&spec.network).await?.attach(spec).await
    }

    async fn endpoint_update(
        &self,
        reference: &str,
        spec: EndpointSpec,
    ) -> Result<Endpoint, ApiError> {
        self.mesh().await?.update_endpoint(reference, spec).await
    }

    async fn endpoint_detach(&self, reference: &str) -> Result<Endpoint, ApiError> {
        self.mesh().await?.detach(reference).await
    }

    async fn attachment_add(&self, spec: AttachmentSpec) -> Result<Attachment, ApiError> {
        self.mesh_with(&spec.network).await?.add_attachment(spec).await
    }

    async fn attachment(&self, key: AttachmentKey) -> Result<Attachment, ApiError> {
        self.mesh().await?.attachment(&key).await
    }

    async fn attachment_rm(&self, key: AttachmentKey) -> Result<Vec<Endpoint>, ApiError> {
        // Who belongs to no mesh has no endpoint, either.
        let Ok(mesh) = self.mesh().await else { return Ok(Vec::new()) };
        mesh.remove_attachments(|other| *other == key).await
    }

    async fn attachments_keep(&self, kept: AttachmentsKept) -> Result<Vec<Endpoint>, ApiError> {
        let Ok(mesh) = self.mesh().await else { return Ok(Vec::new()) };
        let is_valid = |key: &AttachmentKey| {
            let mut valid = kept.valid.iter();
            valid.any(|(container, ifname)| (container, ifname) == (&key.container, &key.ifname))
        };
        let is_gone = |key: &AttachmentKey| key.config == kept.config && !is_valid(key);
        mesh.remove_attachments(is_gone).await
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>, ApiError> {
        self.mesh().await?.sandbox_list()
    }

    async fn sandbox_create(&self, spec: SandboxSpec) -> Result<Sandbox, ApiError> {
        let mesh = self.mesh().await?;
        for connection in &spec.networks {
            drop(mesh.once_known(|| mesh.find_network(&connection.network)).await);
        }
        mesh.create_sandbox(spec).await
    }

    async fn sandboxes_ended(&self) -> Result<Vec<Sandbox>, ApiError> {
        self.mesh().await?.ended_list()
    }

    async fn sandbox_started(
        &self,
        reference: &str,
        started: SandboxStarted,
    ) -> Result<Sandbox, ApiError> {
        self.mesh().await?.start_sandbox(reference, &started)
    }

    async fn sandbox_ended(
        &self,
        reference: &str,
        ended: SandboxEnded,
    ) -> Result<Sandbox, ApiError> {
        self.mesh().await?.end_sandbox(reference, &ended).await
    }

    async fn sandbox_rm(&self, reference: &str) -> Result<Sandbox, ApiError> {
        self.mesh().await?.remove_sandbox(reference).await
    }

    async fn sandbox_connect(
        &self,
        reference: &str,
        connection: Connection,
    ) -> Result<Endpoint, ApiError> {
        self.mesh_with(&connection.network).await?.connect_sandbox(reference, connection).await
    }

    async fn sandbox_disconnect(
        &self,
        reference: &str,
        network: &str,
    ) -> Result<Endpoint, ApiError> {
        self.mesh().await?.disconnect_sandbox(reference, network).await
    }

    async fn doctor(&self) -> Result<Vec<Diagnosis>, ApiError> {
        let mut all = doctor::host();
        if let Some(mesh) = self.mesh.read().await.clone() {
            all.extend(mesh.diagnoses().await);
        }
        if self.config.docker
            && let Ok(node) = docker::Agent::node(self).await
        {
            all.extend(docker::diagnose(&*node).await);
        }
        Ok(all)
    }

    async fn drops(&self) -> Result<Vec<DropRow>, ApiError> {
        Ok(self.mesh().await?.drop_rows().await)
    }

    async fn flows(&self, query: FlowQuery) -> Result<Flows, ApiError> {
        let mesh = self.mesh().await?;
        Ok(mesh.services.flow_rows(&mesh, &query)?)
    }

    async fn locate(&self, address: Address) -> Result<Vec<Location>, ApiError> {
        Ok(self.mesh().await?.locations(&address))
    }

    async fn dns_query(&self, name: &str, query: DnsQuery) -> Result<Vec<DnsRecord>, ApiError> {
        self.mesh().await?.name_records(name, &query)
    }

    async fn map(&self) -> Result<Vec<MapRow>, ApiError> {
        Ok(self.mesh().await?.map_rows())
    }

    async fn map_diff(&self, reference: &str) -> Result<Vec<MapDiffRow>, ApiError> {
        self.mesh().await?.map_difference(reference).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, UdpSocket};

    use super::*;
    use crate::{config::FirstStart, store::Store};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_busy_port_leaves_nothing_of_a_mesh_that_could_not_be_made() {
        let busy = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = busy.local_addr().unwrap().port();
        for (control_port, data_port) in [(port, 0), (0, port)] {
            let dir = tempfile::tempdir().unwrap();
            let agent = Agent::new(Config {
                data_dir: dir.path().to_owned(),
                run_dir: dir.path().to_owned(),
                socket: dir.path().join("api.sock"),
                name: "a".parse().unwrap(),
                advertise: vec!["192.0.2.1".parse().unwrap()],
                docker: false,
                peers: Vec::new(),
                control_port,
                data_port,
                tap: crate::datapath::backend::Backend::Auto,
                log: "off".to_owned(),
                gossip_interval: Duration::from_millis(500),
                default_pools: Vec::new(),
                first_start: FirstStart::Wait,
            });
            let error = agent.make_mesh().await.unwrap_err();
            assert!(error.message.contains("port"), "{error}");
            let store = Store::open(&dir.path().join("state.redb")).unwrap();
            let objects = store.list::<serde_json::Value>(Table::Objects).unwrap();
            assert!(objects.is_empty(), "{objects:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the state is there");
        }
    }
}
