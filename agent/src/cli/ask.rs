//! The commands that are one call of the admin API each.

use serde::de::DeserializeOwned;

use super::{
    Outcome,
    args::{
        Ask, Attach, CheckKind, Connect, Dns, Endpoint, FlowsOf, Ipam, Locate, Look, Map, Network,
        NetworkCreate, Node, Sandbox, Service, ServiceChange, ServiceCreate, Sticky, Token,
        Working, millis,
    },
    client::{Client, segment},
    logs,
    membership::on_the_next_host,
    output::{Output, Row},
    words::Words,
};
use crate::api::{
    self, ApiError, AttachSpec, Connection, EndpointSpec, ErrorCode, ExtendSpec, HealthWord,
    LeaveSpec, NetworkSpec, NetworkUpdate, NodeSpec, ServicePublish, ServicePublishRange,
    ServiceSpec, ServiceUpdate, TokenSpec,
};
use crate::docker::OFFERED;
use crate::firewall::clients::{Allowed, Denied};
use crate::identity::date;

/// Makes the call and prints its answer.
pub(super) async fn ask(client: &Client, output: Output, ask: Ask) -> Outcome {
    let call = Call { client, output };
    match ask {
        Ask::Leave { force, yes } => call.leave(LeaveSpec { force, yes }).await?,
        Ask::Token(token) => call.token(token).await?,
        Ask::Node(node) => call.node(node).await?,
        Ask::Peer(look) => call.look::<api::Peer>("peers", look).await?,
        Ask::Network(network) => call.network(network).await?,
        Ask::Service(service) => call.service(service).await?,
        Ask::Ipam(ipam) => call.ipam(ipam).await?,
        Ask::Endpoint(endpoint) => call.endpoint(endpoint).await?,
        Ask::Sandbox(sandbox) => call.sandbox(sandbox).await?,
        // Also answered without an agent.
        Ask::Doctor(_) | Ask::Status => {}
        Ask::Drops => call.list::<api::DropRow>("/v1/drops").await?,
        Ask::Flows(of) => call.flows(of).await?,
        Ask::Locate(what) => call.locate(&what).await?,
        Ask::Dns(dns) => call.dns(dns).await?,
        Ask::Map(Map::Ls) => call.list::<api::MapRow>("/v1/map").await?,
        Ask::Map(Map::Diff { node }) => {
            call.list::<api::MapDiffRow>(&path("map/diff", &node)).await?;
        }
    }
    Ok(0)
}

struct Call<'a> {
    client: &'a Client,
    output: Output,
}

