//! Signed claims: what a node says of itself, and how anyone checks that it said so.
//!
//! ```text
//! record  = signature "." body                 ASCII 0x20..0x7e, at most RECORD_LEN bytes
//! signature = base64url without padding, Ed25519 (RFC 8032) over
//!             "vxmesh record 1" 00 | mesh id 26 | owner id 26 | length of key u8 | key | body
//! key     = "node" | "ep/" endpoint id         where the record stands among its owner's
//! body    = JSON {"s":[incarnation,seq], "n":{node} | "e":{endpoint} | "g":true}
//! ```
//!
//! Of two records with one owner and key the greater stamp wins. An owner that signs two bodies
//! with one stamp equivocates: the smaller text wins everywhere, so that all nodes still agree, and
//! the reader is told. A record is relayed as the text it came in: fields that this version does
//! not know are neither refused nor lost.
//!
//! This file does not know who is a member: the caller brings the owner's public key.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    addr::{Alias, EndpointId, MacAddr, Name, NetworkId, NodeId, ServiceId},
    limits::{CLAIM_ADDRESSES, CLAIM_CHECKS, CLAIM_NAMES, RECORD_LEN},
};

const DOMAIN: &[u8] = b"vxmesh record 1\0";

/// Why a record was not made or not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// The claim is too large to travel.
    #[error(
        "the record has {0} bytes and may have {RECORD_LEN}; use fewer or shorter labels and aliases"
    )]
    TooLong(usize),
    /// Not `signature.body` in printable ASCII.
    #[error("the record is not a signature, a point and a body in printable ASCII")]
    Form,
    /// The key is neither `node` nor `ep/` and an id.
    #[error("the record's key is unknown")]
    Key,
    /// The public key is not the one that the owner's id was made of.
    #[error("the public key does not belong to the record's owner")]
    NotOwnersKey,
    /// Somebody else signed it, or it was changed on the way.
    #[error("the record was not signed by its owner")]
    Signature,
    /// The owner signed something that is no claim.
    #[error("the record's body is not a claim")]
    Body,
    /// The claim speaks of something else than its key.
    #[error("the record's claim does not belong under its key")]
    Misplaced,
}

/// How new a record is: lives of the owner first, then its changes within one life.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Stamp {
    /// Grows with each life of the owner's agent: persisted max(last + 1, unix ms).
    pub incarnation: u64,
    /// Grows with each record signed in that life.
    pub seq: u64,
}

impl From<(u64, u64)> for Stamp {
    fn from((incarnation, seq): (u64, u64)) -> Self {
        Self { incarnation, seq }
    }
}

impl From<Stamp> for (u64, u64) {
    fn from(stamp: Stamp) -> Self {
        (stamp.incarnation, stamp.seq)
    }
}

/// Where a record stands among those of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The node itself.
    Node,
    /// One of its endpoints.
    Endpoint(EndpointId),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Endpoint(id) => write!(f, "ep/{id}"),
        }
    }
}

impl FromStr for Key {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        if text == "node" {
            return Ok(Self::Node);
        }
        text.strip_prefix("ep/")
            .and_then(|id| id.parse().ok())
            .map(Self::Endpoint)
            .ok_or(RecordError::Key)
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeClaim {
    /// Its name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Where it answers control calls, best first.
    #[serde(rename = "c")]
    pub control: Vec<SocketAddr>,
    /// Where it receives sealed frames, best first.
    #[serde(rename = "v")]
    pub vteps: Vec<SocketAddr>,
    /// Whether it has AES in hardware.
    #[serde(rename = "x", default)]
    pub aes: bool,
    /// Since when its backends get no new connections, in Unix milliseconds, if they get none.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<u64>,
    /// The zone that it is in.
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Services, by the beginning of their ids ([`ServiceId::short`]), of which something else has
    /// a published port on the node.
    #[serde(rename = "p", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unpublished: BTreeSet<String>,
}

/// What a node says of one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointClaim {
    /// Its id, which is also in the record's key.
    #[serde(rename = "i")]
    pub id: EndpointId,
    /// Its network.
    #[serde(rename = "w")]
    pub network: NetworkId,
    /// Its name there.
    #[serde(rename = "n")]
    pub name: Name,
    /// Its other names there.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
    /// Its MAC address.
    #[serde(rename = "m")]
    pub mac: MacAddr,
    /// Its addresses.
    #[serde(rename = "p")]
    pub ips: Vec<IpAddr>,
    /// Grows with each new life of the endpoint.
    #[serde(rename = "l")]
    pub incarnation: u64,
    /// Free-form labels.
    #[serde(rename = "t", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether it is the node itself, which also carries packets of its endpoints from one subnet
    /// to another.
    #[serde(rename = "r", default, skip_serializing_if = "std::ops::Not::not")]
    pub router: bool,
    /// Services, by the beginning of their ids ([`ServiceId::short`]), whose check it passed last,
    /// or did not pass. Under [`EVERY_SERVICE`] that it works for none of them.
    #[serde(rename = "h", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<String, bool>,
}

