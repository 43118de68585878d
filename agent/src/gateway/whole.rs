//! What of an uplink is not as `super::uplink` made it: somebody took an end down, an address, a
//! route or a setting away.

use std::net::IpAddr;

use ipnet::IpNet;

use super::uplink::{HOST_LL, INSIDE, INSIDE_LL, Uplink, host_settings, pair_net, switches};
use crate::netlink::{
    link::{Link, LinkError, Links},
    settings::Settings,
    whole::State,
};

/// What is not as it should be, in words; nothing is changed. `host` is the host's namespace, in
/// which this runs.
#[must_use]
pub fn faults(uplink: &Uplink, mtu: u16, host: &State, inside: &State) -> Vec<String> {
    let name = uplink.ifname.as_str();
    let (Some(outer), Some(inner)) = (host.link(name), inside.link(INSIDE)) else {
        return vec![format!("{name} is gone")];
    };
    let mut said = Vec::new();
    if outer.peer != Some(inner.index) || inner.peer != Some(outer.index) {
        said.push(format!("{name} leads elsewhere"));
    }
    for (link, name) in [(outer, name), (inner, INSIDE)] {
        if !link.up {
            said.push(format!("{name} is down"));
        }
        if link.mtu != u32::from(mtu) {
            said.push(format!("{name} has another MTU"));
        }
    }
    let mut addresses =
        vec![(host, outer, pair_net(uplink.host)), (inside, inner, pair_net(uplink.inside))];
    if let Some(inside6) = uplink.inside6 {
        addresses.push((host, outer, IpNet::new_assert(HOST_LL.into(), 64)));
        addresses.push((inside, inner, IpNet::new_assert(INSIDE_LL.into(), 64)));
        addresses.push((inside, inner, IpNet::from(IpAddr::from(inside6))));
        if !host.has_route(outer, IpNet::from(IpAddr::from(inside6))) {
            said.push(format!("the host's route to {inside6} is gone"));
        }
    }
    if !host.has_route(outer, pair_net(uplink.host).trunc()) {
        said.push(format!("the host's route to {} is gone", uplink.inside));
    }
    let lost = |(state, link, address): &(&State, &Link, IpNet)| {
        (!state.has_address(link, address)).then(|| format!("{} has lost {address}", link.name))
    };
    said.extend(addresses.iter().filter_map(lost));
    let routers = [Some(IpAddr::from(uplink.host)), uplink.inside6.map(|_| HOST_LL.into())];
    for router in routers.into_iter().flatten().filter(|router| !inside.leads(inner, *router)) {
        said.push(format!("the default route by {router} inside is gone"));
    }
    said.extend(setting_faults(uplink));
    said
}

/// Takes both ends down: with the links the kernel brings back the routes that it makes of
/// addresses.
///
/// # Errors
/// The kernel refuses.
pub async fn take_down(uplink: &Uplink, host: &Links, inside: &Links) -> Result<(), LinkError> {
    host.take_down(&uplink.ifname).await?;
    inside.take_down(INSIDE).await
}

/// Settings of the host's end that are not as they should be.
#[must_use]
pub fn setting_faults(uplink: &Uplink) -> Vec<String> {
    let mut settings = host_settings(&uplink.ifname, uplink.inside6.is_some());
    settings.extend(switches(&uplink.ifname));
    changed(settings)
}

/// Those of them of which the kernel tells nobody: it tells of forwarding, and where another one of
/// IPv6 matters, addresses go with it.
#[must_use]
pub fn untold_faults(uplink: &Uplink) -> Vec<String> {
    changed(host_settings(&uplink.ifname, false))
}

fn changed(settings: Vec<(String, &'static str)>) -> Vec<String> {
    let mut kernel = Settings::default();
    let changed =
        settings.into_iter().filter(|(path, value)| kernel.is(path, value) == Some(false));
    changed.map(|(path, _)| format!("the setting net/{path} was changed")).collect()
}
