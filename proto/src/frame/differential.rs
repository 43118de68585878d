//! Super-frames against the packets that they stand for, which etherparse writes one by one.

use etherparse::{
    Ethernet2Header, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, TcpOptions, UdpHeader,
};
use proptest::prelude::*;

use super::{
    Frame, Gso, GsoKind, Headers, PartialChecksum, Segments,
    coalesce::{Accepts, Coalescer, PARTS},
    vnet::{self, Offload},
};
use crate::{
    reason::DropReason,
    wire::{be16, checksum::Sum},
};

const ALL: Accepts = Accepts { tcp4: true, tcp6: true, udp: true };
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;
const ECE: u8 = 64;
const CWR: u8 = 128;

/// All that a sender chooses for one packet.
#[derive(Clone, Debug, PartialEq)]
struct Packet {
    ipv4: bool,
    tcp: bool,
    flow: u8,
    tos: u8,
    ttl: u8,
    df: bool,
    id: u16,
    seq: u32,
    ack: u32,
    window: u16,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn addresses(&self) -> ([u8; 4], [u8; 16]) {
        ([10, 0, 0, self.flow], [self.flow; 16])
    }

    fn headers_len(&self) -> usize {
        14 + if self.ipv4 { 20 } else { 40 } + self.upper_len()
    }

    fn upper_len(&self) -> usize {
        if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn kind(&self) -> GsoKind {
        match (self.tcp, self.ipv4) {
            (true, true) => GsoKind::Tcp4,
            (true, false) => GsoKind::Tcp6,
            (false, _) => GsoKind::Udp,
        }
    }

    /// The frame as etherparse writes it.
    fn write(&self) -> Vec<u8> {
        let (v4, v6) = self.addresses();
        let len = u16::try_from(self.upper_len() + self.payload.len()).unwrap();
        let mut ip4 =
            Ipv4Header::new(len, self.ttl, self.protocol().into(), [10, 0, 0, 1], v4).unwrap();
        ip4.dscp = (self.tos >> 2).try_into().unwrap();
        ip4.ecn = (self.tos & 3).try_into().unwrap();
        ip4.identification = self.id;
        ip4.dont_fragment = self.df;
        ip4.header_checksum = ip4.calc_header_checksum();
        let ip6 = Ipv6Header {
            traffic_class: self.tos,
            flow_label: Ipv6FlowLabel::try_from(u32::from(self.id & 7)).unwrap(),
            payload_length: len,
            next_header: self.protocol().into(),
            hop_limit: self.ttl,
            source: [0xfd; 16],
            destination: v6,
        };
        let mut frame = Vec::new();
        let ether_type = if self.ipv4 { 0x0800u16 } else { 0x86dd }.into();
        Ethernet2Header { source: [2; 6], destination: [4; 6], ether_type }
            .write(&mut frame)
            .unwrap();
        if self.ipv4 { ip4.write(&mut frame) } else { ip6.write(&mut frame) }.unwrap();
        if self.tcp {
            let mut tcp = TcpHeader::new(1000, 2000, self.seq, self.window);
            tcp.acknowledgment_number = self.ack;
            (tcp.fin, tcp.syn, tcp.psh) = (self.has(FIN), self.has(SYN), self.has(PSH));
            (tcp.ack, tcp.ece, tcp.cwr) = (self.has(ACK), self.has(ECE), self.has(CWR));
            tcp.options = TcpOptions::try_from_slice(&self.options).unwrap();
            tcp.checksum = if self.ipv4 {
                tcp.calc_checksum_ipv4(&ip4, &self.payload)
            } else {
                tcp.calc_checksum_ipv6(&ip6, &self.payload)
            }
            .unwrap();
            tcp.write(&mut frame).unwrap();
        } else {
            let udp = if self.ipv4 {
                UdpHeader::with_ipv4_checksum(1000, 2000, &ip4, &self.payload)
            } else {
                UdpHeader::with_ipv6_checksum(1000, 2000, &ip6, &self.payload)
            };
            udp.unwrap().write(&mut frame).unwrap();
        }
        frame.extend(&self.payload);
        frame
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The packets that a sender cuts this into, by the rules of RFC 9293 and RFC 3168, not by this
    /// crate.
    fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = self.payload.chunks(size).collect();
        let last = chunks.len() - 1;
        let packet = |(index, payload): (usize, &&[u8])| {
            let count = u16::try_from(index).unwrap();
            let mut flags = self.flags;
            if index > 0 {
                flags &= !CWR;
            }
            if index < last {
                flags &= !(FIN | PSH);
            }
            Self {
                // An IPv6 flow label is made of it here, and stays.
                id: if self.ipv4 { self.id.wrapping_add(count) } else { self.id },
                seq: self.seq.wrapping_add(u32::try_from(index * size).unwrap()),
                flags,
                payload: payload.to_vec(),
                ..self.clone()
            }
            .write()
        };
        chunks.iter().enumerate().map(packet).collect()
    }

    /// The super-frame as the kernel hands it over: whole, with the sum of the pseudo header for a
    /// checksum.
    fn whole(&self, size: usize) -> (Vec<u8>, Offload) {
        let mut frame = self.write();
        let start = self.headers_len() - self.upper_len();
        let offset: usize = if self.tcp { 16 } else { 6 };
        let addresses = if self.ipv4 { 26..34 } else { 22..54 };
        let len = u16::try_from(frame.len() - start).unwrap();
        let sum =
            Sum::default().bytes(&frame[addresses]).number(self.protocol().into()).number(len);
        frame[start + offset..][..2].copy_from_slice(&sum.folded());
        let short = |number: usize| u16::try_from(number).unwrap();
        let gso = Gso {
            kind: self.kind(),
            segment_size: short(size),
            header_len: short(self.headers_len()),
        };
        let checksum = PartialChecksum { start: short(start), offset: short(offset) };
        (frame, Offload { gso: Some(gso), checksum: Some(checksum) })
    }
}

/// Cuts a frame that the kernel handed over.
fn cut(bytes: &[u8], vnet: &[u8; vnet::LEN]) -> Vec<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let headers = Headers::parse(&bytes);
    let mut frame = Frame::received(&mut bytes, headers, vnet).unwrap();
    frame.finish_checksum(|_| true);
    let segments = Segments::of(&frame).unwrap();
    let write = |index| {
        let mut out = vec![0xaa; segments.frame_len(index)];
        segments.write(index, &mut out);
        out
    };
    (0..segments.count()).map(write).collect()
}