/// In the place of a service: all that the endpoint answers for, however many these are.
pub const EVERY_SERVICE: &str = "*";

impl EndpointClaim {
    /// Whether it works for a service, as far as its node says so.
    #[must_use]
    pub fn health_for(&self, service: ServiceId) -> Option<bool> {
        match self.health.get(EVERY_SERVICE) {
            Some(false) => Some(false),
            Some(true) | None => self.health.get(&service.short()).copied(),
        }
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The owner is this.
    Node(NodeClaim),
    /// The owner hosts this.
    Endpoint(EndpointClaim),
    /// What stood under the key is no more.
    Gone,
}

impl Claim {
    /// The key under which the claim stands; [`Claim::Gone`] may stand under any.
    #[must_use]
    pub const fn key(&self) -> Option<Key> {
        match self {
            Self::Node(_) => Some(Key::Node),
            Self::Endpoint(endpoint) => Some(Key::Endpoint(endpoint.id)),
            Self::Gone => None,
        }
    }

    fn within_limits(&self) -> bool {
        match self {
            Self::Node(node) => {
                node.control.len() <= CLAIM_ADDRESSES
                    && node.vteps.len() <= CLAIM_ADDRESSES
                    && node.unpublished.len() <= CLAIM_CHECKS
            }
            Self::Endpoint(endpoint) => {
                endpoint.ips.len() <= CLAIM_ADDRESSES
                    && endpoint.aliases.len() <= CLAIM_NAMES
                    && endpoint.health.len() <= CLAIM_CHECKS
                    && endpoint.mac.is_unicast()
            }
            Self::Gone => true,
        }
    }
}

/// The JSON of a record. Exactly one of the claims is there.
#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(rename = "s")]
    stamp: Stamp,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeClaim>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<EndpointClaim>,
    #[serde(rename = "g", default, skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
}

impl Body {
    fn new(stamp: Stamp, claim: &Claim) -> Self {
        let mut body = Self { stamp, node: None, endpoint: None, gone: false };
        match claim {
            Claim::Node(node) => body.node = Some(node.clone()),
            Claim::Endpoint(endpoint) => body.endpoint = Some(endpoint.clone()),
            Claim::Gone => body.gone = true,
        }
        body
    }

    fn into_claim(self) -> Option<Claim> {
        match (self.node, self.endpoint, self.gone) {
            (Some(node), None, false) => Some(Claim::Node(node)),
            (None, Some(endpoint), false) => Some(Claim::Endpoint(endpoint)),
            (None, None, true) => Some(Claim::Gone),
            _ => None,
        }
    }
}

/// A record as it travels: nobody has checked yet that its owner signed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignedRecord {
    /// Who is said to have signed it.
    pub owner: NodeId,
    /// Where it stands among the owner's records.
    pub key: Key,
    /// `signature.body`, printable ASCII of at most [`RECORD_LEN`] bytes.
    pub text: Arc<str>,
}

