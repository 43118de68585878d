//! The words of the mesh as types that cannot be wrong: [`MacAddr`], [`Vni`], [`NodeId`],
//! [`NetworkId`], [`EndpointId`], [`ServiceId`], [`Name`], [`Alias`]. Each parses from untrusted
//! text with an error that says what is expected.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use ring::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{ALIAS_LEN, NAME_LEN};

/// Why a text is not the word it claims to be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not six hexadecimal pairs.
    #[error("`{0}` is not a MAC address: write six hexadecimal pairs, such as 02:00:00:00:00:01")]
    Mac(String),
    /// Not a usable VXLAN network identifier (RFC 7348 section 5).
    #[error("`{0}` is not a VNI: choose a number from 1 to 16777214")]
    Vni(String),
    /// Not a node id.
    #[error("`{0}` is not a node id: it has {len} characters a-z and 2-7", len = NodeId::LEN)]
    Node(String),
    /// Not the id of a network or endpoint.
    #[error("`{0}` is not an id: it has 32 hexadecimal digits")]
    Id(String),
    /// Not a name.
    #[error(
        "`{0}` is not a name: use 1 to {NAME_LEN} characters a-z, 0-9 and -, and begin and end with a letter or digit"
    )]
    Name(String),
    /// Not another name of an endpoint.
    #[error(
        "`{0}` is not an alias: use labels of 1 to {NAME_LEN} characters a-z, 0-9, - and _ with dots between, {ALIAS_LEN} characters in all, and no address"
    )]
    Alias(String),
}

/// An Ethernet address (IEEE 802).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The second digit of addresses that are bound to nodes: of the four quarters of the local
    /// addresses the one that IEEE 802c leaves to nobody, so that addresses which people and other
    /// programs choose lie elsewhere.
    const BOUND: u8 = 0x06;

    /// An address that only this node may claim: 28 bits of SHA-256 over the domain and the node's
    /// id, and 16 of the node's choice.
    #[must_use]
    pub fn of_node(node: NodeId, number: u16) -> Self {
        let hash = digest::digest(
            &digest::SHA256,
            &[b"vxmesh mac 1\0", node.as_str().as_bytes()].concat(),
        );
        let [a, b, c, d] = hash.as_ref().first_chunk().copied().unwrap_or_default();
        let [high, low] = number.to_be_bytes();
        Self([(a & 0xf0) | Self::BOUND, b, c, d, high, low])
    }

    /// Whether the node may claim the address: it is bound to this node, or to none.
    #[must_use]
    pub fn may_be_of(self, node: NodeId) -> bool {
        let [first, .., high, low] = self.0;
        first & 0x0f != Self::BOUND || self == Self::of_node(node, u16::from_be_bytes([high, low]))
    }

    /// Whether the group bit is set: broadcast or multicast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether one interface can have this address.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| ParseError::Mac(text.into()))?;
        }
        if parts.next().is_some() {
            return Err(ParseError::Mac(text.into()));
        }
        Ok(Self(mac))
    }
}

/// A VXLAN network identifier: 24 bits, neither 0 nor all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The largest usable identifier.
    pub const MAX: Self = Self(0xff_fffe);

    /// The identifier with this number, if it is a usable one.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number >= 1 && number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vni {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| ParseError::Vni(text.into()))
    }
}

/// Who a node is: base32 of SHA-256 of its Ed25519 public key, 26 lower-case characters (130 bits).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct NodeId([u8; Self::LEN]);

impl NodeId {
    /// Characters of an id.
    pub const LEN: usize = 26;
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    /// No id is before it.
    pub(crate) const FIRST: Self = Self([b'2'; Self::LEN]);

    /// The id that belongs to an Ed25519 public key. The id of a mesh is made alike from its CA
    /// certificate.
    #[must_use]
    pub fn of_public_key(key: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, key);
        let mut id = [b'a'; Self::LEN];
        let mut bits = 0u32;
        let mut held = 0u32;
        let mut bytes = hash.as_ref().iter();
        for c in &mut id {
            if held < 5 {
                bits = (bits << 8) | u32::from(bytes.next().copied().unwrap_or(0));
                held += 8;
            }
            held -= 5;
            let digit = (bits >> held) & 31;
            *c = Self::ALPHABET.get(digit as usize).copied().unwrap_or(b'a');
        }
        Self(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // INVARIANT: every constructor admits ASCII only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The first 12 characters, which tables and the log show.
    #[must_use]
    pub fn short(&self) -> String {
        self.as_str().chars().take(12).collect()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for NodeId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        <[u8; Self::LEN]>::try_from(text.as_bytes())
            .ok()
            .filter(|id| id.iter().all(|c| Self::ALPHABET.contains(c)))
            .map(Self)
            .ok_or_else(|| ParseError::Node(text.into()))
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Cow<'_, str>", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// An id from 16 random bytes.
            #[must_use]
            pub const fn from_random(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The first 12 hexadecimal digits, which tables and interface names show.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string().chars().take(12).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                data_encoding::HEXLOWER
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| ParseError::Id(text.into()))
            }
        }