impl Call<'_> {
    async fn leave(&self, mut spec: LeaveSpec) -> Result<(), ApiError> {
        if self.output.may_ask() && !spec.force && !spec.yes {
            let sandboxes: Vec<api::Sandbox> = self.client.get("/v1/sandboxes").await?;
            let running = sandboxes.iter().filter(|sandbox| sandbox.state != "exited");
            let names: Vec<&str> = running.map(|sandbox| sandbox.name.as_str()).collect();
            spec.yes = !names.is_empty()
                && self.output.confirm(&format!("end {} and leave the mesh?", names.join(", ")));
        }
        let left: api::Membership = self.client.post("/v1/leave", &spec).await?;
        left.warnings.iter().for_each(|warning| self.output.warn(warning));
        self.output.done(&left, &format!("left mesh {}", left.mesh_id))
    }

    async fn token(&self, token: Token) -> Result<(), ApiError> {
        match token {
            Token::Create { ttl, uses } => {
                let spec = TokenSpec { ttl_s: ttl.as_secs(), uses };
                let made: api::TokenCreated = self.client.post("/v1/tokens", &spec).await?;
                self.output.note(&on_the_next_host(&made.token, &made.servers));
                let issuers = made.issuers.iter().map(|it| format!("{} ({})", it.name, it.state));
                let issuers: Vec<String> = issuers.collect();
                self.output.note(&format!(
                    "it is valid until {}; who admits nodes: {}",
                    date(made.expires_at),
                    issuers.join(", ")
                ));
                self.output.done(&made, &made.token)
            }
            Token::Ls => self.list::<api::Token>("/v1/tokens").await,
            Token::Revoke { token } => {
                let gone: api::Token = self.client.delete(path("tokens", &token)).await?;
                self.output.done(&gone, &gone.id)
            }
        }
    }

    async fn node(&self, node: Node) -> Result<(), ApiError> {
        match node {
            Node::Ls { all } => {
                let mut nodes: Vec<api::Node> = self.client.get("/v1/nodes").await?;
                nodes.retain(|node| all || node.state != "left");
                self.output.list(&nodes, &Words::default())
            }
            Node::Inspect { node } => self.inspect::<api::Node>(&path("nodes", &node)).await,
            Node::Update { node, issuer, label } => {
                let spec = NodeSpec { issuer, zone: label, drain: None };
                self.node_update(&node, &spec).await
            }
            Node::Drain { node, undo } => {
                let spec = NodeSpec { drain: Some(!undo), ..NodeSpec::default() };
                self.node_update(&node, &spec).await
            }
            Node::Rm { node, force } => {
                let gone: api::Node =
                    self.client.delete(forced(path("nodes", &node), force)).await?;
                self.output.done(&gone, gone.name.as_str())
            }
        }
    }

    async fn network(&self, network: Network) -> Result<(), ApiError> {
        match network {
            Network::Create(create) => {
                let made: api::Network =
                    self.client.post("/v1/networks", &network_spec(create)?).await?;
                self.warn(&made.warnings);
                self.output.done(&made, &made.id.to_string())
            }
            Network::Extend(extend) => {
                let path = format!("{}/extend", path("networks", &extend.network));
                let spec = ExtendSpec {
                    subnets: extend.subnet,
                    gateways: extend.within.gateway,
                    ip_ranges: extend.within.ip_range,
                    aux_addresses: extend.within.aux_address.into_iter().collect(),
                };
                let network: api::Network = self.client.post(&path, &spec).await?;
                self.warn(&network.warnings);
                self.output.done(&network, network.name.as_str())
            }
            Network::Update { network, options } => {
                let update = NetworkUpdate { options: options.into_iter().collect() };
                let network: api::Network =
                    self.client.patch(&path("networks", &network), &update).await?;
                self.output.done(&network, network.name.as_str())
            }
            Network::Connect(connect) => self.connect(connect).await,
            Network::Disconnect { network, sandbox } => {
                let path =
                    format!("{}/networks/{}", path("sandboxes", &sandbox), segment(&network));
                let gone: api::Endpoint = self.client.delete(path).await?;
                self.output.done(&gone, &gone.id.to_string())
            }
            Network::Ls => self.list::<api::Network>("/v1/networks").await,
            Network::Inspect { network } => {
                self.inspect::<api::Network>(&path("networks", &network)).await
            }
            Network::Rm { network, force } => {
                let gone: api::Network =
                    self.client.delete(forced(path("networks", &network), force)).await?;
                self.output.done(&gone, gone.name.as_str())
            }
        }
    }

    async fn connect(&self, connect: Connect) -> Result<(), ApiError> {
        let Connect { network, sandbox, wanted, ifname, gw_priority } = connect;
        let connection = Connection {
            network,
            ips: wanted.ip,
            mac: wanted.mac,
            aliases: wanted.alias,
            ifname,
            gw_priority,
        };
        let path = format!("{}/networks", path("sandboxes", &sandbox));
        let made: api::Endpoint = self.client.post(&path, &connection).await?;
        self.output.done(&made, &made.id.to_string())
    }

    async fn service(&self, service: Service) -> Result<(), ApiError> {
        match service {
            Service::Create(create) => {
                let made: api::Service =
                    self.client.post("/v1/services", &service_spec(*create)).await?;
                self.warn(&made.warnings);
                self.output.done(&made, &made.id.to_string())
            }
            Service::Update(change) => {
                let path = path("services", &change.service);
                let service: api::Service =
                    self.client.patch(&path, &service_update(*change)).await?;
                self.warn(&service.warnings);
                self.output.done(&service, service.name.as_str())
            }
            Service::Drain { service, backend, undo } => {
                let names = [backend].into();
                let update = match undo {
                    false => ServiceUpdate { drain: names, ..ServiceUpdate::default() },
                    true => ServiceUpdate { undrain: names, ..ServiceUpdate::default() },
                };
                let path = path("services", &service);
                let service: api::Service = self.client.patch(&path, &update).await?;
                self.output.done(&service, service.name.as_str())
            }
            Service::Health { service, backend, state, ttl } => {
                let path = format!("{}/health", path("services", &service));
                let up = match state {
                    Working::Up => Some(true),
                    Working::Down => Some(false),
                    Working::Check => None,
                };
                let word = HealthWord { backend, up, ttl_ms: ttl.map(millis) };
                let service: api::Service = self.client.post(&path, &word).await?;
                self.output.done(&service, service.name.as_str())
            }
            Service::Ls => self.list::<api::Service>("/v1/services").await,
            Service::Inspect { service } => {
                self.inspect::<api::Service>(&path("services", &service)).await
            }
            Service::Rm { service } => {
                let gone: api::Service = self.client.delete(path("services", &service)).await?;
                self.output.done(&gone, gone.name.as_str())
            }
        }
    }

    fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.output.note(&format!("warning: {warning}"));
        }
    }

    async fn ipam(&self, ipam: Ipam) -> Result<(), ApiError> {
        match ipam {
            Ipam::Ls => self.list::<api::AddressPool>("/v1/ipam").await,
            Ipam::Trust => {
                let pools: Vec<api::AddressPool> = self.client.post("/v1/ipam", &()).await?;
                self.output.done(&pools, "this node gives out its addresses")
            }
            Ipam::Inspect { network } => {
                let network: api::NetworkPools = self.client.get(&path("ipam", &network)).await?;
                if self.output.is_json() {
                    return self.output.object(&network);
                }
                let words = Words::learn(self.client, self.output).await;
                let blocks = network.pools.into_iter().flat_map(|pool| pool.blocks);
                self.output.list(&blocks.collect::<Vec<_>>(), &words)
            }
        }
    }

    async fn endpoint(&self, endpoint: Endpoint) -> Result<(), ApiError> {
        match endpoint {
            Endpoint::Attach(attach) => {
                let made: api::Endpoint =
                    self.client.post("/v1/endpoints", &attach_spec(attach)?).await?;
                self.output.done(&made, &made.id.to_string())
            }
            Endpoint::Update { endpoint, label, rm_label } => {
                let spec =
                    EndpointSpec { labels: label.into_iter().collect(), remove_labels: rm_label };
                let row: api::Endpoint =
                    self.client.patch(&path("endpoints", &endpoint), &spec).await?;
                self.output.done(&row, row.name.as_str())
            }
            Endpoint::Detach { endpoint } => {
                let gone: api::Endpoint = self.client.delete(path("endpoints", &endpoint)).await?;
                self.output.done(&gone, gone.name.as_str())
            }
            Endpoint::Ls => self.list::<api::Endpoint>("/v1/endpoints").await,
            Endpoint::Inspect { endpoint } => {
                self.inspect::<api::Endpoint>(&path("endpoints", &endpoint)).await
            }
        }
    }

    async fn sandbox(&self, sandbox: Sandbox) -> Result<(), ApiError> {
        match sandbox {
            Sandbox::Ls { all: false } => self.list::<api::Sandbox>("/v1/sandboxes").await,
            Sandbox::Ls { all: true } => self.list::<api::Sandbox>("/v1/sandboxes?all=true").await,
            Sandbox::Logs { sandbox, tail } => {
                let sandbox: api::Sandbox = self.client.get(path("sandboxes", &sandbox)).await?;
                logs::print(self.output, &sandbox, tail)
            }
            Sandbox::Inspect { sandbox } => {
                self.inspect::<api::Sandbox>(&path("sandboxes", &sandbox)).await
            }
            Sandbox::Rm { sandbox } => {
                let gone: api::Sandbox = self.client.delete(path("sandboxes", &sandbox)).await?;
                self.output.done(&gone, gone.name.as_str())
            }
        }
    }

    async fn locate(&self, what: &Locate) -> Result<(), ApiError> {
        let mut path = path("locate", &what.address.to_string());
        if let Some(network) = &what.network {
            path.push_str("?network=");
            path.push_str(&segment(network));
        }
        self.inspect::<api::Located>(&path).await
    }

    async fn flows(&self, of: FlowsOf) -> Result<(), ApiError> {
        let FlowsOf { service, network, limit } = of;
        let mut path = format!("/v1/flows?limit={limit}");
        for (key, reference) in [("service", service), ("network", network)] {
            if let Some(reference) = reference {
                path.push_str(&format!("&{key}={}", segment(&reference)));
            }
        }
        let found: api::Flows = self.client.get(&path).await?;
        if self.output.is_json() {
            return self.output.object(&found);
        }
        self.output.list(&found.flows, &Words::learn(self.client, self.output).await)?;
        let shown = u64::try_from(found.flows.len()).unwrap_or(u64::MAX);
        if shown < found.total {
            self.output.note(&format!(
                "{shown} of {} flows; see more with --limit, or choose with --service",
                found.total
            ));
        }
        Ok(())
    }

    async fn dns(&self, dns: Dns) -> Result<(), ApiError> {
        let Dns::Query { name, network, kind } = dns;
        let network = network.map(|network| format!("network={}", segment(&network)));
        let kind = kind.map(|kind| format!("type={kind}"));
        let query: Vec<String> = network.into_iter().chain(kind).collect();
        self.list::<api::DnsRecord>(&format!("{}?{}", path("dns", &name), query.join("&"))).await
    }

    async fn look<T>(&self, kind: &str, look: Look) -> Result<(), ApiError>
    where
        T: DeserializeOwned + Row,
    {
        match look {
            Look::Ls => self.list::<T>(&format!("/v1/{kind}")).await,
            Look::Inspect { node } => self.inspect::<T>(&path(kind, &node)).await,
        }
    }

    async fn list<T: DeserializeOwned + Row>(&self, path: &str) -> Result<(), ApiError> {
        let items: Vec<T> = self.client.get(path).await?;
        self.output.list(&items, &Words::learn(self.client, self.output).await)
    }

    async fn node_update(&self, node: &str, spec: &NodeSpec) -> Result<(), ApiError> {
        let node: api::Node = self.client.patch(path("nodes", node), spec).await?;
        self.output.done(&node, node.name.as_str())
    }

    async fn inspect<T: DeserializeOwned + serde::Serialize>(
        &self,
        path: &str,
    ) -> Result<(), ApiError> {
        self.output.object(&self.client.get::<T>(path).await?)
    }
}

