//! Limits of a network that its users may change (`network create -o`, `network update -o`), and
//! whether they bite.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use vxmesh_proto::{
    limits::{DNS_MOST, FLOOD_MOST, LEARNED_STATIONS_MOST},
    object::{self, Content, Draft, NetworkLimits, ObjectId},
    reason::DropReason,
};

use super::{
    doctor::check,
    local::check_options,
    mesh::Mesh,
    networks::{is_gone, usage},
};
use crate::{
    api::{
        self, ApiError, Diagnosis, Driver, Health, NetworkUpdate,
        driver::{
            OPT_DNS_FORWARD_RATE, OPT_DNS_RATE, OPT_LEARNED_STATIONS, OPT_MULTICAST_HOST_RATE,
            OPT_MULTICAST_RATE,
        },
    },
    dns::clients::FORWARDS_UNDER_WAY,
    host::table::LocalTable,
    lock::lock,
};

/// A limit that was met this long ago bites.
const OF_LATE: Duration = Duration::from_secs(60);

/// An option of a network that is a limit.
struct Limit {
    option: &'static str,
    most: u32,
    of: fn(&mut NetworkLimits) -> &mut Option<u32>,
}

const LIMITS: [Limit; 5] = [
    Limit { option: OPT_MULTICAST_RATE, most: FLOOD_MOST, of: |it| &mut it.multicast },
    Limit { option: OPT_MULTICAST_HOST_RATE, most: FLOOD_MOST, of: |it| &mut it.multicast_host },
    Limit { option: OPT_DNS_RATE, most: DNS_MOST, of: |it| &mut it.dns },
    Limit { option: OPT_DNS_FORWARD_RATE, most: DNS_MOST, of: |it| &mut it.dns_forward },
    Limit { option: OPT_LEARNED_STATIONS, most: LEARNED_STATIONS_MOST, of: |it| &mut it.stations },
];

/// The limits with what these options say of them; an empty one is the default again.
pub(super) fn limits_by(
    mut limits: NetworkLimits,
    options: &BTreeMap<String, String>,
    encrypted: bool,
) -> Result<NetworkLimits, ApiError> {
    for Limit { option, most, of } in LIMITS {
        let Some(text) = options.get(option) else { continue };
        if option == OPT_LEARNED_STATIONS && encrypted {
            return Err(usage(
                "an encrypted network learns no stations: it has no VTEPs without an agent",
                &format!("leave {OPT_LEARNED_STATIONS} out"),
            ));
        }
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        if number.is_none() && !text.is_empty() {
            return Err(usage(
                format!("`{text}` is no {option}"),
                &format!("give a number from 1 to {most}, or nothing for the default"),
            ));
        }
        *of(&mut limits) = number;
    }
    if limits.multicast_of_host() < limits.multicast_of_endpoint() {
        return Err(usage(
            format!(
                "a host may send less than one of its endpoints: {OPT_MULTICAST_HOST_RATE} is too small"
            ),
            &format!("give {} or more, or leave it out", limits.multicast_of_endpoint()),
        ));
    }
    Ok(limits)
}

/// The options that say so.
pub(super) fn options(mut limits: NetworkLimits) -> BTreeMap<String, String> {
    let given = LIMITS.into_iter().filter_map(|Limit { option, of, .. }| {
        Some((option.to_owned(), (*of(&mut limits))?.to_string()))
    });
    given.collect()
}

/// What a network may change so that it carries more.
fn remedy(network: &api::Network, options: &[&str]) -> String {
    let options: Vec<String> = options.iter().map(|option| format!("-o {option}=N")).collect();
    format!("`vxmesh network update {} {}` allows more", network.name, options.join(" "))
}

impl Mesh {
    /// Changes the limits of a network, on this node and so on all.
    pub(super) fn update_network(
        self: &Arc<Self>,
        reference: &str,
        update: &NetworkUpdate,
    ) -> Result<api::Network, ApiError> {
        let network = self.find_changeable(reference)?;
        if update.options.is_empty() {
            return Err(usage("nothing is to be changed", "give an option with -o KEY=VALUE"));
        }
        check_options(Driver::Overlay, &update.options)?;
        let id = ObjectId::Network(network.id);
        let object = self.member.objects.publish::<ApiError>(|set, hlc| {
            let object = set.get(&id).filter(|object| !object.closed()).ok_or_else(is_gone)?;
            let Content::Network(before) = object.content() else { return Err(is_gone()) };
            let limits = limits_by(before.limits, &update.options, before.encrypted)?;
            let content = Content::Network(object::Network { limits, ..before.clone() });
            Ok(Draft { content, ..object.edit(hlc) })
        })?;
        self.member.push_objects([object.text().to_string()]);
        self.member.keeper.kick();
        self.inspect_network(&network.id.to_string())
    }

    /// The networks whose limits were met of late, and by whom.
    pub(super) fn limits_met(&self, networks: &[api::Network]) -> Vec<Diagnosis> {
        let Some(begin) = Instant::now().checked_sub(OF_LATE) else { return Vec::new() };
        let mut all = self.multicast_limited(networks, begin);
        all.extend(self.names_limited(networks, begin));
        all.extend(networks.iter().filter_map(|network| self.stations_limited(network)));
        all
    }

