//! A sandbox that is neither client nor backend pretends to be one, or the service, while a client
//! and its backends speak: each frame is stopped at its port, and none arrives.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use vxmesh::api::{Network, Service};
use vxmesh_proto::lb::{service_mac, service_source_mac};
use vxmesh_tests::{
    capture::Capture,
    lab::{Allowed, Lab, Plugged, wait_until},
};

use super::settled;
use crate::isolation::{
    attempt,
    forgeries::{FORGED, Forgery, Party},
    nothing_arrived,
};

/// What the backends serve, and what the service shows of it.
const SERVED: u16 = 8080;
const SHOWN: u16 = 80;
/// The client's.
const ASKING: u16 = 5555;
const OUTSIDE: ([u8; 4], [u8; 16]) =
    ([192, 0, 2, 1], [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Addresses of both IP versions.
type Ips = ([u8; 4], [u8; 16]);

const fn ips(of: Party) -> Ips {
    (of.v4, of.v6)
}

/// The same for both protocols and IP versions.
fn forged(
    (what, reason): (&'static str, &'static str),
    (mac, from, source): ([u8; 6], Ips, u16),
    (to_mac, to, destination): ([u8; 6], Ips, u16),
) -> Result<Vec<Forgery>> {
    let mut all = Vec::new();
    for (is_v4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let builder = PacketBuilder::ethernet2(mac, to_mac);
        let builder = match is_v4 {
            true => builder.ipv4(from.0, to.0, 64),
            false => builder.ipv6(from.1, to.1, 64),
        };
        let mut frame = Vec::new();
        if is_tcp {
            let tcp = builder.tcp(source, destination, 1, 64_000).syn().ack(1);
            tcp.write(&mut frame, FORGED)?;
        } else {
            builder.udp(source, destination).write(&mut frame, FORGED)?;
        }
        all.push(Forgery { what, reason, frame });
    }
    Ok(all)
}

/// A client's datagrams through the service until each backend has one of its flows; the sockets
/// hold these open. The first has the port that is known to the forger.
fn speak(client: &Plugged, backends: [&Plugged; 2], vip: IpAddr) -> Result<Vec<UdpSocket>> {
    let serve = |backend: &Plugged| {
        let socket = backend.netns.run(|| Ok(UdpSocket::bind(("::", SERVED))?))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let servers: Vec<UdpSocket> = backends.into_iter().map(serve).collect::<Result<_>>()?;
    let mut own = client.endpoint.ips.iter().map(ipnet::IpNet::addr);
    let own = own.find(|ip| ip.is_ipv4() == vip.is_ipv4()).context("no address")?;
    let (mut clients, mut heard) = (Vec::new(), [false; 2]);
    wait_until("each backend hears the client", || {
        let port = if clients.is_empty() { ASKING } else { 0 };
        let socket = client.netns.run(|| Ok(UdpSocket::bind((own, port))?))?;
        socket.send_to(b"question", SocketAddr::new(vip, SHOWN))?;
        clients.push(socket);
        for (server, heard) in servers.iter().zip(&mut heard) {
            let mut bytes = [0; 64];
            if let Ok((len, from)) = server.recv_from(&mut bytes) {
                server.send_to(bytes.get(..len).unwrap_or_default(), from)?;
                *heard = true;
            }
        }
        Ok(heard == [true; 2])
    })?;
    Ok(clients)
}

#[test]
fn a_forged_frame_to_or_from_a_service_is_stopped_at_its_port() -> Result<()> {
    let lab = Lab::up(2)?;
    let subnets = ["--subnet", "10.75.0.0/24", "--subnet", "fd75::/64"];
    let blue: Network = lab.json("h1", &[&["network", "create", "blue"], &subnets[..]].concat())?;
    wait_until("h2 knows the network", || {
        Ok(!lab.get::<Vec<Network>>("h2", "/v1/networks")?.is_empty())
    })?;
    let [near, far] = [lab.sandbox("h1", "blue", "near")?, lab.sandbox("h2", "blue", "far")?];
    let [client, forger] = ["c", "x"].map(|name| lab.sandbox("h1", "blue", name));
    let (client, forger) = (client?, forger?);
    let all = [&near, &far, &client, &forger].map(|it| &it.endpoint);
    lab.all_know(&all)?;
    let ports = ["--port", "80:8080", "--port", "80:8080/udp"];
    let make = ["service", "create", "web", "--network", "blue", "--backend", "near,far"];
    let web: Service = lab.json("h1", &[&make[..], &ports].concat())?;
    settled(&lab, "web", 2)?;
    let mut held = Vec::new();
    for vip in &web.vips {
        held.extend(speak(&client, [&near, &far], *vip)?);
    }
    let vip = |is_v4| web.vips.iter().find(|ip| ip.is_ipv4() == is_v4).context("no VIP");
    let vips: Ips = match (vip(true)?, vip(false)?) {
        (IpAddr::V4(v4), IpAddr::V6(v6)) => (v4.octets(), v6.octets()),
        other => anyhow::bail!("{other:?}"),
    };
    let services = [service_mac(blue.id).0, service_source_mac(blue.id).0];
    let party = |of: &Plugged| Party::of(&of.endpoint);
    let (me, asks) = (party(&forger)?, party(&client)?);
    let to_client = (asks.mac, ips(asks), ASKING);
    let captures = [&near, &far, &client].map(|it| Capture::start(&it.netns, "eth0"));

    let mut forgeries = Vec::new();
    let mut add = |what, from, to| -> Result<()> {
        forgeries.extend(forged(what, from, to)?);
        Ok(())
    };
    for backend in [party(&near)?, party(&far)?] {
        let there = (backend.mac, ips(backend), SERVED);
        let mac = ("a backend's MAC", "source_unknown");
        add(mac, (backend.mac, ips(backend), SERVED), to_client)?;
        add(mac, (backend.mac, ips(me), SERVED), to_client)?;
        let to_service = (services[0], ips(asks), ASKING);
        let ip = ("a backend's address", "ip_spoofed");
        add(ip, (me.mac, ips(backend), SERVED), to_client)?;
        // As the rules of the bridge would bring its answers to the agent.
        add(ip, (me.mac, ips(backend), SERVED), to_service)?;
        add(("the client's address", "ip_spoofed"), (me.mac, ips(asks), ASKING), there)?;
        for service in services {
            let mac = ("a MAC of services", "source_unknown");
            add(mac, (service, ips(backend), SERVED), to_client)?;
            add(mac, (service, ips(asks), ASKING), there)?;
            add(mac, (service, vips, SHOWN), to_client)?;
        }
        add(("from outside to a backend", "ip_spoofed"), (me.mac, OUTSIDE, 4000), there)?;
    }
    add(("the VIP", "ip_spoofed"), (me.mac, vips, SHOWN), to_client)?;
    let to_vip = (services[0], vips, SHOWN);
    add(("from outside to the VIP", "ip_spoofed"), (me.mac, OUTSIDE, 4000), to_vip)?;
    add(("the client to the VIP", "ip_spoofed"), (me.mac, ips(asks), ASKING), to_vip)?;
    for forgery in &forgeries {
        attempt(&lab, &forger, &blue, forgery)?;
    }
    for capture in captures {
        nothing_arrived(capture?)?;
    }
    ensure!(held.len() >= 2 * web.vips.len(), "each backend has flows of the client");
    lab.finish(Allowed { drops: &["source_unknown", "ip_spoofed"], ..Allowed::default() })
}
