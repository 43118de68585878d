//! Who gets no new flows although nobody has said that it is gone, on a virtual clock.

use super::{
    super::ejection::{ANSWER, Answer, Ejection, Ejections, PeerSight, SYN_UNANSWERED, Subject},
    *,
};

const MS: Duration = Duration::from_millis(1);
const NEAR: PeerSight = PeerSight { unanswered: None, heard: None, round_trip: Some(MS) };

/// A node's view of the others, and what is asked of it.
struct World {
    net: Net,
    ejections: Ejections,
    now: Instant,
    peers: [PeerSight; 6],
}

impl World {
    fn new(backends: impl IntoIterator<Item = u8>) -> Self {
        Self::with(service(backends))
    }

    fn with(spec: ServiceSpec) -> Self {
        let net = Net::with(4096, spec);
        let now = net.start;
        let mut world = Self { net, ejections: Ejections::default(), now, peers: [NEAR; 6] };
        assert!(world.look().is_empty());
        world
    }

    fn look(&mut self) -> Vec<Subject> {
        let table = &self.net.table;
        let services = [(spec().id, table.services().unwrap())];
        let peers = self.peers;
        let peer = |id| {
            let at = (0..6).find(|n| node(*n) == id).unwrap();
            peers[usize::from(at)]
        };
        self.ejections.look(self.now, &services, peer)
    }

    /// Lets time pass, with a look every 25 ms; what was to be asked meanwhile.
    fn pass(&mut self, time: Duration) -> Vec<Subject> {
        let end = self.now + time;
        let mut asked = Vec::new();
        while self.now < end {
            self.now = end.min(self.now + 25 * MS);
            self.net.start = self.now;
            asked.extend(self.look());
        }
        asked
    }

    fn answer(&mut self, subject: Subject, answer: Answer) -> Option<Ejection> {
        self.ejections.handle_answer(self.now, subject, answer);
        self.ejections.poll_event()
    }

    /// Has the data path know who is out.
    fn publish(&mut self, version: u64) {
        let before = self.net.table.services().unwrap();
        let before = before.iter().next().unwrap();
        let mut spec = before.spec().clone();
        spec.out = self.ejections.out(super::spec().id, &spec);
        let service = Arc::new(Service::new(spec, Some(before)));
        let flows = Arc::clone(&self.net.flows);
        let services = Services::new(flows, (version, true), [service]);
        self.net.apply(TableUpdate::Services(Some(Arc::new(services))));
    }

    /// A SYN of each of so many clients; to whom they go.
    fn ask(&self, ports: std::ops::Range<u16>) -> BTreeSet<u8> {
        let to = |port| self.net.out(&asks(TCP, true, port, SYN)).unwrap().0;
        ports.map(|port| CLIENT + u8::try_from(to(port)).unwrap()).collect()
    }
}

fn tcp(backend: u8) -> Subject {
    port(backend, Protocol::Tcp)
}

fn port(backend: u8, protocol: Protocol) -> Subject {
    let key = key(backend - CLIENT, backend);
    Subject::Port(spec().id, BackendPort { key, protocol, port: 8080 })
}

fn host(backend: u8) -> Subject {
    Subject::Node(node(backend - CLIENT))
}

/// Both questions about a backend, in order.
fn both(backend: u8) -> [Subject; 2] {
    [host(backend), tcp(backend)]
}

