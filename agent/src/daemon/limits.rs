//! Limits of a network that its creator may change (`network create -o`), and whether they bite.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use vxmesh_proto::{limits::FLOOD_MOST, object::Multicast, reason::DropReason};

use super::{doctor::check, mesh::Mesh, networks::usage};
use crate::{
    api::{self, ApiError, Diagnosis, Health, NetworkSpec},
    dns::clients::{FORWARDS_PER_SECOND, FORWARDS_UNDER_WAY, PER_SECOND},
};

const OF_ENDPOINT: &str = "multicast_rate";
const OF_HOST: &str = "multicast_host_rate";
/// A limit that was met this long ago bites.
const OF_LATE: Duration = Duration::from_secs(60);
/// Limits of a name server, as its counters call them, and what they allow each client.
const OF_NAMES: [(DropReason, usize, &str); 3] = [
    (DropReason::DnsRate, PER_SECOND as usize, "questions in a second are answered"),
    (
        DropReason::DnsForwardRate,
        FORWARDS_PER_SECOND as usize,
        "questions in a second go to the name servers outside",
    ),
    (
        DropReason::DnsForwardsFull,
        FORWARDS_UNDER_WAY,
        "questions wait for the name servers outside at a time",
    ),
];

/// What the options of a network say of multicast.
pub(super) fn multicast_of(spec: &NetworkSpec) -> Result<Multicast, ApiError> {
    let rate = |name: &str| {
        let Some(text) = spec.options.get(name) else { return Ok(None) };
        let rate = text.parse().ok().filter(|rate| (1..=FLOOD_MOST).contains(rate));
        rate.map(Some).ok_or_else(|| {
            usage(
                format!("`{text}` is no {name}"),
                &format!("give a number of packets in a second, 1 to {FLOOD_MOST}"),
            )
        })
    };
    let multicast = Multicast { endpoint: rate(OF_ENDPOINT)?, host: rate(OF_HOST)? };
    if multicast.of_host() < multicast.of_endpoint() {
        return Err(usage(
            format!("a host may send less than one of its endpoints: {OF_HOST} is too small"),
            &format!("give {} or more, or leave it out", multicast.of_endpoint()),
        ));
    }
    Ok(multicast)
}

/// The options that say so.
pub(super) fn options(multicast: Multicast) -> BTreeMap<String, String> {
    let all = [(OF_ENDPOINT, multicast.endpoint), (OF_HOST, multicast.host)];
    let given =
        all.into_iter().filter_map(|(name, rate)| Some((name.to_owned(), rate?.to_string())));
    given.collect()
}

impl Mesh {
    /// The networks whose name servers were asked more of late than one client may.
    pub(super) fn names_limited(&self, networks: &[api::Network]) -> Vec<Diagnosis> {
        let Some(begin) = Instant::now().checked_sub(OF_LATE) else { return Vec::new() };
        let rows = self.name_servers.names.drops().since(begin).into_iter();
        let rows = rows.filter_map(|(key, count)| {
            let (_, most, allowed) = OF_NAMES.into_iter().find(|(it, ..)| *it == key.reason)?;
            let network = networks.iter().find(|network| Some(network.id) == key.network)?;
            let found = format!(
                "a sandbox asks for more names than it may: {count} questions were not answered ({})",
                key.reason
            );
            let hint = format!("{most} {allowed} for each sandbox; a cache of names in it asks less");
            Some(check(&format!("network {}", network.name), Health::Warn, found, &hint))
        });
        rows.collect()
    }

    /// The networks whose limits were met of late, and by whom.
    pub(super) fn limits_met(&self, networks: &[api::Network]) -> Vec<Diagnosis> {
        let Some(begin) = Instant::now().checked_sub(OF_LATE) else { return Vec::new() };
        let rows = self.plane.drops().since(begin).into_iter();
        let rows = rows.filter(|(key, _)| key.reason == DropReason::FloodLimited);
        let rows = rows.filter_map(|(key, count)| {
            let network = networks.iter().find(|network| Some(network.id) == key.network)?;
            let endpoints = self.stored_endpoints().unwrap_or_default();
            let endpoint = endpoints.iter().find(|endpoint| Some(endpoint.id) == key.endpoint);
            let of = endpoint.map_or_else(String::new, |it| format!(" of endpoint {}", it.name));
            let found = format!(
                "broadcasts and multicasts{of} are more than the limit: {count} were dropped"
            );
            let hint = format!(
                "a network that is to carry more is made with -o {OF_ENDPOINT}=N and -o {OF_HOST}=N, packets in a second of an endpoint and of a host"
            );
            Some(check(&format!("network {}", network.name), Health::Warn, found, &hint))
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(options: serde_json::Value) -> Result<Multicast, ApiError> {
        let spec = json!({ "name": "blue", "options": options });
        multicast_of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn limits_are_numbers_that_fit_each_other() {
        assert_eq!(of(json!({})).unwrap(), Multicast::default());
        let more = of(json!({ "multicast_rate": "5000" })).unwrap();
        assert_eq!((more.of_endpoint(), more.of_host()), (5000, 5000));
        let both = json!({ "multicast_rate": "50", "multicast_host_rate": "60" });
        let both = of(both.clone()).map(|both_of| (options(both_of), both)).unwrap();
        assert_eq!(serde_json::to_value(both.0).unwrap(), both.1);
        for bad in [
            json!({ "multicast_rate": "0" }),
            json!({ "multicast_rate": "many" }),
            json!({ "multicast_host_rate": "1000001" }),
            json!({ "multicast_rate": "50", "multicast_host_rate": "40" }),
            json!({ "multicast_host_rate": "40" }),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
    }
}
