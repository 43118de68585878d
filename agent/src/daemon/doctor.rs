//! `vxmesh doctor`: what this host needs and has, and what is wrong with it.
//!
//! Each check says `ok`, `warn` (it works, but not all of it) or `fail`, what was found, and what
//! to do. Nothing is changed.

use std::{fs::File, path::Path};

use vxmesh_proto::addr::NetworkId;

use super::{
    absent::LastKnown,
    conflicts::ServiceName,
    gateway::Ways,
    mesh::Mesh,
    obstacles::{in_the_way, not_here},
};
use crate::{
    api::{self, Diagnosis, Health},
    datapath::backend::{Backend, Grants},
    firewall::{
        incoming,
        table::{self, Hook},
    },
    host::rules::OnHost,
    lock::lock,
    services::answers,
};

/// Tables of iptables-legacy; the file is there once its module is loaded.
const LEGACY: &str = "/proc/net/ip_tables_names";

/// A certificate of thirty days that is not renewed with so many left was tried to be renewed in
/// vain.
const RENEWAL_DUE_DAYS: u64 = 5;

/// Bytes that sealing adds to plain VXLAN: a header and a tag.
const SEALED_MORE: u16 = 32;

pub(super) fn check(
    check: &str,
    health: Health,
    found: impl Into<String>,
    hint: &str,
) -> Diagnosis {
    let hint = if health == Health::Ok { String::new() } else { hint.to_owned() };
    Diagnosis { check: check.to_owned(), health, found: found.into(), hint }
}

/// What can be seen without a mesh.
pub(super) fn host() -> Vec<Diagnosis> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    let tun = match tun {
        Ok(_) => check("tap", Health::Ok, "/dev/net/tun can be opened", ""),
        Err(error) => check(
            "tap",
            Health::Fail,
            format!("/dev/net/tun: {error}"),
            "load the module tun, and run the agent as root",
        ),
    };
    let rules = match table::generation() {
        Ok(generation) => {
            check("nf_tables", Health::Ok, format!("the kernel has it, ruleset {generation}"), "")
        }
        Err(error) => check(
            "nf_tables",
            Health::Fail,
            error.to_string(),
            "networks have no way out without it: load the module nf_tables",
        ),
    };
    let legacy = std::fs::read_to_string(LEGACY).unwrap_or_default();
    let legacy = if legacy.trim().is_empty() {
        check("iptables", Health::Ok, "no tables of iptables-legacy", "")
    } else {
        check(
            "iptables",
            Health::Warn,
            format!(
                "iptables-legacy has tables: {}",
                legacy.split_whitespace().collect::<Vec<_>>().join(", ")
            ),
            "their rules cannot be seen: if they drop what is forwarded, accept `vxm+` there both ways",
        )
    };
    let v6 = if Path::new("/proc/sys/net/ipv6").exists() {
        check("ipv6", Health::Ok, "the kernel has it", "")
    } else {
        check("ipv6", Health::Warn, "the kernel has none", "IPv6 leaves no network on this host")
    };
    vec![tun, rules, legacy, v6, forwarding()]
}

/// What can be seen of a host whose agent does not answer: what it needs, and what its data
/// directory says of the mesh.
#[must_use]
pub fn without_agent(data_dir: &Path) -> Vec<Diagnosis> {
    let mut all = host();
    match LastKnown::of(data_dir) {
        Ok(Some(known)) => all.extend(known.diagnoses()),
        Ok(None) => all.push(check(
            "identity",
            Health::Warn,
            format!("there is none in {}", data_dir.display()),
            "run `vxmesh init` or `vxmesh join`",
        )),
        Err(error) => {
            all.push(check("identity", Health::Fail, error.to_string(), "see the message"));
        }
    }
    all
}

fn forwarding() -> Diagnosis {
    let read = |path: &str| {
        let value = std::fs::read_to_string(Path::new("/proc/sys/net").join(path));
        value.map_or_else(|_absent| "-".to_owned(), |value| value.trim().to_owned())
    };
    let found = format!(
        "ip_forward {}, ipv6 forwarding {}",
        read("ipv4/ip_forward"),
        read("ipv6/conf/all/forwarding")
    );
    check("forwarding", Health::Ok, found, "")
}

/// What drives the TAPs, and which offloads the kernel granted.
fn data_path(grants: &Grants) -> Diagnosis {
    let health = match grants.backend {
        Backend::TunTap => Health::Warn,
        Backend::Auto | Backend::Offload => Health::Ok,
    };
    let found = format!("{}: {}", grants.backend.as_str(), grants.offloads.join(" "));
    check(
        "data path",
        health,
        found,
        "one packet per call is slow: leave `tap` at auto, and see that the kernel has IFF_VNET_HDR",
    )
}

