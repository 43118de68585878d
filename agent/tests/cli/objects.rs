//! The few objects that the agent of the tests answers with.

use vxmesh::api::*;
use vxmesh_proto::addr::{EndpointId, MacAddr, Name, NetworkId, NodeId, ServiceId, Vni};

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn node_id(n: u8) -> NodeId {
    NodeId::of_public_key(&[n])
}

/// What is said with each token that is made.
pub(crate) const TOKEN_IS_VALID: &str =
    "it is valid until 1970-01-01T01:00:01Z; who admits nodes: h1 (alive)\n";

pub(crate) fn nodes() -> Vec<Node> {
    let node = |n: u8| Node {
        id: node_id(n),
        name: name(&format!("h{n}")),
        vtep: (n < 3).then(|| format!("10.213.0.{n}:7761").parse().unwrap()),
        state: if n < 3 { "alive" } else { "dead" }.into(),
        is_self: n == 1,
        issuer: n == 1,
        drained: false,
        zone: None,
    };
    vec![node(1), node(2), node(3)]
}

pub(crate) fn peers() -> Vec<Peer> {
    vec![Peer {
        node_id: node_id(2),
        addr: Some("10.213.0.2:7761".parse().unwrap()),
        state: "established".into(),
        cipher: Some("aes-256-gcm".into()),
        rtt_us: Some(1234),
        mtu: 1418,
        key_age_s: Some(75),
        rx_bytes: 12_345,
        tx_bytes: 999,
    }]
}

/// Two have one name and nearly one id.
pub(crate) fn networks() -> Vec<Network> {
    let network = |first: u8, rest: u8, text: &str| {
        let mut id = [rest; 16];
        id[0] = first;
        Network {
            id: NetworkId::from_random(id),
            name: name(text),
            driver: "overlay".into(),
            scope: "mesh".into(),
            vni: Vni::new(u32::from(rest)),
            encrypted: true,
            vteps: Vec::new(),
            mtu: 1390,
            state: "active".into(),
            dns: Vec::new(),
            subnets: vec![Subnet {
                cidr: "10.1.0.0/24".parse().unwrap(),
                gateway: "10.1.0.1".parse().unwrap(),
                ip_range: None,
                aux_addresses: Default::default(),
            }],
            internal: false,
            options: Default::default(),
            labels: Default::default(),
            isolated: false,
            way: None,
            endpoints: Vec::new(),
            plain: None,
            warnings: Vec::new(),
        }
    };
    vec![network(0xa1, 1, "red"), network(0xb2, 2, "twin"), network(0xb2, 3, "twin")]
}

pub(crate) fn network_pools() -> NetworkPools {
    let network = networks().swap_remove(0);
    let owner = |n: u8, state: &str, used, free| AddressOwner {
        node: node_id(n),
        name: format!("h{n}"),
        state: state.into(),
        blocks: 1,
        used,
        free,
    };
    let block = |cidr: &str, n: u8, epoch, used, free| AddressBlock {
        cidr: cidr.parse().unwrap(),
        owner: node_id(n),
        epoch,
        used,
        free,
    };
    let pool = AddressPool {
        network: network.id,
        cidr: network.subnets[0].cidr,
        gateway: network.subnets[0].gateway,
        ip_range: network.subnets[0].cidr,
        state: "active".into(),
        used: 1,
        free: 251,
        resting: 1,
        owners: vec![owner(3, "dead", 0, 127), owner(1, "alive", 1, 124)],
    };
    let detail = PoolDetail {
        pool,
        blocks: vec![block("10.1.0.0/25", 1, 0, 1, 124), block("10.1.0.128/25", 3, 1, 0, 127)],
        resting_addresses: vec![RestingAddress { ip: "10.1.0.9".parse().unwrap(), rest_s: 42 }],
        resting_blocks: Vec::new(),
    };
    NetworkPools { id: network.id, name: network.name, pools: vec![detail] }
}

pub(crate) fn service() -> Service {
    Service {
        id: ServiceId::from_random([0xd4; 16]),
        name: name("shop"),
        network: networks()[0].id,
        mode: ServiceMode::Vip,
        vips: vec!["10.1.0.3".parse().unwrap()],
        state: "active".into(),
        ports: vec!["80:8080".parse().unwrap()],
        lb: Some("maglev".into()),
        prefer: "any".to_owned(),
        sticky_s: None,
        check: None,
        drain_ms: 30_000,
        selector: [("app".to_owned(), "shop".to_owned())].into(),
        backends: vec![ServiceBackend {
            name: name("web"),
            state: "missing".into(),
            why: Some("no endpoint of this name is up".into()),
            endpoint: None,
            node: None,
            ips: Vec::new(),
            weight: 1,
            counters: None,
        }],
        published: Vec::new(),
        taken_on: Vec::new(),
        clients: Default::default(),
        counters: Some(ServiceCounters {
            open: 1,
            begun: 2,
            tx_packets: 3,
            tx_bytes: 4000,
            rx_packets: 5,
            rx_bytes: 6000,
            ejections: 7,
        }),
        refused: [("no_backend".to_owned(), 8)].into(),
        creator: node_id(1),
        warnings: Vec::new(),
    }
}

