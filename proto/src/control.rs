//! The control protocol: what two nodes say to each other over QUIC, as text (docs/protocol.md,
//! "Control").
//!
//! ```text
//! bidirectional stream : {"v":1,"op":"ping"} FIN          -> {"v":1,"op":"pong"} FIN
//! one-way stream       : kind u8 | body FIN               kind 1 = gossip bytes, 2 = push (JSON)
//! datagram             : gossip bytes
//! ```
//!
//! A message is one JSON object (RFC 8259) that carries the version and names its operation.
//! Unknown fields are ignored, so that version N can add some; an unknown operation is refused by
//! name. Signed records and objects travel as the text that was signed: this module neither reads
//! nor re-writes them. It refuses every message above the limit of its kind before it is parsed.

use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    addr::{EndpointId, Name, NetworkId, NodeId},
    object::sync,
};

/// Version of the messages; the ALPN [`ALPN`] names the same.
pub const VERSION: u8 = 1;
/// Application protocol in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"vxmesh/1";
/// Label of the exporter (RFC 8446 section 7.5) that binds a join's proof to its connection.
pub const JOIN_EXPORTER: &[u8] = b"EXPORTER-vxmesh-join";
/// Bytes of that exporter.
pub const JOIN_BINDING_LEN: usize = 32;

/// Largest request: a few hundred signed objects of 1 KiB; larger sets go in several.
pub const REQUEST_LEN: usize = 1 << 20;
/// Largest response: the map of 16,384 endpoints at 500 bytes a row.
pub const RESPONSE_LEN: usize = 8 << 20;
/// Largest push: as many records of 1 KiB as an agent changes in one go.
pub const PUSH_LEN: usize = 256 << 10;
/// Largest gossip message: what one UDP datagram could carry, which chitchat is made for.
pub const GOSSIP_LEN: usize = 65_507;
/// Largest request from a caller without a certificate: a join fits many times over.
pub const ANONYMOUS_LEN: usize = 16 << 10;

/// First byte of a one-way stream that carries gossip bytes.
pub const KIND_GOSSIP: u8 = 1;
/// First byte of a one-way stream that carries a [`Push`].
pub const KIND_PUSH: u8 = 2;

/// Why a message is not one.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Above the limit of its kind.
    #[error("a control message of {len} bytes is above the limit of {limit}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// No JSON object of a known operation.
    #[error("not a control message: {0}")]
    Malformed(#[source] serde_json::Error),
    /// From an agent that speaks a version unknown here.
    #[error("the message has version {0}, this agent speaks {VERSION}: upgrade the older agent")]
    Version(u8),
}

/// Bytes that travel as unpadded base64url (RFC 4648 section 5).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Blob(pub Vec<u8>);

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A blob may be a secret, so only its length is shown.
        write!(f, "{} bytes", self.0.len())
    }
}

impl From<Blob> for String {
    fn from(blob: Blob) -> Self {
        BASE64URL_NOPAD.encode(&blob.0)
    }
}

