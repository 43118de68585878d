//! The ports of a container that its user publishes, out of what the engine says of them:
//! `[{"Proto":6,"Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`, with 0 for any port of
//! the host.

use std::net::IpAddr;

use serde::Deserialize;

use super::{
    driver::usage,
    wire::{OfEndpoint, PORT_MAP, if_any},
};
use crate::{
    api::ApiError,
    firewall::rule::Protocol,
    gateway::publish::{PORTS, Publish},
};

/// Protocols by their numbers in IP.
const TCP: u8 = 6;
const UDP: u8 = 17;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PortMapping {
    proto: u8,
    port: u16,
    #[serde(default, rename = "HostIP", deserialize_with = "if_any")]
    host_ip: Option<IpAddr>,
    #[serde(default)]
    host_port: u16,
    #[serde(default)]
    host_port_end: u16,
}

/// What is to be published for a container: of each list the first that is free.
pub(super) fn wanted(asked: &OfEndpoint) -> Result<Vec<Vec<Publish>>, ApiError> {
    let Some(ports) = asked.options.get(PORT_MAP) else { return Ok(Vec::new()) };
    let ports: Option<Vec<PortMapping>> = serde_json::from_value(ports.clone()).map_err(|why| {
        usage(format!("the engine says of ports what cannot be used: {why}"), "see its log")
    })?;
    let ports = ports.unwrap_or_default();
    if ports.len() > PORTS {
        return Err(usage(format!("{} ports are too many", ports.len()), "publish 256 at most"));
    }
    ports.iter().map(candidates).collect()
}

fn candidates(mapping: &PortMapping) -> Result<Vec<Publish>, ApiError> {
    let protocol = match mapping.proto {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        other => {
            return Err(usage(
                format!("port {} is of protocol {other}, which is not published", mapping.port),
                "publish ports of TCP and UDP",
            ));
        }
    };
    let publish =
        |port| Publish { protocol, ip: mapping.host_ip, port, sandbox_port: mapping.port };
    if mapping.host_port == 0 {
        return Ok(vec![publish(None)]);
    }
    let last = mapping.host_port_end.max(mapping.host_port);
    Ok((mapping.host_port..=last).take(PORTS).map(|port| publish(Some(port))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(ports: &str) -> Result<Vec<Vec<Publish>>, ApiError> {
        let body = format!(
            r#"{{"NetworkID":"n","EndpointID":"e","Options":{{"com.docker.network.portmap":{ports}}}}}"#
        );
        wanted(&serde_json::from_str(&body).unwrap())
    }

    #[test]
    fn ports_are_read_as_engines_send_them() {
        let one = r#"[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},
                      {"Proto":17,"IP":"","Port":53,"HostIP":"127.0.0.1","HostPort":0,"HostPortEnd":0}]"#;
        let tcp = Publish { protocol: Protocol::Tcp, ip: None, port: Some(8080), sandbox_port: 80 };
        let udp = Publish {
            protocol: Protocol::Udp,
            ip: Some("127.0.0.1".parse().unwrap()),
            port: None,
            sandbox_port: 53,
        };
        assert_eq!(asked(one).unwrap(), [vec![tcp], vec![udp]]);
        let range = r#"[{"Proto":6,"Port":80,"HostPort":8000,"HostPortEnd":8002}]"#;
        let ports: Vec<_> = asked(range).unwrap()[0].iter().map(|one| one.port.unwrap()).collect();
        assert_eq!(ports, [8000, 8001, 8002]);
        assert!(asked("[]").unwrap().is_empty() && asked("null").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        let sctp = asked(r#"[{"Proto":132,"Port":80}]"#).unwrap_err();
        assert!(sctp.message.contains("port 80") && sctp.message.contains("132"), "{sctp:?}");
        for odd in ["7", "{}", r#"[{"Proto":6}]"#, r#"[{"Proto":6,"Port":80,"HostIP":"x"}]"#] {
            assert!(asked(odd).is_err(), "{odd}");
        }
    }
}
