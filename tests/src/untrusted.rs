//! Fuzz targets for what comes from other nodes, users and files: messages, certificates, signed
//! claims, sealed datagrams.
//!
//! An input stands for itself, and, as `offset u16 | bytes`, for damage to a valid sample: a
//! signature or a tag that survives damage is a defect, however the sample was made.

use std::{
    net::SocketAddr,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ring::signature::{Ed25519KeyPair, KeyPair};
use vxmesh::{
    api,
    config::RawConfig,
    identity::{
        Certified, Identity, MeshCa, certificate, certificate_request, key_of_request, token::Token,
    },
};
use vxmesh_gossip::{
    envelope::{Life, Message},
    guard::Guard,
};
use vxmesh_proto::{
    addr::NodeId,
    control::{self, Push, Request, Response},
    object::{self, Certifier, Content, Draft, Hlc, Merge, ObjectSet},
    record::{Claim, Key, NodeClaim, SignedRecord, Stamp},
    session::{Config, Entropy, NoEntropy, PeerConfig, Psk, Sessions, noise, wire},
};
use zeroize::Zeroizing;

const NOW: u64 = 1_800_000_000;

/// Control messages of every kind: what is read is written and read again to the same value.
pub fn control_message(data: &[u8]) {
    if let Ok(request) = control::decode::<Request>(data, control::REQUEST_LEN) {
        let bytes = control::encode(&request, usize::MAX).unwrap_or_default();
        assert_eq!(control::decode::<Request>(&bytes, usize::MAX).ok(), Some(request));
    }
    if let Ok(response) = control::decode::<Response>(data, control::RESPONSE_LEN) {
        let bytes = control::encode(&response, usize::MAX).unwrap_or_default();
        assert_eq!(control::decode::<Response>(&bytes, usize::MAX).ok(), Some(response));
    }
    if let Ok(push) = control::decode::<Push>(data, control::PUSH_LEN) {
        for (owner, key, text) in push.records {
            if let Ok(record) = SignedRecord::parse(owner, &key, &text) {
                assert!(record.verify(SAMPLES.mesh, &SAMPLES.public).is_err(), "never signed");
            }
        }
    }
}

/// Certificates and requests for one.
pub fn certificates(data: &[u8]) {
    let samples = &*SAMPLES;
    assert!(certificate::verify(data, &samples.ca, NOW).is_err(), "no certificate of this CA");
    if let Some(damaged) = damage(&samples.certificate, data)
        && let Ok(member) = certificate::verify(&damaged, &samples.ca, NOW)
    {
        assert_eq!(member.node_id, samples.node, "a certificate became another's");
    }
    // Anybody may ask with a key of their own; what counts is that the signature is checked.
    let _raw = key_of_request(data);
    if let Some(damaged) = damage(&samples.request, data)
        && let Ok(key) = key_of_request(&damaged)
    {
        assert_eq!(NodeId::of_public_key(&key), samples.node, "a request became another's");
    }
}

/// Signed records.
pub fn record(data: &[u8]) {
    let samples = &*SAMPLES;
    let verify = |text: &str| {
        SignedRecord::parse(samples.author, "node", text)
            .and_then(|record| record.verify(samples.mesh, &samples.public))
            .is_ok()
    };
    assert!(verify(&samples.record), "the sample is good");
    for text in texts(&samples.record, data) {
        assert!(text == samples.record || !verify(&text), "a changed record is believed: {text}");
    }
}

/// Mesh objects, merged into a set that knows their author.
pub fn object_merge(data: &[u8]) {
    let samples = &*SAMPLES;
    let mut set = ObjectSet::new(samples.mesh);
    assert!(
        matches!(set.merge(&samples.object, &Anyone, NOW), Merge::New(_)),
        "the sample is good"
    );
    for text in texts(&samples.object, data) {
        let merged = set.merge(&text, &Anyone, NOW);
        assert!(matches!(merged, Merge::Stale | Merge::Refused(_)), "{text} became {merged:?}");
    }
    assert_eq!(set.objects().count(), 1, "nothing came in");
}

/// Gossip of an authenticated member: what passes the guard can be read again.
pub fn gossip(data: &[u8]) {
    let samples = &*SAMPLES;
    if let Ok(message) = Message::decode(data) {
        let again = message.encode().map(|bytes| Message::decode(&bytes));
        assert_eq!(again, Some(Ok(message)), "one message has one meaning");
    }
    let guard = Guard::new(Life { node: samples.node, generation: 1 }, samples.mesh);
    if let Ok(admitted) = guard.check(samples.author, data, &|node| node == samples.author) {
        assert!(Message::decode(&admitted.bytes).is_ok(), "what is admitted is a message");
    }
}

/// Datagrams for two nodes that have a session.
pub fn session_datagram(data: &[u8]) {
    let mut pair = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    let [first, second] = &mut *pair;
    let mut sealed = seal(first);
    let before = second.sessions.peers().count();
    let damaged = damage(&sealed, data);
    for mut datagram in
        [Some(data.to_vec()), damaged.filter(|bytes| *bytes != sealed)].into_iter().flatten()
    {
        assert!(!opens(second, &mut datagram), "bytes that nobody sealed were opened");
    }
    assert_eq!(second.sessions.peers().count(), before, "no stranger becomes a peer");
    assert!(opens(second, &mut sealed.clone()), "the session outlives it");
    assert!(!opens(second, &mut sealed), "a replay");
    while second.sessions.poll_transmit().is_some() {}
}

/// What users and files say: tokens, configuration, bodies of the admin API.
pub fn user_text(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<Token>() {
        let spelled = token.reveal();
        assert!(spelled.eq_ignore_ascii_case(text.trim()), "a token has one spelling but for case");
    }
    let _networks = text.parse::<api::Connections>();
    let _configured = toml::from_str::<RawConfig>(text);
    let _specs = (
        serde_json::from_str::<api::NetworkSpec>(text).is_ok(),
        serde_json::from_str::<api::AttachSpec>(text).is_ok(),
        serde_json::from_str::<api::SandboxSpec>(text).is_ok(),
        serde_json::from_str::<api::InitSpec>(text).is_ok(),
        serde_json::from_str::<api::JoinSpec>(text).is_ok(),
        serde_json::from_str::<api::TokenSpec>(text).is_ok(),
    );
}

/// The input as `offset | bytes` laid over a sample.
fn damage(sample: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let (offset, bytes) = data.split_first_chunk()?;
    let at = usize::from(u16::from_be_bytes(*offset)) % sample.len().max(1);
    let mut damaged = sample.to_vec();
    for (to, from) in damaged.get_mut(at..)?.iter_mut().zip(bytes) {
        *to = *from;
    }
    Some(damaged)
}

fn texts(sample: &str, data: &[u8]) -> Vec<String> {
    let damaged = damage(sample.as_bytes(), data);
    let both = [Some(data.to_vec()), damaged].into_iter().flatten();
    both.filter_map(|bytes| String::from_utf8(bytes).ok()).collect()
}

struct Samples {
    mesh: NodeId,
    author: NodeId,
    public: [u8; 32],
    record: String,
    object: String,
    ca: Vec<u8>,
    certificate: Vec<u8>,
    request: Vec<u8>,
    node: NodeId,
}

static SAMPLES: LazyLock<Samples> = LazyLock::new(samples);

/// Takes a certificate for the key that it begins with.
struct Anyone;

impl Certifier for Anyone {
    fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        certificate.first_chunk().copied()
    }

    fn ca_key(&self) -> Option<[u8; 32]> {
        None
    }
}

