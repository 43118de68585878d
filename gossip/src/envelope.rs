//! Chitchat's messages as bytes (its wire version 1), read strictly and written again.
//!
//! ```text
//! message  = 45139 u16 | version u8 = 1 | type u8 | body                    all numbers little-endian
//! body     = 0 Syn: stream(digest) | cluster str    1 SynAck: stream(digest) | stream(delta)
//!            2 Ack: stream(delta)                   3 BadCluster
//! stream   = { block }* | 0     block = 1 | len u16 | zstd   or   2 | len u16 | bytes
//! digest   = { id | heartbeat u64 | last gc u64 | max version u64 }*
//! delta    = { 0 | id | last gc u64 | from version u64
//!            | 1 | key str | value str | version u64 | status u8 0..2
//!            | 2 | max version u64 }*
//! id       = node str | generation u64 | address       address = 4 | 4 bytes | port u16, or 6 | 16 bytes | port u16
//! str      = len u16 | UTF-8
//! ```
//!
//! Chitchat's own reader is lenient where its state machine is not: it expands without limit and
//! takes bytes after the end. This one refuses that, and ids that are not a node id with its own
//! address. What the content means is for `guard` to judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use vxmesh_proto::addr::NodeId;

use crate::{
    address,
    limits::{EXPANDED_LEN, MESSAGE_LEN},
};

const MAGIC: u16 = 45_139;
const VERSION: u8 = 1;
const BLOCK_LEN: usize = 16_384;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The message ends too early, or has bytes after its end.
    #[error("wrong length")]
    Length,
    /// Not chitchat's magic number, or another wire version.
    #[error("not wire version 1 of chitchat")]
    Version,
    /// A tag has no meaning.
    #[error("unknown tag")]
    Tag,
    /// A block does not expand, or the blocks expand to too much.
    #[error("a compressed block is broken or too large")]
    Compression,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// An id is not a node id together with its own address.
    #[error("an id is not a node's")]
    Id,
    /// A value without a node before it, a node twice, versions that do not grow, a
    /// maximum beside values.
    #[error("a delta that makes no sense")]
    Delta,
    /// The peer is of another mesh.
    #[error("the peer takes us for another mesh")]
    BadCluster,
}

/// One life of a node as gossip tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Grows with each life.
    pub generation: u64,
}

/// What a peer says it knows of one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestEntry {
    /// Whose.
    pub life: Life,
    /// Its newest heartbeat.
    pub heartbeat: u64,
    /// Tombstones up to this version are forgotten.
    pub last_gc: u64,
    /// Its newest version.
    pub max_version: u64,
}

/// One key of a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Grows from key to key.
    pub version: u64,
    /// 0 set, 1 deleted, 2 deleted later.
    pub status: u8,
}

/// What a peer passes on of one life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDelta {
    /// Whose.
    pub life: Life,
    /// Tombstones up to this version are missing.
    pub last_gc: u64,
    /// Everything after this version is here.
    pub from_version: u64,
    /// The keys, by version.
    pub mutations: Vec<Mutation>,
    /// Stands for the version where there are no keys.
    pub max_version: Option<u64>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What do you know?
    Syn {
        /// What the sender knows.
        digest: Vec<DigestEntry>,
        /// Its mesh.
        cluster: String,
    },
    /// This, and what you do not.
    SynAck {
        /// What the sender knows.
        digest: Vec<DigestEntry>,
        /// What the receiver does not.
        delta: Vec<NodeDelta>,
    },
    /// And this is what you do not.
    Ack {
        /// What the receiver does not know.
        delta: Vec<NodeDelta>,
    },
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// The bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MESSAGE_LEN {
            return Err(Malformed::Length);
        }
        let mut reader = Reader(bytes);
        if reader.u16()? != MAGIC || reader.u8()? != VERSION {
            return Err(Malformed::Version);
        }
        let message = match reader.u8()? {
            0 => {
                let digest = decode_digest(&reader.stream()?)?;
                Self::Syn { digest, cluster: reader.text()?.to_owned() }
            }
            1 => {
                let digest = decode_digest(&reader.stream()?)?;
                Self::SynAck { digest, delta: decode_delta(&reader.stream()?)? }
            }
            2 => Self::Ack { delta: decode_delta(&reader.stream()?)? },
            3 => return Err(Malformed::BadCluster),
            _ => return Err(Malformed::Tag),
        };
        if reader.0.is_empty() { Ok(message) } else { Err(Malformed::Length) }
    }

    /// Writes the message; nothing if it does not fit.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        out.extend(MAGIC.to_le_bytes());
        out.push(VERSION);
        match self {
            Self::Syn { digest, cluster } => {
                out.push(0);
                write_stream(&mut out, &encode_digest(digest)?)?;
                write_text(&mut out, cluster)?;
            }
            Self::SynAck { digest, delta } => {
                out.push(1);
                write_stream(&mut out, &encode_digest(digest)?)?;
                write_stream(&mut out, &encode_delta(delta)?)?;
            }
            Self::Ack { delta } => {
                out.push(2);
                write_stream(&mut out, &encode_delta(delta)?)?;
            }
        }
        (out.len() <= MESSAGE_LEN).then_some(out)
    }
}

