//! Clients outside of the network, who come in by a node's router: 20 is this node's, 21 and 22 are
//! those of nodes 1 and 2, and 17 is a backend here.

use super::{fragments::cut, *};
use crate::tables::Row;

const LOCAL: u8 = 17;
const ROUTER: u8 = 20;

impl Net {
    /// Whose port 80 is published.
    fn published(mode: PublishMode, backends: &[Backend]) -> Self {
        let mut net = Self::new();
        net.apply(TableUpdate::Put(row(0, LOCAL, Place::Local)));
        for (node, place) in [(0, Place::Local), (1, Place::Remote(1)), (2, Place::Remote(2))] {
            let router = Row { router: true, ..row(node, ROUTER + node, place) };
            net.apply(TableUpdate::Put(router));
        }
        net.serve_as(2, spec_of(mode, backends), |services| services.steering_local(true));
        net
    }

    /// What a backend here gets of a frame that a node sent.
    fn brought(&self, from: u8, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut bytes = frame.to_vec();
        match inbound(&self.table, &node(from), frame, &mut ()) {
            InboundVerdict::Deliver => {}
            InboundVerdict::Drop(reason) => return Err(reason),
        }
        match answer(&self.table, &mut Frame::plain(&mut bytes), self.start, &mut ()) {
            InboundVerdict::Deliver => Ok(bytes),
            InboundVerdict::Drop(reason) => Err(reason),
        }
    }
}

fn spec_of(mode: PublishMode, backends: &[Backend]) -> ServiceSpec {
    let mut spec = service([]);
    for port in &mut spec.ports {
        port.published = Some(mode);
    }
    spec.backends = backends.to_vec();
    spec
}

fn backend(node: u8, n: u8) -> Backend {
    Backend { key: key(node, n), weight: 1, takes_new: true, is_near: true }
}

/// The outside client, with this port.
fn client(ipv4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(ip(if ipv4 { "203.0.113.5" } else { "2001:db8::5" }), port)
}

fn socket(ipv4: bool, n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address(ipv4, n), port)
}

const KINDS: [(bool, u8); 4] = [(true, TCP), (false, TCP), (true, UDP), (false, UDP)];

#[test]
fn a_client_from_outside_reaches_a_backend_on_another_node_and_is_seen_as_itself() {
    let to_service = service_mac(spec().id);
    for (ipv4, protocol) in KINDS {
        let net = Net::published(PublishMode::Ingress, &[backend(1, 11)]);
        let (out, vip, there) = (client(ipv4, 4000), socket(ipv4, VIP, 80), socket(ipv4, 11, 8080));
        let asked = frame(protocol, (mac(ROUTER), to_service), (out, vip), SYN);
        let (peer, sent) = net.out(&asked).unwrap();
        assert_eq!(peer, 1);
        assert_eq!(sent, frame(protocol, (mac(ROUTER), mac(11)), (out, there), SYN));
        let answer = frame(protocol, (mac(11), mac(ROUTER)), (there, out), SYN | ACK);
        let back = frame(protocol, (to_service, mac(ROUTER)), (vip, out), SYN | ACK);
        assert_eq!(net.back(1, &answer), back);
        // What the outside says of the answer, and a router on the way of what it answers.
        let about = error((mac(ROUTER), to_service), (out.ip(), vip.ip()), &back, 1000);
        let told = error((mac(ROUTER), mac(11)), (out.ip(), there.ip()), &answer, 1000);
        assert_eq!(net.out(&about).unwrap(), (1, told));
    }
}