/// Puts packets together and gives what would be written to the TAP.
fn coalesce(packets: &[Vec<u8>], accepts: Accepts) -> Vec<(Offload, usize, Vec<u8>)> {
    let arena: Vec<u8> = packets.concat();
    let mut coalescer = Coalescer::default();
    let mut begin = 0;
    for packet in packets {
        let headers = Headers::parse(packet);
        coalescer.push((), accepts, &arena, begin..begin + packet.len(), headers.as_ref());
        begin += packet.len();
    }
    let written = coalescer.frames(&arena).map(|frame| {
        let payloads = frame.payloads().flat_map(|at| arena[at].to_vec());
        (frame.offload, frame.count, frame.headers().iter().copied().chain(payloads).collect())
    });
    written.collect()
}

prop_compose! {
    fn packet(max: usize)(
        ipv4: bool, tcp: bool, flow in 2u8..4, tos: u8, ttl in 1u8.., df: bool, id: u16, seq: u32, ack: u32, window: u16,
        flags in prop_oneof![4 => Just(ACK), 1 => Just(ACK | PSH), 1 => Just(ACK | FIN), 1 => Just(ACK | CWR | PSH), 1 => Just(ACK | ECE)],
        options in prop_oneof![Just(vec![]), any::<[u8; 8]>().prop_map(|stamps| [&[1, 1, 8, 10], &stamps[..]].concat())],
        payload in prop::collection::vec(any::<u8>(), 2..max),
    ) -> Packet {
        Packet { ipv4, tcp, flow, tos, ttl, df, id, seq, ack, window, flags, options, payload }
    }
}

