//! Datagrams that are larger than the path, cut by their sender.

use std::ops::Range;

use super::*;
use crate::wire::checksum::Sum;

/// A datagram in two fragments, of which the first has the header of UDP only.
pub(super) fn cut(whole: &[u8], id: u8) -> [Vec<u8>; 2] {
    let upper = Headers::parse(whole).unwrap().ip.unwrap().upper;
    [upper..upper + 8, upper + 8..whole.len()].map(|range| fragment(whole, id, range))
}

/// What is there of a packet in this range.
fn fragment(whole: &[u8], id: u8, range: Range<usize>) -> Vec<u8> {
    let ip = Headers::parse(whole).unwrap().ip.unwrap();
    let more = u16::from(range.end < whole.len());
    let mut bytes = whole[..ip.upper].to_vec();
    let offset = u16::try_from(range.start - ip.upper).unwrap();
    let len = u16::try_from(range.len()).unwrap();
    if ip.source.is_ipv4() {
        bytes[16..18].copy_from_slice(&(20 + len).to_be_bytes());
        bytes[18..20].copy_from_slice(&[0, id]);
        bytes[20..22].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
        bytes[24..26].fill(0);
        let sum = Sum::default().bytes(&bytes[14..34]).checksum();
        bytes[24..26].copy_from_slice(&sum);
    } else {
        bytes[18..20].copy_from_slice(&(8 + len).to_be_bytes());
        bytes[20] = 44;
        bytes.extend([UDP, 0]);
        bytes.extend((offset | more).to_be_bytes());
        bytes.extend([0, 0, 0, id]);
    }
    bytes.extend(&whole[range]);
    bytes
}

#[test]
fn all_fragments_of_a_datagram_go_where_the_first_goes() {
    for ipv4 in [true, false] {
        let net = Net::new();
        let [first, later] = cut(&asks(UDP, ipv4, 4000, 0), 7);
        assert_eq!(net.out(&later).unwrap_err(), DropReason::FlowUnknown, "nobody knows of which");
        let (peer, first) = net.out(&first).unwrap();
        let (same, later) = net.out(&later).unwrap();
        assert_eq!(peer, same);
        let n = CLIENT + u8::try_from(peer).unwrap();
        let [client, vip, backend] = [(CLIENT, 4000), (VIP, 80), (n, 8080)]
            .map(|(n, port)| SocketAddr::new(address(ipv4, n), port));
        let there = frame(UDP, (mac(CLIENT), mac(n)), (client, backend), 0);
        assert_eq!([first, later], cut(&there, 7));

        let answer = cut(&answers(UDP, ipv4, n, 4000, 0), 9);
        let macs = (service_mac(spec().id), mac(CLIENT));
        let expected = cut(&frame(UDP, macs, (vip, client), 0), 9);
        assert_eq!(answer.map(|part| net.back(n - CLIENT, &part)), expected);
    }
}

/// The first one says where they go; which of the others is next does not matter.
#[test]
fn fragments_come_out_of_order() {
    for ipv4 in [true, false] {
        let net = Net::new();
        let short = asks(UDP, ipv4, 4000, 0);
        let upper = Headers::parse(&short).unwrap().ip.unwrap().upper;
        // Nobody looks at the payload, nor at a checksum that is spread over fragments.
        let whole = [short, vec![7; 17]].concat();
        let parts = [upper..upper + 8, upper + 8..upper + 24, upper + 24..whole.len()];
        let [first, second, third] = parts.map(|range| fragment(&whole, 7, range));
        assert_eq!(net.out(&third).unwrap_err(), DropReason::FlowUnknown, "it overtook the first");
        let (peer, _) = net.out(&first).unwrap();
        for later in [&third, &second, &third] {
            assert_eq!(net.out(later).unwrap().0, peer);
        }
    }
}

/// Two flows between the same two addresses, their fragments in between each other.
#[test]
fn fragments_of_two_datagrams_are_told_apart() {
    let net = Net::with(32_768, service(11..16));
    let ports: Vec<u8> = (1..16).collect();
    let parts: Vec<_> =
        ports.iter().map(|port| cut(&asks(UDP, true, (*port).into(), 0), *port)).collect();
    let firsts: Vec<_> = parts.iter().map(|[first, _]| net.out(first).unwrap().0).collect();
    let laters: Vec<_> = parts.iter().map(|[_, later]| net.out(later).unwrap().0).collect();
    assert_eq!(firsts, laters);
    assert!(firsts.iter().any(|peer| *peer != firsts[0]));
}

#[test]
fn fragments_of_what_is_no_flow_are_left_alone() {
    let net = Net::new();
    net.connect(true, 4000);
    let [first, later] = cut(&answers(UDP, true, 12, 4000, 0), 7);
    for part in [&first, &later] {
        assert_eq!(net.back(2, part), *part);
    }
    assert_eq!(
        net.out(&cut(&asks(UDP, true, 4000, 0), 7)[1]).unwrap_err(),
        DropReason::FlowUnknown
    );
}

#[test]
fn fragments_are_forgotten_with_their_flow_and_with_time() {
    let net = Net::new();
    let [first, later] = cut(&asks(UDP, true, 4000, 0), 7);
    let at = |seconds| {
        let mut bytes = later.clone();
        let mut frame = Frame::plain(&mut bytes);
        let verdict =
            outbound(&net.table, &mut frame, &mut Scratch::new(), net.at(seconds), &mut ());
        matches!(verdict, OutboundVerdict::Forward(_))
    };
    net.out(&first).unwrap();
    assert!(at(0) && at(30) && !at(31));
    assert!(net.flows.remove(&net.flows.iter().next().unwrap()));
    assert!(!at(0));
    // Another flow has its place.
    net.out(&asks(UDP, true, 4001, 0)).unwrap();
    assert!(!at(0));
}
