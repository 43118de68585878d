//! Whose the address and the name of a service are, and what is refused.

use std::{
    io::{Error, ErrorKind},
    net::{IpAddr, TcpStream},
};

use anyhow::{Result, ensure};
use vxmesh::api::{Endpoint, Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, wait_until},
    netns::NetNs,
    outside::{call_tcp, call_udp},
    traffic::udp_to,
};

use super::{ingress::PATIENCE, settled};

fn refused(lab: &Lab, words: &[&str], status: i32, says: &str) -> Result<()> {
    let output = lab.try_vxmesh("h1", words)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status) && said.contains(says), "{words:?}: {output:?}");
    Ok(())
}

/// Whom nobody has told of yet may come.
fn may_wait_for_backends(lab: &Lab) -> Result<()> {
    let make = ["service", "create", "none", "--network", "blue", "--selector", "app=none"];
    let made = lab.try_vxmesh("h1", &[&make[..], &["--port", "80"]].concat())?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success() && said.contains("no endpoint answers for it"), "{made:?}");
    lab.vxmesh("h1", &["service", "rm", "none"])?;
    Ok(())
}

/// Clients that remember who had the address are not left waiting.
fn are_refused(client: &NetNs, vips: &[IpAddr]) -> Result<()> {
    let is_refused = |error: &Error| error.kind() == ErrorKind::ConnectionRefused;
    for vip in vips {
        let tcp = client.run(|| Ok(TcpStream::connect_timeout(&(*vip, 80).into(), PATIENCE)))?;
        ensure!(tcp.as_ref().is_err_and(is_refused), "TCP to {vip}: {tcp:?}");
        let udp = client.run(|| udp_to(*vip, 80))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        let said = udp.send(b"gone").and_then(|_| udp.recv(&mut [0; 1]));
        ensure!(said.as_ref().is_err_and(is_refused), "UDP to {vip}: {said:?}");
    }
    Ok(())
}

/// Networks that have no services, two of them on h1 alone.
fn without_services(lab: &Lab) -> Result<()> {
    lab.vxmesh("h1", &["network", "create", "open", "--encrypted=false"])?;
    lab.vxmesh("h1", &["network", "create", "apart", "--isolated"])?;
    lab.vxmesh("h1", &["network", "create", "br", "--driver", "bridge"])?;
    lab.sh("h1", "ip link add wan0 type veth peer name wan1 && ip link set wan0 up")?;
    let parent = ["-o", "parent=wan0", "--subnet", "10.88.0.0/24"];
    lab.vxmesh(
        "h1",
        &[&["network", "create", "lan", "--driver", "macvlan"][..], &parent].concat(),
    )?;
    wait_until("h2 and h3 know the networks", || {
        let known = |host| -> Result<bool> {
            Ok(lab.get::<Vec<Network>>(host, "/v1/networks")?.len() == 3)
        };
        Ok(known("h2")? && known("h3")?)
    })
}

