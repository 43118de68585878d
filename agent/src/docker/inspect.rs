//! What the engine says of one container, as far as the mesh has a use for it ([`Inspection`]):
//! `GET /containers/ID/json`.

use std::{collections::BTreeMap, str::FromStr};

use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer};
use vxmesh_proto::addr::{Alias, Name};

use super::{
    label::{self, ServiceLabel},
    names::{alias_of, name_of},
};

/// A container that runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Its own name as one of the mesh.
    pub(super) name: Option<Name>,
    /// Its labels, as far as endpoints have them.
    pub(super) labels: BTreeMap<String, String>,
    /// The services of which it is a backend.
    pub(super) services: Vec<ServiceLabel>,
    /// Why some of these are none.
    pub(super) fault: Option<String>,
    /// Whether its check has passed, if it has one.
    pub(super) works: bool,
    /// What ends it.
    pub(super) stop_signal: Option<i32>,
    /// Its other names, by the engine's ids of its endpoints.
    pub(super) endpoints: BTreeMap<String, Vec<Alias>>,
}

impl Inspection {
    /// Reads it; nothing if the container does not run.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let said: SaidOfContainer = serde_json::from_slice(body).ok()?;
        if !said.state.running {
            return None;
        }
        let own = said.name.trim_start_matches('/');
        let name = name_of(own);
        let (services, fault) = label::services(&said.config.labels);
        let aliases = |endpoint: SaidEndpoint| {
            let others = endpoint.aliases.into_iter().chain(endpoint.names);
            let mut all: Vec<Alias> = name.iter().filter_map(|name| alias_of(own, name)).collect();
            all.extend(others.filter_map(|alias| alias.parse().ok()));
            // A service has its name for itself.
            all.retain(|alias: &Alias| {
                let is_name = name.as_ref().is_some_and(|name| name.as_str() == alias.as_str());
                !is_name && services.iter().all(|it| it.name.as_str() != alias.as_str())
            });
            let mut seen = Vec::new();
            all.retain(|alias| !seen.contains(alias) && (seen.push(alias.clone()), true).1);
            (endpoint.endpoint, all)
        };
        let joined = said.settings.networks.into_values();
        Some(Self {
            endpoints: joined.filter(|it| !it.endpoint.is_empty()).map(aliases).collect(),
            labels: label::labels(&said.config.labels, &services),
            fault,
            works: said.state.health.is_none_or(|health| {
                // A container without a check has `none`.
                !["starting", "unhealthy"].contains(&health.status.as_str())
            }),
            stop_signal: signal(&said.config.stop_signal),
            name,
            services,
        })
    }
}

/// The number of a signal, which a user writes with or without `SIG`, or as that.
fn signal(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(Signal::SIGTERM as i32);
    }
    let named = || Signal::from_str(&format!("SIG{}", text.trim_start_matches("SIG"))).ok();
    text.parse().ok().or_else(|| named().map(|signal| signal as i32))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidOfContainer {
    #[serde(default)]
    name: String,
    state: SaidState,
    #[serde(default)]
    config: SaidConfig,
    #[serde(default, rename = "NetworkSettings")]
    settings: SaidSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidState {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    health: Option<SaidHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidHealth {
    #[serde(default)]
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidConfig {
    #[serde(default, deserialize_with = "or_none")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_none")]
    stop_signal: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidSettings {
    #[serde(default, deserialize_with = "or_none")]
    networks: BTreeMap<String, SaidEndpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SaidEndpoint {
    #[serde(default, rename = "EndpointID")]
    endpoint: String,
    #[serde(default, deserialize_with = "or_none")]
    aliases: Vec<String>,
    #[serde(default, rename = "DNSNames", deserialize_with = "or_none")]
    names: Vec<String>,
}

fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_says_what_the_mesh_needs() {
        let body = br#"{"Id":"c0ffee123456789","Name":"/app_web_1",
            "State":{"Running":true,"Health":{"Status":"starting"}},
            "Config":{"StopSignal":"SIGQUIT","Labels":{"tier":"front","vxmesh.service":"shop:80:8080"}},
            "NetworkSettings":{"Networks":{
                "app":{"NetworkID":"n","EndpointID":"e1","Aliases":["web","shop","c0ffee123456","web"]},
                "bridge":{"NetworkID":"b","EndpointID":"","Aliases":null}}}}"#;
        let said = Inspection::parse(body).unwrap();
        assert_eq!(said.name.unwrap().as_str(), "app-web-1");
        assert_eq!((said.works, said.stop_signal), (false, Some(3)));
        assert_eq!(said.services[0].name.as_str(), "shop");
        let aliases: Vec<&str> = said.endpoints["e1"].iter().map(Alias::as_str).collect();
        assert_eq!(aliases, ["app_web_1", "web", "c0ffee123456"]);
        assert_eq!(said.endpoints.len(), 1);
        assert_eq!(said.labels["tier"], "front");
    }

    #[test]
    fn little_is_enough() {
        let body = br#"{"Name":"/x","State":{"Running":true},"Config":{"Labels":null}}"#;
        let said = Inspection::parse(body).unwrap();
        assert_eq!((said.works, said.stop_signal), (true, Some(15)));
        for odd in [&b""[..], b"{}", br#"{"State":{"Running":false}}"#, br#"{"State":7}"#] {
            assert_eq!(Inspection::parse(odd), None);
        }
        assert_eq!([signal("9"), signal("HUP"), signal("SIGUSR1")], [Some(9), Some(1), Some(10)]);
        assert_eq!(signal("RTMIN+3"), None);
    }
}
