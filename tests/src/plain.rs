//! A plain network as one host knows it, and what must hold for whatever comes there in clear.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
    time::Duration,
};

use vxmesh_proto::{
    addr::NodeId,
    frame::{Frame, Headers},
    object::{Network, Subnet},
    path::{
        InboundVerdict, Scratch,
        plain::{PlainTable, PlainVerdict, Vtep, plain_inbound, plain_outbound, undone},
    },
    reason::DropReason,
    tables::{Place, TableUpdate},
    wire::{Ethernet, vxlan},
};

use crate::pair::{MAC_A, MAC_B, MAC_GATEWAY, PAIR, endpoint, spec};

/// Where the first host of the pair is.
pub const MEMBER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// A VTEP without an agent.
pub const STATIC: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
/// Nobody's address.
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));

/// What the second host of the pair knows, if their network is plain.
pub static PLAIN: LazyLock<Option<PlainTable>> = LazyLock::new(table);

/// What the second host of the pair knows, if their network is plain.
#[must_use]
pub fn table() -> Option<PlainTable> {
    let spec = spec();
    let [first, second] = PAIR.nodes;
    let network = network(first, &spec.gateway.ips)?;
    let vtep = Vtep::new(Some(MEMBER), [MEMBER]);
    let plain = PlainTable::new(&network, spec, 0x5eed, PAIR.start)?;
    Some(plain.apply([
        TableUpdate::Put(endpoint(first, 0, Place::Remote(vtep.clone()))),
        TableUpdate::Put(endpoint(second, 1, Place::Local)),
        TableUpdate::PutMember(first, vtep),
    ]))
}

fn network(creator: NodeId, gateways: &[IpAddr]) -> Option<Network> {
    let spec = spec();
    let subnets = spec.subnets.iter().zip(gateways);
    Some(Network {
        name: "plain".parse().ok()?,
        creator,
        driver: "overlay".parse().ok()?,
        vni: spec.vni,
        encrypted: false,
        vteps: vec![STATIC],
        mtu: spec.mtu,
        subnets: subnets.map(|(cidr, gateway)| Subnet::whole(*cidr, *gateway)).collect(),
        internal: false,
        isolated: false,
        limits: Default::default(),
        dns: Vec::new(),
        labels: Default::default(),
        blocks: Vec::new(),
    })
}

/// A datagram at the plain port, and the same bytes as a frame of the local network.
pub fn plain_datagram(data: &[u8]) {
    let Some(plain) = PLAIN.as_ref() else { return };
    // Far beyond any burst, so that the limit does not hide a verdict.
    let now = PAIR.start + Duration::from_secs(3600);
    let mut bytes = data.to_vec();
    if let Ok((_vni, frame)) = vxlan::decap(&mut bytes) {
        let eth = Ethernet::parse(frame).map(|eth| (eth.source, eth.destination));
        for from in [MEMBER, STATIC, STRANGER] {
            let offload = undone(frame, Headers::parse(frame).as_ref(), plain.spec().mtu);
            let frame = Frame::new(frame, offload);
            let verdict = plain_inbound(plain, from, &frame, now, &mut ());
            match verdict {
                InboundVerdict::Deliver => {
                    let source = eth.map(|(source, _)| source);
                    let endpoints = [MAC_A, MAC_B, MAC_GATEWAY];
                    let is_endpoint = source.is_some_and(|mac| endpoints.contains(&mac));
                    assert!(from != STRANGER, "from nobody");
                    assert!(from != MEMBER || source == Some(MAC_A), "I3: it is the member's");
                    assert!(from != STATIC || !is_endpoint, "I3: it is no endpoint's");
                    let to = eth.map(|(_, destination)| destination);
                    assert!(to.is_some_and(|mac| mac == MAC_B || mac.is_group()), "{to:?}");
                }
                InboundVerdict::Drop(reason) => {
                    assert_eq!(from == STRANGER, reason == DropReason::UnknownVtep, "{reason}");
                }
            }
        }
    }
    let mut bytes = data.to_vec();
    let verdict =
        plain_outbound(plain, &mut Frame::plain(&mut bytes), &mut Scratch::new(), now, &mut ());
    if matches!(verdict, PlainVerdict::Forward(_) | PlainVerdict::Flood { .. }) {
        let source = Ethernet::parse(&bytes).map(|eth| eth.source);
        assert_eq!(source, Some(MAC_B), "only local endpoints send");
    } else {
        assert_eq!(bytes, data, "what does not leave is not changed");
    }
}