        text_serde!($name);
    };
}

macro_rules! text_serde {
    ($name:ident) => {
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl TryFrom<Cow<'_, str>> for $name {
            type Error = ParseError;

            fn try_from(text: Cow<'_, str>) -> Result<Self, ParseError> {
                text.parse()
            }
        }
    };
}

text_serde!(MacAddr);
text_serde!(NodeId);
text_serde!(Name);
text_serde!(Alias);
random_id! {
    /// The stable id of a network; its [`Vni`] is what the wire carries.
    NetworkId
}
random_id! {
    /// The id of an endpoint: one interface in one network.
    EndpointId
}
random_id! {
    /// The id of a service.
    ServiceId
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = ParseError;

    fn try_from(number: u32) -> Result<Self, ParseError> {
        Self::new(number).ok_or_else(|| ParseError::Vni(number.to_string()))
    }
}

/// A name that is also one DNS label in lower case (RFC 1035 section 2.3.1, digits may begin it:
/// RFC 1123).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct Name(Box<str>);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let good = (1..=NAME_LEN).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text.into())) } else { Err(ParseError::Name(text.into())) }
    }
}

/// Another name of an endpoint: DNS labels with dots between. Capitals become small letters, as DNS
/// does not tell them apart (RFC 4343), and `_` is allowed, as habits have it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct Alias(Box<str>);

impl Alias {
    /// The alias as text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Alias {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let label = |label: &str| {
            (1..=NAME_LEN).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let good = text.len() <= ALIAS_LEN
            && text.split('.').all(label)
            && text.parse::<IpAddr>().is_err();
        if good {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(ParseError::Alias(text.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip_and_bad_texts() {
        let mac: MacAddr = "02:0A:ff:00:10:7f".parse().unwrap();
        assert_eq!(mac.to_string(), "02:0a:ff:00:10:7f");
        for bad in
            ["", "02", "02:0a:ff:00:10", "02:0a:ff:00:10:7f:00", "02:0a:ff:00:10:+f", "2:a:f:0:1:7"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bound_mac_is_local_and_unicast_and_of_one_node() {
        // printf 'vxmesh mac 1\0xj4bnp4pahh6uqkbidpf3lrceo' | sha256sum
        let (node, other) = (NodeId::of_public_key(b"abc"), NodeId::of_public_key(b"def"));
        let mac = MacAddr::of_node(node, 0x1234);
        assert_eq!(mac.to_string(), "76:20:45:33:12:34");
        assert!(mac.is_unicast() && mac.0[0] & 2 == 2);
        assert!(mac.may_be_of(node) && !mac.may_be_of(other));
        for free in ["02:00:00:00:00:01", "02:42:ac:11:00:02", "52:54:00:00:00:01"] {
            let free: MacAddr = free.parse().unwrap();
            assert!(free.may_be_of(node) && free.may_be_of(other), "{free}");
        }
    }

    #[test]
    fn vni_edges() {
        assert!(Vni::new(0).is_none());
        assert!(Vni::new(1).is_some());
        assert!(Vni::new(0xff_fffe).is_some());
        assert!(Vni::new(0xff_ffff).is_none());
        assert!(serde_json::from_str::<Vni>("16777215").is_err());
    }

    #[test]
    fn node_id_is_base32_of_sha256() {
        // echo -n abc | sha256sum | xxd -r -p | base32 | tr A-Z a-z | cut -c1-26
        assert_eq!(NodeId::of_public_key(b"abc").as_str(), "xj4bnp4pahh6uqkbidpf3lrceo");
        assert!("xj4bnp4pahh6uqkbidpf3lrceo".parse::<NodeId>().is_ok());
        assert!("xj4bnp4pahh6uqkbidpf3lrce1".parse::<NodeId>().is_err());
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "ä", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn aliases_are_names_with_dots_in_lower_case() {
        for (text, alias) in
            [("a", "a"), ("Web.Local", "web.local"), ("my_app_1", "my_app_1"), ("1.2.3", "1.2.3")]
        {
            assert_eq!(text.parse::<Alias>().unwrap().as_str(), alias);
        }
        let long = ["x".repeat(63).as_str(); 4].join(".");
        for bad in ["", ".", "a.", ".a", "a..b", "-a.b", "a.b-", "a b", "10.0.0.1", "ä", &long] {
            assert!(bad.parse::<Alias>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_round_trip_as_json() {
        let id = NetworkId::from_random([7; 16]);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<NetworkId>(&json).unwrap(), id);
        assert_eq!(id.short(), "070707070707");
    }
}