fn path(kind: &str, reference: &str) -> String {
    format!("/v1/{kind}/{}", segment(reference))
}

fn forced(path: String, force: bool) -> String {
    if force { path + "?force=true" } else { path }
}

fn network_spec(create: NetworkCreate) -> Result<NetworkSpec, ApiError> {
    if create.docker && create.driver != api::Driver::Overlay {
        let message = format!("a network of driver {} is of this host alone", create.driver);
        let hint = "leave --docker out, or make it of driver overlay";
        return Err(ApiError::new(ErrorCode::Usage, message, hint));
    }
    let offered = create.docker.then(|| (OFFERED.to_owned(), "true".to_owned()));
    Ok(NetworkSpec {
        name: create.name,
        driver: create.driver,
        options: create.options.into_iter().collect(),
        subnets: create.subnet,
        ipv4: create.versions.ipv4,
        ipv6: create.versions.ipv6,
        gateways: create.within.gateway,
        ip_ranges: create.within.ip_range,
        aux_addresses: create.within.aux_address.into_iter().collect(),
        encrypted: create.encrypted,
        vteps: create.vtep,
        mtu: create.mtu,
        vni: create.vni,
        dns: create.dns,
        internal: create.internal,
        isolated: create.isolated,
        labels: create.label.into_iter().chain(offered).collect(),
    })
}

