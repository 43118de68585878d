//! A client that uses one port for a VIP and for its backend.

use super::*;

/// From the client to a backend itself.
fn direct(protocol: u8, port: u16, flags: u8) -> Vec<u8> {
    direct_from(protocol, (mac(CLIENT), mac(11)), port, flags)
}

fn direct_from(protocol: u8, macs: (MacAddr, MacAddr), port: u16, flags: u8) -> Vec<u8> {
    let ends = (socket(CLIENT, port), socket(11, 8080));
    frame(protocol, macs, ends, flags)
}

fn socket(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address(true, n), port)
}

fn ports(frame: &[u8]) -> (u16, u16) {
    Headers::parse(frame).unwrap().ip.unwrap().ports.unwrap()
}

/// A segment without payload.
fn bare(segment: &[u8]) -> Vec<u8> {
    let mut bytes = segment.to_vec();
    bytes.truncate(54);
    bytes[16..18].copy_from_slice(&40u16.to_be_bytes());
    bytes
}

#[test]
fn a_direct_connection_beside_one_to_the_service_gets_another_port() {
    for protocol in [TCP, UDP] {
        let net = Net::with(64, service([11]));
        let (_, asked) = net.out(&asks(protocol, true, 4000, SYN)).unwrap();
        assert_eq!(ports(&asked), (4000, 8080));
        net.back(1, &answers(protocol, true, 11, 4000, SYN | ACK));
        let (_, there) = net.out(&direct(protocol, 4000, SYN)).unwrap();
        let (other, _) = ports(&there);
        assert!(other >= 0x8000, "{other}");
        assert_eq!(there, direct(protocol, other, SYN), "all else is the client's");
        let answer = answers(protocol, true, 11, other, SYN | ACK);
        assert_eq!(net.back(1, &answer), answers(protocol, true, 11, 4000, SYN | ACK));
        assert_eq!(net.out(&direct(protocol, 4000, ACK)).unwrap().1, direct(protocol, other, ACK));
        // That to the service is what it was.
        assert_eq!(ports(&net.out(&asks(protocol, true, 4000, ACK)).unwrap().1), (4000, 8080));
        let back = net.back(1, &answers(protocol, true, 11, 4000, ACK));
        assert_eq!(ports(&back), (80, 4000));
        // Others have their own ports.
        assert_eq!(net.out(&direct(protocol, 4001, SYN)).unwrap().1, direct(protocol, 4001, SYN));
    }
}

#[test]
fn a_connection_to_the_service_beside_a_direct_one_gets_another_port() {
    let net = Net::with(64, service([11]));
    // Of the direct one nothing is known.
    assert_eq!(net.out(&direct(TCP, 4000, SYN)).unwrap().1, direct(TCP, 4000, SYN));
    let (_, first) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    assert_eq!(ports(&first), (4000, 8080));
    // What it is sent meanwhile reaches the client as it is.
    let data = answers(TCP, true, 11, 4000, ACK);
    assert_eq!(net.back(1, &data), data);
    let (_, second) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    assert!(ports(&second).0 >= 0x8000);

    // Or the backend says at once that it has such a connection.
    let net = Net::with(64, service([11]));
    net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    let mut challenge = bare(&data);
    assert_eq!(inbound(&net.table, &node(1), &challenge, &mut ()), InboundVerdict::Deliver);
    let verdict = answer(&net.table, &mut Frame::plain(&mut challenge), net.start, &mut ());
    assert_eq!(verdict, InboundVerdict::Drop(DropReason::FlowClash));
    let (_, again) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    let (other, _) = ports(&again);
    assert!(other >= 0x8000);
    let back = net.back(1, &answers(TCP, true, 11, other, SYN | ACK));
    assert_eq!(ports(&back), (80, 4000));
    assert_eq!(net.back(1, &data), data, "and the older one goes on");
    assert_eq!(net.flows.iter().count(), 1);
}

/// A direct connection ends, and its port begins another.
#[test]
fn a_direct_flow_ends_with_its_connection() {
    let net = Net::with(64, service([11]));
    net.connect(true, 4000);
    let (other, _) = ports(&net.out(&direct(TCP, 4000, SYN)).unwrap().1);
    net.out(&direct(TCP, 4000, RST)).unwrap();
    assert_eq!(net.flows.iter().filter(|it| it.state == State::Closed).count(), 1);
    assert_eq!(ports(&net.out(&direct(TCP, 4000, SYN)).unwrap().1), (other, 8080));
    let open = net.flows.iter().filter(|it| it.state == State::HalfOpen);
    assert_eq!(open.count(), 1, "it begins anew");
    // Its backend is not known for a while.
    let mut net = net;
    net.apply(TableUpdate::Remove(key(1, 11)));
    assert_eq!(net.out(&direct(TCP, 4000, SYN)).unwrap_err(), DropReason::BackendUnknown);
}

#[test]
fn a_local_backend_knows_both_apart() {
    let mut net = Net::with(64, service([11]));
    net.apply(TableUpdate::Put(row(0, 11, Place::Local)));
    net.apply(TableUpdate::Remove(key(1, 11)));
    let mut spec = service([]);
    spec.backends = vec![Backend { key: key(0, 11), weight: 1, takes_new: true, is_near: true }];
    net.serve_as(2, spec, |services| services.steering_local(true));
    let delivered = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let mut frame = Frame::plain(&mut bytes);
        let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
        assert_eq!(verdict, OutboundVerdict::Deliver);
        bytes
    };
    let service = service_mac(crate::tables::tests::spec().id);
    let from_backend = |port: u16, flags: u8| {
        let ends = (socket(11, 8080), socket(CLIENT, port));
        frame(TCP, (mac(11), service), ends, flags)
    };
    assert_eq!(ports(&delivered(&asks(TCP, true, 4000, SYN))), (4000, 8080));
    delivered(&from_backend(4000, SYN | ACK));
    // The bridge brings the direct SYN here: it has the ends of the flow.
    let steered = |flags| direct_from(TCP, (mac(CLIENT), service), 4000, flags);
    let there = delivered(&steered(SYN));
    let (other, _) = ports(&there);
    assert!(other >= 0x8000);
    let (from, to) = (service_source_mac(crate::tables::tests::spec().id), mac(11));
    assert_eq!(there, direct_from(TCP, (from, to), other, SYN));
    let ends = (socket(11, 8080), socket(CLIENT, 4000));
    let expected = frame(TCP, (service, mac(CLIENT)), ends, SYN | ACK);
    assert_eq!(delivered(&from_backend(other, SYN | ACK)), expected);
    // An older direct connection goes on as it was.
    assert_eq!(ports(&delivered(&asks(TCP, true, 5000, SYN))), (5000, 8080));
    let ends = (socket(11, 8080), socket(CLIENT, 5000));
    let expected = frame(TCP, (service, mac(CLIENT)), ends, ACK);
    assert_eq!(delivered(&from_backend(5000, ACK)), expected);
    assert!(ports(&delivered(&asks(TCP, true, 5000, SYN))).0 >= 0x8000);
}
