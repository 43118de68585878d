//! Mesh-wide objects: what belongs to no single node. Members, networks, address blocks given away.
//!
//! ```text
//! object = signature "." body          ASCII 0x20..0x7e, at most OBJECT_LEN bytes
//! signature = base64url without padding, Ed25519 (RFC 8032) over
//!             "vxmesh object 1" 00 | mesh id 26 | author id 26 | body
//! body   = JSON {"i":id, "a":author, "c":created, "h":hlc, "d":closed, "b":{content}}
//! id     = "member/" node | "removed/" node | "network/" id | "extension/" network "/" author "/" cidr
//!          | ( "transfer/" | "reclaim/" ) network "/" giver "/" cidr "/" epoch
//!          | "service/" id | "update/" service "/" author | any other
//! network id = first 16 bytes of SHA-256 over "vxmesh network 1" 00 |
//!              JSON [creator, created, driver, vni, encrypted, subnets, blocks]
//! service id = the same over "vxmesh service 1" 00 | JSON [creator, created, network, name, vips]
//! ```
//!
//! Which of two texts for one object stays is a total order, so replicas agree in whatever order
//! they learn: closed (a deleted network or service, a member that left) over open, then the
//! greater (HLC, author), then the smaller text. Extensions, transfers, removals and reclaims never
//! change: there the *smaller* stamp stays. Removals and reclaims are signed with the key of the
//! mesh CA, in the name of the issuer that used it.
//!
//! What must never change is not remembered, it is committed to: a network's id is the hash of its
//! fixed fields, so a text that flips `encrypted` is no version of that network, on a node that saw
//! the network before and on one that did not. A kind of object that this version does not know
//! is checked for its author, kept and passed on.
//!
//! A deleted network is forgotten after [`DELETED_KEPT`](crate::limits::DELETED_KEPT), and
//! transfers and services of that age with it: a text that would be forgotten is not admitted
//! either, so that sets whose clocks differ a little do not fill each other again. What was changed
//! of a service goes when it is closed.
//!
//! The clock of the author is not judged. A stamp from another time is admitted and orders versions
//! as any other; it moves nobody's clock ([`Clock`]), and the next edit of that object is later
//! than it.
//!
//! [`ObjectSet`] merges them, [`sync`] reconciles two sets, [`Hlc`] orders edits. Whether a
//! certificate is the CA's word is the [`Certifier`]'s to say.

mod departure;
mod extension;
mod hlc;
mod network;
mod service;
mod set;
pub mod sync;
mod update;

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use data_encoding::BASE64;
use ipnet::IpNet;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

pub use self::{
    departure::{Comparison, Removal, RollCall},
    extension::{Extension, SubnetOf, SubnetState},
    hlc::{Clock, Hlc},
    network::{Block, Network, NetworkLimits, Subnet, may_be_vtep},
    service::{
        DRAIN_MS, HealthCheck, PublishedPort, Service, ServiceOf, ServicePort, ServiceState,
        holder, share_address,
    },
    set::{Merge, NetworkState, ObjectSet},
    update::{Change, Part, Update},
};
use crate::{
    addr::{Name, NetworkId, NodeId, ServiceId},
    limits::{OBJECT_LEN, OBJECTS_PER_AUTHOR},
    record,
};

const DOMAIN: &[u8] = b"vxmesh object 1\0";
const OTHER_ID_LEN: usize = 128;

/// Who signs with which key.
pub trait KeyRing {
    /// The Ed25519 public key of a member. The caller checks that the id was made of it.
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]>;
}

/// Knows the mesh CA.
pub trait Certifier {
    /// The Ed25519 public key in a DER certificate, if the CA signed it for a node of this mesh.
    fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]>;

    /// The CA's own Ed25519 public key.
    fn ca_key(&self) -> Option<[u8; 32]>;
}

