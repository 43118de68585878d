//! Addresses that can be used as soon as a program starts, and networks of one IP version.

use std::net::{SocketAddr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Sandbox};
use vxmesh_tests::lab::{Allowed, Lab};

/// The addresses of `eth0` and its number, as a program sees them that a sandbox begins with.
fn first_sight(lab: &Lab, network: &str) -> Result<String> {
    let script = "ip -6 -o address show dev eth0";
    lab.vxmesh("h1", &["run", "--network", network, "--", "sh", "-c", script])
}

#[test]
fn a_program_can_bind_to_every_address_when_it_starts() -> Result<()> {
    let lab = Lab::up(1)?;
    let one = |name: &str, flags: &[&str]| -> Result<Network> {
        lab.json("h1", &[&["network", "create", name], flags].concat())
    };
    let both = one("both", &[])?;
    ensure!(both.subnets.len() == 2, "{both:?}");
    for (name, flag, v4) in [("four", "--ipv6=false", true), ("six", "--ipv4=false", false)] {
        let network = one(name, &[flag])?;
        let versions: Vec<bool> =
            network.subnets.iter().map(|it| it.cidr.addr().is_ipv4()).collect();
        ensure!(versions == [v4], "{network:?}");
        let local = one(&format!("{name}-here"), &["--driver", "bridge", flag])?;
        ensure!(local.subnets.len() == 1, "{local:?}");
    }
    let mixed = one("mixed", &["--ipv6", "--subnet", "10.99.0.0/24"])?;
    ensure!(mixed.subnets.len() == 2, "{mixed:?}");
    let neither =
        lab.try_vxmesh("h1", &["network", "create", "no", "--ipv4=false", "--ipv6=false"])?;
    ensure!(neither.status.code() == Some(2), "{neither:?}");

    for name in ["both", "four", "six", "six-here"] {
        let seen = first_sight(&lab, name)?;
        ensure!(seen.contains("fe80::") && !seen.contains("tentative"), "{name}: {seen}");
    }
    // Others are on the link of a macvlan: it is asked about the address, which can be used
    // meanwhile.
    lab.sh(
        "h1",
        "ip link add wan0 type veth peer name lan0 && ip link set wan0 up && ip link set lan0 up",
    )?;
    let subnets = ["--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
    one("lan", &[&["--driver", "macvlan", "-o", "parent=wan0"][..], &subnets].concat())?;
    let sandbox: Sandbox =
        lab.json("h1", &["run", "-d", "--name", "m", "--network", "lan", "--", "sleep", "3600"])?;
    let netns = lab.inner("h1", &sandbox.netns)?;
    let seen =
        lab.vxmesh("h1", &["exec", "m", "--", "sh", "-c", "ip -6 -o address show dev eth0"])?;
    let index = seen.split(':').next().context("no address")?.trim().parse()?;
    let address = seen.split_whitespace().find(|word| word.starts_with("fe80::"));
    let ip = address.and_then(|text| text.split('/').next()).with_context(|| seen.clone())?;
    let at = SocketAddr::from(SocketAddrV6::new(ip.parse()?, 0, 0, index));
    netns.run(|| Ok(UdpSocket::bind(at).map(drop)?)).with_context(|| seen.clone())?;
    lab.sh("h1", "vxmesh sandbox rm m && vxmesh network rm lan && ip link del wan0")?;

    // Names that programs take for something else, and names that are known.
    for words in [
        ["network", "create", "10"],
        ["network", "create", "localhost"],
        ["network", "create", "both"],
    ] {
        let status = if words[2] == "both" { 4 } else { 2 };
        let refused = lab.try_vxmesh("h1", &words)?;
        ensure!(refused.status.code() == Some(status), "{words:?}: {refused:?}");
    }
    for flags in [["--name", "0x10"], ["--name", "localhost"], ["--alias", "1.2"]] {
        let words = [&["run", "--network", "both"][..], &flags, &["--", "true"]].concat();
        let refused = lab.try_vxmesh("h1", &words)?;
        let text = String::from_utf8_lossy(&refused.stderr);
        ensure!(text.contains("cannot be a name"), "{flags:?}: {text}");
    }
    lab.finish(Allowed { drops: vxmesh_tests::lab::UNDERWAY, ..Allowed::default() })
}