#[expect(clippy::expect_used, reason = "samples that cannot be made are a defect of the target")]
fn samples() -> Samples {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).expect("a key");
    let public: [u8; 32] = pair.public_key().as_ref().try_into().expect("32 bytes");
    let (mesh, author) = (NodeId::of_public_key(b"mesh"), NodeId::of_public_key(&public));
    let node = NodeClaim {
        name: "sample".parse().expect("a name"),
        control: Vec::new(),
        vteps: Vec::new(),
        aes: true,
        drained: None,
        zone: None,
        unpublished: Default::default(),
    };
    let stamp = Stamp { incarnation: 7, seq: 1 };
    let record = SignedRecord::sign(&pair, mesh, Key::Node, stamp, &Claim::Node(node));
    let member = object::Member { certificate: public.to_vec(), name: None };
    let object = Draft::new(Hlc::at(NOW), Content::Member(member)).sign(&pair, mesh);
    let (ca, identity) =
        (MeshCa::generate(NOW).expect("a CA"), Identity::generate().expect("keys"));
    let certified = Certified {
        ed25519_public: identity.ed25519_public(),
        noise_public: *identity.noise_public(),
        aes: true,
        issuer: false,
    };
    Samples {
        mesh,
        author,
        public,
        record: record.expect("signed").text.to_string(),
        object: object.expect("signed").to_string(),
        certificate: ca.issue(&certified, NOW).expect("issued"),
        ca: ca.certificate().to_vec(),
        request: certificate_request(&identity).expect("a request"),
        node: identity.node_id(),
    }
}