/// Why an object was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// It is larger than an object may be.
    #[error("the object has {0} bytes and may have {OBJECT_LEN}")]
    TooLong(usize),
    /// Not a signature, a point and a JSON body in printable ASCII.
    #[error("the object has not the form of one")]
    Form,
    /// The content is not what its kind demands.
    #[error("the object's content is not valid: {0}")]
    Content(&'static str),
    /// The content belongs under another id.
    #[error("the object's content does not belong under its id")]
    Misplaced,
    /// A field that never changes has another value.
    #[error("`{field}` of a network never changes; make a new network")]
    Fixed {
        /// The first such field, or `id` when the network was not known before.
        field: &'static str,
    },
    /// The author is not a known member.
    #[error("the object's author {0} is not a known member")]
    UnknownAuthor(NodeId),
    /// Only another node may say this.
    #[error("the object's author {0} may not say this: only the node that it is about may")]
    NotTheirs(NodeId),
    /// Its sender is gone for good.
    #[error("node {0} was removed or left, and nothing of others is taken from it")]
    Departed(NodeId),
    /// The signature is not the author's.
    #[error("the object was not signed by its author")]
    Signature,
    /// The certificate is not the CA's.
    #[error("the member's certificate is not from this mesh's CA")]
    Certificate,
    /// No room.
    #[error("the mesh has as many objects as it may; delete some networks")]
    Full,
    /// One node has written too much.
    #[error(
        "node {0} has written as much as one node may ({OBJECTS_PER_AUTHOR} objects); delete some of its networks"
    )]
    Quota(NodeId),
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ObjectId {
    /// A member; first in order, because members' keys are needed to check the rest.
    Member(NodeId),
    /// A node that was removed; before whatever may be of it.
    Removed(NodeId),
    /// A network.
    Network(NetworkId),
    /// A subnet that was added to a network.
    Extension {
        /// The network.
        network: NetworkId,
        /// Who added it; in the id, so that nobody can put another's extension aside.
        from: NodeId,
        /// The subnet.
        cidr: IpNet,
    },
    /// An address block that its owner gave away.
    Transfer {
        /// The network.
        network: NetworkId,
        /// Who gave it; in the id, so that nobody can put another's transfer aside by writing one
        /// of the same block.
        from: NodeId,
        /// The block.
        cidr: IpNet,
        /// How often it has changed hands.
        epoch: u64,
    },
    /// An address block of a removed node that an issuer took.
    Reclaim {
        /// The network.
        network: NetworkId,
        /// Whose it was.
        from: NodeId,
        /// The block.
        cidr: IpNet,
        /// How often it has changed hands.
        epoch: u64,
    },
    /// A service. After those that older versions know, as these sort it among the others.
    Service(ServiceId),
    /// What a member changed of a service; after it for the same reason.
    Update {
        /// The service.
        service: ServiceId,
        /// Who changed it; in the id, so that nobody's changes replace those of another.
        from: NodeId,
    },
    /// A kind that this version does not know.
    Other(Box<str>),
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(node) => write!(f, "member/{node}"),
            Self::Removed(node) => write!(f, "removed/{node}"),
            Self::Network(network) => write!(f, "network/{network}"),
            Self::Extension { network, from, cidr } => {
                write!(f, "extension/{network}/{from}/{cidr}")
            }
            Self::Transfer { network, from, cidr, epoch } => {
                write!(f, "transfer/{network}/{from}/{cidr}/{epoch}")
            }
            Self::Reclaim { network, from, cidr, epoch } => {
                write!(f, "reclaim/{network}/{from}/{cidr}/{epoch}")
            }
            Self::Service(service) => write!(f, "service/{service}"),
            Self::Update { service, from } => write!(f, "update/{service}/{from}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl FromStr for ObjectId {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let (kind, rest) = text.split_once('/').ok_or(Refused::Form)?;
        let id =
            match kind {
                "member" => rest.parse().ok().map(Self::Member),
                "removed" => rest.parse().ok().map(Self::Removed),
                "network" => rest.parse().ok().map(Self::Network),
                "service" => rest.parse().ok().map(Self::Service),
                "update" => parse_update(rest),
                "extension" => parse_extension(rest),
                "transfer" => parse_block(rest).map(|(network, from, cidr, epoch)| {
                    Self::Transfer { network, from, cidr, epoch }
                }),
                "reclaim" => parse_block(rest).map(|(network, from, cidr, epoch)| Self::Reclaim {
                    network,
                    from,
                    cidr,
                    epoch,
                }),
                _ => Some(text)
                    .filter(|text| {
                        text.len() <= OTHER_ID_LEN && text.bytes().all(|c| c.is_ascii_graphic())
                    })
                    .map(|text| Self::Other(text.into())),
            };
        // One object has one spelling.
        id.filter(|id| id.to_string() == text).ok_or(Refused::Form)
    }
}