#[test]
fn a_backend_answers_by_the_node_where_the_client_came_in() {
    let (to_agent, from_agent) = (service_mac(spec().id), service_source_mac(spec().id));
    for (ipv4, protocol) in KINDS {
        let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
        let (out, here) = (client(ipv4, 4000), socket(ipv4, LOCAL, 8080));
        let asks = |node: u8, flags| {
            let macs = (mac(ROUTER + node), mac(LOCAL));
            net.brought(node, &frame(protocol, macs, (out, here), flags))
        };
        let seen = |from, flags| frame(protocol, (from_agent, mac(LOCAL)), (from, here), flags);
        assert_eq!(asks(1, SYN).unwrap(), seen(out, SYN));
        let answer = |to, flags| frame(protocol, (mac(LOCAL), to_agent), (here, to), flags);
        let answered = |node: u8, flags| {
            let macs = (mac(LOCAL), mac(ROUTER + node));
            (u32::from(node), frame(protocol, macs, (here, out), flags))
        };
        assert_eq!(net.out(&answer(out, SYN | ACK)).unwrap(), answered(1, SYN | ACK));
        // As the node judges it where the client came in.
        let peers = net.table.apply([
            TableUpdate::Put(row(9, LOCAL, Place::Remote(9))),
            TableUpdate::PutMember(node(9), 9),
            TableUpdate::Put(Row { router: true, ..row(1, ROUTER + 1, Place::Local) }),
            TableUpdate::Remove(key(0, LOCAL)),
        ]);
        let (_, sent) = answered(1, SYN | ACK);
        assert_eq!(inbound(&peers, &node(9), &sent, &mut ()), InboundVerdict::Deliver);
        // The same client by another node has another port there.
        let second = asks(2, SYN).unwrap();
        let port = Headers::parse(&second).unwrap().ip.unwrap().ports.unwrap().0;
        let other = SocketAddr::new(out.ip(), port);
        assert!(other != out && second == seen(other, SYN));
        assert_eq!(net.out(&answer(other, SYN | ACK)).unwrap(), answered(2, SYN | ACK));
        assert_eq!(asks(1, ACK).unwrap(), seen(out, ACK));
        assert_eq!(net.out(&answer(out, ACK)).unwrap(), answered(1, ACK));
        // Errors of both ends, about packets of the second.
        let macs = [(mac(ROUTER + 2), mac(LOCAL)), (from_agent, mac(LOCAL))];
        let ips = (out.ip(), here.ip());
        let [from, to] = macs;
        let about = error(from, ips, &answered(2, ACK).1, 1000);
        assert_eq!(net.brought(2, &about).unwrap(), error(to, ips, &answer(other, ACK), 1000));
        let ips = (here.ip(), out.ip());
        let about = error((mac(LOCAL), to_agent), ips, &second, 1000);
        let original = frame(protocol, (mac(ROUTER + 2), mac(LOCAL)), (out, here), SYN);
        let told = error((mac(LOCAL), mac(ROUTER + 2)), ips, &original, 1000);
        assert_eq!(net.out(&about).unwrap(), (2, told));
    }
}

#[test]
fn fragments_of_a_client_from_outside_reach_the_backend() {
    for ipv4 in [true, false] {
        let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
        let macs = (mac(ROUTER + 1), mac(LOCAL));
        let whole = frame(UDP, macs, (client(ipv4, 4000), socket(ipv4, LOCAL, 8080)), 0);
        let [first, rest] = cut(&whole, 7);
        assert_eq!(net.brought(1, &rest).unwrap_err(), DropReason::FlowUnknown);
        for part in [first, rest] {
            let got = net.brought(1, &part).unwrap();
            assert_eq!(got[6..12], service_source_mac(spec().id).0);
            assert_eq!(got[12..], part[12..]);
        }
    }
}

#[test]
fn a_port_of_mode_host_leads_to_backends_of_the_node_itself() {
    let both = [backend(0, LOCAL), backend(1, 11)];
    let net = Net::published(PublishMode::Host, &both);
    for port in 4000..4012 {
        let ends = (client(true, port), socket(true, VIP, 80));
        let mut asked = frame(TCP, (mac(ROUTER), service_mac(spec().id)), ends, SYN);
        let mut frame = Frame::plain(&mut asked);
        let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
        assert_eq!(verdict, OutboundVerdict::Deliver);
    }
    // Those of the network have all of them.
    let peers = (4000..4012).filter(|port| net.out_to_any(&asks(TCP, true, *port, SYN)) == Some(1));
    assert!(peers.count() > 0);
    // It is for this node alone to bring them in.
    let ends = (client(true, 4000), socket(true, LOCAL, 8080));
    let from_peer = frame(TCP, (mac(ROUTER + 1), mac(LOCAL)), ends, SYN);
    assert_eq!(net.brought(1, &from_peer).unwrap_err(), DropReason::IpSpoofed);
}

impl Net {
    fn out_to_any(&self, frame: &[u8]) -> Option<u32> {
        let (mut bytes, mut scratch) = (frame.to_vec(), Scratch::new());
        let mut frame = Frame::plain(&mut bytes);
        match outbound(&self.table, &mut frame, &mut scratch, self.start, &mut ()) {
            OutboundVerdict::Forward(peer) => Some(*peer),
            _ => None,
        }
    }
}