#[test]
fn a_service_keeps_its_address_and_its_name_for_itself() -> Result<()> {
    let lab = Lab::up(3)?;
    let create = ["network", "create", "blue", "--subnet", "10.72.0.0/24", "--subnet", "fd72::/64"];
    let _blue: Network = lab.json("h1", &create)?;
    without_services(&lab)?;
    let server = lab.sandbox("h2", "blue", "b")?;
    let client = lab.sandbox("h1", "blue", "c")?;
    lab.all_know(&[&server.endpoint, &client.endpoint])?;
    let make = ["service", "create", "web", "--network", "blue", "--backend", "b"];
    let ports = ["--port", "80:8080", "--port", "80:8081/udp", "--vip", "10.72.0.200"];
    let web: Service = lab.json("h3", &[&make[..], &ports].concat())?;
    ensure!(web.vips.contains(&"10.72.0.200".parse()?), "{web:?}");
    settled(&lab, "web", 1)?;

    let taken = client.endpoint.ips[0].addr().to_string();
    let make = |words: &[&'static str]| [&["service", "create"][..], words].concat();
    let blue = ["x", "--network", "blue", "--backend", "b", "--port"];
    for (words, status, says) in [
        (make(&["x", "--network", "red", "--backend", "b", "--port", "80"]), 3, "red"),
        (make(&["x", "--network", "open", "--backend", "b", "--port", "80"]), 4, "not sealed"),
        (make(&["x", "--network", "apart", "--backend", "b", "--port", "80"]), 4, "kept from"),
        (make(&["x", "--network", "br", "--backend", "b", "--port", "80"]), 4, "host alone"),
        (make(&["x", "--network", "lan", "--backend", "b", "--port", "80"]), 4, "no services"),
        (make(&["x", "--network", "blue", "--port", "80"]), 2, "--selector"),
        (make(&[&blue[..], &["80", "--port", "80:81"]].concat()), 2, "twice"),
        (make(&[&blue[..], &["80/sctp"]].concat()), 2, "sctp"),
        (make(&[&blue[..], &["80", "--vip", "10.9.0.1"]].concat()), 2, "10.9.0.1"),
        (make(&["web", "--network", "blue", "--backend", "b", "--port", "80"]), 4, "`web`"),
        (make(&["c", "--network", "blue", "--backend", "b", "--port", "80"]), 4, "endpoint `c`"),
        (make(&[&blue[..], &["80", "--vip", "10.72.0.200"]].concat()), 4, "service `web`"),
        (make(&[&blue[..], &["80", "--health", "http:"]].concat()), 2, "http:/PATH"),
        (make(&[&blue[..], &["80", "--health", "http:health"]].concat()), 2, "http:/PATH"),
        (make(&["x", "--network", "blue", "--selector", "app", "--port", "80"]), 2, "app"),
        (vec!["service", "rm", "nobody"], 3, "nobody"),
        (vec!["service", "inspect", "nobody"], 3, "nobody"),
        (vec!["service", "update", "nobody", "--add-port", "81"], 3, "nobody"),
        (vec!["service", "drain", "nobody", "b"], 3, "nobody"),
        (vec!["service", "health", "nobody", "b", "up"], 3, "nobody"),
        (vec!["service", "update", "web", "--rm-port", "81"], 3, "81/tcp"),
        (vec!["service", "update", "web", "--rm-backend", "z"], 3, "`z`"),
        (vec!["run", "--network", "blue", "--name", "web", "true"], 125, "a service `web`"),
        (vec!["run", "--network", "blue", "--ip", "10.72.0.200", "true"], 125, "service `web`"),
        (vec!["network", "rm", "blue"], 4, "; and services: web"),
    ] {
        refused(&lab, &words, status, says)?;
    }
    let vip = [&make(&blue)[..], &["80", "--vip", &taken]].concat();
    refused(&lab, &vip, 4, "in use")?;
    may_wait_for_backends(&lab)?;
    let services: Vec<Service> = lab.get("h1", "/v1/services")?;
    ensure!(services.len() == 1, "{services:?}");

    // Who made it leaves; it stays, for TCP and UDP of both IP versions.
    lab.vxmesh("h3", &["leave", "--yes"])?;
    for vip in &web.vips {
        let own = client.endpoint.ips.iter().find(|own| own.addr().is_ipv4() == vip.is_ipv4());
        let own = own.map(ipnet::IpNet::addr);
        let seen = call_tcp(&client.netns, (*vip, 80).into(), &server.netns, 8080)?;
        ensure!(Some(seen) == own, "{vip}: TCP from {seen}");
        let seen = call_udp(&client.netns, (*vip, 80).into(), &server.netns, 8081)?;
        ensure!(Some(seen) == own, "{vip}: UDP from {seen}");
    }
    // A port that is added leads there while the others stay.
    lab.vxmesh("h2", &["service", "update", "web", "--add-port", "90:8082"])?;
    wait_until("the other host has the port", || {
        let services: Vec<Service> = lab.get("h1", "/v1/services")?;
        Ok(services.iter().any(|service| service.ports.len() == 3))
    })?;
    // What the API shows is in the data path a moment later.
    wait_until("the added port leads to the backend", || {
        Ok(call_tcp(&client.netns, (web.vips[0], 90).into(), &server.netns, 8082).is_ok())
    })?;

    // With its end the address is its giver's heir's, and rests.
    lab.vxmesh("h1", &["service", "rm", "web"])?;
    are_refused(&client.netns, &web.vips)?;
    let at = ["run", "--network", "blue", "--name", "late", "--ip", "10.72.0.200", "true"];
    refused(&lab, &at, 125, "rests")?;
    let _late: Endpoint = {
        let sandbox = lab.sandbox("h1", "blue", "web")?;
        sandbox.endpoint
    };
    lab.finish(Allowed { drops: &["service_port", "no_backend"], ..Allowed::default() })
}

/// What is in the way of a network's end is named, and then it is not.
#[test]
fn a_network_is_removed_after_its_services() -> Result<()> {
    let lab = Lab::up(1)?;
    lab.vxmesh("h1", &["network", "create", "idle"])?;
    for name in ["alone", "lone"] {
        let make = ["service", "create", name, "--network", "idle", "--port", "80"];
        lab.vxmesh("h1", &[&make[..], &["--selector", "app=none"]].concat())?;
    }
    refused(&lab, &["network", "rm", "idle"], 4, "network `idle` has services: alone, lone")?;
    lab.vxmesh("h1", &["service", "rm", "alone"])?;
    refused(&lab, &["network", "rm", "idle"], 4, "network `idle` has services: lone")?;
    lab.vxmesh("h1", &["service", "rm", "lone"])?;
    lab.vxmesh("h1", &["network", "rm", "idle"])?;
    lab.finish(Allowed::default())
}