impl SignedRecord {
    /// Signs a claim in the name of the key pair's node. [`Claim::Gone`] needs to be told its key.
    ///
    /// # Errors
    /// The claim is too large or does not belong under `key`.
    pub fn sign(
        pair: &Ed25519KeyPair,
        mesh: NodeId,
        key: Key,
        stamp: Stamp,
        claim: &Claim,
    ) -> Result<Self, RecordError> {
        if claim.key().is_some_and(|own| own != key) {
            return Err(RecordError::Misplaced);
        }
        if !claim.within_limits() {
            return Err(RecordError::Body);
        }
        let owner = NodeId::of_public_key(pair.public_key().as_ref());
        let json =
            serde_json::to_string(&Body::new(stamp, claim)).map_err(|_fault| RecordError::Body)?;
        let text = sign_text(pair, &domain(mesh, owner, &key.to_string()), &escape_to_ascii(&json));
        if text.len() > RECORD_LEN {
            return Err(RecordError::TooLong(text.len()));
        }
        Ok(Self { owner, key, text: text.into() })
    }

    /// A record from a peer. Only its form is checked.
    ///
    /// # Errors
    /// It is too long, not printable ASCII, or its key is unknown.
    pub fn parse(owner: NodeId, key: &str, text: &str) -> Result<Self, RecordError> {
        if text.len() > RECORD_LEN {
            return Err(RecordError::TooLong(text.len()));
        }
        split_text(text)?;
        Ok(Self { owner, key: key.parse()?, text: text.into() })
    }

    /// Checks that the owner of this public key signed it in this mesh, and says what it claims.
    ///
    /// # Errors
    /// It did not, or it signed no claim that fits the key.
    pub fn verify(&self, mesh: NodeId, public_key: &[u8; 32]) -> Result<Record, RecordError> {
        if NodeId::of_public_key(public_key) != self.owner {
            return Err(RecordError::NotOwnersKey);
        }
        let domain = domain(mesh, self.owner, &self.key.to_string());
        let body = verify_text(public_key, &domain, &self.text)?;
        let body: Body = serde_json::from_str(body).map_err(|_fault| RecordError::Body)?;
        let stamp = body.stamp;
        let claim = body.into_claim().filter(Claim::within_limits).ok_or(RecordError::Body)?;
        if claim.key().is_some_and(|own| own != self.key) {
            return Err(RecordError::Misplaced);
        }
        Ok(Record { owner: self.owner, key: self.key, stamp, claim, text: Arc::clone(&self.text) })
    }
}

/// A record that its owner did sign; only [`SignedRecord::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    owner: NodeId,
    key: Key,
    stamp: Stamp,
    claim: Claim,
    text: Arc<str>,
}

/// How a record stands to another one with the same owner and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// It is the same text.
    Same,
    /// It replaces the other.
    Newer,
    /// The other replaces it.
    Older,
    /// The owner signed both with one stamp; the smaller text `wins`.
    Equivocation {
        /// Whether this one has the smaller text.
        wins: bool,
    },
}

impl Precedence {
    /// Whether the record takes the other's place.
    #[must_use]
    pub const fn replaces(self) -> bool {
        matches!(self, Self::Newer | Self::Equivocation { wins: true })
    }
}

impl Record {
    /// Who signed it.
    #[must_use]
    pub const fn owner(&self) -> NodeId {
        self.owner
    }

    /// Where it stands among the owner's records.
    #[must_use]
    pub const fn key(&self) -> Key {
        self.key
    }

    /// How new it is.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// What it says.
    #[must_use]
    pub const fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The text as it came, which is what is passed on.
    #[must_use]
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The record as it travels.
    #[must_use]
    pub fn to_signed(&self) -> SignedRecord {
        SignedRecord { owner: self.owner, key: self.key, text: Arc::clone(&self.text) }
    }

    /// How it stands to another record with the same owner and key.
    #[must_use]
    pub fn precedence(&self, other: &Self) -> Precedence {
        match self.stamp.cmp(&other.stamp) {
            Ordering::Greater => Precedence::Newer,
            Ordering::Less => Precedence::Older,
            Ordering::Equal => match self.text.cmp(&other.text) {
                Ordering::Equal => Precedence::Same,
                order => Precedence::Equivocation { wins: order == Ordering::Less },
            },
        }
    }
}

fn domain(mesh: NodeId, owner: NodeId, key: &str) -> Vec<u8> {
    // INVARIANT: a key has at most 35 characters.
    let key_len = u8::try_from(key.len()).unwrap_or(u8::MAX);
    [DOMAIN, mesh.as_str().as_bytes(), owner.as_str().as_bytes(), &[key_len], key.as_bytes()]
        .concat()
}

