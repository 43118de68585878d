//! What a sandbox is to be in a network, and how `--network` says it.
//!
//! ```text
//! blue,green                                          networks alone
//! name=blue,ip=10.1.0.5,alias=web,gw-priority=10      one network, and what the sandbox shall be there; each KEY=VALUE
//! ```

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vxmesh_proto::addr::{Alias, EndpointId, MacAddr, NetworkId};

/// The keys of the long form, as errors name them.
const KEYS: &str = "name, ip, mac, alias, ifname and gw-priority";

/// One network that a sandbox shall be in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// Name or id of the network.
    pub network: String,
    /// Wanted addresses, one per IP version at most; the others are chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Wanted MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Other names of it in this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
    /// Wanted interface name; the first free `ethN` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// The network with the highest one has the sandbox's default routes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gw_priority: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl Connection {
    /// A network without any wish.
    #[must_use]
    pub fn to(network: impl Into<String>) -> Self {
        Self { network: network.into(), ..Self::default() }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ConnectionError> {
        let bad = |why: &dyn fmt::Display| ConnectionError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            why: why.to_string(),
        };
        match key {
            "name" if self.network.is_empty() => value.clone_into(&mut self.network),
            "ip" | "ip6" => self.ips.push(value.parse().map_err(|why| bad(&why))?),
            "mac" | "mac-address" if self.mac.is_none() => {
                self.mac = Some(value.parse().map_err(|why| bad(&why))?);
            }
            "alias" => self.aliases.push(value.parse().map_err(|why| bad(&why))?),
            "ifname" if self.ifname.is_none() => self.ifname = Some(value.to_owned()),
            "gw-priority" if self.gw_priority == 0 => {
                self.gw_priority = value.parse().map_err(|why| bad(&why))?;
            }
            "name" | "mac" | "mac-address" | "ifname" | "gw-priority" => {
                return Err(ConnectionError::Twice(key.to_owned()));
            }
            _ => return Err(ConnectionError::Key(key.to_owned())),
        }
        Ok(())
    }
}

/// The networks of one word of `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections(pub Vec<Connection>);

/// Why a word names no networks.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectionError {
    /// A network without a name.
    #[error("it is empty")]
    Empty,
    /// The long form without a network.
    #[error("it names no network: write name=NETWORK, too")]
    NoName,
    /// A part of the long form that is none.
    #[error("`{0}` is no KEY=VALUE: write name=NETWORK,ip=IP or NETWORK,NETWORK")]
    Form(String),
    /// A key that is none.
    #[error("`{0}` is no key of a network: there are {KEYS}")]
    Key(String),
    /// A key that may stand once.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that the key does not have.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: String,
        /// What it was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl FromStr for Connections {
    type Err = ConnectionError;

    fn from_str(text: &str) -> Result<Self, ConnectionError> {
        let parts = text.split(',');
        // No network's name and no id has this character.
        if !text.contains('=') {
            let network = |part: &str| match part {
                "" => Err(ConnectionError::Empty),
                part => Ok(Connection::to(part)),
            };
            return parts.map(network).collect::<Result<_, _>>().map(Self);
        }
        let mut connection = Connection::default();
        for part in parts {
            let form = || ConnectionError::Form(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(form)?;
            if value.is_empty() {
                return Err(form());
            }
            connection.set(key, value)?;
        }
        if connection.network.is_empty() {
            return Err(ConnectionError::NoName);
        }
        Ok(Self(vec![connection]))
    }
}

/// A network that a sandbox is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxNetwork {
    /// The network.
    pub network: NetworkId,
    /// The sandbox's endpoint there.
    pub endpoint: EndpointId,
    /// As it was asked for.
    pub gw_priority: i32,
    /// Gateways of this network to which the sandbox's default routes lead: one of each IP version
    /// at most.
    pub default_gateways: Vec<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Connection> {
        let Connections(all) = text.parse().unwrap();
        all
    }

    #[test]
    fn networks_alone() {
        assert_eq!(parse("blue"), [Connection::to("blue")]);
        assert_eq!(parse("blue,green"), [Connection::to("blue"), Connection::to("green")]);
    }

    #[test]
    fn one_network_and_what_the_sandbox_is_there() {
        let [all] = &parse(
            "name=blue,ip=10.1.0.5,ip6=fd00::5,alias=web,alias=my.app,mac=02:00:00:00:00:05,ifname=net0,gw-priority=-7",
        )[..] else {
            panic!()
        };
        let wanted = Connection {
            network: "blue".into(),
            ips: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            mac: Some("02:00:00:00:00:05".parse().unwrap()),
            aliases: vec!["web".parse().unwrap(), "my.app".parse().unwrap()],
            ifname: Some("net0".into()),
            gw_priority: -7,
        };
        assert_eq!(*all, wanted);
        // As Docker spells it, in any order.
        let docker = parse("gw-priority=-7,mac-address=02:00:00:00:00:05,name=blue");
        assert_eq!((docker[0].mac, docker[0].gw_priority), (wanted.mac, -7));
    }

    #[test]
    fn nonsense_is_named() {
        for (text, says) in [
            ("", "empty"),
            ("blue,", "empty"),
            (",blue", "empty"),
            ("ip=10.1.0.5", "names no network"),
            ("blue,ip=10.1.0.5", "`blue` is no KEY=VALUE"),
            ("name=blue,green", "`green` is no KEY=VALUE"),
            ("name=", "`name=` is no KEY=VALUE"),
            ("name=blue,", "`` is no KEY=VALUE"),
            ("name=blue,name=green", "name is given twice"),
            ("name=blue,mac=02:00:00:00:00:05,mac-address=02:00:00:00:00:06", "given twice"),
            ("name=blue,colour=5", "`colour` is no key"),
            ("name=blue,ip=10.1.0", "ip=10.1.0: "),
            ("name=blue,ip=10.1.0.5/24", "ip=10.1.0.5/24: "),
            ("name=blue,mac=5", "mac=5: "),
            ("name=blue,alias=a b", "alias=a b: "),
            ("name=blue,gw-priority=high", "gw-priority=high: "),
            ("name=blue,gw-priority=99999999999", "gw-priority=99999999999: "),
        ] {
            let error = text.parse::<Connections>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_request_says_what_is_wanted_and_no_more() {
        let plain = Connection::to("blue");
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"network":"blue"}"#);
        assert!(serde_json::from_str::<Connection>(r#"{"network":"blue","colour":1}"#).is_err());
    }
}
