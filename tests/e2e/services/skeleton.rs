//! One TCP port, backends on other hosts, seen through `curl`.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use vxmesh::api::{DnsRecord, Flow, Flows, Service, VipLocation};
use vxmesh_tests::lab::{Allowed, Lab, Options, wait_until};

use super::{answers, ask, backends_on_two_hosts, settled};

const REQUESTS: usize = 60;

/// What the node of the client shows of it, after the requests and two to a port that it lacks.
fn is_seen(lab: &Lab, web: &Service) -> Result<()> {
    let seen: Service = lab.json("h1", &["service", "inspect", "web"])?;
    let mut begun = 0;
    for backend in &seen.backends {
        let counters = backend.counters.as_ref().context("nothing is counted")?;
        begun += counters.begun;
        // Each has at least a SYN, an ACK, the request and a FIN, and an answer to three of these.
        let (sent, received) = (4 * counters.begun, 3 * counters.begun);
        ensure!(counters.begun >= 20, "{counters:?}");
        ensure!(counters.tx_packets >= sent && counters.rx_packets >= received, "{counters:?}");
        ensure!(counters.tx_bytes >= 60 * sent && counters.ejections == 0, "{counters:?}");
    }
    let total = seen.counters.as_ref().context("nothing is counted")?;
    ensure!(total.begun == begun && begun >= 2 * REQUESTS as u64, "{seen:?}");
    ensure!(seen.refused.get("service_port").is_some_and(|count| *count >= 2), "{seen:?}");
    let elsewhere: Service = lab.json("h2", &["service", "inspect", "web"])?;
    ensure!(elsewhere.counters.is_some_and(|counters| counters.begun == 0), "h2 has no client");

    let flows: Flows = lab.json("h1", &["flows", "--service", "web", "--limit", "5"])?;
    ensure!(flows.flows.len() == 5 && flows.total > 5, "{flows:?}");
    let is_its = |flow: &Flow| {
        web.vips.contains(&flow.vip.ip())
            && flow.backend.port() == 8080
            && flow.service.as_ref() == Some(&web.name)
            && flow.name.as_ref().is_some_and(|name| name.as_str().starts_with("web"))
    };
    ensure!(flows.flows.iter().all(is_its), "{flows:?}");
    let shown = lab.vxmesh("h1", &["flows", "--network", "blue", "-n", "1"])?;
    ensure!(shown.lines().count() == 2 && shown.contains("blue"), "{shown}");
    let none: Flows = lab.json("h3", &["flows"])?;
    ensure!(none.flows.is_empty() && none.total == 0, "{none:?}");
    let many = lab.try_vxmesh("h1", &["flows", "-n", "0"])?;
    ensure!(many.status.code() == Some(2), "{many:?}");

    let vip = web.vips.first().context("no VIP")?.to_string();
    let found: VipLocation = lab.json("h3", &["locate", &vip])?;
    ensure!(found.service == web.id && found.backends.len() == 2, "{found:?}");
    ensure!(found.backends.iter().all(|backend| backend.state == "ready"), "{found:?}");
    Ok(())
}

#[test]
fn a_vip_spreads_connections_over_other_hosts_and_keeps_the_clients_address() -> Result<()> {
    let lab = Lab::captured(Options::default())?;
    let dir = tempfile::tempdir()?;
    backends_on_two_hosts(&lab, dir.path())?;
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let web: Service = lab.json("h3", &[&create[..], &["--selector", "app=web"]].concat())?;
    ensure!(web.state == "active" && web.vips.len() == 2, "{web:?}");
    settled(&lab, "web", 2)?;

    let client: Vec<vxmesh::api::Endpoint> = lab.get("h1", "/v1/endpoints")?;
    let client = client.iter().find(|it| it.name.as_str() == "c").context("no client")?;
    for (version, is_v4) in [("-4", true), ("-6", false)] {
        let mut ips = client.ips.iter().map(ipnet::IpNet::addr);
        let own = ips.find(|ip| ip.is_ipv4() == is_v4).context("no address")?;
        wait_until("the first answer comes", || Ok(ask(&lab, "h1", "c", version).is_ok()))?;
        let got = answers(&lab, ("h1", "c"), version, REQUESTS)?;
        let expected = [format!("web2 {own}"), format!("web3 {own}")];
        ensure!(got.keys().eq(&expected), "{version}: {got:?}");
        // Of 60 that are spread evenly, fewer than 10 to one come once in ten million times.
        ensure!(got.values().all(|count| *count >= 10), "{version}: {got:?}");
    }

    // It is there, and what it does not have is refused at once.
    for vip in &web.vips {
        lab.vxmesh("h1", &["exec", "c", "--", "ping", "-c", "1", "-W", "5", &vip.to_string()])?;
        let url = match vip {
            IpAddr::V4(ip) => format!("http://{ip}:81/"),
            IpAddr::V6(ip) => format!("http://[{ip}]:81/"),
        };
        let refused =
            lab.try_vxmesh("h1", &["exec", "c", "--", "curl", "-sS", "-m", "5", "-g", &url])?;
        ensure!(refused.status.code() == Some(7), "{url}: {refused:?}");
    }
    is_seen(&lab, &web)?;
    let records: Vec<DnsRecord> = lab.json("h2", &["dns", "query", "web"])?;
    let values: Vec<&str> = records.iter().map(|record| record.value.as_str()).collect();
    ensure!(web.vips.iter().all(|vip| values.contains(&vip.to_string().as_str())), "{records:?}");

    // A backend that goes is not chosen any more, and one that is named comes.
    lab.vxmesh("h2", &["sandbox", "rm", "web2"])?;
    settled(&lab, "web", 1)?;
    let got = answers(&lab, ("h1", "c"), "-4", 10)?;
    ensure!(got.len() == 1 && got.keys().all(|answer| answer.starts_with("web3 ")), "{got:?}");

    let held = lab.try_vxmesh("h1", &["network", "rm", "blue"])?;
    ensure!(held.status.code() == Some(4), "{held:?}");
    lab.vxmesh("h2", &["service", "rm", "web"])?;
    wait_until("the name is gone", || Ok(ask(&lab, "h1", "c", "-4").is_err()))?;
    lab.finish(Allowed {
        drops: &["service_port", "no_backend", "neighbor_unknown"],
        ..Allowed::default()
    })
}
