//! Clients that keep their backends, by their addresses, on a virtual clock.

use std::collections::BTreeMap;

use super::*;

const TTL: u32 = 60;
const CLIENTS: u16 = 1000;

/// What becomes of a backend.
type Change = dyn Fn(ServiceSpec, u8) -> ServiceSpec;

/// What each of many clients has.
type Backends = BTreeMap<u16, u8>;

fn sticky(choice: Choice, backends: impl IntoIterator<Item = u8>) -> ServiceSpec {
    ServiceSpec { choice, sticky: Some(TTL), ..service(backends) }
}

/// Room for a flow of each client, half-open as all of them are.
fn net(spec: ServiceSpec) -> Net {
    Net::with(32_768, spec)
}

impl Net {
    /// The next snapshot: what is known of clients goes on.
    fn go_on(&mut self, spec: ServiceSpec) {
        let services = self.table.services().unwrap();
        let version = services.version() + 1;
        let before = Arc::clone(services.iter().next().unwrap());
        let service = Arc::new(Service::new(spec, Some(&before)));
        let services = Services::new(Arc::clone(&self.flows), (version, true), [service]);
        self.apply(TableUpdate::Services(Some(Arc::new(services))));
    }

    fn pass(&mut self, seconds: u32) {
        self.start += Duration::from_secs(seconds.into());
    }

    /// To whom a packet of a client goes. Whether it may have its address is not asked here.
    fn first(&self, client: u16, protocol: u8, port: u16, flags: u8) -> u8 {
        let [high, low] = client.to_be_bytes();
        let from = SocketAddr::new(IpAddr::from([10, 1, high, low]), port);
        let macs = (mac(CLIENT), service_mac(spec().id));
        let to = SocketAddr::new(address(true, VIP), 80);
        let mut bytes = frame(protocol, macs, (from, to), flags);
        let balancer = Balancer::of(&self.table, self.start).unwrap();
        let mut frame = Frame::plain(&mut bytes);
        assert_eq!(balancer.take(&mut frame), Ok(Way::Mesh));
        let to = frame.headers().unwrap().ip.unwrap().destination;
        (11..=20).find(|n| to == address(true, *n)).unwrap()
    }

    /// A new flow of each of so many clients.
    fn all(&self, clients: std::ops::Range<u16>, port: u16) -> Backends {
        clients.map(|client| (client, self.first(client, TCP, port, SYN))).collect()
    }
}

fn shares(backends: &Backends) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    backends.values().for_each(|backend| *shares.entry(*backend).or_default() += 1);
    shares
}

/// All of them have about as many clients.
fn check_even(backends: &Backends, among: &[u8], what: &str) {
    let shares = shares(backends);
    let even = backends.len() / among.len();
    assert!(shares.keys().eq(among), "{what}: {shares:?}");
    let is_near = |share: &usize| share.abs_diff(even) * 4 <= even;
    assert!(shares.values().all(is_near), "{what}: {shares:?}");
}

fn moved(before: &Backends, after: &Backends) -> BTreeSet<u8> {
    before.iter().filter(|(client, it)| after[client] != **it).map(|(_, it)| *it).collect()
}

#[test]
fn affinity_on_off_and_timeout() {
    for choice in [Choice::RoundRobin, Choice::Maglev] {
        let spread = |net: &Net, ports: std::ops::Range<u16>| -> BTreeSet<u8> {
            let protocols = [TCP, UDP].into_iter();
            let each = protocols.flat_map(|it| ports.clone().map(move |port| (it, port)));
            each.map(|(protocol, port)| net.first(1, protocol, port, SYN)).collect()
        };
        let mut net = net(ServiceSpec { choice, ..service(11..16) });
        assert!(spread(&net, 1..40).len() > 3, "{choice:?}: off");
        net.go_on(sticky(choice, 11..16));
        let kept = spread(&net, 40..80);
        assert_eq!(kept.len(), 1, "{choice:?}: on");
        // Not longer ago than it says: by a new flow, or by one that is used.
        for port in 80..84 {
            net.pass(TTL);
            assert_eq!(spread(&net, port..port + 1), kept, "{choice:?}: within its time");
        }
        let backend = *kept.first().unwrap();
        let open = net.first(1, UDP, 100, 0);
        for _ in 0..4 {
            net.pass(TTL - 1);
            assert_eq!(net.first(1, UDP, 100, 0), open);
        }
        assert_eq!(net.first(1, TCP, 101, SYN), backend, "{choice:?}: it was used");
        if choice == Choice::RoundRobin {
            let later: BTreeSet<u8> = (200..210)
                .map(|port| {
                    net.pass(TTL + 1);
                    net.first(1, TCP, port, SYN)
                })
                .collect();
            assert!(later.len() > 3, "its time was over: {later:?}");
        }
        net.go_on(ServiceSpec { choice, ..service(11..16) });
        assert!(spread(&net, 300..340).len() > 3, "{choice:?}: off again");
    }
}