proptest! {
    // Smaller segments would be more packets than one frame may become.
    #[test]
    fn a_super_frame_is_cut_as_a_sender_would_have_cut_it(packet in packet(9000), size in 5usize..2000) {
        prop_assume!(size < packet.payload.len());
        let (frame, offload) = packet.whole(size);
        let vnet = offload.to_bytes();
        prop_assert_eq!(Offload::parse(&vnet, &frame, Headers::parse(&frame).as_ref()), Ok(offload));
        prop_assert_eq!(cut(&frame, &vnet), packet.cut(size));
    }

    #[test]
    fn what_was_cut_is_put_together_and_cut_again(packet in packet(60_000), size in 1000usize..2000) {
        prop_assume!(size < packet.payload.len() && packet.payload.len().div_ceil(size) <= PARTS);
        let packets = packet.cut(size);
        let written = coalesce(&packets, ALL);
        let mut again = Vec::new();
        for (offload, _, bytes) in &written {
            again.extend(cut(bytes, &offload.to_bytes()));
        }
        prop_assert_eq!(again, packets);
        // CWR is only in the first, which therefore stays alone.
        if packet.tcp && packet.has(CWR) {
            prop_assert_eq!(written[0].1, 1);
        } else {
            let (whole, offload) = packet.whole(size);
            prop_assert_eq!(written.len(), 1);
            prop_assert_eq!(&written[0].0, &offload);
            prop_assert_eq!(&written[0].2, &whole);
        }
    }

    /// Packets of few flows, some of which follow each other and some of which almost do.
    #[test]
    fn whatever_comes_leaves_unchanged_and_in_the_order_of_its_flow(
        first in packet(200),
        steps in prop::collection::vec((0u8..24, 1usize..120, any::<u8>()), 1..150),
        accepts in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let mut now = first;
        let mut packets = Vec::new();
        for (step, len, noise) in steps {
            let step_len = u32::try_from(now.payload.len()).unwrap();
            match step {
                0 => now.ipv4 = !now.ipv4,
                1 => now.tcp = !now.tcp,
                2 => now.flow ^= 1,
                3 => now.tos = noise,
                4 => now.ttl = noise.max(1),
                5 => now.id = now.id.wrapping_add(7),
                6 => now.ack = now.ack.wrapping_add(1),
                7 => now.window ^= 1,
                8 => now.flags ^= PSH,
                9 => now.flags ^= [FIN, SYN, ECE, CWR][usize::from(noise & 3)],
                10 => now.df = !now.df,
                11 => now.options = [&[1, 1, 8, 10], &[noise; 8][..]].concat(),
                12 => now.payload = vec![noise; len],
                13 => now.seq = now.seq.wrapping_sub(1),
                14 => now.payload.clear(),
                _ => {
                    now.seq = now.seq.wrapping_add(step_len);
                    now.id = now.id.wrapping_add(1);
                }
            }
            let mut bytes = now.write();
            match (step, noise) {
                // A wrong checksum or anything else, a fragment, padding.
                (15, 0..40) => *bytes.last_mut().unwrap() ^= 1,
                (16, 0..40) if now.ipv4 => bytes[20] ^= 0x20,
                (17, 0..40) => bytes.extend([0; 3]),
                (18, 0..40) if now.ipv4 => bytes[14] = 0x46,
                (19, 0..20) => bytes.truncate(usize::from(noise)),
                (20, 0..20) => bytes[12] ^= 1,
                _ => {}
            }
            packets.push(bytes);
        }
        let accepts = Accepts { tcp4: accepts.0, tcp6: accepts.1, udp: accepts.2 };
        let mut again = Vec::new();
        for (offload, count, bytes) in coalesce(&packets, accepts) {
            let cut = cut(&bytes, &offload.to_bytes());
            prop_assert_eq!(cut.len(), count);
            again.extend(cut);
        }
        // Frames between the same two MACs of which nothing else is known keep their place among
        // all others.
        let flows = packets.iter().map(|packet| flow(packet)).collect::<std::collections::BTreeSet<_>>();
        for wanted in flows {
            let of = |all: &[Vec<u8>]| all.iter().filter(|packet| flow(packet) == wanted).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of(&packets), of(&again));
        }
        prop_assert_eq!(packets.len(), again.len());
    }

    /// Behind the IP packet there may be padding, and a sender says where its checksum begins.
    #[test]
    fn a_super_frame_with_padding_is_refused(packet in packet(3000), padding in 1u16..20, moved: bool) {
        let (mut frame, offload) = packet.whole(1);
        frame.resize(frame.len() + usize::from(padding), 0);
        let by = if moved { padding } else { 0 };
        let checksum = offload.checksum.map(|at| PartialChecksum { start: at.start + by, ..at });
        let vnet = Offload { checksum, ..offload }.to_bytes();
        let parsed = Offload::parse(&vnet, &frame, Headers::parse(&frame).as_ref());
        prop_assert_eq!(parsed, Err(DropReason::BadOffload));
    }

    #[test]
    fn no_header_and_no_bytes_panic(vnet: [u8; 10], mut packet in packet(300), damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..6), short in 0usize..400, super_frame: bool) {
        packet.payload.push(0);
        let (mut bytes, offload) = packet.whole(7);
        let vnet = if super_frame { offload.to_bytes() } else { vnet };
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(short % 64));
        if let Ok(offload) = Offload::parse(&vnet, &bytes, Headers::parse(&bytes).as_ref()) {
            let mut copy = bytes.clone();
            let frame = Frame::new(&mut copy, offload);
            if let Ok(segments) = Segments::of(&frame) {
                for index in 0..segments.count() {
                    let mut out = vec![0; segments.frame_len(index)];
                    segments.write(index, &mut out);
                }
            }
        }
        let again: usize = coalesce(&[bytes.clone(), bytes], ALL).iter().map(|(_, count, _)| count).sum();
        prop_assert_eq!(again, 2);
    }
}

