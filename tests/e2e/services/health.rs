//! Checks of backends, their drain, and which of them a node prefers.

use std::{
    io::Read,
    net::{IpAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Flows, Network, Node, Service};
use vxmesh_tests::lab::{Allowed, Lab, Plugged, wait_until};

use super::{answers, who};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

fn service(lab: &Lab, host: &str) -> Result<Service> {
    lab.get(host, "/v1/services/web")
}

/// Waits until all hosts show these states of the backends, in the order of their names.
fn wait_for_states(lab: &Lab, states: [&str; 3]) -> Result<()> {
    wait_until(&format!("all hosts show {states:?}"), || {
        let mut all = true;
        for host in HOSTS {
            let backends = service(lab, host)?.backends;
            all &= backends.iter().map(|it| it.state.as_str()).eq(states);
        }
        Ok(all)
    })
}

/// Who answers of so many requests of the client on h1.
fn who_answers(lab: &Lab, times: usize) -> Result<Vec<String>> {
    let all = answers(lab, ("h1", "c"), "-4", times)?;
    Ok(all.keys().filter_map(|answer| answer.split(' ').next().map(str::to_owned)).collect())
}

/// Puts away the page that is asked for, or puts it back.
fn page(dir: &Path, name: &str, is_there: bool) -> Result<()> {
    let page = dir.join(name).join("health");
    if is_there {
        std::fs::write(page, "well")?;
    } else {
        std::fs::remove_file(page)?;
    }
    Ok(())
}

/// A connection whose client says nothing.
fn hold(keeper: &Plugged, vip: IpAddr) -> Result<TcpStream> {
    keeper.netns.run(|| Ok(TcpStream::connect((vip, 80))?))
}

/// Connections that stay are spread evenly, and those that come after some of one backend ended are
/// all its.
fn who_has_fewest_gets_the_next(lab: &Lab, keeper: &Plugged, vip: IpAddr) -> Result<()> {
    let open = || -> Result<Vec<u64>> {
        let backends = service(lab, "h1")?.backends.into_iter();
        Ok(backends.filter_map(|backend| Some(backend.counters?.open)).collect())
    };
    wait_until("those of before have ended", || Ok(open()?.iter().sum::<u64>() == 0))?;
    let mut held: Vec<TcpStream> = (0..12).map(|_| hold(keeper, vip)).collect::<Result<_>>()?;
    ensure!(open()? == [4, 4, 4], "{:?}", open()?);
    let flows = || lab.json::<Flows>("h1", &["flows", "--service", "web"]);
    let of_w2 = |flows: &Flows| -> Vec<u16> {
        let all = flows.flows.iter().filter(|flow| flow.state != "closed");
        let its = all.filter(|flow| flow.name.as_ref().is_some_and(|it| it.as_str() == "w2"));
        its.map(|flow| flow.client.port()).collect()
    };
    let ports = of_w2(&flows()?);
    ensure!(ports.len() == 4, "{:?}", flows()?);
    held.retain(|stream| !stream.local_addr().is_ok_and(|own| ports.contains(&own.port())));
    wait_until("those of w2 have ended", || Ok(open()? == [4, 0, 4]))?;
    for _ in 0..4 {
        let stream = hold(keeper, vip)?;
        let port = stream.local_addr()?.port();
        held.push(stream);
        ensure!(of_w2(&flows()?).contains(&port), "{port} is not among {:?}", flows()?);
    }
    ensure!(open()? == [4, 4, 4], "{:?}", open()?);
    Ok(())
}

#[test]
fn backends_are_checked_drained_and_preferred() -> Result<()> {
    let lab = Lab::up(3)?;
    let dir = tempfile::tempdir()?;
    let _blue: Network =
        lab.json("h1", &["network", "create", "blue", "--subnet", "10.75.0.0/24"])?;
    for (host, name) in HOSTS.into_iter().zip(["w1", "w2", "w3"]) {
        wait_until("the network is there", || {
            Ok(lab.try_vxmesh(host, &["network", "inspect", "blue"])?.status.success())
        })?;
        who(&lab, dir.path(), host, name)?;
    }
    lab.vxmesh("h1", &["run", "-d", "--name", "c", "--network", "blue", "sleep", "1000"])?;
    let keeper = lab.sandbox("h1", "blue", "keeper")?;
    let create = ["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    let check = ["--health", "http:/health", "--health-interval", "200ms", "--health-rise", "1"];
    let more = ["--health-fall", "2", "--drain", "4s", "--selector", "app=web"];
    let web: Service = lab.json("h3", &[&create[..], &check, &more].concat())?;
    ensure!(web.check.as_ref().is_some_and(|check| check.fall == 2), "{web:?}");

    // Nobody has the page, and one after the other gets it.
    wait_for_states(&lab, ["failing"; 3])?;
    let refused =
        lab.try_vxmesh("h1", &["exec", "c", "--", "curl", "-sS", "-m", "5", "http://web"])?;
    ensure!(refused.status.code() == Some(7), "no backend, no connection: {refused:?}");
    page(dir.path(), "w1", true)?;
    page(dir.path(), "w2", true)?;
    wait_for_states(&lab, ["ready", "ready", "failing"])?;
    ensure!(who_answers(&lab, 20)? == ["w1", "w2"]);

    // Somebody else's word, which is heard on the backend's own node.
    let word = |host, state: &str| {
        lab.try_vxmesh(host, &["service", "health", "web", "w2", state, "--ttl", "20s"])
    };
    let elsewhere = word("h1", "down")?;
    ensure!(elsewhere.status.code() == Some(3), "{elsewhere:?}");
    ensure!(word("h2", "down")?.status.success(), "it is refused");
    wait_for_states(&lab, ["ready", "failing", "failing"])?;
    ensure!(word("h2", "up")?.status.success(), "it is refused");
    page(dir.path(), "w3", true)?;
    wait_for_states(&lab, ["ready"; 3])?;

    // A node prefers its own, and falls back.
    lab.vxmesh("h2", &["service", "update", "web", "--prefer", "node"])?;
    wait_until("h1 prefers its own", || Ok(service(&lab, "h1")?.prefer == "node"))?;
    wait_until("w1 answers alone", || Ok(who_answers(&lab, 10)? == ["w1"]))?;
    for host in ["h1", "h3"] {
        lab.vxmesh("h2", &["node", "update", host, "--label", "zone=west"])?;
    }
    wait_until("the zone is known", || {
        let nodes: Vec<Node> = lab.get("h1", "/v1/nodes")?;
        let of = |node: &&Node| node.zone.as_ref().is_some_and(|zone| zone.as_str() == "west");
        Ok(nodes.iter().filter(of).count() == 2)
    })?;
    lab.vxmesh("h2", &["service", "update", "web", "--prefer", "zone"])?;
    wait_until("those of the zone answer", || Ok(who_answers(&lab, 20)? == ["w1", "w3"]))?;

    // A backend that is drained keeps a connection for its time, and gets no new one.
    lab.vxmesh("h1", &["service", "update", "web", "--prefer", "node", "--health", "none"])?;
    wait_until("w1 answers alone", || Ok(who_answers(&lab, 10)? == ["w1"]))?;
    let vip = *web.vips.first().context("no VIP")?;
    let mut stream = keeper.netns.run(|| Ok(TcpStream::connect((vip, 80))?))?;
    lab.vxmesh("h3", &["service", "drain", "web", "w1"])?;
    wait_for_states(&lab, ["draining", "ready", "ready"])?;
    ensure!(!who_answers(&lab, 10)?.contains(&"w1".to_owned()));
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let quiet = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    ensure!(quiet == Err(std::io::ErrorKind::WouldBlock), "{quiet:?}");
    wait_for_states(&lab, ["drained", "ready", "ready"])?;
    wait_until("the connection is reset", || {
        std::io::Write::write_all(&mut stream, b"GET").ok();
        let read = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        Ok(matches!(read, Err(kind) if kind != std::io::ErrorKind::WouldBlock))
    })?;
    lab.vxmesh("h3", &["service", "drain", "web", "w1", "--undo"])?;
    wait_for_states(&lab, ["ready"; 3])?;

    // All of a node, asked of another one.
    lab.vxmesh("h1", &["node", "drain", "h2"])?;
    wait_for_states(&lab, ["ready", "draining", "ready"])?;
    lab.vxmesh("h1", &["node", "drain", "h2", "--undo"])?;
    wait_for_states(&lab, ["ready"; 3])?;

    lab.vxmesh("h1", &["service", "update", "web", "--prefer", "any", "--lb", "least-conn"])?;
    who_has_fewest_gets_the_next(&lab, &keeper, vip)?;
    lab.finish(Allowed {
        warnings: &["the backend is not healthy"],
        drops: &["no_backend", "flow_unknown"],
    })
}