#[test]
fn a_thousand_clients_are_spread_after_each_change_and_only_those_of_the_gone_one_move() {
    for choice in [Choice::RoundRobin, Choice::Maglev] {
        let mut net = net(sticky(choice, 11..16));
        let all = net.all(0..CLIENTS, 1);
        check_even(&all, &[11, 12, 13, 14, 15], "at first");
        let mut before = all.clone();
        for (port, gone, rest) in [(2, 13, &[11, 12, 14, 15][..]), (3, 11, &[12, 14, 15])] {
            net.go_on(sticky(choice, rest.iter().copied()));
            let after = net.all(0..CLIENTS, port);
            assert_eq!(moved(&before, &after), [gone].into(), "{choice:?}");
            check_even(&after, rest, &format!("{choice:?} without {gone}"));
            before = after;
        }
        // Those that are back get new clients; the others keep what they have.
        net.go_on(sticky(choice, 11..16));
        assert_eq!(net.all(0..CLIENTS, 4), before, "{choice:?}");
        let new = net.all(CLIENTS..2 * CLIENTS, 4);
        check_even(&new, &[11, 12, 13, 14, 15], "new clients");
        net.pass(TTL + 1);
        let later = net.all(0..CLIENTS, 5);
        check_even(&later, &[11, 12, 13, 14, 15], "after their time");
        if choice == Choice::Maglev {
            assert_eq!(later, all, "as at first, on every node");
        }
    }
}

/// With Maglev another node, and this one after its agent's restart, choose the same.
#[test]
fn who_remembers_nothing_chooses_the_same_by_the_address() {
    let mut one = net(sticky(Choice::Maglev, 11..16));
    let before = one.all(0..CLIENTS, 1);
    one.serve(2, sticky(Choice::Maglev, 11..16));
    assert_eq!(one.all(0..CLIENTS, 2), before);
    assert_eq!(net(sticky(Choice::Maglev, 11..16)).all(0..CLIENTS, 3), before);
    // A flow that is used says it again.
    let mut in_turn = net(sticky(Choice::RoundRobin, 11..16));
    let before: Backends = (0..50).map(|it| (it, in_turn.first(it, UDP, 1, 0))).collect();
    in_turn.serve(2, sticky(Choice::RoundRobin, 11..16));
    in_turn.pass(1);
    let used: Backends = (0..50).map(|it| (it, in_turn.first(it, UDP, 1, 0))).collect();
    let new: Backends = (0..50).map(|it| (it, in_turn.first(it, UDP, 2, 0))).collect();
    assert_eq!((&used, &new), (&before, &before));
}

#[test]
fn clients_leave_a_backend_that_gets_nothing_new_and_stay_where_they_went() {
    let out = |spec: ServiceSpec, n: u8| {
        let port = BackendPort { key: key(n - CLIENT, n), protocol: Protocol::Tcp, port: 8080 };
        ServiceSpec { out: vec![port], ..spec }
    };
    let drained = |mut spec: ServiceSpec, n: u8| {
        spec.backends[usize::from(n - 11)].takes_new = false;
        spec
    };
    let weightless = |mut spec: ServiceSpec, n: u8| {
        spec.backends[usize::from(n - 11)].weight = 0;
        spec
    };
    let changes: [(&str, &Change); 3] =
        [("ejected", &out), ("drained", &drained), ("of weight 0", &weightless)];
    for choice in [Choice::RoundRobin, Choice::Maglev] {
        for (what, change) in changes {
            let mut net = net(sticky(choice, 11..16));
            let before = net.all(0..200, 1);
            let open = before[&0];
            net.go_on(change(sticky(choice, 11..16), open));
            let after = net.all(0..200, 2);
            assert_eq!(moved(&before, &after), [open].into(), "{what}");
            assert_eq!(shares(&after).get(&open), None, "{what}");
            // What the client still says to the one before changes nothing.
            net.pass(1);
            net.first(0, TCP, 1, ACK);
            net.go_on(sticky(choice, 11..16));
            assert_eq!(net.all(0..200, 3), after, "{what}: it is back");
        }
        // Where all are out, ejection is ignored, and each client has its own.
        let mut net = net(sticky(choice, 11..13));
        let before = net.all(0..50, 1);
        let both = [11, 12].map(|n| out(sticky(choice, 11..13), n).out).concat();
        net.go_on(ServiceSpec { out: both, ..sticky(choice, 11..13) });
        assert_eq!(net.all(0..50, 2), before);
    }
}

/// A SYN that nobody answered goes to another backend, and so does what follows.
#[test]
fn a_client_whose_backend_is_silent_moves() {
    let net = net(sticky(Choice::Maglev, 11..16));
    let silent = net.first(1, TCP, 1, SYN);
    let next = net.first(1, TCP, 1, SYN);
    assert_ne!(next, silent);
    assert_eq!(net.first(1, TCP, 2, SYN), next);
}
