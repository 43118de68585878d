//! What is counted of backends, and who gets the next flow by it.

use super::*;
use crate::addr::EndpointId;

impl Net {
    /// Another snapshot of the service, which goes on.
    pub(super) fn follow(&mut self, version: u64, spec: ServiceSpec) {
        let before = self.service();
        self.publish(version, Service::new(spec, Some(&before)));
    }

    fn publish(&mut self, version: u64, service: Service) {
        let flows = Arc::clone(&self.flows);
        let services = Services::new(flows, (version, true), [Arc::new(service)]);
        services.count_new(spec().id);
        self.apply(TableUpdate::Services(Some(Arc::new(services))));
    }

    fn service(&self) -> Arc<Service> {
        Arc::clone(self.table.services().unwrap().iter().next().unwrap())
    }

    /// What was counted of a backend.
    pub(super) fn totals(&self, backend: u8) -> Totals {
        self.service().totals(endpoint(backend)).unwrap()
    }

    /// Its flows.
    fn open(&self, backend: u8) -> u64 {
        let open = self.table.services().unwrap().open(spec().id, self.service().spec().id);
        open.get(&endpoint(backend)).copied().unwrap_or_default()
    }

    fn recount(&self) {
        recount(&[(spec().id, self.table.services().unwrap())]);
    }

    /// What is kept of that from one flow to the next.
    fn kept(&self, backend: u8) -> u64 {
        self.service().counts_of(endpoint(backend)).unwrap().open()
    }
}

fn endpoint(backend: u8) -> EndpointId {
    key(0, backend).endpoint
}

fn len(frame: &[u8]) -> u64 {
    frame.len().try_into().unwrap()
}

#[test]
fn frames_are_counted_at_their_backend_from_one_snapshot_to_the_next() {
    for ipv4 in [true, false] {
        let mut net = Net::new();
        let port = (4000..).find(|port| net.connect(ipv4, *port) != 11).unwrap();
        let backend = net.connect(ipv4, port);
        let before = net.totals(backend);
        assert_eq!((net.open(backend), net.kept(backend)), (1, 1));
        let [syn, ack] = [SYN, ACK].map(|flags| len(&asks(TCP, ipv4, port, flags)));
        let answer = answers(TCP, ipv4, backend, port, ACK);
        let expected = Totals {
            begun: 1,
            sent_packets: 4,
            sent_bytes: 2 * (syn + ack),
            received_packets: 2,
            received_bytes: 2 * len(&answers(TCP, ipv4, backend, port, SYN | ACK)),
            ejections: 0,
        };
        assert_eq!(before, expected);
        // Its number in the service is another one, and who answers comes first.
        net.follow(2, service(12..16));
        net.back(backend - CLIENT, &answer);
        net.back(backend - CLIENT, &answer);
        net.out(&asks(TCP, ipv4, port, ACK)).unwrap();
        let after = net.totals(backend);
        assert_eq!(after.received_packets, 4);
        assert_eq!(after.received_bytes, before.received_bytes + 2 * len(&answer));
        assert_eq!((after.sent_packets, after.sent_bytes), (5, before.sent_bytes + ack));
        let others = (12..16).filter(|other| *other != backend);
        assert!(others.map(|other| net.totals(other)).all(|totals| totals.begun == 0));
        // What one had that is none any more is the service's.
        let total = net.service().total();
        net.follow(3, service((12..16).filter(|other| *other != backend)));
        assert_eq!(net.service().total(), total);
        assert_eq!(total.begun, after.begun + u64::from(port - 4000));
        assert_eq!(net.service().totals(endpoint(backend)), None);
    }
}

