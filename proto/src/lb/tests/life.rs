//! Who has the frames of a flow while backends come and go, and who is told.

use super::{flows::tests::hold, *};

#[test]
fn a_connection_waits_for_a_backend_that_is_cut_off() {
    let mut net = Net::new();
    let backend = net.connect(true, 4000);
    let rows = (11..16).map(|n| row(n - CLIENT, n, Place::Remote(u32::from(n - CLIENT))));
    for n in 11..16 {
        net.apply(TableUpdate::Remove(key(n - CLIENT, n)));
    }
    for (port, flags) in [(4000, ACK), (4000, FIN | ACK), (4001, SYN)] {
        let frame = asks(TCP, true, port, flags);
        assert_eq!(net.out(&frame).unwrap_err(), DropReason::BackendUnknown, "{flags}");
        assert_eq!(told(&net, &frame), [0; 0], "{flags}");
    }
    assert_eq!(net.out(&asks(UDP, true, 1, 0)).unwrap_err(), DropReason::BackendUnknown);
    rows.for_each(|row| net.apply(TableUpdate::Put(row)));
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap().0, u32::from(backend - CLIENT));
    // It is a backend no more.
    net.serve(2, service((11..16).filter(|n| *n != backend)));
    let frame = asks(TCP, true, 4000, ACK);
    assert_eq!(net.out(&frame).unwrap_err(), DropReason::NoBackend);
    assert!(!told(&net, &frame).is_empty());
}

/// All that it has are known, and none speaks the client's IP version.
#[test]
fn who_can_reach_no_backend_ever_is_told_at_once() {
    let mut net = Net::with(64, service([11]));
    let mut v4 = row(1, 11, Place::Remote(1));
    v4.ips.truncate(1);
    net.apply(TableUpdate::Put(v4));
    net.connect(true, 4000);
    assert_eq!(net.out(&asks(TCP, false, 4000, SYN)).unwrap_err(), DropReason::NoBackend);
    assert!(!told(&net, &asks(TCP, false, 4000, SYN)).is_empty());
}

#[test]
fn who_spoke_with_a_service_that_is_deleted_is_told() {
    let mut net = Net::new();
    net.connect(true, 4000);
    net.out(&asks(UDP, true, 4000, 0)).unwrap();
    let mut other = service(11..16);
    other.vips = vec![address(true, 201)];
    net.serve(2, other);
    for frame in [asks(TCP, true, 4000, ACK), asks(UDP, true, 4000, 0), asks(TCP, true, 4000, SYN)]
    {
        assert_eq!(net.out(&frame).unwrap_err(), DropReason::NoBackend);
        assert!(!told(&net, &frame).is_empty());
    }
    assert_eq!(net.out(&asks(TCP, true, 4001, SYN)).unwrap_err(), DropReason::ServicePort);
}

/// Clients know the services' MAC by the address for a while.
#[test]
fn who_remembers_the_address_of_a_deleted_service_is_refused_at_once() {
    let gone = || TableUpdate::GoneVips([address(true, VIP), address(false, VIP)].into());
    let frames = || {
        [true, false].into_iter().flat_map(|ipv4| {
            [(TCP, SYN), (TCP, ACK), (UDP, 0)].map(|(it, flags)| asks(it, ipv4, 4000, flags))
        })
    };
    let refused = |net: &Net, frame: &[u8]| {
        assert_eq!(net.out(frame).unwrap_err(), DropReason::ServicePort);
        let answer = told(net, frame);
        assert_eq!(answer[..12], [&mac(CLIENT).0[..], &service_mac(spec().id).0].concat());
    };
    // The last one of the network, one of several, and one on a node with backends; and without
    // any since the agent's start.
    let mut last = Net::new();
    last.apply(TableUpdate::Services(None));
    let mut other = service(11..16);
    other.vips = vec![address(true, 201)];
    let mut one = Net::with(64, other.clone());
    let mut near = Net::new();
    near.serve_as(2, other, |services| services.steering_local(true));
    for net in [&mut last, &mut one, &mut near] {
        net.apply(gone());
        frames().for_each(|frame| refused(net, &frame));
        let reset = frame(TCP, (mac(CLIENT), service_mac(spec().id)), ends(4000), RST);
        assert_eq!(told(net, &reset), [0; 0], "nobody answers an RST");
        // Not if somebody has it by now.
        let mut endpoint = row(1, 20, Place::Remote(1));
        endpoint.ips = vec![address(true, VIP), address(false, VIP)];
        net.apply(TableUpdate::Put(endpoint));
        assert!(!net.table.is_gone_vip(address(true, VIP)));
        net.apply(TableUpdate::Remove(key(1, 20)));
        net.serve(3, service(11..16));
        net.connect(true, 4001);
    }
}

