//! How each object of the API looks as a row.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    output::Row,
    words::{self, Words, bytes, list, or_dash, short},
};
use crate::{
    api::{
        AddressBlock, AddressPool, Diagnosis, DnsRecord, DropRow, Endpoint, Flow, MapDiffRow,
        MapRow, Network, Node, Peer, Sandbox, Service, Token,
    },
    gateway::publish::Publish,
    lab::{Check, HostStatus},
};

impl Row for Node {
    const HEAD: &'static [&'static str] = &["ID", "NAME", "VTEP", "STATE", "ISSUER"];

    fn cells(&self, _: &Words) -> Vec<String> {
        let mark = if self.is_self { " (self)" } else { "" };
        vec![
            short(self.id.as_str()),
            format!("{}{mark}", self.name),
            or_dash(self.vtep.as_ref()),
            self.state.clone(),
            or_dash(self.issuer.then_some("yes").as_ref()),
        ]
    }
}

impl Row for Peer {
    const HEAD: &'static [&'static str] =
        &["NODE", "ADDRESS", "STATE", "CIPHER", "RTT", "MTU", "KEY AGE", "RECEIVED", "SENT"];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            words.node(&self.node_id),
            or_dash(self.addr.as_ref()),
            self.state.clone(),
            or_dash(self.cipher.as_ref()),
            or_dash(self.rtt_us.map(words::round_trip).as_ref()),
            self.mtu.to_string(),
            or_dash(self.key_age_s.map(Duration::from_secs).map(words::duration).as_ref()),
            bytes(self.rx_bytes),
            bytes(self.tx_bytes),
        ]
    }
}

impl Row for Network {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "DRIVER", "SCOPE", "VNI", "MTU", "STATE", "SUBNETS"];

    fn cells(&self, _: &Words) -> Vec<String> {
        let subnets: Vec<_> = self.subnets.iter().map(|subnet| subnet.cidr).collect();
        vec![
            self.id.short(),
            self.name.to_string(),
            if self.encrypted || self.vni.is_none() {
                self.driver.clone()
            } else {
                format!("{} (plain)", self.driver)
            },
            self.scope.clone(),
            or_dash(self.vni.as_ref()),
            self.mtu.to_string(),
            self.state.clone(),
            list(&subnets),
        ]
    }
}

impl Row for AddressPool {
    const HEAD: &'static [&'static str] =
        &["NETWORK", "SUBNET", "RANGE", "GATEWAY", "STATE", "USED", "FREE", "RESTING", "OWNERS"];

    fn cells(&self, words: &Words) -> Vec<String> {
        let owners = self.owners.iter().map(|owner| match owner.state.as_str() {
            "alive" => owner.name.clone(),
            other => format!("{} ({other})", owner.name),
        });
        vec![
            words.network(&self.network),
            self.cidr.to_string(),
            if self.ip_range == self.cidr { "-".into() } else { self.ip_range.to_string() },
            self.gateway.to_string(),
            self.state.clone(),
            words::count(self.used),
            words::count(self.free),
            words::count(self.resting),
            list(&owners.collect::<Vec<_>>()),
        ]
    }
}

impl Row for AddressBlock {
    const HEAD: &'static [&'static str] = &["BLOCK", "OWNER", "EPOCH", "USED", "FREE"];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            self.cidr.to_string(),
            words.node(&self.owner),
            self.epoch.to_string(),
            words::count(self.used),
            words::count(self.free),
        ]
    }
}

impl Row for Service {
    const HEAD: &'static [&'static str] =
        &["ID", "NAME", "NETWORK", "VIPS", "PORTS", "BACKENDS", "STATE"];

    fn cells(&self, words: &Words) -> Vec<String> {
        let ready = self.backends.iter().filter(|backend| backend.state == "ready").count();
        let published = self.published.iter().map(|it| {
            let Publish { sandbox_port, protocol, .. } = it.port.port;
            format!("{}->{sandbox_port}/{}", it.port.host(), protocol.as_str())
        });
        vec![
            self.id.short(),
            self.name.to_string(),
            words.network(&self.network),
            list(&self.vips),
            list(&self.ports.iter().map(ToString::to_string).chain(published).collect::<Vec<_>>()),
            if ready == self.backends.len() {
                ready.to_string()
            } else {
                format!("{ready} of {}", self.backends.len())
            },
            self.state.clone(),
        ]
    }
}

impl Row for Endpoint {
    const HEAD: &'static [&'static str] = &["ID", "NAME", "NETWORK", "NODE", "MAC", "IPS"];

    fn cells(&self, words: &Words) -> Vec<String> {
        let mark = if self.conflict.is_some() { " (conflict)" } else { "" };
        vec![
            self.id.short(),
            format!("{}{mark}", self.name),
            words.network(&self.network),
            words.node(&self.node),
            self.mac.to_string(),
            list(&self.ips),
        ]
    }
}