#[test]
fn a_flow_ends_once_whoever_ends_it() {
    let net = Net::with(4096, by_flows(&[1]));
    for port in 4000..4005 {
        net.connect(true, port);
    }
    net.out(&asks(UDP, true, 4000, 0)).unwrap();
    assert_eq!((net.open(11), net.kept(11), net.totals(11).begun), (6, 6, 6));
    for _ in 0..2 {
        net.out(&asks(TCP, true, 4000, RST)).unwrap();
        net.back(1, &answers(TCP, true, 11, 4000, RST));
        net.back(1, &answers(TCP, true, 11, 4001, FIN | ACK));
        net.out(&asks(TCP, true, 4001, FIN | ACK)).unwrap();
        net.back(1, &answers(TCP, true, 11, 4002, RST));
    }
    assert_eq!((net.open(11), net.kept(11)), (3, 3));
    // One that closes begins anew.
    net.out(&asks(TCP, true, 4003, FIN | ACK)).unwrap();
    net.out(&asks(TCP, true, 4003, SYN)).unwrap();
    assert_eq!((net.open(11), net.kept(11), net.totals(11).begun), (3, 3, 7));
    // What was swept is noticed when they are counted.
    net.flows.sweep(net.at(8000));
    net.recount();
    assert_eq!((net.open(11), net.kept(11)), (1, 1), "one is established");
}

/// Its client was told that it ended.
#[test]
fn a_connection_whose_backend_went_is_not_there_when_the_backend_is_back() {
    let mut net = Net::with(64, by_flows(&[1]));
    net.connect(true, 4000);
    net.follow(2, by_flows(&[0, 1]));
    for reason in [DropReason::NoBackend, DropReason::FlowUnknown] {
        let frame = asks(TCP, true, 4000, ACK);
        assert_eq!(net.out(&frame).unwrap_err(), reason);
        assert!(!told(&net, &frame).is_empty());
    }
    net.follow(3, by_flows(&[1]));
    assert_eq!((net.open(11), net.kept(11)), (0, 0));
}

#[test]
fn what_begins_no_flow_is_counted_by_its_reason() {
    let mut net = Net::new();
    let refused = |net: &Net| net.service().refused().collect::<Vec<_>>();
    assert_eq!(refused(&net), []);
    let mut other_port = asks(TCP, true, 4000, SYN);
    other_port[36..38].copy_from_slice(&81u16.to_be_bytes());
    net.out(&other_port).unwrap_err();
    net.out(&asks(TCP, true, 4000, ACK)).unwrap_err();
    net.follow(2, service([]));
    for port in 0..3 {
        net.out(&asks(TCP, true, 4000 + port, SYN)).unwrap_err();
    }
    let expected =
        [(DropReason::NoBackend, 3), (DropReason::ServicePort, 1), (DropReason::FlowUnknown, 1)];
    assert_eq!(refused(&net), expected);
    net.follow(3, service(11..16));
    let full = (0..200).filter(|port| {
        net.out(&asks(TCP, true, 5000 + port, SYN)) == Err(DropReason::FlowTableFull)
    });
    let full = u64::try_from(full.count()).unwrap();
    assert!(full > 0 && refused(&net).contains(&(DropReason::FlowTableFull, full)));
}

#[test]
fn an_ejection_counts_when_it_begins() {
    let mut net = Net::new();
    let out = |ports: &[(u8, Protocol)]| {
        let port = |(backend, protocol): &(u8, Protocol)| BackendPort {
            key: key(backend - CLIENT, *backend),
            protocol: *protocol,
            port: 8080,
        };
        ServiceSpec { out: ports.iter().map(port).collect(), ..service(11..16) }
    };
    let (tcp, udp) = ((12, Protocol::Tcp), (12, Protocol::Udp));
    for (version, ports, count) in [
        (2, &[tcp][..], 1),
        (3, &[tcp, udp], 1),
        (4, &[udp], 1),
        (5, &[], 1),
        (6, &[udp, (13, Protocol::Tcp)], 2),
    ] {
        net.follow(version, out(ports));
        assert_eq!(net.totals(12).ejections, count, "{version}");
    }
    assert_eq!(net.service().total().ejections, 3);
}

/// A service that goes by flows, with these weights; 0 is no backend.
fn by_flows(weights: &[u8]) -> ServiceSpec {
    let there = (11..16).zip(weights).filter(|(_, weight)| **weight > 0);
    let mut spec = service(there.clone().map(|(backend, _)| backend));
    for (backend, (_, weight)) in spec.backends.iter_mut().zip(there) {
        backend.weight = *weight;
    }
    ServiceSpec { choice: Choice::LeastConn, ..spec }
}

