//! Super-frames: what a client's device did not cut, and what was put together of a backend's
//! answers.

use super::*;
use crate::{
    frame::{
        Gso, GsoKind, Segments,
        coalesce::{Accepts, Coalescer},
    },
    wire::checksum::Sum,
};

const GSO: Option<Gso> = Some(Gso { kind: GsoKind::Tcp4, segment_size: 1000, header_len: 54 });
const CHECKSUM: Option<PartialChecksum> = Some(PartialChecksum { start: 34, offset: 16 });

/// A segment of 3500 bytes whose checksum is not finished.
fn whole(macs: (MacAddr, MacAddr), ends: (SocketAddr, SocketAddr)) -> Vec<u8> {
    let len = 3500;
    let mut bytes = frame(TCP, macs, ends, ACK);
    bytes.truncate(54);
    bytes.resize(54 + len, 7);
    let total = u16::try_from(40 + len).unwrap();
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    bytes[24..26].fill(0);
    let sum = Sum::default().bytes(&bytes[14..34]).checksum();
    bytes[24..26].copy_from_slice(&sum);
    bytes[50..52].fill(0);
    let pseudo = Sum::default().bytes(&bytes[26..34]).number(6).number(total - 20).folded();
    bytes[50..52].copy_from_slice(&pseudo);
    bytes
}

/// The packets that it is cut into.
fn packets(macs: (MacAddr, MacAddr), ends: (SocketAddr, SocketAddr)) -> Vec<Vec<u8>> {
    let mut whole = whole(macs, ends);
    let whole = Frame::new(&mut whole, Offload { gso: GSO, checksum: CHECKSUM });
    let segments = Segments::of(&whole).unwrap();
    let cut = |at| {
        let mut packet = vec![0; segments.frame_len(at)];
        segments.write(at, &mut packet);
        packet
    };
    (0..segments.count()).map(cut).collect()
}

/// They lie one behind the other, and are put together.
fn put_together(packets: &[Vec<u8>]) -> (Vec<u8>, Coalescer<()>) {
    let arena = packets.concat();
    let mut coalescer = Coalescer::default();
    let accepts = Accepts { tcp4: true, tcp6: true, udp: true };
    let mut at = 0usize;
    for packet in packets {
        let range = at..at + packet.len();
        at = range.end;
        coalescer.push((), accepts, &arena, range, Headers::parse(packet).as_ref());
    }
    (arena, coalescer)
}

/// Client, VIP and backend of a connection.
fn ends(backend: u8) -> [SocketAddr; 3] {
    [(CLIENT, 4000), (VIP, 80), (backend, 8080)]
        .map(|(n, port)| SocketAddr::new(address(true, n), port))
}

#[test]
fn they_are_rewritten_once_in_both_directions() {
    let net = Net::new();
    let backend = net.connect(true, 4000);
    let [client, vip, there] = ends(backend);
    let service = service_mac(spec().id);
    let offload = Offload { gso: GSO, checksum: CHECKSUM };
    let mut bytes = whole((mac(CLIENT), service), (client, vip));
    let mut sent = Frame::new(&mut bytes, offload);
    let verdict = outbound(&net.table, &mut sent, &mut Scratch::new(), net.start, &mut ());
    assert_eq!(verdict, OutboundVerdict::Forward(&u32::from(backend - CLIENT)));
    assert_eq!(sent.bytes(), whole((mac(CLIENT), mac(backend)), (client, there)));

    // Packets of an answer, put together and given the VIP.
    let sent = packets((mac(backend), mac(CLIENT)), (there, client));
    let (mut arena, coalescer) = put_together(&sent);
    let mut merged = coalescer.frame_at(0, &arena).unwrap();
    assert_eq!((merged.count, coalescer.frames(&arena).count()), (4, 1));
    let verdict = merged.rewrite(&mut arena, |it| answer(&net.table, it, net.start, &mut ()));
    assert_eq!(verdict, InboundVerdict::Deliver);
    let mut got = merged.headers().to_vec();
    merged.payloads().for_each(|at| got.extend(&arena[at]));
    assert_eq!(got, whole((service, mac(CLIENT)), (vip, client)));
    assert_eq!(merged.offload, offload);

    // One that stayed alone is rewritten where it lies.
    let alone = answers(TCP, true, backend, 4000, ACK);
    let (mut arena, coalescer) = put_together(&[alone]);
    let mut alone = coalescer.frame_at(0, &arena).unwrap();
    let verdict = alone.rewrite(&mut arena, |it| answer(&net.table, it, net.start, &mut ()));
    assert_eq!(verdict, InboundVerdict::Deliver);
    let expected = frame(TCP, (service, mac(CLIENT)), (vip, client), ACK);
    assert_eq!(arena, expected);
    alone.rewrite_parts(&mut arena);
    assert_eq!(arena, expected);
}

/// The kernel does not take a super-frame: no packet of it shows the backend.
#[test]
fn the_packets_of_one_that_is_refused_are_rewritten_too() {
    let net = Net::new();
    let backend = net.connect(true, 4000);
    let [client, vip, there] = ends(backend);
    let sent = packets((mac(backend), mac(CLIENT)), (there, client));
    let (mut arena, coalescer) = put_together(&sent);
    let mut merged = coalescer.frame_at(0, &arena).unwrap();
    merged.rewrite(&mut arena, |it| answer(&net.table, it, net.start, &mut ()));
    merged.rewrite_parts(&mut arena);
    let expected = packets((service_mac(spec().id), mac(CLIENT)), (vip, client));
    let got: Vec<_> = merged.frames().map(|at| arena[at].to_vec()).collect();
    assert_eq!(got, expected);

    // What is no answer of a backend stays as it is.
    let direct = packets((mac(12), mac(CLIENT)), (SocketAddr::new(address(true, 12), 22), client));
    let (mut arena, coalescer) = put_together(&direct);
    let mut merged = coalescer.frame_at(0, &arena).unwrap();
    merged.rewrite(&mut arena, |it| answer(&net.table, it, net.start, &mut ()));
    merged.rewrite_parts(&mut arena);
    assert_eq!(arena, direct.concat());
}