/// Nobody but a router speaks for the outside, and it does so to published ports alone.
#[test]
fn what_is_not_for_a_published_port_is_spoofed() {
    let to_service = service_mac(spec().id);
    for ipv4 in [true, false] {
        let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL), backend(1, 11)]);
        let (out, vip) = (client(ipv4, 4000), socket(ipv4, VIP, 80));
        let is_spoofed = |macs, ends| {
            assert_eq!(net.out(&frame(TCP, macs, ends, SYN)).unwrap_err(), DropReason::IpSpoofed);
        };
        is_spoofed((mac(CLIENT), to_service), (out, vip));
        is_spoofed((mac(ROUTER), to_service), (out, socket(ipv4, VIP, 81)));
        is_spoofed((mac(ROUTER), mac(11)), (out, socket(ipv4, 11, 22)));
        is_spoofed((mac(ROUTER), mac(12)), (out, socket(ipv4, 12, 8080)));
        is_spoofed((mac(ROUTER), to_service), (socket(ipv4, 99, 4000), vip));
        let strangers = match ipv4 {
            true => ["169.254.9.9", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"],
            false => ["fe80::9", "::1", "ff02::1", "fd00::1", "::"],
        };
        for stranger in strangers {
            is_spoofed((mac(ROUTER), to_service), (SocketAddr::new(ip(stranger), 4000), vip));
        }
        let brought = |n: u8, from: SocketAddr, to: SocketAddr| {
            let spoofed = frame(TCP, (mac(n), mac(LOCAL)), (from, to), SYN);
            net.brought(1, &spoofed)
        };
        let here = socket(ipv4, LOCAL, 8080);
        assert!(brought(ROUTER + 1, out, here).is_ok());
        for (n, from, to) in [
            (11, out, here),
            (ROUTER + 1, out, socket(ipv4, LOCAL, 22)),
            (ROUTER + 1, out, socket(ipv4, CLIENT, 8080)),
            (ROUTER + 1, socket(ipv4, 99, 4000), here),
        ] {
            assert_eq!(brought(n, from, to).unwrap_err(), DropReason::IpSpoofed, "{n} {from} {to}");
        }
        // An error about what is no answer of a published port.
        let macs = (mac(ROUTER + 1), mac(LOCAL));
        for quoted in [(socket(ipv4, LOCAL, 22), out), (here, socket(ipv4, CLIENT, 4000))] {
            let about = frame(TCP, (mac(LOCAL), mac(ROUTER + 1)), quoted, ACK);
            let about = error(macs, (out.ip(), here.ip()), &about, 1000);
            assert_eq!(net.brought(1, &about).unwrap_err(), DropReason::IpSpoofed);
        }
    }
}

/// What looks like the middle of a connection that is not known here would be answered by a way
/// that the client has not asked.
#[test]
fn only_a_beginning_begins_a_flow() {
    let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
    let (out, here) = (client(true, 4000), socket(true, LOCAL, 8080));
    let bring =
        |flags| net.brought(1, &frame(TCP, (mac(ROUTER + 1), mac(LOCAL)), (out, here), flags));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        assert_eq!(bring(flags).unwrap_err(), DropReason::FlowUnknown);
    }
    bring(SYN).unwrap();
    assert_eq!(bring(ACK).unwrap_err(), DropReason::FlowUnknown, "nobody has answered");
    let answer = frame(TCP, (mac(LOCAL), service_mac(spec().id)), (here, out), SYN | ACK);
    net.out(&answer).unwrap();
    bring(ACK).unwrap();
    // And where no answer would be brought to the agent, nothing goes on.
    let mut net = net;
    let spec = spec_of(PublishMode::Ingress, &[backend(0, LOCAL)]);
    net.serve(3, spec);
    let macs = (mac(ROUTER + 1), mac(LOCAL));
    let refused = net.brought(1, &frame(TCP, macs, (out, here), ACK)).unwrap_err();
    assert_eq!(refused, DropReason::BackendUnknown);
}

#[test]
fn a_connection_goes_on_when_the_service_leads_to_another_port() {
    let mut net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
    let (out, here) = (client(true, 4000), socket(true, LOCAL, 8080));
    let macs = (mac(ROUTER + 1), mac(LOCAL));
    let bring = |net: &Net, from| net.brought(1, &frame(TCP, macs, (from, here), SYN));
    bring(&net, out).unwrap();
    let mut spec = spec_of(PublishMode::Ingress, &[backend(0, LOCAL)]);
    for port in &mut spec.ports {
        port.backend_port = 9090;
    }
    net.serve_as(3, spec, |services| services.steering_local(true));
    bring(&net, out).unwrap();
    assert_eq!(bring(&net, client(true, 4001)).unwrap_err(), DropReason::IpSpoofed);
}