pub(crate) fn flows() -> Flows {
    let flow = Flow {
        network: networks()[0].id,
        service: Some(name("shop")),
        protocol: "tcp".into(),
        client: "10.1.0.2:40000".parse().unwrap(),
        vip: "10.1.0.3:80".parse().unwrap(),
        endpoint: EndpointId::from_random([0xc3; 16]),
        name: None,
        backend: "10.1.0.4:8080".parse().unwrap(),
        seen_port: Some(50_000),
        state: "established".into(),
        idle_s: 61,
    };
    Flows { flows: vec![flow], total: 2 }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![Endpoint {
        id: EndpointId::from_random([0xc3; 16]),
        name: name("web"),
        network: networks()[0].id,
        node: node_id(1),
        sandbox: Some("box".into()),
        ifname: Some("eth0".into()),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        ips: vec!["10.1.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        aliases: vec!["www".parse().unwrap()],
        incarnation: 7,
        conflict: None,
        published: Vec::new(),
        labels: Default::default(),
    }]
}

pub(crate) fn diagnoses() -> Vec<Diagnosis> {
    vec![Diagnosis {
        check: "tap".into(),
        health: Health::Warn,
        found: "something".into(),
        hint: "do something".into(),
    }]
}

pub(crate) fn drops() -> Vec<DropRow> {
    vec![
        DropRow {
            reason: "replayed".into(),
            network: None,
            peer: Some(node_id(2)),
            endpoint: None,
            count: 3,
            normal: false,
        },
        DropRow {
            reason: "no_such_mac".into(),
            network: Some(networks()[0].id),
            peer: None,
            endpoint: None,
            count: 1,
            normal: true,
        },
    ]
}

pub(crate) fn dns_record() -> DnsRecord {
    DnsRecord {
        name: "web.red".into(),
        kind: DnsType::Aaaa,
        value: "fd00::2".into(),
        ttl: 5,
        network: networks()[0].id,
        endpoint: EndpointId::from_random([0xc3; 16]),
        node: node_id(2),
        stamp: (7, 1),
        source: "push".into(),
        age_ms: 1500,
    }
}

/// 10.1.0.2 is in two networks.
pub(crate) fn locations() -> Vec<Location> {
    let location = |network: usize, ip: &str| Location {
        network: networks()[network].id,
        endpoint: EndpointId::from_random([0xc3; 16]),
        name: name("web"),
        node: node_id(2),
        vtep: Some("10.213.0.2:7761".parse().unwrap()),
        mac: MacAddr([2, 0, 0, 0, 0, u8::try_from(network).unwrap() + 1]),
        ips: vec![ip.parse().unwrap()],
        source: "push".into(),
        age_ms: 12,
    };
    vec![location(0, "10.1.0.2"), location(1, "10.1.0.2"), location(1, "fd00::9")]
}

pub(crate) fn map_rows() -> Vec<MapRow> {
    vec![MapRow {
        network: networks()[0].id,
        endpoint: EndpointId::from_random([0xc3; 16]),
        node: node_id(2),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        ips: vec!["10.1.0.2".parse().unwrap()],
        incarnation: 7,
    }]
}

pub(crate) fn map_differences() -> Vec<MapDiffRow> {
    vec![MapDiffRow { kind: "only_here".into(), here: map_rows().pop(), there: None }]
}

pub(crate) fn tokens() -> Vec<Token> {
    vec![Token {
        id: "k7".into(),
        created_at: 1,
        expires_at: 3601,
        uses_left: None,
        state: "expired".into(),
    }]
}

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        state: "ready".into(),
        mesh_id: Some(node_id(9)),
        node_id: Some(node_id(1)),
        name: name("h1"),
        control_addr: Some("10.213.0.1:7760".parse().unwrap()),
        vtep: None,
        uptime_s: 5,
        nodes: 3,
        nodes_alive: 2,
        networks: 3,
        endpoints: 1,
        issuer: true,
        conflicts: 1,
        certificate_left_s: Some(86_400),
        issuers: vec![Issuer { id: node_id(1), name: name("h1"), state: "alive".into() }],
        datapath: None,
    }
}

pub(crate) fn membership() -> Membership {
    Membership { mesh_id: node_id(9), node_id: node_id(1), warnings: Vec::new() }
}