impl Row for Sandbox {
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "PID", "NETWORKS", "PORTS", "COMMAND"];

    fn cells(&self, words: &Words) -> Vec<String> {
        let networks: Vec<_> = self.networks.iter().map(|it| words.network(&it.network)).collect();
        vec![
            self.name.to_string(),
            match self.exit_status {
                Some(status) => format!("{} ({status})", self.state),
                None => self.state.clone(),
            },
            or_dash(self.pid.as_ref()),
            self.mode.as_ref().map_or_else(|| list(&networks), ToString::to_string),
            list(&self.published),
            self.command.join(" "),
        ]
    }
}

impl Row for Diagnosis {
    const HEAD: &'static [&'static str] = &["CHECK", "HEALTH", "FOUND", "HINT"];

    fn cells(&self, _: &Words) -> Vec<String> {
        vec![
            self.check.clone(),
            self.health.to_string(),
            self.found.clone(),
            or_dash(Some(&self.hint).filter(|hint| !hint.is_empty())),
        ]
    }
}

impl Row for DropRow {
    const HEAD: &'static [&'static str] =
        &["REASON", "NETWORK", "ENDPOINT", "PEER", "COUNT", "NORMAL"];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            self.reason.clone(),
            or_dash(self.network.map(|id| words.network(&id)).as_ref()),
            or_dash(self.endpoint.map(|id| words.endpoint(&id)).as_ref()),
            or_dash(self.peer.map(|id| words.node(&id)).as_ref()),
            self.count.to_string(),
            if self.normal { "yes" } else { "no" }.to_owned(),
        ]
    }
}

impl Row for Flow {
    const HEAD: &'static [&'static str] = &[
        "PROTOCOL",
        "NETWORK",
        "SERVICE",
        "CLIENT",
        "VIP",
        "BACKEND",
        "ADDRESS",
        "SEEN PORT",
        "STATE",
        "IDLE",
    ];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            self.protocol.clone(),
            words.network(&self.network),
            or_dash(self.service.as_ref()),
            self.client.to_string(),
            self.vip.to_string(),
            self.name.as_ref().map_or_else(|| words.endpoint(&self.endpoint), ToString::to_string),
            self.backend.to_string(),
            or_dash(self.seen_port.as_ref()),
            self.state.clone(),
            words::duration(Duration::from_secs(self.idle_s)),
        ]
    }
}

impl Row for DnsRecord {
    const HEAD: &'static [&'static str] =
        &["NAME", "TYPE", "VALUE", "TTL", "NETWORK", "ENDPOINT", "NODE", "SOURCE", "AGE"];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            self.name.clone(),
            self.kind.to_string(),
            self.value.clone(),
            self.ttl.to_string(),
            words.network(&self.network),
            self.endpoint.short(),
            words.node(&self.node),
            self.source.clone(),
            words::duration(Duration::from_millis(self.age_ms)),
        ]
    }
}

impl Row for MapRow {
    const HEAD: &'static [&'static str] =
        &["NETWORK", "ENDPOINT", "NODE", "MAC", "IPS", "INCARNATION"];

    fn cells(&self, words: &Words) -> Vec<String> {
        vec![
            words.network(&self.network),
            self.endpoint.short(),
            words.node(&self.node),
            self.mac.to_string(),
            list(&self.ips),
            self.incarnation.to_string(),
        ]
    }
}

impl Row for MapDiffRow {
    const HEAD: &'static [&'static str] = &["KIND", "NETWORK", "ENDPOINT", "HERE", "THERE"];

    fn cells(&self, words: &Words) -> Vec<String> {
        let any = self.here.as_ref().or(self.there.as_ref());
        let view = |row: &MapRow| {
            format!("{} {} {} #{}", words.node(&row.node), row.mac, list(&row.ips), row.incarnation)
        };
        vec![
            self.kind.clone(),
            or_dash(any.map(|row| words.network(&row.network)).as_ref()),
            or_dash(any.map(|row| row.endpoint.short()).as_ref()),
            or_dash(self.here.as_ref().map(view).as_ref()),
            or_dash(self.there.as_ref().map(view).as_ref()),
        ]
    }
}

impl Row for Token {
    const HEAD: &'static [&'static str] = &["ID", "STATE", "EXPIRES IN", "USES LEFT"];

    fn cells(&self, _: &Words) -> Vec<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let left = self.expires_at.checked_sub(now).filter(|left| *left > 0);
        vec![
            self.id.clone(),
            self.state.clone(),
            or_dash(left.map(Duration::from_secs).map(words::duration).as_ref()),
            self.uses_left.map_or_else(|| "any".into(), |uses| uses.to_string()),
        ]
    }
}

impl Row for HostStatus {
    const HEAD: &'static [&'static str] = &["HOST", "NETNS", "AGENT", "ADDRESSES", "SOCKET"];

    fn cells(&self, _: &Words) -> Vec<String> {
        vec![
            self.host.clone(),
            self.netns.clone(),
            or_dash(self.pid.as_ref()),
            list(&self.addrs),
            self.socket.clone(),
        ]
    }
}

impl Row for Check {
    const HEAD: &'static [&'static str] = &["CHECK", "MEASURED", "RESULT"];

    fn cells(&self, _: &Words) -> Vec<String> {
        let result = if self.ok { "ok" } else { "FAILED" };
        vec![self.what.clone(), self.measured.clone(), result.into()]
    }
}
