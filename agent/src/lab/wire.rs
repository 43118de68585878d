//! Owns the underlay of a lab: bridges in `LAB-wire`, and one virtual cable from there to each
//! host's `eth0`.
//!
//! The port of host `hN` is called `hN`; all ports start on the bridge `wire`. A cut moves ports to
//! a bridge `cutK` of their own, so the kernel alone remembers who is cut off; a bridge that no
//! port is on goes. Every interface lives in a namespace of the lab, none ever on the machine. IPv6
//! addresses are usable at once: nobody else can have them. The ports have no IPv6 of their own.

use std::{collections::BTreeMap, fs::File, io, net::IpAddr};

use super::{
    error::OrFail,
    links::{self, Links},
    name::{HostName, LabName},
    plan::Plan,
};
use crate::api::ApiError;

/// The bridge of all that are not cut off.
const WIRE: &str = "wire";
/// The bridges of those that are, followed by a number.
const CUT: &str = "cut";
/// Labs of so many hosts ask for MAC addresses as hosts elsewhere do: at most 56 entries.
const LEARNING_HOSTS: u8 = 8;
/// The interface of a host.
const ETH: &str = "eth0";

/// Makes the namespace of the underlay with its bridge.
pub(super) async fn make(lab: &LabName, plan: &Plan) -> Result<(), ApiError> {
    let netns = lab.wire_netns();
    let work = async {
        links::create_netns(&netns)?;
        Links::open(&netns)?.create_bridge(WIRE, plan.mtu).await
    };
    work.await.or_fail(|| format!("cannot make the underlay {netns}"))
}

/// Makes the network namespace of a host, with nothing in it.
pub(super) fn make_host_netns(lab: &LabName, host: HostName) -> Result<File, ApiError> {
    let netns = lab.host_netns(host);
    links::create_netns(&netns).or_fail(|| format!("cannot make {netns}"))
}

/// Plugs a host in and gives it its addresses.
pub(super) async fn plug(lab: &LabName, plan: &Plan, host: HostName) -> Result<(), ApiError> {
    let work = async {
        let wire = Links::open(&lab.wire_netns())?;
        let inside = Links::open(&lab.host_netns(host))?;
        let port = host.to_string();
        inside.set_up("lo").await?;
        wire.create_veth(&port, (ETH, host.mac()), &inside, plan.mtu).await?;
        wire.set_master(&port, WIRE).await?;
        disable_v6(&wire, &port)?;
        wire.set_up(&port).await?;
        if plan.underlay.has_v6() {
            inside.sysctl(&format!("ipv6/conf/{ETH}/accept_dad"), "0")?;
        } else {
            disable_v6(&inside, ETH)?;
        }
        inside.set_up(ETH).await?;
        if plan.underlay.has_v4() {
            inside.add_address(ETH, IpAddr::from(host.v4()), 24).await?;
        }
        if plan.underlay.has_v6() {
            inside.add_address(ETH, IpAddr::from(host.v6()), 64).await?;
        }
        Ok::<_, io::Error>(())
    };
    work.await.or_fail(|| format!("cannot plug {host} in"))
}

/// Leaves an interface without IPv6. A kernel without IPv6 has no such setting.
fn disable_v6(links: &Links, name: &str) -> io::Result<()> {
    match links.sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tells the hosts of a large lab each other's MAC addresses. All namespaces of a machine share one
/// neighbour table of 1024 entries by default; hosts that learned of one another would fill it, and
/// others would lose packets.
pub(super) async fn introduce(lab: &LabName, plan: &Plan, host: HostName) -> Result<(), ApiError> {
    if plan.hosts <= LEARNING_HOSTS {
        return Ok(());
    }
    let others = HostName::first(plan.hosts).filter(|other| *other != host);
    let known = others.flat_map(|other| {
        plan.addresses(other).into_iter().map(move |address| (address, other.mac()))
    });
    let work = async { Links::open(&lab.host_netns(host))?.add_neighbours(ETH, known).await };
    work.await.or_fail(|| format!("cannot tell {host} the MAC addresses of the others"))
}

/// Moves the ports of these hosts to a bridge of their own.
pub(super) async fn cut(lab: &LabName, plan: &Plan, hosts: &[HostName]) -> Result<(), ApiError> {
    let work = async {
        let wire = Links::open(&lab.wire_netns())?;
        let names = wire.list().await?;
        let free = (1_u32..)
            .map(|number| format!("{CUT}{number}"))
            .find(|name| !names.iter().any(|(it, ..)| it == name));
        let bridge = free.ok_or_else(|| io::Error::other("no bridge name is free"))?;
        wire.create_bridge(&bridge, plan.mtu).await?;
        for host in hosts {
            wire.set_master(&host.to_string(), &bridge).await?;
        }
        remove_empty(&wire).await
    };
    work.await.or_fail(|| format!("cannot cut hosts of {lab} off"))
}

/// Moves every port back.
pub(super) async fn heal(lab: &LabName) -> Result<(), ApiError> {
    let work = async {
        let wire = Links::open(&lab.wire_netns())?;
        for (name, ..) in wire.list().await? {
            if name.parse::<HostName>().is_ok() {
                wire.set_master(&name, WIRE).await?;
            }
        }
        remove_empty(&wire).await
    };
    work.await.or_fail(|| format!("cannot heal {lab}"))
}

/// Removes the bridges of cuts that no port is on.
async fn remove_empty(wire: &Links) -> io::Result<()> {
    let mut ports: BTreeMap<u32, usize> = BTreeMap::new();
    let links = wire.list().await?;
    for (_, _, master) in &links {
        if let Some(master) = master {
            *ports.entry(*master).or_default() += 1;
        }
    }
    for (name, index, _) in &links {
        if name.starts_with(CUT) && !ports.contains_key(index) {
            wire.delete(name).await?;
        }
    }
    Ok(())
}

/// Lets go of one namespace of a lab; it ends with its last process.
pub(super) fn remove_netns(netns: &str) -> Result<(), ApiError> {
    links::remove_netns(netns).or_fail(|| format!("cannot remove {netns}"))
}