fn service_spec(create: ServiceCreate) -> ServiceSpec {
    ServiceSpec {
        name: create.name,
        network: create.network,
        ports: create.port,
        backends: create.backend.into_iter().collect(),
        selector: create.selector.into_iter().collect(),
        mode: create.mode,
        vips: create.vip,
        lb: create.lb,
        weights: create.weight.into_iter().collect(),
        prefer: create.prefer,
        sticky_s: create.sticky.and_then(Sticky::seconds),
        check: create.health.and_then(|health| health.check(&create.checks)),
        drain_ms: create.drain.map(millis),
        published: ports(create.publish),
        clients: create.clients.clients(),
    }
}

fn ports(ranges: Vec<ServicePublishRange>) -> Vec<ServicePublish> {
    ranges.into_iter().flat_map(|ServicePublishRange(ports)| ports).collect()
}

fn service_update(change: ServiceChange) -> ServiceUpdate {
    ServiceUpdate {
        add_ports: change.add_port,
        remove_ports: change.rm_port,
        add_backends: change.add_backend.into_iter().collect(),
        remove_backends: change.rm_backend.into_iter().collect(),
        weights: change.weight.into_iter().collect(),
        lb: change.lb,
        prefer: change.prefer,
        sticky_s: change.sticky.and_then(Sticky::seconds),
        no_sticky: change.sticky == Some(Sticky::None),
        no_check: change.health == Some(CheckKind::None),
        check: change.health.and_then(|health| health.check(&change.checks)),
        drain_ms: change.drain.map(millis),
        add_published: ports(change.add_publish),
        remove_published: ports(change.rm_publish),
        allow: change.allow.map(|Allowed(prefixes)| prefixes),
        deny: change.deny.map(|Denied(prefixes)| prefixes),
        ..ServiceUpdate::default()
    }
}

fn attach_spec(attach: Attach) -> Result<AttachSpec, ApiError> {
    let netns = attach.netns.or_else(|| attach.pid.map(|pid| format!("/proc/{pid}/ns/net").into()));
    let netns = netns.unwrap_or_default().into_os_string().into_string().map_err(|path| {
        ApiError::new(
            ErrorCode::Usage,
            format!("the path {} is not UTF-8", path.display()),
            "give the namespace another name",
        )
    })?;
    Ok(AttachSpec {
        network: attach.network,
        netns,
        name: attach.name,
        aliases: attach.wanted.alias,
        ips: attach.wanted.ip,
        mac: attach.wanted.mac,
        ifname: attach.ifname,
        labels: attach.wanted.label.into_iter().collect(),
        sandbox: None,
    })
}
