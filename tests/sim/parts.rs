//! What a simulated node brings along: keys, a CA, a disk, and the messages that it sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use vxmesh_proto::{
    addr::{EndpointId, NodeId},
    object::Certifier,
    record::{EndpointClaim, Key, SignedRecord, Stamp},
    session::noise,
};

use crate::rng::Rng;

/// The mesh's CA: a certificate is `Ed25519 key | Noise key | signature`, because its form is not
/// what is tested here.
pub(crate) struct SimCa(Ed25519KeyPair);

impl SimCa {
    pub(crate) fn new() -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[0xca; 32]).unwrap())
    }

    pub(crate) fn mesh(&self) -> NodeId {
        NodeId::of_public_key(self.0.public_key().as_ref())
    }

    /// For what only an issuer may say.
    pub(crate) const fn key(&self) -> &Ed25519KeyPair {
        &self.0
    }

    pub(crate) fn issue(&self, keys: &Keys) -> Vec<u8> {
        let body = [keys.pair.public_key().as_ref(), &noise::public_key(&keys.noise)].concat();
        [body.as_slice(), self.0.sign(&body).as_ref()].concat()
    }
}

impl Certifier for SimCa {
    fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        let (body, signature) = certificate.split_at_checked(64)?;
        let key = UnparsedPublicKey::new(&ED25519, self.0.public_key().as_ref());
        key.verify(body, signature).ok()?;
        body.first_chunk().copied()
    }

    fn ca_key(&self) -> Option<[u8; 32]> {
        self.0.public_key().as_ref().try_into().ok()
    }
}

/// A node's identity.
pub(crate) struct Keys {
    pub(crate) pair: Arc<Ed25519KeyPair>,
    pub(crate) noise: [u8; 32],
}

impl Keys {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&rng.bytes::<32>()).unwrap();
        Self { pair: Arc::new(pair), noise: rng.bytes() }
    }

    pub(crate) fn id(&self) -> NodeId {
        NodeId::of_public_key(self.pair.public_key().as_ref())
    }
}

/// What survives a kill.
#[derive(Default)]
pub(crate) struct Disk {
    /// Whether the CA's key is on it.
    pub(crate) issuer: bool,
    pub(crate) certificate: Vec<u8>,
    pub(crate) incarnation: u64,
    pub(crate) objects: BTreeMap<String, Arc<str>>,
    pub(crate) endpoints: BTreeMap<EndpointId, EndpointClaim>,
    pub(crate) contacts: BTreeSet<NodeId>,
    /// Connections to services: on a host, a file that is mapped.
    pub(crate) flows: Option<StoredFlows>,
    /// Since when the node's backends are drained, in Unix milliseconds of its clock.
    pub(crate) drained: Option<u64>,
    /// Endpoints that accept no connections.
    pub(crate) deaf: BTreeSet<EndpointId>,
    /// Endpoints that accept connections, and do not pass checks.
    pub(crate) unwell: BTreeSet<EndpointId>,
    /// What was told of checks.
    pub(crate) health: BTreeMap<EndpointId, BTreeMap<String, bool>>,
}

/// What a file of flows says.
#[derive(Clone, Copy)]
pub(crate) struct StoredFlows {
    pub(crate) words: &'static [AtomicU64],
    pub(crate) seed: u64,
    pub(crate) epoch: Instant,
}

/// What one node sends to another besides sealed datagrams.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Datagram(Vec<u8>),
    Request(u64, Vec<u8>),
    Response(u64, Vec<u8>),
    Push(Vec<u8>),
    Gossip(Gossip),
    /// The connection ends with the CA's word that one of the two was removed.
    Removed(String),
}

/// The model of chitchat: a digest, what the other lacks, and the rest back.
#[derive(Clone, Debug)]
pub(crate) struct Gossip {
    pub(crate) step: u8,
    pub(crate) beats: BTreeMap<NodeId, u64>,
    pub(crate) hash: String,
    pub(crate) digest: BTreeMap<(NodeId, Key), Stamp>,
    pub(crate) records: Vec<SignedRecord>,
}

impl Message {
    /// Every byte that others could read on the wire if the transport failed.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Datagram(bytes)
            | Self::Request(_, bytes)
            | Self::Response(_, bytes)
            | Self::Push(bytes) => bytes.clone(),
            Self::Removed(word) => word.clone().into_bytes(),
            Self::Gossip(gossip) => gossip.records.iter().flat_map(|r| r.text.bytes()).collect(),
        }
    }
}
