//! Fuzz targets as plain functions: any bytes in, no panic, and what must hold for every input
//! asserted.
//!
//! `cargo test -p vxmesh-tests --test fuzz` runs every target over its seeds and over simple
//! mutations of them. A fuzzer may call the same functions. To add a target, write the function and
//! its line in [`TARGETS`], and put inputs into `fuzz/corpus/NAME/`; an input that ever panicked
//! stays there for good.

use etherparse::SlicedPacket;
use vxmesh_proto::{
    addr::{MacAddr, Vni},
    frame::{Frame, Gso, GsoKind, Headers, PartialChecksum, vnet::Offload},
    path::{InboundVerdict, Judged, OutboundVerdict, Scratch, inbound, inbound_vxlan, outbound},
    reason::DropReason,
    wire::{Ethernet, nd, vxlan},
};

use crate::{
    dns,
    pair::{MAC_A, MAC_B, PAIR},
    plain, untrusted,
};

/// One function for untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the target and of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Judges one input.
    pub run: fn(&[u8]),
    /// Folders with further inputs, under `tests/`. Files `*.hex` are decoded, others are taken as
    /// they are.
    pub seeds: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "outbound", run: outbound_frame, seeds: &["vectors/frames"] },
    Target { name: "inbound", run: inbound_frame, seeds: &["vectors/frames"] },
    Target { name: "vxlan", run: vxlan_packet, seeds: &[] },
    Target {
        name: "plain",
        run: plain::plain_datagram,
        seeds: &["vectors/plain", "vectors/frames", "fuzz/corpus/vxlan"],
    },
    Target { name: "control", run: untrusted::control_message, seeds: &[] },
    Target { name: "certificates", run: untrusted::certificates, seeds: &[] },
    Target { name: "record", run: untrusted::record, seeds: &[] },
    Target { name: "object", run: untrusted::object_merge, seeds: &[] },
    Target { name: "gossip", run: untrusted::gossip, seeds: &[] },
    Target { name: "session", run: untrusted::session_datagram, seeds: &[] },
    Target { name: "dns_query", run: dns::dns_query, seeds: &[] },
    Target { name: "dns_answer", run: dns::dns_answer, seeds: &[] },
    Target { name: "user", run: untrusted::user_text, seeds: &[] },
];

/// A frame of a sandbox: plain, with a partial checksum, and as a super-frame whose numbers are its
/// last bytes.
pub fn outbound_frame(data: &[u8]) {
    judge_outbound(data, None, None);
    let Some([.., a, b, c, d]) = data.last_chunk::<8>() else { return };
    let number = |high: u8, low: u8| u16::from_be_bytes([high & 1, low]);
    let partial = PartialChecksum { start: number(*a, *b), offset: number(*c, *d) };
    judge_outbound(data, None, Some(partial));
    for kind in [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp] {
        let gso = Gso { kind, segment_size: number(*a, *b), header_len: number(*c, *d) };
        judge_outbound(data, Some(gso), Some(partial));
    }
}

fn judge_outbound(data: &[u8], gso: Option<Gso>, checksum: Option<PartialChecksum>) {
    let [sender, receiver] = &PAIR.tables;
    let [from, _] = PAIR.nodes;
    let mut bytes = data.to_vec();
    let mut scratch = Scratch::new();
    let mut frame = Frame::new(&mut bytes, Offload { gso, checksum });
    // Far beyond any burst, so that the limit does not hide a verdict.
    let later = PAIR.start + std::time::Duration::from_secs(3600);
    let verdict = outbound(sender, &mut frame, &mut scratch, later, &mut ());
    match verdict {
        OutboundVerdict::Forward(peer) => {
            assert_eq!(*peer, 1, "there is one peer");
            assert_eq!(source_of(&bytes), Some(MAC_A), "only local endpoints send");
        }
        OutboundVerdict::Flood(members) => {
            assert_eq!(members, sender.members());
            assert_eq!(source_of(&bytes), Some(MAC_A), "only local endpoints send");
        }
        OutboundVerdict::Hairpin => check_answer(data, scratch.reply()),
        // There are no services, so none of it gets other ends.
        OutboundVerdict::Deliver | OutboundVerdict::Drop(_) => {
            assert_eq!(bytes, data, "what is dropped is not changed");
        }
    }
    if gso.is_none() && matches!(verdict, OutboundVerdict::Forward(_) | OutboundVerdict::Flood(_)) {
        let received = inbound(receiver, &from, &bytes, &mut ());
        // I3: what an honest node sends, its peer accepts.
        assert_eq!(received, InboundVerdict::Deliver, "after {verdict:?}");
    }
}

fn check_answer(question: &[u8], reply: &[u8]) {
    let answer = Ethernet::parse(reply);
    assert_eq!(answer.map(|eth| eth.source), Some(MAC_B), "answers are for the remote endpoint");
    let to = answer.map(|eth| eth.destination);
    assert!(to == source_of(question) || to == Some(nd::ALL_NODES_MAC), "to {to:?}");
    assert!(SlicedPacket::from_ethernet(reply).is_ok(), "an answer that others can read");
}

/// A frame that the first host sealed for the second.
pub fn inbound_frame(data: &[u8]) {
    let [first, second] = PAIR.nodes;
    let [_, table] = &PAIR.tables;
    match inbound(table, &first, data, &mut ()) {
        InboundVerdict::Deliver => {
            assert_eq!(source_of(data), Some(MAC_A), "I3: the peer owns the source");
            let to = Ethernet::parse(data).map(|eth| eth.destination);
            assert!(to.is_some_and(|mac| mac == MAC_B || mac.is_group()), "split horizon: {to:?}");
        }
        InboundVerdict::Drop(reason) => assert!(DropReason::ALL.contains(&reason)),
    }
    let mut judged = Judged::default();
    for _ in 0..2 {
        let remembered =
            judged.inbound(table, &first, data, Headers::parse(data).as_ref(), &mut ());
        assert_eq!(
            remembered,
            inbound(table, &first, data, &mut ()),
            "the same when it comes again"
        );
    }
    // A host does not accept its own frames from elsewhere.
    assert_eq!(
        inbound(table, &second, data, &mut ()),
        InboundVerdict::Drop(DropReason::NotAMember)
    );
}

/// What was sealed: a VXLAN header and a frame.
pub fn vxlan_packet(data: &[u8]) {
    let [first, _] = PAIR.nodes;
    let [_, table] = &PAIR.tables;
    let vni = table.spec().vni;
    let mut bytes = data.to_vec();
    let result =
        inbound_vxlan(|asked| (asked == vni).then_some(table), &first, &mut bytes, &mut ());
    let header: Option<&[u8; vxlan::HEADER_LEN]> = data.first_chunk();
    let named = header.filter(|h| h[0] & 0x08 != 0);
    let named = named.and_then(|h| Vni::new(u32::from_be_bytes([0, h[4], h[5], h[6]])));
    assert_eq!(result.vni, named, "the I flag and 24 bits");
    if result.verdict == InboundVerdict::Deliver {
        assert_eq!(result.vni, Some(vni), "of this network");
        assert_eq!(Some(&*result.frame), data.get(vxlan::HEADER_LEN..), "the frame is the rest");
    }
}

fn source_of(frame: &[u8]) -> Option<MacAddr> {
    Ethernet::parse(frame).map(|eth| eth.source)
}
