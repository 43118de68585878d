//! Two nodes in one process: a Noise handshake and sealed messages over two UDP sockets on the
//! loopback.
//!
//! ```text
//! cargo run -p vxmesh-examples --example noise_udp
//! ```
//!
//! The library opens no socket and reads no clock; this file shows what the shell around it has to
//! do.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use vxmesh_proto::{
    addr::NodeId,
    reason::DropReason,
    session::{
        Config, Entropy, IndexTable, NoEntropy, Peer, PeerConfig, Psk, Sessions,
        noise::public_key,
        wire::{DataHeader, FLAG_CONTROL, HEADER_LEN, Kind, TAG_LEN},
    },
};
use zeroize::Zeroizing;

/// The operating system's random bytes.
struct Random(SystemRandom);

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        self.0.fill(out).map_err(|_unspecified| NoEntropy)
    }
}

/// One node: a socket and its sessions.
struct Node {
    name: &'static str,
    id: NodeId,
    noise_public: [u8; 32],
    socket: UdpSocket,
    sessions: Sessions,
    table: Arc<IndexTable>,
}

impl Node {
    fn new(name: &'static str, mesh: NodeId, psk: &Psk) -> Result<Self> {
        let random = SystemRandom::new();
        let mut private = Zeroizing::new([0; 32]);
        let mut boot_id = [0; 8];
        random.fill(private.as_mut()).map_err(|error| anyhow!("no random bytes: {error}"))?;
        random.fill(&mut boot_id).map_err(|error| anyhow!("no random bytes: {error}"))?;
        let noise_public = public_key(&private);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a UDP socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let config = Config {
            static_private: private,
            aes: true,
            mesh,
            psk: psk.clone(),
            previous_psk: None,
            boot_id,
            wall_at_start: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?,
            key_limits: None,
        };
        let sessions = Sessions::new(config, Box::new(Random(random)), Instant::now());
        let table = sessions.index_table();
        let id = NodeId::of_public_key(name.as_bytes());
        Ok(Self { name, id, noise_public, socket, sessions, table })
    }

    /// What the other node's certificate would say.
    fn introduce(&mut self, other: &Self) -> Result<Arc<Peer>> {
        let peer = PeerConfig {
            id: other.id,
            noise_public: other.noise_public,
            addr: Some(other.socket.local_addr()?),
            aes: true,
        };
        Ok(self.sessions.set_peer(Instant::now(), peer)?)
    }

    /// Seals a message with the peer's key, or lets it wait for one.
    fn send(&mut self, peer: &Peer, text: &[u8]) -> Result<()> {
        let now = Instant::now();
        if let (Some(key), Some(to)) = (peer.sender(now), peer.addr()) {
            let mut datagram = [&[0; HEADER_LEN], text, &[0; TAG_LEN]].concat();
            key.reserve(1)?.seal(0, &mut datagram)?;
            self.socket.send_to(&datagram, to)?;
            peer.note_sent(now, datagram.len() as u64, true);
            return Ok(());
        }
        peer.stage(text.to_vec())?;
        if peer.want() {
            self.sessions.handle_wanted(now, peer.id());
        }
        self.flush()
    }

    /// Receives one datagram, if one is there, and gives the message in it, if it is one.
    fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let now = Instant::now();
        if self.sessions.poll_timeout().is_some_and(|due| due <= now) {
            self.sessions.handle_timeout(now);
        }
        let mut buffer = [0; 2048];
        let message = match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let datagram =
                    buffer.get_mut(..length).context("a datagram of the buffer's length")?;
                self.handle(from, datagram).unwrap_or_else(|reason| {
                    say(&format!("{}: a datagram from {from} was dropped: {reason}", self.name));
                    None
                })
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => None,
            Err(error) => return Err(error).context("receive"),
        };
        self.flush()?;
        Ok(message)
    }

    fn handle(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let now = Instant::now();
        if Kind::of(datagram)? != Kind::Data {
            self.sessions.handle_datagram(now, from, datagram)?;
            return Ok(None);
        }
        let header = DataHeader::parse(datagram)?;
        let key = self.table.get(header.receiver).ok_or(DropReason::UnknownIndex)?;
        let length = datagram.len() as u64;
        let opened = key.open(now, datagram)?;
        let data = opened.flags & FLAG_CONTROL == 0;
        key.peer().note_received(now, length, data);
        if opened.newest {
            key.peer().roam(from);
        }
        if opened.confirms {
            self.sessions.handle_confirmed(now, header.receiver);
        }
        Ok(data.then(|| opened.payload.to_vec()))
    }

    fn flush(&mut self) -> Result<()> {
        while let Some(transmit) = self.sessions.poll_transmit() {
            self.socket.send_to(&transmit.bytes, transmit.to)?;
        }
        while let Some(event) = self.sessions.poll_event() {
            say(&format!("{}: {event:?}", self.name));
        }
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "an example talks to who runs it")]
fn say(line: &str) {
    println!("{line}");
}

/// Lets both nodes work until `reader` (0 or 1) has a message.
fn message(nodes: &mut [Node; 2], reader: usize) -> Result<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for (n, node) in nodes.iter_mut().enumerate() {
            if let Some(message) = node.receive()?
                && n == reader
            {
                return Ok(message);
            }
        }
    }
    Err(anyhow!("no message came within ten seconds"))
}

fn main() -> Result<()> {
    let mesh = NodeId::of_public_key(b"the CA of an example");
    let psk = Psk { epoch: 1, key: [7; 32] };
    let mut nodes = [Node::new("alice", mesh, &psk)?, Node::new("bob", mesh, &psk)?];
    let [alice, bob] = &mut nodes;
    let to_bob = alice.introduce(bob)?;
    let to_alice = bob.introduce(alice)?;

    alice.send(&to_bob, b"hello bob")?;
    let got = message(&mut nodes, 1)?;
    ensure!(got == b"hello bob", "bob got something else");
    say("bob got: hello bob");

    let [_, bob] = &mut nodes;
    bob.send(&to_alice, b"hello alice")?;
    let got = message(&mut nodes, 0)?;
    ensure!(got == b"hello alice", "alice got something else");
    say("alice got: hello alice");

    let now = Instant::now();
    let cipher = to_bob.cipher(now).context("a session")?;
    let rtt = to_bob.rtt().context("a round trip")?;
    say(&format!(
        "cipher {cipher}, handshake round trip {rtt:?}, {} bytes sealed",
        to_bob.tx_bytes()
    ));
    Ok(())
}