impl TryFrom<String> for Blob {
    type Error = data_encoding::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64URL_NOPAD.decode(text.as_bytes()).map(Self)
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

/// What one node asks another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// The only request that a caller without a certificate may make.
    Join(JoinRequest),
    /// A join that came to a member which cannot issue certificates.
    ForwardJoin(ForwardJoin),
    /// A member asks an issuer for a certificate with a new lifetime.
    Renew(CertificateRequest),
    /// What the caller holds of a range of the mesh-wide objects.
    ObjectsDigest {
        /// The range.
        digest: sync::Digest,
    },
    /// Signed objects, new to the caller's mind.
    ObjectsPush {
        /// Each as the text that was signed.
        objects: Vec<String>,
    },
    /// Signed records; answered when the caller may count on them.
    RecordsPush {
        /// Owner, key and signed text.
        records: Vec<(NodeId, String, String)>,
    },
    /// Asks the owner of address blocks for one.
    BlockRequest {
        /// The network.
        network: NetworkId,
        /// The subnet of the network.
        subnet: ipnet::IpNet,
        /// How many addresses are wanted.
        want: u32,
    },
    /// Asks the owner of an address for exactly this one.
    AddressClaim {
        /// The network.
        network: NetworkId,
        /// The address.
        ip: IpAddr,
        /// Who is to have it.
        endpoint: EndpointId,
    },
    /// The other's table of endpoints, for `map diff`.
    Map,
    /// What the other's wall clock shows.
    Clock,
    /// Asks an issuer to remove a node from the mesh.
    RemoveNode {
        /// Which.
        node: NodeId,
        /// Also if it is up.
        force: bool,
    },
    /// Asks a node where it sees the caller.
    Probe {
        /// Also to send something to the caller's data port, and to say what of the caller's comes
        /// to its own.
        ports: bool,
    },
    /// Asks whether something of the node `from`, which sends meanwhile, comes to the data port of
    /// the node `to`. Another node passes it on for a caller that does not reach that one.
    Hears {
        /// Who sends.
        from: NodeId,
        /// Who says whether it hears that.
        to: NodeId,
    },
    /// Asks the node of a service's backend whether it can connect to a port of it.
    CheckBackend {
        /// The network.
        network: NetworkId,
        /// The backend.
        endpoint: EndpointId,
        /// TCP or UDP, by its number (IANA).
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// Has a node change what it says of itself to services.
    ChangePlace {
        /// Whether its backends get no new flows; as it is otherwise.
        #[serde(default)]
        drain: Option<bool>,
        /// The zone that it is in; none if empty, as it is otherwise.
        #[serde(default)]
        zone: Option<String>,
    },
    /// An issuer gives the CA's key to a node that shall issue certificates, too; answered when it
    /// is on disk.
    GrantIssuer {
        /// The key, PKCS #8 (RFC 8410).
        key: Blob,
    },
    /// An issuer has another forget the CA's key; answered when its file is gone.
    WithdrawIssuer,
    /// An issuer gives the CA's key up, and asks another one to keep it meanwhile.
    KeepIssuer,
    /// The caller leaves the mesh for good.
    Leave,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Response {
    /// Here I am.
    Pong,
    /// It is done and there is nothing to say about it.
    Done,
    /// Welcome.
    Joined(Joined),
    /// A certificate with a new lifetime.
    Renewed {
        /// DER.
        certificate: Blob,
    },
    /// What the two nodes do not both hold of the range.
    ObjectsDifference {
        /// Texts and wishes.
        difference: sync::Difference,
    },
    /// Signed objects, as answer to a block request or an address claim.
    Objects {
        /// Each as the text that was signed.
        objects: Vec<String>,
    },
    /// The wall clock.
    Clock {
        /// In Unix milliseconds.
        unix_ms: u64,
    },
    /// What came of a probe.
    Probed {
        /// Whether something of the caller's came to the data port, if that was asked.
        #[serde(default)]
        data: Option<bool>,
        /// Whether the caller's control port answered at the address that it announces; nothing
        /// where none is known.
        #[serde(default)]
        control: Option<bool>,
        /// Where the caller's control packets come from.
        observed: SocketAddr,
    },
    /// What came of the question whether a node hears another.
    Heard {
        /// Whether it does.
        heard: bool,
    },
    /// What came of the attempt to connect to a backend.
    BackendChecked {
        /// Whether it accepts; nothing if that cannot be told.
        accepts: Option<bool>,
    },
    /// Rows of the admin API's `map ls`.
    Map {
        /// The rows.
        rows: Vec<serde_json::Value>,
    },
    /// It was not done.
    Error(Refusal),
}

/// What kind of refusal a [`Refusal`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No such join token: never made, revoked, or of another mesh.
    TokenUnknown,
    /// The join token's time is over.
    TokenExpired,
    /// The join token has admitted as many nodes as it may.
    TokenUsed,
    /// This node cannot issue certificates and reaches none that can.
    NoIssuer,
    /// The clocks of the two hosts are too far apart.
    Clock,
    /// Only members may ask this.
    NotMember,
    /// Another node, which is up, has the name.
    NameTaken,
    /// Too many joins; try again in a minute.
    RateLimited,
    /// The message is not one, is too large, or its contents contradict each other.
    Malformed,
    /// The operation is unknown to this version.
    Unsupported,
    /// No such object.
    NotFound,
    /// It is taken.
    Conflict,
    /// Something failed on the way, or the code is one that this version does not know.
    #[serde(other)]
    Failed,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// What is wrong: lower case, no full stop.
    pub message: String,
}

impl Response {
    /// A refusal.
    pub fn refuse(code: RefusalCode, message: impl Into<String>) -> Self {
        Self::Error(Refusal { code, message: message.into() })
    }
}

/// What a certificate is asked for; the node id follows from the key in `csr`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PKCS #10 request, DER, self-signed. Nothing but its public key is taken over.
    pub csr: Blob,
    /// Static X25519 key for Noise, 32 bytes.
    pub noise_public: Blob,
    /// Whether the node's processor has AES instructions.
    pub aes: bool,
}

