//! Endpoints of this host: as the store keeps them ([`Stored`]), what is remembered of those that
//! went ([`GivenBack`]), and those that are neither wholly there nor gone ([`Pending`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vxmesh_proto::{
    addr::{Alias, EndpointId, MacAddr, Name, NetworkId, NodeId},
    limits::ADDRESS_QUARANTINE,
    record::EndpointClaim,
};

use super::published::Published;
use crate::{
    api::{self, AttachmentKey},
    firewall::guard::Port,
    netlink::overlay::Plug,
};

/// An endpoint as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) id: EndpointId,
    pub(crate) network: NetworkId,
    pub(crate) name: Name,
    pub(crate) aliases: Vec<Alias>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) mac: MacAddr,
    pub(crate) ips: Vec<IpNet>,
    pub(crate) netns: PathBuf,
    pub(crate) ifname: Option<String>,
    pub(crate) sandbox: Option<String>,
    /// Who moves its end of the cable to where it belongs, and removes it: a container engine.
    #[serde(default)]
    pub(crate) engine: Option<Engine>,
    /// Ports of the host that lead to it alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) published: Vec<Published>,
    /// What a container runtime calls it that asked for it through CNI.
    #[serde(default)]
    pub(crate) attachment: Option<AttachmentKey>,
    /// Of a sandbox of ours: which of its networks has its default routes.
    #[serde(default)]
    pub(crate) gw_priority: i32,
    pub(crate) incarnation: u64,
    pub(crate) attached: bool,
}

impl Stored {
    /// What this node says of it to the others.
    pub(crate) fn claim(&self) -> EndpointClaim {
        EndpointClaim {
            id: self.id,
            network: self.network,
            name: self.name.clone(),
            aliases: self.aliases.clone(),
            mac: self.mac,
            ips: self.ips.iter().map(IpNet::addr).collect(),
            incarnation: self.incarnation,
            labels: self.labels.clone(),
            router: false,
            health: BTreeMap::new(),
        }
    }

    /// Notes the name of the interface in the sandbox.
    pub(crate) fn set_ifname(&mut self, ifname: String) {
        self.ifname = Some(ifname);
    }

    /// As whom its port may speak.
    pub(crate) fn port(&self) -> Port {
        Port { mac: self.mac, ips: self.ips.iter().map(IpNet::addr).collect() }
    }

    pub(crate) fn plug(&self) -> Plug {
        Plug {
            id: self.id,
            netns: self.engine.is_none().then(|| self.netns.clone()),
            ifname: self.ifname.clone(),
            mac: self.mac,
            ips: self.ips.clone(),
            // A sandbox of ours has its default routes by all of its networks together.
            default_route: self.sandbox.is_none(),
        }
    }

    /// Whether it is wholly there.
    pub(crate) const fn is_attached(&self) -> bool {
        self.attached
    }

    /// The namespace that it is plugged into.
    pub(crate) fn netns(&self) -> &Path {
        &self.netns
    }

    /// What the endpoint is plugged into.
    pub(crate) fn place(&self) -> String {
        match (&self.sandbox, self.engine) {
            (Some(sandbox), _) => sandbox.clone(),
            (None, Some(engine)) => engine.to_string(),
            (None, None) => self.netns.display().to_string(),
        }
    }

    /// As the API shows it; nothing while it is half made.
    pub(crate) fn row(&self, node: NodeId) -> Option<api::Endpoint> {
        self.attached.then(|| api::Endpoint {
            id: self.id,
            name: self.name.clone(),
            network: self.network,
            node,
            sandbox: Some(self.place()),
            ifname: self.ifname.clone(),
            mac: self.mac,
            ips: self.ips.clone(),
            aliases: self.aliases.clone(),
            incarnation: self.incarnation,
            labels: self.labels.clone(),
            conflict: None,
            published: Vec::new(),
        })
    }

    /// The interface inside.
    pub(crate) fn ifname(&self) -> Option<&str> {
        self.ifname.as_deref()
    }
}

/// A container engine that has endpoints of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Engine {
    /// Docker, by its network driver.
    Docker,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("docker"),
        }
    }
}

/// Addresses that containers gave back and that rest, and whose each was.
#[derive(Debug, Default)]
pub(crate) struct GivenBack(BTreeMap<(NetworkId, IpAddr), Former>);

/// Who had an address.
#[derive(Debug)]
struct Former {
    container: String,
    mac: MacAddr,
    ended: Instant,
}

impl GivenBack {
    /// Notes those of an endpoint that ends, if it is a container's.
    pub(crate) fn note(&mut self, endpoint: &Stored, now: Instant) {
        self.0.retain(|_, former| now.saturating_duration_since(former.ended) < ADDRESS_QUARANTINE);
        let Some(key) = &endpoint.attachment else { return };
        for ip in &endpoint.ips {
            let container = key.container.clone();
            let former = Former { container, mac: endpoint.mac, ended: now };
            self.0.insert((endpoint.network, ip.addr()), former);
        }
    }

    /// The MAC that a container had with an address.
    pub(crate) fn mac(&self, address: (NetworkId, IpAddr), container: &str) -> Option<MacAddr> {
        let former = self.0.get(&address).filter(|former| former.container == container);
        former.map(|former| former.mac)
    }
}

/// Endpoints that somebody has to come back to.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Addresses of containers that ended: one that starts anew asks for its own again.
    pub(crate) given_back: Mutex<GivenBack>,
    /// What runtimes have asked for and is not written down yet, and whether they have given it up.
    pub(crate) asked: Mutex<BTreeMap<AttachmentKey, bool>>,
    /// Those that lost their names and are about to lose their links.
    pub(crate) unnamed: Mutex<BTreeSet<EndpointId>>,
    /// Those of the last life that could not be adopted yet.
    pub(crate) unadopted: Mutex<BTreeSet<EndpointId>>,
    /// The hash of objects, and how often something had been written, when no endpoint was left
    /// over.
    pub(crate) tidy: Mutex<Option<(String, u64)>>,
}