/// From the client to the service's port 80.
fn ends(port: u16) -> (SocketAddr, SocketAddr) {
    ((address(true, CLIENT), port).into(), (address(true, VIP), 80).into())
}

fn failing(n: u8) -> ServiceSpec {
    let mut spec = service(11..16);
    spec.backends[usize::from(n - 11)].takes_new = false;
    spec
}

#[test]
fn who_was_not_answered_leaves_a_backend_that_fails() {
    let mut net = Net::new();
    let (waits, _) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    let backend = CLIENT + u8::try_from(waits).unwrap();
    net.serve(2, failing(backend));
    let (other, _) = net.out(&asks(TCP, true, 4000, SYN)).unwrap();
    assert_ne!(other, waits);
    // Who was answered stays.
    net.back(
        u8::try_from(other).unwrap(),
        &answers(TCP, true, CLIENT + u8::try_from(other).unwrap(), 4000, SYN | ACK),
    );
    net.serve(3, failing(CLIENT + u8::try_from(other).unwrap()));
    assert_eq!(net.out(&asks(TCP, true, 4000, SYN)).unwrap().0, other);
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap().0, other);
}

#[test]
fn datagrams_leave_a_backend_that_is_about_to_go_if_another_is_there() {
    let mut net = Net::new();
    let (first, _) = net.out(&asks(UDP, true, 4000, 0)).unwrap();
    let backend = CLIENT + u8::try_from(first).unwrap();
    net.back(backend - CLIENT, &answers(UDP, true, backend, 4000, 0));
    // Nobody else is there yet.
    let mut alone = service([backend]);
    alone.backends[0].takes_new = false;
    net.serve(2, alone);
    for _ in 0..2 {
        assert_eq!(net.out(&asks(UDP, true, 4000, 0)).unwrap().0, first);
    }
    let others: Vec<u8> = (11..16).filter(|n| *n != backend).collect();
    for n in &others {
        net.apply(TableUpdate::Remove(key(n - CLIENT, *n)));
    }
    net.serve(3, failing(backend));
    assert_eq!(net.out(&asks(UDP, true, 4000, 0)).unwrap().0, first);
    let n = others[0];
    net.apply(TableUpdate::Put(row(n - CLIENT, n, Place::Remote(u32::from(n - CLIENT)))));
    assert_eq!(net.out(&asks(UDP, true, 4000, 0)).unwrap().0, u32::from(n - CLIENT));
}

/// Another thread writes the flow at this moment: its sender will send again, and is not told that
/// there is no such connection.
#[test]
fn a_flow_that_others_write_is_not_refused() {
    let net = Net::new();
    net.connect(true, 4000);
    let found = net.flows.iter().next().unwrap();
    hold(&net.flows, &found);
    let frame = asks(TCP, true, 4000, SYN);
    assert_eq!(net.out(&frame).unwrap_err(), DropReason::FlowBusy);
    assert_eq!(told(&net, &frame), [0; 0]);
}

/// An endpoint has the VIP as its address: it is asked, not the service.
#[test]
fn the_address_of_an_endpoint_is_the_endpoints() {
    for (owner, place) in [(1, Place::Remote(1)), (0, Place::Local)] {
        let mut net = Net::new();
        let mut endpoint = row(owner, 20, place);
        endpoint.ips = vec![address(true, VIP), address(false, VIP)];
        net.apply(TableUpdate::Put(endpoint));
        let (request, mut asked) = question();
        let mut scratch = Scratch::new();
        let verdict =
            outbound(&net.table, &mut Frame::plain(&mut asked), &mut scratch, net.start, &mut ());
        if owner == 0 {
            assert_eq!(verdict, OutboundVerdict::Drop(DropReason::AnsweredLocally));
        } else {
            assert_eq!(verdict, OutboundVerdict::Hairpin);
            assert_eq!(scratch.reply(), request.reply_from(mac(20)).to_frame());
        }
        for frame in [asks(TCP, true, 4000, SYN), asks(UDP, false, 4000, 0)] {
            assert_eq!(net.out(&frame).unwrap_err(), DropReason::ServicePort);
            assert_eq!(told(&net, &frame), [0; 0]);
        }
        net.apply(TableUpdate::Remove(key(owner, 20)));
        net.connect(true, 4000);
    }
}

/// What goes to a backend there would be dropped, so nothing says that there is a service.
#[test]
fn an_isolated_network_has_no_services() {
    let mut net = Net::new();
    let isolated = crate::tables::NetworkSpec { isolated: true, ..spec() };
    net.apply(TableUpdate::Spec(isolated));
    let (_request, asked) = question();
    assert_eq!(net.out(&asked).unwrap_err(), DropReason::NeighborUnknown);
    assert_eq!(net.out(&asks(TCP, true, 4000, SYN)).unwrap_err(), DropReason::FdbUnknown);
    assert_eq!(net.flows.iter().count(), 0);
}