impl Mesh {
    /// The MTU that a network of the mesh asks of a path between nodes. What is not sealed leaves
    /// that much more room.
    pub(super) fn sealed_mtu(&self, network: &api::Network) -> Option<u16> {
        let more = if network.encrypted { 0 } else { SEALED_MORE };
        (!self.is_local(network.id)).then(|| network.mtu.saturating_sub(more))
    }

    /// Peers whose path carries less than this, and how much.
    pub(super) fn narrow_paths(&self, mtu: u16) -> impl Iterator<Item = (String, u16)> + '_ {
        let peers = self.peer_rows().into_iter().filter(move |peer| peer.mtu < mtu);
        peers.map(|peer| (self.node_name(peer.node_id), peer.mtu))
    }

    /// What is known of this node's addresses, paths and ways out.
    pub(super) async fn diagnoses(&self) -> Vec<Diagnosis> {
        let mut all = self.place_diagnoses();
        all.extend(self.departed_diagnosis());
        all.extend(self.lost_diagnoses());
        all.push(self.members());
        all.extend(self.certificate_left().map(certificate_state));
        all.extend(self.host.grants.as_ref().map(data_path));
        all.extend(self.plain_diagnosis());
        all.extend(self.incoming());
        all.extend(self.outgoing());
        all.extend(self.clock_diagnoses().await);
        all.push(self.disk_diagnosis());
        all.push(self.issuer_diagnosis());
        all.extend(self.name_diagnoses());
        all.extend(self.host_port_diagnoses());
        all.extend(self.keeper_diagnoses());
        all.extend(self.proof_diagnosis());
        all.extend(self.passage_diagnoses().await);
        let networks = self.network_list();
        all.extend(networks.iter().filter(|it| it.state == "conflict").map(in_conflict));
        let services = self.member.objects.read(ServiceName::all);
        let endpoints = self.endpoint_list();
        all.extend(endpoints.iter().filter_map(|row| called_as_another(row, &services)));
        all.extend(answers::all_lost(self).into_iter().map(|(name, why)| {
            check(&format!("service {name}"), Health::Warn, why, answers::HINT)
        }));
        if let Some(largest) = networks.iter().filter_map(|it| self.sealed_mtu(it)).max() {
            all.extend(self.narrow_paths(largest).map(|(node, mtu)| {
                check(
                    "mtu",
                    Health::Warn,
                    format!("the path to {node} carries {mtu}, a network has {largest}"),
                    &format!(
                        "make networks with --mtu {mtu} or less, or raise that of the underlay"
                    ),
                )
            }));
        }
        self.count_drops().await;
        all.extend(self.limits_met(&networks));
        for (network, fault) in self.missing_parents().await {
            let hint =
                "bring it back; endpoints whose interface went with it must be plugged in again";
            all.push(check(&format!("network {network}"), Health::Fail, fault, hint));
        }
        let hosted = self.hosted.lock().await;
        let name = |id: NetworkId| {
            let network = networks.iter().find(|network| network.id == id);
            network.map_or_else(|| id.short(), |network| network.name.to_string())
        };
        all.extend(hosted.ways.diagnoses(&lock(&self.host.on_host), name));
        all.extend(self.mended(name));
        all.extend(self.host.name_servers.faults().into_iter().map(|(network, netns, ip, fault)| {
            let hint = format!(
                "end who has port 53 there (`nsenter --net={} ss -lnptu`); it is tried again every second",
                netns.display()
            );
            let found = format!("names are not served on {ip}: {fault}");
            check(&format!("network {}", name(network)), Health::Warn, found, &hint)
        }));
        all
    }
}

/// A network that another one of its name or number puts aside.
fn in_conflict(network: &api::Network) -> Diagnosis {
    check(
        &format!("network {}", network.name),
        Health::Warn,
        format!("{} forwards nothing: an older network has its name or number", network.id.short()),
        &format!("remove one of the two: vxmesh network rm {}", network.id),
    )
}

/// An endpoint whose name an older one has, or a service.
fn called_as_another(endpoint: &api::Endpoint, services: &[ServiceName]) -> Option<Diagnosis> {
    let (name, id, holder) = (&endpoint.name, endpoint.id.short(), endpoint.conflict?);
    let service = services.iter().find(|service| service.id.bytes() == holder.bytes());
    let found = match service {
        Some(service) => {
            format!(
                "{id} ({name}) is not found as {}: the older service has that name",
                service.name
            )
        }
        None => {
            format!(
                "{id} is not found as {name}: the older endpoint {} has that name",
                holder.short()
            )
        }
    };
    let hint = "give the newer one another name: remove it, and attach or run it anew";
    Some(check("endpoints", Health::Warn, found, hint))
}