#[test]
fn who_leaves_a_syn_unanswered_gets_nothing_new_if_its_node_cannot_connect_either() {
    let mut world = World::new(11..16);
    let established = 5000;
    let silent = world.net.connect(true, established);
    assert_eq!(world.pass(2 * SYN_UNANSWERED), []);
    let waits = (6000..).find(|port| {
        let backend = *world.ask(*port..port + 1).first().unwrap();
        if backend != silent {
            let answer = answers(TCP, true, backend, *port, SYN | ACK);
            world.net.back(backend - CLIENT, &answer);
        }
        backend == silent
    });
    let waits = waits.unwrap();
    let asked = world.pass(SYN_UNANSWERED - MS);
    assert!(!asked.contains(&tcp(silent)), "{asked:?}");
    let asked = world.pass(MS);
    assert_eq!(asked, both(silent));
    assert_eq!(world.answer(host(silent), Answer::Well), None);
    assert_eq!(world.answer(tcp(silent), Answer::Fails), Some(Ejection::Out(tcp(silent))));
    world.publish(2);
    assert!(!world.ask(7000..7200).contains(&silent));
    // What there is stays.
    let (peer, _) = world.net.out(&asks(TCP, true, established, ACK)).unwrap();
    assert_eq!(u32::from(silent - CLIENT), peer);
    // A client that waits is helped when it asks again.
    assert!(!world.ask(waits..waits + 1).contains(&silent));
}

#[test]
fn a_syn_that_is_sent_again_goes_to_another() {
    let world = World::new(11..13);
    let first = world.ask(4000..4001);
    let second = world.ask(4000..4001);
    assert_ne!(first, second);
    assert_eq!(world.ask(4000..4001), first, "nobody else is there");
    let alone = World::new(11..12);
    assert_eq!(alone.ask(4000..4001), alone.ask(4000..4001));
    assert_eq!(alone.net.flows.iter().count(), 1);
}

#[test]
fn what_is_refused_is_asked_about_at_once() {
    for ipv4 in [true, false] {
        let mut world = World::new(11..12);
        world.net.out(&asks(TCP, ipv4, 4000, SYN)).unwrap();
        world.net.back(1, &answers(TCP, ipv4, 11, 4000, RST | ACK));
        assert_eq!(world.look(), both(11));
        assert_eq!(world.look(), [], "it is asked already");
        for subject in both(11) {
            assert_eq!(world.answer(subject, Answer::Well), None);
        }
        world.net.connect(ipv4, 4001);
        assert_eq!(world.pass(400 * MS), []);
        // An ICMP error: each datagram may be refused, a connection only before it is accepted.
        let (macs, ends) = ((mac(11), mac(CLIENT)), (address(ipv4, 11), address(ipv4, CLIENT)));
        for (protocol, flags, asked) in [(UDP, 0, true), (TCP, SYN, true), (TCP, ACK, false)] {
            let source = if flags == ACK { 4001 } else { 4002 };
            let (_, about) = world.net.out(&asks(protocol, ipv4, source, flags)).unwrap();
            world.net.back(1, &error(macs, ends, &about, 100));
            let is_udp = protocol == UDP;
            let of = port(11, if is_udp { Protocol::Udp } else { Protocol::Tcp });
            assert_eq!(world.look().contains(&of), asked, "{protocol} {flags}");
            world.answer(of, Answer::Well);
            world.answer(host(11), Answer::Well);
            world.pass(200 * MS);
        }
    }
}

#[test]
fn a_silent_node_is_out_with_all_its_ports_until_it_is_heard() {
    let mut world = World::new(11..16);
    let sent = world.now;
    world.peers[1].unanswered = Some(sent);
    assert_eq!(world.pass(149 * MS), []);
    assert_eq!(world.pass(MS), [host(11)]);
    assert_eq!(world.pass(ANSWER), []);
    assert_eq!(world.answer(host(11), Answer::Fails), Some(Ejection::Out(host(11))));
    assert!(world.ejections.is_out(host(11)) && !world.ejections.is_out(tcp(11)));
    let udp: Vec<u16> = (4000..4100).collect();
    let to = |world: &World, port: &u16| world.net.out(&asks(UDP, true, *port, 0)).unwrap().0;
    assert!(udp.iter().any(|port| to(&world, port) == 1));
    world.publish(2);
    assert!(!world.ask(4000..4100).contains(&11));
    assert!(udp.iter().all(|port| to(&world, port) != 1), "datagrams move at once");
    // It is heard, and what it sent was not asked for.
    world.peers[1] = PeerSight { heard: Some(world.now + MS), ..NEAR };
    assert_eq!(world.pass(25 * MS), []);
    assert_eq!(world.ejections.poll_event(), Some(Ejection::Back(host(11))));
    world.publish(3);
    assert!(world.ask(5000..5100).contains(&11));
}