fn parse_extension(text: &str) -> Option<ObjectId> {
    let (network, rest) = text.split_once('/')?;
    let (from, cidr) = rest.split_once('/')?;
    Some(ObjectId::Extension {
        network: network.parse().ok()?,
        from: from.parse().ok()?,
        cidr: cidr.parse().ok()?,
    })
}

fn parse_update(text: &str) -> Option<ObjectId> {
    let (service, from) = text.split_once('/')?;
    Some(ObjectId::Update { service: service.parse().ok()?, from: from.parse().ok()? })
}

fn parse_block(text: &str) -> Option<(NetworkId, NodeId, IpNet, u64)> {
    let (network, rest) = text.split_once('/')?;
    let (from, rest) = rest.split_once('/')?;
    let (cidr, epoch) = rest.rsplit_once('/')?;
    Some((network.parse().ok()?, from.parse().ok()?, cidr.parse().ok()?, epoch.parse().ok()?))
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ObjectId {
    type Error = Refused;

    fn try_from(text: String) -> Result<Self, Refused> {
        text.parse()
    }
}

/// A member's proof that it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its DER certificate, which carries its keys.
    #[serde(rename = "x", with = "base64_text")]
    pub certificate: Vec<u8>,
    /// Its name, for whoever does not hear it any more; older versions did not tell it here.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// An address block given away by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The network.
    #[serde(rename = "w")]
    pub network: NetworkId,
    /// The block.
    #[serde(rename = "r")]
    pub cidr: IpNet,
    /// Who owned it, and signs.
    #[serde(rename = "f")]
    pub from: NodeId,
    /// Who owns it.
    #[serde(rename = "t")]
    pub to: NodeId,
    /// One more than the block's epoch before; the initial blocks have epoch 0.
    #[serde(rename = "e")]
    pub epoch: u64,
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A member; closed when it left.
    Member(Member),
    /// A removed node; never closed.
    Removed(Removal),
    /// A network; closed when it was deleted.
    Network(Network),
    /// A subnet added to a network; never closed.
    Extension(Extension),
    /// A block given away; never closed.
    Transfer(Transfer),
    /// A block of a removed node, given to the issuer that says so; never closed.
    Reclaim(Transfer),
    /// A service; closed when it was removed.
    Service(Service),
    /// What a member changed of a service; never closed.
    Update(Update),
    /// Of a kind that this version does not know.
    Other,
}

/// What the author of an object signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// When the object was made.
    pub created: Hlc,
    /// When it was edited last.
    pub hlc: Hlc,
    /// Whether it is a tombstone.
    pub closed: bool,
    /// What it is.
    pub content: Content,
}

impl Draft {
    /// The first version of an object.
    #[must_use]
    pub const fn new(hlc: Hlc, content: Content) -> Self {
        Self { created: hlc, hlc, closed: false, content }
    }

    /// Signs it as the key pair's node. What [`ObjectSet::merge`] would refuse at once is not
    /// signed.
    ///
    /// # Errors
    /// The content is not valid, too large, or not the node's to say.
    pub fn sign(&self, pair: &Ed25519KeyPair, mesh: NodeId) -> Result<Arc<str>, Refused> {
        self.sign_as(NodeId::of_public_key(pair.public_key().as_ref()), pair, mesh)
    }

