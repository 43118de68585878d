//! Backends on the client's own host, a client that is a backend itself, and the host as a client.

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Endpoint, Network, Service};
use vxmesh_tests::lab::{Allowed, Lab, Options, wait_until};

use super::{answers, ask, settled, who};

const REQUESTS: usize = 60;

#[test]
fn backends_beside_the_client_answer_it_by_the_vip_too_and_keep_it_if_asked() -> Result<()> {
    let lab = Lab::captured(Options { hosts: 2, ..Options::default() })?;
    let dir = tempfile::tempdir()?;
    let subnets = ["--subnet", "10.74.0.0/24", "--subnet", "fd74::/64"];
    let _blue: Network =
        lab.json("h1", &[&["network", "create", "blue"], &subnets[..]].concat())?;
    wait_until("h2 knows the network", || {
        Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
    })?;
    for (host, name) in [("h1", "web1"), ("h2", "web2")] {
        who(&lab, dir.path(), host, name)?;
    }
    lab.vxmesh("h1", &["run", "-d", "--name", "c", "--network", "blue", "sleep", "1000"])?;
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let web: Service = lab.json("h1", &[&create[..], &["--selector", "app=web"]].concat())?;
    settled(&lab, "web", 2)?;

    // From a neighbour of one, and from a backend: to itself it comes from the VIP.
    for client in ["c", "web1"] {
        let endpoints: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
        let client = endpoints.iter().find(|it| it.name.as_str() == client).context("no client")?;
        for (version, is_v4) in [("-4", true), ("-6", false)] {
            let own = client.ips.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == is_v4);
            let own = own.context("no address")?;
            let vip = web.vips.iter().find(|ip| ip.is_ipv4() == is_v4).context("no VIP")?;
            let name = client.name.as_str();
            wait_until("the first answer comes", || Ok(ask(&lab, "h1", name, version).is_ok()))?;
            let got = answers(&lab, ("h1", name), version, REQUESTS)?;
            let seen = if name == "web1" { *vip } else { own };
            let expected = [format!("web1 {seen}"), format!("web2 {own}")];
            ensure!(got.keys().eq(&expected), "{name} {version}: {got:?}");
            ensure!(got.values().all(|count| *count >= 10), "{name} {version}: {got:?}");
        }
    }
    for (sticky, backends) in [("10m", 1), ("none", 2)] {
        let web: Service = lab.json("h1", &["service", "update", "web", "--sticky", sticky])?;
        ensure!(web.sticky_s == (backends == 1).then_some(600), "{web:?}");
        for version in ["-4", "-6"] {
            let got = answers(&lab, ("h1", "c"), version, 20)?;
            ensure!(got.len() == backends, "--sticky {sticky}, {version}: {got:?}");
        }
    }
    lab.finish(Allowed::default())
}
