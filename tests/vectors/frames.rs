//! Frames that the kernel sent between two namespaces, and what becomes of each: out of the
//! sender's host, and into the other's.
//!
//! Each file in `vectors/frames` says its two verdicts. `partial: START OFFSET` marks a frame whose
//! checksum the kernel left to the device.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vxmesh_proto::{
    frame::{Frame, PartialChecksum, vnet::Offload},
    path::{InboundVerdict, OutboundVerdict, Scratch, inbound, outbound},
    wire::{Arp, Ethernet, Ipv6, nd},
};
use vxmesh_tests::{
    hex::{self, HexFile},
    pair::{MAC_A, MAC_B, Pair},
};

#[test]
fn every_frame_of_the_kernel_has_its_verdict() {
    let mut seen = BTreeSet::new();
    for (name, file) in frames() {
        let pair = Pair::new();
        let from = usize::from(Ethernet::parse(&file.bytes).unwrap().source == MAC_B);
        let (out, sent) = send(&pair, from, &file);
        let back = inbound(&pair.tables[1 - from], &pair.nodes[from], &sent, &mut ());
        assert_eq!(text(&out), file.fields["outbound"], "{name} ({}) out", file.description);
        assert_eq!(fate(back), file.fields["inbound"], "{name} ({}) in", file.description);
        seen.insert(text(&out));
    }
    assert!(seen.len() >= 5, "the vectors show little: {seen:?}");
}

#[test]
fn checksums_are_complete_when_a_frame_leaves() {
    let mut partial = 0;
    for (name, file) in frames() {
        let before = has_valid_checksum(&file.bytes);
        if !file.fields.contains_key("partial") {
            assert_ne!(before, Some(false), "{name} was captured with its checksum");
            continue;
        }
        assert_eq!(before, Some(false), "{name} was captured without its checksum");
        let (verdict, sent) = send(&Pair::new(), 0, &file);
        assert_eq!(text(&verdict), "forward", "{name}");
        assert_eq!(has_valid_checksum(&sent), Some(true), "{name}");
        partial += 1;
    }
    assert!(partial >= 4);
}

#[test]
fn questions_of_the_kernel_are_answered_from_the_table() {
    let pair = Pair::new();
    let answer = |name: &str| {
        let file = hex::read(&folder().join(name)).unwrap();
        let mut bytes = file.bytes;
        let mut scratch = Scratch::new();
        let verdict = outbound(
            &pair.tables[0],
            &mut Frame::plain(&mut bytes),
            &mut scratch,
            pair.start,
            &mut (),
        );
        assert_eq!(verdict, OutboundVerdict::Hairpin, "{name}");
        scratch.reply().to_vec()
    };

    // What the kernel itself answered is in the capture, byte for byte.
    let kernel = hex::read(&folder().join("arp-reply.hex")).unwrap().bytes;
    assert_eq!(answer("arp-request.hex"), kernel);
    assert_eq!(Arp::parse(&kernel[14..]).unwrap().sender_mac, MAC_B);

    let kernel = hex::read(&folder().join("na-solicited.hex")).unwrap().bytes;
    assert_eq!(answer("ns.hex"), kernel);

    let taken = answer("dad-taken.hex");
    let eth = Ethernet::parse(&taken).unwrap();
    assert_eq!((eth.source, eth.destination), (MAC_B, nd::ALL_NODES_MAC));
    let ip = Ipv6::parse(eth.payload).unwrap();
    assert_eq!(ip.destination, nd::ALL_NODES);
    assert_eq!(has_valid_checksum(&taken), Some(true));
}

#[test]
fn a_frame_of_another_nodes_endpoint_is_refused_from_every_file() {
    let pair = Pair::new();
    for (name, file) in frames() {
        let source = Ethernet::parse(&file.bytes).unwrap().source;
        let from = usize::from(source == MAC_B);
        // I3: the other host seals the same frame.
        let verdict = inbound(&pair.tables[from], &pair.nodes[1 - from], &file.bytes, &mut ());
        assert_eq!(fate(verdict), "drop source_not_owned", "{name}");
        assert!([MAC_A, MAC_B].contains(&source));
    }
}

fn send(pair: &Pair, from: usize, file: &HexFile) -> (OutboundVerdict<'static, ()>, Vec<u8>) {
    let mut bytes = file.bytes.clone();
    let checksum = file.fields.get("partial").map(|numbers| {
        let (start, offset) = numbers.split_once(' ').unwrap();
        PartialChecksum { start: start.parse().unwrap(), offset: offset.parse().unwrap() }
    });
    let mut frame = Frame::new(&mut bytes, Offload { gso: None, checksum });
    let later = pair.start + Duration::from_secs(1);
    let verdict =
        match outbound(&pair.tables[from], &mut frame, &mut Scratch::new(), later, &mut ()) {
            OutboundVerdict::Forward(peer) => {
                assert_eq!(*peer, 1 - from);
                OutboundVerdict::Forward(&())
            }
            OutboundVerdict::Flood(members) => {
                assert_eq!(members.len(), 1);
                OutboundVerdict::Flood(&[])
            }
            OutboundVerdict::Hairpin => OutboundVerdict::Hairpin,
            OutboundVerdict::Deliver => OutboundVerdict::Deliver,
            OutboundVerdict::Drop(reason) => OutboundVerdict::Drop(reason),
        };
    (verdict, bytes)
}

fn text<P>(verdict: &OutboundVerdict<'_, P>) -> String {
    match verdict {
        OutboundVerdict::Forward(_) => "forward".into(),
        OutboundVerdict::Flood(_) => "flood".into(),
        OutboundVerdict::Hairpin => "hairpin".into(),
        OutboundVerdict::Deliver => "deliver".into(),
        OutboundVerdict::Drop(reason) => format!("drop {reason}"),
    }
}

fn fate(verdict: InboundVerdict) -> String {
    match verdict {
        InboundVerdict::Deliver => "deliver".into(),
        InboundVerdict::Drop(reason) => format!("drop {reason}"),
    }
}

/// What an independent reader says of the transport checksum; nothing where there is none to check.
fn has_valid_checksum(frame: &[u8]) -> Option<bool> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let ip = packet.net?;
    let transport = packet.transport?;
    Some(match (ip, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let sum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            sum.unwrap() == udp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let sum = udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
            sum.unwrap() == udp.checksum()
        }
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let sum = tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload());
            sum.unwrap() == tcp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let sum = tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), tcp.payload());
            sum.unwrap() == tcp.checksum()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
        }
        _ => return None,
    })
}

fn frames() -> Vec<(String, HexFile)> {
    let mut paths: Vec<_> = fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let frames: Vec<_> =
        paths.iter().map(|path| (path.display().to_string(), hex::read(path).unwrap())).collect();
    assert!(frames.len() >= 25, "only {} frames", frames.len());
    frames
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/frames"))
}
