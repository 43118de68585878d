//! The host's side of networks against the real kernel. [`namespaces`]: pins; [`lifecycle`]: one
//! network from nothing to nothing (I8, I9); [`plugs`]: endpoints; [`frames`]: who sees which
//! frame, and how whole it is; [`queues`]: the queues of a TAP;
//! [`overruns`]: what a data socket loses; [`settings`]: what the host is told and what is put
//! back; [`steering`]: answers of services' backends.

mod frames;
mod lifecycle;
mod namespaces;
mod overruns;
mod plugs;
mod queues;
mod settings;
mod steering;

use anyhow::{Context, Result};
use vxmesh::netlink::{
    netns::Netns,
    overlay::{Overlay, OverlaySpec, Plug},
};
use vxmesh_proto::addr::{EndpointId, MacAddr, NetworkId};
use vxmesh_tests::topology::{Sandbox, Topology, ok, wait_until};

const MTU: u16 = 1390;
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 1]);

/// A network, by a number that its addresses have too.
fn spec(network: u8) -> Result<OverlaySpec> {
    Ok(OverlaySpec {
        id: NetworkId::from_random([network; 16]),
        gateway_mac: GATEWAY_MAC,
        gateways: vec![
            format!("10.{network}.0.1/16").parse()?,
            format!("fd{network}::1/64").parse()?,
        ],
        mtu: MTU,
        routed: true,
    })
}

/// An endpoint of a network, by a number that its addresses have too.
fn plug(network: u8, number: u8, sandbox: &Sandbox) -> Result<Plug> {
    Ok(Plug {
        id: EndpointId::from_random([number; 16]),
        netns: Some(sandbox.path.clone()),
        ifname: None,
        mac: mac(number),
        ips: vec![
            format!("10.{network}.0.{number}/16").parse()?,
            format!("fd{network}::{number}/64").parse()?,
        ],
        default_route: true,
    })
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

/// The outer end of that endpoint's cable.
fn port(number: u8) -> String {
    let digits: String = format!("{number:02x}").repeat(6);
    format!("v{}", &digits[..11])
}

/// Network 10 on a host of this name.
async fn host(topology: &Topology, name: &str) -> Result<Overlay> {
    Ok(Overlay::ensure(&topology.run_dir(name), spec(10)?).await?)
}

/// The namespace of network 10 there.
fn inside(topology: &Topology, host: &str) -> Result<Netns> {
    Ok(Netns::open(&topology.run_dir(host).join("netns").join(spec(10)?.id.short()))?)
}

/// A sandbox with endpoint `number` of network 10.
async fn sandbox(topology: &Topology, overlay: &Overlay, number: u8) -> Result<Sandbox> {
    let sandbox = topology.sandbox(&format!("s{number}"))?;
    overlay.attach(&plug(10, number, &sandbox)?).await.context("attach")?;
    Ok(sandbox)
}

/// All that is configured in a namespace: equal texts mean that nothing was changed, made anew or
/// left behind.
fn state(netns: &Netns) -> Result<String> {
    let lines = [
        "ip link",
        "ip address",
        "ip route show table all",
        "ip -6 route show table all",
        "bridge -d link",
        "bridge fdb",
        "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.default.disable_ipv6",
    ];
    let mut state = String::new();
    for line in lines {
        let said = ok(netns, line)?;
        let mut rows: Vec<&str> = said.lines().collect();
        // The kernel hashes the rows of these.
        if line.contains("fdb") {
            rows.sort_unstable();
        }
        state += &rows.join("\n");
        state += "\n";
    }
    Ok(state)
}

/// Waits until a namespace is as it was. The kernel spreads carriers and makes IPv6 addresses
/// usable a little later.
fn settles(netns: &Netns, wanted: &str, after: &str) -> Result<()> {
    let settled = wait_until(after, || Ok(state(netns)? == wanted));
    if settled.is_err() {
        assert_eq!(state(netns)?, wanted, "{after}");
    }
    settled
}

/// What is configured once all carriers are there.
fn settled(netns: &Netns) -> Result<String> {
    wait_until("all interfaces are up", || Ok(!ok(netns, "ip link")?.contains("DOWN")))?;
    state(netns)
}