    fn multicast_limited(&self, networks: &[api::Network], begin: Instant) -> Vec<Diagnosis> {
        let rows = self.host.plane.drops().since(begin).into_iter();
        let rows = rows.filter(|(key, _)| key.reason == DropReason::FloodLimited);
        let rows = rows.filter_map(|(key, count)| {
            let network = networks.iter().find(|network| Some(network.id) == key.network)?;
            let endpoints = self.stored_endpoints().unwrap_or_default();
            let endpoint = endpoints.iter().find(|endpoint| Some(endpoint.id) == key.endpoint);
            let of = endpoint.map_or_else(String::new, |it| format!(" of endpoint {}", it.name));
            let found = format!(
                "broadcasts and multicasts{of} are more than the limit: {count} were dropped"
            );
            Some(limited(
                network,
                found,
                &remedy(network, &[OPT_MULTICAST_RATE, OPT_MULTICAST_HOST_RATE]),
            ))
        });
        rows.collect()
    }

    /// The networks whose name servers were asked more of late than one client may.
    fn names_limited(&self, networks: &[api::Network], begin: Instant) -> Vec<Diagnosis> {
        let rows = self.host.name_servers.names.drops().since(begin).into_iter();
        let rows = rows.filter_map(|(key, count)| {
            let network = networks.iter().find(|network| Some(network.id) == key.network)?;
            let hint = match key.reason {
                DropReason::DnsRate | DropReason::DnsForwardRate if self.is_local(network.id) => {
                    "a cache of names in it asks less; a network of the mesh can allow more"
                        .to_owned()
                }
                DropReason::DnsRate => remedy(network, &[OPT_DNS_RATE]),
                DropReason::DnsForwardRate => remedy(network, &[OPT_DNS_FORWARD_RATE]),
                DropReason::DnsForwardsFull => format!(
                    "{FORWARDS_UNDER_WAY} questions of a sandbox may wait for the name servers outside at a time: ask less at once, or see whether these answer"
                ),
                _ => return None,
            };
            let found = format!(
                "a sandbox asks for more names than it may: {count} questions were not answered ({})",
                key.reason
            );
            Some(limited(network, found, &hint))
        });
        rows.collect()
    }

    /// Whether a plain network has more behind its static VTEPs than it may know.
    fn stations_limited(&self, network: &api::Network) -> Option<Diagnosis> {
        let locals = lock(&self.host.locals);
        let LocalTable::Plain(plain) = &locals.get(&network.id)?.table else { return None };
        let (most, known) = (plain.spec().limits.stations(), plain.learned().len());
        let found = format!(
            "{known} machines behind the VTEPs without an agent are known, and no more may be: frames to others go to all"
        );
        (known >= most).then(|| limited(network, found, &remedy(network, &[OPT_LEARNED_STATIONS])))
    }
}

fn limited(network: &api::Network, found: String, hint: &str) -> Diagnosis {
    check(&format!("network {}", network.name), Health::Warn, found, hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(options: &serde_json::Value) -> Result<NetworkLimits, ApiError> {
        let options = serde_json::from_value(options.clone()).unwrap();
        limits_by(NetworkLimits::default(), &options, false)
    }

    #[test]
    fn limits_are_numbers_that_fit_each_other() {
        assert_eq!(of(&json!({})).unwrap(), NetworkLimits::default());
        let more = of(&json!({ "multicast_rate": "5000" })).unwrap();
        assert_eq!((more.multicast_of_endpoint(), more.multicast_of_host()), (5000, 5000));
        let all = json!({
            "multicast_rate": "50", "multicast_host_rate": "60", "dns_rate": "70",
            "dns_forward_rate": "80", "learned_stations": "90",
        });
        let limits = of(&all).unwrap();
        assert_eq!(serde_json::to_value(options(limits)).unwrap(), all);
        assert_eq!((limits.dns(), limits.dns_forward(), limits.stations()), (70, 80, 90));
        for bad in [
            json!({ "multicast_rate": "0" }),
            json!({ "multicast_rate": "many" }),
            json!({ "multicast_host_rate": "1000001" }),
            json!({ "multicast_rate": "50", "multicast_host_rate": "40" }),
            json!({ "multicast_host_rate": "40" }),
            json!({ "dns_rate": "-1" }),
            json!({ "learned_stations": "65537" }),
        ] {
            assert!(of(&bad).is_err(), "{bad}");
        }
        let options = BTreeMap::from([("learned_stations".to_owned(), "90".to_owned())]);
        assert!(limits_by(NetworkLimits::default(), &options, true).is_err());
    }

    #[test]
    fn what_is_changed_leaves_the_rest() {
        let before = of(&json!({ "multicast_rate": "5000", "dns_rate": "70" })).unwrap();
        let options = BTreeMap::from([("multicast_rate".to_owned(), String::new())]);
        let after = limits_by(before, &options, true).unwrap();
        assert_eq!((after.multicast, after.dns), (None, Some(70)));
    }
}