/// Where a receiver looks for a packet's order.
fn flow(packet: &[u8]) -> Vec<u8> {
    let ipv4 = be16(packet, 12) == Some(0x0800);
    let (protocol, addresses) = if ipv4 { (23, 26..34) } else { (20, 22..54) };
    [packet.get(12..14), packet.get(protocol..=protocol), packet.get(addresses)]
        .into_iter()
        .flatten()
        .flatten()
        .copied()
        .collect()
}

/// The rules one by one: each change keeps the second packet away from the first.
#[test]
fn only_what_continues_a_flow_is_put_behind_it() {
    let first = Packet {
        ipv4: true,
        tcp: true,
        flow: 2,
        tos: 0,
        ttl: 64,
        df: true,
        id: 9,
        seq: u32::MAX - 50,
        ack: 7,
        window: 100,
        flags: ACK,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        payload: vec![3; 100],
    };
    let next = |packet: &Packet| Packet {
        id: packet.id.wrapping_add(u16::from(packet.ipv4)),
        seq: packet.seq.wrapping_add(100),
        ..packet.clone()
    };
    let joined = |one: &Packet, two: &Packet, accepts| {
        coalesce(&[one.write(), two.write()], accepts).len() == 1
    };
    for (ipv4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let first = Packet { ipv4, tcp, ..first.clone() };
        let same = next(&first);
        assert!(joined(&first, &same, ALL), "{first:?}");
        assert!(!joined(&first, &same, Accepts::default()));
        assert!(joined(&first, &Packet { payload: vec![3; 99], ..same.clone() }, ALL), "shorter");
        type Change = fn(&mut Packet);
        let both: [(&str, Change); 5] = [
            ("flow", |p| p.flow += 1),
            ("tos", |p| p.tos += 1),
            ("ttl", |p| p.ttl -= 1),
            ("longer", |p| p.payload.push(0)),
            ("empty", |p| p.payload.clear()),
        ];
        let v4: [(&str, Change); 2] = [("id", |p| p.id += 1), ("df", |p| p.df = false)];
        let of_tcp: [(&str, Change); 8] = [
            ("seq", |p| p.seq += 1),
            ("ack", |p| p.ack += 1),
            ("window", |p| p.window += 1),
            ("ece", |p| p.flags |= ECE),
            ("cwr", |p| p.flags |= CWR),
            ("syn", |p| p.flags |= SYN),
            ("timestamp", |p| p.options[7] += 1),
            ("options", |p| p.options.clear()),
        ];
        let changes =
            both.iter().chain(v4.iter().filter(|_| ipv4)).chain(of_tcp.iter().filter(|_| tcp));
        for (name, change) in changes {
            let mut other = same.clone();
            change(&mut other);
            assert!(!joined(&first, &other, ALL), "{name}: {first:?}");
        }
        if tcp {
            for flag in [PSH, FIN] {
                let ends = Packet { flags: ACK | flag, ..same.clone() };
                assert!(joined(&first, &ends, ALL));
                let after = coalesce(&[first.write(), ends.write(), next(&same).write()], ALL);
                assert_eq!(after.iter().map(|(_, count, _)| *count).collect::<Vec<_>>(), [2, 1]);
                assert!(!joined(&Packet { flags: ACK | flag, ..first.clone() }, &same, ALL));
            }
        }
    }
}

#[test]
fn a_packet_that_stays_alone_is_not_overtaken() {
    let data = Packet {
        ipv4: true,
        tcp: true,
        flow: 2,
        tos: 0,
        ttl: 64,
        df: true,
        id: 9,
        seq: 1,
        ack: 7,
        window: 100,
        flags: ACK,
        options: Vec::new(),
        payload: vec![3; 100],
    };
    let ack = Packet { payload: Vec::new(), id: 10, seq: 101, ..data.clone() };
    let more = Packet { id: 10, seq: 101, ..data.clone() };
    let counts = |packets: &[Vec<u8>]| {
        coalesce(packets, ALL).iter().map(|(_, count, _)| *count).collect::<Vec<_>>()
    };
    assert_eq!(counts(&[data.write(), ack.write(), more.write()]), [1, 1, 1]);
    // Who knows whose fragment that is.
    let mut fragment = ack.write();
    fragment[20] ^= 0x20;
    assert_eq!(counts(&[data.write(), fragment, more.write()]), [1, 1, 1]);
    let other = Packet { flow: 3, ..data.clone() };
    assert_eq!(counts(&[data.write(), other.write(), more.write()]), [2, 1]);
}