/// What the client sees of what its service says.
fn by_service(protocol: u8, ipv4: bool, port: u16, flags: u8) -> Vec<u8> {
    let macs = (service_mac(spec().id), mac(CLIENT));
    let ends = [(VIP, 80), (CLIENT, port)].map(|(n, port)| SocketAddr::new(address(ipv4, n), port));
    frame(protocol, macs, (ends[0], ends[1]), flags)
}

#[test]
fn a_connection_that_was_idle_for_twenty_minutes_goes_on() {
    let mut net = Net::new();
    let backend = net.connect(true, 4000);
    let (datagrams, _) = net.out(&asks(UDP, true, 4000, 0)).unwrap();
    assert!(datagrams > 0 && net.flows.count().open == 2);
    for minute in 1..=20 {
        net.flows.sweep(net.at(60 * minute));
    }
    net.start += Duration::from_secs(20 * 60);
    assert_eq!(net.flows.count().open, 1, "datagrams are kept for three minutes");
    let answer = answers(TCP, true, backend, 4000, ACK);
    assert_eq!(net.back(backend - CLIENT, &answer), by_service(TCP, true, 4000, ACK));
    assert_eq!(net.out(&asks(TCP, true, 4000, ACK)).unwrap().0, u32::from(backend - CLIENT));
    assert!(net.out(&asks(UDP, true, 4000, 0)).is_ok(), "they begin anew");
}

/// How a connection ends that a backend has.
type End = dyn Fn(&Net, u8);

#[test]
fn a_port_that_is_used_again_within_a_second_has_another_backend() {
    let ends: [&End; 3] = [
        &|net, backend| {
            net.out(&asks(TCP, true, 4000, FIN | ACK)).unwrap();
            net.back(backend - CLIENT, &answers(TCP, true, backend, 4000, FIN | ACK));
        },
        &|net, _| drop(net.out(&asks(TCP, true, 4000, RST)).unwrap()),
        &|net, backend| {
            net.back(backend - CLIENT, &answers(TCP, true, backend, 4000, RST));
        },
    ];
    for (at, end) in ends.iter().enumerate() {
        let in_turn = ServiceSpec { choice: Choice::RoundRobin, ..service(11..16) };
        let net = Net::with(64, in_turn);
        let first = net.connect(true, 4000);
        end(&net, first);
        assert_eq!(net.state(4000), Some(State::Closed), "{at}");
        let second = net.connect(true, 4000);
        assert_ne!(second, first, "{at}: it is chosen anew");
        // What the first one still says is of no flow.
        let late = answers(TCP, true, first, 4000, FIN | ACK);
        assert_eq!(net.back(first - CLIENT, &late), late);
        assert_eq!((net.state(4000), net.flows.iter().count()), (Some(State::Established), 1));
    }
}

#[test]
fn datagrams_are_refused_without_a_backend_and_go_on_when_there_is_one() {
    for ipv4 in [true, false] {
        let mut net = Net::with(64, service([11]));
        let asked = asks(UDP, ipv4, 4000, 0);
        // Another one comes, and then the first is back.
        for (version, backend) in [(10, 11), (20, 12), (30, 11)] {
            net.serve(version, service([backend]));
            assert_eq!(net.out(&asked).unwrap().0, u32::from(backend - CLIENT));
            let answer = answers(UDP, ipv4, backend, 4000, 0);
            assert_eq!(net.back(backend - CLIENT, &answer), by_service(UDP, ipv4, 4000, 0));
            net.serve(version + 1, service([]));
            assert_eq!(net.out(&asked).unwrap_err(), DropReason::NoBackend);
            assert!(!told(&net, &asked).is_empty());
        }
    }
}

#[test]
fn one_port_of_tcp_and_udp_leads_to_two() {
    let mut both = service([11]);
    both.ports[1].backend_port = 5353;
    let mut net = Net::with(64, both.clone());
    let client = SocketAddr::new(address(true, CLIENT), 4000);
    for (protocol, port) in [(TCP, 8080), (UDP, 5353)] {
        let backend = SocketAddr::new(address(true, 11), port);
        let there = frame(protocol, (mac(CLIENT), mac(11)), (client, backend), SYN);
        assert_eq!(net.out(&asks(protocol, true, 4000, SYN)).unwrap(), (1, there));
        let answer = frame(protocol, (mac(11), mac(CLIENT)), (backend, client), SYN | ACK);
        assert_eq!(net.back(1, &answer), by_service(protocol, true, 4000, SYN | ACK));
    }
    // One of the two is taken away.
    both.ports.truncate(1);
    net.serve(2, both);
    assert!(net.out(&asks(TCP, true, 4001, SYN)).is_ok());
    assert_eq!(net.out(&asks(UDP, true, 4001, 0)).unwrap_err(), DropReason::ServicePort);
}
