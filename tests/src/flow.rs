//! What a frame's way needs that is not measured: two nodes with a session, and a super-frame from
//! one to the other.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use vxmesh_proto::{
    addr::NodeId,
    frame::{Gso, GsoKind, PartialChecksum},
    session::{Config, Entropy, NoEntropy, Peer, PeerConfig, Psk, Sessions, noise},
    wire::checksum::Sum,
};
use zeroize::Zeroizing;

use crate::pair::{MAC_A, MAC_B};

/// The same bytes each time, other ones for each node.
struct Sequence(u8);

impl Entropy for Sequence {
    fn fill(&mut self, out: &mut [u8]) -> std::result::Result<(), NoEntropy> {
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
///
/// # Errors
///
/// The handshake failed.
pub fn connected(nodes: [NodeId; 2], now: Instant) -> Result<([Sessions; 2], [Arc<Peer>; 2])> {
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

/// A super-frame of ten packets and a bit, as the kernel hands it over.
///
/// # Errors
///
/// It cannot be built.
pub fn frame() -> Result<(Vec<u8>, Gso, PartialChecksum)> {
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