#[test]
fn of_equal_ones_each_has_its_turn_by_its_weight() {
    let net = Net::with(4096, by_flows(&[1, 3, 2]));
    for port in 4000..4060 {
        net.connect(true, port);
        net.out(&asks(TCP, true, port, RST)).unwrap();
    }
    assert_eq!([11, 12, 13].map(|backend| net.totals(backend).begun), [10, 30, 20]);
    for port in 5000..5060 {
        net.connect(true, port);
    }
    assert_eq!([11, 12, 13].map(|backend| net.open(backend)), [10, 30, 20]);
}

/// An agent that has just started, or a service that goes by something else from now on.
#[test]
fn flows_of_before_count_from_the_first_one_on() {
    for is_same in [true, false] {
        let mut net = Net::with(4096, service(11..13));
        let open = |net: &Net| [11, 12].map(|backend| net.open(backend));
        let lead = |net: &Net| open(net)[0].abs_diff(open(net)[1]);
        let mut port = 4000;
        while lead(&net) < 3 {
            port += 1;
            net.connect(true, port);
        }
        let before = is_same.then(|| net.service());
        let next = Service::new(by_flows(&[1, 1]), before.as_deref());
        net.publish(2, next);
        let fewer = if open(&net)[0] < open(&net)[1] { 11 } else { 12 };
        for n in 1..=3 {
            assert_eq!(net.connect(true, port + n), fewer);
        }
        assert_eq!(lead(&net), 0);
    }
}

const ALL: [u8; 5] = [11, 12, 13, 14, 15];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever happened before: backends that came and went, flows that ended in any way or were
    /// swept, and agents that were started anew.
    #[test]
    fn the_next_flow_is_who_has_the_fewest_for_its_weight(
        steps in prop::collection::vec((0u8..10, any::<u16>()), 1..150),
    ) {
        let mut weights = vec![1, 1, 2, 1, 3];
        let mut net = Net::with(4096, by_flows(&weights));
        let (mut port, mut version, mut flows) = (1000, 1, Vec::new());
        for (step, n) in steps {
            match step {
                0..=4 => {
                    let open = ALL.map(|backend| net.open(backend));
                    port += 1;
                    let Ok((peer, _)) = net.out(&asks(TCP, true, port, SYN)) else {
                        prop_assert!(weights.iter().all(|weight| *weight == 0));
                        continue;
                    };
                    let (backend, at) = (CLIENT + u8::try_from(peer).unwrap(), peer as usize - 1);
                    let load = |of: usize, other: usize| open[of] * u64::from(weights[other]);
                    for other in (0..5).filter(|other| weights[*other] > 0) {
                        prop_assert!(load(at, other) <= load(other, at), "{:?} {:?}", open, weights);
                    }
                    net.back(backend - CLIENT, &answers(TCP, true, backend, port, SYN | ACK));
                    net.out(&asks(TCP, true, port, ACK)).unwrap();
                    flows.push((port, backend));
                }
                5 | 6 if !flows.is_empty() => {
                    let (port, backend) = flows.swap_remove(usize::from(n) % flows.len());
                    let (asked, answered) = match n % 3 {
                        0 => (RST, None),
                        1 => (FIN | ACK, Some(FIN | ACK)),
                        _ => (ACK, Some(RST)),
                    };
                    let _gone = net.out(&asks(TCP, true, port, asked));
                    if let Some(flags) = answered {
                        net.back(backend - CLIENT, &answers(TCP, true, backend, port, flags));
                    }
                }
                7 => {
                    let digit = |at: u32| u8::try_from(n / 4u16.pow(at) % 4).unwrap();
                    weights = (0..5).map(digit).collect();
                    version += 1;
                    net.follow(version, by_flows(&weights));
                }
                8 => {
                    version += 1;
                    net.publish(version, Service::new(by_flows(&weights), None));
                }
                9 => {
                    net.start += Duration::from_secs(u64::from(n) % 9000);
                    net.flows.sweep(net.start);
                    net.recount();
                }
                _ => {}
            }
        }
    }
}
