//! What `ADD` is answered, behind what plug-ins before this one answered; and whether `CHECK` finds
//! it so.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{
    config::Config,
    error::{CniError, Code},
    request::Request,
    version::Version,
};
use crate::api::Attachment;

/// The result of an attachment. The end of its cable on this side is in the network's own
/// namespace, so no interface of the host is listed.
pub(crate) fn result(request: &Request, attachment: &Attachment) -> Result<Value, CniError> {
    let (version, previous) = (request.version, request.config.previous());
    let mut result = previous.cloned().unwrap_or_default();
    let interfaces = list(&mut result, "interfaces")?;
    let at = interfaces.len();
    let endpoint = &attachment.endpoint;
    let mut interface = json!({
        "name": endpoint.ifname, "mac": endpoint.mac.to_string(), "sandbox": request.env.netns,
    });
    if version >= Version::V1_1_0 {
        interface["mtu"] = json!(attachment.network.mtu);
    }
    interfaces.push(interface);
    let ips = endpoint.ips.iter().map(|ip| address(version, *ip, gateway(attachment, *ip), at));
    list(&mut result, "ips")?.extend(ips);
    let gateways = endpoint.ips.iter().filter_map(|ip| gateway(attachment, *ip));
    list(&mut result, "routes")?.extend(gateways.map(default_route));
    name_servers(request, attachment, &mut result)?;
    result.insert("cniVersion".to_owned(), json!(version.to_string()));
    Ok(Value::Object(result))
}

/// Refuses what the answer could not be made of, before anything is plugged in.
pub(super) fn check_shapes(config: &Config) -> Result<(), CniError> {
    let mut previous = config.previous().cloned().unwrap_or_default();
    for key in ["interfaces", "ips", "routes"] {
        list(&mut previous, key)?;
    }
    if let Some(dns) = previous.get_mut("dns").and_then(Value::as_object_mut) {
        for key in ["nameservers", "search", "options"] {
            list(dns, key)?;
        }
    }
    config.runtime::<Map<String, Value>>("dns").map(drop)
}

/// A list of the result, which may not be there yet.
fn list<'r>(result: &'r mut Map<String, Value>, key: &str) -> Result<&'r mut Vec<Value>, CniError> {
    let value = result.entry(key).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| {
        CniError::new(
            Code::Decode,
            format!("`{key}` of prevResult is no list"),
            "look at the plug-in before this one",
        )
    })
}

fn address(version: Version, ip: IpNet, gateway: Option<IpAddr>, interface: usize) -> Value {
    let mut said = json!({ "address": ip.to_string(), "interface": interface });
    if let Some(gateway) = gateway {
        said["gateway"] = json!(gateway);
    }
    if version < Version::V1_0_0 {
        said["version"] = json!(if ip.addr().is_ipv4() { "4" } else { "6" });
    }
    said
}

fn default_route(gateway: IpAddr) -> Value {
    json!({ "dst": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway })
}

/// The way out that an address has.
fn gateway(attachment: &Attachment, ip: IpNet) -> Option<IpAddr> {
    let network = &attachment.network;
    let subnet = network.subnets.iter().find(|subnet| subnet.cidr.contains(&ip.addr()))?;
    (!network.internal).then_some(subnet.gateway)
}

/// Who answers for names: whom the runtime or the configuration says, else the network's gateways.
fn name_servers(
    request: &Request,
    attachment: &Attachment,
    result: &mut Map<String, Value>,
) -> Result<(), CniError> {
    let said: Option<Map<String, Value>> = request.config.runtime("dns")?;
    let said = said.unwrap_or_default();
    let written = request.config.object("dns").cloned().unwrap_or_default();
    let ips = attachment.endpoint.ips.iter();
    let served: BTreeSet<IpAddr> = ips
        .filter_map(|ip| attachment.network.subnets.iter().find(|it| it.cidr.contains(&ip.addr())))
        .map(|subnet| subnet.gateway)
        .collect();
    let mut dns = result.get("dns").and_then(Value::as_object).cloned().unwrap_or_default();
    let choices = [
        ("nameservers", said.get("servers").or_else(|| written.get("nameservers")), json!(served)),
        ("search", said.get("searches").or_else(|| written.get("search")), json!([])),
        ("options", said.get("options").or_else(|| written.get("options")), json!([])),
    ];
    for (key, said, default) in choices {
        let said = said.filter(|it| it.as_array().is_some_and(|all| !all.is_empty()));
        let added = said.unwrap_or(&default).as_array().cloned().unwrap_or_default();
        if !added.is_empty() {
            let all = list(&mut dns, key)?;
            for it in added {
                if !all.contains(&it) {
                    all.push(it);
                }
            }
        }
    }
    if let Some(domain) = written.get("domain") {
        dns.entry("domain").or_insert_with(|| domain.clone());
    }
    result.insert("dns".to_owned(), Value::Object(dns));
    Ok(())
}

impl Request {
    /// Compares what the agent has with the addresses that the runtime was answered, and with where
    /// the container is.
    pub(crate) fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let endpoint = &attachment.endpoint;
        let wrong =
            |what: String| Err(CniError::new(Code::Conflict, what, "start the container anew"));
        let netns = &self.env.netns;
        if endpoint.sandbox.as_ref().is_some_and(|own| own != netns) {
            return wrong(format!("the container was added to another namespace than {netns}"));
        }
        let known = self.config.previous().and_then(|all| all.get("ips")).and_then(Value::as_array);
        let is_known = |ip: &IpNet| {
            let text = ip.to_string();
            let mut said = known.into_iter().flatten().filter_map(|it| it.get("address"));
            said.any(|it| it.as_str() == Some(&text))
        };
        match endpoint.ips.iter().find(|ip| known.is_some() && !is_known(ip)) {
            Some(ip) => {
                wrong(format!("the container has the address {ip}, which prevResult lacks"))
            }
            None => Ok(()),
        }
    }
}
