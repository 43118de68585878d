//! A frame's way out of one host and into another allocates nothing once the buffers have their size.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use vxmesh_proto::{
    addr::{NodeId, Vni},
    datapath::{
        Gso, GsoKind, Judged, PartialChecksum, Scratch, Segments, SuperFrame, Verdict,
        coalesce::{Accepts, Coalescer},
        outbound,
    },
    session::{
        Config, Entropy, NoEntropy, Peer, PeerConfig, Psk, Sessions, noise,
        wire::{DataHeader, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
    },
    wire::{checksum::Sum, vxlan},
};
use vxmesh_tests::pair::{MAC_A, MAC_B, Pair};
use zeroize::Zeroizing;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system's; the counter is a cell of the thread that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the rules of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; all memory is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often the work asked for memory.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// The same bytes each time, other ones for each node.
struct Sequence(u8);

impl Entropy for Sequence {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        for byte in out {
            self.0 = self.0.wrapping_mul(5).wrapping_add(77);
            *byte = self.0;
        }
        Ok(())
    }
}

fn addr(host: usize) -> SocketAddr {
    ([192, 0, 2, [1, 2][host]], 7761).into()
}

/// Two nodes that have finished a handshake, and each one's peer.
fn connected(nodes: [NodeId; 2], now: Instant) -> Result<([Sessions; 2], [Arc<Peer>; 2])> {
    let private = [[1; 32], [2; 32]];
    let node = |host: usize| {
        let config = Config {
            static_private: Zeroizing::new(private[host]),
            aes: true,
            mesh: NodeId::of_public_key(b"mesh"),
            psk: Psk { epoch: 1, key: [7; 32] },
            previous_psk: None,
            boot_id: [[3; 8], [4; 8]][host],
            wall_at_start: Duration::from_secs(1_700_000_000),
            key_limits: None,
        };
        Sessions::new(config, Box::new(Sequence([5, 6][host])), now)
    };
    let mut sessions = [node(0), node(1)];
    let mut introduce = |host: usize| {
        let other = 1 - host;
        let config = PeerConfig {
            id: nodes[other],
            noise_public: noise::public_key(&private[other]),
            addr: Some(addr(other)),
            aes: true,
        };
        sessions[host].set_peer(now, config)
    };
    let peers = [introduce(0)?, introduce(1)?];
    sessions[0].handle_wanted(now, nodes[1]);
    for turn in [0, 1] {
        while let Some(transmit) = sessions[turn].poll_transmit() {
            sessions[1 - turn].handle_datagram(now, addr(turn), &transmit.bytes)?;
        }
    }
    ensure!(peers[0].sender(now).is_some(), "no key");
    Ok((sessions, peers))
}

/// A super-frame of ten packets and a bit.
fn frame() -> Result<(Vec<u8>, Gso, PartialChecksum)> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(MAC_A.0, MAC_B.0)
        .ipv4([10, 0, 0, 10], [10, 0, 0, 11], 64)
        .tcp(1000, 2000, 1, 100)
        .ack(9)
        .write(&mut bytes, &[0x5a; 14_000])?;
    // As the kernel leaves it: the sum of the pseudo header.
    let len = u16::try_from(bytes.len() - 34)?;
    let pseudo = Sum::default().bytes(&bytes[26..34]).number(6).number(len).folded();
    bytes[50..52].copy_from_slice(&pseudo);
    let gso = Gso { kind: GsoKind::Tcp4, segment_size: 1390, header_len: 54 };
    Ok((bytes, gso, PartialChecksum { start: 34, offset: 16 }))
}

#[test]
fn the_way_of_a_frame_allocates_nothing() -> Result<()> {
    let pair = Pair::new();
    let now = pair.start;
    let (sessions, peers) = connected(pair.nodes, now)?;
    let index = sessions[1].index_table();
    let (mut bytes, gso, checksum) = frame()?;
    let mut arena = vec![0; 20_000];
    let mut coalescer = Coalescer::default();
    let mut scratch = Scratch::new();
    let accepts = Accepts { tcp4: true, tcp6: true, udp: true };
    let mut joined = 0;

    let mut carry = || {
        let mut frame = SuperFrame { bytes: &mut bytes, gso: Some(gso), checksum: Some(checksum) };
        let verdict = outbound(&pair.tables[0], &mut frame, &mut scratch, now);
        assert_eq!(verdict, Verdict::Forward(&1));
        let segments = Segments::of(&frame).unwrap();
        let key = peers[0].sender(now).unwrap();
        let mut counters = key.reserve(u32::try_from(segments.count()).unwrap()).unwrap();
        let (mut begin, mut judged) = (0, Judged::default());
        for packet in 0..segments.count() {
            let len = segments.frame_len(packet) + vxlan::HEADER_LEN + SEAL_OVERHEAD;
            let at = begin..begin + len;
            let datagram = &mut arena[at.clone()];
            let frame_at = HEADER_LEN + vxlan::HEADER_LEN;
            datagram[HEADER_LEN..frame_at].copy_from_slice(&vxlan::header(Vni::MAX));
            segments.write(packet, &mut datagram[frame_at..len - TAG_LEN]);
            counters.seal(0, datagram).unwrap();

            let receiver = DataHeader::parse(datagram).unwrap().receiver;
            let opened = index.get(receiver).unwrap();
            let opened = opened.open(now, datagram).unwrap();
            let (_, frame) = vxlan::decap(opened.payload).unwrap();
            let verdict = judged.inbound(&pair.tables[1], &pair.nodes[0], frame);
            assert_eq!(verdict, Verdict::Deliver);
            coalescer.push(Vni::MAX, accepts, &arena, begin + frame_at..at.end - TAG_LEN);
            begin = at.end;
        }
        for frame in coalescer.frames(&arena) {
            joined = frame.count;
            frame.payloads().for_each(|at| {
                black_box(at);
            });
        }
        coalescer.clear();
    };

    // The first gives the buffers their size, and the second host its first packet under the key.
    carry();
    let asked = allocations(|| (0..100).for_each(|_| carry()));
    assert_eq!(joined, 11, "not put together");
    assert_eq!(asked, 0);
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1, "the counter does not count");
    Ok(())
}