/// How long the node's certificate is valid yet. It renews itself at half to eight tenths of its
/// life.
pub(super) fn certificate_state(left_s: u64) -> Diagnosis {
    let hint =
        "an issuer must be reachable to renew it (`vxmesh node ls`); after its end, join again";
    let days = left_s / 86_400;
    let health = match left_s {
        0 => Health::Fail,
        _ if days < RENEWAL_DUE_DAYS => Health::Warn,
        _ => Health::Ok,
    };
    let found = match (left_s, days) {
        (0, _) => "this node's certificate has ended".to_owned(),
        (_, 0) => format!("this node's certificate is valid for {} more hours", left_s / 3600),
        _ => format!("this node's certificate is valid for {days} more days"),
    };
    check("certificate", health, found, hint)
}

impl Mesh {
    /// Which members are not there.
    fn members(&self) -> Diagnosis {
        let mut nodes = self.node_list();
        nodes.retain(|node| !node.is_gone());
        let dead: Vec<&str> = nodes
            .iter()
            .filter(|node| node.state == "dead")
            .map(|node| node.name.as_str())
            .collect();
        if dead.is_empty() {
            let found = format!("all {} are alive", nodes.len());
            return check("nodes", Health::Ok, found, "");
        }
        let found = format!("{} of {} are dead: {}", dead.len(), nodes.len(), dead.join(", "));
        let hint = if dead.len() + 1 == nodes.len() {
            "if they are at other addresses now, name each of them: `vxmesh join HOST...`, without a token, on this host \
             alone; else bring them back"
        } else {
            "bring them back; name those that are at other addresses now (`vxmesh join HOST...`, without a token); or \
             remove what is gone for good: vxmesh node rm NODE"
        };
        check("nodes", Health::Warn, found, hint)
    }

    /// Whether other firewalls of the host let in what agents send.
    fn incoming(&self) -> Vec<Diagnosis> {
        let ports = [self.config.control_port, self.config.data_port];
        let row = |health, found: String, hint: &str| check("incoming", health, found, hint);
        let closed = match incoming::closed(Hook::Input, &ports) {
            Ok(closed) => closed,
            Err(error) => return vec![row(Health::Warn, error.to_string(), "load nf_tables")],
        };
        if closed.is_empty() {
            let found = format!("nothing is seen that keeps UDP {}, {} out", ports[0], ports[1]);
            return vec![row(Health::Ok, found, "")];
        }
        let closed = closed.into_iter().map(|incoming::Closed { chain, ports, remedy }| {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let found = format!("{chain} accepts no UDP {}", ports.join(", "));
            row(
                Health::Warn,
                found,
                &format!("agents of other hosts cannot begin to speak: {remedy}"),
            )
        });
        closed.collect()
    }
}

impl Ways {
    fn diagnoses(&self, on_host: &OnHost, name: impl Fn(NetworkId) -> String) -> Vec<Diagnosis> {
        let mut all = Vec::new();
        for (id, way) in self.ways() {
            let check_name = format!("network {}", name(*id));
            if let Some(fault) = way.fault() {
                let hint = "it is tried again every ten seconds; the agent's log has more";
                all.push(check(&check_name, Health::Fail, fault, hint));
            }
            if way.rules.repairs() > 0 {
                all.push(check(
                    &check_name,
                    Health::Ok,
                    format!("the rules inside were put back; repairs: {}", way.rules.repairs()),
                    "",
                ));
            }
            for (subnet, route) in way.overlaps() {
                all.push(check(
                    &check_name,
                    Health::Warn,
                    format!("the host does not reach {subnet}: its route to {route} overlaps"),
                    "remove the route, or make the network with another --subnet; sandboxes are not concerned",
                ));
            }
        }
        if !self.is_idle() {
            all.push(self.host_rules(on_host));
            all.extend(in_the_way());
            all.extend(self.away.iter().map(not_here));
        }
        all
    }

    fn host_rules(&self, on_host: &OnHost) -> Diagnosis {
        if let Some(fault) = self.host_fault() {
            return check("rules", Health::Fail, fault, "it is tried again every second");
        }
        let chains: Vec<String> = on_host.admitted.iter().map(ToString::to_string).collect();
        let mut found = match chains.as_slice() {
            [] => "inet vxmesh; no other chain drops what is forwarded".to_owned(),
            chains => format!("inet vxmesh; two rules each in {}", chains.join(", ")),
        };
        if on_host.kept.repairs() > 0 {
            found += &format!("; put back; repairs: {}", on_host.kept.repairs());
        }
        check("rules", Health::Ok, found, "")
    }
}