    /// Signs it as this node with this key: the CA's for what only an issuer may say, else the
    /// node's own.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_as(
        &self,
        author: NodeId,
        pair: &Ed25519KeyPair,
        mesh: NodeId,
    ) -> Result<Arc<str>, Refused> {
        let id = self.id(author)?;
        let content = match &self.content {
            Content::Member(member) => RawValue::from_string(to_json(member)?),
            Content::Network(network) => RawValue::from_string(to_json(network)?),
            Content::Service(service) => RawValue::from_string(to_json(service)?),
            Content::Update(update) => RawValue::from_string(to_json(update)?),
            Content::Extension(extension) => RawValue::from_string(to_json(extension)?),
            Content::Removed(removal) => RawValue::from_string(to_json(removal)?),
            Content::Transfer(transfer) | Content::Reclaim(transfer) => {
                RawValue::from_string(to_json(transfer)?)
            }
            Content::Other => return Err(Refused::Content("its kind is unknown")),
        }
        .map_err(|_fault| Refused::Form)?;
        check_content(&id, author, self)?;
        let body =
            Body { id, author, created: self.created, hlc: self.hlc, closed: self.closed, content };
        let text = record::sign_text(
            pair,
            &domain(mesh, author),
            &record::escape_to_ascii(&to_json(&body)?),
        );
        if text.len() > OBJECT_LEN { Err(Refused::TooLong(text.len())) } else { Ok(text.into()) }
    }

    /// The id under which the content belongs.
    ///
    /// # Errors
    /// Its kind is unknown.
    pub fn id(&self, author: NodeId) -> Result<ObjectId, Refused> {
        Ok(match &self.content {
            Content::Member(_) => ObjectId::Member(author),
            Content::Network(network) => ObjectId::Network(network.id(self.created)),
            Content::Service(service) => ObjectId::Service(service.id(self.created)),
            Content::Update(update) => update.id(),
            Content::Extension(extension) => extension.id(),
            Content::Removed(removal) => ObjectId::Removed(removal.node),
            Content::Transfer(Transfer { network, from, cidr, epoch, .. }) => {
                let (network, from, cidr, epoch) = (*network, *from, *cidr, *epoch);
                ObjectId::Transfer { network, from, cidr, epoch }
            }
            Content::Reclaim(Transfer { network, from, cidr, epoch, .. }) => {
                let (network, from, cidr, epoch) = (*network, *from, *cidr, *epoch);
                ObjectId::Reclaim { network, from, cidr, epoch }
            }
            Content::Other => return Err(Refused::Content("its kind is unknown")),
        })
    }
}

/// An object that its author did sign; only [`ObjectSet::merge`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    id: ObjectId,
    author: NodeId,
    draft: Draft,
    text: Arc<str>,
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub const fn id(&self) -> &ObjectId {
        &self.id
    }

    /// Who signed this version.
    #[must_use]
    pub const fn author(&self) -> NodeId {
        self.author
    }

    /// When the object was made.
    #[must_use]
    pub const fn created(&self) -> Hlc {
        self.draft.created
    }

    /// When this version was made.
    #[must_use]
    pub const fn hlc(&self) -> Hlc {
        self.draft.hlc
    }

    /// Whether the network or the service was deleted, or the member left.
    #[must_use]
    pub const fn closed(&self) -> bool {
        self.draft.closed
    }

    /// What it is.
    #[must_use]
    pub const fn content(&self) -> &Content {
        &self.draft.content
    }

    /// The text as it came, which is what is passed on and stored.
    #[must_use]
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// A next version of it to edit and sign, later than this one whatever the clock says.
    #[must_use]
    pub fn edit(&self, hlc: Hlc) -> Draft {
        Draft { hlc: hlc.max(self.draft.hlc.next()), ..self.draft.clone() }
    }

    /// `Greater` if this version stays where the other one is.
    fn precedence(&self, other: &Self) -> Ordering {
        let stamp = |object: &Self| (object.draft.hlc, object.author);
        let by_text = || other.text.cmp(&self.text);
        match self.draft.content {
            Content::Removed(_)
            | Content::Extension(_)
            | Content::Transfer(_)
            | Content::Reclaim(_) => stamp(other).cmp(&stamp(self)).then_with(by_text),
            Content::Member(_)
            | Content::Network(_)
            | Content::Service(_)
            | Content::Update(_)
            | Content::Other => self
                .draft
                .closed
                .cmp(&other.draft.closed)
                .then_with(|| stamp(self).cmp(&stamp(other)))
                .then_with(by_text),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(rename = "i")]
    id: ObjectId,
    #[serde(rename = "a")]
    author: NodeId,
    #[serde(rename = "c")]
    created: Hlc,
    #[serde(rename = "h")]
    hlc: Hlc,
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
    #[serde(rename = "b")]
    content: Box<RawValue>,
}