/// A host asks to become a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// What to certify.
    pub certificate: CertificateRequest,
    /// The secret part of the join token.
    pub secret: Blob,
    /// Ed25519 signature with the key of the request over
    /// `"vxmesh-join/1" | noise public | binding`.
    pub proof: Blob,
    /// The node's name.
    pub name: Name,
    /// Port on which it will listen for control.
    pub control_port: u16,
    /// Address that it announces, where it was told one.
    #[serde(default)]
    pub advertise: Option<IpAddr>,
    /// What its wall clock shows, in Unix milliseconds.
    #[serde(default)]
    pub unix_ms: Option<u64>,
}

/// A join on its way from the member that received it to an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardJoin {
    /// As received.
    pub join: JoinRequest,
    /// The exporter of the connection on which it came.
    pub binding: Blob,
    /// Where it came from.
    pub observed: IpAddr,
}

/// What a new member gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its certificate, DER.
    pub certificate: Blob,
    /// The mesh CA's certificate, DER.
    pub ca: Blob,
    /// Number of the mesh secret.
    pub psk_epoch: u16,
    /// The mesh secret, 32 bytes.
    pub psk: Blob,
    /// Other members.
    pub members: Vec<MemberInfo>,
    /// Where the joiner's packets come from.
    #[serde(default)]
    pub observed: Option<IpAddr>,
    /// What the joiner should know beyond that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A member and where to reach it for control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Who.
    pub node: NodeId,
    /// Its certificate, DER; empty where the teller does not hold it.
    #[serde(default)]
    pub certificate: Blob,
    /// Where.
    pub addrs: Vec<SocketAddr>,
}

/// Signed records, sent the moment they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Owner, key and signed text.
    pub records: Vec<(NodeId, String, String)>,
    /// Signed mesh-wide objects.
    #[serde(default)]
    pub objects: Vec<String>,
}

/// What a [`JoinRequest::proof`] signs.
#[must_use]
pub fn join_proof_message(noise_public: &[u8], binding: &[u8]) -> Vec<u8> {
    [b"vxmesh-join/1".as_slice(), noise_public, binding].concat()
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u8,
    #[serde(flatten)]
    body: T,
}

/// Writes a message, if it is within the limit.
///
/// # Errors
///
/// [`CodecError::TooLarge`]; [`CodecError::Malformed`] if a value has no JSON form.
pub fn encode<T: Serialize>(body: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes =
        serde_json::to_vec(&Envelope { v: VERSION, body }).map_err(CodecError::Malformed)?;
    within(&bytes, limit)?;
    Ok(bytes)
}

/// Reads a message.
///
/// # Errors
///
/// The bytes are above the limit, no message, or of another version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u8,
    }

    within(bytes, limit)?;
    let Versioned { v } = serde_json::from_slice(bytes).map_err(CodecError::Malformed)?;
    if v != VERSION {
        return Err(CodecError::Version(v));
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(CodecError::Malformed)?;
    Ok(envelope.body)
}

