//! Published ports of containers: from the host, from elsewhere, and while networks come and go.

use std::{net::UdpSocket, thread, time::Duration};

use anyhow::{Result, ensure};
use vxmesh::api::Endpoint;
use vxmesh_tests::{
    engine::Engine,
    lab::{Allowed, Lab, UNDERWAY, wait_until},
    netns::NetNs,
};

use super::{engines, refused, run};

const MAKE: &str = "network create -d vxmesh --ipam-driver vxmesh";

/// What answers at a port of h1, asked from a host.
fn answer(lab: &Lab, from: &str, to: &str) -> Result<String> {
    lab.sh(from, &format!("curl -s -m 2 http://{to}/ || true"))
}

fn answers(lab: &Lab, from: &str, to: &str, expected: &str) -> Result<()> {
    wait_until(&format!("{to} answers {from} with {expected:?}"), || {
        Ok(answer(lab, from, to)?.trim() == expected)
    })
}

/// Has a container say its name over HTTP, and what it is told over UDP.
fn serve(lab: &Lab, engine: &Engine, name: &str) -> Result<()> {
    let page = format!("mkdir -p /www && echo {name} > /www/index.html && httpd -p 80 -h /www");
    engine.docker(lab, &format!("exec {name} /bin/busybox sh -c '{page}'"))?;
    let pid = engine.docker(lab, &format!("inspect {name} -f '{{{{.State.Pid}}}}'"))?;
    let (file, own) = (format!("/run/{name}.ns"), format!("/proc/{pid}/ns/net"));
    let bind = format!("umount {file} || true; touch {file}; mount --bind {own} {file}");
    lab.sh("h1", &bind)?;
    let echo = lab.inner("h1", &file)?.run(|| Ok(UdpSocket::bind("0.0.0.0:53")?))?;
    thread::spawn(move || {
        let mut said = [0; 16];
        while let Ok((len, from)) = echo.recv_from(&mut said) {
            // Who asked asks again.
            drop(echo.send_to(&said[..len], from));
        }
    });
    Ok(())
}

/// Whether what is sent to an address by UDP comes back.
fn says_back(host: &NetNs, to: &str) -> Result<bool> {
    host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(b"hello", to)?;
        let mut said = [0; 16];
        Ok(socket.recv(&mut said).is_ok_and(|len| said.starts_with(b"hello") && len == 5))
    })
}

#[test]
fn published_ports_lead_to_containers() -> Result<()> {
    let lab = Lab::up(2)?;
    let [one, two] = &engines(&lab)?;
    one.docker(
        &lab,
        &format!("{MAKE} --ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 -o network=app app"),
    )?;
    one.docker(&lab, &format!("{MAKE} --subnet 10.78.0.0/24 -o network=beside beside"))?;
    let h1 = "10.213.0.1";
    let ports = "-p 8080:80 -p 127.0.0.1:8081:80 -p 8090-8093:80 -p 8090-8093:81 -p 5300:53/udp \
                 --expose 82 -P";
    run(&lab, one, "web", &format!("--network app {ports}"))?;
    serve(&lab, one, "web")?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    answers(&lab, "h1", &format!("{h1}:8080"), "web")?;
    answers(&lab, "h1", "127.0.0.1:8080", "web")?;
    answers(&lab, "h1", "127.0.0.1:8081", "web")?;
    ensure!(answer(&lab, "h2", &format!("{h1}:8081"))?.is_empty(), "8081 is open to others");
    wait_until("an answer over UDP", || says_back(&lab.host("h2")?, &format!("{h1}:5300")))?;
    // The endpoint says which ports were chosen.
    let endpoints: Vec<Endpoint> = lab.get("h1", "/v1/endpoints")?;
    let published = endpoints.iter().flat_map(|endpoint| &endpoint.published);
    let mut at: Vec<(u16, u16)> = published.map(|it| (it.sandbox_port, it.port)).collect();
    at.sort_unstable();
    let first = at.first().map(|(_, port)| *port);
    ensure!(at.len() == 6 && at.contains(&(80, 8080)) && first.is_some(), "{at:?}");
    ensure!(at.iter().any(|(to, _)| *to == 82), "-P leads nowhere: {at:?}");

    // A port that somebody has is refused, with its holder.
    let taken = "run --name other --network app -p 8080:80 box:1 true";
    refused(&lab, one, taken, &["8080", "endpoint `web` of docker"])?;
    one.docker(&lab, "rm -f other")?;
    lab.named("h2", &["web"])?;

    // The ports follow the default route, the agent's end, and the container's restart.
    one.docker(&lab, "network connect beside web")?;
    one.docker(&lab, "network disconnect app web")?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    one.docker(&lab, "network connect app web")?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    lab.lab(&["kill", "h1"])?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    lab.lab(&["start", "h1"])?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    one.docker(&lab, "restart -t 0 web")?;
    serve(&lab, one, "web")?;
    answers(&lab, "h2", &format!("{h1}:8080"), "web")?;
    one.docker(&lab, "rm -f web")?;
    ensure!(answer(&lab, "h2", &format!("{h1}:8080"))?.is_empty(), "it is open still");
    ensure!(!lab.sh("h1", "ss -ltunH")?.contains(":8080"), "the port is held still");
    let rules = lab.sh("h1", "nft list ruleset")?;
    ensure!(!rules.contains("8080"), "{rules}");
    // Ports on which nobody can come in are refused.
    let v6 = "run --rm --network beside -p [::]:8080:80 box:1 true";
    refused(&lab, one, v6, &["no subnet of", "version"])?;
    let sctp = "run --rm --network app -p 8080:80/sctp box:1 true";
    refused(&lab, one, sctp, &["TCP and UDP"])?;
    lab.named("h2", &[])?;
    one.stop(&lab)?;
    two.stop(&lab)?;
    let drops = &[UNDERWAY, &["unknown_index"]].concat();
    lab.finish(Allowed { drops, ..Allowed::default() })
}