/// Reads a text whose author is not checked yet.
fn parse(text: &str) -> Result<Object, Refused> {
    if text.len() > OBJECT_LEN {
        return Err(Refused::TooLong(text.len()));
    }
    let (_signature, body) = record::split_text(text).map_err(|_fault| Refused::Form)?;
    let body: Body = serde_json::from_str(body).map_err(|_fault| Refused::Form)?;
    let json = body.content.get();
    let content = match &body.id {
        ObjectId::Member(_) => serde_json::from_str(json).map(Content::Member),
        ObjectId::Network(_) => serde_json::from_str(json).map(Content::Network),
        ObjectId::Service(_) => serde_json::from_str(json).map(Content::Service),
        ObjectId::Update { .. } => serde_json::from_str(json).map(Content::Update),
        ObjectId::Extension { .. } => serde_json::from_str(json).map(Content::Extension),
        ObjectId::Removed(_) => serde_json::from_str(json).map(Content::Removed),
        ObjectId::Transfer { .. } => serde_json::from_str(json).map(Content::Transfer),
        ObjectId::Reclaim { .. } => serde_json::from_str(json).map(Content::Reclaim),
        ObjectId::Other(_) => Ok(Content::Other),
    }
    .map_err(|_fault| Refused::Content("fields are missing or wrong"))?;
    let draft = Draft { created: body.created, hlc: body.hlc, closed: body.closed, content };
    Ok(Object { id: body.id, author: body.author, draft, text: text.into() })
}

/// Checks what needs neither keys nor other objects.
fn check_content(id: &ObjectId, author: NodeId, draft: &Draft) -> Result<(), Refused> {
    if draft.created > draft.hlc {
        return Err(Refused::Content("it was edited before it was made"));
    }
    match (&draft.content, id) {
        (Content::Member(_), ObjectId::Member(node)) => {
            if *node == author {
                Ok(())
            } else {
                Err(Refused::NotTheirs(author))
            }
        }
        (Content::Network(network), ObjectId::Network(own)) => {
            if network.id(draft.created) != *own {
                return Err(Refused::Fixed { field: "id" });
            }
            network.check()
        }
        (Content::Service(service), ObjectId::Service(own)) => {
            if service.id(draft.created) == *own {
                service.check()
            } else {
                Err(Refused::Misplaced)
            }
        }
        (Content::Update(update), ObjectId::Update { .. }) => {
            if update.id() != *id {
                Err(Refused::Misplaced)
            } else if update.from != author {
                Err(Refused::NotTheirs(author))
            } else if draft.closed {
                Err(Refused::Content("what was changed stays so until it is changed again"))
            } else {
                update.check(draft.hlc)
            }
        }
        (Content::Extension(extension), ObjectId::Extension { .. }) => {
            if extension.id() != *id {
                Err(Refused::Misplaced)
            } else if extension.from != author {
                Err(Refused::NotTheirs(author))
            } else if draft.closed || draft.created != draft.hlc {
                Err(Refused::Content("an extension never changes"))
            } else {
                extension.check()
            }
        }
        (Content::Removed(removal), ObjectId::Removed(node)) => {
            if removal.node != *node {
                Err(Refused::Misplaced)
            } else if draft.closed || *node == author {
                Err(Refused::Content("a removal stands for ever, and no node removes itself"))
            } else {
                Ok(())
            }
        }
        (Content::Transfer(transfer), ObjectId::Transfer { network, from, cidr, epoch }) => {
            if transfer.from != author {
                return Err(Refused::NotTheirs(author));
            }
            check_transfer(transfer, (*network, *from, *cidr, *epoch), draft)
        }
        (Content::Reclaim(transfer), ObjectId::Reclaim { network, from, cidr, epoch }) => {
            if transfer.to != author {
                return Err(Refused::NotTheirs(author));
            }
            check_transfer(transfer, (*network, *from, *cidr, *epoch), draft)
        }
        (Content::Other, ObjectId::Other(_)) => Ok(()),
        _ => Err(Refused::Misplaced),
    }
}

fn check_transfer(
    transfer: &Transfer,
    named: (NetworkId, NodeId, IpNet, u64),
    draft: &Draft,
) -> Result<(), Refused> {
    if (transfer.network, transfer.from, transfer.cidr, transfer.epoch) != named {
        Err(Refused::Misplaced)
    } else if draft.closed || transfer.epoch == 0 || transfer.from == transfer.to {
        Err(Refused::Content("a transfer gives a block to another node in epoch 1 or later"))
    } else {
        Ok(())
    }
}

fn domain(mesh: NodeId, author: NodeId) -> Vec<u8> {
    [DOMAIN, mesh.as_str().as_bytes(), author.as_str().as_bytes()].concat()
}

fn to_json<T: Serialize>(value: &T) -> Result<String, Refused> {
    serde_json::to_string(value).map_err(|_fault| Refused::Form)
}

mod base64_text {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::BASE64;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