const fn within(bytes: &[u8], limit: usize) -> Result<(), CodecError> {
    if bytes.len() > limit {
        return Err(CodecError::TooLarge { len: bytes.len(), limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join() -> JoinRequest {
        JoinRequest {
            certificate: CertificateRequest {
                csr: Blob(vec![1, 2, 3]),
                noise_public: Blob(vec![9; 32]),
                aes: true,
            },
            secret: Blob(vec![5; 16]),
            proof: Blob(vec![7; 64]),
            name: "h1".parse().unwrap(),
            control_port: 7760,
            advertise: None,
            unix_ms: Some(1_800_000_000_000),
        }
    }

    #[test]
    fn every_request_and_response_comes_back_as_it_went() {
        let network = NetworkId::from_random([1; 16]);
        let requests = [
            Request::Ping,
            Request::Clock,
            Request::Join(join()),
            Request::ForwardJoin(ForwardJoin {
                join: join(),
                binding: Blob(vec![3; 32]),
                observed: "fd00::1".parse().unwrap(),
            }),
            Request::Renew(join().certificate),
            Request::ObjectsDigest {
                digest: sync::Digest { after: None, until: None, entries: Vec::new() },
            },
            Request::ObjectsPush { objects: vec!["{\"x\":1}".into()] },
            Request::RecordsPush {
                records: vec![(NodeId::of_public_key(b"k"), "node".into(), "t".into())],
            },
            Request::BlockRequest { network, subnet: "10.0.0.0/24".parse().unwrap(), want: 16 },
            Request::AddressClaim {
                network,
                ip: "10.0.0.9".parse().unwrap(),
                endpoint: EndpointId::from_random([2; 16]),
            },
            Request::Map,
            Request::RemoveNode { node: NodeId::of_public_key(b"k"), force: true },
            Request::Probe { ports: true },
            Request::Hears { from: NodeId::of_public_key(b"k"), to: NodeId::of_public_key(b"l") },
            Request::GrantIssuer { key: Blob(vec![8; 48]) },
            Request::WithdrawIssuer,
            Request::KeepIssuer,
            Request::Leave,
        ];
        for request in requests {
            let bytes = encode(&request, REQUEST_LEN).unwrap();
            assert_eq!(decode::<Request>(&bytes, REQUEST_LEN).unwrap(), request);
        }
        let responses = [
            Response::Pong,
            Response::Clock { unix_ms: 1_800_000_000_000 },
            Response::Done,
            Response::Joined(Joined {
                certificate: Blob(vec![1]),
                ca: Blob(vec![2]),
                psk_epoch: 3,
                psk: Blob(vec![4; 32]),
                members: vec![MemberInfo {
                    node: NodeId::of_public_key(b"k"),
                    certificate: Blob::default(),
                    addrs: vec!["[::1]:7760".parse().unwrap()],
                }],
                observed: Some("192.0.2.1".parse().unwrap()),
                warnings: vec!["w".into()],
            }),
            Response::Renewed { certificate: Blob(vec![1]) },
            Response::Objects { objects: vec![] },
            Response::Heard { heard: true },
            Response::Probed {
                data: Some(true),
                control: Some(false),
                observed: "192.0.2.1:7760".parse().unwrap(),
            },
            Response::Map { rows: vec![serde_json::json!({"a": 1})] },
            Response::refuse(RefusalCode::TokenUsed, "used"),
        ];
        for response in responses {
            let bytes = encode(&response, RESPONSE_LEN).unwrap();
            assert_eq!(decode::<Response>(&bytes, RESPONSE_LEN).unwrap(), response);
        }
    }

    #[test]
    fn unknown_fields_pass_and_unknown_operations_do_not() {
        let known = br#"{"v":1,"op":"ping","later":[1,{"x":2}]}"#;
        assert_eq!(decode::<Request>(known, REQUEST_LEN).unwrap(), Request::Ping);
        let unknown = br#"{"v":1,"op":"fly"}"#;
        assert!(matches!(decode::<Request>(unknown, 64), Err(CodecError::Malformed(_))));
        let code = br#"{"v":1,"op":"error","code":"from_the_future","message":"m"}"#;
        let Response::Error(refusal) = decode(code, 100).unwrap() else { panic!("no refusal") };
        assert_eq!(refusal.code, RefusalCode::Failed);
    }

    #[test]
    fn another_version_and_too_large_have_their_own_errors() {
        assert!(matches!(
            decode::<Request>(br#"{"v":2,"op":"other"}"#, 64),
            Err(CodecError::Version(2))
        ));
        assert!(matches!(
            decode::<Request>(b"{}", 1),
            Err(CodecError::TooLarge { len: 2, limit: 1 })
        ));
        let push = Push {
            records: vec![(NodeId::of_public_key(b"k"), "k".into(), "x".repeat(PUSH_LEN))],
            objects: vec![],
        };
        assert!(matches!(encode(&push, PUSH_LEN), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn debug_output_hides_blobs() {
        assert!(!format!("{:?}", Request::Join(join())).contains("[5, 5"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(decode::<Request>(&bytes, REQUEST_LEN).is_err());
            prop_assert!(decode::<Response>(&bytes, REQUEST_LEN).is_err());
            prop_assert!(decode::<Push>(&bytes, REQUEST_LEN).is_err());
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0usize..400, to in any::<u8>()) {
            let mut bytes = encode(&Request::Join(join()), REQUEST_LEN).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(request) = decode::<Request>(&bytes, REQUEST_LEN) {
                let again = encode(&request, REQUEST_LEN).unwrap();
                prop_assert_eq!(decode::<Request>(&again, REQUEST_LEN).unwrap(), request);
            }
        }
    }
}
