//! Certificates of nodes: what one must contain, and the check that it does (RFC 5280, profile of
//! vxmesh).
//!
//! ```text
//! issuer  : the mesh CA, which signs every node directly; Ed25519 only (RFC 8410)
//! SAN     : URI vxmesh://<mesh id>/node/<node id>, DNS <node id>.node.vxmesh
//! private extension 2.25.5317960417302168733, not critical:
//!           OCTET STRING { version u8 = 1 | flags u8 (1 = AES hardware, 2 = issuer) | X25519 public key 32 }
//! ```
//!
//! It refuses CA certificates, other algorithms, unknown critical extensions, a node id that is not
//! the hash of the key, and another mesh. Names that anyone could choose are never looked at.

use ring::signature::{ED25519, UnparsedPublicKey};
use thiserror::Error;
use vxmesh_proto::addr::NodeId;
use x509_parser::{
    certificate::X509Certificate,
    der_parser::{Oid, asn1_rs::oid},
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::{AlgorithmIdentifier, SubjectPublicKeyInfo, X509Version},
};

use super::date;

/// Object identifier of the private extension: one number under the arc of UUIDs, which nobody
/// assigns.
pub(super) const EXTENSION_OID: [u64; 3] = [2, 25, 5_317_960_417_302_168_733];
const EXTENSION_VERSION: u8 = 1;
const FLAG_AES: u8 = 1;
const FLAG_ISSUER: u8 = 2;
/// OCTET STRING of 34 bytes.
const EXTENSION_HEADER: [u8; 2] = [0x04, 34];
/// Largest certificate that is looked at; ours have about 450 bytes.
const CERTIFICATE_LEN: usize = 4096;
const OID_ED25519: Oid<'static> = oid!(1.3.101.112);
/// What follows the signed part: SEQUENCE { OID Ed25519 }, BIT STRING of 64 bytes.
const SIGNATURE_HEADER: [u8; 10] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x41, 0];
const SIGNATURE_LEN: usize = 64;

/// A node as its certificate describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node_id: NodeId,
    /// Of which mesh.
    pub mesh_id: NodeId,
    /// Key of its records and of its TLS handshakes.
    pub ed25519_public: [u8; 32],
    /// Static X25519 key of its Noise handshakes.
    pub noise_public: [u8; 32],
    /// Whether its processor has AES instructions.
    pub aes: bool,
    /// Whether it may hold the CA's key.
    pub issuer: bool,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
}

fn day(unix: &u64) -> String {
    date(*unix)
}

/// Why a certificate does not make a member.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CertificateError {
    /// No DER of a certificate, or bytes behind it.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// An algorithm, extension or kind of certificate outside the profile.
    #[error("the certificate has {0}, which a node's never has")]
    Profile(&'static str),
    /// Of another mesh, or forged.
    #[error("the certificate was not signed by this mesh's CA")]
    OtherCa,
    /// Outside its validity.
    #[error(
        "the certificate is valid from {} to {}, and this host's clock shows {}: check the clocks, or join again",
        day(.not_before), day(.not_after), day(.now)
    )]
    NotValidAt {
        /// Begin.
        not_before: u64,
        /// End.
        not_after: u64,
        /// When it was looked at.
        now: u64,
    },
    /// The name is not the one that belongs to key and mesh.
    #[error("the certificate names another node or mesh than its key and its CA do")]
    Name,
}

/// The id of the mesh whose CA has this certificate.
#[must_use]
pub fn mesh_id(ca: &[u8]) -> NodeId {
    NodeId::of_public_key(ca)
}

/// The URI in the certificate of a node.
#[must_use]
pub fn node_uri(mesh: NodeId, node: NodeId) -> String {
    format!("vxmesh://{mesh}/node/{node}")
}

/// The DNS name in the certificate of a node, which the dialer of a connection asks for.
#[must_use]
pub fn node_dns(node: NodeId) -> String {
    format!("{node}.node.vxmesh")
}

/// The node that a [`node_dns`] name asks for.
#[must_use]
pub fn node_of_dns(name: &str) -> Option<NodeId> {
    name.strip_suffix(".node.vxmesh").and_then(|id| id.parse().ok())
}

/// Checks that `der` is a certificate of a node, signed by `ca` and valid at `now` (unix seconds).
///
/// # Errors
///
/// The first thing that does not fit.
pub fn verify(der: &[u8], ca: &[u8], now: u64) -> Result<Member, CertificateError> {
    let member = verify_at_its_own_time(der, ca)?;
    let (not_before, not_after) = (member.not_before, member.not_after);
    if now < not_before || now > not_after {
        return Err(CertificateError::NotValidAt { not_before, not_after, now });
    }
    Ok(member)
}

/// As [`verify`], for one's own certificate, which may be renewed after its end.
pub(crate) fn verify_at_its_own_time(der: &[u8], ca: &[u8]) -> Result<Member, CertificateError> {
    let certificate = parse(der)?;
    let authority = parse(ca)?;
    check_signature(der, &certificate, &authority)?;
    if certificate.version() != X509Version::V3 || certificate.is_ca() {
        return Err(CertificateError::Profile("another version or the right to sign others"));
    }
    let ed25519_public = ed25519_key(certificate.public_key())?;
    let node_id = NodeId::of_public_key(&ed25519_public);
    let mesh_id = mesh_id(ca);
    let own = own_extensions(&certificate)?;
    if own.uri != Some(node_uri(mesh_id, node_id).as_str()) {
        return Err(CertificateError::Name);
    }
    let content = own.content.ok_or(CertificateError::Profile("no Noise key"))?;
    let (flags, noise_public) = read_extension(content)?;
    Ok(Member {
        node_id,
        mesh_id,
        ed25519_public,
        noise_public,
        aes: flags & FLAG_AES != 0,
        issuer: flags & FLAG_ISSUER != 0,
        not_before: unix(certificate.validity().not_before.timestamp()),
        not_after: unix(certificate.validity().not_after.timestamp()),
    })
}