/// The same client and port, once by another node and once directly: the second has another port.
#[test]
fn a_direct_connection_beside_a_relayed_one_has_another_port() {
    let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
    let here = socket(true, LOCAL, 8080);
    let relayed = frame(UDP, (mac(ROUTER + 1), mac(LOCAL)), (client(true, 4000), here), 0);
    net.brought(1, &relayed).unwrap();
    let direct = (mac(ROUTER), service_mac(spec().id));
    let asked = frame(UDP, direct, (client(true, 4000), here), 0);
    let seen = net.delivered_here(&asked).unwrap();
    let port = Headers::parse(&seen).unwrap().ip.unwrap().ports.unwrap().0;
    assert!(port != 4000, "two would look alike");
    assert_eq!(net.delivered_here(&asked).unwrap(), seen);
}

impl Net {
    fn delivered_here(&self, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        let (mut bytes, mut scratch) = (frame.to_vec(), Scratch::new());
        let mut frame = Frame::plain(&mut bytes);
        match outbound(&self.table, &mut frame, &mut scratch, self.start, &mut ()) {
            OutboundVerdict::Deliver => Ok(bytes),
            OutboundVerdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// A host's own error has the address of its uplink.
#[test]
fn the_router_says_in_its_own_name_what_did_not_reach_the_client() {
    let net = Net::published(PublishMode::Ingress, &[backend(1, 11)]);
    let to_service = service_mac(spec().id);
    let (out, vip, there) = (client(true, 4000), socket(true, VIP, 80), socket(true, 11, 8080));
    net.out(&frame(UDP, (mac(ROUTER), to_service), (out, vip), 0)).unwrap();
    let back = frame(UDP, (to_service, mac(ROUTER)), (vip, out), 0);
    let host = ip("169.254.96.1");
    let about = error((mac(ROUTER), to_service), (host, vip.ip()), &back, 1000);
    let answer = frame(UDP, (mac(11), mac(ROUTER)), (there, out), 0);
    let told = error((mac(ROUTER), mac(11)), (host, there.ip()), &answer, 1000);
    assert_eq!(net.out(&about).unwrap(), (1, told));
    // Of what is no answer of a published port, nothing is believed.
    let other = frame(UDP, (to_service, mac(ROUTER)), (socket(true, VIP, 81), out), 0);
    let about = error((mac(ROUTER), to_service), (host, vip.ip()), &other, 1000);
    assert_eq!(net.out(&about).unwrap_err(), DropReason::IpSpoofed);
}

/// A router of another node asks for a neighbour, by its link-local address.
#[test]
fn what_a_node_says_in_its_own_name_is_left_alone() {
    let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
    let router = mac(ROUTER + 1);
    let (IpAddr::V6(from), IpAddr::V6(to)) =
        (IpAddr::V6(crate::wire::ipv6::link_local_of(router)), address(false, LOCAL))
    else {
        panic!("IPv6")
    };
    let mut asked = Vec::new();
    let body = [&to.octets()[..], &[1, 1], &router.0].concat();
    PacketBuilder::ethernet2(router.0, mac(LOCAL).0)
        .ipv6(from.octets(), to.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut asked, &body)
        .unwrap();
    assert_eq!(net.brought(1, &asked).unwrap(), asked);
    let ends = (SocketAddr::new(from.into(), 4000), socket(false, LOCAL, 8080));
    let own = frame(UDP, (router, mac(LOCAL)), ends, 0);
    assert_eq!(net.brought(1, &own).unwrap(), own);
    let about = error((router, mac(LOCAL)), (from.into(), to.into()), &own, 1000);
    assert_eq!(net.brought(1, &about).unwrap(), about);
}

/// One node that brings more than its share has no room for more; others have.
#[test]
fn a_node_that_brings_too_many_gets_no_more() {
    let net = Net::published(PublishMode::Ingress, &[backend(0, LOCAL)]);
    let here = socket(true, LOCAL, 8080);
    let bring = |node: u8, n: u8| {
        let from = SocketAddr::new(IpAddr::from([203, 0, 113, n]), 4000);
        let brought = frame(TCP, (mac(ROUTER + node), mac(LOCAL)), (from, here), SYN);
        net.brought(node, &brought)?;
        let to_agent = service_mac(spec().id);
        net.out(&frame(TCP, (mac(LOCAL), to_agent), (here, from), SYN | ACK))?;
        net.brought(node, &frame(TCP, (mac(ROUTER + node), mac(LOCAL)), (from, here), ACK))
    };
    let refused = (1..60).find_map(|n| bring(1, n).err());
    assert_eq!(refused, Some(DropReason::FlowTableFull));
    bring(2, 100).unwrap();
}
