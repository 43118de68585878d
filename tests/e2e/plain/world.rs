//! A plain network on two hosts, and the kernel's vxlan device on a host without an agent.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use vxmesh::api::Network;
use vxmesh_tests::{
    lab::{Lab, wait_until},
    netns::NetNs,
    outside::sh,
};

/// The number of the plain network.
pub(super) const VNI: u32 = 7348;
/// The kernel's addresses in it, which no endpoint gets.
pub(super) const KERNEL: [&str; 2] = ["10.77.0.200", "fd77::200"];

/// Makes a plain network with these static VTEPs and waits until all hosts list it.
pub(super) fn network(lab: &Lab, name: &str, vteps: &[&str]) -> Result<Network> {
    let vni = VNI.to_string();
    let mut args = vec!["network", "create", name, "--encrypted=false", "--vni", &vni];
    args.extend(["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"]);
    args.extend(["--aux-address", "k4=10.77.0.200", "--aux-address", "k6=fd77::200"]);
    for vtep in vteps {
        args.extend(["--vtep", vtep]);
    }
    let network: Network = lab.json("h1", &args)?;
    ensure!(!network.encrypted && network.mtu == 1430, "{network:?}");
    ensure!(network.warnings.iter().any(|warning| warning.contains("readable")), "{network:?}");
    for host in lab.hosts() {
        wait_until(&format!("{host} lists the network"), || {
            let networks: Vec<Network> = lab.get(host, "/v1/networks")?;
            Ok(networks.iter().any(|listed| listed.id == network.id && !listed.encrypted))
        })?;
    }
    Ok(network)
}

/// Makes the kernel's vxlan device `vx0`, which floods to these hosts. What a card would finish is
/// left unfinished, unless `ethtool` says so.
pub(super) fn kernel_vtep(netns: &NetNs, local: &str, hosts: &[&str]) -> Result<()> {
    let [v4, v6] = KERNEL;
    let mut script = format!(
        "set -e; ip link add vx0 type vxlan id {VNI} dstport 4789 local {local}
        ip link set vx0 mtu 1430 up; ip address add {v4}/24 dev vx0; ip address add {v6}/64 dev vx0 nodad"
    );
    for host in hosts {
        script += &format!("\nbridge fdb append 00:00:00:00:00:00 dev vx0 dst {host}");
    }
    sh(netns, &script)?;
    Ok(())
}

/// Whether the plain port is open in a network namespace.
pub(super) fn is_open(netns: &NetNs) -> Result<bool> {
    // /proc/net is that of the first thread.
    let tables = netns.run(|| {
        let read = |table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        Ok([read("udp")?, read("udp6")?].concat())
    })?;
    Ok(tables
        .lines()
        .any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(":12B5"))))
}

/// The address of an IP version.
pub(super) fn of_version(ips: &[ipnet::IpNet], like: IpAddr) -> Result<IpAddr> {
    let ip = ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == like.is_ipv4());
    ip.context("no address of that version")
}