/// One of two nodes that have a session.
struct Side {
    sessions: Sessions,
    now: Instant,
    addr: SocketAddr,
    other: NodeId,
}

static SESSION: LazyLock<Mutex<[Side; 2]>> = LazyLock::new(|| Mutex::new(session()));

struct Counter(u64);

impl Entropy for Counter {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        for byte in out {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            *byte = self.0.to_be_bytes()[0];
        }
        Ok(())
    }
}

#[expect(clippy::expect_used, reason = "a session that cannot be made is a defect of the target")]
fn session() -> [Side; 2] {
    let now = Instant::now();
    let ids = [NodeId::of_public_key(b"1"), NodeId::of_public_key(b"2")];
    let addrs = [SocketAddr::from(([10, 0, 0, 1], 7761)), SocketAddr::from(([10, 0, 0, 2], 7761))];
    let side = |private: u8, addr, other| {
        let config = Config {
            static_private: Zeroizing::new([private; 32]),
            aes: true,
            mesh: NodeId::of_public_key(b"mesh"),
            psk: Psk { epoch: 1, key: [9; 32] },
            previous_psk: None,
            boot_id: [private; 8],
            wall_at_start: Duration::from_secs(NOW),
            key_limits: None,
        };
        let entropy = Box::new(Counter(u64::from(private)));
        Side { sessions: Sessions::new(config, entropy, now), now, addr, other }
    };
    let mut sides = [side(11, addrs[0], ids[1]), side(12, addrs[1], ids[0])];
    for (side, (id, private, addr)) in
        sides.iter_mut().zip([(ids[1], 12, addrs[1]), (ids[0], 11, addrs[0])])
    {
        let noise_public = noise::public_key(&[private; 32]);
        let peer = PeerConfig { id, noise_public, addr: Some(addr), aes: true };
        side.sessions.set_peer(now, peer).expect("a peer");
    }
    let [first, second] = &mut sides;
    first.sessions.handle_wanted(now, ids[1]);
    let init = first.sessions.poll_transmit().expect("an initiation");
    second.sessions.handle_datagram(now, addrs[0], &init.bytes).expect("initiation");
    let response = second.sessions.poll_transmit().expect("a response");
    first.sessions.handle_datagram(now, addrs[1], &response.bytes).expect("response");
    sides
}

/// A datagram from the first to the second.
#[expect(clippy::expect_used, reason = "a session that does not seal is a defect")]
fn seal(first: &Side) -> Vec<u8> {
    let peer = first.sessions.peer(first.other).expect("a peer");
    let key = peer.sender(first.now).expect("a key");
    let mut datagram = [&[0; wire::HEADER_LEN], b"sample".as_slice(), &[0; wire::TAG_LEN]].concat();
    key.reserve(1).and_then(|mut batch| batch.seal(0, &mut datagram)).expect("sealed");
    datagram
}

/// Whether a node takes payload out of a datagram.
fn opens(side: &mut Side, datagram: &mut [u8]) -> bool {
    let from = side.addr;
    match wire::Kind::of(datagram) {
        Ok(wire::Kind::Data) => {
            let header = wire::DataHeader::parse(datagram);
            let key = header.ok().and_then(|h| side.sessions.index_table().get(h.receiver));
            key.is_some_and(|key| key.open(side.now, datagram).is_ok())
        }
        Ok(_) => side.sessions.handle_datagram(side.now, from, datagram).is_ok(),
        Err(_) => false,
    }
}