/// The contents of the private extension.
pub(super) fn write_extension(noise_public: &[u8; 32], aes: bool, issuer: bool) -> Vec<u8> {
    let flags = if aes { FLAG_AES } else { 0 } | if issuer { FLAG_ISSUER } else { 0 };
    [&EXTENSION_HEADER, &[EXTENSION_VERSION, flags], noise_public.as_slice()].concat()
}

/// The raw key of an Ed25519 public key info (RFC 8410 section 4).
pub(super) fn ed25519_key(info: &SubjectPublicKeyInfo<'_>) -> Result<[u8; 32], CertificateError> {
    check_algorithm(&info.algorithm)?;
    info.subject_public_key
        .data
        .as_ref()
        .try_into()
        .ok()
        .ok_or(CertificateError::Profile("a key of another length"))
}

/// The key of the mesh CA's certificate.
pub(crate) fn authority_key(ca: &[u8]) -> Result<[u8; 32], CertificateError> {
    ed25519_key(parse(ca)?.public_key())
}

/// Only Ed25519, which has no parameters.
fn check_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> Result<(), CertificateError> {
    if algorithm.algorithm == OID_ED25519 && algorithm.parameters.is_none() {
        Ok(())
    } else {
        Err(CertificateError::Profile("another algorithm than Ed25519"))
    }
}

/// The Ed25519 signature behind the signed part of a certificate or request.
///
/// What stands around both is not signed and the parser is lax about it; only the one right form is
/// taken, so that nobody can make a second text of a certificate.
pub(super) fn signature_of<'a>(der: &'a [u8], signed: &[u8]) -> Result<&'a [u8], CertificateError> {
    let length = signed.len() + SIGNATURE_HEADER.len() + SIGNATURE_LEN;
    let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let header: &[u8] = match &length {
        [0, short] if *short >= 0x80 => &[0x30, 0x81, *short],
        [0, short] => &[0x30, *short],
        [high, low] => &[0x30, 0x82, *high, *low],
    };
    der.strip_prefix(header)
        .and_then(|rest| rest.strip_prefix(signed))
        .and_then(|rest| rest.strip_prefix(&SIGNATURE_HEADER))
        .filter(|signature| signature.len() == SIGNATURE_LEN)
        .ok_or(CertificateError::Profile("another form or algorithm than Ed25519 in DER"))
}

/// Reads a certificate without believing it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > CERTIFICATE_LEN {
        return Err(CertificateError::Malformed(format!("{} bytes are too many", der.len())));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Malformed("bytes behind its end".into())),
        Err(e) => Err(CertificateError::Malformed(e.to_string())),
    }
}

fn check_signature(
    der: &[u8],
    certificate: &X509Certificate<'_>,
    authority: &X509Certificate<'_>,
) -> Result<(), CertificateError> {
    check_algorithm(&certificate.tbs_certificate.signature)?;
    if !authority.is_ca() {
        return Err(CertificateError::OtherCa);
    }
    let key = ed25519_key(authority.public_key())?;
    let signature = signature_of(der, certificate.tbs_certificate.as_ref())?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(certificate.tbs_certificate.as_ref(), signature)
        .ok()
        .ok_or(CertificateError::OtherCa)
}

#[derive(Default)]
struct Own<'a> {
    uri: Option<&'a str>,
    content: Option<&'a [u8]>,
}

fn own_extensions<'a>(certificate: &'a X509Certificate<'_>) -> Result<Own<'a>, CertificateError> {
    let private = Oid::from(&EXTENSION_OID)
        .ok()
        .ok_or(CertificateError::Profile("an extension without a number"))?;
    let mut own = Own::default();
    for extension in certificate.extensions() {
        if extension.oid == private {
            if own.content.replace(extension.value).is_some() {
                return Err(CertificateError::Profile("two Noise keys"));
            }
            continue;
        }
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    if let GeneralName::URI(uri) = name
                        && own.uri.replace(uri).is_some()
                    {
                        return Err(CertificateError::Profile("two names"));
                    }
                }
            }
            ParsedExtension::ParseError { .. } => {
                return Err(CertificateError::Profile("a damaged extension"));
            }
            ParsedExtension::UnsupportedExtension { .. } if extension.critical => {
                return Err(CertificateError::Profile("an unknown critical extension"));
            }
            _ => {}
        }
    }
    Ok(own)
}

fn read_extension(content: &[u8]) -> Result<(u8, [u8; 32]), CertificateError> {
    let bad = || CertificateError::Profile("a damaged Noise key");
    let content = content.strip_prefix(&EXTENSION_HEADER).ok_or_else(bad)?;
    let (head, key) = content.split_first_chunk::<2>().ok_or_else(bad)?;
    let [version, flags] = *head;
    if version != EXTENSION_VERSION {
        return Err(bad());
    }
    Ok((flags, key.try_into().ok().ok_or_else(bad)?))
}

fn unix(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}
