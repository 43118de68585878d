//! Backends on the client's own node: 17 is one, and 10 may be its own.

use super::{fragments::cut, *};
use crate::frame::{Gso, GsoKind};

const LOCAL: u8 = 17;

impl Net {
    /// The local endpoint is the only backend, and its answers are brought here.
    fn local(backend: u8) -> Self {
        let mut net = Self::new();
        net.apply(TableUpdate::Put(row(0, LOCAL, Place::Local)));
        net.serve_as(2, served_by(backend), |services| services.steering_local(true));
        net
    }

    /// What is written back of a local endpoint's frame.
    fn delivered(&self, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        let (mut bytes, mut scratch) = (frame.to_vec(), Scratch::new());
        let mut frame = Frame::plain(&mut bytes);
        match outbound(&self.table, &mut frame, &mut scratch, self.start, &mut ()) {
            OutboundVerdict::Deliver => {
                assert_eq!(frame.headers().copied(), Headers::parse(frame.bytes()));
                Ok(bytes)
            }
            OutboundVerdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

fn served_by(backend: u8) -> ServiceSpec {
    let key = key(0, backend);
    ServiceSpec {
        backends: vec![Backend { key, weight: 1, takes_new: true, is_near: true }],
        ..service([])
    }
}

/// The services' MACs: for answers, and for what backends get.
fn macs() -> (MacAddr, MacAddr) {
    (service_mac(spec().id), service_source_mac(spec().id))
}

fn socket(ipv4: bool, n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address(ipv4, n), port)
}

#[test]
fn a_local_backend_is_asked_where_its_answers_are_brought_here() {
    let (to_client, to_backend) = macs();
    for (ipv4, protocol) in [(true, TCP), (false, TCP), (true, UDP), (false, UDP)] {
        let mut net = Net::local(LOCAL);
        let [client, vip, backend] =
            [(CLIENT, 4000), (VIP, 80), (LOCAL, 8080)].map(|(n, port)| socket(ipv4, n, port));
        let asked = net.delivered(&asks(protocol, ipv4, 4000, SYN)).unwrap();
        assert_eq!(asked, frame(protocol, (to_backend, mac(LOCAL)), (client, backend), SYN));
        let answer = frame(protocol, (mac(LOCAL), to_client), (backend, client), SYN | ACK);
        let seen = net.delivered(&answer).unwrap();
        let totals = net.totals(LOCAL);
        assert_eq!((totals.sent_packets, totals.received_packets), (1, 1));
        assert_eq!(seen, frame(protocol, (to_client, mac(CLIENT)), (vip, client), SYN | ACK));
        net.delivered(&asks(protocol, ipv4, 4000, ACK)).unwrap();
        assert_eq!(net.state(4000), Some(State::Established));
        // The client is not here any more.
        net.apply(TableUpdate::Remove(key(0, CLIENT)));
        assert_eq!(net.delivered(&answer).unwrap_err(), DropReason::NotLocal);
        // Without the rules nobody could answer.
        let mut net = Net::local(LOCAL);
        net.serve(3, served_by(LOCAL));
        assert_eq!(net.out(&asks(protocol, ipv4, 4000, SYN)).unwrap_err(), DropReason::NoBackend);
    }
}

#[test]
fn local_and_remote_backends_share_the_flows() {
    let mut net = Net::with(1024, service(11..16));
    net.apply(TableUpdate::Put(row(0, LOCAL, Place::Local)));
    let mut spec = served_by(LOCAL);
    spec.backends.extend(service([11]).backends);
    net.serve_as(2, spec, |services| services.steering_local(true));
    let mut counts = [0, 0];
    for port in 1..200 {
        let mut bytes = asks(TCP, true, port, SYN);
        let mut frame = Frame::plain(&mut bytes);
        match outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ()) {
            OutboundVerdict::Deliver => counts[0] += 1,
            OutboundVerdict::Forward(1) => counts[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(counts.iter().all(|count| *count > 60), "{counts:?}");
}

#[test]
fn who_asks_itself_sees_the_service_as_the_client() {
    let (to_client, to_backend) = macs();
    for (ipv4, protocol) in [(true, TCP), (false, UDP)] {
        let net = Net::local(CLIENT);
        let [client, vip, seen, backend] = [(CLIENT, 4000), (VIP, 80), (VIP, 4000), (CLIENT, 8080)]
            .map(|(n, port)| socket(ipv4, n, port));
        let asked = net.delivered(&asks(protocol, ipv4, 4000, SYN)).unwrap();
        assert_eq!(asked, frame(protocol, (to_backend, mac(CLIENT)), (seen, backend), SYN));
        let answer = frame(protocol, (mac(CLIENT), to_client), (backend, seen), SYN | ACK);
        let back = net.delivered(&answer).unwrap();
        assert_eq!(back, frame(protocol, (to_client, mac(CLIENT)), (vip, client), SYN | ACK));
        // What either end says of these.
        let about = error((mac(CLIENT), to_client), (client.ip(), vip.ip()), &asked, 1000);
        let expected = error(
            (to_client, mac(CLIENT)),
            (vip.ip(), client.ip()),
            &asks(protocol, ipv4, 4000, SYN),
            1000,
        );
        assert_eq!(net.delivered(&about).unwrap(), expected);
        let about = error((mac(CLIENT), to_client), (client.ip(), vip.ip()), &back, 1000);
        let expected = error((to_backend, mac(CLIENT)), (vip.ip(), client.ip()), &answer, 1000);
        assert_eq!(net.delivered(&about).unwrap(), expected);
    }
}

#[test]
fn errors_and_fragments_of_local_ends_are_translated() {
    let (to_client, to_backend) = macs();
    for ipv4 in [true, false] {
        let net = Net::local(LOCAL);
        let [client, vip, backend] =
            [(CLIENT, 4000), (VIP, 80), (LOCAL, 8080)].map(|(n, port)| socket(ipv4, n, port));
        let sent = asks(UDP, ipv4, 4000, 0);
        let asked = net.delivered(&sent).unwrap();
        let answer = frame(UDP, (mac(LOCAL), to_client), (backend, client), 0);
        let seen = net.delivered(&answer).unwrap();
        let about = error((mac(LOCAL), to_client), (backend.ip(), client.ip()), &asked, 1000);
        let expected = error((to_client, mac(CLIENT)), (vip.ip(), client.ip()), &sent, 1000);
        assert_eq!(net.delivered(&about).unwrap(), expected);
        let about = error((mac(CLIENT), to_client), (client.ip(), vip.ip()), &seen, 1000);
        let expected = error((to_backend, mac(LOCAL)), (client.ip(), backend.ip()), &answer, 1000);
        assert_eq!(net.delivered(&about).unwrap(), expected);

        let there = cut(&frame(UDP, (to_backend, mac(LOCAL)), (client, backend), 0), 7);
        assert_eq!(cut(&sent, 7).map(|part| net.delivered(&part).unwrap()), there);
        let back = cut(&frame(UDP, (to_client, mac(CLIENT)), (vip, client), 0), 9);
        assert_eq!(cut(&answer, 9).map(|part| net.delivered(&part).unwrap()), back);
    }
}

/// The rules bring all fragments and errors of a backend, and what looks like a flow that is gone.
#[test]
fn what_is_of_no_flow_goes_on() {
    let net = Net::local(LOCAL);
    let (to_client, _) = macs();
    let udp = |to: IpAddr, macs| {
        frame(UDP, macs, (socket(to.is_ipv4(), LOCAL, 8080), SocketAddr::new(to, 99)), 0)
    };
    let from_here = (mac(LOCAL), to_client);
    for ipv4 in [true, false] {
        // To another endpoint here.
        let to = address(ipv4, CLIENT);
        let expected = udp(to, (to_client, mac(CLIENT)));
        assert_eq!(net.delivered(&udp(to, from_here)).unwrap(), expected);
        for (part, expected) in cut(&udp(to, from_here), 7).iter().zip(cut(&expected, 7)) {
            assert_eq!(net.delivered(part).unwrap(), expected);
        }
        let about = udp(address(ipv4, LOCAL), (mac(CLIENT), mac(LOCAL)));
        let ends = (address(ipv4, LOCAL), to);
        let expected = error((to_client, mac(CLIENT)), ends, &about, 1000);
        assert_eq!(net.delivered(&error(from_here, ends, &about, 1000)).unwrap(), expected);
        // There.
        let to = address(ipv4, 12);
        assert_eq!(net.out(&udp(to, from_here)).unwrap(), (2, udp(to, (mac(LOCAL), mac(12)))));
        // Outside.
        let to = if ipv4 { ip("192.0.2.1") } else { ip("2001:db8::1") };
        let expected = udp(to, (to_client, spec().gateway.mac));
        assert_eq!(net.delivered(&udp(to, from_here)).unwrap(), expected);
    }
    for to in ["224.0.0.5", "255.255.255.255", "ff02::5"] {
        let frame = udp(ip(to), from_here);
        assert_eq!(net.delivered(&frame).unwrap_err(), DropReason::ServicePort, "{to}");
    }
    let mut odd = udp(address(true, CLIENT), from_here);
    let checksum = Some(PartialChecksum { start: 14, offset: 12 });
    let mut frame = Frame::new(&mut odd, Offload { gso: None, checksum });
    let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Drop(DropReason::BadOffload));
}

/// An agent that has just started takes no answer for something else.
#[test]
fn answers_wait_until_all_is_known() {
    let mut net = Net::local(LOCAL);
    let services = [Arc::new(Service::new(served_by(LOCAL), None))];
    let services = Services::new(Arc::clone(&net.flows), (3, false), services);
    net.apply(TableUpdate::Services(Some(Arc::new(services.steering_local(true)))));
    let ends = (socket(true, LOCAL, 8080), socket(true, CLIENT, 4000));
    let answer = frame(TCP, (mac(LOCAL), macs().0), ends, ACK);
    assert_eq!(net.delivered(&answer).unwrap_err(), DropReason::FlowUnknown);
    assert_eq!(told(&net, &answer), [0; 0]);
}

/// What a device did not cut, the other device gets whole.
#[test]
fn a_super_frame_stays_one() {
    let net = Net::local(LOCAL);
    net.delivered(&asks(TCP, true, 4000, SYN)).unwrap();
    let mut bytes = asks(TCP, true, 4000, ACK);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let before = bytes.clone();
    let gso = Some(Gso { kind: GsoKind::Tcp4, segment_size: 4, header_len: 54 });
    let mut frame = Frame::new(&mut bytes, Offload { gso, checksum });
    let verdict = outbound(&net.table, &mut frame, &mut Scratch::new(), net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Deliver);
    assert_eq!((frame.gso(), frame.checksum()), (gso, checksum));
    assert_ne!(bytes[50..52], before[50..52], "it is that of the other addresses");
}

proptest! {
    /// Whatever bytes go to the services' MAC: nothing panics, and what goes back to the bridge
    /// has a MAC of the services as its source.
    #[test]
    fn bytes_of_all_kinds_go_back_in_the_name_of_the_services_or_are_dropped(
        changes in prop::collection::vec((0usize..80, any::<u8>()), 0..6), cut in 14usize..94,
        (tcp, ipv4, answers, cuts) in any::<(bool, bool, bool, bool)>(), flags: u8,
        checksum in prop::option::of((0u16..80, 0u16..40)),
    ) {
        let net = Net::local(LOCAL);
        let protocol = if tcp { TCP } else { UDP };
        net.delivered(&asks(protocol, ipv4, 4000, SYN)).unwrap();
        let mut bytes = if answers {
            let ends = (socket(ipv4, LOCAL, 8080), socket(ipv4, CLIENT, 4000));
            frame(protocol, (mac(LOCAL), macs().0), ends, flags)
        } else {
            asks(protocol, ipv4, 4000, flags)
        };
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(12 + at) {
                *place = byte;
            }
        }
        if cuts {
            bytes.truncate(cut);
        }
        let checksum = checksum.map(|(start, offset)| PartialChecksum { start, offset });
        let mut sent = Frame::new(&mut bytes, Offload { gso: None, checksum });
        let verdict = outbound(&net.table, &mut sent, &mut Scratch::new(), net.start, &mut ());
        prop_assert_eq!(sent.headers().copied(), Headers::parse(sent.bytes()));
        if verdict == OutboundVerdict::Deliver {
            let source = sent.headers().unwrap().source;
            prop_assert!(is_service_mac(spec().id, source), "{}", source);
        }
    }
}