#[test]
fn who_is_out_is_tried_again_ever_less_often() {
    let mut world = World::new(11..13);
    world.peers[1].unanswered = Some(world.now);
    assert_eq!(world.pass(150 * MS), [host(11)]);
    world.answer(host(11), Answer::Fails);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let before = Duration::from_secs(seconds) - MS;
        assert_eq!(world.pass(before), [], "{seconds}");
        assert_eq!(world.pass(MS), [host(11)], "{seconds}");
        assert_eq!(world.answer(host(11), Answer::Fails), None);
        assert!(world.ejections.is_out(host(11)));
    }
    world.pass(Duration::from_secs(30));
    assert_eq!(world.answer(host(11), Answer::Well), Some(Ejection::Back(host(11))));
}

/// Such as a backend whose server is started after it was plugged in.
#[test]
fn who_never_answered_anybody_is_tried_again_too() {
    for is_refused in [true, false] {
        let mut world = World::new(11..13);
        let port = (4000..).find(|port| world.ask(*port..port + 1).contains(&11)).unwrap();
        if is_refused {
            world.net.back(1, &answers(TCP, true, 11, port, RST | ACK));
        }
        let asked = world.pass(SYN_UNANSWERED);
        assert!(asked.contains(&tcp(11)), "{asked:?}");
        world.answer(host(11), Answer::Well);
        world.answer(tcp(11), Answer::Fails);
        world.publish(2);
        for seconds in [1, 2] {
            let before = Duration::from_secs(seconds) - MS;
            assert_eq!(world.pass(before), [], "{is_refused} {seconds}");
            assert_eq!(world.pass(MS), both(11), "{is_refused} {seconds}");
            world.answer(host(11), Answer::Well);
            assert_eq!(world.answer(tcp(11), Answer::Fails), None);
        }
        world.pass(Duration::from_secs(4));
        assert_eq!(world.answer(tcp(11), Answer::Well), Some(Ejection::Back(tcp(11))));
        world.publish(3);
        assert!(world.ask(5000..5100).contains(&11));
    }
}

#[test]
fn an_answer_brings_a_port_back_before_it_is_tried() {
    let mut world = World::new(11..13);
    let port = (4000..).find(|port| world.ask(*port..port + 1).contains(&11)).unwrap();
    let asked = world.pass(SYN_UNANSWERED);
    assert!(asked.contains(&tcp(11)), "{asked:?}");
    world.answer(tcp(11), Answer::Fails);
    assert!(world.ejections.is_out(tcp(11)));
    world.pass(100 * MS);
    world.net.back(1, &answers(TCP, true, 11, port, SYN | ACK));
    world.pass(25 * MS);
    assert!(!world.ejections.is_out(tcp(11)));
}

#[test]
fn half_of_the_backends_are_out_at_most_and_never_the_last() {
    for (backends, out) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut world = World::new(11..11 + backends);
        for peer in &mut world.peers {
            peer.unanswered = Some(world.now);
        }
        let asked = world.pass(150 * MS);
        assert_eq!(asked.len(), usize::from(backends));
        for subject in asked {
            world.answer(subject, Answer::Fails);
            world.pass(25 * MS);
        }
        world.publish(2);
        let services = world.net.table.services().unwrap();
        let ports = &services.iter().next().unwrap().spec().out;
        let keys: BTreeSet<_> = ports.iter().map(|port| port.key).collect();
        assert_eq!(keys.len(), out, "{backends}");
        assert_eq!(world.ask(4000..4400).len(), usize::from(backends) - out);
    }
}

/// Whoever did not run for 100 ms has heard nothing because of that.
#[test]
fn an_agent_that_was_paused_judges_nobody() {
    let mut world = World::new(11..16);
    world.ask(4000..4001);
    world.peers[1].unanswered = Some(world.now);
    world.now += Duration::from_secs(3);
    assert_eq!(world.look(), []);
    assert_eq!(world.pass(149 * MS), []);
    assert_eq!(world.pass(MS), [host(11)]);
    // It is paused while it waits for the answer.
    world.now += Duration::from_secs(1);
    world.look();
    assert_eq!(world.answer(host(11), Answer::Fails), None);
    assert!(!world.ejections.is_out(host(11)));
}

