//! What is counted of backends.

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
        assert_eq!(net.open(backend), 1);
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
    let net = Net::with(4096, service(11..12));
    for port in 4000..4005 {
        net.connect(true, port);
    }
    net.out(&asks(UDP, true, 4000, 0)).unwrap();
    assert_eq!((net.open(11), net.totals(11).begun), (6, 6));
    for _ in 0..2 {
        net.out(&asks(TCP, true, 4000, RST)).unwrap();
        net.back(1, &answers(TCP, true, 11, 4000, RST));
        net.back(1, &answers(TCP, true, 11, 4001, FIN | ACK));
        net.out(&asks(TCP, true, 4001, FIN | ACK)).unwrap();
        net.back(1, &answers(TCP, true, 11, 4002, RST));
    }
    assert_eq!(net.open(11), 3);
    // One that closes begins anew.
    net.out(&asks(TCP, true, 4003, FIN | ACK)).unwrap();
    net.out(&asks(TCP, true, 4003, SYN)).unwrap();
    assert_eq!((net.open(11), net.totals(11).begun), (3, 7));
    net.flows.sweep(net.at(8000));
    assert_eq!(net.open(11), 1, "one is established");
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
