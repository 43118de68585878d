//! How a container is called in the mesh.

use std::collections::BTreeMap;

use serde::Deserialize;
use vxmesh_proto::{
    addr::{Alias, Name},
    limits::NAME_LEN,
};

/// The part of `GET /networks/ID` that says who is in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    containers: BTreeMap<String, Member>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "EndpointID")]
    endpoint: String,
}

/// The container's own name for an endpoint, out of the description of its network. While it joins
/// it is listed by the endpoint's id.
pub(super) fn container_of(network: &[u8], endpoint: &str) -> Option<String> {
    let network: Inspected = serde_json::from_slice(network).ok()?;
    let by_endpoint = format!("ep-{endpoint}");
    let found = network
        .containers
        .into_iter()
        .find(|(key, member)| *key == by_endpoint || member.endpoint == endpoint);
    found.map(|(_, member)| member.name).filter(|name| !name.is_empty())
}

/// The ids of the endpoints in a network; nothing if the engine says it in another way.
pub(super) fn endpoints_of(network: &[u8]) -> Option<Vec<String>> {
    let network: Inspected = serde_json::from_slice(network).ok()?;
    let id = |(key, member): (String, Member)| match key.strip_prefix("ep-") {
        Some(id) => id.to_owned(),
        None => member.endpoint,
    };
    Some(network.containers.into_iter().map(id).collect())
}

/// The names of the containers in a network, by endpoint.
pub(super) fn members_of(network: &[u8]) -> BTreeMap<String, String> {
    let network: Option<Inspected> = serde_json::from_slice(network).ok();
    let members = network.into_iter().flat_map(|network| network.containers);
    let named = |(key, member): (String, Member)| match key.strip_prefix("ep-") {
        Some(id) => (id.to_owned(), member.name),
        None => (member.endpoint, member.name),
    };
    members.map(named).collect()
}

/// The ids of the containers that run in a network.
pub(super) fn containers_of(network: &[u8]) -> Vec<String> {
    let network: Option<Inspected> = serde_json::from_slice(network).ok();
    let keys = network.into_iter().flat_map(|network| network.containers.into_keys());
    keys.filter(|key| !key.starts_with("ep-")).collect()
}

/// A container's name as one of the mesh, which has labels of DNS: small letters, digits and `-`.
pub(crate) fn name_of(container: &str) -> Option<Name> {
    let label: String = container
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(NAME_LEN)
        .collect();
    label.trim_matches('-').parse().ok()
}

/// The name of a container on this host where another one of the network has its own.
pub(crate) fn name_on(name: &Name, host: &str) -> Option<Name> {
    let room = NAME_LEN.saturating_sub(host.len() + 1);
    let name: String = name.as_str().chars().take(room).collect();
    format!("{}-{host}", name.trim_end_matches('-')).parse().ok()
}

/// The container's own name where it is another one.
pub(crate) fn alias_of(container: &str, name: &Name) -> Option<Alias> {
    let alias: Alias = container.parse().ok()?;
    (alias.as_str() != name.as_str()).then_some(alias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_by_its_endpoint() {
        let joining = br#"{"Name":"n","Containers":{"ep-77":{"Name":"Web_1","EndpointID":"77"}}}"#;
        assert_eq!(container_of(joining, "77").as_deref(), Some("Web_1"));
        let running = br#"{"Containers":{"c0ffee":{"Name":"web","EndpointID":"77"}}}"#;
        assert_eq!(container_of(running, "77").as_deref(), Some("web"));
        assert_eq!(container_of(running, "78"), None);
        assert_eq!(containers_of(running), ["c0ffee"]);
        for (both, name) in [(&joining[..], "Web_1"), (running, "web")] {
            assert_eq!(members_of(both), BTreeMap::from([("77".to_owned(), name.to_owned())]));
        }
        assert!(containers_of(joining).is_empty() && containers_of(b"7").is_empty());
        for both in [&joining[..], running] {
            assert_eq!(endpoints_of(both), Some(vec!["77".to_owned()]));
        }
        assert_eq!(endpoints_of(br#"{"Containers":{}}"#), Some(Vec::new()));
        assert_eq!(endpoints_of(br#"{"Containers":null}"#), None);
        for odd in [&b""[..], b"[]", b"{}", br#"{"Containers":7}"#, br#"{"Containers":null}"#] {
            assert_eq!(container_of(odd, "77"), None);
        }
    }

    #[test]
    fn every_name_of_a_container_becomes_a_label() {
        let name = |container: &str| name_of(container).map(|name| name.to_string());
        assert_eq!(name("web").as_deref(), Some("web"));
        assert_eq!(name("App_web_1").as_deref(), Some("app-web-1"));
        assert_eq!(name("a.b-").as_deref(), Some("a-b"));
        assert_eq!(name(&"x".repeat(200)).map(|name| name.len()), Some(NAME_LEN));
        assert_eq!(name("___"), None);
        let web = name_of("web").unwrap();
        assert_eq!(alias_of("web", &web), None);
        let own = name_of("App_web_1").unwrap();
        assert_eq!(alias_of("App_web_1", &own).unwrap().as_str(), "app_web_1");
        assert_eq!(name_on(&web, "h2").unwrap().as_str(), "web-h2");
        let long = name_of(&"x".repeat(200)).unwrap();
        assert_eq!(name_on(&long, "h2").unwrap().as_str().len(), NAME_LEN);
    }
}