#[test]
fn nobody_is_asked_about_who_is_no_backend_any_more() {
    let mut world = World::new(11..13);
    world.peers[1].unanswered = Some(world.now);
    assert_eq!(world.pass(150 * MS), [host(11)]);
    world.answer(host(11), Answer::Fails);
    world.net.serve(2, service(12..13));
    assert_eq!(world.pass(Duration::from_secs(2)), []);
    assert!(!world.ejections.is_out(host(11)));
}

/// A backend that answered the question is not asked for the same SYN again, nor is a node that is
/// far away for being slow.
#[test]
fn one_sign_is_one_question_and_far_nodes_may_take_longer() {
    let mut world = World::new(11..12);
    world.ask(4000..4001);
    assert_eq!(world.pass(SYN_UNANSWERED), both(11));
    both(11).into_iter().for_each(|it| assert_eq!(world.answer(it, Answer::Well), None));
    assert_eq!(world.pass(Duration::from_secs(60)), []);
    world.ask(4001..4002);
    assert_eq!(world.pass(SYN_UNANSWERED), both(11));
    // Nobody knows of a way that was not measured that it is short.
    for (round_trip, patience) in [(Some(200 * MS), 600 * MS), (None, 900 * MS)] {
        let mut far = World::new(11..12);
        far.peers[1] = PeerSight { unanswered: Some(far.now), heard: None, round_trip };
        far.ask(4000..4001);
        assert_eq!(far.pass(patience - MS), [], "{round_trip:?}");
        assert_eq!(far.pass(MS), both(11), "{round_trip:?}");
    }
    assert_eq!(PeerSight::HERE.patience(ANSWER), ANSWER);
    assert_eq!(PeerSight::default().answers_within(), ANSWER + 300 * MS);
}

#[test]
fn of_many_that_are_silent_all_are_asked_in_turn() {
    let mut world = World::new(11..16);
    let silent = |world: &mut World| {
        for peer in &mut world.peers {
            peer.unanswered = Some(world.now);
        }
    };
    silent(&mut world);
    assert_eq!(world.pass(150 * MS).len(), 5);
    assert_eq!(world.pass(Duration::from_secs(9)), [], "all are under way");
}

/// Only so many are asked at once.
#[test]
fn a_sign_is_remembered_until_there_is_room_to_ask() {
    for is_refused in [true, false] {
        let mut spec = service(11..13);
        let port =
            |port| Port { protocol: Protocol::Tcp, port, backend_port: port, published: None };
        spec.ports = (1..=40).map(port).collect();
        let all: BTreeSet<BackendPort> = (1..=40)
            .flat_map(|port| {
                [11, 12].map(|backend| BackendPort {
                    key: key(backend - CLIENT, backend),
                    protocol: Protocol::Tcp,
                    port,
                })
            })
            .collect();
        let mut world = World::with(spec);
        let now = world.net.flows.millis(world.now);
        let service = Arc::clone(world.net.table.services().unwrap().iter().next().unwrap());
        for of in &all {
            match is_refused {
                true => service.observed().refused(of),
                false => service.observed().sent(of, now),
            }
        }
        let first = world.pass(SYN_UNANSWERED);
        assert_eq!(first.len(), 64, "{is_refused}");
        first.iter().for_each(|it| assert_eq!(world.answer(*it, Answer::Well), None));
        let second = world.pass(25 * MS);
        let asked = first.into_iter().chain(second).filter_map(|subject| match subject {
            Subject::Port(_, of) => Some(of),
            Subject::Node(_) => None,
        });
        assert_eq!(asked.collect::<BTreeSet<_>>(), all, "{is_refused}");
        assert_eq!(world.pass(Duration::from_secs(1)), [], "each sign is one question");
    }
}
