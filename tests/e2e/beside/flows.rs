//! Flows that never pause: they follow the ports that are published, and nobody inherits them.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, UNDERWAY, wait_until},
    netns::NetNs,
    outside::{self, Outside, sh},
};

use crate::{
    egress::{PORT, host_ip, ip_of},
    publish::{at, publish},
};

/// A client that keeps its port for good.
struct Client(UdpSocket);

impl Client {
    fn start(netns: &NetNs, to: IpAddr, port: u16) -> Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:5004" } else { "[::]:5006" };
        let socket = netns.run(|| Ok(UdpSocket::bind(any)?))?;
        socket.connect(at(to, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self(socket))
    }

    /// Calls until whoever listens there has heard it and it has heard the answer.
    fn reaches(&self, what: &str, netns: &NetNs, port: u16) -> Result<()> {
        // The agent gives a published port back a moment after its sandbox is gone.
        let mut server = None;
        wait_until(&format!("{what}: the port is free"), || {
            server = netns.run(|| Ok(UdpSocket::bind(("::", port)).ok()))?;
            Ok(server.is_some())
        })?;
        let server = server.context("no server")?;
        server.set_nonblocking(true)?;
        let mut buffer = [0; 16];
        wait_until(what, || {
            // Where nothing listens yet the kernel says so with the next call.
            drop(self.0.send(b"question"));
            if let Ok((_len, from)) = server.recv_from(&mut buffer) {
                server.send_to(b"answer", from)?;
            }
            Ok(self.0.recv(&mut buffer).is_ok_and(|len| buffer.get(..len) == Some(b"answer")))
        })
    }
}

#[test]
fn a_flow_that_never_pauses_follows_its_published_port() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    let _keeper = lab.sandbox("h1", "blue", "keeper")?;
    let clients = [true, false].map(|ipv4| Client::start(&outside.netns, host_ip(1, ipv4)?, 8080));
    let clients: Vec<Client> = clients.into_iter().collect::<Result<_>>()?;
    let all_reach = |what: &str, netns: &NetNs, port: u16| {
        clients.iter().try_for_each(|client| client.reaches(what, netns, port))
    };
    all_reach("a service of the host", &h1, 8080)?;
    for name in ["a", "b"] {
        let sandbox = publish(&lab, "h1", "blue", name, &["8080:80/udp"])?;
        all_reach(name, &sandbox.netns, 80)?;
        lab.vxmesh("h1", &["sandbox", "rm", name])?;
    }
    all_reach("the host's service again", &h1, 8080)?;
    // The last sandbox takes the way in with it.
    let c = publish(&lab, "h1", "blue", "c", &["8080:80/udp"])?;
    all_reach("c", &c.netns, 80)?;
    for name in ["keeper", "c"] {
        lab.vxmesh("h1", &["sandbox", "rm", name])?;
    }
    all_reach("the host's service at last", &h1, 8080)?;
    // The last frames of a sandbox that is just removed.
    lab.finish(Allowed { drops: UNDERWAY, warnings: &[] })
}

#[test]
fn flows_of_an_address_end_with_its_sandbox() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    let network = lab.network("h1", "blue")?;
    let [a, b] = ["a", "b"].map(|name| lab.sandbox("h1", "blue", name));
    let (a, b) = (a?, b?);
    let inside = lab.inner("h1", &format!("/run/vxmesh/netns/{}", network.id.short()))?;
    let flows_of = |sandbox: &Plugged| {
        let ips = [ip_of(sandbox, true)?, ip_of(sandbox, false)?];
        let mut count = 0;
        for family in ["ipv4", "ipv6"] {
            let listed = sh(&inside, &format!("conntrack -L -f {family} 2>/dev/null"))?;
            let of = |line: &&str| ips.iter().any(|ip| line.contains(&format!("={ip} ")));
            count += listed.lines().filter(of).count();
        }
        Ok::<_, anyhow::Error>(count)
    };
    let mut calls = Vec::new();
    for sandbox in [&a, &b] {
        for to in [outside::IPV4, outside::IPV6] {
            let call = Client::start(&sandbox.netns, to, PORT)?;
            call.reaches("the outside", &outside.netns, PORT)?;
            calls.push(call);
        }
        ensure!(flows_of(sandbox)? == 2, "{}", flows_of(sandbox)?);
    }
    lab.vxmesh("h1", &["sandbox", "rm", "a"])?;
    ensure!(flows_of(&a)? == 0, "its next owner would get what is still on its way");
    ensure!(flows_of(&b)? == 2, "flows of others were forgotten");
    lab.finish(Allowed::default())
}