fn decode_digest(bytes: &[u8]) -> Result<Vec<DigestEntry>, Malformed> {
    let mut reader = Reader(bytes);
    let mut digest = Vec::new();
    while !reader.0.is_empty() {
        digest.push(DigestEntry {
            life: reader.life()?,
            heartbeat: reader.u64()?,
            last_gc: reader.u64()?,
            max_version: reader.u64()?,
        });
    }
    Ok(digest)
}

fn decode_delta(bytes: &[u8]) -> Result<Vec<NodeDelta>, Malformed> {
    let mut reader = Reader(bytes);
    let mut delta: Vec<NodeDelta> = Vec::new();
    let mut lives = std::collections::BTreeSet::new();
    while !reader.0.is_empty() {
        match reader.u8()? {
            0 => {
                let life = reader.life()?;
                if !lives.insert(life) {
                    return Err(Malformed::Delta);
                }
                delta.push(NodeDelta {
                    life,
                    last_gc: reader.u64()?,
                    from_version: reader.u64()?,
                    mutations: Vec::new(),
                    max_version: None,
                });
            }
            1 => {
                let mutation = Mutation {
                    key: reader.text()?.to_owned(),
                    value: reader.text()?.to_owned(),
                    version: reader.u64()?,
                    status: reader.u8()?,
                };
                if mutation.status > 2 {
                    return Err(Malformed::Tag);
                }
                let node = delta.last_mut().filter(|node| node.max_version.is_none());
                let node = node.ok_or(Malformed::Delta)?;
                if node.mutations.last().map_or(0, |last| last.version) >= mutation.version {
                    return Err(Malformed::Delta);
                }
                node.mutations.push(mutation);
            }
            2 => {
                let max_version = reader.u64()?;
                let alone =
                    |node: &&mut NodeDelta| node.mutations.is_empty() && node.max_version.is_none();
                delta.last_mut().filter(alone).ok_or(Malformed::Delta)?.max_version =
                    Some(max_version);
            }
            _ => return Err(Malformed::Tag),
        }
    }
    Ok(delta)
}

fn encode_digest(digest: &[DigestEntry]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for entry in digest {
        write_life(&mut out, entry.life)?;
        for number in [entry.heartbeat, entry.last_gc, entry.max_version] {
            out.extend(number.to_le_bytes());
        }
    }
    Some(out)
}

fn encode_delta(delta: &[NodeDelta]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for node in delta {
        out.push(0);
        write_life(&mut out, node.life)?;
        out.extend(node.last_gc.to_le_bytes());
        out.extend(node.from_version.to_le_bytes());
        for mutation in &node.mutations {
            out.push(1);
            write_text(&mut out, &mutation.key)?;
            write_text(&mut out, &mutation.value)?;
            out.extend(mutation.version.to_le_bytes());
            out.push(mutation.status);
        }
        if let Some(max_version) = node.max_version {
            out.push(2);
            out.extend(max_version.to_le_bytes());
        }
    }
    Some(out)
}

fn write_life(out: &mut Vec<u8>, life: Life) -> Option<()> {
    write_text(out, life.node.as_str())?;
    out.extend(life.generation.to_le_bytes());
    let addr = address::of_node(life.node);
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(addr.port().to_le_bytes());
    Some(())
}

fn write_text(out: &mut Vec<u8>, text: &str) -> Option<()> {
    out.extend(u16::try_from(text.len()).ok()?.to_le_bytes());
    out.extend(text.as_bytes());
    Some(())
}

fn write_stream(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    for block in bytes.chunks(BLOCK_LEN) {
        let packed =
            zstd::bulk::compress(block, 0).ok().filter(|packed| packed.len() < block.len());
        let (tag, block) = packed.as_deref().map_or((2, block), |packed| (1, packed));
        out.push(tag);
        out.extend(u16::try_from(block.len()).ok()?.to_le_bytes());
        out.extend(block);
    }
    out.push(0);
    Some(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u16()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_fault| Malformed::Text)
    }

    fn life(&mut self) -> Result<Life, Malformed> {
        let node: NodeId = self.text()?.parse().map_err(|_fault| Malformed::Id)?;
        let generation = self.u64()?;
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(Malformed::Tag),
        };
        let addr = SocketAddr::new(ip, self.u16()?);
        if addr == address::of_node(node) {
            Ok(Life { node, generation })
        } else {
            Err(Malformed::Id)
        }
    }

    fn stream(&mut self) -> Result<Vec<u8>, Malformed> {
        let mut expanded = Vec::new();
        loop {
            let tag = self.u8()?;
            if tag == 0 {
                return Ok(expanded);
            }
            let len = self.u16()?;
            let block = self.take(len.into())?;
            match tag {
                1 => {
                    let block = zstd::bulk::decompress(block, u16::MAX.into())
                        .map_err(|_fault| Malformed::Compression)?;
                    expanded.extend(block);
                }
                2 => expanded.extend(block),
                _ => return Err(Malformed::Tag),
            }
            if expanded.len() > EXPANDED_LEN {
                return Err(Malformed::Compression);
            }
        }
    }
}