/// `signature.body` with the signature over `domain | body`.
pub(crate) fn sign_text(pair: &Ed25519KeyPair, domain: &[u8], body: &str) -> String {
    let signature = pair.sign(&[domain, body.as_bytes()].concat());
    let mut text = BASE64URL_NOPAD.encode(signature.as_ref());
    text.push('.');
    text.push_str(body);
    text
}

/// The body of a text, once its signature was found good.
pub(crate) fn verify_text<'a>(
    public_key: &[u8; 32],
    domain: &[u8],
    text: &'a str,
) -> Result<&'a str, RecordError> {
    let (signature, body) = split_text(text)?;
    let signature =
        BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_fault| RecordError::Form)?;
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(&[domain, body.as_bytes()].concat(), &signature)
        .map_err(|_fault| RecordError::Signature)?;
    Ok(body)
}

/// Signature and body of a text in printable ASCII.
pub(crate) fn split_text(text: &str) -> Result<(&str, &str), RecordError> {
    if !text.bytes().all(|c| (0x20..0x7f).contains(&c)) {
        return Err(RecordError::Form);
    }
    text.split_once('.').ok_or(RecordError::Form)
}

/// JSON in printable ASCII: whatever is not stands inside a string, where `\u` may replace it.
pub(crate) fn escape_to_ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn public_key(pair: &Ed25519KeyPair) -> [u8; 32] {
        pair.public_key().as_ref().try_into().unwrap()
    }

    fn mesh() -> NodeId {
        NodeId::of_public_key(b"mesh")
    }

    fn endpoint(id: u8, labels: &[(&str, &str)]) -> EndpointClaim {
        EndpointClaim {
            id: EndpointId::from_random([id; 16]),
            network: NetworkId::from_random([9; 16]),
            name: "web".parse().unwrap(),
            aliases: vec!["www".parse().unwrap()],
            mac: MacAddr([2, 0, 0, 0, 0, id]),
            ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            incarnation: 7,
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            router: false,
            health: BTreeMap::new(),
        }
    }

    fn signed(pair: &Ed25519KeyPair, stamp: (u64, u64), claim: &Claim) -> SignedRecord {
        let key = claim.key().unwrap_or(Key::Endpoint(EndpointId::from_random([1; 16])));
        SignedRecord::sign(pair, mesh(), key, stamp.into(), claim).unwrap()
    }

    #[test]
    fn every_kind_of_claim_round_trips() {
        let node = NodeClaim {
            name: "h1".parse().unwrap(),
            control: vec!["192.0.2.1:7760".parse().unwrap()],
            vteps: vec!["[2001:db8::1]:7761".parse().unwrap()],
            aes: true,
            drained: None,
            zone: None,
            unpublished: BTreeSet::new(),
        };
        for claim in [Claim::Node(node), Claim::Endpoint(endpoint(1, &[])), Claim::Gone] {
            let pair = pair(1);
            let signed = signed(&pair, (3, 4), &claim);
            let again =
                SignedRecord::parse(signed.owner, &signed.key.to_string(), &signed.text).unwrap();
            assert_eq!(again, signed);
            let record = again.verify(mesh(), &public_key(&pair)).unwrap();
            assert_eq!(record.claim(), &claim);
            assert_eq!(record.stamp(), Stamp { incarnation: 3, seq: 4 });
            assert_eq!(record.to_signed(), signed);
        }
    }

    #[test]
    fn only_the_owner_in_this_mesh_under_this_key_can_have_signed_it() {
        let (one, two) = (pair(1), pair(2));
        let record = signed(&one, (1, 1), &Claim::Endpoint(endpoint(1, &[])));
        assert_eq!(record.verify(mesh(), &public_key(&two)), Err(RecordError::NotOwnersKey));
        let other_mesh = NodeId::of_public_key(b"another mesh");
        assert_eq!(record.verify(other_mesh, &public_key(&one)), Err(RecordError::Signature));
        let renamed =
            SignedRecord { owner: NodeId::of_public_key(&public_key(&two)), ..record.clone() };
        assert_eq!(renamed.verify(mesh(), &public_key(&two)), Err(RecordError::Signature));
        let moved = SignedRecord { key: Key::Endpoint(EndpointId::from_random([2; 16])), ..record };
        assert_eq!(moved.verify(mesh(), &public_key(&one)), Err(RecordError::Signature));
    }

    #[test]
    fn a_claim_under_a_foreign_key_is_not_signed_nor_believed() {
        let pair = pair(1);
        let claim = Claim::Endpoint(endpoint(1, &[]));
        let made = SignedRecord::sign(&pair, mesh(), Key::Node, Stamp::default(), &claim);
        assert_eq!(made, Err(RecordError::Misplaced));
        // An owner with other code can sign it all the same.
        let owner = NodeId::of_public_key(&public_key(&pair));
        let body = serde_json::to_string(&Body::new(Stamp::default(), &claim)).unwrap();
        let text = sign_text(&pair, &domain(mesh(), owner, "node"), &body);
        let record = SignedRecord::parse(owner, "node", &text).unwrap();
        assert_eq!(record.verify(mesh(), &public_key(&pair)), Err(RecordError::Misplaced));
    }

    #[test]
    fn a_body_that_claims_nothing_or_two_things_is_refused() {
        let pair = pair(1);
        let owner = NodeId::of_public_key(&public_key(&pair));
        for body in
            [r#"{"s":[1,1]}"#, r#"{"s":[1,1],"g":false}"#, "{}", "[]", r#"{"s":[1,1],"g":true"#]
        {
            let text = sign_text(&pair, &domain(mesh(), owner, "node"), body);
            let record = SignedRecord::parse(owner, "node", &text).unwrap();
            assert_eq!(record.verify(mesh(), &public_key(&pair)), Err(RecordError::Body), "{body}");
        }
    }

    #[test]
    fn unknown_fields_are_read_past_and_kept() {
        let pair = pair(1);
        let owner = NodeId::of_public_key(&public_key(&pair));
        let body = r#"{"s":[1,1],"g":true,"z":{"later":[1,2]}}"#;
        let text = sign_text(&pair, &domain(mesh(), owner, "node"), body);
        let record = SignedRecord::parse(owner, "node", &text).unwrap();
        let record = record.verify(mesh(), &public_key(&pair)).unwrap();
        assert_eq!(record.claim(), &Claim::Gone);
        assert_eq!(&**record.text(), text);
    }

    #[test]
    fn a_claim_beyond_the_limits_is_not_signed() {
        let long = "x".repeat(RECORD_LEN);
        let claim = Claim::Endpoint(endpoint(1, &[("k", &long)]));
        let key = claim.key().unwrap();
        assert!(matches!(
            SignedRecord::sign(&pair(1), mesh(), key, Stamp::default(), &claim),
            Err(RecordError::TooLong(len)) if len > RECORD_LEN
        ));
        let mut many = endpoint(1, &[]);
        many.ips = vec!["10.0.0.1".parse().unwrap(); CLAIM_ADDRESSES + 1];
        let refused =
            SignedRecord::sign(&pair(1), mesh(), key, Stamp::default(), &Claim::Endpoint(many));
        assert_eq!(refused, Err(RecordError::Body));
    }

    #[test]
    fn an_endpoint_with_every_address_fits() {
        let mut full = endpoint(1, &[("com.example.label", "a value of a fair length")]);
        full.name = "n".repeat(63).parse().unwrap();
        full.aliases = vec!["a".repeat(63).parse().unwrap(), "b".repeat(63).parse().unwrap()];
        full.ips = vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(); 4];
        let record = signed(&pair(1), (u64::MAX, u64::MAX), &Claim::Endpoint(full));
        assert!(record.text.len() <= RECORD_LEN, "{}", record.text.len());
    }

    #[test]
    fn what_is_said_for_every_service_is_bad_news_only() {
        let [one, other] = [1, 2].map(|n| ServiceId::from_random([n; 16]));
        let mut claim = endpoint(1, &[]);
        claim.health.insert(one.short(), true);
        assert_eq!((claim.health_for(one), claim.health_for(other)), (Some(true), None));
        claim.health.insert(EVERY_SERVICE.to_owned(), true);
        assert_eq!((claim.health_for(one), claim.health_for(other)), (Some(true), None));
        claim.health.insert(EVERY_SERVICE.to_owned(), false);
        assert_eq!((claim.health_for(one), claim.health_for(other)), (Some(false), Some(false)));
    }

    #[test]
    fn texts_that_are_not_printable_ascii_have_no_form() {
        let owner = NodeId::of_public_key(b"x");
        for text in ["", "a", "é.{}", "a.\n", "a.\u{7f}"] {
            assert_eq!(
                SignedRecord::parse(owner, "node", text),
                Err(RecordError::Form),
                "{text:?}"
            );
        }
        for key in ["", "nodes", "ep/", "ep/12", "ep/G0000000000000000000000000000000", "objects"] {
            assert_eq!(SignedRecord::parse(owner, key, "a.b"), Err(RecordError::Key), "{key}");
        }
    }

    #[test]
    fn two_bodies_with_one_stamp_are_an_equivocation() {
        let pair = pair(1);
        let key = public_key(&pair);
        let one = signed(&pair, (1, 1), &Claim::Endpoint(endpoint(1, &[("v", "1")])));
        let two = signed(&pair, (1, 1), &Claim::Endpoint(endpoint(1, &[("v", "2")])));
        let (one, two) = (one.verify(mesh(), &key).unwrap(), two.verify(mesh(), &key).unwrap());
        let wins = one.text() < two.text();
        assert_eq!(one.precedence(&two), Precedence::Equivocation { wins });
        assert_eq!(two.precedence(&one), Precedence::Equivocation { wins: !wins });
        assert_eq!(one.precedence(&one.clone()), Precedence::Same);
    }

    proptest! {
        #[test]
        fn any_labels_round_trip_as_printable_ascii(
            labels in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        ) {
            let pair = pair(1);
            let mut claim = endpoint(1, &[]);
            claim.labels = labels;
            let claim = Claim::Endpoint(claim);
            let made = SignedRecord::sign(&pair, mesh(), claim.key().unwrap(), Stamp::default(), &claim);
            match made {
                Ok(record) => {
                    prop_assert!(record.text.bytes().all(|c| (0x20..0x7f).contains(&c)));
                    let record = record.verify(mesh(), &public_key(&pair)).unwrap();
                    prop_assert_eq!(record.claim(), &claim);
                }
                Err(fault) => prop_assert!(matches!(fault, RecordError::TooLong(_))),
            }
        }

        #[test]
        fn any_flipped_byte_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..128) {
            let pair = pair(1);
            let record = signed(&pair, (1, 1), &Claim::Endpoint(endpoint(1, &[])));
            let mut bytes = record.text.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let text = String::from_utf8(bytes).unwrap();
            let believed = SignedRecord::parse(record.owner, &record.key.to_string(), &text)
                .and_then(|record| record.verify(mesh(), &public_key(&pair)));
            prop_assert!(believed.is_err());
        }

        #[test]
        fn merging_in_any_order_ends_with_one_record(
            stamps in proptest::collection::vec((0u64..3, 0u64..3, 0u8..3), 1..8),
            swaps in proptest::collection::vec(any::<prop::sample::Index>(), 8),
        ) {
            let pair = pair(1);
            let key = public_key(&pair);
            let records: Vec<Record> = stamps.iter().map(|(incarnation, seq, label)| {
                let claim = Claim::Endpoint(endpoint(1, &[("v", &label.to_string())]));
                signed(&pair, (*incarnation, *seq), &claim).verify(mesh(), &key).unwrap()
            }).collect();
            let mut shuffled = records.clone();
            for (i, swap) in swaps.iter().enumerate() {
                let (a, b) = (i % shuffled.len(), swap.index(shuffled.len()));
                shuffled.swap(a, b);
            }
            let merge = |records: Vec<Record>| records.into_iter().reduce(|held, new| {
                if new.precedence(&held).replaces() { new } else { held }
            });
            prop_assert_eq!(merge(records), merge(shuffled));
        }

        #[test]
        fn no_text_panics(key in "[ -~]{0,40}", text in any::<String>()) {
            let owner = NodeId::of_public_key(b"x");
            if let Ok(record) = SignedRecord::parse(owner, &key, &text) {
                prop_assert!(record.verify(mesh(), &[7; 32]).is_err());
            }
        }
    }
}
