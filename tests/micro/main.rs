//! `make bench-micro`: the steps of one super-frame of eleven packets, from TAP to TAP, one by one.
//!
//! `cargo test` runs each once, which shows no more than that it works.

use std::{ops::Range, sync::Arc, time::Instant};

use divan::{Bencher, black_box, counter::ItemsCount};
use vxmesh_proto::{
    addr::Vni,
    frame::{
        Frame, Gso, Headers, PartialChecksum, Segments,
        coalesce::{Accepts, Coalescer},
        vnet::Offload,
    },
    path::{InboundVerdict, OutboundVerdict, Scratch, inbound, outbound},
    session::{
        IndexTable, Peer, Sessions,
        wire::{DataHeader, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
    },
    wire::vxlan,
};
use vxmesh_tests::{
    flow::{connected, frame},
    pair::Pair,
};

/// Where the frame is in a datagram.
const FRAME_AT: usize = HEADER_LEN + vxlan::HEADER_LEN;
/// Payloads of a small packet, a middle one and the largest.
const PAYLOADS: [usize; 3] = [64, 256, 1438];
const ALL: Accepts = Accepts { tcp4: true, tcp6: true, udp: true };

fn main() {
    divan::main();
}

/// Two hosts, and a super-frame from one to the other.
struct Way {
    pair: Pair,
    now: Instant,
    peer: Arc<Peer>,
    index: Arc<IndexTable>,
    bytes: Vec<u8>,
    gso: Gso,
    checksum: PartialChecksum,
    /// They keep the keys alive.
    _sessions: [Sessions; 2],
}

/// Sealed datagrams one after another, and where each lies.
type Sealed = (Vec<u8>, Vec<Range<usize>>);

impl Way {
    #[expect(clippy::unwrap_used, reason = "a measurement without its world is none")]
    fn new() -> Self {
        let pair = Pair::new();
        let now = pair.start;
        let (sessions, [peer, _]) = connected(pair.nodes, now).unwrap();
        let index = sessions[1].index_table();
        let (bytes, gso, checksum) = frame().unwrap();
        Self { pair, now, peer, index, bytes, gso, checksum, _sessions: sessions }
    }

    fn outbound(&mut self, scratch: &mut Scratch) {
        let (gso, checksum) = (Some(self.gso), Some(self.checksum));
        let mut frame = Frame::new(&mut self.bytes, Offload { gso, checksum });
        let verdict = outbound(&self.pair.tables[0], &mut frame, scratch, self.now, &mut ());
        assert!(matches!(verdict, OutboundVerdict::Forward(_)));
    }

    /// Cuts the super-frame into datagrams that are not sealed yet.
    #[expect(clippy::unwrap_used, reason = "as above")]
    fn cut(&mut self, (arena, parts): &mut Sealed) {
        let (gso, checksum) = (Some(self.gso), Some(self.checksum));
        let frame = Frame::new(&mut self.bytes, Offload { gso, checksum });
        let segments = Segments::of(&frame).unwrap();
        arena.resize(20_000, 0);
        parts.clear();
        let mut begin = 0;
        for packet in 0..segments.count() {
            let len = segments.frame_len(packet) + vxlan::HEADER_LEN + SEAL_OVERHEAD;
            let datagram = &mut arena[begin..begin + len];
            datagram[HEADER_LEN..FRAME_AT].copy_from_slice(&vxlan::header(Vni::MAX));
            segments.write(packet, &mut datagram[FRAME_AT..len - TAG_LEN]);
            parts.push(begin..begin + len);
            begin += len;
        }
    }

    #[expect(clippy::unwrap_used, reason = "as above")]
    fn seal(&self, (arena, parts): &mut Sealed) {
        let key = self.peer.sender(self.now).unwrap();
        let mut counters = key.reserve(u32::try_from(parts.len()).unwrap()).unwrap();
        for part in parts {
            counters.seal(0, &mut arena[part.clone()]).unwrap();
        }
    }

    fn fresh(&mut self) -> Sealed {
        let mut sealed = Sealed::default();
        self.cut(&mut sealed);
        sealed
    }
}

#[expect(clippy::unwrap_used, reason = "as above")]
fn open_all(index: &IndexTable, now: Instant, (arena, parts): &mut Sealed) {
    for part in parts {
        let datagram = &mut arena[part.clone()];
        let receiver = DataHeader::parse(datagram).unwrap().receiver;
        let key = index.get(receiver).unwrap();
        black_box(key.open(now, datagram).unwrap());
    }
}

/// Judges the super-frame: ARP, source, MTU, Fdb.
#[divan::bench]
fn judge_outbound(bencher: Bencher<'_, '_>) {
    let (mut way, mut scratch) = (Way::new(), Scratch::new());
    bencher.bench_local(|| way.outbound(&mut scratch));
}

/// Cuts it into packets with checksums.
#[divan::bench]
fn cut(bencher: Bencher<'_, '_>) {
    let mut way = Way::new();
    let mut sealed = way.fresh();
    let packets = ItemsCount::new(sealed.1.len());
    bencher.counter(packets).bench_local(|| way.cut(&mut sealed));
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let mut way = Way::new();
    let mut sealed = way.fresh();
    let packets = ItemsCount::new(sealed.1.len());
    bencher.counter(packets).bench_local(|| way.seal(&mut sealed));
}

#[divan::bench]
fn open(bencher: Bencher<'_, '_>) {
    let mut way = Way::new();
    let packets = ItemsCount::new(way.fresh().1.len());
    let (now, index) = (way.now, Arc::clone(&way.index));
    let fresh = || {
        let mut sealed = way.fresh();
        way.seal(&mut sealed);
        sealed
    };
    bencher.counter(packets).with_inputs(fresh).bench_local_values(|mut sealed| {
        open_all(&index, now, &mut sealed);
        sealed
    });
}

/// One packet with such a payload, which was not sealed yet.
fn datagram(payload: usize) -> Sealed {
    let whole = 0..payload + SEAL_OVERHEAD;
    (vec![0; whole.len()], vec![whole])
}

#[divan::bench(args = PAYLOADS, sample_size = 100)]
fn seal_payload(bencher: Bencher<'_, '_>, payload: usize) {
    let way = Way::new();
    let mut datagram = datagram(payload);
    bencher.bench_local(|| way.seal(&mut datagram));
}

#[divan::bench(args = PAYLOADS, sample_size = 100)]
fn open_payload(bencher: Bencher<'_, '_>, payload: usize) {
    let way = Way::new();
    let sealed = || {
        let mut sealed = datagram(payload);
        way.seal(&mut sealed);
        sealed
    };
    bencher.with_inputs(sealed).bench_local_values(|mut sealed| {
        open_all(&way.index, way.now, &mut sealed);
        sealed
    });
}

/// Judges each packet that was opened: membership, ownership, MTU.
#[divan::bench]
fn judge_inbound(bencher: Bencher<'_, '_>) {
    let mut way = Way::new();
    let (mut arena, parts) = way.fresh();
    let packets = ItemsCount::new(parts.len());
    bencher.counter(packets).bench_local(|| {
        for part in &parts {
            let frame = &mut arena[part.start + FRAME_AT..part.end - TAG_LEN];
            let verdict = inbound(&way.pair.tables[1], &way.pair.nodes[0], frame, &mut ());
            assert!(matches!(verdict, InboundVerdict::Deliver));
        }
    });
}

/// Joins the packets into a super-frame again.
#[divan::bench]
fn coalesce(bencher: Bencher<'_, '_>) {
    let (arena, parts) = Way::new().fresh();
    let mut coalescer = Coalescer::default();
    bencher.counter(ItemsCount::new(parts.len())).bench_local(|| {
        for part in &parts {
            let at = part.start + FRAME_AT..part.end - TAG_LEN;
            let headers = Headers::parse(&arena[at.clone()]);
            coalescer.push(Vni::MAX, ALL, &arena, at, headers.as_ref());
        }
        for frame in coalescer.frames(&arena) {
            assert_eq!(frame.count, parts.len());
        }
        coalescer.clear();
    });
}
